//! What runs, and what a new task may interrupt.

use std::collections::BTreeMap;

use super::api::{AskId, MachineView, RunId, Time};
use super::priority::Priority;
use super::room::Room;

/// A machine that runs.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) machine: String,
    pub(super) identity: String,
    pub(super) room: Room,
    pub(super) since: Time,
    /// `None`: a bootstrap.
    pub(super) task: Option<Task>,
    pub(super) is_interrupted: bool,
}

/// The task of a run.
#[derive(Debug, Clone)]
pub(super) struct Task {
    pub(super) ask: AskId,
    pub(super) controller: String,
    pub(super) priority: Priority,
}

/// All that runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Runs {
    all: BTreeMap<RunId, Run>,
}

impl Runs {
    pub(super) fn insert(&mut self, id: RunId, run: Run) {
        self.all.insert(id, run);
    }

    pub(super) fn remove(&mut self, id: RunId) -> Option<Run> {
        self.all.remove(&id)
    }

    pub(super) fn get_mut(&mut self, id: RunId) -> Option<&mut Run> {
        self.all.get_mut(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (RunId, &Run)> {
        self.all.iter().map(|(id, run)| (*id, run))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn tasks(&self) -> impl Iterator<Item = (RunId, &Run, &Task)> {
        self.iter()
            .filter_map(|(id, run)| Some((id, run, run.task.as_ref()?)))
    }

    pub(super) fn bootstraps(&self) -> impl Iterator<Item = (RunId, &Run)> {
        self.iter().filter(|(_, run)| run.task.is_none())
    }

    pub(super) fn is_bootstrapping(&self, machine: &str) -> bool {
        self.bootstraps().any(|(_, run)| run.machine == machine)
    }

    /// The room that is taken.
    pub(super) fn used(&self) -> Room {
        self.all
            .values()
            .fold(Room::default(), |sum, run| sum.plus(run.room))
    }

    /// Whether a machine that may run only once does.
    pub(super) fn occupies(&self, machine: &MachineView) -> bool {
        machine.exclusive && self.all.values().any(|run| run.machine == machine.name)
    }

    /// What a task of this priority interrupts whether it needs the room or not: with a D everything below
    /// it, and bootstraps.
    pub(super) fn cleared_by(&self, priority: Priority) -> Vec<RunId> {
        self.iter()
            .filter(|(_, run)| match &run.task {
                Some(task) => priority.interrupts_all(task.priority),
                None => priority.clears_host(),
            })
            .map(|(id, _)| id)
            .collect()
    }

    /// Tasks that one of this priority may interrupt, one of them: the least important first, of those the
    /// youngest, whose work is the least.
    pub(super) fn victims(&self, priority: Priority) -> Vec<RunId> {
        let mut victims: Vec<_> = self
            .tasks()
            .filter(|(_, run, task)| !run.is_interrupted && priority.interrupts(task.priority))
            .collect();
        victims.sort_by_key(|(id, run, task)| {
            (
                task.priority.preference(),
                std::cmp::Reverse((run.since, *id)),
            )
        });
        victims.into_iter().map(|(id, ..)| id).collect()
    }

    /// As it will be without these.
    pub(super) fn without(&self, gone: &[RunId]) -> Self {
        let mut all = self.all.clone();
        all.retain(|id, _| !gone.contains(id));
        Self { all }
    }
}
