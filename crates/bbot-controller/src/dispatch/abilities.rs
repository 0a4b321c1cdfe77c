//! What agents can build: the buildtab's patterns against the names of their machines, remembered, since an agent has the same
//! machines each time that it asks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bbot_manifest::Era;
use sha2::{Digest as _, Sha256};

use super::waiters::Kinds;
use crate::buildtab::Buildtab;
use crate::queue::select::{self, Offer, Role};

/// Lists of machines that are remembered: more than a large farm has. Then all are forgotten, and those that ask are learned anew.
const LISTS: usize = 20_000;

/// The longest name of a machine that is remembered, in bytes.
const NAME: usize = 256;

/// Names of machines that are remembered.
const NAMES: usize = 20_000;

/// What an agent can build.
#[derive(Debug)]
pub(crate) struct Abilities {
    /// Numbers of configurations in the buildtab, ascending.
    pub(crate) kinds: Kinds,
    /// For each of them the number of the machine that would do it.
    machines: Box<[u32]>,
    /// Numbers of those that its machines could build but not its era, ascending.
    barred: Box<[u32]>,
}

impl Abilities {
    /// The machine for a configuration that is among them.
    pub(crate) fn machine(&self, kind: u32) -> Option<usize> {
        let at = self.kinds.binary_search(&kind).ok()?;
        self.machines.get(at).map(|machine| *machine as usize)
    }

    /// Whether only its era keeps it from building a configuration.
    pub(crate) fn is_barred(&self, kind: u32) -> bool {
        self.barred.binary_search(&kind).is_ok()
    }
}

/// The SHA-256 of an era and a list of machines: a farm's names would take more room than what they mean.
type Key = [u8; 32];

fn key(offers: &[Offer<'_>], era: Era) -> Key {
    let mut hash = Sha256::new();
    hash.update([u8::from(era == Era::Y2017)]);
    for offer in offers {
        hash.update([u8::from(offer.role == Role::Build)]);
        hash.update(offer.name.len().to_le_bytes());
        hash.update(offer.name.as_bytes());
    }
    hash.finalize().into()
}

/// Those of all agents, by one reading of the buildtab.
#[derive(Debug, Default)]
pub(crate) struct Learned(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    lists: HashMap<Key, Arc<Abilities>>,
    /// The configurations that a machine of this name can build: agents have the same machines.
    names: HashMap<String, Arc<[u32]>>,
}

impl Learned {
    /// What an agent of this era with these machines can build: of each configuration by the first machine that it takes, as
    /// [`select::candidates`] has it.
    pub(crate) fn of(&self, buildtab: &Buildtab, offers: &[Offer<'_>], era: Era) -> Arc<Abilities> {
        let key = key(offers, era);
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = state.lists.get(&key) {
            return Arc::clone(known);
        }
        let mut first: BTreeMap<u32, u32> = BTreeMap::new();
        for (machine, offer) in (0..).zip(offers) {
            if offer.role == Role::Build {
                for kind in state.takers(buildtab, offer.name).iter() {
                    first.entry(*kind).or_insert(machine);
                }
            }
        }
        let is_for = |kind: &u32| {
            let configuration = buildtab.configurations().get(*kind as usize);
            configuration.is_some_and(|c| select::is_for(c, era))
        };
        let (able, barred): (Vec<_>, Vec<_>) =
            first.into_iter().partition(|(kind, _)| is_for(kind));
        let (kinds, machines): (Vec<u32>, Vec<u32>) = able.into_iter().unzip();
        let abilities = Arc::new(Abilities {
            kinds: kinds.into(),
            machines: machines.into(),
            barred: barred.into_iter().map(|(kind, _)| kind).collect(),
        });
        if state.lists.len() >= LISTS {
            state.lists.clear();
        }
        state.lists.insert(key, Arc::clone(&abilities));
        abilities
    }
}

impl State {
    fn takers(&mut self, buildtab: &Buildtab, name: &str) -> Arc<[u32]> {
        if let Some(known) = self.names.get(name) {
            return Arc::clone(known);
        }
        let takers: Arc<[u32]> = (0..)
            .zip(buildtab.configurations())
            .filter(|(_, configuration)| configuration.takes(name))
            .map(|(kind, _)| kind)
            .collect();
        // Names come from agents.
        if name.len() > NAME {
            return takers;
        }
        if self.names.len() >= NAMES {
            self.names.clear();
        }
        self.names.insert(name.to_owned(), Arc::clone(&takers));
        takers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// As one who looks at every pattern for every machine, each time.
        #[test]
        fn what_is_remembered_is_right(
            lists in proptest::collection::vec(proptest::collection::vec(("(linux|bsd)-[ab]", any::<bool>()), 0..6), 1..6),
            is_old in any::<bool>(),
        ) {
            let tab = Buildtab::parse("linux* l t\n*-a a t\nbsd** b t all\n**-b c t/e all\n", "t").unwrap();
            let learned = Learned::default();
            let era = if is_old { Era::Y2017 } else { Era::Later };
            for list in &lists {
                let offers: Vec<Offer<'_>> = list
                    .iter()
                    .map(|(name, builds)| Offer {
                        name,
                        role: if *builds { Role::Build } else { Role::Auxiliary },
                    })
                    .collect();
                let able = learned.of(&tab, &offers, era);
                let all: Vec<(usize, usize)> = able
                    .kinds
                    .iter()
                    .map(|kind| (*kind as usize, able.machine(*kind).unwrap()))
                    .collect();
                let expected: Vec<(usize, usize)> = select::candidates(&tab, &offers, era)
                    .into_iter()
                    .map(|c| (c.configuration, c.machine))
                    .collect();
                prop_assert_eq!(all, expected);
                let later = select::candidates(&tab, &offers, Era::Later);
                let barred: Vec<usize> = (0..4).filter(|kind| able.is_barred(*kind)).map(|kind| kind as usize).collect();
                let expected: Vec<usize> = later
                    .into_iter()
                    .map(|c| c.configuration)
                    .filter(|kind| able.machine(u32::try_from(*kind).unwrap()).is_none())
                    .collect();
                prop_assert_eq!(barred, expected);
            }
        }
    }

    #[test]
    fn what_was_learned_is_shared() {
        let tab = Buildtab::parse("linux* a t\nbsd* b t\n*-gcc c t\n", "t").unwrap();
        let learned = Learned::default();
        let offer = |name| Offer {
            name,
            role: Role::Build,
        };
        let offers = [offer("x-gcc"), offer("linux-gcc")];
        let first = learned.of(&tab, &offers, Era::Later);
        assert_eq!(&*first.kinds, [0, 2]);
        assert_eq!(
            (first.machine(0), first.machine(2), first.machine(1)),
            (Some(1), Some(0), None)
        );
        assert!(Arc::ptr_eq(&first, &learned.of(&tab, &offers, Era::Later)));
        assert!(!Arc::ptr_eq(&first, &learned.of(&tab, &offers, Era::Y2017)));
    }
}
