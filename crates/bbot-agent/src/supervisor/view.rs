//! How things stand, for the status.

use super::{ControllerView, MachineStatus, RunId, RunView, Supervisor, View, room::Limits};

impl Supervisor {
    /// What runs, as far as the supervisor knows.
    pub fn running(&self) -> impl Iterator<Item = RunId> {
        self.runs.iter().map(|(id, _)| id)
    }

    /// How things stand.
    #[must_use]
    pub fn view(&self) -> View {
        let used = self.runs.used();
        let limits = Limits::of(&self.config);
        let machines = self.machines.iter().map(|machine| {
            let runs = self.runs.iter().filter(|(_, r)| r.machine == machine.name);
            let running = u32::try_from(runs.count()).unwrap_or(u32::MAX);
            let backoff = self.machines.backoff(machine);
            MachineStatus {
                machine: machine.clone(),
                running,
                bootstrapping: self.runs.is_bootstrapping(&machine.name),
                backed_off_until: backoff.map(|b| b.until).filter(|until| *until > self.now),
                failures: backoff.map_or(0, |b| b.failures),
            }
        });
        let runs = self.runs.iter().map(|(id, run)| RunView {
            run: id,
            machine: run.machine.clone(),
            ask: run.task.as_ref().map(|t| t.ask),
            cpus: run.room.cpus,
            ram_kib: run.room.ram_kib,
            since: run.since,
            interrupted: run.is_interrupted,
        });
        let controllers = self.controllers.all.iter().map(|c| ControllerView {
            url: c.url.clone(),
            priority: c.priority,
            kin: c.kin,
            trouble: c.trouble.clone(),
            failures: c.failures,
            next: c.next,
        });
        View {
            mode: self.mode,
            slots: limits.slots.unwrap_or(0),
            slots_used: used.slots,
            cpu_budget: limits.cpus,
            cpus_used: used.cpus,
            ram_budget: limits.ram_kib,
            ram_used: used.ram_kib,
            idle: self.idle.clone(),
            asking: self.ask.as_ref().map(|a| a.controller.clone()),
            machines: machines.collect(),
            runs: runs.collect(),
            controllers: controllers.collect(),
        }
    }
}
