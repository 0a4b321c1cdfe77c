//! Looking after leases: each that lapses is noticed when it does, by the watch or by an agent that asks for a task.
//!
//! When the next one lapses at the earliest is kept in memory, so that nobody who asks for a task has to look for it in the
//! store. A lease that is renewed makes that too early, which costs one look.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{App, problem};
use crate::clock::Millis;
use crate::figures::CameBack;
use crate::queue::lease::{self, Lapse};
use crate::queue::outcome;
use crate::store::{Build, StoreError};

/// The longest that nothing is looked at: a clock of a test may have been set.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// A store that is shared is looked at so often at least.
const SHARED: Duration = Duration::from_secs(5);

/// After an error of the store it is tried again so much later.
const AFTER_ERROR: Duration = Duration::from_secs(5);

/// When the next lease lapses.
#[derive(Debug, Default)]
pub(super) struct Lapses {
    /// No lease ends before this, in steady time. At first nothing is known.
    earliest: AtomicI64,
    sooner: Notify,
    /// Held by who looks for those that have lapsed.
    looking: tokio::sync::Mutex<()>,
}

impl Lapses {
    /// There is, or may be, a lease that ends at this time.
    pub(super) fn expect(&self, until: Millis) {
        if until.0 < self.earliest.fetch_min(until.0, Ordering::SeqCst) {
            self.sooner.notify_one();
        }
    }

    fn earliest(&self) -> Millis {
        Millis(self.earliest.load(Ordering::SeqCst))
    }

    /// The store is about to be asked: what is expected from here on is not forgotten.
    fn ask(&self) {
        self.earliest.store(i64::MAX, Ordering::SeqCst);
    }

    /// What the store has said.
    fn told(&self, next: Option<Millis>) {
        let next = next.map_or(i64::MAX, |next| next.0);
        self.earliest.fetch_min(next, Ordering::SeqCst);
    }
}

impl App {
    /// Queues builds again whose agents have not been heard of in time.
    pub(crate) async fn requeue_lapsed(self: &Arc<Self>) -> Result<(), StoreError> {
        if self.steady() < self.lapses.earliest() {
            // Who is at it has not told yet what waits again.
            drop(self.lapses.looking.lock().await);
            return Ok(());
        }
        let app = Arc::clone(self);
        // Whoever asks may go before it is done: what is found is told and remembered all the same.
        let looked = tokio::spawn(async move {
            let _looking = app.lapses.looking.lock().await;
            app.lapses.ask();
            let looked = app.look_for_lapsed().await;
            match looked {
                Ok(next) => app.lapses.told(next),
                // Whoever asks next finds out.
                Err(_) => app.lapses.told(Some(Millis(0))),
            }
            looked.map(drop)
        });
        looked.await.unwrap_or_else(|e| {
            tracing::error!("cannot look for lapsed leases: {e}");
            self.lapses.told(Some(Millis(0)));
            Ok(())
        })
    }

    async fn look_for_lapsed(&self) -> Result<Option<Millis>, StoreError> {
        loop {
            let lapsed = self.store.requeue_lapsed(self.steady(), self.now()).await?;
            if lapsed.is_empty() {
                break;
            }
            self.tell_lapsed(&lapsed);
        }
        let next = self.store.next_lapse().await?;
        if !self.store.is_shared() {
            return Ok(next);
        }
        // Another controller's leases are looked after by all: it may be the one that is gone.
        let look = self.steady().plus(SHARED);
        Ok(Some(next.map_or(look, |next| next.min(look))))
    }

    /// Tells all whom it concerns what became of builds whose leases have lapsed.
    fn tell_lapsed(&self, lapsed: &[(Build, Lapse)]) {
        for (build, lapse) in lapsed {
            let agent = build.agent.as_deref().unwrap_or_default();
            self.figures.came_back(CameBack::Lapsed);
            if *lapse == Lapse::GiveUp {
                self.figures.result(bbot_manifest::Status::Abort);
            }
            match lapse {
                Lapse::Requeue => {
                    tracing::warn!(
                        build.id,
                        agent,
                        "nothing was heard of {} about build {} in time: queued again",
                        problem::one_line(agent),
                        build.id
                    );
                    self.waits(build, None);
                }
                Lapse::GiveUp if build.lane.interactive => {
                    tracing::warn!(
                        build.id,
                        agent,
                        "nothing was heard of {} about the interactive build {} in time: abort",
                        problem::one_line(agent),
                        build.id
                    );
                    self.build_changed(build.id);
                }
                Lapse::GiveUp => {
                    tracing::error!(
                        build.id,
                        agent,
                        "build {} came back without a result {} times in a row: abort",
                        build.id,
                        outcome::INTERRUPTS
                    );
                    self.build_changed(build.id);
                }
            }
        }
    }

    /// Looks after leases until `shutdown`: each that lapses is noticed when it does.
    pub(crate) async fn watch_leases(self: &Arc<Self>, shutdown: &CancellationToken) {
        let mut beats = tokio::time::interval(lease::beat(self.config.lease));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wait = match self.requeue_lapsed().await {
                // A millisecond more: the clock is read anew then, and must be past it.
                Ok(()) => self.steady().until(self.lapses.earliest()) + Duration::from_millis(1),
                Err(e) => {
                    tracing::error!("cannot look for lapsed leases: {e}");
                    AFTER_ERROR
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.lapses.sooner.notified() => {}
                _ = beats.tick() => {
                    if let Err(e) = self.store.beat(self.steady()).await {
                        tracing::error!("cannot say that this controller runs: {e}");
                    }
                }
                () = tokio::time::sleep(wait.min(LONGEST_SLEEP)) => {}
            }
        }
    }

    /// Goes on with leases: nobody could renew while nobody was here.
    pub(crate) async fn restart_leases(&self) -> Result<(), StoreError> {
        let held = self
            .store
            .restart_leases(self.steady(), self.config.lease)
            .await?;
        if held > 0 {
            tracing::info!(
                "{held} task(s) are with agents: the time in which no controller ran does not count"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_begins_while_the_store_is_asked_is_not_forgotten() {
        let lapses = Lapses::default();
        assert_eq!(lapses.earliest(), Millis(0));
        lapses.ask();
        lapses.expect(Millis(50));
        lapses.told(Some(Millis(90)));
        assert_eq!(lapses.earliest(), Millis(50));
        lapses.ask();
        lapses.told(None);
        assert_eq!(lapses.earliest(), Millis(i64::MAX));
    }
}
