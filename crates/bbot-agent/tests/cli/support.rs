//! A host with one machine, and its agent as a process that cannot run for ever.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// No run here takes longer.
pub(crate) const BOUND: Duration = Duration::from_secs(60);

pub(crate) const HEADER: &str = ": 1\nid: a-1\nname: linux\nsummary: A Linux\n";
pub(crate) const TASK: &str = ": 1\nname: libfoo\nversion: 1.2\nrepository: http://r.example/1\ntrust: AB\nmachine: linux\n\
                    target: x86_64-linux-gnu\n";
pub(crate) const RESULT: &str = ": 1\nname: libfoo\nversion: 1.2\nstatus: success\nupdate-status: success\nupdate-log: \\\nbuilt\n\\\n";

pub(crate) struct Host {
    dir: TempDir,
}

impl Host {
    /// With one machine, `linux`, and folders of its own.
    pub(crate) fn new() -> Self {
        let host = Self::without_machines();
        host.machine(
            "linux",
            ": 1\nid: a-1\nname: linux\nsummary: A Linux\ntype: kvm\n",
        );
        host
    }

    /// With folders of its own.
    pub(crate) fn without_machines() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn machine(&self, name: &str, manifest: &str) {
        let machine = self.path("machines/vol").join(name);
        let revision = machine.join(format!("{name}-1.1"));
        fs::create_dir_all(&revision).unwrap();
        fs::write(revision.join("manifest"), manifest).unwrap();
        fs::write(revision.join("disk.img"), "disk").unwrap();
        std::os::unix::fs::symlink(format!("{name}-1.1"), machine.join(format!("{name}-1")))
            .unwrap();
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bbot-agent"));
        for option in ["machines", "tftp", "state"] {
            command.arg(format!("--{option}")).arg(self.path(option));
        }
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        finish(self.command(args).spawn().unwrap())
    }
}

/// Waits for the agent's end, but not for ever.
pub(crate) fn finish(mut child: Child) -> Output {
    let stdout = reader(child.stdout.take().unwrap());
    let stderr = reader(child.stderr.take().unwrap());
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begin.elapsed() > BOUND {
            let _ = child.kill();
            let _ = child.wait();
            panic!("still running: {}", text(&stderr.join().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Output {
        status,
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

pub(crate) fn reader(
    mut from: impl std::io::Read + Send + 'static,
) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub(crate) fn succeeds(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// That the agent failed with one sentence that says this.
pub(crate) fn fails(output: &Output, says: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    for what in says {
        assert!(stderr.contains(what), "{what} is not in: {stderr}");
    }
    assert!(stderr.contains("error: "), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

/// Waits until a person who plays the machine sees the task.
pub(crate) fn appears(path: &Path) -> String {
    let begin = Instant::now();
    loop {
        if let Ok(text) = fs::read_to_string(path) {
            return text;
        }
        assert!(
            begin.elapsed() < BOUND,
            "{} does not appear",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn send(child: &Child, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
}
