//! Submissions: what was asked for, and the builds that it makes.

use super::rows::{self, Build, Submission};
use super::{Doing as _, Store, StoreError, next};
use crate::clock::Millis;
use crate::queue::State;
use crate::source::Source;

/// A submission that is about to be kept.
#[derive(Debug, Clone)]
pub struct NewSubmission<'a> {
    /// Package name.
    pub name: &'a str,
    /// Package version.
    pub version: &'a str,
    /// Where the package is.
    pub source: &'a Source,
    /// Name and target of each configuration to build.
    pub configurations: &'a [(String, String)],
}

impl Store {
    /// Keeps a submission and queues its builds, all or nothing.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn submit(
        &self,
        new: NewSubmission<'_>,
        now: Millis,
    ) -> Result<(Submission, Vec<Build>), StoreError> {
        const DOING: &str = "keep a submission";
        let mut transaction = self.begin(DOING).await?;
        let id = next(&mut transaction, "submission").await?;
        let source = serde_json::to_string(new.source).unwrap_or_default();
        sqlx::query("INSERT INTO submissions (id, name, version, source, submitted) VALUES ($1, $2, $3, $4, $5)")
            .bind(id)
            .bind(new.name)
            .bind(new.version)
            .bind(source)
            .bind(now.0)
            .execute(&mut *transaction)
            .await
            .doing(DOING)?;
        let repository = new.source.canonical_repository();
        for (configuration, target) in new.configurations {
            let build = next(&mut transaction, "build").await?;
            let position = next(&mut transaction, "queue").await?;
            sqlx::query(
                "INSERT INTO builds (id, submission, package, version, configuration, target, repository, state, \
                 position, again, queued, attempt, operations) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, $10, 0, '[]')",
            )
            .bind(build)
            .bind(id)
            .bind(new.name)
            .bind(new.version)
            .bind(configuration)
            .bind(target)
            .bind(&repository)
            .bind(State::Queued.as_str())
            .bind(position)
            .bind(now.0)
            .execute(&mut *transaction)
            .await
            .doing(DOING)?;
        }
        transaction.commit().await.doing(DOING)?;
        let builds = self.builds_of(id).await?;
        let submission = Submission {
            id,
            name: new.name.to_owned(),
            version: new.version.to_owned(),
            source: new.source.clone(),
            submitted: now,
        };
        Ok((submission, builds))
    }

    /// The submission of this number.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn submission(&self, id: i64) -> Result<Option<Submission>, StoreError> {
        let row = sqlx::query(
            "SELECT id, name, version, source, submitted FROM submissions WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(&self.pool)
        .await
        .doing("read a submission")?;
        row.as_ref().map(rows::submission).transpose()
    }

    /// The builds of a submission, in the order of the buildtab.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn builds_of(&self, submission: i64) -> Result<Vec<Build>, StoreError> {
        sqlx::query("SELECT * FROM builds WHERE submission = $1 ORDER BY id")
            .bind(submission)
            .fetch_all(&self.pool)
            .await
            .doing("read the builds of a submission")?
            .iter()
            .map(rows::build)
            .collect()
    }
}
