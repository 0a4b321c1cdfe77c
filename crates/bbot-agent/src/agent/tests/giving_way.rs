//! Who gives way: suspended machines to runs and to a host that runs short; runs to the
//! agent's loop, which has one thread.

use bbot_machine::bridge::Bridge;
use bbot_machine::machine::Network;
use bbot_tftp::packet::ErrorCode;
use bbot_tftp::{Event, Failure, Kind};

use super::*;
use crate::resources::Facts;

/// A build that ends abnormally, whose machine is suspended then, and takes so long to end.
async fn suspend_one(world: &mut World, ends_after: u64) {
    let steps = vec![get("manifest"), world.upload("manifest", b"rubbish")];
    world.fake.add(Script {
        steps,
        ends_after: Duration::from_secs(ends_after),
        ..Script::default()
    });
    assert_eq!(build(world).await, Turn::Again);
    assert_eq!(world.agent().suspended.list().count(), 1);
}

/// A build that goes on for so long.
fn builds_for(world: &mut World, seconds: u64) {
    let Step::Now(done) = world.upload("manifest", RESULT.as_bytes()) else {
        unreachable!("an upload happens at once")
    };
    world.plays(vec![get("manifest"), after(seconds, done)]);
    world.answer(&task_for("linux"));
}

fn memory(mib: u64) -> Facts {
    Facts {
        memory_available: Some(mib << 20),
        ..Facts::default()
    }
}

/// Whether the machine that was suspended was gone before the next one was started.
async fn is_gone_before_the_next(args: &[&str], network: Network) -> bool {
    let mut world = World::bootstrapped(&[]).await;
    world.restart(args).await;
    let options = &world.agent().context.host.options;
    options.decided_network.set(network).unwrap();
    suspend_one(&mut world, 7).await;
    builds_for(&mut world, 30);
    let fake = world.fake.clone();
    world
        .goes_on_until(|_| fake.calls().contains(&Call::Start(2)))
        .await;
    let calls = world.fake.calls();
    let at = |call| calls.iter().position(|c| *c == call);
    at(Call::Drop(1)).is_some_and(|gone| Some(gone) < at(Call::Start(2)))
}

#[tokio::test(start_paused = true)]
async fn a_run_waits_for_the_end_of_the_machine_whose_memory_it_takes() {
    let tight = ["--ram", "1000000", "--host-ram", "1500000"];
    assert!(is_gone_before_the_next(&tight, Network::None).await);
    // Where there is memory for both they are side by side.
    let ample = ["--ram", "1000000", "--host-ram", "2000000"];
    assert!(!is_gone_before_the_next(&ample, Network::None).await);
}

/// Both would have one address.
#[tokio::test(start_paused = true)]
async fn on_a_bridge_a_run_waits_for_the_end_of_its_machines_suspended_one() {
    let ample = ["--ram", "1000000", "--host-ram", "2000000"];
    let bridge = Network::Bridge(Bridge {
        name: "br7".parse().unwrap(),
        port: 25000,
        by_default: false,
    });
    assert!(is_gone_before_the_next(&ample, bridge).await);
}

/// The oldest suspended machine goes when the host is short, and no run is interrupted as
/// long as there is one.
#[tokio::test(start_paused = true)]
async fn a_host_that_runs_short_ends_suspended_machines_before_it_interrupts_runs() {
    let mut world = World::bootstrapped(&["--instance-max", "2", "--host-ram", "99000000"]).await;
    suspend_one(&mut world, 1).await;
    suspend_one_more(&mut world).await;
    builds_for(&mut world, 1000);
    world.goes_on_until(|agent| agent.runs.len() == 1).await;
    world.goes_on(1).await;
    let ids = |world: &mut World| -> Vec<String> {
        let list = world.agent().suspended.list();
        list.map(|entry| entry.id.clone()).collect()
    };
    assert_eq!(ids(&mut world), ["s1", "s2"]);
    // Little: the oldest, and it alone as long as it is there.
    world.agent().measured(memory(128));
    world.agent().measured(memory(128));
    world.goes_on(2).await;
    assert_eq!(ids(&mut world), ["s2"]);
    // Too little: the last goes, and what runs goes on.
    world.agent().measured(memory(16));
    world.goes_on(10).await;
    assert_eq!(ids(&mut world), Vec::<String>::new());
    assert_eq!(world.agent().runs.len(), 1);
    // When there is none left, a run must.
    world.goes_on(20).await;
    world.agent().measured(memory(16));
    world.goes_on(10).await;
    assert_eq!(world.agent().runs.len(), 0);
}

async fn suspend_one_more(world: &mut World) {
    world.builds("manifest", b"rubbish");
    world.answer(&task_for("linux"));
    while world.turn().await != Turn::Again {}
    assert_eq!(world.agent().suspended.list().count(), 2);
}

