//! Which result is posted next: a state machine without I/O and without a clock.
//!
//! ```text
//!             +-- fresh, in order --+        post one at a time
//!   added --> |                     | --> each controller (origin) --> taken, refused: gone
//!             +-- behind -----------+                             \--> again: see below
//! ```
//!
//! Controllers know nothing of each other: one that drops packets holds up nobody
//! else. At one controller the results go in the order in which they were added, one
//! at a time.
//!
//! - It cannot be reached: it is left alone for a growing pause, and the order stays.
//! - It answers that it does not take this result now (401, 503, ...): the same result
//!   again after a growing pause, and after [`STEP_BEHIND`] such answers the result
//!   steps behind the others, which a poisonous one may not block. From then on it has
//!   pauses of its own.
//!
//! A stranger's task is given to another agent after three hours, so its result is given
//! up when the controller has answered so for as long ([`PATIENCE`]). Time in which it
//! cannot be reached does not count: it may have been away, and its queue with it. A
//! controller of ours says when it does not want a result; until it does the result is
//! kept.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::controller::Kin;

/// Time since the agent's start, on a clock that never jumps.
pub type Time = Duration;

/// For how long a stranger may answer that it does not take a result now. The original's
/// controller gives a task up after three hours and lets another agent do it.
pub const PATIENCE: Duration = Duration::from_secs(3 * 60 * 60);

/// After how many answers that it is not taken now a result steps behind the others.
pub const STEP_BEHIND: u32 = 3;

/// The longest pause between two tries at a controller of ours that does not take a result
/// now: it wants to know.
const LONGEST_OURS: Duration = Duration::from_secs(60);

/// The same at a stranger's.
const LONGEST: Duration = Duration::from_secs(600);

/// The longest pause while a controller of ours cannot be reached: to try costs next to
/// nothing, and it may be back at any moment.
const LONGEST_AWAY_OURS: Duration = Duration::from_secs(15);

/// The same of a stranger's.
const LONGEST_AWAY: Duration = Duration::from_secs(60);

/// A controller that was tried so shortly before the agent's end is not tried again.
const JUST_NOW: Duration = Duration::from_millis(50);

/// A result, by the order in which it was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64);

/// What is planned with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Scheme, host and port of where it goes.
    pub origin: String,
    /// Whose controller that is.
    pub kin: Kin,
    /// How old it is when it is added, for people: one of an earlier life of the agent is.
    pub age: Duration,
    /// Not before this time, or [`Plan::open`]: something goes first.
    pub gate: Option<Time>,
}

/// What became of a post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The controller has it.
    Taken,
    /// The controller will never take it, or there is nothing that can be posted.
    Refused,
    /// The controller has answered, and does not take it now.
    Busy,
    /// Nothing was sent, by a fault of the host's that may pass.
    Unsent,
    /// There was no answer.
    Unreachable,
}

/// What is to be done with a result that was posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is done with: forget it.
    Forget,
    /// It is not wanted: keep it for a person.
    SetAside,
    /// A stranger has not taken it for too long: keep it for a person.
    GivenUp {
        /// For how long it has answered so.
        after: Duration,
    },
    /// It will be posted again, not before this time.
    Again {
        /// When.
        at: Time,
    },
}

/// A controller, as a person sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// Scheme, host and port.
    pub origin: String,
    /// How many results wait for it.
    pub waiting: usize,
    /// How many of them have stepped behind the others.
    pub behind: usize,
    /// How often in a row it has not taken what it was sent.
    pub failures: u32,
    /// When the next post is due; none while one is on its way.
    pub next: Option<Time>,
}

/// The results that wait, and when which is posted.
#[derive(Debug)]
pub struct Plan {
    origins: BTreeMap<String, Origin>,
    /// Where each is.
    homes: BTreeMap<Id, String>,
    random: StdRng,
}

#[derive(Debug, Default)]
struct Origin {
    waiting: BTreeMap<Id, Waiting>,
    in_flight: Option<Id>,
    /// When the last post to it ended.
    last_try: Option<Time>,
    /// When it last answered a post, unless it could not be reached since.
    heard: Option<Time>,
    /// For how long it has been answering posts, in all.
    answering: Duration,
    /// It has answered something else since the last post to it ended.
    answers_others: bool,
    /// Failures in a row to reach it, and until when it is left alone for them.
    unreached: Pause,
    /// The same for answers to results that are in order ...
    fresh: Pause,
    /// ... and to those that have stepped behind.
    behind: Pause,
}

#[derive(Debug, Default, Clone, Copy)]
struct Pause {
    failures: u32,
    until: Time,
}

#[derive(Debug)]
struct Waiting {
    kin: Kin,
    age: Duration,
    added: Time,
    gate: Option<Time>,
    /// How often it was answered that it is not taken now, or it could not be sent.
    busy: u32,
    /// What [`Origin::answering`] was at the first such answer.
    since: Option<Duration>,
    /// When one that has stepped behind is due.
    due: Time,
}

impl Waiting {
    fn is_behind(&self) -> bool {
        self.busy >= STEP_BEHIND
    }
}

