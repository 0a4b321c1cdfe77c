//! Both kinds of volume behave alike: one body each, run on plain directories and on btrfs.

#![expect(clippy::unwrap_used, reason = "tests")]

mod volume_support;

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use bbot_machine::volume::{Copy, Kind, Stop, Volume, VolumeError};
use testkit::{root, run, text};
use volume_support::{Place, as_ordinary_user, bind, describe, names, small};

on_both!(
    a_snapshot_is_a_whole_and_independent_copy,
    a_snapshot_of_what_is_read_only_is_writable,
    a_plain_directory_is_snapshotted_too,
    nothing_is_replaced,
    what_is_missing_is_a_race,
    read_only_is_kept_and_taken_back,
    names_are_exchanged,
    what_is_read_only_is_deleted,
    a_link_is_not_followed,
    a_deep_tree_is_deleted,
    an_interrupted_deletion_is_finished_by_the_next,
    what_is_mounted_inside_survives,
    an_ordinary_user_can_do_it_all,
);

const DISK: u64 = 16 << 20;

/// A machine with everything that a tree may hold.
fn machine(place: &Place, name: &str) -> PathBuf {
    let path = place.path(name);
    place.volume.create(&path).unwrap();
    fill(&path);
    path
}

fn fill(path: &Path) {
    std::fs::write(path.join("manifest"), ": 1\nid: one\n").unwrap();
    let mut disk = std::fs::File::create(path.join("disk.img")).unwrap();
    disk.set_len(DISK).unwrap();
    disk.write_all(&[0xeb; 512]).unwrap();
    disk.write_all_at(b"in the middle", DISK / 2 + 5).unwrap();
    drop(disk);
    let bin = path.join("rootfs/usr/bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::create_dir(path.join("rootfs/empty")).unwrap();
    std::fs::write(bin.join("tool"), "#!/bin/sh\n").unwrap();
    std::fs::hard_link(bin.join("tool"), path.join("rootfs/other-name")).unwrap();
    std::fs::set_permissions(bin.join("tool"), Permissions::from_mode(0o4755)).unwrap();
    std::fs::write(path.join("rootfs/secret"), "x").unwrap();
    std::fs::set_permissions(path.join("rootfs/secret"), Permissions::from_mode(0o400)).unwrap();
    std::fs::write(path.join("rootfs/nothing"), "").unwrap();
    symlink("usr/bin", path.join("rootfs/bin")).unwrap();
    symlink("/nowhere/at/all", path.join("rootfs/dangling")).unwrap();
    run("mkfifo", &["-m", "620", text(&path.join("rootfs/pipe"))]);
    std::fs::set_permissions(path.join("rootfs/empty"), Permissions::from_mode(0o1777)).unwrap();
    if root() {
        run(
            "mknod",
            &["-m", "606", text(&path.join("rootfs/null")), "c", "1", "3"],
        );
        run("chown", &["1234:1235", text(&path.join("rootfs/secret"))]);
        run(
            "chown",
            &["-h", "1236:1237", text(&path.join("rootfs/bin"))],
        );
    }
    for (name, time) in [
        ("manifest", "2017-04-04T10:11:12.123456789Z"),
        ("rootfs/bin", "2018-04-04T10:11:12.5Z"),
        ("rootfs/usr", "2019-04-04T10:11:12Z"),
        ("rootfs", "1969-12-31T23:59:58.25Z"),
    ] {
        run("touch", &["-h", "-d", time, text(&path.join(name))]);
    }
}

fn a_snapshot_is_a_whole_and_independent_copy(place: &Place) {
    let source = machine(place, "m-1.1");
    let before = describe(&source);
    let copy = place.path("m-public-x");
    place.volume.snapshot(&source, &copy).unwrap();
    assert_eq!(describe(&copy), before);
    assert_eq!(place.names(), ["m-1.1", "m-public-x"]);
    // Holes have stayed holes.
    let disk = std::fs::metadata(copy.join("disk.img")).unwrap();
    assert_eq!(disk.len(), DISK);
    assert!(disk.blocks() * 512 < 1 << 20, "{} blocks", disk.blocks());

    let disk = std::fs::OpenOptions::new()
        .write(true)
        .open(copy.join("disk.img"))
        .unwrap();
    disk.write_all_at(b"written by a build", 0).unwrap();
    std::fs::write(copy.join("rootfs/usr/bin/tool"), "changed").unwrap();
    std::fs::remove_file(copy.join("manifest")).unwrap();
    assert_eq!(describe(&source), before);

    place.volume.sync(&copy).unwrap();
    place.volume.delete(&copy).unwrap();
    assert_eq!(place.names(), ["m-1.1"]);
    assert_eq!(describe(&source), before);
}

fn a_snapshot_of_what_is_read_only_is_writable(place: &Place) {
    let source = machine(place, "m-1.1");
    place.volume.set_read_only(&source, true).unwrap();
    let copy = place.path("copy");
    place.volume.snapshot(&source, &copy).unwrap();
    assert!(!place.volume.is_read_only(&copy).unwrap());
    std::fs::write(copy.join("new"), "").unwrap();
    assert!(place.volume.is_read_only(&source).unwrap());
}

/// A machine that somebody has copied here by `cp`.
fn a_plain_directory_is_snapshotted_too(place: &Place) {
    let source = place.path("plain");
    std::fs::create_dir(&source).unwrap();
    fill(&source);
    let copy = place.path("copy");
    place.volume.snapshot(&source, &copy).unwrap();
    assert_eq!(describe(&copy), describe(&source));
    if place.volume.kind() == Kind::Btrfs {
        assert_eq!(std::fs::metadata(&copy).unwrap().ino(), 256, "no subvolume");
    }
    place.volume.set_read_only(&source, true).unwrap();
    assert!(place.volume.is_read_only(&source).unwrap());
    place.volume.delete(&source).unwrap();
    place.volume.delete(&copy).unwrap();
    assert!(place.names().is_empty());
}

fn nothing_is_replaced(place: &Place) {
    let source = machine(place, "m-1.1");
    let copy = place.path("copy");
    place.volume.snapshot(&source, &copy).unwrap();
    // An empty directory, a file and a link are as good as a machine.
    let empty = place.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let file = place.path("file");
    std::fs::write(&file, "kept").unwrap();
    let link = place.path("link");
    symlink("nowhere", &link).unwrap();
    let before = place.names();
    for taken in [&source, &empty, &file, &link] {
        for error in [
            place.volume.snapshot(&copy, taken).unwrap_err(),
            place.volume.rename(&copy, taken).unwrap_err(),
            place.volume.create(taken).unwrap_err(),
        ] {
            assert!(error.is_taken(), "{}: {error:?}", taken.display());
        }
    }
    assert_eq!(place.names(), before);
    assert_eq!(std::fs::read(&file).unwrap(), b"kept");
    let free = place.path("free");
    place.volume.rename(&copy, &free).unwrap();
    assert!(free.join("disk.img").exists());
    assert!(!copy.exists());
}

fn what_is_missing_is_a_race(place: &Place) {
    let (missing, other) = (place.path("missing"), place.path("other"));
    for error in [
        place.volume.snapshot(&missing, &other).unwrap_err(),
        place.volume.rename(&missing, &other).unwrap_err(),
        place.volume.exchange(&missing, &other).unwrap_err(),
        place.volume.delete(&missing).unwrap_err(),
        place.volume.set_read_only(&missing, true).unwrap_err(),
    ] {
        assert!(error.is_race(), "{error:?}");
        assert!(error.to_string().contains(text(&missing)), "{error}");
    }
    std::fs::write(place.path("file"), "").unwrap();
    let error = place.volume.snapshot(&place.path("file"), &other);
    assert!(
        matches!(error, Err(VolumeError::NotDirectory { .. })),
        "{error:?}"
    );
    assert_eq!(place.names(), ["file"]);
}

fn read_only_is_kept_and_taken_back(place: &Place) {
    let path = machine(place, "m-1.1");
    let volume = &place.volume;
    assert!(!volume.is_read_only(&path).unwrap());
    volume.set_read_only(&path, true).unwrap();
    volume.set_read_only(&path, true).unwrap();
    assert!(volume.is_read_only(&path).unwrap());
    let renamed = place.path("m-1.2");
    volume.rename(&path, &renamed).unwrap();
    assert!(volume.is_read_only(&renamed).unwrap());
    // The one is the kernel's word, the other a mark that root may overlook.
    if volume.kind() == Kind::Btrfs {
        let error = std::fs::write(renamed.join("new"), "").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    } else {
        let mode = std::fs::metadata(&renamed).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o555);
    }
    volume.set_read_only(&renamed, false).unwrap();
    assert!(!volume.is_read_only(&renamed).unwrap());
    std::fs::write(renamed.join("new"), "").unwrap();
    assert_eq!(
        std::fs::metadata(&renamed).unwrap().permissions().mode() & 0o777,
        0o755
    );
}

