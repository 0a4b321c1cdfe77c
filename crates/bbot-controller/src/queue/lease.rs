//! Leases: how long an agent has its task, what a renewal does, and what follows when a lease lapses.
//!
//! An agent of ours renews its lease every quarter of it, so one that is gone is noticed within a minute. An agent
//! of the original never renews: it has hours. Either way a lapse is a guess: the agent may only be slow to be heard.
//! So its session stays good for a late result until another one is there, and a renewal takes the task back where
//! nobody else has got it yet.

use std::time::Duration;

use super::era::Peer;
use super::lane::Lane;
use super::outcome::{Again, INTERRUPTS, SessionState};
use crate::clock::Millis;

/// The lease of an agent of ours when the operator says nothing else.
pub const LEASE: Duration = Duration::from_secs(60);

/// An agent is asked to renew so many times within one lease: three may be lost.
const RENEWALS: u32 = 4;

/// For how long a task is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// From now until it lapses.
    pub lease: Duration,
    /// When the agent should renew; none where it does not know how.
    pub renew: Option<Duration>,
}

/// The terms for an agent: `lease` for one of ours, which renews; `result_timeout` for a stranger.
#[must_use]
pub fn terms(peer: Peer, lease: Duration, result_timeout: Duration) -> Terms {
    match peer {
        Peer::Ours => Terms {
            lease,
            renew: Some(lease / RENEWALS),
        },
        Peer::Stranger => Terms {
            lease: result_timeout,
            renew: None,
        },
    }
}

/// What a renewal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The lease is longer now.
    Renew,
    /// It had lapsed, but nobody else has got the task: the agent has it again.
    Revive,
    /// The task is with somebody else, or done: the agent can stop.
    Over,
    /// There never was such a session.
    Unknown,
}

/// What a renewal of this session does.
#[must_use]
pub fn renew(session: SessionState) -> Renewal {
    use super::State;
    match session {
        SessionState::Current(State::Building) => Renewal::Renew,
        SessionState::Current(State::Queued) => Renewal::Revive,
        SessionState::Unknown => Renewal::Unknown,
        SessionState::Current(State::Built | State::Cancelled)
        | SessionState::Cancelled
        | SessionState::Answered
        | SessionState::GivenBack
        | SessionState::Overtaken
        | SessionState::Superseded => Renewal::Over,
    }
}

/// Until when a renewal at this time makes a lease last; `None` when its time is over for good, at `latest`. An agent
/// that hangs, or lies, must not keep its task for ever by saying that it lives.
#[must_use]
pub fn renewed_until(now: Millis, lease: Duration, latest: Option<Millis>) -> Option<Millis> {
    let until = now.plus(lease);
    match latest {
        Some(latest) if latest <= now => None,
        Some(latest) => Some(until.min(latest)),
        None => Some(until),
    }
}

/// What follows when the lease of a build lapses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lapse {
    /// It is queued again, at its old place.
    Requeue,
    /// It came back without a result too often, or is handed out once only: it ends as `abort`.
    GiveUp,
}

/// How often a task is handed out that comes back without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tries {
    /// Until that is too often.
    Many,
    /// Once: a person waits for that one, and is gone when the next begins.
    Once,
}

impl Tries {
    /// How often the task of a build in this lane is handed out.
    #[must_use]
    pub fn of(lane: &Lane) -> Self {
        if lane.interactive {
            Self::Once
        } else {
            Self::Many
        }
    }
}

/// What follows when the lease of a build lapses that came back `interrupts` and `lapses` times before, in a row.
/// A task that ends every agent that takes it would go round for ever.
#[must_use]
pub fn lapse(interrupts: u32, lapses: u32, again: Again, tries: Tries) -> Lapse {
    let returns = interrupts.saturating_add(lapses).saturating_add(1);
    match again {
        Again::No if tries == Tries::Once => Lapse::GiveUp,
        Again::No if returns >= INTERRUPTS => Lapse::GiveUp,
        // Whoever asks for a rebuild gets it tried once more.
        Again::No | Again::Yes => Lapse::Requeue,
    }
}

