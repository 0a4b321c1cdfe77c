//! Runs of equally long packets over a UDP socket with one system call: the kernel cuts one long
//! datagram into packets (`UDP_SEGMENT`, Linux 4.18) and puts those that came together into one
//! (`UDP_GRO`, Linux 5.0), both described in udp(7). On the network they are ordinary datagrams.
//!
//! A window is such a run. Sent block by block it costs a system call each at both ends, and that
//! is most of what a block costs at all.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};

use crate::transfer::Output;

/// Shorter packets are sent by themselves.
const WORTHWHILE: usize = 512;
/// The most packets that the kernel cuts a datagram into; newer ones take twice as many.
const MOST_PACKETS: usize = 64;
/// The most bytes, less than a datagram over IPv4 or IPv6 may have.
const MOST_BYTES: usize = 65_000;

/// The sending half of a socket.
#[derive(Debug)]
pub(crate) struct Gathering<'a> {
    socket: &'a UdpSocket,
    /// The kernel takes runs.
    runs: bool,
    /// To whom those that wait go; none for a socket that is connected.
    to: Option<SocketAddr>,
    /// How long each of them is.
    length: usize,
    waiting: Vec<u8>,
}

impl<'a> Gathering<'a> {
    /// Sends over `socket`, and `runs` if it can. Whether the kernel takes runs is asked first: one that does not know
    /// them would send a run as one long datagram.
    pub(crate) fn over(socket: &'a UdpSocket, runs: bool) -> Self {
        Self {
            socket,
            runs: runs && setsockopt(socket, sockopt::UdpGsoSegment, &0).is_ok(),
            to: None,
            length: 0,
            waiting: Vec::new(),
        }
    }

    /// Sends a packet, with the next [`Gathering::flush`] at the latest. One that cannot be sent
    /// is a lost one.
    pub(crate) fn send_to(&mut self, to: Option<SocketAddr>, packet: &[u8]) {
        let fits = self.to == to
            && self.waiting.len() + packet.len() <= MOST_BYTES
            && self.waiting.len() < MOST_PACKETS * self.length;
        if !fits || packet.len() > self.length {
            self.flush();
        }
        if self.waiting.is_empty() {
            if !self.runs || !(WORTHWHILE..=MOST_BYTES / 2).contains(&packet.len()) {
                send(self.socket, to, packet);
                return;
            }
            self.to = to;
            self.length = packet.len();
        }
        self.waiting.extend_from_slice(packet);
        if packet.len() < self.length {
            // Only the last of a run may be shorter.
            self.flush();
        }
    }

    /// Sends what waits.
    pub(crate) fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        if self.waiting.len() <= self.length || !self.send_run() {
            for packet in self.waiting.chunks(self.length) {
                send(self.socket, self.to, packet);
            }
        }
        self.waiting.clear();
    }

    /// Sends what waits as a run. False: this network takes none.
    fn send_run(&mut self) -> bool {
        let Ok(length) = u16::try_from(self.length) else {
            return false;
        };
        let to = self.to.map(SockaddrStorage::from);
        let sent = sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&self.waiting)],
            &[ControlMessage::UdpGsoSegments(&length)],
            MsgFlags::empty(),
            to.as_ref(),
        );
        // A packet does not fit into a frame of the link, or its device cannot make checksums.
        self.runs = !matches!(
            sent,
            Err(Errno::EINVAL | Errno::EMSGSIZE | Errno::EIO | Errno::EOPNOTSUPP)
        );
        self.runs
    }
}

/// To the peer that the socket is connected to.
impl Output for Gathering<'_> {
    fn send(&mut self, packet: &[u8]) {
        self.send_to(None, packet);
    }
}

fn send(socket: &UdpSocket, to: Option<SocketAddr>, packet: &[u8]) {
    let _ = match to {
        Some(to) => socket.send_to(packet, to),
        None => socket.send(packet),
    };
}

/// The receiving half of a socket.
#[derive(Debug)]
pub(crate) struct Receiving<'a> {
    socket: &'a UdpSocket,
    buffer: Vec<u8>,
    /// Room for the length that the kernel tells; none when runs are not asked for.
    control: Option<Vec<u8>>,
    timeout: Option<Duration>,
}

/// What came, with one system call.
#[derive(Debug)]
pub(crate) struct Received<'a> {
    /// From whom; none where the kernel does not tell.
    pub(crate) from: Option<SocketAddr>,
    bytes: &'a [u8],
    length: usize,
}

impl<'a> Received<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn packets(&self) -> impl Iterator<Item = &'a [u8]> {
        // An empty datagram is one as well, and of no use to anybody.
        self.bytes.chunks(self.length.max(1))
    }
}

impl<'a> Receiving<'a> {
    /// Receives from `socket` packets of up to `longest` bytes, and `runs` of them if it can.
    pub(crate) fn from(socket: &'a UdpSocket, longest: usize, runs: bool) -> Self {
        let runs = runs && setsockopt(socket, sockopt::UdpGroSegment, &true).is_ok();
        Self {
            socket,
            buffer: vec![0; if runs { 65_536 } else { longest }],
            control: runs.then(|| nix::cmsg_space!(i32)),
            timeout: None,
        }
    }

    /// Waits so long for a datagram, or a little longer or shorter.
    pub(crate) fn wait(&mut self, wait: Duration) -> io::Result<Received<'_>> {
        // Every packet moves the deadline: the time-out is set anew only where it matters.
        let near = |set: Duration| set <= wait + wait / 4 && set >= wait / 4;
        if !self.timeout.is_some_and(near) {
            self.socket.set_read_timeout(Some(wait))?;
            self.timeout = Some(wait);
        }
        if self.control.is_none() {
            let (end, from) = self.socket.recv_from(&mut self.buffer)?;
            return Ok(Received {
                from: Some(from),
                bytes: &self.buffer[..end],
                length: end,
            });
        }
        self.receive(MsgFlags::empty())
    }

    /// Takes what is there already.
    pub(crate) fn take(&mut self) -> io::Result<Received<'_>> {
        self.receive(MsgFlags::MSG_DONTWAIT)
    }

    fn receive(&mut self, flags: MsgFlags) -> io::Result<Received<'_>> {
        let Self {
            socket,
            buffer,
            control,
            ..
        } = self;
        let (from, end, length) = {
            let mut slices = [IoSliceMut::new(buffer)];
            let message = recvmsg::<SockaddrStorage>(
                socket.as_raw_fd(),
                &mut slices,
                control.as_deref_mut(),
                flags,
            )?;
            let mut length = message.bytes;
            for told in message.cmsgs()? {
                if let ControlMessageOwned::UdpGroSegments(each) = told {
                    length = usize::try_from(each).unwrap_or(message.bytes);
                }
            }
            (message.address.and_then(address), message.bytes, length)
        };
        Ok(Received {
            from,
            bytes: &buffer[..end],
            length,
        })
    }
}

fn address(address: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().copied();
    let v6 = || address.as_sockaddr_in6().copied();
    v4.map(|v4| SocketAddr::V4(v4.into()))
        .or_else(|| v6().map(|v6| SocketAddr::V6(v6.into())))
}
