//! Old submissions go as a whole, and what is still wanted of them stays.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bbot_controller::clock::{ManualClock, Millis};
use bbot_controller::store::Store;
use sqlx::Connection as _;

use crate::cluster::Cluster;
use crate::sessions::{OURS, Task, until};
use crate::store::{Place, asker, decided, lease, on_both, result, runtime, submit, verdict};
use crate::support::{self, Controller, START};

/// How many rows there are in each table of what comes with a submission.
async fn rows(url: &str) -> Vec<i64> {
    let mut connection = sqlx::AnyConnection::connect(url).await.unwrap();
    let mut rows = Vec::new();
    for table in [
        "submissions",
        "builds",
        "attempts",
        "logs",
        "artifacts",
        "sessions",
    ] {
        let count = format!("SELECT COUNT(*) FROM {table}");
        let count = sqlx::query_scalar(sqlx::AssertSqlSafe(count));
        rows.push(count.fetch_one(&mut connection).await.unwrap());
    }
    connection.close().await.unwrap();
    rows
}

/// A build of this package, built at this time.
async fn built(store: &Store, package: &str, at: i64) -> i64 {
    let build = submit(store, package, at).await;
    build_again(store, build, at).await;
    build
}

async fn build_again(store: &Store, build: i64, at: i64) {
    let session = format!("{build}-{at}");
    let leased = store
        .lease(&lease(build, &session, at + 100), Millis(at))
        .await;
    assert!(leased.unwrap().is_some());
    let taken = store
        .take_result(&session, result("log"), Millis(at), decided)
        .await;
    assert!(verdict(taken.unwrap()).is_some());
}

