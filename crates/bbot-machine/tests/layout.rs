//! The layout on disk: finding machines, the link to the current revision, adding and removing.

#![expect(clippy::unwrap_used, reason = "tests")]

mod volume_support;

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bbot_machine::layout::{
    self, LayoutError, MachineDir, ProblemKind, Scan, activate, add_revision, begin_revision,
    next_revision, publish_revision, remove, remove_revision, resolve_current, revisions,
};
use bbot_machine::owner::{Instance, Temporary};
use testkit::root;
use volume_support::{Place, as_ordinary_user, names};

on_both!(
    revisions_are_added_activated_and_removed,
    a_revision_that_is_not_published_leaves_nothing,
    a_machine_is_removed_as_a_whole,
    a_machine_in_use_is_not_removed,
);

fn manifest(name: &str) -> String {
    format!(": 1\nid: {name}-1.0\nname: {name}\nsummary: A machine\ntype: kvm\n")
}

/// A machine with a current revision, made by hand as an operator of the original would.
fn machine(volume: &Path, name: &str) -> MachineDir {
    let machine = MachineDir::create(volume, name).unwrap();
    let revision = machine.revision(1, "1");
    std::fs::create_dir(&revision).unwrap();
    std::fs::write(revision.join("manifest"), manifest(name)).unwrap();
    symlink(format!("{name}-1.1"), machine.current_link(1)).unwrap();
    machine
}

fn found(scan: &Scan) -> Vec<&str> {
    scan.machines.iter().map(|m| m.name.as_str()).collect()
}

fn volumes(machines: &Path, names: &[&str]) {
    for name in names {
        std::fs::create_dir(machines.join(name)).unwrap();
    }
}

#[test]
fn machines_are_found_on_all_volumes() {
    let top = tempfile::tempdir().unwrap();
    let machines = top.path().join("machines");
    std::fs::create_dir(&machines).unwrap();
    volumes(&machines, &["one", "two", ".hidden", "lost+found"]);
    machine(&machines.join("one"), "debian");
    machine(&machines.join("two"), "alpine");
    machine(&machines.join(".hidden"), "secret");
    machine(&machines.join("lost+found"), "secret");
    std::fs::write(machines.join("README"), "").unwrap();
    std::fs::write(machines.join("one/README"), "").unwrap();
    std::fs::create_dir(machines.join("one/.new")).unwrap();
    // Volumes and machines elsewhere, by links.
    let elsewhere = top.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    machine(&elsewhere, "freebsd");
    symlink("../elsewhere", machines.join("three")).unwrap();
    let disk = top.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    machine(&disk, "windows");
    symlink(disk.join("windows"), machines.join("two/windows")).unwrap();
    // One without a current revision.
    std::fs::create_dir(machines.join("two/gone")).unwrap();

    let scan = layout::scan(&machines).unwrap();
    assert_eq!(
        found(&scan),
        ["alpine", "debian", "freebsd", "gone", "windows"]
    );
    assert!(scan.problems.is_empty(), "{:?}", scan.problems);
    assert_eq!(scan.machines[4].path, machines.join("two/windows"));
    let current = resolve_current(&scan.machines[4], 1).unwrap();
    assert_eq!(current, Some(machines.join("two/windows/windows-1.1")));
}

