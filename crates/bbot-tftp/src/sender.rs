//! The sending end of a transfer: the server's in a GET, the client's in a PUT.
//!
//! ```text
//!            start                 ACK 0                  ACK of the last block
//!   opening ------> OACK sent ---------------> sending -----------------------> complete
//!      |                                        ^   |
//!      +--- no options to acknowledge ----------+   +-- time-out: the window again
//! ```
//!
//! A window of blocks is sent, then its acknowledgement awaited. An ACK inside the window is a gap
//! at the receiver: sending resumes right after it (RFC 7440 section 4). With a window of one, a
//! repeated ACK is never answered with DATA, or each duplicate would double all that follow (the
//! Sorcerer's Apprentice). With larger windows a repeated ACK of the previous window means that the
//! first block of this one was lost, and is answered, but at most once for a window and never for
//! the echo that such a repetition itself can cause.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::time::Instant;

use crate::limits::Retransmit;
use crate::name::printable;
use crate::packet::{self, DATA_HEADER, ErrorCode, Packet};
use crate::retry::{Due, Retry};
use crate::transfer::{Failure, Output, Refusal, State, wire_number};

/// The sending end of a transfer.
#[derive(Debug)]
pub struct Sender<S> {
    source: S,
    block_size: usize,
    window: u64,
    /// An OACK that waits for ACK 0.
    opening: Option<Vec<u8>>,
    /// The last block that the peer acknowledged; blocks count from 1 and do not wrap here.
    acknowledged: u64,
    /// The last block of the current window that was sent.
    sent: u64,
    /// DATA packets of the blocks after `acknowledged`, read but not acknowledged.
    ready: VecDeque<Vec<u8>>,
    /// Buffers of acknowledged blocks, to be used again.
    spare: Vec<Vec<u8>>,
    /// The last block of all, once its end was read.
    last: Option<u64>,
    bytes: u64,
    /// A repeated ACK was answered in this window.
    resumed: bool,
    /// A repeated ACK was answered in the previous window, so that one may come back as an echo.
    echo: bool,
    state: State,
    retry: Retry,
}

impl<S: Read> Sender<S> {
    /// A sender that begins with `opening` (an OACK, to be answered with ACK 0), or with block 1.
    /// Nothing is sent before [`Sender::start`].
    pub fn new(
        source: S,
        block_size: u16,
        window: u16,
        opening: Option<Vec<u8>>,
        retransmit: Retransmit,
        now: Instant,
    ) -> Self {
        Self {
            source,
            block_size: usize::from(block_size.max(1)),
            window: u64::from(window.max(1)),
            opening,
            acknowledged: 0,
            sent: 0,
            ready: VecDeque::new(),
            spare: Vec::new(),
            last: None,
            bytes: 0,
            resumed: false,
            echo: false,
            state: State::Running,
            retry: Retry::new(retransmit, now),
        }
    }

    /// Sends the opening, or the first window.
    pub fn start(&mut self, out: &mut dyn Output) {
        self.send(out);
        self.read_ahead(out);
    }

    /// Takes a packet of the peer.
    pub fn handle(&mut self, packet: &Packet<'_>, now: Instant, out: &mut dyn Output) {
        if self.state != State::Running {
            return;
        }
        match *packet {
            Packet::Ack { block } => self.acknowledge(block, now, out),
            Packet::Error { code, message } => {
                self.state = State::Failed(Failure::Peer {
                    code,
                    message: printable(message),
                });
            }
            // Late duplicates of the request and the like belong to nothing here.
            _ => {}
        }
    }

    /// The time has come that [`Sender::deadline`] told.
    pub fn tick(&mut self, now: Instant, out: &mut dyn Output) {
        if self.state != State::Running {
            return;
        }
        match self.retry.due(now) {
            Due::Nothing => {}
            Due::SendAgain => {
                self.resumed = false;
                self.send_again(out);
            }
            Due::GiveUp => {
                let tries = self.retry.times_sent();
                out.send(&packet::error(ErrorCode::Undefined, "no answer, given up"));
                self.state = State::Failed(Failure::TimedOut { tries });
            }
        }
    }

    /// The request was repeated: sends the opening again if the peer cannot have seen it.
    pub fn request_repeated(&mut self, out: &mut dyn Output) {
        if self.state == State::Running && self.is_opening() {
            self.send_again(out);
        }
    }

