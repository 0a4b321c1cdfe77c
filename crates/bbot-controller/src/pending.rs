//! Agents that wait for a person to let them in. In memory and bounded: who is there asks again, and a stranger fills no store.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::Millis;

/// So many are remembered, those that were heard of last.
const LIMIT: usize = 1000;

/// So many of one address: whoever makes names up pushes out nobody else.
const OF_ONE_ADDRESS: usize = 32;

/// So many of its machines are remembered.
const MACHINES: usize = 16;

/// An agent that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pending {
    /// Its name, as it says.
    pub(crate) agent: String,
    /// The fingerprint of its key; none: it has none.
    pub(crate) fingerprint: Option<String>,
    /// The key, where it shows it.
    pub(crate) key: Option<String>,
    /// Where it asks from.
    pub(crate) address: Option<IpAddr>,
    /// Names of the first of its machines.
    pub(crate) machines: Vec<String>,
    /// When it was heard of last.
    pub(crate) seen: Millis,
}

/// Those who wait, by name and fingerprint: one name may be claimed with several keys.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Mutex<HashMap<(String, Option<String>), Pending>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<(String, Option<String>), Pending>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An agent asks; whether it was not known yet.
    pub(crate) fn asks(&self, mut pending: Pending) -> bool {
        pending.machines.truncate(MACHINES);
        let key = (pending.agent.clone(), pending.fingerprint.clone());
        let mut all = self.lock();
        if !all.contains_key(&key) {
            let of_it = |p: &&Pending| p.address == pending.address;
            let crowd = all.values().filter(of_it).count() >= OF_ONE_ADDRESS;
            let oldest = all
                .values()
                .filter(|p| !crowd || of_it(p))
                .min_by_key(|p| p.seen)
                .map(|p| (p.agent.clone(), p.fingerprint.clone()));
            if crowd || all.len() >= LIMIT {
                oldest.and_then(|oldest| all.remove(&oldest));
            }
        }
        all.insert(key, pending).is_none()
    }

    /// All of them, by name.
    pub(crate) fn list(&self) -> Vec<Pending> {
        let mut all: Vec<Pending> = self.lock().values().cloned().collect();
        all.sort_unstable_by(|a, b| (&a.agent, &a.fingerprint).cmp(&(&b.agent, &b.fingerprint)));
        all
    }

    /// Those of this name.
    pub(crate) fn of(&self, agent: &str) -> Vec<Pending> {
        let mut all = self.list();
        all.retain(|p| p.agent == agent);
        all
    }

    /// It waits no more.
    pub(crate) fn done(&self, agent: &str, fingerprint: Option<&str>) {
        let key = (agent.to_owned(), fingerprint.map(str::to_owned));
        self.lock().remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(agent: &str, address: [u8; 4], seen: i64) -> Pending {
        Pending {
            agent: agent.to_owned(),
            fingerprint: None,
            key: None,
            address: Some(address.into()),
            machines: vec!["m".to_owned(); 100],
            seen: Millis(seen),
        }
    }

    #[test]
    fn who_makes_names_up_pushes_out_nobody_else() {
        let waiting = Waiting::default();
        assert!(waiting.asks(pending("honest", [10, 0, 0, 1], 0)));
        assert!(!waiting.asks(pending("honest", [10, 0, 0, 1], 0)));
        for n in 1..5000 {
            waiting.asks(pending(&format!("made-up-{n}"), [10, 6, 6, 6], n));
        }
        let all = waiting.list();
        assert_eq!(all.len(), OF_ONE_ADDRESS + 1);
        assert!(all.iter().any(|p| p.agent == "honest"));
        assert!(all.iter().any(|p| p.agent == "made-up-4999"));
        assert_eq!(all[0].machines.len(), MACHINES);
        for n in 0..=255 {
            for m in 0..8 {
                waiting.asks(pending(&format!("{n}-{m}"), [10, 7, n, m], 9999));
            }
        }
        assert_eq!(waiting.list().len(), LIMIT);
        waiting.done("255-7", None);
        assert!(waiting.of("255-7").is_empty());
    }
}
