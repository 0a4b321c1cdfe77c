//! Results: what is known of a session, and what a result writes.

use bbot_manifest::Status;
use bbot_signature::SessionKey;
use sqlx::Row as _;

use super::dialect::Counter;
use super::logs::{self, NewLog};
use super::rebuilds;
use super::rows::{self, Build, Operation};
use super::tx::{Sql, Tx};
use super::{Doing as _, Store, StoreError, builds, leases};
use crate::clock::Millis;
use crate::queue::State;
use crate::queue::failure::{self, Failures};
use crate::queue::late::LogEnd;
use crate::queue::lease::Tries;
use crate::queue::order::Class;
use crate::queue::outcome::{self, Again, Machine, SessionState, Verdict};
use crate::queue::rebuild::Checksums;

/// A result that came for a session.
#[derive(Debug, Clone)]
pub struct NewResult {
    /// The overall status.
    pub status: Status,
    /// Its operations in their order.
    pub operations: Vec<NewOperation>,
    /// What its agent has made it with, if it says so.
    pub checksums: Option<Checksums>,
    /// Number of the last segment of its run's log, if it says so.
    pub log_last: Option<u64>,
}

impl NewResult {
    /// Why its agent gives a task back, where it says so: the log of its first operation that has one.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        let mut logs = self.operations.iter().map(|o| o.log.head().trim());
        logs.find(|log| !log.is_empty())
    }

    /// What an agent that gives a task back says of the machine.
    #[must_use]
    pub fn machine(&self) -> Machine {
        Self::machine_of(self.status, self.operations.iter().map(|o| o.name.as_str()))
    }

    /// The same, by the status and the operations of its result.
    #[must_use]
    pub fn machine_of<'a>(
        status: Status,
        mut operations: impl Iterator<Item = &'a str>,
    ) -> Machine {
        if status == Status::Interrupt && operations.any(|name| name == failure::MACHINE_OPERATION)
        {
            Machine::Failed
        } else {
            Machine::Unmentioned
        }
    }
}

/// One operation of a result.
#[derive(Debug, Clone)]
pub struct NewOperation {
    /// Its name.
    pub name: String,
    /// Its status.
    pub status: Status,
    /// Its log, sanitised.
    pub log: NewLog,
}

/// What the store knows of a session.
#[derive(Debug, Clone)]
pub struct SessionFacts {
    /// The build of the session.
    pub build: Build,
    /// The session itself.
    pub session: String,
    /// The run's number: its raw log has it in its name. None for a task that was handed out by an older controller.
    pub run: Option<i64>,
    /// Name of the agent that has or had it.
    pub agent: Option<String>,
    /// When the agent showed first that the task has arrived.
    pub confirmed: Option<Millis>,
    /// Until when its lease can be renewed at most, in steady time.
    pub latest: Option<Millis>,
    /// Where the session stands.
    pub state: SessionState,
    /// Fingerprint of the key that has to answer the challenge.
    pub fingerprint: Option<String>,
    /// The challenge.
    pub challenge: Option<String>,
    /// Whether a rebuild was asked for meanwhile.
    pub again: Again,
    /// The checksums that went out with its task.
    pub checksums: Option<Checksums>,
    /// What its requests are signed with, where they are.
    pub key: Option<SessionKey>,
    /// The number of its last renewal, where they are signed.
    pub renewal: i64,
    /// Where its log ends, where its result says so.
    pub log_end: Option<LogEnd>,
}

/// What became of a result.
#[derive(Debug, Clone)]
pub struct Taken {
    /// What was decided, and done.
    pub verdict: Verdict,
    /// What was known of its session before.
    pub facts: SessionFacts,
}

/// Everything about a session and its build.
macro_rules! facts_where {
    ($condition:literal) => {
        concat!(
            "SELECT b.*, s.fingerprint AS session_fingerprint, s.challenge AS session_challenge, ",
            "s.attempt AS session_attempt, s.id AS session_id, s.ended AS session_ended, ",
            "s.number AS session_number, s.agent AS session_agent, s.confirmed AS session_confirmed, ",
            "s.latest AS session_latest, s.soft AS session_soft, ",
            "s.secret AS session_secret, s.renewal AS session_renewal, s.log_last, s.log_until ",
            "FROM sessions s JOIN builds b ON b.id = s.build WHERE ",
            $condition
        )
    };
}
pub(super) const FACTS: &str = facts_where!("s.id = $1");
pub(super) const FACTS_BY_PATH: &str = facts_where!("s.path = $1");

