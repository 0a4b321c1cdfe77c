//! Toolchains: a flat folder with the worker and the `bootstrap` script, kept
//! below the TFTP root, whose id is the checksum of its contents.
//!
//! ```text
//! <tftp>/toolchains/<name>                 a link to the current one
//! <tftp>/toolchains/.store/<name>@<id>/    what was added, never changed again
//! ```
//!
//! Adding copies, syncs and then switches the link, so that a machine is
//! bootstrapped from the old one or from the new one, never from a mixture. A
//! plain folder in the link's place (what the original's Build OS makes) is
//! served as well, but has no id of its own.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// The script that a bare machine fetches first.
pub const BOOTSTRAP: &str = "bootstrap";

const STORE: &str = ".store";

/// What can go wrong with a toolchain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolchainError {
    /// The name cannot be used.
    #[error(
        "invalid toolchain name '{name}': letters, digits, '.', '_', '+' and '-', beginning with a letter or digit, at most 100"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The folder does not hold a toolchain.
    #[error("{} is not a toolchain: {why}", path.display())]
    Invalid {
        /// The folder or the file in it.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// There is none of this name.
    #[error("no toolchain {name} in {}: add it with `bbot toolchain add`", dir.display())]
    Unknown {
        /// The name.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// It was not added by us, so it is not ours to change.
    #[error("{} is a plain folder that was not added by `bbot toolchain add`: move it away first", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
    },
    /// A file or folder cannot be read or written.
    #[error("unable to {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ToolchainError + 'a {
    move |source| ToolchainError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Whether a toolchain may have this name: it becomes part of file names.
///
/// # Errors
///
/// [`ToolchainError::Name`].
pub fn check_name(name: &str) -> Result<(), ToolchainError> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'+' | b'-');
    let first = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    if first && name.len() <= 100 && name.bytes().all(ok) {
        Ok(())
    } else {
        Err(ToolchainError::Name {
            name: name.to_owned(),
        })
    }
}

/// One toolchain in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// Its name.
    pub name: String,
    /// Its id; none for a plain folder that was not added by us.
    pub id: Option<String>,
    /// Where its files are.
    pub path: PathBuf,
}

/// The id of the toolchain in `dir`: a SHA-256 over the files' names, contents
/// and whether they can be executed, in lower-case hexadecimal.
///
/// # Errors
///
/// When `dir` is not a flat folder of regular files, or cannot be read.
pub fn id(dir: &Path) -> Result<String, ToolchainError> {
    let mut sum = Sha256::new();
    for name in files(dir)? {
        let path = dir.join(&name);
        let read = io_error("read", &path);
        let mut file = fs::File::open(&path).map_err(&read)?;
        let mode = file.metadata().map_err(&read)?.permissions().mode();
        let mut content = Sha256::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match file.read(&mut buffer).map_err(&read)? {
                0 => break,
                n => content.update(&buffer[..n]),
            }
        }
        // The name ends with a NUL and the rest has a fixed length, so that no
        // two folders give the same text.
        sum.update(name.as_bytes());
        sum.update([0, u8::from(mode & 0o111 != 0)]);
        sum.update(content.finalize());
    }
    Ok(hex::encode(sum.finalize()))
}

/// The names of the files in a toolchain's folder, sorted.
fn files(dir: &Path) -> Result<Vec<String>, ToolchainError> {
    let read = io_error("read the folder", dir);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(&read)? {
        let entry = entry.map_err(&read)?;
        let invalid = |why| ToolchainError::Invalid {
            path: entry.path(),
            why,
        };
        let Ok(name) = entry.file_name().into_string() else {
            return Err(invalid("the file's name is not UTF-8"));
        };
        if name.starts_with('.') {
            continue;
        }
        if !fs::metadata(entry.path()).map_err(&read)?.is_file() {
            return Err(invalid("only plain files can be served to a machine"));
        }
        if name.len() > 128 || name.chars().any(char::is_control) {
            return Err(invalid("the file's name cannot be asked for by TFTP"));
        }
        names.push(name);
    }
    names.sort_unstable();
    if names.iter().any(|n| n == BOOTSTRAP) {
        Ok(names)
    } else {
        Err(ToolchainError::Invalid {
            path: dir.to_owned(),
            why: "it has no file `bootstrap`",
        })
    }
}

