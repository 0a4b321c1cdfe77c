//! All transfers of one server, without I/O on the network: for a wire that is no socket.
//!
//! The caller hands in datagrams and the time, and takes out datagrams and events. Files are read
//! and written here, through the [`Root`].

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::time::Instant;

use crate::limits::Limits;
use crate::packet::{self, ErrorCode, Packet};
use crate::root::Root;
use crate::session::{self, Again, Event, NotBegun, Session};
use crate::transfer::{Failure, Output, Refusal, State};

/// The port of requests.
pub const REQUEST_PORT: u16 = 69;

/// The ports that transfers get (RFC 6335: dynamic ports).
const FIRST_PORT: u16 = 49152;
const PORTS: u16 = 16384;

/// A datagram to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// To whom.
    pub peer: SocketAddr,
    /// From which of the server's ports.
    pub local_port: u16,
    /// The UDP payload.
    pub payload: Vec<u8>,
}

/// All transfers of one server.
#[derive(Debug)]
pub struct Server {
    root: Root,
    limits: Limits,
    /// Whether all transfers answer from [`REQUEST_PORT`].
    one_port: bool,
    transfers: Vec<Transfer>,
    next_port: u16,
    outgoing: VecDeque<Outgoing>,
    events: VecDeque<Event>,
}

#[derive(Debug)]
struct Transfer {
    peer: SocketAddr,
    local_port: u16,
    session: Session,
}

/// Puts what a session sends into the queue.
struct Queue<'a> {
    outgoing: &'a mut VecDeque<Outgoing>,
    peer: SocketAddr,
    local_port: u16,
}

impl Output for Queue<'_> {
    fn send(&mut self, packet: &[u8]) {
        let Self {
            peer, local_port, ..
        } = *self;
        self.outgoing.push_back(Outgoing {
            peer,
            local_port,
            payload: packet.to_vec(),
        });
    }
}

