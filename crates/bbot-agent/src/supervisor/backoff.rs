//! Pauses that grow: how long something that failed is left alone.

use std::time::Duration;

use super::api::Time;

/// How pauses grow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pauses {
    /// The first.
    pub(super) first: Duration,
    /// The longest; each is twice as long as the one before until then.
    pub(super) longest: Duration,
}

/// A machine that failed (the seed left it suspended for a person): a bootstrap may take an hour of the host.
pub(super) const MACHINE: Pauses = Pauses {
    first: Duration::from_secs(60),
    longest: Duration::from_secs(60 * 60),
};

/// A controller of ours that does not answer: it is restarted within seconds, or away for long, and then each
/// minute that its tasks wait after it has come back is one too many. To ask in vain costs next to nothing.
pub(super) const SILENT_OURS: Pauses = Pauses {
    first: Duration::from_secs(2),
    longest: Duration::from_secs(12),
};

/// A stranger that does not answer: at most the pace at which it is asked when it does (the seed's minute).
pub(super) const SILENT: Pauses = Pauses {
    first: Duration::from_secs(5),
    longest: Duration::from_secs(60),
};

/// A controller that answers rubbish. Each answer may be a task that it takes as handed out for hours.
pub(super) const WRONG: Pauses = Pauses {
    first: Duration::from_secs(30),
    longest: Duration::from_secs(60 * 60),
};

/// The host, when a task failed by its fault: each further one would be lost, too.
pub(super) const HOST: Pauses = Pauses {
    first: Duration::from_secs(60),
    longest: Duration::from_secs(60 * 60),
};

impl Pauses {
    /// The pause after that many failures before this one.
    pub(super) fn after(self, failures: u32) -> Duration {
        self.first
            .saturating_mul(1 << failures.min(16))
            .min(self.longest)
    }
}

/// Something that is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backoff {
    /// What failed: something else of the same name is another try.
    pub(super) of: String,
    /// How often in a row.
    pub(super) failures: u32,
    /// When it failed last.
    pub(super) at: Time,
    pub(super) until: Time,
}

impl Backoff {
    /// It failed (again).
    pub(super) fn failed(before: Option<&Self>, of: &str, now: Time) -> (Self, Duration) {
        let failures = before.filter(|b| b.of == of).map_or(0, |b| b.failures);
        let pause = MACHINE.after(failures);
        let next = Self {
            of: of.to_owned(),
            failures: failures.saturating_add(1),
            at: now,
            until: now.saturating_add(pause),
        };
        (next, pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_left_alone_for_a_minute_up_to_an_hour() {
        let mut backoff = None;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let (next, pause) = Backoff::failed(backoff.as_ref(), "a", Time::ZERO);
            assert_eq!(next.until, pause);
            pauses.push(pause.as_secs());
            backoff = Some(next);
        }
        assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
        let (other, pause) = Backoff::failed(backoff.as_ref(), "b", Time::ZERO);
        assert_eq!((other.failures, pause.as_secs()), (1, 60));
        assert_eq!(SILENT.after(u32::MAX), SILENT.longest);
    }
}
