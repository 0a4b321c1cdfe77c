//! Auxiliary machines: which of those that an agent offers serve a build, each one environment of it, within the agent's memory.
//!
//! The original takes the first machine that fits each pattern in turn and gives up when one is left without, although another
//! choice would have served all. Here a choice is found whenever there is one, and it is the one that takes the least memory.

use std::collections::BTreeMap;

use crate::pattern::{Matching, matches};

/// Auxiliary machines of a task at most, as in the original.
pub const MOST: usize = 9;

/// An auxiliary machine that an agent offers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Auxiliary {
    /// Its name without the architecture, which patterns are for.
    pub name: String,
    /// Its number among all machines that are offered.
    pub machine: usize,
    /// The memory that it needs, in KiB.
    pub ram: u64,
}

/// What an auxiliary machine's name lacks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name of the auxiliary machine {name:?} has no {part} component: expected ARCHITECTURE-OS[-...]"
)]
pub struct BadName {
    name: String,
    part: &'static str,
}

/// The name of an auxiliary machine without its first component, the architecture.
///
/// # Errors
/// It has no such component, or nothing else.
pub fn without_architecture(name: &str) -> Result<&str, BadName> {
    let bad = |part| BadName {
        name: name.to_owned(),
        part,
    };
    match name.split_once('-') {
        Some(("", _)) => Err(bad("architecture")),
        None | Some((_, "")) => Err(bad("OS")),
        Some((_, rest)) => Ok(rest),
    }
}

