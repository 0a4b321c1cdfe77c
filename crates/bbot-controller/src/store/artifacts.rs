//! Artifacts: what builds made beside their results.

use sqlx::Row as _;

use super::objects::{self, Naming, OBJECT};
use super::tx::Sql;
use super::{Doing as _, Store, StoreError};
use crate::clock::Millis;
use crate::objects::Object;

/// Most artifacts of one run.
pub const MOST: i64 = 16;

/// An artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The build that made it.
    pub build: i64,
    /// The run of it.
    pub run: i64,
    /// What it is, such as `bindist`.
    pub kind: String,
    /// What its file is called.
    pub name: String,
    /// Which of several of its kind, as its agent says; may be empty.
    pub instance: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// How many there are.
    pub bytes: u64,
    /// When it was there.
    pub uploaded: Millis,
}

const COLUMNS: &str =
    "a.build, a.run, a.kind, a.name, a.instance, a.sha256, a.bytes AS length, a.uploaded";

fn artifact(row: &sqlx::any::AnyRow) -> Result<Artifact, StoreError> {
    const DOING: &str = "read an artifact's row";
    Ok(Artifact {
        build: row.try_get("build").doing(DOING)?,
        run: row.try_get("run").doing(DOING)?,
        kind: row.try_get("kind").doing(DOING)?,
        name: row.try_get("name").doing(DOING)?,
        instance: row.try_get("instance").doing(DOING)?,
        sha256: row.try_get("sha256").doing(DOING)?,
        bytes: u64::try_from(row.try_get::<i64, _>("length").doing(DOING)?).unwrap_or(0),
        uploaded: Millis(row.try_get("uploaded").doing(DOING)?),
    })
}

impl Store {
    /// Keeps an artifact, whose object was put for it; false when its run has [`MOST`] others already.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn keep_artifact(
        &self,
        artifact: Artifact,
        object: Object,
    ) -> Result<bool, StoreError> {
        const DOING: &str = "keep an artifact";
        self.write(DOING, move |tx| {
            Box::pin(async move {
                let others = tx
                    .optional(
                        Sql::new(
                            "SELECT CAST(COUNT(*) AS BIGINT) AS others FROM artifacts WHERE build = $1 AND run = $2 \
                             AND NOT (kind = $3 AND sha256 = $4)",
                        )
                        .bind(artifact.build)
                        .bind(artifact.run)
                        .bind(artifact.kind.as_str())
                        .bind(artifact.sha256.as_str()),
                    )
                    .await?;
                let others: i64 = others.map_or(Ok(0), |row| row.try_get("others")).doing(DOING)?;
                if others >= MOST {
                    return Ok(false);
                }
                objects::name(tx, &object, Naming::Put).await?;
                tx.later(
                    Sql::new(
                        "INSERT INTO artifacts (build, run, kind, sha256, name, instance, bytes, uploaded) \
                         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
                    )
                    .bind(artifact.build)
                    .bind(artifact.run)
                    .bind(artifact.kind)
                    .bind(artifact.sha256)
                    .bind(artifact.name)
                    .bind(artifact.instance)
                    .bind(i64::try_from(artifact.bytes).unwrap_or(i64::MAX))
                    .bind(artifact.uploaded),
                );
                Ok(true)
            })
        })
        .await
    }

    /// The artifacts of a run, by kind and name.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn artifacts(&self, build: i64, run: i64) -> Result<Vec<Artifact>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM artifacts a WHERE a.build = $1 AND a.run = $2 ORDER BY a.kind, a.name, a.sha256"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(build)
            .bind(run)
            .fetch_all(&self.pool)
            .await
            .doing("list artifacts")?
            .iter()
            .map(artifact)
            .collect()
    }

    /// An artifact of a build, of whatever run, and its object, if that is known.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn artifact(
        &self,
        build: i64,
        sha256: &str,
    ) -> Result<Option<(Artifact, Option<Object>)>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS}, {OBJECT} FROM artifacts a \
             LEFT JOIN objects o ON o.kind = 'artifact' AND o.sha256 = a.sha256 \
             WHERE a.build = $1 AND a.sha256 = $2 ORDER BY a.run DESC LIMIT 1"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(build)
            .bind(sha256)
            .fetch_optional(&self.pool)
            .await
            .doing("look for an artifact")?;
        row.as_ref()
            .map(|row| Ok((artifact(row)?, objects::object(row)?)))
            .transpose()
    }
}
