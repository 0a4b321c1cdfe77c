//! The store over a real SQLite file: nothing handed out twice, nothing lost over a restart.

use bbot_controller::clock::Millis;
use bbot_controller::queue::outcome::Verdict;
use bbot_controller::queue::{Rebuild, State};
use bbot_controller::source::{Repository, Source};
use bbot_controller::store::{
    Filter, NewLease, NewOperation, NewResult, NewSubmission, Store, Taken,
};
use bbot_manifest::Status;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

async fn open(dir: &tempfile::TempDir) -> Store {
    Store::open(&dir.path().join("s.sqlite")).await.unwrap()
}

async fn submit(store: &Store, name: &str, now: i64) -> i64 {
    let source = Source::Repository(Repository {
        url: "https://pkg.x.org/1/a".into(),
        kind: None,
        trust: vec![],
    });
    let configurations = [("c".to_owned(), "t".to_owned())];
    let new = NewSubmission {
        name,
        version: "1",
        source: &source,
        configurations: &configurations,
    };
    store.submit(new, Millis(now)).await.unwrap().1[0].id
}

fn lease<'a>(build: i64, session: &'a str, until: i64) -> NewLease<'a> {
    NewLease {
        build,
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
    }
}

fn verdict(taken: Option<Taken>) -> Option<Verdict> {
    taken.map(|t| t.verdict)
}

fn result(log: &str) -> NewResult {
    let operation = NewOperation {
        name: "update".into(),
        status: Status::Success,
        log: log.into(),
    };
    NewResult {
        status: Status::Success,
        operations: vec![operation],
    }
}

#[test]
fn no_task_is_handed_out_twice() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = open(&dir).await;
        const BUILDS: usize = 40;
        for n in 0..BUILDS {
            submit(&store, &format!("p{n}"), 0).await;
        }
        let mut agents = tokio::task::JoinSet::new();
        for agent in 0..8 {
            let store = store.clone();
            agents.spawn(async move {
                let mut got = Vec::new();
                while let Some((_, build)) = store.oldest_queued("c", "t", None).await.unwrap() {
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
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = open(&dir).await;
        let (first, second) = (submit(&store, "a", 0).await, submit(&store, "b", 0).await);
        assert_eq!(
            store
                .oldest_queued("c", "t", Some("x.org/a"))
                .await
                .unwrap()
                .unwrap()
                .1,
            first
        );
        assert_eq!(
            store
                .oldest_queued("c", "t", Some("x.org/b"))
                .await
                .unwrap(),
            None
        );
        assert_eq!(store.oldest_queued("d", "t", None).await.unwrap(), None);
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
            store
                .oldest_queued("c", "t", None)
                .await
                .unwrap()
                .unwrap()
                .1,
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
        assert_eq!(
            store
                .oldest_queued("c", "t", None)
                .await
                .unwrap()
                .unwrap()
                .1,
            first
        );
        let build = store.build(first).await.unwrap().unwrap();
        assert_eq!(
            (build.state, build.session.as_deref()),
            (State::Queued, Some("s1"))
        );
        // Asked for again while its late result may still come: remembered.
        assert_eq!(
            store.rebuild(first, Some("why"), Millis(5)).await.unwrap(),
            Some(Rebuild::AlreadyQueued)
        );
        assert!(store.build(first).await.unwrap().unwrap().again);
        assert_eq!(store.rebuild(77, None, Millis(5)).await.unwrap(), None);
    });
}

#[test]
fn the_same_result_from_many_sides_is_kept_once() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = open(&dir).await;
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
                use bbot_controller::queue::outcome::{Facts, Identity, Proof, decide};
                let result = result("log");
                let take = store.take_result("s", &result, Millis(7), |facts| {
                    decide(Facts {
                        session: facts.state,
                        proof: Proof::Good,
                        identity: Identity::Same,
                        status: Status::Success,
                        again: facts.again,
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
        assert_eq!(store.attempts(id, 10).await.unwrap().len(), 1);
        assert!(
            store
                .take_result("none", &result(""), Millis(7), |_| panic!("not asked"))
                .await
                .unwrap()
                .is_none()
        );
    });
}

#[test]
fn everything_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = open(&dir).await;
        let id = submit(&store, "a", 3).await;
        store
            .lease(&lease(id, "s", 100), Millis(4))
            .await
            .unwrap()
            .unwrap();
        let log = "größer\n".repeat(10_000);
        store
            .take_result("s", &result(&log), Millis(7), |_| {
                Verdict::Keep(State::Built)
            })
            .await
            .unwrap();
        let before = store.build(id).await.unwrap();
        store.close().await;

        let store = open(&dir).await;
        assert_eq!(store.build(id).await.unwrap(), before);
        assert_eq!(
            store.logs(id, 1, Some("update")).await.unwrap()[0].text,
            log
        );
        assert_eq!(store.logs(id, 1, Some("test")).await.unwrap(), []);
        let excerpt = store.log_excerpts(id, 1, 7, 7).await.unwrap().remove(0);
        assert_eq!(
            (excerpt.head.as_str(), excerpt.tail.as_deref()),
            ("größer\n", Some("größer\n"))
        );
        let whole = store
            .log_excerpts(id, 1, 60_000, 60_000)
            .await
            .unwrap()
            .remove(0);
        assert_eq!((whole.head, whole.tail), (log, None));
        assert_eq!(store.builds(&Filter::default(), 10).await.unwrap().len(), 1);
        let next = submit(&store, "b", 9).await;
        assert_eq!(next, id + 1, "numbers go on");
    });
}

