//! Cancelling: a build leaves the queue, or its session ends.

use std::time::Duration;

use super::rows::{self, Build};
use super::turns::Cancelled;
use super::tx::{Sql, Tx};
use super::{Store, StoreError, look};
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
                    end(tx, &[id], reason.as_deref(), now).await?;
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
                let ids: Vec<i64> = builds.iter().map(|build| build.id).collect();
                end(tx, &ids, reason.as_deref(), now).await?;
                Ok(builds)
            })
        })
        .await
    }
}

/// Nobody gets these builds, and no session of theirs brings a result any more.
async fn end(
    tx: &mut Tx<'_>,
    builds: &[i64],
    reason: Option<&str>,
    now: Millis,
) -> Result<(), StoreError> {
    for some in builds.chunks(look::LARGEST) {
        let size = look::size_for(some.len());
        // What is one too many is the last once more.
        let padded = || {
            some.iter()
                .chain(some.last().into_iter().cycle())
                .take(size)
        };
        let ids = |first: usize| {
            let ids: Vec<String> = (first..first + size).map(|n| format!("${n}")).collect();
            ids.join(", ")
        };
        let cancel = Sql::new(format!(
            "UPDATE builds SET state = 'cancelled', finished = $1, reason = $2, session = NULL, lease_until = NULL, \
             again = 0, again_place = NULL, again_by = NULL, interrupts = 0, lapses = 0 WHERE id IN ({})",
            ids(3)
        ));
        let cancel = cancel.bind(now).bind(reason);
        tx.run(padded().fold(cancel, |sql, id| sql.bind(*id)))
            .await?;
        let end = Sql::new(format!(
            "UPDATE sessions SET ended = 'cancelled' WHERE build IN ({}) AND attempt IS NULL \
             AND (ended IS NULL OR ended = 'lapsed')",
            ids(1)
        ));
        tx.run(padded().fold(end, |sql, id| sql.bind(*id))).await?;
    }
    Ok(())
}
