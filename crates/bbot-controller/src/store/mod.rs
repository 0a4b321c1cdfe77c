//! Everything that outlives the process, and all the SQL: submissions, builds, sessions, results, logs.
//!
//! SQLite, embedded, through sqlx' `Any` driver, so that the same statements can serve PostgreSQL. Whatever
//! reads and then writes does so in one immediate transaction; the decisions in between are the
//! queue's pure functions.

mod builds;
mod leases;
mod prune;
mod results;
mod rows;
mod submissions;

pub use builds::{Filter, Log, LogExcerpt};
pub use leases::{Lease, NewLease};
pub use results::{NewOperation, NewResult, SessionFacts};
pub use rows::{Attempt, Build, Operation, Submission};
pub use submissions::NewSubmission;

use std::path::{Path, PathBuf};

use sqlx::any::AnyPoolOptions;
use sqlx::{AnyConnection, AnyPool, Connection as _};

/// The store could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It could not be opened.
    #[error(
        "cannot open the store {path}; put a good copy in its place, or give another directory with --data"
    )]
    Open {
        /// Its file.
        path: String,
        /// Why not.
        source: sqlx::Error,
    },
    /// Its tables could not be brought to this version's form.
    #[error("cannot bring the store {path} up to date")]
    Migrate {
        /// Its file.
        path: String,
        /// Why not.
        source: sqlx::migrate::MigrateError,
    },
    /// A statement failed.
    #[error("store: cannot {doing}")]
    Statement {
        /// What it was for.
        doing: &'static str,
        /// Why it failed.
        source: sqlx::Error,
    },
    /// It holds something that this program never writes.
    #[error("store: build {build} has a bad {column}: {value:?}")]
    Damaged {
        /// The build.
        build: i64,
        /// The column.
        column: &'static str,
        /// What is there.
        value: String,
    },
}

/// Gives a statement's error the words for what it was for.
trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, StoreError>;
}

impl<T> Doing<T> for Result<T, sqlx::Error> {
    fn doing(self, doing: &'static str) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Statement { doing, source })
    }
}

/// The open store. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    pool: AnyPool,
    /// For what may be forgotten when the power goes.
    passing: AnyPool,
    path: PathBuf,
}

/// Connections kept: readers go on while one writes (WAL), writers queue up in SQLite anyway.
const CONNECTIONS: u32 = 8;

/// How a writing transaction begins: a deferred one that turns writer later fails at once when another
/// is first, whatever the time-out.
const BEGIN: &str = "BEGIN IMMEDIATE";

impl Store {
    /// Opens the store in this file, makes it where there is none, and brings it up to date.
    ///
    /// # Errors
    /// The file cannot be opened or written, or holds something else.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let shown = path.display().to_string();
        let open = |source| StoreError::Open {
            path: shown.clone(),
            source,
        };
        // First by itself: a pool would try a file that is no database again and again, and then say that
        // it took too long.
        let mut first = AnyConnection::connect(&url(path)).await.map_err(open)?;
        prepare(&mut first).await.map_err(open)?;
        first.close().await.map_err(open)?;
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS)
            .after_connect(|connection, _| Box::pin(prepare(connection)))
            .connect(&url(path))
            .await
            .map_err(open)?;
        let passing = AnyPoolOptions::new()
            .max_connections(1)
            .after_connect(|connection, _| Box::pin(prepare_passing(connection)))
            .connect_lazy(&url(path))
            .map_err(open)?;
        sqlx::migrate!("./migrations")
            .run(&pool)
            .await
            .map_err(|source| StoreError::Migrate {
                path: shown,
                source,
            })?;
        Ok(Self {
            pool,
            passing,
            path: path.to_owned(),
        })
    }

    /// The store's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends all connections, so that everything is in the file.
    pub async fn close(&self) {
        self.passing.close().await;
        self.pool.close().await;
    }

    async fn begin(
        &self,
        doing: &'static str,
    ) -> Result<sqlx::Transaction<'static, sqlx::Any>, StoreError> {
        self.pool.begin_with(BEGIN).await.doing(doing)
    }

    /// For what need not be on disk when it is answered: it is with whatever is written next. A
    /// store that loses it is as it was before.
    async fn begin_passing(
        &self,
        doing: &'static str,
    ) -> Result<sqlx::Transaction<'static, sqlx::Any>, StoreError> {
        self.passing.begin_with(BEGIN).await.doing(doing)
    }
}

async fn prepare(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    for pragma in [
        "PRAGMA busy_timeout = 10000",
        "PRAGMA journal_mode = WAL",
        // A result that was answered with 200 must survive a power cut: the agent forgets it.
        "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON",
    ] {
        sqlx::query(pragma).execute(&mut *connection).await?;
    }
    Ok(())
}

async fn prepare_passing(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    prepare(connection).await?;
    sqlx::query("PRAGMA synchronous = NORMAL")
        .execute(connection)
        .await?;
    Ok(())
}

/// The URL form of a path; whatever means something in a URL is escaped.
fn url(path: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt as _;
    let mut url = "sqlite://".to_owned();
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.".contains(byte) {
            url.push(char::from(*byte));
        } else {
            let _ = write!(url, "%{byte:02X}");
        }
    }
    url.push_str("?mode=rwc");
    url
}

/// The next number of a counter.
async fn next(connection: &mut AnyConnection, counter: &'static str) -> Result<i64, StoreError> {
    use sqlx::Row as _;
    let row = sqlx::query("UPDATE counters SET value = value + 1 WHERE name = $1 RETURNING value")
        .bind(counter)
        .fetch_one(connection)
        .await
        .doing("count")?;
    row.try_get(0).doing("count")
}
