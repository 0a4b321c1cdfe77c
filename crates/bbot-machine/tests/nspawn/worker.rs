//! The worker in a container: it builds, and what it builds does not reach its channel.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Instant;

use bbot_machine::machine::MachineEvent;
use bbot_manifest::{BuildResult, Era, RunManifest, Source, Status, Task};
use bbot_tftp::{Event, Root};
use sha2::{Digest, Sha256};

use super::support::{Guest, must_skip, prepare};

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

#[tokio::test]
async fn a_build_reaches_neither_the_agent_nor_its_worker() {
    if must_skip() {
        return;
    }
    let Some(worker) = worker() else { return };
    let (folder, mut spec) = prepare("");
    let rootfs = spec.directory.join("rootfs");
    for (path, mode) in [("usr/lib/bbot", 0o755), ("build", 0o755), ("tmp", 0o1777)] {
        fs::create_dir_all(rootfs.join(path)).unwrap();
        fs::set_permissions(rootfs.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::copy(worker, rootfs.join("usr/lib/bbot/bbot-worker")).unwrap();
    for path in ["usr", "usr/lib"] {
        fs::set_permissions(rootfs.join(path), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(
        rootfs.join("usr/lib/bbot/bbot-worker"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    fs::create_dir_all(rootfs.join("usr/bin")).unwrap();
    fs::set_permissions(rootfs.join("usr/bin"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(rootfs.join("usr/bin/make"), MAKE).unwrap();
    fs::set_permissions(
        rootfs.join("usr/bin/make"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();

    let source = archive();
    let task = Task::new(
        "p",
        "1.0",
        "https://controller.example/x",
        "test",
        "x86_64-linux-gnu",
    );
    let task = task.serialize(Era::Later).unwrap().into_bytes();
    let run = RunManifest {
        agent: "bbot-agent/test".to_owned(),
        log_segments: Some(1),
        source: Some(Source {
            name: "source.tar.gz".to_owned(),
            sha256: hex::encode(Sha256::digest(&source)),
        }),
        save: None,
        fresh: None,
    };
    let put = folder.path().join("put");
    spec.tftp.root = Root::new()
        .get_bytes(
            "script",
            "cd /build; exec /usr/lib/bbot/bbot-worker --startup\n".as_bytes(),
        )
        .get_bytes("task.manifest", task.clone())
        .get_bytes("manifest", task)
        .get_bytes("run.manifest", run.serialize().unwrap().into_bytes())
        .get_bytes("source.tar.gz", source)
        .put_once(&["manifest", "result.manifest"], &put, 64 << 20)
        .put_numbered("log.", &put, 128 << 10);
    let begin = Instant::now();
    let mut guest = Guest::start(folder, spec).await;
    println!("runs after {:?}", begin.elapsed());
    let result = loop {
        match guest.event().await {
            MachineEvent::Tftp(Event::Uploaded { name, path, .. })
                if name.ends_with("manifest") =>
            {
                break fs::read(path).unwrap();
            }
            MachineEvent::Tftp(Event::Fetched { name, .. }) if name == "run.manifest" => {
                println!("the worker's first request after {:?}", begin.elapsed());
            }
            MachineEvent::Tftp(_) => {}
            other => panic!("{other:?}: {}", guest.console()),
        }
    };
    let result = BuildResult::parse(&result, "result").unwrap();
    let log: String = result
        .operations
        .iter()
        .map(|operation| operation.log.as_str())
        .collect();
    assert_eq!(result.status, Status::Success, "{log}");
    assert!(log.contains("1000"), "it was not run: {log}");
    assert!(!log.contains("FORGED"), "{log}");
    guest.machine.force_down().await.unwrap();
}