impl Origin {
    /// When which result is due; the one that has waited the longest of those that are.
    fn first(&self) -> Option<(Time, Id)> {
        if self.in_flight.is_some() {
            return None;
        }
        let mut first: Option<(Time, Time, Id)> = None;
        let mut has_fresh = false;
        for (id, entry) in &self.waiting {
            let gate = entry.gate.unwrap_or_default();
            let (wanted, lane) = if entry.is_behind() {
                (entry.due, self.behind.until)
            } else if has_fresh && gate == Time::ZERO {
                continue;
            } else {
                has_fresh |= gate == Time::ZERO;
                (entry.added.max(gate), self.fresh.until)
            };
            let at = wanted.max(gate).max(lane).max(self.unreached.until);
            // Of those that are due at one time the one goes that was wanted first.
            let key = (at, wanted, *id);
            if first.is_none_or(|f| key < f) {
                first = Some(key);
            }
        }
        first.map(|(at, _, id)| (at, id))
    }

    /// Of what is due now, the one that has been wanted the longest.
    fn due(&self, now: Time) -> Option<Id> {
        if self.in_flight.is_some() || self.unreached.until > now {
            return None;
        }
        let is_open = |entry: &Waiting| entry.gate.is_none_or(|gate| gate <= now);
        let fresh = self
            .waiting
            .iter()
            .filter(|(_, e)| !e.is_behind() && is_open(e) && self.fresh.until <= now)
            .map(|(id, e)| (e.added, *id))
            .next();
        let behind = self
            .waiting
            .iter()
            .filter(|(_, e)| e.is_behind() && is_open(e) && self.behind.until <= now)
            .filter(|(_, e)| e.due <= now)
            .map(|(id, e)| (e.due, *id))
            .min();
        fresh.into_iter().chain(behind).min().map(|(_, id)| id)
    }
}

