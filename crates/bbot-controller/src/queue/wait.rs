//! Why a build waits: what keeps it from an agent, told of the agents that come nearest to having it.
//!
//! ```text
//!   a free agent could build it      next           who goes before it
//!   ... a busy one                   busy           how many are
//!   ... one that gets nothing        drained, not-approved
//!   ... one that it avoids           avoided        where its machine failed
//!   nobody knows yet                 unknown        agents that have not asked since the start
//!   one that is gone                 silent
//!   only its era is in the way       era
//!   agents that have a machine for it, but
//!     it names keys, and theirs is none      no-bot
//!     it is interactive, and they are not    no-interactive
//!     none asks for its service              no-service
//!     no auxiliary machines for it           no-auxiliary
//!   agents, but no such machine      no-machine     which pattern none matches
//!   no agent                         no-agent
//!   no such line in the buildtab     no-configuration
//! ```

use super::lane::Lane;
use super::reach::Lack;

/// What the machines of an agent can do for a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ability {
    /// It has not said which it has.
    Unknown,
    /// None matches the pattern.
    None,
    /// One matches, but an agent of its era is not given this configuration.
    Barred,
    /// One can build it, but the agent does not have builds of its lane.
    Lacks(Lack),
    /// One can build it.
    Able,
}

/// Why an agent is given no task at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// It is drained.
    Drained,
    /// Nobody has approved of it yet.
    Unapproved,
}

/// What an agent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It asks for tasks, or was heard of a moment ago and has none.
    Free,
    /// It has a task and asks for no other.
    Busy,
    /// It was not heard of for a while.
    Silent,
}

/// An agent, as far as one build is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agent {
    /// What its machines can do.
    pub ability: Ability,
    /// Whether it is given nothing.
    pub hold: Option<Hold>,
    /// Whether the build avoids its host.
    pub is_avoided: bool,
    /// What it does.
    pub presence: Presence,
}

/// How near an agent comes to having the build; the nearest is the least, and tells why it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// Agents could have it: it is their next one, or others go before it.
    Next,
    /// Those that could have other tasks.
    Busy,
    /// Those that could are drained.
    Drained,
    /// Those that could are not approved.
    Unapproved,
    /// Those that could are on hosts on which its machine has failed.
    Avoided,
    /// Agents that are there have not said yet what they can build.
    Unknown,
    /// Those that could were not heard of for a while.
    Silent,
    /// Those that have a machine for it are of an era that is not given it.
    Era,
    /// Those that have a machine for it do not take interactive builds, or no others.
    Interactive,
    /// Those that have a machine for it have no auxiliary machines for it, or too little memory.
    Auxiliary,
    /// Those that have a machine for it ask for builds of other services.
    Service,
    /// Those that have a machine for it have no key that it names, or it names none and they are custom bots.
    Bot,
    /// No agent has a machine for it.
    NoMachine,
    /// No agent was heard of.
    NoAgent,
    /// The buildtab has no such configuration any more.
    NoConfiguration,
}

impl Code {
    /// All, the nearest first.
    pub const ALL: [Self; 15] = [
        Self::Next,
        Self::Busy,
        Self::Drained,
        Self::Unapproved,
        Self::Avoided,
        Self::Unknown,
        Self::Silent,
        Self::Era,
        Self::Interactive,
        Self::Auxiliary,
        Self::Service,
        Self::Bot,
        Self::NoMachine,
        Self::NoAgent,
        Self::NoConfiguration,
    ];
}

/// How near this agent comes.
#[must_use]
pub fn standing(agent: Agent) -> Code {
    match (agent.ability, agent.presence) {
        (Ability::None, _) => return Code::NoMachine,
        (Ability::Barred, _) => return Code::Era,
        (Ability::Lacks(Lack::Interactive), _) => return Code::Interactive,
        (Ability::Lacks(Lack::Auxiliary), _) => return Code::Auxiliary,
        (Ability::Lacks(Lack::Service), _) => return Code::Service,
        (Ability::Lacks(Lack::Key), _) => return Code::Bot,
        (_, Presence::Silent) => return Code::Silent,
        (Ability::Unknown, _) => return Code::Unknown,
        (Ability::Able, Presence::Free | Presence::Busy) => {}
    }
    match (agent.hold, agent.is_avoided, agent.presence) {
        (Some(Hold::Unapproved), ..) => Code::Unapproved,
        (Some(Hold::Drained), ..) => Code::Drained,
        (None, true, _) => Code::Avoided,
        (None, false, Presence::Busy) => Code::Busy,
        (None, false, Presence::Free | Presence::Silent) => Code::Next,
    }
}

/// Builds that go before one in its configuration, counted up to a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// So many.
    Exactly(usize),
    /// That many and more.
    MoreThan(usize),
}

/// Why a build waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Why {
    /// What it is.
    pub code: Code,
    /// How many agents it is said of; with `no-machine` how many there are.
    pub agents: usize,
    /// How many builds go before it.
    pub before: Before,
}

/// Why a build waits that these agents might have; `has_line`: whether the buildtab has its configuration.
#[must_use]
pub fn why(has_line: bool, agents: impl IntoIterator<Item = Agent>, before: Before) -> Why {
    let mut counts = [0; Code::ALL.len()];
    for agent in agents {
        let near = standing(agent);
        for (code, count) in Code::ALL.into_iter().zip(&mut counts) {
            *count += usize::from(code == near);
        }
    }
    let nearest = Code::ALL.into_iter().zip(counts).find(|(_, n)| *n > 0);
    let (code, agents) = match nearest {
        _ if !has_line => (Code::NoConfiguration, 0),
        None => (Code::NoAgent, 0),
        Some(nearest) => nearest,
    };
    Why {
        code,
        agents,
        before,
    }
}

