//! What the agent of `bbot up` is for besides one build after the other: several at once, logs that
//! are read while they grow, machines that are kept, containers.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use super::{BBOT, Desk, EXAMPLE, text};

/// Until a line comes: a machine is bootstrapped and booted on a loaded host.
const BOUND: Duration = Duration::from_secs(180);

/// A command whose lines are read as they come. Killed when dropped.
struct Lines {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Lines {
    fn of(desk: &Desk, arguments: &[&str]) -> Lines {
        let mut child = Command::new(BBOT)
            .args(arguments)
            .env("BBOT_HOME", desk.home.path())
            .env_remove("BBOT_CONTROLLER")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                println!("{line}");
                let _ = sender.send(line);
            }
        });
        Lines {
            child,
            lines,
            seen: Vec::new(),
        }
    }

    /// Waits for a line that begins so, and returns it.
    fn until(&mut self, start: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(BOUND);
            let line = line.unwrap_or_else(|e| panic!("'{start}': {e}, {:?}", self.seen));
            self.seen.push(line.clone());
            if line.starts_with(start) {
                return line;
            }
        }
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn interrupt(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.child.wait().unwrap().code()
    }

    /// Its exit status, once its output has ended.
    fn end(mut self) -> Option<i32> {
        while let Ok(line) = self.lines.recv_timeout(BOUND) {
            self.seen.push(line);
        }
        self.child.wait().unwrap().code()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `look` finds, as soon as it does.
fn eventually<T>(look: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + BOUND;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "nothing is found in time");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A package of that name whose tests are `script`.
fn package(folder: &Path, name: &str, script: &str) -> PathBuf {
    let package = folder.join(name);
    fs::create_dir(&package).unwrap();
    let makefile = "all:\n\ncheck:\n\tsh test.sh\n";
    fs::write(package.join("Makefile"), makefile).unwrap();
    fs::write(package.join("test.sh"), script).unwrap();
    package
}

#[test]
fn two_builds_run_at_once_and_their_logs_are_read_meanwhile() {
    let Some(desk) = Desk::new() else { return };
    let up = desk.up_with(&["--instance-max", "2", "--cpu", "1"]);
    let folder = tempfile::tempdir().unwrap();
    // Each says a line a second, until the test has seen both at it.
    let script = "for i in $(seq 1 120); do echo line $i; sleep 1; done\n";
    let mut builds: Vec<Lines> = ["one", "two"]
        .map(|name| {
            let package = package(folder.path(), name, script);
            let source = package.to_str().unwrap();
            let given = ["--name", name, "--version", "1"];
            Lines::of(
                &desk,
                &[&["submit", "--follow", source][..], &given].concat(),
            )
        })
        .into();
    for build in &mut builds {
        build.until("line 1");
    }
    for build in &mut builds {
        build.until("line 2");
        assert!(build.runs(), "its log came while it was building");
    }
    let status: serde_json::Value =
        serde_json::from_slice(&desk.bbot(&["agent", "status", "--json"]).stdout).unwrap();
    let runs = status["runs"].as_array().unwrap();
    let at_work = runs.iter().filter(|run| run["phase"] == "working").count();
    assert_eq!(at_work, 2, "{runs:?}");
    assert_eq!(status["slots"]["used"], 2);
    drop(builds);

    // Ctrl-C gives both back, and nothing is left of either.
    assert_eq!(up.interrupt(), Some(0));
    assert_eq!(desk.processes(), [""; 0]);
    assert_eq!(desk.leftovers(), [""; 0]);
}

#[test]
fn a_build_that_is_cancelled_has_its_machine_stopped_within_seconds() {
    let Some(desk) = Desk::new() else { return };
    let up = desk.up();
    let folder = tempfile::tempdir().unwrap();
    let long = package(folder.path(), "long", "echo begun\nsleep 3600\n");
    let source = long.to_str().unwrap();
    let given = ["--name", "long", "--version", "1"];
    let mut build = Lines::of(
        &desk,
        &[&["submit", "--follow", source][..], &given].concat(),
    );
    build.until("begun");
    let working = || {
        let status = desk.bbot(&["agent", "status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        let runs = status["runs"].as_array().unwrap().clone();
        runs.iter().filter(|r| r["phase"] == "working").count()
    };
    // Its machine is one of these; another may be prepared ahead.
    let parent = up.child.id().to_string();
    let machines = || -> Vec<u32> {
        let is_machine = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let (name, rest) = stat.rsplit_once(')').unwrap_or_default();
            name.contains("(qemu-system") && rest.split_whitespace().nth(1) == Some(&parent)
        };
        let entries = fs::read_dir("/proc").unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        let pids = names.filter_map(|name| name.to_str()?.parse().ok());
        pids.filter(is_machine).collect()
    };
    let all = machines();
    assert!(!all.is_empty());
    assert_eq!(working(), 1);
    let listed = desk.bbot(&["builds", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let id = listed["builds"][0]["id"].as_str().unwrap();

    let began = Instant::now();
    let cancelled = desk.bbot(&["cancel", id, "--reason", "a test"]);
    assert!(cancelled.status.success());
    assert!(text(&cancelled.stderr).contains("is cancelled"));
    eventually(|| {
        let left = machines();
        all.iter().any(|pid| !left.contains(pid)).then_some(())
    });
    let took = began.elapsed();
    println!("the machine was gone after {took:?}");
    // A quarter of the lease is 15 s: the agent was told, and did not ask.
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(working(), 0);
    assert_eq!(build.end(), Some(3), "who follows it hears of it");
    // The agent has its slot again, and nothing is left of the build.
    eventually(|| {
        let status = desk.bbot(&["agent", "status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).ok()?;
        (status["slots"]["used"] == 0).then_some(())
    });
    eventually(|| desk.leftovers().is_empty().then_some(()));
    let listed = desk.bbot(&["builds", "--state", "cancelled", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let build = &listed["builds"][0];
    assert_eq!(
        (build["id"].as_str(), &build["status"]),
        (Some(id), &serde_json::Value::Null)
    );
    // Once more is no error; nothing of that number is one.
    assert!(desk.bbot(&["cancel", id]).status.success());
    assert_eq!(desk.bbot(&["cancel", "99"]).status.code(), Some(1));
    let submission = build["submission"].as_str().unwrap();
    let none = desk.bbot(&["cancel", "--submission", submission]);
    assert!(none.status.success() && text(&none.stderr).contains("no build of submission"));
    assert_eq!(up.interrupt(), Some(0));
}

#[test]
fn a_build_that_hangs_is_kept_for_a_person() {
    let Some(desk) = Desk::new() else { return };
    let up = desk.up_with(&["--build-timeout", "10"]);
    let folder = tempfile::tempdir().unwrap();
    let hangs = package(folder.path(), "hangs", "echo hanging\nsleep 1000\n");
    let source = hangs.to_str().unwrap();
    let given = ["--name", "hangs", "--version", "1"];
    let build = Lines::of(
        &desk,
        &[&["submit", "--follow", source][..], &given].concat(),
    );
    // The result does not wait for the person.
    assert_eq!(build.end(), Some(3));

    let kept = || -> Vec<serde_json::Value> {
        let listed = desk.bbot(&["machine", "list", "--suspended", "--json"]);
        serde_json::from_slice(&listed.stdout).unwrap()
    };
    let machines = eventually(|| Some(kept()).filter(|machines| !machines.is_empty()));
    assert_eq!(machines.len(), 1, "{machines:?}");
    assert_eq!(machines[0]["machine"], "debian-12");
    assert_eq!(machines[0]["why"], "build timeout");
    assert_eq!(machines[0]["resumed"], false);

    let mut screen = Lines::of(&desk, &["machine", "attach", "debian-12", "--screen"]);
    let line = screen.until("vncviewer ");
    let address = line.trim_start_matches("vncviewer ");
    let mut viewer = TcpStream::connect(address).unwrap();
    viewer.set_read_timeout(Some(BOUND)).unwrap();
    let mut banner = [0; 12];
    viewer.read_exact(&mut banner).unwrap();
    assert_eq!(&banner, b"RFB 003.008\n");
    viewer.write_all(&banner).unwrap();
    drop(viewer);
    assert_eq!(screen.interrupt(), Some(0));

    let id = machines[0]["id"].as_str().unwrap();
    assert!(desk.bbot(&["machine", "resume", id]).status.success());
    assert_eq!(kept()[0]["resumed"], true);
    assert!(desk.bbot(&["machine", "kill", id]).status.success());
    eventually(|| kept().is_empty().then_some(()));
    let none = desk.bbot(&["machine", "attach", id]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("no suspended machine"));
    assert_eq!(up.interrupt(), Some(0));
    assert_eq!(desk.processes(), [""; 0]);
    assert_eq!(desk.leftovers(), [""; 0]);
}

#[test]
fn a_container_is_made_and_built_in() {
    if !testkit::root() || !testkit::program("systemd-nspawn", "nspawn") {
        return;
    }
    if Desk::new().is_none() {
        return;
    }
    let desk = Desk {
        home: tempfile::tempdir().unwrap(),
    };
    let cache = desk.home.path().join("cache");
    fs::create_dir(&cache).unwrap();
    symlink(testkit::cache().join("base"), cache.join("machines")).unwrap();
    let made = desk.bbot(&["machine", "create", "debian-12", "--type", "nspawn"]);
    assert_eq!(made.status.code(), Some(0));

    let up = desk.up();
    let built = desk.bbot(&["submit", "--follow", EXAMPLE]);
    assert_eq!(built.status.code(), Some(0));
    let log = text(&built.stdout);
    for line in [" on debian-12-nspawn", "+ make", "ok: a name"] {
        assert!(log.contains(line), "the log has '{line}'");
    }
    assert_eq!(up.interrupt(), Some(0));
    assert_eq!(desk.processes(), [""; 0]);
}
