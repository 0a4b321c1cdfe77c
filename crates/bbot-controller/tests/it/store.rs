//! The store over a real SQLite file: nothing handed out twice, nothing lost over a restart.

use std::time::Duration;

use bbot_controller::clock::Millis;
use bbot_controller::objects::Kind;
use bbot_controller::package::Particulars;
use bbot_controller::package::plan::Plan;
use bbot_controller::queue::order::{Class, Priority};
use bbot_controller::queue::outcome::Verdict;
use bbot_controller::queue::{Rebuild, State};
use bbot_controller::source::{Repository, Source};
use bbot_controller::store::{
    Asker, Filter, Instead, LogText, NewLease, NewOperation, NewResult, NewSubmission, Store,
    Submitted, Taken, Waiting,
};
use bbot_manifest::Status;
use sqlx::Connection as _;

use crate::cluster::Cluster;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Where a store is, and stays when it is closed.
pub(crate) enum Place {
    Sqlite(tempfile::TempDir),
    Postgres(String),
}

impl Place {
    pub(crate) fn file() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    /// As sqlx has it.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite(dir) => {
                format!(
                    "sqlite://{}?mode=rwc",
                    dir.path().join("s.sqlite").display()
                )
            }
            Self::Postgres(url) => url.clone(),
        }
    }

    pub(crate) async fn open(&self) -> Store {
        match self {
            Self::Sqlite(dir) => Store::open(&dir.path().join("s.sqlite")).await.unwrap(),
            Self::Postgres(url) => Store::open_postgres(url, Millis(0)).await.unwrap(),
        }
    }
}

/// Runs a test over a store of each kind.
pub(crate) fn on_both(test: impl AsyncFn(Place)) {
    let runtime = runtime();
    runtime.block_on(test(Place::file()));
    if let Some(cluster) = Cluster::start() {
        runtime.block_on(test(Place::Postgres(cluster.database())));
    }
}

/// Somebody who submits, at a farm that takes ten builds in a second.
pub(crate) fn asker(submitter: &str) -> Asker {
    Asker {
        submitter: submitter.to_owned(),
        share: Duration::from_millis(100),
    }
}

pub(crate) async fn submit(store: &Store, name: &str, now: i64) -> i64 {
    let source = Source::Repository(Repository {
        url: "https://pkg.x.org/1/a".into(),
        kind: None,
        trust: vec![],
    });
    let new = NewSubmission {
        name,
        version: "1",
        source: &source,
        asker: &asker("me"),
        priority: Priority::default(),
        particulars: &Particulars::default(),
        plan: &Plan::of(&[("c", "t")]),
    };
    store.submit(new, Millis(now)).await.unwrap().builds[0].id
}

pub(crate) fn lease<'a>(build: i64, session: &'a str, until: i64) -> NewLease<'a> {
    NewLease {
        build,
        instead: Instead::None,
        session,
        path: session,
        until: Millis(until),
        renews: true,
        latest: Millis(i64::MAX),
        agent: "a",
        fingerprint: None,
        challenge: None,
        machine: "m",
        machine_summary: "M",
        toolchain_name: "default",
        toolchain_version: "0.7.0",
        makings: None,
    }
}

/// Place and number of the build that is next.
pub(crate) async fn first_queued(
    store: &Store,
    configuration: &str,
    target: &str,
    repository: Option<&str>,
) -> Option<(i64, i64)> {
    let waiting = Waiting {
        configuration,
        target,
        repository,
    };
    let found = store.first(&[waiting]).await.unwrap();
    found.map(|first| (first.place, first.build))
}

fn verdict(taken: Option<Taken>) -> Option<Verdict> {
    taken.map(|t| t.verdict)
}

pub(crate) fn result(log: &str) -> NewResult {
    let operation = NewOperation {
        name: "update".into(),
        status: Status::Success,
        log: log.into(),
    };
    NewResult {
        status: Status::Success,
        operations: vec![operation],
        checksums: None,
    }
}

