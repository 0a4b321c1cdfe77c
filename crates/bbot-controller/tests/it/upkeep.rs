//! What is done beside requests: in small steps, so that whoever writes meanwhile is not held up.

use std::path::Path;
use std::time::Duration;

use bbot_controller::clock::Millis;
use bbot_controller::objects::Objects;
use bbot_controller::store::Store;
use bbot_controller::upkeep::move_logs;
use sqlx::Connection as _;

use crate::cluster::Cluster;
use crate::sessions::{OURS, Task, until};
use crate::store::{Place, asker, decided, lease, on_both, result, runtime, submit, verdict};
use crate::support::{self, Controller, START};

/// A store with a build that has so many results, each with one log of before there were objects.
async fn with_results(place: &Place, results: i64) -> (Store, i64) {
    let store = place.open().await;
    let build = submit(&store, "a", 0).await;
    let mut connection = sqlx::AnyConnection::connect(&place.url()).await.unwrap();
    let mut all = connection.begin().await.unwrap();
    for number in 1..=results {
        let attempt = "INSERT INTO attempts (build, number, status, operations, session, finished) \
            VALUES ($1, $2, 'success', '[]', '', $2)";
        let log = "INSERT INTO logs (build, attempt, position, operation, log) \
            VALUES ($1, $2, 0, 'update', 'log')";
        for statement in [attempt, log] {
            let query = sqlx::query(statement).bind(build).bind(number);
            query.execute(&mut *all).await.unwrap();
        }
    }
    let built = "UPDATE builds SET state = 'built', attempt = $2 WHERE id = $1";
    let query = sqlx::query(built).bind(build).bind(results);
    query.execute(&mut *all).await.unwrap();
    all.commit().await.unwrap();
    connection.close().await.unwrap();
    (store, build)
}

/// The numbers that this query gives while something is done, each behind a write of somebody else.
async fn seen_while(
    place: &Place,
    store: &Store,
    query: &str,
    done: impl Future<Output = ()>,
) -> Vec<i64> {
    let mut connection = sqlx::AnyConnection::connect(&place.url()).await.unwrap();
    let mut seen = Vec::new();
    let looks = async {
        loop {
            submit(store, "other", 0).await;
            let number = sqlx::query_scalar(sqlx::AssertSqlSafe(query.to_owned()));
            seen.push(number.fetch_one(&mut connection).await.unwrap());
        }
    };
    tokio::select! {
        () = done => {}
        () = looks => {}
    }
    seen
}

#[test]
fn others_write_between_the_steps() {
    on_both(async |place| {
        const RESULTS: i64 = 600;
        let (store, build) = with_results(&place, RESULTS).await;
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::in_directory(dir.path()).unwrap();

        let left = "SELECT COUNT(*) FROM logs WHERE bytes IS NULL";
        let moves = async {
            assert_eq!(move_logs(&store, &objects).await.unwrap(), 0);
        };
        let seen = seen_while(&place, &store, left, moves).await;
        assert!(seen.iter().any(|n| (1..RESULTS).contains(n)), "{seen:?}");

        let left = "SELECT COUNT(*) FROM attempts";
        let prunes = async {
            let removed = store.prune_attempts(Millis(500)).await.unwrap();
            assert_eq!(removed, 499);
        };
        let seen = seen_while(&place, &store, left, prunes).await;
        assert!(seen.iter().any(|n| (102..RESULTS).contains(n)), "{seen:?}");
        // What is left is whole, and the last result stays however old it is.
        assert!(store.logs(build, 499, None).await.unwrap().is_empty());
        assert_eq!(store.logs(build, 500, None).await.unwrap().len(), 1);
        assert_eq!(store.prune_attempts(Millis(i64::MAX)).await.unwrap(), 100);
        assert_eq!(store.attempts(build, None, 10).await.unwrap().len(), 1);
        tokio::time::timeout(Duration::from_secs(10), store.close())
            .await
            .unwrap();
    });
}

/// Where several controllers share the store only their files say which raw logs there are.
#[test]
fn old_sessions_go_once_a_controllers_own_raw_logs_are_gone() {
    on_both(async |place| {
        let store = place.open().await;
        let build = submit(&store, "a", 0).await;
        let mut runs = Vec::new();
        for (number, session) in [(1, "first"), (2, "second")] {
            let leased = store
                .lease(&lease(build, session, i64::MAX), Millis(number))
                .await
                .unwrap();
            assert!(leased.is_some());
            let taken = store
                .take_result(session, result("log"), Millis(number), decided)
                .await
                .unwrap();
            assert!(verdict(taken).is_some());
            store
                .rebuild(build, &asker("me"), None, Millis(number))
                .await
                .unwrap();
            runs = store.old_runs(Millis(100), 10).await.unwrap();
        }
        assert_eq!(runs.len(), 2);
        let known = async |session| store.session(session).await.unwrap().is_some();
        if !store.is_shared() {
            // Their raw logs are there.
            store.prune_attempts(Millis(100)).await.unwrap();
            assert!(known("first").await && known("second").await);
            for (_, run) in &runs {
                store.forget_run(*run).await.unwrap();
            }
        }
        store.prune_attempts(Millis(2)).await.unwrap();
        assert!(!known("first").await && known("second").await);
        // One that is under way stays, however old.
        store
            .lease(&lease(build, "third", i64::MAX), Millis(3))
            .await
            .unwrap();
        store.prune_attempts(Millis(100)).await.unwrap();
        assert!(!known("second").await && known("third").await);
        store.close().await;
    });
}

