//! Whole submissions that are old: their rows, and the raw logs of builds that are gone.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::App;
use super::problem::{Cause, Problem};
use crate::clock::Millis;

impl App {
    /// Removes submissions that were done so long ago, and are not the newest of their packages; how many.
    pub(super) async fn prune_submissions(&self, keep: Duration) -> Result<usize, Problem> {
        let before = Millis(self.now().0.saturating_sub(Millis(0).plus(keep).0));
        let removed = self.store.prune_submissions(before).await?;
        // The rows first: whoever is killed in between, or has files of a build that another controller has removed, finds them at the
        // next time.
        self.remove_lost_logs(before).await?;
        Ok(removed)
    }

    /// Removes raw logs of before a time of builds that there are no more.
    async fn remove_lost_logs(&self, before: Millis) -> Result<(), Problem> {
        let failed = |e: Cause<'_>| Problem::internal("look for raw logs", e);
        let before = UNIX_EPOCH + Duration::from_millis(u64::try_from(before.0).unwrap_or(0));
        let segments = Arc::clone(&self.segments);
        let old = tokio::task::spawn_blocking(move || segments.unchanged_since(before))
            .await
            .map_err(|e| failed(&e))?
            .map_err(|e| failed(&e))?;
        let builds: Vec<i64> = old.iter().map(|(build, _)| *build).collect();
        let known = self.store.known_builds(&builds).await?;
        for (build, run) in old.into_iter().filter(|(build, _)| !known.contains(build)) {
            self.remove_log(build, run).await?;
        }
        Ok(())
    }
}