fn names_are_exchanged(place: &Place) {
    let (one, two) = (machine(place, "one"), machine(place, "two"));
    std::fs::write(two.join("manifest"), "two").unwrap();
    place.volume.set_read_only(&one, true).unwrap();
    place.volume.exchange(&two, &one).unwrap();
    assert_eq!(std::fs::read(one.join("manifest")).unwrap(), b"two");
    assert!(place.volume.is_read_only(&two).unwrap());
    assert!(!place.volume.is_read_only(&one).unwrap());
}

fn what_is_read_only_is_deleted(place: &Place) {
    let path = machine(place, "m-1.1");
    // What a container's own system makes in its root directory.
    if place.volume.kind() == Kind::Btrfs {
        let inner = path.join("rootfs/machines");
        place.volume.create(&inner).unwrap();
        std::fs::write(inner.join("file"), "").unwrap();
        place.volume.create(&inner.join("inner")).unwrap();
        place
            .volume
            .set_read_only(&inner.join("inner"), true)
            .unwrap();
        place.volume.set_read_only(&inner, true).unwrap();
    }
    place.volume.set_read_only(&path, true).unwrap();
    place.volume.delete(&path).unwrap();
    assert!(place.names().is_empty());
}

fn a_link_is_not_followed(place: &Place) {
    let path = machine(place, "m-1.1");
    let before = describe(&path);
    let link = place.path("m-public");
    symlink("m-1.1", &link).unwrap();
    for result in [
        place.volume.delete(&link),
        place.volume.set_read_only(&link, true),
        place.volume.snapshot(&link, &place.path("copy")),
        place.volume.rename(&link, &place.path("other")),
    ] {
        assert!(
            matches!(result, Err(VolumeError::NotDirectory { .. })),
            "{result:?}"
        );
    }
    assert_eq!(place.names(), ["m-1.1", "m-public"]);
    assert_eq!(describe(&path), before);
    // A link inside is deleted, not what it leads to.
    let outside = place.path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "").unwrap();
    symlink(&outside, path.join("rootfs/out")).unwrap();
    place.volume.delete(&path).unwrap();
    assert_eq!(names(&outside), ["file"]);
}

