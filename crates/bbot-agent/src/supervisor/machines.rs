//! The machines: what is known of each, which are left alone, and who has waited too long for room.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::api::{MachineState, MachineView, Report, Time};
use super::backoff::Backoff;
use super::decide::Wait;

/// A machine that overtook its own bootstrap (its revision changed) is tried again after this time.
const OVERTAKEN_PAUSE: Duration = Duration::from_secs(5);

/// A machine that must be bootstrapped and finds no room for so long goes before everything else: it needs
/// the room once, and no task can use it before.
pub(super) const BOOTSTRAP_PATIENCE: Duration = Duration::from_secs(10 * 60);

/// A machine that finds no room for tasks for so long goes before everything else. This costs: room is left
/// empty until there is enough, and then there may be no task for it.
pub(super) const TASK_PATIENCE: Duration = Duration::from_secs(60 * 60);

/// The machines of the last enumeration, and what is remembered beyond it.
#[derive(Debug, Clone, Default)]
pub(super) struct Machines {
    all: BTreeMap<String, MachineView>,
    backoffs: BTreeMap<String, Backoff>,
    /// Since when a machine waits for room.
    waits: BTreeMap<String, Time>,
    /// When each was bootstrapped last.
    bootstrapped: BTreeMap<String, Time>,
    /// Those whose bootstrap has ended since they were looked at: what was seen then is not so any more.
    unseen: BTreeSet<String>,
    /// The problem of each that was told.
    told: BTreeMap<String, String>,
}

