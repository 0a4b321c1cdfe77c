//! What cannot be started says why, and how to mend it.

use std::fs;
use std::os::unix::fs::symlink;

use bbot_machine::machine::{Error, Hypervisor, Machine};
use bbot_machine::nspawn::Nspawn;

use super::support::{must_skip, prepare};

const ROLE: &str = "BBOT_TEST_AS_NOBODY";

fn text(result: Result<Box<dyn Machine>, Error>) -> String {
    let error = result.expect_err("it started");
    assert!(
        matches!(error, Error::Unsupported { .. }),
        "it concerns this machine alone: {error:?}"
    );
    error.to_string()
}

#[tokio::test]
async fn each_refusal_says_what_and_how_to_mend_it() {
    if must_skip() {
        return;
    }
    let (_folder, spec) = prepare("");
    let said = text(
        Nspawn::with_program("nspawn-of-nobody")
            .start(spec.clone())
            .await,
    );
    assert!(
        said.contains("nspawn-of-nobody") && said.contains("package systemd-container"),
        "{said}"
    );

    let nspawn = Nspawn::new();
    let mut other = spec.clone();
    other.manifest.kind = bbot_manifest::MachineKind::Kvm;
    assert!(text(nspawn.start(other).await).contains("its type is kvm"));
    let mut other = spec.clone();
    other.manifest.options = Some("--bind=/".to_owned());
    assert!(text(nspawn.start(other).await).contains("has options"));
    let mut other = spec.clone();
    other.cpus = 0;
    assert!(text(nspawn.start(other).await).contains("at least one CPU"));

    let rootfs = spec.directory.join("rootfs");
    fs::remove_file(rootfs.join("sbin/init")).unwrap();
    assert!(text(nspawn.start(spec.clone()).await).contains("no first program"));
    symlink("/bin/sh", rootfs.join("sbin/init")).unwrap();
    // There on the host, and not in the container, whose /bin has a busybox alone.
    assert!(text(nspawn.start(spec.clone()).await).contains("no first program"));
    fs::rename(&rootfs, spec.directory.join("elsewhere")).unwrap();
    assert!(text(nspawn.start(spec.clone()).await).contains("rootfs is not there"));
    symlink("elsewhere", &rootfs).unwrap();
    assert!(text(nspawn.start(spec.clone()).await).contains("is not a directory"));
    assert!(!spec.run_dir.exists(), "nothing is left");
}

/// As whoever runs it; the test below runs it as nobody.
#[tokio::test]
async fn is_refused_to_others_than_root() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let (_folder, spec) = prepare("");
    let said = text(Nspawn::new().start(spec).await);
    assert!(
        said.contains("run the agent as root, or make the machine with --type kvm"),
        "{said}"
    );
    println!("refused");
}

#[test]
fn an_agent_that_is_not_root_is_told_that_it_must_be() {
    if must_skip() || !testkit::program("setpriv", "setpriv") {
        return;
    }
    // Where nobody may read and run it.
    let folder = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .tempdir()
        .unwrap();
    let program = folder.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args([
            "--exact",
            "refusals::is_refused_to_others_than_root",
            "--nocapture",
        ])
        .env(ROLE, "1")
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("refused"), "{output:?}");
}
