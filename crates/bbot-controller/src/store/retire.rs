//! Submissions that are old, with all that came of them.

use std::collections::HashSet;

use sqlx::AssertSqlSafe;

use super::tx::Sql;
use super::{Doing as _, Store, StoreError};
use crate::clock::Millis;

/// So many are found at once, by one who only reads,
const FOUND: i64 = 500;

/// and so many builds removed: whoever writes meanwhile waits for a few milliseconds.
const STEP: usize = 8;

/// True of a build `b` that stays: it is not over, was not before `$1`, or is what would be rebuilt by itself: there is no newer build of the
/// same ([`super::rebuilds`]).
const STAYS: &str = "(b.state IN ('queued', 'building') OR b.queued >= $1 OR COALESCE(b.finished, 0) >= $1 \
    OR (b.attempt > 0 AND b.state <> 'cancelled' AND b.breakpoint IS NULL AND NOT EXISTS (SELECT 1 FROM builds n \
    WHERE n.attempt > 0 AND n.state <> 'cancelled' AND n.breakpoint IS NULL AND n.package = b.package \
    AND n.configuration = b.configuration AND n.target = b.target AND n.package_configuration = b.package_configuration \
    AND n.id > b.id)))";

/// Submissions of before `$1`, after `$2`, that go: none of their builds stays, and there is a newer one of the package.
fn old() -> String {
    format!(
        "SELECT p.id FROM submissions p WHERE p.id > $2 AND p.submitted < $1 \
         AND NOT EXISTS (SELECT 1 FROM builds b WHERE b.submission = p.id AND {STAYS}) \
         AND EXISTS (SELECT 1 FROM submissions n WHERE LOWER(n.name) = LOWER(p.name) AND n.id > p.id) \
         ORDER BY p.id LIMIT $3"
    )
}

impl Store {
    /// Removes submissions of before a time whose builds were all over by then, with their builds, results, logs, artifacts and sessions;
    /// how many. The newest of a package stays, and each with a build that is the newest of its kind, so that it is rebuilt. In small steps:
    /// others write in between. What they name of the object store is swept later, their raw logs are the caller's.
    ///
    /// # Errors
    /// The store cannot be used; what was removed is gone.
    pub async fn prune_submissions(&self, before: Millis) -> Result<usize, StoreError> {
        let (mut removed, mut after) = (0, 0);
        loop {
            let found: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(old()))
                .bind(before.0)
                .bind(after)
                .bind(FOUND)
                .fetch_all(&self.pool)
                .await
                .doing("look for old submissions")?;
            let Some(last) = found.last() else {
                return Ok(removed);
            };
            after = *last;
            for submission in found {
                removed += usize::from(self.remove_submission(submission, before).await?);
            }
        }
    }

    /// Removes a submission; whether it is gone. Where somebody has asked for one of its builds again just now, that and it stay.
    async fn remove_submission(&self, submission: i64, before: Millis) -> Result<bool, StoreError> {
        let mut after = 0;
        loop {
            let builds: Vec<i64> = sqlx::query_scalar(
                "SELECT id FROM builds WHERE submission = $1 AND id > $2 ORDER BY id LIMIT $3",
            )
            .bind(submission)
            .bind(after)
            .bind(FOUND)
            .fetch_all(&self.pool)
            .await
            .doing("look for old builds")?;
            let Some(last) = builds.last() else { break };
            after = *last;
            for some in builds.chunks(STEP) {
                self.remove_builds(some.to_vec(), before).await?;
            }
        }
        self.write_passing("remove an old submission", move |tx| {
            Box::pin(async move {
                let remove = "DELETE FROM submissions WHERE id = $1 \
                    AND NOT EXISTS (SELECT 1 FROM builds b WHERE b.submission = submissions.id)";
                let gone = tx.changed(Sql::new(remove).bind(submission)).await?;
                Ok(gone > 0)
            })
        })
        .await
    }

    /// Removes these builds, those that do not stay after all, in the order of their numbers.
    async fn remove_builds(&self, builds: Vec<i64>, before: Millis) -> Result<(), StoreError> {
        self.write_passing("remove old builds", move |tx| {
            Box::pin(async move {
                let held = tx.dialect().build_held();
                for build in builds {
                    let goes =
                        format!("SELECT b.id FROM builds b WHERE b.id = $2 AND NOT {STAYS}{held}");
                    let goes = Sql::new(goes).bind(before).bind(build);
                    if tx.optional(goes).await?.is_none() {
                        continue;
                    }
                    for rows in [
                        "DELETE FROM logs WHERE build = $1",
                        "DELETE FROM artifacts WHERE build = $1",
                        "DELETE FROM attempts WHERE build = $1",
                        "DELETE FROM sessions WHERE build = $1",
                        "DELETE FROM builds WHERE id = $1",
                    ] {
                        tx.later(Sql::new(rows).bind(build));
                    }
                }
                Ok(())
            })
        })
        .await
    }

    /// Which of these builds there are.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn known_builds(&self, builds: &[i64]) -> Result<HashSet<i64>, StoreError> {
        let mut known = HashSet::new();
        for some in builds.chunks(usize::try_from(FOUND).unwrap_or(1)) {
            let ids: Vec<String> = some.iter().map(i64::to_string).collect();
            let find = format!("SELECT id FROM builds WHERE id IN ({})", ids.join(", "));
            let found: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(find))
                .persistent(false)
                .fetch_all(&self.pool)
                .await
                .doing("look for builds")?;
            known.extend(found);
        }
        Ok(known)
    }
}

#[cfg(test)]
mod tests {
    use super::super::look::tests::plan;
    use super::*;

    #[tokio::test]
    async fn what_is_looked_for_of_each_submission_is_found_by_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.sqlite")).await.unwrap();
        let plan = plan(&store, &old()).await;
        for (table, index) in [
            ("b", "builds_submission"),
            ("n", "builds_newer"),
            ("n", "submissions_name"),
        ] {
            let by = format!("SEARCH {table} ");
            assert!(
                plan.iter()
                    .any(|line| line.starts_with(&by) && line.contains(index)),
                "{index}: {plan:?}"
            );
        }
        assert!(
            !plan.iter().any(|line| line.starts_with("SCAN")),
            "{plan:?}"
        );
        store.close().await;
    }
}
