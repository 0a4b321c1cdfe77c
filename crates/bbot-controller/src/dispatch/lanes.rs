//! The lanes that builds were seen to wait in, and for which configurations in each. The plain one is not among them: whoever has only that
//! to do finds nothing here.
//!
//! A *kind* is a configuration in a lane, as a number: that of the configuration for the plain lane, and so many more for each
//! other lane as there are configurations.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::abilities::Abilities;
use crate::queue::lane::Lane;
use crate::store::Kind as Told;

/// Lanes that are known at once: each is looked for by itself. Honest farms have a few.
pub(crate) const MOST: usize = 256;

/// So many configurations in lanes are read from the store at once.
pub(crate) const AT_ONCE: usize = 1024;

/// Those of one reading of the buildtab.
#[derive(Debug)]
pub(crate) struct Lanes {
    /// The number of configurations.
    configurations: u32,
    state: RwLock<State>,
    /// How many are known: mostly none, which costs nothing then.
    count: AtomicUsize,
    /// Counts up whenever there may be others in the store, and how far it was when they were read.
    changes: AtomicU64,
    read: AtomicU64,
    /// There are more than can be known.
    is_full: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    all: Vec<Known>,
    /// Their numbers, by their texts.
    numbers: HashMap<Arc<str>, usize>,
    /// The kinds, by what other controllers call them.
    told: HashMap<Told, u32>,
}

#[derive(Debug)]
struct Known {
    lane: Arc<Lane>,
    text: Arc<str>,
    /// The configurations that builds have waited for in it.
    configurations: BTreeSet<u32>,
}