#[test]
fn no_task_is_handed_out_twice() {
    on_both(async |place| {
        let store = place.open().await;
        const BUILDS: usize = 40;
        for n in 0..BUILDS {
            submit(&store, &format!("p{n}"), 0).await;
        }
        let mut agents = tokio::task::JoinSet::new();
        for agent in 0..8 {
            let store = store.clone();
            agents.spawn(async move {
                let mut got = Vec::new();
                while let Some((_, build)) = first_queued(&store, "c", "t", None).await {
                    let session = format!("{agent}-{}", got.len());
                    if let Some(lease) = store
                        .lease(&lease(build, &session, 100), Millis(1))
                        .await
                        .unwrap()
                    {
                        got.push(lease.build.id);
                    }
                }
                got
            });
        }
        let mut all: Vec<i64> = agents.join_all().await.concat();
        all.sort_unstable();
        assert_eq!(
            all,
            (1..=i64::try_from(BUILDS).unwrap()).collect::<Vec<_>>()
        );
    });
}

#[test]
fn the_oldest_first_and_a_lapsed_one_keeps_its_place() {
    on_both(async |place| {
        let store = place.open().await;
        let (first, second) = (submit(&store, "a", 0).await, submit(&store, "b", 0).await);
        assert_eq!(
            first_queued(&store, "c", "t", Some("x.org/a"))
                .await
                .unwrap()
                .1,
            first
        );
        assert_eq!(first_queued(&store, "c", "t", Some("x.org/b")).await, None);
        assert_eq!(first_queued(&store, "d", "t", None).await, None);
        assert!(
            store
                .lease(&lease(first, "s1", 100), Millis(0))
                .await
                .unwrap()
                .is_some()
        );
        assert!(
            store
                .lease(&lease(first, "s2", 100), Millis(0))
                .await
                .unwrap()
                .is_none()
        );
        assert_eq!(
            first_queued(&store, "c", "t", None).await.unwrap().1,
            second
        );
        assert!(
            store
                .requeue_lapsed(Millis(99), Millis(99))
                .await
                .unwrap()
                .is_empty()
        );
        assert_eq!(
            store
                .requeue_lapsed(Millis(100), Millis(100))
                .await
                .unwrap()[0]
                .0
                .id,
            first
        );
        assert_eq!(first_queued(&store, "c", "t", None).await.unwrap().1, first);
        let build = store.build(first).await.unwrap().unwrap();
        assert_eq!(
            (build.state, build.session.as_deref()),
            (State::Queued, Some("s1"))
        );
        // Asked for again while its late result may still come: remembered.
        assert_eq!(
            store
                .rebuild(first, &asker("me"), Some("why"), Millis(5))
                .await
                .unwrap(),
            Some(Rebuild::AlreadyQueued)
        );
        assert!(store.build(first).await.unwrap().unwrap().again);
        assert_eq!(
            store
                .rebuild(77, &asker("me"), None, Millis(5))
                .await
                .unwrap(),
            None
        );
    });
}

#[test]
fn the_same_result_from_many_sides_is_kept_once() {
    on_both(async |place| {
        let store = place.open().await;
        let id = submit(&store, "a", 0).await;
        store
            .lease(&lease(id, "s", 100), Millis(0))
            .await
            .unwrap()
            .unwrap();
        let mut senders = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let store = store.clone();
            senders.spawn(async move {
                use bbot_controller::queue::outcome::{
                    Facts, Identity, Machine, Proof, Skip, decide,
                };
                let result = result("log");
                let take = store.take_result("s", result, Millis(7), |facts| {
                    decide(Facts {
                        session: facts.state,
                        proof: Proof::Good,
                        identity: Identity::Same,
                        status: Status::Success,
                        skip: Skip::NotOffered,
                        again: facts.again,
                        machine: Machine::Unmentioned,
                        interrupts: 0,
                        lapses: 0,
                    })
                });
                take.await.unwrap().unwrap().verdict
            });
        }
        let verdicts = senders.join_all().await;
        assert_eq!(
            verdicts
                .iter()
                .filter(|v| **v == Verdict::Keep(State::Built))
                .count(),
            1
        );
        assert_eq!(
            verdicts.iter().filter(|v| **v == Verdict::Repeat).count(),
            7
        );
        assert_eq!(store.attempts(id, None, 10).await.unwrap().len(), 1);
        assert!(
            store
                .take_result("none", result(""), Millis(7), |_| panic!("not asked"))
                .await
                .unwrap()
                .is_none()
        );
    });
}

