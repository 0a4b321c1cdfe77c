//! How long a controller is waited for that does not take a log: a decision without I/O
//! and without a clock.
//!
//! Time in which nothing is heard of the controller does not count: it is away, and a
//! result would fare no better. Nor does it begin before the first failure, and each
//! segment that is taken ends it.

use std::time::Duration;

/// For how long a controller may answer and take nothing of a log before the result goes
/// without it. A restart, a database that fails over and a disk that somebody makes room on
/// are over by then; longer than that a person would rather know how the build went.
pub(crate) const RESULT_WAITS: Duration = Duration::from_secs(5 * 60);

/// For how long it may do so before the rest of the log is given up. Our controller waits for
/// as long, from when it has the result, for what it lacks.
pub(crate) const GIVEN_UP: Duration = Duration::from_secs(24 * 60 * 60);

/// What came of a try to post a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Try {
    /// The controller has more of the log than before.
    Taken,
    /// It does not, but the controller has answered: to this, or to something else since the
    /// last try.
    Answered,
    /// Nothing was heard of the controller.
    Silence,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    /// The log goes before the result.
    First,
    /// The result need not wait; the log goes on.
    Beside,
    /// The rest of the log is given up.
    GivenUp,
}

/// What a controller has made of a log so far.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// When the last try ended, if that failed.
    failed: Option<Duration>,
    /// For how long it has been answering since it took anything.
    refusing: Duration,
}

impl Patience {
    /// A try has ended at this time, of any clock that never jumps.
    pub(super) fn after(&mut self, tried: Try, now: Duration) -> Mood {
        let since = self
            .failed
            .map_or(Duration::ZERO, |at| now.saturating_sub(at));
        match tried {
            Try::Taken => *self = Self::default(),
            Try::Answered => {
                self.refusing += since;
                self.failed = Some(now);
            }
            Try::Silence => self.failed = Some(now),
        }
        match self.refusing {
            refusing if refusing >= GIVEN_UP => Mood::GivenUp,
            refusing if refusing >= RESULT_WAITS => Mood::Beside,
            _ => Mood::First,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_that_answers_is_waited_for_within_bounds_and_one_that_is_away_is_not_counted() {
        use Mood::{Beside, First, GivenUp};
        use Try::{Answered, Silence, Taken};
        const DAY: u64 = 24 * 3600;
        for (tries, expected) in [
            (&[(0, Taken)][..], First),
            // The first failure says nothing of the time before it.
            (&[(0, Taken), (9999, Answered)], First),
            (&[(0, Answered), (299, Answered)], First),
            (&[(0, Answered), (100, Answered), (300, Answered)], Beside),
            // Away for days, then back and not ready.
            (&[(0, Silence), (3 * DAY, Silence)], First),
            (
                &[(0, Silence), (3 * DAY, Silence), (3 * DAY + 30, Answered)],
                First,
            ),
            // Times in which it answers add up, whatever is between.
            (
                &[
                    (0, Answered),
                    (200, Answered),
                    (4000, Silence),
                    (4100, Answered),
                ],
                Beside,
            ),
            (&[(0, Answered), (300, Answered), (9999, Silence)], Beside),
            // Progress is all that counts.
            (&[(0, Answered), (400, Taken)], First),
            (
                &[
                    (0, Answered),
                    (400, Answered),
                    (401, Taken),
                    (500, Answered),
                    (799, Answered),
                ],
                First,
            ),
            (&[(0, Answered), (DAY - 1, Answered)], Beside),
            (&[(0, Answered), (DAY, Answered)], GivenUp),
        ] {
            let mut patience = Patience::default();
            let moods = tries
                .iter()
                .map(|(at, tried)| patience.after(*tried, Duration::from_secs(*at)));
            assert_eq!(moods.last(), Some(expected), "{tries:?}");
        }
    }
}
