//! What the agent tells of itself, put together whenever something has changed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::driver::{Asking, Run};
use super::work::{PREPARING_LIMIT, TaskEnded};
use super::{Agent, ask};
use crate::blocking::COPY_LIMIT;
use crate::controller::Kin;
use crate::diagnostics;
use crate::options::BOOTSTRAP_SHUTDOWN;
use crate::run::ENDING_LIMIT;
use crate::status::{
    Budgets, Controller, Counters, Machine, MachineState, Mode, Moment, Phase, Run as Shown,
    RunKind, Slots, Spool, Status, Suspended, Trouble,
};
use crate::supervisor::{
    Answer, BootstrapOutcome, ControllerView, MachineState as Seen_, MachineStatus, Mode as Doing,
    Outcome, Time, View,
};
use crate::version;
use crate::warm::Warmth;

/// What is remembered for the status alone.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) counters: Counters,
    /// Why a machine failed last.
    failures: HashMap<String, String>,
    /// When each controller answered last, and what in a word.
    answers: HashMap<String, (Moment, &'static str)>,
    /// What systemd was told last.
    told: String,
}

impl Seen {
    pub(super) fn answered(&mut self, asking: Option<Asking>, answer: &Answer, now: Time) {
        let word = match answer {
            Answer::Nothing => "nothing",
            Answer::Task { .. } => "task",
            Answer::Refused(_) => "refused",
            Answer::Failed(_) => "failed",
        };
        Counters::count(&mut self.counters.asks, word);
        let Some(asking) = asking else { return };
        if !asking.is_held {
            self.counters.ask_seconds.record(asking.since.elapsed());
        }
        // One that was given up, or did not come through, is no answer.
        if !matches!(answer, Answer::Failed(_)) {
            let at = (Moment::from(now), word);
            self.answers.insert(asking.controller, at);
        }
    }

    pub(super) fn task_ended(&mut self, run: Option<Run>, ended: &TaskEnded) {
        if let Some(status) = ended.status {
            Counters::count(&mut self.counters.tasks, &status.to_string());
        }
        match ended.outcome {
            Outcome::Interrupted => self.counters.interrupts += 1,
            Outcome::HostFailed => self.counters.host_failures += 1,
            Outcome::Done(_)
            | Outcome::MachineFailed
            | Outcome::RoomFilled
            | Outcome::LinkFailed { .. } => {}
        }
        if let Some(run) = run {
            self.counters.run_seconds.record(run.since.elapsed());
            self.started(&run);
        }
    }

    pub(super) fn bootstrap_ended(&mut self, run: Option<Run>, outcome: &BootstrapOutcome) {
        let name = run.as_ref().map(|run| run.machine.clone());
        if run.as_ref().is_some_and(|run| run.what == RunKind::Saving) {
            return;
        }
        match outcome {
            BootstrapOutcome::Done => {
                self.counters.bootstraps += 1;
                // Should it fail as a build's machine, this is not why.
                self.failures.remove(&name.unwrap_or_default());
            }
            BootstrapOutcome::Failed(why) => {
                self.counters.bootstraps_failed += 1;
                if let Some(name) = name {
                    self.failures.insert(name, why.clone());
                }
            }
            BootstrapOutcome::Interrupted => self.counters.interrupts += 1,
        }
        if let Some(run) = run {
            self.started(&run);
        }
    }

    /// What is remembered of machines that are gone is forgotten.
    pub(super) fn machines_are(&mut self, is_there: impl Fn(&str) -> bool) {
        self.failures.retain(|name, _| is_there(name));
    }

    /// The same of controllers.
    pub(super) fn controllers_are(&mut self, all: &[ControllerView]) {
        let is_there = |url: &str| all.iter().any(|controller| controller.url == url);
        self.answers.retain(|url, _| is_there(url));
    }

