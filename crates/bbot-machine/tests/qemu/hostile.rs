//! What a guest may do to its machine: eat its disk, restart for ever; and what may happen to QEMU.

use std::time::Duration;

use bbot_machine::machine::{Error, ExitCause, Hypervisor, MAX_RESETS, MachineEvent, Network};
use bbot_machine::qemu::Qemu;
use rustix::process::{Pid, Signal, kill_process};
use testkit::Mount;

use super::support::{Guest, PATIENCE, must_skip, prepare, process_of};

/// The host's disk is full: the guest is halted, the run is told, and when there is room again it goes on where it was.
#[tokio::test]
async fn a_full_host_halts_the_guest_and_is_told() {
    if must_skip() || !testkit::root() {
        return;
    }
    let script = "dd if=/dev/zero of=/dev/vda bs=64k && sync\n\
                  tftp -p -r done -l /script 196.254.111.222";
    let (folder, mut spec) = prepare(script, None);
    // The machine's files, and room for 4 MiB of the 64 of its disk.
    let size = |name: &str| std::fs::metadata(spec.directory.join(name)).unwrap().len();
    let taken = (size("kernel") + size("initrd")) / 1024 + 64;
    let at = folder.path().join("volume");
    std::fs::create_dir(&at).unwrap();
    let options = format!("size={}k,mode=755", taken + 4096);
    let mount = Mount::new(&["-t", "tmpfs", "-o", &options, "tmpfs"], &at);
    for name in ["kernel", "initrd", "cmdline"] {
        std::fs::copy(spec.directory.join(name), at.join(name)).unwrap();
    }
    let disk = std::fs::File::create(at.join("disk.img")).unwrap();
    disk.set_len(64 << 20).unwrap();
    drop(disk);
    spec.directory = at.clone();
    let mut guest = Guest::start(folder, spec).await;
    let detail = match guest.other_event().await {
        MachineEvent::DiskFull { detail } => detail,
        other => panic!("{other:?}: {}", guest.console()),
    };
    assert!(detail.contains("No space left on device"), "{detail}");
    assert!(
        guest.machine.info().contains("no room on the host"),
        "{}",
        guest.machine.info()
    );
    testkit::run("mount", &["-o", "remount,size=200m", testkit::text(&at)]);
    guest.machine.resume().await.unwrap();
    guest.uploaded("done").await;
    guest.machine.force_down().await.unwrap();
    drop(guest);
    drop(mount);
}

/// A guest that restarts as soon as it has started is told of, once, and ended as any other.
#[tokio::test]
async fn a_guest_that_restarts_for_ever_is_told_of() {
    if must_skip() {
        return;
    }
    let (_folder, spec) = prepare("", None);
    for name in ["kernel", "initrd", "cmdline"] {
        std::fs::remove_file(spec.directory.join(name)).unwrap();
    }
    // A boot sector that asks the keyboard's controller for a reset: mov al, 0xfe; out 0x64, al; hlt.
    let mut sector = vec![0; 512];
    sector[..5].copy_from_slice(&[0xb0, 0xfe, 0xe6, 0x64, 0xf4]);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    std::fs::write(spec.directory.join("disk.img"), sector).unwrap();
    let mut machine = Qemu::new().start(spec).await.unwrap();
    let mut resets = 0;
    loop {
        match tokio::time::timeout(PATIENCE, machine.next_event())
            .await
            .unwrap()
        {
            MachineEvent::Reset => resets += 1,
            MachineEvent::RebootLoop => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(resets > 0 && resets < MAX_RESETS, "{resets}");
    // Nothing more is said of it.
    let more = tokio::time::timeout(Duration::from_secs(3), machine.next_event()).await;
    assert!(more.is_err(), "{more:?}");
    machine.force_down().await.unwrap();
    assert_eq!(machine.wait().await.cause, ExitCause::Forced);
}

/// QEMU's end is an event, not a time-out: on a clock that stands still unless somebody waits for it, hardly any time
/// passes.
#[tokio::test]
async fn the_end_of_qemu_is_noticed_at_once() {
    if must_skip() {
        return;
    }
    let mut guest = Guest::boot("tftp -p -r up -l /init 196.254.111.222").await;
    guest.uploaded("up").await;
    let process = i32::try_from(process_of(&guest.machine.info())).unwrap();
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    kill_process(Pid::from_raw(process).unwrap(), Signal::KILL).unwrap();
    let exit = loop {
        match guest.machine.next_event().await {
            MachineEvent::Exited(exit) => break exit,
            MachineEvent::Tftp(_) => {}
            other => panic!("{other:?}"),
        }
    };
    // What waits for the last words on standard error has a bound of 1 s, and so has the control socket.
    assert!(
        began.elapsed() <= Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(exit.cause, ExitCause::Crashed);
    assert!(exit.detail.contains("signal 9"), "{exit}");
}

/// A QEMU that does not answer holds nobody up for ever, and is ended all the same.
#[tokio::test]
async fn a_qemu_that_is_stuck_is_bounded() {
    if must_skip() {
        return;
    }
    let mut guest = Guest::boot("tftp -p -r up -l /init 196.254.111.222").await;
    guest.uploaded("up").await;
    let process = i32::try_from(process_of(&guest.machine.info())).unwrap();
    kill_process(Pid::from_raw(process).unwrap(), Signal::STOP).unwrap();
    // The clock jumps whenever nothing else is waited for.
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let error = guest.machine.suspend().await.unwrap_err();
    assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
    let outcome = guest.machine.shutdown(Duration::from_secs(30)).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    assert!(
        began.elapsed() < Duration::from_secs(120),
        "{:?}",
        began.elapsed()
    );
    tokio::time::resume();
    guest.machine.force_down().await.unwrap();
    assert_eq!(guest.machine.wait().await.cause, ExitCause::Forced);
}

/// Children of this process with that name.
fn children(name: &str) -> Vec<i32> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("stat")).ok())
        .filter_map(|stat| {
            let (pid, rest) = stat.split_once(" (")?;
            let (comm, rest) = rest.rsplit_once(") ")?;
            let parent = rest.split(' ').nth(1)?;
            (comm.starts_with(name) && parent == std::process::id().to_string())
                .then(|| pid.parse().unwrap())
        })
        .collect()
}

/// The way to the internet ends: the run is told, and the guest goes on without.
#[tokio::test]
async fn the_end_of_passt_is_told_and_the_guest_goes_on() {
    if must_skip() || !testkit::program("passt", "passt") {
        return;
    }
    let script = "while :; do tftp -p -r up -l /init 196.254.111.222; sleep 1; done";
    let (folder, mut spec) = prepare(script, None);
    spec.network = Network::User;
    let mut guest = Guest::start(folder, spec).await;
    guest.uploaded("up").await;
    let passt = children("passt");
    assert_eq!(passt.len(), 1, "{passt:?}");
    kill_process(Pid::from_raw(passt[0]).unwrap(), Signal::KILL).unwrap();
    let MachineEvent::InternetLost { detail } = guest.other_event().await else {
        panic!("{}", guest.console())
    };
    assert!(detail.contains("passt: signal 9"), "{detail}");
    // Told once, and the wire is as it was.
    guest.uploaded("up").await;
    guest.uploaded("up").await;
    guest.machine.force_down().await.unwrap();
}
