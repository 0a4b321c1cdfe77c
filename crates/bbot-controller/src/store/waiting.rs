//! The builds that wait for agents, in the order of the queue: one statement for many configurations.

use sqlx::AssertSqlSafe;

use super::dialect::Dialect;
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
            let text = text(size, self.dialect());
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

/// The statement for so many: of each an index is read from its first entry on, as far as is wanted.
fn text(size: usize, dialect: Dialect) -> String {
    let values: Vec<String> = (0..size)
        .map(|n| format!("({n}, ${}, ${}, ${})", 3 * n + 1, 3 * n + 2, 3 * n + 3))
        .collect();
    let of = |table: &str| {
        format!(
            "{table}.state = 'queued' AND {table}.configuration = w.configuration \
             AND {table}.target = w.target AND {table}.lane = w.lane"
        )
    };
    let last = 3 * size + 1;
    let found = match dialect {
        // Where the last one is that is wanted, and all up to there.
        Dialect::Sqlite => format!(
            "JOIN builds q ON {} AND q.place <= COALESCE((SELECT l.place FROM builds l WHERE {} ORDER BY l.place LIMIT 1 OFFSET ${last}), {})",
            of("q"),
            of("l"),
            i64::MAX
        ),
        // It would read the whole table for that, and look for the last one once more for each row.
        Dialect::Postgres => format!(
            "CROSS JOIN LATERAL (SELECT b.place, b.id, b.failures FROM builds b WHERE {} \
             ORDER BY b.place FETCH FIRST (${last} + 1) ROWS WITH TIES) q",
            of("b")
        ),
    };
    format!(
        "WITH w (n, configuration, target, lane) AS (VALUES {}) \
         SELECT w.n, q.place, q.id, q.failures FROM w {found} ORDER BY w.n, q.place, q.id",
        values.join(", ")
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
        let plan = plan(&store, &text(8, Dialect::Sqlite)).await;
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