    fn started(&mut self, run: &Run) {
        let now = run.shown.now();
        self.counters.misboots += u64::from(now.starts.saturating_sub(1));
        if let (Some(worked), RunKind::Task { .. }) = (now.worked, &run.what) {
            let pickup = worked.saturating_duration_since(run.since);
            self.counters.pickup_seconds.record(pickup);
        }
    }
}

impl Agent {
    /// Publishes the status, if there is anybody to see it.
    pub(super) fn show(&mut self) {
        let view = self.supervisor.view();
        self.tell_systemd(&view);
        if self.steering.status.receiver_count() == 0 {
            return;
        }
        let status = self.status(&view);
        self.steering.status.send_replace(Arc::new(status));
    }

    fn tell_systemd(&mut self, view: &View) {
        let text = match view.mode {
            Doing::Running => format!(
                "{} of {} slots, {} machines, {} suspended",
                view.slots_used,
                view.slots,
                view.machines.len(),
                self.suspended.list().count()
            ),
            _ => format!("ending, {} machines still run", view.slots_used),
        };
        if text != self.seen.told {
            self.steering.tell_systemd(&text);
            self.seen.told = text;
        }
    }

    pub(super) fn status(&self, view: &View) -> Status {
        let options = &self.context.host.options;
        let began = SystemTime::now()
            .checked_sub(self.begin.elapsed())
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let suspended_ram = self.suspended.ram_kib();
        Status {
            agent: ask::host_name().unwrap_or_default(),
            toolchain: options.toolchain_name.clone(),
            pid: std::process::id(),
            version: version::OWN.to_owned(),
            started: began.map_or(0, |at| at.as_secs()),
            uptime: Moment::from(self.begin.elapsed()),
            mode: self.mode(view),
            slots: Slots {
                total: view.slots,
                used: view.slots_used,
            },
            budgets: Budgets {
                cpus: view.cpu_budget.unwrap_or(0),
                cpus_used: view.cpus_used,
                ram_kib: view.ram_budget.unwrap_or(0),
                ram_kib_used: view.ram_used.saturating_add(suspended_ram),
            },
            machines: view.machines.iter().map(|m| self.machine(m)).collect(),
            runs: self.shown_runs(),
            controllers: self.shown_controllers(view),
            spool: self.spool(),
            suspended: self.shown_suspended(),
            resources: self.steering.watch.view(),
            errors: self.errors(),
            counters: self.counters(),
        }
    }

    fn mode(&self, view: &View) -> Mode {
        match view.mode {
            _ if !self.has_looked => Mode::Starting,
            Doing::Running => match self.steering.drained {
                Some(drained) => Mode::Draining {
                    until: drained.until.map(|until| self.moment(until)),
                },
                None => Mode::Running,
            },
            Doing::Draining { deadline } => Mode::Stopping {
                until: Some(Moment::from(deadline)),
            },
            Doing::Stopping | Doing::Ended => Mode::Stopping { until: None },
        }
    }

    fn machine(&self, seen: &MachineStatus) -> Machine {
        let machine = &seen.machine;
        let state = match (&machine.state, seen.backed_off_until) {
            (Seen_::Bad { problem }, _) => MachineState::Bad {
                problem: problem.clone(),
            },
            (_, Some(until)) => MachineState::BackingOff {
                why: self
                    .seen
                    .failures
                    .get(&machine.name)
                    .cloned()
                    .unwrap_or_else(|| "it could not be run".to_owned()),
                until: Moment::from(until),
            },
            (Seen_::MustBootstrap { why }, None) if seen.bootstrapping => {
                MachineState::Bootstrapping { why: why.clone() }
            }
            (Seen_::MustBootstrap { why }, None) => {
                MachineState::MustBootstrap { why: why.clone() }
            }
            (Seen_::Usable, None) => MachineState::Usable,
        };
        Machine {
            name: machine.name.clone(),
            kind: machine.kind.clone(),
            state,
            warm: self
                .usable(&machine.name)
                .is_some_and(|machine| machine.warmth == Warmth::Warm),
            prepared: self.stock.count(&machine.name) as u64,
        }
    }

