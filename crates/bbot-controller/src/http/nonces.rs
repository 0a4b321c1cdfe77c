//! Requests that were signed by agents' keys and have come: none of them is taken once more.
//!
//! A request counts only for as long as its time is near ours, and is remembered for as long. What is remembered is lost with the
//! process and is not told to other controllers: there a request that comes once more finds that its session key has
//! served (`store/hand_out.rs`), and gets no task.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, PoisonError};

/// So many are remembered at most, of eight bytes each: what ten thousand agents ask in half an hour.
const MOST: usize = 1_000_000;

/// Those of so many seconds are forgotten together.
const TOGETHER: i64 = 60;

/// What a request is, by its nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coming {
    /// It has not come before.
    First,
    /// It has.
    Again,
    /// That cannot be known: too many have come.
    Unknown,
}

/// The requests that have come.
#[derive(Debug, Default)]
pub(super) struct Nonces {
    /// By when they were signed, and then by their hash: one of 64 bits with a secret of its own cannot be made to collide.
    come: Mutex<BTreeMap<i64, HashSet<u64>>>,
    hash: RandomState,
}

impl Nonces {
    /// A request comes that was signed at `created` by the key of this fingerprint; `window`: for how many seconds it counts.
    pub(super) fn comes(
        &self,
        fingerprint: &str,
        nonce: &str,
        created: i64,
        (now, window): (i64, i64),
    ) -> Coming {
        let mut come = self.come.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = now.saturating_sub(window).div_euclid(TOGETHER);
        *come = come.split_off(&oldest);
        let known: usize = come.values().map(HashSet::len).sum();
        let hash = self.hash.hash_one((fingerprint, nonce, created));
        let of_then = come.entry(created.div_euclid(TOGETHER)).or_default();
        if of_then.contains(&hash) {
            Coming::Again
        } else if known >= MOST {
            Coming::Unknown
        } else {
            of_then.insert(hash);
            Coming::First
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: i64 = 300;

    #[test]
    fn one_that_came_comes_no_more_while_it_counts() {
        let nonces = Nonces::default();
        let comes =
            |key: &str, nonce: &str, created, now| nonces.comes(key, nonce, created, (now, WINDOW));
        assert_eq!(comes("k", "1", 1000, 1000), Coming::First);
        assert_eq!(comes("k", "1", 1000, 1000), Coming::Again);
        assert_eq!(comes("k", "2", 1000, 1000), Coming::First);
        assert_eq!(comes("l", "1", 1000, 1000), Coming::First);
        assert_eq!(comes("k", "1", 1000, 1300), Coming::Again);
        // From a clock that is ahead, to the last moment at which it counts.
        assert_eq!(comes("k", "3", 1300, 1000), Coming::First);
        assert_eq!(comes("k", "3", 1300, 1600), Coming::Again);
    }

    #[test]
    fn what_does_not_count_any_more_takes_no_room() {
        let nonces = Nonces::default();
        for second in 0..10_000 {
            let nonce = second.to_string();
            assert_eq!(
                nonces.comes("k", &nonce, second, (second, WINDOW)),
                Coming::First
            );
        }
        let left: usize = nonces.come.lock().unwrap().values().map(HashSet::len).sum();
        assert!((300..=360).contains(&left), "{left}");
    }

    #[test]
    fn there_is_an_end_to_it() {
        let nonces = Nonces::default();
        let full: HashSet<u64> = (0..MOST as u64).collect();
        nonces.come.lock().unwrap().insert(0, full);
        assert_eq!(nonces.comes("k", "1", 30, (30, WINDOW)), Coming::Unknown);
        assert_eq!(nonces.comes("k", "1", 400, (400, WINDOW)), Coming::First);
    }
}
