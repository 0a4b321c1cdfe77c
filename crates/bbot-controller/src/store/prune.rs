//! What is old: runs whose raw log may go, and results that are not the last of their build.

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

    /// Forgets that a run had a raw log.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn forget_run(&self, run: i64) -> Result<(), StoreError> {
        sqlx::query("UPDATE sessions SET number = NULL WHERE number = $1")
            .bind(run)
            .execute(&self.pool)
            .await
            .doing("forget an old run")?;
        Ok(())
    }

    /// Removes results of before a time that are not the last of their build, with their logs; how many.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn prune_attempts(&self, before: Millis) -> Result<usize, StoreError> {
        const DOING: &str = "remove old results";
        // The same for both, so that no log stays behind without its result.
        let mut transaction = self.begin(DOING).await?;
        sqlx::query(
            "DELETE FROM logs WHERE (build, attempt) IN (SELECT a.build, a.number FROM attempts a \
             JOIN builds b ON b.id = a.build WHERE a.finished < $1 AND a.number < b.attempt)",
        )
        .bind(before.0)
        .execute(&mut *transaction)
        .await
        .doing(DOING)?;
        let removed = sqlx::query(
            "DELETE FROM attempts WHERE finished < $1 \
             AND number < (SELECT b.attempt FROM builds b WHERE b.id = attempts.build)",
        )
        .bind(before.0)
        .execute(&mut *transaction)
        .await
        .doing(DOING)?;
        transaction.commit().await.doing(DOING)?;
        Ok(usize::try_from(removed.rows_affected()).unwrap_or(usize::MAX))
    }
}