impl Plan {
    /// Nothing waits. Pauses vary with the seed, so that a hundred agents do not all come
    /// back at once to a controller that was away.
    pub fn new(seed: u64) -> Self {
        Self {
            origins: BTreeMap::new(),
            homes: BTreeMap::new(),
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// A result waits. One that is there already stays as it is.
    pub fn add(&mut self, id: Id, entry: Entry, now: Time) {
        if self.homes.contains_key(&id) {
            return;
        }
        self.homes.insert(id, entry.origin.clone());
        let waiting = Waiting {
            kin: entry.kin,
            age: entry.age,
            added: now,
            gate: entry.gate,
            busy: 0,
            since: None,
            due: now,
        };
        let origin = self.origins.entry(entry.origin).or_default();
        origin.waiting.insert(id, waiting);
    }

    /// What goes before this result has gone.
    pub fn open(&mut self, id: Id) {
        if let Some(entry) = self.entry(id) {
            entry.gate = None;
        }
    }

    /// The result that is to be posted now, one of each controller at a time. It is on
    /// its way until [`Plan::posted`] is called for it.
    pub fn next(&mut self, now: Time) -> Option<Id> {
        let origins = self.origins.values_mut();
        let (origin, id) = origins
            .filter_map(|origin| origin.due(now).map(|id| (origin, id)))
            .min_by_key(|(_, id)| *id)?;
        origin.in_flight = Some(id);
        Some(id)
    }

    /// A post has ended.
    pub fn posted(&mut self, id: Id, verdict: Verdict, now: Time) -> Fate {
        let Some(name) = self.homes.get(&id).cloned() else {
            return Fate::Forget;
        };
        let Some(origin) = self.origins.get_mut(&name) else {
            return Fate::Forget;
        };
        if origin.in_flight == Some(id) {
            origin.in_flight = None;
        }
        origin.last_try = Some(now);
        // One that answers everything else and this never is not away: it is this result's fault,
        // which must not hold up the others for ever.
        let verdict = match verdict {
            Verdict::Unreachable if origin.answers_others => Verdict::Busy,
            verdict => verdict,
        };
        origin.answers_others = false;
        let Some(entry) = origin.waiting.get_mut(&id) else {
            return Fate::Forget;
        };
        let was_behind = entry.is_behind();
        let longest = match (verdict, entry.kin) {
            (Verdict::Unreachable, Kin::Ours) => LONGEST_AWAY_OURS,
            (Verdict::Unreachable, Kin::Stranger) => LONGEST_AWAY,
            (_, Kin::Ours) => LONGEST_OURS,
            (_, Kin::Stranger) => LONGEST,
        };
        match verdict {
            Verdict::Unreachable => origin.heard = None,
            // Nothing is known of the controller.
            Verdict::Unsent => {}
            Verdict::Taken | Verdict::Refused | Verdict::Busy => {
                let before = origin.heard.replace(now).unwrap_or(now);
                origin.answering += now.saturating_sub(before);
                origin.unreached = Pause::default();
            }
        }
        let mut refused_for = Duration::ZERO;
        let lane = match verdict {
            Verdict::Taken | Verdict::Refused => {
                let lane = if was_behind {
                    &mut origin.behind
                } else {
                    &mut origin.fresh
                };
                *lane = Pause::default();
                origin.waiting.remove(&id);
                if verdict == Verdict::Taken && was_behind {
                    // It was not this result's fault, so it may not be the others'.
                    for other in origin.waiting.values_mut() {
                        other.due = other.due.min(now);
                    }
                }
                self.forget(id, &name);
                return match verdict {
                    Verdict::Taken => Fate::Forget,
                    _ => Fate::SetAside,
                };
            }
            Verdict::Unreachable => &mut origin.unreached,
            Verdict::Busy | Verdict::Unsent => {
                if verdict == Verdict::Busy {
                    let since = *entry.since.get_or_insert(origin.answering);
                    refused_for = origin.answering.saturating_sub(since);
                }
                entry.busy = entry.busy.saturating_add(1);
                let pause = pause_after(entry.busy, longest, &mut self.random);
                entry.due = now + pause;
                if was_behind {
                    &mut origin.behind
                } else {
                    &mut origin.fresh
                }
            }
        };
        lane.failures = lane.failures.saturating_add(1);
        // The first of a burst tells whether the controller is well; those that step
        // behind have each their own pause, and together this one.
        let pause = pause_after(lane.failures, longest, &mut self.random);
        lane.until = now + pause;
        let mut at = lane.until;
        if verdict != Verdict::Unreachable && entry.is_behind() {
            if !was_behind {
                origin.fresh = Pause::default();
            }
            at = entry.due.max(origin.behind.until);
        }
        if entry.kin == Kin::Stranger && refused_for > PATIENCE {
            origin.waiting.remove(&id);
            self.forget(id, &name);
            return Fate::GivenUp { after: refused_for };
        }
        Fate::Again { at }
    }

    /// A controller has answered something else: what waits for it need not go on
    /// waiting for it to come back.
    pub fn reached(&mut self, origin: &str) {
        if let Some(origin) = self.origins.get_mut(origin) {
            origin.unreached = Pause::default();
            origin.answers_others = true;
        }
    }

    /// The agent is about to end: every controller gets one more try now, unless it has
    /// just had one.
    pub fn hurry(&mut self, now: Time) {
        for origin in self.origins.values_mut() {
            if origin.last_try.is_some_and(|at| now < at + JUST_NOW) {
                continue;
            }
            for pause in [&mut origin.unreached, &mut origin.fresh, &mut origin.behind] {
                pause.until = pause.until.min(now);
            }
            for entry in origin.waiting.values_mut() {
                entry.due = entry.due.min(now);
            }
        }
    }

    /// When [`Plan::next`] is to be asked again, if nothing happens before.
    pub fn deadline(&self) -> Option<Time> {
        let first = self.origins.values().filter_map(Origin::first);
        first.map(|(at, _)| at).min()
    }

    /// Whether nothing is on its way, is due now, or waits for something that goes first.
    pub fn is_idle(&self, now: Time) -> bool {
        self.origins.values().all(|origin| {
            origin.in_flight.is_none()
                && origin.due(now).is_none()
                && origin
                    .waiting
                    .values()
                    .all(|e| e.gate.is_none_or(|g| g <= now))
        })
    }

    /// How many results wait.
    pub fn len(&self) -> usize {
        self.homes.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.homes.is_empty()
    }

    /// The age of the oldest result that waits.
    pub fn oldest(&self, now: Time) -> Option<Duration> {
        let entries = self.origins.values().flat_map(|o| o.waiting.values());
        entries.map(|e| e.age + now.saturating_sub(e.added)).max()
    }

    /// The controllers that results wait for.
    pub fn ways(&self) -> Vec<Way> {
        let way = |(name, origin): (&String, &Origin)| Way {
            origin: name.clone(),
            waiting: origin.waiting.len(),
            behind: origin.waiting.values().filter(|e| e.is_behind()).count(),
            failures: [origin.unreached, origin.fresh, origin.behind]
                .map(|p| p.failures)
                .into_iter()
                .max()
                .unwrap_or_default(),
            next: origin.first().map(|(at, _)| at),
        };
        self.origins.iter().map(way).collect()
    }

    fn entry(&mut self, id: Id) -> Option<&mut Waiting> {
        let name = self.homes.get(&id)?;
        self.origins.get_mut(name)?.waiting.get_mut(&id)
    }

    fn forget(&mut self, id: Id, name: &str) {
        self.homes.remove(&id);
        if self.origins.get(name).is_some_and(|o| o.waiting.is_empty()) {
            self.origins.remove(name);
        }
    }
}

/// How long to wait after this many failures in a row (from 1): 1, 2, 4 ... seconds, at
/// most `longest`, and a fifth more or less.
pub fn pause_after(failures: u32, longest: Duration, random: &mut StdRng) -> Duration {
    let seconds = 1_u64 << failures.saturating_sub(1).min(20);
    let pause = Duration::from_secs(seconds).min(longest);
    pause.mul_f64(random.gen_range(0.8..=1.2))
}

#[cfg(test)]
mod tests;
