//! What of the queue is known in memory, so that an agent is answered without a look at what nobody asks for, and one that waits
//! is told by name.
//!
//! ```text
//!   abilities   what an agent's machines can build, by the buildtab
//!   heads       the builds of each kind that are next, as the store has it
//!   lanes       what builds were seen to ask of agents beyond their machines: a configuration in a lane is a kind
//!   waiters     who waits for a task, by what they can build
//! ```
//!
//! The store is the truth: what is known here is looked up anew whenever it may have changed, and a task is handed out only if the
//! store says that it still waits.

pub(crate) mod abilities;
pub(crate) mod heads;
pub(crate) mod lanes;
pub(crate) mod waiters;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bbot_manifest::Era;

use crate::buildtab::{Buildtab, Configuration};
use crate::clock::Millis;
use crate::queue::lane::Lane;
use crate::queue::reach::Reach;
use crate::store::{Build, Head, Kind, LaneOf};
use abilities::{Abilities, Learned};
use heads::Heads;
use lanes::Lanes;
use waiters::Waiters;

/// Readings of a buildtab so far.
static READINGS: AtomicU64 = AtomicU64::new(0);

/// Where there are more lanes than can be known, some are known for so many seconds, then others.
const LANES_STAY: u64 = 60;

/// All of it, by one reading of the buildtab.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) buildtab: Arc<Buildtab>,
    /// Which reading it is: numbers of configurations are those of one.
    pub(crate) reading: u64,
    pub(crate) learned: Learned,
    pub(crate) heads: Heads,
    pub(crate) waiters: Waiters,
    pub(crate) lanes: Arc<Lanes>,
    /// Behind which lane those are looked for that this has, and since when: where there are more than can be known, others have their turn.
    lanes_after: Arc<str>,
    since: Millis,
    /// Held by who looks into the store for what is next.
    pub(crate) looking: tokio::sync::Mutex<()>,
    /// Numbers of configurations by name and target.
    numbers: HashMap<(String, String), u32>,
    /// The same by what other controllers call them.
    kinds: HashMap<Kind, u32>,
}

impl Desk {
    /// `lanes_after`: behind which lane in their order those are looked for that it is to know.
    pub(crate) fn new(buildtab: Arc<Buildtab>, lanes_after: Arc<str>, now: Millis) -> Self {
        let configurations = buildtab.configurations();
        let numbers = configurations
            .iter()
            .zip(0..)
            .map(|(c, number)| ((c.name.clone(), c.target.clone()), number))
            .collect();
        let kinds = configurations
            .iter()
            .zip(0..)
            .map(|(c, number)| (Kind::of(&c.name, &c.target, ""), number))
            .collect();
        let count = u32::try_from(configurations.len()).unwrap_or(u32::MAX);
        let lanes = Arc::new(Lanes::new(count));
        let waiters = Waiters::new(Arc::clone(&lanes));
        Self {
            reading: READINGS.fetch_add(1, Ordering::Relaxed),
            learned: Learned::default(),
            heads: Heads::new(configurations.len(), waiters.clone()),
            waiters,
            lanes,
            lanes_after,
            since: now,
            looking: tokio::sync::Mutex::default(),
            numbers,
            kinds,
            buildtab,
        }
    }

    /// The same with other lanes, where there are more than can be known and these had their time; `None` else.
    pub(crate) fn next(&self, now: Millis) -> Option<Self> {
        if !self.lanes.is_full() || now < self.since.plus_seconds(LANES_STAY) {
            return None;
        }
        let after = self.lanes.last().unwrap_or_default();
        Some(Self::new(Arc::clone(&self.buildtab), after, now))
    }

    /// What somebody can build who is given nothing.
    pub(crate) fn nothing(&self, era: Era) -> Arc<Abilities> {
        self.learned.of(&self.buildtab, &[], era, Reach::default())
    }

    /// The configuration of a kind.
    pub(crate) fn configuration(&self, kind: u32) -> Option<&Configuration> {
        let number = self.lanes.configuration(kind);
        self.buildtab.configurations().get(number as usize)
    }

    /// The number of a configuration, if there is such a line.
    pub(crate) fn number(&self, configuration: &str, target: &str) -> Option<u32> {
        let key = (configuration.to_owned(), target.to_owned());
        self.numbers.get(&key).copied()
    }

