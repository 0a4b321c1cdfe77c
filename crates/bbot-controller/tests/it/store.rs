//! The store over a real SQLite file: nothing handed out twice, nothing lost over a restart.

use std::time::Duration;

use bbot_controller::clock::Millis;
use bbot_controller::package::Particulars;
use bbot_controller::package::plan::Plan;
use bbot_controller::queue::lane::Lane;
use bbot_controller::queue::lease::Tries;
use bbot_controller::queue::order::Priority;
use bbot_controller::queue::outcome::Verdict;
use bbot_controller::queue::{Rebuild, State};
use bbot_controller::source::{Repository, Source};
use bbot_controller::store::{
    Asker, Filter, InLane, Instead, LaneOf, LogText, NewLease, NewOperation, NewResult,
    NewSubmission, Store, Submitted, Taken, Waiting,
};
use bbot_manifest::Status;
use sqlx::Connection as _;

use crate::cluster::Cluster;

pub(crate) fn runtime() -> tokio::runtime::Runtime {
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
    submit_as(store, "me", name, now).await
}

/// The same, by somebody.
pub(crate) async fn submit_as(store: &Store, who: &str, name: &str, now: i64) -> i64 {
    submit_planned(store, who, name, now, (None, Lane::default())).await
}

/// The same, interactive.
pub(crate) async fn submit_interactive(store: &Store, name: &str, now: i64) -> i64 {
    let lane = Lane {
        interactive: true,
        ..Lane::default()
    };
    submit_planned(store, "me", name, now, (Some("error"), lane)).await
}

async fn submit_planned(
    store: &Store,
    who: &str,
    name: &str,
    now: i64,
    (breakpoint, lane): (Option<&str>, Lane),
) -> i64 {
    let source = Source::Repository(Repository {
        url: "https://pkg.x.org/1/a".into(),
        kind: None,
        trust: vec![],
    });
    let mut plan = Plan::of(&[("c", "t")]);
    plan.builds[0].lane = lane;
    let new = NewSubmission {
        name,
        version: "1",
        source: &source,
        asker: &asker(who),
        priority: Priority::default(),
        particulars: &Particulars::default(),
        service: None,
        breakpoint,
        plan: &plan,
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
        auxiliaries: &[],
        login: None,
        toolchain_name: "default",
        toolchain_version: "0.7.0",
        makings: None,
        signing: None,
    }
}

/// A configuration in the plain lane.
pub(crate) fn plain<'a>(configuration: &'a str, target: &'a str) -> InLane<'a> {
    InLane {
        configuration,
        target,
        lane: "",
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
        lane: "",
        repository,
    };
    let found = store.first(&[waiting]).await.unwrap();
    found.map(|first| (first.place, first.build))
}

pub(crate) fn verdict(taken: Option<Taken>) -> Option<Verdict> {
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
        log_last: None,
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
                        tries: Tries::of(&facts.build.lane),
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

pub(crate) fn decided(facts: &bbot_controller::store::SessionFacts) -> Verdict {
    use bbot_controller::queue::outcome::{Facts, Identity, Machine, Proof, Skip, decide};
    decide(Facts {
        session: facts.state,
        proof: Proof::Good,
        identity: Identity::Same,
        status: Status::Success,
        skip: Skip::NotOffered,
        again: facts.again,
        tries: Tries::of(&facts.build.lane),
        machine: Machine::Unmentioned,
        interrupts: facts.build.interrupts,
        lapses: facts.build.lapses,
    })
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
                lane: "",
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
            service: None,
            breakpoint: None,
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
            lane: "",
            repository,
        };
        let none = Waiting {
            configuration: "none",
            target: "t",
            lane: "",
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
            assert_eq!(found.as_ref().map(|o| o.index), index, "{wanted:?}");
            if let Some(found) = found {
                assert_eq!(found.build, builds[expected].id);
                assert_eq!(found.place, builds[expected].place);
            }
        }
        store.close().await;
    });
}

/// Each lane that something waits in once, in pages, whatever waits in it; what has left the queue is not among them.
#[test]
fn lanes_that_something_waits_in() {
    on_both(async |place| {
        let store = place.open().await;
        let mut connection = sqlx::AnyConnection::connect(&place.url()).await.unwrap();
        let mut write = async |text: String| {
            let query = sqlx::query(sqlx::AssertSqlSafe(text));
            query.execute(&mut connection).await.unwrap();
        };
        write("INSERT INTO submissions (id, name, version, source, submitted) VALUES (1, 'p', '1', '', 0)".into()).await;
        for (id, lane) in (1..).zip(["", "a", "b", "b", "a", ""]) {
            let configuration = if id % 2 == 0 { "c" } else { "d" };
            write(format!(
                "INSERT INTO builds (id, submission, package, version, configuration, target, repository, state, position, \
                 again, queued, attempt, operations, lane) \
                 VALUES ({id}, 1, 'p', '1', '{configuration}', 't', '', 'queued', {id}, 0, 0, 0, '[]', '{lane}')"
            ))
            .await;
        }
        let of = |lane: &str, name: &str| (lane.to_owned(), name.to_owned(), "t".to_owned());
        let all = [of("a", "c"), of("a", "d"), of("b", "c"), of("b", "d")];
        let start = LaneOf::default();
        assert_eq!(store.lanes(&start, 9).await.unwrap(), all);
        assert_eq!(store.lanes(&start, 3).await.unwrap(), all[..3]);
        assert_eq!(store.lanes(&all[2], 9).await.unwrap(), all[3..]);
        assert_eq!(store.lanes(&of("a", ""), 9).await.unwrap(), all);
        assert!(store.is_waited_in("b").await.unwrap());
        write("UPDATE builds SET state = 'building' WHERE lane = 'b'".into()).await;
        assert_eq!(store.lanes(&start, 9).await.unwrap(), all[..2]);
        assert!(!store.is_waited_in("b").await.unwrap());
        assert!(!store.is_waited_in("").await.unwrap());
        store.close().await;
    });
}
