//! What a guest does on its wire, and what it is told.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use bbot_machine::machine::{Disk, ExitCause, MachineEvent, ShutdownOutcome};
use bbot_tftp::Root;
use rustix::process::{Pid, Signal, kill_process};

use super::support::{Guest, PATIENCE, must_skip, prepare, process_of};
use super::wire_support::break_wire;

#[tokio::test]
async fn busybox_fetches_and_uploads_over_the_wire() {
    if must_skip() {
        return;
    }
    // Around the block sizes; the last one takes many blocks.
    let sizes = [0, 1, 511, 512, 513, 1468, 2936, 2937, 300_000];
    let mut script = "set -e\n".to_owned();
    let mut root = Root::new();
    let mut expected = Vec::new();
    for (index, size) in sizes.into_iter().enumerate() {
        let bytes: Vec<u8> = (0..size)
            .map(|i: usize| (i * 31 + index).to_le_bytes()[0])
            .collect();
        for (kind, option) in [("plain", ""), ("large", "-b 1468")] {
            let name = format!("{kind}.{size}");
            root = root.get_bytes(format!("in.{name}"), bytes.clone());
            writeln!(
                script,
                "tftp {option} -g -r in.{name} -l /f 196.254.111.222\n\
                 tftp {option} -p -r out.{name} -l /f 196.254.111.222"
            )
            .unwrap();
            expected.push((format!("out.{name}"), bytes.clone()));
        }
    }
    script.push_str(
        "ping -c 1 196.254.111.222 > /ping\n\
         (ifconfig eth0; route -n; cat /ping) > /net\n\
         tftp -p -r net -l /net 196.254.111.222\n",
    );
    let (folder, mut spec) = prepare(&script, None);
    let put = folder.path().join("put");
    spec.tftp.root = root
        .get_bytes("script", script.as_bytes())
        .put_any(put, 8 << 20);
    let mut guest = Guest::start(folder, spec).await;
    for (name, bytes) in expected {
        let got = guest.uploaded(&name).await;
        assert!(got == bytes, "{name}: {} bytes came back", got.len());
    }
    let net = String::from_utf8(guest.uploaded("net").await).unwrap();
    assert!(net.contains("inet addr:196.254.111.2 "), "{net}");
    assert!(
        net.to_lowercase()
            .contains(&guest.machine.mac().to_string()),
        "{net}"
    );
    assert!(net.contains("1 packets received"), "{net}");
    // No way out: there is no default route.
    assert!(
        !net.lines().any(|line| line.starts_with("0.0.0.0")),
        "{net}"
    );
    assert!(
        guest.console().contains("lease=86400"),
        "{}",
        guest.console()
    );
}