/// Deeper than there are descriptors and than a path may be long.
fn a_deep_tree_is_deleted(place: &Place) {
    use rustix::fs::{CWD, Mode, OFlags};
    let path = machine(place, "m-1.1");
    let mut here = rustix::fs::openat(
        CWD,
        &path,
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&here, "deep-1", Mode::RWXU).unwrap();
        here = rustix::fs::openat(
            &here,
            "deep-1",
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
    }
    drop(here);
    if place.volume.kind() == Kind::Copy {
        // Too deep to be copied, and said so; nothing is left of the attempt.
        let error = place.volume.snapshot(&path, &place.path("copy"));
        assert!(
            matches!(error, Err(VolumeError::TooDeep { .. })),
            "{error:?}"
        );
    } else {
        // Forces the way by hand on btrfs too.
        place.volume.create(&path.join("inner")).unwrap();
    }
    assert_eq!(place.names(), ["m-1.1"]);
    place.volume.delete(&path).unwrap();
    assert!(place.names().is_empty());
}

fn an_interrupted_deletion_is_finished_by_the_next(place: &Place) {
    let path = place.path("plain");
    std::fs::create_dir(&path).unwrap();
    std::fs::create_dir(place.path(".plain.deleted")).unwrap();
    std::fs::write(place.path(".plain.deleted/rest"), "").unwrap();
    place.volume.delete(&path).unwrap();
    assert!(place.names().is_empty());
}

