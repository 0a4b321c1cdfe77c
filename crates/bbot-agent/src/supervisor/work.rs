//! The work of an agent that takes new work: what is started now, and when the inventory is looked at.

use std::time::Duration;

use super::decide::{Line, Turn, Wait, Way};
use super::priority::Priority;
use super::room::{self, Room};
use super::runs::{Run, Task};
use super::{Action, MachineView, RunId, Supervisor, Time};
use crate::options::IDLE_PAUSE_OURS;

/// An inventory that is so old is looked at again before a controller is asked.
const FRESH: Duration = Duration::from_secs(1);

/// The same where changes are told: what was missed all the same is found so.
const FRESH_WATCHED: Duration = Duration::from_secs(60);

impl Supervisor {
    pub(super) fn work(&mut self) {
        self.start_waiting();
        let situation = self.situation();
        let waits: Vec<Wait> = self.machines.iter().map(|m| situation.waiting(m)).collect();
        self.machines.wait(waits, self.now);
        if self.block().is_some() || self.waiting.is_some() || self.is_enumerating {
            return;
        }
        if self.ask.is_some() && self.is_watched && self.enumerated.is_none() && self.is_slot_free()
        {
            // Not when the controller has answered, which may take its time.
            self.is_enumerating = true;
            self.act(Action::Enumerate);
            return;
        }
        if self.ask.is_some() {
            // Room for what the request may bring is kept.
            self.start_bootstraps();
            return;
        }
        if self.must_enumerate() {
            self.is_enumerating = true;
            self.act(Action::Enumerate);
            return;
        }
        self.start_bootstraps();
        self.ask_next();
        let has_room = !self.situation().offers(Priority::default()).is_empty();
        if self.ask.is_none() && self.turn == Turn::Build && has_room {
            // Nobody has a task: a bootstrap that waits for its turn has it.
            self.turn = Turn::Bootstrap;
            self.start_bootstraps();
        }
    }

    /// Whether the inventory is to be looked at now: before anything is started by one that is not fresh, and
    /// where there is nothing that could be.
    fn must_enumerate(&self) -> bool {
        let Some(at) = self.enumerated else {
            return self.is_slot_free() || self.is_anybody_to_be_asked();
        };
        let fresh = if self.is_watched {
            FRESH_WATCHED
        } else {
            FRESH
        };
        let is_stale = at.saturating_add(fresh) <= self.now;
        let would_bootstrap = || self.situation().bootstrap(Turn::Bootstrap, &[]).is_some();
        (is_stale && (would_bootstrap() || self.is_anybody_to_be_asked()))
            || self.look_again().is_some_and(|at| at <= self.now)
    }

    pub(super) fn is_slot_free(&self) -> bool {
        let slots = room::Limits::of(&self.config).slots;
        slots.is_none_or(|most| self.runs.used().slots < most)
    }

    /// When it is to be looked whether there are other machines now, where nothing can be done with those that
    /// there are.
    pub(super) fn look_again(&self) -> Option<Time> {
        let at = self.enumerated.filter(|_| self.is_slot_free())?;
        let situation = self.situation();
        let could = !situation.offers(Priority::default()).is_empty()
            || situation.bootstrap(Turn::Bootstrap, &[]).is_some();
        let pause = self.config.idle_pause.unwrap_or(IDLE_PAUSE_OURS);
        (!could).then_some(at.saturating_add(pause))
    }

    fn start_waiting(&mut self) {
        let Some(waiting) = self.waiting.take_if(|w| w.victims.is_empty()) else {
            return;
        };
        let machine = self
            .machines
            .usable(self.now)
            .find(|m| m.name == waiting.machine);
        let situation = self.situation();
        let can_start = machine.filter(|_| self.block().is_none()).filter(|m| {
            let way = situation.way(m, waiting.priority, Line::Passed);
            matches!(way, Way::After(first) if first.is_empty())
        });
        let Some(machine) = can_start.cloned() else {
            let why = format!("machine {} cannot be started any more", waiting.machine);
            self.act(Action::GiveBack {
                ask: waiting.ask,
                why,
            });
            return;
        };
        let mut room = Room::need(&self.config, &machine);
        if waiting.priority.is_boosted() {
            let taken = self.runs.used().cpus;
            let left = self
                .config
                .cpu_budget
                .map_or(u32::MAX, |most| most.saturating_sub(taken));
            room.cpus = room.cpus.max(self.config.host_cpus.min(left));
        }
        let task = Task {
            ask: waiting.ask,
            controller: waiting.controller,
            priority: waiting.priority,
        };
        let run = self.begin(&machine, room, Some(task));
        self.turn = Turn::Bootstrap;
        self.act(Action::StartTask {
            run,
            ask: waiting.ask,
            machine: machine.name,
            cpus: room.cpus,
            ram_kib: room.ram_kib,
        });
    }

    fn begin(&mut self, machine: &MachineView, room: Room, task: Option<Task>) -> RunId {
        let id = RunId(self.next_id());
        let run = Run {
            machine: machine.name.clone(),
            identity: machine.identity.clone(),
            room,
            since: self.now,
            task,
            is_interrupted: false,
        };
        self.runs.insert(id, run);
        id
    }

    fn start_bootstraps(&mut self) {
        loop {
            let offered = self.ask.as_ref().map_or(&[][..], |ask| &ask.machines);
            let Some(machine) = self.situation().bootstrap(self.turn, offered).cloned() else {
                return;
            };
            let room = Room::need(&self.config, &machine);
            let run = self.begin(&machine, room, None);
            self.machines.bootstraps(&machine.name, self.now);
            self.turn = Turn::Build;
            self.act(Action::StartBootstrap {
                run,
                machine: machine.name,
                cpus: room.cpus,
                ram_kib: room.ram_kib,
            });
        }
    }
}
