//! Volumes of subvolumes: btrfs, spoken to by ioctl.

use std::ffi::OsStr;
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::io::Errno;

use super::{
    Kind, Stop, Volume, VolumeError, copy, ioctl, open_directory, remove, require_directory,
};
use crate::durable::parent;

/// Machines as subvolumes of btrfs.
///
/// - A snapshot takes milliseconds and no room, whatever the size of the machine. It is atomic
///   against writers of its source too.
/// - Read-only is the subvolume's property: the kernel refuses every write, root's included.
/// - Whatever a caller may not do by ioctl is done by hand: a machine that is a plain directory, or
///   another user's subvolume, is copied by reflink into a new subvolume; deleting without the
///   mount option `user_subvol_rm_allowed`, or with subvolumes inside (a container's system makes
///   some), empties the tree and removes it with `rmdir`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Btrfs;

fn name(path: &Path) -> Result<&OsStr, VolumeError> {
    path.file_name().ok_or_else(|| VolumeError::NoName {
        path: path.to_path_buf(),
    })
}

/// Opens the directory that holds `path` (which may be reached through symbolic links).
fn open_parent(path: &Path) -> Result<OwnedFd, VolumeError> {
    let parent = parent(path);
    rustix::fs::open(
        &parent,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(|e| VolumeError::io("open directory", &parent, e))
}

/// A subvolume, opened; `None` for a plain directory.
fn open_subvolume(path: &Path) -> Result<Option<OwnedFd>, VolumeError> {
    require_directory(path)?;
    let opened = open_directory(path).map_err(|e| VolumeError::io("open directory", path, e))?;
    let is = ioctl::is_subvolume(&opened).map_err(|e| VolumeError::io("look at", path, e))?;
    Ok(is.then_some(opened))
}

impl Volume for Btrfs {
    fn kind(&self) -> Kind {
        Kind::Btrfs
    }

    /// A subvolume is on the disk with the transaction that made it, and that has all that was made before.
    fn keeps_order(&self) -> bool {
        true
    }

    fn create(&self, path: &Path) -> Result<(), VolumeError> {
        ioctl::create(open_parent(path)?, name(path)?)
            .map_err(|e| VolumeError::io("create subvolume", path, e))
    }

    fn snapshot_until(&self, from: &Path, to: &Path, stop: &Stop) -> Result<(), VolumeError> {
        if let Some(source) = open_subvolume(from)? {
            match ioctl::snapshot(open_parent(to)?, name(to)?, &source) {
                // Another user's subvolume: one may read it, not snapshot it. Another file system.
                Err(Errno::PERM | Errno::XDEV) => {}
                Err(e @ Errno::EXIST) => return Err(VolumeError::io("create snapshot", to, e)),
                other => return other.map_err(|e| VolumeError::io("snapshot", from, e)),
            }
        }
        copy::copy_under_name(from, to, stop, |unfinished| self.create(unfinished))
    }

    fn set_read_only(&self, path: &Path, read_only: bool) -> Result<(), VolumeError> {
        match open_subvolume(path)? {
            Some(subvolume) => ioctl::set_read_only(&subvolume, read_only)
                .map_err(|e| VolumeError::io("change the read-only property of", path, e)),
            None => copy::set_read_only(path, read_only),
        }
    }

    fn is_read_only(&self, path: &Path) -> Result<bool, VolumeError> {
        match open_subvolume(path)? {
            Some(subvolume) => ioctl::is_read_only(&subvolume)
                .map_err(|e| VolumeError::io("read the read-only property of", path, e)),
            None => copy::is_read_only(path),
        }
    }

    fn delete(&self, path: &Path) -> Result<(), VolumeError> {
        let Some(subvolume) = open_subvolume(path)? else {
            return remove::hide_and_remove(path);
        };
        // An ordinary user cannot delete what is read-only. Whether this one may change that, the
        // deletion itself tells.
        let _ = ioctl::set_read_only(&subvolume, false);
        drop(subvolume);
        match ioctl::destroy(open_parent(path)?, name(path)?) {
            Err(Errno::PERM | Errno::ACCESS | Errno::NOTEMPTY) => remove::hide_and_remove(path),
            other => other.map_err(|e| VolumeError::io("delete subvolume", path, e)),
        }
    }
}
