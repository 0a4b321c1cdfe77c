//! One transfer of a client as a state machine.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Instant;

use super::{Options, Reason};
use crate::name::printable;
use crate::options::{self, Agreed};
use crate::packet::{self, ErrorCode, Packet};
use crate::receiver::Receiver;
use crate::retry::{Due, Retry};
use crate::sender::Sender;
use crate::transfer::{Failure, Refusal, Sink, State};

/// Sends a datagram to an address.
pub type SendTo<'a> = &'a mut dyn FnMut(SocketAddr, &[u8]);

/// One transfer of a client, without I/O on the network.
#[derive(Debug)]
pub struct Client<'a> {
    server: SocketAddr,
    /// The server's port of this transfer, once it has answered.
    peer: Option<SocketAddr>,
    request: Vec<u8>,
    /// The same request without options, for a server that refuses them.
    plain: Vec<u8>,
    offered: Vec<(&'static str, u64)>,
    options: Options,
    retry: Retry,
    step: Step<'a>,
    failed: Option<Reason>,
    /// It has dallied long enough.
    dallied: bool,
}

/// What the client is at.
#[derive(Debug)]
enum Step<'a> {
    AskingToGet(Guard<'a>),
    AskingToPut(Watch<'a>),
    Getting(Receiver<Guard<'a>>),
    Putting(Sender<Watch<'a>>),
    /// Between two of them; never seen from outside.
    Nothing,
}

/// Writes up to a limit, and keeps the reason why it could not.
struct Guard<'a> {
    to: &'a mut dyn Write,
    limit: u64,
    written: u64,
    failed: Option<Reason>,
}

impl std::fmt::Debug for Guard<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard")
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl Sink for Guard<'_> {
    fn write(&mut self, data: &[u8]) -> Result<(), Refusal> {
        self.written += data.len() as u64;
        if self.written > self.limit {
            self.failed = Some(Reason::TooLarge { limit: self.limit });
            return Err(Refusal::new(ErrorCode::DiskFull, "larger than allowed"));
        }
        self.to
            .write_all(data)
            .map_err(|error| self.cannot_write(error))
    }

    fn commit(&mut self) -> Result<(), Refusal> {
        self.to.flush().map_err(|error| self.cannot_write(error))
    }
}

impl Guard<'_> {
    fn cannot_write(&mut self, error: io::Error) -> Refusal {
        self.failed = Some(Reason::Write(error));
        Refusal::new(ErrorCode::DiskFull, "cannot be written")
    }
}

/// Reads, and keeps the reason why it could not.
struct Watch<'a> {
    from: &'a mut dyn Read,
    failed: Option<Reason>,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Read for Watch<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.from.read(buffer).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.failed = Some(Reason::Read(io::Error::new(
                    error.kind(),
                    error.to_string(),
                )));
            }
        })
    }
}

impl<'a> Client<'a> {
    /// A client that will GET; nothing is sent before [`Client::start`].
    pub fn get(
        server: SocketAddr,
        name: &str,
        to: &'a mut dyn Write,
        options: &Options,
        now: Instant,
    ) -> Self {
        let offered = offer(options, Some(0));
        let request = packet::read_request(name, &offered);
        let plain = packet::read_request(name, &[]);
        let guard = Guard {
            to,
            limit: options.limit,
            written: 0,
            failed: None,
        };
        Self::new(
            server,
            request,
            plain,
            offered,
            options,
            Step::AskingToGet(guard),
            now,
        )
    }

    /// A client that will PUT; nothing is sent before [`Client::start`].
    pub fn put(
        server: SocketAddr,
        name: &str,
        from: &'a mut dyn Read,
        size: Option<u64>,
        options: &Options,
        now: Instant,
    ) -> Self {
        let offered = offer(options, size);
        let request = packet::write_request(name, &offered);
        let plain = packet::write_request(name, &[]);
        let watch = Watch { from, failed: None };
        Self::new(
            server,
            request,
            plain,
            offered,
            options,
            Step::AskingToPut(watch),
            now,
        )
    }

