//! The clock of one transfer: when its last packet is sent again, and when it is given up.
//!
//! The first pause follows how long answers take, as TCP's does (RFC 6298): a block lost on a fast
//! network costs hundredths of a second, while a slow peer is not sent everything twice. The
//! pauses before that are short do not count as tries: how long a silent peer is waited for does
//! not depend on how fast it was.

use std::time::{Duration, Instant};

use crate::limits::Retransmit;

/// How many of the shortest pauses a peer may take to put a file on its disk.
const WORK: u32 = 20;

/// What is to be done at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    SendAgain,
    GiveUp,
}

/// How long answers take (RFC 6298 section 2).
#[derive(Debug, Clone, Copy)]
struct RoundTrip {
    smoothed: Duration,
    variation: Duration,
}

impl RoundTrip {
    fn first(sample: Duration) -> Self {
        Self {
            smoothed: sample,
            variation: sample / 2,
        }
    }

    fn add(&mut self, sample: Duration) {
        self.variation = self.variation * 3 / 4 + self.smoothed.abs_diff(sample) / 4;
        self.smoothed = self.smoothed * 7 / 8 + sample / 8;
    }

    /// By then an answer has come, unless something was lost.
    fn bound(&self) -> Duration {
        self.smoothed + self.variation * 4
    }
}

/// Pauses that grow until there is progress.
#[derive(Debug, Clone)]
pub(crate) struct Retry {
    pauses: Retransmit,
    round_trip: Option<RoundTrip>,
    /// When the packet was sent that is waited for an answer to; none when it was sent again,
    /// since the answer may be to either (Karn's algorithm).
    sent: Option<Instant>,
    /// Something was sent again, and no answer has been timed since: the pause stays as long as
    /// it has grown, or a peer that has become slower would never be timed again.
    grown: bool,
    pause: Duration,
    tries: u32,
    repetitions: u32,
    /// When the peer last went on.
    since: Instant,
    /// The peer is silent for longer than a lost packet explains.
    stalled: bool,
    deadline: Instant,
}

impl Retry {
    /// A clock of which something was sent just now.
    pub(crate) fn new(pauses: Retransmit, now: Instant) -> Self {
        Self {
            pauses,
            round_trip: None,
            sent: Some(now),
            grown: false,
            pause: pauses.first,
            tries: 0,
            repetitions: 0,
            since: now,
            stalled: false,
            deadline: now + pauses.first,
        }
    }

    /// Goes by what another clock has seen of the same peer.
    pub(crate) fn learn_from(&mut self, other: &Self, now: Instant) {
        self.round_trip = other.round_trip;
        self.pause = self.first_pause();
        self.deadline = now + self.pause;
    }

    /// Something new was sent, and its answer will be timed.
    pub(crate) fn sent(&mut self, now: Instant) {
        self.sent = Some(now);
    }

    /// The same was sent again, before its time.
    pub(crate) fn sent_again(&mut self) {
        self.sent = None;
    }

    /// The answer that is waited for comes only after the peer has put a file on its disk.
    pub(crate) fn allow_for_work(&mut self) {
        let least = (self.pauses.shortest * WORK).min(self.pauses.first);
        if let Some(more) = least.checked_sub(self.pause) {
            self.pause = least;
            self.deadline += more;
        }
    }

    /// The peer went on: the pauses start anew.
    pub(crate) fn progress(&mut self, now: Instant) {
        if let Some(sent) = self.sent.take() {
            let sample = now.saturating_duration_since(sent);
            match &mut self.round_trip {
                Some(known) => known.add(sample),
                none => *none = Some(RoundTrip::first(sample)),
            }
            self.grown = false;
        }
        self.pause = if self.grown {
            self.pause.min(self.pauses.first)
        } else {
            self.first_pause()
        };
        self.tries = 0;
        self.repetitions = 0;
        self.since = now;
        self.stalled = false;
        self.deadline = now + self.pause;
    }

