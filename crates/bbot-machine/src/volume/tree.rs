//! Copying a tree of directories, from directory descriptor to directory descriptor, so that
//! nothing is ever followed through a symbolic link that somebody plants meanwhile.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::file::{Content, copy_content};
use super::{Stop, VolumeError, open_directory};
use crate::layout::{WARM_RAM, WARM_STATE};

/// What was copied.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    /// Regular files.
    pub(super) files: u64,
    /// Bytes of files whose blocks are shared with the source.
    pub(super) shared_bytes: u64,
    /// Bytes that had to be copied.
    pub(super) copied_bytes: u64,
}

/// How deep a machine's directories may be nested: deeper than any real system's, and within the
/// 1024 descriptors of a process, of which each level takes two.
const DEPTH_LIMIT: usize = 200;

/// Copies what the directory `from` holds, and its own metadata, into the empty directory `to`.
pub(super) fn copy_tree(from: &Path, to: &Path, stop: &Stop) -> Result<Tally, VolumeError> {
    let source = open_directory(from).map_err(|e| VolumeError::io("open", from, e))?;
    let target = open_directory(to).map_err(|e| VolumeError::io("open", to, e))?;
    let mut copier = Copier {
        root: rustix::process::geteuid().is_root(),
        stop,
        target: target.as_fd(),
        links: HashMap::new(),
        tally: Tally::default(),
    };
    copier.directory(source.as_fd(), target.as_fd(), from, Path::new(""), 0)?;
    let stat = rustix::fs::fstat(&source).map_err(|e| VolumeError::io("find", from, e))?;
    copier
        .metadata(source.as_fd(), target.as_fd(), &stat)
        .map_err(|e| VolumeError::io("copy", from, e))?;
    Ok(copier.tally)
}

/// The names in an open directory, without `.` and `..`.
pub(super) fn names(directory: impl AsFd) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Opens a directory inside another one: no symbolic link, no mount point (`EXDEV`).
pub(super) fn open_child(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(
        directory,
        name,
        flags,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS,
    ) {
        // Before Linux 5.6, or where a filter forbids the call.
        Err(Errno::NOSYS | Errno::PERM) => {
            let child = rustix::fs::openat(directory, name, flags, Mode::empty())?;
            let (outer, inner) = (rustix::fs::fstat(directory)?, rustix::fs::fstat(&child)?);
            if outer.st_dev != inner.st_dev && !super::ioctl::is_subvolume(&child)? {
                return Err(Errno::XDEV);
            }
            Ok(child)
        }
        other => other,
    }
}

