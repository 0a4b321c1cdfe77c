//! What to do with a machine: use it, bootstrap it (again), or leave it alone.
//!
//! A bootstrapped machine is obsolete when (the seed, but for the versions of the
//! original's workers, below):
//!
//! 1. the machine has another revision (its id differs);
//! 2. the toolchain is another one (its id differs, and ours is known);
//! 3. a worker of ours in it is older than the agent.
//!
//! A worker of ours that is *newer* than the agent means that the agent is about
//! to be upgraded: the machine is left alone, whatever else has changed. The
//! versions of a worker of the original say nothing about us.

use std::cmp::Ordering;
use std::fmt;

use bbot_manifest::{BootstrapManifest, BootstrappedMachine, MachineHeader, StandardVersion};

use crate::version::COMPARED;

/// What this agent is.
#[derive(Debug, Clone)]
pub struct Agent {
    /// The toolchain's id, if it is known.
    pub toolchain_id: Option<String>,
    /// The version of the agent's parts.
    pub version: StandardVersion,
}

/// What to do with a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is bootstrapped.
    Use,
    /// It must be bootstrapped.
    Bootstrap(Why),
    /// Its worker is newer than the agent: not now.
    Leave,
}

/// Why a machine must be bootstrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It never was.
    New,
    /// The manifest of the bootstrapped one cannot be read.
    Unreadable,
    /// The machine has another revision.
    NewMachine,
    /// The toolchain is another one.
    NewToolchain,
    /// The worker is older than the agent.
    NewBbot,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "not bootstrapped yet",
            Self::Unreadable => "manifest not readable",
            Self::NewMachine => "new machine",
            Self::NewToolchain => "new toolchain",
            Self::NewBbot => "new bbot",
        })
    }
}

/// What there is of a bootstrapped machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing<'a> {
    /// Nothing.
    Nothing,
    /// A directory whose manifest cannot be read.
    Unreadable,
    /// This.
    Bootstrapped(&'a BootstrappedMachine),
}

/// What to do with the machine that `current` describes.
pub fn decide(agent: &Agent, current: &MachineHeader, existing: Existing<'_>) -> Decision {
    let there = match existing {
        Existing::Nothing => return Decision::Bootstrap(Why::New),
        Existing::Unreadable => return Decision::Bootstrap(Why::Unreadable),
        Existing::Bootstrapped(there) => there,
    };
    let worker = compare_worker(&there.bootstrap, &agent.version);
    let other_toolchain = agent
        .toolchain_id
        .as_ref()
        .is_some_and(|id| *id != there.toolchain.id);
    if worker == Ordering::Greater {
        Decision::Leave
    } else if there.machine.header.id != current.id {
        Decision::Bootstrap(Why::NewMachine)
    } else if other_toolchain {
        Decision::Bootstrap(Why::NewToolchain)
    } else if worker == Ordering::Less {
        Decision::Bootstrap(Why::NewBbot)
    } else {
        Decision::Use
    }
}

/// What to do with a machine that was bootstrapped just now.
pub fn after_bootstrap(own: &StandardVersion, bootstrap: &BootstrapManifest) -> Decision {
    match compare_worker(bootstrap, own) {
        Ordering::Greater => Decision::Leave,
        // The seed: "assuming test setup". Bootstrapping again would give the same.
        Ordering::Less | Ordering::Equal => Decision::Use,
    }
}

