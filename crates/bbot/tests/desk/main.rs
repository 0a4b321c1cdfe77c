//! The whole way on real parts: `bbot up`, a package submitted, built in a real virtual machine and read on the page;
//! and the same without a controller.
//!
//! Needs a Debian machine in the home `$BBOT_TEST_CACHE/home` (`bbot --home ... machine create debian-12`) and the static worker
//! that `BBOT_WORKER` names.

#![expect(clippy::unwrap_used, reason = "tests")]

mod farm;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::RecvTimeoutError,
    time::Duration,
};

const BBOT: &str = env!("CARGO_BIN_EXE_bbot");
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/hello");

/// A home of its own, with the machine of the test cache.
struct Desk {
    home: tempfile::TempDir,
}

impl Desk {
    /// None, with a word why, where there is no machine to use.
    fn new() -> Option<Desk> {
        let machine = testkit::cache().join("home/machines/default/debian-12");
        if !machine.join("debian-12-1").exists() || std::env::var_os("BBOT_WORKER").is_none() {
            testkit::missing(
                "image",
                "no machine in $BBOT_TEST_CACHE/home, or no BBOT_WORKER",
            );
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        let volume = home.path().join("machines/default");
        fs::create_dir_all(&volume).unwrap();
        // A copy of what is published; what is bootstrapped is this test's own.
        let own = volume.join("debian-12");
        fs::create_dir(&own).unwrap();
        let current = fs::canonicalize(machine.join("debian-12-1")).unwrap();
        let copied = Command::new("cp")
            .args(["-a", "--sparse=always", "--reflink=auto"])
            .arg(&current)
            .arg(own.join("debian-12-1.1"))
            .status()
            .unwrap();
        assert!(copied.success());
        symlink("debian-12-1.1", own.join("debian-12-1")).unwrap();
        Some(Desk { home })
    }

    fn bbot(&self, arguments: &[&str]) -> Output {
        let output = Command::new("timeout")
            .arg("600")
            .arg(BBOT)
            .args(arguments)
            .env("BBOT_HOME", self.home.path())
            .env_remove("BBOT_CONTROLLER")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        println!(
            "$ bbot {}\n{}{}-> {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            output.status
        );
        output
    }

    /// Processes whose command line names this home.
    fn processes(&self) -> Vec<String> {
        let home = self.home.path().to_str().unwrap();
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains(home))
            .collect()
    }

    /// What is in the machine's folder beside the machine itself.
    fn leftovers(&self) -> Vec<String> {
        let machine = self.home.path().join("machines/default/debian-12");
        let runs = ["build", "bootstrap"]
            .map(|run| self.home.path().join("tftp").join(run).join("default"));
        let known = [
            "debian-12-1",
            "debian-12-1.1",
            "debian-12-default",
            ".debian-12-default.mac",
        ];
        std::iter::once(machine)
            .chain(runs)
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flatten()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| !known.contains(&name.as_str()))
            .collect()
    }

    fn up(&self) -> Up {
        self.up_with(&[])
    }

    fn up_with(&self, more: &[&str]) -> Up {
        let mut child = Command::new(BBOT)
            .args(["up", "--listen", "127.0.0.1:0", "--accel", "tcg"])
            .args(more)
            .env("BBOT_HOME", self.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().expect("`bbot up` says that it is up").unwrap();
        let url = first
            .strip_prefix("bbot is up at ")
            .expect("the address comes first")
            .to_string();
        // Read on, so that it never blocks on a full pipe.
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .for_each(|line| println!("up: {line}"));
        });
        Up { child, url }
    }
}

struct Up {
    child: Child,
    url: String,
}

impl Up {
    fn get(&self, path: &str) -> String {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "--max-time", "20"])
            .arg(format!("{}{path}", self.url))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "GET {path}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn interrupt(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let (ended, watch) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            if watch.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        });
        let status = self.child.wait().unwrap();
        drop(ended);
        status.code()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A copy of the example with `change` made to its program.
