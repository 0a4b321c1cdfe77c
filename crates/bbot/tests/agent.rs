//! `bbot agent` and the commands for suspended machines, against an agent whose driver is
//! the test: its socket is the real one.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use bbot_agent::status::{
    Attachment, Bound, Budgets, Command as Told, Controller, Machine, MachineState, Mode, Moment,
    Phase, Place, Run, RunKind, Server, Slots, Status, Suspended, Trouble, find_suspended,
};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{LocalModes, tcgetattr};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot, watch};

/// No command here takes longer.
const BOUND: Duration = Duration::from_secs(30);

/// An agent on a thread: it does what it is told, and tells what that was.
struct Agent {
    home: TempDir,
    told: Receiver<String>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Agent {
    fn start(status: Status) -> Agent {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("state/default.sock");
        let (sender, told) = channel();
        let (end, ended) = oneshot::channel();
        let (bound, is_bound) = channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let (publish, status) = watch::channel(Arc::new(status));
                let (commands, mut received) = mpsc::channel(4);
                let server = Server {
                    status,
                    commands,
                    start: tokio::time::Instant::now(),
                };
                let socket = Bound::new(&Place(path)).unwrap();
                bound.send(()).unwrap();
                let driver = async {
                    while let Some(command) = received.recv().await {
                        obey(command, &publish, &sender);
                    }
                };
                tokio::select! {
                    () = server.serve(socket) => {}
                    () = driver => {}
                    _ = ended => {}
                }
            });
        });
        is_bound.recv_timeout(BOUND).unwrap();
        Agent {
            home,
            told,
            end: Some(end),
            thread: Some(thread),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = bbot(self.home.path());
        command.args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn told(&self) -> String {
        self.told.recv_timeout(BOUND).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.end.take());
        let ended = self.thread.take().map(thread::JoinHandle::join);
        assert!(thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}

fn obey(
    command: Told,
    publish: &watch::Sender<Arc<Status>>,
    told: &std::sync::mpsc::Sender<String>,
) {
    let find = |id: &str| {
        let status = publish.borrow();
        find_suspended(&status.suspended, id).cloned()
    };
    let set = |mode: Mode| {
        publish.send_modify(|status| {
            let status = Arc::make_mut(status);
            status.mode = mode;
            if mode != Mode::Running {
                status.runs.clear();
            }
        });
    };
    let _ = match command {
        Told::Drain { within, reply } => {
            set(Mode::Draining { until: None });
            let _ = reply.send(Ok(()));
            told.send(format!("drain {within:?}"))
        }
        Told::Resume { reply } => {
            set(Mode::Running);
            let _ = reply.send(Ok(()));
            told.send("undrain".to_string())
        }
        Told::SuspendedResume { id, reply } => {
            let _ = reply.send(find(&id).map(drop));
            told.send(format!("resume {id}"))
        }
        Told::SuspendedKill { id, reply } => {
            let _ = reply.send(find(&id).map(drop));
            told.send(format!("kill {id}"))
        }
        Told::Attach { id, reply } => {
            let _ = reply.send(find(&id).map(|found| found.reach));
            told.send(format!("attach {id}"))
        }
    };
}

fn bbot(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bbot"));
    command
        .env("BBOT_HOME", home)
        .env("XDG_RUNTIME_DIR", home.join("run"))
        .env("XDG_STATE_HOME", home.join("default-state"))
        .stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn busy() -> Status {
    Status {
        agent: "host-1".to_string(),
        toolchain: "default".to_string(),
        version: "0.1.0".to_string(),
        pid: 77,
        mode: Mode::Running,
        slots: Slots { total: 4, used: 2 },
        budgets: Budgets {
            cpus: 8,
            cpus_used: 2,
            ram_kib: 8 << 20,
            ram_kib_used: 2 << 20,
        },
        machines: vec![
            Machine {
                name: "debian-12".to_string(),
                kind: "kvm".to_string(),
                state: MachineState::Usable,
                warm: true,
                prepared: 2,
            },
            Machine {
                name: "box".to_string(),
                kind: "nspawn".to_string(),
                state: MachineState::Usable,
                warm: false,
                prepared: 1,
            },
            Machine {
                name: "broken".to_string(),
                kind: "nspawn".to_string(),
                state: MachineState::Bad {
                    problem: "no rootfs\u{1b}[2J".to_string(),
                },
                ..Machine::default()
            },
        ],
        runs: vec![Run {
            id: 3,
            what: RunKind::Task {
                name: "libfoo".to_string(),
                version: "1.2".to_string(),
                session: "0123456789abcdef".repeat(4),
                controller: "https://c".to_string(),
            },
            machine: "debian-12".to_string(),
            phase: Phase::Working,
            timeout_at: Some(Moment(3600.0)),
            ..Run::default()
        }],
        controllers: vec![Controller {
            url: "https://c".to_string(),
            priority: "10".to_string(),
            ours: Some(true),
            trouble: Some("HTTP status 500".to_string()),
            ..Controller::default()
        }],
        errors: vec![Trouble {
            level: "warning".to_string(),
            message: "a bad thing".to_string(),
            ..Trouble::default()
        }],
        ..Status::default()
    }
}

fn suspended(id: &str, machine: &str, reach: Attachment) -> Suspended {
    Suspended {
        id: id.to_string(),
        machine: machine.to_string(),
        why: "build timed out".to_string(),
        until: Moment(600.0),
        ram_kib: 1 << 20,
        reach,
        ..Suspended::default()
    }
}

#[test]
fn the_status_of_the_agent_here_is_a_page_and_json() {
    let agent = Agent::start(busy());
    let output = agent.run(&["agent", "status"]);
    let page = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for part in [
        "host-1 0.1.0 (toolchain default, process 77): running",
        "slots 2 of 4, processors 2 of 8, memory 2 GiB of 8 GiB",
        "libfoo/1.2  debian-12  working",
        "01234567..89abcdef",
        "debian-12  kvm     usable  restored, 2 ready",
        "box        nspawn  usable  boots, 1 ready",
        "broken     nspawn  bad                        no rootfs?[2J",
        "HTTP status 500",
        "a bad thing",
        "results that wait: 0",
    ] {
        assert!(page.contains(part), "{part:?} in\n{page}");
    }
    assert!(!page.contains('\u{1b}'));
    let output = agent.run(&["agent", "status", "--json"]);
    let status: Status = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status.runs, busy().runs);
    let socket = agent.path("state/default.sock");
    let output = bbot(Path::new("/nonexistent"))
        .args(["agent", "status", "--json", "--socket"])
        .arg(&socket)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn draining_and_the_end_of_it() {
    let agent = Agent::start(busy());
    let output = agent.run(&["agent", "drain", "--wait", "--within", "60"]);
    assert_eq!(agent.told(), "drain Some(60s)");
    let said = text(&output.stderr);
    assert!(
        output.status.success() && said.contains("nothing runs"),
        "{said}"
    );
    let output = agent.run(&["agent", "drain", "--resume"]);
    assert_eq!(agent.told(), "undrain");
    assert!(text(&output.stderr).contains("takes tasks again"));
    let output = agent.run(&["agent", "drain", "--resume", "--wait"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn without_an_agent_it_is_said_where_one_was_looked_for() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path().join("state");
    std::fs::create_dir(&state).unwrap();
    // A dead agent's.
    let socket = state.join("default.sock");
    drop(UnixListener::bind(&socket).unwrap());
    for arguments in [
        &["agent", "status"][..],
        &["agent", "drain"],
        &["machine", "kill", "x"],
    ] {
        let output = bbot(home.path()).args(arguments).output().unwrap();
        let said = text(&output.stderr);
        if said.contains("several agents answer") {
            // Agents of this host, which the tests do not own.
            continue;
        }
        if output.status.success() {
            continue;
        }
        assert_eq!(output.status.code(), Some(1));
        assert!(said.contains("/run/bbot-agent"), "{said}");
        assert!(said.contains(&state.display().to_string()), "{said}");
        assert!(said.contains("--socket"), "{said}");
    }
    let output = bbot(home.path())
        .args(["agent", "status", "--socket"])
        .arg(&socket)
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("no agent answers at"), "{said}");
}

#[test]
fn suspended_machines_are_listed_resumed_and_killed() {
    let mut status = busy();
    status.suspended = vec![
        suspended("3", "debian-12", Attachment::default()),
        suspended("5", "broken", Attachment::default()),
    ];
    let agent = Agent::start(status);
    let output = agent.run(&["machine", "list", "--suspended"]);
    let page = text(&output.stdout);
    assert!(
        page.contains("debian-12") && page.contains("build timed out"),
        "{page}"
    );
    let output = agent.run(&["machine", "list", "--suspended", "--json"]);
    let list: Vec<Suspended> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list.len(), 2);
    assert!(agent.run(&["machine", "resume", "3"]).status.success());
    assert_eq!(agent.told(), "resume 3");
    assert!(agent.run(&["machine", "kill", "broken"]).status.success());
    assert_eq!(agent.told(), "kill broken");
    let output = agent.run(&["machine", "kill", "7"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("no suspended machine 7"), "{said}");
}

/// A machine's console: what comes is told, what is to be said is said.
struct Console {
    listener: UnixListener,
}

impl Console {
    fn at(path: &Path) -> Console {
        Console {
            listener: UnixListener::bind(path).unwrap(),
        }
    }

    fn accept(&self) -> std::os::unix::net::UnixStream {
        self.listener.set_nonblocking(true).unwrap();
        let begin = Instant::now();
        loop {
            if let Ok((stream, _)) = self.listener.accept() {
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(BOUND)).unwrap();
                return stream;
            }
            assert!(begin.elapsed() < BOUND, "nobody comes");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn with_console() -> (Agent, Console) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.keep().join("console");
    let reach = Attachment {
        console: Some(path.clone()),
        ..Attachment::default()
    };
    let mut status = busy();
    status.suspended = vec![suspended("3", "debian-12", reach)];
    (Agent::start(status), Console::at(&path))
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Ok(address) = self.listener.local_addr()
            && let Some(folder) = address.as_pathname().and_then(Path::parent)
        {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// Waits for a child's end, but not for ever.
fn finish(mut child: Child) -> std::process::ExitStatus {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begin.elapsed() > BOUND {
            child.kill().unwrap();
            panic!("it does not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn attaching_passes_bytes_both_ways_until_the_key() {
    let (agent, console) = with_console();
    let mut child = agent
        .command(&["machine", "attach", "debian-12", "--resume"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut machine = console.accept();
    assert_eq!(
        (agent.told(), agent.told()),
        ("attach debian-12".into(), "resume debian-12".into())
    );
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    // Every byte but the key, also those that a terminal would obey.
    let all: Vec<u8> = (0..=255).filter(|&byte| byte != 0x1d).collect();
    stdin.write_all(&all).unwrap();
    let mut seen = vec![0; all.len()];
    machine.read_exact(&mut seen).unwrap();
    assert_eq!(seen, all);
    machine.write_all(&all).unwrap();
    stdout.read_exact(&mut seen).unwrap();
    assert_eq!(seen, all);
    stdin.write_all(b"last\x1dnot this").unwrap();
    let mut last = String::new();
    machine.read_to_string(&mut last).unwrap();
    assert_eq!(last, "last");
    assert!(finish(child).success());
}

/// How the look at a console ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Key,
    Signal(Signal),
    MachineGone,
}

#[test]
fn the_terminal_is_as_it_was_however_it_ends() {
    for end in [
        End::Key,
        End::Signal(Signal::TERM),
        End::Signal(Signal::HUP),
        End::Signal(Signal::INT),
        End::MachineGone,
    ] {
        let (agent, console) = with_console();
        let (mut master, terminal) = pseudo_terminal();
        let before = tcgetattr(&terminal).unwrap();
        assert!(before.local_modes.contains(LocalModes::ECHO));
        let child = agent
            .command(&["machine", "attach", "3"])
            .stdin(terminal.try_clone().unwrap())
            .stdout(terminal.try_clone().unwrap())
            .stderr(terminal.try_clone().unwrap())
            .spawn()
            .unwrap();
        let mut machine = console.accept();
        // Ctrl-C is the guest's: it arrives only where the terminal is raw.
        let begin = Instant::now();
        while tcgetattr(&terminal)
            .unwrap()
            .local_modes
            .contains(LocalModes::ECHO)
        {
            assert!(begin.elapsed() < BOUND, "the terminal is never raw");
            thread::sleep(Duration::from_millis(5));
        }
        master.write_all(b"\x03\x1a").unwrap();
        let mut seen = [0; 2];
        machine.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"\x03\x1a");
        match end {
            End::Key => master.write_all(b"\x1d").unwrap(),
            End::Signal(signal) => {
                let pid = Pid::from_child(&child);
                kill_process(pid, signal).unwrap();
            }
            End::MachineGone => drop(machine),
        }
        assert!(finish(child).success(), "{end:?}");
        let after = tcgetattr(&terminal).unwrap();
        assert_eq!(after.local_modes, before.local_modes, "{end:?}");
        assert_eq!(after.input_modes, before.input_modes, "{end:?}");
        assert_eq!(after.output_modes, before.output_modes, "{end:?}");
    }
}

/// A pseudo terminal: the person's end, and the program's.
fn pseudo_terminal() -> (File, File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let terminal = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
    (File::from(master), File::from(terminal))
}

#[test]
fn a_screen_is_served_on_the_loopback_until_ctrl_c() {
    let (agent, console) = with_console();
    drop(agent);
    // The same socket as a screen.
    let path = console.listener.local_addr().unwrap();
    let reach = Attachment {
        screen: path.as_pathname().map(Path::to_path_buf),
        info: "machine debian-12".to_string(),
        ..Attachment::default()
    };
    let mut status = busy();
    status.suspended = vec![suspended("3", "debian-12", reach)];
    let agent = Agent::start(status);
    let output = agent.run(&["machine", "attach", "3"]);
    let said = text(&output.stderr);
    assert!(
        said.contains("it has no console\nmachine debian-12"),
        "{said}"
    );

    let mut child = agent
        .command(&["machine", "attach", "3", "--screen"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(console.accept());
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("vncviewer ").unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    for _ in 0..2 {
        let mut viewer = TcpStream::connect(address).unwrap();
        viewer.set_read_timeout(Some(BOUND)).unwrap();
        let mut machine = console.accept();
        machine.write_all(b"RFB 003.008\n").unwrap();
        let mut greeting = [0; 12];
        viewer.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"RFB 003.008\n");
        viewer.write_all(b"key").unwrap();
        let mut key = [0; 3];
        machine.read_exact(&mut key).unwrap();
        assert_eq!(&key, b"key");
    }
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).unwrap();
    assert!(finish(child).success());
    assert!(TcpStream::connect(address).is_err());
}
