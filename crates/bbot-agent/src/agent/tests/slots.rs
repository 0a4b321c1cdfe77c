//! Several machines at once: slots, budgets, bootstraps beside builds, priorities.

use super::*;
use crate::controller::Renewed;
use crate::supervisor::RunId;

/// A task of session `number` on a machine, from a controller of ours.
fn ours(number: u32, machine: &str) -> TaskAnswer {
    let body = task_for(machine).replace("s/1", &format!("s/{number}"));
    TaskAnswer {
        kin: Kin::Ours,
        ..stranger(&body)
    }
}

fn give(world: &World, answers: impl IntoIterator<Item = TaskAnswer>) {
    let mut script = world.controllers.answers.lock().unwrap();
    script.extend(answers.into_iter().map(Ok));
}

/// A build that takes so long.
fn builds_for(world: &mut World, seconds: u64) {
    let Step::Now(done) = world.upload("manifest", RESULT.as_bytes()) else {
        unreachable!("an upload happens at once")
    };
    world.plays(vec![get("manifest"), after(seconds, done)]);
}

fn tasks(agent: &Agent) -> usize {
    let is_task = |run: &&driver::Run| run.what != crate::status::RunKind::Bootstrap;
    agent.runs.values().filter(is_task).count()
}

fn statuses(world: &World) -> Vec<(String, Status)> {
    let posted = world.posted().into_iter();
    posted.map(|p| (p.session, p.result.status)).collect()
}

#[tokio::test(start_paused = true)]
async fn four_slots_run_four_clones_of_one_machine_at_once() {
    let mut world = World::bootstrapped(&["--instance-max", "4"]).await;
    for _ in 0..4 {
        builds_for(&mut world, 100);
    }
    give(&world, (1..=5).map(|number| ours(number, "linux")));
    world.goes_on_until(|agent| tasks(agent) == 4).await;
    let begin = Instant::now();
    // A fifth task is not even asked for.
    world.goes_on(50).await;
    let started = world.fake.started();
    let folders: std::collections::BTreeSet<_> = started.iter().map(|s| &s.directory).collect();
    assert_eq!(folders.len(), 1 + 4, "each in a copy of its own");
    assert_eq!(world.controllers.answers.lock().unwrap().len(), 1);
    builds_for(&mut world, 1);
    let results = Arc::clone(&world.controllers);
    world
        .goes_on_until(|_| results.results.lock().unwrap().len() == 5)
        .await;
    assert!(begin.elapsed() < Duration::from_secs(4 * 100));
    let mut all = statuses(&world);
    all.sort();
    let expected = (1..=5).map(|n| (format!("s/{n}"), Status::Success));
    assert_eq!(all, expected.collect::<Vec<_>>());
    let view = world_view(&mut world);
    assert_eq!(world.agent().status(&view).slots.total, 4);
    world.goes_on(1).await;
    world.is_clean().await;
}

fn world_view(world: &mut World) -> crate::supervisor::View {
    world.agent().supervisor.view()
}