fn changed(folder: &Path, from: &str, to: &str) -> PathBuf {
    let copy = folder.join("hello");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(EXAMPLE).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    let program = copy.join("hello.c");
    let source = fs::read_to_string(&program).unwrap();
    assert!(source.contains(from));
    fs::write(&program, source.replace(from, to)).unwrap();
    copy
}

#[test]
fn a_package_goes_the_whole_way() {
    let Some(desk) = Desk::new() else { return };
    let up = desk.up();

    let built = desk.bbot(&["submit", "--wait", EXAMPLE]);
    assert_eq!(built.status.code(), Some(0));
    let log = text(&built.stdout);
    for line in ["+ make", "ok: no name", "ok: a name"] {
        assert!(log.contains(line), "the log has '{line}'");
    }

    let folder = tempfile::tempdir().unwrap();
    let broken = changed(folder.path(), "return 0;", "return 0");
    let failed = desk.bbot(&[
        "submit",
        "--wait",
        broken.to_str().unwrap(),
        "--version",
        "1.0.1",
    ]);
    assert_eq!(failed.status.code(), Some(3));
    assert!(
        text(&failed.stdout).contains("error: expected"),
        "the compiler's message is in the log"
    );

    let builds: serde_json::Value =
        serde_json::from_slice(&desk.bbot(&["builds", "--json"]).stdout).unwrap();
    let statuses: Vec<_> = builds["builds"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| &b["status"])
        .collect();
    assert_eq!(statuses, ["error", "success"], "newest first");
    let id = builds["builds"][0]["id"].as_str().unwrap();
    let page = up.get(&format!("/builds/{id}"));
    assert!(
        page.contains("error: expected"),
        "the page shows the compiler's message"
    );
    assert!(up.get("/").contains("1.0.1"), "the list shows the build");
    assert!(text(&desk.bbot(&["log", id, "update"]).stdout).contains("error: expected"));

    // Somebody changes his mind and wants it once more.
    let again = desk.bbot(&["rebuild", id, "--reason", "test"]);
    assert_eq!(again.status.code(), Some(0));
    let last = desk.bbot(&["log", id]);
    assert!(
        text(&last.stdout).contains("error: expected"),
        "the last log can be read until there is a new one"
    );

    // The agent may be at work on that: Ctrl-C ends it all the same, and nothing is left.
    assert_eq!(up.interrupt(), Some(0));
    assert_eq!(desk.processes(), [""; 0]);
    assert_eq!(desk.leftovers(), [""; 0]);

    // The results outlive the process that took them.
    let up = desk.up();
    assert!(up.get(&format!("/builds/{id}")).contains("1.0.1"));
    assert_eq!(up.interrupt(), Some(0));
}

#[test]
fn a_build_without_a_controller_shows_its_log_as_it_grows() {
    let Some(desk) = Desk::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let slow = changed(folder.path(), "int\nmain", "#warning slow\nint\nmain");
    // The test waits for a sign that we saw its first line: the log must come while the build runs.
    fs::write(
        slow.join("test.sh"),
        "#!/bin/sh\necho first line\nsleep 4\necho last line\n",
    )
    .unwrap();

    let build = || {
        Command::new(BBOT)
            .args([
                "build",
                slow.to_str().unwrap(),
                "--machine",
                "debian-12",
                "--accel",
                "tcg",
            ])
            .env("BBOT_HOME", desk.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut child = build();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = String::new();
    for line in lines.by_ref() {
        let line = line.unwrap();
        seen.push_str(&line);
        seen.push('\n');
        if line == "first line" {
            break;
        }
    }
    assert!(seen.contains("first line"), "{seen}");
    assert!(
        child.try_wait().unwrap().is_none(),
        "the log came while the build was running"
    );
    for line in lines {
        seen.push_str(&line.unwrap());
        seen.push('\n');
    }
    assert!(seen.contains("last line"), "{seen}");
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(0), "a warning is a success");
    assert_eq!(desk.processes(), [""; 0]);
    assert_eq!(desk.leftovers(), [""; 0]);

    // Ctrl-C ends the machine and takes its copy away.
    let mut child = build();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "first line"));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(desk.processes(), [""; 0]);
    assert_eq!(desk.leftovers(), [""; 0]);

    // The machine is bootstrapped now; what fails to build has an exit status of its own.
    let folder = tempfile::tempdir().unwrap();
    let broken = changed(folder.path(), "return 0;", "return 0");
    let failed = desk.bbot(&["build", broken.to_str().unwrap(), "--accel", "tcg"]);
    assert_eq!(failed.status.code(), Some(3));
    assert!(text(&failed.stdout).contains("error: expected"));
    assert!(text(&failed.stderr).contains("error"));
}