    pub(crate) fn due(&mut self, now: Instant) -> Due {
        if now < self.deadline {
            return Due::Nothing;
        }
        if self.pause < self.pauses.first {
            self.pause = (self.pause * 2).min(self.pauses.first);
        } else if self.tries == self.pauses.retries {
            return Due::GiveUp;
        } else {
            self.tries += 1;
            self.pause = (self.pause * 2).min(self.pauses.longest.max(self.pauses.first));
        }
        self.repetitions += 1;
        self.sent = None;
        self.grown = true;
        self.stalled = now.saturating_duration_since(self.since) >= self.pauses.first;
        self.deadline = now + self.pause;
        Due::SendAgain
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// How often the packet that now waits for its answer was sent.
    pub(crate) fn times_sent(&self) -> u32 {
        self.repetitions + 1
    }

    /// Something was sent again, and the peer is silent for longer than a lost packet explains.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// How long an answer takes at most; none as long as there was none.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.round_trip.map(|known| known.bound())
    }

    /// In steps of two, so that a driver need not set its time-out anew for every packet.
    fn first_pause(&self) -> Duration {
        let Some(bound) = self.round_trip() else {
            return self.pauses.first;
        };
        let mut pause = self.pauses.shortest.max(Duration::from_millis(1));
        while pause < bound && pause < self.pauses.first {
            pause *= 2;
        }
        pause.min(self.pauses.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A clock with answers after so long, and the moment of the last.
    fn timed(answers: &[Duration]) -> (Retry, Instant) {
        let mut now = Instant::now();
        let mut retry = Retry::new(Retransmit::default(), now);
        for &answer in answers {
            retry.sent(now);
            now += answer;
            retry.progress(now);
        }
        (retry, now)
    }

    fn pause(retry: &Retry, now: Instant) -> Duration {
        retry.deadline() - now
    }

    #[test]
    fn pauses_follow_the_answers() {
        let (retry, now) = timed(&[]);
        assert_eq!(pause(&retry, now), 1000 * MS, "nothing is known");
        let (retry, now) = timed(&[MS / 10; 5]);
        assert_eq!(pause(&retry, now), 10 * MS, "never shorter");
        let (retry, now) = timed(&[30 * MS; 50]);
        assert_eq!(pause(&retry, now), 40 * MS);
        let (retry, now) = timed(&[3000 * MS; 5]);
        assert_eq!(pause(&retry, now), 1000 * MS, "never longer");
    }

    #[test]
    fn a_silent_peer_is_waited_for_as_long_as_ever() {
        for answers in [&[][..], &[MS; 3]] {
            let (mut retry, mut now) = timed(answers);
            let start = now;
            loop {
                now = retry.deadline();
                if retry.due(now) == Due::GiveUp {
                    break;
                }
            }
            let waited = now - start;
            assert!((31_000 * MS..33_000 * MS).contains(&waited), "{waited:?}");
        }
    }

    #[test]
    fn a_file_may_take_a_while_to_be_on_disk() {
        let (mut retry, now) = timed(&[MS; 5]);
        retry.allow_for_work();
        assert_eq!(pause(&retry, now), 200 * MS);
        let (mut retry, now) = timed(&[]);
        retry.allow_for_work();
        assert_eq!(pause(&retry, now), 1000 * MS);
    }

    #[test]
    fn a_peer_that_becomes_slower_is_timed_again() {
        let (mut retry, mut now) = timed(&[MS; 20]);
        let mut repeated = 0;
        for _ in 0..20 {
            retry.sent(now);
            let answer = now + 70 * MS;
            while retry.deadline() < answer {
                assert_eq!(retry.due(retry.deadline()), Due::SendAgain);
                repeated += 1;
            }
            now = answer;
            retry.progress(now);
        }
        assert!(repeated <= 6, "{repeated} times");
        assert!(pause(&retry, now) > 70 * MS);
    }
}
