//! A task in its machine: what can happen to it, and what becomes of it.

use super::*;
use crate::run::Stage;

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
    world.is_clean().await;
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
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_mis_boot_is_tried_again_on_a_new_copy() {
    let mut world = World::bootstrapped(&[]).await;
    world.plays(vec![Step::Silence]);
    world.builds("manifest", RESULT.as_bytes());
    build(&mut world).await;
    assert_eq!(world.took(), 60);
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
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_ends_at_once_is_a_mis_boot_at_once() {
    let mut world = World::bootstrapped(&[]).await;
    world.plays(vec![after(1, crash())]);
    world.plays(vec![after(1, MachineEvent::Panicked)]);
    world.builds("manifest", RESULT.as_bytes());
    build(&mut world).await;
    assert_eq!(world.took(), 2);
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
    assert_eq!(build(&mut world).await, Turn::Again);
    // The result does not wait for the suspended machine.
    assert_eq!(world.took(), 10 + 10);
    assert_eq!(world.posted().len(), 1);
    world.suspensions_end().await;
    assert_eq!(world.took(), 10 + 10 + 100);
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
    world.is_clean().await;
}

/// An agent whose one machine is broken must not end a whole queue.
#[tokio::test(start_paused = true)]
async fn the_task_of_a_machine_that_never_comes_up_is_given_back_and_the_machine_rests() {
    for (kin, status) in [
        (Kin::Ours, Status::Interrupt),
        (Kin::Stranger, Status::Abort),
    ] {
        let mut world = World::bootstrapped(&["--build-retries", "1"]).await;
        let answers = (0..2).map(|_| {
            Ok(TaskAnswer {
                kin,
                ..stranger(&task_for("linux"))
            })
        });
        world.controllers.answers.lock().unwrap().extend(answers);
        world
            .goes_on_until(|agent| !agent.suspended.is_empty())
            .await;
        world.goes_on(1).await;
        let posted = world.posted();
        let statuses: Vec<Status> = posted.iter().map(|p| p.result.status).collect();
        assert_eq!(statuses, [status], "{kin:?}");
        let operation = match kin {
            Kin::Ours => MACHINE_OPERATION,
            Kin::Stranger => AGENT_OPERATION,
        };
        assert_eq!(posted[0].result.operations[0].name, operation);
        // A person may look at it, and it is not offered for a while.
        world.controllers.requests.lock().unwrap().clear();
        world.goes_on(50).await;
        assert_eq!(world.controllers.requests.lock().unwrap().len(), 0);
        world.goes_on(30).await;
        assert_ne!(world.controllers.requests.lock().unwrap().len(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_never_answers_is_suspended_and_aborted() {
    let mut world = World::bootstrapped(&["--build-timeout", "50", "--suspend-timeout", "0"]).await;
    world.plays(vec![get("manifest")]);
    build(&mut world).await;
    assert_eq!(world.took(), 50);
    assert_eq!(world.posted()[0].result.status, Status::Abort);
    // Not kept: not suspended either.
    assert_eq!(calls(&world)[2..], [Call::Start(1), Call::ForceDown(1)]);
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_build_that_has_gone_quiet_is_noticed_before_its_time_is_over() {
    let mut world = World::bootstrapped(&["--build-quiet", "30", "--suspend-timeout", "0"]).await;
    let line = |world: &mut World, number, seconds| {
        let Step::Now(event) = world.upload(&format!("log.{number}"), b"update\ncc\n") else {
            unreachable!("an upload is told at once");
        };
        after(seconds, event)
    };
    let steps = vec![
        get("manifest"),
        line(&mut world, 1, 29),
        line(&mut world, 2, 29),
    ];
    world.plays(steps);
    build(&mut world).await;
    // 30 s after the second line.
    assert_eq!(world.took(), 88);
    let result = world.posted().remove(0).result;
    assert_eq!(result.status, Status::Abort);
    let log = &result.operations[0].log;
    assert!(
        log.contains("nothing was heard of the build for 30 s"),
        "{log}"
    );
    assert!(log.contains("cc\ncc"), "{log}");
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_person_ends_a_suspension_early() {
    let mut world = World::bootstrapped(&["--build-timeout", "50"]).await;
    world.plays(vec![get("manifest"), after(80, crash())]);
    build(&mut world).await;
    assert_eq!(world.took(), 50);
    world.suspensions_end().await;
    assert_eq!(world.took(), 80);
    assert_eq!(world.posted()[0].result.status, Status::Abort);
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_ends_in_a_build_is_noticed_at_once() {
    let mut world = World::bootstrapped(&[]).await;
    world.plays(vec![get("manifest"), after(7, crash())]);
    build(&mut world).await;
    assert_eq!(world.took(), 7);
    let result = world.posted().remove(0).result;
    assert_eq!(result.status, Status::Abnormal);
    assert!(
        result.operations[0].log.contains("signal 9"),
        "{}",
        result.operations[0].log
    );
    assert_eq!(calls(&world)[2..], [Call::Start(1), Call::ForceDown(1)]);
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_whose_kernel_panics_is_suspended() {
    let mut world = World::bootstrapped(&[]).await;
    world.plays(vec![get("manifest"), after(7, MachineEvent::Panicked)]);
    build(&mut world).await;
    assert_eq!(world.posted()[0].result.status, Status::Abnormal);
    world.suspensions_end().await;
    assert!(calls(&world).contains(&Call::Suspend(1)));
    world.is_clean().await;
}

/// Nobody looks at these builds: the log is kept all the same.
#[tokio::test(start_paused = true)]
async fn a_build_that_is_cut_short_has_its_log_until_there() {
    for (end, status, says) in [
        (None, Status::Abort, "no result within 50 s"),
        (Some(crash()), Status::Abnormal, "signal 9"),
        (Some(MachineEvent::Panicked), Status::Abnormal, "panicked"),
    ] {
        let mut world =
            World::bootstrapped(&["--build-timeout", "50", "--suspend-timeout", "0"]).await;
        let mut steps = vec![
            get("run.manifest"),
            world.upload("log.1", b"configure\nchecking\n"),
            world.upload("log.2", b"update\ncc \x1b[1mbold\x1b[m \x00\n"),
        ];
        steps.extend(end.map(|end| after(7, end)));
        world.plays(steps);
        build(&mut world).await;
        let result = world.posted().remove(0).result;
        assert_eq!((result.status, result.operations.len()), (status, 1));
        assert_eq!(result.operations[0].name, AGENT_OPERATION);
        let (reason, log) = result.operations[0].log.split_once('\n').unwrap();
        assert!(reason.contains(says), "{reason}");
        assert_eq!(
            log.trim_end(),
            "the log of the build until then:\n\n[configure]\nchecking\n[update]\ncc bold ?"
        );
        for upload in ["upload-2", "upload-3"] {
            assert!(!world.dir.path().join(upload).exists(), "{upload}");
        }
        world.is_clean().await;
    }
}

/// Where the worker has said nothing, what the guest said last is all there is.
#[tokio::test(start_paused = true)]
async fn what_a_guest_said_last_is_in_the_result() {
    let words = "Booting\n\nKernel panic - not syncing: no init\n";
    for (steps, says) in [
        (vec![after(3, MachineEvent::Panicked)], "2 tries"),
        (vec![Step::Silence], "2 tries"),
        (vec![after(3, MachineEvent::RebootLoop)], "restarts"),
        (
            vec![get("manifest"), after(3, MachineEvent::Panicked)],
            "panicked",
        ),
        (vec![get("manifest"), after(3, crash())], "signal 9"),
        (vec![get("manifest")], "no result within"),
    ] {
        let mut world =
            World::bootstrapped(&["--suspend-timeout", "0", "--build-retries", "1"]).await;
        let is_misboot = says != "panicked" && !matches!(steps[0], Step::After(Duration::ZERO, _));
        let first = is_misboot.then(|| vec![Step::Now(crash())]);
        for steps in first.into_iter().chain([steps]) {
            world.fake.add(Script {
                steps,
                last_words: words.to_owned(),
                ..Script::default()
            });
        }
        build(&mut world).await;
        let result = world.posted().remove(0).result;
        let log = &result.operations[0].log;
        assert!(log.contains(says), "{says}: {log}");
        assert!(log.contains("Kernel panic - not syncing"), "{says}: {log}");
        world.is_clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_that_cannot_be_read_has_the_log_that_came() {
    let mut world = World::bootstrapped(&["--suspend-timeout", "0"]).await;
    let steps = vec![
        get("run.manifest"),
        world.upload("log.1", b"configure\nchecking\n"),
        world.upload("manifest", b"rubbish"),
    ];
    world.plays(steps);
    build(&mut world).await;
    let result = world.posted().remove(0).result;
    assert_eq!(result.status, Status::Abnormal);
    let log = &result.operations[0].log;
    assert!(
        log.starts_with("result manifest:1:") && log.contains("[configure]\nchecking\n"),
        "{log}"
    );
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
        world.suspensions_end().await;
        assert!(calls(&world).contains(&Call::Suspend(1)));
        world.is_clean().await;
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
async fn a_fake_build_is_an_abort_without_operations() {
    let mut world = World::bootstrapped(&["--fake-build"]).await;
    build(&mut world).await;
    let result = world.posted().remove(0).result;
    assert_eq!(result, BuildResult::new("libfoo", "1.2", Status::Abort));
    assert_eq!(calls(&world).len(), 2, "nothing but the bootstrap");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_stopped_leaves_nothing() {
    let mut world = World::bootstrapped(&[]).await;
    world.plays(vec![get("manifest")]);
    world.answer(&task_for("linux"));
    let stopped = tokio::time::timeout(Duration::from_secs(65), world.turn()).await;
    assert!(stopped.is_err());
    world.kill().await;
    assert_eq!(world.fake.calls().last(), Some(&Call::Drop(1)));
    world.is_clean().await;
    assert_eq!(world.posted().len(), 0);
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
    let result = crate::local::build_on(&world.agent().context.host, &task, &archive, &mut seen)
        .await
        .unwrap();
    assert_eq!(result.status, Status::Success);
    assert_eq!(seen.0, "configure: checking\nupdate: cc\n");
    let stages = |from: usize| -> Vec<&str> {
        let words = seen.1[from..].iter().map(|stage| match stage {
            Stage::Bootstrapping { .. } => "bootstrap",
            Stage::Saving { .. } => "save",
            Stage::Copying { .. } => "copy",
            Stage::Starting { .. } => "start",
            Stage::Working { .. } => "work",
            Stage::Finished { .. } => "done",
        });
        words.collect()
    };
    // The time of a copy is not that of a start.
    assert_eq!(
        stages(0)[..5],
        ["bootstrap", "copy", "start", "work", "done"]
    );
    assert_eq!(stages(5), ["copy", "start", "work", "done"]);
    world.is_clean().await;

    // Cut short: what was shown is not repeated.
    let steps = vec![
        get("run.manifest"),
        world.upload("log.1", b"configure\nthe end\n"),
        after(1, crash()),
    ];
    world.plays(steps);
    let result = crate::local::build_on(&world.agent().context.host, &task, &archive, &mut seen)
        .await
        .unwrap();
    assert_eq!(result.status, Status::Abnormal);
    assert!(seen.0.ends_with("the end\n"), "{}", seen.0);
    assert!(!result.operations[0].log.contains("the end"), "{result:?}");

    let elsewhere = bbot_manifest::Task::new("libfoo", "1.2", "dir:.", "windows", "x");
    let error =
        crate::local::build_on(&world.agent().context.host, &elsewhere, &archive, &mut seen)
            .await
            .unwrap_err();
    assert!(error.to_string().contains("bbot machine list"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_local_build_says_what_its_machine_lacks() {
    let mut world = World::new(&[]);
    let archive = world.dir.path().join("source.tar.gz");
    fs::write(&archive, "archive").unwrap();
    let task = bbot_manifest::Task::new("libfoo", "1.2", "dir:.", "linux", "x86_64-linux-gnu");
    let host = Arc::clone(&world.agent().context.host);
    let error = async || {
        let built = crate::local::build_on(&host, &task, &archive, &mut Silent).await;
        format!("{:#}", built.unwrap_err())
    };
    // Not the throw-away copy's path, and nothing of a pause: nobody tries again.
    let revision = world.machine("linux").join("linux-1.1");
    fs::remove_file(revision.join("disk.img")).unwrap();
    assert_eq!(
        error().await,
        format!(
            "machine linux: its disk {} is not there; create or import the machine again",
            revision.join("disk.img").display()
        )
    );
    let manifest = revision.join("manifest");
    fs::write(&manifest, ": 1\nid: x\nrubbish\n").unwrap();
    let malformed = error().await;
    let place = format!("{}:3:8: error: ", manifest.display());
    assert!(malformed.contains(&place), "{malformed}");
    assert!(!malformed.contains("bbot machine create"), "{malformed}");
    assert_eq!(world.fake.started().len(), 0);
    world.is_clean().await;
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
    world.goes_on(59).await;
    assert_eq!(world.controllers.requests.lock().unwrap().len(), 0);
    world.goes_on(7).await;
    assert_ne!(world.controllers.requests.lock().unwrap().len(), 0);
}

/// Another host may have room; a controller of 2017 is told why in the result.
#[tokio::test(start_paused = true)]
async fn a_task_that_there_is_no_room_to_copy_the_machine_for_is_given_back() {
    if !testkit::require("root", rustix::process::geteuid().is_root()) {
        return;
    }
    for kin in [Kin::Ours, Kin::Stranger] {
        let mut world = World::bootstrapped(&[]).await;
        let small = tempfile::tempdir().unwrap();
        let size = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
        let mount = testkit::Mount::new(&size, small.path());
        let volume = world.dir.path().join("machines/vol");
        let moved = std::process::Command::new("mv")
            .arg(&volume)
            .arg(mount.path())
            .status();
        assert!(moved.unwrap().success());
        std::os::unix::fs::symlink(mount.path().join("vol"), &volume).unwrap();
        let disk = world.machine("linux").join("linux-default/disk.img");
        // Twice as much there is no room for.
        fs::write(&disk, vec![1; 600 * 1024]).unwrap();

        let answer = TaskAnswer {
            kin,
            ..stranger(&task_for("linux"))
        };
        world
            .controllers
            .answers
            .lock()
            .unwrap()
            .push_back(Ok(answer));
        let counts = |agent: &Agent| agent.seen.counters.host_failures;
        world.goes_on_until(|agent| counts(agent) == 1).await;
        world.goes_on(1).await;
        let result = world.posted().remove(0).result;
        match kin {
            Kin::Ours => assert_eq!(result.status, Status::Interrupt),
            Kin::Stranger => assert_eq!(result.status, Status::Abort),
        }
        let operation = match kin {
            Kin::Ours => MACHINE_OPERATION,
            Kin::Stranger => AGENT_OPERATION,
        };
        assert_eq!(result.operations[0].name, operation);
        let log = &result.operations[0].log;
        assert!(log.contains("No space left"), "{log}");
        assert_eq!((world.posted().len(), world.spool("held")), (1, 0));
        world.is_clean().await;
        // No other task would do better: none is taken for a while.
        world.controllers.requests.lock().unwrap().clear();
        world.goes_on(50).await;
        assert_eq!(world.controllers.requests.lock().unwrap().len(), 0);
        world.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_controller_is_away_with_its_source_is_given_back() {
    let mut world = World::bootstrapped(&[]).await;
    let archive = format!("http://c1.example/archives/{}.tar.gz", "0".repeat(64));
    let answer = TaskAnswer {
        kin: Kin::Ours,
        ..stranger(&task_for("linux").replace("http://r.example/1", &archive))
    };
    let away = || LinkError::Transport("connection refused".to_owned());
    let fetches = std::iter::repeat_with(away).take(5);
    world.controllers.fetches.lock().unwrap().extend(fetches);
    world
        .controllers
        .answers
        .lock()
        .unwrap()
        .push_back(Ok(answer));
    let results = Arc::clone(&world.controllers);
    world
        .goes_on_until(|_| !results.results.lock().unwrap().is_empty())
        .await;
    let result = world.posted().remove(0).result;
    assert_eq!(result.status, Status::Interrupt);
    let [said] = &result.operations[..] else {
        panic!("{result:?}");
    };
    assert_eq!(
        (said.name.as_str(), said.status),
        (AGENT_OPERATION, Status::Abort)
    );
    assert!(said.log.contains("connection refused"), "{}", said.log);
    world.goes_on(1).await;
    assert_eq!((world.posted().len(), world.spool("held")), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_source_is_fetched_again_and_its_lack_is_not_the_machines_fault() {
    let mut world = World::bootstrapped(&[]).await;
    let archive = format!("http://c1.example/archives/{}.tar.gz", "0".repeat(64));
    let task = task_for("linux").replace("http://r.example/1", &archive);
    let refused = || LinkError::Transport("connection refused".to_owned());
    world
        .controllers
        .fetches
        .lock()
        .unwrap()
        .extend([refused(), refused()]);
    world.builds("manifest", RESULT.as_bytes());
    world.answer(&task);
    assert_eq!(world.turn().await, Turn::Again);
    assert_eq!(world.posted()[0].result.status, Status::Success);

    // Another one, for it is not in the cache, that is not there at all.
    let wrong = LinkError::Hash {
        expected: "1".to_owned(),
        actual: "2".to_owned(),
    };
    world.controllers.fetches.lock().unwrap().push_back(wrong);
    world.answer(&task.replace(&"0".repeat(64), &"1".repeat(64)));
    assert_eq!(world.turn().await, Turn::Again);
    let result = &world.posted()[1].result;
    assert_eq!(result.status, Status::Abort);
    assert!(
        result.operations[0].log.contains("unable to fetch"),
        "{result:?}"
    );
    world.controllers.requests.lock().unwrap().clear();
    // The machine is offered, if to others; that controller is left alone for a while.
    assert_eq!(world.turn().await, Turn::Idle);
    let asked = world.controllers.requests.lock().unwrap().clone();
    let asked: Vec<&str> = asked.iter().map(|(url, _)| url.as_str()).collect();
    assert_eq!(asked, ["http://c2.example/?build-task"]);
}

#[tokio::test(start_paused = true)]
async fn every_phase_has_a_bound() {
    use crate::run::Progress as _;
    let mut world = World::bootstrapped(&[]).await;
    world.plays(vec![]);
    world.answer(&task_for("linux"));
    world.goes_on_until(|agent| agent.runs.len() == 1).await;
    let machine = "linux".to_owned();
    let (attempt, why) = (1, String::new());
    for (stage, at_least) in [
        (
            Stage::Bootstrapping {
                machine: machine.clone(),
                why,
            },
            3600,
        ),
        (
            Stage::Copying {
                machine: machine.clone(),
                attempt,
            },
            3600,
        ),
        (
            Stage::Starting {
                machine: machine.clone(),
                attempt,
            },
            60,
        ),
        (
            Stage::Working {
                machine: machine.clone(),
            },
            1800,
        ),
        (Stage::Finished { machine }, 600),
    ] {
        let agent = world.agent();
        let run = agent.runs.values_mut().next().unwrap();
        run.shown.stage(&stage);
        let view = agent.supervisor.view();
        let status = agent.status(&view);
        let within = status.runs[0].timeout_at.unwrap().0 - status.uptime.0;
        assert!(within >= f64::from(at_least), "{stage:?}: {within}");
        assert!(within <= 5.0 * 3600.0, "{stage:?}: {within}");
    }
}