/// The folder of all toolchains.
pub fn root(tftp: &Path) -> PathBuf {
    tftp.join("toolchains")
}

/// Where the toolchain's files are now. A run takes this once at its start, so
/// that a switch of the link does not change what the run sees.
///
/// # Errors
///
/// [`ToolchainError::Unknown`] when there is no such toolchain.
pub fn resolve(tftp: &Path, name: &str) -> Result<Toolchain, ToolchainError> {
    check_name(name)?;
    let root = root(tftp);
    let link = root.join(name);
    let unknown = || ToolchainError::Unknown {
        name: name.to_owned(),
        dir: root.clone(),
    };
    let path = match fs::canonicalize(&link) {
        Ok(path) if path.is_dir() => path,
        Ok(_) => return Err(unknown()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(unknown()),
        Err(e) => return Err(io_error("read", &link)(e)),
    };
    Ok(Toolchain {
        name: name.to_owned(),
        // Of the path, not of the link: that may be switched meanwhile.
        id: store_id(&root, &path, name),
        path,
    })
}

/// The id in the path of a folder that we have made.
fn store_id(root: &Path, path: &Path, name: &str) -> Option<String> {
    let store = root.join(STORE).canonicalize().ok()?;
    let folder = path.strip_prefix(store).ok()?.to_str()?;
    let id = folder.strip_prefix(name)?.strip_prefix('@')?;
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (id.len() == 64 && id.bytes().all(hex)).then(|| id.to_owned())
}

/// Adds the toolchain in `from` under `name`, or switches `name` to it, and
/// returns its id. The machines are bootstrapped again when the id changes. The
/// one before is kept, since a bootstrap may be using it; older ones are
/// deleted.
///
/// # Errors
///
/// When `from` is no toolchain, or something cannot be read or written; then
/// `name` is what it was.
pub fn add(tftp: &Path, name: &str, from: &Path) -> Result<String, ToolchainError> {
    check_name(name)?;
    let root = root(tftp);
    let store = root.join(STORE);
    fs::create_dir_all(&store).map_err(io_error("make the folder", &store))?;
    let link = root.join(name);
    if link.symlink_metadata().is_ok_and(|m| !m.is_symlink()) {
        return Err(ToolchainError::Foreign { path: link });
    }

    let copy = tempfile::Builder::new()
        .prefix(".adding-")
        .tempdir_in(&store)
        .map_err(io_error("make a folder in", &store))?;
    for file in files(from)? {
        let (source, target) = (from.join(&file), copy.path().join(&file));
        fs::copy(&source, &target).map_err(io_error("copy", &source))?;
        fs::File::open(&target)
            .and_then(|f| f.sync_all())
            .map_err(io_error("write", &target))?;
    }
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(copy.path(), open).map_err(io_error("open", copy.path()))?;
    sync_dir(copy.path())?;

    // Of the copy, not of the source: that may change meanwhile.
    let id = id(copy.path())?;
    let kept = store.join(format!("{name}@{id}"));
    if !kept.is_dir() {
        fs::rename(copy.keep(), &kept).map_err(io_error("make", &kept))?;
        sync_dir(&store)?;
    }

    let previous = resolve(tftp, name).ok().and_then(|t| t.id);
    let new_link = store.join(format!(".link-{name}-{}", std::process::id()));
    let _ = fs::remove_file(&new_link);
    std::os::unix::fs::symlink(Path::new(STORE).join(format!("{name}@{id}")), &new_link)
        .and_then(|()| fs::rename(&new_link, &link))
        .map_err(io_error("switch", &link))?;
    sync_dir(&root)?;
    prune(&store, name, &[Some(id.as_str()), previous.as_deref()])?;
    Ok(id)
}

/// The toolchains below `tftp`, by name.
///
/// # Errors
///
/// When the folder cannot be read; a folder that is not there is an empty list.
pub fn list(tftp: &Path) -> Result<Vec<Toolchain>, ToolchainError> {
    let root = root(tftp);
    let entries = match fs::read_dir(&root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io_error("read the folder", &root)(e)),
    };
    let mut toolchains = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error("read the folder", &root))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // A name that is not one of ours (hidden, a stray file) is passed over.
        if check_name(&name).is_ok()
            && let Ok(toolchain) = resolve(tftp, &name)
        {
            toolchains.push(toolchain);
        }
    }
    toolchains.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(toolchains)
}

