//! Which machine would build which configuration.

use bbot_manifest::Era;

use crate::buildtab::{Buildtab, Configuration};
use crate::pattern::Matching;

/// A machine that an agent offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it builds (else it is there for others: an auxiliary machine).
    pub role: Role,
}

/// What an offered machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It builds.
    Build,
    /// It serves a build on another machine.
    Auxiliary,
}

/// A configuration that the agent can build, with the machine that would do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Index of the configuration in the buildtab.
    pub configuration: usize,
    /// Index of the offered machine.
    pub machine: usize,
}

/// Whether agents of this era are given it. Those of 2017 are given what lines of 2017 are for: for an environment and for package
/// configurations their wire has no word, and without it the result would be of something else.
#[must_use]
pub fn is_for(configuration: &Configuration, era: Era) -> bool {
    era != Era::Y2017 || configuration.matching == Matching::Plain
}

/// For each configuration the first offered build machine that it takes, in the order of the buildtab.
#[must_use]
pub fn candidates(buildtab: &Buildtab, offers: &[Offer<'_>], era: Era) -> Vec<Candidate> {
    buildtab
        .configurations()
        .iter()
        .enumerate()
        .filter(|(_, configuration)| is_for(configuration, era))
        .filter_map(|(number, configuration)| {
            offers
                .iter()
                .position(|offer| offer.role == Role::Build && configuration.takes(offer.name))
                .map(|machine| Candidate {
                    configuration: number,
                    machine,
                })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offers<'a>(names: &[&'a str]) -> Vec<Offer<'a>> {
        names
            .iter()
            .map(|name| Offer {
                name,
                role: Role::Build,
            })
            .collect()
    }

    fn chosen(tab: &str, names: &[Offer<'_>], era: Era) -> Vec<(String, usize)> {
        let tab = Buildtab::parse(tab, "t").unwrap();
        candidates(&tab, names, era)
            .iter()
            .map(|c| {
                (
                    tab.configurations()[c.configuration].name.clone(),
                    c.machine,
                )
            })
            .collect()
    }

    #[test]
    fn the_first_machine_that_matches() {
        let tab = "linux* a t\nlinux-gcc b t\nwindows* c t\n";
        assert_eq!(
            chosen(
                tab,
                &offers(&["bsd", "linux-gcc", "linux-clang"]),
                Era::Y2017
            ),
            [("a".to_owned(), 1), ("b".to_owned(), 1)]
        );
        assert_eq!(chosen(tab, &offers(&["bsd"]), Era::Y2017), []);
        assert_eq!(chosen(tab, &[], Era::Later), []);
    }

    #[test]
    fn auxiliary_machines_build_nothing() {
        let offers = [
            Offer {
                name: "linux-a",
                role: Role::Auxiliary,
            },
            Offer {
                name: "linux-b",
                role: Role::Build,
            },
        ];
        assert_eq!(
            chosen("linux* a t\n", &offers, Era::Later),
            [("a".to_owned(), 1)]
        );
    }

    #[test]
    fn later_lines_are_for_later_agents() {
        let tab = "w** a t/vc143 all\nw* b t\nw** c t all\n";
        assert_eq!(
            chosen(tab, &offers(&["w"]), Era::Y2017),
            [("b".to_owned(), 0)]
        );
        assert_eq!(
            chosen(tab, &offers(&["w"]), Era::Later),
            ["a", "b", "c"].map(|name| (name.to_owned(), 0))
        );
    }

    proptest! {
        #[test]
        fn a_candidate_is_always_takeable(names in proptest::collection::vec("(linux|bsd)-[ab]", 0..6)) {
            let tab = Buildtab::parse("linux* l t\n*-a a t\nbsd** b t all\n", "t").unwrap();
            let offers: Vec<Offer<'_>> = names.iter().map(|n| Offer { name: n, role: Role::Build }).collect();
            for c in candidates(&tab, &offers, Era::Later) {
                let configuration = &tab.configurations()[c.configuration];
                prop_assert!(configuration.takes(&names[c.machine]));
                prop_assert!(names[..c.machine].iter().all(|n| !configuration.takes(n)));
            }
        }
    }
}
