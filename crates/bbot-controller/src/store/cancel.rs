//! Cancelling: a build leaves the queue, or its session ends.

use std::time::Duration;

use super::rows::{self, Build};
use super::turns::Cancelled;
use super::tx::{Sql, Tx};
use super::{Store, StoreError};
use crate::clock::Millis;
use crate::queue::{self, Cancel};

impl Store {
    /// Cancels a build; what that does, and the build as it was before. `None` when there is no such build. `share`: the time in which the
    /// farm takes one build from the queue.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn cancel(
        &self,
        id: i64,
        reason: Option<&str>,
        share: Duration,
        now: Millis,
    ) -> Result<Option<(Cancel, Build)>, StoreError> {
        let reason = reason.map(str::to_owned);
        self.write("cancel a build", move |tx| {
            Box::pin(async move {
                let found = format!("SELECT * FROM builds WHERE id = $1{}", tx.dialect().held());
                let row = tx.optional(Sql::new(found).bind(id)).await?;
                let Some(build) = row.as_ref().map(rows::build).transpose()? else {
                    return Ok(None);
                };
                let cancel = queue::cancel(build.state);
                if cancel == Cancel::Now {
                    let mut turns = Cancelled::default();
                    turns.add(&build);
                    turns.give_back(tx, now, share).await?;
                    end(tx, id, reason.as_deref(), now).await?;
                }
                Ok(Some((cancel, build)))
            })
        })
        .await
    }

    /// Cancels all builds of a submission that are not over; those, as they were before. `share` as above.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn cancel_submission(
        &self,
        submission: i64,
        reason: Option<&str>,
        share: Duration,
        now: Millis,
    ) -> Result<Vec<Build>, StoreError> {
        let reason = reason.map(str::to_owned);
        self.write("cancel a submission", move |tx| {
            Box::pin(async move {
                let found = format!(
                    "SELECT * FROM builds WHERE submission = $1 AND state IN ('queued', 'building') ORDER BY id{}",
                    tx.dialect().held()
                );
                let builds: Vec<Build> = tx
                    .all(Sql::new(found).bind(submission))
                    .await?
                    .iter()
                    .map(rows::build)
                    .collect::<Result<_, _>>()?;
                let mut turns = Cancelled::default();
                builds.iter().for_each(|build| turns.add(build));
                turns.give_back(tx, now, share).await?;
                for build in &builds {
                    end(tx, build.id, reason.as_deref(), now).await?;
                }
                Ok(builds)
            })
        })
        .await
    }
}

/// Nobody gets the build, and no session of it brings a result any more.
async fn end(
    tx: &mut Tx<'_>,
    build: i64,
    reason: Option<&str>,
    now: Millis,
) -> Result<(), StoreError> {
    tx.run(
        Sql::new(
            "UPDATE builds SET state = 'cancelled', finished = $2, reason = $3, session = NULL, lease_until = NULL, \
             again = 0, again_place = NULL, again_by = NULL, interrupts = 0, lapses = 0 WHERE id = $1",
        )
        .bind(build)
        .bind(now)
        .bind(reason),
    )
    .await?;
    tx.run(
        Sql::new(
            "UPDATE sessions SET ended = 'cancelled' WHERE build = $1 AND attempt IS NULL \
             AND (ended IS NULL OR ended = 'lapsed')",
        )
        .bind(build),
    )
    .await
}