#[test]
fn everything_is_there_after_a_restart() {
    on_both(async |place| {
        let store = place.open().await;
        let id = submit(&store, "a", 3).await;
        store
            .lease(&lease(id, "s", 100), Millis(4))
            .await
            .unwrap()
            .unwrap();
        let log = "größer\n".repeat(10_000);
        store
            .take_result("s", result(&log), Millis(7), |_| {
                Verdict::Keep(State::Built)
            })
            .await
            .unwrap();
        let before = store.build(id).await.unwrap();
        store.close().await;

        let store = place.open().await;
        assert_eq!(store.build(id).await.unwrap(), before);
        assert_eq!(
            store.logs(id, 1, Some("update")).await.unwrap()[0].text,
            LogText::Whole(log.clone())
        );
        assert_eq!(store.logs(id, 1, Some("test")).await.unwrap(), []);
        let excerpt = store.log_excerpts(id, 1).await.unwrap().remove(0);
        let tail = excerpt.tail.unwrap();
        assert!(log.starts_with(&excerpt.head) && log.ends_with(&tail));
        assert!(excerpt.head.len() + tail.len() < 40_000);
        assert_eq!(
            store.builds(&Filter::default(), 10).await.unwrap().0.len(),
            1
        );
        let next = submit(&store, "b", 9).await;
        assert_eq!(next, id + 1, "numbers go on");
        store.close().await;
    });
}

