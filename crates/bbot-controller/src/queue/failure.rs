//! Tasks whose machine failed before its worker asked for anything: a matter of the host, not of the build. Such a task is tried
//! again, and elsewhere once it has failed twice on one host.
//!
//! ```text
//!   failed on a host once            any agent may have it next
//!   twice on one host                that host is refused, as long as another agent could build it
//!   outcome::INTERRUPTS times        the build ends as abort (queue::lease)
//! ```
//!
//! A machine that fails later has shown what the build does to it: its result is kept, and nothing is tried again.

use std::collections::BTreeMap;

/// The operation under which an agent of ours says that the machine failed before its worker's first request.
pub const MACHINE_OPERATION: &str = "machine";

/// After so many failures on one host a build is tried elsewhere.
const TRIES: usize = 2;

/// The hosts on which the machine of a build's task failed so since it was queued, one entry for each time. A build host has one
/// agent: its name is the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failures(Vec<String>);

impl Failures {
    /// Those that the store has as text. What is no such text holds no failures: it only says where to try again.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self(serde_json::from_str(text).unwrap_or_default())
    }

    /// The text for the store.
    #[must_use]
    pub fn text(&self) -> String {
        serde_json::json!(self.0).to_string()
    }

    /// With one more, on this host.
    #[must_use]
    pub fn with(mut self, host: &str) -> Self {
        self.0.push(host.to_owned());
        self
    }

    /// Whether there were none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The hosts, each with how often it failed there.
    #[must_use]
    pub fn by_host(&self) -> BTreeMap<&str, usize> {
        let mut hosts = BTreeMap::new();
        for host in &self.0 {
            *hosts.entry(host.as_str()).or_insert(0) += 1;
        }
        hosts
    }

    /// Whether this host is avoided.
    #[must_use]
    pub fn avoids(&self, host: &str) -> bool {
        self.0.iter().filter(|failed| *failed == host).count() >= TRIES
    }

    /// The hosts that are avoided.
    #[must_use]
    pub fn avoided(&self) -> Vec<&str> {
        let hosts = self.by_host().into_iter();
        hosts
            .filter(|(_, times)| *times >= TRIES)
            .map(|(host, _)| host)
            .collect()
    }
}

/// Whether another agent could build it, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// One could, or it is not known yet.
    Some,
    /// None could.
    None,
}

/// Whether an agent on this host does not get the build. `others`: asked only where the host is avoided; whether there is
/// another agent that could build it and whose host is not avoided.
#[must_use]
pub fn refuses(failures: &Failures, host: &str, others: impl FnOnce() -> Others) -> bool {
    failures.avoids(host) && others() == Others::Some
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::lease::{Lapse, Tries, lapse};
    use crate::queue::outcome::{Again, INTERRUPTS};
    use proptest::prelude::*;

    fn on(hosts: &[&str]) -> Failures {
        let none = Failures::default();
        hosts
            .iter()
            .fold(none, |failures, host| failures.with(host))
    }

    #[test]
    fn twice_on_one_host_is_enough() {
        for (failed, host, others, expected) in [
            (&[][..], "a", Others::Some, false),
            (&["a"], "a", Others::Some, false),
            (&["a", "b"], "a", Others::Some, false),
            (&["a", "b", "a"], "a", Others::Some, true),
            (&["a", "a"], "b", Others::Some, false),
            (&["a", "a"], "A", Others::Some, false),
            // Better there than nowhere.
            (&["a", "a"], "a", Others::None, false),
            (&["a", "a", "b", "b"], "b", Others::None, false),
        ] {
            let failures = on(failed);
            assert_eq!(
                refuses(&failures, host, || others),
                expected,
                "{failed:?} {host}"
            );
        }
        assert!(!refuses(&on(&["a"]), "a", || unreachable!()));
    }

    #[test]
    fn the_store_has_them_as_text() {
        let failures = on(&["a", "b \"x\"", "a"]);
        assert_eq!(failures.text(), r#"["a","b \"x\"","a"]"#);
        assert_eq!(Failures::parse(&failures.text()), failures);
        assert_eq!(
            failures.by_host().into_iter().collect::<Vec<_>>(),
            [("a", 2), ("b \"x\"", 1)]
        );
        assert_eq!(failures.avoided(), ["a"]);
        for text in ["[]", "", "{", "[1]"] {
            assert!(Failures::parse(text).is_empty(), "{text}");
        }
    }

    proptest! {
        /// Whichever agents are there, and whoever of them asks next: the task ends within its bound, as long as one of them asks; no pair
        /// is repeated a third time while another could have had it; and where fewer than three hosts are broken, one that
        /// is not builds it.
        #[test]
        fn a_task_ends_and_finds_a_host_that_works(
            broken in proptest::collection::vec(any::<bool>(), 1..5),
            turns in proptest::collection::vec(0_usize..5, 0..20),
        ) {
            let hosts: Vec<String> = (0..broken.len()).map(|n| format!("host{n}")).collect();
            let mut failures = Failures::default();
            let mut interrupts = 0;
            let mut built = false;
            let mut ended = false;
            for turn in turns.into_iter().chain(0..50) {
                let host = turn % hosts.len();
                let others = || {
                    let could = hosts.iter().any(|other| *other != hosts[host] && !failures.avoids(other));
                    if could { Others::Some } else { Others::None }
                };
                if refuses(&failures, &hosts[host], others) {
                    continue;
                }
                if !broken[host] {
                    built = true;
                    break;
                }
                prop_assert!(
                    !failures.avoids(&hosts[host]) || hosts.iter().all(|h| failures.avoids(h)),
                    "{failures:?} once more on {host}"
                );
                failures = failures.with(&hosts[host]);
                ended = lapse(interrupts, 0, Again::No, Tries::Many) == Lapse::GiveUp;
                interrupts += 1;
                if ended {
                    break;
                }
            }
            prop_assert!(interrupts <= INTERRUPTS);
            let bad = broken.iter().filter(|broken| **broken).count();
            if bad < broken.len() && bad < 3 {
                prop_assert!(built && !ended, "{failures:?}");
            } else {
                prop_assert!(built || ended, "{failures:?}");
            }
        }
    }
}
