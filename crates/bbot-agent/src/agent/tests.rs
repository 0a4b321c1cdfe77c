//! Scenarios of the loop, with time that stands still until everybody waits.

#[path = "world.rs"]
mod world;

use std::fs;

use bbot_machine::machine::MachineEvent;
use bbot_machine::machine::fake::{Button, Call, Script, Step};
use bbot_manifest::BootstrappedMachine;

use super::*;
use crate::controller::{LinkError, Posted, TaskAnswer};
use crate::result::AGENT_OPERATION;
use world::*;

/// Every call but drops, which come with the rest.
fn calls(world: &World) -> Vec<Call> {
    let calls = world.fake.calls().into_iter();
    calls.filter(|c| !matches!(c, Call::Drop(_))).collect()
}

async fn build(world: &mut World) -> Turn {
    world.answer(&task_for("linux"));
    world.agent.turn().await.unwrap()
}

fn bootstrapped(world: &World) -> BootstrappedMachine {
    let path = world.machine("linux").join("linux-default/manifest");
    BootstrappedMachine::parse(&fs::read(path).unwrap(), "bootstrapped").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_task_goes_the_whole_way() {
    let mut world = World::bootstrapped(&[]).await;
    world.builds("manifest", RESULT.as_bytes());
    assert_eq!(build(&mut world).await, Turn::Again);

    let requests = world.controllers.requests.lock().unwrap().clone();
    assert_eq!(requests[0].0, "http://c1.example/?build-task");
    let request = TaskRequest::parse(requests[0].1.as_bytes(), "request").unwrap();
    assert_eq!(request.machines[0].name, "linux");
    assert_eq!(request.fingerprint, None);
    assert!(!requests[0].1.contains("interactive"));

    let results = world.controllers.results.lock().unwrap().clone();
    assert_eq!(results[0].0, "http://c1.example/?build-result");
    let posted = world.posted().remove(0);
    assert_eq!((posted.session.as_str(), posted.challenge), ("s/1", None));
    assert_eq!(posted.result.status, Status::Success);
    assert_eq!(posted.result.operations[0].log, "built");
    // 2017 knows no checksums.
    assert_eq!(posted.agent_checksum, None);

    let started = &world.fake.started()[1];
    assert_eq!(started.mac, bootstrapped(&world).machine.mac);
    assert!(
        started
            .directory
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("linux-default-")
    );
    assert_eq!(calls(&world)[2..], [Call::Start(1), Call::ForceDown(1)]);
    assert_eq!(world.spool("results"), 0);
    world.is_clean();
}

#[tokio::test(start_paused = true)]
async fn what_one_build_writes_the_next_does_not_see() {
    let mut world = World::bootstrapped(&["--allow-result-url", "http://c1.example/"]).await;
    let dirty = |spec: &bbot_machine::machine::StartSpec| {
        assert!(!spec.directory.join("left").exists());
        fs::write(spec.directory.join("left"), "x").unwrap();
    };
    for _ in 0..2 {
        let steps = vec![
            Step::Do(bbot_machine::machine::fake::Action(Box::new(dirty))),
            get("task.manifest"),
            world.upload("result.manifest", RESULT.as_bytes()),
        ];
        world.plays(steps);
        assert_eq!(build(&mut world).await, Turn::Again);
    }
    assert_eq!(world.posted().len(), 2);
    world.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_mis_boot_is_tried_again_on_a_new_copy() {
    let mut world = World::bootstrapped(&[]).await;
    world.plays(vec![Step::Silence]);
    world.builds("manifest", RESULT.as_bytes());
    let begin = Instant::now();
    build(&mut world).await;
    assert_eq!(begin.elapsed().as_secs(), 60);
    assert_eq!(world.posted()[0].result.status, Status::Success);
    assert_eq!(
        calls(&world)[2..],
        [
            Call::Start(1),
            Call::ForceDown(1),
            Call::Start(2),
            Call::ForceDown(2)
        ]
    );
    let started = world.fake.started();
    assert_ne!(started[1].directory, started[2].directory);
    world.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_ends_at_once_is_a_mis_boot_at_once() {
    let mut world = World::bootstrapped(&[]).await;
    world.plays(vec![after(1, crash())]);
    world.plays(vec![after(1, MachineEvent::Panicked)]);
    world.builds("manifest", RESULT.as_bytes());
    let begin = Instant::now();
    build(&mut world).await;
    assert_eq!(begin.elapsed().as_secs(), 2);
    assert_eq!(world.posted()[0].result.status, Status::Success);
}

#[tokio::test(start_paused = true)]
async fn n_retries_are_n_plus_one_starts_then_suspension_and_abort() {
    let mut world = World::bootstrapped(&[
        "--build-retries",
        "1",
        "--build-startup",
        "10",
        "--suspend-timeout",
        "100",
    ])
    .await;
    let begin = Instant::now();
    assert_eq!(build(&mut world).await, Turn::Again);
    assert_eq!(begin.elapsed().as_secs(), 10 + 10 + 100);
    assert_eq!(
        calls(&world)[2..],
        [
            Call::Start(1),
            Call::ForceDown(1),
            Call::Start(2),
            Call::Suspend(2),
            Call::Wait(2),
            Call::ForceDown(2)
        ]
    );
    let result = world.posted().remove(0).result;
    assert_eq!(
        (result.name.as_str(), result.version.as_str(), result.status),
        ("libfoo", "1.2", Status::Abort)
    );
    assert_eq!(result.operations[0].name, AGENT_OPERATION);
    assert!(
        result.operations[0]
            .log
            .contains("did not start its build in 2 tries"),
        "{}",
        result.operations[0].log
    );
    world.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_never_answers_is_suspended_and_aborted() {
    let mut world = World::bootstrapped(&["--build-timeout", "50", "--suspend-timeout", "0"]).await;
    world.plays(vec![get("manifest")]);
    let begin = Instant::now();
    build(&mut world).await;
    assert_eq!(begin.elapsed().as_secs(), 50);
    assert_eq!(world.posted()[0].result.status, Status::Abort);
    // Not kept: not suspended either.
    assert_eq!(calls(&world)[2..], [Call::Start(1), Call::ForceDown(1)]);
    world.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_person_ends_a_suspension_early() {
    let mut world = World::bootstrapped(&["--build-timeout", "50"]).await;
    world.plays(vec![get("manifest"), after(80, crash())]);
    let begin = Instant::now();
    build(&mut world).await;
    assert_eq!(begin.elapsed().as_secs(), 80);
    assert_eq!(world.posted()[0].result.status, Status::Abort);
    world.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_ends_in_a_build_is_noticed_at_once() {
    let mut world = World::bootstrapped(&[]).await;
    world.plays(vec![get("manifest"), after(7, crash())]);
    let begin = Instant::now();
    build(&mut world).await;
    assert_eq!(begin.elapsed().as_secs(), 7);
    let result = world.posted().remove(0).result;
    assert_eq!(result.status, Status::Abnormal);
    assert!(
        result.operations[0].log.contains("signal 9"),
        "{}",
        result.operations[0].log
    );
    assert_eq!(calls(&world)[2..], [Call::Start(1)]);
    world.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_guest_whose_kernel_panics_is_suspended() {
    let mut world = World::bootstrapped(&[]).await;
    world.plays(vec![get("manifest"), after(7, MachineEvent::Panicked)]);
    build(&mut world).await;
    assert_eq!(world.posted()[0].result.status, Status::Abnormal);
    assert!(calls(&world).contains(&Call::Suspend(1)));
}

#[tokio::test(start_paused = true)]
async fn a_result_that_cannot_be_read_is_abnormal_and_its_machine_suspended() {
    for (name, bytes) in [
        ("manifest", &b"rubbish"[..]),
        ("result.manifest.lz4", RESULT.as_bytes()),
        ("manifest", b""),
    ] {
        let mut world = World::bootstrapped(&["--suspend-timeout", "5"]).await;
        world.builds(name, bytes);
        build(&mut world).await;
        let result = world.posted().remove(0).result;
        assert_eq!(
            (result.name.as_str(), result.status),
            ("libfoo", Status::Abnormal)
        );
        assert!(calls(&world).contains(&Call::Suspend(1)));
        world.is_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn a_packed_result_is_unpacked() {
    use std::io::Write as _;
    let mut world = World::bootstrapped(&[]).await;
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    encoder.write_all(RESULT.as_bytes()).unwrap();
    world.builds("result.manifest.lz4", &encoder.finish().unwrap());
    build(&mut world).await;
    assert_eq!(world.posted()[0].result.status, Status::Success);
}

#[tokio::test(start_paused = true)]
async fn another_packages_result_is_abnormal_with_its_log() {
    let mut world = World::bootstrapped(&["--suspend-timeout", "0"]).await;
    world.builds("manifest", RESULT.replace("libfoo", "libbar").as_bytes());
    build(&mut world).await;
    let result = world.posted().remove(0).result;
    assert_eq!(
        (result.name.as_str(), result.status),
        ("libfoo", Status::Abnormal)
    );
    assert_eq!(result.operations[0].log, "built");
}

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
async fn a_fake_build_is_an_abort_without_operations() {
    let mut world = World::bootstrapped(&["--fake-build"]).await;
    build(&mut world).await;
    let result = world.posted().remove(0).result;
    assert_eq!(result, BuildResult::new("libfoo", "1.2", Status::Abort));
    assert_eq!(calls(&world).len(), 2, "nothing but the bootstrap");
}

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
    assert_eq!(world.spool("results"), 1);
    assert_eq!(world.agent.pause(), Duration::from_secs(1));
    // Not due yet: nothing is sent.
    world.agent.turn().await.unwrap();
    assert_eq!(world.posted().len(), 1);
    tokio::time::sleep(world.agent.pause()).await;
    world.agent.turn().await.unwrap();
    assert_eq!((world.posted().len(), world.spool("results")), (2, 1));
    assert_eq!(world.agent.pause(), Duration::from_secs(2));
    tokio::time::sleep(world.agent.pause()).await;
    world.agent.turn().await.unwrap();
    assert_eq!(
        (
            world.posted().len(),
            world.spool("results"),
            world.spool("refused")
        ),
        (3, 0, 0)
    );
    assert_eq!(world.agent.pause(), IDLE_PAUSE);
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
    world.restart(&[]);
    world.agent.turn().await.unwrap();
    assert_eq!((world.posted().len(), world.spool("results")), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn tries_are_bounded_and_the_result_is_kept() {
    let mut world = World::bootstrapped(&["--fake-build"]).await;
    let again = std::iter::repeat_with(|| Posted::Again("503".to_owned())).take(100);
    world.controllers.posts.lock().unwrap().extend(again);
    build(&mut world).await;
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_secs(600)).await;
        world.agent.turn().await.unwrap();
    }
    assert_eq!(world.posted().len(), crate::spool::MAX_TRIES as usize);
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
    world.agent.turn().await.unwrap();
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

#[tokio::test(start_paused = true)]
async fn one_bad_machine_harms_no_other() {
    let mut world = World::bootstrapped(&[]).await;
    for (name, manifest) in [
        ("malformed", "rubbish"),
        ("othername", ": 1\nid: x\nname: x\nsummary: x\ntype: kvm\n"),
        (
            "container",
            ": 1\nid: x\nname: container\nsummary: x\ntype: nspawn\n",
        ),
        (
            "helper",
            ": 1\nid: x\nname: helper\nsummary: x\nrole: auxiliary\ntype: kvm\n",
        ),
    ] {
        world.add_machine(name, "x");
        fs::write(
            world.machine(name).join(format!("{name}-1.1/manifest")),
            manifest,
        )
        .unwrap();
    }
    world.add_machine("nomanifest", "x");
    fs::remove_file(world.machine("nomanifest").join("nomanifest-1.1/manifest")).unwrap();
    fs::create_dir(world.dir.path().join("machines/vol/.hidden")).unwrap();
    fs::write(world.dir.path().join("machines/vol/file"), "").unwrap();
    world.builds("manifest", RESULT.as_bytes());
    assert_eq!(build(&mut world).await, Turn::Again);
    let request = world.controllers.requests.lock().unwrap()[0].1.clone();
    let request = TaskRequest::parse(request.as_bytes(), "request").unwrap();
    assert_eq!(
        request
            .machines
            .iter()
            .map(|m| m.name.as_str())
            .collect::<Vec<_>>(),
        ["linux"]
    );
    assert_eq!(world.posted()[0].result.status, Status::Success);
}

#[tokio::test(start_paused = true)]
async fn a_machine_without_a_disk_is_tried_less_and_less() {
    let mut world = World::new(&[]);
    let no_disk = || Script {
        start_error: Some(bbot_machine::machine::Error::NoDisk {
            directory: "d".into(),
        }),
        ..Script::default()
    };
    for _ in 0..10 {
        world.fake.add(no_disk());
    }
    for _ in 0..5 {
        assert_eq!(world.agent.turn().await.unwrap(), Turn::Idle);
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    // At 0 and 60 s; the next would be at 180 s.
    assert_eq!(world.fake.started().len(), 2);
    // Another revision is another try.
    make_revision(&world.machine("linux"), "linux", "2", "linux-1.2");
    bbot_machine::layout::activate(
        &bbot_machine::layout::MachineDir {
            path: world.machine("linux"),
            name: "linux".to_owned(),
        },
        1,
        "2",
    )
    .unwrap();
    world.agent.turn().await.unwrap();
    assert_eq!(world.fake.started().len(), 3);
    world.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_host_without_qemu_ends_the_agent() {
    let mut world = World::new(&[]);
    let missing = bbot_machine::machine::Error::NotInstalled {
        program: "qemu".to_owned(),
        package: "qemu",
    };
    world.fake.add(Script {
        start_error: Some(missing),
        ..Script::default()
    });
    let error = world.agent.turn().await.unwrap_err();
    assert!(
        format!("{error:#}").contains("install the package"),
        "{error:#}"
    );
    world.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_failed_bootstrap_loses_neither_address_nor_machine() {
    let mut world = World::bootstrapped(&["--toolchain-id", "one"]).await;
    let before = bootstrapped(&world);
    assert_eq!(before.toolchain.id, "one");
    // Another toolchain, and a guest that never gets there.
    world.restart(&[
        "--toolchain-id",
        "two",
        "--bootstrap-timeout",
        "9",
        "--suspend-timeout",
        "0",
    ]);
    world.plays(vec![get("bootstrap")]);
    assert_eq!(world.agent.turn().await.unwrap(), Turn::Idle);
    assert_eq!(world.fake.started()[1].mac, before.machine.mac);
    assert_eq!(bootstrapped(&world), before);
    world.is_clean();
    // Gone altogether: the address is still known.
    fs::remove_dir_all(world.machine("linux").join("linux-default")).unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    world.boots();
    world.agent.turn().await.unwrap();
    assert_eq!(world.fake.started()[2].mac, before.machine.mac);
    let after = bootstrapped(&world);
    assert_eq!(
        (after.machine.mac, after.toolchain.id.as_str()),
        (before.machine.mac, "two")
    );
}

#[tokio::test(start_paused = true)]
async fn a_bootstrap_is_tried_again_on_a_new_copy_with_the_same_address() {
    let mut world = World::new(&["--bootstrap-startup", "5"]);
    let dirty = |spec: &bbot_machine::machine::StartSpec| {
        fs::write(spec.directory.join("left"), "x").unwrap();
    };
    world.plays(vec![Step::Do(bbot_machine::machine::fake::Action(
        Box::new(dirty),
    ))]);
    world.boots();
    world.agent.turn().await.unwrap();
    let started = world.fake.started();
    assert_eq!(started.len(), 2);
    assert_ne!(started[0].directory, started[1].directory);
    assert_eq!(started[1].mac, bootstrapped(&world).machine.mac);
    assert!(!world.machine("linux").join("linux-default/left").exists());
    assert!(matches!(
        calls(&world)[..],
        [
            Call::Start(0),
            Call::ForceDown(0),
            Call::Start(1),
            Call::Shutdown(1, _)
        ]
    ));
    world.is_clean();
}

#[tokio::test(start_paused = true)]
async fn bootstraps_that_fail_softly_are_suspended_and_the_machine_left_alone() {
    let late = vec![get("bootstrap")];
    let silent = vec![Step::Silence];
    let garbled = vec![get("bootstrap")];
    for (number, steps) in [late, silent, garbled].into_iter().enumerate() {
        let mut world = World::new(&[
            "--bootstrap-retries",
            "0",
            "--bootstrap-timeout",
            "20",
            "--suspend-timeout",
            "30",
        ]);
        let mut steps = steps;
        if number == 2 {
            steps.push(world.upload("manifest", b"rubbish"));
        }
        world.plays(steps);
        assert_eq!(world.agent.turn().await.unwrap(), Turn::Idle);
        assert_eq!(calls(&world).contains(&Call::Suspend(0)), number != 2);
        assert!(!world.machine("linux").join("linux-default").exists());
        assert_eq!(world.agent.turn().await.unwrap(), Turn::Idle);
        assert_eq!(world.fake.started().len(), 1, "not again at once");
        world.is_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_power_off_is_suspended_and_not_used() {
    let mut world = World::new(&["--suspend-timeout", "1"]);
    let steps = vec![
        get("bootstrap"),
        world.upload("manifest", BootstrapManifestText::ours().as_bytes()),
    ];
    world.fake.add(Script {
        steps,
        button: Button::Ignores,
        ..Script::default()
    });
    let begin = Instant::now();
    world.agent.turn().await.unwrap();
    assert_eq!(begin.elapsed().as_secs(), 300 + 1);
    assert!(!world.machine("linux").join("linux-default").exists());
    world.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_machine_without_a_current_revision_loses_its_bootstrapped_copy() {
    let mut world = World::bootstrapped(&[]).await;
    fs::remove_file(world.machine("linux").join("linux-1")).unwrap();
    assert_eq!(world.agent.turn().await.unwrap(), Turn::Idle);
    assert!(!world.machine("linux").join("linux-default").exists());
    assert!(world.machine("linux").join("linux-1.1").exists());
    world.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_new_revision_is_bootstrapped_and_takes_the_place_of_the_old() {
    let mut world = World::bootstrapped(&[]).await;
    let before = bootstrapped(&world);
    make_revision(&world.machine("linux"), "linux", "2", "linux-1.2");
    fs::remove_file(world.machine("linux").join("linux-1")).unwrap();
    std::os::unix::fs::symlink("linux-1.2", world.machine("linux").join("linux-1")).unwrap();
    world.boots();
    world.agent.turn().await.unwrap();
    let after = bootstrapped(&world);
    assert_eq!(after.machine.header.id, "linux-1.2");
    assert_eq!(after.machine.mac, before.machine.mac);
    assert_eq!(
        fs::read_to_string(world.machine("linux").join("linux-default/disk.img")).unwrap(),
        "disk of linux-1.2"
    );
    world.is_clean();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_copied_when_nothing_has_changed() {
    let mut world = World::bootstrapped(&[]).await;
    // A copy would fail here.
    fs::remove_file(world.machine("linux").join("linux-1.1/disk.img")).unwrap();
    std::os::unix::fs::symlink("/", world.machine("linux").join("linux-1.1/disk.img")).unwrap();
    world.agent.turn().await.unwrap();
    assert_eq!(world.controllers.requests.lock().unwrap().len(), 2);
    assert_eq!(world.fake.started().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_link_that_leads_to_nothing_is_tried_ten_times_more() {
    let mut world = World::new(&[]);
    fs::remove_dir_all(world.machine("linux").join("linux-1.1")).unwrap();
    let begin = Instant::now();
    assert_eq!(world.agent.turn().await.unwrap(), Turn::Idle);
    assert_eq!(begin.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_newer_worker_is_left_alone_and_an_unreadable_copy_made_anew() {
    let mut world = World::bootstrapped(&[]).await;
    let path = world.machine("linux").join("linux-default/manifest");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        good.replace(&format!("version: {}", version::OWN), "version: 99.0.0"),
    )
    .unwrap();
    assert_eq!(world.agent.turn().await.unwrap(), Turn::Idle);
    assert_eq!(
        world.controllers.requests.lock().unwrap().len(),
        0,
        "no machine to offer"
    );
    assert_eq!(world.fake.started().len(), 1);

    fs::write(&path, "rubbish").unwrap();
    world.boots();
    world.agent.turn().await.unwrap();
    assert_eq!(world.fake.started().len(), 2);
    assert_eq!(fs::read_to_string(&path).unwrap(), good);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_stopped_leaves_nothing() {
    let mut world = World::bootstrapped(&[]).await;
    world.plays(vec![get("manifest")]);
    world.answer(&task_for("linux"));
    let stopped = tokio::time::timeout(Duration::from_secs(5), world.agent.turn()).await;
    assert!(stopped.is_err());
    assert_eq!(world.fake.calls().last(), Some(&Call::Drop(1)));
    world.is_clean();
    assert_eq!(world.posted().len(), 0);
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
            body: b": 1\nsession:\n".to_vec(),
            kin: Kin::Ours,
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
            body: b": 1\nsession:\n".to_vec(),
            kin: Kin::Ours,
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
async fn a_local_build_shows_its_log_as_it_grows() {
    use crate::run::{Progress, Stage};
    #[derive(Default)]
    struct Seen(String, Vec<Stage>);
    impl Progress for Seen {
        fn stage(&mut self, stage: &Stage) {
            self.1.push(stage.clone());
        }
        fn wants_log(&self) -> bool {
            true
        }
        fn log(&mut self, operation: &str, bytes: &[u8]) {
            self.0
                .push_str(&format!("{operation}: {}", String::from_utf8_lossy(bytes)));
        }
    }
    let mut world = World::new(&[]);
    world.boots();
    let steps = vec![
        get("run.manifest"),
        world.upload("log.1", b"configure\nchecking\n"),
        world.upload("log.2", b"update\ncc\n"),
        // Acknowledged, but the acknowledgement was lost.
        world.upload("log.2", b"update\ncc\n"),
        world.upload("log.3", b"no newline"),
        world.upload("manifest", RESULT.as_bytes()),
    ];
    world.plays(steps);
    let archive = world.dir.path().join("source.tar.gz");
    fs::write(&archive, "archive").unwrap();
    let task = bbot_manifest::Task::new("libfoo", "1.2", "dir:.", "linux", "x86_64-linux-gnu");
    let mut seen = Seen::default();
    let result = crate::local::build_on(&world.agent.host, &task, &archive, &mut seen)
        .await
        .unwrap();
    assert_eq!(result.status, Status::Success);
    assert_eq!(seen.0, "configure: checking\nupdate: cc\n");
    assert!(matches!(seen.1[0], Stage::Bootstrapping { .. }));
    assert!(matches!(seen.1.last(), Some(Stage::Finished { .. })));
    world.is_clean();

    let elsewhere = bbot_manifest::Task::new("libfoo", "1.2", "dir:.", "windows", "x");
    let error = crate::local::build_on(&world.agent.host, &elsewhere, &archive, &mut seen)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("bbot machine list"), "{error}");
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
    assert_eq!(names(&world.dir.path().join("state/sources")).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_cannot_prepare_a_run_aborts_it_and_rests_the_machine() {
    let mut world = World::bootstrapped(&[]).await;
    fs::remove_dir_all(world.dir.path().join("tftp/build")).ok();
    fs::write(world.dir.path().join("tftp/build"), "in the way").unwrap();
    assert_eq!(build(&mut world).await, Turn::Again);
    let result = world.posted().remove(0).result;
    assert_eq!(result.status, Status::Abort);
    assert!(
        result.operations[0].log.contains("--tftp"),
        "{}",
        result.operations[0].log
    );
    world.controllers.requests.lock().unwrap().clear();
    // Not offered again at once: an agent that aborts everything empties the queue.
    assert_eq!(world.agent.turn().await.unwrap(), Turn::Idle);
    assert_eq!(world.controllers.requests.lock().unwrap().len(), 0);
    tokio::time::sleep(Duration::from_secs(61)).await;
    world.agent.turn().await.unwrap();
    assert_ne!(world.controllers.requests.lock().unwrap().len(), 0);
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

#[tokio::test(start_paused = true)]
async fn a_changed_toolchain_bootstraps_again() {
    let mut world = World::new(&[]);
    let tftp = world.dir.path().join("tftp");
    let folder = world.dir.path().join("toolchain");
    fs::rename(tftp.join("toolchains/default"), &folder).unwrap();
    let add = |text: &str| {
        fs::write(folder.join("bootstrap"), text).unwrap();
        crate::toolchain::add(&tftp, "default", &folder).unwrap()
    };
    let one = add("one");
    world.boots();
    world.agent.turn().await.unwrap();
    assert_eq!(bootstrapped(&world).toolchain.id, one);
    world.agent.turn().await.unwrap();
    assert_eq!(world.fake.started().len(), 1);
    let two = add("two");
    world.boots();
    world.agent.turn().await.unwrap();
    assert_eq!(world.fake.started().len(), 2);
    assert_eq!(bootstrapped(&world).toolchain.id, two);
    world.is_clean();
}
