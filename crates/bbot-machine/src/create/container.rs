//! The files of a container: those of the base's disk image, as a directory.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::CreateError;

pub(super) use crate::nspawn::rootfs::ROOTFS;

/// Names the container's first program.
pub(super) const COMMAND_LINE: &str = "init=/usr/lib/bbot/init";

/// Where the disk image is mounted meanwhile, in a view on mounts that nobody else has.
pub(super) const MOUNTED: &str = ".disk";

/// What only a virtual machine has use for.
const NOT_HERE: [&str; 2] = ["usr/lib/modules", "lost+found"];

/// Copies what is in the disk image to `rootfs/` in `to`, which nobody but root may enter from now
/// on: programs in there run with the rights of their owners.
pub(super) fn fill(disk: &Path, to: &Path) -> Result<(), CreateError> {
    fs::set_permissions(to, Permissions::from_mode(0o700))
        .map_err(CreateError::io("cannot close", to))?;
    let (rootfs, mounted) = (to.join(ROOTFS), to.join(MOUNTED));
    for directory in [&rootfs, &mounted] {
        fs::create_dir(directory).map_err(CreateError::io("cannot make", directory))?;
    }
    // The mount goes with the thread's view on mounts, and the loop device with the mount: also
    // when this process is killed.
    std::thread::scope(|scope| {
        let copying = std::thread::Builder::new()
            .name("copy".to_owned())
            .spawn_scoped(scope, || {
                mount(disk, &mounted)?;
                crate::volume::copy_tree(&mounted, &rootfs)?;
                Ok::<(), CreateError>(())
            })
            .map_err(CreateError::io("cannot copy to", &rootfs))?;
        copying
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    fs::remove_dir(&mounted).map_err(CreateError::io("cannot remove", &mounted))?;
    for name in NOT_HERE {
        let path = rootfs.join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(CreateError::io("cannot remove", &path)(error));
            }
            _ => {}
        }
    }
    // It has no disk that would have to be mounted.
    let fstab = rootfs.join("etc/fstab");
    fs::write(&fstab, "").map_err(CreateError::io("cannot write", &fstab))
}

/// Mounts the disk image for the calling thread alone, read-only, without looking at its journal.
fn mount(disk: &Path, at: &Path) -> Result<(), CreateError> {
    use nix::mount::MsFlags;
    use nix::sched::{CloneFlags, unshare};
    let private = || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
    };
    let failed = |why: String| CreateError::Mount {
        disk: disk.to_owned(),
        why,
    };
    private().map_err(|error| failed(error.to_string()))?;
    let output = Command::new("mount")
        .args(["-t", "ext4", "-o", "ro,loop,noload,nosuid,nodev,noexec"])
        .args([disk, at])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("mount: {error}")))?;
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(failed(said.trim().replace('\n', "; ")))
    }
}
