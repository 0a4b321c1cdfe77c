//! Owner records: what is temporary goes with its owner, and nothing else ever goes.

#![expect(clippy::unwrap_used, reason = "tests")]

mod volume_support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bbot_machine::layout::{MachineDir, ToolchainName};
use bbot_machine::owner::{Instance, OwnerError, Reason, Swept, Temporary, is_owned, sweep};
use bbot_machine::volume::{self, Kind, Stop, Volume, VolumeError};
use testkit::{root, text};
use volume_support::{Place, as_ordinary_user, names};

on_both!(
    a_temporary_goes_with_its_guard,
    a_temporary_becomes_the_bootstrapped_machine,
    a_bootstrapped_machine_is_replaced,
    what_is_taken_is_deleted_with_its_record,
    what_is_kept_is_nobodys,
    a_source_that_is_gone_leaves_nothing,
    what_a_killed_owner_left_is_swept,
    what_an_interrupted_copy_left_is_swept,
    an_ordinary_user_owns_and_sweeps,
);

fn instance() -> Instance {
    Instance::new("public 1").unwrap()
}

fn toolchain() -> ToolchainName {
    "public".parse().unwrap()
}

/// A machine with one revision, its directory as `MachineDir`.
fn machine(place: &Place) -> (MachineDir, PathBuf) {
    let machine = MachineDir::create(&place.directory, "m").unwrap();
    let revision = machine.revision(1, "1");
    place.volume.create(&revision).unwrap();
    std::fs::write(revision.join("disk.img"), "disk").unwrap();
    place.volume.set_read_only(&revision, true).unwrap();
    (machine, revision)
}

fn snapshot(place: &Place, machine: &MachineDir, from: &Path) -> Temporary {
    Temporary::snapshot(&instance(), &place.volume, machine, &toolchain(), from).unwrap()
}

fn sweep_one(machine: &MachineDir) -> Swept {
    sweep(std::slice::from_ref(machine))
}

#[track_caller]
fn nothing_swept(machine: &MachineDir) {
    let before = names(&machine.path);
    let swept = sweep_one(machine);
    assert!(
        swept.removed.is_empty() && swept.problems.is_empty(),
        "{swept:?}"
    );
    assert_eq!(names(&machine.path), before);
}