fn what_is_mounted_inside_survives(place: &Place) {
    if !root() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("precious"), "").unwrap();
    let path = machine(place, "m-1.1");
    let mount = bind(outside.path(), &path.join("rootfs/empty"));
    if place.volume.kind() == Kind::Copy {
        for result in [
            place.volume.snapshot(&path, &place.path("copy")),
            place.volume.delete(&path),
        ] {
            assert!(
                matches!(result, Err(VolumeError::MountInside { .. })),
                "{result:?}"
            );
        }
        // The rest of it waits under its hidden name for the next try.
        assert_eq!(place.names(), [".m-1.1.deleted"]);
        drop(mount.renamed(place.path(".m-1.1.deleted/rootfs/empty")));
    } else {
        // Deleting a subvolume takes what is mounted inside off, and leaves it whole.
        place.volume.delete(&path).unwrap();
        std::mem::forget(mount);
    }
    assert_eq!(names(outside.path()), ["precious"]);
}

fn an_ordinary_user_can_do_it_all(place: &Place) {
    if !root() {
        return;
    }
    let home = place.home_of_an_ordinary_user();
    // A machine of root's that everybody may read.
    let roots = place.path("roots");
    place.volume.create(&roots).unwrap();
    std::fs::write(roots.join("disk.img"), "disk").unwrap();
    place.volume.set_read_only(&roots, true).unwrap();
    let volume: &dyn Volume = &*place.volume;
    as_ordinary_user(|| {
        let (one, two, three) = (home.join("one"), home.join("two"), home.join("three"));
        volume.create(&one).unwrap();
        std::fs::create_dir_all(one.join("a/b")).unwrap();
        std::fs::write(one.join("a/b/file"), "content").unwrap();
        std::fs::set_permissions(one.join("a/b"), Permissions::from_mode(0o555)).unwrap();
        std::fs::set_permissions(one.join("a"), Permissions::from_mode(0o500)).unwrap();
        volume.set_read_only(&one, true).unwrap();
        volume.snapshot(&one, &two).unwrap();
        assert_eq!(std::fs::read(two.join("a/b/file")).unwrap(), b"content");
        assert!(std::fs::write(one.join("new"), "").is_err());
        std::fs::write(two.join("new"), "").unwrap();
        volume.rename(&two, &three).unwrap();
        volume.exchange(&one, &three).unwrap();
        std::fs::create_dir(one.join("locked")).unwrap();
        std::fs::write(one.join("locked/file"), "").unwrap();
        std::fs::set_permissions(one.join("locked"), Permissions::from_mode(0o000)).unwrap();
        volume.delete(&one).unwrap();
        volume.delete(&three).unwrap();
        volume.snapshot(&roots, &one).unwrap();
        std::fs::write(one.join("disk.img"), "mine").unwrap();
        volume.delete(&one).unwrap();
        assert!(names(&home).is_empty());
        // What is not one's own stays, and one is told.
        assert!(volume.delete(&roots).is_err());
    });
    assert_eq!(std::fs::read(roots.join("disk.img")).unwrap(), b"disk");
}

/// Copies take no room where blocks can be shared.
#[test]
fn blocks_are_shared_where_the_file_system_can() {
    let Some(place) = Place::btrfs() else { return };
    let source = place.path("source");
    std::fs::create_dir(&source).unwrap();
    // More than the half of what there is room for.
    let mut disk = std::fs::File::create(source.join("disk.img")).unwrap();
    let mut word = 1u64;
    let mut block = Vec::new();
    for _ in 0..140 {
        block.clear();
        // Nothing that compression or deduplication would find.
        while block.len() < 1 << 20 {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            block.extend_from_slice(&word.to_le_bytes());
        }
        disk.write_all(&block).unwrap();
    }
    disk.sync_all().unwrap();
    for name in ["one", "two", "three"] {
        Copy.snapshot(&source, &place.path(name)).unwrap();
    }
    Copy.sync(&source).unwrap();
    let written = std::fs::OpenOptions::new()
        .write(true)
        .open(place.path("one/disk.img"))
        .unwrap();
    written.write_all_at(b"written by a build", 0).unwrap();
    let mut same = vec![0; 140 << 20];
    std::fs::File::open(place.path("three/disk.img"))
        .unwrap()
        .read_exact_at(&mut same, 0)
        .unwrap();
    assert!(std::fs::read(source.join("disk.img")).unwrap() == same);
}

