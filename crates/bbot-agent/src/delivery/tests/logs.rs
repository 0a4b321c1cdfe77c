//! Logs and results: which goes first, and what goes on.

use super::*;
use crate::controller::{Acknowledged, Channel, Renewed};
use crate::session;

impl World {
    fn session(&self) -> Session {
        self.handle().session(terms())
    }

    /// How long the logs of the posted results are said to be.
    fn lengths(&self) -> Vec<Option<u64>> {
        let results = self.link.results.lock().unwrap();
        results.iter().map(|seen| seen.log).collect()
    }
}

/// So many segments are not taken now.
fn again(world: &World, times: usize) {
    let again = || Acknowledged::Again("503".to_owned());
    let answers = std::iter::repeat_with(again).take(times);
    world.link.segments.lock().unwrap().extend(answers);
}

/// Nothing is heard of the controller.
fn away(world: &World) {
    const TIMES: usize = 100_000;
    let refused = || "connection refused".to_owned();
    let segments = std::iter::repeat_with(|| Acknowledged::Silence(refused()));
    world
        .link
        .segments
        .lock()
        .unwrap()
        .extend(segments.take(TIMES));
    let leases = std::iter::repeat_with(|| Renewed::Again(refused()));
    world.link.leases.lock().unwrap().extend(leases.take(TIMES));
}

