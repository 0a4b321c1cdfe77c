//! What restored copies of one machine share, and what they do not: a real guest with the real worker in it.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bbot_machine::mac::Mac;
use bbot_machine::machine::{ExitCause, MachineEvent, Memory, Tftp};
use bbot_machine::warm::{Base, Waiting};
use bbot_manifest::{Fresh, RunManifest};
use bbot_tftp::{Event, Root};
use tempfile::TempDir;

use crate::support::{Guest, must_skip, prepare};

const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

/// How many copies are restored one after the other, and how many at once. `BBOT_TEST_RESTORES` names others: "200,8".
const RESTORES: (usize, usize) = (6, 4);

/// Beside the worker something else runs in the machine: it is stopped while the machine is saved, and tells what it
/// finds once it goes on.
const SCRIPT: &str = "set -e\n\
    tftp -b 1468 -g -r worker -l /worker 196.254.111.222\n\
    chmod 755 /worker\n\
    mkdir -p /build /root\n\
    /worker --startup --build /build > /dev/console 2>&1 &\n\
    until tftp -g -r after -l /after 196.254.111.222 2>/dev/null; do usleep 1000; done\n\
    adjtimex > /t0\n\
    tftp -g -r clock -l /clock 196.254.111.222\n\
    adjtimex > /t1\n\
    (for t in /t0 /t1; do grep tv_ $t | sed 's/.*: *//'; done\n\
     cat /clock; echo\n\
     head -c 16 /dev/urandom | hexdump -e '16/1 \"%02x\"'; echo\n\
     cat /proc/sys/kernel/random/uuid\n\
     grep stack /proc/self/maps | cut -d- -f1\n\
     grep ^Tcp: /proc/net/snmp | tail -n 1 | cut -d' ' -f6-7\n\
     cat /after) > /out\n\
    cat /after > /dev/vda\n\
    sync\n\
    tftp -p -r out -l /out 196.254.111.222\n\
    poweroff -f\n";

fn worker() -> Option<PathBuf> {
    let found = std::env::var_os("BBOT_WORKER").map(PathBuf::from);
    let found = found.filter(|path| path.is_file());
    if found.is_none() {
        testkit::missing("image", "no BBOT_WORKER");
    }
    found
}

fn run(save: Option<&str>, fresh: Option<Fresh>) -> Vec<u8> {
    let run = RunManifest {
        agent: "bbot-agent/test".to_owned(),
        log_segments: None,
        source: None,
        save: save.map(str::to_owned),
        fresh,
    };
    run.serialize().unwrap().into_bytes()
}

async fn saved(worker: Vec<u8>) -> (TempDir, Base) {
    let (folder, mut spec) = prepare(SCRIPT, None);
    spec.mac = Some(MAC);
    spec.memory = Memory::ToBeSaved;
    spec.tftp.root = Root::new()
        .get_bytes("script", SCRIPT.as_bytes())
        .get_bytes("worker", worker)
        .get_bytes("run.manifest", run(Some("restored.manifest"), None))
        .get_held("restored.manifest");
    let mut guest = Guest::start(folder, spec).await;
    let waiting = waits(&mut guest).await;
    let base = guest.machine.save(waiting).await.unwrap();
    (guest.folder, base)
}

/// Waits until its worker waits.
async fn waits(guest: &mut Guest) -> Waiting {
    loop {
        if let MachineEvent::Tftp(Event::Held { peer, request, .. }) = guest.event().await {
            return Waiting { peer, request };
        }
    }
}

