//! A container's cards: TAP devices whose other ends the agent holds.
//!
//! They are made in a network namespace that has no name, is known by a descriptor alone, and goes
//! with the last one. nspawn is run in it and moves them to the container's own, which belongs to
//! the container's users: so its root may set addresses there, and has no right on any other.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{OnceLock, mpsc};

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags};

use crate::mac::Mac;

/// The card on the wire, as the container sees it: the first, as in a virtual machine.
pub(super) const WIRE: &CStr = c"eth0";
/// The card for the internet.
pub(super) const INTERNET: &CStr = c"eth1";

/// Linux: `if_arp.h`.
const ARPHRD_ETHER: libc::sa_family_t = 1;

/// Cards, and the namespace that they are in.
#[derive(Debug)]
pub(super) struct Cards {
    pub(super) namespace: OwnedFd,
    /// Our end of the card on the wire.
    pub(super) wire: Option<OwnedFd>,
    /// Our end of the card for the internet.
    pub(super) internet: Option<OwnedFd>,
}

impl Cards {
    /// Makes a namespace with these cards in it, which are down.
    ///
    /// # Errors
    ///
    /// When the kernel does not make them: `/dev/net/tun` is not there or there are no network namespaces.
    pub(super) fn make(wire: Option<Mac>, internet: Option<Mac>) -> io::Result<Self> {
        // The thread is the namespace's first user, and its only one.
        let thread = std::thread::Builder::new()
            .name("cards".to_owned())
            .spawn(move || {
                unshare(CloneFlags::CLONE_NEWNET)?;
                Ok(Self {
                    namespace: File::open("/proc/thread-self/ns/net")?.into(),
                    wire: wire.map(|mac| tap(WIRE, mac)).transpose()?,
                    internet: internet.map(|mac| tap(INTERNET, mac)).transpose()?,
                })
            })?;
        thread
            .join()
            .map_err(|_| io::Error::other("the thread that makes network cards panicked"))?
    }
}

/// Our end of a card once more. A card goes with the last descriptor of our end, and to close that takes the kernel some
/// 20 ms of waiting: this one is closed last, and elsewhere, so that no run waits for it.
#[derive(Debug)]
pub(super) struct Last(Option<OwnedFd>);

impl Last {
    pub(super) fn of(end: &OwnedFd) -> io::Result<Self> {
        Ok(Self(Some(end.try_clone()?)))
    }

    /// Another one of our end.
    pub(super) fn another(&self) -> io::Result<OwnedFd> {
        let end = self.0.as_ref().ok_or(io::ErrorKind::NotFound)?;
        end.try_clone()
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        static CLOSING: OnceLock<Option<mpsc::Sender<OwnedFd>>> = OnceLock::new();
        let Some(end) = self.0.take() else { return };
        let closing = CLOSING.get_or_init(|| {
            let (closing, ends) = mpsc::channel::<OwnedFd>();
            let thread = std::thread::Builder::new().name("closing".to_owned());
            let thread = thread.spawn(move || ends.into_iter().for_each(drop));
            thread.ok().map(|_| closing)
        });
        if let Some(closing) = closing
            && let Err(unsent) = closing.send(end)
        {
            drop(unsent.0);
        }
    }
}

/// Makes a TAP device in the calling thread's namespace, and gives our end of it.
fn tap(name: &CStr, mac: Mac) -> io::Result<OwnedFd> {
    let missing = |error: rustix::io::Errno| {
        let error = io::Error::from(error);
        io::Error::new(
            error.kind(),
            format!("/dev/net/tun: {error} (modprobe tun, or give it to the agent's container)"),
        )
    };
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let device = rustix::fs::open("/dev/net/tun", flags, Mode::empty()).map_err(missing)?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "flags that fit: 2 and 0x1000"
    )]
    let kind = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = kind;
    ioctl(device.as_raw_fd(), libc::TUNSETIFF, &mut request)?;

    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    let mut address = libc::sockaddr {
        sa_family: ARPHRD_ETHER,
        sa_data: [0; 14],
    };
    for (to, from) in address.sa_data.iter_mut().zip(mac.0) {
        *to = from.cast_signed();
    }
    let mut request = self::request(name);
    request.ifr_ifru.ifru_hwaddr = address;
    ioctl(socket.as_raw_fd(), libc::SIOCSIFHWADDR, &mut request)?;
    Ok(device)
}

fn request(name: &CStr) -> libc::ifreq {
    #[expect(unsafe_code, reason = "a structure of the kernel's")]
    // SAFETY: it holds numbers only, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn ioctl(fd: i32, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    #[expect(unsafe_code, reason = "there is no safe form of these ioctls")]
    // SAFETY: both calls read and write one `ifreq`, which is valid and whose name ends in a zero.
    let result = unsafe { libc::ioctl(fd, number, std::ptr::from_mut(request)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// Whether a namespace has a card of this name.
    fn has(namespace: &OwnedFd, name: &str) -> bool {
        let namespace = namespace.try_clone().unwrap();
        let look = move || {
            nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()
        };
        let devices = std::thread::spawn(look).join().unwrap();
        devices
            .lines()
            .any(|line| line.trim_start().starts_with(&format!("{name}:")))
    }

    #[test]
    fn a_card_goes_with_the_last_of_our_descriptors() {
        if !testkit::root() {
            return;
        }
        let cards = Cards::make(Some(Mac([0x02, 0, 0, 0, 0, 1])), None).unwrap();
        let end = cards.wire.unwrap();
        let last = Last::of(&end).unwrap();
        drop(end);
        let another = last.another().unwrap();
        drop(last);
        assert!(has(&cards.namespace, "eth0"));
        drop(Last::of(&another).unwrap());
        drop(another);
        let begin = Instant::now();
        while has(&cards.namespace, "eth0") {
            assert!(begin.elapsed() < Duration::from_secs(20), "it stays");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
