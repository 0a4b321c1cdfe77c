//! Leases: handing a task to an agent, renewing, and what becomes of it when the agent is not heard of any more.

use std::convert::Infallible;
use std::time::Duration;

use bbot_signature::{PublicKey, SessionKey};
use sqlx::Row as _;

use super::dialect::Counter;
use super::rebuilds;
use super::results::{self, FACTS_BY_PATH, SessionFacts};
use super::rows::{self, AuxiliaryMachine, Build, SUBMISSION, Submission};
use super::tx::{Sql, Tx};
use super::{Doing as _, Store, StoreError, agents};
use crate::clock::Millis;
use crate::queue::State;
use crate::queue::lease::{self, Confirmed, Lapse, Renewal, Tries};
use crate::queue::outcome::Again;
use crate::queue::rebuild::{self, Checksums, Makings};

/// Which build is handed out in the place of one that somebody else was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instead<'a> {
    /// None.
    None,
    /// The first in the queue of these.
    First(Waiting<'a>),
}

/// Builds that may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Waiting<'a> {
    /// For this configuration,
    pub configuration: &'a str,
    /// with this target,
    pub target: &'a str,
    /// in this lane,
    pub lane: &'a str,
    /// and, where there is one, of packages of this repository.
    pub repository: Option<&'a str>,
}

/// What is written when a task is handed out.
#[derive(Debug, Clone)]
pub struct NewLease<'a> {
    /// The build.
    pub build: i64,
    /// Which to hand out when that one is not queued any more.
    pub instead: Instead<'a>,
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
    /// Machines beside it.
    pub auxiliaries: &'a [AuxiliaryMachine],
    /// How a person gets to the machine, where the build stops for one.
    pub login: Option<&'a str>,
    /// Name of the toolchain.
    pub toolchain_name: &'a str,
    /// Version of the toolchain.
    pub toolchain_version: &'a str,
    /// What its result will be made with, for an agent that can say that it would be the same as the last one.
    pub makings: Option<Makings>,
    /// What its requests are signed with, where they are.
    pub signing: Option<SessionSigning<'a>>,
}

/// What the requests of a session are signed with.
#[derive(Debug, Clone, Copy)]
pub struct SessionSigning<'a> {
    /// The key of the session.
    pub key: &'a SessionKey,
    /// The agent's part in it, which serves for this session alone.
    pub agent: &'a PublicKey,
}

/// A task that was handed out.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The build, now building.
    pub build: Build,
    /// What it came with.
    pub submission: Submission,
    /// The checksums of its last result, where it need not be built if they are the same.
    pub checksums: Option<Checksums>,
}