/// Removes a toolchain that was added by us.
///
/// # Errors
///
/// When there is none of this name, or it was not added by us.
pub fn remove(tftp: &Path, name: &str) -> Result<(), ToolchainError> {
    let root = root(tftp);
    let link = root.join(name);
    check_name(name)?;
    match link.symlink_metadata() {
        Ok(meta) if meta.is_symlink() => {}
        Ok(_) => return Err(ToolchainError::Foreign { path: link }),
        Err(_) => {
            return Err(ToolchainError::Unknown {
                name: name.to_owned(),
                dir: root,
            });
        }
    }
    fs::remove_file(&link).map_err(io_error("remove", &link))?;
    prune(&root.join(STORE), name, &[])
}

fn prune(store: &Path, name: &str, keep: &[Option<&str>]) -> Result<(), ToolchainError> {
    let read = io_error("read the folder", store);
    for entry in fs::read_dir(store).map_err(&read)? {
        let entry = entry.map_err(&read)?;
        let file_name = entry.file_name();
        let id = file_name
            .to_str()
            .and_then(|n| n.strip_prefix(name))
            .and_then(|n| n.strip_prefix('@'));
        if let Some(id) = id
            && !keep.contains(&Some(id))
        {
            let path = entry.path();
            fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
        }
    }
    Ok(())
}

