//! The logs of results: short ones in their rows, long ones as objects of which the rows hold the two ends.

use sqlx::Row as _;

use super::objects::{self, Naming, OBJECT};
use super::tx::{Sql, Tx};
use super::{Doing as _, Store, StoreError};
use crate::objects::Object;
use crate::objects::log::{INLINE, ends};

/// Of at most so many bytes is a log that stays in its row.
const SHORT: i64 = INLINE as i64;

/// The log of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The operation.
    pub operation: String,
    /// What it printed.
    pub text: LogText,
}

/// What an operation printed, in a row or elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogText {
    /// All of it.
    Whole(String),
    /// It is an object.
    Kept {
        /// The SHA-256 of its text.
        sha256: String,
        /// The object; `None` when the store does not know it any more.
        object: Option<Object>,
    },
}

/// The beginning and the end of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogExcerpt {
    /// The operation.
    pub operation: String,
    /// Its beginning; the whole log when `tail` is `None`.
    pub head: String,
    /// Its end, where something between is left out.
    pub tail: Option<String>,
}

/// A log that a result brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewLog {
    /// It goes into its row. (A long one is made an object later.)
    Whole(String),
    /// It is an object.
    Kept {
        /// The object, which is durable.
        object: Object,
        /// Whether it was put for this log.
        naming: Naming,
        /// Its beginning.
        head: String,
        /// Its end.
        tail: String,
    },
}

impl NewLog {
    /// The log, or its beginning.
    #[must_use]
    pub fn head(&self) -> &str {
        match self {
            Self::Whole(text) => text,
            Self::Kept { head, .. } => head,
        }
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Whole(text) => u64::try_from(text.len()).unwrap_or(u64::MAX),
            Self::Kept { object, .. } => object.bytes,
        }
    }
}

impl From<String> for NewLog {
    fn from(text: String) -> Self {
        Self::Whole(text)
    }
}

impl From<&str> for NewLog {
    fn from(text: &str) -> Self {
        Self::Whole(text.to_owned())
    }
}

/// A log of a result that is being kept.
pub(super) struct Place<'a> {
    pub(super) build: i64,
    pub(super) attempt: i64,
    pub(super) position: i64,
    pub(super) operation: &'a str,
}

/// Writes a log's row. The object that it names, if it does, is named before.
pub(super) async fn insert(tx: &mut Tx<'_>, at: Place<'_>, log: &NewLog) -> Result<(), StoreError> {
    let (tail, object) = match log {
        NewLog::Whole(_) => (None, None),
        NewLog::Kept { object, tail, .. } => (Some(tail.as_str()), Some(object.sha256.as_str())),
    };
    // One that is too long for its row is like those of before there were objects.
    let is_old = matches!(log, NewLog::Whole(text) if text.len() > INLINE);
    let bytes = i64::try_from(log.bytes()).ok().filter(|_| !is_old);
    tx.run(
        Sql::new(
            "INSERT INTO logs (build, attempt, position, operation, log, tail, object, bytes) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(at.build)
        .bind(at.attempt)
        .bind(at.position)
        .bind(at.operation)
        .bind(log.head())
        .bind(tail)
        .bind(object)
        .bind(bytes),
    )
    .await
}

/// Names the objects of a result, always in the same order, so that no two results wait for each other.
pub(super) async fn name_objects<'a>(
    tx: &mut Tx<'_>,
    logs: impl Iterator<Item = &'a NewLog>,
) -> Result<(), StoreError> {
    let mut named: Vec<(&Object, Naming)> = logs
        .filter_map(|log| match log {
            NewLog::Whole(_) => None,
            NewLog::Kept { object, naming, .. } => Some((object, *naming)),
        })
        .collect();
    named.sort_by(|(a, _), (b, _)| a.sha256.cmp(&b.sha256));
    for (object, naming) in named {
        objects::name(tx, object, naming).await?;
    }
    Ok(())
}

/// The build, the attempt and the position of a row of before there were objects.
pub type OldKey = (i64, i64, i64);

/// A row with a long log, of before there were objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldLog {
    key: OldKey,
    /// The log.
    pub text: String,
}