/// A QEMU that is stuck takes seconds to kill: that is not for the thread of the loop.
#[tokio::test(start_paused = true)]
async fn a_run_that_is_interrupted_is_dropped_on_another_thread() {
    let mut world = World::bootstrapped(&[]).await;
    builds_for(&mut world, 1000);
    let fake = world.fake.clone();
    world
        .goes_on_until(|_| fake.calls().contains(&Call::Start(1)))
        .await;
    world.goes_on(1).await;
    for run in world.agent().runs.values() {
        run.stop.cancel();
    }
    world.goes_on_until(|agent| agent.runs.is_empty()).await;
    world.is_clean().await;
    assert!(fake.calls().contains(&Call::Drop(1)));
    let loops = std::thread::current().id();
    assert!(!fake.drops().contains(&loops));
}

/// An event: the agent could not take the result.
fn not_taken(code: ErrorCode) -> Step {
    Step::Now(MachineEvent::Tftp(Event::Failed {
        name: "manifest".to_owned(),
        reason: Failure::Refused {
            code,
            message: "No space left on device".to_owned(),
            detail: Some("/somewhere/manifest: No space left on device".to_owned()),
        },
    }))
}

fn offers_again(seconds: u64) -> Step {
    after(
        seconds,
        MachineEvent::Tftp(Event::Requested {
            peer: "196.254.111.2:1024".parse().unwrap(),
            kind: Kind::Put,
            name: "manifest".to_owned(),
        }),
    )
}

#[tokio::test(start_paused = true)]
async fn a_result_that_the_host_cannot_take_for_now_is_waited_for() {
    let mut world = World::bootstrapped(&[]).await;
    let mut steps = vec![get("manifest")];
    for _ in 0..10 {
        steps.extend([not_taken(ErrorCode::Undefined), offers_again(15)]);
    }
    steps.push(world.upload("manifest", RESULT.as_bytes()));
    world.plays(steps);
    assert_eq!(build(&mut world).await, Turn::Again);
    assert_eq!(world.took(), 150);
    assert_eq!(world.posted()[0].result.status, Status::Success);
}

/// Not after the whole `--build-timeout`, and not as a fault of the build.
#[tokio::test(start_paused = true)]
async fn a_run_whose_result_the_host_cannot_take_ends_as_that() {
    for (code, seconds) in [(ErrorCode::AccessViolation, 0), (ErrorCode::Undefined, 60)] {
        let mut world = World::bootstrapped(&[]).await;
        world.plays(vec![get("manifest"), not_taken(code)]);
        assert_eq!(build(&mut world).await, Turn::Again);
        assert_eq!(world.took(), seconds);
        let result = world.posted().remove(0).result;
        assert_eq!(result.status, Status::Abort);
        let log = &result.operations[0].log;
        assert!(log.contains("No space left on device"), "{log}");
        assert!(!log.contains("/somewhere"), "{log}");
        world.is_clean().await;
    }
}

/// Nobody else waits for room that is there again; and the task does not go round for ever.
#[tokio::test(start_paused = true)]
async fn a_guest_that_fills_its_disks_room_rests_the_host_only_if_it_stays_short() {
    let more_than_any = (1_u64 << 39).to_string();
    for (kin, min_free_disk, at, status) in [
        (Kin::Ours, "0", "build", Status::Interrupt),
        (Kin::Ours, "0", "boot", Status::Interrupt),
        (Kin::Ours, &more_than_any, "build", Status::Interrupt),
        (Kin::Stranger, "0", "build", Status::Abort),
    ] {
        let mut world = World::bootstrapped(&["--min-free-disk", min_free_disk]).await;
        let full = Step::Now(MachineEvent::DiskFull {
            detail: "disk.img: No space left on device".to_owned(),
        });
        world.plays(match at {
            "boot" => vec![full],
            _ => vec![get("manifest"), full],
        });
        let answer = TaskAnswer {
            kin,
            ..stranger(&task_for("linux"))
        };
        let answers = &world.controllers.answers;
        answers.lock().unwrap().push_back(Ok(answer));
        let fake = world.fake.clone();
        let has_run =
            |agent: &Agent| agent.runs.is_empty() && fake.calls().contains(&Call::Start(1));
        world.goes_on_until(has_run).await;
        world.controllers.requests.lock().unwrap().clear();
        world.goes_on(50).await;
        let case = format!("{kin:?} {min_free_disk} {at}");
        let result = world.posted().remove(0).result;
        assert_eq!(result.status, status, "{case}");
        let operation = match at {
            "boot" => MACHINE_OPERATION,
            _ => AGENT_OPERATION,
        };
        assert_eq!(result.operations[0].name, operation, "{case}");
        let log = &result.operations[0].log;
        assert!(log.contains("No space left on device"), "{case}: {log}");
        world.is_clean().await;
        assert_eq!((world.posted().len(), world.spool("held")), (1, 0));

        let rests = min_free_disk != "0";
        let failures = world.agent().seen.counters.host_failures;
        assert_eq!(failures, u64::from(rests), "{case}");
        let asked = world.controllers.requests.lock().unwrap().len();
        assert_eq!(asked == 0, rests, "{case}: {asked}");
        world.kill().await;
    }
}
