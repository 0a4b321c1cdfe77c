//! Controllers: who is asked, what is believed, what they are told.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_refused_task_leaves_nothing_behind() {
    let mut world = World::bootstrapped(&[]).await;
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
        // The next controller is asked, and when that has nothing either: a pause.
        world.answer(&bad);
        assert_eq!(world.agent.turn().await.unwrap(), Turn::Idle, "{bad}");
        assert_eq!(world.agent.pause(), IDLE_PAUSE);
        let asked: Vec<String> = world
            .controllers
            .requests
            .lock()
            .unwrap()
            .drain(..)
            .map(|(url, _)| url)
            .collect();
        assert_eq!(
            asked,
            [
                "http://c1.example/?build-task",
                "http://c2.example/?build-task"
            ]
        );
    }
    assert_eq!(world.posted().len(), 0);
    assert_eq!(calls(&world).len(), 2, "nothing but the bootstrap");

    // And the next good one is done as if nothing had been.
    world.builds("manifest", RESULT.as_bytes());
    assert_eq!(build(&mut world).await, Turn::Again);
    assert_eq!(world.posted()[0].challenge, None);
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_is_down_does_not_stop_the_others() {
    let mut world = World::bootstrapped(&[]).await;
    let down = || Err(LinkError::Transport("connection refused".to_owned()));
    world.controllers.answers.lock().unwrap().extend([
        down(),
        Ok(stranger(&task_for("linux").replace("c1.", "c2."))),
    ]);
    world.builds("manifest", RESULT.as_bytes());
    assert_eq!(world.agent.turn().await.unwrap(), Turn::Again);
    assert_eq!(world.posted().len(), 1);
    world
        .controllers
        .answers
        .lock()
        .unwrap()
        .extend([down(), down()]);
    assert_eq!(world.agent.turn().await.unwrap(), Turn::Idle);
}

#[tokio::test(start_paused = true)]
async fn controllers_take_turns() {
    let mut world = World::bootstrapped(&["--fake-build"]).await;
    build(&mut world).await;
    world.controllers.requests.lock().unwrap().clear();
    world.agent.turn().await.unwrap();
    let asked: Vec<String> = world
        .controllers
        .requests
        .lock()
        .unwrap()
        .drain(..)
        .map(|(url, _)| url)
        .collect();
    assert_eq!(
        asked,
        [
            "http://c2.example/?build-task",
            "http://c1.example/?build-task"
        ]
    );
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
    world.agent.signer = Some(signer);

    let seen: Arc<std::sync::Mutex<String>> = Arc::default();
    let sees = Arc::clone(&seen);
    let tftp = world.dir.path().join("tftp/build/default");
    let look = move |_: &bbot_machine::machine::StartSpec| {
        let run = names(&tftp).remove(0);
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
    assert_eq!(world.agent.turn().await.unwrap(), Turn::Again);

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
    world.agent.turn().await.unwrap();
    let posted = world.posted().remove(0);
    assert_eq!(posted.agent_checksum.as_deref(), Some(AGENT_CHECKSUM));
    assert_eq!(posted.result.worker_checksum.as_deref(), Some("w"));
}

#[tokio::test(start_paused = true)]
async fn the_only_controller_may_hold_a_request() {
    let mut world = World::bootstrapped(&["--fake-build"]).await;
    // Two controllers: the second must have its turn.
    assert_eq!(
        world
            .controllers
            .holds
            .lock()
            .unwrap()
            .drain(..)
            .collect::<Vec<_>>(),
        [Duration::ZERO; 2]
    );
    world.agent.controllers.truncate(1);
    let none = || {
        Ok(TaskAnswer {
            kin: Kin::Ours,
            ..stranger(": 1\nsession:\n")
        })
    };
    world.controllers.answers.lock().unwrap().push_back(none());
    world.agent.turn().await.unwrap();
    assert_eq!(world.agent.pause(), IDLE_PAUSE_HELD);
    // A result that waits must have its turn too.
    world
        .controllers
        .posts
        .lock()
        .unwrap()
        .push_back(Posted::Again("503".to_owned()));
    build(&mut world).await;
    world.controllers.answers.lock().unwrap().push_back(none());
    world.agent.turn().await.unwrap();
    assert_eq!(
        *world.controllers.holds.lock().unwrap(),
        [HOLD, HOLD, Duration::ZERO]
    );
}

#[tokio::test(start_paused = true)]
async fn ours_are_asked_more_often() {
    let mut world = World::bootstrapped(&[]).await;
    let none = || {
        Ok(TaskAnswer {
            kin: Kin::Ours,
            ..stranger(": 1\nsession:\n")
        })
    };
    world
        .controllers
        .answers
        .lock()
        .unwrap()
        .extend([none(), none()]);
    world.agent.turn().await.unwrap();
    assert_eq!(world.agent.pause(), IDLE_PAUSE_OURS);
    world
        .controllers
        .answers
        .lock()
        .unwrap()
        .extend([none(), Ok(stranger(": 1\nsession:\n"))]);
    world.agent.turn().await.unwrap();
    assert_eq!(world.agent.pause(), IDLE_PAUSE);
}

#[tokio::test(start_paused = true)]
async fn an_archive_of_the_tasks_controller_goes_to_the_worker() {
    let mut world = World::bootstrapped(&[]).await;
    let own = format!("http://c1.example/archives/{}.tar.gz", "0".repeat(64));
    let others = own.replace("c1.", "c3.");
    for (repository, fetched) in [(&own, true), (&others, false)] {
        world.agent.first = 0;
        world.builds("manifest", RESULT.as_bytes());
        world.answer(&task_for("linux").replace("http://r.example/1", repository));
        assert_eq!(world.agent.turn().await.unwrap(), Turn::Again);
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
    assert_eq!(world.agent.turn().await.unwrap(), Turn::Idle);
    world.answer(&task_for("windows"));
    assert_eq!(world.agent.turn().await.unwrap(), Turn::Ended);
    world.answer(&task_for("linux"));
    assert_eq!(world.agent.turn().await.unwrap(), Turn::Ended);
    assert_eq!(world.fake.started().len(), 1, "nothing but the bootstrap");
}
