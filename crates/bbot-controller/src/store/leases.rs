//! Leases: handing a task to an agent, and taking it back.

use super::rows::{self, Build, Submission};
use super::{Doing as _, Store, StoreError};
use crate::clock::Millis;

/// What is written when a task is handed out.
#[derive(Debug, Clone)]
pub struct NewLease<'a> {
    /// The build.
    pub build: i64,
    /// The new session.
    pub session: &'a str,
    /// Until when the agent has it.
    pub until: Millis,
    /// Name of the agent.
    pub agent: &'a str,
    /// Fingerprint of the agent's key, where it must prove itself.
    pub fingerprint: Option<&'a str>,
    /// The challenge that it has to sign.
    pub challenge: Option<&'a str>,
    /// Name of the machine.
    pub machine: &'a str,
    /// The machine in a few words.
    pub machine_summary: &'a str,
    /// Name of the toolchain.
    pub toolchain_name: &'a str,
    /// Version of the toolchain.
    pub toolchain_version: &'a str,
}

/// A task that was handed out.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The build, now building.
    pub build: Build,
    /// What it came with.
    pub submission: Submission,
}

impl Store {
    /// The place in the queue, and number, of the oldest build that waits for a configuration. With
    /// `repository` given, only of packages of that repository.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn oldest_queued(
        &self,
        configuration: &str,
        target: &str,
        repository: Option<&str>,
    ) -> Result<Option<(i64, i64)>, StoreError> {
        use sqlx::Row as _;
        const DOING: &str = "look into the queue";
        let row = sqlx::query(
            "SELECT position, id FROM builds WHERE state = 'queued' AND configuration = $1 AND target = $2 \
             AND ($3 = '' OR repository = $3) ORDER BY position LIMIT 1",
        )
        .bind(configuration)
        .bind(target)
        .bind(repository.unwrap_or_default())
        .fetch_optional(&self.pool)
        .await
        .doing(DOING)?;
        row.map(|row| {
            Ok((
                row.try_get("position").doing(DOING)?,
                row.try_get("id").doing(DOING)?,
            ))
        })
        .transpose()
    }

    /// Hands out a queued build; `None` when it is not queued any more.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn lease(
        &self,
        new: &NewLease<'_>,
        now: Millis,
    ) -> Result<Option<Lease>, StoreError> {
        const DOING: &str = "hand out a task";
        let mut transaction = self.begin(DOING).await?;
        let taken = sqlx::query(
            "UPDATE builds SET state = 'building', started = $2, session = $3, lease_until = $4, again = 0, \
             agent = $5, fingerprint = $6, machine = $7, machine_summary = $8, toolchain_name = $9, \
             toolchain_version = $10 WHERE id = $1 AND state = 'queued'",
        )
        .bind(new.build)
        .bind(now.0)
        .bind(new.session)
        .bind(new.until.0)
        .bind(new.agent)
        .bind(new.fingerprint)
        .bind(new.machine)
        .bind(new.machine_summary)
        .bind(new.toolchain_name)
        .bind(new.toolchain_version)
        .execute(&mut *transaction)
        .await
        .doing(DOING)?;
        if taken.rows_affected() == 0 {
            return Ok(None);
        }
        sqlx::query("INSERT INTO sessions (id, build, issued, fingerprint, challenge) VALUES ($1, $2, $3, $4, $5)")
            .bind(new.session)
            .bind(new.build)
            .bind(now.0)
            .bind(new.fingerprint)
            .bind(new.challenge)
            .execute(&mut *transaction)
            .await
            .doing(DOING)?;
        let row = sqlx::query("SELECT * FROM builds WHERE id = $1")
            .bind(new.build)
            .fetch_one(&mut *transaction)
            .await
            .doing(DOING)?;
        let build = rows::build(&row)?;
        let row = sqlx::query(
            "SELECT id, name, version, source, submitted FROM submissions WHERE id = $1",
        )
        .bind(build.submission)
        .fetch_one(&mut *transaction)
        .await
        .doing(DOING)?;
        let submission = rows::submission(&row)?;
        transaction.commit().await.doing(DOING)?;
        Ok(Some(Lease { build, submission }))
    }

    /// Queues every build again whose lease has lapsed, and says which. Each keeps its place, and its
    /// session until it is handed out anew.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn requeue_lapsed(&self, now: Millis) -> Result<Vec<Build>, StoreError> {
        const DOING: &str = "queue lapsed builds again";
        // The rule is queue::lapsed, in SQL: this runs with every poll of every agent.
        const LAPSED: &str = "SELECT * FROM builds WHERE state = 'building' AND (lease_until IS NULL OR lease_until <= $1)";
        let found = sqlx::query(LAPSED)
            .bind(now.0)
            .fetch_optional(&self.pool)
            .await
            .doing(DOING)?;
        if found.is_none() {
            return Ok(Vec::new());
        }
        let mut transaction = self.begin(DOING).await?;
        let lapsed: Vec<Build> = sqlx::query(LAPSED)
            .bind(now.0)
            .fetch_all(&mut *transaction)
            .await
            .doing(DOING)?
            .iter()
            .map(rows::build)
            .collect::<Result<_, _>>()?;
        for build in &lapsed {
            sqlx::query("UPDATE builds SET state = 'queued', lease_until = NULL WHERE id = $1")
                .bind(build.id)
                .execute(&mut *transaction)
                .await
                .doing(DOING)?;
        }
        transaction.commit().await.doing(DOING)?;
        Ok(lapsed)
    }
}
