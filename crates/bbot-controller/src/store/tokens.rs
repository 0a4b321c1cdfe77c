//! Tokens with a name.

use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::tx::Sql;
use super::{Doing as _, Store, StoreError};
use crate::clock::Millis;
use crate::token::Scopes;

/// A token with a name; its secret is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Its name.
    pub name: String,
    /// The part of it that it is found by.
    pub id: String,
    /// Hash of the part that is secret.
    pub hash: String,
    /// What it lets do.
    pub scopes: Scopes,
    /// When it was made.
    pub created: Millis,
    /// Name of the token that made it.
    pub created_by: String,
    /// Until when it is worth something; none: for ever.
    pub expires: Option<Millis>,
}

const COLUMNS: &str = "name, id, hash, scopes, created, created_by, expires";

fn token(row: &AnyRow) -> Result<TokenRow, StoreError> {
    const DOING: &str = "read a token";
    let scopes: String = row.try_get("scopes").doing(DOING)?;
    Ok(TokenRow {
        name: row.try_get("name").doing(DOING)?,
        id: row.try_get("id").doing(DOING)?,
        hash: row.try_get("hash").doing(DOING)?,
        // What a later version knows as a scope gives no right here.
        scopes: scopes
            .split(' ')
            .filter_map(|word| word.parse::<Scopes>().ok())
            .flat_map(|scopes| scopes.as_slice().to_vec())
            .collect(),
        created: Millis(row.try_get("created").doing(DOING)?),
        created_by: row.try_get("created_by").doing(DOING)?,
        expires: row
            .try_get::<Option<i64>, _>("expires")
            .doing(DOING)?
            .map(Millis),
    })
}

impl Store {
    /// Keeps a new token; false when there is one of this name.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn add_token(&self, token: TokenRow) -> Result<bool, StoreError> {
        self.write("keep a token", move |tx| {
            Box::pin(async move {
                let added = tx
                    .changed(
                        Sql::new(
                            "INSERT INTO tokens (name, id, hash, scopes, created, created_by, expires) \
                             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (name) DO NOTHING",
                        )
                        .bind(token.name)
                        .bind(token.id)
                        .bind(token.hash)
                        .bind(token.scopes.to_string())
                        .bind(token.created)
                        .bind(token.created_by)
                        .bind(token.expires.map(|t| t.0)),
                    )
                    .await?;
                Ok(added > 0)
            })
        })
        .await
    }

    /// Removes the token of this name; false when there is none.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn remove_token(&self, name: &str) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.write("remove a token", move |tx| {
            Box::pin(async move {
                let removed = tx
                    .changed(Sql::new("DELETE FROM tokens WHERE name = $1").bind(name))
                    .await?;
                Ok(removed > 0)
            })
        })
        .await
    }

    /// The token that is found by this.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn token(&self, id: &str) -> Result<Option<TokenRow>, StoreError> {
        let text = format!("SELECT {COLUMNS} FROM tokens WHERE id = $1");
        let row = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(id.replace('\0', "\u{fffd}"))
            .fetch_optional(&self.pool)
            .await
            .doing("look for a token")?;
        row.as_ref().map(token).transpose()
    }

    /// At most `limit` tokens in the order of their names, those after a name.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn tokens(&self, after: &str, limit: i64) -> Result<Vec<TokenRow>, StoreError> {
        let text = format!("SELECT {COLUMNS} FROM tokens WHERE name > $1 ORDER BY name LIMIT $2");
        sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(after.replace('\0', "\u{fffd}"))
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .doing("list tokens")?
            .iter()
            .map(token)
            .collect()
    }
}
