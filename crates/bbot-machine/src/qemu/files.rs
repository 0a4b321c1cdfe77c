//! What QEMU is handed: the machine's files as descriptors that the agent has
//! opened, so that QEMU's user needs no right on any folder and no file changes
//! its owner.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags};

use super::command::{DEFAULT_CMDLINE, DirectBoot};
use super::trying;
use crate::machine::Error;

/// The longest kernel command line that is read; Linux takes 2047 bytes.
const MAX_CMDLINE: u64 = 4096;

/// A file that is handed over.
#[derive(Debug)]
pub(super) struct Handed {
    pub(super) fd: OwnedFd,
}

/// Whether the machine's directory has a regular file of this name. Links are
/// not followed, and a name with a `/` is none of the machine's.
pub(super) fn is_machine_file(directory: &Path, name: &str) -> bool {
    !name.is_empty()
        && !name.contains('/')
        && directory
            .join(name)
            .symlink_metadata()
            .is_ok_and(|metadata| metadata.is_file())
}

/// Opens a disk for reading and writing, and, since QEMU asks for the way it
/// needs, once more for reading only. One that must not be written is only read.
pub(super) fn open_disk(path: &Path) -> Result<Vec<Handed>, Error> {
    let mut handed = Vec::new();
    match open(path, OFlags::RDWR) {
        Ok(fd) => handed.push(Handed { fd }),
        Err(error)
            if error.kind() == io::ErrorKind::PermissionDenied
                || error.kind() == io::ErrorKind::ReadOnlyFilesystem => {}
        Err(error) => return Err(trying(format!("open {}", path.display()))(error)),
    }
    let fd = open(path, OFlags::RDONLY).map_err(trying(format!("open {}", path.display())))?;
    handed.push(Handed { fd });
    Ok(handed)
}

fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    // A fifo would block, a link could lead anywhere.
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    let file = File::from(fd);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ));
    }
    Ok(OwnedFd::from(file))
}

/// What a machine with a `kernel` boots. Descriptors are added to `inherited`.
pub(super) fn direct_boot(
    directory: &Path,
    other_user: bool,
    inherited: &mut Vec<OwnedFd>,
) -> Result<Option<DirectBoot>, Error> {
    let Some(kernel) = hand_readable(&directory.join("kernel"), other_user, inherited)? else {
        return Ok(None);
    };
    let initrd = hand_readable(&directory.join("initrd"), other_user, inherited)?;
    Ok(Some(DirectBoot {
        kernel,
        initrd,
        cmdline: read_cmdline(directory)?,
    }))
}

fn read_cmdline(directory: &Path) -> Result<String, Error> {
    let path = directory.join("cmdline");
    let invalid = |what: &str| Error::Unsupported {
        machine: directory.display().to_string(),
        what: format!("{} {what}", path.display()),
    };
    let file = match open(&path, OFlags::RDONLY) {
        Ok(fd) => File::from(fd),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(DEFAULT_CMDLINE.to_owned());
        }
        Err(error) => return Err(trying(format!("open {}", path.display()))(error)),
    };
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, MAX_CMDLINE + 1), &mut text)
        .map_err(trying(format!("read {}", path.display())))?;
    if text.len() as u64 > MAX_CMDLINE {
        return Err(invalid("is too long for a kernel's command line"));
    }
    let text = text.trim();
    if text.contains('\0') {
        return Err(invalid("holds a NUL"));
    }
    Ok(text.replace('\n', " "))
}

/// Hands over a file that QEMU opens by name: by the name of its descriptor.
/// None: there is no such file.
fn hand_readable(
    path: &Path,
    other_user: bool,
    inherited: &mut Vec<OwnedFd>,
) -> Result<Option<String>, Error> {
    let fd = match open(path, OFlags::RDONLY) {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(trying(format!("open {}", path.display()))(error)),
    };
    let mut file = File::from(fd);
    let metadata = file
        .metadata()
        .map_err(trying(format!("look at {}", path.display())))?;
    // Opening `/proc/self/fd/N` asks for the right to read anew.
    if other_user && metadata.mode() & 0o004 == 0 {
        file = copy_to_memory(&mut file)
            .map_err(trying(format!("copy {} for QEMU's user", path.display())))?;
    }
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    inherited.push(OwnedFd::from(file));
    Ok(Some(name))
}

fn copy_to_memory(file: &mut File) -> io::Result<File> {
    let fd = rustix::fs::memfd_create("kernel", MemfdFlags::CLOEXEC)?;
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o444))?;
    let mut copy = File::from(fd);
    io::copy(file, &mut copy)?;
    Ok(copy)
}
