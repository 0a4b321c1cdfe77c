//! Handing out: a build that waits becomes an agent's. Those that are handed out in one transaction share its statements.

use std::collections::{BTreeSet, HashSet};

use bbot_signature::{PublicKey, SessionKey};
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::dialect::{Counter, Dialect};
use super::given::{Column, Given, Type};
use super::rows::{self, AuxiliaryMachine, Build, SUBMISSION, Submission};
use super::tx::{Sql, Tx};
use super::{Backend, Doing as _, Store, StoreError, agents, leases, rebuilds};
use crate::clock::Millis;
use crate::queue::State;
use crate::queue::rebuild::{self, Checksums, Makings};

/// What it is for.
pub(super) const DOING: &str = "hand out a task";

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
        let new = Owned::of(new, now);
        match &self.backend {
            Backend::Sqlite(_) => {
                let handed = self.write(DOING, move |tx| {
                    Box::pin(async move { all(tx, std::slice::from_ref(&new)).await })
                });
                handed.await?.pop().unwrap_or(Ok(None))
            }
            Backend::Postgres { together, .. } => together.lease(new).await,
        }
    }
}

/// What became of one that was to be handed out.
pub(super) type Handed = Result<Option<Lease>, StoreError>;

/// How a transaction of PostgreSQL begins that hands these out: whoever is told that one of the agents is drained is told of all that it has.
pub(super) fn begin(all: &[Owned]) -> String {
    // In one order, so that no two wait for each other.
    let locks: BTreeSet<i64> = all.iter().map(|new| agents::lock(&new.agent)).collect();
    let locks = locks
        .iter()
        .map(|lock| format!("pg_advisory_xact_lock_shared({lock})"));
    format!("BEGIN; SELECT {}", locks.collect::<Vec<_>>().join(", "))
}

/// Hands out all of these; what became of each. On SQLite it is one: the one that writes puts together what comes together.
pub(super) async fn all(tx: &mut Tx<'_>, all: &[Owned]) -> Result<Vec<Handed>, StoreError> {
    let mut handed: Vec<Handed> = all.iter().map(|_| Ok(None)).collect();
    let used = used_keys(tx, all).await?;
    let mut wanted = Given::of(WANTED);
    let mut keys = HashSet::new();
    for ((n, new), handed) in (0_i64..).zip(all).zip(&mut handed) {
        if let Some((_, key)) = &new.signing
            && (used.contains(key) || !keys.insert(key))
        {
            *handed = Err(StoreError::UsedKey);
            continue;
        }
        wanted.push([n.into(), new.build.into(), new.agent.as_str().into()]);
    }
    if wanted.is_empty() {
        return Ok(handed);
    }
    let dialect = tx.dialect();
    let these = format!(
        "SELECT w.n, {} FROM w {} {} WHERE b.state = 'queued' AND {}",
        found(dialect),
        dialect.hold("builds", "b", "id", "w.build"),
        dialect.look_up("submissions", "p", "id", "b.submission"),
        undrained("w.agent")
    );
    let these = wanted.sql(tx.dialect(), &these);
    let mut given = Vec::new();
    let mut gone = HashSet::new();
    for row in tx.all(these).await? {
        let n: i64 = row.try_get("n").doing(DOING)?;
        let n = usize::try_from(n).unwrap_or(usize::MAX);
        let (Some(new), Some(handed)) = (all.get(n), handed.get_mut(n)) else {
            continue;
        };
        match take(tx, &row, new) {
            // Several may have looked for one.
            Ok(lease) => {
                if gone.insert(lease.build.id) {
                    *handed = Ok(Some(lease.clone()));
                    given.push((lease, new));
                }
            }
            // What one has found harms no other.
            Err(e) => *handed = Err(e),
        }
    }
    give(tx, &given);
    for (new, handed) in all.iter().zip(&mut handed) {
        if matches!(handed, Ok(None))
            && let Some(instead) = &new.instead
            && let Some(row) = first(tx, new, instead).await?
        {
            let lease = take(tx, &row, new)?;
            give(tx, &[(lease.clone(), new)]);
            *handed = Ok(Some(lease));
        }
    }
    Ok(handed)
}

