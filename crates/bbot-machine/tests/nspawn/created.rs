//! A container of Debian, made for real from the same base as the virtual machine, follows
//! bootstrap protocol 1.

use std::fs;
use std::os::unix::fs::MetadataExt;

use bbot_machine::create::{self, Options, Suite};
use bbot_machine::machine::ShutdownOutcome;
use bbot_manifest::{MachineKind, MachineManifest};

use super::support::{Guest, PATIENCE, must_skip, prepare};

#[tokio::test]
async fn a_debian_is_made_bootstraps_and_powers_off() {
    if must_skip() {
        return;
    }
    fs::create_dir_all(testkit::cache()).unwrap();
    let directory = tempfile::tempdir_in(testkit::cache()).unwrap();
    let machine = directory.path().join("machine");
    let mut options = Options::new(
        "debian-12-nspawn",
        Suite::Bookworm,
        &machine,
        &testkit::cache().join("base"),
    );
    options.kind = MachineKind::Nspawn;
    match create::debian(&options, &mut |line| println!("{line}")) {
        Ok(created) => println!("{created:?}"),
        Err(error) => return testkit::missing("image", &error.to_string()),
    }
    let manifest = fs::read(machine.join("manifest")).unwrap();
    let manifest = MachineManifest::parse(&manifest, "manifest").unwrap();
    assert_eq!(manifest.kind, MachineKind::Nspawn);
    assert!(manifest.header.id.starts_with("debian-12-nspawn-"));
    let mut names: Vec<_> = fs::read_dir(&machine)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["cmdline", "manifest", "rootfs"]);
    assert_eq!(fs::metadata(&machine).unwrap().mode() & 0o7777, 0o700);
    assert!(!machine.join("rootfs/usr/lib/modules").exists());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains("/.disk "),
        "the disk image is still mounted"
    );

    let (folder, mut spec) = prepare("");
    spec.directory = machine;
    spec.manifest = manifest;
    spec.ram_kib = 512 << 10;
    spec.tftp.root = bbot_tftp::Root::new()
        .get_bytes(
            "bootstrap",
            "echo \"host $1 user $(id -u) build $(id -u build)\" >/told\n\
             for tool in gcc c++ make cmake autoreconf libtoolize pkg-config ip; do\n\
             command -v $tool >/dev/null || echo \"lost $tool\" >>/told; done\n\
             echo 'int main(void) { return 7; }' >/tmp/t.c; gcc -o /tmp/t /tmp/t.c; /tmp/t; echo \"compiled $?\" >>/told\n\
             busybox tftp -p -l /told -r told $1\n"
                .as_bytes(),
        )
        .put_any(folder.path().join("put"), 1 << 20);
    let mut guest = Guest::start(folder, spec).await;
    let told = guest.uploaded("told").await;
    assert_eq!(told, "host 196.254.111.222 user 0 build 1000\ncompiled 7\n");
    // While it waits, as the agent does after a bootstrap.
    let down = guest.machine.shutdown(PATIENCE).await.unwrap();
    assert_eq!(down, ShutdownOutcome::Down, "{}", guest.console());
    assert!(guest.console().contains("power off"));
}
