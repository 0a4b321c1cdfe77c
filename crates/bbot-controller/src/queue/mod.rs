//! The queue's decisions, pure: which era an agent is of, which task it gets, when a lease has lapsed and
//! what a result does to its build. Everything here is a function of plain data; the store fetches and
//! keeps, the HTTP side translates.
//!
//! ```text
//!             task handed out            result, too many interrupts or lapses
//!   queued ---------------------> building ----------------------------> built
//!     ^                              |  |                                  |
//!     |   lease lapsed, interrupt    |  | result, rebuild asked meanwhile  |
//!     +------------------------------+--+                                  |
//!     |                              rebuild                               |
//!     +--------------------------------------------------------------------+
//!
//!   queued, building -- cancel --> cancelled -- rebuild --> queued
//! ```
//!
//! A lease that lapses is a guess that the agent is gone. A build that is queued again because of it keeps its
//! session until the task is handed out anew, and the agent may renew it; a result that is merely late is taken as
//! long as nobody else has brought one.

pub mod admission;
pub mod auxiliary;
pub mod era;
pub mod failure;
pub mod lane;
pub mod late;
pub mod lease;
pub mod order;
pub mod outcome;
pub mod reach;
pub mod rebuild;
pub mod select;
pub mod wait;

use std::fmt;
use std::str::FromStr;

use crate::clock::Millis;

/// Where a build stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Waits for an agent.
    Queued,
    /// An agent has it, until it brings a result or its lease lapses.
    Building,
    /// There is a result.
    Built,
    /// A person wanted it no more: nobody gets it, and whoever has it is told to stop.
    Cancelled,
}

impl State {
    /// All of them, in the order of a build's life.
    pub const ALL: [Self; 4] = [Self::Queued, Self::Building, Self::Built, Self::Cancelled];

    /// The one text form: in the store, the API and the pages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Building => "building",
            Self::Built => "built",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing will happen to the build any more unless somebody asks for a rebuild.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Built | Self::Cancelled)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not one of queued, building, built, cancelled")]
pub struct UnknownState(pub String);

impl FromStr for State {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|s| s.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
}

/// Whether a build that is with an agent is to be given to another one.
#[must_use]
pub fn lapsed(state: State, lease_until: Option<Millis>, now: Millis) -> bool {
    // Without a lease (it cannot be, the store writes both at once) it would never come back: treat as lapsed.
    state == State::Building && lease_until.is_none_or(|until| until <= now)
}

/// What asking for a rebuild does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebuild {
    /// It is in the queue anyway.
    AlreadyQueued,
    /// It goes back to the queue once its result is there.
    AfterThisOne,
    /// It is queued now.
    Queue,
}

/// What asking for a rebuild does to a build in this state.
#[must_use]
pub fn rebuild(state: State) -> Rebuild {
    match state {
        State::Queued => Rebuild::AlreadyQueued,
        State::Building => Rebuild::AfterThisOne,
        State::Built | State::Cancelled => Rebuild::Queue,
    }
}

/// What cancelling does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancel {
    /// It leaves the queue, or its agent is told to stop; a rebuild that was asked for meanwhile is off, too.
    Now,
    /// It was cancelled before.
    Already,
    /// There is a result: nothing is left to be cancelled.
    TooLate,
}

/// What cancelling does to a build in this state.
#[must_use]
pub fn cancel(state: State) -> Cancel {
    match state {
        State::Queued | State::Building => Cancel::Now,
        State::Cancelled => Cancel::Already,
        State::Built => Cancel::TooLate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases() {
        let now = Millis(1000);
        for (state, until, expected) in [
            (State::Building, Some(Millis(1001)), false),
            (State::Building, Some(Millis(1000)), true),
            (State::Building, Some(Millis(0)), true),
            (State::Building, None, true),
            (State::Queued, Some(Millis(0)), false),
            (State::Built, Some(Millis(0)), false),
            (State::Built, None, false),
            (State::Cancelled, Some(Millis(0)), false),
            (State::Cancelled, None, false),
        ] {
            assert_eq!(lapsed(state, until, now), expected, "{state} {until:?}");
        }
    }

    #[test]
    fn what_is_over_can_be_rebuilt_and_what_is_not_can_be_cancelled() {
        for (state, cancelled, rebuilt) in [
            (State::Queued, Cancel::Now, Rebuild::AlreadyQueued),
            (State::Building, Cancel::Now, Rebuild::AfterThisOne),
            (State::Built, Cancel::TooLate, Rebuild::Queue),
            (State::Cancelled, Cancel::Already, Rebuild::Queue),
        ] {
            assert_eq!((cancel(state), rebuild(state)), (cancelled, rebuilt));
            assert_eq!(state.is_over(), rebuilt == Rebuild::Queue, "{state}");
        }
    }

    #[test]
    fn states_have_one_text_form() {
        for state in State::ALL {
            assert_eq!(state.to_string().parse(), Ok(state));
        }
        assert!("Queued".parse::<State>().is_err());
    }
}