impl Lanes {
    /// None are known yet, of so many configurations.
    pub(crate) fn new(configurations: u32) -> Self {
        Self {
            configurations,
            state: RwLock::default(),
            count: AtomicUsize::new(0),
            changes: AtomicU64::new(1),
            read: AtomicU64::new(0),
            is_full: AtomicBool::new(false),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether builds wait, or have waited, in the plain lane alone, as far as is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Whether the store need not be asked for them.
    pub(crate) fn is_read(&self) -> bool {
        self.read.load(Ordering::Acquire) == self.changes()
    }

    /// How far changes have come: what is read from the store from here on has seen these.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Those of the store are known as they were then.
    pub(crate) fn are_read(&self, changes: u64) {
        self.read.store(changes, Ordering::Release);
    }

    /// There may be others in the store.
    pub(crate) fn may_be_more(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether there were more than can be known.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Acquire)
    }

    /// The text of the last one that was learned, behind which others are looked for where there are more than can be known.
    pub(crate) fn last(&self) -> Option<Arc<str>> {
        self.read().all.last().map(|known| Arc::clone(&known.text))
    }

    /// Whether the number is that of a configuration in the plain lane.
    pub(crate) fn is_plain(&self, kind: u32) -> bool {
        kind < self.configurations
    }

    /// The number of the configuration of a kind.
    pub(crate) fn configuration(&self, kind: u32) -> u32 {
        kind % self.configurations.max(1)
    }

    /// Which of those that are known a kind is in; `None` for the plain one.
    fn number(&self, kind: u32) -> Option<usize> {
        let number = kind.checked_div(self.configurations)?;
        usize::try_from(number).ok()?.checked_sub(1)
    }

    /// The lane of a kind; the plain one for what is not known.
    pub(crate) fn lane(&self, kind: u32) -> Arc<Lane> {
        let known = |number: usize| self.read().all.get(number).map(|k| Arc::clone(&k.lane));
        self.number(kind).and_then(known).unwrap_or_default()
    }

    /// The same as text.
    pub(crate) fn text(&self, kind: u32) -> Arc<str> {
        let known = |number: usize| self.read().all.get(number).map(|k| Arc::clone(&k.text));
        self.number(kind).and_then(known).unwrap_or_default()
    }

    fn kind(&self, number: usize, configuration: u32) -> u32 {
        // Both are bounded: a number of lanes and the lines of a file.
        let lane = u32::try_from(number).unwrap_or(0) + 1;
        self.configurations
            .saturating_mul(lane)
            .saturating_add(configuration)
    }

    /// The kind of a configuration in a lane, if one has waited there.
    pub(crate) fn find(&self, configuration: u32, lane: &Lane) -> Option<u32> {
        if lane.is_plain() {
            return Some(configuration);
        }
        let state = self.read();
        let number = *state.numbers.get(lane.text().as_str())?;
        let is_known = state
            .all
            .get(number)?
            .configurations
            .contains(&configuration);
        is_known.then(|| self.kind(number, configuration))
    }

    /// The kind that another controller tells of.
    pub(crate) fn told(&self, told: &Told) -> Option<u32> {
        self.read().told.get(told).copied()
    }

    /// A build waits for a configuration in a lane: its kind; `None` where no more lanes can be known. `told`: what other controllers call
    /// that.
    pub(crate) fn learn(&self, configuration: u32, lane: &Lane, told: Told) -> Option<u32> {
        if let Some(kind) = self.find(configuration, lane) {
            return Some(kind);
        }
        let mut state = self.write();
        let text: Arc<str> = lane.text().into();
        let number = match state.numbers.get(&text) {
            Some(number) => *number,
            None if state.all.len() >= MOST => {
                self.is_full.store(true, Ordering::Release);
                return None;
            }
            None => {
                let number = state.all.len();
                state.numbers.insert(Arc::clone(&text), number);
                state.all.push(Known {
                    lane: Arc::new(lane.clone()),
                    text,
                    configurations: BTreeSet::new(),
                });
                number
            }
        };
        let kind = self.kind(number, configuration);
        if let Some(known) = state.all.get_mut(number) {
            known.configurations.insert(configuration);
        }
        state.told.insert(told, kind);
        self.count.store(state.all.len(), Ordering::Release);
        Some(kind)
    }

    /// The kinds that are not plain and that somebody can have.
    pub(crate) fn kinds(&self, able: &Abilities) -> Vec<u32> {
        let mut kinds = Vec::new();
        if self.is_empty() {
            return kinds;
        }
        for (number, known) in self.read().all.iter().enumerate() {
            if !able.serves(number, &known.lane) {
                continue;
            }
            let can = |configuration: &&u32| able.machine(**configuration).is_some();
            let its = known.configurations.iter().filter(can);
            kinds.extend(its.map(|configuration| self.kind(number, *configuration)));
        }
        kinds
    }

    /// Whether somebody can have builds of a kind.
    pub(crate) fn can(&self, able: &Abilities, kind: u32) -> bool {
        let Some(number) = self.number(kind) else {
            return able.kinds.binary_search(&kind).is_ok();
        };
        let state = self.read();
        let serves = |known: &Known| able.serves(number, &known.lane);
        able.machine(self.configuration(kind)).is_some()
            && state.all.get(number).is_some_and(serves)
    }

    /// The texts of those that name a key.
    pub(crate) fn naming(&self, fingerprint: &str) -> Vec<Arc<str>> {
        if self.is_empty() {
            return Vec::new();
        }
        let state = self.read();
        let names = state
            .all
            .iter()
            .filter(|known| known.lane.keys.contains(fingerprint));
        names.map(|known| Arc::clone(&known.text)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buildtab::Buildtab;
    use crate::dispatch::abilities::Learned;
    use crate::queue::lane::tests::{interactive, of_keys, of_service};
    use crate::queue::reach::Reach;
    use crate::queue::select::{Offer, Role};
    use bbot_manifest::{Era, InteractiveMode};

    fn told(configuration: u32, lane: &Lane) -> Told {
        Told::of(&configuration.to_string(), "t", &lane.text())
    }

    fn learn(lanes: &Lanes, configuration: u32, lane: &Lane) -> Option<u32> {
        lanes.learn(configuration, lane, told(configuration, lane))
    }

    #[test]
    fn kinds_are_configurations_in_lanes() {
        let tab = Buildtab::parse("linux* a t\nbsd* b t\nlinux* c t\n", "t").unwrap();
        let learned = Learned::default();
        let able = |mode| {
            let reach = Reach {
                interactive: Some(mode),
                ..Reach::default()
            };
            let offer = Offer {
                name: "linux",
                role: Role::Build,
            };
            learned.of(&tab, &[offer], Era::Later, reach)
        };
        let (plain, both) = (able(InteractiveMode::False), able(InteractiveMode::Both));
        let only = able(InteractiveMode::True);
        let lanes = Lanes::new(3);
        assert!(lanes.is_empty() && !lanes.is_read());
        let changes = lanes.changes();
        lanes.may_be_more();
        lanes.are_read(changes);
        assert!(!lanes.is_read(), "something has come since");
        lanes.are_read(lanes.changes());
        assert!(lanes.is_read());
        assert_eq!(lanes.kinds(&both), [0_u32; 0]);
        assert_eq!(learn(&lanes, 2, &Lane::default()), Some(2));
        assert!(lanes.is_empty());
        // The second lane first for one that the agent has no machine for.
        assert_eq!(learn(&lanes, 1, &of_service("ci")), Some(4));
        assert_eq!(learn(&lanes, 2, &interactive()), Some(8));
        assert_eq!(learn(&lanes, 0, &of_service("ci")), Some(3));
        assert_eq!(learn(&lanes, 2, &interactive()), Some(8));
        assert_eq!(lanes.find(0, &interactive()), None);
        assert_eq!(lanes.told(&told(0, &of_service("ci"))), Some(3));
        assert_eq!(
            (lanes.configuration(8), &*lanes.lane(8)),
            (2, &interactive())
        );
        assert_eq!(&*lanes.text(2), "");
        assert_eq!(lanes.kinds(&plain), [3]);
        assert_eq!(lanes.kinds(&both), [3, 8]);
        assert_eq!(lanes.kinds(&only), [8]);
        for kind in [0, 1, 2, 3, 4, 8] {
            let is_among = lanes.kinds(&only).contains(&kind);
            assert_eq!(lanes.can(&only, kind), is_among, "{kind}");
        }
        assert!(lanes.can(&plain, 2) && !lanes.can(&plain, 1));
        assert_eq!(&*only.kinds, [0_u32; 0]);
        learn(&lanes, 0, &of_keys(&["k"]));
        assert_eq!(lanes.naming("k"), [of_keys(&["k"]).text().into()]);
        assert!(lanes.naming("j").is_empty());
    }

    #[test]
    fn there_are_not_more_than_can_be_known() {
        let lanes = Lanes::new(1);
        for number in 0..MOST {
            assert!(learn(&lanes, 0, &of_service(&number.to_string())).is_some());
        }
        assert!(!lanes.is_full());
        assert_eq!(learn(&lanes, 0, &of_service("more")), None);
        assert!(lanes.is_full());
        assert_eq!(lanes.last(), Some(of_service("255").text().into()));
    }
}