#[test]
fn one_bad_machine_harms_no_other() {
    let top = tempfile::tempdir().unwrap();
    let machines = top.path();
    volumes(machines, &["one", "two"]);
    let one = machines.join("one");
    machine(&one, "good");
    machine(&one, "twice");
    machine(&machines.join("two"), "twice");
    let renamed = machine(&one, "renamed");
    std::fs::write(
        renamed.revision(1, "1").join("manifest"),
        manifest("original"),
    )
    .unwrap();
    let malformed = machine(&one, "malformed");
    std::fs::write(
        malformed.revision(1, "1").join("manifest"),
        ": 1\nid: \x01\n",
    )
    .unwrap();
    let bare = machine(&one, "bare");
    std::fs::remove_file(bare.revision(1, "1").join("manifest")).unwrap();
    let lost = machine(&one, "lost");
    std::fs::remove_file(lost.current_link(1)).unwrap();
    symlink("/etc", lost.current_link(1)).unwrap();
    std::fs::create_dir(one.join("a b")).unwrap();
    symlink("nowhere", one.join("unplugged")).unwrap();
    symlink("round", one.join("round")).unwrap();

    let scan = layout::scan(machines).unwrap();
    assert_eq!(found(&scan), ["good"]);
    let mut told: Vec<String> = scan.problems.iter().map(|p| format!("{p}\n")).collect();
    told.sort();
    let told = told.concat().replace(&machines.display().to_string(), "M");
    let expected = [
        "M/one/a b: invalid machine name 'a b': it contains a blank or a control character",
        "M/one/round: unable to read: ",
        "M/one/unplugged: the link leads to nothing; is a disk not mounted?",
        "machine bare in M/one/bare: unable to read M/one/bare/bare-1.1/manifest: ",
        "machine lost in M/one/lost: M/one/lost/lost-1 leads to /etc, outside of ",
        "machine malformed in M/one/malformed: M/one/malformed/malformed-1.1/manifest:2:",
        "machine renamed in M/one/renamed: its manifest calls it 'original'; rename ",
        "machine twice in M/one/twice: it exists more than once, leave one of M/one/twice, M/two/twice",
    ];
    assert_eq!(told.lines().count(), expected.len(), "{told}");
    for (line, expected) in told.lines().zip(expected) {
        assert!(line.starts_with(expected), "{line}\n{expected}");
    }
    // Nothing has been touched.
    assert!(one.join("twice/twice-1.1/manifest").exists());
}

