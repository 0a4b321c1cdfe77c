//! One transfer of a server: from its request to its end, with the events on the way.

use std::collections::VecDeque;
use std::io::{BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::limits::Limits;
use crate::name::{Name, printable};
use crate::netascii::Netascii;
use crate::options::{self, SizeAnswer};
use crate::packet::{self, ErrorCode, Mode, Packet, Request};
use crate::receiver::Receiver;
use crate::root::Root;
use crate::sender::Sender;
use crate::transfer::{Failure, Output, Refusal, State};
use crate::upload::Upload;

/// The direction of a transfer, as the client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The client reads.
    Get,
    /// The client writes.
    Put,
}

/// What the owner of a server is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A request came, for a name that passed the rules. Whether it is granted comes after.
    Requested {
        /// Who asks.
        peer: SocketAddr,
        /// What for.
        kind: Kind,
        /// The file, without a leading `/`.
        name: String,
    },
    /// A GET came for a name that is held back ([`Root::get_held`]). It is not answered.
    Held {
        /// Who asks.
        peer: SocketAddr,
        /// The file.
        name: String,
        /// The request as it came: handed to another server later, it is answered there.
        request: Vec<u8>,
    },
    /// A file was read to its end, and the client has acknowledged all of it.
    Fetched {
        /// The file.
        name: String,
        /// Its length as it was sent.
        bytes: u64,
    },
    /// A file has come, is whole, on disk, and under its name.
    Uploaded {
        /// The file.
        name: String,
        /// Where it is.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// A request or a transfer ended without success.
    Failed {
        /// The file; made printable when the name itself was refused, and empty for what was no
        /// request at all.
        name: String,
        /// Why.
        reason: Failure,
    },
}

/// One transfer of a server.
pub(crate) struct Session {
    /// The request as it came, to know its repetition.
    request: Vec<u8>,
    name: String,
    body: Body,
    /// The end was told as an event.
    told: bool,
    /// When the peer was last heard.
    pub(crate) heard: Instant,
}

enum Body {
    Get(Sender<Box<dyn Read + Send>>),
    Put(Receiver<Upload>),
}

/// Reads smaller than this are gathered.
const GATHER_BELOW: u16 = 16384;
const GATHER: usize = 128 * 1024;

/// A request that begins no session.
pub(crate) enum NotBegun {
    /// The ERROR packet that refuses it.
    Refused(Vec<u8>),
    /// It is held back, without an answer.
    Held,
}

/// Answers a request: a session to be started, if any.
pub(crate) fn open(
    root: &Root,
    limits: &Limits,
    peer: SocketAddr,
    payload: &[u8],
    now: Instant,
    events: &mut VecDeque<Event>,
) -> Result<Session, NotBegun> {
    let (kind, request) = match Packet::decode(payload) {
        Ok(Packet::Read(request)) => (Kind::Get, request),
        Ok(Packet::Write(request)) => (Kind::Put, request),
        Ok(_) => {
            let refusal = Refusal::new(ErrorCode::UnknownTransfer, "this belongs to no transfer");
            return Err(NotBegun::Refused(refuse(String::new(), refusal, events)));
        }
        Err(error) => {
            let refusal = Refusal::new(ErrorCode::IllegalOperation, error.to_string());
            return Err(NotBegun::Refused(refuse(String::new(), refusal, events)));
        }
    };
    let name = match Name::new(request.name) {
        Ok(name) => name,
        Err(error) => {
            let refusal = Refusal::new(ErrorCode::AccessViolation, error.to_string());
            return Err(NotBegun::Refused(refuse(
                printable(request.name),
                refusal,
                events,
            )));
        }
    };
    events.push_back(Event::Requested {
        peer,
        kind,
        name: name.as_str().to_owned(),
    });
    if kind == Kind::Get && root.holds(&name) {
        events.push_back(Event::Held {
            peer,
            name: name.as_str().to_owned(),
            request: payload.to_vec(),
        });
        return Err(NotBegun::Held);
    }
    let body = match kind {
        Kind::Get => get(root, limits, &name, &request, now),
        Kind::Put => put(root, limits, &name, &request, now),
    };
    match body {
        Ok(body) => Ok(Session {
            request: payload.to_vec(),
            name: name.as_str().to_owned(),
            body,
            told: false,
            heard: now,
        }),
        Err(refusal) => Err(NotBegun::Refused(refuse(
            name.as_str().to_owned(),
            refusal,
            events,
        ))),
    }
}

