use super::left::{Run, is_left, owner, start_time, sweep_in};
use super::*;

const BOUNDS: Bounds = Bounds {
    ram_kib: 2048,
    cpus: 2,
    processes: 100,
};

#[test]
fn hierarchies_are_found_by_their_mounts() {
    let cgroup = "9:name=systemd:/\n8:pids:/a b\n1:cpu,cpuacct:/x\n0::/system.slice/bbot.service\n";
    let mountinfo = "\
        30 20 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        31 30 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n\
        32 30 0:27 / /sys/fs/cgroup/my\\040pids rw shared:9 - cgroup cgroup rw,pids\n\
        33 30 0:28 /system.slice /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        34 30 0:28 / /elsewhere rw - cgroup2 cgroup2 rw\n\
        35 30 0:29 /other /sys/fs/cgroup/pids2 rw - cgroup cgroup rw,pids\n\
        rubbish\n";
    let found = hierarchies(cgroup, mountinfo);
    let own: Vec<&Path> = found.iter().map(|one| one.own.as_path()).collect();
    assert_eq!(
        own,
        [
            Path::new("/sys/fs/cgroup/cpu,cpuacct/x"),
            Path::new("/sys/fs/cgroup/my pids/a b"),
            Path::new("/sys/fs/cgroup/unified/bbot.service"),
        ]
    );
    assert_eq!(found[2].version, Version::Two);
    // In a control group namespace, outside of its root.
    assert!(hierarchies("0::/../x", "33 30 0:28 / /c rw - cgroup2 c rw").is_empty());
}

#[test]
fn octal_is_read() {
    assert_eq!(unescape(r"a\040b\134c"), r"a b\c");
    assert_eq!(unescape(r"\04"), r"\04");
    assert_eq!(unescape(r"\377"), r"\377");
}

/// A directory that looks like a group of version 2 with these controllers.
fn group(path: &Path, controllers: &str) {
    fs::create_dir_all(path).unwrap();
    fs::write(path.join("cgroup.controllers"), controllers).unwrap();
    fs::write(path.join("cgroup.subtree_control"), "").unwrap();
    fs::write(path.join("cgroup.procs"), "").unwrap();
}

#[test]
fn version_two_is_bounded_in_all_there_is() {
    let values = values_two(&BOUNDS);
    let written = |file: &str| {
        let value = values.iter().find(|value| value.file == file).unwrap();
        value.value.clone()
    };
    assert_eq!(written("memory.max"), (2 << 20).to_string());
    assert_eq!(written("memory.swap.max"), "0");
    assert_eq!(written("pids.max"), "100");
    assert_eq!(written("cpu.max"), "200000 100000");
}

#[test]
fn only_the_controllers_that_are_there_are_handed_down() {
    let top = tempfile::tempdir().unwrap();
    group(top.path(), "cpuset pids hugetlb");
    assert!(hand_down(top.path()));
    // A plain file keeps what was written to it.
    let asked = fs::read_to_string(top.path().join("cgroup.subtree_control")).unwrap();
    assert_eq!(asked, "+pids");
    // What is handed down already is not asked for again.
    fs::write(top.path().join("cgroup.subtree_control"), "pids").unwrap();
    assert!(hand_down(top.path()));
    let asked = fs::read_to_string(top.path().join("cgroup.subtree_control")).unwrap();
    assert_eq!(asked, "pids");
    // The kernel says no.
    fs::remove_file(top.path().join("cgroup.subtree_control")).unwrap();
    assert!(!hand_down(top.path()));
}

#[test]
fn what_cannot_be_bounded_is_told() {
    let top = tempfile::tempdir().unwrap();
    let hierarchy = Hierarchy {
        own: top.path().to_owned(),
        mount: top.path().to_owned(),
        version: Version::One {
            controllers: vec!["memory".to_owned()],
        },
    };
    // No kernel behind it: its files are not there.
    let groups = Groups::make_in(std::slice::from_ref(&hierarchy), &BOUNDS, "g");
    assert!(top.path().join("g").is_dir());
    assert_eq!(groups.missing, ["memory", "pids", "cpu"]);
    drop(groups);
    assert!(!top.path().join("g").exists());
    assert_eq!(
        Groups::make_in(&[], &BOUNDS, "g").missing,
        ["memory", "pids", "cpu"]
    );
}

