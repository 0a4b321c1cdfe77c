//! A loss of power at any moment: what is to be on the disk is there before what follows from it. Shown by the order of
//! the system calls, as `strace` sees them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod volume_support;

use std::process::Command;
use std::sync::Arc;

use bbot_machine::durable;
use bbot_machine::layout::{MachineDir, ToolchainName};
use bbot_machine::owner::{Instance, Temporary};
use bbot_machine::volume::{self, Volume};

use volume_support::Place;

const PLACE: &str = "BBOT_TEST_TRACED";

/// Not a test by itself: a bootstrap as the disk sees it, traced by the tests below.
#[test]
fn bootstraps_a_machine() {
    let Some(directory) = std::env::var_os(PLACE) else {
        return;
    };
    let machine = MachineDir {
        path: directory.into(),
        name: "m".to_owned(),
    };
    let volume: Arc<dyn Volume> = volume::detect(&machine.path).unwrap().into();
    let instance = Instance::new("test").unwrap();
    let toolchain = "public".parse::<ToolchainName>().unwrap();
    let target = machine.bootstrapped(&toolchain);
    // The first comes to a free name, the second takes the place of the first.
    for _ in 0..2 {
        let revision = machine.path.join("m-1.1");
        let temporary =
            Temporary::snapshot(&instance, &volume, &machine, &toolchain, &revision).unwrap();
        durable::write(&temporary.path().join("manifest"), b": 1\n").unwrap();
        durable::write(&machine.path.join(".m-public.mac"), b"02:00:00:00:00:01\n").unwrap();
        temporary.replace(&target).unwrap();
    }
}

/// A call: its name, its arguments, which with `-y` name the files of descriptors.
#[derive(Debug)]
struct Call {
    name: String,
    arguments: String,
}

/// Runs the bootstrap on this place and gives its calls in order.
fn traced(place: &Place) -> Vec<Call> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new("strace")
        .args(["-f", "-y", "-s", "200", "-e"])
        .arg("trace=openat,mkdir,mkdirat,write,fsync,fdatasync,syncfs,rename,renameat,renameat2,unlink,unlinkat,ioctl")
        .arg("-o")
        .arg(log.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "bootstraps_a_machine", "--nocapture", "--test-threads=1"])
        .env(PLACE, &place.directory)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::read_to_string(log.path())
        .unwrap()
        .lines()
        .filter(|line| line.contains(place.directory.to_str().unwrap()))
        .filter(|line| !line.contains(" = -1 "))
        .filter_map(|line| {
            let call = line.trim_start().split_once(' ')?.1.trim_start();
            let (name, arguments) = call.split_once('(')?;
            Some(Call {
                name: name.to_owned(),
                arguments: arguments.to_owned(),
            })
        })
        .collect()
}

/// A call that is looked for: its names, and whether its arguments are right.
type Wanted<'a> = (&'a str, &'a dyn Fn(&str) -> bool);

/// Looks for calls in this order, each after the one before; gives where the last is.
#[track_caller]
fn in_order(calls: &[Call], from: usize, wanted: &[Wanted<'_>]) -> usize {
    let mut at = from;
    for (number, (names, is_it)) in wanted.iter().enumerate() {
        let found = calls[at..].iter().position(|call| {
            names.split('|').any(|name| name == call.name) && is_it(&call.arguments)
        });
        match found {
            Some(more) => at += more + 1,
            None => {
                let list: Vec<String> = calls[from..]
                    .iter()
                    .map(|call| format!("{}({}", call.name, call.arguments))
                    .collect();
                panic!(
                    "no {names} (number {number}) after {at} in\n{}",
                    list.join("\n")
                );
            }
        }
    }
    at
}

fn the_order_is_right(place: &Place) {
    let revision = place.path("m-1.1");
    place.volume.create(&revision).unwrap();
    std::fs::write(revision.join("disk.img"), b"disk").unwrap();
    let calls = traced(place);
    let directory = format!("<{}>", place.directory.display());
    let is_directory = |arguments: &str| {
        arguments.starts_with(|c: char| c.is_ascii_digit()) && arguments.contains(&directory)
    };
    let is_record = |arguments: &str| arguments.contains(".owner");
    // The temporary: a directory, or a subvolume made by an ioctl on its parent.
    let is_temporary = |arguments: &str| {
        !arguments.contains(".owner")
            && (arguments.contains("m-public-") || arguments.contains("SNAP_CREATE"))
    };
    let is_mac = |arguments: &str| arguments.contains(".m-public.mac");
    let to_target = |arguments: &str| arguments.contains("/m-public\"") && !is_mac(arguments);
    let any = |_: &str| true;
    let mut from = 0;
    for _ in 0..2 {
        // The record is on the disk, and so is its name, before there is anything that it is about.
        let record = in_order(
            &calls,
            from,
            &[
                ("openat", &is_record),
                ("write", &is_record),
                ("fsync", &is_record),
                ("fsync", &is_directory),
            ],
        );
        let first = calls[from..]
            .iter()
            .position(|call| {
                matches!(&*call.name, "mkdir" | "mkdirat" | "ioctl")
                    && is_temporary(&call.arguments)
            })
            .map(|at| at + from)
            .unwrap();
        assert!(
            first >= record,
            "{:?} comes before the record is safe",
            calls[first]
        );
        // The address is written beside, flushed, renamed, and the name flushed.
        in_order(
            &calls,
            record,
            &[
                ("openat", &is_mac),
                ("write", &is_mac),
                ("fsync", &is_mac),
                ("rename|renameat|renameat2", &is_mac),
                ("fsync", &is_directory),
            ],
        );
        // All of the machine is on the disk before it gets its name, and the name before the record goes.
        let replaced = in_order(
            &calls,
            record,
            &[
                ("fsync", &|arguments: &str| arguments.contains("manifest")),
                ("syncfs", &any),
                ("rename|renameat|renameat2", &to_target),
                ("fsync", &is_directory),
            ],
        );
        let gone = calls[record..]
            .iter()
            .position(|call| {
                matches!(&*call.name, "unlink" | "unlinkat") && is_record(&call.arguments)
            })
            .map(|at| at + record)
            .unwrap();
        assert!(
            gone >= replaced,
            "the record goes before the machine is safe"
        );
        from = gone + 1;
    }
}

fn must_skip() -> bool {
    !testkit::program("strace", "strace")
}

#[test]
fn the_order_on_copies() {
    if must_skip() {
        return;
    }
    the_order_is_right(&Place::copy().unwrap());
}

#[test]
fn the_order_on_btrfs() {
    if must_skip() {
        return;
    }
    if let Some(place) = Place::btrfs() {
        the_order_is_right(&place);
    }
}

/// The helper above finds what is out of order.
#[test]
#[should_panic(expected = "no fsync")]
fn a_wrong_order_is_found() {
    let call = |name: &str, arguments: &str| Call {
        name: name.to_owned(),
        arguments: arguments.to_owned(),
    };
    let calls = [
        call("fsync", "3</x>"),
        call("write", "3</x>"),
        call("rename", "\"/x\", \"/y\""),
    ];
    let any = |_: &str| true;
    in_order(
        &calls,
        0,
        &[("write", &any), ("fsync", &any), ("rename", &any)],
    );
}
