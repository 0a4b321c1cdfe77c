//! What is left behind is swept at the start, each hour, and when the host runs short: what
//! could not be deleted when its run ended goes soon, and not with the next start in some
//! months.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use tokio::time::Instant;

use super::driver::{Happened, Job};
use super::{Agent, Context};
use crate::inventory;

/// How often, a quarter more or less: the agents of a host need not all do it at one time.
const EVERY: Duration = Duration::from_secs(60 * 60);

/// When it is swept again.
#[derive(Debug)]
pub(super) struct Sweeping {
    next: Instant,
    goes_on: bool,
}

impl Sweeping {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            next: after(now),
            goes_on: false,
        }
    }

    /// When it is to begin, if it does not go on already.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.goes_on).then_some(self.next)
    }

    /// What it may give back is needed now.
    pub(super) fn soon(&mut self, now: Instant) {
        self.next = self.next.min(now);
    }

    pub(super) fn ended(&mut self, now: Instant) {
        self.goes_on = false;
        self.next = after(now);
    }
}

fn after(now: Instant) -> Instant {
    now + EVERY.mul_f64(rand::thread_rng().gen_range(0.75..1.25))
}

impl Agent {
    /// Sweeps, if it is time to.
    pub(super) fn sweep(&mut self, now: Instant) {
        if self.sweeping.due().is_some_and(|at| at <= now) {
            self.sweeping.goes_on = true;
            let sweep = everything(&self.context);
            let work = async move {
                sweep.await;
                Happened::Swept
            };
            self.spawn(Job::Sweep, work);
        }
    }
}

/// Deletes what is left of runs, this agent's and others', that are gone. Whoever ends does not
/// wait for it: the next one goes on with it.
pub(super) fn everything(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let (host, sources) = (Arc::clone(&context.host), Arc::clone(&context.sources));
    let sweep = move || {
        inventory::sweep(&host);
        sources.sweep();
    };
    async move {
        if let Err(e) = tokio::task::spawn_blocking(sweep).await
            && e.is_panic()
        {
            tracing::error!("a fault of this program, in a sweep: {e}");
        }
    }
}