/// Where both versions are mounted, version 2 may have no controllers: what version 1 bounds is bounded all the same.
#[test]
fn what_one_version_bounds_is_not_told_as_missing() {
    if !testkit::root() {
        return;
    }
    let groups = Groups::make(&BOUNDS);
    let holds = |file: &str, value: &str| {
        groups.directories.iter().any(|directory| {
            fs::read_to_string(directory.join(file)).is_ok_and(|held| held.trim() == value)
        })
    };
    let bytes = (BOUNDS.ram_kib * 1024).to_string();
    let memory = holds("memory.limit_in_bytes", &bytes) || holds("memory.max", &bytes);
    let processes = holds("pids.max", &BOUNDS.processes.to_string());
    assert_eq!(memory, !groups.missing.contains(&"memory"), "{groups:?}");
    assert_eq!(processes, !groups.missing.contains(&"pids"), "{groups:?}");
}

#[test]
fn only_what_is_left_of_ours_is_swept() {
    let top = tempfile::tempdir().unwrap();
    for name in [
        "bbot-nspawn-10-500-0",
        "bbot-nspawn-11-500-3",
        "bbot-nspawn-11-500",
        "bbot-nspawn-x-500-3",
        "bbot-nspawn-12-1-1-1",
        "somebody",
    ] {
        fs::create_dir_all(top.path().join(name).join("payload")).unwrap();
    }
    sweep_in(top.path(), |pid| (pid == 10).then_some(500));
    let mut left: Vec<String> = fs::read_dir(top.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(
        left,
        [
            "bbot-nspawn-10-500-0",
            "bbot-nspawn-11-500",
            "bbot-nspawn-12-1-1-1",
            "bbot-nspawn-x-500-3",
            "somebody",
        ]
    );
    // A number that another process has now; but somebody holds the lock.
    let lock = File::open(top.path().join("bbot-nspawn-10-500-0")).unwrap();
    lock.try_lock().unwrap();
    sweep_in(top.path(), |_| Some(501));
    assert!(top.path().join("bbot-nspawn-10-500-0").exists());
    drop(lock);
    sweep_in(top.path(), |_| Some(501));
    assert!(!top.path().join("bbot-nspawn-10-500-0").exists());
}

#[test]
fn what_is_left_is_told_by_its_owner_and_its_run() {
    for (owner_lives, own_run, expected) in [
        (false, None, true),
        (true, None, false),
        (true, Some(Run::GoesOn), false),
        (true, Some(Run::Over), true),
    ] {
        assert_eq!(is_left(owner_lives, own_run), expected, "{own_run:?}");
    }
}

#[test]
fn what_could_not_be_removed_when_its_run_ended_is_swept_while_its_agent_lives() {
    let top = tempfile::tempdir().unwrap();
    let hierarchy = Hierarchy {
        own: top.path().to_owned(),
        mount: top.path().to_owned(),
        version: Version::One {
            controllers: vec!["memory".to_owned()],
        },
    };
    let make = || Groups::make_in(std::slice::from_ref(&hierarchy), &BOUNDS, &fresh_name());
    let sweep = || sweep_in(top.path(), start_time);
    let (mut ended, goes_on) = (make(), make());
    // No lock can be had.
    ended.locks.clear();
    assert!(sweep().is_empty());
    let (name, directory) = (ended.name.clone(), ended.directories[0].clone());
    fs::write(directory.join("stuck"), "").unwrap();
    drop(ended);
    assert!(sweep().is_empty() && directory.exists());
    fs::remove_file(directory.join("stuck")).unwrap();
    assert_eq!(sweep(), [name]);
    assert!(goes_on.directories[0].exists());
}

#[test]
fn this_process_has_a_start_time() {
    let name = fresh_name();
    let (pid, started) = owner(&name).unwrap();
    assert_eq!(pid, std::process::id());
    assert_eq!(start_time(pid), Some(started));
    assert_ne!(fresh_name(), name);
}
