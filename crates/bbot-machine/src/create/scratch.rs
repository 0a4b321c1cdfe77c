//! Where root's mmdebstrap makes the new system.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::CreateError;

/// A directory in which root's mmdebstrap makes the new system, removed when dropped. It is locked while it is used, so
/// that the next run can remove what one that was killed has left.
pub(super) struct Scratch {
    directory: tempfile::TempDir,
    _lock: File,
}

impl Scratch {
    const PREFIX: &str = ".bbot-making.";

    /// Where such directories are: /tmp may be in memory, and the new system takes most of a gigabyte.
    pub(super) fn parent() -> PathBuf {
        std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from)
    }

    pub(super) fn make() -> Result<Self, CreateError> {
        Self::make_in(&Self::parent())
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    fn make_in(parent: &Path) -> Result<Self, CreateError> {
        let failed = || CreateError::io("cannot make a directory in", parent);
        Self::remove_left(parent);
        loop {
            let directory = tempfile::Builder::new()
                .prefix(Self::PREFIX)
                .tempdir_in(parent)
                .map_err(failed())?;
            // apt's own user comes through it.
            fs::set_permissions(directory.path(), Permissions::from_mode(0o755))
                .map_err(failed())?;
            let lock = File::open(directory.path()).map_err(failed())?;
            lock.lock().map_err(failed())?;
            // Before it was locked, another run may have taken it for left.
            if directory.path().is_dir() {
                return Ok(Self {
                    directory,
                    _lock: lock,
                });
            }
        }
    }

    /// What cannot be removed stays for the next time.
    fn remove_left(parent: &Path) {
        let Ok(entries) = fs::read_dir(parent) else {
            return;
        };
        for entry in entries.flatten() {
            if !entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(Self::PREFIX.as_bytes())
            {
                continue;
            }
            let opened = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NOFOLLOW | libc::O_DIRECTORY)
                .open(entry.path());
            if let Ok(directory) = opened
                && directory.try_lock().is_ok()
            {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_that_was_left_goes_and_what_is_used_stays() {
        let parent = tempfile::tempdir().unwrap();
        let left = parent.path().join(".bbot-making.left");
        fs::create_dir_all(left.join("mmdebstrap.x/usr")).unwrap();
        let target = parent.path().join("target");
        fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, parent.path().join(".bbot-making.link")).unwrap();
        let first = Scratch::make_in(parent.path()).unwrap();
        assert!(!left.exists() && target.exists());
        let second = Scratch::make_in(parent.path()).unwrap();
        let path = first.directory.path().to_owned();
        assert!(path.exists() && second.directory.path().exists());
        drop(first);
        assert!(!path.exists());
    }
}