/// Chooses for each environment a machine that its pattern matches, none twice, so that all together need the least memory, which must
/// not be more than `ram` KiB: their numbers, in the order of the environments. `None` where there is no such choice.
#[must_use]
pub fn choose(
    wanted: &BTreeMap<String, String>,
    offered: &[Auxiliary],
    ram: Option<u64>,
) -> Option<Vec<usize>> {
    if wanted.len() > MOST {
        return None;
    }
    let mut offered: Vec<&Auxiliary> = offered.iter().collect();
    offered.sort_by_key(|machine| (machine.ram, machine.machine));
    // Of an environment only the first few count: whichever of them others have, one is left.
    let mut candidates: BTreeMap<usize, usize> = BTreeMap::new();
    for (number, pattern) in wanted.values().enumerate() {
        let fitting = |(_, machine): &(usize, &&Auxiliary)| {
            matches(Matching::Components, pattern, &machine.name)
        };
        let mut all = offered
            .iter()
            .enumerate()
            .filter(fitting)
            .take(wanted.len());
        let first = all.next()?;
        for (at, _) in std::iter::once(first).chain(all) {
            *candidates.entry(at).or_default() |= 1 << number;
        }
    }
    // By which environments are served (as bits): the least memory that serves them, and for each by which machine.
    let mut least: Vec<Option<(u64, [usize; MOST])>> = vec![None; 1 << wanted.len()];
    least[0] = Some((0, [0; MOST]));
    for (at, serves) in candidates {
        let machine = offered[at];
        // From all to none, so that each machine is taken once.
        for served in (0..least.len()).rev() {
            let Some((had, chosen)) = least[served] else {
                continue;
            };
            let needs = had.saturating_add(machine.ram);
            if ram.is_some_and(|ram| needs > ram) {
                continue;
            }
            for number in (0..wanted.len()).filter(|n| serves & !served & (1 << n) != 0) {
                let with = &mut least[served | 1 << number];
                if with.is_none_or(|(least, _)| needs < least) {
                    let mut chosen = chosen;
                    chosen[number] = machine.machine;
                    *with = Some((needs, chosen));
                }
            }
        }
    }
    let (_, chosen) = least.pop().flatten()?;
    Some(chosen[..wanted.len()].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn machines(all: &[(&str, u64)]) -> Vec<Auxiliary> {
        let machine = |(machine, (name, ram)): (usize, &(&str, u64))| Auxiliary {
            name: (*name).to_owned(),
            machine,
            ram: *ram,
        };
        all.iter().enumerate().map(machine).collect()
    }

    fn wanted(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(name, pattern): &(&str, &str)| ((*name).to_owned(), (*pattern).to_owned());
        all.iter().map(owned).collect()
    }

    #[test]
    fn names() {
        let said = |name| without_architecture(name).map_err(|e| e.to_string());
        assert_eq!(
            said("x86_64-linux_debian_12-postgresql_16").unwrap(),
            "linux_debian_12-postgresql_16"
        );
        for (name, part) in [
            ("-linux", "architecture"),
            ("x86_64", "OS"),
            ("x86_64-", "OS"),
            ("-", "architecture"),
        ] {
            let error = said(name).unwrap_err();
            assert!(error.contains(&format!("no {part} component")), "{error}");
        }
    }

    #[test]
    fn a_choice_is_found_where_the_first_one_that_fits_would_leave_another_without() {
        let offered = machines(&[("linux-pg_16", 4), ("linux-pg_15", 2), ("linux-mysql", 3)]);
        let both = wanted(&[("a", "linux-pg_*"), ("b", "linux-pg_15")]);
        assert_eq!(choose(&both, &offered, None), Some(vec![0, 1]));
        assert_eq!(choose(&both, &offered, Some(6)), Some(vec![0, 1]));
        assert_eq!(choose(&both, &offered, Some(5)), None);
        // The least memory.
        assert_eq!(
            choose(&wanted(&[("", "*-pg_*")]), &offered, None),
            Some(vec![1])
        );
        assert_eq!(
            choose(&wanted(&[("", "linux**")]), &offered, Some(2)),
            Some(vec![1])
        );
        assert_eq!(choose(&wanted(&[("", "*-oracle")]), &offered, None), None);
        assert_eq!(choose(&wanted(&[]), &[], Some(0)), Some(vec![]));
        let many: Vec<(String, String)> =
            (0..10).map(|n| (n.to_string(), "**".to_owned())).collect();
        let offered = machines(&[("linux-a", 0); 20]);
        assert_eq!(
            choose(&many.iter().cloned().collect(), &offered, None),
            None
        );
        let chosen = choose(&many.into_iter().take(9).collect(), &offered, None).unwrap();
        assert_eq!(chosen.len(), 9);
    }

    /// The least memory of all choices, each tried.
    fn brute(patterns: &[&String], offered: &[Auxiliary], used: &mut Vec<usize>) -> Option<u64> {
        let Some((pattern, rest)) = patterns.split_first() else {
            return Some(0);
        };
        let mut best: Option<u64> = None;
        for machine in offered {
            if used.contains(&machine.machine)
                || !matches(Matching::Components, pattern, &machine.name)
            {
                continue;
            }
            used.push(machine.machine);
            if let Some(more) = brute(rest, offered, used) {
                let all = more + machine.ram;
                best = Some(best.map_or(all, |best| best.min(all)));
            }
            used.pop();
        }
        best
    }

    proptest! {
        #[test]
        fn as_one_who_tries_every_choice(
            offered in proptest::collection::vec(("linux-[ab](-[xy])?", 0_u64..6), 0..7),
            wanted in proptest::collection::btree_map("[a-e]", "(linux|\\*)-[ab*](-[xy*])?", 0..5),
            ram in proptest::option::of(0_u64..16),
        ) {
            let all: Vec<(&str, u64)> = offered.iter().map(|(name, ram)| (name.as_str(), *ram)).collect();
            let offered = machines(&all);
            let patterns: Vec<&String> = wanted.values().collect();
            let least = brute(&patterns, &offered, &mut Vec::new()).filter(|least| ram.is_none_or(|ram| *least <= ram));
            let chosen = choose(&wanted, &offered, ram);
            prop_assert_eq!(chosen.is_some(), least.is_some());
            if let Some(chosen) = chosen {
                prop_assert_eq!(chosen.len(), wanted.len());
                for (pattern, machine) in patterns.iter().zip(&chosen) {
                    prop_assert!(matches(Matching::Components, pattern, &offered[*machine].name));
                }
                let needs: u64 = chosen.iter().map(|machine| offered[*machine].ram).sum();
                prop_assert_eq!(Some(needs), least);
                let mut once = chosen.clone();
                once.sort_unstable();
                once.dedup();
                prop_assert_eq!(once.len(), chosen.len());
            }
        }
    }
}