/// `directory` extended by a name as the kernel gave it.
pub(super) fn join(directory: &Path, name: &CStr) -> PathBuf {
    directory.join(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

/// Whether an entry at the top of a machine is of no use in a copy of it: saved memory is restored
/// from where it was saved, by all copies.
fn is_saved_memory(name: &CStr) -> bool {
    [WARM_RAM, WARM_STATE]
        .iter()
        .any(|saved| saved.as_bytes() == name.to_bytes())
}

struct Copier<'a> {
    /// Whether the caller may give files away.
    root: bool,
    stop: &'a Stop,
    /// The top of the copy.
    target: BorrowedFd<'a>,
    /// Files with several names that have been copied, by device and inode: the path below the top.
    links: HashMap<(u64, u64), PathBuf>,
    tally: Tally,
}

impl Copier<'_> {
    /// Copies the entries of one directory. `shown` is its path for messages, `below` its path
    /// below the top of the copy.
    fn directory(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        shown: &Path,
        below: &Path,
        depth: usize,
    ) -> Result<(), VolumeError> {
        if depth > DEPTH_LIMIT {
            return Err(VolumeError::TooDeep {
                path: shown.to_path_buf(),
                limit: DEPTH_LIMIT,
            });
        }
        for name in names(source).map_err(|e| VolumeError::io("read directory", shown, e))? {
            let path = join(shown, &name);
            let below = join(below, &name);
            if depth == 0 && is_saved_memory(&name) {
                continue;
            }
            self.stop
                .check()
                .map_err(|e| VolumeError::io("copy", &path, e))?;
            let stat = rustix::fs::statat(source, &*name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| VolumeError::io("copy", &path, e))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                self.subdirectory(source, target, &name, &path, &below, depth)?;
            } else {
                self.other(source, target, &name, &stat, &below)
                    .map_err(|e| VolumeError::io("copy", &path, e))?;
            }
        }
        Ok(())
    }

    fn subdirectory(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
        path: &Path,
        below: &Path,
        depth: usize,
    ) -> Result<(), VolumeError> {
        let failed = |e: Errno| VolumeError::io("copy", path, e);
        let inner_source = open_child(source, name).map_err(|e| match e {
            Errno::XDEV => VolumeError::MountInside {
                path: path.to_path_buf(),
            },
            e => failed(e),
        })?;
        let stat = rustix::fs::fstat(&inner_source).map_err(failed)?;
        rustix::fs::mkdirat(target, name, Mode::RWXU).map_err(failed)?;
        let inner_target = open_child(target, name).map_err(failed)?;
        self.directory(
            inner_source.as_fd(),
            inner_target.as_fd(),
            path,
            below,
            depth + 1,
        )?;
        // Last, since copying into a directory changes its times, and its mode may forbid it.
        self.metadata(inner_source.as_fd(), inner_target.as_fd(), &stat)
            .map_err(|e| VolumeError::io("copy", path, e))
    }

    /// Copies anything but a directory.
    fn other(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
        below: &Path,
    ) -> io::Result<()> {
        if stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&key) {
                rustix::fs::linkat(self.target, first, target, name, AtFlags::empty())?;
                return Ok(());
            }
            self.links.insert(key, below.to_path_buf());
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(source, target, name),
            FileType::Symlink => {
                let text = rustix::fs::readlinkat(source, name, Vec::new())?;
                rustix::fs::symlinkat(&*text, target, name)?;
                self.metadata_by_name(target, name, stat, ByName::Symlink)
            }
            kind => {
                rustix::fs::mknodat(target, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?;
                self.metadata_by_name(target, name, stat, ByName::Special)
            }
        }
    }

    fn file(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
    ) -> io::Result<()> {
        let from = rustix::fs::openat(
            source,
            name,
            // Not blocking: should a FIFO have taken the file's place, opening must not hang.
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let stat = rustix::fs::fstat(&from)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other(
                "the file was replaced while it was copied",
            ));
        }
        let to = rustix::fs::openat(
            target,
            name,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )?;
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        self.tally.files += 1;
        match copy_content(&from, &to, length, &|| self.stop.check())? {
            Content::Shared => self.tally.shared_bytes += length,
            Content::Copied(bytes) => self.tally.copied_bytes += bytes,
        }
        self.metadata(from.as_fd(), to.as_fd(), &stat)
    }

    /// Gives an open file or directory the owner, mode, attributes and times of its source.
    fn metadata(
        &self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        stat: &Stat,
    ) -> io::Result<()> {
        if self.root {
            rustix::fs::fchown(
                target,
                Some(Uid::from_raw(stat.st_uid)),
                Some(Gid::from_raw(stat.st_gid)),
            )?;
        }
        // After the owner, since giving a file away takes its set-user-id bit and capabilities.
        rustix::fs::fchmod(target, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        copy_attributes(source, target)?;
        rustix::fs::futimens(target, &times(stat))?;
        Ok(())
    }

    /// The same for what cannot be opened.
    fn metadata_by_name(
        &self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
        what: ByName,
    ) -> io::Result<()> {
        if self.root {
            rustix::fs::chownat(
                directory,
                name,
                Some(Uid::from_raw(stat.st_uid)),
                Some(Gid::from_raw(stat.st_gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
        }
        // A symbolic link has no mode of its own. Nobody else knows the hidden copy that is being
        // made, so what was just made as a special file still is one.
        if what == ByName::Special {
            rustix::fs::chmodat(
                directory,
                name,
                Mode::from_raw_mode(stat.st_mode & 0o7777),
                AtFlags::empty(),
            )?;
        }
        rustix::fs::utimensat(directory, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByName {
    Symlink,
    Special,
}

fn times(stat: &Stat) -> Timestamps {
    #[expect(
        clippy::cast_possible_wrap,
        reason = "nanoseconds within a second; unsigned in the kernel's structure alone"
    )]
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec as _,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as _,
        },
    }
}

/// Copies extended attributes (file capabilities, access lists) as far as the caller and the file
/// systems allow. Attributes are refinements: one that cannot be set is left out.
fn copy_attributes(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let mut list = vec![0u8; 64 << 10];
    let length = match rustix::fs::flistxattr(source, &mut list) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::ACCESS) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let mut value = Vec::new();
    for name in list[..length].split(|&b| b == 0).filter(|n| !n.is_empty()) {
        // XATTR_SIZE_MAX is 64 KiB.
        value.resize(64 << 10, 0);
        let got = rustix::fs::fgetxattr(source, name, &mut value[..])
            .and_then(|n| rustix::fs::fsetxattr(target, name, &value[..n], XattrFlags::empty()));
        match got {
            Ok(())
            | Err(
                Errno::OPNOTSUPP
                | Errno::PERM
                | Errno::ACCESS
                | Errno::NODATA
                | Errno::NOSYS
                | Errno::INVAL,
            ) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
