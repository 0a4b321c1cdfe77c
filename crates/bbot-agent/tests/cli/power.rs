//! A loss of power at any moment: what is to be on the disk is there before what follows from it. Shown by the order of
//! the real agent's system calls, as `strace` sees them.

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use bbot_machine::volume;

use crate::scripted::{answer, serve};
use crate::support::*;

/// A system call that did not fail, or that goes on.
#[derive(Debug)]
struct Call {
    /// Its name and its arguments; files have their paths, those of descriptors in `<>`.
    text: String,
    /// The lines of the trace from its beginning to its end: other threads' calls may begin meanwhile.
    lines: Range<usize>,
}

/// A command that runs this one and traces what concerns the disk, and connections.
fn traced(command: &Command, trace: &Path) -> Command {
    let mut traced = Command::new("strace");
    traced
        .args(["-f", "--seccomp-bpf", "-y", "-s", "200", "-e"])
        .arg(
            "trace=openat,mkdir,mkdirat,write,fsync,fdatasync,syncfs,rename,renameat,renameat2,unlink,unlinkat,ioctl,\
             connect",
        )
        .arg("-o")
        .arg(trace)
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    traced
}

/// The calls of a trace, in the order of their ends. Each line is `PID NAME(ARGUMENTS) = RESULT`, or a part of that.
fn calls(trace: &str) -> Vec<Call> {
    let mut begun = HashMap::new();
    let mut calls = Vec::new();
    for (number, line) in trace.lines().enumerate() {
        let Some((pid, rest)) = line.trim_start().split_once(' ') else {
            continue;
        };
        if let Some(call) = rest.strip_suffix("<unfinished ...>") {
            begun.insert(pid, (number, call.trim_start()));
            continue;
        }
        let (first, text) = match rest.split_once(" resumed>") {
            Some((_, end)) => {
                let (first, begin) = begun.remove(pid).expect("what is resumed has begun");
                (first, format!("{begin}{end}"))
            }
            None => (number, rest.trim_start().to_owned()),
        };
        if !text.contains(" = -1 ") || text.contains("EINPROGRESS") {
            let lines = first..number;
            calls.push(Call { text, lines });
        }
    }
    calls
}

/// Looks for calls in this order, each beginning after the end of the one before, and gives the line in which the last
/// one ends. Each is told by its name, or the beginning of several, and by what is in its arguments.
#[track_caller]
fn in_order(calls: &[Call], from: usize, wanted: &[(&str, &str)]) -> usize {
    let mut end = from;
    for (name, part) in wanted {
        let found = calls.iter().find(|call| {
            call.lines.start >= end && call.text.starts_with(name) && call.text.contains(part)
        });
        let Some(call) = found else {
            let list: Vec<&str> = calls.iter().map(|call| &*call.text).collect();
            panic!(
                "no {name} of {part} after line {end} of\n{}",
                list.join("\n")
            );
        };
        end = call.lines.end + 1;
    }
    end
}

/// That no such call begins before this line.
#[track_caller]
fn none_before(calls: &[Call], line: usize, name: &str, part: &str) {
    let early = calls.iter().find(|call| {
        call.lines.start < line && call.text.starts_with(name) && call.text.contains(part)
    });
    assert!(early.is_none(), "too early: {early:?}");
}

