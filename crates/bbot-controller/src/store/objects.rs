//! Objects: what they hold, where they are, and which rows name them. The bytes are elsewhere ([`crate::objects`]).
//!
//! Who names an object holds its row first, and so does who removes it, who then looks whether somebody names it.

use std::collections::HashSet;

use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, Row as _};

use super::tx::{Sql, Tx};
use super::{Doing as _, Store, StoreError};
use crate::clock::Millis;
use crate::objects::{Kind, Object};

/// Text that is true of an object `o` which no row names.
macro_rules! unnamed {
    () => {
        "NOT EXISTS (SELECT 1 FROM logs l WHERE o.kind = 'log' AND l.object = o.sha256) \
         AND NOT EXISTS (SELECT 1 FROM submissions s WHERE o.kind = 'archive' AND s.archive = o.sha256) \
         AND NOT EXISTS (SELECT 1 FROM artifacts a WHERE o.kind = 'artifact' AND a.sha256 = o.sha256)"
    };
}

/// An object that nothing names since less than an hour is as good as a new one.
const FRESH: Millis = Millis(3_600_000);

/// So many rows are noted at once: whoever writes meanwhile waits for a few milliseconds.
const STEP: usize = 64;

/// How a row that is being written names an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// It was put for this row: wherever it was before, it is here now.
    Put,
    /// It was there already.
    Shared,
}

/// Names an object, in the transaction that writes the row which does.
pub(super) async fn name(
    tx: &mut Tx<'_>,
    object: &Object,
    naming: Naming,
) -> Result<(), StoreError> {
    if naming == Naming::Put {
        tx.later(put(object, None));
        return Ok(());
    }
    name_known(tx, object.kind, &object.sha256).await
}

/// Names an object that was put before.
pub(super) async fn name_known(
    tx: &mut Tx<'_>,
    kind: Kind,
    sha256: &str,
) -> Result<(), StoreError> {
    let known = tx
        .changed(
            Sql::new("UPDATE objects SET unnamed = NULL WHERE kind = $1 AND sha256 = $2")
                .bind(kind.as_str())
                .bind(sha256),
        )
        .await?;
    if known == 0 {
        return Err(StoreError::NoObject {
            kind: kind.as_str(),
            sha256: sha256.to_owned(),
        });
    }
    Ok(())
}

fn put(object: &Object, unnamed: Option<Millis>) -> Sql {
    let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    Sql::new(
        "INSERT INTO objects (kind, sha256, place, bytes, stored, unnamed) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (kind, sha256) DO UPDATE SET place = excluded.place, stored = excluded.stored, \
         unnamed = excluded.unnamed, damaged = NULL",
    )
    .bind(object.kind.as_str())
    .bind(object.sha256.as_str())
    .bind(object.place.as_str())
    .bind(number(object.bytes))
    .bind(number(object.stored))
    .bind(unnamed.map(|time| time.0))
}

/// The columns of an object, when it is in a row with something else.
pub(super) const OBJECT: &str = "o.kind AS object_kind, o.sha256 AS object_sha256, o.place AS object_place, \
    o.bytes AS object_bytes, o.stored AS object_stored";

/// An object out of a row with [`OBJECT`]; `None` where there is none.
pub(super) fn object(row: &sqlx::any::AnyRow) -> Result<Option<Object>, StoreError> {
    const DOING: &str = "read an object's row";
    let kind: Option<String> = row.try_get("object_kind").doing(DOING)?;
    let Some(kind) = kind.and_then(|kind| kind.parse().ok()) else {
        return Ok(None);
    };
    let number = |column: &str| {
        let number: i64 = row.try_get(column).doing(DOING)?;
        Ok(u64::try_from(number).unwrap_or(0))
    };
    Ok(Some(Object {
        kind,
        sha256: row.try_get("object_sha256").doing(DOING)?,
        place: row.try_get("object_place").doing(DOING)?,
        bytes: number("object_bytes")?,
        stored: number("object_stored")?,
    }))
}

/// Objects after one in the order of their kinds and hashes.
pub(super) fn after(last: &(String, String), limit: i64) -> Query<'_, Any, AnyArguments> {
    let sql = format!(
        "SELECT {OBJECT} FROM objects o WHERE (o.kind, o.sha256) > ($1, $2) ORDER BY o.kind, o.sha256 LIMIT $3"
    );
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(&last.0)
        .bind(&last.1)
        .bind(limit)
}

