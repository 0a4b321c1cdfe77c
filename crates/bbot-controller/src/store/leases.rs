//! Leases: handing a task to an agent, renewing, and what becomes of it when the agent is not heard of any more.

use std::time::Duration;

use super::results::{self, FACTS_BY_PATH, SessionFacts};
use super::rows::{self, Build, Submission};
use super::{Doing as _, Store, StoreError, next};
use crate::clock::Millis;
use crate::queue::State;
use crate::queue::lease::{self, Confirmed, Lapse, Renewal};
use crate::queue::outcome::Again;

/// What is written when a task is handed out.
#[derive(Debug, Clone)]
pub struct NewLease<'a> {
    /// The build.
    pub build: i64,
    /// The new session.
    pub session: &'a str,
    /// What the session's URL ends with.
    pub path: &'a str,
    /// Until when the agent has it, in steady time.
    pub until: Millis,
    /// Whether the agent renews its lease.
    pub renews: bool,
    /// Until when it can renew at most, in steady time.
    pub latest: Millis,
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
        let again: Option<i64> =
            sqlx::query_scalar("SELECT again FROM builds WHERE id = $1 AND state = 'queued'")
                .bind(new.build)
                .fetch_optional(&mut *transaction)
                .await
                .doing(DOING)?;
        let Some(again) = again else {
            return Ok(None);
        };
        if again != 0 {
            // A rebuild was asked for since these were handed out: this one is it, and they are not.
            end_lapsed(&mut transaction, new.build, DOING).await?;
        }
        let run = next(&mut transaction, "run").await?;
        sqlx::query(
            "UPDATE builds SET state = 'building', started = $2, session = $3, lease_until = $4, again = 0, \
             agent = $5, fingerprint = $6, machine = $7, machine_summary = $8, toolchain_name = $9, \
             toolchain_version = $10, run = $11 WHERE id = $1",
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
        .bind(run)
        .execute(&mut *transaction)
        .await
        .doing(DOING)?;
        sqlx::query(
            "INSERT INTO sessions (id, build, issued, fingerprint, challenge, number, path, renews, agent, machine, \
             machine_summary, toolchain_name, toolchain_version, latest) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        )
        .bind(new.session)
        .bind(new.build)
        .bind(now.0)
        .bind(new.fingerprint)
        .bind(new.challenge)
        .bind(run)
        .bind(new.path)
        .bind(i64::from(new.renews))
        .bind(new.agent)
        .bind(new.machine)
        .bind(new.machine_summary)
        .bind(new.toolchain_name)
        .bind(new.toolchain_version)
        .bind(new.latest.0)
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

    /// What is known of the session whose URL ends with `path`; `None` when there never was one.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn session_by_path(&self, path: &str) -> Result<Option<SessionFacts>, StoreError> {
        let row = sqlx::query(FACTS_BY_PATH)
            .bind(path)
            .fetch_optional(&self.pool)
            .await
            .doing("read a session")?;
        row.as_ref().map(results::facts).transpose()
    }

    /// Renews the lease of the session whose URL ends with `path` for `lease` from `steady` on, if it may be; `now` is
    /// for the record. What became of it, with what is known of the session. Not synced: after a start every lease
    /// has its full length anyway.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn renew(
        &self,
        path: &str,
        lease: Duration,
        steady: Millis,
        now: Millis,
    ) -> Result<(Renewal, Option<SessionFacts>), StoreError> {
        const DOING: &str = "renew a lease";
        let mut transaction = self.begin_passing(DOING).await?;
        let row = sqlx::query(FACTS_BY_PATH)
            .bind(path)
            .fetch_optional(&mut *transaction)
            .await
            .doing(DOING)?;
        let Some(facts) = row.as_ref().map(results::facts).transpose()? else {
            return Ok((Renewal::Unknown, None));
        };
        let renewal = lease::renew(facts.state);
        let Some(until) = lease::renewed_until(steady, lease, facts.latest) else {
            return Ok((Renewal::Over, Some(facts)));
        };
        match renewal {
            Renewal::Renew => {
                sqlx::query("UPDATE builds SET lease_until = $2 WHERE id = $1")
                    .bind(facts.build.id)
                    .bind(until.0)
                    .execute(&mut *transaction)
                    .await
                    .doing(DOING)?;
            }
            Renewal::Revive => {
                // It had not lapsed in earnest.
                sqlx::query(
                    "UPDATE builds SET state = 'building', lease_until = $2, \
                     lapses = CASE WHEN lapses > 0 THEN lapses - 1 ELSE 0 END WHERE id = $1",
                )
                .bind(facts.build.id)
                .bind(until.0)
                .execute(&mut *transaction)
                .await
                .doing(DOING)?;
            }
            Renewal::Over | Renewal::Unknown => return Ok((renewal, Some(facts))),
        }
        sqlx::query(
            "UPDATE sessions SET ended = NULL, confirmed = COALESCE(confirmed, $2) WHERE id = $1",
        )
        .bind(&facts.session)
        .bind(now.0)
        .execute(&mut *transaction)
        .await
        .doing(DOING)?;
        transaction.commit().await.doing(DOING)?;
        Ok((renewal, Some(facts)))
    }

    /// Takes a task back whose answer never left this computer; whether it did.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn take_back(&self, session: &str) -> Result<Option<Build>, StoreError> {
        const DOING: &str = "take a task back";
        let mut transaction = self.begin(DOING).await?;
        let row = sqlx::query(results::FACTS)
            .bind(session)
            .fetch_optional(&mut *transaction)
            .await
            .doing(DOING)?;
        let Some(facts) = row.as_ref().map(results::facts).transpose()? else {
            return Ok(None);
        };
        let confirmed = if facts.confirmed.is_some() {
            Confirmed::Yes
        } else {
            Confirmed::No
        };
        if !lease::takes_back(facts.state, confirmed) {
            return Ok(None);
        }
        sqlx::query("UPDATE builds SET state = 'queued', session = NULL, run = NULL, lease_until = NULL WHERE id = $1")
            .bind(facts.build.id)
            .execute(&mut *transaction)
            .await
            .doing(DOING)?;
        // Should it have arrived after all, its result is as good as any.
        sqlx::query("UPDATE sessions SET ended = 'lapsed' WHERE id = $1")
            .bind(session)
            .execute(&mut *transaction)
            .await
            .doing(DOING)?;
        transaction.commit().await.doing(DOING)?;
        Ok(Some(facts.build))
    }

    /// When the next lease lapses; `None` when nobody has a task.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn next_lapse(&self) -> Result<Option<Millis>, StoreError> {
        // Without a lease it has lapsed already (queue::lapsed).
        let next: Option<i64> = sqlx::query_scalar(
            "SELECT MIN(COALESCE(lease_until, 0)) FROM builds WHERE state = 'building'",
        )
        .fetch_one(&self.pool)
        .await
        .doing("look for the next lease that lapses")?;
        Ok(next.map(Millis))
    }

    /// After a start: gives every lease that is renewed its full length again; how many there are.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn restart_leases(&self, now: Millis, lease: Duration) -> Result<usize, StoreError> {
        const DOING: &str = "begin leases anew";
        let mut transaction = self.begin(DOING).await?;
        let held: Vec<Build> = sqlx::query(
            "SELECT * FROM builds WHERE state = 'building' \
             AND session IN (SELECT id FROM sessions WHERE renews = 1)",
        )
        .fetch_all(&mut *transaction)
        .await
        .doing(DOING)?
        .iter()
        .map(rows::build)
        .collect::<Result<_, _>>()?;
        for build in &held {
            sqlx::query("UPDATE builds SET lease_until = $2 WHERE id = $1")
                .bind(build.id)
                .bind(lease::after_restart(build.lease_until, now, lease).0)
                .execute(&mut *transaction)
                .await
                .doing(DOING)?;
        }
        transaction.commit().await.doing(DOING)?;
        Ok(held.len())
    }

    /// Queues every build again whose lease has lapsed (or ends it, when that was once too often), and says which
    /// and what became of it. Each that is queued keeps its place, and its session until it is handed out anew.
    /// `steady` is compared with the leases, `now` is for the record.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn requeue_lapsed(
        &self,
        steady: Millis,
        now: Millis,
    ) -> Result<Vec<(Build, Lapse)>, StoreError> {
        const DOING: &str = "queue lapsed builds again";
        // The rule is queue::lapsed, in SQL: this runs with every poll of every agent.
        const LAPSED: &str = "SELECT * FROM builds WHERE state = 'building' AND (lease_until IS NULL OR lease_until <= $1)";
        let found = sqlx::query(LAPSED)
            .bind(steady.0)
            .fetch_optional(&self.pool)
            .await
            .doing(DOING)?;
        if found.is_none() {
            return Ok(Vec::new());
        }
        let mut transaction = self.begin(DOING).await?;
        let builds: Vec<Build> = sqlx::query(LAPSED)
            .bind(steady.0)
            .fetch_all(&mut *transaction)
            .await
            .doing(DOING)?
            .iter()
            .map(rows::build)
            .collect::<Result<_, _>>()?;
        let mut lapsed = Vec::with_capacity(builds.len());
        for build in builds {
            let again = if build.again { Again::Yes } else { Again::No };
            let lapse = lease::lapse(build.interrupts, build.lapses, again);
            match lapse {
                Lapse::Requeue => {
                    sqlx::query(
                        "UPDATE builds SET state = 'queued', lease_until = NULL, lapses = lapses + 1 WHERE id = $1",
                    )
                    .bind(build.id)
                    .execute(&mut *transaction)
                    .await
                    .doing(DOING)?;
                    sqlx::query("UPDATE sessions SET ended = 'lapsed' WHERE id = $1")
                        .bind(build.session.as_deref())
                        .execute(&mut *transaction)
                        .await
                        .doing(DOING)?;
                }
                Lapse::GiveUp => {
                    let ended = results::given_up(&build, build.lapses.saturating_add(1), None);
                    let by = results::By::Controller;
                    results::keep(&mut transaction, by, &build, &ended, State::Built, now).await?;
                }
            }
            lapsed.push((build, lapse));
        }
        transaction.commit().await.doing(DOING)?;
        Ok(lapsed)
    }
}

/// The lapsed sessions of a build are over: no result of theirs is taken any more.
pub(super) async fn end_lapsed(
    connection: &mut sqlx::AnyConnection,
    build: i64,
    doing: &'static str,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE sessions SET ended = 'over' WHERE build = $1 AND ended = 'lapsed'")
        .bind(build)
        .execute(connection)
        .await
        .doing(doing)?;
    Ok(())
}