/// Starts without end, each after a controller has run for a while, keep no task with an agent that is gone; the time in which none ran does
/// not count, and is given once, whoever starts.
#[test]
fn leases_last_longer_by_the_time_without_a_controller() {
    on_both(async |place| {
        let store = place.open().await;
        let build = submit(&store, "a", 0).await;
        let seconds = |n: i64| Millis(n * 1000);
        let restart = async |store: &Store, at| {
            let held = store.restart_leases(seconds(at), Duration::from_secs(60));
            held.await.unwrap()
        };
        restart(&store, 0).await;
        let leased = store.lease(&lease(build, "s1", 60_000), seconds(0)).await;
        assert!(leased.unwrap().is_some());
        for round in 1..=6 {
            store.beat(seconds(round * 10 - 5)).await.unwrap();
            assert_eq!(restart(&store, round * 10).await, 0);
        }
        assert_eq!(store.next_lapse().await.unwrap(), Some(seconds(60)));
        let lapsed = store.requeue_lapsed(seconds(60), seconds(60)).await;
        assert_eq!(lapsed.unwrap().len(), 1);

        // While nothing is built nobody says anything.
        store.beat(seconds(90)).await.unwrap();
        let leased = store
            .lease(&lease(build, "s2", 160_000), seconds(100))
            .await;
        assert!(leased.unwrap().is_some());
        store.beat(seconds(110)).await.unwrap();
        let other = if store.is_shared() {
            place.open().await
        } else {
            store.clone()
        };
        assert_eq!(restart(&store, 1000).await, 1);
        assert_eq!(restart(&other, 1000).await, 0);
        assert_eq!(store.next_lapse().await.unwrap(), Some(seconds(1045)));
        store.close().await;
    });
}

#[test]
fn old_logs_go_and_the_last_result_stays() {
    old_logs_go(None);
    if let Some(cluster) = Cluster::start() {
        old_logs_go(Some(&cluster.database()));
    }
}

fn old_logs_go(database: Option<&str>) {
    let dir = tempfile::tempdir().unwrap();
    let day = 24 * 3600;
    let runs = |id: &str| dir.path().join("runs").join(id);
    let logs = |id: &str| std::fs::read_dir(runs(id)).map_or(0, Iterator::count);
    let clock;
    let id;
    let path;
    {
        let controller =
            Controller::start(dir.path(), |c| c.database = database.map(str::to_owned));
        clock = std::sync::Arc::clone(&controller.clock);
        id = controller.submit("foo", "1").remove(0);
        path = format!("/api/v1/builds/{id}/log");
        for status in ["error", "success"] {
            let task = Task::take(&controller);
            assert_eq!(task.log(1, b"update\nx\n").status, 204);
            let text = support::result(&task.session, "foo", "1", status)
                + "update-status: warning\nupdate-log: kept\n";
            assert_eq!(controller.agent("/?build-result", OURS, &text).status, 200);
            controller.send("POST", &format!("/api/v1/builds/{id}/rebuild"), b"");
        }
        // Under way, however long ago it began.
        let task = Task::take(&controller);
        assert_eq!(task.log(1, b"update\nunder way\n").status, 204);
        assert_eq!(logs(&id), 3);
    }
    // The files are as old as the test's clock says.
    let written = std::time::UNIX_EPOCH + Duration::from_millis(START.0.unsigned_abs());
    for file in std::fs::read_dir(runs(&id)).unwrap() {
        let file = std::fs::File::options()
            .write(true)
            .open(file.unwrap().path());
        file.unwrap().set_modified(written).unwrap();
    }
    clock.advance_seconds(10 * day);
    // Nothing is removed when nothing is to be.
    for (keep, left, attempts) in [(None, 3, 2), (Some(11), 3, 2), (Some(9), 1, 1)] {
        let shared = std::sync::Arc::clone(&clock);
        let controller = Controller::start(dir.path(), |c| {
            c.database = database.map(str::to_owned);
            c.clock = shared;
            c.keep_logs = keep.map(|days: u64| Duration::from_secs(days * 24 * 3600));
        });
        until("old logs are removed", || logs(&id) == left);
        until("old results are removed", || {
            controller.build(&id)["attempts"].as_array().unwrap().len() == attempts
        });
        // Each has a session with its secrets.
        until("old sessions are removed", || {
            sessions(dir.path(), database) == left
        });
        assert_eq!(controller.get(&format!("{path}/update")).text(), "kept\n");
        assert_eq!(
            controller.get(&format!("{path}?attempt=3")).text(),
            "==== update ====\nunder way\n"
        );
        let first = controller.get(&format!("{path}?attempt=1"));
        assert_eq!(first.status, if attempts == 2 { 200 } else { 404 });
    }
}

/// How many sessions a store has.
fn sessions(data: &Path, database: Option<&str>) -> usize {
    sqlx::any::install_default_drivers();
    let file = format!("sqlite://{}", data.join("controller.sqlite").display());
    let url = database.unwrap_or(&file);
    let count: i64 = runtime().block_on(async {
        let mut connection = sqlx::AnyConnection::connect(url).await.unwrap();
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM sessions");
        let count = count.fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        count
    });
    usize::try_from(count).unwrap()
}
