//! Everything that outlives the process, and all the SQL: submissions, builds, sessions, results, logs.
//!
//! SQLite, embedded, or PostgreSQL, which several controllers can share: through sqlx' `Any` driver, so that the same
//! statements serve both. Whatever reads and then writes does so in one transaction; with SQLite the one `writer` runs
//! them all. The decisions in between are the queue's pure functions.

mod agents;
mod artifacts;
mod builds;
mod cancel;
mod dialect;
mod ending;
mod error;
mod given;
mod hand_out;
mod identity;
mod lanes;
mod leases;
mod line;
mod lists;
mod logs;
mod look;
mod news;
mod objects;
mod postgres;
mod prune;
mod reads;
mod rebuilds;
mod results;
mod retire;
mod rows;
mod snapshot;
mod sqlite;
mod submissions;
mod together;
mod tokens;
mod turns;
mod tx;
mod waiting;
mod writer;

pub use agents::{AddedKey, Standing};
pub use artifacts::{Artifact, MOST as MOST_ARTIFACTS};
pub use error::StoreError;
pub use hand_out::{Instead, Lease, NewLease, SessionSigning, Waiting};
pub use lanes::{InLane, LaneOf};
pub use lists::{Filter, Page};
pub use logs::{Log, LogExcerpt, LogText, NewLog, OldKey, OldLog};
pub use look::First;
pub(crate) use news::{Kind, Listener, News};
pub use objects::Naming;
pub use rebuilds::FoundDue;
pub use results::{NewOperation, NewResult, SessionFacts, Taken};
pub use rows::{Attempt, AuxiliaryMachine, Build, Operation, Service, Submission};
pub use snapshot::Snapshot;
pub use submissions::{NewSubmission, Submitted};
pub use tokens::TokenRow;
pub use turns::Asker;
pub use waiting::Head;

use std::path::Path;
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::migrate::Migrator;

use crate::clock::Millis;

use dialect::Dialect;
use error::Doing;
use news::Teller;
use reads::Reads;
use sqlite::{Durability, File};
use together::Together;
use tx::Tx;
use writer::{Boxed, Writer};

/// The end of all connections is waited for no longer than this.
const CLOSING: Duration = Duration::from_secs(10);

/// The open store. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Store {
    /// Connections that read; on PostgreSQL all that do not hand out.
    pool: Reads,
    backend: Backend,
    /// Where it is, for people.
    place: String,
}

#[derive(Debug, Clone)]
enum Backend {
    Sqlite(Writer),
    Postgres {
        url: String,
        teller: Teller,
        together: Together,
        /// Milliseconds from 1970 to the time that the database says, less those of our own clock.
        ahead: i64,
    },
}

