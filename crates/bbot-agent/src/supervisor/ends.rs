//! The ends of runs: what each says of its machine, its controller and the host.

use bbot_manifest::Status;

use super::backoff;
use super::controllers::Fault;
use super::runs::Run;
use super::{BootstrapOutcome, Outcome, Report, RunId, Supervisor};

/// So many machines in a row may fill their room before that speaks against the host: as often as a
/// controller of ours hands out one task. There may be a quota that the free space does not show.
const FILLS: u32 = 5;

impl Supervisor {
    /// The end of a run that there is; its room is free.
    fn ended(&mut self, id: RunId) -> Option<Run> {
        let run = self.runs.remove(id)?;
        if let Some(waiting) = &mut self.waiting {
            waiting.victims.retain(|victim| *victim != id);
        }
        self.has_room();
        Some(run)
    }

    pub(super) fn run_ended(&mut self, id: RunId, outcome: Outcome) {
        let Some(run) = self.ended(id) else { return };
        match outcome {
            // A guest that crashed in its build, or that was not done with it in time, proves nothing about its machine.
            Outcome::Done(Status::Abort | Status::Abnormal | Status::Interrupt) => {}
            Outcome::Done(_) => {
                self.machines.well(&run.machine, run.since);
                self.host.failures = 0;
                self.host.fills = 0;
                let controller = run
                    .task
                    .and_then(|t| self.controllers.get_mut(&t.controller));
                if let Some(controller) = controller.filter(|c| c.trouble.is_none()) {
                    controller.failures = 0;
                }
            }
            Outcome::MachineFailed => {
                self.machine_failed(&run, "it could not be run, or did not come up");
            }
            Outcome::LinkFailed { .. } => {
                if let Some(task) = run.task {
                    let why = "what its task needs could not be fetched";
                    self.trouble(&task.controller, Fault::Wrong, why);
                }
            }
            Outcome::HostFailed => self.host_failed(),
            Outcome::RoomFilled => {
                self.host.fills = self.host.fills.saturating_add(1);
                if self.host.fills > FILLS {
                    self.host_failed();
                }
            }
            Outcome::Interrupted => {}
        }
    }

    pub(super) fn bootstrap_ended(&mut self, id: RunId, outcome: BootstrapOutcome) {
        let Some(run) = self.ended(id) else { return };
        self.machines.bootstrap_ended(&run.machine);
        self.changed();
        match outcome {
            BootstrapOutcome::Done => self.machines.well(&run.machine, run.since),
            BootstrapOutcome::Failed(why) => self.machine_failed(&run, &why),
            BootstrapOutcome::Interrupted if run.is_interrupted => {}
            BootstrapOutcome::Interrupted => {
                self.machines
                    .overtaken(&run.machine, &run.identity, self.now);
            }
        }
    }

    fn host_failed(&mut self) {
        let pause = backoff::HOST.after(self.host.failures);
        self.host.failures = self.host.failures.saturating_add(1);
        self.host.until = self.now.saturating_add(pause);
        self.report(Report::HostTrouble { pause });
    }

    fn machine_failed(&mut self, run: &Run, why: &str) {
        let report = self
            .machines
            .failed(&run.machine, &run.identity, why, self.now);
        self.report(report);
    }
}
