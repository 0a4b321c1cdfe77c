//! The clock of one transfer: when its last packet is sent again, and when it is given up.

use std::time::{Duration, Instant};

use crate::limits::Retransmit;

/// What is to be done at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    SendAgain,
    GiveUp,
}

/// Pauses that grow until there is progress.
#[derive(Debug, Clone)]
pub(crate) struct Retry {
    pauses: Retransmit,
    pause: Duration,
    tries: u32,
    deadline: Instant,
}

impl Retry {
    pub(crate) fn new(pauses: Retransmit, now: Instant) -> Self {
        Self {
            pauses,
            pause: pauses.first,
            tries: 0,
            deadline: now + pauses.first,
        }
    }

    /// The peer went on: the pauses start anew.
    pub(crate) fn progress(&mut self, now: Instant) {
        self.pause = self.pauses.first;
        self.tries = 0;
        self.deadline = now + self.pause;
    }

    pub(crate) fn due(&mut self, now: Instant) -> Due {
        if now < self.deadline {
            return Due::Nothing;
        }
        if self.tries == self.pauses.retries {
            return Due::GiveUp;
        }
        self.tries += 1;
        self.pause = (self.pause * 2).min(self.pauses.longest.max(self.pauses.first));
        self.deadline = now + self.pause;
        Due::SendAgain
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// How often the packet that now waits for its answer was sent again.
    pub(crate) fn tries(&self) -> u32 {
        self.tries
    }
}