impl Store {
    /// Opens the store in this file, makes it where there is none, and brings it up to date.
    ///
    /// # Errors
    /// The file cannot be opened or written, or holds something else.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let place = path.display().to_string();
        let open = |source| StoreError::Open {
            path: place.clone(),
            source,
        };
        let file = File::new(path);
        // First by itself: a pool would try a file that is no database again and again, and then say that
        // it took too long.
        let mut first = sqlite::connect(&file, Durability::Synced)
            .await
            .map_err(open)?;
        let migrated = migrations().run(&mut first).await;
        migrated.map_err(|source| StoreError::Migrate {
            path: place.clone(),
            source,
        })?;
        first.close().await.map_err(open)?;
        Ok(Self {
            pool: Reads(sqlite::readers(&file).await.map_err(open)?),
            backend: Backend::Sqlite(Writer::start(file)),
            place,
        })
    }

    /// Opens the store in a PostgreSQL database, which is there, and brings it up to date. Several controllers may
    /// do so at once. `now`: our own steady time; that of the store is the database's.
    ///
    /// # Errors
    /// The database cannot be reached, or holds something else.
    pub async fn open_postgres(url: &str, now: Millis) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let connect = |place: &str, source| StoreError::Connect {
            place: place.to_owned(),
            source,
        };
        // The URL may have a password in it.
        let place = postgres::place(url).map_err(|e| connect("that --database names", e))?;
        let mut first = postgres::connect(url)
            .await
            .map_err(|e| connect(&place, e))?;
        let version = postgres::version(&mut first)
            .await
            .map_err(|e| connect(&place, e))?;
        if version < postgres::OLDEST {
            return Err(StoreError::Old { place, version });
        }
        let migrated = postgres::migrate(&mut first, migrations()).await;
        migrated.map_err(|source| StoreError::Migrate {
            path: place.clone(),
            source,
        })?;
        let theirs = postgres::now(&mut first)
            .await
            .map_err(|e| connect(&place, e))?;
        first.close().await.map_err(|e| connect(&place, e))?;
        let pool = postgres::pool(url).await.map_err(|e| connect(&place, e))?;
        let mut name = [0; 8];
        getrandom::fill(&mut name).map_err(|e| {
            connect(
                &place,
                sqlx::Error::Io(std::io::Error::other(e.to_string())),
            )
        })?;
        Ok(Self {
            backend: Backend::Postgres {
                url: url.to_owned(),
                teller: Teller::start(pool.clone(), &hex::encode(name)),
                together: Together::start(url),
                ahead: theirs.saturating_sub(now.0),
            },
            pool: Reads(pool),
            place,
        })
    }

    /// Whether a PostgreSQL database is as this version has it. It is left as it is.
    ///
    /// # Errors
    /// It cannot be reached, or is no store.
    pub async fn is_current(url: &str) -> Result<bool, StoreError> {
        sqlx::any::install_default_drivers();
        let place = postgres::place(url).unwrap_or_default();
        let connect = |source| StoreError::Connect {
            place: place.clone(),
            source,
        };
        let mut connection = postgres::connect(url).await.map_err(connect)?;
        let is_current = postgres::is_migrated(&mut connection, migrations()).await;
        connection.close().await.map_err(connect)?;
        is_current.map_err(connect)
    }

    /// Where it is: a file, or a database without its password.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Whether other controllers may use it at the same time.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.backend, Backend::Postgres { .. })
    }

    fn dialect(&self) -> Dialect {
        match self.backend {
            Backend::Sqlite(_) => Dialect::Sqlite,
            Backend::Postgres { .. } => Dialect::Postgres,
        }
    }

    /// What the store's steady time is when ours is `own`. Controllers that share a store have one.
    #[must_use]
    pub fn steady(&self, own: Millis) -> Millis {
        match self.backend {
            Backend::Sqlite(_) => own,
            Backend::Postgres { ahead, .. } => Millis(own.0.saturating_add(ahead)),
        }
    }

    /// Tells the other controllers, if there are any.
    pub(crate) fn tell(&self, news: &News) {
        if let Backend::Postgres { teller, .. } = &self.backend {
            teller.tell(news);
        }
    }

    /// Hears what the other controllers tell; `None` where there are none.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub(crate) async fn listen(&self) -> Result<Option<Listener>, StoreError> {
        match &self.backend {
            Backend::Sqlite(_) => Ok(None),
            Backend::Postgres { url, teller, .. } => Listener::open(url, teller).await.map(Some),
        }
    }

    /// Waits for its turn to write.
    ///
    /// # Errors
    /// The store cannot be written.
    pub(crate) async fn write_nothing(&self) -> Result<(), StoreError> {
        self.write_passing("come round", |_| Box::pin(std::future::ready(Ok(()))))
            .await
    }

    /// Does what was asked for, and ends all connections, so that everything is where it belongs.
    pub async fn close(&self) {
        // A connection that leads nowhere any more may be among them, and is not waited for.
        let _ = tokio::time::timeout(CLOSING, self.pool.0.close()).await;
        match &self.backend {
            Backend::Sqlite(writer) => writer.close().await,
            Backend::Postgres { together, .. } => {
                let _ = tokio::time::timeout(CLOSING, together.close()).await;
            }
        }
    }

    /// Writes: what `work` does is kept as a whole, or not at all.
    async fn write<T, F>(&self, doing: &'static str, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'t, 'c> FnOnce(&'t mut Tx<'c>) -> Boxed<'t, Result<T, StoreError>> + Send + 'static,
    {
        self.write_as(doing, Durability::Synced, work).await
    }

    /// The same for what need not be on disk when it is answered.
    async fn write_passing<T, F>(&self, doing: &'static str, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'t, 'c> FnOnce(&'t mut Tx<'c>) -> Boxed<'t, Result<T, StoreError>> + Send + 'static,
    {
        self.write_as(doing, Durability::Passing, work).await
    }

    async fn write_as<T, F>(
        &self,
        doing: &'static str,
        durability: Durability,
        work: F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'t, 'c> FnOnce(&'t mut Tx<'c>) -> Boxed<'t, Result<T, StoreError>> + Send + 'static,
    {
        match &self.backend {
            Backend::Sqlite(writer) => writer.write(doing, durability, work).await,
            Backend::Postgres { .. } => {
                postgres::write(&self.pool.0, doing, durability, work).await
            }
        }
    }
}

/// The migrations of both. Their numbers are one series with those of PostgreSQL alone.
fn migrations() -> Migrator {
    sqlx::migrate!("./migrations")
}