impl Machines {
    /// There are these machines now. Returns whether one can be used that could not before.
    pub(super) fn replace(&mut self, machines: Vec<MachineView>) -> bool {
        let mut is_more = false;
        let mut all = BTreeMap::new();
        for machine in machines {
            let known = self.all.get(&machine.name);
            is_more |= machine.state == MachineState::Usable
                && known.is_none_or(|k| {
                    k.state != MachineState::Usable || k.identity != machine.identity
                });
            all.insert(machine.name.clone(), machine);
        }
        self.all = all;
        self.unseen.clear();
        self.backoffs.retain(|name, _| self.all.contains_key(name));
        self.waits.retain(|name, _| self.all.contains_key(name));
        self.bootstrapped
            .retain(|name, _| self.all.contains_key(name));
        self.told.retain(|name, _| self.all.contains_key(name));
        is_more
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn get(&self, name: &str) -> Option<&MachineView> {
        self.all.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &MachineView> {
        self.all.values()
    }

    pub(super) fn backoff(&self, machine: &MachineView) -> Option<&Backoff> {
        self.backoffs
            .get(&machine.name)
            .filter(|b| b.of == machine.identity)
    }

    /// Those that can build now, as far as they are concerned.
    pub(super) fn usable(&self, now: Time) -> impl Iterator<Item = &MachineView> {
        self.all
            .values()
            .filter(move |m| m.state == MachineState::Usable && !self.is_left_alone(m, now))
    }

    /// Those to be bootstrapped or saved now, as far as they are concerned.
    pub(super) fn to_bootstrap(&self, now: Time) -> impl Iterator<Item = &MachineView> {
        self.all.values().filter(move |m| {
            (matches!(m.state, MachineState::MustBootstrap { .. }) || m.cold)
                && !self.unseen.contains(&m.name)
                && !self.is_left_alone(m, now)
        })
    }

    fn is_left_alone(&self, machine: &MachineView, now: Time) -> bool {
        self.backoff(machine).is_some_and(|b| b.until > now)
    }

    /// A machine begins to be bootstrapped.
    pub(super) fn bootstraps(&mut self, name: &str, now: Time) {
        self.bootstrapped.insert(name.to_owned(), now);
        self.waits.remove(name);
    }

    /// Its bootstrap has ended; what it is now the next enumeration says.
    pub(super) fn bootstrap_ended(&mut self, name: &str) {
        self.unseen.insert(name.to_owned());
    }

    /// When it was bootstrapped last.
    pub(super) fn last_bootstrapped(&self, name: &str) -> Option<Time> {
        self.bootstrapped.get(name).copied()
    }

    /// A machine failed: it is left alone.
    pub(super) fn failed(&mut self, name: &str, identity: &str, why: &str, now: Time) -> Report {
        let (backoff, pause) = Backoff::failed(self.backoffs.get(name), identity, now);
        self.backoffs.insert(name.to_owned(), backoff);
        Report::MachineBackedOff {
            machine: name.to_owned(),
            pause,
            why: why.to_owned(),
        }
    }

    /// Its bootstrap came to nothing by nobody's fault.
    pub(super) fn overtaken(&mut self, name: &str, identity: &str, now: Time) {
        let before = self.backoffs.get(name).filter(|b| b.of == identity);
        let failures = before.map_or(0, |b| b.failures);
        let backoff = Backoff {
            of: identity.to_owned(),
            failures,
            at: now,
            until: now.saturating_add(OVERTAKEN_PAUSE),
        };
        self.backoffs.insert(name.to_owned(), backoff);
    }

    /// A machine that was started at that time did what it should. This says nothing of what failed since: a copy
    /// of the old revision may run while the new one cannot be bootstrapped.
    pub(super) fn well(&mut self, name: &str, started: Time) {
        if self.backoffs.get(name).is_some_and(|b| b.at <= started) {
            self.backoffs.remove(name);
        }
    }

    /// The operator asks for another try of each.
    pub(super) fn forgive(&mut self) {
        self.backoffs.clear();
    }

    /// Notes what is wrong with machines now, and returns what is to be told of it.
    pub(super) fn tell(&mut self, problems: &BTreeMap<String, String>) -> Vec<Report> {
        let mended = self
            .told
            .keys()
            .filter(|name| !problems.contains_key(*name));
        let mended = mended.map(|name| Report::MachineMended {
            machine: name.clone(),
        });
        let new = problems
            .iter()
            .filter(|(name, problem)| self.told.get(*name) != Some(problem));
        let new = new.map(|(name, problem)| Report::MachineProblem {
            machine: name.clone(),
            problem: problem.clone(),
        });
        let reports = mended.chain(new).collect();
        self.told.clone_from(problems);
        reports
    }

    /// Notes which machines wait for room now: one of each machine, in their order.
    pub(super) fn wait(&mut self, waits: Vec<Wait>, now: Time) {
        for (name, wait) in self.all.keys().zip(waits) {
            match wait {
                Wait::Begins => {
                    self.waits.entry(name.clone()).or_insert(now);
                }
                Wait::Stays => {}
                Wait::Ends => {
                    self.waits.remove(name);
                }
            }
        }
    }

    /// These have the room that they waited for.
    pub(super) fn offered(&mut self, machines: &[String]) {
        self.waits.retain(|name, _| !machines.contains(name));
    }

    pub(super) fn forget_waits(&mut self) {
        self.waits.clear();
    }

    /// When the patience of a machine that waits for room ends.
    fn patience_ends(&self, machine: &MachineView) -> Option<Time> {
        let patience = match machine.state {
            MachineState::Usable => TASK_PATIENCE,
            MachineState::MustBootstrap { .. } => BOOTSTRAP_PATIENCE,
            MachineState::Bad { .. } => return None,
        };
        let since = self.waits.get(&machine.name)?;
        Some(since.saturating_add(patience))
    }

    /// The machines that have waited too long for room, the first in line first.
    pub(super) fn line(&self, now: Time) -> Vec<&MachineView> {
        if self.waits.is_empty() {
            return Vec::new();
        }
        let ends = self
            .all
            .values()
            .filter_map(|m| self.patience_ends(m).map(|at| (at, m)));
        let mut line: Vec<_> = ends.filter(|(at, _)| *at <= now).collect();
        line.sort_by_key(|(at, _)| *at);
        line.into_iter().map(|(_, m)| m).collect()
    }

    /// When something changes by itself: pauses and patience that end.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Time> {
        let backoffs = self.backoffs.values().map(|b| b.until);
        backoffs.chain(self.all.values().filter_map(|m| self.patience_ends(m)))
    }
}
