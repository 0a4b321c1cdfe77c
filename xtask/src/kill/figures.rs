//! What the test has seen, as its last line tells it.

use std::collections::BTreeMap;
use std::fmt;

use super::plan::Victim;
use super::tasks::Build;

/// The kills that were done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Kills {
    agent: usize,
    machine: usize,
    controller: usize,
    /// How many of them all met a suspended machine.
    suspended: usize,
}

impl Kills {
    pub(super) fn count(&mut self, victim: Victim, is_suspended: bool) {
        match victim {
            Victim::Agent => self.agent += 1,
            Victim::Machine => self.machine += 1,
            Victim::Controller => self.controller += 1,
        }
        self.suspended += usize::from(is_suspended);
    }

    /// Those of agents.
    pub(super) fn agents(&self) -> usize {
        self.agent
    }

    /// Those of machines.
    pub(super) fn machines(&self) -> usize {
        self.machine
    }

    /// Those that met a suspended machine.
    pub(super) fn of_suspended(&self) -> usize {
        self.suspended
    }
}

/// What the test has seen.
#[derive(Debug)]
pub(super) struct Figures {
    kills: Kills,
    tasks: usize,
    /// How many builds have ended so, or are in this state without an end.
    statuses: BTreeMap<String, usize>,
    seconds: u64,
    /// What does not hold.
    pub(super) problems: Vec<String>,
}

impl Figures {
    pub(super) fn new(kills: Kills, builds: &[Build], seconds: u64, problems: Vec<String>) -> Self {
        let mut statuses = BTreeMap::new();
        for build in builds {
            let status = build.status.as_ref().unwrap_or(&build.state);
            *statuses.entry(status.clone()).or_default() += 1;
        }
        Self {
            kills,
            tasks: builds.len(),
            statuses,
            seconds,
            problems,
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kills {
            agent,
            machine,
            controller,
            suspended,
        } = self.kills;
        let statuses: Vec<String> = self
            .statuses
            .iter()
            .map(|(status, count)| format!("{count} {status}"))
            .collect();
        write!(
            f,
            "{} kills (agent {agent}, machine {machine}, controller {controller}; {suspended} met suspended machines), \
             {} tasks ({}), {} s",
            agent + machine + controller,
            self.tasks,
            statuses.join(", "),
            self.seconds
        )
    }
}
