//! Machines that are saved with their memory, and restored for their tasks.

use std::os::unix::fs::PermissionsExt as _;

use bbot_machine::machine::{Error, Exit, ExitCause, Memory};

use super::*;

/// The request with which a worker is ready to be saved.
fn waits() -> Step {
    Step::Now(MachineEvent::Tftp(bbot_tftp::Event::Held {
        peer: PEER.parse().unwrap(),
        name: "restored.manifest".to_owned(),
        request: b"request".to_vec(),
    }))
}

const PEER: &str = "196.254.111.2:40000";

/// A machine that is bootstrapped, and saved as well.
async fn warm_world(args: &[&str]) -> World {
    let mut world = World::bootstrapped(&[]).await;
    let mut all = vec!["--warm", "auto"];
    all.extend(args);
    world.restart(&all).await;
    world.plays(vec![get("run.manifest"), waits()]);
    let fake = world.fake.clone();
    world
        .goes_on_until(|agent| fake.calls().contains(&Call::Save(1)) && agent.runs.is_empty())
        .await;
    world
}

/// The same of one that is prepared.
fn waits_again() -> Step {
    Step::Now(MachineEvent::Tftp(bbot_tftp::Event::Held {
        peer: PEER.parse().unwrap(),
        name: "prepared.manifest".to_owned(),
        request: b"request".to_vec(),
    }))
}

fn began(world: &World, number: usize) -> Memory {
    world.fake.started()[number].memory.clone()
}

fn files(world: &World) -> Vec<String> {
    names(&world.dir.path().join("machines/vol/linux/linux-default"))
}

