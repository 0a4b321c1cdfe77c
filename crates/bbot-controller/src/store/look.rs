//! Looking into the queue: one statement for everything that an agent can build, and one look at an index for each of
//! that, however much waits.

use sqlx::AssertSqlSafe;
use sqlx::Row as _;

use super::error::Doing as _;
use super::{Store, StoreError, Waiting};
use crate::queue::failure::Failures;

const DOING: &str = "look into the queue";

/// How many are looked for by one statement: few texts, so that each is prepared once.
const SIZES: [usize; 3] = [1, 8, 64];

/// As many as one statement takes.
pub(super) const LARGEST: usize = 64;

/// The least number that a statement for so many is for.
pub(super) fn size_for(number: usize) -> usize {
    let size = SIZES.into_iter().find(|size| *size >= number);
    size.unwrap_or(number)
}

/// The first of what was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct First {
    /// Which of those that were looked for it is.
    pub index: usize,
    /// Its place in the queue.
    pub place: i64,
    /// Its number.
    pub build: i64,
    /// The hosts on which its machine has failed.
    pub failures: Failures,
}

impl Store {
    /// The build that is first in the queue, of all these; the first of them where it is one of several.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn first(&self, wanted: &[Waiting<'_>]) -> Result<Option<First>, StoreError> {
        self.first_after(wanted, None).await
    }

    /// The same of those that are behind one in the queue.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn first_after(
        &self,
        wanted: &[Waiting<'_>],
        after: Option<&First>,
    ) -> Result<Option<First>, StoreError> {
        let after = after.map_or((i64::MIN, i64::MIN), |first| (first.place, first.build));
        let mut found = Vec::new();
        let mut begun = 0;
        // Those with a repository are looked for by another index.
        for group in wanted.chunk_by(|a, b| a.repository.is_some() == b.repository.is_some()) {
            for some in group.chunks(LARGEST) {
                let first = self.first_of(some, after).await?;
                found.push(first.map(|o| First {
                    index: begun + o.index,
                    ..o
                }));
                begun += some.len();
            }
        }
        let found = found.into_iter().flatten();
        Ok(found.min_by_key(|first| (first.place, first.build, first.index)))
    }

    /// The same for not more than one statement takes, all with a repository or none.
    async fn first_of(
        &self,
        wanted: &[Waiting<'_>],
        after: (i64, i64),
    ) -> Result<Option<First>, StoreError> {
        let Some(last) = wanted.last() else {
            return Ok(None);
        };
        let size = size_for(wanted.len());
        let mut query = sqlx::query(AssertSqlSafe(text(size, last.repository.is_some())));
        // What is one too many is the last once more.
        for n in 0..size {
            let w = wanted.get(n).unwrap_or(last);
            query = query.bind(w.configuration).bind(w.target).bind(w.lane);
            if let Some(repository) = w.repository {
                query = query.bind(repository.replace('\0', "\u{fffd}"));
            }
        }
        let query = query.bind(after.0).bind(after.1);
        let row = query.fetch_optional(&self.pool).await.doing(DOING)?;
        row.map(|row| {
            let index: i64 = row.try_get("n").doing(DOING)?;
            Ok(First {
                index: usize::try_from(index).unwrap_or(0),
                place: row.try_get("place").doing(DOING)?,
                build: row.try_get("id").doing(DOING)?,
                failures: Failures::parse(row.try_get("failures").doing(DOING)?),
            })
        })
        .transpose()
    }
}

/// The statement for so many, with a repository each or without.
fn text(size: usize, repository: bool) -> String {
    let each = if repository { 4 } else { 3 };
    let values: Vec<String> = (0..size)
        .map(|n| {
            let values: Vec<String> = (1..=each).map(|i| format!("${}", n * each + i)).collect();
            format!("({n}, {})", values.join(", "))
        })
        .collect();
    let (column, condition) = if repository {
        (
            ", repository",
            " AND q.repository = w.repository AND q.repository <> ''",
        )
    } else {
        ("", "")
    };
    // The inner look is the first entry of an index; the outer one finds that build.
    format!(
        "WITH w (n, configuration, target, lane{column}) AS (VALUES {}) \
         SELECT w.n, b.place, b.id, b.failures FROM w JOIN builds b ON b.id = \
         (SELECT q.id FROM builds q WHERE q.state = 'queued' AND q.configuration = w.configuration \
         AND q.target = w.target AND q.lane = w.lane{condition} AND (q.place, q.id) > (${}, ${}) ORDER BY q.place, q.id LIMIT 1) ORDER BY b.place, b.id, w.n LIMIT 1",
        values.join(", "),
        each * size + 1,
        each * size + 2
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// How SQLite goes about a statement, a line for each step.
    pub(in super::super) async fn plan(store: &Store, text: &str) -> Vec<String> {
        let text = format!("EXPLAIN QUERY PLAN {text}");
        let rows = sqlx::query(AssertSqlSafe(text)).fetch_all(&store.pool);
        let steps = rows.await.unwrap();
        steps.iter().map(|row| row.get("detail")).collect()
    }

    /// What waits for others, however much, is not looked at.
    #[tokio::test]
    async fn each_look_is_at_the_first_entry_of_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.sqlite")).await.unwrap();
        for size in SIZES {
            for (repository, index) in [(false, "builds_queue"), (true, "builds_repository")] {
                let plan = plan(&store, &text(size, repository)).await;
                let has = |what: &str| plan.iter().any(|line| line.starts_with(what));
                assert!(
                    has("SEARCH b USING INDEX sqlite_autoindex_builds_1 (id=?)"),
                    "{plan:?}"
                );
                assert!(!has("SCAN b") && !has("SCAN q"), "{plan:?}");
                let used = plan.iter().find(|line| line.starts_with("SEARCH q"));
                assert!(
                    used.is_some_and(
                        |line| line.contains(index) && line.contains("(place,id)>(?,?)")
                    ),
                    "{plan:?}"
                );
            }
        }
        store.close().await;
    }
}