async fn with_artifact(place: &Place, build: i64) {
    let mut connection = sqlx::AnyConnection::connect(&place.url()).await.unwrap();
    let artifact = "INSERT INTO artifacts (build, run, kind, sha256, name, instance, bytes, uploaded) \
        VALUES ($1, 1, 'bindist', 'a', 'n', 'i', 1, 1)";
    let insert = sqlx::query(artifact).bind(build);
    insert.execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[test]
fn what_is_done_old_and_not_the_newest_goes() {
    on_both(async |place| {
        let store = place.open().await;
        let prune = async |before| store.prune_submissions(Millis(before)).await.unwrap();
        let first = built(&store, "a", 10).await;
        with_artifact(&place, first).await;
        // Nothing is newer.
        assert_eq!(prune(1000).await, 0);
        // Nor is what has no result yet.
        let second = submit(&store, "a", 20).await;
        assert_eq!(prune(1000).await, 0);
        build_again(&store, second, 30).await;
        let other = built(&store, "b", 10).await;
        assert_eq!(rows(&place.url()).await, [3, 3, 3, 3, 1, 3]);
        // It was done at that time.
        assert_eq!(prune(10).await, 0);
        // Somebody wants it again: it is not done, and then not so old.
        store
            .rebuild(first, &asker("me"), None, Millis(40))
            .await
            .unwrap();
        assert_eq!(prune(1000).await, 0);
        build_again(&store, first, 50).await;
        assert_eq!(prune(50).await, 0);
        assert_eq!(rows(&place.url()).await, [3, 3, 4, 4, 1, 4]);

        assert_eq!(prune(51).await, 1);
        assert!(store.build(first).await.unwrap().is_none());
        assert_eq!(rows(&place.url()).await, [2, 2, 2, 2, 0, 2]);
        // Its sessions are those of nobody.
        let late = store
            .take_result("1-10", result("log"), Millis(60), decided)
            .await;
        assert!(late.unwrap().is_none());
        assert_eq!(prune(1000).await, 0);
        let known = store
            .known_builds(&[first, second, other, 99])
            .await
            .unwrap();
        assert_eq!(known, [second, other].into());

        // One that was cancelled is not rebuilt by itself, and takes nobody's place.
        let third = submit(&store, "a", 70).await;
        let cancelled = store.cancel(third, None, Duration::from_millis(1), Millis(80));
        cancelled.await.unwrap();
        assert_eq!(prune(1000).await, 0);
        built(&store, "a", 90).await;
        assert_eq!(prune(80).await, 1, "the second");
        assert_eq!(prune(81).await, 1, "the third");
        assert_eq!(rows(&place.url()).await, [2, 2, 2, 2, 0, 2]);
        store.close().await;
    });
}

/// In steps: others write in between, and what somebody asks for again meanwhile stays.
#[test]
fn a_large_submission_goes_in_steps() {
    const BUILDS: i64 = 600;
    on_both(async |place| {
        let store = place.open().await;
        built(&store, "a", 1).await;
        let mut connection = sqlx::AnyConnection::connect(&place.url()).await.unwrap();
        let mut all = connection.begin().await.unwrap();
        for n in 1..BUILDS {
            let build = "INSERT INTO builds (id, submission, package, version, configuration, target, repository, state, position, \
                again, queued, finished, attempt, operations) \
                VALUES ($1, 1, 'a', '1', 'd', 't', '', 'cancelled', $1, 0, 0, 5, 0, '[]')";
            let insert = sqlx::query(build).bind(1000 + n);
            insert.execute(&mut *all).await.unwrap();
        }
        all.commit().await.unwrap();
        built(&store, "a", 2).await;
        let mut seen = Vec::new();
        let looks = async {
            loop {
                submit(&store, "other", 100).await;
                let count = sqlx::query_scalar("SELECT COUNT(*) FROM builds WHERE submission = 1");
                let count: i64 = count.fetch_one(&mut connection).await.unwrap();
                seen.push(count);
            }
        };
        tokio::select! {
            removed = store.prune_submissions(Millis(50)) => assert_eq!(removed.unwrap(), 1),
            () = looks => {}
        }
        assert!(seen.iter().any(|n| (1..BUILDS).contains(n)), "{seen:?}");
        assert!(store.submission(1).await.unwrap().is_none());
        tokio::time::timeout(Duration::from_secs(10), store.close())
            .await
            .unwrap();
    });
}

#[test]
fn its_raw_logs_and_its_archive_go_too() {
    everything_goes(None);
    if let Some(cluster) = Cluster::start() {
        everything_goes(Some(&cluster.database()));
    }
}

fn everything_goes(database: Option<&str>) {
    let dir = tempfile::tempdir().unwrap();
    let day = 24 * 3600;
    let start = |clock: Option<&Arc<ManualClock>>, days: Option<u64>| {
        Controller::start(dir.path(), |c| {
            c.database = database.map(str::to_owned);
            c.keep_submissions = days.map(|days| Duration::from_secs(days * 24 * 3600));
            if let Some(clock) = clock {
                c.clock = Arc::<ManualClock>::clone(clock);
            }
        })
    };
    let (clock, old, new);
    {
        let controller = start(None, None);
        clock = Arc::clone(&controller.clock);
        let build = |name: &str, version: &str| {
            let id = controller.submit(name, version).remove(0);
            let task = Task::take(&controller);
            assert_eq!(task.log(1, b"update\nx\n").status, 204);
            let text = support::result(&task.session, name, version, "success");
            assert_eq!(controller.agent("/?build-result", OURS, &text).status, 200);
            id
        };
        (old, new) = (build("foo", "1"), build("foo", "2"));
    }
    let written = UNIX_EPOCH + Duration::from_millis(START.0.unsigned_abs());
    let runs = |id: &str| dir.path().join("runs").join(id);
    for id in [&old, &new] {
        for file in std::fs::read_dir(runs(id)).unwrap() {
            let file = std::fs::File::options()
                .write(true)
                .open(file.unwrap().path());
            file.unwrap().set_modified(written).unwrap();
        }
    }
    clock.advance_seconds(10 * day);
    let status =
        |controller: &Controller, id: &str| controller.get(&format!("/api/v1/builds/{id}")).status;
    for (keep, expected) in [(None, 200), (Some(11), 200), (Some(9), 404)] {
        let controller = start(Some(&clock), keep);
        until("what is old is removed", || {
            status(&controller, &old) == expected
        });
        until("raw logs are removed", || {
            runs(&old).exists() == (expected == 200)
        });
        assert_eq!(status(&controller, &new), 200);
        assert!(runs(&new).exists());
        let of_old = controller.get("/api/v1/submissions/1").status;
        assert_eq!(of_old, expected);
    }
    let url = database.map_or_else(|| file_of(dir.path()), str::to_owned);
    let rows = runtime().block_on(rows(&url));
    assert_eq!(rows[..3], [1, 1, 1]);
}

fn file_of(data: &Path) -> String {
    format!("sqlite://{}", data.join("controller.sqlite").display())
}