    fn shown_runs(&self) -> Vec<Shown> {
        let options = &self.context.host.options;
        let accelerator = self.context.host.accelerator;
        self.runs
            .iter()
            .map(|(id, run)| {
                let now = run.shown.now();
                let is_task = matches!(run.what, RunKind::Task { .. });
                let limit = match (now.phase, is_task) {
                    (Phase::Preparing, _) => PREPARING_LIMIT,
                    (Phase::Copying, _) => COPY_LIMIT,
                    (Phase::Booting, true) => options.build_startup(accelerator),
                    (Phase::Booting, false) => options.bootstrap_startup(accelerator),
                    (Phase::Working, true) => Duration::from_secs(options.build_timeout),
                    // It is shut down in good order before it counts as done.
                    (Phase::Working, false) => {
                        Duration::from_secs(options.bootstrap_timeout) + BOOTSTRAP_SHUTDOWN
                    }
                    (Phase::Ending, _) => ENDING_LIMIT,
                };
                let until = now.since.checked_add(limit);
                Shown {
                    id: id.0,
                    what: run.what.clone(),
                    machine: run.machine.clone(),
                    phase: now.phase,
                    since: self.moment(run.since),
                    timeout_at: until.map(|until| self.moment(until)),
                    cpus: run.share.cpus,
                    ram_kib: run.share.ram_kib,
                }
            })
            .collect()
    }

    fn shown_controllers(&self, view: &View) -> Vec<Controller> {
        view.controllers
            .iter()
            .map(|controller| Controller {
                url: controller.url.clone(),
                priority: match controller.priority == Default::default() {
                    true => String::new(),
                    false => controller.priority.to_string(),
                },
                ours: (controller.trouble.is_none()).then_some(controller.kin == Kin::Ours),
                asking: view.asking.as_ref() == Some(&controller.url),
                last_answer: self
                    .seen
                    .answers
                    .get(&controller.url)
                    .map(|(at, word)| (*at, (*word).to_owned())),
                trouble: controller.trouble.clone(),
                next_ask: Some(Moment::from(controller.next)),
            })
            .collect()
    }

    fn spool(&self) -> Spool {
        let Some(results) = &self.context.results else {
            return Spool::default();
        };
        let status = results.status();
        let written = status
            .oldest
            .and_then(|age| SystemTime::now().checked_sub(age))
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let next = status.next_try.map(|within| self.begin.elapsed() + within);
        let errors = status.controllers.into_iter();
        let errors: BTreeMap<String, String> = errors
            .filter_map(|(origin, way)| Some((origin, way.error?)))
            .collect();
        Spool {
            waiting: status.waiting as u64,
            segments: status.segments as u64,
            bytes: status.bytes,
            oldest: written.map(|at| at.as_secs()),
            next_try: next.map(Moment::from),
            errors,
            refused: status.refused,
        }
    }

    fn shown_suspended(&self) -> Vec<Suspended> {
        self.suspended
            .list()
            .map(|entry| Suspended {
                id: entry.id.clone(),
                machine: entry.machine.clone(),
                why: entry.why.clone(),
                since: self.moment(entry.since),
                until: self.moment(entry.until),
                ram_kib: entry.ram_kib,
                resumed: entry.resumed,
                reach: entry.reach.clone(),
            })
            .collect()
    }

    fn errors(&self) -> Vec<Trouble> {
        diagnostics::recent()
            .into_iter()
            .map(|told| Trouble {
                at: self.moment(Instant::from_std(told.at)),
                time: told.time,
                level: told.level.to_owned(),
                message: told.message,
            })
            .collect()
    }

    fn counters(&self) -> Counters {
        let mut counters = self.seen.counters.clone();
        if let Some(results) = &self.context.results {
            let status = results.status();
            counters.results_refused = counters.results_refused.max(status.refused);
            counters.results_taken = status.taken;
            counters.sends_failed = status.failed;
        }
        counters
    }
}