#[test]
fn one_build_leaves_nothing_for_the_next() {
    let Some(desk) = Desk::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let package = changed(folder.path(), "int\nmain", "int\nmain");
    let script = "#!/bin/sh\nif [ -e /var/tmp/mark ]; then echo found a mark; exit 1; fi\n\
                  echo there >/var/tmp/mark && ls -l /var/tmp/mark\n";
    fs::write(package.join("test.sh"), script).unwrap();
    for _ in 0..2 {
        let built = desk.bbot(&["build", package.to_str().unwrap(), "--accel", "tcg"]);
        assert_eq!(built.status.code(), Some(0));
        assert!(
            text(&built.stdout).contains("/var/tmp/mark"),
            "the file was written"
        );
    }
}

/// Every way to hand something in, at a controller that has no machine to build it on.
#[test]
fn everything_that_can_be_handed_in_is_queued() {
    if !testkit::program("qemu-system-x86_64", "qemu") {
        return;
    }
    let Some(_) = std::env::var_os("BBOT_WORKER") else {
        testkit::missing("image", "no BBOT_WORKER");
        return;
    };
    let desk = Desk {
        home: tempfile::tempdir().unwrap(),
    };
    let up = desk.up();
    let queued = |arguments: &[&str]| {
        let output = desk.bbot(&[&["submit", "--json"], arguments].concat());
        assert_eq!(output.status.code(), Some(0));
        let builds: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(builds[0]["state"], "queued");
        let text = |field: &str| builds[0][field].as_str().unwrap().to_string();
        (text("package"), text("version"))
    };
    let is = |name: &str, version: &str| (name.to_string(), version.to_string());

    let archive = desk.home.path().join("a.tar.gz");
    let example = Path::new(EXAMPLE);
    let made = Command::new("tar")
        .arg("czf")
        .arg(&archive)
        .arg("-C")
        .arg(example.parent().unwrap())
        .arg("hello")
        .status()
        .unwrap();
    assert!(made.success());
    assert_eq!(queued(&[archive.to_str().unwrap()]), is("hello", "1.0.0"));
    let fingerprint = vec!["AB"; 32].join(":");
    let repository = [
        "--repository",
        "https://example.org/1",
        "--package",
        "libx/2.1",
    ];
    assert_eq!(
        queued(&[&repository[..], &["--trust", &fingerprint]].concat()),
        is("libx", "2.1")
    );

    // A controller fetches from nobody's inner network.
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let inner = desk.bbot(&[
        "submit",
        "--git",
        "https://127.0.0.1/x.git",
        "--commit",
        commit,
    ]);
    assert_eq!(inner.status.code(), Some(1));
    assert!(text(&inner.stderr).contains("127.0.0.1"));
    assert_eq!(up.interrupt(), Some(0));
}

