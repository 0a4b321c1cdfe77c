//! What machines that wait cost the agent itself: memory and threads, for 16 of them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "qemu/support.rs"]
#[expect(dead_code, reason = "shared with the tests of QEMU")]
mod support;

use std::fs;

use bbot_machine::machine::{Hypervisor, Machine, MachineEvent};
use bbot_machine::qemu::Qemu;
use bbot_tftp::Event;

use support::{PATIENCE, must_skip, prepare};

/// How many wait.
const MACHINES: u64 = 16;
/// What each may cost, in KiB.
const EACH: u64 = 1024;

/// The agent's own memory that no file backs, in KiB.
fn own_memory() -> u64 {
    fs::read_to_string("/proc/self/status")
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok())
        .unwrap()
}

async fn waits(machine: &mut dyn Machine) {
    loop {
        let event = tokio::time::timeout(PATIENCE, machine.next_event()).await;
        match event.unwrap() {
            MachineEvent::Tftp(Event::Uploaded { name, .. }) if name == "waits" => return,
            MachineEvent::Tftp(_) => {}
            other => panic!("{other:?}: {}", machine.last_words()),
        }
    }
}

/// Guests of 128 MiB that have fetched, uploaded, and said all that a boot says on its console, and now ask for a task
/// that there is not, once a second.
#[tokio::test]
async fn sixteen_waiting_guests_cost_the_agent_less_than_a_mebibyte_each() {
    if must_skip() {
        return;
    }
    let script = "tftp -p -r waits -l /script 196.254.111.222\n\
                  while :; do tftp -g -r task.manifest -l /t 196.254.111.222; sleep 1; done";
    let start = async || {
        let (folder, mut spec) = prepare(script, None);
        spec.ram_kib = 128 * 1024;
        (Qemu::new().start(spec).await.unwrap(), folder)
    };
    // The first brings what all share: the thread that starts processes, tables of the C library, the runtime's own.
    let (mut first, _first_folder) = start().await;
    waits(&mut *first).await;
    let before = own_memory();
    let mut machines = Vec::new();
    for _ in 0..MACHINES {
        // One boots at a time: under TCG each takes a processor.
        let (mut machine, folder) = start().await;
        waits(&mut *machine).await;
        machines.push((machine, folder));
    }
    // Each asks on, and is answered, while it waits.
    for (machine, _) in &mut machines {
        let event = tokio::time::timeout(PATIENCE, machine.next_event())
            .await
            .unwrap();
        assert!(matches!(event, MachineEvent::Tftp(_)), "{event:?}");
        assert!(machine.last_words().contains("Linux version"));
    }
    let after = own_memory();
    let each = after.saturating_sub(before) / MACHINES;
    let threads = fs::read_dir("/proc/self/task").unwrap().count();
    println!("{each} KiB for each of {MACHINES} waiting guests, {threads} threads in all");
    assert!(each < EACH, "{each} KiB each");
    // Console, standard error and wire: three threads each.
    assert!(
        threads as u64 <= 3 * (MACHINES + 1) + 8,
        "{threads} threads"
    );
}