/// The migrations, in the order in which they came, each with what the version that brought it wrote, as SQL.
const MIGRATIONS: &[(&str, &[&str])] = &[
    (
        "0001_first.sql",
        &[
            "INSERT INTO submissions VALUES (1, 'a', '1', '{\"archive\":\"0\"}', 0)",
            "INSERT INTO builds (id, submission, package, version, configuration, target, repository, state, position, \
             again, queued, started, attempt, operations, session, lease_until, agent, machine) \
             VALUES (1, 1, 'a', '1', 'c', 't', '', 'building', 1, 0, 0, 5, 0, '[]', 'now', 100, 'host', 'm')",
            "INSERT INTO builds (id, submission, package, version, configuration, target, repository, state, position, \
             again, queued, started, finished, attempt, status, operations, session, agent, machine) \
             VALUES (2, 1, 'a', '1', 'd', 't', '', 'built', 2, 0, 0, 5, 9, 1, 'success', \
             '[{\"name\":\"update\",\"status\":\"success\",\"log_bytes\":3}]', 'done', 'host', 'm')",
            "INSERT INTO sessions (id, build, issued) VALUES ('before', 1, 1), ('now', 1, 5)",
            "INSERT INTO sessions (id, build, issued, attempt) VALUES ('done', 2, 5, 1)",
            "INSERT INTO attempts (build, number, status, operations, session, agent, machine, started, finished) \
             VALUES (2, 1, 'success', '[]', 'done', 'host', 'm', 5, 9)",
            "INSERT INTO logs VALUES (2, 1, 0, 'update', 'log')",
            "UPDATE counters SET value = 2",
        ],
    ),
    (
        "0002_interrupts.sql",
        &["UPDATE builds SET interrupts = 2 WHERE id = 1"],
    ),
    (
        "0003_leases.sql",
        &[
            "UPDATE builds SET lapses = 1, run = 1 WHERE id = 1",
            "UPDATE sessions SET number = 1, path = 'p', renews = 1 WHERE id = 'now'",
            "UPDATE counters SET value = 1 WHERE name = 'run'",
        ],
    ),
    (
        "0004_latest.sql",
        &["UPDATE sessions SET latest = 5000 WHERE id = 'now'"],
    ),
    (
        "0006_repository.sql",
        &[
            // Positions are what counts, whatever the clock has said.
            "INSERT INTO builds (id, submission, package, version, configuration, target, repository, state, position, \
             again, queued, attempt, operations) VALUES \
             (3, 1, 'a', '1', 'e', 't', '', 'queued', 9, 0, 1000, 1, '[]'), \
             (4, 1, 'a', '1', 'e', 't', '', 'queued', 5, 0, 500, 0, '[]'), \
             (5, 1, 'a', '1', 'e', 't', '', 'queued', 7, 0, 400, 0, '[]'), \
             (6, 1, 'a', '1', 'e', 't', '', 'queued', 8, 1, 600, 0, '[]')",
            "UPDATE counters SET value = 10 WHERE name IN ('build', 'queue')",
        ],
    ),
    (
        "0007_order.sql",
        &[
            "INSERT INTO builds (id, submission, package, version, configuration, target, repository, state, position, \
             again, queued, attempt, operations, class, priority, submitter, place) VALUES \
             (7, 1, 'a', '1', 'f', 't', '', 'queued', 6, 0, 700, 0, '[]', 'forced', 1, 'you', 4321)",
            "INSERT INTO turns (submitter, class, next) VALUES ('you', 'forced', 99)",
        ],
    ),
    (
        "0008_failures.sql",
        &["UPDATE builds SET failures = '[\"h\",\"h\"]' WHERE id = 7"],
    ),
    (
        "0009_packages.sql",
        &[
            "UPDATE builds SET package_configuration = 'network' WHERE id = 7",
            "UPDATE submissions SET excluded = '[{\"configuration\":\"x\",\"target\":\"t\",\"package_configuration\":\"default\",\"why\":\"w\"}]' WHERE id = 1",
        ],
    ),
    (
        "0011_objects.sql",
        &[
            "INSERT INTO objects (kind, sha256, place, bytes, stored) VALUES ('log', 'abc', 'logs/abc', 100000, 500)",
            "INSERT INTO logs (build, attempt, position, operation, log, tail, object, bytes) \
             VALUES (2, 1, 1, 'test', 'head', 'tail', 'abc', 100000)",
        ],
    ),
    (
        "0012_artifacts.sql",
        &[
            "INSERT INTO artifacts (build, run, kind, sha256, name, instance, bytes, uploaded) \
             VALUES (2, 9, 'bindist', 'def', 'a.tar', '', 5, 8)",
        ],
    ),
    (
        "0013_tokens.sql",
        &[
            "INSERT INTO tokens (name, id, hash, scopes, created, created_by) \
             VALUES ('nightly', 'xyz', 'h', 'submit', 1, 'token')",
        ],
    ),
    ("0014_lists.sql", &[]),
    (
        "0015_agents.sql",
        &[
            "INSERT INTO agents (name, drained, drained_because) VALUES ('host', 5, 'disks')",
            "INSERT INTO agent_keys (fingerprint, key, agent, added) VALUES ('f', 'k', 'host', 6)",
        ],
    ),
    (
        "0017_identity.sql",
        &["INSERT INTO identity (one, id) VALUES (1, 'this-one')"],
    ),
    ("0018_newer.sql", &[]),
    (
        "0020_reviewed.sql",
        &["UPDATE objects SET damaged = 7 WHERE sha256 = 'abc'"],
    ),
];

/// How many of them a version knew that has written this.
fn since(migration: &str) -> usize {
    let at = MIGRATIONS.iter().position(|(name, _)| *name == migration);
    at.unwrap() + 1
}