/// A build that is looked for, which of the hand-outs it is for, and who gets it.
const WANTED: [Column; 3] = [
    ("n", Type::Int),
    ("build", Type::Int),
    ("agent", Type::Text),
];

/// Who gets it is not drained.
fn undrained(agent: &str) -> String {
    format!("NOT EXISTS (SELECT 1 FROM agents g WHERE g.name = {agent} AND g.drained IS NOT NULL)")
}

/// What is asked of a build that is found.
fn found(dialect: Dialect) -> String {
    format!(
        "b.*, {SUBMISSION}, {} AS next_run",
        dialect.next(Counter::Run)
    )
}

/// Which of the agents' parts in keys of sessions have served before.
async fn used_keys(tx: &mut Tx<'_>, all: &[Owned]) -> Result<HashSet<String>, StoreError> {
    let mut keys = Given::of([("agent_key", Type::Text)]);
    for (_, key) in all.iter().filter_map(|new| new.signing.as_ref()) {
        keys.push([key.as_str().into()]);
    }
    if keys.is_empty() {
        return Ok(HashSet::new());
    }
    let used = format!(
        "SELECT s.agent_key FROM w {}",
        tx.dialect()
            .look_up("sessions", "s", "agent_key", "w.agent_key")
    );
    let used = tx.all(keys.sql(tx.dialect(), &used)).await?;
    let key = |row: &AnyRow| row.try_get("agent_key").doing(DOING);
    used.iter().map(key).collect()
}

/// The first in the queue of those that will do instead.
async fn first(
    tx: &mut Tx<'_>,
    new: &Owned,
    (configuration, target, lane, repository): &Among,
) -> Result<Option<AnyRow>, StoreError> {
    let of = repository
        .as_ref()
        .map_or("", |_| " AND b.repository = $5 AND b.repository <> ''");
    if tx.dialect() == Dialect::Postgres {
        // What is planned for an empty queue would not do later on.
        tx.later(Sql::new("SET LOCAL plan_cache_mode = force_custom_plan"));
    }
    // One that has failed may avoid this host.
    let mut first = Sql::new(format!(
        "SELECT {} FROM builds b JOIN submissions p ON p.id = b.submission \
         WHERE b.state = 'queued' AND b.configuration = $1 AND b.target = $2 AND b.lane = $3{of} \
         AND b.failures = '[]' AND {} ORDER BY b.place, b.id LIMIT 1{}",
        found(tx.dialect()),
        undrained("$4"),
        tx.dialect().build_held_if_free()
    ))
    .bind(configuration.as_str())
    .bind(target.as_str())
    .bind(lane.as_str())
    .bind(new.agent.as_str());
    if let Some(repository) = repository {
        first = first.bind(repository.as_str());
    }
    tx.optional(first).await
}

/// The build of this row, where it waits, as it is when it has been given.
fn take(tx: &mut Tx<'_>, row: &AnyRow, new: &Owned) -> Result<Lease, StoreError> {
    let (waiting, submission) = (rows::build(row)?, rows::submission_of(row)?);
    let last = rebuilds::last(row)?;
    let checksums = new.makings.as_ref().and_then(|makings| {
        rebuild::checksums(last.kind, last.makings.as_ref(), makings, last.checksums)
    });
    let build = Build {
        state: State::Building,
        run: Some(rows::next_run(row)?),
        started: Some(new.now),
        session: Some(new.session.clone()),
        lease_until: Some(new.until),
        again: false,
        agent: Some(new.agent.clone()),
        machine: Some(new.machine.clone()),
        machine_summary: Some(new.machine_summary.clone()),
        auxiliaries: new.auxiliaries.clone(),
        login: new.login.clone(),
        toolchain_name: Some(new.toolchain_name.clone()),
        toolchain_version: Some(new.toolchain_version.clone()),
        ..waiting
    };
    if waiting.again {
        // A rebuild was asked for since its sessions were handed out: this one is it, and they are not.
        leases::end_lapsed(tx, build.id);
    }
    Ok(Lease {
        build,
        submission,
        checksums,
    })
}

