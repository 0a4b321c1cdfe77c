//! The builds that wait for agents, in the order of the queue: one statement for many configurations.

use sqlx::AssertSqlSafe;

use super::rows::Build;
use super::{Doing as _, InLane, Store, StoreError, look};
use crate::queue::failure::Failures;

/// A build that waits, by its place in the queue.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Head {
    /// Its place: the lowest is the next.
    pub place: i64,
    /// Its number.
    pub build: i64,
    /// The hosts on which its machine has failed.
    pub failures: Failures,
}

impl Store {
    /// Of each of these the first builds that wait: `limit` of them, and those that have the same place as the last.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn first_queued(
        &self,
        wanted: &[InLane<'_>],
        limit: usize,
    ) -> Result<Vec<Vec<Head>>, StoreError> {
        let mut all = Vec::with_capacity(wanted.len());
        for some in wanted.chunks(look::LARGEST) {
            let size = look::size_for(some.len());
            let text = text(size);
            let mut query = sqlx::query_as(AssertSqlSafe(text));
            // What is one too many is the last once more.
            for n in 0..size {
                let InLane {
                    configuration,
                    target,
                    lane,
                } = some.get(n).or(some.last()).copied().unwrap_or_default();
                query = query.bind(configuration).bind(target).bind(lane);
            }
            let rows: Vec<(i64, i64, i64, String)> = query
                .bind(i64::try_from(limit.saturating_sub(1)).unwrap_or(i64::MAX))
                .fetch_all(&self.pool)
                .await
                .doing("look into the queue")?;
            let mut found = vec![Vec::new(); some.len()];
            for (n, place, build, failures) in rows {
                let at = usize::try_from(n).unwrap_or(usize::MAX);
                if let Some(builds) = found.get_mut(at) {
                    builds.push(Head {
                        place,
                        build,
                        failures: Failures::parse(&failures),
                    });
                }
            }
            all.append(&mut found);
        }
        Ok(all)
    }
}

impl Store {
    /// How many builds go before one in its configuration and lane, counted up to `limit`.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn count_before(&self, build: &Build, limit: usize) -> Result<usize, StoreError> {
        let count: i64 = sqlx::query_scalar(BEFORE)
            .bind(build.configuration.as_str())
            .bind(build.target.as_str())
            .bind(build.place)
            .bind(build.id)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .bind(build.lane.text())
            .fetch_one(&self.pool)
            .await
            .doing("count the builds before one")?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}

const BEFORE: &str = "SELECT COUNT(*) FROM (SELECT 1 AS one FROM builds WHERE state = 'queued' AND configuration = $1 AND target = $2 AND lane = $6 \
     AND place <= $3 AND (place < $3 OR id < $4) LIMIT $5) AS before_it";

/// The statement for so many. Of each it looks up where the last one is that is wanted, and takes all up to there: two looks at
/// the index, and the rows.
fn text(size: usize) -> String {
    let values: Vec<String> = (0..size)
        .map(|n| format!("({n}, ${}, ${}, ${})", 3 * n + 1, 3 * n + 2, 3 * n + 3))
        .collect();
    format!(
        "WITH w (n, configuration, target, lane) AS (VALUES {}) \
         SELECT w.n, q.place, q.id, q.failures FROM w JOIN builds q ON q.state = 'queued' \
         AND q.configuration = w.configuration AND q.target = w.target AND q.lane = w.lane AND q.place <= COALESCE(\
         (SELECT l.place FROM builds l WHERE l.state = 'queued' AND l.configuration = w.configuration \
         AND l.target = w.target AND l.lane = w.lane ORDER BY l.place LIMIT 1 OFFSET ${}), {}) ORDER BY w.n, q.place, q.id",
        values.join(", "),
        3 * size + 1,
        i64::MAX
    )
}

#[cfg(test)]
mod tests {
    use super::super::look::tests::plan;
    use super::*;

    /// What waits beyond what is wanted, and for others, is not looked at.
    #[tokio::test]
    async fn it_reads_what_it_gives_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.sqlite")).await.unwrap();
        let plan = plan(&store, &text(8)).await;
        let by = |table: &str| {
            let search = format!("SEARCH {table} USING");
            plan.iter()
                .any(|line| line.starts_with(&search) && line.contains("builds_queue"))
        };
        assert!(by("q") && by("l"), "{plan:?}");
        assert!(plan.iter().any(|l| l.contains("place<?")), "{plan:?}");
        let plan = self::plan(&store, BEFORE).await;
        let by_queue = |l: &String| l.contains("builds_queue") && l.contains("place<?");
        assert!(plan.iter().any(by_queue), "{plan:?}");
        store.close().await;
    }
}
