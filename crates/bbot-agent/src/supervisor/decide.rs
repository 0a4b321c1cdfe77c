//! What can start now: which machines a controller is offered, what has to go for a task, which machine is
//! bootstrapped.

use std::borrow::Cow;

use super::api::{Config, MachineState, MachineView, RunId, Time};
use super::machines::Machines;
use super::priority::Priority;
use super::room::{Limits, Room};
use super::runs::Runs;

/// Everything that these decisions depend on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation<'a> {
    pub(super) config: &'a Config,
    pub(super) machines: &'a Machines,
    pub(super) runs: &'a Runs,
    pub(super) now: Time,
}

/// Whose turn it is where there is room for one only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Bootstrap,
    Build,
}

/// Whether a machine waits for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// It does, if it did not before from now.
    Begins,
    /// There is room now; it is still to be given to it.
    Stays,
    /// It could do nothing with it.
    Ends,
}

/// Whether those who have waited too long for room go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Kept,
    /// The room was promised before.
    Passed,
}

/// How a task gets its room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// There is room, once these have ended.
    After(Vec<RunId>),
    /// There is none.
    None,
}

impl Situation<'_> {
    fn need(&self, machine: &MachineView) -> Room {
        Room::need(self.config, machine)
    }

    fn limits(&self) -> Limits {
        Limits::of(self.config)
    }

    fn used(&self) -> Room {
        self.runs.used()
    }

    fn fits(&self, used: Room, machine: &MachineView) -> bool {
        self.limits().hold(used.plus(self.need(machine)))
    }

    /// What of a machine can never fit, in words.
    pub(super) fn too_large(&self, machine: &MachineView) -> Option<String> {
        let (limits, need) = (self.limits(), self.need(machine));
        if let Some(most) = limits.ram_kib.filter(|most| need.ram_kib > *most) {
            return Some(format!(
                "it needs {} KiB of memory and all machines together get {most}: give the agent more, or the \
                 machine a smaller ram-minimum",
                need.ram_kib
            ));
        }
        let most = limits.cpus.filter(|most| need.cpus > *most)?;
        Some(format!(
            "it needs {} processors and all machines together get {most}: give the agent more, or a smaller --cpu",
            need.cpus
        ))
    }

    /// Whether a machine can run beside what is taken. Whoever has waited too long for room gets it first.
    fn starts(&self, runs: &Runs, machine: &MachineView, line: Line) -> bool {
        let used = runs.used();
        if line == Line::Passed {
            return !runs.occupies(machine) && self.fits(used, machine);
        }
        let is_bootstrapping = self.runs.bootstraps().next().is_some();
        let line = self.machines.line(self.now);
        // What other bootstraps take they give back by themselves, so builds need not stand aside for that.
        let mut line = line
            .into_iter()
            .filter(|m| m.state == MachineState::Usable || !is_bootstrapping);
        let beside = match line.next() {
            Some(head) if head.name != machine.name => used.plus(self.need(head)),
            _ => used,
        };
        !runs.occupies(machine) && self.fits(beside, machine)
    }

    /// How a task on a machine would get its room: what has to end first.
    pub(super) fn way(&self, machine: &MachineView, priority: Priority, line: Line) -> Way {
        let cleared = self.runs.cleared_by(priority);
        let rest = if cleared.is_empty() {
            Cow::Borrowed(self.runs)
        } else {
            Cow::Owned(self.runs.without(&cleared))
        };
        if self.starts(&rest, machine, line) {
            return Way::After(cleared);
        }
        for victim in rest.victims(priority) {
            if self.starts(&rest.without(&[victim]), machine, line) {
                let mut gone = cleared;
                gone.push(victim);
                return Way::After(gone);
            }
        }
        Way::None
    }

    /// The machines that a controller is offered.
    pub(super) fn offers(&self, priority: Priority) -> Vec<&MachineView> {
        self.machines
            .usable(self.now)
            .filter(|m| self.way(m, priority, Line::Kept) != Way::None)
            .collect()
    }

    /// Whether a controller is held back by a task that runs.
    pub(super) fn is_held_back(&self, priority: Priority) -> bool {
        let mut tasks = self.runs.tasks();
        tasks.any(|(_, run, task)| !run.is_interrupted && task.priority.holds_back(priority))
    }

    /// The machine to bootstrap now. `offered` can each still be started afterwards.
    pub(super) fn bootstrap(&self, turn: Turn, offered: &[String]) -> Option<&MachineView> {
        let used = self.used();
        let can_build: Vec<&MachineView> = self.machines.usable(self.now).collect();
        let line = self.machines.line(self.now);
        let head = line.into_iter().find(|m| m.state != MachineState::Usable);
        let mut candidates: Vec<&MachineView> = self
            .machines
            .to_bootstrap(self.now)
            .filter(|m| head.is_none_or(|head| head.name == m.name))
            .filter(|m| {
                !self.runs.is_bootstrapping(&m.name) && self.starts(self.runs, m, Line::Kept)
            })
            .collect();
        // What cannot build at all comes before what would only build sooner.
        candidates.sort_by_key(|m| (m.cold, self.machines.last_bootstrapped(&m.name)));
        candidates.into_iter().find(|m| {
            let need = self.need(m);
            let any_builds = |used: Room| can_build.iter().any(|b| self.fits(used, b));
            let builds_are_left_room =
                if !any_builds(Room::default()) || self.config.controllers.is_empty() {
                    // Nothing could build anyway.
                    true
                } else if any_builds(need) {
                    self.runs.tasks().next().is_some() || any_builds(used.plus(need))
                } else {
                    turn == Turn::Bootstrap || head.is_some()
                };
            let offered_fit = offered.iter().all(|name| {
                let offered = self.machines.get(name);
                offered.is_none_or(|o| !self.fits(used, o) || self.fits(used.plus(need), o))
            });
            builds_are_left_room && offered_fit
        })
    }

    /// Whether a machine waits for room now.
    pub(super) fn waiting(&self, machine: &MachineView) -> Wait {
        let is_left_alone = self
            .machines
            .backoff(machine)
            .is_some_and(|b| b.until > self.now);
        let is_ready = match machine.state {
            MachineState::Usable => true,
            MachineState::MustBootstrap { .. } => !self.runs.is_bootstrapping(&machine.name),
            MachineState::Bad { .. } => false,
        };
        let mut used = self.used();
        if machine.state == MachineState::Usable {
            // In slots all machines are of one size: none is passed over.
            used.slots = 0;
        }
        if !is_ready || is_left_alone || !self.fits(Room::default(), machine) {
            Wait::Ends
        } else if self.fits(used, machine) {
            Wait::Stays
        } else {
            Wait::Begins
        }
    }
}