/// A copy that races with the removal of its source is whole or is refused, on plain directories,
/// where nothing is atomic.
#[test]
fn a_copy_is_whole_or_refused() {
    let place = Place::copy().unwrap();
    let mut refused = 0;
    for round in 0..30 {
        let source = place.path("m-1.1");
        place.volume.create(&source).unwrap();
        for number in 0..200 {
            std::fs::write(source.join(format!("file-{number}")), "content").unwrap();
        }
        let copy = place.path("copy");
        let copied = std::thread::scope(|scope| {
            let copier = scope.spawn(|| place.volume.snapshot(&source, &copy));
            // Sooner or later in the course of the copy.
            std::thread::sleep(std::time::Duration::from_millis(round));
            place.volume.delete(&source).unwrap();
            copier.join().unwrap()
        });
        match copied {
            Ok(()) => {
                assert_eq!(names(&copy).len(), 200);
                place.volume.delete(&copy).unwrap();
            }
            Err(error) => {
                assert!(error.is_race(), "{error:?}");
                refused += 1;
            }
        }
        assert!(place.names().is_empty(), "{:?}", place.names());
    }
    println!("{refused} of 30 copies lost the race");
}

#[test]
fn a_copy_that_is_broken_off_leaves_nothing_behind() {
    let place = Place::copy().unwrap();
    let (source, copy) = (machine(&place, "m-1.1"), place.path("copy"));
    let stop = Stop::default();
    stop.clone().set();
    let error = Copy.snapshot_until(&source, &copy, &stop).unwrap_err();
    assert!(matches!(error, VolumeError::Stopped { .. }), "{error:?}");
    assert!(!error.is_race());
    assert_eq!(place.names(), ["m-1.1"]);
    Copy.snapshot_until(&source, &copy, &Stop::default())
        .unwrap();
    assert_eq!(describe(&copy), describe(&source));
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    if !root() {
        return;
    }
    let top = tempfile::tempdir().unwrap();
    let directory = top.path().join("mount");
    std::fs::create_dir(&directory).unwrap();
    let _mount = small("4m", &directory);
    let (source, copy) = (directory.join("m-1.1"), directory.join("copy"));
    Copy.create(&source).unwrap();
    std::fs::write(source.join("a"), "small").unwrap();
    std::fs::write(source.join("disk.img"), vec![1; 3 << 20]).unwrap();
    let error = Copy.snapshot(&source, &copy).unwrap_err();
    let VolumeError::Io {
        path,
        source: reason,
        ..
    } = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!(reason.kind(), std::io::ErrorKind::StorageFull, "{error:?}");
    assert_eq!(*path, source.join("disk.img"));
    assert!(!error.is_race() && !error.is_taken());
    assert_eq!(names(&directory), ["m-1.1"]);
    // Neither does a file that finds no room.
    let file = directory.join("result");
    bbot_machine::durable::write(&file, b"old").unwrap();
    assert!(bbot_machine::durable::write(&file, &vec![1; 2 << 20]).is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"old");
    assert_eq!(names(&directory), ["m-1.1", "result"]);
}

/// The programs of the file system agree with what we say of our subvolumes.
#[test]
fn the_btrfs_program_sees_subvolumes() {
    let Some(place) = Place::btrfs() else { return };
    let path = machine(&place, "m-1.1");
    place.volume.set_read_only(&path, true).unwrap();
    place.volume.snapshot(&path, &place.path("copy")).unwrap();
    let list = |arguments: &[&str]| {
        let output = Command::new("btrfs")
            .args(arguments)
            .arg(&place.directory)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let all = list(&["subvolume", "list"]);
    assert_eq!(all.lines().count(), 2, "{all}");
    let read_only = list(&["subvolume", "list", "-r"]);
    assert!(read_only.trim_end().ends_with("path m-1.1"), "{read_only}");
    assert_eq!(read_only.lines().count(), 1, "{read_only}");
    // And the other way round: what the seed makes with the program, we delete.
    let theirs = place.path("theirs");
    run(
        "btrfs",
        &[
            "-q",
            "subvolume",
            "snapshot",
            "-r",
            text(&path),
            text(&theirs),
        ],
    );
    assert!(place.volume.is_read_only(&theirs).unwrap());
    place.volume.delete(&theirs).unwrap();
    assert_eq!(place.names(), ["copy", "m-1.1"]);
}

#[test]
fn detection_needs_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let error = bbot_machine::volume::detect(&missing).unwrap_err();
    assert!(error.to_string().contains(text(&missing)), "{error}");
    assert!(bbot_machine::volume::detect(directory.path()).is_ok());
}
