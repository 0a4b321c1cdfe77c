//! What of the queue is known in memory, so that an agent is answered without a look at what nobody asks for, and one that waits
//! is told by name.
//!
//! ```text
//!   abilities   what an agent's machines can build, by the buildtab
//!   heads       the build of each configuration that is next, as the store has it
//!   waiters     who waits for a task, by what they can build
//! ```
//!
//! The store is the truth: what is known here is looked up anew whenever it may have changed, and a task is handed out only if the
//! store says that it still waits.

pub(crate) mod abilities;
pub(crate) mod heads;
pub(crate) mod waiters;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::buildtab::{Buildtab, Configuration};
use crate::store::{Head, Kind};
use abilities::Learned;
use heads::Heads;
use waiters::Waiters;

/// Readings of a buildtab so far.
static READINGS: AtomicU64 = AtomicU64::new(0);

/// All of it, by one reading of the buildtab.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) buildtab: Arc<Buildtab>,
    /// Which reading it is: numbers of configurations are those of one.
    pub(crate) reading: u64,
    pub(crate) learned: Learned,
    pub(crate) heads: Heads,
    pub(crate) waiters: Waiters,
    /// Held by who looks into the store for what is next.
    pub(crate) looking: tokio::sync::Mutex<()>,
    /// Numbers of configurations by name and target.
    numbers: HashMap<(String, String), u32>,
    /// The same by what other controllers call them.
    kinds: HashMap<Kind, u32>,
}

impl Desk {
    pub(crate) fn new(buildtab: Arc<Buildtab>) -> Self {
        let configurations = buildtab.configurations();
        let numbers = configurations
            .iter()
            .zip(0..)
            .map(|(c, number)| ((c.name.clone(), c.target.clone()), number))
            .collect();
        let kinds = configurations
            .iter()
            .zip(0..)
            .map(|(c, number)| (Kind::of(&c.name, &c.target), number))
            .collect();
        let waiters = Waiters::default();
        Self {
            reading: READINGS.fetch_add(1, Ordering::Relaxed),
            learned: Learned::default(),
            heads: Heads::new(configurations.len(), waiters.clone()),
            waiters,
            looking: tokio::sync::Mutex::default(),
            numbers,
            kinds,
            buildtab,
        }
    }

    /// The configuration of this number.
    pub(crate) fn configuration(&self, kind: u32) -> Option<&Configuration> {
        self.buildtab.configurations().get(kind as usize)
    }

    /// The number of a configuration, if there is such a line.
    pub(crate) fn kind(&self, configuration: &str, target: &str) -> Option<u32> {
        let key = (configuration.to_owned(), target.to_owned());
        self.numbers.get(&key).copied()
    }

    /// A build waits no more, and nobody got it.
    pub(crate) fn gone(&self, configuration: &str, target: &str) {
        if let Some(kind) = self.kind(configuration, target) {
            self.heads.changed(kind);
        }
    }

    /// A build waits, at the place if it is known: who can build it is told.
    pub(crate) fn queued(&self, configuration: &str, target: &str, head: Option<Head>) {
        // By a line that is gone nobody builds.
        let Some(kind) = self.kind(configuration, target) else {
            return;
        };
        match head {
            Some(head) => self.heads.queued(kind, head),
            None => self.heads.changed(kind),
        }
        self.waiters.queued(kind, 1);
    }

    /// Another controller has queued so many builds of a configuration: as many of those who can build it are told.
    pub(crate) fn queued_elsewhere(&self, kind: Kind, builds: usize) {
        // By a line that is not here nobody here builds.
        if let Some(kind) = self.kinds.get(&kind).copied() {
            self.heads.changed(kind);
            self.waiters.queued(kind, builds);
        }
    }

    /// Whatever is known may be wrong: all look again.
    pub(crate) fn all_changed(&self) {
        self.heads.all_changed();
        self.waiters.wake_all();
    }

    /// Another reading takes its place: all who wait go there.
    pub(crate) fn close(&self) {
        self.waiters.close();
    }
}
