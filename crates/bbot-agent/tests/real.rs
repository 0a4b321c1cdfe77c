//! The whole way on real parts: a Debian machine in QEMU is bootstrapped with the
//! real toolchain, and builds packages in throw-away copies, on btrfs and on plain
//! directories.
//!
//! Wants `debian-12/` (a machine's revision) and `toolchain/` in the directory that
//! `BBOT_TEST_CACHE` names.

#![expect(
    clippy::unwrap_used,
    reason = "what is not as it should be fails the test"
)]

#[path = "real/steered.rs"]
mod steered;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bbot_agent::options::Options;
use bbot_agent::run::{Progress, Silent, Stage};
use bbot_agent::{local, toolchain};
use bbot_machine::volume::{self, Kind};
use bbot_manifest::{BuildResult, Status, Task};
use clap::Parser as _;

/// Where the image and the toolchain are, or none when the test is to be skipped.
fn cache() -> Option<PathBuf> {
    let cache = testkit::cache();
    let image =
        cache.join("debian-12/manifest").exists() && cache.join("toolchain/bootstrap").exists();
    (testkit::require("image", image) && testkit::program("qemu-system-x86_64", "qemu"))
        .then_some(cache)
}

#[derive(Debug, Default)]
struct Seen {
    stages: Vec<Stage>,
    log: Vec<u8>,
}

impl Progress for Seen {
    fn stage(&mut self, stage: &Stage) {
        println!("{stage:?}");
        self.stages.push(stage.clone());
    }

    fn wants_log(&self) -> bool {
        true
    }

    fn log(&mut self, _: &str, bytes: &[u8]) {
        self.log.extend_from_slice(bytes);
    }
}

/// A gzip-compressed tar of a package made of these files.
fn package(dir: &Path, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let path = dir.join(format!("{name}.tar.gz"));
    let gzip = flate2::write::GzEncoder::new(
        fs::File::create(&path).unwrap(),
        flate2::Compression::fast(),
    );
    let mut tar = tar::Builder::new(gzip);
    for (file, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("{name}/{file}"), text.as_bytes())
            .unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap();
    path
}

const HELLO: &str =
    "#include <stdio.h>\nint main(void) { puts(\"hello from the guest\"); return 0; }\n";

/// Builds only where nobody has built before.
const MAKEFILE: &str = "all: hello\n\ttest ! -e /var/tmp/left\n\ttouch /var/tmp/left\n\nhello: hello.c\n\t$(CC) -o $@ $<\n\n\
                        test: all2\n\nall2: hello\n\t./hello\n\nclean:\n\trm -f hello\n\n.PHONY: all test all2 clean\n";

struct Bench {
    dir: PathBuf,
    options: Options,
}

impl Bench {
    fn new(dir: &Path, cache: &Path) -> Self {
        let volume_dir = dir.join("machines/vol");
        let machine = volume_dir.join("debian-12");
        fs::create_dir_all(&machine).unwrap();
        let volume = volume::detect(&machine).unwrap();
        let revision = machine.join("debian-12-1.1");
        if volume.kind() == Kind::Btrfs {
            volume.create(&revision).unwrap();
            for file in ["manifest", "disk.img", "kernel", "initrd", "cmdline"] {
                let copied = Command::new("cp")
                    .arg("--sparse=always")
                    .arg(cache.join("debian-12").canonicalize().unwrap().join(file))
                    .arg(&revision)
                    .status();
                assert!(copied.unwrap().success());
            }
            volume.set_read_only(&revision, true).unwrap();
        } else {
            volume
                .snapshot(&cache.join("debian-12").canonicalize().unwrap(), &revision)
                .unwrap();
        }
        std::os::unix::fs::symlink("debian-12-1.1", machine.join("debian-12-1")).unwrap();
        let tftp = dir.join("tftp");
        toolchain::add(&tftp, "default", &cache.join("toolchain")).unwrap();
        let mut options = Options::parse_from([
            "bbot-agent",
            "--accel",
            "tcg",
            "--suspend-timeout",
            "0",
            "--build-retries",
            "0",
        ]);
        options.machines = dir.join("machines");
        options.tftp = tftp;
        options.state = Some(dir.join("state"));
        Self {
            dir: dir.to_owned(),
            options,
        }
    }