/// What needs no machine: a clear word and the right exit status for what cannot be done.
#[test]
fn what_cannot_be_done_is_said() {
    let home = tempfile::tempdir().unwrap();
    let bbot = |arguments: &[&str]| {
        Command::new(BBOT)
            .args(arguments)
            .env("BBOT_HOME", home.path())
            .env_remove("BBOT_CONTROLLER")
            .env_remove("BBOT_TOKEN_FILE")
            .output()
            .unwrap()
    };
    for wrong in [
        &["no-such-command"][..],
        &["builds", "--controller", "host:2268"],
        &["builds", "--state", "done"],
        &[
            "submit",
            "--repository",
            "https://host/1",
            "--package",
            "hello",
        ],
        &["machine", "create", "windows-10"],
        &["build", "--accel", "fast"],
        &["up", "--listen", "2268"],
    ] {
        let output = bbot(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {output:?}");
    }

    let none = bbot(&["builds", "--controller", "http://127.0.0.1:1"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(
        text(&none.stderr).contains("no controller answers at http://127.0.0.1:1"),
        "{none:?}"
    );

    let tokenless = bbot(&["rebuild", "1"]);
    assert_eq!(tokenless.status.code(), Some(1));
    assert!(
        text(&tokenless.stderr).contains("--token-file"),
        "{tokenless:?}"
    );

    let dynamic = bbot(&["toolchain", "add", "--worker", BBOT]);
    assert_eq!(dynamic.status.code(), Some(1));
    assert!(
        text(&dynamic.stderr).contains("is not a static program"),
        "{dynamic:?}"
    );

    let folder = home.path().join("machine");
    fs::create_dir(&folder).unwrap();
    let header = ": 1\nid: m-1.0\nname: m\nsummary: M\ntype: kvm\n";
    fs::write(folder.join("manifest"), header).unwrap();
    let diskless = bbot(&["machine", "import", folder.to_str().unwrap()]);
    assert_eq!(diskless.status.code(), Some(1));
    assert!(
        text(&diskless.stderr).contains("has no disk.img"),
        "{diskless:?}"
    );

    let missing = bbot(&["build", "/no/such/package", "--machine", "x"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        text(&missing.stderr).contains("/no/such/package"),
        "{missing:?}"
    );

    let unknown = bbot(&["build", EXAMPLE]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        text(&unknown.stderr).contains("bbot machine create"),
        "{unknown:?}"
    );

    let manifest = home.path().join("m");
    fs::write(&manifest, ": 1\nname value\n").unwrap();
    let bad = bbot(&["manifest", "to-json", manifest.to_str().unwrap()]);
    assert_eq!(bad.status.code(), Some(1));
    let expected = format!(
        "{}:2:6: error: ':' expected after name\n",
        manifest.display()
    );
    assert_eq!(text(&bad.stderr), expected);
}

#[test]
fn manifests_become_json_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m");
    let manifest = ": 1\na: b\nlog: \\\none\ntwo\n\\\n:\nc:\n";
    fs::write(&file, manifest).unwrap();
    let json = Command::new(BBOT)
        .args(["manifest", "to-json"])
        .arg(&file)
        .output()
        .unwrap();
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(json.stdout.ends_with(b"\n]\n"), "one newline at the end");
    assert_eq!(
        value,
        serde_json::json!([[["a", "b"], ["log", "one\ntwo"]], [["c", ""]]])
    );
    fs::write(&file, &json.stdout).unwrap();
    let back = Command::new(BBOT)
        .args(["manifest", "from-json", "--old"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(text(&back.stdout), manifest);
}

#[test]
fn a_key_of_ours_is_what_openssl_reads() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    let public = folder.path().join("public.pem");
    let made = Command::new(BBOT)
        .arg("keygen")
        .arg(&key)
        .arg("--public")
        .arg(&public)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let printed = Command::new(BBOT)
        .arg("fingerprint")
        .arg(&key)
        .output()
        .unwrap();
    assert_eq!(printed.stdout, made.stdout);
    let openssl = Command::new("openssl")
        .args(["rsa", "-pubout", "-in"])
        .arg(&key)
        .output()
        .unwrap();
    assert_eq!(text(&openssl.stdout), fs::read_to_string(&public).unwrap());
}
