//! What a container is started from: `rootfs/`, and the first program in it.
//!
//! What lies in there may be hostile. Names are looked up by the kernel as the container will see
//! them (`RESOLVE_IN_ROOT`), so that no symbolic link leads out.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::command::MAX_CMDLINE;
use crate::machine::Error;

/// The name of a container's root directory in the machine's.
pub const ROOTFS: &str = "rootfs";

/// Where systems have their first program, in the order of nspawn's own `--boot`.
const INITS: [&str; 3] = [
    "/usr/lib/systemd/systemd",
    "/lib/systemd/systemd",
    "/sbin/init",
];

/// Finds the first program of the container in `directory`, the machine's, and what is wrong with
/// its files.
///
/// # Errors
///
/// What is missing or of the wrong kind, with its path and how to mend it.
pub fn check(machine: &str, directory: &Path) -> Result<String, Error> {
    let path = directory.join(ROOTFS);
    let shown = path.display();
    let bad = |what: String| Error::Unsupported {
        machine: machine.to_owned(),
        what,
    };
    let root = open_root(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => bad(format!(
            "its root directory {shown} is not there; create or import the machine again"
        )),
        io::ErrorKind::NotADirectory => bad(format!(
            "{shown} is not a directory; a container's system is a directory of this name itself, no link to one"
        )),
        _ => bad(format!("{shown} cannot be opened: {error}")),
    })?;
    // nspawn insists on it.
    if !is_directory(&root, "usr") {
        return Err(bad(format!(
            "{shown} holds no system: there is no directory usr in it; create or import the machine again"
        )));
    }
    if let Some(named) = super::command::init_of(&read_cmdline(machine, directory)?) {
        return match is_program(&root, &named) {
            Ok(()) => Ok(named),
            Err(why) => Err(bad(format!(
                "its first program {named}, named in {}, {why}; mend the one or the other",
                directory.join("cmdline").display()
            ))),
        };
    }
    INITS
        .into_iter()
        .find(|init| is_program(&root, init).is_ok())
        .map(str::to_owned)
        .ok_or_else(|| {
            bad(format!(
                "{shown} has no first program: none of {} is one; install one, or name it in {} (init=/path)",
                INITS.join(", "),
                directory.join("cmdline").display()
            ))
        })
}

fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens a name as the container will see it.
fn open_inside(root: impl AsFd, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn is_directory(root: impl AsFd, name: &str) -> bool {
    open_inside(root, name, OFlags::PATH | OFlags::DIRECTORY).is_ok()
}

fn is_program(root: impl AsFd, name: &str) -> Result<(), String> {
    let file = match open_inside(root, name, OFlags::PATH) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Err("is not there".to_owned()),
        Err(error) => return Err(format!("cannot be looked at ({error})")),
    };
    match file.metadata() {
        Ok(metadata) if !metadata.is_file() => Err("is not a file".to_owned()),
        Ok(metadata) if metadata.mode() & 0o111 == 0 => Err("is not executable".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("cannot be looked at ({error})")),
    }
}

/// The file `cmdline` of the machine; empty when there is none.
fn read_cmdline(machine: &str, directory: &Path) -> Result<String, Error> {
    let path = directory.join("cmdline");
    let failed = |error: io::Error| Error::Unsupported {
        machine: machine.to_owned(),
        what: format!("{} cannot be read: {error}", path.display()),
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(String::new()),
        Err(error) => return Err(failed(error.into())),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is not a file")));
    }
    let mut text = String::new();
    file.take(MAX_CMDLINE)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(text)
}

/// Keeps everybody but root out of the machine's directory: the container's root is nobody on the
/// host, but what it writes belongs to the host's root on the disk, programs with set-user-id bits
/// included.
pub(crate) fn close(directory: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = File::from(rustix::fs::open(directory, flags, Mode::empty())?);
    if opened.metadata()?.mode() & 0o077 == 0 {
        return Ok(());
    }
    opened.set_permissions(std::fs::Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn machine(fill: impl FnOnce(&Path)) -> Result<String, String> {
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join("machine");
        std::fs::create_dir(&directory).unwrap();
        fill(&directory);
        check("m", &directory).map_err(|error| error.to_string())
    }

    fn program(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_system_with_an_init_is_fine() {
        let found = machine(|directory| program(&directory.join("rootfs/usr/lib/systemd/systemd")));
        assert_eq!(found.unwrap(), "/usr/lib/systemd/systemd");
        let found = machine(|directory| {
            program(&directory.join("rootfs/usr/bin/busybox"));
            std::fs::create_dir(directory.join("rootfs/sbin")).unwrap();
            // As the container sees it.
            symlink("/usr/bin/busybox", directory.join("rootfs/sbin/init")).unwrap();
        });
        assert_eq!(found.unwrap(), "/sbin/init");
        let found = machine(|directory| {
            program(&directory.join("rootfs/usr/lib/bbot/init"));
            std::fs::write(
                directory.join("cmdline"),
                "quiet init=/usr/lib/bbot/init rw\n",
            )
            .unwrap();
        });
        assert_eq!(found.unwrap(), "/usr/lib/bbot/init");
    }

    #[test]
    fn what_is_wrong_is_said() {
        type Case = (fn(&Path), &'static str);
        let cases: [Case; 8] = [
            (|_| (), "rootfs is not there; create or import"),
            (
                |directory| std::fs::write(directory.join("rootfs"), "").unwrap(),
                "rootfs is not a directory",
            ),
            (
                |directory| symlink("/", directory.join("rootfs")).unwrap(),
                "rootfs is not a directory",
            ),
            (
                |directory| std::fs::create_dir(directory.join("rootfs")).unwrap(),
                "holds no system",
            ),
            (
                |directory| std::fs::create_dir_all(directory.join("rootfs/usr")).unwrap(),
                "has no first program: none of /usr/lib/systemd/systemd",
            ),
            (
                |directory| {
                    std::fs::create_dir_all(directory.join("rootfs/usr")).unwrap();
                    std::fs::create_dir_all(directory.join("rootfs/sbin/init")).unwrap();
                },
                "has no first program",
            ),
            (
                |directory| {
                    std::fs::create_dir_all(directory.join("rootfs/usr")).unwrap();
                    std::fs::create_dir_all(directory.join("rootfs/sbin")).unwrap();
                    // There on the host, and nowhere in the container.
                    symlink(
                        "../../../../../../../bin/sh",
                        directory.join("rootfs/sbin/init"),
                    )
                    .unwrap();
                },
                "has no first program",
            ),
            (
                |directory| {
                    program(&directory.join("rootfs/usr/lib/systemd/systemd"));
                    std::fs::write(directory.join("cmdline"), "init=/nothing").unwrap();
                },
                "/nothing, named in",
            ),
        ];
        for (fill, expected) in cases {
            let error = machine(fill).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn only_root_comes_in() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        close(directory.path()).unwrap();
        let mode = std::fs::metadata(directory.path()).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o700);
    }
}