/// A store of the version before leases were renewed, with a task that is out: its result is still taken.
#[test]
fn an_older_store_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let old = dir.path().join("migrations");
    std::fs::create_dir(&old).unwrap();
    for name in ["0001_first.sql", "0002_interrupts.sql"] {
        let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
        std::fs::copy(from.join(name), old.join(name)).unwrap();
    }
    runtime().block_on(async {
        let url = format!("sqlite://{}?mode=rwc", dir.path().join("s.sqlite").display());
        sqlx::any::install_default_drivers();
        let pool = sqlx::AnyPool::connect(&url).await.unwrap();
        let migrations = sqlx::migrate::Migrator::new(old).await.unwrap();
        migrations.run(&pool).await.unwrap();
        for statement in [
            "INSERT INTO submissions VALUES (1, 'a', '1', '{\"archive\":\"0\"}', 0)",
            "INSERT INTO builds (id, submission, package, version, configuration, target, repository, state, position, \
             again, queued, started, attempt, operations, session, lease_until, agent, machine, interrupts) \
             VALUES (1, 1, 'a', '1', 'c', 't', '', 'building', 1, 0, 0, 5, 0, '[]', 'now', 100, 'host', 'm', 2)",
            "INSERT INTO sessions (id, build, issued) VALUES ('before', 1, 1), ('now', 1, 5)",
            "UPDATE counters SET value = 1",
        ] {
            sqlx::query(statement).execute(&pool).await.unwrap();
        }
        pool.close().await;

        let store = open(&dir).await;
        let facts = store.session("now").await.unwrap().unwrap();
        assert_eq!((facts.agent.as_deref(), facts.run), (Some("host"), None));
        let lapsed = store.requeue_lapsed(Millis(100), Millis(100)).await.unwrap();
        assert_eq!((lapsed.len(), lapsed[0].0.interrupts), (1, 2));
        let decide = |facts: &bbot_controller::store::SessionFacts| {
            use bbot_controller::queue::outcome::{Facts, Identity, Proof, decide};
            decide(Facts {
                session: facts.state,
                proof: Proof::Good,
                identity: Identity::Same,
                status: Status::Success,
                again: facts.again,
                interrupts: facts.build.interrupts,
                lapses: facts.build.lapses,
            })
        };
        let result = result("log");
        let before = verdict(store.take_result("before", &result, Millis(101), decide).await.unwrap());
        assert!(matches!(before, Some(Verdict::Drop(_))), "{before:?}");
        let now = verdict(store.take_result("now", &result, Millis(101), decide).await.unwrap());
        assert_eq!(now, Some(Verdict::Keep(State::Built)));
        let attempt = store.attempt(1, 1).await.unwrap().unwrap();
        assert_eq!((attempt.agent.as_deref(), attempt.late), (Some("host"), true));
        assert_eq!(attempt.started, Some(Millis(5)));
        store.close().await;
    });
}