pub(super) fn facts(row: &sqlx::any::AnyRow) -> Result<SessionFacts, StoreError> {
    const DOING: &str = "read a session";
    let build = rows::build(row)?;
    let session: String = row.try_get("session_id").doing(DOING)?;
    let attempt: Option<i64> = row.try_get("session_attempt").doing(DOING)?;
    let ended: Option<String> = row.try_get("session_ended").doing(DOING)?;
    let state = if attempt.is_some() {
        SessionState::Answered
    } else if build.session.as_deref() == Some(session.as_str()) {
        SessionState::Current(build.state)
    } else {
        match ended.as_deref() {
            Some("given-back") => SessionState::GivenBack,
            Some("lapsed") => SessionState::Overtaken,
            Some("cancelled") => SessionState::Cancelled,
            _ => SessionState::Superseded,
        }
    };
    let again = if build.again { Again::Yes } else { Again::No };
    let secret: Option<String> = row.try_get("session_secret").doing(DOING)?;
    let id = build.id;
    // One that cannot be read must not become one that needs no signature.
    let key = |secret: String| {
        SessionKey::parse(&secret).ok_or_else(|| StoreError::Damaged {
            build: id,
            column: "secret",
            value: "it is no key of a session".to_owned(),
        })
    };
    Ok(SessionFacts {
        build,
        session,
        run: row.try_get("session_number").doing(DOING)?,
        agent: row.try_get("session_agent").doing(DOING)?,
        confirmed: row
            .try_get::<Option<i64>, _>("session_confirmed")
            .doing(DOING)?
            .map(Millis),
        latest: row
            .try_get::<Option<i64>, _>("session_latest")
            .doing(DOING)?
            .map(Millis),
        state,
        fingerprint: row.try_get("session_fingerprint").doing(DOING)?,
        challenge: row.try_get("session_challenge").doing(DOING)?,
        again,
        // They are those of the last result still: another one would have ended this session.
        checksums: rebuilds::last(row)?
            .checksums
            .filter(|_| row.try_get("session_soft").is_ok_and(|soft: i64| soft == 1)),
        key: secret.map(key).transpose()?,
        renewal: row.try_get("session_renewal").doing(DOING)?,
        log_end: log_end(row)?,
    })
}

/// Where the log of a session ends.
fn log_end(row: &sqlx::any::AnyRow) -> Result<Option<LogEnd>, StoreError> {
    const DOING: &str = "read where a log ends";
    let last: Option<i64> = row.try_get("log_last").doing(DOING)?;
    let until: Option<i64> = row.try_get("log_until").doing(DOING)?;
    Ok(last.zip(until).map(|(last, until)| LogEnd {
        last: u64::try_from(last).unwrap_or(0),
        until: Millis(until),
    }))
}

impl Store {
    /// What is known of a session; `None` when there never was one.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn session(&self, session: &str) -> Result<Option<SessionFacts>, StoreError> {
        let row = sqlx::query(FACTS)
            .bind(session.replace('\0', "\u{fffd}"))
            .fetch_optional(&self.pool)
            .await
            .doing("read a session")?;
        row.as_ref().map(facts).transpose()
    }

    /// Where the log of a run ends; `None` where there is no result of it that says so.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn log_end(&self, run: i64) -> Result<Option<LogEnd>, StoreError> {
        let row = sqlx::query("SELECT log_last, log_until FROM sessions WHERE number = $1")
            .bind(run)
            .fetch_optional(&self.pool)
            .await
            .doing("read where a log ends")?;
        Ok(row.as_ref().map(log_end).transpose()?.flatten())
    }

    /// Takes a result: reads the session, lets `decide` say what to do, and does it, in one transaction. `None` when there is no such
    /// session.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn take_result(
        &self,
        session: &str,
        result: NewResult,
        now: Millis,
        decide: impl FnOnce(&SessionFacts) -> Verdict + Send + 'static,
    ) -> Result<Option<Taken>, StoreError> {
        let session = session.to_owned();
        self.write("keep a result", move |tx| {
            Box::pin(async move {
                let row = tx
                    .optional(
                        Sql::new(format!("{FACTS}{}", tx.dialect().session_held())).bind(session),
                    )
                    .await?;
                let Some(facts) = row.as_ref().map(facts).transpose()? else {
                    return Ok(None);
                };
                let verdict = decide(&facts);
                take(tx, &facts, verdict, &result, now).await?;
                Ok(Some(Taken { verdict, facts }))
            })
        })
        .await
    }
}

