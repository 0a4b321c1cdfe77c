//! What cannot be started says why.

use std::fs;

use bbot_machine::machine::{Error, Hypervisor, Machine};
use bbot_machine::qemu::Qemu;

use super::support::{manifest, must_skip, prepare};

fn error(result: Result<Box<dyn Machine>, Error>) -> (Error, String) {
    let error = result.expect_err("it started");
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        text.push_str(&format!(": {inner}"));
        source = inner.source();
    }
    (error, text)
}

#[tokio::test]
async fn each_refusal_says_what_and_how_to_mend_it() {
    if must_skip() {
        return;
    }
    let (folder, spec) = prepare("", None);

    let (refused, text) = error(
        Qemu::with_program("qemu-of-nobody")
            .start(spec.clone())
            .await,
    );
    assert!(matches!(refused, Error::NotInstalled { .. }), "{text}");
    assert!(
        text.contains("qemu-of-nobody") && text.contains("qemu-system-x86"),
        "{text}"
    );

    let mut other = spec.clone();
    other.user = Some("no-such-user".to_owned());
    if rustix::process::geteuid().is_root() {
        let (_, text) = error(Qemu::new().start(other.clone()).await);
        assert!(text.contains("no-such-user"), "{text}");
        other.user = Some("root".to_owned());
        let (_, text) = error(Qemu::new().start(other).await);
        assert!(text.contains("unprivileged"), "{text}");
    }

    let mut other = spec.clone();
    other.manifest = manifest(Some("-hda disk.img"));
    let (_, text) = error(Qemu::new().start(other).await);
    assert!(
        text.contains("machine test") && text.contains("ifname=?"),
        "{text}"
    );

    let mut other = spec.clone();
    other.manifest = manifest(Some(
        "-netdev tap,id=n,ifname=? -device no-such-device,netdev=n",
    ));
    let (refused, text) = error(Qemu::new().start(other).await);
    assert!(matches!(refused, Error::NotStarted { .. }), "{text}");
    assert!(text.contains("no-such-device"), "{text}");

    let mut other = spec.clone();
    other.manifest.kind = bbot_manifest::MachineKind::Nspawn;
    let (_, text) = error(Qemu::new().start(other).await);
    assert!(text.contains("nspawn"), "{text}");

    let mut other = spec.clone();
    other.mac = Some(bbot_machine::mac::Mac([1, 0, 0, 0, 0, 1]));
    let (_, text) = error(Qemu::new().start(other).await);
    assert!(text.contains("01:00:00:00:00:01"), "{text}");

    fs::remove_file(spec.directory.join("disk.img")).unwrap();
    let (refused, text) = error(Qemu::new().start(spec.clone()).await);
    assert!(matches!(refused, Error::NoDisk { .. }), "{text}");
    assert!(text.contains(spec.directory.to_str().unwrap()), "{text}");

    // Nothing is left behind.
    assert!(!folder.path().join("run").exists());
}
