//! A container does not outlive whoever started it, and leaves nothing behind.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bbot_machine::machine::Hypervisor;
use bbot_machine::nspawn::Nspawn;

use super::support::{Guest, PATIENCE, is_running, leader_of, must_skip, prepare, process_of};

const ROLE: &str = "BBOT_TEST_STARTS_A_CONTAINER";

/// Waits until no process has the container's users, zombies excepted: those of the host's first
/// process are not ours to see off.
fn users_are_gone(first: u32, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    loop {
        let some = fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let field = |name: &str| {
                status
                    .lines()
                    .find_map(|line| line.strip_prefix(name))
                    .unwrap_or_default()
                    .trim()
                    .to_owned()
            };
            let uid: u32 = field("Uid:")
                .split_whitespace()
                .next()
                .and_then(|uid| uid.parse().ok())
                .unwrap_or(0);
            (first..first + 65_536).contains(&uid) && !field("State:").starts_with(['Z', 'X'])
        });
        if !some {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn first_user(leader: u32) -> u32 {
    let map = fs::read_to_string(format!("/proc/{leader}/uid_map")).unwrap();
    map.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The control groups of containers that a process has started.
fn groups_of(process: u32) -> Vec<std::path::PathBuf> {
    fn look(folder: &Path, prefix: &str, depth: u32, found: &mut Vec<std::path::PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                found.push(entry.path());
            } else if depth > 0 {
                look(&entry.path(), prefix, depth - 1, found);
            }
        }
    }
    let mut found = Vec::new();
    let prefix = format!("bbot-nspawn-{process}-");
    look(Path::new("/sys/fs/cgroup"), &prefix, 5, &mut found);
    found
}

/// Processes that do not want to end, some of them elsewhere.
const STUBBORN: &str = "trap '' TERM INT HUP\n\
    setsid sleep 3001 &\n\
    unshare -n -- sleep 3002 &\n\
    unshare -p -f -- sh -c 'sleep 3003 & sleep 3004' &\n\
    (setsid sh -c 'while :; do sleep 0.01; done' &)\n\
    echo up > /up; tftp -p -r up -l /up 196.254.111.222\n";

/// Not a test by itself: what the tests below kill.
#[tokio::test]
async fn starts_a_container_and_waits() {
    let Some(role) = std::env::var_os(ROLE) else {
        return;
    };
    let (folder, spec) = prepare(STUBBORN);
    println!("starting");
    let mut guest = Guest::start(folder, spec).await;
    guest.uploaded("up").await;
    if role == "suspend" {
        guest.machine.suspend().await.unwrap();
    }
    println!("container={}", leader_of(&guest.machine.info()));
    // Until killed; by itself if the test is gone.
    tokio::time::sleep(Duration::from_secs(120)).await;
}

fn starter(role: &str) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "lifetime::starts_a_container_and_waits",
            "--nocapture",
        ])
        .env(ROLE, role)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn dies_with_its_parent(role: &str) {
    if must_skip() {
        return;
    }
    let mut parent = starter(role);
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let leader = lines
        .map_while(Result::ok)
        .find_map(|line| {
            Some(
                line.split_once("container=")?
                    .1
                    .trim()
                    .parse::<u32>()
                    .unwrap(),
            )
        })
        .expect("the parent did not start a container");
    let first = first_user(leader);
    assert!(is_running(leader));
    let groups = groups_of(parent.id());
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert!(
        users_are_gone(first, Duration::from_secs(10)),
        "some process of {first} lives on"
    );
    // The next agent removes what the kernel leaves: the empty groups.
    Nspawn::sweep();
    let left: Vec<_> = groups.iter().filter(|group| group.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn it_dies_when_its_parent_is_killed() {
    dies_with_its_parent("run");
}

#[test]
fn a_suspended_one_dies_when_its_parent_is_killed() {
    dies_with_its_parent("suspend");
}

/// nspawn alone would leave its container behind when it is killed while it starts it.
#[test]
fn it_dies_with_its_parent_at_any_moment_of_its_start() {
    if must_skip() {
        return;
    }
    for step in 0..12u64 {
        let mut parent = starter("run");
        let id = parent.id();
        let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines();
        assert!(
            lines
                .by_ref()
                .map_while(Result::ok)
                .any(|line| line.contains("starting"))
        );
        std::thread::sleep(Duration::from_millis(step * 17));
        parent.kill().unwrap();
        parent.wait().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lives = fs::read_dir("/proc").unwrap().flatten().any(|entry| {
                let path = entry.path();
                let line = fs::read(path.join("cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line);
                let groups = fs::read_to_string(path.join("cgroup")).unwrap_or_default();
                !line.is_empty() && groups.contains(&format!("bbot-nspawn-{id}-"))
            });
            if !lives {
                break;
            }
            assert!(Instant::now() < deadline, "after {} ms", step * 17);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Nspawn::sweep();
}

#[tokio::test]
async fn nothing_is_left_when_its_machine_is_dropped() {
    if must_skip() {
        return;
    }
    let mut guest = Guest::boot(STUBBORN).await;
    guest.uploaded("up").await;
    let info = guest.machine.info();
    let first = first_user(leader_of(&info));
    let own = std::process::id();
    assert!(!groups_of(own).is_empty());
    drop(guest.machine);
    assert!(!is_running(process_of(&info)));
    assert!(users_are_gone(first, Duration::ZERO), "of {first}");
    assert_eq!(groups_of(own), Vec::<std::path::PathBuf>::new());
    assert!(!guest.folder.path().join("run").exists());
    // nspawn's own folder is as it was.
    let shared = Path::new("/run/systemd/nspawn/propagate/bbot");
    assert!(!shared.exists());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let folder = guest.folder.path().to_str().unwrap();
    assert!(!mounts.contains(folder), "{mounts}");
    // No lock file beside the root directory.
    let entries = fs::read_dir(guest.folder.path().join("machine")).unwrap();
    let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["rootfs"]);
}

#[tokio::test]
async fn one_that_is_busy_is_down_when_that_is_said() {
    if must_skip() {
        return;
    }
    let mut guest = Guest::boot(&format!(
        "for n in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done\n{STUBBORN}"
    ))
    .await;
    guest.uploaded("up").await;
    let first = first_user(leader_of(&guest.machine.info()));
    let begin = Instant::now();
    guest.machine.force_down().await.unwrap();
    println!("down after {:?}", begin.elapsed());
    assert!(users_are_gone(first, Duration::ZERO));
}

/// The kernel's "die with your parent" looks at the thread that forked.
#[test]
fn it_outlives_the_thread_that_asked_for_it() {
    if must_skip() {
        return;
    }
    let (_folder, spec) = prepare("");
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let machine = runtime.block_on(Nspawn::new().start(spec)).unwrap();
        (runtime, machine)
    });
    let (runtime, mut machine) = thread.join().unwrap();
    runtime.block_on(async {
        machine.suspend().await.unwrap();
        machine.resume().await.unwrap();
        assert!(is_running(leader_of(&machine.info())));
        machine.force_down().await.unwrap();
    });
}