impl Store {
    /// Hands out a queued build, or one that will do instead; `None` when there is none any more, or the agent is drained.
    ///
    /// # Errors
    /// The store cannot be written. The agent's part in the key of the session has served before
    /// ([`StoreError::UsedKey`]): the request is one that came once more.
    pub async fn lease(
        &self,
        new: &NewLease<'_>,
        now: Millis,
    ) -> Result<Option<Lease>, StoreError> {
        let new = Owned::of(new);
        self.write("hand out a task", move |tx| {
            Box::pin(async move {
                if let Some((_, agent)) = &new.signing {
                    let used = Sql::new("SELECT 1 AS used FROM sessions WHERE agent_key = $1");
                    if tx.optional(used.bind(agent.as_str())).await?.is_some() {
                        return Err(StoreError::UsedKey);
                    }
                }
                let found = format!(
                    "SELECT b.*, {SUBMISSION}, {} AS next_run FROM builds b \
                     JOIN submissions p ON p.id = b.submission",
                    tx.dialect().next(Counter::Run)
                );
                let free = tx.dialect().build_held_if_free();
                if let Some(hold) = tx.dialect().hold_agent(agents::SHARED) {
                    tx.later(Sql::new(hold).bind(new.agent.as_str()));
                }
                // Whoever is told that it is drained is told of all that it has.
                let here = |n: usize| {
                    format!("NOT EXISTS (SELECT 1 FROM agents g WHERE g.name = ${n} AND g.drained IS NOT NULL)")
                };
                let this = format!("{found} WHERE b.id = $1 AND b.state = 'queued' AND {}{free}", here(2));
                let this = Sql::new(this).bind(new.build);
                let mut row = tx.optional(this.bind(new.agent.as_str())).await?;
                if let (None, Some((configuration, target, lane, repository))) = (&row, &new.instead)
                {
                    let of = repository.as_ref().map_or("", |_| " AND b.repository = $5");
                    // One that has failed may avoid this host.
                    let mut first = Sql::new(format!(
                        "{found} WHERE b.state = 'queued' AND b.configuration = $1 AND b.target = $2 AND b.lane = $3{of} \
                         AND b.failures = '[]' AND {} ORDER BY b.place, b.id LIMIT 1{free}",
                        here(4)
                    ))
                    .bind(configuration.as_str())
                    .bind(target.as_str())
                    .bind(lane.as_str())
                    .bind(new.agent.as_str());
                    if let Some(repository) = repository {
                        first = first.bind(repository.as_str());
                    }
                    row = tx.optional(first).await?;
                }
                let Some(row) = row else {
                    return Ok(None);
                };
                let (build, submission) = (rows::build(&row)?, rows::submission_of(&row)?);
                let build = Build {
                    run: Some(rows::next_run(&row)?),
                    ..build
                };
                let last = rebuilds::last(&row)?;
                let checksums = new.makings.as_ref().and_then(|makings| {
                    rebuild::checksums(last.kind, last.makings.as_ref(), makings, last.checksums)
                });
                let build = hand_out(tx, build, new, checksums.is_some(), now);
                Ok(Some(Lease {
                    build,
                    submission,
                    checksums,
                }))
            })
        })
        .await
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

/// A [`NewLease`] that goes to the one that writes.
struct Owned {
    build: i64,
    /// Configuration, target, lane and repository of one that would do instead.
    instead: Option<(String, String, String, Option<String>)>,
    session: String,
    path: String,
    until: Millis,
    renews: bool,
    latest: Millis,
    agent: String,
    fingerprint: Option<String>,
    challenge: Option<String>,
    machine: String,
    machine_summary: String,
    auxiliaries: Vec<AuxiliaryMachine>,
    login: Option<String>,
    toolchain_name: String,
    toolchain_version: String,
    makings: Option<Makings>,
    /// The key of the session, and the agent's part in it.
    signing: Option<(String, String)>,
}

impl Owned {
    fn of(new: &NewLease<'_>) -> Self {
        Self {
            build: new.build,
            instead: match new.instead {
                Instead::None => None,
                Instead::First(of) => Some((
                    of.configuration.to_owned(),
                    of.target.to_owned(),
                    of.lane.to_owned(),
                    of.repository.map(str::to_owned),
                )),
            },
            session: new.session.to_owned(),
            path: new.path.to_owned(),
            until: new.until,
            renews: new.renews,
            latest: new.latest,
            agent: new.agent.to_owned(),
            fingerprint: new.fingerprint.map(str::to_owned),
            challenge: new.challenge.map(str::to_owned),
            machine: new.machine.to_owned(),
            machine_summary: new.machine_summary.to_owned(),
            auxiliaries: new.auxiliaries.to_vec(),
            login: new.login.map(str::to_owned),
            toolchain_name: new.toolchain_name.to_owned(),
            toolchain_version: new.toolchain_version.to_owned(),
            makings: new.makings.clone(),
            signing: new
                .signing
                .map(|signing| (signing.key.secret_text(), signing.agent.hex())),
        }
    }
}

/// Gives a build, which is queued, to an agent; its run is the new one.
fn hand_out(tx: &mut Tx<'_>, build: Build, new: Owned, soft: bool, now: Millis) -> Build {
    if build.again {
        // A rebuild was asked for since these were handed out: this one is it, and they are not.
        end_lapsed(tx, build.id);
    }
    tx.count(Counter::Run);
    let auxiliaries = serde_json::to_string(&new.auxiliaries).unwrap_or_default();
    tx.later(
        Sql::new(
            "UPDATE builds SET state = 'building', started = $2, session = $3, lease_until = $4, again = 0, \
             agent = $5, fingerprint = $6, machine = $7, machine_summary = $8, toolchain_name = $9, \
             toolchain_version = $10, run = $11, auxiliaries = $12, login = $13 WHERE id = $1",
        )
        .bind(build.id)
        .bind(now)
        .bind(new.session.as_str())
        .bind(new.until)
        .bind(new.agent.as_str())
        .bind(new.fingerprint.as_deref())
        .bind(new.machine.as_str())
        .bind(new.machine_summary.as_str())
        .bind(new.toolchain_name.as_str())
        .bind(new.toolchain_version.as_str())
        .bind(build.run)
        .bind(auxiliaries.as_str())
        .bind(new.login.as_deref()),
    );
    tx.later(
        Sql::new(
            "INSERT INTO sessions (id, build, issued, fingerprint, challenge, number, path, renews, agent, machine, \
             machine_summary, toolchain_name, toolchain_version, latest, soft, controller_checksum, machine_checksum, \
             secret, agent_key, auxiliaries) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)",
        )
        .bind(new.session.as_str())
        .bind(build.id)
        .bind(now)
        .bind(new.fingerprint.as_deref())
        .bind(new.challenge.as_deref())
        .bind(build.run)
        .bind(new.path)
        .bind(new.renews)
        .bind(new.agent.as_str())
        .bind(new.machine.as_str())
        .bind(new.machine_summary.as_str())
        .bind(new.toolchain_name.as_str())
        .bind(new.toolchain_version.as_str())
        .bind(new.latest)
        .bind(soft)
        .bind(new.makings.as_ref().map(|m| m.controller.as_str()))
        .bind(new.makings.as_ref().map(|m| m.machine.as_str()))
        .bind(new.signing.as_ref().map(|(key, _)| key.as_str()))
        .bind(new.signing.as_ref().map(|(_, agent)| agent.as_str()))
        .bind(auxiliaries),
    );
    Build {
        state: State::Building,
        started: Some(now),
        session: Some(new.session),
        lease_until: Some(new.until),
        again: false,
        agent: Some(new.agent),
        machine: Some(new.machine),
        machine_summary: Some(new.machine_summary),
        auxiliaries: new.auxiliaries,
        login: new.login,
        toolchain_name: Some(new.toolchain_name),
        toolchain_version: Some(new.toolchain_version),
        ..build
    }
}

/// The lapsed sessions of a build are over: no result of theirs is taken any more.
pub(super) fn end_lapsed(tx: &mut Tx<'_>, build: i64) {
    tx.later(
        Sql::new("UPDATE sessions SET ended = 'over' WHERE build = $1 AND ended = 'lapsed'")
            .bind(build),
    );
}