fn agents(number: usize) -> String {
    match number {
        1 => "1 agent".to_owned(),
        n => format!("{n} agents"),
    }
}

/// What keeps agents, one or `many`, from a build of a lane. `is_operators`: whether all keys that it names are the operator's.
fn lacking(code: Code, lane: &Lane, is_operators: bool, many: bool) -> String {
    let none = if many { "none of them" } else { "it" };
    let (takes, asks, offers) = if many {
        ("takes", "asks for", "offers")
    } else {
        ("does not take", "does not ask for", "does not offer")
    };
    match code {
        Code::Interactive if lane.interactive => {
            format!("{none} {takes} interactive builds, and this is one")
        }
        Code::Interactive => format!("{none} {takes} builds that are not interactive"),
        Code::Service => match &lane.service {
            Some(service) => format!("{none} {asks} builds of the service {service}"),
            None => format!("{none} {asks} builds that are of no service"),
        },
        Code::Bot if lane.keys.is_empty() => {
            "its package names no key of theirs: custom bots build only what names their key"
                .to_owned()
        }
        Code::Bot => {
            let keys: Vec<&str> = lane.keys.iter().map(String::as_str).collect();
            let keys = keys.join(", ");
            if is_operators {
                return format!(
                    "its package is for custom bots alone, and names only keys of the operator's own agents ({keys}), which are none"
                );
            }
            let is = if many {
                "none of them is one"
            } else {
                "it is not one"
            };
            format!(
                "its package is for custom bots alone, and {is} with a key that it names ({keys})"
            )
        }
        _ => {
            let patterns: Vec<&str> = lane.auxiliaries.values().map(String::as_str).collect();
            format!(
                "{none} {offers} auxiliary machines, with memory for them, that match {}",
                patterns.join(", ")
            )
        }
    }
}

impl Why {
    /// The same as a sentence. `pattern`: of the line's machine names, `lane`: what the build asks for beside, `is_operators`: whether all
    /// keys that it names are the operator's own agents', `avoided`: hosts that it avoids.
    #[must_use]
    pub fn sentence(
        &self,
        configuration: &str,
        pattern: Option<&str>,
        (lane, is_operators): (&Lane, bool),
        avoided: &[&str],
    ) -> String {
        let pattern = pattern.unwrap_or_default();
        let many = self.agents != 1;
        let before = match self.before {
            Before::Exactly(0) => String::new(),
            Before::Exactly(1) => "; 1 build goes before it in this configuration".to_owned(),
            Before::Exactly(n) => format!("; {n} builds go before it in this configuration"),
            Before::MoreThan(n) => {
                format!("; more than {n} builds go before it in this configuration")
            }
        };
        let said = match self.code {
            Code::Next => {
                let who = agents(self.agents);
                format!("{who} could build it and may ask for it at any time")
            }
            Code::Busy => match self.agents {
                1 => "the agent that could build it is busy".to_owned(),
                n => format!("all {n} agents that could build it are busy"),
            },
            Code::Drained => {
                let (is, who) = (if many { "are" } else { "is" }, agents(self.agents));
                format!("{who} that could build it {is} drained: resume one")
            }
            Code::Unapproved => {
                let (is, who) = (if many { "are" } else { "is" }, agents(self.agents));
                format!("{who} that could build it {is} not approved yet")
            }
            Code::Avoided => format!(
                "its machine failed on {} before it had begun, and no agent on another host could build it now: \
                 when none comes, it is tried there again",
                avoided.join(", ")
            ),
            Code::Unknown => {
                let (has, who) = (if many { "have" } else { "has" }, agents(self.agents));
                format!("{who} {has} not said yet which machines there are")
            }
            Code::Silent => {
                let (was, who) = (if many { "were" } else { "was" }, agents(self.agents));
                format!("{who} that could build it {was} not heard of for a while")
            }
            Code::Era => {
                let (has, who) = (if many { "have" } else { "has" }, agents(self.agents));
                format!(
                    "{who} {has} a machine for {configuration}, but the wire of 2017, and its line is one of the later era"
                )
            }
            Code::Interactive | Code::Auxiliary | Code::Service | Code::Bot => {
                let (has, who) = (if many { "have" } else { "has" }, agents(self.agents));
                let but = lacking(self.code, lane, is_operators, many);
                format!("{who} {has} a machine for {configuration}, but {but}")
            }
            Code::NoMachine => match self.agents {
                1 => format!("no machine of the 1 agent that is known matches {pattern}"),
                n => format!("no machine of the {n} agents that are known matches {pattern}"),
            },
            Code::NoAgent => "no agent was heard of since the controller's start".to_owned(),
            Code::NoConfiguration => {
                return format!(
                    "The buildtab has no configuration {configuration} for this target any more: no agent will get this build."
                );
            }
        };
        let mut letters = said.chars();
        let first = letters.next().map(|c| c.to_ascii_uppercase());
        format!("{}{}{before}.", first.unwrap_or_default(), letters.as_str())
    }
}

#[cfg(test)]
mod tests;
