//! The host that runs out, for real: a volume that is full, file handles and
//! processes that may not be more.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bbot_agent::resources::{
    Level, Limits, Mark, News, Probe, Relief, Watch, is_of_host, raise_handles,
};
use testkit::Mount;

const MIB: u64 = 1 << 20;

/// Marks for disk alone, so that what else the host lacks does not matter.
fn disk_only(low: u64) -> Limits {
    Limits {
        disk: Mark::at(low),
        ..nothing()
    }
}

fn nothing() -> Limits {
    let off = Mark::at(0);
    Limits {
        disk: off,
        inodes: off,
        memory: off,
        memory_pressure: 0.0,
        handles: off,
        pids: off,
    }
}

/// Writes until there is no room.
fn fill(folder: &Path) -> std::io::Error {
    let chunk = vec![b'x'; 64 * 1024];
    for number in 0.. {
        let path = folder.join(format!("fill-{number}"));
        let mut file = match File::create(path) {
            Ok(file) => file,
            Err(e) => return e,
        };
        for _ in 0..64 {
            if let Err(e) = file.write_all(&chunk).and_then(|()| file.sync_all()) {
                return e;
            }
        }
    }
    unreachable!("numbers do not end");
}

fn empty(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    // A btrfs tells of the room when it has written that down.
    let synced = Command::new("sync").arg("-f").arg(folder).status();
    assert!(synced.unwrap().success());
}

/// A volume is filled to the last byte and made empty again; the watch is asked as the
/// agent would.
fn runs_full_and_recovers(volume: &Path, low: u64) {
    let folder = volume.join("work");
    fs::create_dir(&folder).unwrap();
    let probe = Probe::new([volume.to_owned()]);
    let mut watch = Watch::new(disk_only(low));
    let at = Duration::from_secs;
    assert_eq!(watch.observe(probe.facts(), at(0)).news, []);
    assert_eq!(watch.level(), Level::Ok);

    let full = fill(&folder);
    assert!(is_of_host(&full), "{full}");
    let observed = watch.observe(probe.facts(), at(5));
    assert_eq!(watch.level(), Level::Critical);
    assert_eq!(observed.relief, Some(Relief::InterruptNewest));
    let [News::Short { text, .. }] = &observed.news[..] else {
        panic!("{observed:?}");
    };
    assert!(text.contains(&volume.display().to_string()), "{text}");
    assert!(text.contains("--min-free-disk"), "{text}");
    for second in 6..10 {
        assert_eq!(
            watch.observe(probe.facts(), at(second)).news,
            [],
            "told once"
        );
    }

    empty(&folder);
    let observed = watch.observe(probe.facts(), at(10));
    assert!(
        matches!(&observed.news[..], [News::Over { .. }]),
        "{observed:?}"
    );
    assert_eq!((watch.level(), observed.relief), (Level::Ok, None));
}

#[test]
fn a_full_tmpfs_is_noticed_told_once_and_over_when_it_is() {
    if !testkit::require("root", rustix::process::geteuid().is_root()) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mount = Mount::new(&["-t", "tmpfs", "-o", "size=16m", "tmpfs"], folder.path());
    runs_full_and_recovers(mount.path(), 8 * MIB);
}

#[test]
fn a_full_btrfs_is_noticed_told_once_and_over_when_it_is() {
    if !testkit::btrfs() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mount = Mount::btrfs(folder.path(), 128 * MIB);
    runs_full_and_recovers(mount.path(), 16 * MIB);
}

/// What is temporary can be removed where there is no byte left.
fn is_deleted_when_full(volume: &Path) {
    let machines = bbot_machine::volume::detect(volume).unwrap();
    let (machine, copy) = (volume.join("machine"), volume.join("copy"));
    machines.create(&machine).unwrap();
    fs::create_dir(machine.join("folder")).unwrap();
    for number in 0..100 {
        let file = machine.join("folder").join(number.to_string());
        fs::write(file, vec![b'm'; 10_000]).unwrap();
    }
    machines.snapshot(&machine, &copy).unwrap();
    fs::write(copy.join("disk.img"), vec![b'd'; 1 << 20]).unwrap();
    let rest = volume.join("rest");
    fs::create_dir(&rest).unwrap();
    let full = fill(&rest);
    assert!(is_of_host(&full), "{full}");
    machines.delete(&copy).unwrap();
    assert!(!copy.exists() && machine.exists());
}

#[test]
fn a_copy_is_deleted_at_0_bytes_free_on_tmpfs() {
    if !testkit::require("root", rustix::process::geteuid().is_root()) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mount = Mount::new(&["-t", "tmpfs", "-o", "size=16m", "tmpfs"], folder.path());
    is_deleted_when_full(mount.path());
}