/// Whether a worker is older than, as old as, or newer than the agent. One of the
/// original counts as the same.
pub fn compare_worker(bootstrap: &BootstrapManifest, own: &StandardVersion) -> Ordering {
    if !bootstrap.is_ours() {
        return Ordering::Equal;
    }
    // From the top: a dependency cannot change without its dependents.
    COMPARED
        .iter()
        .map(|name| match bootstrap.versions.get(*name) {
            Some(version) => version.cmp(own),
            None => Ordering::Less,
        })
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use bbot_manifest::{MachineKind, MachineManifest, ToolchainManifest};

    use super::*;

    fn header(id: &str) -> MachineHeader {
        MachineHeader {
            id: id.to_owned(),
            name: "linux".to_owned(),
            summary: "Linux".to_owned(),
            role: None,
            ram_minimum: None,
            ram_maximum: None,
        }
    }

    fn versions(versions: &[(&str, &str)]) -> BootstrapManifest {
        BootstrapManifest {
            versions: versions
                .iter()
                .map(|(name, v)| ((*name).to_owned(), StandardVersion::parse(v).unwrap()))
                .collect(),
        }
    }

    /// Our worker with the four versions.
    fn ours(v: [&str; 4]) -> BootstrapManifest {
        let mut all: Vec<(&str, &str)> = COMPARED.into_iter().zip(v).collect();
        all.push((BootstrapManifest::MARK, v[0]));
        versions(&all)
    }

    fn originals(v: &str) -> BootstrapManifest {
        versions(&COMPARED.map(|name| (name, v)))
    }

    fn bootstrapped(
        id: &str,
        toolchain: &str,
        bootstrap: BootstrapManifest,
    ) -> BootstrappedMachine {
        BootstrappedMachine {
            machine: MachineManifest {
                header: header(id),
                kind: MachineKind::Kvm,
                mac: None,
                options: None,
                changes: Vec::new(),
            },
            toolchain: ToolchainManifest {
                id: toolchain.to_owned(),
            },
            bootstrap,
        }
    }

    fn agent(toolchain: Option<&str>) -> Agent {
        Agent {
            toolchain_id: toolchain.map(str::to_owned),
            version: StandardVersion::parse("1.2.0").unwrap(),
        }
    }

    /// The agent is 1.2.0 with toolchain T, the machine has id M.
    #[test]
    fn table() {
        use Decision::*;
        let same = ["1.2.0"; 4];
        let older = ["1.1.0"; 4];
        let newer = ["1.3.0"; 4];
        let rows = [
            // our worker: machine, toolchain, versions
            ("M", "T", ours(same), Use),
            ("N", "T", ours(same), Bootstrap(Why::NewMachine)),
            ("M", "U", ours(same), Bootstrap(Why::NewToolchain)),
            ("N", "U", ours(same), Bootstrap(Why::NewMachine)),
            ("M", "T", ours(older), Bootstrap(Why::NewBbot)),
            ("M", "T", ours(newer), Leave),
            // newer wins over every other change
            ("N", "U", ours(newer), Leave),
            // from the top: the first that differs decides
            ("M", "T", ours(["1.2.0", "1.3.0", "1.1.0", "1.1.0"]), Leave),
            (
                "M",
                "T",
                ours(["1.2.0", "1.1.0", "1.3.0", "1.3.0"]),
                Bootstrap(Why::NewBbot),
            ),
            (
                "M",
                "T",
                ours(["1.2.0", "1.2.0", "1.2.0", "1.2.1-a.1"]),
                Leave,
            ),
            // a missing version is an older one
            (
                "M",
                "T",
                versions(&[("bbot-worker", "1.2.0")]),
                Bootstrap(Why::NewBbot),
            ),
            // the original's worker: versions say nothing
            ("M", "T", originals("0.7.0"), Use),
            ("M", "T", originals("9.0.0"), Use),
            ("M", "T", versions(&[]), Use),
            ("N", "T", originals("9.0.0"), Bootstrap(Why::NewMachine)),
            ("M", "U", originals("0.7.0"), Bootstrap(Why::NewToolchain)),
        ];
        for (id, toolchain, bootstrap, expected) in rows {
            let there = bootstrapped(id, toolchain, bootstrap);
            let existing = Existing::Bootstrapped(&there);
            assert_eq!(
                decide(&agent(Some("T")), &header("M"), existing),
                expected,
                "{there:?}"
            );
        }
    }

    #[test]
    fn without_an_id_the_toolchain_is_not_compared() {
        let there = bootstrapped("M", "bogus", originals("1.2.0"));
        let existing = Existing::Bootstrapped(&there);
        assert_eq!(decide(&agent(None), &header("M"), existing), Decision::Use);
        assert_eq!(
            decide(&agent(Some("T")), &header("M"), existing),
            Decision::Bootstrap(Why::NewToolchain)
        );
    }

    #[test]
    fn what_is_not_there_or_not_readable_is_bootstrapped() {
        let of = |existing| decide(&agent(None), &header("M"), existing);
        assert_eq!(of(Existing::Nothing), Decision::Bootstrap(Why::New));
        assert_eq!(
            of(Existing::Unreadable),
            Decision::Bootstrap(Why::Unreadable)
        );
    }

    #[test]
    fn a_fresh_bootstrap_is_used_unless_newer() {
        let agent = agent(Some("T"));
        assert_eq!(
            after_bootstrap(&agent.version, &ours(["1.2.0"; 4])),
            Decision::Use
        );
        assert_eq!(
            after_bootstrap(&agent.version, &ours(["1.1.0"; 4])),
            Decision::Use
        );
        assert_eq!(
            after_bootstrap(&agent.version, &ours(["1.3.0"; 4])),
            Decision::Leave
        );
        assert_eq!(
            after_bootstrap(&agent.version, &originals("9.0.0")),
            Decision::Use
        );
    }
}