/// Whether the agent has shown that the task has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmed {
    /// It has renewed at least once.
    Yes,
    /// Nothing was heard of it since the task was handed out.
    No,
}

/// Whether a task whose answer never left this computer is taken back at once: only while nothing shows that it has
/// arrived after all.
#[must_use]
pub fn takes_back(session: SessionState, confirmed: Confirmed) -> bool {
    session == SessionState::Current(super::State::Building) && confirmed == Confirmed::No
}

/// So often a controller that runs says so in the store, while something is being built.
#[must_use]
pub fn beat(lease: Duration) -> Duration {
    (lease / BEATS).max(Duration::from_millis(1))
}

/// It does so this many times within one lease: what is not known better is at most one of them.
const BEATS: u32 = 12;

/// A lease's end after a start of a controller, when one was `seen` to run last: the time in which none did does not count, since nobody
/// could renew. Never more than that, so that starts without end, each after less than a lease, keep no task with an agent that is
/// gone; and never more than a whole lease from now.
#[must_use]
pub fn after_restart(until: Millis, seen: Millis, now: Millis, lease: Duration) -> Millis {
    // It may have run for almost one more beat.
    let away = seen.plus(beat(lease)).until(now);
    until.max(until.plus(away).min(now.plus(lease)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::State;
    use proptest::prelude::*;

    const SESSIONS: [SessionState; 10] = [
        SessionState::Unknown,
        SessionState::Answered,
        SessionState::GivenBack,
        SessionState::Overtaken,
        SessionState::Superseded,
        SessionState::Current(State::Queued),
        SessionState::Current(State::Building),
        SessionState::Current(State::Built),
        SessionState::Current(State::Cancelled),
        SessionState::Cancelled,
    ];

    #[test]
    fn strangers_have_long_leases_and_are_not_asked_to_renew() {
        let (lease, timeout) = (Duration::from_secs(60), Duration::from_secs(10_800));
        let ours = terms(Peer::Ours, lease, timeout);
        assert_eq!((ours.lease, ours.renew), (lease, Some(lease / 4)));
        let stranger = terms(Peer::Stranger, lease, timeout);
        assert_eq!((stranger.lease, stranger.renew), (timeout, None));
    }

    #[test]
    fn renewals() {
        let expected = [
            Renewal::Unknown,
            Renewal::Over,
            Renewal::Over,
            Renewal::Over,
            Renewal::Over,
            Renewal::Revive,
            Renewal::Renew,
            Renewal::Over,
            Renewal::Over,
            Renewal::Over,
        ];
        for (session, expected) in SESSIONS.into_iter().zip(expected) {
            assert_eq!(renew(session), expected, "{session:?}");
        }
    }

    #[test]
    fn nobody_renews_for_ever() {
        let lease = Duration::from_millis(60);
        for (now, latest, expected) in [
            (0, None, Some(60)),
            (0, Some(1000), Some(60)),
            (950, Some(1000), Some(1000)),
            (999, Some(1000), Some(1000)),
            (1000, Some(1000), None),
            (2000, Some(1000), None),
        ] {
            let until = renewed_until(Millis(now), lease, latest.map(Millis));
            assert_eq!(until, expected.map(Millis), "{now} {latest:?}");
        }
    }

    #[test]
    fn a_task_comes_back_a_bounded_number_of_times() {
        for (interrupts, lapses, expected) in [
            (0, 0, Lapse::Requeue),
            (3, 0, Lapse::Requeue),
            (1, 2, Lapse::Requeue),
            (0, 4, Lapse::GiveUp),
            (2, 2, Lapse::GiveUp),
            (4, 0, Lapse::GiveUp),
            (u32::MAX, u32::MAX, Lapse::GiveUp),
        ] {
            let lapse = |again, tries| lapse(interrupts, lapses, again, tries);
            assert_eq!(lapse(Again::No, Tries::Many), expected);
            assert_eq!(lapse(Again::Yes, Tries::Many), Lapse::Requeue);
            assert_eq!(lapse(Again::No, Tries::Once), Lapse::GiveUp);
            assert_eq!(lapse(Again::Yes, Tries::Once), Lapse::Requeue);
        }
    }

    #[test]
    fn only_a_task_that_nobody_has_confirmed_is_taken_back() {
        for session in SESSIONS {
            assert!(!takes_back(session, Confirmed::Yes), "{session:?}");
            assert_eq!(
                takes_back(session, Confirmed::No),
                session == SessionState::Current(State::Building),
                "{session:?}"
            );
        }
    }

    #[test]
    fn the_time_without_a_controller_is_nobodys_fault() {
        let lease = Duration::from_secs(60);
        assert_eq!(beat(lease), Duration::from_secs(5));
        assert!(!beat(Duration::ZERO).is_zero());
        for (until, seen, now, expected) in [
            // It has run until just now, or another one does.
            (150, 100, 100, 150),
            (150, 100, 105, 150),
            (150, 200, 105, 150),
            // None did for a while: a beat less of it, since that may be wrong.
            (150, 100, 110, 155),
            (150, 100, 200, 245),
            // A whole lease at most.
            (159, 100, 200, 254),
            (160, 100, 1000, 1055),
            (100, 0, 1000, 1060),
            // One that is longer than that stays so.
            (2000, 0, 1000, 2000),
            // What had lapsed before has lapsed.
            (90, 100, 110, 95),
        ] {
            let seconds = |n: i64| Millis(n * 1000);
            assert_eq!(
                after_restart(seconds(until), seconds(seen), seconds(now), lease),
                seconds(expected),
                "{until} {seen} {now}"
            );
        }
    }

    proptest! {
        #[test]
        fn starts_without_end_keep_no_task_with_an_agent_that_is_gone(
            times in proptest::collection::vec((0_i64..70_000, 0_i64..70_000), 1..60)
        ) {
            // A start says that it runs; no beat comes before the next crash where that is soon.
            let (lease, start) = (Duration::from_secs(60), Millis(0));
            let every = i64::try_from(beat(lease).as_millis()).unwrap();
            let (mut now, mut seen, mut until, mut ran) = (start, start, start.plus(lease), 0);
            for (up, down) in times {
                ran += up;
                seen = Millis(now.0 + up / every * every).max(seen);
                now = Millis(now.0 + up + down);
                let lapsed = ran >= 60_000;
                until = after_restart(until, seen, now, lease);
                seen = now;
                prop_assert!(!lapsed || until <= now, "{until:?} at {now:?} after {ran} ms");
                // Nor is it cut short.
                prop_assert!(until.0 >= 60_000);
            }
        }

        #[test]
        fn whoever_may_renew_may_bring_a_result(index in 0_usize..10) {
            // Else an agent would be told to go on with something that nobody wants.
            use crate::queue::outcome::{Facts, Identity, Machine, Proof, Skip, Verdict, decide};
            let session = SESSIONS[index];
            let facts = Facts {
                session,
                proof: Proof::Good,
                identity: Identity::Same,
                status: bbot_manifest::Status::Success,
                skip: Skip::NotOffered,
                again: Again::No,
                tries: Tries::Many,
                machine: Machine::Unmentioned,
                interrupts: 0,
                lapses: 0,
            };
            if matches!(renew(session), Renewal::Renew | Renewal::Revive) {
                prop_assert_eq!(decide(facts), Verdict::Keep(State::Built));
            }
        }

        #[test]
        fn lapses_end(returns in 0_u32..20) {
            let ends = (0..returns).any(|n| lapse(0, n, Again::No, Tries::Many) == Lapse::GiveUp);
            prop_assert_eq!(ends, returns >= INTERRUPTS);
        }
    }
}