/// PostgreSQL alone has this one, and no counters from then on.
const SEQUENCES: (&str, &str) = ("0006_repository.sql", "0005_sequences.sql");

/// A store as a version left it that knew so many migrations.
async fn old_store(place: &Place, migrations: usize) {
    sqlx::any::install_default_drivers();
    let is_postgres = matches!(place, Place::Postgres(_));
    let mut connection = sqlx::AnyConnection::connect(&place.url()).await.unwrap();
    let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let old = tempfile::tempdir().unwrap();
    // Each version wrote what it knew.
    for (name, statements) in &MIGRATIONS[..migrations] {
        std::fs::copy(from.join(name), old.path().join(name)).unwrap();
        let has_sequences = is_postgres && *name == SEQUENCES.0;
        if has_sequences {
            let own = from.join("postgres").join(SEQUENCES.1);
            std::fs::copy(own, old.path().join(SEQUENCES.1)).unwrap();
        }
        let migrator = sqlx::migrate::Migrator::new(old.path().to_owned())
            .await
            .unwrap();
        migrator.run(&mut connection).await.unwrap();
        for statement in *statements {
            let counters = statement.starts_with("UPDATE counters");
            let statement = if has_sequences && counters {
                "SELECT CAST(setval('build_numbers', 11, false) + setval('queue_numbers', 11, false) AS BIGINT)"
            } else {
                statement
            };
            sqlx::query(statement)
                .execute(&mut connection)
                .await
                .unwrap();
        }
    }
    connection.close().await.unwrap();
}

/// What came with later versions, of a store that knew so many migrations.
async fn check_later(store: &Store, migrations: usize) {
    let has = |migration| migrations >= since(migration);
    if has("0007_order.sql") {
        let build = store.build(7).await.unwrap().unwrap();
        let order = (build.class, build.priority.number(), build.place);
        assert_eq!(order, (Class::Forced, 1, 4321));
        assert_eq!(build.submitter, "you");
        let failed = build.failures.by_host().get("h").copied();
        assert_eq!(failed, has("0008_failures.sql").then_some(2));
        let network = has("0009_packages.sql");
        assert_eq!(build.package_configuration == "network", network);
        let excluded = store.excluded(1).await.unwrap();
        assert_eq!(excluded.len(), usize::from(network));
        assert!(excluded.iter().all(|e| e.configuration == "x"));
    }
    let logs = store.logs(2, 1, None).await.unwrap();
    let kept = logs.get(1).map(|log| &log.text);
    let object = match kept {
        Some(LogText::Kept { object, .. }) => object.clone(),
        other => other.and(None),
    };
    let place = object.map(|object| object.place);
    let expected = has("0011_objects.sql").then(|| "logs/abc".to_owned());
    assert_eq!(place, expected);
    let whole = store.whole_object(Kind::Log, "abc").await.unwrap();
    let is_whole = has("0011_objects.sql") && !has("0020_reviewed.sql");
    assert_eq!(whole.is_some(), is_whole);
    let artifacts = store.artifacts(2, 9).await.unwrap();
    assert_eq!(artifacts.len(), usize::from(has("0012_artifacts.sql")));
    let token = store.token("xyz").await.unwrap();
    assert_eq!(token.is_some(), has("0013_tokens.sql"));
    let (standings, keys) = (store.standings().await, store.added_keys().await);
    let agents = usize::from(has("0015_agents.sql"));
    assert_eq!(
        (standings.unwrap().len(), keys.unwrap().len()),
        (agents, agents)
    );
    let identity = store.identity().await.unwrap();
    assert_eq!(identity == "this-one", has("0017_identity.sql"));
}

