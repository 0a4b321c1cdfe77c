//! QEMU does not outlive whoever started it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use bbot_machine::machine::{Hypervisor, Network};
use bbot_machine::qemu::Qemu;

use super::support::{must_skip, prepare, process_of};

const ROLE: &str = "BBOT_TEST_STARTS_A_MACHINE";

/// Waits until a process that is not our child has ended.
fn has_ended(process: u32, within: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let pid = rustix::process::Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
    let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return true;
    };
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::try_from(within).unwrap())).unwrap() > 0
}

/// Not a test by itself: what the test below kills.
#[tokio::test]
async fn starts_a_machine_and_waits() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let (_folder, spec) = prepare("", None);
    let machine = Qemu::new().start(spec).await.unwrap();
    println!("qemu={}", process_of(&machine.info()));
    // Until killed; by itself if the test is gone.
    tokio::time::sleep(Duration::from_secs(120)).await;
}

#[tokio::test]
async fn qemu_dies_when_its_parent_is_killed() {
    if must_skip() {
        return;
    }
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "lifetime::starts_a_machine_and_waits",
            "--nocapture",
        ])
        .env(ROLE, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let process = lines
        .map_while(Result::ok)
        .find_map(|line| Some(line.split_once("qemu=")?.1.trim().parse::<u32>().unwrap()))
        .expect("the parent did not start a machine");
    assert!(!has_ended(process, Duration::ZERO));
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert!(
        has_ended(process, Duration::from_secs(20)),
        "QEMU {process} lives on"
    );
}

#[tokio::test]
async fn qemu_dies_when_its_machine_is_dropped() {
    if must_skip() {
        return;
    }
    let (_folder, spec) = prepare("", None);
    let machine = Qemu::new().start(spec).await.unwrap();
    let process = process_of(&machine.info());
    drop(machine);
    assert!(
        has_ended(process, Duration::ZERO),
        "QEMU {process} lives on"
    );
}

/// The kernel's "die with your parent" looks at the thread that forked.
#[test]
fn qemu_outlives_the_thread_that_asked_for_it() {
    if must_skip() {
        return;
    }
    let (_folder, spec) = prepare("", None);
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let machine = runtime.block_on(Qemu::new().start(spec)).unwrap();
        (runtime, machine)
    });
    let (runtime, mut machine) = thread.join().unwrap();
    runtime.block_on(async {
        assert!(!has_ended(
            process_of(&machine.info()),
            Duration::from_millis(500)
        ));
        machine.suspend().await.unwrap();
        machine.force_down().await.unwrap();
    });
}

const VICTIM: &str = "BBOT_TEST_STARTS_MACHINES";
const REAPER: &str = "BBOT_TEST_REAPS";

/// Not a test by itself: starts machines, with a way to the internet where there is passt, until it is killed.
#[tokio::test]
async fn starts_machines_until_killed() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    println!("victim");
    for _ in 0..200 {
        let (_folder, mut spec) = prepare("", None);
        if bbot_machine::qemu::process::is_installed("passt".as_ref()) {
            spec.network = Network::User;
        }
        drop(Qemu::new().start(spec).await.unwrap());
    }
}

/// Not a test by itself: whoever loses its parent comes to this process, which waits for all.
#[test]
fn reaps_what_the_killed_left() {
    if std::env::var_os(REAPER).is_none() {
        return;
    }
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    for round in 0..16_u64 {
        let folder = tempfile::tempdir().unwrap();
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "lifetime::starts_machines_until_killed",
                "--nocapture",
            ])
            .env(VICTIM, "1")
            .env("TMPDIR", folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        assert!(
            lines
                .by_ref()
                .map_while(Result::ok)
                .any(|line| line.contains("victim"))
        );
        // At any moment: before, between and after fork and exec of either program.
        std::thread::sleep(Duration::from_millis(round * 23 % 200));
        victim.kill().unwrap();
        victim.wait().unwrap();
        let began = std::time::Instant::now();
        loop {
            match rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
                Err(rustix::io::Errno::CHILD) => break,
                Ok(_) => std::thread::sleep(Duration::from_millis(5)),
                Err(error) => panic!("{error}"),
            }
            let left =
                std::fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id()));
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "round {round}: {left:?} live on"
            );
        }
    }
    println!("all gone");
}

/// QEMU, passt, and what is between fork and exec: none outlives its agent, at whatever moment that is killed.
#[test]
fn nothing_lives_on_whenever_the_agent_is_killed() {
    if must_skip() {
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "lifetime::reaps_what_the_killed_left",
            "--nocapture",
        ])
        .env(REAPER, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("all gone"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