    /// When [`Sender::tick`] is to be called next; none when it is over.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        (self.state == State::Running).then(|| self.retry.deadline())
    }

    /// How far it is.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How many bytes of the file were read so far; all of them when it is complete.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives back what was sent.
    pub fn into_source(self) -> S {
        self.source
    }

    /// No answer to the opening has come yet.
    pub(crate) fn is_opening(&self) -> bool {
        self.acknowledged == 0
    }

    /// The last packets were sent again and are not answered yet.
    pub(crate) fn is_stalled(&self) -> bool {
        self.retry.is_stalled()
    }

    /// Goes by what another clock has seen of the peer.
    pub(crate) fn learn_from(&mut self, clock: &Retry, now: Instant) {
        self.retry.learn_from(clock, now);
    }

    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    pub(crate) fn fail(&mut self, failure: Failure) {
        if self.state == State::Running {
            self.state = State::Failed(failure);
        }
    }

    fn acknowledge(&mut self, block: u16, now: Instant, out: &mut dyn Output) {
        if self.opening.is_some() {
            if block == 0 {
                self.opening = None;
                self.retry.progress(now);
                self.retry.sent(now);
                self.send(out);
                self.read_ahead(out);
            }
            return;
        }
        let advance = u64::from(block.wrapping_sub(wire_number(self.acknowledged)));
        if advance > self.sent - self.acknowledged {
            return;
        }
        if advance == 0 {
            if self.window == 1 || self.resumed {
                return;
            }
            if self.echo {
                self.echo = false;
                return;
            }
            self.resumed = true;
            self.send_again(out);
            return;
        }
        self.acknowledged += advance;
        for _ in 0..advance {
            self.spare.extend(self.ready.pop_front());
        }
        self.echo = self.resumed;
        self.resumed = false;
        self.sent = self.acknowledged;
        self.retry.progress(now);
        if Some(self.acknowledged) == self.last {
            self.state = State::Complete;
            return;
        }
        self.retry.sent(now);
        self.send(out);
        self.read_ahead(out);
    }

    fn send_again(&mut self, out: &mut dyn Output) {
        self.retry.sent_again();
        self.sent = self.acknowledged;
        self.send(out);
    }

    /// Sends the opening, or what the window has room for.
    fn send(&mut self, out: &mut dyn Output) {
        if let Some(opening) = &self.opening {
            out.send(opening);
            return;
        }
        while self.sent < self.acknowledged + self.window && Some(self.sent) != self.last {
            let index = usize::try_from(self.sent - self.acknowledged).unwrap_or(usize::MAX);
            if index >= self.ready.len()
                && let Err(error) = self.read_block()
            {
                self.cannot_read(&error, out);
                return;
            }
            if let Some(packet) = self.ready.get(index) {
                out.send(packet);
            }
            self.sent += 1;
        }
        if Some(self.sent) == self.last {
            self.retry.allow_for_work();
        }
    }

    /// Reads the next window while the peer is busy with this one.
    fn read_ahead(&mut self, out: &mut dyn Output) {
        let wanted =
            usize::try_from(self.sent - self.acknowledged + self.window).unwrap_or(usize::MAX);
        while self.state == State::Running && self.last.is_none() && self.ready.len() < wanted {
            if let Err(error) = self.read_block() {
                self.cannot_read(&error, out);
            }
        }
    }

    fn read_block(&mut self) -> io::Result<()> {
        let block = self.acknowledged + self.ready.len() as u64 + 1;
        let mut packet = self.spare.pop().unwrap_or_default();
        packet.resize(DATA_HEADER + self.block_size, 0);
        packet::data_header(&mut packet, wire_number(block));
        let mut end = DATA_HEADER;
        while end < packet.len() {
            match self.source.read(&mut packet[end..]) {
                Ok(0) => break,
                Ok(n) => end += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if end < packet.len() {
            packet.truncate(end);
            self.last = Some(block);
        }
        self.bytes += (end - DATA_HEADER) as u64;
        self.ready.push_back(packet);
        Ok(())
    }

    fn cannot_read(&mut self, error: &io::Error, out: &mut dyn Output) {
        let refusal = Refusal::new(ErrorCode::Undefined, "the file cannot be read")
            .with_detail(error.to_string());
        out.send(&packet::error(refusal.code, &refusal.message));
        self.state = State::Failed(refusal.into());
    }
}
