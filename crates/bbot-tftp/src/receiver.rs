//! The receiving end of a transfer: the server's in a PUT, the client's in a GET.
//!
//! ```text
//!            start                   block 1               last block, committed
//!   opening ------> ACK 0 or OACK --------> receiving --------------------------> complete, dallying
//!                                             ^   |                                    |
//!                                             +---+ time-out, gap: ACK of the last     | the last block again:
//!                                                   block that came in order           +  the last ACK again
//! ```
//!
//! The last ACK is sent after [`Sink::commit`]: who sees it may rely on the file. It can be lost, so
//! a receiver that is complete answers the repeated last block for a while.

use std::time::{Duration, Instant};

use crate::limits::Retransmit;
use crate::name::printable;
use crate::packet::{self, ErrorCode, Packet};
use crate::retry::{Due, Retry};
use crate::transfer::{Failure, Output, Refusal, Sink, State, wire_number};

/// A repetition of the block that came last is answered again only after a pause when the window is
/// larger than one: a sender that repeats for want of our ACK has waited longer, and what comes
/// sooner is an echo that would start a round of its own. This is the pause as long as no round trip
/// was timed, and the longest: an echo is back within one.
const ECHO: Duration = Duration::from_millis(100);

/// The sender is the first to repeat what was lost: it knows what is missing. If both had the same
/// pause, both would.
const PATIENCE: u32 = 4;

/// The receiving end of a transfer.
#[derive(Debug)]
pub struct Receiver<K> {
    sink: K,
    block_size: usize,
    window: u64,
    /// The packet that asks for block 1: ACK 0 or an OACK; none when the peer needs no asking.
    opening: Option<Vec<u8>>,
    /// Blocks taken, all in order.
    received: u64,
    /// The last block that was acknowledged.
    acknowledged: u64,
    /// When that was.
    acknowledged_at: Instant,
    /// The present gap was told to the peer.
    gap_told: bool,
    bytes: u64,
    state: State,
    retry: Retry,
    /// Half of the sender's shortest pause: what comes sooner is no repetition for want of an ACK.
    echo: Duration,
    dally: Duration,
    /// When a complete receiver may be forgotten.
    dally_until: Option<Instant>,
}

impl<K: Sink> Receiver<K> {
    /// A receiver that begins with `opening`, if there is one. Nothing is sent before
    /// [`Receiver::start`]. `dally` is how long it answers after its end.
    pub fn new(
        sink: K,
        block_size: u16,
        window: u16,
        opening: Option<Vec<u8>>,
        retransmit: Retransmit,
        dally: Duration,
        now: Instant,
    ) -> Self {
        let echo = ECHO.min(retransmit.shortest / 2);
        let retransmit = Retransmit {
            shortest: retransmit.first.min(retransmit.shortest * PATIENCE),
            ..retransmit
        };
        Self {
            sink,
            block_size: usize::from(block_size.max(1)),
            window: u64::from(window.max(1)),
            opening,
            received: 0,
            acknowledged: 0,
            acknowledged_at: now,
            gap_told: false,
            bytes: 0,
            state: State::Running,
            retry: Retry::new(retransmit, now),
            echo,
            dally,
            dally_until: None,
        }
    }

    /// Sends the opening.
    pub fn start(&mut self, out: &mut dyn Output) {
        if let Some(opening) = &self.opening {
            out.send(opening);
        }
    }

    /// Takes a packet of the peer.
    pub fn handle(&mut self, packet: &Packet<'_>, now: Instant, out: &mut dyn Output) {
        match self.state {
            State::Failed(_) => return,
            State::Complete => {
                if let Packet::Data { block, .. } = *packet
                    && block == wire_number(self.received)
                {
                    out.send(&packet::ack(block));
                }
                return;
            }
            State::Running => {}
        }
        match *packet {
            Packet::Data { block, data } => self.data(block, data, now, out),
            // Our ACK 0 was lost and the server repeats its OACK.
            Packet::OptionAck { .. } => self.request_repeated(out),
            Packet::Error { code, message } => {
                self.state = State::Failed(Failure::Peer {
                    code,
                    message: printable(message),
                });
            }
            _ => {}
        }
    }