#[tokio::test]
async fn it_has_few_rights_and_obeys() {
    if must_skip() {
        return;
    }
    let mut guest = Guest::boot("tftp -p -r up -l /init 196.254.111.222").await;
    guest.uploaded("up").await;
    let info = guest.machine.info();
    let process = process_of(&info);
    let read = |name: &str| fs::read_to_string(format!("/proc/{process}/{name}")).unwrap();

    let line = read("cmdline").replace('\0', " ");
    for part in [
        "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-nodefaults",
        "-no-user-config",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    let status = read("status");
    let field = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default();
        line.split_whitespace()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(field("Seccomp:"), ["2"], "{status}");
    assert_eq!(field("NoNewPrivs:"), ["1"], "{status}");
    assert_eq!(field("CapEff:"), ["0000000000000000"], "{status}");
    for id in field("Uid:").iter().chain(&field("Gid:")) {
        assert_ne!(id, "0", "{status}");
    }
    let limits = read("limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");

    // Its sockets are private, and a person is told of them.
    let run = guest.folder.path().join("run");
    for folder in [run.clone(), run.join("qemu")] {
        assert_eq!(
            fs::metadata(&folder).unwrap().mode() & 0o777,
            0o700,
            "{folder:?}"
        );
    }
    assert!(info.contains("machine test (tcg): running"), "{info}");
    for socket in ["console", "vnc"] {
        let path = run.join("qemu").join(socket);
        assert!(info.contains(path.to_str().unwrap()), "{info}");
    }
    let mut screen = std::os::unix::net::UnixStream::connect(run.join("qemu/vnc")).unwrap();
    let mut greeting = [0; 4];
    std::io::Read::read_exact(&mut screen, &mut greeting).unwrap();
    assert_eq!(&greeting, b"RFB ");

    guest.machine.suspend().await.unwrap();
    assert!(guest.machine.info().contains("suspended"));
    guest.machine.resume().await.unwrap();
    assert!(guest.machine.info().contains("running"));

    assert_eq!(
        guest.machine.shutdown(PATIENCE).await.unwrap(),
        ShutdownOutcome::Down
    );
    assert_eq!(guest.other_event().await, MachineEvent::PoweringOff);
    let MachineEvent::Exited(exit) = guest.other_event().await else {
        panic!("it did not exit")
    };
    assert_eq!(exit.cause, ExitCause::PoweredOff, "{exit}");
    assert!(guest.machine.resume().await.is_err());
    guest.machine.force_down().await.unwrap();
    assert_eq!(guest.machine.wait().await, exit);
    drop(guest.machine);
    assert!(!run.exists(), "the sockets are left");
}

#[tokio::test]
async fn a_disk_that_is_kept_has_what_the_guest_wrote() {
    if must_skip() {
        return;
    }
    let script = "echo written-by-the-guest > /dev/vda; sync; poweroff -f";
    let (folder, mut spec) = prepare(script, None);
    spec.disk = Disk::Kept;
    let disk = spec.directory.join("disk.img");
    let before = fs::metadata(&disk).unwrap();
    let mut guest = Guest::start(folder, spec).await;
    let exit = tokio::time::timeout(PATIENCE, guest.machine.wait())
        .await
        .unwrap();
    assert_eq!(
        exit.cause,
        ExitCause::PoweredOff,
        "{exit}\n{}",
        guest.console()
    );
    assert!(
        fs::read(&disk)
            .unwrap()
            .starts_with(b"written-by-the-guest\n")
    );
    let after = fs::metadata(&disk).unwrap();
    assert_eq!((after.uid(), after.mode()), (before.uid(), before.mode()));
}

#[tokio::test]
async fn options_of_its_own_reach_the_agent_too() {
    if must_skip() {
        return;
    }
    let options = "-machine pc -netdev tap,id=n,script=no,ifname=? \
                   -device 'virtio-net-pci,netdev=n,mac=?,romfile=' \
                   -drive file=disk.img,format=raw,if=virtio";
    let script = "(cat /sys/block/vda/size; cat /sys/class/net/eth0/address) > /f\n\
                  tftp -p -r seen -l /f 196.254.111.222";
    let (folder, spec) = prepare(script, Some(options));
    let mut guest = Guest::start(folder, spec).await;
    let seen = String::from_utf8(guest.uploaded("seen").await).unwrap();
    assert_eq!(seen, format!("2048\n{}\n", guest.machine.mac()));
    guest.machine.force_down().await.unwrap();
}

#[tokio::test]
async fn restart_and_panic_are_told() {
    if must_skip() {
        return;
    }
    // The second time the host has the mark that the first has left.
    let script = "if tftp -g -r mark -l /mark 196.254.111.222; then echo c > /proc/sysrq-trigger\n\
                  else tftp -p -r mark -l /init 196.254.111.222; reboot -f; fi";
    let (folder, mut spec) = prepare(script, None);
    let put = folder.path().join("put");
    spec.tftp.root = spec.tftp.root.clone().get_folder(put);
    let mut guest = Guest::start(folder, spec).await;
    assert_eq!(guest.other_event().await, MachineEvent::Reset);
    // A kernel tries several ways to restart, so it may be told more than once.
    let next = loop {
        match guest.other_event().await {
            MachineEvent::Reset => {}
            other => break other,
        }
    };
    assert_eq!(next, MachineEvent::Panicked, "{}", guest.console());
    assert!(
        guest.machine.info().contains("panic"),
        "{}",
        guest.machine.info()
    );
    guest.machine.force_down().await.unwrap();
    let MachineEvent::Exited(exit) = guest.other_event().await else {
        panic!("it did not exit")
    };
    assert_eq!(exit.cause, ExitCause::Forced, "{exit}");
}

#[tokio::test]
async fn a_deaf_guest_is_forced_down_and_a_killed_one_noticed() {
    if must_skip() {
        return;
    }
    let mut guest = Guest::boot("killall acpid; tftp -p -r up -l /init 196.254.111.222").await;
    guest.uploaded("up").await;
    let outcome = guest
        .machine
        .shutdown(Duration::from_secs(1))
        .await
        .unwrap();
    assert_eq!(outcome, ShutdownOutcome::TimedOut);
    let process = i32::try_from(process_of(&guest.machine.info())).unwrap();
    // Ends QEMU as a crash would.
    kill_process(Pid::from_raw(process).unwrap(), Signal::SEGV).unwrap();
    let MachineEvent::Exited(exit) = guest.other_event().await else {
        panic!("it did not exit")
    };
    assert_eq!(exit.cause, ExitCause::Crashed, "{exit}");
    assert!(exit.detail.contains("signal 11"), "{exit}");

    let mut guest = Guest::boot("killall acpid; tftp -p -r up -l /init 196.254.111.222").await;
    guest.uploaded("up").await;
    guest.machine.force_down().await.unwrap();
    assert_eq!(guest.machine.wait().await.cause, ExitCause::Forced);
}

/// What it had not written out by then may be missing: that is no shutdown.
#[tokio::test]
async fn one_that_is_killed_during_its_shutdown_has_not_powered_off() {
    if must_skip() {
        return;
    }
    let mut guest = Guest::boot("killall acpid; tftp -p -r up -l /init 196.254.111.222").await;
    guest.uploaded("up").await;
    let process = i32::try_from(process_of(&guest.machine.info())).unwrap();
    let (outcome, ()) = tokio::join!(guest.machine.shutdown(PATIENCE), async {
        kill_process(Pid::from_raw(process).unwrap(), Signal::KILL).unwrap();
    });
    let ShutdownOutcome::Ended(exit) = outcome.unwrap() else {
        panic!("it is taken for one that powered off")
    };
    assert_eq!(exit.cause, ExitCause::Crashed, "{exit}");
    assert!(exit.detail.contains("signal 9"), "{exit}");
    // Asked again it says the same.
    let again = guest.machine.shutdown(PATIENCE).await.unwrap();
    assert_eq!(again, ShutdownOutcome::Ended(exit));
}

#[tokio::test]
async fn one_whose_wire_fails_is_ended_and_told_of() {
    if must_skip() {
        return;
    }
    let script = "tftp -p -r up -l /init 196.254.111.222\n\
                  while :; do tftp -g -r none -l /none 196.254.111.222; done";
    let mut guest = Guest::boot(script).await;
    guest.uploaded("up").await;
    break_wire();
    let MachineEvent::Exited(exit) = guest.other_event().await else {
        panic!("it did not exit")
    };
    assert_eq!(exit.cause, ExitCause::Crashed, "{exit}");
    assert!(exit.detail.contains("its wire failed: "), "{exit}");
}

#[tokio::test]
async fn the_kernel_would_end_it_before_the_agent() {
    if must_skip() {
        return;
    }
    let mut guest = Guest::boot("tftp -p -r up -l /init 196.254.111.222").await;
    guest.uploaded("up").await;
    let of = |process: &str| -> i32 {
        let path = format!("/proc/{process}/oom_score_adj");
        fs::read_to_string(path).unwrap().trim().parse().unwrap()
    };
    let guests = of(&process_of(&guest.machine.info()).to_string());
    assert!(guests >= of("self").max(300), "{guests}");
}
