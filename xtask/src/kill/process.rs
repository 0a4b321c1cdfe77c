//! The programs under test: started, killed, asked to end; and the processes that there are.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal};

/// A program that runs, killed when this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    name: &'static str,
    child: Child,
}

impl Running {
    /// Starts it; what it says goes to the end of the file `log`.
    pub(super) fn start(
        name: &'static str,
        command: &mut Command,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let open = || {
            File::options()
                .create(true)
                .append(true)
                .open(log)
                .with_context(|| format!("cannot open {}", log.display()))
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            .spawn()
            .with_context(|| format!("cannot start the {name}"))?;
        Ok(Self { name, child })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its id, and when it started in the kernel's ticks (proc(5), field 22): as names of what it makes tell it.
    pub(super) fn identity(&self) -> anyhow::Result<String> {
        let path = format!("/proc/{}/stat", self.id());
        let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let started = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19))
            .with_context(|| format!("{path} is not as proc(5) has it"))?;
        Ok(format!("{}-{started}", self.id()))
    }

    /// Its exit status, if it has ended.
    pub(super) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("cannot wait for the {}", self.name))
    }

    /// Kills it, as a power cut would.
    pub(super) fn kill(mut self) -> anyhow::Result<()> {
        let what = || format!("cannot kill the {}", self.name);
        self.child.kill().with_context(what)?;
        self.child.wait().with_context(what)?;
        Ok(())
    }

    /// Asks it to end, and waits for its exit status.
    pub(super) fn terminate(mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM)
            .with_context(|| format!("cannot end the {}", self.name))?;
        let until = Instant::now() + within;
        while Instant::now() < until {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!(
            "the {} does not end within {} s of SIGTERM",
            self.name,
            within.as_secs()
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process, as `/proc` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) id: u32,
    pub(super) parent: u32,
    /// Name of its program, cut to 15 bytes by the kernel.
    pub(super) name: String,
}

/// All processes that run; those that have ended and wait to be reaped do not.
pub(super) fn all() -> anyhow::Result<Vec<Process>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")
        .context("cannot read /proc")?
        .flatten()
    {
        let path: PathBuf = entry.path().join("stat");
        // It may have gone meanwhile, and most entries are no processes.
        if let Some(process) = fs::read_to_string(path).ok().as_deref().and_then(parse) {
            all.push(process);
        }
    }
    Ok(all)
}

/// `pid (name) state parent ...` (proc(5)); none for one that has ended.
fn parse(stat: &str) -> Option<Process> {
    let (front, rest) = stat.rsplit_once(')')?;
    let (id, name) = front.split_once('(')?;
    let mut rest = rest.split_ascii_whitespace();
    let state = rest.next()?;
    let process = Process {
        id: id.trim().parse().ok()?,
        parent: rest.next()?.parse().ok()?,
        name: name.to_owned(),
    };
    (!matches!(state, "Z" | "X")).then_some(process)
}

/// The machines of an agent: the processes right below it that are QEMUs, or that have a container below them.
pub(super) fn machines_of(agent: u32) -> anyhow::Result<Vec<u32>> {
    Ok(machines_among(&all()?, agent))
}

fn machines_among(all: &[Process], agent: u32) -> Vec<u32> {
    let mut machines: Vec<u32> = all
        .iter()
        .filter(|process| process.parent == agent)
        .filter(|process| {
            // The kernel keeps 15 bytes of a name.
            process.name.starts_with("qemu-system-x86")
                || process.name == "systemd-nspawn"
                || all
                    .iter()
                    .any(|child| child.parent == process.id && child.name == "systemd-nspawn")
        })
        .map(|process| process.id)
        .collect();
    machines.sort_unstable();
    machines
}

/// Kills a process that is not ours to wait for. Whether it was still there.
pub(super) fn kill(id: u32) -> anyhow::Result<bool> {
    let pid = i32::try_from(id)
        .ok()
        .and_then(Pid::from_raw)
        .context("no process has this id")?;
    match rustix::process::kill_process(pid, Signal::KILL) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot kill process {id}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_read_with_any_name() {
        let process = parse("12 (a) b (c) S 7 12 12 0\n").unwrap();
        assert_eq!(
            process,
            Process {
                id: 12,
                parent: 7,
                name: "a) b (c".to_owned()
            }
        );
        assert_eq!(parse("12 (x) Z 7 0\n"), None);
        assert_eq!(parse(""), None);
        assert!(
            all()
                .unwrap()
                .iter()
                .any(|process| process.id == std::process::id())
        );
    }

    #[test]
    fn a_process_tells_who_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut sleep = Command::new("sleep");
        let running = Running::start("sleep", sleep.arg("60"), &dir.path().join("log")).unwrap();
        let identity = running.identity().unwrap();
        let (id, started) = identity.split_once('-').unwrap();
        assert_eq!(id.parse(), Ok(running.id()));
        assert!(started.parse::<u64>().unwrap() > 0);
    }

    #[test]
    fn machines_are_told_from_other_children() {
        let process = |id, parent, name: &str| Process {
            id,
            parent,
            name: name.to_owned(),
        };
        let all = [
            process(1, 0, "bbot-agent"),
            process(9, 1, "qemu-system-x86"),
            process(4, 1, "sh"),
            process(5, 4, "systemd-nspawn"),
            process(6, 1, "openssl"),
            process(7, 2, "qemu-system-x86"),
        ];
        assert_eq!(machines_among(&all, 1), [4, 9]);
        assert_eq!(machines_among(&all, 3), Vec::<u32>::new());
    }

    #[test]
    fn one_that_does_not_listen_is_killed_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut deaf = Command::new("sh");
        deaf.args(["-c", "trap '' TERM; echo ready; while :; do sleep 1; done"]);
        let running = Running::start("deaf one", &mut deaf, &log).unwrap();
        while fs::read_to_string(&log).unwrap().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let id = running.id();
        let error = running.terminate(Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("does not end"));
        assert!(!all().unwrap().iter().any(|process| process.id == id));
    }
}