/// Whether a datagram asks for an upload, well or badly.
pub(crate) fn is_upload(payload: &[u8]) -> bool {
    matches!(payload, [0, 2, ..])
}

/// The name in a request, as it can be shown; empty when it is none.
pub(crate) fn name_of(payload: &[u8]) -> String {
    match Packet::decode(payload) {
        Ok(Packet::Read(request) | Packet::Write(request)) => printable(request.name),
        _ => String::new(),
    }
}

/// The ERROR packet of a refusal, and its event.
pub(crate) fn refuse(name: String, refusal: Refusal, events: &mut VecDeque<Event>) -> Vec<u8> {
    let packet = packet::error(refusal.code, &refusal.message);
    events.push_back(Event::Failed {
        name,
        reason: refusal.into(),
    });
    packet
}

fn get(
    root: &Root,
    limits: &Limits,
    name: &Name,
    request: &Request<'_>,
    now: Instant,
) -> Result<Body, Refusal> {
    let mode = request.mode().ok_or_else(unknown_mode)?;
    let opened = root.open(name)?;
    // The length of netascii is known only at its end.
    let size = (mode == Mode::Octet).then_some(opened.size);
    let (agreed, answer) = options::accept(&request.options, limits, SizeAnswer::File(size));
    let opening = (!answer.is_empty()).then(|| packet::option_ack(&answer));
    let source: Box<dyn Read + Send> = match mode {
        Mode::Netascii => Box::new(Netascii::new(opened.reader)),
        Mode::Octet if agreed.block_size < GATHER_BELOW => {
            Box::new(BufReader::with_capacity(GATHER, opened.reader))
        }
        Mode::Octet => opened.reader,
    };
    let pauses = agreed.retransmit(limits.retransmit);
    Ok(Body::Get(Sender::new(
        source,
        agreed.block_size,
        agreed.window,
        opening,
        pauses,
        now,
    )))
}

fn put(
    root: &Root,
    limits: &Limits,
    name: &Name,
    request: &Request<'_>,
    now: Instant,
) -> Result<Body, Refusal> {
    match request.mode() {
        Some(Mode::Octet) => {}
        Some(Mode::Netascii) => {
            return Err(Refusal::new(
                ErrorCode::IllegalOperation,
                "uploads only in mode octet (binary)",
            ));
        }
        None => return Err(unknown_mode()),
    }
    let upload = root.create(name)?;
    let (agreed, answer) = options::accept(&request.options, limits, SizeAnswer::Echo);
    let opening = if answer.is_empty() {
        packet::ack(0).to_vec()
    } else {
        packet::option_ack(&answer)
    };
    let pauses = agreed.retransmit(limits.retransmit);
    Ok(Body::Put(Receiver::new(
        upload,
        agreed.block_size,
        agreed.window,
        Some(opening),
        pauses,
        limits.dally,
        now,
    )))
}

fn unknown_mode() -> Refusal {
    Refusal::new(
        ErrorCode::IllegalOperation,
        "the mode is neither octet nor netascii",
    )
}

/// For how long after the end a copy of the request may still be under way.
pub(crate) const LATE: Duration = Duration::from_secs(1);

/// What a second request from the same port means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// The first one repeated, or a late copy of it: the transfer goes on.
    Repeated,
    /// The client has begun anew: the transfer gives way.
    New,
}

impl Session {
    pub(crate) fn start(&mut self, out: &mut dyn Output) {
        match &mut self.body {
            Body::Get(sender) => sender.start(out),
            Body::Put(receiver) => receiver.start(out),
        }
    }