#[test]
fn what_cannot_be_read_is_a_problem_of_its_own() {
    if !root() {
        return;
    }
    let top = tempfile::tempdir().unwrap();
    let machines = top.path();
    std::fs::set_permissions(machines, std::fs::Permissions::from_mode(0o755)).unwrap();
    volumes(machines, &["one", "closed"]);
    machine(&machines.join("one"), "good");
    let bad = machine(&machines.join("one"), "bad");
    machine(&machines.join("closed"), "other");
    for closed in [&bad.path, &machines.join("closed")] {
        std::fs::set_permissions(closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    let scan = as_ordinary_user(|| layout::scan(machines)).unwrap();
    assert_eq!(found(&scan), ["good"]);
    assert_eq!(scan.problems.len(), 2, "{:?}", scan.problems);
    for problem in &scan.problems {
        assert!(
            matches!(problem.kind, ProblemKind::Unreadable(_)),
            "{problem:?}"
        );
    }
}

/// The others are found, and of this one it is said whose it is.
#[test]
fn a_container_that_is_closed_to_this_user_is_told_as_such() {
    if !root() {
        return;
    }
    let top = tempfile::tempdir().unwrap();
    let machines = top.path();
    std::fs::set_permissions(machines, std::fs::Permissions::from_mode(0o755)).unwrap();
    volumes(machines, &["one"]);
    machine(&machines.join("one"), "good");
    let closed = machine(&machines.join("one"), "closed");
    let revision = closed.revision(1, "1");
    std::fs::set_permissions(&revision, std::fs::Permissions::from_mode(0o700)).unwrap();
    let scan = as_ordinary_user(|| layout::scan(machines)).unwrap();
    assert_eq!(found(&scan), ["good"]);
    let [problem] = &scan.problems[..] else {
        panic!("{:?}", scan.problems)
    };
    assert!(matches!(&problem.kind, ProblemKind::Closed { path } if *path == revision));
    assert!(
        problem.to_string().contains("run this as root"),
        "{problem}"
    );
    assert_eq!(found(&layout::scan(machines).unwrap()), ["closed", "good"]);
}

/// What is imported may hold programs that run as root, whoever starts them.
#[test]
fn an_imported_container_is_closed() {
    let Some(place) = Place::copy() else { return };
    let source = tempfile::tempdir().unwrap();
    std::fs::set_permissions(source.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(source.path().join("manifest"), manifest("m")).unwrap();
    let dir = MachineDir::create(&place.directory, "m").unwrap();
    let instance = Instance::new("test").unwrap();
    for (revision, mode) in [("1", 0o755), ("2", 0o700)] {
        let path = add_revision(&instance, &place.volume, &dir, 1, revision, source.path());
        let found = std::fs::metadata(path.unwrap())
            .unwrap()
            .permissions()
            .mode();
        // A plain copy that is read-only says so by its mode.
        assert_eq!(found & 0o555, mode & 0o555, "{revision}: {found:o}");
        std::fs::create_dir_all(source.path().join("rootfs")).unwrap();
    }
}

/// Whatever is in a manifest's place: the scan ends, and the other machines are found.
#[test]
fn a_hostile_manifest_is_a_problem_of_its_own() {
    let top = tempfile::tempdir().unwrap();
    let machines = top.path();
    volumes(machines, &["one"]);
    machine(&machines.join("one"), "good");
    let manifest = |name: &str| {
        let path = machine(&machines.join("one"), name)
            .revision(1, "1")
            .join("manifest");
        std::fs::remove_file(&path).unwrap();
        path
    };
    let pipe = manifest("a-pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    symlink("/dev/zero", manifest("device")).unwrap();
    std::fs::create_dir(manifest("folder")).unwrap();
    std::fs::File::create(manifest("huge"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    std::fs::write(manifest("noise"), b"\xff\xfe\0: 1\n").unwrap();
    std::fs::write(manifest("nothing"), b"").unwrap();
    let (sender, scanned) = std::sync::mpsc::channel();
    let path = machines.to_path_buf();
    std::thread::spawn(move || sender.send(layout::scan(&path).unwrap()));
    let scan = scanned
        .recv_timeout(std::time::Duration::from_secs(60))
        .expect("the scan does not end");
    assert_eq!(found(&scan), ["good"]);
    let about: Vec<_> = scan
        .problems
        .iter()
        .map(|problem| problem.machine.clone().unwrap())
        .collect();
    assert_eq!(
        about,
        ["a-pipe", "device", "folder", "huge", "noise", "nothing"]
    );
    for problem in &scan.problems {
        assert!(
            matches!(problem.kind, ProblemKind::Manifest(_)),
            "{problem:?}"
        );
    }
}

#[test]
fn a_machines_directory_that_is_missing_is_an_error() {
    let top = tempfile::tempdir().unwrap();
    let missing = top.path().join("missing");
    let error = layout::scan(&missing).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("unable to read machines directory {}", missing.display())
    );
}

#[test]
fn the_link_leads_into_the_machine() {
    let top = tempfile::tempdir().unwrap();
    let real = machine(top.path(), "m");
    // The machine is reached through a link, so absolute targets are spelled in another way.
    symlink("m", top.path().join("alias")).unwrap();
    let alias = MachineDir {
        path: top.path().join("alias"),
        name: "m".to_string(),
    };
    std::fs::create_dir(real.path.join("m-1.2")).unwrap();
    std::fs::create_dir(real.path.join("m-1.2/inner")).unwrap();
    std::fs::write(real.path.join("file"), "").unwrap();
    symlink("m-1.2", real.path.join("m-1.latest")).unwrap();
    let link = |target: &Path| {
        let _ = std::fs::remove_file(real.current_link(1));
        symlink(target, real.current_link(1)).unwrap();
        resolve_current(&alias, 1)
    };
    let two = Some(alias.path.join("m-1.2"));
    for target in [
        "m-1.2",
        "./m-1.2/",
        "m-1.latest",
        "../m/m-1.2",
        real.path.join("m-1.2").to_str().unwrap(),
        alias.path.join("m-1.2").to_str().unwrap(),
    ] {
        assert_eq!(link(Path::new(target)).unwrap(), two, "{target}");
    }
    for target in [
        "..",
        ".",
        "/",
        "/etc",
        "m-1.2/inner",
        "../../..",
        "/nowhere/m-1.2",
        "../m-1.3",
    ] {
        let result = link(Path::new(target));
        assert!(
            matches!(result, Err(LayoutError::Escape { .. })),
            "{target}: {result:?}"
        );
    }
    let result = link(Path::new("m-1"));
    assert!(
        matches!(result, Err(LayoutError::Loop { .. })),
        "{result:?}"
    );
    let result = link(Path::new("file"));
    assert!(
        matches!(result, Err(LayoutError::NotDirectory { .. })),
        "{result:?}"
    );
    let error = link(Path::new("m-1.3")).unwrap_err();
    assert!(
        matches!(error, LayoutError::Dangling { .. }) && error.is_race(),
        "{error:?}"
    );

    std::fs::remove_file(real.current_link(1)).unwrap();
    assert_eq!(resolve_current(&alias, 1).unwrap(), None);
    assert_eq!(resolve_current(&alias, 2).unwrap(), None);
    std::fs::create_dir(real.current_link(1)).unwrap();
    let result = resolve_current(&alias, 1);
    assert!(
        matches!(result, Err(LayoutError::NotLink { .. })),
        "{result:?}"
    );
    let result = activate(&alias, 1, "2");
    assert!(
        matches!(result, Err(LayoutError::NotLink { .. })),
        "{result:?}"
    );
}

/// Whoever reads the link while it is switched finds a revision.
#[test]
fn the_switch_is_seen_whole() {
    let top = tempfile::tempdir().unwrap();
    let machine = machine(top.path(), "m");
    std::fs::create_dir(machine.revision(1, "2")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = std::collections::BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                let current = resolve_current(&machine, 1).unwrap();
                seen.insert(current.expect("the link is always there"));
            }
            seen
        });
        for _ in 0..50 {
            activate(&machine, 1, "2").unwrap();
            activate(&machine, 1, "1").unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap().len() <= 2);
    });
    assert_eq!(names(&machine.path), ["m-1", "m-1.1", "m-1.2"]);
    assert!(matches!(
        activate(&machine, 1, "3"),
        Err(LayoutError::NoRevision { .. })
    ));
}

fn instance() -> Instance {
    Instance::new("test").unwrap()
}

/// What an operator has made elsewhere.
fn source(place: &Place, id: &str) -> std::path::PathBuf {
    let path = place.path("source");
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("manifest"), manifest("m").replace("m-1.0", id)).unwrap();
    std::fs::write(path.join("disk.img"), "disk").unwrap();
    path
}