    async fn build(&self, name: &str, files: &[(&str, &str)]) -> (BuildResult, Seen) {
        let archive = package(&self.dir, name, files);
        let task = Task::new(name, "1.0", "dir:.", "debian-12", "x86_64-linux-gnu");
        let mut seen = Seen::default();
        let result = local::build(self.options.clone(), &task, &archive, &mut seen)
            .await
            .unwrap();
        for operation in &result.operations {
            println!(
                "{} {}:\n{}",
                operation.name, operation.status, operation.log
            );
        }
        (result, seen)
    }

    /// A build that takes longer than it may: its log until there is not lost.
    async fn cut_short(&self) {
        let makefile = "all:\n\t@echo 'the last words'\n\tsleep 3600\n";
        let mut options = self.options.clone();
        options.build_timeout = 15;
        let bench = Self {
            dir: self.dir.clone(),
            options,
        };
        // And when nobody has seen it, at the same time.
        let archive = package(&bench.dir, "unseen", &[("Makefile", makefile)]);
        let task = Task::new("unseen", "1.0", "dir:.", "debian-12", "x86_64-linux-gnu");
        let mut silent = Silent;
        let unseen = local::build(bench.options.clone(), &task, &archive, &mut silent);
        let files = [("Makefile", makefile)];
        let ((result, seen), unseen) = tokio::join!(bench.build("sleepy", &files), unseen);
        assert_eq!(result.status, Status::Abort, "{result:?}");
        let shown = String::from_utf8_lossy(&seen.log).into_owned();
        assert!(shown.contains("\nthe last words\n"), "{shown}");
        let [agent] = &result.operations[..] else {
            panic!("one operation: {result:?}");
        };
        assert!(agent.log.starts_with("no result within 15 s\n"));
        assert!(!agent.log.contains("the last words"), "{}", agent.log);

        let result = unseen.unwrap();
        assert_eq!(result.status, Status::Abort, "{result:?}");
        let [agent] = &result.operations[..] else {
            panic!("one operation: {result:?}");
        };
        assert_eq!(agent.name, "agent");
        assert!(agent.log.starts_with("no result within 15 s\n"));
        assert!(agent.log.contains("\nthe last words\n"), "{}", agent.log);
    }

    /// Two builds of one package, one that fails and one that is cut short, on one
    /// bootstrap.
    async fn whole_way(&self) {
        let files = [("hello.c", HELLO), ("Makefile", MAKEFILE)];
        let (first, seen) = self.build("hello", &files).await;
        assert_eq!(first.status, Status::Success, "{first:?}");
        assert!(matches!(seen.stages[0], Stage::Bootstrapping { .. }));
        let log = String::from_utf8_lossy(&seen.log).into_owned();
        assert!(log.contains("hello from the guest"), "{log}");
        let all: String = first.operations.iter().map(|o| o.log.as_str()).collect();
        assert!(all.contains("hello from the guest"), "{all}");

        // What the first has written is not there for the second; and two clones of
        // one machine run at once, with one address on wires of their own.
        let begin = Instant::now();
        let ((second, seen), (third, third_seen)) =
            tokio::join!(self.build("hello", &files), self.build("hello2", &files));
        println!("two builds at once took {:?}", begin.elapsed());
        for result in [&second, &third] {
            assert_eq!(result.status, Status::Success, "{result:?}");
        }
        let log = String::from_utf8_lossy(&third_seen.log).into_owned();
        assert!(log.contains("hello from the guest"), "{log}");
        assert!(
            !seen
                .stages
                .iter()
                .any(|s| matches!(s, Stage::Bootstrapping { .. })),
            "bootstrapped once"
        );

        let broken = [
            ("hello.c", "int main(void) { return nothing; }\n"),
            ("Makefile", MAKEFILE),
        ];
        let (third, _) = self.build("broken", &broken).await;
        assert_eq!(third.status, Status::Error, "{third:?}");
        let all: String = third.operations.iter().map(|o| o.log.as_str()).collect();
        assert!(all.contains("undeclared"), "{all}");

        self.cut_short().await;

        let mut left: Vec<String> = fs::read_dir(self.dir.join("machines/vol/debian-12"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                ".debian-12-default.mac",
                "debian-12-1",
                "debian-12-1.1",
                "debian-12-default"
            ]
        );
        for folder in ["build", "bootstrap"] {
            let left = fs::read_dir(self.dir.join("tftp").join(folder)).map_or(0, Iterator::count);
            assert_eq!(left, 0, "{folder}");
        }
    }
}