/// A new migration has its place here, with what is written by the version that brings it.
#[test]
fn all_migrations_are_tried() {
    let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut there: Vec<String> = std::fs::read_dir(from)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".sql"))
        .collect();
    there.sort_unstable();
    let tried: Vec<&str> = MIGRATIONS.iter().map(|(name, _)| *name).collect();
    assert_eq!(tried, there);
}

pub(crate) fn decided(facts: &bbot_controller::store::SessionFacts) -> Verdict {
    use bbot_controller::queue::outcome::{Facts, Identity, Machine, Proof, Skip, decide};
    decide(Facts {
        session: facts.state,
        proof: Proof::Good,
        identity: Identity::Same,
        status: Status::Success,
        skip: Skip::NotOffered,
        again: facts.again,
        machine: Machine::Unmentioned,
        interrupts: facts.build.interrupts,
        lapses: facts.build.lapses,
    })
}

/// Stores of all versions there were, with a task that is out: its result is still taken.
#[test]
fn an_older_store_is_brought_up_to_date() {
    let check = async |place: Place, migrations: usize| {
        old_store(&place, migrations).await;
        let store = place.open().await;
        let facts = store.session("now").await.unwrap().unwrap();
        let (run, interrupts, lapses) = (
            (migrations >= 3).then_some(1),
            if migrations >= 2 { 2 } else { 0 },
            u32::from(migrations >= 3),
        );
        assert_eq!((facts.agent.as_deref(), facts.run), (Some("host"), run));
        assert_eq!(facts.latest, (migrations >= 4).then_some(Millis(5000)));
        let found = store
            .requeue_lapsed(Millis(100), Millis(100))
            .await
            .unwrap();
        let found = &found[0].0;
        assert_eq!((found.interrupts, found.lapses), (interrupts, lapses));
        let result = result("log");
        let before = store
            .take_result("before", result.clone(), Millis(101), decided)
            .await;
        let before = verdict(before.unwrap());
        assert!(matches!(before, Some(Verdict::Drop(_))), "{before:?}");
        let now = store.take_result("now", result, Millis(101), decided).await;
        assert_eq!(verdict(now.unwrap()), Some(Verdict::Keep(State::Built)));
        let attempt = store.attempt(1, 1).await.unwrap().unwrap();
        assert_eq!(
            (attempt.agent.as_deref(), attempt.late),
            (Some("host"), true)
        );
        assert_eq!(attempt.started, Some(Millis(5)));
        // What was finished is as it was, and numbers go on.
        let done = store.attempt(2, 1).await.unwrap().unwrap();
        assert_eq!((done.finished, done.late), (Millis(9), false));
        assert_eq!(
            store.logs(2, 1, None).await.unwrap()[0].text,
            LogText::Whole("log".into())
        );
        let next = if migrations >= 5 { 11 } else { 3 };
        assert_eq!(submit(&store, "b", 9).await, next);
        let task = store
            .lease(&lease(next, "s3", 200), Millis(102))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(task.build.run, Some(run.unwrap_or(0) + 1));
        assert_eq!(task.build.position, next);
        if migrations >= 5 {
            // What waited is handed out in its old order, before what is new.
            let queued = store.first_queued(&[("e", "t")], 10).await.unwrap();
            let builds: Vec<i64> = queued[0].iter().map(|head| head.build).collect();
            assert_eq!(builds, [4, 5, 6, 3]);
            assert!(queued[0].iter().all(|head| head.place < task.build.place));
            let build = store.build(3).await.unwrap().unwrap();
            assert_eq!((build.class, build.again_place), (Class::Forced, None));
            let build = store.build(6).await.unwrap().unwrap();
            assert_eq!(build.again_place, Some((build.place, "token".to_owned())));
        }
        check_later(&store, migrations).await;
        store.close().await;
        // Once more finds nothing to do.
        place.open().await.close().await;
    };
    let runtime = runtime();
    let cluster = Cluster::start();
    for migrations in 1..=MIGRATIONS.len() {
        runtime.block_on(check(Place::file(), migrations));
        if let Some(cluster) = &cluster {
            runtime.block_on(check(Place::Postgres(cluster.database()), migrations));
        }
    }
}

