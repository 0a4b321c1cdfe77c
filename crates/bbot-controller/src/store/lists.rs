//! Lists, newest first, page by page. A page is a look at an index from a key on, whatever the history; where a filter has no
//! index, so many entries are looked at and no more, and the page may have fewer than were wanted, or none, and a next one.

use bbot_manifest::Status;
use sqlx::AssertSqlSafe;
use sqlx::Row as _;

use super::rows::{self, Attempt, Build, Submission};
use super::{Doing as _, Store, StoreError};
use crate::queue::State;

/// Entries that one page looks at, where there is no index for what is wanted.
const LOOKED_AT: i64 = 20_000;

/// Which builds a list shows. Names take the wildcards `*` and `?`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Package name.
    pub package: Option<String>,
    /// Configuration name.
    pub configuration: Option<String>,
    /// State.
    pub state: Option<State>,
    /// Status; only of builds that are built.
    pub status: Option<Status>,
    /// Only builds below this place: where the page before ended.
    pub before: Option<i64>,
}

/// Entries of a list, and what the next page begins below, if there may be more.
pub type Page<T> = (Vec<T>, Option<i64>);

/// A list's statement, put together from conditions with their values.
struct Query {
    columns: &'static str,
    table: &'static str,
    key: &'static str,
    /// Conditions that an index is for.
    indexed: Vec<String>,
    /// Others.
    looked: Vec<String>,
    values: Vec<String>,
}

/// Values before those of conditions: the key that the page is below, the one that it does not go below, and how many.
const FIRST: usize = 3;

impl Query {
    fn new(columns: &'static str, table: &'static str, key: &'static str) -> Self {
        Self {
            columns,
            table,
            key,
            indexed: Vec::new(),
            looked: Vec::new(),
            values: Vec::new(),
        }
    }

    /// The next value's place in the statement.
    fn value(&mut self, value: &str) -> String {
        // There is no such name, and no such text in PostgreSQL.
        self.values.push(value.replace('\0', "\u{fffd}"));
        format!("${}", FIRST + self.values.len())
    }

    /// Only what has this name in a column; by the index over its lower case, where it is a name and no pattern.
    fn name(&mut self, column: &str, name: &str, has_index: bool) {
        if has_index && !name.contains(['*', '?']) {
            let value = self.value(name);
            self.indexed
                .push(format!("LOWER({column}) = LOWER({value})"));
        } else {
            let value = self.value(&like(name));
            self.looked
                .push(format!("LOWER({column}) LIKE LOWER({value}) ESCAPE '\\'"));
        }
    }

    /// Only what has this in a column, for which no index is to be taken: it would have to be put in order.
    fn is(&mut self, column: &str, text: &str) {
        let value = self.value(text);
        self.looked
            .push(format!("COALESCE({column}, '') = {value}"));
    }

    fn conditions<'a>(&'a self, more: &'a [String]) -> String {
        let all = self.indexed.iter().chain(more);
        all.map(|condition| format!(" AND {condition}")).collect()
    }

    /// Where a page ends at the latest that looks at so many entries.
    fn bottom(&self) -> String {
        let Self { table, key, .. } = self;
        // The values of the other conditions are given too; PostgreSQL wants to know what they are.
        let unused: String = (FIRST + 1..=FIRST + self.values.len())
            .map(|n| format!(" AND CAST(${n} AS TEXT) IS NOT NULL"))
            .collect();
        format!(
            "SELECT {key} FROM {table} WHERE {key} < $1 AND $2 <= $1{}{unused} ORDER BY {key} DESC LIMIT 1 OFFSET $3",
            self.conditions(&[])
        )
    }

    fn page(&self) -> String {
        let Self {
            columns,
            table,
            key,
            ..
        } = self;
        format!(
            "SELECT {columns} FROM {table} WHERE {key} < $1 AND {key} >= $2{} ORDER BY {key} DESC LIMIT $3",
            self.conditions(&self.looked)
        )
    }
}

/// `LIKE` pattern for a name with `*` and `?`.
fn like(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        match c {
            '*' => pattern.push('%'),
            '?' => pattern.push('_'),
            '%' | '_' | '\\' => {
                pattern.push('\\');
                pattern.push(c);
            }
            c => pattern.push(c),
        }
    }
    pattern
}

fn builds(filter: &Filter) -> Query {
    let mut query = Query::new("*", "builds", "position");
    if let Some(name) = &filter.package {
        query.name("package", name, true);
    }
    if let Some(name) = &filter.configuration {
        query.name("configuration", name, false);
    }
    match filter.state {
        // As many as agents have: few, and found by an index.
        Some(State::Building) => query.indexed.push("state = 'building'".to_owned()),
        Some(state) => query.is("state", state.as_str()),
        None => {}
    }
    if let Some(status) = filter.status {
        query.is("state", State::Built.as_str());
        query.is("status", status.as_str());
    }
    query
}

