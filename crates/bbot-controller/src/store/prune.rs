//! What is old: runs whose raw log may go, and results that are not the last of their build.

use super::tx::Sql;
use super::{Doing as _, Store, StoreError};
use crate::clock::Millis;

impl Store {
    /// At most `limit` runs that were handed out before a time and that nobody works on, as build and run.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn old_runs(
        &self,
        before: Millis,
        limit: i64,
    ) -> Result<Vec<(i64, i64)>, StoreError> {
        sqlx::query_as(
            "SELECT s.build, s.number FROM sessions s WHERE s.number IS NOT NULL AND s.issued < $1 \
             AND NOT EXISTS (SELECT 1 FROM builds b WHERE b.id = s.build AND b.session = s.id) \
             ORDER BY s.issued LIMIT $2",
        )
        .bind(before.0)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .doing("look for old runs")
    }

    /// Whether somebody works on this run of a build.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn is_under_way(&self, build: i64, run: i64) -> Result<bool, StoreError> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT id FROM builds WHERE id = $1 AND run = $2 AND session IS NOT NULL",
        )
        .bind(build)
        .bind(run)
        .fetch_optional(&self.pool)
        .await
        .doing("look whether a run is under way")?;
        Ok(found.is_some())
    }

    /// Forgets that a run had a raw log.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn forget_run(&self, run: i64) -> Result<(), StoreError> {
        self.write("forget an old run", move |tx| {
            Box::pin(async move {
                tx.later(Sql::new("UPDATE sessions SET number = NULL WHERE number = $1").bind(run));
                Ok(())
            })
        })
        .await
    }

    /// Removes results of before a time that are not the last of their build, with their logs; how many.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn prune_attempts(&self, before: Millis) -> Result<usize, StoreError> {
        self.write("remove old results", move |tx| {
            Box::pin(async move {
                // The same for both, so that no log stays behind without its result.
                tx.later(
                    Sql::new(
                        "DELETE FROM logs WHERE (build, attempt) IN (SELECT a.build, a.number FROM attempts a \
                         JOIN builds b ON b.id = a.build WHERE a.finished < $1 AND a.number < b.attempt)",
                    )
                    .bind(before),
                );
                // Of runs that came to nothing, too.
                tx.later(
                    Sql::new(
                        "DELETE FROM artifacts WHERE uploaded < $1 AND NOT EXISTS (SELECT 1 FROM attempts a \
                         JOIN builds b ON b.id = a.build WHERE a.build = artifacts.build AND a.run = artifacts.run \
                         AND (a.finished >= $1 OR a.number = b.attempt)) AND NOT EXISTS (SELECT 1 FROM builds b \
                         WHERE b.id = artifacts.build AND b.run = artifacts.run AND b.session IS NOT NULL)",
                    )
                    .bind(before),
                );
                let removed = tx
                    .changed(
                        Sql::new(
                            "DELETE FROM attempts WHERE finished < $1 \
                             AND number < (SELECT b.attempt FROM builds b WHERE b.id = attempts.build)",
                        )
                        .bind(before),
                    )
                    .await?;
                Ok(usize::try_from(removed).unwrap_or(usize::MAX))
            })
        })
        .await
    }
}