impl Store {
    /// The object that holds this; `None` when none is known to.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn object(&self, kind: Kind, sha256: &str) -> Result<Option<Object>, StoreError> {
        self.object_where(kind, sha256, "").await
    }

    /// The same for who would put it else: not one that is known to be damaged.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn whole_object(
        &self,
        kind: Kind,
        sha256: &str,
    ) -> Result<Option<Object>, StoreError> {
        self.object_where(kind, sha256, " AND o.damaged IS NULL")
            .await
    }

    async fn object_where(
        &self,
        kind: Kind,
        sha256: &str,
        more: &str,
    ) -> Result<Option<Object>, StoreError> {
        let sql =
            format!("SELECT {OBJECT} FROM objects o WHERE o.kind = $1 AND o.sha256 = $2{more}");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(kind.as_str())
            .bind(sha256)
            .fetch_optional(&self.pool)
            .await
            .doing("look for an object")?;
        row.as_ref().map_or(Ok(None), object)
    }

    /// Notes that what is at an object's place is not what it was. It stays there until somebody puts the same anew.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn note_damaged(&self, object: &Object, now: Millis) -> Result<(), StoreError> {
        let object = object.clone();
        self.write_passing("note a damaged object", move |tx| {
            Box::pin(async move {
                let note = Sql::new(
                    "UPDATE objects SET damaged = $4 WHERE kind = $1 AND sha256 = $2 AND place = $3 AND damaged IS NULL",
                );
                tx.later(
                    note.bind(object.kind.as_str())
                        .bind(object.sha256)
                        .bind(object.place)
                        .bind(now),
                );
                Ok(())
            })
        })
        .await
    }

    /// Keeps an object that was put, and that no row names yet.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn keep_object(&self, object: &Object, now: Millis) -> Result<(), StoreError> {
        let put = put(object, Some(now));
        self.write("keep an object", move |tx| {
            Box::pin(async move {
                tx.later(put);
                Ok(())
            })
        })
        .await
    }

    /// Has an object that is known, and that no row may name, stay for long enough to be named.
    ///
    /// # Errors
    /// The store cannot be used.
    pub async fn keep_known(
        &self,
        kind: Kind,
        sha256: &str,
        now: Millis,
    ) -> Result<(), StoreError> {
        let unnamed: Option<Option<i64>> =
            sqlx::query_scalar("SELECT unnamed FROM objects WHERE kind = $1 AND sha256 = $2")
                .bind(kind.as_str())
                .bind(sha256)
                .fetch_optional(&self.pool)
                .await
                .doing("look for an object")?;
        // Most are named, or new: nothing is written then.
        let fresh = now.0.saturating_sub(FRESH.0);
        if unnamed.flatten().is_none_or(|since| since > fresh) {
            return Ok(());
        }
        let sha256 = sha256.to_owned();
        self.write("keep an object", move |tx| {
            Box::pin(async move {
                tx.later(
                    Sql::new("UPDATE objects SET unnamed = $3 WHERE kind = $1 AND sha256 = $2 AND unnamed IS NOT NULL")
                        .bind(kind.as_str())
                        .bind(sha256)
                        .bind(now),
                );
                Ok(())
            })
        })
        .await
    }

    /// At most `limit` objects after one in the order of their kinds and hashes.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn objects_after(
        &self,
        after: &(String, String),
        limit: i64,
    ) -> Result<Vec<Object>, StoreError> {
        let rows = self::after(after, limit)
            .fetch_all(&self.pool)
            .await
            .doing("list objects")?;
        let objects: Result<Vec<_>, _> = rows.iter().map(object).collect();
        Ok(objects?.into_iter().flatten().collect())
    }

    /// Whether a row names an object.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn is_named(&self, object: &Object) -> Result<bool, StoreError> {
        let unnamed: Option<String> = sqlx::query_scalar(concat!(
            "SELECT o.sha256 FROM objects o WHERE o.kind = $1 AND o.sha256 = $2 AND ",
            unnamed!()
        ))
        .bind(object.kind.as_str())
        .bind(&object.sha256)
        .fetch_optional(&self.pool)
        .await
        .doing("look whether an object is named")?;
        Ok(unnamed.is_none())
    }

    /// Notes which objects no row names, at most `limit` of those after one in the order of their kinds and hashes; the last
    /// that was looked at, `None` after the last of all.
    ///
    /// # Errors
    /// The store cannot be used.
    pub async fn note_unnamed(
        &self,
        after: &(String, String),
        limit: i64,
        now: Millis,
    ) -> Result<Option<(String, String)>, StoreError> {
        let rows: Vec<(String, String, i64)> = sqlx::query_as(concat!(
            "SELECT o.kind, o.sha256, CAST(CASE WHEN ",
            unnamed!(),
            " THEN 1 ELSE 0 END AS BIGINT) FROM objects o WHERE o.unnamed IS NULL AND (o.kind, o.sha256) > ($1, $2) \
             ORDER BY o.kind, o.sha256 LIMIT $3"
        ))
        .bind(&after.0)
        .bind(&after.1)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .doing("look for objects that nothing names")?;
        let last = rows
            .last()
            .map(|(kind, sha256, _)| (kind.clone(), sha256.clone()));
        let unnamed: Vec<_> = rows
            .into_iter()
            .filter(|(.., unnamed)| *unnamed != 0)
            .collect();
        for some in unnamed.chunks(STEP) {
            let some = some.to_vec();
            self.write_passing("note objects that nothing names", move |tx| {
                Box::pin(async move {
                    for (kind, sha256, _) in some {
                        let note = Sql::new(
                            "UPDATE objects SET unnamed = $3 WHERE kind = $1 AND sha256 = $2 AND unnamed IS NULL",
                        );
                        tx.run(note.bind(kind).bind(sha256).bind(now)).await?;
                    }
                    Ok(())
                })
            })
            .await?;
        }
        Ok(last)
    }

    /// At most `limit` objects that nothing names since before a time, as far as is known.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn unnamed_since(
        &self,
        before: Millis,
        limit: i64,
    ) -> Result<Vec<Object>, StoreError> {
        let sql = format!(
            "SELECT {OBJECT} FROM objects o WHERE o.unnamed IS NOT NULL AND o.unnamed < $1 ORDER BY o.unnamed LIMIT $2"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(before.0)
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .doing("look for objects that nothing names")?;
        let objects: Result<Vec<_>, _> = rows.iter().map(object).collect();
        Ok(objects?.into_iter().flatten().collect())
    }

    /// Forgets an object if nothing names it since before a time, so that nothing ever will; whether it did.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn forget_object(&self, object: &Object, before: Millis) -> Result<bool, StoreError> {
        let object = object.clone();
        self.write("forget an object", move |tx| {
            Box::pin(async move {
                let key = |text: String| {
                    Sql::new(text)
                        .bind(object.kind.as_str())
                        .bind(object.sha256.as_str())
                };
                const THIS: &str = "FROM objects WHERE kind = $1 AND sha256 = $2";
                let held = tx.dialect().held();
                // By itself: who named it just now has ended then, and is seen below.
                tx.optional(key(format!("SELECT place {THIS}{held}"))).await?;
                let forget = key(concat!(
                    "DELETE FROM objects AS o WHERE o.kind = $1 AND o.sha256 = $2 AND o.place = $3 AND o.unnamed < $4 AND ",
                    unnamed!()
                )
                .to_owned())
                .bind(object.place.as_str())
                .bind(before);
                if tx.changed(forget).await? > 0 {
                    return Ok(true);
                }
                // Named after all: it is looked at anew, and does not come up here again.
                tx.later(
                    key("UPDATE objects SET unnamed = NULL WHERE kind = $1 AND sha256 = $2 AND unnamed < $3".to_owned())
                        .bind(before),
                );
                Ok(false)
            })
        })
        .await
    }

    /// Which of these places an object is at.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn known_places(&self, places: &[String]) -> Result<HashSet<String>, StoreError> {
        if places.is_empty() {
            return Ok(HashSet::new());
        }
        let numbers: Vec<String> = (1..=places.len()).map(|n| format!("${n}")).collect();
        let sql = format!(
            "SELECT place FROM objects WHERE place IN ({})",
            numbers.join(", ")
        );
        let mut query = sqlx::query_scalar(sqlx::AssertSqlSafe(sql));
        for place in places {
            query = query.bind(place);
        }
        let known: Vec<String> = query
            .fetch_all(&self.pool)
            .await
            .doing("look for objects by their places")?;
        Ok(known.into_iter().collect())
    }
}
