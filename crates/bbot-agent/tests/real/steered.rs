//! The real agent with a real machine, steered by signals and over its socket.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use bbot_agent::controller::Kin;
use bbot_agent::source::Ready;
use bbot_agent::status::{Client, Mode, Phase, Place, Request, Status as Shown};
use bbot_manifest::{ResultRequest, Status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Bench, cache, package, qemu_of, runs, until};

/// Reads a request; none when it is not whole.
fn request_of(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
                .unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                let line = head.lines().next()?.to_owned();
                return Some((line, bytes.split_off(end + 4)));
            }
        }
        match stream.read(&mut buffer) {
            Ok(read @ 1..) => bytes.extend_from_slice(&buffer[..read]),
            _ => return None,
        }
    }
}

/// A controller that has one task.
struct Controller {
    url: String,
    /// What is posted.
    results: Receiver<ResultRequest>,
    /// Ends the session of the task, for a controller that has such.
    over: Arc<AtomicBool>,
}

impl Controller {
    /// One of 2017, or one of ours, whose source is this archive.
    fn start(archive: &Path, kin: Kin) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (sender, results) = channel();
        let over = Arc::new(AtomicBool::new(false));
        let source = Ready::of_file(archive).unwrap();
        let task = format!(
            ": 1\nsession: s/1\nresult-url: {url}?build-result\n:\nname: hello\nversion: 1.0\n\
             repository: {url}archives/{}.tar.gz\ntrust: AB\nmachine: debian-12\n\
             target: x86_64-linux-gnu\n",
            source.sha256
        );
        let mut server = Server {
            headers: match kin {
                Kin::Stranger => String::new(),
                Kin::Ours => format!(
                    "Bbot-Controller: 1\r\nBbot-Session-Url: {url}session\r\nBbot-Lease: 60\r\n\
                     Bbot-Renew: 0.5\r\n"
                ),
            },
            task: Some(task),
            archive: fs::read(archive).unwrap(),
            results: sender,
            over: Arc::clone(&over),
        };
        // Until the test ends, and its process with it.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                if let Some((line, body)) = request_of(&mut stream) {
                    let _ = stream.write_all(&server.answer(&line, &body));
                }
            }
        });
        Self { url, results, over }
    }
}

/// Its other end.
struct Server {
    headers: String,
    task: Option<String>,
    archive: Vec<u8>,
    results: Sender<ResultRequest>,
    over: Arc<AtomicBool>,
}

impl Server {
    fn answer(&mut self, line: &str, body: &[u8]) -> Vec<u8> {
        let mut status = "200 OK";
        let answer = if line.starts_with("get /archives/") {
            self.archive.clone()
        } else if line.starts_with("post /session/") {
            status = match self.over.load(Ordering::SeqCst) {
                true => "410 Gone",
                false => "204 No Content",
            };
            Vec::new()
        } else if line.contains("build-result") {
            // Who waited for it may have failed.
            let result = ResultRequest::parse(body, "result").unwrap();
            let _ = self.results.send(result);
            Vec::new()
        } else {
            let none = || ": 1\nsession:\n".to_owned();
            self.task.take().unwrap_or_else(none).into_bytes()
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/manifest;charset=utf-8\r\n{}Content-Length: \
             {}\r\nConnection: close\r\n\r\n",
            self.headers,
            answer.len()
        );
        [head.into_bytes(), answer].concat()
    }
}

/// The agent's process; killed when the test fails.
struct Agent {
    child: Child,
    place: Place,
    results: Receiver<ResultRequest>,
    over: Arc<AtomicBool>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    /// It gets one task, to build what this makefile says, from a controller of this kind.
    fn start(bench: &Bench, kin: Kin, makefile: &str, more: &[&str]) -> Self {
        let archive = package(&bench.dir, "hello", &[("Makefile", makefile)]);
        let controller = Controller::start(&archive, kin);
        let place = Place(bench.dir.join("agent.sock"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_bbot-agent"));
        command.args([
            "--accel",
            "tcg",
            "--instance-max",
            "1",
            "--build-retries",
            "0",
            // What runs is what the test is about.
            "--warm",
            "off",
        ]);
        for (option, path) in [
            ("--machines", &bench.dir.join("machines")),
            ("--tftp", &bench.dir.join("tftp")),
            ("--state", &bench.dir.join("state")),
            ("--status-socket", &place.0),
        ] {
            command.arg(option).arg(path);
        }
        let child = command
            .args(more)
            .arg(controller.url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            place,
            results: controller.results,
            over: controller.over,
        }
    }

    /// Waits until its status is so.
    fn until(&mut self, what: &str, is_so: impl Fn(&Shown) -> bool) -> Shown {
        let mut seen = Shown::default();
        until(what, || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "it has ended: {ended:?}");
            let status = Client::connect(&self.place).and_then(|mut agent| agent.status());
            status.is_ok_and(|status| {
                seen = status;
                is_so(&seen)
            })
        });
        seen
    }

    /// Waits until its build is at work.
    fn until_it_builds(&mut self) {
        self.until("the build", |status| {
            let is_at_work = |run: &bbot_agent::status::Run| {
                run.phase == Phase::Working && run.machine == "debian-12"
            };
            let is_task = |run: &&bbot_agent::status::Run| {
                matches!(run.what, bbot_agent::status::RunKind::Task { .. })
            };
            status.runs.iter().filter(is_task).any(is_at_work)
        });
    }

