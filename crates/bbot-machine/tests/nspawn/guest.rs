//! A container does what a virtual machine does: it speaks over its wire, powers off, restarts, is
//! suspended, resumed and ended.

use std::os::unix::fs::PermissionsExt as _;

use std::time::{Duration, Instant};

use bbot_machine::machine::{ExitCause, MachineEvent, ShutdownOutcome};
use bbot_machine::nspawn::Nspawn;
use rustix::process::{Pid, Signal, kill_process};

use super::support::{Guest, PATIENCE, must_skip, prepare, process_of};
use super::wire_support::break_wire;

const UP: &str = "echo up > /up; tftp -p -r up -l /up 196.254.111.222\n";

#[tokio::test]
async fn it_fetches_and_uploads_over_its_wire() {
    if must_skip() {
        return;
    }
    let (folder, mut spec) = prepare(
        "(ifconfig eth0; cat /sys/class/net/eth0/address; ls /sys/class/net) > /told\n\
         tftp -p -b 1468 -r told -l /told 196.254.111.222\n\
         tftp -g -r script -l /again 196.254.111.222 && ping -c 1 196.254.111.222 && echo done\n\
         tftp -p -r again -l /again 196.254.111.222\n",
    );
    spec.mac = Some(bbot_machine::mac::Mac([2, 0x11, 0x22, 0x33, 0x44, 0x55]));
    let mac = spec.mac;
    let begin = Instant::now();
    let mut guest = Guest::start(folder, spec).await;
    assert_eq!(Some(guest.machine.mac()), mac);
    let told = guest.uploaded("told").await;
    println!("upload after {:?}", begin.elapsed());
    assert!(told.contains("inet addr:196.254.111.2"), "{told}");
    assert!(told.contains("02:11:22:33:44:55\neth0\nlo\n"), "{told}");
    let again = guest.uploaded("again").await;
    assert!(again.starts_with("(ifconfig"), "{again}");
    let run = guest.folder.path().join("run");
    assert!(run.join("nspawn/console").exists());
    guest.machine.force_down().await.unwrap();
    guest.machine.force_down().await.unwrap();
    let MachineEvent::Exited(exit) = guest.other_event().await else {
        panic!("no exit");
    };
    assert_eq!(exit.cause, ExitCause::Forced, "{exit}");
    assert!(guest.console().contains("eth0: ip=196.254.111.2"));
    assert!(
        guest
            .machine
            .last_words()
            .contains("eth0: ip=196.254.111.2")
    );
    assert_eq!(guest.machine.process(), None);
    drop(guest.machine);
    assert!(!run.exists());
}

#[tokio::test]
async fn a_power_off_from_inside_is_told_at_once_and_after_what_was_sent() {
    if must_skip() {
        return;
    }
    let mut guest = Guest::boot(&format!("{UP}poweroff -f\n")).await;
    guest.uploaded("up").await;
    assert_eq!(guest.other_event().await, MachineEvent::PoweringOff);
    let MachineEvent::Exited(exit) = guest.other_event().await else {
        panic!("no exit");
    };
    assert_eq!(exit.cause, ExitCause::PoweredOff, "{exit}");
    assert_eq!(guest.machine.wait().await, exit);
    // Nothing comes after it.
    let more = tokio::time::timeout(Duration::from_millis(50), guest.machine.next_event()).await;
    assert!(more.is_err());
}

#[tokio::test]
async fn it_powers_off_when_it_is_asked_to() {
    if must_skip() {
        return;
    }
    let mut guest = Guest::boot(UP).await;
    guest.uploaded("up").await;
    let down = guest.machine.shutdown(PATIENCE).await.unwrap();
    assert_eq!(down, ShutdownOutcome::Down);
    let exit = guest.machine.wait().await;
    assert_eq!(exit.cause, ExitCause::PoweredOff, "{exit}");
}

#[tokio::test]
async fn one_that_does_not_obey_still_runs_after_the_time() {
    if must_skip() {
        return;
    }
    let mut guest = Guest::boot(&format!("trap '' TERM\n{UP}while :; do sleep 1; done\n")).await;
    guest.uploaded("up").await;
    let bound = Duration::from_millis(2500);
    let outcome = guest.machine.shutdown(bound).await.unwrap();
    assert_eq!(outcome, ShutdownOutcome::TimedOut);
    let begin = Instant::now();
    guest.machine.force_down().await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(guest.machine.wait().await.cause, ExitCause::Forced);
}

#[tokio::test]
async fn its_restart_is_told_and_it_comes_back_on_the_same_wire() {
    if must_skip() {
        return;
    }
    let mut guest = Guest::boot(&format!(
        "if [ -e /second ]; then {UP}else touch /second; reboot -f; fi\n"
    ))
    .await;
    assert_eq!(guest.other_event().await, MachineEvent::Reset);
    assert_eq!(guest.uploaded("up").await, "up\n");
    guest.machine.force_down().await.unwrap();
}

