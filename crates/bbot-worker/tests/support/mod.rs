//! An agent for the worker under test: a real TFTP server over loopback or a veth pair, in network namespaces of the
//! test's own, so that it needs no free port and disturbs nobody.

use std::env;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bbot_manifest::{BuildResult, Era, RunManifest, Source, Task};
use bbot_tftp::udp::{self, Stop};
use bbot_tftp::{Event, Limits, Root};
use nix::sched::{CloneFlags, unshare};
use sha2::{Digest, Sha256};

/// No build of these tests takes this long, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(120);

/// A task for the package `p` 1.0.
pub fn task() -> Task {
    Task::new(
        "p",
        "1.0",
        "https://controller.example/x",
        "debian-12",
        "x86_64-linux-gnu",
    )
}

/// A gzip-compressed tar of these files (name, mode, contents) below one directory.
pub fn archive(files: &[(&str, u32, &str)]) -> Vec<u8> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut builder = tar::Builder::new(gzip);
    for (name, mode, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(*mode);
        header.set_size(contents.len() as u64);
        header.set_mtime(1_700_000_000);
        builder
            .append_data(&mut header, format!("p-1.0/{name}"), contents.as_bytes())
            .unwrap();
    }
    let mut gzip = builder.into_inner().unwrap();
    gzip.flush().unwrap();
    gzip.finish().unwrap()
}

/// Where the worker's guest has its cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cards {
    /// The agent is on the loopback.
    Loopback,
    /// A wire to the agent and a second card, as with `--network user`.
    WireAndAnother,
}

/// What one run of the worker has brought.
#[derive(Debug)]
pub struct Outcome {
    pub output: Output,
    /// The uploaded result.
    pub result: Option<BuildResult>,
    /// Its size in bytes.
    pub result_size: usize,
    /// The raw logs as the segments have them, by operation in their order.
    pub raw: Vec<(String, Vec<u8>)>,
    pub took: Duration,
}

impl Outcome {
    /// The result; what the worker said when there is none.
    pub fn result(&self) -> &BuildResult {
        let said = String::from_utf8_lossy(&self.output.stderr);
        self.result
            .as_ref()
            .unwrap_or_else(|| panic!("no result: {said}"))
    }

    /// `configure: success, update: error`
    pub fn statuses(&self) -> String {
        let operations = &self.result().operations;
        let all: Vec<String> = operations
            .iter()
            .map(|o| format!("{}: {}", o.name, o.status))
            .collect();
        all.join(", ")
    }

    /// The log of an operation.
    pub fn log(&self, operation: &str) -> &str {
        let mut operations = self.result().operations.iter();
        operations
            .find(|o| o.name == operation)
            .map_or("", |o| o.log.as_str())
    }
}

/// What the agent offers, and how the worker is called.
#[derive(Debug)]
pub struct Run {
    pub task: Vec<u8>,
    pub source: Option<Vec<u8>>,
    /// Wrong on purpose.
    pub sha256: Option<String>,
    pub cards: Cards,
    pub arguments: Vec<String>,
    /// Environment scripts, by name.
    pub scripts: Vec<(&'static str, String)>,
    /// The agent's host has no room for the result, until it was tried once.
    pub host_is_full: bool,
    /// The machine is to be saved; what happens when it is.
    pub saved: Option<Saved>,
}

/// The agent answers at once, as it does when a machine was restored, and once more has it wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saved {
    Restored,
    /// The build process that was made ready is gone then.
    WithoutItsBuild,
    /// It is not saved at all, and waits for its task.
    Never,
}

impl Run {
    /// Builds these files in build mode.
    pub fn build(files: &[(&str, u32, &str)]) -> Self {
        Self {
            task: task().serialize(Era::Later).unwrap().into_bytes(),
            source: Some(archive(files)),
            sha256: None,
            cards: Cards::Loopback,
            arguments: Vec::new(),
            scripts: Vec::new(),
            host_is_full: false,
            saved: None,
        }
    }

    pub fn task(mut self, task: &Task) -> Self {
        self.task = task.serialize(Era::Later).unwrap().into_bytes();
        self
    }

    pub fn startup(mut self) -> Self {
        self.arguments.push("--startup".to_owned());
        self
    }

    /// Runs the worker to its end. In threads of its own, since a network namespace belongs to a thread.
    pub fn run(self) -> Outcome {
        thread::spawn(move || self.run_here()).join().unwrap()
    }

    fn run_here(self) -> Outcome {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        let dir = tempfile::tempdir().unwrap();
        // The build's user has to reach it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let put = dir.path().join("put");
        fs::create_dir(&put).unwrap();
        for (name, text) in &self.scripts {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let filler = put.join("filler");
        let full = self.host_is_full.then(|| {
            let mount = testkit::Mount::new(&["-t", "tmpfs", "-o", "size=64k", "tmpfs"], &put);
            fs::write(&filler, vec![0; 64 << 10]).unwrap();
            mount
        });
        let server = Server::start(self.root(&put), self.cards, filler);

        let start = Instant::now();
        // In a PID namespace of its own: the worker kills all processes of the build's user.
        let child = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc"])
            .arg(env!("CARGO_BIN_EXE_bbot-worker"))
            .args(&self.arguments)
            .args(["--tftp-host", &server.address.to_string()])
            .arg("--environments")
            .arg(dir.path())
            .arg("--build")
            .arg(dir.path())
            .env("TEST_LEAK", "leaked")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        let (sender, ended) = mpsc::channel();
        let waiter = thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
        let output = ended.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            panic!("the worker does not end");
        });
        waiter.join().unwrap().unwrap();
        let took = start.elapsed();
        server.stop();
        println!("{}", String::from_utf8_lossy(&output.stderr));

