//! Rebuilds by themselves: looks once in a while for builds that are due, and queues them.

use tokio_util::sync::CancellationToken;

use super::App;
use crate::clock;
use crate::store::StoreError;

/// So many are queued at once: the store has others to serve.
const AT_ONCE: usize = 32;

impl App {
    /// Queues builds that are due until `shutdown`. Where several controllers have a store, all of them do.
    pub(crate) async fn watch_rebuilds(&self, shutdown: &CancellationToken) {
        if self.config.rebuilds.is_off() {
            return;
        }
        loop {
            match self.queue_due().await {
                Ok(0) => {}
                Ok(queued) => tracing::info!("{queued} build(s) are due to be rebuilt and queued"),
                Err(e) => tracing::error!("cannot look for builds that are due: {e}"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(self.config.rebuild_look) => {}
            }
        }
    }

    /// Queues all that is due now; how many there were.
    async fn queue_due(&self) -> Result<usize, StoreError> {
        let mut queued = 0;
        loop {
            let now = self.now();
            let minute = clock::minute_of_day(now, &self.config.time_zone);
            let due = self.config.rebuilds.due(now, minute);
            let buildtab = self.buildtab();
            let is_offered = move |name: &str, target: &str| {
                let mut all = buildtab.configurations().iter();
                all.any(|c| c.name == name && c.target == target)
            };
            let found = self
                .store
                .queue_due(due, self.paced.share(), AT_ONCE, now, is_offered)
                .await?;
            self.figures.submitted(found.queued.len());
            for build in &found.queued {
                self.waits(build, None);
            }
            queued += found.queued.len();
            if !found.is_more {
                return Ok(queued);
            }
        }
    }
}
