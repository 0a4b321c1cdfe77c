//! The builds that wait for an agent, in the order of the queue.

use super::{Doing as _, Store, StoreError};

impl Store {
    /// The first builds that wait for a configuration, `limit` at most: place in the queue and number of each.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn first_queued(
        &self,
        configuration: &str,
        target: &str,
        limit: usize,
    ) -> Result<Vec<(i64, i64)>, StoreError> {
        sqlx::query_as(
            "SELECT position, id FROM builds WHERE state = 'queued' AND configuration = $1 AND target = $2 \
             ORDER BY position LIMIT $3",
        )
        .bind(configuration)
        .bind(target)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await
        .doing("look into the queue")
    }
}