#[test]
fn who_is_too_late_gets_the_next_of_the_same_configuration_when_that_will_do() {
    on_both(async |place| {
        let store = place.open().await;
        let (first, second) = (submit(&store, "a", 0).await, submit(&store, "a", 0).await);
        let first_of = |repository| {
            Instead::First(Waiting {
                configuration: "c",
                target: "t",
                repository,
            })
        };
        let got = async |instead, session| {
            let new = NewLease {
                instead,
                ..lease(first, session, 100)
            };
            let lease = store.lease(&new, Millis(0)).await.unwrap();
            lease.map(|l| l.build.id)
        };
        assert_eq!(got(first_of(None), "s1").await, Some(first));
        assert_eq!(got(Instead::None, "s2").await, None);
        assert_eq!(got(first_of(Some("x.org/other")), "s3").await, None);
        assert_eq!(got(first_of(Some("x.org/a")), "s4").await, Some(second));
        assert!(store.is_under_way(second, 2).await.unwrap());
        for (build, run) in [(first, 2), (second, 1), (77, 2)] {
            assert!(
                !store.is_under_way(build, run).await.unwrap(),
                "{build} {run}"
            );
        }
        assert_eq!(got(first_of(None), "s5").await, None);
        // Names are compared without regard to case, on both.
        let filter = |package: &str| Filter {
            package: Some(package.into()),
            ..Filter::default()
        };
        assert_eq!(store.builds(&filter("A"), 10).await.unwrap().0.len(), 2);
        assert_eq!(store.builds(&filter("a\0"), 10).await.unwrap().0.len(), 0);
        store.close().await;
    });
}

/// However many are looked for: the first of all.
#[test]
fn the_oldest_of_many_configurations() {
    on_both(async |place| {
        let store = place.open().await;
        let names: Vec<String> = (0..150).map(|n| format!("c{n}")).collect();
        let pairs: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "t")).collect();
        let plan = Plan::of(&pairs);
        let source = Source::Repository(Repository {
            url: "https://pkg.x.org/1/a".into(),
            kind: None,
            trust: vec![],
        });
        let new = NewSubmission {
            name: "p",
            version: "1",
            source: &source,
            asker: &asker("me"),
            priority: Priority::default(),
            particulars: &Particulars::default(),
            plan: &plan,
        };
        let Submitted {
            submission, builds, ..
        } = store.submit(new, Millis(5)).await.unwrap();
        // What is given back is what is there.
        let (all, next) = store.builds_of(submission.id, None, 150).await.unwrap();
        assert!(all == builds && next.is_none());
        let waiting = |n: usize, repository| Waiting {
            configuration: &names[n],
            target: "t",
            repository,
        };
        let none = Waiting {
            configuration: "none",
            target: "t",
            repository: None,
        };
        for (wanted, index, expected) in [
            (vec![], None, 0),
            (vec![none; 3], None, 0),
            (vec![waiting(7, None)], Some(0), 7),
            (vec![waiting(7, None), none, waiting(3, None)], Some(2), 3),
            (
                (10..150).rev().map(|n| waiting(n, None)).collect(),
                Some(139),
                10,
            ),
            (
                vec![none, waiting(9, Some("x.org/a")), waiting(20, None)],
                Some(1),
                9,
            ),
            (
                vec![waiting(9, Some("x.org/b")), waiting(20, Some("x.org/a"))],
                Some(1),
                20,
            ),
            (vec![waiting(9, Some("x\0"))], None, 0),
        ] {
            let found = store.first(&wanted).await.unwrap();
            assert_eq!(found.map(|o| o.index), index, "{wanted:?}");
            if let Some(found) = found {
                assert_eq!(found.build, builds[expected].id);
                assert_eq!(found.place, builds[expected].place);
            }
        }
        store.close().await;
    });
}
