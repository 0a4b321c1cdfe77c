//! A machine that is booted once more and saved with its memory, as a future of its own.

use tokio_util::sync::CancellationToken;

use super::Context;
use super::work::{BootstrapEnded, Shown};
use crate::inventory::Machine;
use crate::run::Share;
use crate::supervisor::{BootstrapOutcome, RunId};
use crate::suspended::Departing;
use crate::warm;

/// A machine that is to be saved with its memory.
#[derive(Debug)]
pub(super) struct SavingRun {
    pub(super) context: Context,
    pub(super) run: RunId,
    pub(super) machine: Machine,
    pub(super) share: Share,
    /// It is interrupted.
    pub(super) stop: CancellationToken,
    pub(super) shown: Shown,
    /// Suspended machines whose room it takes.
    pub(super) departing: Departing,
}

impl SavingRun {
    /// Whatever comes of it, the machine can be used as before.
    pub(super) async fn perform(mut self) -> BootstrapEnded {
        let name = &self.machine.dir.name;
        let host = &self.context.host;
        let saving = async {
            self.departing.gone().await;
            warm::save(host, &self.machine, self.share, &mut self.shown).await
        };
        let saved = tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            ended = saving => Some(ended),
        };
        let outcome = match saved {
            None => BootstrapOutcome::Interrupted,
            Some(warm::Outcome::Saved) => {
                tracing::info!("saved {name}: it is restored for each task from now on");
                BootstrapOutcome::Done
            }
            Some(warm::Outcome::Stale) => {
                tracing::info!("what was saved of {name} is of no use: it was replaced");
                BootstrapOutcome::Interrupted
            }
            Some(warm::Outcome::GaveUp(why)) => {
                tracing::warn!("{name} cannot be saved and boots for each task: {why}");
                BootstrapOutcome::Done
            }
        };
        BootstrapEnded {
            run: self.run,
            outcome,
            keep: None,
        }
    }
}