    fn result(&self) -> ResultRequest {
        let patience = Duration::from_secs(120);
        let posted = self.results.recv_timeout(patience);
        posted.expect("a result")
    }

    /// SIGTERM, and its end.
    fn ends(mut self) -> Receiver<ResultRequest> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        let begin = Instant::now();
        until("the agent's end", || {
            self.child.try_wait().unwrap().is_some()
        });
        println!("it ended in {:?}", begin.elapsed());
        assert!(self.child.wait().unwrap().success());
        let (_, none) = channel();
        std::mem::replace(&mut self.results, none)
    }
}

fn names(dir: PathBuf) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Nothing is left but the machine, its bootstrapped copy and empty folders.
fn is_clean(bench: &Bench) {
    assert_eq!(
        names(bench.dir.join("machines/vol/debian-12")),
        [
            ".debian-12-default.mac",
            "debian-12-1",
            "debian-12-1.1",
            "debian-12-default"
        ]
    );
    for folder in [
        "tftp/build",
        "tftp/bootstrap",
        "state/default/results",
        "state/default/held",
    ] {
        assert_eq!(
            names(bench.dir.join(folder)),
            Vec::<String>::new(),
            "{folder}"
        );
    }
}

#[test]
fn a_drain_lets_the_build_finish() {
    let Some(cache) = cache() else { return };
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path(), &cache);
    let makefile = "all:\n\tsleep 3\n\ttouch done\n";
    let mut agent = Agent::start(&bench, Kin::Stranger, makefile, &["--drain-timeout", "100"]);
    agent.until_it_builds();
    let results = agent.ends();
    let result = results.recv_timeout(Duration::ZERO).unwrap();
    assert_eq!(result.result.status, Status::Success, "{result:?}");
    assert_eq!(
        results.recv_timeout(Duration::ZERO).unwrap_err(),
        RecvTimeoutError::Timeout
    );
    is_clean(&bench);
}

#[test]
fn a_machine_that_is_suspended_is_listed_resumed_and_killed() {
    let Some(cache) = cache() else { return };
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path(), &cache);
    let makefile = "all:\n\tsleep 3600\n";
    let mut agent = Agent::start(&bench, Kin::Stranger, makefile, &["--build-timeout", "3"]);
    // The result does not wait for the person.
    assert_eq!(agent.result().result.status, Status::Abort);
    let status = agent.until("a suspended machine", |status| !status.suspended.is_empty());
    let [suspended] = &status.suspended[..] else {
        panic!("one: {status:?}");
    };
    assert_eq!(
        (suspended.id.as_str(), suspended.machine.as_str()),
        ("s1", "debian-12")
    );
    assert!(suspended.why.contains("build timeout"), "{}", suspended.why);
    assert!(!suspended.resumed && suspended.ram_kib > 0);
    assert_eq!(status.mode, Mode::Running);
    let qemu = qemu_of(agent.child.id()).unwrap();

    let mut client = Client::connect(&agent.place).unwrap();
    let reach = client.attach("s1").unwrap();
    for socket in [reach.console, reach.screen] {
        assert!(socket.unwrap().exists());
    }
    client
        .tell(&Request::SuspendedResume {
            id: "s1".to_owned(),
        })
        .unwrap();
    agent.until("its going on", |status| {
        status.suspended.iter().all(|s| s.resumed)
    });
    assert!(runs(qemu));
    client
        .tell(&Request::SuspendedKill {
            id: "s1".to_owned(),
        })
        .unwrap();
    agent.until("its end", |status| status.suspended.is_empty());
    assert!(!runs(qemu), "it is gone before it is not listed any more");
    is_clean(&bench);
    let results = agent.ends();
    assert!(results.recv_timeout(Duration::ZERO).is_err(), "one result");
    is_clean(&bench);
}

/// A build that is cancelled at its controller, as the agent hears of it: its session is over.
#[test]
fn a_build_that_its_controller_ends_is_gone_within_seconds_and_nothing_is_posted() {
    let Some(cache) = cache() else { return };
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(dir.path(), &cache);
    let makefile = "all:\n\tsleep 3600\n";
    let mut agent = Agent::start(&bench, Kin::Ours, makefile, &[]);
    agent.until_it_builds();
    let qemu = qemu_of(agent.child.id()).unwrap();
    assert!(runs(qemu));
    assert_eq!(names(bench.dir.join("state/default/held")).len(), 1);
    let begin = Instant::now();
    agent.over.store(true, Ordering::SeqCst);
    until("QEMU's end", || !runs(qemu));
    let took = begin.elapsed();
    println!("the machine was gone after {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    agent.until("the run's end", |status| status.runs.is_empty());
    // What is dropped ends on a thread of its own.
    until("the end of all of it", || {
        qemu_of(agent.child.id()).is_none()
    });
    assert_eq!(
        names(bench.dir.join("state/default/held")),
        Vec::<String>::new()
    );
    let results = agent.ends();
    assert!(results.recv_timeout(Duration::ZERO).is_err(), "no result");
    is_clean(&bench);
}
