//! Making a tap.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::InterfaceName;

/// Where taps come from.
pub(super) const DEVICE: &str = "/dev/net/tun";

pub(super) fn open_device() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::open(DEVICE, flags, Mode::empty())?)
}

/// Makes a tap, never takes one that is there (`IFF_TUN_EXCL`). It is there for as long as somebody
/// holds the descriptor, and so goes with its machine whatever happens. Frames carry a header for
/// offloading (`IFF_VNET_HDR`), which QEMU makes use of.
pub(super) fn make(name: InterfaceName) -> io::Result<OwnedFd> {
    let device = open_device()?;
    #[expect(unsafe_code, reason = "a structure of the kernel's")]
    // SAFETY: it holds numbers only, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    // The kernel's field has 16 bits, of which the last is IFF_TUN_EXCL.
    let flags = u16::try_from(flags).map_err(io::Error::other)?;
    request.ifr_ifru.ifru_flags = flags.cast_signed();
    #[expect(unsafe_code, reason = "there is no safe form of this ioctl")]
    // SAFETY: the call reads and writes one `ifreq`, which is valid and whose name ends in a zero.
    let result = unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            libc::TUNSETIFF,
            std::ptr::from_mut(&mut request),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(device)
}
