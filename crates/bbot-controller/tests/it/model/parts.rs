//! The model: builds, sessions and turns, and what happens to them.

use std::collections::BTreeMap;

use bbot_controller::clock::Millis;
use bbot_controller::queue::State;
use bbot_controller::queue::order::{self, Class, Priority};
use bbot_controller::queue::outcome::INTERRUPTS;
use bbot_manifest::Status;
use proptest::prelude::*;

use crate::store::asker;

/// How long a lease lasts in the model.
pub(super) const LEASE: i64 = 10;

/// How long a controller may have run since it last said so.
pub(super) const BEAT: i64 = 1;

/// How long it can be renewed at most.
pub(super) const LATEST: i64 = 35;

/// The lanes of the model: the plain one, one of a service, and an interactive one.
pub(super) const LANES: [&str; 3] = ["", r#"{"service":"ci"}"#, r#"{"interactive":true}"#];

/// An agent that serves all.
const ALL: &[usize] = &[0, 1, 2];

#[derive(Debug, Clone)]
pub(super) enum Event {
    Submit {
        who: &'static str,
        package: &'static str,
        version: u8,
        priority: i64,
        lane: usize,
    },
    /// An agent asks for a task, one that serves these of the [`LANES`].
    Ask {
        lanes: &'static [usize],
    },
    /// The result of one of the sessions so far, whatever became of it.
    Result {
        session: usize,
        status: Status,
    },
    /// The agent of one of the sessions so far says that it lives.
    Renew {
        session: usize,
    },
    /// The answer to one of the sessions so far could not be sent.
    TakeBack {
        session: usize,
    },
    /// The controller was away for a while.
    Restart {
        time: i64,
    },
    Rebuild {
        who: &'static str,
        build: usize,
    },
    Cancel {
        build: usize,
    },
    /// All that one submission has left. (Each has one build, of the same number.)
    CancelSubmission {
        build: usize,
    },
    Pass {
        time: i64,
    },
}

pub(super) fn event() -> impl Strategy<Value = Event> {
    let status = proptest::sample::select(vec![
        Status::Success,
        Status::Error,
        Status::Abnormal,
        Status::Interrupt,
    ]);
    let who = || proptest::sample::select(vec!["me", "you"]);
    let package = proptest::sample::select(vec!["p", "q"]);
    let lanes = proptest::sample::select(vec![ALL, &[0, 1], &[0], &[2], &[2, 1]]);
    // Leases lapse, and builds become old.
    let time = prop_oneof![3 => 1_i64..12, 1 => 3_600_000_i64..100_000_000];
    prop_oneof![
        2 => (who(), package, 1_u8..12, -2_i64..=2, 0_usize..3).prop_map(|(who, package, version, priority, lane)| {
            Event::Submit { who, package, version, priority, lane }
        }),
        3 => lanes.prop_map(|lanes| Event::Ask { lanes }),
        3 => (0_usize..8, status).prop_map(|(session, status)| Event::Result { session, status }),
        2 => (0_usize..8).prop_map(|session| Event::Renew { session }),
        1 => (0_usize..8).prop_map(|session| Event::TakeBack { session }),
        1 => (0_i64..30).prop_map(|time| Event::Restart { time }),
        2 => (who(), 0_usize..4).prop_map(|(who, build)| Event::Rebuild { who, build }),
        1 => (0_usize..4).prop_map(|build| Event::Cancel { build }),
        1 => (0_usize..4).prop_map(|build| Event::CancelSubmission { build }),
        2 => time.prop_map(|time| Event::Pass { time }),
    ]
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Model {
    pub(super) package: &'static str,
    pub(super) version: String,
    pub(super) lane: usize,
    pub(super) state: State,
    pub(super) place: i64,
    pub(super) class: Class,
    pub(super) priority: Priority,
    pub(super) submitter: &'static str,
    pub(super) queued: i64,
    pub(super) again_place: Option<(i64, &'static str)>,
    pub(super) session: Option<usize>,
    pub(super) until: i64,
    pub(super) again: bool,
    pub(super) results: i64,
    pub(super) status: Option<Status>,
    pub(super) interrupts: u32,
    pub(super) lapses: u32,
}

impl Model {
    /// Whether it ends when it comes back without a result.
    pub(super) fn is_given_up(&self) -> bool {
        let once = LANES[self.lane].contains("interactive");
        !self.again && (once || self.interrupts + self.lapses + 1 >= INTERRUPTS)
    }

    /// It waits again without a result: as what was asked for meanwhile.
    pub(super) fn come_back(&mut self) {
        self.state = State::Queued;
        if let (true, Some((place, who))) = (self.again, self.again_place) {
            (self.class, self.submitter) = (Class::Forced, who);
            self.place = self.place.min(place);
        }
    }
}

/// Sessions of a build whose lease has lapsed are over.
pub(super) fn end_lapsed(sessions: &mut [Session], build: i64) {
    for session in sessions {
        if session.build == build && session.end == End::Lapsed {
            session.end = End::Over;
        }
    }
}

/// What the model knows of a session.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum End {
    /// It is the build's session.
    Open,
    /// Its lease has lapsed: a result is taken.
    Lapsed,
    GivenBack,
    Answered,
    Over,
    /// Its build was cancelled.
    Cancelled,
}

#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) build: i64,
    pub(super) end: End,
    pub(super) confirmed: bool,
    pub(super) latest: i64,
}

pub(super) type Turns = BTreeMap<(&'static str, Class), Millis>;

/// The place that the formula gives by the next turn.
pub(super) fn turn(
    turns: &mut Turns,
    who: &'static str,
    class: Class,
    priority: Priority,
    now: i64,
) -> i64 {
    let key = (who, class);
    let share = asker(who).share;
    let (turn, after) = order::turn(Millis(now), turns.get(&key).copied(), share);
    turns.insert(key, after);
    order::place(turn, class, priority)
}

/// Puts a build into the queue at this place, or at that of another version.
pub(super) fn enqueue(
    model: &mut BTreeMap<i64, Model>,
    id: i64,
    who: &'static str,
    class: Class,
    place: i64,
    now: i64,
) {
    let build = model.get_mut(&id).unwrap();
    (build.submitter, build.class, build.place) = (who, class, place);
    let (of, lane) = (build.package, build.lane);
    let mut group: Vec<&mut Model> = model
        .iter_mut()
        .filter(|(other, m)| {
            let waits = m.state == State::Queued
                && (m.package, m.submitter, m.class, m.lane) == (of, who, class, lane)
                && order::is_exchanged(Millis(m.queued), Millis(now));
            **other == id || waits
        })
        .map(|(_, m)| m)
        .collect();
    let builds: Vec<(i64, &str)> = group
        .iter()
        .map(|m| (m.place, m.version.as_str()))
        .collect();
    for (place, build) in order::by_version(&builds).into_iter().zip(&mut group) {
        build.place = place;
    }
}

pub(super) const SUBMIT: Event = Event::Submit {
    who: "me",
    package: "p",
    version: 1,
    priority: 0,
    lane: 0,
};

pub(super) const ASK: Event = Event::Ask { lanes: ALL };

pub(super) const REBUILD: Event = Event::Rebuild {
    who: "you",
    build: 0,
};
pub(super) fn cancel(
    model: &mut BTreeMap<i64, Model>,
    sessions: &mut [Session],
    turns: &mut Turns,
    id: i64,
    now: i64,
) {
    let Some(m) = model.get_mut(&id).filter(|m| !m.state.is_over()) else {
        return;
    };
    let waits = (m.state == State::Queued).then_some((m.submitter, m.class, m.place));
    let again = m.again_place.filter(|_| m.again);
    let again = again.map(|(place, who)| (who, Class::Forced, place));
    let mut cancelled: BTreeMap<_, Vec<Millis>> = BTreeMap::new();
    for (who, class, place) in waits.into_iter().chain(again) {
        let turn = order::turn_of(place, class, m.priority);
        cancelled.entry((who, class)).or_default().push(turn);
    }
    for (key, cancelled) in cancelled {
        let next = turns.get_mut(&key).unwrap();
        *next = order::given_back(*next, &cancelled, Millis(now), asker("me").share);
    }
    (m.state, m.session, m.again) = (State::Cancelled, None, false);
    (m.interrupts, m.lapses) = (0, 0);
    for s in sessions.iter_mut().filter(|s| s.build == id) {
        if matches!(s.end, End::Open | End::Lapsed) {
            s.end = End::Cancelled;
        }
    }
}
