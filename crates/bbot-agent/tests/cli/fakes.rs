//! Dumps, fakes, and signals while a person plays the machine.

use std::fs;

use bbot_manifest::{BootstrappedMachine, BuildResult, Task};

use crate::support::*;

#[test]
fn dumped_machines_are_manifests_one_each() {
    let host = Host::new();
    host.machine(
        "windows",
        ": 1\nid: w-1\nname: windows\nsummary: A Windows\ntype: kvm\nmac: 02:00:00:00:00:01\n",
    );
    host.machine("bad", "rubbish");
    fs::create_dir_all(host.path("machines/vol/empty")).unwrap();
    let output = host.run(&[
        "--dump-machines",
        "--fake-bootstrap",
        "--fake-build",
        "--toolchain-id",
        "tid",
    ]);
    assert_eq!(
        succeeds(&output),
        format!("{HEADER}: 1\nid: w-1\nname: windows\nsummary: A Windows\n")
    );
    assert!(
        text(&output.stderr).contains("bad-1.1/manifest:1:"),
        "{}",
        text(&output.stderr)
    );

    let manifest = host.path("machines/vol/linux/linux-default/manifest");
    let machine = BootstrappedMachine::parse(&fs::read(manifest).unwrap(), "m").unwrap();
    assert_eq!(
        machine.machine.mac.unwrap().to_string(),
        "de:ad:be:ef:de:ad"
    );
    assert_eq!(machine.toolchain.id, "tid");
    assert!(machine.bootstrap.is_ours());

    // With a machine header there are no others.
    let header = host.file("header", HEADER);
    assert_eq!(
        succeeds(&host.run(&["--dump-machines", "--fake-machine", &header])),
        HEADER
    );
    // And without any, nothing is printed.
    fs::remove_dir_all(host.path("machines/vol")).unwrap();
    assert_eq!(
        succeeds(&host.run(&["--dump-machines", "--fake-bootstrap", "--fake-build"])),
        ""
    );
}

#[test]
fn an_unknown_toolchain_id_is_bogus() {
    let host = Host::new();
    succeeds(&host.run(&["--dump-machines", "--fake-bootstrap", "--fake-build"]));
    let manifest = host.path("machines/vol/linux/linux-default/manifest");
    let machine = BootstrappedMachine::parse(&fs::read(manifest).unwrap(), "m").unwrap();
    assert_eq!(machine.toolchain.id, "bogus");
}

#[test]
fn a_dumped_task_is_as_it_came() {
    let host = Host::new();
    let task = host.file("task", TASK);
    let args = [
        "--fake-bootstrap",
        "--fake-build",
        "--fake-request",
        &task,
        "--trust",
        "CD",
        "--dump-task",
    ];
    assert_eq!(succeeds(&host.run(&args)), TASK);

    // The seed's way with an unknown machine.
    let task = host.file("task", &TASK.replace("linux\ntarget", "windows\ntarget"));
    let args = [
        "--fake-bootstrap",
        "--fake-build",
        "--fake-request",
        &task,
        "--dump-task",
    ];
    let output = host.run(&args);
    assert_eq!(succeeds(&output), "");
    assert!(
        text(&output.stderr).contains("unknown machine windows"),
        "{}",
        text(&output.stderr)
    );
    // Without the dump it is an error.
    fails(&host.run(&args[..4]), &["unknown machine windows"]);
}

#[test]
fn a_fake_build_is_an_abort() {
    let host = Host::new();
    let task = host.file("task", TASK);
    let args = [
        "--fake-bootstrap",
        "--fake-build",
        "--fake-request",
        &task,
        "--dump-result",
    ];
    let result = succeeds(&host.run(&args));
    assert_eq!(result, ": 1\nname: libfoo\nversion: 1.2\nstatus: abort\n");
    // Once, and nothing is posted anywhere.
    let output = host.run(&args[..4]);
    assert_eq!(succeeds(&output), "");
    assert!(
        text(&output.stderr).contains("libfoo/1.2: abort"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_person_plays_the_machine() {
    let host = Host::new();
    let (header, task) = (host.file("header", HEADER), host.file("task", TASK));
    let args = [
        "--fake-machine",
        &header,
        "--fake-request",
        &task,
        "--dump-result",
        "--toolchain-name",
        "public-0.17.0",
        "--trust",
        "CD",
    ];
    let child = host.command(&args).spawn().unwrap();
    let base = host.path("tftp/build/public-0.17.0");
    let got = appears(&base.join("get/manifest"));
    assert_eq!(Task::parse(got.as_bytes(), "task").unwrap().trust, ["CD"]);
    // A writer that is slow: first a part, then the whole.
    fs::write(base.join("put/manifest"), &RESULT[..40]).unwrap();
    fs::write(base.join("put/manifest"), RESULT).unwrap();
    let printed = succeeds(&finish(child));
    assert_eq!(
        BuildResult::parse(printed.as_bytes(), "out").unwrap(),
        BuildResult::parse(RESULT.as_bytes(), "in").unwrap()
    );
    assert!(!base.exists(), "the folders are gone");
    assert!(
        !host.path("machines/vol/linux/linux-public-0.17.0").exists(),
        "no machine was touched"
    );
}

#[test]
fn signals_end_it_cleanly() {
    use nix::sys::signal::{SIGHUP, SIGINT, SIGTERM};
    // SIGHUP only reads the configuration again.
    for signals in [&[SIGTERM][..], &[SIGINT], &[SIGHUP, SIGTERM]] {
        let host = Host::new();
        let header = host.file("header", HEADER);
        let task = host.file("task", TASK);
        let child = host
            .command(&["--fake-machine", &header, "--fake-request", &task])
            .spawn()
            .unwrap();
        let base = host.path("tftp/build/default");
        appears(&base.join("get/manifest"));
        for signal in signals {
            send(&child, *signal);
        }
        let output = finish(child);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{signals:?}: {}",
            text(&output.stderr)
        );
        assert!(!base.exists(), "{signals:?}: the folders are gone");
    }
}