/// What one restored copy says of itself.
#[derive(Debug)]
struct Said {
    /// How far its clock is off at least.
    off: Duration,
    random: String,
    uuid: String,
    stack: String,
    /// Connections opened and accepted since the machine was booted.
    tcp: String,
    number: String,
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

impl Said {
    fn read(text: &str) -> Self {
        let lines: Vec<&str> = text.lines().collect();
        let [s0, us0, s1, us1, clock, random, uuid, stack, tcp, number] = lines[..] else {
            panic!("{text}")
        };
        let time = |seconds: &str, micros: &str| {
            Duration::new(seconds.parse().unwrap(), 0)
                + Duration::from_micros(micros.parse().unwrap())
        };
        let (before, after) = (time(s0, us0), time(s1, us1));
        let host = Duration::from_nanos(clock.parse().unwrap());
        Self {
            // The host's clock was read in between.
            off: before.saturating_sub(host).max(host.saturating_sub(after)),
            random: random.to_owned(),
            uuid: uuid.to_owned(),
            stack: stack.to_owned(),
            tcp: tcp.to_owned(),
            number: number.to_owned(),
        }
    }
}

/// Restores a copy, with a disk of its own, and lets it come to its end. Each second one is prepared first, and waits.
async fn restore(disk: Vec<u8>, base: Arc<Base>, number: usize) -> Said {
    let (folder, mut spec) = prepare(SCRIPT, None);
    let image = spec.directory.join("disk.img");
    fs::write(&image, disk).unwrap();
    spec.mac = Some(MAC);
    spec.memory = Memory::Restored(base);
    let seed: [u8; 32] = std::array::from_fn(|at| u8::try_from((number * 31 + at) % 256).unwrap());
    let fresh = Fresh {
        clock: "clock".to_owned(),
        seed: hex::encode(seed),
    };
    let of_task = Root::new()
        .get_bytes("restored.manifest", run(None, Some(fresh.clone())))
        .get_bytes("prepared.manifest", run(None, Some(fresh)))
        .get_made("clock", || now().as_nanos().to_string().into_bytes())
        .get_bytes("after", format!("copy {number}\n").into_bytes())
        .put_any(folder.path().join("put"), 1 << 20);
    let is_prepared = number % 2 == 1;
    spec.tftp.root = match is_prepared {
        true => Root::new()
            .get_bytes("restored.manifest", run(Some("prepared.manifest"), None))
            .get_held("prepared.manifest"),
        false => of_task.clone(),
    };
    let limits = spec.tftp.limits.clone();
    let mut guest = Guest::start(folder, spec).await;
    if is_prepared {
        let waiting = waits(&mut guest).await;
        guest.machine.suspend().await.unwrap();
        // Its clock stands still meanwhile.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let tftp = Tftp {
            root: of_task,
            limits,
        };
        guest.machine.go_on(tftp, waiting).await.unwrap();
    }
    let said = String::from_utf8(guest.uploaded("out").await).unwrap();
    let MachineEvent::Exited(exit) = (loop {
        match guest.other_event().await {
            MachineEvent::PoweringOff => {}
            other => break other,
        }
    }) else {
        panic!("it did not exit")
    };
    assert_eq!(exit.cause, ExitCause::PoweredOff, "{exit}");
    let said = Said::read(&said);
    assert_eq!(said.number, format!("copy {number}"));
    let disk = fs::read(image).unwrap();
    assert!(disk.starts_with(format!("{}\n", said.number).as_bytes()));
    said
}

#[tokio::test]
async fn restored_copies_share_neither_time_nor_randomness_nor_anything_writable() {
    let Some(worker) = worker().filter(|_| !must_skip()) else {
        return;
    };
    let (in_a_row, at_once) = std::env::var("BBOT_TEST_RESTORES").map_or(RESTORES, |text| {
        let (row, once) = text.split_once(',').unwrap();
        (row.parse().unwrap(), once.parse().unwrap())
    });
    let (folder, base) = saved(fs::read(worker).unwrap()).await;
    let disk = fs::read(folder.path().join("machine/disk.img")).unwrap();
    let stored = tempfile::tempdir().unwrap();
    base.store(stored.path()).unwrap();
    let ram = fs::read(stored.path().join("warm.ram")).unwrap();
    let base = Arc::new(base);

    let mut all = Vec::new();
    for number in 0..in_a_row {
        let said = restore(disk.clone(), Arc::clone(&base), number).await;
        assert!(said.off <= Duration::from_millis(100), "{said:?}");
        all.push(said);
    }
    let mut copies = tokio::task::JoinSet::new();
    for number in 0..at_once {
        copies.spawn(restore(disk.clone(), Arc::clone(&base), in_a_row + number));
    }
    while let Some(said) = copies.join_next().await {
        let said = said.unwrap();
        assert!(said.off <= Duration::from_secs(1), "{said:?}");
        all.push(said);
    }
    let count = in_a_row + at_once;
    for values in [
        all.iter().map(|said| &said.random).collect::<HashSet<_>>(),
        all.iter().map(|said| &said.uuid).collect(),
        all.iter().map(|said| &said.stack).collect(),
        all.iter().map(|said| &said.number).collect(),
    ] {
        assert_eq!(values.len(), count, "{all:#?}");
    }
    assert!(all.iter().all(|said| said.tcp == "0 0"), "{all:#?}");
    base.store(stored.path()).unwrap();
    assert!(fs::read(stored.path().join("warm.ram")).unwrap() == ram);
}
