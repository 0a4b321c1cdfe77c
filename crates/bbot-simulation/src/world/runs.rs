//! The runs of the world: what guests do with their tasks, and how runs end.

use std::time::Duration;

use bbot_agent::supervisor::{BootstrapOutcome, Event, Kin, Outcome, RunId};
use bbot_manifest::Status;
use rand::Rng as _;

use super::{What, World};
use crate::agent::{Run, Work};
use crate::check;
use crate::script::CrashPoint;

impl World {
    /// What a guest does with its task, and for how long.
    pub(super) fn guest(&mut self, agent: usize) -> (Outcome, Duration) {
        let is_bad = !self.is_quiet() && self.agents[agent].guests_until > self.now;
        let trouble = if is_bad { 0.7 } else { 0.02 };
        if std::mem::take(&mut self.agents[agent].host_fails) {
            return (Outcome::HostFailed, Duration::from_secs(1));
        }
        if self.is_quiet() || !self.random.gen_bool(trouble) {
            let status = match self.random.gen_range(0..10) {
                0 | 1 => Status::Error,
                2 => Status::Warning,
                _ => Status::Success,
            };
            let takes = Duration::from_millis(self.random.gen_range(500..150_000));
            return (Outcome::Done(status), takes);
        }
        let takes = |seconds| Duration::from_secs(seconds);
        match self.random.gen_range(0..6) {
            // It crashes, or panics.
            0 | 1 => (Outcome::Done(Status::Abnormal), takes(20)),
            // It hangs, until the time-out.
            2 => (Outcome::Done(Status::Abort), takes(1800)),
            // It does not start, three times.
            3 => (Outcome::MachineFailed, takes(180)),
            4 => (Outcome::MachineFailed, takes(2)),
            _ => {
                let passing = self.random.gen_bool(0.5);
                (Outcome::LinkFailed { passing }, takes(2))
            }
        }
    }

    pub(super) fn begin(&mut self, agent: usize, id: RunId, run: Run, takes: Duration) {
        let life = self.agents[agent].life;
        self.agents[agent].runs.insert(id.0, run);
        self.later(takes, What::RunEnds(agent, life, id.0, 0));
    }

    pub(super) fn end_soon(&mut self, agent: usize, run: u64) {
        let pause = Duration::from_millis(self.random.gen_range(1..3000));
        let a = &mut self.agents[agent];
        if let Some(r) = a.runs.get_mut(&run) {
            r.version += 1;
            r.is_interrupted = true;
            let what = What::RunEnds(agent, a.life, run, r.version);
            self.later(pause, what);
        }
    }

    pub(super) fn run_ends(&mut self, agent: usize, id: u64, version: u32) -> Result<(), String> {
        let Some(run) = self.agents[agent]
            .runs
            .get(&id)
            .filter(|r| r.version == version)
            .cloned()
        else {
            return Ok(());
        };
        if !run.is_interrupted {
            check::run_ends(self, agent, id)?;
        }
        let event = match run.work {
            Work::Task(assigned, outcome) => {
                if matches!(outcome, Outcome::MachineFailed | Outcome::HostFailed) {
                    self.agents[agent].is_disturbed = true;
                }
                let outcome = if run.is_interrupted {
                    Outcome::Interrupted
                } else {
                    outcome
                };
                let kin = self.controllers[assigned.controller].kin;
                let status = match outcome {
                    Outcome::Done(status) => status,
                    // The strangers here are of 2017.
                    _ if outcome.gives_back(kin, kin == Kin::Ours) => Status::Interrupt,
                    _ => Status::Abort,
                };
                if status != Status::Interrupt && self.crashes(agent, CrashPoint::BeforeSpool) {
                    return Ok(());
                }
                self.agents[agent].runs.remove(&id);
                if !self.result(agent, &assigned, status) {
                    return Ok(());
                }
                Event::RunEnded {
                    run: RunId(id),
                    outcome,
                }
            }
            Work::Bootstrap { revision, seen } => {
                self.agents[agent].runs.remove(&id);
                let mut failed = None;
                let outcome = match self.agents[agent].machine(&run.machine) {
                    Some(machine) if machine.fails > 0 && !run.is_interrupted => {
                        machine.fails -= 1;
                        failed = Some(machine.name.clone());
                        BootstrapOutcome::Failed("no sign of life".to_owned())
                    }
                    Some(machine) if machine.revision == revision && !run.is_interrupted => {
                        machine.bootstrapped = Some(revision);
                        BootstrapOutcome::Done
                    }
                    _ => BootstrapOutcome::Interrupted,
                };
                if let Some(machine) = failed {
                    let now = self.now;
                    self.agents[agent].failed.insert(machine, (now, seen));
                }
                Event::BootstrapEnded {
                    run: RunId(id),
                    outcome,
                }
            }
        };
        self.tell(agent, event)
    }
}
