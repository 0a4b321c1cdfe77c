//! The server over a real UDP socket: a listener, and a thread with a connected socket for each
//! transfer, so that a window costs one send and one receive.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::Instant;

use rustix::net::Shutdown;

use crate::limits::Limits;
use crate::packet::{self, ErrorCode, Packet};
use crate::root::Root;
use crate::runs::{Gathering, Received, Receiving};
use crate::session::{self, Event, LATE, NotBegun, Session};
use crate::socket::receive_buffer;
use crate::transfer::{Failure, Output, Refusal, State};

/// Why the server ended other than by [`Stop`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The socket is bound to all addresses: replies could leave from another than was asked.
    #[error("the TFTP server is bound to {0}; bind it to the one address that clients ask")]
    Unspecified(SocketAddr),
    /// The listening socket fails.
    #[error("cannot listen for TFTP requests on {address}")]
    Listen {
        /// The socket's address, as far as it is known.
        address: String,
        /// The cause.
        source: io::Error,
    },
}

/// Stops servers from another thread; clones stop the same ones.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    inner: Arc<StopInner>,
}

#[derive(Debug, Default)]
struct StopInner {
    stopped: AtomicBool,
    /// Sockets in which somebody may be waiting.
    sockets: Mutex<Vec<Weak<UdpSocket>>>,
}

