//! A connection to PostgreSQL for one who writes again and again: it is not asked each time whether it is alive.

use std::time::Duration;

use sqlx::{AnyConnection, AssertSqlSafe, SqlSafeStr as _};
use tokio::time::{Instant, timeout};

use super::StoreError;
use super::dialect::Dialect;
use super::error::{Doing as _, is_lost};
use super::postgres::{ACQUIRE, ANSWER, SETTINGS, connect, within};
use super::tx::Tx;
use super::writer::Boxed;

/// One that was not used for so long may lead nowhere any more, without anybody having said so.
const IDLE: Duration = Duration::from_secs(60);

/// What is said besides: many may wait for who waits for a lock, and what is asked leaves no choice of plans (`dialect::look_up`), so that they may be
/// kept.
const OWN: &str = "SET lock_timeout = '1s'; SET plan_cache_mode = auto";

/// The connection, if there is one.
#[derive(Debug)]
pub(super) struct Line {
    url: String,
    /// None before the first, and after a failure; and when it was used last.
    connection: Option<(AnyConnection, Instant)>,
}

impl Line {
    pub(super) fn to(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            connection: None,
        }
    }

    /// Has an operation done; what it gives, once that is kept. The transaction begins with `begin`, which has no values from outside.
    pub(super) async fn write<T, F>(
        &mut self,
        doing: &'static str,
        begin: String,
        work: F,
    ) -> Result<T, StoreError>
    where
        F: for<'t, 'c> FnOnce(&'t mut Tx<'c>) -> Boxed<'t, Result<T, StoreError>>,
    {
        let (connection, done) = within(doing, async {
            let mut connection = self.begun(begin).await.doing(doing)?;
            let mut tx = Tx::new(&mut connection, Dialect::Postgres);
            tx.set_doing(doing);
            let done = match work(&mut tx).await {
                Ok(value) => tx.flush().await.map(|()| value),
                Err(e) => Err(e),
            };
            let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
            let ended = sqlx::raw_sql(end).execute(&mut connection).await;
            match (done, ended.doing(doing)) {
                (Ok(value), Ok(_)) => Ok((Some(connection), Ok(value))),
                (Ok(_), Err(e)) => Err(e),
                // What it is that failed, another connection may be without it.
                (Err(e), _) => Ok((None, Err(e))),
            }
        })
        .await?;
        self.connection = connection.map(|connection| (connection, Instant::now()));
        done
    }

    /// The connection, with a transaction begun. Whoever gives up has none left.
    async fn begun(&mut self, begin: String) -> Result<AnyConnection, sqlx::Error> {
        let begin = AssertSqlSafe(begin).into_sql_str();
        if let Some((mut connection, used)) = self.connection.take()
            && used.elapsed() < IDLE
        {
            let begun = sqlx::raw_sql(begin.clone()).execute(&mut connection);
            match timeout(ANSWER, begun).await {
                Ok(Ok(_)) => return Ok(connection),
                Ok(Err(e)) if !is_lost(&e) => return Err(e),
                // The server has ended it meanwhile, or it leads nowhere: nothing has been done yet.
                Ok(Err(_)) | Err(_) => {}
            }
        }
        let connected = timeout(ACQUIRE, async {
            let mut connection = connect(&self.url).await?;
            sqlx::raw_sql(SETTINGS).execute(&mut connection).await?;
            sqlx::raw_sql(OWN).execute(&mut connection).await?;
            Ok(connection)
        });
        let mut connection = connected.await.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
        sqlx::raw_sql(begin).execute(&mut connection).await?;
        Ok(connection)
    }
}