/// Bootstraps a machine that is in these `machines`, twice: the first comes to a free name, the second takes its place.
fn bootstraps_in_order(host: &Host, machines: &Path) {
    let machine = machines.join("vol/linux");
    fs::create_dir_all(&machine).unwrap();
    let revision = machine.join("linux-1.1");
    let volume = volume::detect(&machine).unwrap();
    volume.create(&revision).unwrap();
    fs::write(revision.join("manifest"), format!("{HEADER}type: kvm\n")).unwrap();
    fs::write(revision.join("disk.img"), "disk").unwrap();
    symlink("linux-1.1", machine.join("linux-1")).unwrap();

    let folder = format!("{}>)", machine.display());
    for id in ["t1", "t2"] {
        let mut agent = Command::new(env!("CARGO_BIN_EXE_bbot-agent"));
        agent.arg("--machines").arg(machines);
        for option in ["tftp", "state"] {
            agent.arg(format!("--{option}")).arg(host.path(option));
        }
        agent.args(["--dump-machines", "--fake-bootstrap", "--fake-build"]);
        agent.args(["--toolchain-id", id]);
        let trace = host.path("trace");
        let output = traced(&agent, &trace).output().unwrap();
        succeeds(&output);
        let calls = calls(&fs::read_to_string(trace).unwrap());
        // The record is on the disk, and so is its name, before there is anything that it is about. A snapshot of
        // btrfs comes to the disk with its transaction, which has all names that were made before.
        let mut written = vec![
            ("openat(", ".owner\""),
            ("write(", ".owner>"),
            ("fsync(", ".owner>"),
            ("fsync(", folder.as_str()),
        ];
        if volume.keeps_order() {
            written.pop();
        }
        let record = in_order(&calls, 0, &written);
        none_before(&calls, record, "mkdir", "linux-default-");
        none_before(&calls, record, "ioctl(", "SNAP_CREATE");
        // All of the machine is on the disk before it gets its name, and the name before the record goes.
        let replaced = in_order(
            &calls,
            record,
            &[
                ("write(", "/.manifest"),
                ("fsync(", "/.manifest"),
                ("rename", "/manifest\""),
                ("fsync(", "/linux-default-"),
                ("syncfs(", "/linux"),
                ("rename", "/linux-default\""),
                ("fsync(", &folder),
            ],
        );
        let gone = in_order(&calls, replaced, &[("unlink", ".owner\"")]);
        none_before(&calls, replaced, "unlink", ".owner\"");
        assert!(gone > replaced);
    }
}

fn must_skip() -> bool {
    !testkit::program("strace", "strace")
}

#[test]
fn a_bootstrapped_machine_is_on_disk_before_it_has_its_name_on_directories() {
    if must_skip() {
        return;
    }
    let host = Host::without_machines();
    bootstraps_in_order(&host, &host.path("machines"));
}

#[test]
fn a_bootstrapped_machine_is_on_disk_before_it_has_its_name_on_btrfs() {
    if must_skip() || !testkit::btrfs() {
        return;
    }
    let host = Host::without_machines();
    let btrfs = testkit::Mount::btrfs(&host.path(""), 512 << 20);
    bootstraps_in_order(&host, btrfs.path());
}

/// A machine that never says anything: its address outlives that.
#[test]
fn the_address_of_a_machine_is_on_disk_once_it_is_started() {
    if must_skip() || !testkit::program("qemu-system-x86_64", "qemu") {
        return;
    }
    let host = Host::new();
    let toolchain = host.path("tftp/toolchains/default");
    fs::create_dir_all(&toolchain).unwrap();
    fs::write(toolchain.join("bootstrap"), "#!/bin/sh\n").unwrap();
    let trace = host.path("trace");
    let agent = host.command(&[
        "--dump-machines",
        "--accel",
        "tcg",
        "--network",
        "none",
        "--bootstrap-startup",
        "1",
        "--bootstrap-retries",
        "0",
        "--suspend-timeout",
        "0",
    ]);
    let output = traced(&agent, &trace).output().unwrap();
    let said = text(&output.stderr);
    assert!(said.contains("bootstrap startup timeout"), "{said}");
    let folder = format!("{}>)", host.path("machines/vol/linux").display());
    in_order(
        &calls(&fs::read_to_string(trace).unwrap()),
        0,
        &[
            ("write(", ".linux-default.mac"),
            ("fsync(", ".linux-default.mac"),
            ("rename", ".linux-default.mac\""),
            ("fsync(", &folder),
        ],
    );
}

