//! The worker in a container: it builds, and what it builds does not reach its channel.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bbot_machine::machine::{Error, MachineEvent, StartSpec, Tftp};
use bbot_machine::nspawn::Nspawn;
use bbot_machine::warm::Waiting;
use bbot_manifest::{BuildResult, Era, RunManifest, Source, Status, Task};
use bbot_tftp::{Event, Limits, Root};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::support::{Guest, is_running, must_skip, prepare, process_of};

/// In the place of make: tries all ways to the agent and to the worker that a build could.
const MAKE: &str = r#"#!/bin/sh
export PATH=/bin
exec 2>&1
echo forged > /tmp/forged
for name in manifest result.manifest log.1 log.9 upload.tar; do
  timeout 5 tftp -p -l /tmp/forged -r $name 196.254.111.222 && echo "FORGED $name"
done
ip addr add 196.254.111.2/24 dev eth0 && echo "FORGED an address"
nsenter -t 1 -n true && echo "FORGED by nsenter"
unshare -r nsenter -t 1 -n true && echo "FORGED by a user namespace"
for process in /proc/[0-9]*; do
  # Its own, also of an earlier command, are its own business.
  [ "$(stat -c %u $process)" = 0 ] || continue
  readlink $process/ns/net && echo "FORGED $process"
  kill -0 ${process#/proc/} && echo "FORGED a signal to $process"
done
chmod 777 /usr/lib/bbot/bbot-worker && echo "FORGED the worker"
id -u
"#;

/// The static worker, as the tools take it.
fn worker() -> Option<PathBuf> {
    let found = std::env::var_os("BBOT_WORKER").map(PathBuf::from);
    let found = found.filter(|path| path.is_file());
    if found.is_none() {
        testkit::missing("image", "no BBOT_WORKER");
    }
    found
}

fn archive() -> Vec<u8> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut builder = tar::Builder::new(gzip);
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(5);
    builder
        .append_data(&mut header, "p-1.0/Makefile", &b"all:\n"[..])
        .unwrap();
    let mut gzip = builder.into_inner().unwrap();
    gzip.flush().unwrap();
    gzip.finish().unwrap()
}