impl Server {
    /// A server without transfers.
    #[must_use]
    pub fn new(root: Root, mut limits: Limits) -> Self {
        // There is always a free port to be found.
        limits.max_sessions = limits.max_sessions.min(usize::from(PORTS / 2));
        // Ports that cannot be guessed from outside, as RFC 1350 section 4 wants them.
        let random = RandomState::new().hash_one(0u8) % u64::from(PORTS);
        let next_port = u16::try_from(random).unwrap_or(0);
        Self {
            root,
            limits,
            one_port: false,
            transfers: Vec::new(),
            next_port,
            outgoing: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Lets all transfers answer from [`REQUEST_PORT`], to which their datagrams come as well: for a
    /// server behind a mapping of that one port. Each peer's port then has one transfer at a time.
    /// RFC 1350 gives each transfer a port of the server's too, but clients take the port that the
    /// first answer comes from, whichever it is.
    #[must_use]
    pub fn on_one_port(mut self) -> Self {
        self.one_port = true;
        self
    }

    /// Takes a datagram that came from `peer` to the server's port `local_port`.
    pub fn handle(&mut self, peer: SocketAddr, local_port: u16, payload: &[u8], now: Instant) {
        if local_port == REQUEST_PORT
            && (!self.one_port || is_request(payload) || !self.has_transfer_of(peer))
        {
            self.request(peer, payload, now);
            return;
        }
        let Some(index) = self
            .transfers
            .iter()
            .position(|t| t.peer == peer && t.local_port == local_port)
        else {
            // An ERROR is never answered with an ERROR, or two ends could go on for ever.
            if !matches!(Packet::decode(payload), Ok(Packet::Error { .. })) {
                let payload =
                    packet::error(ErrorCode::UnknownTransfer, "this belongs to no transfer");
                self.outgoing.push_back(Outgoing {
                    peer,
                    local_port,
                    payload,
                });
            }
            return;
        };
        let Self {
            transfers,
            outgoing,
            ..
        } = self;
        transfers[index].session.handle(
            payload,
            now,
            &mut Queue {
                outgoing,
                peer,
                local_port,
            },
        );
        self.settle(index, now);
    }

    /// Sends again what was not answered in time and forgets what is over.
    pub fn tick(&mut self, now: Instant) {
        for index in (0..self.transfers.len()).rev() {
            let Self {
                transfers,
                outgoing,
                ..
            } = self;
            let Transfer {
                peer,
                local_port,
                ref mut session,
            } = transfers[index];
            session.tick(
                now,
                &mut Queue {
                    outgoing,
                    peer,
                    local_port,
                },
            );
            self.settle(index, now);
        }
    }

    /// When [`Server::tick`] is to be called next; none while there is nothing to wait for.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.transfers
            .iter()
            .filter_map(|transfer| transfer.session.deadline())
            .min()
    }

    /// The next datagram to be sent.
    pub fn poll_outgoing(&mut self) -> Option<Outgoing> {
        self.outgoing.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// How many transfers there are, finished ones that still answer included.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.transfers.len()
    }

    fn has_transfer_of(&self, peer: SocketAddr) -> bool {
        self.transfers.iter().any(|transfer| transfer.peer == peer)
    }

    fn request(&mut self, peer: SocketAddr, payload: &[u8], now: Instant) {
        if matches!(Packet::decode(payload), Ok(Packet::Error { .. })) {
            return;
        }
        for index in (0..self.transfers.len()).rev() {
            let Self {
                transfers,
                outgoing,
                ..
            } = self;
            let Transfer {
                peer: known,
                local_port,
                ref mut session,
            } = transfers[index];
            if known != peer {
                continue;
            }
            let mut out = Queue {
                outgoing,
                peer,
                local_port,
            };
            if session.request_again(payload, now, &mut out) == Again::Repeated {
                return;
            }
            // A finished upload goes on to answer for its last block, unless the new transfer
            // has the same two ports.
            if session.state() == &State::Running || self.one_port {
                self.remove(index, Failure::Superseded);
            }
        }
        let opened = if self.make_room(now) {
            session::open(
                &self.root,
                &self.limits,
                peer,
                payload,
                now,
                &mut self.events,
            )
        } else {
            let busy = Refusal::new(
                ErrorCode::Undefined,
                "too many transfers at once, try later",
            );
            Err(NotBegun::Refused(session::refuse(
                session::name_of(payload),
                busy,
                &mut self.events,
            )))
        };
        match opened {
            Ok(mut session) => {
                let local_port = self.free_port();
                session.start(&mut Queue {
                    outgoing: &mut self.outgoing,
                    peer,
                    local_port,
                });
                self.transfers.push(Transfer {
                    peer,
                    local_port,
                    session,
                });
                self.settle(self.transfers.len() - 1, now);
            }
            Err(NotBegun::Refused(payload)) => self.outgoing.push_back(Outgoing {
                peer,
                local_port: REQUEST_PORT,
                payload,
            }),
            Err(NotBegun::Held) => {}
        }
    }

    /// Room for one more: finished transfers go first, then the one that has stalled longest.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.transfers.len() < self.limits.max_sessions {
            return true;
        }
        self.tick(now);
        if self.transfers.len() < self.limits.max_sessions {
            return true;
        }
        let idle = self
            .transfers
            .iter()
            .enumerate()
            .filter(|(_, t)| is_idle(&t.session));
        let Some((index, _)) =
            idle.min_by_key(|(_, t)| (t.session.state() == &State::Running, t.session.heard))
        else {
            return false;
        };
        self.remove(index, Failure::Superseded);
        true
    }

    fn free_port(&mut self) -> u16 {
        if self.one_port {
            return REQUEST_PORT;
        }
        loop {
            self.next_port = (self.next_port + 1) % PORTS;
            let port = FIRST_PORT + self.next_port;
            if !self
                .transfers
                .iter()
                .any(|transfer| transfer.local_port == port)
            {
                return port;
            }
        }
    }

    /// Takes out the event of a session that ended, and the session when it is over.
    fn settle(&mut self, index: usize, now: Instant) {
        let session = &mut self.transfers[index].session;
        self.events.extend(session.take_event());
        if session.is_over(now) {
            self.transfers.swap_remove(index);
        }
    }

    fn remove(&mut self, index: usize, failure: Failure) {
        let mut transfer = self.transfers.swap_remove(index);
        transfer.session.fail(failure);
        self.events.extend(transfer.session.take_event());
    }
}

/// Whether a datagram asks for a transfer, well or badly.
fn is_request(payload: &[u8]) -> bool {
    matches!(payload, [0, 1 | 2, ..])
}

/// It may give way to another.
pub(crate) fn is_idle(session: &Session) -> bool {
    session.state() != &State::Running || session.is_stalled()
}