#[tokio::test]
async fn a_first_program_that_fails_is_a_crash_with_its_last_words() {
    if must_skip() {
        return;
    }
    let (folder, spec) = prepare("");
    std::fs::write(
        spec.directory.join("rootfs/sbin/init"),
        "#!/bin/busybox sh\necho the disk is on fire\nexit 7\n",
    )
    .unwrap();
    let run_dir = spec.run_dir.clone();
    // It may end before or after it is said to run.
    let said =
        match bbot_machine::machine::Hypervisor::start(&bbot_machine::nspawn::Nspawn::new(), spec)
            .await
        {
            Ok(mut machine) => {
                let exit = machine.wait().await;
                assert_eq!(exit.cause, ExitCause::Crashed);
                exit.to_string()
            }
            Err(error) => error.to_string(),
        };
    assert!(said.contains("exit status 7"), "{said}");
    assert!(said.contains("the disk is on fire"), "{said}");
    assert!(!run_dir.exists());
    drop(folder);
}

/// By the freezer, and by signals where there is none.
async fn does_nothing_while_suspended(nspawn: &Nspawn) {
    if must_skip() {
        return;
    }
    let (folder, spec) = prepare(&format!(
        "(while :; do echo tick; sleep 0.05; done) &\n{UP}while :; do sleep 0.1; \
         tftp -g -r go -l /go 196.254.111.222 2>/dev/null; done\n"
    ));
    let mut guest = Guest::start_in(nspawn, folder, spec).await;
    guest.uploaded("up").await;
    guest.machine.suspend().await.unwrap();
    assert!(
        guest.machine.info().contains("suspended"),
        "{}",
        guest.machine.info()
    );
    // What was on its way arrives.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = guest.console();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(guest.console(), before, "it goes on");
    guest.machine.resume().await.unwrap();
    assert!(guest.machine.info().contains("running"));
    let begin = Instant::now();
    while guest.console() == before {
        assert!(begin.elapsed() < PATIENCE, "it does not go on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A suspended one can be ended, and one that is asked to end goes on for it.
    guest.machine.suspend().await.unwrap();
    guest.machine.force_down().await.unwrap();
    assert_eq!(guest.machine.wait().await.cause, ExitCause::Forced);
    assert!(guest.machine.suspend().await.is_err());
    assert!(guest.machine.resume().await.is_err());
}

#[tokio::test]
async fn a_suspended_container_does_nothing_until_it_is_resumed() {
    does_nothing_while_suspended(&Nspawn::new()).await;
}

#[tokio::test]
async fn one_that_cannot_be_frozen_is_stopped_by_signals() {
    does_nothing_while_suspended(&Nspawn::new().without_control_groups()).await;
}

#[tokio::test]
async fn a_suspended_container_wakes_up_to_power_off() {
    if must_skip() {
        return;
    }
    let mut guest = Guest::boot(UP).await;
    guest.uploaded("up").await;
    guest.machine.suspend().await.unwrap();
    let down = guest.machine.shutdown(PATIENCE).await.unwrap();
    assert_eq!(down, ShutdownOutcome::Down);
}

#[tokio::test]
async fn one_that_restarts_for_ever_is_told_of() {
    if must_skip() {
        return;
    }
    let (folder, spec) = prepare("");
    std::fs::write(
        spec.directory.join("rootfs/sbin/init"),
        "#!/bin/busybox sh\nexec /bin/busybox reboot -f\n",
    )
    .unwrap();
    let mut machine = bbot_machine::machine::Hypervisor::start(&Nspawn::new(), spec)
        .await
        .unwrap();
    let begin = Instant::now();
    let mut told = 0;
    loop {
        match tokio::time::timeout(PATIENCE, machine.next_event()).await {
            Ok(MachineEvent::Reset) => told += 1,
            Ok(MachineEvent::RebootLoop) => break,
            other => panic!("{other:?} after {told} restarts"),
        }
    }
    println!("{told} restarts in {:?}", begin.elapsed());
    assert_eq!(told + 1, bbot_machine::machine::MAX_RESETS);
    // It still runs, and can be ended whatever it is about to do.
    machine.force_down().await.unwrap();
    assert_eq!(machine.wait().await.cause, ExitCause::Forced);
    drop(folder);
}

/// The line that leads a person in does.
#[tokio::test]
async fn the_line_that_leads_in_works_as_it_stands() {
    if must_skip() {
        return;
    }
    let mut guest = Guest::boot(&format!("echo it is in here > /here\n{UP}")).await;
    guest.uploaded("up").await;
    let info = guest.machine.info();
    let line = info.lines().find_map(|line| line.strip_prefix("shell:"));
    let line = line.unwrap().trim();
    let output = std::process::Command::new("sh")
        .args(["-c", &format!("{line} -c 'cat /here; id -u; hostname'")])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        said, "it is in here\n0\nbuild\n",
        "{line}: {:?}",
        output.stderr
    );
    guest.machine.force_down().await.unwrap();
    assert!(!guest.machine.info().contains("shell:"));
}

/// What it had not done by then is missing: that is no shutdown.
#[tokio::test]
async fn one_that_is_killed_during_its_shutdown_has_not_powered_off() {
    if must_skip() {
        return;
    }
    let mut guest = Guest::boot(&format!("trap '' TERM\n{UP}while :; do sleep 1; done\n")).await;
    guest.uploaded("up").await;
    let process = i32::try_from(process_of(&guest.machine.info())).unwrap();
    let (outcome, ()) = tokio::join!(guest.machine.shutdown(PATIENCE), async {
        kill_process(Pid::from_raw(process).unwrap(), Signal::KILL).unwrap();
    });
    let ShutdownOutcome::Ended(exit) = outcome.unwrap() else {
        panic!("it is taken for one that powered off")
    };
    assert_eq!(exit.cause, ExitCause::Crashed, "{exit}");
}

#[tokio::test]
async fn one_whose_wire_fails_is_ended_and_told_of() {
    if must_skip() {
        return;
    }
    let script = format!("{UP}while :; do tftp -g -r none -l /none 196.254.111.222; done\n");
    let mut guest = Guest::boot(&script).await;
    guest.uploaded("up").await;
    break_wire();
    let MachineEvent::Exited(exit) = guest.other_event().await else {
        panic!("it did not exit")
    };
    assert_eq!(exit.cause, ExitCause::Crashed, "{exit}");
    assert!(exit.detail.contains("its wire failed: "), "{exit}");
}

/// With all that is in it.
#[tokio::test]
async fn the_kernel_would_end_it_before_the_agent() {
    if must_skip() {
        return;
    }
    let script = "cat /proc/self/oom_score_adj > /up; tftp -p -r up -l /up 196.254.111.222\n";
    let mut guest = Guest::boot(script).await;
    let inside = guest.uploaded("up").await;
    let process = process_of(&guest.machine.info());
    let outside = std::fs::read_to_string(format!("/proc/{process}/oom_score_adj")).unwrap();
    for adj in [inside, outside] {
        assert!(adj.trim().parse::<i32>().unwrap() >= 300, "{adj}");
    }
}

/// That a file was read would have each copy differ from its machine, and cost more than to read it.
#[tokio::test]
async fn what_it_reads_is_not_written_down() {
    if must_skip() {
        return;
    }
    let script = "cat /udhcpc; cat /proc/mounts > /up; tftp -p -r up -l /up 196.254.111.222\n";
    let (folder, spec) = prepare(script);
    let file = spec.directory.join("rootfs/udhcpc");
    // Older than the file itself: else the kernel might leave it as it is anyway.
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1);
    let times = std::fs::FileTimes::new().set_accessed(long_ago);
    std::fs::File::open(&file)
        .unwrap()
        .set_times(times)
        .unwrap();
    let mut guest = Guest::start(folder, spec).await;
    let mounts = guest.uploaded("up").await;
    let root = mounts
        .lines()
        .find(|line| line.split(' ').nth(1) == Some("/"));
    assert!(
        root.is_some_and(|line| line.contains("noatime")),
        "{mounts}"
    );
    let accessed = std::fs::metadata(&file).unwrap().accessed().unwrap();
    assert_eq!(accessed, long_ago);
}

