//! The host on which a machine is made: what it must have, and how its apt gets packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::sources::{self, Sources};
use super::{CreateError, Suite};

/// Where programs are looked for: an ordinary user's path often lacks the system directories.
pub(super) fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

fn is_installed(program: &str, path: &str) -> bool {
    path.split(':')
        .any(|dir| !dir.is_empty() && Path::new(dir).join(program).is_file())
}

/// Fails when a program is missing that makes a base of this release.
pub(super) fn require_programs(suite: Suite, path: &str, as_root: bool) -> Result<(), CreateError> {
    let mut needed = vec![
        ("mmdebstrap", "mmdebstrap"),
        ("mke2fs", "e2fsprogs"),
        ("apt-get", "apt"),
        ("unshare", "util-linux"),
        ("tar", "tar"),
    ];
    match suite {
        Suite::Bookworm => {}
        // The drivers of its kernel are compressed.
        Suite::Trixie => needed.push(("xz", "xz-utils")),
    }
    if !as_root {
        needed.push(("newuidmap", "uidmap"));
    }
    match needed
        .into_iter()
        .find(|(program, _)| !is_installed(program, path))
    {
        Some((program, package)) => Err(CreateError::NotInstalled { program, package }),
        None => Ok(()),
    }
}

/// An ordinary user needs user namespaces and a range of user ids to use in them.
pub(super) fn require_user_namespace(path: &str) -> Result<(), CreateError> {
    let may = Command::new("unshare")
        .args(["--user", "--map-root-user", "true"])
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .is_ok_and(|output| output.status.success());
    if !may {
        return Err(CreateError::UserNamespace {
            what: "user namespaces are not available to this user".to_owned(),
            mend: "allow them (sysctl kernel.unprivileged_userns_clone=1)".to_owned(),
        });
    }
    let uid = rustix::process::getuid().as_raw();
    let user = user_name(uid);
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = fs::read_to_string(file).unwrap_or_default();
        if !has_range(&text, &user, uid) {
            return Err(CreateError::UserNamespace {
                what: format!("{file} gives the user {user} no range of ids"),
                mend: format!(
                    "add one (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user})"
                ),
            });
        }
    }
    Ok(())
}

fn user_name(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    passwd
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == uid.to_string()).then(|| name.to_owned())
        })
        .unwrap_or_else(|| uid.to_string())
}

fn has_range(text: &str, user: &str, uid: u32) -> bool {
    let uid = uid.to_string();
    text.lines().any(|line| {
        let mut fields = line.split(':');
        fields
            .next()
            .is_some_and(|name| name == user || name == uid)
            && fields
                .nth(1)
                .is_some_and(|count| count.trim().parse().is_ok_and(|count: u64| count >= 65536))
    })
}

/// Fails when fewer than `needed` bytes are left at `path`.
pub(super) fn require_space(path: &Path, needed: u64) -> Result<(), CreateError> {
    let stat = rustix::fs::statvfs(path).map_err(|error| {
        CreateError::io("cannot look at the file system of", path)(error.into())
    })?;
    let available = stat.f_bavail.saturating_mul(stat.f_frsize);
    if available < needed {
        return Err(CreateError::Space {
            path: path.to_owned(),
            needed_mib: needed >> 20,
            available_mib: available >> 20,
        });
    }
    Ok(())
}

/// The host's sources for this release, if it is a Debian host.
pub(super) fn sources(suite: &str) -> Sources {
    let mut sources = Sources::default();
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.sort();
    for file in files {
        // A file that cannot be read serves nobody: mmdebstrap's default mirror is the way then.
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.add_one_line(&text, suite),
            Some("sources") => sources.add_deb822(&text, suite),
            _ => {}
        }
    }
    sources
}

/// What apt is told here that holds for the new system's downloads too, a proxy above all.
pub(super) fn options() -> Vec<String> {
    Command::new("apt-config")
        .arg("dump")
        .stdin(Stdio::null())
        .output()
        .map(|output| sources::host_options(&String::from_utf8_lossy(&output.stdout)))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_belongs_to_its_user_by_name_or_number() {
        let text = "anna:100000:65536\n1007:165536:65536\nsmall:1:10\n";
        assert!(has_range(text, "anna", 1000));
        assert!(has_range(text, "nobody", 1007));
        assert!(!has_range(text, "small", 1001));
        assert!(!has_range(text, "other", 1001));
    }

    #[test]
    fn too_little_space_is_said_with_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let error = require_space(dir.path(), u64::MAX).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&dir.path().display().to_string())
        );
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let missing = |suite, as_root| {
            require_programs(suite, path, as_root)
                .map_err(|error| error.to_string())
                .err()
        };
        for program in ["mmdebstrap", "apt-get", "unshare", "tar"] {
            fs::write(dir.path().join(program), "").unwrap();
        }
        assert_eq!(
            missing(Suite::Bookworm, true).as_deref(),
            Some("mke2fs is not installed (Debian: apt install e2fsprogs)")
        );
        fs::write(dir.path().join("mke2fs"), "").unwrap();
        assert_eq!(missing(Suite::Bookworm, true), None);
        assert_eq!(
            missing(Suite::Trixie, true).as_deref(),
            Some("xz is not installed (Debian: apt install xz-utils)")
        );
        fs::write(dir.path().join("xz"), "").unwrap();
        assert_eq!(missing(Suite::Trixie, true), None);
        assert_eq!(
            missing(Suite::Trixie, false).as_deref(),
            Some("newuidmap is not installed (Debian: apt install uidmap)")
        );
    }
}
