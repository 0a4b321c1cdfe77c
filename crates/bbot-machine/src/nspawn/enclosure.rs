//! What is done in nspawn's process before it is nspawn: it joins its control groups and the
//! network with the container's cards, and gets a view of its own on mounts.
//!
//! In that view `/proc` shows its process namespace and `/sys` the network it is in, read-only,
//! which also tells nspawn that no udev looks after the cards; and what nspawn leaves in
//! `/run/systemd/nspawn` when it is killed goes with the view. That a file of the container's was read is not
//! written down: where copies share their blocks, each file that is read would begin to differ.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::qemu::process::Preparation;

/// nspawn's folder for what it shares between the host and its containers.
pub(super) const OWN_FOLDER: &str = "/run/systemd/nspawn";
const OWN_FOLDER_C: &CStr = c"/run/systemd/nspawn";
const GROUPS: &CStr = c"/sys/fs/cgroup";

/// Makes the preparation. `doors` are files `cgroup.procs`.
pub(super) fn preparation(network: OwnedFd, doors: Vec<OwnedFd>, rootfs: CString) -> Preparation {
    Box::new(move || {
        for door in &doors {
            #[expect(unsafe_code, reason = "a system call between fork and exec")]
            // SAFETY: the descriptor is open and the buffer holds the byte. Zero is who writes.
            let written = unsafe { libc::write(door.as_raw_fd(), c"0".as_ptr().cast(), 1) };
            if written != 1 {
                return Err(io::Error::last_os_error());
            }
        }
        enter(network.as_raw_fd())?;
        // Where the kernel cannot do that (before Linux 5.12) it costs more, and is all.
        let _ = without_times_of_access(&rootfs);
        Ok(())
    })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Only system calls, since it runs between fork and exec.
fn enter(network: i32) -> io::Result<()> {
    let locked = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    #[expect(unsafe_code, reason = "system calls between fork and exec")]
    // SAFETY: plain system calls on open descriptors and constant strings that end in a zero.
    unsafe {
        check(libc::setns(network, libc::CLONE_NEWNET))?;
        check(libc::unshare(libc::CLONE_NEWNS))?;
        let nothing = std::ptr::null();
        // What the host unmounts goes here too; nothing goes the other way.
        check(libc::mount(
            nothing,
            c"/".as_ptr(),
            nothing,
            libc::MS_REC | libc::MS_SLAVE,
            std::ptr::null(),
        ))?;
        check(mount(c"proc", c"/proc", locked, c""))?;
        let groups = libc::syscall(
            libc::SYS_open_tree,
            libc::AT_FDCWD,
            GROUPS.as_ptr(),
            libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE.cast_unsigned(),
        );
        check(mount(c"sysfs", c"/sys", locked | libc::MS_RDONLY, c""))?;
        // Negative: there are no control groups here.
        if groups >= 0 {
            let moved = libc::syscall(
                libc::SYS_move_mount,
                groups,
                c"".as_ptr(),
                libc::AT_FDCWD,
                GROUPS.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            );
            if moved != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        check(mount(c"tmpfs", OWN_FOLDER_C, locked, c"mode=0700,size=1m"))
    }
}

/// Has the files below a directory keep the time at which they were read last.
fn without_times_of_access(directory: &CStr) -> io::Result<()> {
    let wanted = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_NOATIME,
        attr_clr: libc::MOUNT_ATTR__ATIME,
        propagation: 0,
        userns_fd: 0,
    };
    #[expect(unsafe_code, reason = "system calls between fork and exec")]
    // SAFETY: the strings end in a zero, and the structure is a live one of the size that is told.
    unsafe {
        let nothing = std::ptr::null();
        check(libc::mount(
            directory.as_ptr(),
            directory.as_ptr(),
            nothing,
            libc::MS_BIND,
            std::ptr::null(),
        ))?;
        let set = libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            directory.as_ptr(),
            0,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        );
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "a system call between fork and exec")]
/// Mounts a file system of the kernel's.
///
/// # Safety
///
/// None is asked of the caller: the strings end in a zero.
unsafe fn mount(kind: &CStr, at: &CStr, flags: libc::c_ulong, data: &CStr) -> libc::c_int {
    // SAFETY: the strings are valid and end in a zero.
    unsafe {
        libc::mount(
            kind.as_ptr(),
            at.as_ptr(),
            kind.as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    }
}