fn record(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.owner", name(path)))
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

fn a_temporary_goes_with_its_guard(place: &Place) {
    let (machine, revision) = machine(place);
    let one = snapshot(place, &machine, &revision);
    let two = snapshot(place, &machine, &revision);
    assert_ne!(one.path(), two.path());
    assert!(name(one.path()).starts_with("m-public-t"));
    assert!(is_owned(one.path()) && !is_owned(&revision));
    std::fs::write(one.path().join("written"), "by a build").unwrap();
    // Owners live, so a sweep does nothing; it tells whose they are.
    let swept = sweep_one(&machine);
    assert!(
        swept.removed.is_empty() && swept.problems.is_empty(),
        "{swept:?}"
    );
    assert_eq!(swept.kept.len(), 2);
    assert_eq!(
        swept.kept[0].owner,
        format!("public 1 (process {})", std::process::id())
    );
    assert!(one.path().join("written").exists());
    drop(one);
    two.delete().unwrap();
    assert_eq!(names(&machine.path), ["m-1.1"]);
}

fn a_temporary_becomes_the_bootstrapped_machine(place: &Place) {
    let (machine, revision) = machine(place);
    let target = machine.bootstrapped(&toolchain());
    let temporary = snapshot(place, &machine, &revision);
    std::fs::write(temporary.path().join("manifest"), "bootstrapped").unwrap();
    temporary.rename_to(&target).unwrap();
    assert_eq!(names(&machine.path), ["m-1.1", "m-public"]);
    nothing_swept(&machine);
    // Nothing is replaced by a rename, and the temporary does not stay.
    let error = snapshot(place, &machine, &revision)
        .rename_to(&target)
        .unwrap_err();
    assert!(
        matches!(&error, OwnerError::Volume(error) if error.is_taken()),
        "{error:?}"
    );
    assert_eq!(names(&machine.path), ["m-1.1", "m-public"]);
    assert_eq!(
        std::fs::read(target.join("manifest")).unwrap(),
        b"bootstrapped"
    );
}

fn a_bootstrapped_machine_is_replaced(place: &Place) {
    let (machine, revision) = machine(place);
    let target = machine.bootstrapped(&toolchain());
    for round in ["one", "two", "three"] {
        let temporary = snapshot(place, &machine, &revision);
        std::fs::write(temporary.path().join("manifest"), round).unwrap();
        temporary.replace(&target).unwrap();
        assert_eq!(names(&machine.path), ["m-1.1", "m-public"]);
        assert_eq!(
            std::fs::read(target.join("manifest")).unwrap(),
            round.as_bytes()
        );
    }
    nothing_swept(&machine);
}

fn what_is_taken_is_deleted_with_its_record(place: &Place) {
    let (machine, revision) = machine(place);
    let target = machine.bootstrapped(&toolchain());
    place.volume.snapshot(&revision, &target).unwrap();
    place.volume.set_read_only(&target, true).unwrap();
    let taken = Temporary::take(&instance(), &place.volume, &target).unwrap();
    assert!(!target.exists());
    assert!(is_owned(taken.path()) && taken.path().join("disk.img").exists());
    taken.delete().unwrap();
    assert_eq!(names(&machine.path), ["m-1.1"]);
    let error = Temporary::take(&instance(), &place.volume, &target).unwrap_err();
    assert!(error.is_race(), "{error:?}");
    assert_eq!(names(&machine.path), ["m-1.1"]);
}

fn what_is_kept_is_nobodys(place: &Place) {
    let (machine, revision) = machine(place);
    let path = snapshot(place, &machine, &revision).keep().unwrap();
    assert!(!is_owned(&path));
    nothing_swept(&machine);
    assert!(path.join("disk.img").exists());
}

fn a_source_that_is_gone_leaves_nothing(place: &Place) {
    let (machine, revision) = machine(place);
    place.volume.delete(&revision).unwrap();
    let error = Temporary::snapshot(
        &instance(),
        &place.volume,
        &machine,
        &toolchain(),
        &revision,
    )
    .unwrap_err();
    assert!(error.is_race(), "{error:?}");
    assert!(names(&machine.path).is_empty());
}

/// The other side of [`what_a_killed_owner_left_is_swept`]: an agent with one temporary, until it
/// is killed. No test unless it is told a directory.
#[test]
fn agent_of_another_process() {
    let Some(directory) = std::env::var_os("BBOT_TEST_OWNER_DIRECTORY") else {
        return;
    };
    let machine = MachineDir {
        path: directory.into(),
        name: "m".to_string(),
    };
    let volume: Arc<dyn Volume> = volume::detect(&machine.path).unwrap().into();
    let temporary = Temporary::snapshot(
        &Instance::new("other").unwrap(),
        &volume,
        &machine,
        &toolchain(),
        &machine.revision(1, "1"),
    )
    .unwrap();
    println!("\ntemporary {}", temporary.path().display());
    std::io::stdout().flush().unwrap();
    // Until it is killed, or its parent is gone.
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
    std::mem::forget(temporary);
}

/// Another process with a temporary in `machine`.
struct Agent {
    process: Child,
    temporary: PathBuf,
}

impl Agent {
    fn start(machine: &MachineDir) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "agent_of_another_process", "--nocapture"])
            .env("BBOT_TEST_OWNER_DIRECTORY", &machine.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let temporary = BufReader::new(process.stdout.take().unwrap())
            .lines()
            .find_map(|line| line.unwrap().strip_prefix("temporary ").map(PathBuf::from))
            .expect("the other process tells its temporary");
        Self { process, temporary }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn what_a_killed_owner_left_is_swept(place: &Place) {
    let (machine, revision) = machine(place);
    let mine = snapshot(place, &machine, &revision);
    let mut agent = Agent::start(&machine);
    assert!(agent.temporary.join("disk.img").exists());
    // An agent of the original, with nobody to speak for it.
    let foreign = machine.path.join("m-public-1234-0");
    place.volume.snapshot(&revision, &foreign).unwrap();

    let swept = sweep_one(&machine);
    assert!(
        swept.removed.is_empty() && swept.problems.is_empty(),
        "{swept:?}"
    );
    let owner = format!("other (process {})", agent.process.id());
    assert!(
        swept
            .kept
            .iter()
            .any(|kept| kept.path == agent.temporary && kept.owner == owner),
        "{swept:?}"
    );
    assert!(agent.temporary.join("disk.img").exists());

    agent.kill();
    assert!(agent.temporary.join("disk.img").exists());
    let swept = sweep_one(&machine);
    assert_eq!(swept.removed, [(agent.temporary.clone(), Reason::Ended)]);
    assert!(swept.problems.is_empty(), "{swept:?}");
    let mut left = vec!["m-1.1", "m-public-1234-0", name(mine.path())];
    let record = format!(".{}.owner", name(mine.path()));
    left.push(&record);
    left.sort_unstable();
    assert_eq!(names(&machine.path), left);
    nothing_swept(&machine);
}

/// A record as a process of another boot left it.
fn left_behind(path: &Path) {
    std::fs::write(
        record(path),
        format!(
            ": 1\nowner-record: bbot\ntemporary: {}\ninstance: old\nboot-id: other\npid: 1\nstart-time: 1\n",
            name(path)
        ),
    )
    .unwrap();
}

fn what_an_interrupted_copy_left_is_swept(place: &Place) {
    let (machine, revision) = machine(place);
    let path = machine.temporary(&toolchain()).unwrap();
    left_behind(&path);
    place.volume.snapshot(&revision, &path).unwrap();
    for ending in ["new", "deleted"] {
        let hidden = machine.path.join(format!(".{}.{ending}", name(&path)));
        place.volume.snapshot(&revision, &hidden).unwrap();
    }
    place.volume.set_read_only(&path, true).unwrap();
    let swept = sweep_one(&machine);
    assert_eq!(swept.removed, [(path.clone(), Reason::OtherBoot)]);
    assert!(swept.problems.is_empty(), "{swept:?}");
    assert_eq!(names(&machine.path), ["m-1.1"]);
    // A record alone goes without a word.
    left_behind(&path);
    let swept = sweep_one(&machine);
    assert!(
        swept.removed.is_empty() && swept.problems.is_empty(),
        "{swept:?}"
    );
    assert_eq!(names(&machine.path), ["m-1.1"]);
}

fn an_ordinary_user_owns_and_sweeps(place: &Place) {
    if !root() {
        return;
    }
    let home = place.home_of_an_ordinary_user();
    let volume = &place.volume;
    as_ordinary_user(|| {
        let machine = MachineDir::create(&home, "m").unwrap();
        let revision = machine.revision(1, "1");
        volume.create(&revision).unwrap();
        std::fs::write(revision.join("disk.img"), "disk").unwrap();
        volume.set_read_only(&revision, true).unwrap();
        let make =
            || Temporary::snapshot(&instance(), volume, &machine, &toolchain(), &revision).unwrap();
        let target = machine.bootstrapped(&toolchain());
        make().replace(&target).unwrap();
        make().replace(&target).unwrap();
        make().delete().unwrap();
        let path = machine.temporary(&toolchain()).unwrap();
        left_behind(&path);
        volume.snapshot(&revision, &path).unwrap();
        let swept = sweep_one(&machine);
        assert_eq!(swept.removed, [(path, Reason::OtherBoot)], "{swept:?}");
        assert_eq!(names(&machine.path), ["m-1.1", "m-public"]);
    });
}

/// Any program that holds the lock counts, whatever the record says.
#[test]
fn a_lock_that_is_held_outweighs_the_record() {
    let place = Place::copy().unwrap();
    let (machine, revision) = machine(&place);
    let path = machine.temporary(&toolchain()).unwrap();
    left_behind(&path);
    place.volume.snapshot(&revision, &path).unwrap();
    let mut holder = Command::new("flock")
        .args([text(&record(&path)), "-c", "echo locked; read line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "locked\n");
    let swept = sweep_one(&machine);
    assert_eq!(swept.kept.len(), 1, "{swept:?}");
    assert!(path.join("disk.img").exists());
    drop(holder.stdin.take());
    holder.wait().unwrap();
    let swept = sweep_one(&machine);
    assert_eq!(swept.removed, [(path, Reason::OtherBoot)]);
    assert_eq!(names(&machine.path), ["m-1.1"]);
}

#[test]
fn what_is_no_record_of_ours_protects_nothing_and_harms_nothing() {
    let place = Place::copy().unwrap();
    let (machine, revision) = machine(&place);
    let paths: Vec<PathBuf> = (0..6)
        .map(|_| machine.temporary(&toolchain()).unwrap())
        .collect();
    for path in &paths[..5] {
        place.volume.snapshot(&revision, path).unwrap();
    }
    // Of another program, malformed, of another temporary, empty with a temporary, a link.
    std::fs::write(record(&paths[0]), ": 1\nowner-record: other\n").unwrap();
    std::fs::write(record(&paths[1]), b"\xff\xfe").unwrap();
    left_behind(&paths[2]);
    std::fs::rename(record(&paths[2]), record(&paths[3])).unwrap();
    std::fs::write(record(&paths[2]), "").unwrap();
    left_behind(&paths[5]);
    symlink(record(&paths[5]), record(&paths[4])).unwrap();
    // One whose temporary is a link to what is not ours.
    symlink(&revision, &paths[5]).unwrap();
    let before = names(&machine.path);
    let swept = sweep_one(&machine);
    assert!(
        swept.removed.is_empty() && swept.kept.is_empty(),
        "{swept:?}"
    );
    assert_eq!(swept.problems.len(), 6, "{swept:?}");
    assert_eq!(names(&machine.path), before);
    assert!(revision.join("disk.img").exists());

    // An empty record without a temporary is what a crash leaves before there is one.
    let crashed = machine.temporary(&toolchain()).unwrap();
    std::fs::write(record(&crashed), "").unwrap();
    // Records of other machines are not looked for here.
    std::fs::write(machine.path.join(".other-public-t1.owner"), "").unwrap();
    sweep_one(&machine);
    assert!(!record(&crashed).exists());
    assert!(machine.path.join(".other-public-t1.owner").exists());
}

/// A volume that cannot delete for a while.
#[derive(Debug)]
struct Faulty {
    broken: AtomicBool,
}

impl Volume for Faulty {
    fn kind(&self) -> Kind {
        Kind::Copy
    }
    fn create(&self, path: &Path) -> Result<(), VolumeError> {
        volume::Copy.create(path)
    }
    fn snapshot_until(&self, from: &Path, to: &Path, stop: &Stop) -> Result<(), VolumeError> {
        volume::Copy.snapshot_until(from, to, stop)
    }
    fn set_read_only(&self, path: &Path, read_only: bool) -> Result<(), VolumeError> {
        volume::Copy.set_read_only(path, read_only)
    }
    fn is_read_only(&self, path: &Path) -> Result<bool, VolumeError> {
        volume::Copy.is_read_only(path)
    }
    /// Knows no exchange, as some file systems.
    fn exchange(&self, one: &Path, _other: &Path) -> Result<(), VolumeError> {
        Err(VolumeError::Io {
            action: "exchange",
            path: one.to_path_buf(),
            source: std::io::Error::from_raw_os_error(libc::EINVAL),
        })
    }
    fn delete(&self, path: &Path) -> Result<(), VolumeError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(VolumeError::Io {
                action: "delete",
                path: path.to_path_buf(),
                source: std::io::Error::from_raw_os_error(libc::EIO),
            });
        }
        volume::Copy.delete(path)
    }
}

#[test]
fn what_could_not_be_deleted_is_left_to_the_next_sweep() {
    let place = Place::copy().unwrap();
    let (machine, revision) = machine(&place);
    let faulty = Arc::new(Faulty {
        broken: AtomicBool::new(true),
    });
    let volume: Arc<dyn Volume> = faulty.clone();
    let make = || Temporary::snapshot(&instance(), &volume, &machine, &toolchain(), &revision);
    let (one, two) = (make().unwrap(), make().unwrap());
    let mut paths = [one.path().to_path_buf(), two.path().to_path_buf()];
    paths.sort();
    assert!(one.delete().is_err());
    drop(two);
    assert!(paths.iter().all(|path| path.exists() && is_owned(path)));
    // The owner's process lives, but has let go.
    let swept = sweep_one(&machine);
    assert_eq!(swept.removed, paths.map(|path| (path, Reason::LetGo)));
    assert_eq!(names(&machine.path), ["m-1.1"]);
    drop(faulty);
}

#[test]
fn a_machine_is_replaced_without_an_exchange_too() {
    let place = Place::copy().unwrap();
    let (machine, revision) = machine(&place);
    let volume: Arc<dyn Volume> = Arc::new(Faulty {
        broken: AtomicBool::new(false),
    });
    let target = machine.bootstrapped(&toolchain());
    for round in ["one", "two"] {
        let temporary =
            Temporary::snapshot(&instance(), &volume, &machine, &toolchain(), &revision).unwrap();
        std::fs::write(temporary.path().join("manifest"), round).unwrap();
        if round == "one" {
            temporary.rename_to(&target).unwrap();
        } else {
            temporary.replace(&target).unwrap();
        }
        assert_eq!(
            std::fs::read(target.join("manifest")).unwrap(),
            round.as_bytes()
        );
        assert_eq!(names(&machine.path), ["m-1.1", "m-public"]);
    }
}

/// Agents start and sweep at the same time; nobody loses anything that lives.
#[test]
fn sweeps_and_owners_at_once() {
    let place = Place::copy().unwrap();
    let (machine, revision) = machine(&place);
    let left: Vec<PathBuf> = (0..20)
        .map(|_| {
            let path = machine.temporary(&toolchain()).unwrap();
            left_behind(&path);
            place.volume.snapshot(&revision, &path).unwrap();
            path
        })
        .collect();
    let removed: usize = std::thread::scope(|scope| {
        let sweepers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut removed = 0;
                    for _ in 0..10 {
                        let swept = sweep_one(&machine);
                        assert!(swept.problems.is_empty(), "{swept:?}");
                        removed += swept.removed.len();
                    }
                    removed
                })
            })
            .collect();
        for _ in 0..30 {
            let temporary = snapshot(&place, &machine, &revision);
            assert!(temporary.path().join("disk.img").exists());
            assert!(is_owned(temporary.path()));
            temporary.delete().unwrap();
        }
        sweepers.into_iter().map(|s| s.join().unwrap()).sum()
    });
    assert_eq!(removed, left.len());
    assert_eq!(names(&machine.path), ["m-1.1"]);
}

#[test]
fn an_instance_has_a_name_of_one_line() {
    for bad in ["", " ", "a\nb", "a\0"] {
        assert!(Instance::new(bad).is_err(), "{bad:?}");
    }
    assert_eq!(Instance::new(" public 1 ").unwrap().name(), "public 1");
}
