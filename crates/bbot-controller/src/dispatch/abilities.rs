//! What agents can build: the buildtab's patterns against the names of their machines, remembered, since an agent has the same
//! machines each time that it asks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bbot_manifest::Era;
use sha2::{Digest as _, Sha256};

use crate::buildtab::Buildtab;
use crate::queue::lane::Lane;
use crate::queue::reach::Reach;
use crate::queue::select::{self, Offer, Role};

/// Lists of machines that are remembered: more than a large farm has. Then all are forgotten, and those that ask are learned anew.
const LISTS: usize = 20_000;

/// They have as many bytes at most: how long they are is up to agents, and to the buildtab.
const BYTES: usize = 128 * 1024 * 1024;

/// The longest name of a machine that is remembered, in bytes.
const NAME: usize = 256;

/// Names of machines that are remembered, and the bytes of what they can build.
const NAMES: usize = 20_000;
const NAMES_BYTES: usize = 32 * 1024 * 1024;

/// What an agent can build.
#[derive(Debug)]
pub(crate) struct Abilities {
    /// The configurations that it can have builds of in the plain lane: all that it has a machine for, or none.
    pub(crate) kinds: Kinds,
    /// Those that it has a machine for: their numbers in the buildtab, ascending.
    configurations: Kinds,
    /// For each of them the number of the machine that would do it.
    machines: Box<[u32]>,
    /// Numbers of those that its machines could build but not its era, ascending.
    barred: Box<[u32]>,
    /// Which lanes it serves.
    pub(crate) reach: Reach,
    /// The same of the lanes so far, by their numbers.
    served: Mutex<Vec<Option<bool>>>,
}

/// Numbers of configurations, or of what else somebody can build.
pub(crate) type Kinds = Arc<[u32]>;

impl Abilities {
    /// The room that they take, in bytes, by and large.
    pub(crate) fn bytes(&self) -> usize {
        let kinds = self.configurations.len() + self.machines.len() + self.barred.len();
        size_of::<Self>() + kinds * size_of::<u32>() + self.reach.bytes()
    }

    /// The machine for a configuration that is among them.
    pub(crate) fn machine(&self, configuration: u32) -> Option<usize> {
        let at = self.configurations.binary_search(&configuration).ok()?;
        self.machines.get(at).map(|machine| *machine as usize)
    }

    /// Whether only its era keeps it from building a configuration.
    pub(crate) fn is_barred(&self, configuration: u32) -> bool {
        self.barred.binary_search(&configuration).is_ok()
    }

    /// Whether it serves a lane, which has this number: found out once.
    pub(crate) fn serves(&self, number: usize, lane: &Lane) -> bool {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if served.len() <= number {
            served.resize(number + 1, None);
        }
        *served[number].get_or_insert_with(|| self.reach.lacks(lane).is_none())
    }
}

/// The SHA-256 of an era, a list of machines and what else the agent says: a farm's names would take more room than what they mean.
type Key = [u8; 32];

