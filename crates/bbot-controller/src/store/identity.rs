//! Which store this is, told from all others by a random name that it gives itself.

use sqlx::Row as _;

use super::tx::Sql;
use super::{Doing as _, Store, StoreError};

impl Store {
    /// The store's name: 32 hex digits, the same for all controllers that share it.
    ///
    /// # Errors
    /// The store cannot be used.
    pub async fn identity(&self) -> Result<String, StoreError> {
        const DOING: &str = "name the store";
        let mut random = [0; 16];
        getrandom::fill(&mut random)
            .map_err(|e| sqlx::Error::Io(std::io::Error::other(e.to_string())))
            .doing(DOING)?;
        let name = hex::encode(random);
        self.write(DOING, move |tx| {
            Box::pin(async move {
                let row = tx
                    .optional(
                        Sql::new(
                            "INSERT INTO identity (one, id) VALUES (1, $1) \
                             ON CONFLICT (one) DO UPDATE SET id = identity.id RETURNING id",
                        )
                        .bind(name.as_str()),
                    )
                    .await?;
                row.map_or(Ok(name), |row| row.try_get("id").doing(DOING))
            })
        })
        .await
    }

    /// Forgets the name: this is a copy, and a store of its own.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn forget_identity(&self) -> Result<(), StoreError> {
        self.write("name the store anew", |tx| {
            tx.later(Sql::new("DELETE FROM identity"));
            Box::pin(std::future::ready(Ok(())))
        })
        .await
    }
}