impl Store {
    /// The logs of an attempt in their order; of one operation where one is named.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn logs(
        &self,
        build: i64,
        attempt: i64,
        operation: Option<&str>,
    ) -> Result<Vec<Log>, StoreError> {
        const DOING: &str = "read logs";
        let sql = format!(
            "SELECT l.operation, l.log, l.object, {OBJECT} FROM logs l \
             LEFT JOIN objects o ON o.kind = 'log' AND o.sha256 = l.object \
             WHERE l.build = $1 AND l.attempt = $2 AND ($3 = '' OR l.operation = $3) ORDER BY l.position"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(build)
            .bind(attempt)
            .bind(operation.unwrap_or_default().replace('\0', "\u{fffd}"))
            .fetch_all(&self.pool)
            .await
            .doing(DOING)?
            .iter()
            .map(|row| {
                let kept: Option<String> = row.try_get("object").doing(DOING)?;
                Ok(Log {
                    operation: row.try_get("operation").doing(DOING)?,
                    text: match kept {
                        None => LogText::Whole(row.try_get("log").doing(DOING)?),
                        Some(sha256) => LogText::Kept {
                            object: objects::object(row)?,
                            sha256,
                        },
                    },
                })
            })
            .collect()
    }

    /// The two ends of the logs of an attempt.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn log_excerpts(
        &self,
        build: i64,
        attempt: i64,
    ) -> Result<Vec<LogExcerpt>, StoreError> {
        const DOING: &str = "read the beginnings and ends of logs";
        sqlx::query("SELECT operation, log, tail FROM logs WHERE build = $1 AND attempt = $2 ORDER BY position")
            .bind(build)
            .bind(attempt)
            .fetch_all(&self.pool)
            .await
            .doing(DOING)?
            .iter()
            .map(|row| {
                let log: String = row.try_get("log").doing(DOING)?;
                let tail: Option<String> = row.try_get("tail").doing(DOING)?;
                let (head, tail) = if tail.is_none() && log.len() > INLINE {
                    let (head, tail) = ends(&log);
                    (head.to_owned(), Some(tail.to_owned()))
                } else {
                    (log, tail)
                };
                Ok(LogExcerpt {
                    operation: row.try_get("operation").doing(DOING)?,
                    head,
                    tail,
                })
            })
            .collect()
    }

    /// At most `limit` rows of before there were objects after one, by build, attempt and position, each with whether its log is
    /// short.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn old_logs(
        &self,
        after: OldKey,
        limit: i64,
    ) -> Result<Vec<(OldKey, bool)>, StoreError> {
        const DOING: &str = "look for old logs";
        sqlx::query(
            "SELECT build, attempt, position, CAST(octet_length(log) AS BIGINT) AS length FROM logs \
             WHERE bytes IS NULL AND (build, attempt, position) > ($1, $2, $3) ORDER BY build, attempt, position LIMIT $4",
        )
        .bind(after.0)
        .bind(after.1)
        .bind(after.2)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .doing(DOING)?
        .iter()
        .map(|row| {
            let number = |column: &str| row.try_get::<i64, _>(column).doing(DOING);
            let key = (number("build")?, number("attempt")?, number("position")?);
            Ok((key, number("length")? <= SHORT))
        })
        .collect()
    }

    /// Notes of these rows with short logs that they stay as they are.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn keep_short_logs(&self, keys: Vec<OldKey>) -> Result<(), StoreError> {
        self.write_passing("look at old logs", move |tx| {
            Box::pin(async move {
                for (build, attempt, position) in keys {
                    let keep = Sql::new(
                        "UPDATE logs SET bytes = octet_length(log) \
                         WHERE build = $1 AND attempt = $2 AND position = $3 AND bytes IS NULL",
                    );
                    tx.run(keep.bind(build).bind(attempt).bind(position))
                        .await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// A log of before there were objects, as long as it is one.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn old_log(&self, key: OldKey) -> Result<Option<OldLog>, StoreError> {
        let text: Option<String> = sqlx::query_scalar(
            "SELECT log FROM logs WHERE build = $1 AND attempt = $2 AND position = $3 AND bytes IS NULL",
        )
        .bind(key.0)
        .bind(key.1)
        .bind(key.2)
        .fetch_optional(&self.pool)
        .await
        .doing("look for old logs")?;
        Ok(text.map(|text| OldLog { key, text }))
    }

    /// Has the row of a long log name its object instead.
    ///
    /// # Errors
    /// The store cannot be written; the object is not known any more.
    pub async fn move_log(
        &self,
        old: OldLog,
        object: Object,
        naming: Naming,
    ) -> Result<(), StoreError> {
        self.write("move an old log", move |tx| {
            Box::pin(async move {
                objects::name(tx, &object, naming).await?;
                let (head, tail) = ends(&old.text);
                tx.later(
                    Sql::new(
                        "UPDATE logs SET log = $4, tail = $5, object = $6, bytes = $7 \
                         WHERE build = $1 AND attempt = $2 AND position = $3 AND bytes IS NULL",
                    )
                    .bind(old.key.0)
                    .bind(old.key.1)
                    .bind(old.key.2)
                    .bind(head)
                    .bind(tail)
                    .bind(object.sha256.as_str())
                    .bind(i64::try_from(object.bytes).unwrap_or(i64::MAX)),
                );
                Ok(())
            })
        })
        .await
    }
}
