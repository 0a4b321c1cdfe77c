//! Machines that are restored before there is a task for them.

use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument as _;

use super::Agent;
use super::driver::{Happened, Job};
use crate::inventory::{Machine, State};
use crate::prepared::{self, Candidate, Means, Order, Unprepared};
use crate::resources::Level;
use crate::supervisor::{Mode, View};

/// A run that has just begun has the host to itself for so long: most are over by then, or have
/// begun in earnest.
const SETTLE: Duration = Duration::from_secs(1);

impl Agent {
    /// Prepares the next one, if there are the means for it; what is too much goes.
    pub(super) fn prepare(&mut self) {
        let host = Arc::clone(&self.context.host);
        let most = host.options.prepare_max();
        if most == 0 && self.stock.is_empty() {
            return;
        }
        let view = self.supervisor.view();
        if self.is_busy() {
            return;
        }
        let means = match self.may_prepare(&view) {
            true => self.means(&view, most),
            false => Means {
                most: 0,
                ram_kib: 0,
            },
        };
        let (machines, stock) = (self.usable_machines(), &self.stock);
        let candidates: Vec<Candidate> = machines
            .filter_map(|machine| prepared::candidate(&host, machine, stock))
            .collect();
        let Some(Order { name, share, stop }) = self.stock.next(candidates, means) else {
            return;
        };
        let Some(machine) = self.usable(&name).cloned() else {
            return self.stock.prepared(Err(Unprepared::Unwanted));
        };
        tracing::debug!("preparing {name}");
        let span = tracing::info_span!("preparing", machine = %name);
        let work = async move {
            let prepared = tokio::select! {
                biased;
                () = stop.cancelled() => Err(Unprepared::Unwanted),
                prepared = prepared::prepare(&host, &machine, share) => prepared,
            };
            Happened::Prepared(Box::new(prepared))
        };
        self.spawn(Job::Prepare, work.instrument(span));
    }

    fn may_prepare(&self, view: &View) -> bool {
        view.mode == Mode::Running
            && view.idle.is_none()
            && self.steering.drained.is_none()
            && self.steering.watch.level() == Level::Ok
    }

    /// What has just begun goes first.
    fn is_busy(&self) -> bool {
        self.runs.values().any(|run| run.since.elapsed() < SETTLE)
    }

    /// What runs and what is suspended leaves.
    fn means(&self, view: &View, most: usize) -> Means {
        let budget = self.context.host.options.ram_budget();
        let used = view.ram_used.saturating_add(self.suspended.ram_kib());
        Means {
            most,
            ram_kib: budget.saturating_sub(used),
        }
    }

    fn usable_machines(&self) -> impl Iterator<Item = &Machine> {
        self.machines.values().filter_map(|state| match state {
            State::Usable(machine) => Some(&**machine),
            _ => None,
        })
    }
}