impl Store {
    /// At most `limit` builds, newest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn builds(&self, filter: &Filter, limit: i64) -> Result<Page<Build>, StoreError> {
        let query = builds(filter);
        let key = |build: &Build| build.position;
        self.page(query, filter.before, limit, rows::build, key)
            .await
    }

    /// At most `limit` submissions, newest first, without their particulars; of those of a name where one is given.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn submissions(
        &self,
        name: Option<&str>,
        before: Option<i64>,
        limit: i64,
    ) -> Result<Page<Submission>, StoreError> {
        let mut query = Query::new(SUBMISSIONS, "submissions", "id");
        if let Some(name) = name {
            query.name("name", name, true);
        }
        let key = |submission: &Submission| submission.id;
        self.page(query, before, limit, rows::submission, key).await
    }

    async fn page<T>(
        &self,
        query: Query,
        before: Option<i64>,
        limit: i64,
        read: fn(&sqlx::any::AnyRow) -> Result<T, StoreError>,
        key: fn(&T) -> i64,
    ) -> Result<Page<T>, StoreError> {
        const DOING: &str = "read a list";
        let before = before.unwrap_or(i64::MAX);
        let bottom = if query.looked.is_empty() {
            None
        } else {
            let mut find = sqlx::query_scalar::<_, i64>(AssertSqlSafe(query.bottom()));
            find = find.bind(before).bind(0).bind(LOOKED_AT - 1);
            for value in &query.values {
                find = find.bind(value);
            }
            find.fetch_optional(&self.pool).await.doing(DOING)?
        };
        let mut select = sqlx::query(AssertSqlSafe(query.page()))
            .bind(before)
            .bind(bottom.unwrap_or(i64::MIN))
            .bind(limit.saturating_add(1));
        for value in &query.values {
            select = select.bind(value);
        }
        let found = select.fetch_all(&self.pool).await.doing(DOING)?;
        let mut entries: Vec<T> = found.iter().map(read).collect::<Result<_, _>>()?;
        let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
        if entries.len() > wanted {
            entries.truncate(wanted);
            let next = entries.last().map(key);
            return Ok((entries, next));
        }
        Ok((entries, bottom))
    }

    /// Builds that are with agents, at most `limit`, in no order.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn building(&self, limit: i64) -> Result<Vec<Build>, StoreError> {
        sqlx::query("SELECT * FROM builds WHERE state = 'building' LIMIT $1")
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .doing("list what is being built")?
            .iter()
            .map(rows::build)
            .collect()
    }

    /// The last attempts of a build, newest first: those before a number, where one is given.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn attempts(
        &self,
        build: i64,
        before: Option<i64>,
        limit: i64,
    ) -> Result<Vec<Attempt>, StoreError> {
        sqlx::query(ATTEMPTS)
            .bind(build)
            .bind(before.unwrap_or(i64::MAX))
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .doing("read the attempts of a build")?
            .iter()
            .map(|row| rows::attempt(row, build))
            .collect()
    }

    /// How many builds wait and how many are with agents.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn counts(&self) -> Result<(i64, i64), StoreError> {
        const DOING: &str = "count builds";
        let row = sqlx::query(
            "SELECT (SELECT COUNT(*) FROM builds WHERE state = 'queued') AS queued, \
             (SELECT COUNT(*) FROM builds WHERE state = 'building') AS building",
        )
        .fetch_one(&self.pool)
        .await
        .doing(DOING)?;
        Ok((
            row.try_get("queued").doing(DOING)?,
            row.try_get("building").doing(DOING)?,
        ))
    }
}

/// Of submissions: what they leave out and their particulars may be megabytes each.
const SUBMISSIONS: &str =
    "id, name, version, source, submitted, submitter, priority, '{}' AS particulars, service";

const ATTEMPTS: &str =
    "SELECT * FROM attempts WHERE build = $1 AND number < $2 ORDER BY number DESC LIMIT $3";

#[cfg(test)]
mod tests {
    use super::super::look::tests::plan;
    use super::*;

    #[test]
    fn wildcards_become_like_patterns() {
        for (name, expected) in [
            ("zlib", "zlib"),
            ("lib*-?", "lib%-_"),
            ("50%_\\", "50\\%\\_\\\\"),
        ] {
            assert_eq!(like(name), expected);
        }
    }

    fn filters() -> Vec<(Filter, &'static str)> {
        let name = |text: &str| Some(text.to_owned());
        let all = Filter::default();
        vec![
            (all.clone(), "builds_position"),
            (
                Filter {
                    package: name("zlib"),
                    ..all.clone()
                },
                "builds_name",
            ),
            (
                Filter {
                    package: name("zlib"),
                    state: Some(State::Queued),
                    configuration: name("a"),
                    ..all.clone()
                },
                "builds_name",
            ),
            (
                Filter {
                    package: name("z*"),
                    ..all.clone()
                },
                "builds_position",
            ),
            (
                Filter {
                    state: Some(State::Queued),
                    ..all.clone()
                },
                "builds_position",
            ),
            (
                Filter {
                    status: Some(Status::Error),
                    configuration: name("a"),
                    ..all.clone()
                },
                "builds_position",
            ),
            (
                Filter {
                    state: Some(State::Building),
                    ..all
                },
                "builds_lease",
            ),
        ]
    }

    /// Nothing is put in order that is not few, and nothing is looked through from one end to the other.
    #[tokio::test]
    async fn a_page_is_a_look_at_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.sqlite")).await.unwrap();
        let mut statements = vec![
            (ATTEMPTS.to_owned(), "sqlite_autoindex_attempts", false),
            (
                Query::new(SUBMISSIONS, "submissions", "id").page(),
                "sqlite_autoindex_submissions",
                false,
            ),
        ];
        let mut named = Query::new(SUBMISSIONS, "submissions", "id");
        named.name("name", "foo", true);
        statements.push((named.page(), "submissions_name", false));
        for (filter, index) in filters() {
            let query = builds(&filter);
            let few = filter.state == Some(State::Building);
            statements.push((query.page(), index, few));
            if !query.looked.is_empty() {
                statements.push((query.bottom(), index, few));
            }
        }
        for (text, index, sorts) in statements {
            let plan = plan(&store, &text).await;
            let has = |what: &str| plan.iter().any(|line| line.contains(what));
            assert!(has(index), "{text}: {plan:?}");
            assert!(!has("SCAN"), "{text}: {plan:?}");
            assert_eq!(has("TEMP B-TREE"), sorts, "{text}: {plan:?}");
        }
        store.close().await;
    }
}
