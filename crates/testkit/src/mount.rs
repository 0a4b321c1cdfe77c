//! Something mounted, for as long as a test needs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{run, text};

/// Something mounted, unmounted when dropped, a panic's unwinding included.
///
/// A test that is killed leaves it behind, unless it has a view of its own on what is mounted
/// (`unshare(CLONE_NEWNS)`, and `/` made private) before it makes this.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// Runs `mount` with these arguments in front of the place, which has to be a directory.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    #[track_caller]
    pub fn new(arguments: &[&str], at: &Path) -> Self {
        run("mount", &[arguments, &[text(at)]].concat());
        Self(at.to_path_buf())
    }

    /// A new btrfs with room for `bytes`, in the file `image` of this directory, on its directory `mount`; neither may
    /// be there yet. Only for who has asked [`btrfs`](crate::btrfs).
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    #[track_caller]
    pub fn btrfs(directory: &Path, bytes: u64) -> Self {
        let image = directory.join("image");
        let made = fs::File::create_new(&image).and_then(|file| file.set_len(bytes));
        made.unwrap_or_else(|error| panic!("cannot make {}: {error}", image.display()));
        let at = directory.join("mount");
        fs::create_dir(&at).unwrap_or_else(|error| panic!("cannot make {}: {error}", at.display()));
        run("mkfs.btrfs", &["-q", text(&image)]);
        Self::new(&["-o", "loop", text(&image)], &at)
    }

    /// The same, after a directory above it has got another name.
    #[must_use]
    pub fn renamed(mut self, at: PathBuf) -> Self {
        self.0 = at;
        self
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount")
            .arg(&self.0)
            .stderr(Stdio::null())
            .status();
        if !unmounted.is_ok_and(|status| status.success()) {
            // A test that failed may still hold something open.
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_btrfs_is_there_until_it_is_dropped() {
        if !crate::btrfs() {
            return;
        }
        let directory = std::env::temp_dir().join(format!("testkit-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let mount = Mount::btrfs(&directory, 128 << 20);
        let at = mount.path().to_path_buf();
        run("btrfs", &["-q", "subvolume", "create", text(&at.join("s"))]);
        drop(mount);
        let left = fs::read_dir(&at).unwrap().count();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(left, 0);
    }
}
