//! The roll of agents: who has been heard of since the start, and when. In memory: who is there says so again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Millis;
use crate::dispatch::abilities::Abilities;
use crate::queue::failure::{Failures, Others};
use crate::queue::lane::Lane;
use crate::queue::wait::{self, Ability, Code, Hold, Presence};

/// Names come from agents; so many are remembered, those that were heard of last: more than a large farm has.
const LIMIT: usize = 20_000;

/// An agent that was not heard of for so long is silent: those that hold no request ask once a minute.
const SILENT: Duration = Duration::from_secs(150);

/// What an agent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doing {
    /// It has at least one task.
    Building,
    /// It has none and asks for one.
    Asking,
    /// It has none, and was not heard of for a while.
    Silent,
}

impl Doing {
    /// The one text form, in the API and on the page.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Asking => "asking",
            Self::Silent => "silent",
        }
    }
}

/// What an agent with so many tasks does that was heard of `since` ago and has so many requests waiting here.
pub(crate) fn doing(tasks: usize, asking: usize, since: Option<Duration>) -> Doing {
    if tasks > 0 {
        Doing::Building
    } else if asking > 0 || since.is_some_and(|s| s < SILENT) {
        Doing::Asking
    } else {
        Doing::Silent
    }
}

/// What an agent says of itself with a request for a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Says {
    /// A person has drained it there: it takes no tasks.
    pub(crate) drained: bool,
    /// By how many seconds its clock is ahead of ours, where it says what time it is.
    pub(crate) ahead: Option<i64>,
}

/// Clocks that are farther apart than this, in seconds, are told of.
pub(crate) const CLOCKS: u64 = 10;

impl Says {
    /// By how many seconds the agent's clock is ahead of ours, if that is worth a word.
    pub(crate) fn clock_ahead(self) -> Option<i64> {
        self.ahead.filter(|ahead| ahead.unsigned_abs() > CLOCKS)
    }
}

/// What is remembered of an agent.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Its name.
    pub(crate) name: String,
    /// When it was heard of last, for people.
    pub(crate) seen: Millis,
    /// The same in steady time.
    pub(crate) steady: Millis,
    /// Its toolchain: name and version.
    pub(crate) toolchain: Option<(String, String)>,
    /// Its requests for a task that wait here now.
    pub(crate) asking: usize,
    /// What it has said of itself with its last request.
    pub(crate) says: Says,
    /// Why it is given nothing.
    hold: Option<Hold>,
    /// What its machines can build, by which reading of the buildtab.
    able: Option<(u64, Arc<Abilities>)>,
    /// Whether it takes packages of some repositories only.
    is_choosy: bool,
    /// Until when it has a task, in steady time, as far as is known without hearing of it.
    busy: Millis,
}

impl Entry {
    /// Whether it is there: it asks, was heard of a while ago, or has a task.
    fn is_there(&self, now: Millis) -> bool {
        self.asking > 0 || self.steady.until(now) < SILENT || now < self.busy
    }

    /// What it can build, if it has asked since the buildtab was read.
    fn able(&self, reading: u64) -> Option<&Abilities> {
        let (of, able) = self.able.as_ref()?;
        (*of == reading).then_some(able)
    }

    /// What it is to a build of a configuration in a lane.
    fn for_build(
        &self,
        (reading, configuration, lane): Of<'_>,
        failures: &Failures,
        now: Millis,
    ) -> wait::Agent {
        wait::Agent {
            ability: match self.able(reading) {
                None => Ability::Unknown,
                Some(able) if able.machine(configuration).is_some() => {
                    let lacks = able.reach.lacks(lane);
                    lacks.map_or(Ability::Able, Ability::Lacks)
                }
                Some(able) if able.is_barred(configuration) => Ability::Barred,
                Some(_) => Ability::None,
            },
            hold: self.hold,
            is_avoided: failures.avoids(&self.name),
            presence: if !self.is_there(now) {
                Presence::Silent
            } else if self.asking == 0 && now < self.busy {
                Presence::Busy
            } else {
                Presence::Free
            },
        }
    }
}

/// Builds that agents are looked at for: of a reading of the buildtab, a configuration's number, and a lane.
pub(crate) type Of<'a> = (u64, u32, &'a Lane);

/// The roll.
#[derive(Debug)]
pub(crate) struct Roll {
    all: Mutex<HashMap<String, Entry>>,
    /// Since when agents could be heard of, in steady time.
    since: Millis,
}