    /// The kind of a build that waits.
    fn kind(&self, configuration: &str, target: &str, lane: &Lane) -> Option<u32> {
        // By a line that is gone nobody builds.
        let number = self.number(configuration, target)?;
        if lane.is_plain() {
            return Some(number);
        }
        let told = Kind::of(configuration, target, &lane.text());
        self.lanes.learn(number, lane, told)
    }

    /// A build waits no more, and nobody got it.
    pub(crate) fn gone(&self, build: &Build) {
        if let Some(kind) = self.kind(&build.configuration, &build.target, &build.lane) {
            self.heads.changed(kind);
        }
    }

    /// A build waits, at the place if it is known: who can build it is told.
    pub(crate) fn queued(&self, build: &Build, head: Option<Head>) {
        let Some(kind) = self.kind(&build.configuration, &build.target, &build.lane) else {
            return;
        };
        match head {
            Some(head) => self.heads.queued(kind, head),
            None => self.heads.changed(kind),
        }
        self.waiters.queued(kind, 1);
    }

    /// Another controller has queued so many builds of a configuration in a lane: as many of those who can build it are told. Whether it is
    /// known.
    pub(crate) fn queued_elsewhere(&self, kind: Kind, builds: usize) -> bool {
        let known = self.kinds.get(&kind).copied();
        let Some(kind) = known.or_else(|| self.lanes.told(&kind)) else {
            return false;
        };
        self.heads.changed(kind);
        self.waiters.queued(kind, builds);
        true
    }

    /// Where to look for lanes in the store.
    pub(crate) fn lanes_after(&self) -> &str {
        &self.lanes_after
    }

    /// Lanes that builds wait in, as the store has them. Who serves one that is new here is told, since nobody else may do so.
    pub(crate) fn learn(&self, lanes: &[LaneOf]) {
        for (lane, configuration, target) in lanes {
            // One that a later version has written is for its agents; by a line that is gone nobody builds.
            let (Ok(lane), Some(number)) = (Lane::parse(lane), self.number(configuration, target))
            else {
                continue;
            };
            if self.lanes.find(number, &lane).is_none()
                && let Some(kind) = self.kind(configuration, target, &lane)
            {
                self.waiters.queued(kind, 1);
            }
        }
    }

    /// Whatever is known may be wrong: all look again.
    pub(crate) fn all_changed(&self) {
        self.lanes.may_be_more();
        self.heads.all_changed();
        self.waiters.wake_all();
    }

    /// Another reading takes its place: all who wait go there.
    pub(crate) fn close(&self) {
        self.waiters.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::lane::tests::of_service;

    fn lane_of(kind: usize) -> LaneOf {
        let text = of_service(&kind.to_string()).text();
        (text, "a".to_owned(), "t".to_owned())
    }

    #[test]
    fn lanes_that_there_is_no_room_for_have_their_turn() {
        let tab = Arc::new(Buildtab::parse("linux* a t\n", "t").unwrap());
        let start = Millis(1_000_000);
        let desk = Desk::new(tab, Arc::default(), start);
        // A line that is gone, and a lane of a later version, are nobody's here.
        let gone = (of_service("x").text(), "b".to_owned(), "t".to_owned());
        let later = ("{\"later\":1}".to_owned(), "a".to_owned(), "t".to_owned());
        desk.learn(&[gone, later]);
        assert!(desk.lanes.is_empty());
        let all: Vec<LaneOf> = (0..=lanes::MOST).map(lane_of).collect();
        desk.learn(&all[..lanes::MOST]);
        let soon = start.plus_seconds(LANES_STAY - 1);
        let late = start.plus_seconds(LANES_STAY);
        assert!(desk.next(late).is_none(), "there is room for all");
        desk.learn(&all);
        assert!(desk.next(soon).is_none());
        let next = desk.next(late).unwrap();
        assert_eq!(next.lanes_after(), all[lanes::MOST - 1].0);
        assert!(next.lanes.is_empty() && !next.lanes.is_read());
        assert_ne!(next.reading, desk.reading);
        next.learn(&all[lanes::MOST..]);
        assert!(next.next(late.plus_seconds(LANES_STAY)).is_none());
    }
}
