//! The network of a command: a namespace of its own in which only the loopback exists.
//!
//! To make one takes long where the processor is emulated, so some can be made before they are needed.

#![expect(
    unsafe_code,
    reason = "the loopback is brought up by system calls that take pointers"
)]

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};

#[expect(
    clippy::cast_possible_truncation,
    reason = "a constant that is known to fit"
)]
const UP: libc::c_short = libc::IFF_UP as libc::c_short;

/// Namespaces that nobody was in yet, and those that were given out.
#[derive(Debug, Default)]
pub(crate) struct Stock(Mutex<Namespaces>);

#[derive(Debug, Default)]
struct Namespaces {
    fresh: Vec<Arc<OwnedFd>>,
    /// Kept until the worker ends: for the kernel to take one apart takes as long as to make it, while the build goes on.
    used: Vec<Arc<OwnedFd>>,
}

impl Stock {
    /// Makes namespaces until there are so many that nobody was in.
    pub(crate) fn fill(&self, count: usize) -> io::Result<()> {
        while self.with(|all| all.fresh.len()) < count {
            let namespace = Arc::new(make()?);
            self.with(|all| all.fresh.push(namespace));
        }
        Ok(())
    }

    /// One that nobody was in, for one command alone. None: there is none left, and the command makes its own.
    pub(crate) fn take(&self) -> Option<Arc<OwnedFd>> {
        self.with(|all| {
            let namespace = all.fresh.pop()?;
            all.used.push(Arc::clone(&namespace));
            Some(namespace)
        })
    }

    /// One that stays in the stock, to be looked at.
    pub(crate) fn look(&self) -> Option<Arc<OwnedFd>> {
        self.with(|all| all.fresh.last().cloned())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Namespaces) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Puts the calling thread into this namespace, or into a new one. Async-signal-safe.
pub(crate) fn enter(namespace: Option<BorrowedFd<'_>>) -> io::Result<()> {
    match namespace {
        Some(namespace) => Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?),
        None => {
            unshare(CloneFlags::CLONE_NEWNET)?;
            loopback_up()
        }
    }
}

/// A new namespace.
fn make() -> io::Result<OwnedFd> {
    // A namespace belongs to a thread; this one ends in it.
    let thread = thread::Builder::new().spawn(|| {
        enter(None)?;
        File::open("/proc/thread-self/ns/net")
    })?;
    let made = thread.join().map_err(|_| io::ErrorKind::Other)??;
    Ok(made.into())
}

/// Brings up the loopback of the calling process's network namespace. Async-signal-safe.
fn loopback_up() -> io::Result<()> {
    // SAFETY: `request` is a valid, initialised `ifreq`, whose flags are the member that these two calls use.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        let asked = Errno::result(libc::ioctl(socket, libc::SIOCGIFFLAGS, &raw mut request));
        let told = asked.and_then(|_| {
            request.ifr_ifru.ifru_flags |= UP;
            Errno::result(libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request))
        });
        libc::close(socket);
        told?;
        Ok(())
    }
}
