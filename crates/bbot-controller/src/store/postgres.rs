//! PostgreSQL: several controllers over one database. Each operation is a transaction of its own, on whichever connection is
//! free; what it decides on is held by row locks, and the server commits many at once by itself. Hand-outs alone have connections of their
//! own and share transactions (`together`).

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::any::AnyPoolOptions;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AnyConnection, AnyPool, Connection as _};
use tokio::time::timeout;

use super::dialect::Dialect;
use super::error::{Doing as _, StoreError};
use super::reads::{LIMIT, silent};
use super::sqlite::Durability;
use super::tx::{Sql, Tx};
use super::writer::Boxed;

/// Connections of the pool at most: a controller's operations are short.
const CONNECTIONS: u32 = 16;

/// Whoever cannot be served for so long is told to come again.
pub(super) const ACQUIRE: Duration = Duration::from_secs(5);

/// A connection that was given back has to answer within so long, or is ended: it may have gone silent under a question that was given up. (The
/// pool asks once more by itself, without a bound: one that goes silent just then is lost to it until the system gives it up.)
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// What the server is told for each connection. Nothing that a controller does takes long, and a controller whose host has failed must
/// not keep the others from what it held: the server sees by itself within half a minute that it is gone. Every statement has its index, and
/// the queue may grow from nothing to a million within less than the server takes to count it anew: what is planned for a small table has to
/// do for a large one, and is not kept for later.
pub(super) const SETTINGS: &str = "SET statement_timeout = '30s'; SET lock_timeout = '10s'; \
     SET idle_in_transaction_session_timeout = '30s'; \
     SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; SET tcp_user_timeout = '30s'; \
     SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off; \
     SET plan_cache_mode = force_custom_plan";

/// Takes the bounds of [`SETTINGS`] off a transaction.
pub(super) const UNBOUNDED: [&str; 2] = [
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = 0",
];

/// Where the database is, without the password.
pub(super) fn place(url: &str) -> Result<String, sqlx::Error> {
    let options = PgConnectOptions::from_str(url)?;
    Ok(format!(
        "{} at {}:{}",
        options.get_database().unwrap_or("postgres"),
        options.get_host(),
        options.get_port()
    ))
}

/// One connection, by itself: a pool would try for long before it says what is wrong.
pub(super) async fn connect(url: &str) -> Result<AnyConnection, sqlx::Error> {
    AnyConnection::connect(url).await
}

/// The connections of a controller.
pub(super) async fn pool(url: &str) -> Result<AnyPool, sqlx::Error> {
    AnyPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(ACQUIRE)
        .after_connect(|connection, _| {
            Box::pin(async { sqlx::raw_sql(SETTINGS).execute(connection).await.map(drop) })
        })
        .after_release(|connection, _| {
            Box::pin(async {
                let answered = timeout(ANSWER, connection.ping()).await;
                answered.unwrap_or_else(|_| Err(silent())).map(|()| true)
            })
        })
        .connect(url)
        .await
}

/// Brings the tables up to date. Of several controllers that start at once one does it, and the others wait.
pub(super) async fn migrate(
    connection: &mut AnyConnection,
    shared: Migrator,
) -> Result<(), MigrateError> {
    all(shared).run(connection).await
}

/// The migrations of both in the order of their numbers.
fn all(shared: Migrator) -> Migrator {
    let own = sqlx::migrate!("./migrations/postgres");
    let mut all = shared.migrations.into_owned();
    all.extend(own.migrations.iter().cloned());
    all.sort_by_key(|m| m.version);
    Migrator {
        migrations: all.into(),
        ..Migrator::DEFAULT
    }
}

/// Whether just these have been run.
pub(super) async fn is_migrated(
    connection: &mut AnyConnection,
    shared: Migrator,
) -> Result<bool, sqlx::Error> {
    let run: Vec<i64> = sqlx::query_scalar("SELECT version FROM _sqlx_migrations ORDER BY version")
        .fetch_all(connection)
        .await?;
    let ours = all(shared);
    Ok(ours.iter().map(|m| m.version).eq(run))
}

/// The first version that this works with.
pub(super) const OLDEST: i64 = 15;

/// The server's version.
pub(super) async fn version(connection: &mut AnyConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT CAST(current_setting('server_version_num') AS BIGINT) / 10000")
        .fetch_one(connection)
        .await
}

/// Milliseconds since 1970, by the database's clock: the one that all controllers share.
pub(super) async fn now(connection: &mut AnyConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)")
        .fetch_one(connection)
        .await
}

/// Has an operation done; what it gives, once that is kept. What was begun is finished, whether anybody still waits
/// for it or not.
pub(super) async fn write<T, F>(
    pool: &AnyPool,
    doing: &'static str,
    durability: Durability,
    work: F,
) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: for<'t, 'c> FnOnce(&'t mut Tx<'c>) -> Boxed<'t, Result<T, StoreError>> + Send + 'static,
{
    let pool = pool.clone();
    let kept = async move {
        let mut transaction = pool.begin().await.doing(doing)?;
        let mut tx = Tx::new(&mut transaction, Dialect::Postgres);
        tx.set_doing(doing);
        if durability == Durability::Passing {
            tx.later(Sql::new("SET LOCAL synchronous_commit = off"));
        }
        let value = work(&mut tx).await?;
        tx.flush().await?;
        transaction.commit().await.doing(doing)?;
        Ok(value)
    };
    let done = tokio::spawn(within(doing, kept));
    done.await.unwrap_or(Err(StoreError::Closed { doing }))
}

/// The same within the bound of time.
pub(super) async fn within<T>(
    doing: &'static str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let done = timeout(LIMIT, work).await;
    done.unwrap_or_else(|_| Err(silent()).doing(doing))
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn the_password_is_not_shown() {
        for (url, expected) in [
            ("postgres://u:secret@db.x.org/farm", "farm at db.x.org:5432"),
            (
                "postgres://db.x.org:7/farm?user=u&password=secret",
                "farm at db.x.org:7",
            ),
        ] {
            assert_eq!(place(url).unwrap(), expected);
        }
        assert!(place("postgres://[").is_err());
    }
}
