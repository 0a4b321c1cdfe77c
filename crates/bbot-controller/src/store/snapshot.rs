//! A PostgreSQL database as it is at one moment, which others can look at too: `pg_dump` does, by its id.

use sqlx::{Any, Row as _, Transaction};

use super::objects::{after, object};
use super::{Doing as _, Store, StoreError, postgres};
use crate::objects::Object;

/// The moment lasts as long as this is kept.
#[derive(Debug)]
pub struct Snapshot {
    transaction: Transaction<'static, Any>,
    id: String,
}

impl Store {
    /// What there is now. Of PostgreSQL: SQLite's own copies are as good.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        const DOING: &str = "take a snapshot";
        let mut transaction = self.pool.0.begin().await.doing(DOING)?;
        sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .execute(&mut *transaction)
            .await
            .doing(DOING)?;
        // Others look at it for as long as they need.
        for unbounded in postgres::UNBOUNDED {
            sqlx::query(unbounded)
                .execute(&mut *transaction)
                .await
                .doing(DOING)?;
        }
        let row = sqlx::query("SELECT pg_export_snapshot() AS id")
            .fetch_one(&mut *transaction)
            .await
            .doing(DOING)?;
        let id = row.try_get("id").doing(DOING)?;
        Ok(Snapshot { transaction, id })
    }
}

impl Snapshot {
    /// What PostgreSQL calls it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// As [`Store::objects_after`].
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn objects_after(
        &mut self,
        last: &(String, String),
        limit: i64,
    ) -> Result<Vec<Object>, StoreError> {
        let rows = after(last, limit)
            .fetch_all(&mut *self.transaction)
            .await
            .doing("list objects")?;
        let objects: Result<Vec<_>, _> = rows.iter().map(object).collect();
        Ok(objects?.into_iter().flatten().collect())
    }
}
