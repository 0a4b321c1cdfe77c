//! Controllers: who is asked, what is believed, what they are told.

use super::*;

fn asked(world: &World) -> Vec<String> {
    let mut requests = world.controllers.requests.lock().unwrap();
    requests.drain(..).map(|(url, _)| url).collect()
}

const BOTH: [&str; 2] = [
    "http://c1.example/?build-task",
    "http://c2.example/?build-task",
];

#[tokio::test(start_paused = true)]
async fn a_refused_task_leaves_nothing_behind() {
    let challenged = task_for("linux").replace(
        "result-url",
        &format!("challenge: {}\nresult-url", "a".repeat(64)),
    );
    for bad in [
        challenged,
        task_for("windows"),
        task_for("linux").replace("http://c1.example/?", "http://evil.example/?"),
        "rubbish".to_owned(),
        String::new(),
    ] {
        let mut world = World::bootstrapped(&[]).await;
        // The next controller is asked, and when that has nothing either: a pause.
        world.answer(&bad);
        assert_eq!(world.turn().await, Turn::Idle, "{bad}");
        assert_eq!(asked(&world), BOTH);
        // The one at fault is left alone for half a minute and more, by itself.
        let pause = world.pause().as_secs();
        assert!((15..=60).contains(&pause), "{pause} s");
        assert_eq!(world.posted().len(), 0);
        assert_eq!(calls(&world).len(), 2, "nothing but the bootstrap");

        // And the next good one is done as if nothing had been.
        world.builds("manifest", RESULT.as_bytes());
        world.answer(&task_for("linux"));
        while world.turn().await != Turn::Again {}
        assert_eq!(world.posted()[0].challenge, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_is_down_does_not_stop_the_others() {
    let mut world = World::bootstrapped(&[]).await;
    let down = || Err(LinkError::Transport("connection refused".to_owned()));
    let share = &world.controllers.share_script;
    share.store(true, std::sync::atomic::Ordering::Relaxed);
    world.controllers.answers.lock().unwrap().extend([
        down(),
        Ok(stranger(&task_for("linux").replace("c1.", "c2."))),
    ]);
    world.builds("manifest", RESULT.as_bytes());
    assert_eq!(world.turn().await, Turn::Again);
    assert_eq!(world.posted().len(), 1);
    world
        .controllers
        .answers
        .lock()
        .unwrap()
        .extend([down(), down()]);
    assert_eq!(world.turn().await, Turn::Idle);
}

#[tokio::test(start_paused = true)]
async fn equal_controllers_are_asked_in_any_order() {
    let mut world = World::bootstrapped(&[]).await;
    drop(asked(&world));
    world.restart(&["http://c3.example"]).await;
    let mut first = std::collections::BTreeSet::new();
    for _ in 0..64 {
        assert_eq!(world.turn().await, Turn::Idle);
        let asked = asked(&world);
        assert_eq!(asked.len(), 3, "{asked:?}");
        // The preferred one goes first; which of the others follows is chance.
        assert_eq!(asked[0], BOTH[0]);
        first.insert(asked[1].clone());
        if first.len() == 2 {
            return;
        }
    }
    panic!("always {first:?}");
}

#[tokio::test(start_paused = true)]
async fn a_challenge_is_answered_and_trust_replaced() {
    let mut world = World::bootstrapped(&["--trust", "CD", "--trust", "EF"]).await;
    let key = world.dir.path().join("key.pem");
    crate::auth::keygen_file(&key, 2048).unwrap();
    let signer = Signer::open(&key, None, &[]).await.unwrap();
    let challenge = "0123456789abcdef".repeat(4);
    let expected = signer
        .sign(&crate::auth::Challenge::new(&challenge).unwrap())
        .await
        .unwrap();
    let fingerprint = signer.fingerprint().to_owned();
    world.agent().context.keys = Keys::of_one(signer);

    let seen: Arc<std::sync::Mutex<String>> = Arc::default();
    let sees = Arc::clone(&seen);
    let tftp = world.dir.path().join("tftp/build/default");
    let look = move |_: &bbot_machine::machine::StartSpec| {
        let mut runs = names(&tftp);
        runs.retain(|name| name.starts_with("run-"));
        let run = runs.remove(0);
        *sees.lock().unwrap() = fs::read_to_string(tftp.join(run).join("get/manifest")).unwrap();
    };
    let steps = vec![
        Step::Do(bbot_machine::machine::fake::Action(Box::new(look))),
        get("manifest"),
        world.upload("manifest", RESULT.as_bytes()),
    ];
    world.plays(steps);
    world.answer(
        &task_for("linux").replace("result-url", &format!("challenge: {challenge}\nresult-url")),
    );
    assert_eq!(world.turn().await, Turn::Again);

    let request = world.controllers.requests.lock().unwrap()[0].1.clone();
    assert!(request.contains(&format!("fingerprint: {fingerprint}")));
    assert_eq!(world.posted()[0].challenge.as_ref(), Some(&expected));
    let task = bbot_manifest::Task::parse(seen.lock().unwrap().as_bytes(), "task").unwrap();
    assert_eq!(task.trust, ["CD", "EF"]);
    // In the words in which it came.
    assert!(
        seen.lock()
            .unwrap()
            .contains("repository: http://r.example/1")
    );
}

#[tokio::test(start_paused = true)]
async fn a_later_controller_gets_later_words() {
    let mut world = World::bootstrapped(&[]).await;
    world.builds(
        "manifest",
        format!("{RESULT}worker-checksum: w\n").as_bytes(),
    );
    world.answer(&task_for("linux").replace("repository:", "repository-url:"));
    world.turn().await;
    let posted = world.posted().remove(0);
    assert_eq!(posted.agent_checksum.as_deref(), Some(AGENT_CHECKSUM));
    assert_eq!(posted.result.worker_checksum.as_deref(), Some("w"));
}

fn none_of_ours() -> Result<TaskAnswer, LinkError> {
    Ok(TaskAnswer {
        kin: Kin::Ours,
        ..stranger(": 1\nsession:\n")
    })
}

#[tokio::test(start_paused = true)]
async fn the_only_controller_may_hold_a_request() {
    let mut world = World::bootstrapped(&["--fake-build"]).await;
    // Two controllers: the second must have its turn.
    let holds = |world: &World| -> Vec<Duration> {
        world.controllers.holds.lock().unwrap().drain(..).collect()
    };
    assert_eq!(holds(&world), [Duration::ZERO; 2]);
    world.restart_alone(&["--fake-build"]).await;
    let answers = || world.controllers.answers.lock().unwrap();
    answers().extend([none_of_ours(), none_of_ours(), none_of_ours()]);
    // Of one that is not known to be ours nothing is wanted.
    assert_eq!(world.turn().await, Turn::Idle);
    assert_eq!(world.pause(), IDLE_PAUSE_HELD);
    // A result that waits holds up nobody.
    let again = Posted::Again("503".to_owned());
    world.controllers.posts.lock().unwrap().push_back(again);
    assert_eq!(world.turn().await, Turn::Idle);
    assert_eq!(world.turn().await, Turn::Idle);
    assert_eq!(holds(&world), [Duration::ZERO, HOLD, HOLD]);
}

#[tokio::test(start_paused = true)]
async fn ours_are_asked_more_often() {
    let mut world = World::bootstrapped(&[]).await;
    let share = &world.controllers.share_script;
    share.store(true, std::sync::atomic::Ordering::Relaxed);
    let answers = |world: &World, second| {
        let mut answers = world.controllers.answers.lock().unwrap();
        answers.extend([none_of_ours(), second]);
    };
    answers(&world, none_of_ours());
    world.turn().await;
    assert_eq!(world.pause(), IDLE_PAUSE_OURS);
    // A stranger among them has a pause of its own.
    answers(&world, Ok(stranger(": 1\nsession:\n")));
    drop(asked(&world));
    world.turn().await;
    assert_eq!(asked(&world), BOTH);
    assert_eq!(world.pause(), IDLE_PAUSE_OURS);
    world
        .controllers
        .answers
        .lock()
        .unwrap()
        .push_back(none_of_ours());
    world.turn().await;
    assert_eq!(asked(&world), BOTH[..1]);
}

#[tokio::test(start_paused = true)]
async fn an_archive_of_the_tasks_controller_goes_to_the_worker() {
    let mut world = World::bootstrapped(&[]).await;
    let own = format!("http://c1.example/archives/{}.tar.gz", "0".repeat(64));
    let others = own.replace("c1.", "c3.");
    for (repository, fetched) in [(&own, true), (&others, false)] {
        world.builds("manifest", RESULT.as_bytes());
        world.answer(&task_for("linux").replace("http://r.example/1", repository));
        assert_eq!(world.turn().await, Turn::Again);
        let offered = format!("{:?}", world.fake.started().last().unwrap().tftp.root);
        assert_eq!(offered.contains("source.tar.gz"), fetched, "{repository}");
    }
    let archive = format!("{}.tar.gz", "0".repeat(64));
    let kept = names(&world.dir.path().join("state/sources"));
    assert_eq!(kept, [".lock".to_owned(), archive]);
}

#[tokio::test(start_paused = true)]
async fn a_dumped_task_for_an_unknown_machine_ends_the_agent() {
    let mut world = World::bootstrapped(&["--dump-task"]).await;
    assert_eq!(world.turn().await, Turn::Idle);
    world.answer(&task_for("windows"));
    assert_eq!(world.turn().await, Turn::Ended);
    world.restart(&["--dump-task"]).await;
    world.answer(&task_for("linux"));
    assert_eq!(world.turn().await, Turn::Ended);
    assert_eq!(world.fake.started().len(), 1, "nothing but the bootstrap");
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_never_answers_does_not_keep_the_others_waiting() {
    let mut world = World::bootstrapped(&[]).await;
    *world.controllers.answer_after.lock().unwrap() = Duration::from_secs(250);
    world.answer(&task_for("linux"));
    world
        .goes_on_until(|agent| {
            agent
                .asks
                .values()
                .any(|ask| ask.controller.contains("c1."))
        })
        .await;
    world.controllers.requests.lock().unwrap().clear();
    world.goes_on(32).await;
    let asked = world.controllers.requests.lock().unwrap().clone();
    assert!(
        asked.iter().any(|(url, _)| url.contains("c2.")),
        "{asked:?}"
    );
}