/// Does what was decided about a result.
async fn take(
    tx: &mut Tx<'_>,
    facts: &SessionFacts,
    verdict: Verdict,
    result: &NewResult,
    now: Millis,
) -> Result<(), StoreError> {
    match verdict {
        Verdict::Keep(state) => {
            let by = By::Agent {
                session: &facts.session,
                late: facts.state != SessionState::Current(State::Building),
            };
            keep(tx, by, &facts.build, result, state, now).await?;
        }
        Verdict::Unchanged(state) => {
            rebuilds::unchanged(tx, facts, state, now).await?;
        }
        Verdict::Requeue | Verdict::Retry => {
            if facts.build.again {
                // What was handed out before it was asked for is not what is waited for.
                leases::end_lapsed(tx, facts.build.id);
            }
            // Without its session a second result for it comes to nothing.
            tx.later(
                Sql::new(format!(
                    "UPDATE builds SET state = 'queued', session = NULL, run = NULL, lease_until = NULL, again = 0, \
                     {}, interrupts = interrupts + 1, failures = $2 WHERE id = $1",
                    builds::AS_ASKED
                ))
                .bind(facts.build.id)
                .bind(failures(&facts.build, result).text()),
            );
            end_given_back(tx, &facts.session);
        }
        Verdict::Release => {
            if facts.build.again && facts.build.session.as_deref() == Some(&facts.session) {
                leases::end_lapsed(tx, facts.build.id);
            }
            tx.later(
                Sql::new("UPDATE builds SET session = NULL, run = NULL, again = 0 WHERE id = $1 AND session = $2")
                    .bind(facts.build.id)
                    .bind(facts.session.as_str()),
            );
            end_given_back(tx, &facts.session);
        }
        Verdict::GiveUp => {
            let build = Build {
                failures: failures(&facts.build, result),
                ..facts.build.clone()
            };
            let ended = given_up(&build, build.lapses, result.reason());
            let by = By::Agent {
                session: &facts.session,
                late: false,
            };
            keep(tx, by, &facts.build, &ended, State::Built, now).await?;
        }
        Verdict::Repeat | Verdict::Wrong(_) | Verdict::Drop(_) => {}
    }
    Ok(())
}

/// The failures of a build's machines, with that which a result tells of.
fn failures(build: &Build, result: &NewResult) -> Failures {
    let failures = build.failures.clone();
    match (result.machine(), &build.agent) {
        (Machine::Failed, Some(host)) => failures.with(host),
        (Machine::Failed, None) | (Machine::Unmentioned, _) => failures,
    }
}

fn end_given_back(tx: &mut Tx<'_>, session: &str) {
    tx.later(Sql::new("UPDATE sessions SET ended = 'given-back' WHERE id = $1").bind(session));
}

/// The result of a build whose task came back without one too often, or is handed out once; `lapses` times of these because its lease had
/// lapsed. `reason`: what the agent that gave it back says, if one did.
pub(super) fn given_up(build: &Build, lapses: u32, reason: Option<&str>) -> NewResult {
    let (agent, machine) = (build.agent.as_deref(), build.machine.as_deref());
    let log = match Tries::of(&build.lane) {
        Tries::Many => outcome::given_up_log(lapses, &build.failures, agent, machine, reason),
        Tries::Once => outcome::once_log(lapses > build.lapses, agent, machine, reason),
    };
    NewResult {
        status: Status::Abort,
        operations: vec![NewOperation {
            name: outcome::CONTROLLER_OPERATION.to_owned(),
            status: Status::Abort,
            log: NewLog::Whole(log),
        }],
        checksums: None,
        log_last: None,
    }
}

/// Whose result it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum By<'a> {
    /// An agent's, for this session.
    Agent {
        /// The session, which is then answered.
        session: &'a str,
        /// Whether its lease had lapsed.
        late: bool,
    },
    /// The controller's own, in the place of one that never came.
    Controller,
}