#[tokio::test(start_paused = true)]
async fn the_hosts_memory_holds_a_machine_back() {
    let mut world = World::bootstrapped(&[
        "--instance-max",
        "4",
        "--ram",
        "1000000",
        "--host-ram",
        "2500000",
    ])
    .await;
    builds_for(&mut world, 100);
    builds_for(&mut world, 100);
    builds_for(&mut world, 100);
    give(&world, (1..=3).map(|number| ours(number, "linux")));
    world.goes_on_until(|agent| tasks(agent) == 2).await;
    world.goes_on(50).await;
    assert_eq!(tasks(world.agent()), 2, "no room for a third");
    let results = Arc::clone(&world.controllers);
    world
        .goes_on_until(|_| results.results.lock().unwrap().len() == 3)
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_bootstrap_goes_on_beside_builds() {
    let mut world = World::bootstrapped(&["--instance-max", "2"]).await;
    world.add_machine("windows", "windows-1.1");
    // It takes its hour, or nearly.
    let uploaded = world.upload("manifest", BootstrapManifestText::ours().as_bytes());
    let Step::Now(uploaded) = uploaded else {
        unreachable!("an upload happens at once")
    };
    world.plays(vec![get("bootstrap"), after(3000, uploaded)]);
    world.goes_on_until(|agent| !agent.runs.is_empty()).await;
    let begin = Instant::now();
    for number in 1..=3 {
        builds_for(&mut world, 100);
        give(&world, [ours(number, "linux")]);
    }
    let results = Arc::clone(&world.controllers);
    world
        .goes_on_until(|_| results.results.lock().unwrap().len() == 3)
        .await;
    assert!(begin.elapsed() < Duration::from_secs(1000));
    assert_eq!(world.agent().runs.len(), 1, "still at it");
    world
        .goes_on_until(|agent| agent.seen.counters.bootstraps == 2)
        .await;
    assert!(world.machine("windows").join("windows-default").exists());
}

#[tokio::test(start_paused = true)]
async fn a_bootstrap_that_fails_backs_off_while_others_build() {
    let mut world = World::bootstrapped(&["--instance-max", "2"]).await;
    world.add_machine("windows", "windows-1.1");
    let no_disk = || Script {
        start_error: Some(bbot_machine::machine::Error::NoDisk {
            directory: "d".into(),
        }),
        ..Script::default()
    };
    world.fake.add(no_disk());
    world
        .goes_on_until(|agent| agent.seen.counters.bootstraps_failed == 1)
        .await;
    builds_for(&mut world, 10);
    give(&world, [ours(1, "linux")]);
    let results = Arc::clone(&world.controllers);
    world
        .goes_on_until(|_| results.results.lock().unwrap().len() == 1)
        .await;
    let view = world_view(&mut world);
    let status = world.agent().status(&view);
    let state = |name: &str| {
        let machine = status.machines.iter().find(|m| m.name == name).unwrap();
        (machine.state.word(), machine.state.why().to_owned())
    };
    assert_eq!(state("linux").0, "usable");
    let (word, why) = state("windows");
    assert_eq!(word, "backing-off");
    assert!(why.contains("its disk"), "{why}");
    assert_eq!(statuses(&world), [("s/1".to_owned(), Status::Success)]);
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_changes_during_its_bootstrap_is_bootstrapped_again() {
    let mut world = World::new(&[]);
    let machine = world.machine("linux");
    let dir = bbot_machine::layout::MachineDir {
        path: machine.clone(),
        name: "linux".to_owned(),
    };
    let change = move |_: &bbot_machine::machine::StartSpec| {
        make_revision(&machine, "linux", "2", "linux-1.2");
        bbot_machine::layout::activate(&dir, 1, "2").unwrap();
    };
    let steps = vec![
        get("bootstrap"),
        Step::Do(bbot_machine::machine::fake::Action(Box::new(change))),
        world.upload("manifest", BootstrapManifestText::ours().as_bytes()),
    ];
    world.plays(steps);
    world.boots();
    world
        .goes_on_until(|agent| agent.seen.counters.bootstraps == 1)
        .await;
    assert_eq!(world.fake.started().len(), 2);
    assert_eq!(bootstrapped(&world).machine.header.id, "linux-1.2");
    assert_eq!(world.agent().seen.counters.bootstraps_failed, 0);
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_more_urgent_controller_interrupts_a_task() {
    // Asked first, and it may interrupt one task of the other.
    let mut world = World::bootstrapped(&["0100=http://c3.example"]).await;
    world.plays(vec![get("manifest")]);
    give(&world, [ours(1, "linux")]);
    let fake = world.fake.clone();
    world.goes_on_until(|_| fake.started().len() == 2).await;
    world.goes_on(1).await;
    let urgent = task_for("linux")
        .replace("s/1", "s/2")
        .replace("c1.", "c3.");
    let share = &world.controllers.share_script;
    share.store(true, std::sync::atomic::Ordering::Relaxed);
    world.answer(&urgent);
    builds_for(&mut world, 10);
    let results = Arc::clone(&world.controllers);
    world
        .goes_on_until(|_| results.results.lock().unwrap().len() == 2)
        .await;
    let expected = [
        ("s/1".to_owned(), Status::Interrupt),
        ("s/2".to_owned(), Status::Success),
    ];
    assert_eq!(statuses(&world), expected, "{:?}", world.posted());
    assert_eq!(world.spool("held"), 0);
    world.goes_on(1).await;
    world.is_clean().await;
}

/// It waits until what it interrupts has ended, which may take long.
#[tokio::test(start_paused = true)]
async fn a_task_is_held_and_its_lease_renewed_before_its_run_begins() {
    let mut world = World::bootstrapped(&["0100=http://c3.example"]).await;
    world.plays(vec![get("manifest")]);
    give(&world, [ours(1, "linux")]);
    world.goes_on_until(|agent| tasks(agent) == 1).await;
    world.goes_on(1).await;
    let body = task_for("linux")
        .replace("s/1", "s/2")
        .replace("c1.", "c3.");
    let urgent = TaskAnswer {
        session_url: Some("http://c3.example/session/2".to_owned()),
        kin: Kin::Ours,
        ..stranger(&body)
    };
    let share = &world.controllers.share_script;
    share.store(true, std::sync::atomic::Ordering::Relaxed);
    give(&world, [urgent]);
    world.goes_on_until(|agent| !agent.given.is_empty()).await;
    assert_eq!((tasks(world.agent()), world.spool("held")), (1, 2));
    let given = world.agent().given.values().next().unwrap();
    assert!(given.session.log().is_some(), "its lease is renewed");
    // Killed now, the next one gives both back.
    world.restart(&[]).await;
    world.turn().await;
    let mut posted = statuses(&world);
    posted.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    let expected = ["s/1", "s/2"].map(|session| (session.to_owned(), Status::Interrupt));
    assert_eq!(posted, expected);
    assert_eq!(world.spool("held"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_its_controller_has_ended_is_dropped_and_nothing_posted() {
    let mut world = World::bootstrapped(&[]).await;
    world.plays(vec![get("manifest")]);
    let answer = TaskAnswer {
        session_url: Some("http://c1.example/session/1".to_owned()),
        renew: Some(Duration::from_secs(30)),
        agreement: None,
        ..ours(1, "linux")
    };
    give(&world, [answer]);
    world.controllers.renewals.lock().unwrap().extend([
        Renewed::Until(Some(Duration::from_secs(30))),
        Renewed::Until(None),
        Renewed::Over("the build was cancelled".to_owned()),
    ]);
    world.goes_on_until(|agent| tasks(agent) == 1).await;
    world.goes_on_until(|agent| tasks(agent) == 0).await;
    assert!(world.fake.calls().contains(&Call::Drop(1)));
    assert_eq!((world.posted().len(), world.spool("held")), (0, 0));
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn the_task_of_a_run_that_a_fault_of_this_program_ends_is_given_back() {
    let mut world = World::bootstrapped(&[]).await;
    let planted = |_: &bbot_machine::machine::StartSpec| panic!("planted");
    world.plays(vec![
        get("manifest"),
        Step::Do(bbot_machine::machine::fake::Action(Box::new(planted))),
    ]);
    give(&world, [ours(1, "linux")]);
    world.goes_on(100).await;
    assert_eq!(statuses(&world), [("s/1".to_owned(), Status::Interrupt)]);
    assert_eq!((world.spool("held"), world.spool("results")), (0, 0));
    assert_eq!(tasks(world.agent()), 0);
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_this_program_in_a_run_is_that_runs_alone() {
    let mut world = World::bootstrapped(&[]).await;
    world.agent().jobs.spawn(async { panic!("planted") });
    world.goes_on(1).await;
    world.builds("manifest", RESULT.as_bytes());
    assert_eq!(build(&mut world).await, Turn::Again);
    // The same of one that is known to be a run.
    let handle = world.agent().jobs.spawn(async { panic!("planted") });
    let job = driver::Job::Task(RunId(4711));
    world.agent().names.insert(handle.id(), job);
    world.goes_on(1).await;
    world.builds("manifest", RESULT.as_bytes());
    assert_eq!(build(&mut world).await, Turn::Again);
    assert_eq!(world.posted().len(), 2);
}
