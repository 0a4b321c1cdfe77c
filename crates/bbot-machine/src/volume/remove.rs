//! Deleting a tree of directories, however deep and by however many at once.

use std::ffi::CStr;
use std::path::Path;

use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode};
use rustix::io::Errno;

use super::tree::{join, names, open_child};
use super::{VolumeError, half_deleted, ioctl, rename_without_replacing, require_directory};

/// How deep a directory is entered; what is below is moved up to the top first. A build may nest
/// directories deeper than a process has descriptors.
const DEPTH_LIMIT: usize = 100;

/// Takes the directory off its name, then deletes it. One that is hidden already stays under its
/// name until it is gone.
pub(super) fn hide_and_remove(path: &Path) -> Result<(), VolumeError> {
    require_directory(path)?;
    if path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
    {
        return remove_tree(path);
    }
    let doomed = half_deleted(path)?;
    // What an interrupted deletion has left.
    remove_tree(&doomed)?;
    rename_without_replacing(path, &doomed)?;
    remove_tree(&doomed)
}

/// Deletes a directory and all it holds; one that is not there is as good as deleted. Stops before
/// anything is touched at a symbolic link in its place.
pub(super) fn remove_tree(path: &Path) -> Result<(), VolumeError> {
    match require_directory(path) {
        Err(error) if error.is_race() => return Ok(()),
        other => other?,
    };
    let directory = match super::open_directory(path) {
        Err(Errno::ACCESS) => {
            // An ordinary user's own directory without permissions.
            unlock(CWD, path)?;
            super::open_directory(path)
        }
        other => other,
    };
    let directory = match directory {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(VolumeError::io("open directory", path, e)),
    };
    make_writable(directory.as_fd());
    let mut remover = Remover {
        top: directory.as_fd(),
        moved: 0,
    };
    // A pass may move directories up to the top, for the next pass.
    loop {
        let names = names(&directory).map_err(|e| VolumeError::io("read directory", path, e))?;
        if names.is_empty() {
            break;
        }
        for name in names {
            remover.entry(directory.as_fd(), &name, path, 0)?;
        }
    }
    match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(VolumeError::io("delete", path, e)),
    }
}

fn unlock(directory: impl AsFd, path: &Path) -> Result<(), VolumeError> {
    rustix::fs::chmodat(directory, path, Mode::RWXU, AtFlags::empty())
        .map_err(|e| VolumeError::io("change the mode of", path, e))
}

/// Sees to it that an open directory's entries can be removed. Whether that worked, the removal
/// tells.
fn make_writable(directory: BorrowedFd<'_>) {
    if let Ok(true) = ioctl::is_subvolume(directory) {
        let _ = ioctl::set_read_only(directory, false);
    }
    let Ok(stat) = rustix::fs::fstat(directory) else {
        return;
    };
    if stat.st_mode & 0o700 != 0o700 {
        let _ = rustix::fs::fchmod(directory, Mode::RWXU);
    }
}

struct Remover<'a> {
    /// The top of the tree.
    top: BorrowedFd<'a>,
    /// How many directories have been moved up to it.
    moved: u64,
}

impl Remover<'_> {
    fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        shown: &Path,
        depth: usize,
    ) -> Result<(), VolumeError> {
        let path = join(shown, name);
        let failed = |e: Errno| VolumeError::io("delete", &path, e);
        let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(e) => Err(failed(e)),
            };
        }
        let mut opened = open_child(directory, name);
        if let Err(Errno::ACCESS) = opened {
            // It was a directory a moment ago, in a tree that only we know the name of.
            rustix::fs::chmodat(directory, name, Mode::RWXU, AtFlags::empty()).map_err(failed)?;
            opened = open_child(directory, name);
        }
        let child = match opened {
            Ok(child) => child,
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::XDEV) => return Err(VolumeError::MountInside { path }),
            Err(e) => return Err(failed(e)),
        };
        make_writable(child.as_fd());
        if depth >= DEPTH_LIMIT {
            return self.move_up(directory, name).map_err(failed);
        }
        for inner in names(&child).map_err(failed)? {
            self.entry(child.as_fd(), &inner, &path, depth + 1)?;
        }
        match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(failed(e)),
        }
    }

    /// Moves a directory that lies too deep to the top.
    fn move_up(&mut self, directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        loop {
            self.moved += 1;
            let up = format!("deep-{}", self.moved);
            match rustix::fs::renameat_with(
                directory,
                name,
                self.top,
                &*up,
                rustix::fs::RenameFlags::NOREPLACE,
            ) {
                Err(Errno::EXIST) => {}
                Err(Errno::INVAL | Errno::NOSYS) => {
                    return match rustix::fs::renameat(directory, name, self.top, &*up) {
                        Err(Errno::EXIST | Errno::NOTEMPTY) => continue,
                        other => other,
                    };
                }
                other => return other,
            }
        }
    }
}