    /// The time has come that [`Receiver::deadline`] told.
    pub fn tick(&mut self, now: Instant, out: &mut dyn Output) {
        if self.state != State::Running {
            return;
        }
        match self.retry.due(now) {
            Due::Nothing => {}
            Due::SendAgain if self.received == 0 && self.opening.is_some() => self.start(out),
            Due::SendAgain => self.acknowledge(now, out),
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
            self.start(out);
        }
    }

    /// When [`Receiver::tick`] is to be called next, or when a complete one may be forgotten.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Running => Some(self.retry.deadline()),
            State::Complete => self.dally_until,
            State::Failed(_) => None,
        }
    }

    /// How far it is.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How many bytes have come so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the bytes go.
    #[must_use]
    pub fn sink(&self) -> &K {
        &self.sink
    }

    /// Gives back where the bytes went.
    pub fn into_sink(self) -> K {
        self.sink
    }

    /// No answer to the opening has come yet.
    pub(crate) fn is_opening(&self) -> bool {
        self.received == 0
    }

    /// The last packet was sent again and is not answered yet.
    pub(crate) fn is_stalled(&self) -> bool {
        self.retry.is_stalled()
    }

    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    pub(crate) fn block_size(&self) -> usize {
        self.block_size
    }

    /// Goes by what another clock has seen of the peer.
    pub(crate) fn learn_from(&mut self, clock: &Retry, now: Instant) {
        self.retry.learn_from(clock, now);
    }

    pub(crate) fn fail(&mut self, failure: Failure) {
        if self.state == State::Running {
            self.state = State::Failed(failure);
        }
    }

    fn data(&mut self, block: u16, data: &[u8], now: Instant, out: &mut dyn Output) {
        let ahead = block.wrapping_sub(wire_number(self.received + 1));
        if ahead >= 0x8000 {
            self.old(block, now, out);
            return;
        }
        if ahead > 0 {
            // Blocks that come after a gap are not kept: the sender resumes after our ACK anyway.
            if u64::from(ahead) < self.window && !self.gap_told {
                self.gap_told = true;
                self.retry.sent(now);
                self.acknowledge(now, out);
            }
            return;
        }
        if data.len() > self.block_size {
            let what = format!(
                "block of {} bytes, agreed are {}",
                data.len(),
                self.block_size
            );
            self.refuse(Refusal::new(ErrorCode::IllegalOperation, what), out);
            return;
        }
        self.received += 1;
        self.bytes += data.len() as u64;
        self.gap_told = false;
        self.retry.progress(now);
        let last = data.len() < self.block_size;
        if !last && self.received >= self.acknowledged + self.window {
            // Ahead of the writing, so that the peer is not idle meanwhile: only the last ACK
            // says more than that the block has come.
            self.retry.sent(now);
            self.acknowledge(now, out);
        }
        let mut taken = self.sink.write(data);
        if last {
            taken = taken.and_then(|()| self.sink.commit());
        }
        match taken {
            Err(refusal) => self.refuse(refusal, out),
            Ok(()) if last => {
                self.state = State::Complete;
                self.dally_until = Some(now + self.dally);
                self.acknowledge(now, out);
            }
            Ok(()) => {}
        }
    }

    /// A block that was taken already.
    fn old(&mut self, block: u16, now: Instant, out: &mut dyn Output) {
        if self.received == 0 || block != wire_number(self.received) {
            return;
        }
        let round_trip = self.retry.round_trip();
        let echo = round_trip.map_or(ECHO, |bound| bound.clamp(self.echo, ECHO));
        if self.window > 1 && now.saturating_duration_since(self.acknowledged_at) < echo {
            return;
        }
        self.acknowledge(now, out);
    }

    fn acknowledge(&mut self, now: Instant, out: &mut dyn Output) {
        self.acknowledged = self.received;
        self.acknowledged_at = now;
        out.send(&packet::ack(wire_number(self.received)));
    }

    fn refuse(&mut self, refusal: Refusal, out: &mut dyn Output) {
        out.send(&packet::error(refusal.code, &refusal.message));
        self.state = State::Failed(refusal.into());
    }
}