#[test]
fn a_snapshot_is_deleted_at_0_bytes_free_on_btrfs() {
    if !testkit::btrfs() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mount = Mount::btrfs(folder.path(), 128 * MIB);
    is_deleted_when_full(mount.path());
}

/// What the agent does in a process of its own whose limits are set: this test's
/// program again, with this one test.
fn limited(test: &str, limits: &[&str]) -> Option<String> {
    if !testkit::require("prlimit", Path::new("/usr/bin/prlimit").exists()) {
        return None;
    }
    let output = Command::new("/usr/bin/prlimit")
        .args(limits)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("BBOT_TEST_LIMITED", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(text)
}

fn is_limited() -> bool {
    std::env::var_os("BBOT_TEST_LIMITED").is_some()
}

#[test]
fn too_few_file_handles_are_noticed_told_once_and_over_when_they_are() {
    if !is_limited() {
        let name = "host::too_few_file_handles_are_noticed_told_once_and_over_when_they_are";
        limited(name, &["--nofile=128:128"]);
        return;
    }
    let probe = Probe::new([PathBuf::from("/")]);
    let mut watch = Watch::new(Limits {
        handles: Mark::at(64),
        ..nothing()
    });
    let mut observe = |probe: &Probe| {
        let observed = watch.observe(probe.facts(), Duration::ZERO);
        (watch.level(), observed.news.len())
    };
    assert_eq!(observe(&probe), (Level::Ok, 0));
    let mut held = Vec::new();
    while held.len() < 80 {
        held.push(File::open("/dev/null").unwrap());
    }
    assert_eq!(observe(&probe), (Level::Low, 1));
    assert_eq!(observe(&probe), (Level::Low, 0));
    let none_left = loop {
        match File::open("/dev/null") {
            Ok(file) => held.push(file),
            Err(e) => break e,
        }
    };
    assert!(is_of_host(&none_left), "{none_left}");
    // Without one they cannot even be counted. It is worse than before: told.
    assert_eq!(observe(&probe), (Level::Critical, 1));
    assert_eq!(observe(&probe), (Level::Critical, 0));
    let failed = Command::new("/bin/true")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_err();
    assert!(is_of_host(&failed), "{failed}");
    held.truncate(1);
    assert_eq!(observe(&probe), (Level::Ok, 1));
}

#[test]
fn the_limit_of_file_handles_is_raised_as_far_as_it_may_be() {
    if !is_limited() {
        let name = "host::the_limit_of_file_handles_is_raised_as_far_as_it_may_be";
        limited(name, &["--nofile=64:512"]);
        return;
    }
    let probe = Probe::new([]);
    assert_eq!(probe.facts().handles.unwrap().limit, 64);
    assert_eq!(raise_handles(), Some(512));
    assert_eq!(probe.facts().handles.unwrap().limit, 512);
    assert_eq!(raise_handles(), Some(512));
}

/// Root is bound by no number of processes, so this one becomes somebody else.
#[test]
fn too_few_processes_are_noticed_and_over_when_they_are() {
    if !testkit::require("root", rustix::process::geteuid().is_root()) {
        return;
    }
    // A user who has nothing else here, and a program that he may run.
    let uid = "54321";
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for path in [folder.path(), program.as_path()] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(path, open).unwrap();
    }
    if !testkit::require("setpriv", Path::new("/usr/bin/setpriv").exists()) {
        return;
    }
    let mut child = Command::new("/usr/bin/setpriv")
        .args(["--reuid", uid, "--regid", uid, "--clear-groups", "--"])
        .args(["/usr/bin/prlimit", "--nproc=40:40"])
        .arg(&program)
        .args(["--exact", "host::within_few_processes", "--nocapture"])
        .args(["--include-ignored"])
        .env("BBOT_TEST_LIMITED", "1")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    stdout.read_to_string(&mut text).unwrap();
    stderr.read_to_string(&mut text).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "run by the test above, as a user who may have few processes"]
fn within_few_processes() {
    assert!(is_limited(), "only within limits");
    let probe = Probe::new([]);
    let mut watch = Watch::new(Limits {
        pids: Mark::at(20),
        ..nothing()
    });
    let mut observe = || {
        let observed = watch.observe(probe.facts(), Duration::ZERO);
        (watch.level(), observed.news.len())
    };
    assert_eq!(observe(), (Level::Ok, 0));
    let mut children = Vec::new();
    let none_left = loop {
        let child = Command::new("/bin/sleep").arg("60").spawn();
        match child {
            Ok(child) => children.push(child),
            Err(e) => break e,
        }
        assert!(children.len() < 50, "nothing bounds us");
    };
    assert!(is_of_host(&none_left), "{none_left}");
    assert_eq!(observe(), (Level::Critical, 1));
    assert_eq!(observe(), (Level::Critical, 0));
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(observe(), (Level::Ok, 1));
}