fn terms() -> session::Terms {
    session::Terms {
        channel: Channel {
            url: parse_url("http://a.example/s/1").unwrap(),
            key: None,
        },
        renew: Some(Duration::from_secs(10)),
        name: "libfoo".to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_the_log_goes_before_the_result() {
    let world = World::new();
    world.link.segments.lock().unwrap().extend([
        Acknowledged::Again("503".to_owned()),
        Acknowledged::Again("503".to_owned()),
    ]);
    let session = world.handle().session(terms());
    session.push_log("update", b"one");
    session.push_log("update", b"two");
    let status = world.handle().status();
    assert_eq!((status.segments, status.bytes), (2, 20));
    let begin = Instant::now();
    world.add_for(A, "s/1", None, Some(session)).await.unwrap();
    assert_eq!(begin.elapsed(), Duration::ZERO, "the run does not wait");
    world.settle().await;
    assert_eq!(world.link.log.lock().unwrap().len(), 4);
    assert!(
        begin.elapsed() >= Duration::from_secs(2),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(
        (world.sessions(), world.files("logs")),
        (vec!["s/1".to_owned()], 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_not_taken_holds_up_the_result_for_minutes_and_goes_on_beside_it() {
    let world = World::new();
    again(&world, 50);
    let session = world.session();
    session.push_log("update", b"one");
    let begin = Instant::now();
    world.add_for(A, "s/1", None, Some(session)).await.unwrap();
    world.settle().await;
    assert_eq!(world.sessions(), ["s/1"]);
    let waited = begin.elapsed();
    assert!(waited >= patience::RESULT_WAITS, "{waited:?}");
    assert!(waited < patience::RESULT_WAITS * 2, "{waited:?}");
    // Its controller knows what it lacks, and gets it.
    assert_eq!(world.lengths(), [Some(1)]);
    assert_eq!((world.files("results"), world.files("logs")), (0, 1));
    assert_eq!(world.handle().status().segments, 1);
    seconds(3600).await;
    assert_eq!(world.link.log.lock().unwrap().len(), 51);
    assert_eq!((world.files("logs"), waits(&world)), (0, Status::default()));
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_refused_for_good_does_not_hold_up_the_result() {
    let world = World::new();
    let refused = Acknowledged::Refused("400 Bad Request".to_owned());
    world.link.segments.lock().unwrap().push_back(refused);
    let session = world.session();
    session.push_log("update", b"one");
    session.push_log("update", b"two");
    let begin = Instant::now();
    world.add_for(A, "s/1", None, Some(session)).await.unwrap();
    world.settle().await;
    assert_eq!(
        (world.sessions().len(), begin.elapsed()),
        (1, Duration::ZERO)
    );
    assert_eq!((world.lengths(), world.files("logs")), (vec![Some(2)], 0));
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_is_away_gets_the_log_and_then_the_result_whoever_sends_them() {
    let mut world = World::new();
    away(&world);
    let session = world.session();
    session.push_log("update", b"one");
    session.push_log("update", b"two");
    world.add_for(A, "s/1", None, Some(session)).await.unwrap();
    // Nobody else waits for it, and what is due then is told.
    world.add(B, "s/2").await;
    seconds(12 * 3600).await;
    assert_eq!(world.sessions(), ["s/2"]);
    let status = world.handle().status();
    assert_eq!(
        (status.waiting, status.segments, status.next_try),
        (1, 2, None)
    );
    // The agent ends, and the next one has all of it.
    world.restart();
    assert_eq!((world.files("results"), world.files("logs")), (1, 1));
    world.add(A, "s/3").await;
    seconds(12 * 3600).await;
    assert_eq!(
        world.sessions(),
        ["s/2", "s/3"],
        "a result without a log does not wait"
    );
    world.link.segments.lock().unwrap().clear();
    world.link.log.lock().unwrap().clear();
    // Heard of it is when a task is asked for.
    world.handle().reached(&url(A));
    world.settle().await;
    assert_eq!(world.sessions(), ["s/2", "s/3", "s/1"]);
    assert_eq!(world.lengths(), [None, None, Some(2)]);
    let log = world.link.log.lock().unwrap().clone();
    let text = |n: usize| log[n].2.as_str();
    assert_eq!(
        (log.len(), text(0), text(1)),
        (2, "update\none", "update\ntwo")
    );
    assert_eq!((world.files("results"), world.files("logs")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_log_does_not_hold_up_its_result_for_ever_whatever_happens() {
    let world = World::new();
    away(&world);
    let session = world.session();
    session.push_log("update", b"one");
    world.add_for(A, "s/1", None, Some(session)).await.unwrap();
    seconds(24 * 3600 - 1).await;
    assert_eq!(world.sessions(), Vec::<String>::new());
    seconds(2).await;
    assert_eq!((world.sessions().len(), world.files("logs")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_late_when_the_agent_ends_is_sent_by_the_next() {
    let mut world = World::new();
    again(&world, 1000);
    let session = world.session();
    session.push_log("update", b"one");
    world.add_for(A, "s/1", None, Some(session)).await.unwrap();
    world.settle().await;
    assert_eq!((world.files("results"), world.files("logs")), (0, 1));
    world.restart();
    assert_eq!(world.files("logs"), 1);
    world.link.segments.lock().unwrap().clear();
    seconds(60).await;
    assert_eq!((world.files("logs"), waits(&world)), (0, Status::default()));
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_renewed_until_the_result_is_taken() {
    let world = World::new();
    for _ in 0..6 {
        world.link.answer(A, busy());
    }
    let session = world.handle().session(terms());
    world.add_for(A, "s/1", None, Some(session)).await.unwrap();
    seconds(25).await;
    assert_eq!(world.files("results"), 1);
    assert_eq!(world.link.renewals.lock().unwrap().len(), 4);
    seconds(200).await;
    assert_eq!(world.files("results"), 0);
    let renewals = world.link.renewals.lock().unwrap().len();
    seconds(200).await;
    assert_eq!(world.link.renewals.lock().unwrap().len(), renewals);
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_a_dead_agents_log_goes_before_its_task_is_given_back() {
    let mut world = World::new();
    world.hold(A, "s/1").await;
    let session = world.handle().session(terms());
    session.push_log("update", b"one");
    again(&world, 1);
    world.restart();
    moment().await;
    assert_eq!(world.sessions(), Vec::<String>::new());
    // It counts for what waits, as if its agent still lived.
    let status = world.handle().status();
    assert_eq!(status.segments, 1);
    assert!(status.bytes >= "update\none".len() as u64, "{status:?}");
    world.settle().await;
    assert_eq!(world.handle().status().segments, 0);
    assert_eq!(world.link.log.lock().unwrap().len(), 2);
    assert_eq!(
        (world.sessions(), world.files("logs")),
        (vec!["s/1".to_owned()], 0)
    );
}