#[tokio::test(start_paused = true)]
async fn a_machine_is_saved_once_and_restored_for_each_task() {
    let mut world = warm_world(&[]).await;
    for file in ["warm.manifest", "warm.ram", "warm.state"] {
        assert!(
            files(&world).contains(&file.to_owned()),
            "{:?}",
            files(&world)
        );
    }
    for number in [2, 3] {
        world.builds("manifest", RESULT.as_bytes());
        build(&mut world).await;
        assert!(
            matches!(began(&world, number), Memory::Restored(_)),
            "{number}"
        );
    }
    // Also by the next agent, which reads what was saved; nothing is saved again.
    world.restart(&["--warm", "auto"]).await;
    world.builds("manifest", RESULT.as_bytes());
    build(&mut world).await;
    assert!(matches!(began(&world, 4), Memory::Restored(_)));
    assert_eq!(
        world
            .fake
            .calls()
            .iter()
            .filter(|c| matches!(c, Call::Save(_)))
            .count(),
        1
    );
    assert!(
        world
            .posted()
            .iter()
            .all(|p| p.result.status == Status::Success)
    );
    // What an operator does not want is not done.
    world
        .restart(&["--warm", "auto", "--warm", "linux=off"])
        .await;
    world.builds("manifest", RESULT.as_bytes());
    build(&mut world).await;
    assert!(matches!(began(&world, 5), Memory::Booted));
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_restored_boots_and_is_saved_anew() {
    let mut world = warm_world(&[]).await;
    world.fake.add(Script {
        start_error: Some(Error::Unrestored {
            why: "it was saved with another QEMU".to_owned(),
        }),
        ..Script::default()
    });
    world.builds("manifest", RESULT.as_bytes());
    world.answer(&task_for("linux"));
    // Of the next look at the machine.
    world.plays(vec![get("run.manifest"), waits()]);
    let fake = world.fake.clone();
    world
        .goes_on_until(|agent| fake.calls().contains(&Call::Save(4)) && agent.runs.is_empty())
        .await;
    assert_eq!(world.posted()[0].result.status, Status::Success);
    assert!(matches!(began(&world, 2), Memory::Restored(_)));
    assert!(matches!(began(&world, 3), Memory::Booted));
    assert!(matches!(began(&world, 4), Memory::ToBeSaved));
    world.builds("manifest", RESULT.as_bytes());
    build(&mut world).await;
    assert!(matches!(began(&world, 5), Memory::Restored(_)));
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_go_on_is_booted_in_the_next_try() {
    let mut world = warm_world(&["--build-startup", "10"]).await;
    // Silent.
    world.plays(vec![Step::Silence]);
    world.builds("manifest", RESULT.as_bytes());
    world.plays(vec![get("run.manifest"), waits()]);
    build(&mut world).await;
    assert_eq!(world.posted()[0].result.status, Status::Success);
    assert!(matches!(began(&world, 2), Memory::Restored(_)));
    assert!(matches!(began(&world, 3), Memory::Booted));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_cannot_be_saved_boots_and_is_not_tried_again() {
    let mut world = World::bootstrapped(&[]).await;
    world.restart(&["--warm", "auto"]).await;
    // Its worker asks for the task that is not there.
    world.plays(vec![get("run.manifest"), get("task.manifest")]);
    let fake = world.fake.clone();
    world
        .goes_on_until(|agent| fake.calls().contains(&Call::ForceDown(1)) && agent.runs.is_empty())
        .await;
    for number in [2, 3] {
        world.builds("manifest", RESULT.as_bytes());
        build(&mut world).await;
        assert!(matches!(began(&world, number), Memory::Booted));
    }
    assert!(!files(&world).contains(&"warm.manifest".to_owned()));
    world.is_clean().await;
}

fn count(world: &World, of: impl Fn(&Call) -> bool) -> usize {
    world.fake.calls().iter().filter(|call| of(call)).count()
}

/// Plays a machine that is prepared, and does this when it has a task.
fn prepared(world: &mut World, upload: &str) {
    let steps = vec![
        get("restored.manifest"),
        waits_again(),
        get("prepared.manifest"),
        get("manifest"),
        world.upload(upload, RESULT.as_bytes()),
    ];
    world.plays(steps);
}

#[tokio::test(start_paused = true)]
async fn a_prepared_machine_goes_on_with_the_task_and_the_next_is_prepared() {
    let mut world = warm_world(&["--prepare", "1"]).await;
    prepared(&mut world, "manifest");
    prepared(&mut world, "manifest");
    let ready = |agent: &Agent| agent.stock.count("linux") == 1;
    world.goes_on_until(ready).await;
    assert!(matches!(began(&world, 2), Memory::Restored(_)));
    assert_eq!(count(&world, |call| *call == Call::Suspend(2)), 1);
    let view = world.agent().supervisor.view();
    let shown = world.agent().status(&view);
    assert_eq!(
        (shown.machines[0].warm, shown.machines[0].prepared),
        (true, 1)
    );

    build(&mut world).await;
    world.goes_on_until(ready).await;
    assert_eq!(world.posted()[0].result.status, Status::Success);
    assert_eq!(count(&world, |call| *call == Call::GoOn(2)), 1);
    assert_eq!(count(&world, |call| *call == Call::Suspend(3)), 1);
    // No machine was started for the task.
    assert_eq!(world.fake.started().len(), 4);
    // What waits goes with the agent.
    world.restart(&["--warm", "auto"]).await;
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_go_on_is_not_missed() {
    // There is no room for a second one while the task runs.
    let room = ["--prepare", "1", "--host-ram", "1048576"];
    let mut world = warm_world(&room).await;
    let ended = Step::Now(MachineEvent::Exited(Exit {
        cause: ExitCause::Crashed,
        detail: String::new(),
    }));
    world.plays(vec![waits_again(), ended]);
    let ready = |agent: &Agent| agent.stock.count("linux") == 1;
    world.goes_on_until(ready).await;
    world.builds("manifest", RESULT.as_bytes());
    world.builds("manifest", RESULT.as_bytes());
    build(&mut world).await;
    assert_eq!(world.posted().len(), 1);
    assert_eq!(world.posted()[0].result.status, Status::Success);
    assert_eq!(count(&world, |call| *call == Call::GoOn(2)), 1);
    // It was restored in its place, and not booted.
    assert!(matches!(began(&world, 3), Memory::Restored(_)));
    // Nor is another one prepared that would not go on either.
    build(&mut world).await;
    assert_eq!(count(&world, |call| matches!(call, Call::GoOn(_))), 1);
    assert_eq!(world.posted().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_runs_short_has_no_prepared_machines_for_a_while() {
    let mut world = warm_world(&["--prepare", "1"]).await;
    world.plays(vec![waits_again()]);
    let ready = |agent: &Agent| agent.stock.count("linux") == 1;
    world.goes_on_until(ready).await;
    let begin = Instant::now();
    for minutes in [5, 10, 20] {
        assert!(world.agent().stock.relieve());
        assert!(!world.agent().stock.relieve());
        let begin = Instant::now();
        world.plays(vec![waits_again()]);
        world.goes_on_until(ready).await;
        assert!(begin.elapsed().as_secs() >= minutes * 60, "{minutes}");
    }
    assert!(begin.elapsed().as_secs() < 60 * 60);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_does_not_wait_once_more_is_not_prepared() {
    let mut world = warm_world(&["--prepare", "1"]).await;
    // It asks for its task at once.
    world.plays(vec![get("restored.manifest"), get("task.manifest")]);
    let fake = world.fake.clone();
    world
        .goes_on_until(|agent| agent.stock.is_empty() && fake.started().len() == 3)
        .await;
    world.builds("manifest", RESULT.as_bytes());
    build(&mut world).await;
    assert_eq!(world.posted()[0].result.status, Status::Success);
    assert_eq!(count(&world, |call| matches!(call, Call::GoOn(_))), 0);
    // It is not tried again.
    assert_eq!(world.fake.started().len(), 4);
}

/// The machine is a container, which is bootstrapped; the tests' machines play what is said to them.
async fn container_world() -> World {
    let mut world = World::new(&[]);
    let revision = world.machine("linux").join("linux-1.1");
    fs::remove_file(revision.join("disk.img")).unwrap();
    for folder in ["usr", "sbin"] {
        fs::create_dir_all(revision.join("rootfs").join(folder)).unwrap();
    }
    let init = revision.join("rootfs/sbin/init");
    fs::write(&init, "").unwrap();
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).unwrap();
    let manifest = ": 1\nid: linux-1.1\nname: linux\nsummary: A machine\ntype: nspawn\n";
    fs::write(revision.join("manifest"), manifest).unwrap();
    world.boots();
    assert_eq!(world.turn().await, Turn::Idle);
    world
}

#[tokio::test(start_paused = true)]
async fn a_container_is_prepared_as_well_and_needs_nothing_saved() {
    let mut world = container_world().await;
    // Nothing is saved of a container, whatever is asked for.
    world.restart(&["--warm", "auto", "--prepare", "1"]).await;
    for _ in 0..2 {
        let steps = vec![
            get("run.manifest"),
            waits_again(),
            get("prepared.manifest"),
            get("manifest"),
            world.upload("manifest", RESULT.as_bytes()),
        ];
        world.plays(steps);
    }
    let ready = |agent: &Agent| agent.stock.count("linux") == 1;
    world.goes_on_until(ready).await;
    assert!(matches!(began(&world, 1), Memory::Booted));
    // The worker is told to wait by the first name that it asks for.
    let root = format!("{:?}", world.fake.started()[1].tftp.root);
    assert!(
        root.contains("run.manifest") && !root.contains("restored.manifest"),
        "{root}"
    );
    assert_eq!(count(&world, |call| *call == Call::Suspend(1)), 1);
    let view = world.agent().supervisor.view();
    let shown = world.agent().status(&view);
    assert_eq!(
        (shown.machines[0].warm, shown.machines[0].prepared),
        (false, 1)
    );

    build(&mut world).await;
    world.goes_on_until(ready).await;
    assert_eq!(world.posted()[0].result.status, Status::Success);
    assert_eq!(count(&world, |call| *call == Call::GoOn(1)), 1);
    assert_eq!(count(&world, |call| *call == Call::Suspend(2)), 1);
    assert_eq!(world.fake.started().len(), 3);
    assert_eq!(count(&world, |call| matches!(call, Call::Save(_))), 0);
    // What waits goes with the agent, and when the host runs short.
    assert!(world.agent().stock.relieve());
    world.restart(&[]).await;
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_does_not_go_on_is_started_as_ever() {
    let mut world = container_world().await;
    let room = ["--prepare", "1", "--host-ram", "1048576"];
    world.restart(&room).await;
    // Silent once it has its task.
    world.plays(vec![waits_again(), Step::Silence]);
    let ready = |agent: &Agent| agent.stock.count("linux") == 1;
    world.goes_on_until(ready).await;
    world.builds("manifest", RESULT.as_bytes());
    build(&mut world).await;
    assert_eq!(world.posted()[0].result.status, Status::Success);
    assert_eq!(count(&world, |call| *call == Call::GoOn(1)), 1);
    assert!((20..40).contains(&world.took()), "{} s", world.took());
    // It is not prepared again as it is.
    world.goes_on(60).await;
    assert_eq!(world.fake.started().len(), 3);
    world.restart(&[]).await;
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_with_a_second_card_is_not_prepared() {
    let mut world = container_world().await;
    world
        .restart(&["--prepare", "1", "--network", "user"])
        .await;
    world.goes_on(60).await;
    assert_eq!(world.fake.started().len(), 1);
    world.builds("manifest", RESULT.as_bytes());
    build(&mut world).await;
    assert_eq!(world.posted()[0].result.status, Status::Success);
}
