//! A writing transaction, as the store's operations see it.
//!
//! SQLite lives on a thread of its own behind sqlx, so that each statement costs two switches between threads, which is far
//! more than most statements cost themselves. What gives no rows therefore waits here until something that does is
//! asked for, or until the end, and then goes there in one piece. PostgreSQL takes statements one by one.

use std::borrow::Cow;

use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AssertSqlSafe};

use super::dialect::{Counter, Dialect};
use super::error::{Doing as _, StoreError};
use crate::clock::Millis;

/// So many statements wait at most.
const WAITING: usize = 32;

/// A text of more statements than this is of a rare kind, and not kept prepared,
const KEPT: usize = 12;

/// nor is one of more values than this.
const KEPT_VALUES: usize = 300;

/// A value that is given to a statement.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// `BIGINT`.
    Int(Option<i64>),
    /// `TEXT`.
    Text(Option<String>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Int(Some(i64::from(value)))
    }
}

impl From<Millis> for Value {
    fn from(value: Millis) -> Self {
        Self::Int(Some(value.0))
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.to_owned()))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(Some(value))
    }
}

impl From<Option<&str>> for Value {
    fn from(value: Option<&str>) -> Self {
        Self::Text(value.map(str::to_owned))
    }
}

/// A statement with its values.
#[derive(Debug, Clone)]
pub(super) struct Sql {
    text: Cow<'static, str>,
    values: Vec<Value>,
}

impl Sql {
    /// A statement whose values are `$1`, `$2`, ...: there is no other `$` in it.
    pub(super) fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            text: text.into(),
            values: Vec::new(),
        }
    }

    /// The next value.
    pub(super) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// PostgreSQL has no text with a zero byte in it.
    fn without_zeros(mut self) -> Self {
        for value in &mut self.values {
            if let Value::Text(Some(text)) = value
                && text.contains('\0')
            {
                *text = text.replace('\0', "\u{fffd}");
            }
        }
        self
    }
}

/// Statements as one text; the values of each go on where those before it end.
fn joined(statements: Vec<Sql>) -> Sql {
    let mut all = Sql::new(String::new());
    let text = all.text.to_mut();
    for (n, sql) in statements.into_iter().enumerate() {
        if n > 0 {
            text.push_str("; ");
        }
        renumber(text, &sql.text, all.values.len());
        all.values.extend(sql.values);
    }
    all
}

/// Appends `text` to `to`, each `$N` as `$(N + by)`.
fn renumber(to: &mut String, text: &str, by: usize) {
    let mut parts = text.split('$');
    to.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = part.split_at(digits);
        let number: usize = number.parse().unwrap_or(0);
        to.push('$');
        to.push_str(&(number + by).to_string());
        to.push_str(rest);
    }
}

/// The transaction that an operation writes in.
#[derive(Debug)]
pub(super) struct Tx<'c> {
    connection: &'c mut AnyConnection,
    dialect: Dialect,
    waiting: Vec<Sql>,
    /// What is being done, for errors.
    doing: &'static str,
    /// Whether anything has gone to the database.
    sent: bool,
}

impl<'c> Tx<'c> {
    pub(super) fn new(connection: &'c mut AnyConnection, dialect: Dialect) -> Self {
        Self {
            connection,
            dialect,
            waiting: Vec::new(),
            doing: "write",
            sent: false,
        }
    }

    pub(super) fn set_doing(&mut self, doing: &'static str) {
        self.doing = doing;
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.dialect
    }

    pub(super) fn sent(&self) -> bool {
        self.sent
    }

    /// Leaves out what waits.
    pub(super) fn forget(&mut self) {
        self.waiting.clear();
    }

    /// Has a statement that gives no rows run before whatever comes next, or at the end.
    pub(super) fn later(&mut self, sql: Sql) {
        self.waiting.push(sql);
    }

    /// The same for statements of which there may be many.
    pub(super) async fn run(&mut self, sql: Sql) -> Result<(), StoreError> {
        self.later(sql);
        if self.waiting.len() >= WAITING {
            self.flush().await?;
        }
        Ok(())
    }

    /// Takes the number of a counter that a statement before has used.
    pub(super) fn count(&mut self, counter: Counter) {
        let count = self.dialect.count(counter);
        self.waiting.extend(count);
    }

    /// Runs what waits.
    pub(super) async fn flush(&mut self) -> Result<(), StoreError> {
        if !self.waiting.is_empty() {
            let last = self.all_but_last().await?;
            last.execute(&mut *self.connection)
                .await
                .doing(self.doing)?;
        }
        Ok(())
    }

    /// The row of a statement that gives one at most.
    pub(super) async fn optional(&mut self, sql: Sql) -> Result<Option<AnyRow>, StoreError> {
        // sqlx' own would look no further than the first of several statements.
        Ok(self.all(sql).await?.pop())
    }

    /// All rows.
    pub(super) async fn all(&mut self, sql: Sql) -> Result<Vec<AnyRow>, StoreError> {
        self.later(sql);
        let last = self.all_but_last().await?;
        last.fetch_all(&mut *self.connection)
            .await
            .doing(self.doing)
    }

    /// Runs a statement now; how many rows it has changed.
    pub(super) async fn changed(&mut self, sql: Sql) -> Result<u64, StoreError> {
        self.flush().await?;
        let done = query(sql, true)
            .execute(&mut *self.connection)
            .await
            .doing(self.doing)?;
        Ok(done.rows_affected())
    }

    /// What is left to be run of what waits: all of it as one, or the last after the others have run.
    async fn all_but_last(&mut self) -> Result<Query<'static, Any, AnyArguments>, StoreError> {
        let mut waiting = std::mem::take(&mut self.waiting);
        self.sent = true;
        if self.dialect == Dialect::Sqlite {
            let kept = waiting.len() <= KEPT;
            let all = joined(waiting);
            let kept = kept && all.values.len() <= KEPT_VALUES;
            return Ok(query(all, kept));
        }
        let last = waiting.pop().unwrap_or_else(|| Sql::new(""));
        for sql in waiting {
            query(sql.without_zeros(), true)
                .execute(&mut *self.connection)
                .await
                .doing(self.doing)?;
        }
        Ok(query(last.without_zeros(), true))
    }
}

fn query(sql: Sql, kept: bool) -> Query<'static, Any, AnyArguments> {
    // Put together from this crate's own texts alone: values are never part of them.
    let query = sqlx::query(AssertSqlSafe(sql.text.into_owned())).persistent(kept);
    sql.values
        .into_iter()
        .fold(query, |query, value| match value {
            Value::Int(value) => query.bind(value),
            Value::Text(value) => query.bind(value),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_on_where_those_before_end() {
        let all = joined(vec![
            Sql::new("BEGIN"),
            Sql::new("UPDATE a SET b = $2 WHERE c = $1")
                .bind(1)
                .bind("x"),
            Sql::new("INSERT INTO a VALUES ($1, $10, 'z')").bind(2),
        ]);
        assert_eq!(
            all.text,
            "BEGIN; UPDATE a SET b = $2 WHERE c = $1; INSERT INTO a VALUES ($3, $12, 'z')"
        );
        assert_eq!(all.values.len(), 3);
    }

    #[test]
    fn zeros_are_no_text() {
        let sql = Sql::new("").bind("a\0b").bind(None::<&str>).without_zeros();
        assert!(matches!(&sql.values[0], Value::Text(Some(text)) if text == "a\u{fffd}b"));
    }
}