impl Roll {
    /// Nobody has been heard of yet.
    pub(crate) fn new(steady: Millis) -> Self {
        Self {
            all: Mutex::default(),
            since: steady,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another agent than those on these hosts could have such a build. One that has not said what it can do could; and soon after
    /// the start anybody may still come. One that takes packages of some repositories only is not counted on.
    pub(crate) fn others(&self, of: Of<'_>, failures: &Failures, steady: Millis) -> Others {
        let could = |entry: &Entry| {
            let near = wait::standing(entry.for_build(of, failures, steady));
            let could = matches!(near, Code::Next | Code::Busy)
                || near == Code::Unknown && !failures.avoids(&entry.name);
            could && !entry.is_choosy
        };
        if self.since.until(steady) < SILENT || self.lock().values().any(could) {
            Others::Some
        } else {
            Others::None
        }
    }

    /// What each agent is to such a build.
    pub(crate) fn for_build(
        &self,
        of: Of<'_>,
        failures: &Failures,
        steady: Millis,
    ) -> Vec<wait::Agent> {
        let all = self.lock();
        let each = all.values();
        each.map(|entry| entry.for_build(of, failures, steady))
            .collect()
    }

    /// An agent was heard of.
    pub(crate) fn heard(&self, name: &str, seen: Millis, steady: Millis) {
        let mut all = self.lock();
        entry(&mut all, name, seen, steady);
    }

    /// An agent brings a result. Another task that it has is heard of when its lease is renewed.
    pub(crate) fn brings(&self, name: &str, seen: Millis, steady: Millis) {
        let mut all = self.lock();
        entry(&mut all, name, seen, steady).busy = Millis(i64::MIN);
    }

    /// An agent asks for a task, until what is returned is dropped.
    pub(crate) fn asks(
        &self,
        name: &str,
        toolchain: (&str, &str),
        says: Says,
        (seen, steady): (Millis, Millis),
    ) -> Asking<'_> {
        let mut all = self.lock();
        let entry = entry(&mut all, name, seen, steady);
        let before = std::mem::replace(&mut entry.says, says).clock_ahead();
        let clock = says.clock_ahead().filter(|_| before.is_none());
        entry.toolchain = Some((toolchain.0.to_owned(), toolchain.1.to_owned()));
        entry.asking += 1;
        Asking {
            roll: self,
            name: name.to_owned(),
            clock,
        }
    }

    /// An agent has a task until this time, if it is not heard of before.
    pub(crate) fn has_task(&self, name: &str, until: Millis) {
        if let Some(entry) = self.lock().get_mut(name) {
            entry.busy = entry.busy.max(until);
        }
    }

    /// All of them, by name.
    pub(crate) fn list(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> = self.lock().values().cloned().collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

/// `90 s ahead of ours`, `3600 s behind ours`.
pub(crate) fn ahead_text(ahead: i64) -> String {
    let side = if ahead < 0 { "behind" } else { "ahead of" };
    format!("{} s {side} ours", ahead.unsigned_abs())
}

fn entry<'a>(
    all: &'a mut HashMap<String, Entry>,
    name: &str,
    seen: Millis,
    steady: Millis,
) -> &'a mut Entry {
    if all.len() >= LIMIT && !all.contains_key(name) {
        let oldest = all
            .values()
            .min_by_key(|e| (e.asking > 0, e.steady))
            .map(|e| e.name.clone());
        oldest.and_then(|name| all.remove(&name));
    }
    let entry = all.entry(name.to_owned()).or_insert_with(|| Entry {
        name: name.to_owned(),
        seen,
        steady,
        toolchain: None,
        asking: 0,
        says: Says::default(),
        hold: None,
        able: None,
        is_choosy: false,
        busy: Millis(i64::MIN),
    });
    (entry.seen, entry.steady) = (seen, steady);
    entry
}

/// A request for a task that waits.
#[derive(Debug)]
pub(crate) struct Asking<'a> {
    roll: &'a Roll,
    name: String,
    /// By how many seconds its clock is ahead of ours, where that is news.
    pub(crate) clock: Option<i64>,
}

