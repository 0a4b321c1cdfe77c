//! The TFTP server of a bridge machine: the run's own port at the bridge's address.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use bbot_tftp::{Outgoing, REQUEST_PORT, Root, Server};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use super::InterfaceName;
use crate::wire::thread::{Given, Service};
use crate::wire::{Counters, MAX_BLKSIZE, flood};

/// How many ports are tried from the first on.
const TRIES: u16 = 512;

/// What the socket may hold, in bytes: the windows of all uploads of a guest come to it.
const RECEIVE_BUFFER: usize = 512 * 1024;

/// How many uploads of a guest share it: a result or a file, and the log.
const UPLOADS: usize = 2;

/// An IPv4 network, and the host's own address in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Net {
    pub(super) address: Ipv4Addr,
    pub(super) mask: Ipv4Addr,
}

impl Net {
    /// Whether the address may be a guest's.
    fn has_guest(self, address: Ipv4Addr) -> bool {
        address & self.mask == self.address & self.mask
            && address != self.address
            && (address & !self.mask != Ipv4Addr::UNSPECIFIED
                || self.mask.to_bits() >= u32::MAX - 1)
            && (address | self.mask != Ipv4Addr::BROADCAST || self.mask.to_bits() >= u32::MAX - 1)
    }
}

/// Binds the first free port from `first` on. The socket belongs to the bridge: what comes by
/// another interface is not for it.
pub(super) fn bind(bridge: InterfaceName, address: Ipv4Addr, first: u16) -> io::Result<UdpSocket> {
    for offset in 0..TRIES {
        let Some(port) = first.checked_add(offset).filter(|&port| port != 0) else {
            break;
        };
        match UdpSocket::bind(SocketAddrV4::new(address, port)) {
            Ok(socket) => {
                socket.set_nonblocking(true)?;
                // The kernel takes less without an error when its own limit is lower.
                setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
                let name = std::ffi::OsString::from(bridge.as_str());
                setsockopt(&socket, sockopt::BindToDevice, &name)?;
                return Ok(socket);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!("no UDP port from {first} on is free at {address}; choose others by --tftp-port"),
    ))
}

/// The datagrams of the run's port.
pub(super) struct Datagrams {
    server: Server,
    socket: UdpSocket,
    net: Net,
    /// The answer that there was no room for.
    waiting: Option<Outgoing>,
    counters: Counters,
    /// One byte more than the largest datagram of use.
    buffer: Vec<u8>,
}

impl Datagrams {
    pub(super) fn new(
        root: Root,
        mut limits: bbot_tftp::Limits,
        socket: UdpSocket,
        net: Net,
    ) -> Self {
        limits.max_block_size = limits.max_block_size.min(MAX_BLKSIZE);
        // Where it cannot be told, lock-step always fits.
        let buffer = getsockopt(&socket, sockopt::RcvBuf).unwrap_or(0);
        limits.window_bytes = limits.window_bytes.min(buffer / UPLOADS);
        Self {
            server: Server::new(root, limits).on_one_port(),
            socket,
            net,
            waiting: None,
            counters: Counters::default(),
            buffer: vec![0; usize::from(MAX_BLKSIZE) + 4 + 1],
        }
    }
}

/// Errors of a socket that say nothing of it: the next datagram may well pass.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EINTR
                | libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::ENETDOWN
                | libc::EHOSTDOWN
                | libc::EPERM
                | libc::EACCES
                | libc::EINVAL
                | libc::ENODEV
                | libc::EMSGSIZE
                | libc::ENOMEM
                | libc::ENOBUFS
        )
    )
}

impl Service for Datagrams {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn take(&mut self, now: Instant) -> io::Result<Option<u32>> {
        let (length, peer) = match self.socket.recv_from(&mut self.buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock || is_passing(&error) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        self.counters.frames += 1;
        let SocketAddr::V4(from) = peer else {
            self.counters.ignored += 1;
            return Ok(Some(1));
        };
        // An answer to an address elsewhere would make a reflector of the host.
        if !self.net.has_guest(*from.ip()) || from.port() == 0 {
            self.counters.ignored += 1;
            return Ok(Some(1));
        }
        if length == self.buffer.len() {
            self.counters.malformed += 1;
            return Ok(Some(1));
        }
        let payload = &self.buffer[..length];
        self.server.handle(peer, REQUEST_PORT, payload, now);
        Ok(Some(match payload {
            [0, 1 | 2, ..] => {
                self.counters.requests += 1;
                flood::REQUEST_COST
            }
            _ => 1,
        }))
    }

    fn give(&mut self) -> io::Result<Given> {
        let next = self.waiting.take().or_else(|| self.server.poll_outgoing());
        let Some(outgoing) = next else {
            return Ok(Given::Nothing);
        };
        match self.socket.send_to(&outgoing.payload, outgoing.peer) {
            Ok(_) => Ok(Given::Sent),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.waiting = Some(outgoing);
                Ok(Given::NoRoom)
            }
            // Lost: the guest asks again, or the server repeats it.
            Err(error) if is_passing(&error) => {
                self.counters.overflowed += 1;
                Ok(Given::Sent)
            }
            Err(error) => Err(error),
        }
    }

    fn forget(&mut self) {
        self.waiting = None;
        while self.server.poll_outgoing().is_some() {}
    }

    fn tick(&mut self, now: Instant) {
        self.server.tick(now);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.server.next_deadline()
    }

    fn poll_event(&mut self) -> Option<bbot_tftp::Event> {
        self.server.poll_event()
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_those_of_the_network() {
        let net = Net {
            address: Ipv4Addr::new(192, 168, 7, 1),
            mask: Ipv4Addr::new(255, 255, 255, 0),
        };
        for (address, is_guest) in [
            ([192, 168, 7, 2], true),
            ([192, 168, 7, 254], true),
            ([192, 168, 7, 1], false),
            ([192, 168, 7, 0], false),
            ([192, 168, 7, 255], false),
            ([192, 168, 8, 2], false),
            ([8, 8, 8, 8], false),
            ([0, 0, 0, 0], false),
            ([255, 255, 255, 255], false),
        ] {
            assert_eq!(
                net.has_guest(Ipv4Addr::from(address)),
                is_guest,
                "{address:?}"
            );
        }
    }
}