fn key(offers: &[Offer<'_>], era: Era, reach: &Reach) -> Key {
    let mut hash = Sha256::new();
    hash.update([u8::from(era == Era::Y2017)]);
    for offer in offers {
        hash.update([u8::from(offer.role == Role::Build)]);
        hash.update(offer.name.len().to_le_bytes());
        hash.update(offer.name.as_bytes());
    }
    // Mostly there is nothing to it.
    if *reach != Reach::default() {
        let Reach {
            interactive,
            services,
            is_default,
            fingerprint,
            auxiliaries,
            ram,
        } = reach;
        let auxiliaries: Vec<_> = auxiliaries.iter().map(|a| (a.machine, a.ram)).collect();
        let said = (
            interactive,
            services,
            is_default,
            fingerprint,
            auxiliaries,
            ram,
        );
        hash.update(format!("{said:?}"));
    }
    hash.finalize().into()
}

/// Those of all agents, by one reading of the buildtab.
#[derive(Debug, Default)]
pub(crate) struct Learned(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    lists: HashMap<Key, Arc<Abilities>>,
    bytes: usize,
    /// The configurations that a machine of this name can build: agents have the same machines.
    names: HashMap<String, Arc<[u32]>>,
    names_bytes: usize,
}

impl Learned {
    /// What an agent of this era with these machines can build: of each configuration by the first machine that it takes, as
    /// [`select::candidates`] has it; `reach`: which lanes it serves.
    pub(crate) fn of(
        &self,
        buildtab: &Buildtab,
        offers: &[Offer<'_>],
        era: Era,
        reach: Reach,
    ) -> Arc<Abilities> {
        let key = key(offers, era, &reach);
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
        let (configurations, machines): (Vec<u32>, Vec<u32>) = able.into_iter().unzip();
        let configurations: Kinds = configurations.into();
        let is_plain = reach.lacks(&Lane::default()).is_none();
        let abilities = Arc::new(Abilities {
            // One that has nothing plain to do has a list of its own, too.
            kinds: if is_plain {
                Arc::clone(&configurations)
            } else {
                Arc::from([])
            },
            configurations,
            machines: machines.into(),
            barred: barred.into_iter().map(|(kind, _)| kind).collect(),
            reach,
            served: Mutex::default(),
        });
        state.remember(key, &abilities);
        abilities
    }
}

impl State {
    /// Those of a list that is not remembered yet.
    fn remember(&mut self, key: Key, abilities: &Arc<Abilities>) {
        let bytes = abilities.bytes();
        if self.lists.len() >= LISTS || self.bytes + bytes > BYTES {
            self.lists.clear();
            self.bytes = 0;
        }
        self.bytes += bytes;
        self.lists.insert(key, Arc::clone(abilities));
    }

    fn takers(&mut self, buildtab: &Buildtab, name: &str) -> Arc<[u32]> {
        if let Some(known) = self.names.get(name) {
            return Arc::clone(known);
        }
        let takers: Arc<[u32]> = (0..)
            .zip(buildtab.configurations())
            .filter(|(_, configuration)| configuration.takes(name))
            .map(|(kind, _)| kind)
            .collect();
        self.remember_name(name, &takers);
        takers
    }

    /// What one of this name can build. Names come from agents.
    fn remember_name(&mut self, name: &str, takers: &Arc<[u32]>) {
        if name.len() > NAME {
            return;
        }
        let bytes = name.len() + size_of_val(&**takers);
        if self.names.len() >= NAMES || self.names_bytes + bytes > NAMES_BYTES {
            self.names.clear();
            self.names_bytes = 0;
        }
        self.names_bytes += bytes;
        self.names.insert(name.to_owned(), Arc::clone(takers));
    }
}

#[cfg(test)]
impl Abilities {
    /// Somebody who can build these in the plain lane.
    pub(crate) fn plain(kinds: &[u32]) -> Arc<Self> {
        let kinds: Kinds = kinds.into();
        Arc::new(Self {
            configurations: Arc::clone(&kinds),
            machines: kinds.iter().map(|_| 0).collect(),
            kinds,
            barred: Box::new([]),
            reach: Reach::default(),
            served: Mutex::default(),
        })
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
                let able = learned.of(&tab, &offers, era, Reach::default());
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
    fn what_agents_say_of_themselves_fills_no_memory() {
        let tab = Buildtab::parse("linux* a t\n", "t").unwrap();
        let large = |bytes: usize| {
            let reach = Reach {
                services: Some(vec!["x".repeat(bytes)]),
                ..Reach::default()
            };
            Learned::default().of(&tab, &[], Era::Later, reach)
        };
        let (mega, small) = (large(1024 * 1024), large(1));
        let mut state = State::default();
        for number in 0..200 {
            state.remember([number; 32], &mega);
            let held: usize = state.lists.values().map(|a| a.bytes()).sum();
            assert!(held == state.bytes && held <= BYTES, "{number}");
        }
        assert!(state.lists.len() > 1 && state.lists.contains_key(&[199; 32]));
        // Small ones have room: then their number counts.
        let mut state = State::default();
        for number in 0..=LISTS {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_le_bytes());
            state.remember(key, &small);
            assert_eq!(state.lists.len(), number % LISTS + 1);
        }
        assert_eq!(state.bytes, small.bytes());
    }

    /// With a long buildtab a short request stands for much.
    #[test]
    fn what_machines_can_build_fills_no_memory() {
        let takers: Arc<[u32]> = (0..5000).collect();
        let mut state = State::default();
        for number in 0..NAMES {
            state.remember_name(&number.to_string(), &takers);
            if number % 500 == 0 {
                let each = state.names.iter();
                let held: usize = each.map(|(name, of)| name.len() + size_of_val(&**of)).sum();
                assert!(held == state.names_bytes && held <= NAMES_BYTES, "{number}");
            }
        }
        assert!(state.names.len() > 1);
        assert!(Abilities::plain(&takers).bytes() > 2 * size_of_val(&*takers));
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
        let of = |era, reach| learned.of(&tab, &offers, era, reach);
        let first = of(Era::Later, Reach::default());
        assert_eq!(&*first.kinds, [0, 2]);
        assert_eq!(
            (first.machine(0), first.machine(2), first.machine(1)),
            (Some(1), Some(0), None)
        );
        assert!(Arc::ptr_eq(&first, &of(Era::Later, Reach::default())));
        assert!(!Arc::ptr_eq(&first, &of(Era::Y2017, Reach::default())));
        let reach = Reach {
            services: Some(vec!["ci".into()]),
            ..Reach::default()
        };
        let ci = of(Era::Later, reach.clone());
        assert!(!Arc::ptr_eq(&first, &ci) && Arc::ptr_eq(&ci, &of(Era::Later, reach)));
        // It has the machines, and nothing plain to do.
        assert_eq!((ci.kinds.len(), ci.machine(0)), (0, Some(1)));
    }
}
