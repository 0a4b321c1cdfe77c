//! Logs whose end comes after the result: what is still taken of them, and what is missing.
//!
//! An agent of ours sends the log first, and its result says how long that is. Only where the controller could not
//! take the log for long, or the agent was not heard of for as long as it waits, the result comes before the end of it.

use std::time::Duration;

use super::lease::{self, Renewal};
use super::outcome::SessionState;
use crate::clock::Millis;

/// For how long the end of a log is waited for once there is the result. An agent that is there sends it within
/// seconds; a day has room for a host that is down overnight, and is less than any log is kept.
pub const LATE: Duration = Duration::from_secs(24 * 60 * 60);

/// Where a log ends whose result is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEnd {
    /// Number of its last segment.
    pub last: u64,
    /// Until when what is missing is taken.
    pub until: Millis,
}

impl LogEnd {
    /// Of a log with so many segments, whose result comes now.
    #[must_use]
    pub fn of(last: u64, now: Millis) -> Self {
        Self {
            last,
            until: now.plus(LATE),
        }
    }
}

/// Whether a log segment is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// It is.
    Yes,
    /// Its session is over, and nothing of it is missing that this could be.
    No,
}

/// Whether the segment of this number is taken of a session.
#[must_use]
pub fn wants(session: SessionState, end: Option<LogEnd>, number: u64, now: Millis) -> Wanted {
    match (lease::renew(session), end) {
        (Renewal::Renew | Renewal::Revive, _) => Wanted::Yes,
        (Renewal::Over, Some(end))
            if session == SessionState::Answered && number <= end.last && now < end.until =>
        {
            Wanted::Yes
        }
        (Renewal::Over | Renewal::Unknown, _) => Wanted::No,
    }
}

/// What is missing of the end of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// How many segments.
    pub segments: u64,
    /// Whether they may still come.
    pub may_come: bool,
}

/// What is missing of the end of a log whose last segment that is there has this number.
#[must_use]
pub fn missing(end: Option<LogEnd>, number: u64, now: Millis) -> Option<Missing> {
    let end = end?;
    let segments = end.last.checked_sub(number).filter(|n| *n > 0)?;
    Some(Missing {
        segments,
        may_come: now < end.until,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::State;

    const NOW: Millis = Millis(1_000_000);

    #[test]
    fn what_is_taken_of_a_log() {
        let end = LogEnd::of(7, NOW);
        let late = end.until;
        for (session, end, number, now, expected) in [
            (
                SessionState::Current(State::Building),
                None,
                9,
                NOW,
                Wanted::Yes,
            ),
            (
                SessionState::Current(State::Queued),
                None,
                9,
                NOW,
                Wanted::Yes,
            ),
            // Its result says nothing of a log: the agent is older, or there was none.
            (SessionState::Answered, None, 1, NOW, Wanted::No),
            (SessionState::Answered, Some(end), 7, NOW, Wanted::Yes),
            (SessionState::Answered, Some(end), 1, NOW, Wanted::Yes),
            // More than it said that there was.
            (SessionState::Answered, Some(end), 8, NOW, Wanted::No),
            (
                SessionState::Answered,
                Some(end),
                7,
                Millis(late.0 - 1),
                Wanted::Yes,
            ),
            (SessionState::Answered, Some(end), 7, late, Wanted::No),
            // Nobody's result but this session's counts.
            (SessionState::Superseded, Some(end), 7, NOW, Wanted::No),
            (SessionState::GivenBack, None, 7, NOW, Wanted::No),
            (SessionState::Overtaken, None, 7, NOW, Wanted::No),
            (SessionState::Cancelled, None, 7, NOW, Wanted::No),
            (
                SessionState::Current(State::Built),
                None,
                7,
                NOW,
                Wanted::No,
            ),
            (SessionState::Unknown, Some(end), 7, NOW, Wanted::No),
        ] {
            let wanted = wants(session, end, number, now);
            assert_eq!(wanted, expected, "{session:?} {end:?} {number} {now:?}");
        }
    }

    #[test]
    fn what_is_missing_of_a_log() {
        let end = LogEnd::of(7, NOW);
        let some = |segments, may_come| Some(Missing { segments, may_come });
        for (end, number, now, expected) in [
            (None, 0, NOW, None),
            (Some(end), 7, NOW, None),
            (Some(end), 9, NOW, None),
            (Some(end), 5, NOW, some(2, true)),
            (Some(end), 0, end.until, some(7, false)),
        ] {
            assert_eq!(missing(end, number, now), expected, "{end:?} {number}");
        }
    }
}