        let bytes = fs::read(put.join("manifest")).ok();
        let raw = segments(&put);
        drop(full);
        let result_size = bytes.as_ref().map_or(0, Vec::len);
        let result = bytes.map(|bytes| BuildResult::parse(&bytes, "result").unwrap());
        Outcome {
            output,
            result,
            result_size,
            raw,
            took,
        }
    }

    fn root(&self, put: &Path) -> Root {
        let mut root = Root::new()
            .get_bytes("task.manifest", self.task.clone())
            .get_bytes("manifest", self.task.clone())
            .put_once(&["manifest", "result.manifest"], put, 64 << 20)
            .put_numbered("log.", put, 128 << 10);
        let mut manifest = RunManifest {
            agent: "bbot-agent/test".to_owned(),
            log_segments: (!self.host_is_full).then_some(1),
            source: None,
            save: None,
            fresh: None,
        };
        if let Some(source) = &self.source {
            let sha256 = hex::encode(Sha256::digest(source));
            manifest.source = Some(Source {
                name: "source.tar.gz".to_owned(),
                sha256: self.sha256.clone().unwrap_or(sha256),
            });
            root = root.get_bytes("source.tar.gz", source.clone());
        }
        let text = |save: Option<&str>| {
            let mut manifest = manifest.clone();
            manifest.save = save.map(str::to_owned);
            manifest.serialize().unwrap().into_bytes()
        };
        let Some(saved) = self.saved else {
            return root.get_bytes("run.manifest", text(None));
        };
        let (prepared, place) = (
            text(Some("prepared.manifest")),
            put.parent().unwrap().to_owned(),
        );
        let first = match saved {
            Saved::Never => "prepared.manifest",
            Saved::Restored | Saved::WithoutItsBuild => "restored.manifest",
        };
        root.get_bytes("run.manifest", text(Some(first)))
            .get_made("restored.manifest", move || {
                if saved == Saved::WithoutItsBuild {
                    kill_ahead(&place);
                }
                prepared.clone()
            })
            .get_bytes("prepared.manifest", text(None))
    }
}

/// Kills the build process that waits for its task, for the build directory `place`.
fn kill_ahead(place: &Path) {
    let is_it = |pid: i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let has = |word: &[u8]| words.split(|byte| *byte == 0).any(|other| other == word);
        has(b"--ahead") && has(place.as_os_str().as_encoded_bytes())
    };
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let name = entry.unwrap().file_name();
        name.to_str()?.parse::<i32>().ok()
    });
    let found: Vec<i32> = pids.filter(|pid| is_it(*pid)).collect();
    let [pid] = found[..] else {
        panic!("{found:?}")
    };
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// The raw log of each operation out of the segments, which are numbered without gaps.
fn segments(put: &Path) -> Vec<(String, Vec<u8>)> {
    let mut logs: Vec<(String, Vec<u8>)> = Vec::new();
    let count = fs::read_dir(put)
        .unwrap()
        .filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with("log.")
        })
        .count();
    for number in 1..=count {
        let body = fs::read(put.join(format!("log.{number}"))).unwrap();
        let end = body.iter().position(|byte| *byte == b'\n').unwrap();
        let operation = String::from_utf8(body[..end].to_vec()).unwrap();
        assert!(body.len() - end - 1 <= 65_536);
        match logs.last_mut() {
            Some((last, log)) if *last == operation => log.extend_from_slice(&body[end + 1..]),
            _ => logs.push((operation, body[end + 1..].to_vec())),
        }
    }
    logs
}

struct Server {
    address: SocketAddr,
    stop: Stop,
    thread: JoinHandle<()>,
}

impl Server {
    /// Starts in the network namespace of the calling thread, or at the other end of a wire that is laid into it.
    fn start(root: Root, cards: Cards, filler: PathBuf) -> Self {
        let guest = nix::unistd::gettid();
        if cards == Cards::WireAndAnother {
            // A card that leads somewhere else: its far end is of no interest.
            ip("link add other0 type veth peer name other1");
            ip("addr add 10.9.9.9/24 dev other0");
            ip("link set other0 up");
            ip("link set other1 up");
        }
        let stop = Stop::default();
        let stopper = stop.clone();
        let (sender, address) = mpsc::channel();
        let thread = thread::spawn(move || {
            let ip_address = match cards {
                Cards::Loopback => Ipv4Addr::LOCALHOST,
                Cards::WireAndAnother => {
                    unshare(CloneFlags::CLONE_NEWNET).unwrap();
                    ip(&format!(
                        "link add wire type veth peer name card0 netns {guest}"
                    ));
                    ip("addr add 196.254.111.222/24 dev wire");
                    ip("link set wire up");
                    Ipv4Addr::new(196, 254, 111, 222)
                }
            };
            let socket = UdpSocket::bind((ip_address, 69)).unwrap();
            sender.send(socket.local_addr().unwrap()).unwrap();
            let tell = |event: Event| {
                // Room comes when the result has met with none.
                if matches!(event, Event::Failed { name, .. } if name == "manifest") {
                    let _ = fs::remove_file(&filler);
                }
            };
            udp::serve(socket, &root, &Limits::default(), &stopper, &tell).unwrap();
        });
        let address = address.recv_timeout(PATIENCE).unwrap();
        if cards == Cards::WireAndAnother {
            ip("addr add 196.254.111.2/24 dev card0");
            ip("link set card0 up");
        }
        Self {
            address,
            stop,
            thread,
        }
    }

    fn stop(self) {
        self.stop.stop();
        self.thread.join().unwrap();
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}