/// A container with the worker in it, and the root that has a task for it. None: there is no worker.
fn prepare_worker() -> Option<(TempDir, StartSpec)> {
    let worker = worker()?;
    let (folder, mut spec) = prepare("");
    let rootfs = spec.directory.join("rootfs");
    for (path, mode) in [
        ("usr", 0o755),
        ("usr/lib", 0o755),
        ("usr/lib/bbot", 0o755),
        ("usr/bin", 0o755),
        ("build", 0o755),
        ("tmp", 0o1777),
    ] {
        fs::create_dir_all(rootfs.join(path)).unwrap();
        fs::set_permissions(rootfs.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::copy(worker, rootfs.join("usr/lib/bbot/bbot-worker")).unwrap();
    fs::write(rootfs.join("usr/bin/make"), MAKE).unwrap();
    for program in ["usr/lib/bbot/bbot-worker", "usr/bin/make"] {
        fs::set_permissions(rootfs.join(program), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let put = folder.path().join("put");
    spec.tftp.root = with_task(&put, "run.manifest");
    Some((folder, spec))
}

const SCRIPT: &[u8] = b"cd /build; exec /usr/lib/bbot/bbot-worker --startup\n";

fn run_manifest(source: Option<Source>, save: Option<&str>) -> Vec<u8> {
    let run = RunManifest {
        agent: "bbot-agent/test".to_owned(),
        log_segments: Some(1),
        source,
        save: save.map(str::to_owned),
        fresh: None,
    };
    run.serialize().unwrap().into_bytes()
}

/// A task, for a worker that asks for its run manifest by this name.
fn with_task(put: &Path, asks: &str) -> Root {
    let source = archive();
    let task = Task::new(
        "p",
        "1.0",
        "https://controller.example/x",
        "test",
        "x86_64-linux-gnu",
    );
    let task = task.serialize(Era::Later).unwrap().into_bytes();
    let named = Source {
        name: "source.tar.gz".to_owned(),
        sha256: hex::encode(Sha256::digest(&source)),
    };
    Root::new()
        .get_bytes("script", SCRIPT)
        .get_bytes("task.manifest", task.clone())
        .get_bytes("manifest", task)
        .get_bytes(asks, run_manifest(Some(named), None))
        .get_bytes("source.tar.gz", source)
        .put_once(&["manifest", "result.manifest"], put, 64 << 20)
        .put_numbered("log.", put, 128 << 10)
}

async fn result_of(guest: &mut Guest) -> BuildResult {
    let result = loop {
        match guest.event().await {
            MachineEvent::Tftp(Event::Uploaded { name, path, .. })
                if name.ends_with("manifest") =>
            {
                break fs::read(path).unwrap();
            }
            MachineEvent::Tftp(_) => {}
            other => panic!("{other:?}: {}", guest.console()),
        }
    };
    BuildResult::parse(&result, "result").unwrap()
}

fn log_of(result: &BuildResult) -> String {
    let logs = result.operations.iter().map(|one| one.log.as_str());
    logs.collect()
}

#[tokio::test]
async fn a_build_reaches_neither_the_agent_nor_its_worker() {
    if must_skip() {
        return;
    }
    let Some((folder, spec)) = prepare_worker() else {
        return;
    };
    let mut guest = Guest::start(folder, spec).await;
    let result = result_of(&mut guest).await;
    let log = log_of(&result);
    assert_eq!(result.status, Status::Success, "{log}");
    assert!(log.contains("1000"), "it was not run: {log}");
    assert!(!log.contains("FORGED"), "{log}");
    guest.machine.force_down().await.unwrap();
}

/// Waits until the worker waits for its task, and stops it.
async fn waits_stopped(nspawn: &Nspawn) -> Option<(Guest, Waiting)> {
    let (folder, mut spec) = prepare_worker()?;
    spec.tftp.root = Root::new()
        .get_bytes("script", SCRIPT)
        .get_bytes(
            "run.manifest",
            run_manifest(None, Some("prepared.manifest")),
        )
        .get_held("prepared.manifest");
    let mut guest = Guest::start_in(nspawn, folder, spec).await;
    let waiting = loop {
        match guest.event().await {
            MachineEvent::Tftp(Event::Held { peer, request, .. }) => {
                break Waiting { peer, request };
            }
            MachineEvent::Tftp(_) => {}
            other => panic!("{other:?}: {}", guest.console()),
        }
    };
    guest.machine.suspend().await.unwrap();
    Some((guest, waiting))
}

/// With the freezer of control groups, and by signals where there is none.
#[tokio::test]
async fn a_worker_that_waits_stopped_goes_on_with_its_task() {
    if must_skip() {
        return;
    }
    for nspawn in [Nspawn::new(), Nspawn::new().without_control_groups()] {
        let Some((mut guest, waiting)) = waits_stopped(&nspawn).await else {
            return;
        };
        // Longer than the worker waits before it asks again.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let tftp = Tftp {
            root: with_task(&guest.folder.path().join("put"), "prepared.manifest"),
            limits: Limits::wire(),
        };
        let again = waiting.clone();
        guest.machine.go_on(tftp.clone(), waiting).await.unwrap();
        let result = result_of(&mut guest).await;
        let log = log_of(&result);
        assert_eq!(result.status, Status::Success, "{log}");
        assert!(!log.contains("FORGED"), "{log}");
        // It has one task; and its console has no word of trouble.
        let error = guest.machine.go_on(tftp.clone(), again.clone()).await;
        assert!(matches!(error, Err(Error::Unrestored { .. })), "{error:?}");
        let console = guest.console();
        assert!(!console.contains("error:"), "{console}");
        guest.machine.force_down().await.unwrap();
        let error = guest.machine.go_on(tftp, again).await;
        assert!(matches!(error, Err(Error::Ended { .. })), "{error:?}");
    }
}

/// Nobody has asked it anything while it waited: it has ended by then.
#[tokio::test]
async fn one_that_has_ended_while_it_waited_does_not_go_on() {
    if must_skip() {
        return;
    }
    let Some((mut guest, waiting)) = waits_stopped(&Nspawn::new()).await else {
        return;
    };
    let process = process_of(&guest.machine.info());
    let number = nix::unistd::Pid::from_raw(i32::try_from(process).unwrap());
    nix::sys::signal::kill(number, nix::sys::signal::Signal::SIGKILL).unwrap();
    while is_running(process) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let tftp = Tftp {
        root: with_task(&guest.folder.path().join("put"), "prepared.manifest"),
        limits: Limits::wire(),
    };
    let error = guest.machine.go_on(tftp, waiting).await;
    assert!(matches!(error, Err(Error::Ended { .. })), "{error:?}");
}
