//! The few calls of btrfs that are no ordinary system calls.
//!
//! Numbers and structures are those of the kernel's `include/uapi/linux/btrfs.h`; they are part of
//! the kernel's stable interface.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use rustix::fd::{AsFd, AsRawFd as _};
use rustix::io::{Errno, Result};
use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

/// `BTRFS_SUPER_MAGIC`: what `statfs` says of btrfs.
const BTRFS_MAGIC: u64 = 0x9123_683e;
/// `BTRFS_FIRST_FREE_OBJECTID`: the inode of every subvolume's top.
const SUBVOLUME_INODE: u64 = 256;
/// `BTRFS_IOCTL_MAGIC`.
const GROUP: u8 = 0x94;
/// `BTRFS_SUBVOL_RDONLY`.
const READ_ONLY: u64 = 1 << 1;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolumeArguments {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct VolumeArgumentsV2 {
    fd: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

// Both are what their number says they are: 4096 bytes.
const _: () = assert!(size_of::<VolumeArguments>() == 4096);
const _: () = assert!(size_of::<VolumeArgumentsV2>() == 4096);

const SNAP_DESTROY: Opcode = opcode::write::<VolumeArguments>(GROUP, 15);
const SNAP_CREATE_V2: Opcode = opcode::write::<VolumeArgumentsV2>(GROUP, 23);
const SUBVOL_CREATE_V2: Opcode = opcode::write::<VolumeArgumentsV2>(GROUP, 24);
const SUBVOL_GETFLAGS: Opcode = opcode::read::<u64>(GROUP, 25);
const SUBVOL_SETFLAGS: Opcode = opcode::write::<u64>(GROUP, 26);

/// A NUL-terminated name in a fixed field.
fn field<const N: usize>(name: &OsStr) -> Result<[u8; N]> {
    let bytes = name.as_bytes();
    // BTRFS_VOL_NAME_MAX, and never a path.
    if bytes.is_empty() || bytes.len() > 255 || bytes.iter().any(|&b| b == 0 || b == b'/') {
        return Err(Errno::INVAL);
    }
    let mut field = [0u8; N];
    field
        .get_mut(..bytes.len())
        .ok_or(Errno::NAMETOOLONG)?
        .copy_from_slice(bytes);
    Ok(field)
}

/// Whether an open file or directory lies on btrfs.
pub(super) fn on_btrfs(fd: impl AsFd) -> Result<bool> {
    // `f_type` is a signed or unsigned word of the architecture; the magic fits either.
    #[expect(
        clippy::cast_sign_loss,
        reason = "only the bits of the magic number are compared"
    )]
    let kind = rustix::fs::fstatfs(fd)?.f_type as u64 & 0xffff_ffff;
    Ok(kind == BTRFS_MAGIC)
}

/// Whether an open directory is the top of a subvolume.
pub(super) fn is_subvolume(fd: impl AsFd) -> Result<bool> {
    let fd = fd.as_fd();
    Ok(rustix::fs::fstat(fd)?.st_ino == SUBVOLUME_INODE && on_btrfs(fd)?)
}

/// Makes an empty subvolume `name` in the open directory `parent`.
pub(super) fn create(parent: impl AsFd, name: &OsStr) -> Result<()> {
    let arguments = VolumeArgumentsV2 {
        fd: 0,
        transaction: 0,
        flags: 0,
        unused: [0; 4],
        name: field(name)?,
    };
    #[expect(unsafe_code, reason = "an ioctl of btrfs")]
    // SAFETY: SUBVOL_CREATE_V2 reads a `struct btrfs_ioctl_vol_args_v2`, whose layout and size
    // `VolumeArgumentsV2` has, with a terminated name, and keeps no pointer to it.
    unsafe {
        ioctl(parent, Setter::<SUBVOL_CREATE_V2, _>::new(arguments))
    }
}

/// Makes a writable snapshot `name` in the open directory `parent` of the open subvolume `source`.
pub(super) fn snapshot(parent: impl AsFd, name: &OsStr, source: impl AsFd) -> Result<()> {
    let source = source.as_fd();
    let arguments = VolumeArgumentsV2 {
        fd: i64::from(source.as_raw_fd()),
        transaction: 0,
        flags: 0,
        unused: [0; 4],
        name: field(name)?,
    };
    #[expect(unsafe_code, reason = "an ioctl of btrfs")]
    // SAFETY: as in `create`; `fd` is a descriptor that outlives the call.
    unsafe {
        ioctl(parent, Setter::<SNAP_CREATE_V2, _>::new(arguments))
    }
}

/// Deletes the subvolume `name` in the open directory `parent`.
pub(super) fn destroy(parent: impl AsFd, name: &OsStr) -> Result<()> {
    let arguments = VolumeArguments {
        fd: 0,
        name: field(name)?,
    };
    #[expect(unsafe_code, reason = "an ioctl of btrfs")]
    // SAFETY: SNAP_DESTROY reads a `struct btrfs_ioctl_vol_args`, whose layout and size
    // `VolumeArguments` has, with a terminated name, and keeps no pointer to it.
    unsafe {
        ioctl(parent, Setter::<SNAP_DESTROY, _>::new(arguments))
    }
}

fn flags(subvolume: impl AsFd) -> Result<u64> {
    #[expect(unsafe_code, reason = "an ioctl of btrfs")]
    // SAFETY: SUBVOL_GETFLAGS writes one `u64`.
    unsafe {
        ioctl(subvolume, Getter::<SUBVOL_GETFLAGS, u64>::new())
    }
}

/// Whether an open subvolume is read-only.
pub(super) fn is_read_only(subvolume: impl AsFd) -> Result<bool> {
    Ok(flags(subvolume)? & READ_ONLY != 0)
}

/// Makes an open subvolume read-only or writable.
pub(super) fn set_read_only(subvolume: impl AsFd, read_only: bool) -> Result<()> {
    let subvolume = subvolume.as_fd();
    let old = flags(subvolume)?;
    let new = if read_only {
        old | READ_ONLY
    } else {
        old & !READ_ONLY
    };
    if new == old {
        return Ok(());
    }
    #[expect(unsafe_code, reason = "an ioctl of btrfs")]
    // SAFETY: SUBVOL_SETFLAGS reads one `u64`.
    unsafe {
        ioctl(subvolume, Setter::<SUBVOL_SETFLAGS, u64>::new(new))
    }
}