impl Stop {
    /// Nothing is stopped yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the servers and their transfers; [`serve`] returns once its threads have ended.
    pub fn stop(&self) {
        self.inner.stopped.store(true, Ordering::SeqCst);
        for socket in lock(&self.inner.sockets).drain(..) {
            if let Some(socket) = socket.upgrade() {
                wake(&socket);
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.inner.stopped.load(Ordering::SeqCst)
    }

    /// Lets [`Stop::stop`] wake whoever waits in this socket.
    fn watch(&self, socket: &Arc<UdpSocket>) {
        let mut sockets = lock(&self.inner.sockets);
        sockets.retain(|socket| socket.strong_count() > 0);
        sockets.push(Arc::downgrade(socket));
        drop(sockets);
        // Stopped between the caller's look and the entry into the list.
        if self.is_stopped() {
            wake(socket);
        }
    }
}

/// Ends a wait in `recv`, in whatever thread it is.
fn wake(socket: &UdpSocket) {
    // An unconnected socket answers ENOTCONN and wakes its reader all the same.
    let _ = rustix::net::shutdown(socket, Shutdown::Read);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a transfer is, as far as the listener has to know.
const OPENING: u8 = 0;
const RUNNING: u8 = 1;
const STALLED: u8 = 2;
const FINISHED: u8 = 3;

/// What the listener knows of a transfer.
#[derive(Debug)]
struct Slot {
    request: Vec<u8>,
    socket: Arc<UdpSocket>,
    peer: SocketAddr,
    phase: AtomicU8,
    superseded: AtomicBool,
    started: Instant,
    finished: OnceLock<Instant>,
}

impl Slot {
    fn phase(&self) -> u8 {
        self.phase.load(Ordering::SeqCst)
    }

    fn supersede(&self) {
        self.superseded.store(true, Ordering::SeqCst);
        wake(&self.socket);
    }

    /// Whether a request from its peer is a copy of the one that began it.
    fn is_copy(&self, request: &[u8]) -> bool {
        let late = |finished: &Instant| finished.elapsed() < LATE;
        self.request == request
            && match self.phase() {
                OPENING | RUNNING => true,
                FINISHED => self.finished.get().is_some_and(late),
                _ => false,
            }
    }
}

type Slots = Mutex<Vec<Arc<Slot>>>;

/// Serves until `stop`; `socket` listens for requests and is bound to one address. `on_event` is
/// called from several threads.
///
/// # Errors
///
/// [`ServeError`] when the socket cannot be used. What goes wrong in a transfer is an [`Event::Failed`].
pub fn serve(
    socket: UdpSocket,
    root: &Root,
    limits: &Limits,
    stop: &Stop,
    on_event: &(dyn Fn(Event) + Sync),
) -> Result<(), ServeError> {
    let local = socket.local_addr().map_err(|source| ServeError::Listen {
        address: "(unknown)".into(),
        source,
    })?;
    if local.ip().is_unspecified() {
        return Err(ServeError::Unspecified(local));
    }
    let socket = Arc::new(socket);
    stop.watch(&socket);
    let slots: Slots = Mutex::default();
    thread::scope(|scope| {
        let mut buffer = vec![0; 2048];
        loop {
            let received = socket.recv_from(&mut buffer);
            if stop.is_stopped() {
                return Ok(());
            }
            let (length, peer) = match received {
                Ok(received) => received,
                Err(error) if is_passing(&error) => continue,
                Err(source) => {
                    stop_all(&slots);
                    return Err(ServeError::Listen {
                        address: local.to_string(),
                        source,
                    });
                }
            };
            let Some(payload) = buffer.get(..length) else {
                continue;
            };
            if matches!(Packet::decode(payload), Ok(Packet::Error { .. }))
                || is_repeated(&slots, peer, payload)
            {
                continue;
            }
            let reply = |packet: &[u8]| {
                // Lost is lost: the client asks again.
                let _ = socket.send_to(packet, peer);
            };
            if !make_room(&slots, limits.max_sessions) {
                let busy = Refusal::new(
                    ErrorCode::Undefined,
                    "too many transfers at once, try later",
                );
                let mut events = VecDeque::new();
                reply(&session::refuse(
                    session::name_of(payload),
                    busy,
                    &mut events,
                ));
                events.into_iter().for_each(on_event);
                continue;
            }
            let transfer = match begin(local, peer, root, limits, payload, on_event) {
                Ok(Ok(transfer)) => transfer,
                Ok(Err(NotBegun::Refused(refusal))) => {
                    reply(&refusal);
                    continue;
                }
                Ok(Err(NotBegun::Held)) => continue,
                Err(error) => {
                    reply(&packet::error(
                        ErrorCode::Undefined,
                        &format!("no socket for the transfer: {error}"),
                    ));
                    continue;
                }
            };
            let slot = Arc::clone(&transfer.slot);
            lock(&slots).push(Arc::clone(&slot));
            stop.watch(&slot.socket);
            let slots = &slots;
            let begun = Arc::clone(&slot);
            let run = move || {
                transfer.run(stop, on_event);
                forget(slots, &slot);
            };
            if let Err(error) = thread::Builder::new()
                .name("tftp".into())
                .spawn_scoped(scope, run)
            {
                forget(slots, &begun);
                reply(&packet::error(
                    ErrorCode::Undefined,
                    &format!("no thread for the transfer: {error}"),
                ));
            }
        }
    })
}

fn stop_all(slots: &Slots) {
    lock(slots).iter().for_each(|slot| slot.supersede());
}

/// Errors after which a socket goes on.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::TimedOut
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}

/// The request of a transfer that goes on came once more: its own clock repeats the answer. Any
/// other request from the same port ends the transfer, unless it is finished and only answers for
/// its last block.
fn is_repeated(slots: &Slots, peer: SocketAddr, payload: &[u8]) -> bool {
    let mut slots = lock(slots);
    if slots
        .iter()
        .any(|slot| slot.peer == peer && slot.is_copy(payload))
    {
        return true;
    }
    slots.retain(|slot| {
        let ends = slot.peer == peer && slot.phase() != FINISHED;
        if ends {
            slot.supersede();
        }
        !ends
    });
    false
}

/// Room for one more: finished transfers go first, then the oldest that has stalled.
fn make_room(slots: &Slots, most: usize) -> bool {
    let mut slots = lock(slots);
    if slots.len() < most {
        return true;
    }
    let idle = slots
        .iter()
        .enumerate()
        .filter(|(_, slot)| slot.phase() >= STALLED);
    let oldest = idle.min_by_key(|(_, slot)| (slot.phase() != FINISHED, slot.started));
    let Some((index, _)) = oldest else {
        return false;
    };
    slots.swap_remove(index).supersede();
    true
}

fn forget(slots: &Slots, slot: &Arc<Slot>) {
    lock(slots).retain(|known| !Arc::ptr_eq(known, slot));
}

/// A transfer about to run.
struct Transfer {
    session: Session,
    slot: Arc<Slot>,
}

fn begin(
    local: SocketAddr,
    peer: SocketAddr,
    root: &Root,
    limits: &Limits,
    payload: &[u8],
    on_event: &(dyn Fn(Event) + Sync),
) -> io::Result<Result<Transfer, NotBegun>> {
    let mut any_port = local;
    any_port.set_port(0);
    let socket = UdpSocket::bind(any_port)?;
    socket.connect(peer)?;
    let mut limits = limits.clone();
    if session::is_upload(payload) {
        let wanted = limits.upload_buffer;
        limits.window_bytes = receive_buffer(&socket, wanted)?.min(wanted);
    }
    let mut events = VecDeque::new();
    let now = Instant::now();
    let opened = session::open(root, &limits, peer, payload, now, &mut events);
    events.into_iter().for_each(on_event);
    Ok(opened.map(|session| {
        let slot = Slot {
            request: payload.to_vec(),
            peer,
            socket: Arc::new(socket),
            phase: AtomicU8::new(OPENING),
            superseded: AtomicBool::new(false),
            started: now,
            finished: OnceLock::new(),
        };
        Transfer {
            session,
            slot: Arc::new(slot),
        }
    }))
}

impl Transfer {
    fn run(mut self, stop: &Stop, on_event: &(dyn Fn(Event) + Sync)) {
        let socket = Arc::clone(&self.slot.socket);
        // A datagram that cannot be sent is a lost one: the clock of the session deals with it.
        let mut out = Gathering::over(&socket, self.session.has_windows());
        let longest = self.session.longest_packet();
        let mut incoming = Receiving::from(&socket, longest, self.session.has_windows());
        self.session.start(&mut out);
        let mut now = Instant::now();
        loop {
            out.flush();
            if let Some(event) = self.session.take_event() {
                on_event(event);
            }
            if self.session.is_over(now) {
                return;
            }
            let Some(deadline) = self.session.deadline() else {
                return;
            };
            self.note_phase();
            let wait = deadline.saturating_duration_since(now);
            if wait.is_zero() {
                self.session.tick(now, &mut out);
                continue;
            }
            let received = incoming.wait(wait);
            now = Instant::now();
            if stop.is_stopped() {
                if self.session.state() == &State::Running {
                    let _ = socket.send(&packet::error(
                        ErrorCode::Undefined,
                        "the server was stopped",
                    ));
                }
                self.end(Failure::Stopped, on_event);
                return;
            }
            if self.slot.superseded.load(Ordering::SeqCst) {
                if let Ok(received) = received {
                    self.take(&received, now, &mut out);
                }
                self.hear_out(&mut incoming, now, &mut out);
                self.end(Failure::Superseded, on_event);
                return;
            }
            match received {
                Ok(received) => self.take(&received, now, &mut out),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    self.hear_out(&mut incoming, now, &mut out);
                    self.end(Failure::Closed, on_event);
                    return;
                }
                Err(_) => self.session.tick(now, &mut out),
            }
        }
    }

    fn take(&mut self, received: &Received<'_>, now: Instant, out: &mut dyn Output) {
        for packet in received.packets() {
            self.session.handle(packet, now, out);
        }
    }

    /// Takes what the peer sent before it closed its port or began anew: it may be the last ACK.
    fn hear_out(&mut self, incoming: &mut Receiving<'_>, now: Instant, out: &mut Gathering<'_>) {
        while let Ok(received) = incoming.take() {
            // A socket that was shut down gives empty datagrams for ever.
            if received.is_empty() {
                break;
            }
            self.take(&received, now, out);
        }
        out.flush();
    }

    fn end(&mut self, failure: Failure, on_event: &(dyn Fn(Event) + Sync)) {
        self.session.fail(failure);
        if let Some(event) = self.session.take_event() {
            on_event(event);
        }
    }

    fn note_phase(&self) {
        let phase = if self.session.state() != &State::Running {
            self.slot.finished.get_or_init(Instant::now);
            FINISHED
        } else if self.session.is_opening() {
            OPENING
        } else if self.session.is_stalled() {
            STALLED
        } else {
            RUNNING
        };
        self.slot.phase.store(phase, Ordering::Relaxed);
    }
}
