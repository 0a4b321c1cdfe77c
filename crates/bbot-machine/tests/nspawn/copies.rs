//! A container runs from a copy of its machine, whatever the volume, and the copy is whole.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use bbot_machine::volume;

use super::support::{Guest, make_rootfs, must_skip, prepare};

/// What a system may hold besides plain files.
fn add_odd_files(rootfs: &Path) {
    let odd = rootfs.join("odd");
    fs::create_dir(&odd).unwrap();
    for (name, mode, owner) in [
        ("setuid", 0o4755, 0),
        ("setgid", 0o2755, 33),
        ("private", 0o600, 1000),
        ("capable", 0o755, 0),
    ] {
        let path = odd.join(name);
        fs::write(&path, name).unwrap();
        std::os::unix::fs::chown(&path, Some(owner), Some(owner)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::hard_link(odd.join("private"), odd.join("second-name")).unwrap();
    symlink("/nowhere/at/all", odd.join("dangling")).unwrap();
    testkit::run("mknod", &[testkit::text(&odd.join("null")), "c", "1", "3"]);
    testkit::run("mkfifo", &[testkit::text(&odd.join("fifo"))]);
    // cap_net_raw=ep, in the kernel's version 2 (capability.h).
    let capability = [
        0x01, 0, 0, 0x02, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    rustix::fs::setxattr(
        odd.join("capable"),
        "security.capability",
        &capability,
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    rustix::fs::setxattr(
        odd.join("private"),
        "user.note",
        b"kept",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
}

/// One line for each entry, with all that matters of it.
fn describe(rootfs: &Path) -> String {
    let mut lines: Vec<String> = fs::read_dir(rootfs.join("odd"))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let metadata = fs::symlink_metadata(entry.path()).unwrap();
            let mut attributes = vec![0; 4096];
            let length = rustix::fs::llistxattr(entry.path(), &mut attributes[..]).unwrap();
            format!(
                "{:?} {:o} {}:{} dev {} links {} attributes {:?} to {:?}",
                entry.file_name(),
                metadata.mode(),
                metadata.uid(),
                metadata.gid(),
                metadata.rdev(),
                metadata.nlink(),
                String::from_utf8_lossy(&attributes[..length]),
                fs::read_link(entry.path()).ok()
            )
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

/// Copies a machine, runs the copy, and looks at it from inside and outside.
async fn copy_and_run(volume: &Path) {
    let machine = volume.join("machine");
    let storage = volume::detect(volume).unwrap();
    storage.create(&machine).unwrap();
    make_rootfs(&machine.join("rootfs"));
    add_odd_files(&machine.join("rootfs"));
    let before = describe(&machine.join("rootfs"));
    storage.set_read_only(&machine, true).unwrap();

    let copy = volume.join("copy");
    storage.snapshot(&machine, &copy).unwrap();
    assert_eq!(describe(&copy.join("rootfs")), before);

    let (folder, mut spec) = prepare(
        "cd /odd; (stat -c '%n %u:%g %a %h' setuid private; readlink dangling; ls -l null) > /told\n\
         touch /made; mkdir /dir; chown 1000:1000 /dir; echo changed > setuid\n\
         tftp -p -r told -l /told 196.254.111.222\n",
    );
    spec.directory.clone_from(&copy);
    let mut guest = Guest::start(folder, spec).await;
    let told = guest.uploaded("told").await;
    assert!(told.contains("setuid 0:0 4755 1"), "{told}");
    assert!(told.contains("private 1000:1000 600 2"), "{told}");
    assert!(told.contains("/nowhere/at/all"), "{told}");
    guest.machine.force_down().await.unwrap();
    drop(guest);

    // The machine itself is as it was, and the copy has what the container did, as its own root's.
    assert_eq!(describe(&machine.join("rootfs")), before);
    assert!(!machine.join("rootfs/made").exists());
    assert_eq!(fs::metadata(copy.join("rootfs/made")).unwrap().uid(), 0);
    assert_eq!(fs::metadata(copy.join("rootfs/dir")).unwrap().uid(), 1000);
    for path in [&copy, &machine] {
        storage.set_read_only(path, false).unwrap();
        storage.delete(path).unwrap();
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn a_copied_directory_is_whole() {
    if must_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    copy_and_run(folder.path()).await;
}

#[tokio::test]
async fn a_snapshot_is_whole() {
    if must_skip() || !testkit::btrfs() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mount = testkit::Mount::btrfs(folder.path(), 512 << 20);
    copy_and_run(mount.path()).await;
}

/// What a hostile build may leave for whoever deletes it.
#[tokio::test]
async fn a_tree_that_is_hard_to_delete_is_deleted() {
    if must_skip() {
        return;
    }
    let volume = tempfile::tempdir().unwrap();
    let storage = volume::detect(volume.path()).unwrap();
    let (folder, mut spec) = prepare(
        "cd /tmp; n=0; while [ $n -lt 600 ]; do mkdir d; cd d; n=$((n+1)); done\n\
         cd /; mkdir -p /no; echo x > /no/file; chmod 0 /no; chattr +i /no/file 2>/dev/null\n\
         mkfifo /fifo; ln -s / /tmp/loop; mount -t tmpfs x /mnt 2>/dev/null\n\
         echo done > /told; tftp -p -r told -l /told 196.254.111.222\n",
    );
    let copy = volume.path().join("copy");
    storage.snapshot(&spec.directory, &copy).unwrap();
    spec.directory.clone_from(&copy);
    let mut guest = Guest::start(folder, spec).await;
    guest.uploaded("told").await;
    drop(guest);
    storage.delete(&copy).unwrap();
    assert!(!copy.exists());
    assert!(Command::new("true").status().unwrap().success());
}
