//! Which era's wire an agent is answered on.
//!
//! A reader of 2017 refuses fields that came later, so the controller has to know before it answers. The
//! rule is pinned in `docs/protocol.md`, section 6; the first that applies decides.

use std::str::FromStr;

use bbot_manifest::{Era, MachineHeader, TaskRequest};

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EraChoice {
    /// Find out from each request.
    #[default]
    Auto,
    /// The same for all agents.
    Fixed(Era),
}

/// A word that is no era.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not one of auto, 2017, later")]
pub struct UnknownEra(String);

impl FromStr for EraChoice {
    type Err = UnknownEra;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "2017" => Ok(Self::Fixed(Era::Y2017)),
            "later" => Ok(Self::Fixed(Era::Later)),
            other => Err(UnknownEra(other.to_owned())),
        }
    }
}

/// Whether a request came with the mark of an agent of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// It has the header `Bbot-Agent`: it knows our additions, and wants to be told the truth.
    Ours,
    /// It has not.
    Stranger,
}

/// The first toolchain version whose agents speak the later wire: 0.8.
const LATER: (u64, u64) = (0, 8);

/// The era of the agent that sent this request.
#[must_use]
pub fn detect(choice: EraChoice, peer: Peer, request: &TaskRequest) -> Era {
    if let EraChoice::Fixed(era) = choice {
        return era;
    }
    let later_machine =
        |m: &MachineHeader| m.role.is_some() || m.ram_minimum.is_some() || m.ram_maximum.is_some();
    let version = &request.toolchain_version;
    let later = peer == Peer::Ours
        || request.interactive_mode.is_some()
        || request.interactive_login.is_some()
        || request.auxiliary_ram.is_some()
        || request.machines.iter().any(later_machine)
        || (version.major(), version.minor()) >= LATER;
    if later { Era::Later } else { Era::Y2017 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: &str, more: &str, machine: &str) -> TaskRequest {
        let text = format!(
            ": 1\nagent: a\ntoolchain-name: default\ntoolchain-version: {version}\n{more}:\nid: 1\nname: m\nsummary: M\n{machine}"
        );
        TaskRequest::parse(text.as_bytes(), "test").unwrap()
    }

    #[test]
    fn table() {
        for (version, more, machine, expected) in [
            ("0.7.0-a.0.z", "", "", Era::Y2017),
            ("0.7.5", "", "", Era::Y2017),
            ("0.8.0-a.1", "", "", Era::Later),
            ("0.8.0", "", "", Era::Later),
            ("0.17.0", "", "", Era::Later),
            ("1.0.0", "", "", Era::Later),
            ("0.7.0", "interactive-mode: false\n", "", Era::Later),
            (
                "0.7.0",
                "interactive-mode: both\ninteractive-login: ssh x\n",
                "",
                Era::Later,
            ),
            ("0.7.0", "auxiliary-ram: 1024\n", "", Era::Later),
            ("0.7.0", "", "role: build\n", Era::Later),
            ("0.7.0", "", "ram-minimum: 1024\n", Era::Later),
            ("0.7.0", "", "ram-maximum: 1024\n", Era::Later),
        ] {
            let request = request(version, more, machine);
            assert_eq!(
                detect(EraChoice::Auto, Peer::Stranger, &request),
                expected,
                "{version} {more} {machine}"
            );
            assert_eq!(detect(EraChoice::Auto, Peer::Ours, &request), Era::Later);
            for era in [Era::Y2017, Era::Later] {
                assert_eq!(detect(EraChoice::Fixed(era), Peer::Ours, &request), era);
            }
        }
    }

    #[test]
    fn the_words_of_the_option() {
        assert_eq!("auto".parse(), Ok(EraChoice::Auto));
        assert_eq!("2017".parse(), Ok(EraChoice::Fixed(Era::Y2017)));
        assert_eq!("later".parse(), Ok(EraChoice::Fixed(Era::Later)));
        assert_eq!(
            "2018".parse::<EraChoice>().unwrap_err().to_string(),
            "\"2018\" is not one of auto, 2017, later"
        );
    }
}
