//! Tests of the base.

use super::*;

#[test]
fn tools_are_named_with_their_upstream_versions() {
    let packages = "cmake 3.25.1-1\ncmake-data 3.25.1-1\ngcc 4:12.2.0-3\ngcc-12 12.2.0-14\n";
    assert_eq!(tools(packages), ", gcc 12.2.0, cmake 3.25.1");
    assert_eq!(tools("bash 5\n"), "");
}

#[test]
fn the_key_changes_with_what_goes_in() {
    let options = Options::new(
        "a",
        crate::create::Suite::Bookworm,
        Path::new("/d"),
        Path::new("/c"),
    );
    let sources = Sources::default();
    let mut more = options.clone();
    more.packages.push("git".to_owned());
    let mut larger = options.clone();
    larger.disk_bytes += 1;
    let mut renamed = options.clone();
    renamed.name = "b".to_owned();
    assert_ne!(key(&options, &sources), key(&more, &sources));
    assert_ne!(key(&options, &sources), key(&larger, &sources));
    assert_eq!(key(&options, &sources), key(&renamed, &sources));
}

#[test]
fn only_old_bases_are_pruned() {
    let cache = tempfile::tempdir().unwrap();
    let old = SystemTime::now() - CACHE_AGE * 2;
    for (name, is_old) in [
        ("old", true),
        ("mine", true),
        ("new", false),
        ("used", true),
    ] {
        let directory = cache.path().join(name);
        fs::create_dir(&directory).unwrap();
        let id = File::create(directory.join("id")).unwrap();
        if is_old {
            id.set_modified(old).unwrap();
        }
    }
    let used = File::create(cache.path().join("used.lock")).unwrap();
    used.lock().unwrap();
    prune(cache.path(), "mine");
    let left = ["old", "mine", "new", "used"].map(|name| cache.path().join(name).exists());
    assert_eq!(left, [false, true, true, true]);
}

#[test]
fn what_killed_runs_have_left_goes_and_what_is_being_made_stays() {
    let cache = tempfile::tempdir().unwrap();
    let names = [
        ".making-left-0011.AbCdEf",
        ".making-ours-0022.AbCdEf",
        ".making-busy-0033.AbCdEf",
        "left-0011",
        ".other",
    ];
    for name in names {
        fs::create_dir_all(cache.path().join(name).join("shared")).unwrap();
    }
    let lock = |name: &str| {
        let lock = File::create(cache.path().join(name)).unwrap();
        lock.lock().unwrap();
        lock
    };
    let _held = [lock("ours-0022.lock"), lock("busy-0033.lock")];
    remove_unfinished(cache.path(), "ours-0022");
    let left = names.map(|name| cache.path().join(name).exists());
    assert_eq!(left, [false, false, true, true, true]);
}

#[test]
fn what_mmdebstrap_quotes_of_the_hook_is_told_from_its_words() {
    let first = CUSTOMIZE.lines().next().unwrap();
    assert!(is_of_hook(&format!(
        "E: setup failed: E: command failed: {first}"
    )));
    assert!(is_of_hook("set -eux") && is_of_hook(""));
    assert!(!is_of_hook("+ chroot /x depmod 6.1"));
    assert!(!is_of_hook("find: Permission denied"));
}
