//! Leases: renewing, taking back, and what becomes of it when the agent is not heard of any more.

use std::convert::Infallible;
use std::time::Duration;

use sqlx::Row as _;

use super::results::{self, FACTS_BY_PATH, SessionFacts};
use super::rows::{self, Build};
use super::tx::{Sql, Tx};
use super::{Doing as _, Store, StoreError};
use crate::clock::Millis;
use crate::queue::State;
use crate::queue::lease::{self, Confirmed, Lapse, Renewal, Tries};
use crate::queue::outcome::Again;

impl Store {
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
    /// for the record. What became of it, with what is known of the session. Not synced: nor is what says until when a
    /// controller ran, which is lost with it.
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
        let renewed = self.renew_if(path, lease, steady, now, |_| Ok(None));
        renewed
            .await
            .map(|renewed: Result<_, Infallible>| renewed.unwrap_or_else(|never| match never {}))
    }

    /// The same, where `check` lets it: it is asked about the session, and says the number of the renewal where it has
    /// one, or why it is refused.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn renew_if<E: Send + 'static>(
        &self,
        path: &str,
        lease: Duration,
        steady: Millis,
        now: Millis,
        check: impl FnOnce(&SessionFacts) -> Result<Option<i64>, E> + Send + 'static,
    ) -> Result<Result<(Renewal, Option<SessionFacts>), E>, StoreError> {
        let path = path.to_owned();
        self.write_passing("renew a lease", move |tx| {
            Box::pin(async move {
                let row = tx
                    .optional(
                        Sql::new(format!("{FACTS_BY_PATH}{}", tx.dialect().session_held())).bind(path),
                    ).await?;
                let Some(facts) = row.as_ref().map(results::facts).transpose()? else {
                    return Ok(Ok((Renewal::Unknown, None)));
                };
                let number = match check(&facts) {
                    Ok(number) => number,
                    Err(refused) => return Ok(Err(refused)),
                };
                let renewal = lease::renew(facts.state);
                let Some(until) = lease::renewed_until(steady, lease, facts.latest) else {
                    return Ok(Ok((Renewal::Over, Some(facts))));
                };
                let update = match renewal {
                    Renewal::Renew => "UPDATE builds SET lease_until = $2 WHERE id = $1",
                    // It had not lapsed in earnest.
                    Renewal::Revive => {
                        "UPDATE builds SET state = 'building', lease_until = $2, \
                         lapses = CASE WHEN lapses > 0 THEN lapses - 1 ELSE 0 END WHERE id = $1"
                    }
                    Renewal::Over | Renewal::Unknown => return Ok(Ok((renewal, Some(facts)))),
                };
                tx.later(Sql::new(update).bind(facts.build.id).bind(until));
                tx.later(
                    Sql::new(
                        "UPDATE sessions SET ended = NULL, confirmed = COALESCE(confirmed, $2), renewal = $3 WHERE id = $1",
                    )
                    .bind(facts.session.as_str())
                    .bind(now)
                    .bind(number.unwrap_or(facts.renewal)),
                );
                Ok(Ok((renewal, Some(facts))))
            })
        })
        .await
    }

    /// Takes a task back whose answer never left this computer; whether it did.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn take_back(&self, session: &str) -> Result<Option<Build>, StoreError> {
        let session = session.to_owned();
        self.write("take a task back", move |tx| {
            Box::pin(async move {
                let row = tx
                    .optional(
                        Sql::new(format!("{}{}", results::FACTS, tx.dialect().session_held())).bind(session.as_str()),
                    )
                    .await?;
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
                tx.later(
                    Sql::new(
                        "UPDATE builds SET state = 'queued', session = NULL, run = NULL, lease_until = NULL WHERE id = $1",
                    )
                    .bind(facts.build.id),
                );
                // Should it have arrived after all, its result is as good as any.
                tx.later(
                    Sql::new("UPDATE sessions SET ended = 'lapsed' WHERE id = $1").bind(session),
                );
                Ok(Some(facts.build))
            })
        })
        .await
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

    /// Says that a controller runs, if something is being built.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn beat(&self, now: Millis) -> Result<(), StoreError> {
        self.write_passing("say that a controller runs", move |tx| {
            let beat = "UPDATE alive SET seen = $1 WHERE seen < $1 \
                AND EXISTS (SELECT 1 FROM builds WHERE state = 'building')";
            tx.later(Sql::new(beat).bind(now));
            Box::pin(std::future::ready(Ok(())))
        })
        .await
    }

    /// After a start: what is renewed lasts longer by the time in which no controller ran ([`lease::after_restart`]); how many leases
    /// do.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn restart_leases(&self, now: Millis, lease: Duration) -> Result<usize, StoreError> {
        const DOING: &str = "go on with leases";
        self.write(DOING, move |tx| {
            Box::pin(async move {
                // Those that start at once do so one after the other: the first finds that nobody was there.
                let seen = format!(
                    "SELECT seen FROM alive WHERE one = 1{}",
                    tx.dialect().held()
                );
                let seen = tx.optional(Sql::new(seen)).await?;
                let seen = seen.map(|row| row.try_get("seen")).transpose().doing(DOING)?;
                let seen = Millis(seen.unwrap_or(0));
                tx.later(Sql::new("UPDATE alive SET seen = $1 WHERE one = 1").bind(now));
                if now <= seen.plus(lease::beat(lease)) {
                    return Ok(0);
                }
                let held = tx
                    .all(Sql::new(format!(
                        "SELECT id, lease_until FROM builds WHERE state = 'building' AND lease_until IS NOT NULL \
                         AND EXISTS (SELECT 1 FROM sessions s WHERE s.id = builds.session AND s.renews = 1) ORDER BY id{}",
                        tx.dialect().held()
                    )))
                    .await?;
                for row in &held {
                    let id: i64 = row.try_get("id").doing(DOING)?;
                    let until = Millis(row.try_get("lease_until").doing(DOING)?);
                    tx.later(
                        Sql::new("UPDATE builds SET lease_until = $2 WHERE id = $1")
                            .bind(id)
                            .bind(lease::after_restart(until, seen, now, lease)),
                    );
                }
                Ok(held.len())
            })
        })
        .await
    }

    /// Queues builds again whose leases have lapsed (or ends them, when that was once too often), and says which
    /// and what became of them. Some at a time: there are no more when it finds none. Each that is queued keeps its place, and its session until it is handed out anew.
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
        const LAPSED: &str = "SELECT * FROM builds WHERE state = 'building' AND (lease_until IS NULL OR lease_until <= $1) LIMIT 64";
        let found = sqlx::query(LAPSED)
            .bind(steady.0)
            .fetch_optional(&self.pool)
            .await
            .doing(DOING)?;
        if found.is_none() {
            return Ok(Vec::new());
        }
        self.write(DOING, move |tx| {
            Box::pin(async move {
                let builds: Vec<Build> = tx
                    .all(
                        Sql::new(format!("{LAPSED}{}", tx.dialect().held_if_free())).bind(steady),
                    )
                    .await?
                    .iter()
                    .map(rows::build)
                    .collect::<Result<_, _>>()?;
                let mut lapsed = Vec::with_capacity(builds.len());
                for build in builds {
                    let again = if build.again { Again::Yes } else { Again::No };
                    let tries = Tries::of(&build.lane);
                    let lapse = lease::lapse(build.interrupts, build.lapses, again, tries);
                    match lapse {
                        Lapse::Requeue => {
                            tx.run(
                                Sql::new(format!(
                                    "UPDATE builds SET state = 'queued', lease_until = NULL, lapses = lapses + 1, {} \
                                     WHERE id = $1",
                                    super::builds::AS_ASKED
                                ))
                                .bind(build.id),
                            )
                            .await?;
                            tx.run(
                                Sql::new("UPDATE sessions SET ended = 'lapsed' WHERE id = $1")
                                    .bind(build.session.as_deref()),
                            )
                            .await?;
                        }
                        Lapse::GiveUp => {
                            let ended =
                                results::given_up(&build, build.lapses.saturating_add(1), None);
                            let by = results::By::Controller;
                            results::keep(tx, by, &build, &ended, State::Built, now).await?;
                        }
                    }
                    lapsed.push((build, lapse));
                }
                Ok(lapsed)
            })
        })
        .await
    }
}

/// The lapsed sessions of a build are over: no result of theirs is taken any more.
pub(super) fn end_lapsed(tx: &mut Tx<'_>, build: i64) {
    tx.later(
        Sql::new("UPDATE sessions SET ended = 'over' WHERE build = $1 AND ended = 'lapsed'")
            .bind(build),
    );
}
