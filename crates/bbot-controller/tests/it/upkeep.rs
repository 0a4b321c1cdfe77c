//! What is done beside requests: in small steps, so that whoever writes meanwhile is not held up.

use std::time::Duration;

use bbot_controller::clock::Millis;
use bbot_controller::objects::Objects;
use bbot_controller::store::Store;
use bbot_controller::upkeep::move_logs;
use sqlx::Connection as _;

use crate::store::{Place, asker, decided, lease, on_both, result, submit, verdict};

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

#[test]
fn old_sessions_go_once_their_raw_logs_are_gone() {
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
        // Their raw logs are there.
        store.prune_attempts(Millis(100)).await.unwrap();
        assert!(known("first").await && known("second").await);
        for (_, run) in &runs {
            store.forget_run(*run).await.unwrap();
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