fn revisions_are_added_activated_and_removed(place: &Place) {
    std::fs::create_dir(place.path("default")).unwrap();
    let machine = MachineDir::create(&place.path("default"), "m").unwrap();
    let (instance, volume) = (instance(), &place.volume);
    assert_eq!(next_revision(&machine, 1).unwrap(), "1");
    for number in ["9", "10", "2"] {
        let path = add_revision(
            &instance,
            volume,
            &machine,
            1,
            number,
            &source(place, number),
        )
        .unwrap();
        assert_eq!(path, machine.revision(1, number));
        assert!(volume.is_read_only(&path).unwrap());
    }
    assert_eq!(next_revision(&machine, 1).unwrap(), "11");
    assert_eq!(next_revision(&machine, 2).unwrap(), "1");
    assert!(matches!(
        add_revision(&instance, volume, &machine, 1, "9", &source(place, "9")),
        Err(LayoutError::RevisionExists { .. })
    ));
    for bad in ["", "../x", "a/b", "1-t0123456789abcdef", ".1"] {
        let result = add_revision(&instance, volume, &machine, 1, bad, &source(place, "x"));
        assert!(
            matches!(result, Err(LayoutError::Name { .. })),
            "{bad}: {result:?}"
        );
    }
    assert_eq!(resolve_current(&machine, 1).unwrap(), None);
    activate(&machine, 1, "9").unwrap();
    activate(&machine, 1, "10").unwrap();
    let listed: Vec<(String, bool)> = revisions(&machine, 1)
        .unwrap()
        .into_iter()
        .map(|revision| (revision.name, revision.current))
        .collect();
    let expected = [("2", false), ("9", false), ("10", true)];
    assert_eq!(
        listed,
        expected.map(|(name, current)| (name.to_string(), current))
    );
    assert!(matches!(
        remove_revision(&machine, 1, "10"),
        Err(LayoutError::Current { .. })
    ));
    assert!(matches!(
        remove_revision(&machine, 1, "3"),
        Err(LayoutError::NoRevision { .. })
    ));
    remove_revision(&machine, 1, "9").unwrap();
    assert_eq!(names(&machine.path), ["m-1", "m-1.10", "m-1.2"]);
    let scan = layout::scan(&place.directory).unwrap();
    assert_eq!(found(&scan), ["m"]);
}

