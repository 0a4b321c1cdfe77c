//! A container hits its bounds, and the host lives.

use std::path::Path;
use std::time::{Duration, Instant};

use bbot_machine::machine::{ExitCause, MachineEvent};
use bbot_machine::nspawn::Nspawn;

use super::support::{Guest, PATIENCE, must_skip, prepare};

/// Whether control groups bound this here: in version 2, or in version 1.
fn has(controller: &str) -> bool {
    let two = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let there = two.split_whitespace().any(|one| one == controller)
        || Path::new("/sys/fs/cgroup").join(controller).is_dir();
    testkit::require("cgroup", there)
}

fn send(name: &str) -> String {
    format!("tftp -p -b 1468 -r {name} -l /{name} 196.254.111.222\n")
}

#[tokio::test]
async fn a_fork_bomb_hits_the_bound_on_processes() {
    if must_skip() || !has("pids") {
        return;
    }
    // Small and slow; bounded by itself too, should the bound not hold.
    let script = format!(
        "n=0; while [ $n -lt 400 ]; do sleep 60 & n=$((n+1)); done\n\
         echo all of them; {}",
        send("told")
    );
    // The shell itself cannot fork then, and ends: who counts is the host.
    let (folder, spec) = prepare(&script);
    let nspawn = Nspawn::new().with_processes(64);
    let mut guest = Guest::start_in(&nspawn, folder, spec).await;
    let leader = super::support::leader_of(&guest.machine.info());
    let map = std::fs::read_to_string(format!("/proc/{leader}/uid_map")).unwrap();
    let first: u32 = map.split_whitespace().nth(1).unwrap().parse().unwrap();
    let count = || {
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter(|entry| {
                std::fs::read_to_string(entry.path().join("status")).is_ok_and(|status| {
                    status
                        .lines()
                        .find_map(|line| line.strip_prefix("Uid:"))
                        .and_then(|uids| uids.split_whitespace().next()?.parse::<u32>().ok())
                        .is_some_and(|uid| (first..first + 65_536).contains(&uid))
                })
            })
            .count()
    };
    let begin = Instant::now();
    let mut most = 0;
    while begin.elapsed() < PATIENCE && !guest.console().contains("can't fork") {
        most = most.max(count());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    most = most.max(count());
    assert!(
        guest.console().contains("can't fork"),
        "{}",
        guest.console()
    );
    assert!((30..=64).contains(&most), "{most} processes");
    // The host is well, and the container obeys.
    assert!(
        std::process::Command::new("true")
            .status()
            .unwrap()
            .success()
    );
    guest.machine.force_down().await.unwrap();
    assert_eq!(count(), 0);
}

#[tokio::test]
async fn a_memory_hog_hits_the_bound_on_memory() {
    if must_skip() || !has("memory") {
        return;
    }
    // 300 MiB in memory, where 64 are allowed.
    let script = format!(
        "mkdir /hog; mount -t tmpfs -o size=300m hog /hog\n\
         (dd if=/dev/zero of=/hog/file bs=1M count=300 2>&1; echo \"dd: $?\") > /told\n\
         rm -f /hog/file; {}",
        send("told")
    );
    let (folder, mut spec) = prepare(&script);
    spec.ram_kib = 64 << 10;
    let mut guest = Guest::start(folder, spec).await;
    // Either what allocates is killed, or all that is in the container.
    loop {
        match guest.event().await {
            MachineEvent::Tftp(bbot_tftp::Event::Uploaded { name, path, .. }) if name == "told" => {
                let told = std::fs::read_to_string(path).unwrap();
                assert!(told.contains("dd: 137"), "{told}");
                break;
            }
            MachineEvent::Exited(exit) => {
                assert_ne!(exit.cause, ExitCause::PoweredOff, "{exit}");
                break;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_flood_on_the_wire_is_drained_and_the_wire_still_works() {
    if must_skip() {
        return;
    }
    let mut guest = Guest::boot(&format!(
        "(timeout 3 ping -f -s 1400 196.254.111.222 || timeout 3 ping -A -s 1400 196.254.111.222) > /dev/null 2>&1 &\n\
         n=0; while [ $n -lt 300 ]; do echo flood | nc -u -w 0 196.254.111.222 69 & n=$((n+1)); done > /dev/null 2>&1\n\
         echo well > /told\n{}",
        send("told")
    ))
    .await;
    assert_eq!(guest.uploaded("told").await, "well\n");
    guest.machine.force_down().await.unwrap();
}

#[tokio::test]
async fn it_has_no_more_processor_time_than_it_may() {
    if must_skip() || !has("cpu") {
        return;
    }
    let mut guest = Guest::boot(&format!(
        "for n in 1 2 3; do (while :; do :; done) & done; sleep 2; \
         cat /proc/[0-9]*/stat > /told; {}",
        send("told")
    ))
    .await;
    let told = guest.uploaded("told").await;
    // utime and stime, fields 14 and 15, in hundredths of a second.
    let used: u64 = told
        .lines()
        .filter_map(|line| {
            let mut fields = line.rsplit_once(')')?.1.split_whitespace().skip(11);
            let user: u64 = fields.next()?.parse().ok()?;
            let system: u64 = fields.next()?.parse().ok()?;
            Some(user + system)
        })
        .sum();
    println!("used {used} hundredths");
    // One processor for about two and a half seconds.
    assert!(used < 400, "{used} hundredths of a second");
}