#[tokio::test]
async fn a_package_is_built_in_a_real_machine_on_plain_directories() {
    let Some(cache) = cache() else { return };
    let dir = tempfile::tempdir().unwrap();
    Bench::new(dir.path(), &cache).whole_way().await;
}

#[tokio::test]
async fn a_package_is_built_in_a_real_machine_on_btrfs() {
    let Some(cache) = cache() else { return };
    if !testkit::root() || !testkit::btrfs() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let btrfs = testkit::Mount::btrfs(dir.path(), 6 << 30);
    Bench::new(btrfs.path(), &cache).whole_way().await;
}

/// Waits for something that must come, but not for ever.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(
            begin.elapsed() < Duration::from_secs(120),
            "{what} does not come"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The QEMU that is a child of this agent.
fn qemu_of(agent: u32) -> Option<u32> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .find_map(|process| {
            let stat = fs::read_to_string(process.path().join("stat")).ok()?;
            // "pid (name) state parent ..."
            let (name, rest) = stat.rsplit_once(')')?;
            let parent: u32 = rest.split_ascii_whitespace().nth(1)?.parse().ok()?;
            let pid = name.split_ascii_whitespace().next()?.parse().ok()?;
            (parent == agent && name.contains("(qemu-system")).then_some(pid)
        })
}

/// The folder of the run that a QEMU has its sockets in: it holds it open.
fn socket_folder_of(qemu: u32) -> Option<PathBuf> {
    let open = fs::read_dir(format!("/proc/{qemu}/fd")).ok()?;
    open.flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .find_map(|path| {
            path.ancestors()
                .find(|folder| {
                    folder
                        .file_name()
                        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"bbot-run-"))
                })
                .map(Path::to_owned)
        })
}

/// Whether a process runs (one that has ended and is not reaped does not).
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().next());
    state.is_some_and(|state| state != "Z" && state != "X")
}

/// An agent that is killed while its machine runs: QEMU dies with it, and the next
/// agent removes what it has left.
#[tokio::test]
async fn what_a_killed_agent_leaves_the_next_one_removes() {
    let Some(cache) = cache() else { return };
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path(), &cache);
    let agent = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bbot-agent"));
        command.args(["--accel", "tcg"]).args(more);
        for (option, path) in [
            ("--machines", "machines"),
            ("--tftp", "tftp"),
            ("--state", "state"),
        ] {
            command.arg(option).arg(dir.path().join(path));
        }
        command
    };
    // Killed in the bootstrap: that takes the same way as a build and is there first.
    let machine = bench.dir.join("machines/vol/debian-12");
    let mut child = agent(&["--dump-machines"]).spawn().unwrap();
    let copies = || {
        let names = fs::read_dir(&machine).unwrap().flatten();
        names
            .map(|e| e.file_name().into_string().unwrap())
            .filter(|n| n.starts_with("debian-12-default-"))
            .count()
    };
    until("a copy of the machine", || copies() == 1);
    until("QEMU", || qemu_of(child.id()).is_some());
    let qemu = qemu_of(child.id()).unwrap();
    let sockets = socket_folder_of(qemu).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    until("QEMU's end", || !runs(qemu));
    assert_eq!(copies(), 1, "left by the one that was killed");

    let run = fs::read_dir(bench.dir.join("tftp/bootstrap/default"))
        .unwrap()
        .flatten()
        .find(|entry| entry.file_name().as_encoded_bytes().starts_with(b"run-"))
        .unwrap();
    let swept = agent(&["--dump-machines", "--fake-bootstrap", "--fake-build"])
        .output()
        .unwrap();
    assert!(
        swept.status.success(),
        "{}",
        String::from_utf8_lossy(&swept.stderr)
    );
    assert_eq!(copies(), 0, "{}", String::from_utf8_lossy(&swept.stderr));
    assert!(!run.path().exists());
    assert!(!sockets.exists(), "{}", sockets.display());
}