/// A task is held before anything is done for it, so that it is given back should the agent not come to an end with it;
/// its result is on disk before that goes, and before the first byte goes to its controller.
#[test]
fn a_result_is_on_disk_before_it_is_posted() {
    if must_skip() {
        return;
    }
    let host = Host::new();
    let header = host.file("header", HEADER);
    let ours = "Bbot-Controller: 1\r\n";
    let (results, result_server) = serve(vec![answer("200 OK", ours, "")]);
    let task = format!(
        ": 1\nsession: s/1\nresult-url: {results}?build-result\n:\n{}",
        &TASK[4..]
    );
    let (tasks, _task_server) = serve(vec![answer("200 OK", ours, &task)]);
    let trace = host.path("trace");
    let agent = host.command(&[
        "--fake-machine",
        &header,
        "--allow-result-url",
        &results,
        &tasks,
    ]);
    let mut child = traced(&agent, &trace)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let run = host.path("tftp/build/default");
    appears(&run.join("get/manifest"));
    fs::write(run.join("put/manifest"), RESULT).unwrap();
    result_server.join().unwrap();
    // strace writes each line when the call has returned, or another thread's begins.
    let folder = |name: &str| {
        host.path(&format!("state/default/{name}"))
            .display()
            .to_string()
    };
    let (held, spooled) = (folder("held"), folder("results"));
    let removed = format!("unlink(\"{spooled}/");
    let begin = Instant::now();
    let trace = loop {
        let text = fs::read_to_string(&trace).unwrap();
        if text.contains(&removed) {
            break text;
        }
        assert!(begin.elapsed() < BOUND, "no end in\n{text}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    // The agent, of which each line says the number: it would outlive strace.
    let agent = trace.split_whitespace().next().unwrap().parse().unwrap();
    let agent = rustix::process::Pid::from_raw(agent).unwrap();
    rustix::process::kill_process(agent, rustix::process::Signal::KILL).unwrap();
    child.wait().unwrap();

    let calls = calls(&trace);
    let in_folder = |folder: &str| format!("{folder}/");
    let of_folder = |folder: &str| format!("{folder}>)");
    let port = results.trim_end_matches('/').rsplit(':').next().unwrap();
    let safely_held = in_order(
        &calls,
        0,
        &[
            ("write(", &in_folder(&held)),
            ("fsync(", &in_folder(&held)),
            ("rename", &in_folder(&held)),
            ("fsync(", &of_folder(&held)),
        ],
    );
    none_before(&calls, safely_held, "mkdir", "tftp/build/default");
    let there = in_order(
        &calls,
        safely_held,
        &[
            ("write(", &in_folder(&spooled)),
            ("fsync(", &in_folder(&spooled)),
            ("rename", &in_folder(&spooled)),
            ("fsync(", &of_folder(&spooled)),
        ],
    );
    none_before(&calls, there, "unlink", &format!("{held}/"));
    none_before(&calls, there, "connect(", &format!("htons({port})"));
    in_order(
        &calls,
        there,
        &[
            ("connect(", &format!("htons({port})")),
            ("unlink", &in_folder(&spooled)),
        ],
    );
}

/// The helpers above find what is out of order, and what only begins in time.
#[test]
fn a_wrong_order_is_found() {
    let trace = "1 write(3</x>, \"\", 0) = 0\n\
                 1 fsync(3</x> <unfinished ...>\n\
                 2 rename(\"/x\", \"/y\") = 0\n\
                 1 <... fsync resumed>) = 0\n\
                 1 fsync(4</f>) = -1 EIO (Input/output error)\n";
    let calls = calls(trace);
    let texts: Vec<&str> = calls.iter().map(|call| &*call.text).collect();
    assert_eq!(
        texts,
        [
            "write(3</x>, \"\", 0) = 0",
            "rename(\"/x\", \"/y\") = 0",
            "fsync(3</x> ) = 0"
        ]
    );
    let holds =
        |wanted: &[(&str, &str)]| std::panic::catch_unwind(|| in_order(&calls, 0, wanted)).is_ok();
    assert!(holds(&[("write(", "</x>"), ("fsync(", "</x>")]));
    assert!(!holds(&[
        ("write(", "</x>"),
        ("fsync(", "</x>"),
        ("rename", "/y")
    ]));
    assert!(!holds(&[("fsync(", "</f>")]));
    assert!(std::panic::catch_unwind(|| none_before(&calls, 2, "fsync", "/x")).is_err());
    none_before(&calls, 2, "rename", "/y");
}
