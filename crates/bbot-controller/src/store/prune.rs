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

    /// Removes results of before a time that are not the last of their build, with their logs, what builds made in such runs, and
    /// their sessions; how many results. In small steps: others write in between.
    ///
    /// # Errors
    /// The store cannot be written; what was removed is gone.
    pub async fn prune_attempts(&self, before: Millis) -> Result<usize, StoreError> {
        let mut removed = 0;
        let mut after = (0, 0);
        loop {
            let old: Vec<(i64, i64)> = sqlx::query_as(
                "SELECT a.build, a.number FROM attempts a JOIN builds b ON b.id = a.build \
                 WHERE (a.build, a.number) > ($1, $2) AND a.finished < $3 AND a.number < b.attempt \
                 ORDER BY a.build, a.number LIMIT $4",
            )
            .bind(after.0)
            .bind(after.1)
            .bind(before.0)
            .bind(FOUND)
            .fetch_all(&self.pool)
            .await
            .doing("look for old results")?;
            let Some(last) = old.last() else { break };
            after = *last;
            for some in old.chunks(STEP) {
                removed += self.remove_attempts(some.to_vec()).await?;
            }
        }
        self.prune_artifacts(before).await?;
        self.prune_sessions(before).await?;
        Ok(removed)
    }

    /// Removes these results, which are not the last of their builds and never will be.
    async fn remove_attempts(&self, attempts: Vec<(i64, i64)>) -> Result<usize, StoreError> {
        self.write_passing("remove old results", move |tx| {
            Box::pin(async move {
                let mut removed = 0;
                for (build, number) in attempts {
                    tx.later(
                        Sql::new("DELETE FROM logs WHERE build = $1 AND attempt = $2")
                            .bind(build)
                            .bind(number),
                    );
                    let gone = tx
                        .changed(
                            Sql::new("DELETE FROM attempts WHERE build = $1 AND number = $2")
                                .bind(build)
                                .bind(number),
                        )
                        .await?;
                    removed += usize::try_from(gone).unwrap_or(0);
                }
                Ok(removed)
            })
        })
        .await
    }

    /// Forgets what was made in runs of which no result is kept, those that came to nothing too.
    async fn prune_artifacts(&self, before: Millis) -> Result<(), StoreError> {
        let old = format!("a.uploaded < $1 AND {ARTIFACT_OF_NONE}");
        let find = format!(
            "SELECT a.build, a.run, a.kind, a.sha256 FROM artifacts a \
             WHERE (a.build, a.run, a.kind, a.sha256) > ($2, $3, $4, $5) AND {old} \
             ORDER BY a.build, a.run, a.kind, a.sha256 LIMIT $6"
        );
        let mut after = (0_i64, 0_i64, String::new(), String::new());
        loop {
            let found: Vec<(i64, i64, String, String)> =
                sqlx::query_as(sqlx::AssertSqlSafe(find.clone()))
                    .bind(before.0)
                    .bind(after.0)
                    .bind(after.1)
                    .bind(&after.2)
                    .bind(&after.3)
                    .bind(FOUND)
                    .fetch_all(&self.pool)
                    .await
                    .doing("look for old artifacts")?;
            let Some(last) = found.last() else {
                return Ok(());
            };
            after = last.clone();
            for some in found.chunks(STEP) {
                let (some, old) = (some.to_vec(), old.clone());
                self.write_passing("remove old artifacts", move |tx| {
                    Box::pin(async move {
                        for (build, run, kind, sha256) in some {
                            let remove = Sql::new(format!(
                                "DELETE FROM artifacts AS a WHERE {old} \
                                 AND a.build = $2 AND a.run = $3 AND a.kind = $4 AND a.sha256 = $5"
                            ));
                            let remove = remove.bind(before).bind(build).bind(run);
                            tx.run(remove.bind(kind).bind(sha256)).await?;
                        }
                        Ok(())
                    })
                })
                .await?;
            }
        }
    }
}

impl Store {
    /// Forgets sessions of before a time that no build has: where the store is one controller's own, once their raw logs are gone.
    /// A result that comes so late is told that there is no such session.
    async fn prune_sessions(&self, before: Millis) -> Result<(), StoreError> {
        // Controllers that share a store find their raw logs by the files, and need no session for it.
        let logless = if self.is_shared() {
            ""
        } else {
            " AND s.number IS NULL"
        };
        let find = format!(
            "SELECT s.id FROM sessions s WHERE s.issued < $1{logless} \
             AND NOT EXISTS (SELECT 1 FROM builds b WHERE b.id = s.build AND b.session = s.id) \
             ORDER BY s.issued LIMIT $2"
        );
        loop {
            let old: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(find.clone()))
                .bind(before.0)
                .bind(FOUND)
                .fetch_all(&self.pool)
                .await
                .doing("look for old sessions")?;
            let is_last = old.len() < usize::try_from(FOUND).unwrap_or(usize::MAX);
            for some in old.chunks(STEP) {
                let some = some.to_vec();
                self.write_passing("remove old sessions", move |tx| {
                    Box::pin(async move {
                        for session in some {
                            tx.later(Sql::new("DELETE FROM sessions WHERE id = $1").bind(session));
                        }
                        Ok(())
                    })
                })
                .await?;
            }
            if is_last {
                return Ok(());
            }
        }
    }
}

/// So many are found at once, by one who only reads,
const FOUND: i64 = 500;

/// and so many removed: whoever writes meanwhile waits for a few milliseconds.
const STEP: usize = 8;

/// True of an artifact `a` of a run which is not under way, and whose result is neither new (from `$1` on) nor the last of its build.
const ARTIFACT_OF_NONE: &str = "NOT EXISTS (SELECT 1 FROM attempts t JOIN builds b ON b.id = t.build \
    WHERE t.build = a.build AND t.run = a.run AND (t.finished >= $1 OR t.number = b.attempt)) \
    AND NOT EXISTS (SELECT 1 FROM builds b WHERE b.id = a.build AND b.run = a.run AND b.session IS NOT NULL)";