    pub(crate) fn handle(&mut self, payload: &[u8], now: Instant, out: &mut dyn Output) {
        // What cannot be read is a damaged packet; its sender will repeat it.
        let Ok(packet) = Packet::decode(payload) else {
            return;
        };
        self.heard = now;
        match &mut self.body {
            Body::Get(sender) => sender.handle(&packet, now, out),
            Body::Put(receiver) => receiver.handle(&packet, now, out),
        }
    }

    pub(crate) fn tick(&mut self, now: Instant, out: &mut dyn Output) {
        match &mut self.body {
            Body::Get(sender) => sender.tick(now, out),
            Body::Put(receiver) => receiver.tick(now, out),
        }
    }

    /// A request came from the port that this session serves.
    pub(crate) fn request_again(
        &mut self,
        payload: &[u8],
        now: Instant,
        out: &mut dyn Output,
    ) -> Again {
        if payload != self.request {
            return Again::New;
        }
        match self.state() {
            // A client that asks for the same once more asks again if this was no late copy.
            State::Complete if now.saturating_duration_since(self.heard) < LATE => {
                return Again::Repeated;
            }
            State::Running if self.is_opening() || !self.is_stalled() => {}
            _ => return Again::New,
        }
        match &mut self.body {
            Body::Get(sender) => sender.request_repeated(out),
            Body::Put(receiver) => receiver.request_repeated(out),
        }
        Again::Repeated
    }

    pub(crate) fn fail(&mut self, failure: Failure) {
        match &mut self.body {
            Body::Get(sender) => sender.fail(failure),
            Body::Put(receiver) => receiver.fail(failure),
        }
    }

    pub(crate) fn state(&self) -> &State {
        match &self.body {
            Body::Get(sender) => sender.state(),
            Body::Put(receiver) => receiver.state(),
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.body {
            Body::Get(sender) => sender.deadline(),
            Body::Put(receiver) => receiver.deadline(),
        }
    }

    /// The last packets were sent again and are not answered yet.
    pub(crate) fn is_stalled(&self) -> bool {
        match &self.body {
            Body::Get(sender) => sender.is_stalled(),
            Body::Put(receiver) => receiver.is_stalled(),
        }
    }

    /// No answer to the first packet has come yet.
    pub(crate) fn is_opening(&self) -> bool {
        match &self.body {
            Body::Get(sender) => sender.is_opening(),
            Body::Put(receiver) => receiver.is_opening(),
        }
    }

    /// The longest packet that the peer may send, and one byte, so that a longer one is noticed.
    pub(crate) fn longest_packet(&self) -> usize {
        match &self.body {
            // An ACK; an ERROR's message may be cut.
            Body::Get(_) => 2048,
            Body::Put(receiver) => receiver.block_size() + packet::DATA_HEADER + 1,
        }
        .max(2048)
    }

    /// Many packets go one way before one comes back.
    pub(crate) fn has_windows(&self) -> bool {
        let window = match &self.body {
            Body::Get(sender) => sender.window(),
            Body::Put(receiver) => receiver.window(),
        };
        window > 1
    }

    /// Nothing is to be done any more: failed, sent, or dallied long enough.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.state() != &State::Running && self.deadline().is_none_or(|until| until <= now)
    }

    /// The event of the end, once.
    pub(crate) fn take_event(&mut self) -> Option<Event> {
        if self.told || self.state() == &State::Running {
            return None;
        }
        self.told = true;
        let name = self.name.clone();
        match (&self.body, self.state()) {
            (_, State::Failed(reason)) => Some(Event::Failed {
                name,
                reason: reason.clone(),
            }),
            (Body::Get(sender), _) => Some(Event::Fetched {
                name,
                bytes: sender.bytes(),
            }),
            (Body::Put(receiver), _) => {
                let path = receiver.sink().committed()?.clone();
                Some(Event::Uploaded {
                    name,
                    path,
                    bytes: receiver.bytes(),
                })
            }
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("name", &self.name)
            .field("state", self.state())
            .finish_non_exhaustive()
    }
}
