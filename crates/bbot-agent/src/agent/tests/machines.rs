//! Machines: which are found, bootstrapped, used, left alone.

use super::*;

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
    world.add_machine("pipe", "x");
    let pipe = world.machine("pipe").join("pipe-1.1/manifest");
    fs::remove_file(&pipe).unwrap();
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
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
    // At 0, 60 and 180 s, each time some seconds after the pause.
    for (seconds, tries) in [(50, 1), (50, 2), (70, 2), (50, 3)] {
        world.goes_on(seconds).await;
        assert_eq!(world.fake.started().len(), tries);
    }
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
    world.goes_on(10).await;
    assert_eq!(world.fake.started().len(), 4);
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_host_without_qemu_is_told_and_the_agent_goes_on() {
    let mut world = World::bootstrapped(&[]).await;
    let missing = bbot_machine::machine::Error::NotInstalled {
        program: "qemu".to_owned(),
        package: "qemu",
    };
    world.fake.add(Script {
        start_error: Some(missing),
        ..Script::default()
    });
    assert_eq!(build(&mut world).await, Turn::Again);
    let result = world.posted().remove(0).result;
    assert_eq!(result.status, Status::Abort);
    let log = &result.operations[0].log;
    assert!(log.contains("install the package"), "{log}");
    // No other task would do better: none is taken for a while.
    world.controllers.requests.lock().unwrap().clear();
    world.goes_on(59).await;
    assert_eq!(world.controllers.requests.lock().unwrap().len(), 0);
    world.builds("manifest", RESULT.as_bytes());
    assert_eq!(build(&mut world).await, Turn::Again);
    assert_eq!(world.posted()[1].result.status, Status::Success);
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_bootstrap_loses_neither_address_nor_machine() {
    let mut world = World::bootstrapped(&["--toolchain-id", "one"]).await;
    let before = bootstrapped(&world);
    assert_eq!(before.toolchain.id, "one");
    // Another toolchain, and a guest that never gets there.
    world
        .restart(&[
            "--toolchain-id",
            "two",
            "--bootstrap-timeout",
            "9",
            "--suspend-timeout",
            "0",
        ])
        .await;
    world.plays(vec![get("bootstrap")]);
    assert_eq!(world.turn().await, Turn::Idle);
    assert_eq!(world.fake.started()[1].mac, before.machine.mac);
    assert_eq!(bootstrapped(&world), before);
    world.is_clean().await;
    // Gone altogether: the address is still known.
    fs::remove_dir_all(world.machine("linux").join("linux-default")).unwrap();
    world.boots();
    world.goes_on(100).await;
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
    world.turn().await;
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
    world.is_clean().await;
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
        assert_eq!(world.turn().await, Turn::Idle);
        world.goes_on(35).await;
        assert_eq!(calls(&world).contains(&Call::Suspend(0)), number != 2);
        assert!(!world.machine("linux").join("linux-default").exists());
        assert_eq!(world.fake.started().len(), 1, "not again at once");
        world.is_clean().await;
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
    world.turn().await;
    assert_eq!(begin.elapsed().as_secs(), 300);
    world.suspensions_end().await;
    assert_eq!(begin.elapsed().as_secs(), 300 + 1);
    assert!(!world.machine("linux").join("linux-default").exists());
    world.is_clean().await;
}

/// What it had not written out is missing from its disk: what was bootstrapped before stays.
#[tokio::test(start_paused = true)]
async fn a_machine_that_crashes_over_its_shutdown_is_not_bootstrapped() {
    let mut world = World::bootstrapped(&["--toolchain-id", "one"]).await;
    let before = bootstrapped(&world);
    world.restart(&["--toolchain-id", "two"]).await;
    let steps = vec![
        get("bootstrap"),
        world.upload("manifest", BootstrapManifestText::ours().as_bytes()),
    ];
    world.fake.add(Script {
        steps,
        button: Button::Crashes,
        ..Script::default()
    });
    assert_eq!(world.turn().await, Turn::Idle);
    assert_eq!(bootstrapped(&world), before);
    assert_eq!(world.agent().seen.counters.bootstraps_failed, 1);
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_without_a_current_revision_loses_its_bootstrapped_copy() {
    let mut world = World::bootstrapped(&[]).await;
    fs::remove_file(world.machine("linux").join("linux-1")).unwrap();
    assert_eq!(world.turn().await, Turn::Idle);
    assert!(!world.machine("linux").join("linux-default").exists());
    assert!(world.machine("linux").join("linux-1.1").exists());
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_revision_is_bootstrapped_and_takes_the_place_of_the_old() {
    let mut world = World::bootstrapped(&[]).await;
    let before = bootstrapped(&world);
    make_revision(&world.machine("linux"), "linux", "2", "linux-1.2");
    fs::remove_file(world.machine("linux").join("linux-1")).unwrap();
    std::os::unix::fs::symlink("linux-1.2", world.machine("linux").join("linux-1")).unwrap();
    world.boots();
    world.turn().await;
    let after = bootstrapped(&world);
    assert_eq!(world.agent().seen.counters.bootstraps, 2);
    assert_eq!(after.machine.header.id, "linux-1.2");
    assert_eq!(after.machine.mac, before.machine.mac);
    assert_eq!(
        fs::read_to_string(world.machine("linux").join("linux-default/disk.img")).unwrap(),
        "disk of linux-1.2"
    );
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_copied_when_nothing_has_changed() {
    let mut world = World::bootstrapped(&[]).await;
    // A copy would fail here.
    fs::remove_file(world.machine("linux").join("linux-1.1/disk.img")).unwrap();
    std::os::unix::fs::symlink("/", world.machine("linux").join("linux-1.1/disk.img")).unwrap();
    world.turn().await;
    assert_eq!(world.controllers.requests.lock().unwrap().len(), 2);
    assert_eq!(world.fake.started().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_link_that_leads_to_nothing_is_tried_ten_times_more() {
    let mut world = World::new(&[]);
    fs::remove_dir_all(world.machine("linux").join("linux-1.1")).unwrap();
    let begin = Instant::now();
    assert_eq!(world.turn().await, Turn::Idle);
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
    assert_eq!(world.turn().await, Turn::Idle);
    assert_eq!(
        world.controllers.requests.lock().unwrap().len(),
        0,
        "no machine to offer"
    );
    assert_eq!(world.fake.started().len(), 1);

    fs::write(&path, "rubbish").unwrap();
    world.boots();
    world.turn().await;
    assert_eq!(world.fake.started().len(), 2);
    assert_eq!(fs::read_to_string(&path).unwrap(), good);
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
    world.turn().await;
    assert_eq!(bootstrapped(&world).toolchain.id, one);
    world.turn().await;
    assert_eq!(world.fake.started().len(), 1);
    let two = add("two");
    world.boots();
    world.turn().await;
    assert_eq!(world.fake.started().len(), 2);
    assert_eq!(bootstrapped(&world).toolchain.id, two);
    world.is_clean().await;
}
