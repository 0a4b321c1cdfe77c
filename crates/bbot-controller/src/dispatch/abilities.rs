//! What agents can build: the buildtab's patterns against the names of their machines, remembered, since an agent has the same
//! machines each time that it asks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bbot_manifest::Era;
use sha2::{Digest as _, Sha256};

use super::waiters::Kinds;
use crate::buildtab::Buildtab;
use crate::queue::select::{self, Offer, Role};

/// Lists of machines that are remembered: more than a large farm has. Then all are forgotten, and those that ask are learned anew.
const LISTS: usize = 20_000;

/// What an agent can build.
#[derive(Debug)]
pub(crate) struct Abilities {
    /// Numbers of configurations in the buildtab, ascending.
    pub(crate) kinds: Kinds,
    /// For each of them the number of the machine that would do it.
    machines: Box<[u32]>,
}

impl Abilities {
    /// The machine for a configuration that is among them.
    pub(crate) fn machine(&self, kind: u32) -> Option<usize> {
        let at = self.kinds.binary_search(&kind).ok()?;
        self.machines.get(at).map(|machine| *machine as usize)
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
pub(crate) struct Learned(Mutex<HashMap<Key, Arc<Abilities>>>);

impl Learned {
    /// What an agent of this era with these machines can build.
    pub(crate) fn of(&self, buildtab: &Buildtab, offers: &[Offer<'_>], era: Era) -> Arc<Abilities> {
        let key = key(offers, era);
        let mut learned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = learned.get(&key) {
            return Arc::clone(known);
        }
        if learned.len() >= LISTS {
            learned.clear();
        }
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let (kinds, machines): (Vec<u32>, Vec<u32>) = select::candidates(buildtab, offers, era)
            .into_iter()
            .map(|candidate| (number(candidate.configuration), number(candidate.machine)))
            .unzip();
        let abilities = Arc::new(Abilities {
            kinds: kinds.into(),
            machines: machines.into(),
        });
        learned.insert(key, Arc::clone(&abilities));
        abilities
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
