//! Draining, stopping, reading the configuration again; suspended machines.

use tokio::sync::oneshot;

use super::*;
use crate::control::{Control, Signal, Signals};
use crate::resources::{Facts, Use};
use crate::status::{Command, Mode};
use crate::supervisor::Action;

fn ours() -> TaskAnswer {
    TaskAnswer {
        kin: Kin::Ours,
        ..stranger(&task_for("linux"))
    }
}

fn builds_for(world: &mut World, seconds: u64) {
    let Step::Now(done) = world.upload("manifest", RESULT.as_bytes()) else {
        unreachable!("an upload happens at once")
    };
    world.plays(vec![get("manifest"), after(seconds, done)]);
}

fn give(world: &World, answer: TaskAnswer) {
    let mut script = world.controllers.answers.lock().unwrap();
    script.push_back(Ok(answer));
}

/// The agent runs, and hears these signals so many seconds after the task has come.
async fn ended_by(world: &mut World, told: &[(u64, Signal)]) -> u64 {
    let (control, mut signals) = Control::new();
    let told = told.to_vec();
    let controllers = Arc::clone(&world.controllers);
    tokio::spawn(async move {
        while controllers.given.lock().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let begin = Instant::now();
        for (seconds, signal) in told {
            tokio::time::sleep_until(begin + Duration::from_secs(seconds)).await;
            control.send(signal);
        }
        std::future::pending::<()>().await;
    });
    world.until(&mut signals).await;
    world.took()
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_a_task_finish() {
    let mut world = World::bootstrapped(&["--drain-timeout", "100"]).await;
    builds_for(&mut world, 50);
    give(&world, ours());
    give(&world, ours());
    assert_eq!(ended_by(&mut world, &[(10, Signal::Drain)]).await, 50);
    assert_eq!(world.posted().len(), 1);
    assert_eq!(world.posted()[0].result.status, Status::Success);
    assert_eq!((world.spool("held"), world.spool("results")), (0, 0));
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_takes_too_long_gives_the_task_back() {
    let mut world = World::bootstrapped(&["--drain-timeout", "100"]).await;
    builds_for(&mut world, 500);
    give(&world, ours());
    assert_eq!(ended_by(&mut world, &[(10, Signal::Drain)]).await, 110);
    assert_eq!(world.posted()[0].result.status, Status::Interrupt);
    assert_eq!((world.spool("held"), world.spool("results")), (0, 0));
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_ends_a_drain_at_once() {
    let mut world = World::bootstrapped(&["--drain-timeout", "100"]).await;
    builds_for(&mut world, 500);
    give(&world, ours());
    let told = [(10, Signal::Drain), (20, Signal::Stop)];
    assert_eq!(ended_by(&mut world, &told).await, 20);
    assert_eq!(world.posted()[0].result.status, Status::Interrupt);
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_the_build_and_adds_a_machine_and_a_controller() {
    let mut world = World::new(&["--instance-max", "1"]);
    let file = world.dir.path().join("agent.conf");
    let path = |name: &str| world.dir.path().join(name).display().to_string();
    let text = |more: &str| {
        format!(
            "machines {}\ntftp {}\nstate {}\nnetwork none\ncontroller 0001=http://c1.example\n{more}",
            path("machines"),
            path("tftp"),
            path("state")
        )
    };
    let (first, second) = (text(""), text("controller http://c2.example\n"));
    fs::write(&file, first).unwrap();
    let arguments = ["--warm=off".into(), "--config".into(), file.clone().into()];
    let arguments = std::iter::once("bbot-agent".into()).chain(arguments);
    world.agent().configuration = Configuration::read(arguments).unwrap();
    world.boots();
    assert_eq!(world.turn().await, Turn::Idle);
    world.agent().reload().await;
    let urls = |world: &mut World| -> Vec<String> {
        let view = world.agent().supervisor.view();
        view.controllers.into_iter().map(|c| c.url).collect()
    };
    assert_eq!(urls(&mut world), ["http://c1.example/?build-task"]);

    builds_for(&mut world, 500);
    give(&world, ours());
    world.goes_on_until(|agent| agent.runs.len() == 1).await;
    world.add_machine("windows", "windows-1.1");
    fs::write(&file, second).unwrap();
    world.agent().reload().await;
    assert_eq!(urls(&mut world).len(), 2);
    assert_eq!(world.agent().runs.len(), 1, "the build goes on");
    // What cannot be read changes nothing.
    fs::write(&file, "instance-max none\n").unwrap();
    world.agent().reload().await;
    assert_eq!(urls(&mut world).len(), 2);
    world.boots();
    world
        .goes_on_until(|agent| agent.seen.counters.bootstraps == 2)
        .await;
    assert_eq!(world.posted()[0].result.status, Status::Success);
    assert!(world.machine("windows").join("windows-default").exists());
    world.controllers.requests.lock().unwrap().clear();
    world.goes_on(70).await;
    let requests = world.controllers.requests.lock().unwrap().clone();
    assert!(requests.iter().any(|(url, _)| url.contains("c2.example")));
    let last = TaskRequest::parse(requests.last().unwrap().1.as_bytes(), "request").unwrap();
    assert_eq!(last.machines.len(), 2);
}

/// A build that ends abnormally, whose machine is suspended then.
async fn suspend_one(world: &mut World) {
    world.builds("manifest", b"rubbish");
    let posted = world.posted().len();
    world.answer(&task_for("linux"));
    while world.turn().await != Turn::Again {}
    assert_eq!(
        world.posted().len(),
        posted + 1,
        "the result is sent at once"
    );
}

fn ids(world: &mut World) -> Vec<String> {
    let list = world.agent().suspended.list();
    list.map(|entry| entry.id.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn suspended_machines_are_bounded_in_number_and_time() {
    let mut world = World::bootstrapped(&["--suspend-timeout", "1000"]).await;
    for expected in [&["s1"][..], &["s1", "s2"], &["s2", "s3"]] {
        suspend_one(&mut world).await;
        world
            .goes_on_until(|agent| agent.suspended.list().count() <= 2)
            .await;
        assert_eq!(ids(&mut world), expected);
    }
    // And the agent goes on building beside them.
    world.builds("manifest", RESULT.as_bytes());
    world.answer(&task_for("linux"));
    while world.turn().await != Turn::Again {}
    assert_eq!(world.posted()[3].result.status, Status::Success);
    world.goes_on(1001).await;
    assert_eq!(ids(&mut world), Vec::<String>::new());
    assert_eq!(world.agent().seen.counters.suspensions, 3);
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn the_memory_of_a_suspended_machine_goes_to_a_task_that_needs_it() {
    let args = ["--ram", "1000000", "--host-ram", "1500000"];
    let mut world = World::bootstrapped(&args).await;
    suspend_one(&mut world).await;
    assert_eq!(ids(&mut world), ["s1"]);
    builds_for(&mut world, 30);
    world.answer(&task_for("linux"));
    world.goes_on_until(|agent| agent.runs.len() == 1).await;
    world.goes_on(1).await;
    assert_eq!(ids(&mut world), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_person_lets_a_suspended_machine_go_on_and_ends_it() {
    let mut world = World::bootstrapped(&[]).await;
    suspend_one(&mut world).await;
    let attach = |id: &str, reply| Command::Attach {
        id: id.to_owned(),
        reply,
    };
    let (reply, answer) = oneshot::channel();
    world.agent().command(attach("s1", reply));
    assert!(answer.await.unwrap().unwrap().info.contains("linux"));
    let (reply, answer) = oneshot::channel();
    world.agent().command(attach("s7", reply));
    assert!(answer.await.unwrap().unwrap_err().contains("s7"));

    let (reply, answer) = oneshot::channel();
    let id = "linux".to_owned();
    let resume = Command::SuspendedResume { id, reply };
    world.agent().command(resume);
    world.goes_on(1).await;
    answer.await.unwrap().unwrap();
    assert!(calls(&world).contains(&Call::Resume(1)));
    assert!(world.agent().suspended.list().all(|entry| entry.resumed));

    let (reply, answer) = oneshot::channel();
    let id = "s1".to_owned();
    let kill = Command::SuspendedKill { id, reply };
    world.agent().command(kill);
    answer.await.unwrap().unwrap();
    world.suspensions_end().await;
    assert!(calls(&world).contains(&Call::ForceDown(1)));
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_person_drains_the_agent_and_lets_it_work_again() {
    let mut world = World::bootstrapped(&[]).await;
    builds_for(&mut world, 50);
    give(&world, ours());
    world.goes_on_until(|agent| agent.runs.len() == 1).await;
    let (reply, answer) = oneshot::channel();
    let within = Some(Duration::from_secs(20));
    world.agent().command(Command::Drain { within, reply });
    answer.await.unwrap().unwrap();
    let mode = |world: &mut World| {
        let view = world.agent().supervisor.view();
        world.agent().status(&view).mode
    };
    assert!(matches!(
        mode(&mut world),
        Mode::Draining { until: Some(_) }
    ));
    give(&world, ours());
    world.goes_on(1000).await;
    // Interrupted when its time was over, and nothing new was asked for.
    assert_eq!(world.posted().len(), 1);
    assert_eq!(world.posted()[0].result.status, Status::Interrupt);
    assert_eq!(world.controllers.answers.lock().unwrap().len(), 1);
    // Its controllers were told, once a minute; no machine was offered, and a restart knows it.
    let told = world.controllers.drained.lock().unwrap().clone();
    assert!(!told.is_empty());
    assert!(
        told.iter().all(|(_, body)| !body.contains("summary:")),
        "{told:?}"
    );
    assert!(world.agent().was_drained());
    let (reply, answer) = oneshot::channel();
    world.agent().command(Command::Resume { reply });
    answer.await.unwrap().unwrap();
    assert_eq!(mode(&mut world), Mode::Running);
    assert!(!world.agent().was_drained());
    world.builds("manifest", RESULT.as_bytes());
    while world.turn().await != Turn::Again {}
    assert_eq!(world.posted()[1].result.status, Status::Success);
}

/// The request that is on its way may bring one more: it is not kept.
#[tokio::test(start_paused = true)]
async fn a_task_that_comes_after_a_persons_drain_is_given_back_at_once() {
    let mut world = World::bootstrapped(&[]).await;
    *world.controllers.answer_after.lock().unwrap() = Duration::from_secs(5);
    give(&world, ours());
    world
        .goes_on_until(|agent| {
            agent
                .asks
                .values()
                .any(|ask| ask.controller.contains("c1."))
        })
        .await;
    let (reply, answer) = oneshot::channel();
    let within = None;
    world.agent().command(Command::Drain { within, reply });
    answer.await.unwrap().unwrap();
    world.goes_on(6).await;
    assert_eq!(world.posted().len(), 1);
    assert_eq!(world.posted()[0].result.status, Status::Interrupt);
    assert_eq!(world.agent().runs.len(), 0);
    assert_eq!(world.agent().seen.counters.given_back, 1);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_runs_out_takes_no_task_and_gives_the_newest_back() {
    let mut world = World::bootstrapped(&["--instance-max", "3"]).await;
    for _ in 0..2 {
        builds_for(&mut world, 500);
        give(&world, ours());
    }
    world.goes_on_until(|agent| agent.runs.len() == 2).await;
    // Until the others have said that they have none.
    world.goes_on(1).await;
    let memory = |mib: u64| Facts {
        memory_available: Some(mib << 20),
        ..Facts::default()
    };
    let low = |world: &mut World| {
        let view = world.agent().supervisor.view();
        let resources = world.agent().status(&view).resources;
        !resources.reasons.is_empty()
    };
    // Little: what runs goes on, and a third is not asked for.
    world.agent().measured(memory(128));
    assert!(low(&mut world));
    world.controllers.requests.lock().unwrap().clear();
    world.goes_on(200).await;
    assert_eq!(world.agent().runs.len(), 2);
    // Too little: the newest goes, and its task is given back.
    let newest = *world.agent().runs.keys().next_back().unwrap();
    world.agent().measured(memory(16));
    world.goes_on(10).await;
    let left: Vec<_> = world.agent().runs.keys().copied().collect();
    assert_eq!(left.len(), 1);
    assert!(left[0] < newest);
    let statuses = |world: &World| -> Vec<Status> {
        let posted = world.posted().into_iter();
        posted.map(|posted| posted.result.status).collect()
    };
    assert_eq!(statuses(&world), [Status::Interrupt]);
    assert_eq!(world.controllers.requests.lock().unwrap().len(), 0);
    // Enough: the other has gone on, and there is asking again.
    world.agent().measured(memory(4096));
    assert!(!low(&mut world));
    world.goes_on(500).await;
    assert_eq!(statuses(&world), [Status::Interrupt, Status::Success]);
    assert!(!world.controllers.requests.lock().unwrap().is_empty());
}

/// Each measurement gives another figure.
#[tokio::test(start_paused = true)]
async fn a_shortage_is_told_once_whatever_is_measured() {
    let mut world = World::bootstrapped(&[]).await;
    let agent = world.agent();
    let mut told = Vec::new();
    let mut measures = |facts: Facts| {
        agent.measured(facts);
        while let Some(action) = agent.supervisor.poll_action() {
            if let Action::Report(report) = action {
                told.push(report.to_string());
            }
        }
    };
    for mib in [4096, 200, 199, 201, 150, 160, 30, 170, 20] {
        measures(Facts {
            memory_available: Some(mib << 20),
            ..Facts::default()
        });
    }
    for left in [40, 39, 41] {
        measures(Facts {
            memory_available: Some(left << 20),
            handles: Some(Use {
                used: 1000 - left,
                limit: 1000,
            }),
            ..Facts::default()
        });
    }
    measures(Facts {
        memory_available: Some(4096 << 20),
        ..Facts::default()
    });
    assert_eq!(
        told,
        [
            "no new work: there is too little of: memory",
            "no new work: there is too little of: file handles, memory",
            "tasks are asked for again"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn suspended_machines_end_with_the_agent() {
    let mut world = World::bootstrapped(&[]).await;
    suspend_one(&mut world).await;
    let stop = CancellationToken::new();
    stop.cancel();
    world.until(&mut Signals::from(stop)).await;
    assert!(calls(&world).contains(&Call::ForceDown(1)));
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_reload_takes_other_time_outs_to_its_connections() {
    let mut world = World::new(&[]);
    let file = world.dir.path().join("agent.conf");
    let path = |name: &str| world.dir.path().join(name).display().to_string();
    let text = |more: &str| {
        format!(
            "machines {}\ntftp {}\nstate {}\nnetwork none\ncontroller http://c1.example\n{more}",
            path("machines"),
            path("tftp"),
            path("state")
        )
    };
    let texts = [
        ("", false),
        ("connect-timeout 7\n", true),
        ("connect-timeout 7\n", false),
        ("connect-timeout 7\nrequest-timeout 70\n", true),
    ];
    let texts = texts.map(|(more, is_other)| (text(more), is_other));
    fs::write(&file, &texts[0].0).unwrap();
    let arguments = ["--warm=off".into(), "--config".into(), file.clone().into()];
    let arguments = std::iter::once("bbot-agent".into()).chain(arguments);
    world.agent().configuration = Configuration::read(arguments).unwrap();
    for (text, is_other) in texts {
        let before = Arc::clone(&world.agent().context.link);
        fs::write(&file, &text).unwrap();
        world.agent().reload().await;
        let link = &world.agent().context.link;
        assert_eq!(!Arc::ptr_eq(link, &before), is_other, "{text}");
    }
}