fn sync_dir(dir: &Path) -> Result<(), ToolchainError> {
    fs::File::open(dir)
        .and_then(|f| f.sync_all())
        .map_err(io_error("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn the_id_is_of_names_contents_and_modes() {
        let base = [("bootstrap", "x"), ("bbot-worker", "y")];
        let a = folder(&base);
        let same = folder(&[base[1], base[0]]);
        assert_eq!(id(a.path()).unwrap(), id(same.path()).unwrap());
        for other in [
            folder(&[("bootstrap", "x"), ("bbot-worker", "z")]),
            folder(&[("bootstrap", "x"), ("bbot-workes", "y")]),
            folder(&[("bootstrap", "x")]),
            folder(&[("bootstrap", "xy"), ("bbot-worker", "")]),
        ] {
            assert_ne!(id(a.path()).unwrap(), id(other.path()).unwrap());
        }
        let before = id(a.path()).unwrap();
        fs::set_permissions(
            a.path().join("bootstrap"),
            fs::Permissions::from_mode(0o755),
        )
        .unwrap();
        assert_ne!(before, id(a.path()).unwrap());
        // What an editor leaves lying about is not part of it.
        let before = id(a.path()).unwrap();
        fs::write(a.path().join(".bootstrap.swp"), "").unwrap();
        assert_eq!(before, id(a.path()).unwrap());
    }

    #[test]
    fn only_a_flat_folder_with_a_bootstrap_is_a_toolchain() {
        let no_bootstrap = folder(&[("bbot-worker", "y")]);
        assert!(matches!(
            id(no_bootstrap.path()),
            Err(ToolchainError::Invalid { .. })
        ));
        let nested = folder(&[("bootstrap", "x")]);
        fs::create_dir(nested.path().join("lib")).unwrap();
        assert!(matches!(
            id(nested.path()),
            Err(ToolchainError::Invalid { .. })
        ));
        assert!(matches!(
            id(&nested.path().join("no")),
            Err(ToolchainError::Io { .. })
        ));
    }

    #[test]
    fn adding_switches_and_keeps_one_before() {
        let tftp = tempfile::tempdir().unwrap();
        let mut ids = Vec::new();
        for text in ["1", "2", "3"] {
            let from = folder(&[("bootstrap", text)]);
            let added = add(tftp.path(), "default", from.path()).unwrap();
            assert_eq!(added, id(from.path()).unwrap());
            let now = resolve(tftp.path(), "default").unwrap();
            assert_eq!(now.id.as_deref(), Some(added.as_str()));
            assert_eq!(
                fs::read_to_string(now.path.join("bootstrap")).unwrap(),
                text
            );
            ids.push(added);
        }
        let store = root(tftp.path()).join(STORE);
        let mut left: Vec<String> = fs::read_dir(&store)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort_unstable();
        let mut expected = vec![format!("default@{}", ids[1]), format!("default@{}", ids[2])];
        expected.sort_unstable();
        assert_eq!(left, expected);

        // The same again changes nothing, and another name is another toolchain.
        let same = folder(&[("bootstrap", "3")]);
        assert_eq!(add(tftp.path(), "default", same.path()).unwrap(), ids[2]);
        add(tftp.path(), "other", same.path()).unwrap();
        let names: Vec<String> = list(tftp.path())
            .unwrap()
            .into_iter()
            .map(|t| t.name)
            .collect();
        assert_eq!(names, ["default", "other"]);

        remove(tftp.path(), "default").unwrap();
        assert!(matches!(
            resolve(tftp.path(), "default"),
            Err(ToolchainError::Unknown { .. })
        ));
        assert!(matches!(
            remove(tftp.path(), "default"),
            Err(ToolchainError::Unknown { .. })
        ));
        assert!(resolve(tftp.path(), "other").is_ok());
    }

    #[test]
    fn a_failed_add_leaves_what_was() {
        let tftp = tempfile::tempdir().unwrap();
        let good = folder(&[("bootstrap", "1")]);
        let id = add(tftp.path(), "default", good.path()).unwrap();
        let bad = folder(&[("worker", "1")]);
        assert!(add(tftp.path(), "default", bad.path()).is_err());
        assert_eq!(resolve(tftp.path(), "default").unwrap().id, Some(id));
        assert_eq!(
            fs::read_dir(root(tftp.path()).join(STORE)).unwrap().count(),
            1
        );
    }

    #[test]
    fn a_plain_folder_is_served_without_an_id_and_never_touched() {
        let tftp = tempfile::tempdir().unwrap();
        let plain = root(tftp.path()).join("public");
        fs::create_dir_all(&plain).unwrap();
        fs::write(plain.join("build2.tar.xz"), "x").unwrap();
        let toolchain = resolve(tftp.path(), "public").unwrap();
        assert_eq!(
            (toolchain.id, toolchain.path),
            (None, plain.canonicalize().unwrap())
        );
        let from = folder(&[("bootstrap", "1")]);
        assert!(matches!(
            add(tftp.path(), "public", from.path()),
            Err(ToolchainError::Foreign { .. })
        ));
        assert!(matches!(
            remove(tftp.path(), "public"),
            Err(ToolchainError::Foreign { .. })
        ));
        assert!(plain.join("build2.tar.xz").exists());
    }

    #[test]
    fn names_stay_in_the_folder() {
        for wrong in [
            "",
            "..",
            ".store",
            "a/b",
            "a b",
            "-a",
            "a\n",
            "ä",
            &"a".repeat(101),
        ] {
            assert!(check_name(wrong).is_err(), "{wrong:?}");
            assert!(resolve(Path::new("/nowhere"), wrong).is_err());
        }
        for right in ["default", "public-0.17.0", "stage-0.19.0-a.0.2026+1", "a_b"] {
            assert!(check_name(right).is_ok(), "{right}");
        }
    }
}