/// What is written of a session and of its build. The first columns are those of a session,
const GIVEN: [Column; 22] = [
    ("id", Type::Text),
    ("build", Type::Int),
    ("issued", Type::Int),
    ("fingerprint", Type::Text),
    ("challenge", Type::Text),
    ("number", Type::Int),
    ("path", Type::Text),
    ("renews", Type::Int),
    ("agent", Type::Text),
    ("machine", Type::Text),
    ("machine_summary", Type::Text),
    ("toolchain_name", Type::Text),
    ("toolchain_version", Type::Text),
    ("latest", Type::Int),
    ("soft", Type::Int),
    ("controller_checksum", Type::Text),
    ("machine_checksum", Type::Text),
    ("secret", Type::Text),
    ("agent_key", Type::Text),
    ("auxiliaries", Type::Text),
    ("lease_until", Type::Int),
    ("login", Type::Text),
];

/// so many of them.
const OF_SESSION: usize = 20;

/// Keeps that these have been given.
fn give(tx: &mut Tx<'_>, given: &[(Lease, &Owned)]) {
    if given.is_empty() {
        return;
    }
    let mut all = Given::of(GIVEN);
    for (
        Lease {
            build, checksums, ..
        },
        new,
    ) in given
    {
        tx.count(Counter::Run);
        let auxiliaries = serde_json::to_string(&new.auxiliaries).unwrap_or_default();
        all.push([
            new.session.as_str().into(),
            build.id.into(),
            new.now.into(),
            new.fingerprint.as_deref().into(),
            new.challenge.as_deref().into(),
            build.run.into(),
            new.path.as_str().into(),
            new.renews.into(),
            new.agent.as_str().into(),
            new.machine.as_str().into(),
            new.machine_summary.as_str().into(),
            new.toolchain_name.as_str().into(),
            new.toolchain_version.as_str().into(),
            new.latest.into(),
            checksums.is_some().into(),
            new.makings.as_ref().map(|m| m.controller.as_str()).into(),
            new.makings.as_ref().map(|m| m.machine.as_str()).into(),
            new.signing.as_ref().map(|(key, _)| key.as_str()).into(),
            new.signing.as_ref().map(|(_, agent)| agent.as_str()).into(),
            auxiliaries.into(),
            new.until.into(),
            new.login.as_deref().into(),
        ]);
    }
    let columns = GIVEN[..OF_SESSION].iter().map(|(name, _)| *name);
    let columns = columns.collect::<Vec<_>>().join(", ");
    let sessions = format!("INSERT INTO sessions ({columns}) SELECT {columns} FROM w");
    let builds = "UPDATE builds SET state = 'building', started = w.issued, session = w.id, lease_until = w.lease_until, again = 0, \
        agent = w.agent, fingerprint = w.fingerprint, machine = w.machine, machine_summary = w.machine_summary, \
        toolchain_name = w.toolchain_name, toolchain_version = w.toolchain_version, run = w.number, \
        auxiliaries = w.auxiliaries, login = w.login FROM w WHERE builds.id = w.build";
    match tx.dialect() {
        Dialect::Sqlite => {
            tx.later(all.clone().sql(Dialect::Sqlite, builds));
            tx.later(all.sql(Dialect::Sqlite, &sessions));
        }
        // One way to go, and the rows read once.
        Dialect::Postgres => {
            // It may not begin with all builds.
            let these = "AND builds.id = ANY(ARRAY(SELECT build FROM w))";
            let both = format!(", s AS ({sessions}) {builds} {these}");
            tx.later(all.sql(Dialect::Postgres, &both));
        }
    }
}

/// Configuration, target, lane and repository of builds.
type Among = (String, String, String, Option<String>);

/// A [`NewLease`] that goes to the one that writes.
#[derive(Debug, Clone)]
pub(super) struct Owned {
    build: i64,
    /// Configuration, target, lane and repository of one that would do instead.
    instead: Option<Among>,
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
    now: Millis,
}

impl Owned {
    fn of(new: &NewLease<'_>, now: Millis) -> Self {
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
            now,
        }
    }
}
