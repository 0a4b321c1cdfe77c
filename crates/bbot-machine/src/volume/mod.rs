//! Volumes: where machines lie, and how a throw-away copy of one is made.
//!
//! On btrfs a machine is a subvolume and its copy a snapshot ([`Btrfs`]); on any other file system
//! both are plain directories, copied by reflink where there is one ([`struct@Copy`]). [`detect`] tells by
//! the file system. The layout of [`crate::layout`] is the same on either, and so is what a caller
//! sees, but for the time a snapshot takes and for what read-only means (see [`struct@Copy`]).
//!
//! Promises of both kinds:
//! - A snapshot appears under its name whole or not at all.
//! - A directory that is deleted vanishes from its name first, at once.
//! - Nothing is followed through a symbolic link, and no mount point is crossed.
//! - Making and deleting are *not* flushed to the disk: most copies live for one build, and
//!   flushing gigabytes for each would cost more than the build. What is to stay is flushed with
//!   [`Volume::sync`] before it gets its name; [`crate::owner::Temporary`] and
//!   [`crate::layout::add_revision`] do so.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use thiserror::Error;

mod btrfs;
mod copy;
mod file;
mod ioctl;
mod remove;
mod tree;

pub use btrfs::Btrfs;
pub use copy::Copy;

/// Copies what the directory `from` holds, and its own metadata, into the empty directory `to`.
pub(crate) fn copy_tree(from: &std::path::Path, to: &std::path::Path) -> Result<(), VolumeError> {
    tree::copy_tree(from, to, &Stop::default()).map(drop)
}

/// Breaks a copy off, from another thread. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// What goes on with it ends soon, as [`VolumeError::Stopped`].
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether that is so.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn check(&self) -> io::Result<()> {
        match self.is_set() {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => Ok(()),
        }
    }
}

/// What a volume is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Subvolumes and snapshots of btrfs.
    Btrfs,
    /// Plain directories, copied.
    Copy,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Btrfs => "btrfs",
            Self::Copy => "copy",
        })
    }
}

/// What went wrong on a volume.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// The system refused.
    #[error("unable to {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: `snapshot`, `delete`, ...
        action: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A directory was expected; symbolic links to directories are not taken for one.
    #[error("{} is not a directory", path.display())]
    NotDirectory {
        /// What was found instead.
        path: PathBuf,
    },
    /// The source of a snapshot was removed or replaced while it was copied.
    #[error("{} was removed or replaced while it was copied", path.display())]
    SourceChanged {
        /// The source.
        path: PathBuf,
    },
    /// A copy was broken off ([`Stop`]).
    #[error("the copy of {} was broken off", path.display())]
    Stopped {
        /// The source.
        path: PathBuf,
    },
    /// Something is mounted inside a tree that is to be copied or deleted.
    #[error("something is mounted at {}; unmount it first", path.display())]
    MountInside {
        /// The mount point.
        path: PathBuf,
    },
    /// A tree that is nested too deep to be copied.
    #[error("{} is nested more than {limit} directories deep", path.display())]
    TooDeep {
        /// The directory at which it was given up.
        path: PathBuf,
        /// The bound.
        limit: usize,
    },
    /// A path that does not end in a name.
    #[error("{} does not end in a name", path.display())]
    NoName {
        /// The path.
        path: PathBuf,
    },
}

