//! Everything that outlives the process, and all the SQL: submissions, builds, sessions, results, logs.
//!
//! SQLite, embedded, through sqlx' `Any` driver, so that the same statements can serve PostgreSQL. Whatever
//! reads and then writes does so in one transaction, which the one [writer](writer) runs; the decisions in between are the
//! queue's pure functions. Readers have connections of their own.

mod builds;
mod error;
mod leases;
mod prune;
mod results;
mod rows;
mod sqlite;
mod submissions;
mod tx;
mod writer;

pub use builds::{Filter, Log, LogExcerpt};
pub use error::StoreError;
pub use leases::{Lease, NewLease};
pub use results::{NewOperation, NewResult, SessionFacts, Taken};
pub use rows::{Attempt, Build, Operation, Submission};
pub use submissions::NewSubmission;

use std::path::Path;

use sqlx::{AnyPool, Connection as _};

use error::Doing;
use sqlite::{Durability, File};
use tx::Tx;
use writer::{Boxed, Writer};

/// The open store. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    /// Connections that read.
    pool: AnyPool,
    writer: Writer,
    file: File,
}

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
        let file = File::new(path);
        // First by itself: a pool would try a file that is no database again and again, and then say that
        // it took too long.
        let mut first = sqlite::connect(&file, Durability::Synced)
            .await
            .map_err(open)?;
        let migrated = sqlx::migrate!("./migrations").run(&mut first).await;
        migrated.map_err(|source| StoreError::Migrate {
            path: shown.clone(),
            source,
        })?;
        first.close().await.map_err(open)?;
        Ok(Self {
            pool: sqlite::readers(&file).await.map_err(open)?,
            writer: Writer::start(file.clone()),
            file,
        })
    }

    /// The store's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Does what was asked for, and ends all connections, so that everything is in the file.
    pub async fn close(&self) {
        self.pool.close().await;
        self.writer.close().await;
    }

    /// Writes: what `work` does is kept as a whole, or not at all.
    async fn write<T, F>(&self, doing: &'static str, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'t, 'c> FnOnce(&'t mut Tx<'c>) -> Boxed<'t, Result<T, StoreError>> + Send + 'static,
    {
        self.writer.write(doing, Durability::Synced, work).await
    }

    /// The same for what need not be on disk when it is answered.
    async fn write_passing<T, F>(&self, doing: &'static str, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'t, 'c> FnOnce(&'t mut Tx<'c>) -> Boxed<'t, Result<T, StoreError>> + Send + 'static,
    {
        self.writer.write(doing, Durability::Passing, work).await
    }
}
