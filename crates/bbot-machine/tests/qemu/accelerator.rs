//! KVM or TCG is found out by trying.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use bbot_machine::accel::{Accelerator, Choice, Host, choose};
use bbot_machine::qemu::Qemu;

use super::support::{guest_files, must_skip, prepare};

/// Without the device nothing is tried.
fn has_no_kvm() -> bool {
    !testkit::require("kvm", std::path::Path::new("/dev/kvm").exists())
}

fn program(folder: &std::path::Path, text: &str) -> Qemu {
    let path = folder.join("qemu");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    // QEMU's user must get there.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    Qemu::with_program(path)
}

#[tokio::test]
async fn the_choice_is_tried_once_and_kept() {
    if must_skip() || has_no_kvm() {
        return;
    }
    let (folder, spec) = prepare("", None);
    let state = folder.path().join("state");
    let qemu = Qemu::new();
    let host = Host {
        qemu: &qemu,
        user: None,
        state_dir: &state,
    };
    let first = choose(Choice::Auto, Some(&spec.directory), host)
        .await
        .unwrap();
    println!("{first:?}");
    let began = Instant::now();
    let second = choose(Choice::Auto, Some(&spec.directory), host)
        .await
        .unwrap();
    assert_eq!(second.accelerator, first.accelerator);
    assert!(second.reason.contains("tried earlier"), "{}", second.reason);
    println!("remembered after {:?}", began.elapsed());

    // What is asked for is not tried.
    for (choice, accelerator) in [
        (Choice::Kvm, Accelerator::Kvm),
        (Choice::Tcg, Accelerator::Tcg),
    ] {
        let asked = choose(choice, Some(&spec.directory), host).await.unwrap();
        assert_eq!(asked.accelerator, accelerator);
    }
}

/// TCG in the place of KVM shows what a host looks like where it works.
#[tokio::test]
async fn a_kernel_that_comes_up_speaks_for_kvm() {
    if must_skip() || has_no_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let qemu = program(
        folder.path(),
        "#!/bin/bash\nargs=(\"${@/#kvm/tcg}\")\nexec qemu-system-x86_64 \"${args[@]/#host/max}\"\n",
    );
    let machine = folder.path().join("machine");
    fs::create_dir(&machine).unwrap();
    fs::copy(guest_files().unwrap().kernel, machine.join("kernel")).unwrap();
    let mut tries = (1..6_usize).map(|number| folder.path().join(format!("state-{number}")));
    let chosen = loop {
        let state_dir = tries.next().unwrap();
        let host = Host {
            qemu: &qemu,
            user: None,
            state_dir: &state_dir,
        };
        let chosen = choose(Choice::Auto, Some(&machine), host).await.unwrap();
        // Translated, on a busy host, it may take longer than a trial under KVM is given.
        let is_late = chosen.reason.contains("did not come up");
        if !is_late || tries.len() == 0 {
            break chosen;
        }
    };
    assert_eq!(chosen.accelerator, Accelerator::Kvm, "{}", chosen.reason);
    assert!(
        chosen.reason.contains("came up under KVM"),
        "{}",
        chosen.reason
    );
}

#[tokio::test]
async fn a_qemu_that_fails_speaks_for_tcg() {
    if must_skip() || has_no_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let qemu = program(
        folder.path(),
        "#!/bin/sh\n[ \"$1\" != --version ] || exec echo 'QEMU 0'\necho 'no such luck' >&2; exit 3\n",
    );
    let (_other, spec) = prepare("", None);
    let host = Host {
        qemu: &qemu,
        user: None,
        state_dir: &folder.path().join("state"),
    };
    let chosen = choose(Choice::Auto, Some(&spec.directory), host)
        .await
        .unwrap();
    assert_eq!(chosen.accelerator, Accelerator::Tcg);
    assert!(
        chosen.reason.contains("exit status 3: no such luck"),
        "{}",
        chosen.reason
    );
}