/// The first program of the images that `bbot machine create` makes.
const OWN_INIT: &str = include_str!("../../src/create/guest/init.sh");

/// A first program that knows its address from the agent does not ask for one; without that it does.
#[tokio::test]
async fn our_init_takes_the_address_that_it_is_told() {
    if must_skip() {
        return;
    }
    let worker = "#!/bin/busybox sh\n\
        busybox ip addr show > /up\n\
        cat /asked >> /up\n\
        busybox tftp -p -r up -l /up 196.254.111.222\n";
    let asking = "#!/bin/busybox sh\n\
        echo asked >> /asked\n\
        case $1 in bound) busybox ip addr replace $ip/$mask dev $interface;; \
        *) busybox ip link set $interface up;; esac\n";
    for (is_told, forget) in [(true, ""), (false, "unset BBOT_ADDRESS\n")] {
        let (folder, spec) = prepare("");
        let rootfs = spec.directory.join("rootfs");
        std::fs::create_dir_all(rootfs.join("usr/lib/bbot")).unwrap();
        let first = format!("#!/bin/busybox sh\n{forget}exec /bin/busybox sh /usr/lib/bbot/init\n");
        for (path, text) in [
            ("sbin/init", first.as_str()),
            ("usr/lib/bbot/init", OWN_INIT),
            ("usr/lib/bbot/udhcpc", asking),
            ("usr/lib/bbot/bbot-worker", worker),
        ] {
            let path = rootfs.join(path);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::os::unix::fs::symlink("busybox", rootfs.join("bin/sh")).unwrap();
        std::os::unix::fs::symlink("busybox", rootfs.join("bin/cat")).unwrap();
        let mut guest = Guest::start(folder, spec).await;
        let up = guest.uploaded("up").await;
        assert!(up.contains("inet 196.254.111.2/24"), "{up}");
        assert!(up.contains("inet 127.0.0.1/8"), "{up}");
        assert_eq!(!up.contains("asked"), is_told, "{up}");
    }
}
