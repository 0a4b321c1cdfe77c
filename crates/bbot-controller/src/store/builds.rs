//! Builds: lists, one build with its attempts and logs, and rebuilds.

use super::dialect::Counter;
use super::rows::{self, Attempt, Build};
use super::turns::{self, Asker, Newcomer, Versions};
use super::tx::{Sql, Tx};
use super::{Doing as _, Store, StoreError};
use crate::clock::Millis;
use crate::queue::order::Class;
use crate::queue::{self, Rebuild};

/// A build that was asked for again while it was building comes back without a result: what waits now is what was asked for.
pub(super) const AS_ASKED: &str = "class = CASE WHEN again = 1 THEN 'forced' ELSE class END, \
    submitter = CASE WHEN again = 1 THEN COALESCE(again_by, submitter) ELSE submitter END, \
    place = CASE WHEN again = 1 AND again_place < place THEN again_place ELSE place END";

impl Store {
    /// The build of this number.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn build(&self, id: i64) -> Result<Option<Build>, StoreError> {
        let row = sqlx::query("SELECT * FROM builds WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .doing("read a build")?;
        row.as_ref().map(rows::build).transpose()
    }

    /// One attempt of a build.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn attempt(&self, build: i64, number: i64) -> Result<Option<Attempt>, StoreError> {
        let row = sqlx::query("SELECT * FROM attempts WHERE build = $1 AND number = $2")
            .bind(build)
            .bind(number)
            .fetch_optional(&self.pool)
            .await
            .doing("read an attempt")?;
        row.as_ref()
            .map(|row| rows::attempt(row, build))
            .transpose()
    }

    /// Asks for a build to be done again; `None` when there is no such build.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn rebuild(
        &self,
        id: i64,
        asker: &Asker,
        reason: Option<&str>,
        now: Millis,
    ) -> Result<Option<Rebuild>, StoreError> {
        let (asker, reason) = (asker.clone(), reason.map(str::to_owned));
        self.write("queue a build again", move |tx| {
            Box::pin(async move {
                let row = tx
                    .optional(
                        Sql::new(format!(
                            "SELECT * FROM builds WHERE id = $1{}",
                            tx.dialect().held()
                        ))
                        .bind(id),
                    )
                    .await?;
                let Some(build) = row.as_ref().map(rows::build).transpose()? else {
                    return Ok(None);
                };
                let rebuild = queue::rebuild(build.state);
                match rebuild {
                    Rebuild::Queue => {
                        let turn = turn(tx, &build, &asker, now).await?;
                        enter(tx, &build, Class::Forced, turn, &asker.submitter, now).await?;
                        let position = tx.dialect().next(Counter::Queue);
                        tx.later(
                            Sql::new(format!(
                                "UPDATE builds SET state = 'queued', position = {position}, queued = $2, reason = $3, \
                                 soft = 0, again = 0, interrupts = 0, lapses = 0, failures = '[]', session = NULL, \
                                 run = NULL, lease_until = NULL WHERE id = $1"
                            ))
                            .bind(id)
                            .bind(now)
                            .bind(reason.as_deref()),
                        );
                        tx.count(Counter::Queue);
                    }
                    Rebuild::AfterThisOne => {
                        again(tx, &build, &asker, reason.as_deref(), now).await?;
                    }
                    Rebuild::AlreadyQueued => {
                        if build.class != Class::Forced {
                            let turn = turn(tx, &build, &asker, now).await?;
                            if turn < build.place {
                                enter(tx, &build, Class::Forced, turn, &asker.submitter, now).await?;
                            }
                        }
                        // Queued with a session is queued because its lease lapsed: its result may still come, and is
                        // then not what was asked for.
                        if build.session.is_some() {
                            again(tx, &build, &asker, reason.as_deref(), now).await?;
                        } else {
                            // Whoever had it before it came back is too late for what is asked for now.
                            super::leases::end_lapsed(tx, id);
                            tx.later(
                                Sql::new(
                                    "UPDATE builds SET soft = 0, interrupts = 0, lapses = 0, failures = '[]', reason = COALESCE($2, reason) \
                                     WHERE id = $1",
                                )
                                .bind(id)
                                .bind(reason.as_deref()),
                            );
                        }
                    }
                }
                Ok(Some(rebuild))
            })
        })
        .await
    }
}

/// The place of a build that a person asks for now.
async fn turn(
    tx: &mut Tx<'_>,
    build: &Build,
    asker: &Asker,
    now: Millis,
) -> Result<i64, StoreError> {
    let places = turns::take(tx, asker, Class::Forced, build.priority, 1, now).await?;
    Ok(places.first().copied().unwrap_or(build.place))
}

/// Remembers that a build is to be done once more when its result is there.
async fn again(
    tx: &mut Tx<'_>,
    build: &Build,
    asker: &Asker,
    reason: Option<&str>,
    now: Millis,
) -> Result<(), StoreError> {
    // Who has asked first has waited longest.
    let (place, submitter) = match &build.again_place {
        Some(again) => again.clone(),
        None => (turn(tx, build, asker, now).await?, asker.submitter.clone()),
    };
    tx.later(
        Sql::new(
            "UPDATE builds SET soft = 0, again = 1, again_place = $2, again_by = $3, interrupts = 0, lapses = 0, failures = '[]', \
             reason = $4 WHERE id = $1",
        )
        .bind(build.id)
        .bind(place)
        .bind(submitter)
        .bind(reason),
    );
    Ok(())
}

/// Gives a build, which does not wait in this class yet, its place among those that do.
pub(super) async fn enter(
    tx: &mut Tx<'_>,
    build: &Build,
    class: Class,
    place: i64,
    submitter: &str,
    now: Millis,
) -> Result<(), StoreError> {
    let of = Versions {
        package: &build.package,
        submitter,
        class,
    };
    let mut newcomer = [Newcomer {
        configuration: &build.configuration,
        target: &build.target,
        package_configuration: &build.package_configuration,
        lane: build.lane.text(),
        version: &build.version,
        place,
    }];
    turns::exchange(tx, of, &mut newcomer, now).await?;
    let place = newcomer[0].place;
    tx.later(
        Sql::new("UPDATE builds SET class = $2, submitter = $3, place = $4 WHERE id = $1")
            .bind(build.id)
            .bind(class.as_str())
            .bind(submitter)
            .bind(place),
    );
    Ok(())
}