fn a_revision_that_is_not_published_leaves_nothing(place: &Place) {
    let machine = MachineDir::create(&place.directory, "m").unwrap();
    let (instance, volume) = (instance(), &place.volume);
    let begun = begin_revision(&instance, volume, &machine, 1, "1").unwrap();
    std::fs::write(begun.path().join("disk.img"), "disk").unwrap();
    assert!(revisions(&machine, 1).unwrap().is_empty());
    // Somebody was quicker.
    let quicker = begin_revision(&instance, volume, &machine, 1, "1").unwrap();
    std::fs::write(quicker.path().join("disk.img"), "quicker").unwrap();
    publish_revision(quicker, &machine, 1, "1").unwrap();
    assert!(matches!(
        publish_revision(begun, &machine, 1, "1"),
        Err(LayoutError::RevisionExists { .. })
    ));
    drop(begin_revision(&instance, volume, &machine, 1, "2").unwrap());
    assert_eq!(names(&machine.path), ["m-1.1"]);
    let disk = std::fs::read(machine.revision(1, "1").join("disk.img")).unwrap();
    assert_eq!(disk, b"quicker");
}

fn a_machine_is_removed_as_a_whole(place: &Place) {
    std::fs::create_dir(place.path("default")).unwrap();
    let machine = MachineDir::create(&place.path("default"), "m").unwrap();
    let (instance, volume) = (instance(), &place.volume);
    let first = add_revision(&instance, volume, &machine, 1, "1", &source(place, "one")).unwrap();
    activate(&machine, 1, "1").unwrap();
    volume
        .snapshot(&first, &machine.bootstrapped(&"public".parse().unwrap()))
        .unwrap();
    volume
        .snapshot(&first, &machine.path.join("m-public-1234-0"))
        .unwrap();
    std::fs::write(machine.path.join("notes"), "").unwrap();
    assert!(matches!(remove(&machine), Err(LayoutError::Foreign { .. })));
    assert!(resolve_current(&machine, 1).unwrap().is_some());
    std::fs::remove_file(machine.path.join("notes")).unwrap();
    remove(&machine).unwrap();
    assert!(names(&place.path("default")).is_empty());
    assert!(remove(&machine).is_err());

    // One that lies elsewhere.
    let elsewhere = MachineDir::create(&place.directory, "m").unwrap();
    add_revision(&instance, volume, &elsewhere, 1, "1", &source(place, "one")).unwrap();
    symlink("../m", &machine.path).unwrap();
    remove(&machine).unwrap();
    assert!(names(&place.path("default")).is_empty());
    assert_eq!(names(&place.directory), ["default", "source"]);
}

fn a_machine_in_use_is_not_removed(place: &Place) {
    let machine = MachineDir::create(&place.directory, "m").unwrap();
    let (instance, volume) = (instance(), &place.volume);
    let first = add_revision(&instance, volume, &machine, 1, "1", &source(place, "one")).unwrap();
    activate(&machine, 1, "1").unwrap();
    let toolchain = "public".parse().unwrap();
    let used = Temporary::snapshot(&instance, volume, &machine, &toolchain, &first).unwrap();
    let error = remove(&machine).unwrap_err();
    assert!(matches!(error, LayoutError::InUse { .. }), "{error:?}");
    assert!(
        error.to_string().contains("belongs to test (process "),
        "{error}"
    );
    assert_eq!(resolve_current(&machine, 1).unwrap(), Some(first));
    assert!(used.path().join("disk.img").exists());
    drop(used);
    remove(&machine).unwrap();
    assert_eq!(names(&place.directory), ["source"]);
}