impl VolumeError {
    pub(crate) fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io {
            action,
            path: path.to_path_buf(),
            source: source.into(),
        }
    }

    /// Whether somebody else was quicker: what was asked for has been removed or replaced
    /// meanwhile. Worth another try from the start (the seed tries ten times, a second apart).
    #[must_use]
    pub fn is_race(&self) -> bool {
        match self {
            Self::SourceChanged { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// Whether the name that was to be made is already there.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
    }
}

/// Where machines lie. All calls block; from async code use a blocking thread.
///
/// Object safe, so that a test can put a faulty volume in the place of a real one.
pub trait Volume: fmt::Debug + Send + Sync {
    /// What this volume is made of.
    fn kind(&self) -> Kind;

    /// Whether what is copied here is on the disk no sooner than the names that were made beside it before: then
    /// those need not be flushed first.
    fn keeps_order(&self) -> bool {
        false
    }

    /// Makes an empty, writable subvolume (or directory).
    ///
    /// # Errors
    /// When the name is taken ([`VolumeError::is_taken`]) or the directory cannot be written.
    fn create(&self, path: &Path) -> Result<(), VolumeError>;

    /// Makes a writable copy of `from` under the name `to`, which appears whole or not at all.
    /// The copy is writable even where `from` is read-only.
    ///
    /// # Errors
    /// [`VolumeError::is_race`] when `from` is gone or went while it was copied;
    /// [`VolumeError::is_taken`] when `to` exists. Nothing is left of a copy that failed.
    fn snapshot(&self, from: &Path, to: &Path) -> Result<(), VolumeError> {
        self.snapshot_until(from, to, &Stop::default())
    }

    /// As [`Volume::snapshot`], and can be broken off: a full copy may take minutes.
    ///
    /// # Errors
    /// As [`Volume::snapshot`]; [`VolumeError::Stopped`].
    fn snapshot_until(&self, from: &Path, to: &Path, stop: &Stop) -> Result<(), VolumeError>;

    /// Makes a subvolume read-only or writable again. What this protects from depends on the
    /// kind; see [`Btrfs`] and [`struct@Copy`].
    ///
    /// # Errors
    /// When the caller may not, or there is no such directory.
    fn set_read_only(&self, path: &Path, read_only: bool) -> Result<(), VolumeError>;

    /// Whether a subvolume is read-only.
    ///
    /// # Errors
    /// When there is no such directory.
    fn is_read_only(&self, path: &Path) -> Result<bool, VolumeError>;

    /// Gives a subvolume another name in the same directory, atomically and durably. Never
    /// replaces anything.
    ///
    /// # Errors
    /// [`VolumeError::is_taken`] when `to` exists, whatever it is.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), VolumeError> {
        require_directory(from)?;
        rename_without_replacing(from, to)?;
        flush_parent(to)
    }

    /// Lets two subvolumes of one directory change names, atomically and durably, so that there is
    /// always something whole under either.
    ///
    /// # Errors
    /// When either is missing, or the file system cannot do it (`EINVAL`).
    fn exchange(&self, one: &Path, other: &Path) -> Result<(), VolumeError> {
        require_directory(one)?;
        require_directory(other)?;
        rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
            .map_err(|e| VolumeError::io("exchange", one, e))?;
        flush_parent(one)
    }

    /// Deletes a subvolume with all it holds, read-only ones too. Its name is free at once; what is
    /// left when it is interrupted carries the name `.<name>.deleted` and goes with the next
    /// deletion of that name.
    ///
    /// # Errors
    /// When there is no such directory, something is mounted inside, or the caller may not.
    fn delete(&self, path: &Path) -> Result<(), VolumeError>;

    /// Flushes everything written to a subvolume to the disk. Flushes the file system it lies on
    /// (`syncfs`): one call instead of one per file.
    ///
    /// # Errors
    /// When there is no such directory, or the disk fails.
    fn sync(&self, path: &Path) -> Result<(), VolumeError> {
        let directory = open_directory(path).map_err(|e| VolumeError::io("flush", path, e))?;
        rustix::fs::syncfs(&directory).map_err(|e| VolumeError::io("flush", path, e))
    }
}

/// Finds out of what the directory's file system lets volumes be made.
///
/// # Errors
/// When there is no such directory.
pub fn detect(directory: &Path) -> Result<Box<dyn Volume>, VolumeError> {
    let opened = rustix::fs::open(
        directory,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| VolumeError::io("open directory", directory, e))?;
    let on_btrfs = ioctl::on_btrfs(&opened)
        .map_err(|e| VolumeError::io("find the file system of", directory, e))?;
    Ok(if on_btrfs {
        Box::new(Btrfs)
    } else {
        Box::new(Copy)
    })
}

/// Opens a directory itself, never through a symbolic link in its last component.
fn open_directory(path: &Path) -> Result<rustix::fd::OwnedFd, rustix::io::Errno> {
    rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// That `path` is a directory and no symbolic link, and which one (device, inode).
fn require_directory(path: &Path) -> Result<(u64, u64), VolumeError> {
    let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| VolumeError::io("find", path, e))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Directory {
        return Err(VolumeError::NotDirectory {
            path: path.to_path_buf(),
        });
    }
    Ok((stat.st_dev, stat.st_ino))
}

fn rename_without_replacing(from: &Path, to: &Path) -> Result<(), VolumeError> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system knows no flags. A look before the leap is all there is left; a plain
        // rename of a directory replaces nothing but an empty directory.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            if to.symlink_metadata().is_ok() {
                return Err(VolumeError::io("rename to", to, rustix::io::Errno::EXIST));
            }
            std::fs::rename(from, to).map_err(|e| VolumeError::io("rename", from, e))
        }
        Err(e @ rustix::io::Errno::EXIST) => Err(VolumeError::io("rename to", to, e)),
        other => other.map_err(|e| VolumeError::io("rename", from, e)),
    }
}

fn flush_parent(path: &Path) -> Result<(), VolumeError> {
    crate::durable::sync_parent(path).map_err(|e| VolumeError::Io {
        action: "flush",
        path: e.path,
        source: e.source,
    })
}

/// `.<name>.<ending>` beside `path`.
fn hidden(path: &Path, ending: &str) -> Result<PathBuf, VolumeError> {
    crate::durable::hidden_sibling(path, ending).map_err(|_| VolumeError::NoName {
        path: path.to_path_buf(),
    })
}

/// The name a copy has beside `to` while it is made.
pub(crate) fn unfinished(to: &Path) -> Result<PathBuf, VolumeError> {
    hidden(to, "new")
}

/// The name a tree has beside `path` while it is deleted.
pub(crate) fn half_deleted(path: &Path) -> Result<PathBuf, VolumeError> {
    hidden(path, "deleted")
}
