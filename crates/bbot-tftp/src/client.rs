//! GET and PUT: a state machine, and blocking functions over UDP.
//!
//! Small on purpose, since it goes into a static binary: no names are resolved, no threads made.

mod machine;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

pub use machine::{Client, SendTo};

use crate::limits::{Retransmit, buffer_for, fitting_window};
use crate::packet::{self, ErrorCode};
use crate::runs::{Gathering, Receiving};
use crate::socket::{block_in_one_piece, facing, receive_buffer};

/// The largest block in an Ethernet frame: 1500 less the headers of IPv4 (20), UDP (8) and TFTP (4).
pub const ETHERNET_BLOCK: u16 = 1468;

/// The smallest block that is asked for on account of a link: that of a server without options.
const SMALL_BLOCK: u16 = 512;

/// What a client asks for, and how long it tries.
#[derive(Debug, Clone)]
pub struct Options {
    /// `blksize` to ask for, 8 to 65464; 512 asks for nothing.
    pub block_size: u16,
    /// Asks for no larger block than fits into a frame of the link to the server: a datagram in
    /// fragments is lost with any of them. Where the link is not known, [`ETHERNET_BLOCK`].
    pub in_one_piece: bool,
    /// `windowsize` to ask for, as far as it fits into the socket's receive buffer; 1 asks for
    /// nothing.
    pub window: u16,
    /// When unanswered packets are sent again.
    pub retransmit: Retransmit,
    /// When to give up, whatever happens; one moment can be shared by several transfers.
    pub deadline: Option<Instant>,
    /// The most that a GET may bring, in bytes.
    pub limit: u64,
    /// How long a GET stays after its last ACK, to repeat it if it is lost. Without it the server
    /// may take the transfer for failed; the bytes are here all the same.
    pub dally: Duration,
}

impl Default for Options {
    /// A block fits into an Ethernet frame, and a window hides the time that its ACK takes.
    fn default() -> Self {
        Self {
            block_size: ETHERNET_BLOCK,
            in_one_piece: true,
            window: 64,
            retransmit: Retransmit::default(),
            deadline: None,
            limit: u64::MAX,
            dally: Duration::ZERO,
        }
    }
}

/// A transfer that failed.
#[derive(Debug, thiserror::Error)]
#[error("tftp: {name} on {server}: {reason}")]
pub struct ClientError {
    /// The server.
    pub server: SocketAddr,
    /// The file.
    pub name: String,
    /// Why.
    #[source]
    pub reason: Reason,
}

impl ClientError {
    /// The server says that there is no such file.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.reason,
            Reason::Peer {
                code: ErrorCode::NotFound,
                ..
            }
        )
    }

    /// The server did not answer in time.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self.reason, Reason::TimedOut { .. } | Reason::Deadline)
    }
}

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The server sent an ERROR packet.
    #[error("the server refused with error {code}: {message}")]
    Peer {
        /// Its code.
        code: ErrorCode,
        /// Its message, made printable.
        message: String,
    },
    /// The server fell silent, or never spoke.
    #[error("no answer, tried {tries} times")]
    TimedOut {
        /// How often the last packet was sent.
        tries: u32,
    },
    /// [`Options::deadline`] has passed.
    #[error("not done in the time given")]
    Deadline,
    /// The file is larger than [`Options::limit`].
    #[error("larger than the {limit} bytes allowed")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// What came cannot be written.
    #[error("cannot write what came: {0}")]
    Write(#[source] io::Error),
    /// What is to be sent cannot be read.
    #[error("cannot read what is to be sent: {0}")]
    Read(#[source] io::Error),
    /// There is no socket to be had, or it fails.
    #[error("socket: {0}")]
    Socket(#[source] io::Error),
    /// The server does not keep to the protocol.
    #[error("the server breaks the protocol: {0}")]
    Protocol(String),
}

/// Reads the file `name` from `server` into `to`; the number of bytes.
///
/// # Errors
///
/// [`ClientError`]; part of the file may have been written by then.
pub fn get(
    server: SocketAddr,
    name: &str,
    to: &mut dyn Write,
    options: &Options,
) -> Result<u64, ClientError> {
    let done = open(server, options).and_then(|(socket, options)| {
        let client = Client::get(server, name, to, &options, Instant::now());
        drive(client, &socket, &options)
    });
    done.map_err(|reason| failed(server, name, reason))
}

/// Writes what `from` holds to the file `name` on `server`; the number of bytes. `size` is told to
/// the server if it is known.
///
/// # Errors
///
/// [`ClientError`]; when it is none, the server has the whole file.
pub fn put(
    server: SocketAddr,
    name: &str,
    from: &mut dyn Read,
    size: Option<u64>,
    options: &Options,
) -> Result<u64, ClientError> {
    let done = open(server, options).and_then(|(socket, options)| {
        let client = Client::put(server, name, from, size, &options, Instant::now());
        drive(client, &socket, &options)
    });
    done.map_err(|reason| failed(server, name, reason))
}

fn failed(server: SocketAddr, name: &str, reason: Reason) -> ClientError {
    ClientError {
        server,
        name: name.to_owned(),
        reason,
    }
}

/// A socket for one transfer, and the options with a block that fits the link and a window that
/// fits into the socket's buffer.
fn open(server: SocketAddr, options: &Options) -> Result<(UdpSocket, Options), Reason> {
    let socket = facing(server).map_err(Reason::Socket)?;
    let mut options = options.clone();
    if options.in_one_piece {
        let most = block_in_one_piece(server).unwrap_or(ETHERNET_BLOCK);
        options.block_size = options.block_size.min(most.max(SMALL_BLOCK));
    }
    let wanted = buffer_for(options.window, options.block_size);
    let buffer = receive_buffer(&socket, wanted).map_err(Reason::Socket)?;
    options.window = options
        .window
        .min(fitting_window(buffer, options.block_size))
        .max(1);
    Ok((socket, options))
}

fn drive(mut client: Client<'_>, socket: &UdpSocket, options: &Options) -> Result<u64, Reason> {
    let longest = usize::from(options.block_size.max(512)) + packet::DATA_HEADER + 1;
    let mut incoming = Receiving::from(socket, longest, options.window > 1);
    // A datagram that cannot be sent is a lost one: in a machine that just boots, the network may
    // come any moment.
    let mut outgoing = Gathering::over(socket, options.window > 1);
    client.start(&mut |to, packet| outgoing.send_to(Some(to), packet));
    let mut now = Instant::now();
    loop {
        outgoing.flush();
        let mut out = |to: SocketAddr, packet: &[u8]| outgoing.send_to(Some(to), packet);
        let Some(due) = client.deadline() else {
            return client.finish();
        };
        let wait = due.saturating_duration_since(now);
        if wait.is_zero() {
            client.tick(now, &mut out);
            continue;
        }
        let received = incoming.wait(wait);
        now = Instant::now();
        match received {
            Ok(received) => {
                let Some(from) = received.from else { continue };
                for packet in received.packets() {
                    client.handle(from, packet, now, &mut out);
                }
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::TimedOut
                | io::ErrorKind::Interrupted
                | io::ErrorKind::ConnectionRefused => {}
                _ => return Err(Reason::Socket(error)),
            },
        }
    }
}
