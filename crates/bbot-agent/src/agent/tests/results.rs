//! Results: on disk, on their way, taken, refused.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_result_is_sent_until_it_is_taken() {
    let mut world = World::bootstrapped(&["--fake-build"]).await;
    let again = || Posted::Again("500 Internal Server Error".to_owned());
    world
        .controllers
        .posts
        .lock()
        .unwrap()
        .extend([again(), again()]);
    build(&mut world).await;
    assert_eq!((world.posted().len(), world.spool("results")), (1, 1));
    world.goes_on(60).await;
    assert_eq!(
        (
            world.posted().len(),
            world.spool("results"),
            world.spool("refused")
        ),
        (3, 0, 0)
    );
    let posted = world.posted();
    assert!(posted.iter().all(|p| *p == posted[0]));
}

#[tokio::test(start_paused = true)]
async fn a_result_survives_a_restart() {
    let mut world = World::bootstrapped(&["--fake-build"]).await;
    world
        .controllers
        .posts
        .lock()
        .unwrap()
        .push_back(Posted::Again("503".to_owned()));
    build(&mut world).await;
    assert_eq!(world.spool("results"), 1);
    world.restart(&[]).await;
    world.turn().await;
    assert_eq!((world.posted().len(), world.spool("results")), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_stranger_does_not_take_in_three_hours_is_kept() {
    let mut world = World::bootstrapped(&["--fake-build"]).await;
    let again = std::iter::repeat_with(|| Posted::Again("503".to_owned())).take(1000);
    world.controllers.posts.lock().unwrap().extend(again);
    build(&mut world).await;
    world.goes_on(2 * 60 * 60).await;
    assert_eq!((world.spool("results"), world.spool("refused")), (1, 0));
    world.goes_on(2 * 60 * 60).await;
    assert_eq!((world.spool("results"), world.spool("refused")), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_refused_result_is_kept_and_not_sent_again() {
    let mut world = World::bootstrapped(&["--fake-build"]).await;
    world
        .controllers
        .posts
        .lock()
        .unwrap()
        .push_back(Posted::Refused("400 Bad Request".to_owned()));
    build(&mut world).await;
    world.turn().await;
    assert_eq!(
        (
            world.posted().len(),
            world.spool("results"),
            world.spool("refused")
        ),
        (1, 0, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_too_large_is_cut_and_sent_again() {
    let mut world = World::bootstrapped(&[]).await;
    let log: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    let mut result = BuildResult::parse(RESULT.as_bytes(), "r").unwrap();
    result.operations[0].log = log;
    world.builds("manifest", result.serialize(Era::Y2017).unwrap().as_bytes());
    world
        .controllers
        .posts
        .lock()
        .unwrap()
        .extend([Posted::TooLarge, Posted::TooLarge]);
    build(&mut world).await;
    let lengths: Vec<usize> = world
        .controllers
        .results
        .lock()
        .unwrap()
        .iter()
        .map(|(_, b)| b.len())
        .collect();
    assert_eq!(lengths.len(), 3);
    assert!(
        lengths[1] <= lengths[0] / 2 && lengths[2] <= lengths[1] / 2,
        "{lengths:?}"
    );
    let last = world
        .posted()
        .pop()
        .unwrap()
        .result
        .operations
        .remove(0)
        .log;
    assert!(
        last.starts_with("line 0\n")
            && last.contains("bytes cut here")
            && last.ends_with("line 19999\n")
    );
    assert_eq!(world.spool("results"), 0);
}

#[tokio::test(start_paused = true)]
async fn one_that_never_fits_is_kept() {
    let mut world = World::bootstrapped(&["--fake-build"]).await;
    world
        .controllers
        .posts
        .lock()
        .unwrap()
        .extend([Posted::TooLarge]);
    build(&mut world).await;
    assert_eq!((world.posted().len(), world.spool("refused")), (1, 1));
}

/// One of our controllers gives a task.
fn ours_gives_a_task(world: &World) {
    let answer = TaskAnswer {
        kin: Kin::Ours,
        ..stranger(&task_for("linux"))
    };
    world
        .controllers
        .answers
        .lock()
        .unwrap()
        .push_back(Ok(answer));
}

async fn until_stopped(world: &mut World) {
    let stop = CancellationToken::new();
    let later = stop.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(65)).await;
        later.cancel();
    });
    world.until(&mut Signals::from(stop)).await;
}

fn assert_given_back(posted: &ResultRequest) {
    assert_eq!(posted.session, "s/1");
    let task = BuildResult::new("libfoo", "1.2", Status::Interrupt);
    assert_eq!(posted.result, task);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_stopped_gives_its_task_back() {
    let mut world = World::bootstrapped(&[]).await;
    world.plays(vec![get("manifest")]);
    ours_gives_a_task(&world);
    until_stopped(&mut world).await;
    assert!(world.fake.calls().contains(&Call::Drop(1)));
    world.is_clean().await;
    assert_eq!(world.posted().len(), 1);
    assert_given_back(&world.posted()[0]);
    assert_eq!((world.spool("held"), world.spool("results")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_cannot_be_given_back_now_is_at_the_next_start() {
    let mut world = World::bootstrapped(&[]).await;
    let again = || Posted::Unreachable("connection refused".to_owned());
    let posts = || world.controllers.posts.lock().unwrap();
    posts().extend(std::iter::repeat_with(again).take(100));
    world.plays(vec![get("manifest")]);
    ours_gives_a_task(&world);
    until_stopped(&mut world).await;
    assert_eq!((world.spool("held"), world.spool("results")), (0, 1));
    let before = world.posted().len();
    world.controllers.posts.lock().unwrap().clear();
    world.restart(&[]).await;
    world.turn().await;
    let posted = world.posted();
    assert_eq!((posted.len(), world.spool("results")), (before + 1, 0));
    assert_given_back(&posted[before]);
}

#[tokio::test(start_paused = true)]
async fn the_task_of_an_agent_that_was_killed_is_given_back_at_the_next_start() {
    let mut world = World::bootstrapped(&[]).await;
    world.plays(vec![get("manifest")]);
    ours_gives_a_task(&world);
    let killed = tokio::time::timeout(Duration::from_secs(65), world.turn()).await;
    assert!(killed.is_err());
    assert_eq!((world.posted().len(), world.spool("held")), (0, 1));
    world.restart(&[]).await;
    world.turn().await;
    assert_eq!((world.posted().len(), world.spool("held")), (1, 0));
    assert_given_back(&world.posted()[0]);
}

#[tokio::test(start_paused = true)]
async fn a_task_with_a_result_is_not_given_back() {
    let mut world = World::bootstrapped(&[]).await;
    ours_gives_a_task(&world);
    world.builds("manifest", RESULT.as_bytes());
    until_stopped(&mut world).await;
    assert_eq!((world.posted().len(), world.spool("held")), (1, 0));
    assert_eq!(world.posted()[0].result.status, Status::Success);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_cannot_be_kept_is_posted_or_its_task_given_back() {
    for (posted, held) in [(Posted::Taken, 0), (Posted::Again("503".to_owned()), 1)] {
        let mut world = World::bootstrapped(&[]).await;
        world.controllers.posts.lock().unwrap().push_back(posted);
        ours_gives_a_task(&world);
        world.builds("manifest", RESULT.as_bytes());
        let results = world.dir.path().join("state/default/results");
        fs::remove_dir(&results).unwrap();
        world.turn().await;
        let statuses: Vec<Status> = world.posted().iter().map(|p| p.result.status).collect();
        assert_eq!(
            (statuses, world.spool("held")),
            (vec![Status::Success], held)
        );

        world.restart(&[]).await;
        world.turn().await;
        assert_eq!((world.posted().len(), world.spool("held")), (1 + held, 0));
        if held > 0 {
            assert_given_back(&world.posted()[1]);
        }
    }
}

/// A controller of 2017 does not know `interrupt`, and must not wait for three hours.
#[tokio::test(start_paused = true)]
async fn a_controller_of_2017_hears_of_an_interrupted_task_in_its_own_words() {
    for is_killed in [false, true] {
        let mut world = World::bootstrapped(&[]).await;
        world.plays(vec![get("manifest")]);
        world.answer(&task_for("linux"));
        if is_killed {
            let killed = tokio::time::timeout(Duration::from_secs(65), world.turn()).await;
            assert!(killed.is_err());
            assert_eq!((world.posted().len(), world.spool("held")), (0, 1));
            world.restart(&[]).await;
            world.turn().await;
        } else {
            until_stopped(&mut world).await;
        }
        let posted = world.posted();
        assert_eq!((posted.len(), world.spool("held")), (1, 0));
        assert_eq!(
            (posted[0].session.as_str(), posted[0].result.status),
            ("s/1", Status::Abort)
        );
        let log = &posted[0].result.operations[0].log;
        assert!(
            log.contains("interrupted") && log.contains("tried again"),
            "{log}"
        );
        // Nothing that 2017 does not know.
        let body = world.controllers.results.lock().unwrap()[0].1.clone();
        assert_eq!(posted[0].serialize(Era::Y2017).unwrap(), body);
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_spool_takes_no_more_tasks_until_there_is_room() {
    let mut world = World::bootstrapped(&["--fake-build"]).await;
    let results = world.dir.path().join("state/default/results");
    fs::remove_dir(&results).unwrap();
    let again = std::iter::repeat_with(|| Posted::Again("503".to_owned())).take(1000);
    world.controllers.posts.lock().unwrap().extend(again);
    build(&mut world).await;
    assert_eq!(world.posted().len(), 1);
    world.controllers.requests.lock().unwrap().clear();
    world.answer(&task_for("linux"));
    world.goes_on(600).await;
    assert_eq!(world.controllers.requests.lock().unwrap().len(), 0);
    assert!(world.posted().len() > 3, "but what there is is sent");
    // The disk takes results again.
    fs::create_dir(&results).unwrap();
    world.controllers.posts.lock().unwrap().clear();
    world.goes_on(1200).await;
    assert!(!world.controllers.requests.lock().unwrap().is_empty());
    assert_eq!((world.spool("results"), world.spool("refused")), (0, 0));
}
