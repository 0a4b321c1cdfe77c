//! A wire that fails under a guest.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::{SockType, getsockopt, sockopt};

/// Puts something that no frame can be read from in the place of the agent's end of the one
/// wire of this process: a container's is a TAP device, else it is a socket of datagrams. It is
/// seen with the next frame of the guest.
pub(crate) fn break_wire() {
    let null = fs::OpenOptions::new()
        .write(true)
        .open("/dev/null")
        .unwrap();
    let open: Vec<(i32, PathBuf)> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let number = path.file_name()?.to_str()?.parse().ok()?;
            Some((number, fs::read_link(&path).ok()?))
        })
        .collect();
    let is_tap = |(_, what): &&(i32, PathBuf)| what == Path::new("/dev/net/tun");
    let has_tap = open.iter().any(|fd| is_tap(&fd));
    let wires = open.iter().filter(|fd| match has_tap {
        true => is_tap(fd),
        false => is_datagrams(fd),
    });
    let mut broken = 0;
    for (number, _) in wires {
        #[expect(
            unsafe_code,
            reason = "a descriptor is changed behind its owner's back"
        )]
        // SAFETY: a plain system call; both descriptors are open, and stay so.
        let done = unsafe { libc::dup2(null.as_raw_fd(), *number) };
        assert_eq!(done, *number);
        broken += 1;
    }
    // Of a container's there is another descriptor, for who serves it from its task on.
    let one = if has_tap { 2 } else { 1 };
    assert_eq!(broken, one, "one wire of {open:?}");
}

fn is_datagrams((number, what): &(i32, PathBuf)) -> bool {
    if !what.to_string_lossy().starts_with("socket:") {
        return false;
    }
    #[expect(
        unsafe_code,
        reason = "a descriptor that another part of this process owns"
    )]
    // SAFETY: it was open just now, and this test alone opens and closes any.
    let fd = unsafe { BorrowedFd::borrow_raw(*number) };
    getsockopt(&fd, sockopt::SockType) == Ok(SockType::Datagram)
}
