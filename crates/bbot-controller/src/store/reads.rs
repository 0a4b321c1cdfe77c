//! The connections that read, each question within a bound of time. A database whose host has failed, or whom the network does not
//! reach any more, ends no connection: without the bound whoever asks it would wait for a quarter of an hour.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use sqlx::any::{AnyQueryResult, AnyRow, AnyStatement, AnyTypeInfo};
use sqlx::{Any, AnyPool, Describe, Either, Error, Execute, Executor, SqlStr};
use tokio::time::timeout;

/// No answer is waited for longer than this.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// The pool of a store's connections, for questions outside of transactions.
#[derive(Debug, Clone)]
pub(super) struct Reads(pub(super) AnyPool);

/// What passes, as soon as the database is heard of again.
pub(super) fn silent() -> Error {
    Error::Io(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        format!("the database has not answered in {} s", LIMIT.as_secs()),
    ))
}

impl<'p> Executor<'p> for &Reads {
    type Database = Any;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<AnyQueryResult, AnyRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Any>,
    {
        let found = self.0.fetch_many(query);
        let bounded = stream::unfold(Some(found), |found| async {
            let mut found = found?;
            match timeout(LIMIT, found.next()).await {
                Ok(next) => next.map(|next| (next, Some(found))),
                Err(_) => Some((Err(silent()), None)),
            }
        });
        bounded.boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<AnyRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Any>,
    {
        let found = self.0.fetch_optional(query);
        Box::pin(async {
            timeout(LIMIT, found)
                .await
                .unwrap_or_else(|_| Err(silent()))
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [AnyTypeInfo],
    ) -> BoxFuture<'e, Result<AnyStatement, Error>>
    where
        'p: 'e,
    {
        self.0.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Any>, Error>>
    where
        'p: 'e,
    {
        self.0.describe(sql)
    }
}