/// Keeps a result, and ends every session of the build.
pub(super) async fn keep(
    tx: &mut Tx<'_>,
    by: By<'_>,
    build: &Build,
    result: &NewResult,
    state: State,
    now: Millis,
) -> Result<(), StoreError> {
    let number = build.attempt + 1;
    let (session, late) = match by {
        By::Agent { session, late } => (session, late),
        By::Controller => (build.session.as_deref().unwrap_or_default(), false),
    };
    let operations: Vec<Operation> = result
        .operations
        .iter()
        .map(|o| Operation {
            name: o.name.clone(),
            status: o.status.to_string(),
            log_bytes: o.log.bytes(),
        })
        .collect();
    let operations = serde_json::to_string(&operations).unwrap_or_default();
    // Who built it is who brings the result, whoever has the task now.
    tx.later(
        Sql::new(
            "UPDATE builds SET (agent, fingerprint, machine, machine_summary, auxiliaries, toolchain_name, toolchain_version, started, run) \
             = (SELECT agent, fingerprint, machine, machine_summary, auxiliaries, toolchain_name, toolchain_version, issued, number \
             FROM sessions WHERE id = $2) WHERE id = $1 AND EXISTS (SELECT 1 FROM sessions WHERE id = $2)",
        )
        .bind(build.id)
        .bind(session),
    );
    tx.later(
        Sql::new(
            "INSERT INTO attempts (build, number, status, operations, session, agent, fingerprint, machine, \
             machine_summary, auxiliaries, toolchain_name, toolchain_version, started, finished, late, run) \
             SELECT id, $2, $3, $4, $5, agent, fingerprint, machine, machine_summary, auxiliaries, toolchain_name, \
             toolchain_version, started, $6, $7, run FROM builds WHERE id = $1",
        )
        .bind(build.id)
        .bind(number)
        .bind(result.status.to_string())
        .bind(operations.as_str())
        .bind(session)
        .bind(now)
        .bind(late),
    );
    logs::name_objects(tx, result.operations.iter().map(|o| &o.log)).await?;
    for (position, operation) in (0_i64..).zip(&result.operations) {
        let place = logs::Place {
            build: build.id,
            attempt: number,
            position,
            operation: &operation.name,
        };
        logs::insert(tx, place, &operation.log).await?;
    }
    if let By::Agent { session, .. } = by {
        let end = result.log_last.map(|last| LogEnd::of(last, now));
        tx.later(
            Sql::new(
                "UPDATE sessions SET attempt = $2, log_last = $3, log_until = $4 WHERE id = $1",
            )
            .bind(session)
            .bind(number)
            .bind(end.map(|end| i64::try_from(end.last).unwrap_or(i64::MAX)))
            .bind(end.map(|end| end.until.0)),
        );
    }
    end_others(tx, build.id);
    let checksums = result.checksums.as_ref();
    tx.later(
        Sql::new(
            "UPDATE builds SET status = $3, operations = $4, attempt = $5, finished = $6, checked = $10, soft = 0, \
             agent_checksum = $7, worker_checksum = $8, dependency_checksum = $9, \
             controller_checksum = (SELECT controller_checksum FROM sessions WHERE id = $2), \
             machine_checksum = (SELECT machine_checksum FROM sessions WHERE id = $2) WHERE id = $1",
        )
        .bind(build.id)
        .bind(session)
        .bind(result.status.to_string())
        .bind(operations)
        .bind(number)
        .bind(now)
        .bind(checksums.map(|c| c.agent.as_str()))
        .bind(checksums.map(|c| c.worker.as_str()))
        .bind(checksums.map(|c| c.dependency.as_str()))
        // One that stops for a person is not rebuilt by itself.
        .bind(Some(now.0).filter(|_| !build.lane.interactive)),
    );
    end(tx, build, state, now).await
}

/// Whoever else has it, or had it and was late, brings nothing that anybody waits for.
pub(super) fn end_others(tx: &mut Tx<'_>, build: i64) {
    tx.later(
        Sql::new(
            "UPDATE sessions SET ended = 'over' WHERE build = $1 AND attempt IS NULL \
             AND (ended IS NULL OR ended = 'lapsed')",
        )
        .bind(build),
    );
}

/// A build has its result.
pub(super) async fn end(
    tx: &mut Tx<'_>,
    build: &Build,
    state: State,
    now: Millis,
) -> Result<(), StoreError> {
    // A rebuild that was asked for meanwhile is queued now, where its asker's turn has put it.
    if state == State::Queued
        && let Some((place, submitter)) = &build.again_place
    {
        builds::enter(tx, build, Class::Forced, *place, submitter, now).await?;
    }
    let (position, queued) = match state {
        State::Queued => (tx.dialect().next(Counter::Queue), now),
        State::Building | State::Built | State::Cancelled => ("position", build.queued),
    };
    tx.later(
        Sql::new(format!(
            "UPDATE builds SET state = $2, lease_until = NULL, session = NULL, again = 0, interrupts = 0, lapses = 0, failures = '[]', \
             position = {position}, queued = $3, run = CASE WHEN $2 = 'queued' THEN NULL ELSE run END WHERE id = $1"
        ))
        .bind(build.id)
        .bind(state.as_str())
        .bind(queued),
    );
    if state == State::Queued {
        tx.count(Counter::Queue);
    }
    Ok(())
}
