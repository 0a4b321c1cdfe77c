//! Stores of older versions, of each that there was: they are brought up to date with what is in them.

use std::time::Duration;

use bbot_controller::clock::Millis;
use bbot_controller::objects::Kind;
use bbot_controller::queue::State;
use bbot_controller::queue::order::Class;
use bbot_controller::queue::outcome::Verdict;
use bbot_controller::store::{LogText, Store};
use sqlx::Connection as _;

use crate::cluster::Cluster;
use crate::store::{Place, decided, lease, plain, result, runtime, submit, verdict};

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
        "0016_signed.sql",
        &[
            "UPDATE sessions SET renewal = 3, agent_key = 'a', \
             secret = '0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f' WHERE id = 'now'",
            "INSERT INTO signing_keys (fingerprint, since) VALUES ('f', 6)",
        ],
    ),
    (
        "0017_identity.sql",
        &["INSERT INTO identity (one, id) VALUES (1, 'this-one')"],
    ),
    ("0018_newer.sql", &[]),
    (
        "0019_lanes.sql",
        &[
            "UPDATE builds SET lane = '{\"interactive\":true}', breakpoint = 'error' WHERE id = 7",
            "UPDATE submissions SET service = '{\"type\":\"ci\",\"id\":\"17\"}' WHERE id = 1",
            "UPDATE attempts SET auxiliaries = '[{\"name\":\"pg\",\"machine\":\"x\"}]' WHERE build = 2",
        ],
    ),
    (
        "0020_reviewed.sql",
        &["UPDATE objects SET damaged = 7 WHERE sha256 = 'abc'"],
    ),
    ("0021_alive.sql", &["UPDATE alive SET seen = 90"]),
    (
        "0022_late_logs.sql",
        &["UPDATE sessions SET log_last = 12, log_until = 99 WHERE id = 'done'"],
    ),
    ("0023_by_repository.sql", &[]),
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
        let lanes = has("0019_lanes.sql");
        assert_eq!(build.lane.interactive, lanes);
        assert_eq!(build.breakpoint.is_some(), lanes);
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
    let lanes = has("0019_lanes.sql");
    let submission = store.submission(1).await.unwrap().unwrap();
    assert_eq!(submission.service.is_some(), lanes);
    let attempt = store.attempt(2, 1).await.unwrap().unwrap();
    assert_eq!(attempt.auxiliaries.len(), usize::from(lanes));
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
    let end = store.session("done").await.unwrap().unwrap().log_end;
    let last = end.map(|end| (end.last, end.until.0));
    assert_eq!(last, has("0022_late_logs.sql").then_some((12, 99)));
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
        // Whoever did not say when it was seen may have been away for long.
        let held = store.restart_leases(Millis(90), Duration::from_millis(10));
        let is_seen = migrations >= since("0021_alive.sql");
        let renews = migrations >= since("0003_leases.sql");
        assert_eq!(held.await.unwrap(), usize::from(renews && !is_seen));
        let signed = migrations >= since("0016_signed.sql");
        let (key, renewal) = (facts.key.is_some(), facts.renewal);
        assert_eq!((key, renewal), (signed, if signed { 3 } else { 0 }));
        assert_eq!(store.key_signs("f").await.unwrap(), signed);
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
            let queued = store.first_queued(&[plain("e", "t")], 10).await.unwrap();
            let builds: Vec<i64> = queued[0].iter().map(|head| head.build).collect();
            assert_eq!(builds, [4, 5, 6, 3]);
            assert!(queued[0].iter().all(|head| head.place < task.build.place));
            let build = store.build(3).await.unwrap().unwrap();
            assert!(build.lane.is_plain() && build.auxiliaries.is_empty());
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