impl Asking<'_> {
    /// Whether the agent is given nothing for now, and why.
    pub(crate) fn is_held_back(&self, hold: Option<Hold>) {
        if let Some(entry) = self.roll.lock().get_mut(&self.name) {
            entry.hold = hold;
        }
    }

    /// Whether the agent takes packages of some repositories only.
    pub(crate) fn is_choosy(&self, is_choosy: bool) {
        if let Some(entry) = self.roll.lock().get_mut(&self.name) {
            entry.is_choosy = is_choosy;
        }
    }

    /// What the agent's machines can build, by a reading of the buildtab.
    pub(crate) fn can(&self, reading: u64, able: &Arc<Abilities>) {
        if let Some(entry) = self.roll.lock().get_mut(&self.name) {
            entry.able = Some((reading, Arc::clone(able)));
        }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.roll.lock().get_mut(&self.name) {
            entry.asking = entry.asking.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_does() {
        let ago = |seconds| Some(Duration::from_secs(seconds));
        for (tasks, asking, since, expected) in [
            (1, 0, None, Doing::Building),
            (2, 1, ago(9999), Doing::Building),
            (0, 1, ago(9999), Doing::Asking),
            (0, 0, ago(60), Doing::Asking),
            (0, 0, ago(150), Doing::Silent),
            (0, 0, None, Doing::Silent),
        ] {
            assert_eq!(doing(tasks, asking, since), expected);
        }
    }

    #[test]
    fn asking_ends_with_the_request() {
        let roll = Roll::new(Millis(0));
        let first = roll.asks("a", ("t", "1"), Says::default(), (Millis(1), Millis(1)));
        let second = roll.asks("a", ("t", "2"), Says::default(), (Millis(2), Millis(2)));
        roll.heard("b", Millis(3), Millis(3));
        assert_eq!(roll.list()[0].asking, 2);
        drop(first);
        drop(second);
        let all = roll.list();
        assert_eq!((all[0].asking, all[0].seen), (0, Millis(2)));
        assert_eq!(all[0].toolchain, Some(("t".to_owned(), "2".to_owned())));
        assert_eq!(
            (all[1].name.as_str(), all[1].toolchain.as_ref()),
            ("b", None)
        );
    }

    #[test]
    fn others_that_could_build_it() {
        use crate::buildtab::Buildtab;
        use crate::dispatch::abilities::Learned;
        use crate::queue::reach::Reach;
        use crate::queue::select::{Offer, Role};
        let tab = Buildtab::parse("linux* l t\nbsd* b t\n", "t").unwrap();
        let learned = Learned::default();
        let able = |name| {
            let role = Role::Build;
            let era = bbot_manifest::Era::Later;
            learned.of(&tab, &[Offer { name, role }], era, Reach::default())
        };
        let roll = Roll::new(Millis(0));
        let lane = Lane::default();
        let failures = Failures::default().with("a").with("a");
        let others = |kind, seconds| {
            roll.others((7, kind, &lane), &failures, Millis(0).plus_seconds(seconds))
        };
        // Anybody may come yet.
        assert_eq!(others(0, 149), Others::Some);
        assert_eq!(others(0, 150), Others::None);
        let asks = |name, machine, reading, seconds| {
            let at = Millis(0).plus_seconds(seconds);
            let asking = roll.asks(name, ("t", "1"), Says::default(), (at, at));
            asking.can(reading, &able(machine));
        };
        asks("a", "linux", 7, 150);
        asks("b", "bsd", 7, 150);
        assert_eq!(
            (others(0, 151), others(1, 151)),
            (Others::None, Others::Some)
        );
        asks("c", "linux", 7, 160);
        assert_eq!(
            (others(0, 309), others(0, 310)),
            (Others::Some, Others::None)
        );
        // It has a task for so long.
        roll.has_task("c", Millis(0).plus_seconds(400));
        assert_eq!(
            (others(0, 399), others(0, 400)),
            (Others::Some, Others::None)
        );
        // It has brought the result, and then is not heard of.
        roll.has_task("c", Millis(0).plus_seconds(9000));
        assert_eq!(others(0, 500), Others::Some);
        let at = Millis(0).plus_seconds(500);
        roll.brings("c", at, at);
        assert_eq!(
            (others(0, 649), others(0, 650)),
            (Others::Some, Others::None)
        );
        // One that takes some packages only may not want it.
        let at = Millis(0).plus_seconds(690);
        let choosy = roll.asks("d", ("t", "1"), Says::default(), (at, at));
        choosy.can(7, &able("linux"));
        assert_eq!(others(0, 690), Others::Some);
        choosy.is_choosy(true);
        assert_eq!(others(0, 690), Others::None);
        drop(choosy);
        // None of them takes interactive builds.
        roll.has_task("c", Millis(0).plus_seconds(900));
        let interactive = crate::queue::lane::tests::interactive();
        let at = Millis(0).plus_seconds(699);
        let of = |lane| roll.others((7, 0, lane), &failures, at);
        assert_eq!((of(&lane), of(&interactive)), (Others::Some, Others::None));
        roll.brings("c", Millis(0), Millis(0));
        // By another buildtab: who knows.
        asks("b", "bsd", 6, 700);
        assert_eq!(others(0, 701), Others::Some);
    }

    #[test]
    fn so_many_names_and_no_more() {
        let roll = Roll::new(Millis(0));
        let waiting = roll.asks("waits", ("t", "1"), Says::default(), (Millis(0), Millis(0)));
        let last = i64::try_from(LIMIT).unwrap() + 50;
        for n in 0..=last {
            roll.heard(&format!("agent-{n}"), Millis(n), Millis(n));
        }
        let last = format!("agent-{last}");
        let all = roll.list();
        assert_eq!(all.len(), LIMIT);
        assert!(all.iter().any(|e| e.name == "waits") && all.iter().any(|e| e.name == last));
        drop(waiting);
    }
}
