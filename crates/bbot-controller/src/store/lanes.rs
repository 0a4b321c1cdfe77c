//! The lanes that builds wait in, other than the plain one.

use sqlx::AssertSqlSafe;

use super::dialect::Dialect;
use super::{Doing as _, Store, StoreError};

/// A configuration in a lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct InLane<'a> {
    /// Name of the configuration,
    pub configuration: &'a str,
    /// its target,
    pub target: &'a str,
    /// and the lane, in its text form; the plain one is empty.
    pub lane: &'a str,
}

/// A lane with a configuration that builds wait for in it: its name and target.
pub type LaneOf = (String, String, String);

impl Store {
    /// The lanes that builds wait in, each with every configuration that some do for in it: in their order, beginning behind `after`, and `limit` of
    /// them at most.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn lanes(
        &self,
        (lane, configuration, target): &LaneOf,
        limit: usize,
    ) -> Result<Vec<LaneOf>, StoreError> {
        sqlx::query_as(AssertSqlSafe(lanes_text(self.dialect())))
            .bind(lane)
            .bind(configuration)
            .bind(target)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&self.pool)
            .await
            .doing("look for lanes")
    }

    /// Whether a build waits in a lane.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn is_waited_in(&self, lane: &str) -> Result<bool, StoreError> {
        let found: Option<i64> = sqlx::query_scalar(AssertSqlSafe(waited_in_text(self.dialect())))
            .bind(lane)
            .fetch_optional(&self.pool)
            .await
            .doing("look into a lane")?;
        Ok(found.is_some())
    }
}

/// From one to the next by the index, however many builds wait in each; no more steps than are asked for.
fn lanes_text(dialect: Dialect) -> String {
    let index = dialect.by_index(INDEX);
    let next = |table: &str, than: &str| {
        format!(
            "SELECT {table}.id FROM builds {table}{index} WHERE {table}.state = 'queued' AND {table}.lane <> '' \
             AND ({table}.lane, {table}.configuration, {table}.target) > ({than}) \
             ORDER BY {table}.lane, {table}.configuration, {table}.target LIMIT 1"
        )
    };
    format!(
        "WITH RECURSIVE w (id, n) AS (SELECT id, CAST(1 AS BIGINT) FROM ({}) AS first \
         UNION ALL SELECT ({}), w.n + 1 FROM w JOIN builds b ON b.id = w.id WHERE w.n < $4) \
         SELECT b.lane, b.configuration, b.target FROM w JOIN builds b ON b.id = w.id ORDER BY w.n",
        next("f", "$1, $2, $3"),
        next("n", "b.lane, b.configuration, b.target")
    )
}

fn waited_in_text(dialect: Dialect) -> String {
    let index = dialect.by_index(INDEX);
    format!(
        "SELECT id FROM builds{index} WHERE state = 'queued' AND lane <> '' AND lane = $1 LIMIT 1"
    )
}

const INDEX: &str = "builds_lanes";

#[cfg(test)]
mod tests {
    use super::super::look::tests::plan;
    use super::*;

    /// What waits in the plain lane, and how many in each, does not matter.
    #[tokio::test]
    async fn each_step_is_at_an_entry_of_the_index() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.sqlite")).await.unwrap();
        let lanes = plan(&store, &lanes_text(Dialect::Sqlite)).await;
        for table in ["f", "n"] {
            let by = format!("SEARCH {table} USING");
            let line = lanes.iter().find(|line| line.starts_with(&by));
            assert!(
                line.is_some_and(|l| l.contains("builds_lanes")),
                "{lanes:?}"
            );
        }
        // Only what is found is put in order, so many of them.
        assert!(!lanes.iter().any(|l| l.starts_with("SCAN b")), "{lanes:?}");
        let sorts = lanes.iter().filter(|l| l.contains("TEMP B-TREE")).count();
        assert!(sorts <= 1, "{lanes:?}");
        let waited = plan(&store, &waited_in_text(Dialect::Sqlite)).await;
        assert!(waited[0].contains("builds_lanes"), "{waited:?}");
        store.close().await;
    }
}
