//! Machines that are saved with their memory, and restored for their tasks.

use bbot_machine::machine::{Error, Memory};

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