    fn new(
        server: SocketAddr,
        request: Vec<u8>,
        plain: Vec<u8>,
        offered: Vec<(&'static str, u64)>,
        options: &Options,
        step: Step<'a>,
        now: Instant,
    ) -> Self {
        let retry = Retry::new(options.retransmit, now);
        Self {
            server,
            peer: None,
            request,
            plain,
            offered,
            options: options.clone(),
            retry,
            step,
            failed: None,
            dallied: options.dally.is_zero(),
        }
    }

    /// Sends the request.
    pub fn start(&mut self, out: SendTo<'_>) {
        out(self.server, &self.request);
    }

    /// Takes a datagram from `from`.
    pub fn handle(&mut self, from: SocketAddr, payload: &[u8], now: Instant, out: SendTo<'_>) {
        if self.failed.is_some() || from.ip() != self.server.ip() {
            return;
        }
        let Ok(packet) = Packet::decode(payload) else {
            return;
        };
        match self.peer {
            None => self.answer(from, &packet, now, out),
            Some(peer) if peer == from => self.pass_on(peer, &packet, now, out),
            // A second answer to a repeated request: that transfer is to end, ours goes on.
            Some(_) => {
                if !matches!(packet, Packet::Error { .. }) {
                    out(
                        from,
                        &packet::error(ErrorCode::UnknownTransfer, "this belongs to no transfer"),
                    );
                }
            }
        }
    }

    /// The time has come that [`Client::deadline`] told.
    pub fn tick(&mut self, now: Instant, out: SendTo<'_>) {
        if self
            .options
            .deadline
            .is_some_and(|deadline| deadline <= now)
            && !self.is_complete()
        {
            if let Some(peer) = self.peer {
                out(peer, &packet::error(ErrorCode::Undefined, "out of time"));
            }
            self.failed.get_or_insert(Reason::Deadline);
            return;
        }
        if self.is_complete() {
            self.dallied |= self.deadline().is_some_and(|until| until <= now);
            return;
        }
        let peer = self.peer.unwrap_or(self.server);
        let mut send = |packet: &[u8]| out(peer, packet);
        match &mut self.step {
            Step::Getting(receiver) => receiver.tick(now, &mut send),
            Step::Putting(sender) => sender.tick(now, &mut send),
            _ => match self.retry.due(now) {
                Due::Nothing => {}
                Due::SendAgain => send(&self.request),
                Due::GiveUp => {
                    self.failed = Some(Reason::TimedOut {
                        tries: self.retry.times_sent(),
                    });
                }
            },
        }
    }

    /// When [`Client::tick`] is to be called next; none when it is over.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        if self.failed.is_some() || (self.is_complete() && self.dallied) {
            return None;
        }
        let due = match &self.step {
            Step::Getting(receiver) => receiver.deadline()?,
            Step::Putting(sender) => sender.deadline()?,
            _ => self.retry.deadline(),
        };
        match self.options.deadline {
            Some(deadline) if !self.is_complete() => Some(due.min(deadline)),
            _ => Some(due),
        }
    }

    /// What became of it, once there is no [`Client::deadline`] any more: the number of bytes.
    ///
    /// # Errors
    ///
    /// The [`Reason`] why there is no whole file.
    pub fn finish(self) -> Result<u64, Reason> {
        if let Some(reason) = self.failed {
            return Err(reason);
        }
        let (state, bytes, local) = match self.step {
            Step::Getting(receiver) => (
                receiver.state().clone(),
                receiver.bytes(),
                receiver.into_sink().failed,
            ),
            Step::Putting(sender) => (
                sender.state().clone(),
                sender.bytes(),
                sender.into_source().failed,
            ),
            _ => {
                return Err(Reason::TimedOut {
                    tries: self.retry.times_sent(),
                });
            }
        };
        match state {
            State::Complete => Ok(bytes),
            State::Running => Err(Reason::Deadline),
            State::Failed(failure) => Err(local.unwrap_or_else(|| reason(failure))),
        }
    }

    fn is_complete(&self) -> bool {
        match &self.step {
            Step::Getting(receiver) => receiver.state() == &State::Complete,
            Step::Putting(sender) => sender.state() == &State::Complete,
            _ => false,
        }
    }

    /// The first packet from the server.
    fn answer(&mut self, from: SocketAddr, packet: &Packet<'_>, now: Instant, out: SendTo<'_>) {
        let getting = matches!(self.step, Step::AskingToGet(_));
        let agreed = match packet {
            Packet::Error {
                code: ErrorCode::OptionRefused,
                ..
            } if !self.offered.is_empty() => {
                self.offered.clear();
                self.request.clone_from(&self.plain);
                self.retry.progress(now);
                self.retry.sent(now);
                out(self.server, &self.request);
                return;
            }
            // A second copy of that refusal says nothing about the plain request.
            Packet::Error {
                code: ErrorCode::OptionRefused,
                ..
            } => return,
            Packet::Error { code, message } => {
                self.failed = Some(Reason::Peer {
                    code: *code,
                    message: printable(message),
                });
                return;
            }
            Packet::OptionAck { options } => match options::agree(&self.offered, options) {
                Ok(agreed) => agreed,
                Err(error) => {
                    out(
                        from,
                        &packet::error(ErrorCode::OptionRefused, &error.to_string()),
                    );
                    self.failed = Some(Reason::Protocol(error.to_string()));
                    return;
                }
            },
            // The server knows no options: the transfer has begun without them.
            Packet::Data { block: 1, .. } if getting => Agreed::default(),
            Packet::Ack { block: 0 } if !getting => Agreed::default(),
            _ => return,
        };
        self.peer = Some(from);
        self.retry.progress(now);
        self.begin(agreed, packet, now);
        let mut send = |packet: &[u8]| out(from, packet);
        match &mut self.step {
            Step::Getting(receiver) if matches!(packet, Packet::OptionAck { .. }) => {
                receiver.start(&mut send);
            }
            Step::Getting(receiver) => receiver.handle(packet, now, &mut send),
            Step::Putting(sender) => sender.start(&mut send),
            _ => {}
        }
    }

    fn begin(&mut self, agreed: Agreed, packet: &Packet<'_>, now: Instant) {
        let pauses = agreed.retransmit(self.options.retransmit);
        self.step = match std::mem::replace(&mut self.step, Step::Nothing) {
            Step::AskingToGet(guard) => {
                let opening =
                    matches!(packet, Packet::OptionAck { .. }).then(|| packet::ack(0).to_vec());
                let dally = self.options.dally;
                let Agreed {
                    block_size, window, ..
                } = agreed;
                let mut receiver =
                    Receiver::new(guard, block_size, window, opening, pauses, dally, now);
                receiver.learn_from(&self.retry, now);
                Step::Getting(receiver)
            }
            Step::AskingToPut(watch) => {
                let Agreed {
                    block_size, window, ..
                } = agreed;
                let mut sender = Sender::new(watch, block_size, window, None, pauses, now);
                sender.learn_from(&self.retry, now);
                Step::Putting(sender)
            }
            other => other,
        };
    }

    fn pass_on(&mut self, peer: SocketAddr, packet: &Packet<'_>, now: Instant, out: SendTo<'_>) {
        let mut send = |packet: &[u8]| out(peer, packet);
        match &mut self.step {
            Step::Getting(receiver) => receiver.handle(packet, now, &mut send),
            Step::Putting(sender) => sender.handle(packet, now, &mut send),
            _ => {}
        }
    }
}

fn offer(options: &Options, size: Option<u64>) -> Vec<(&'static str, u64)> {
    let mut offered = Vec::new();
    if options.block_size != options::DEFAULT_BLOCK_SIZE {
        offered.push((options::BLKSIZE, options.block_size.clamp(8, 65464).into()));
    }
    if options.window > 1 {
        offered.push((options::WINDOWSIZE, options.window.into()));
    }
    if let Some(size) = size {
        offered.push((options::TSIZE, size));
    }
    offered
}

fn reason(failure: Failure) -> Reason {
    match failure {
        Failure::Peer { code, message } => Reason::Peer { code, message },
        Failure::TimedOut { tries } => Reason::TimedOut { tries },
        other => Reason::Protocol(other.to_string()),
    }
}
