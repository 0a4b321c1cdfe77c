//! A container's control groups: its bounds in memory, processes and processor time, and the
//! freezer.
//!
//! They are made below the agent's own groups, in version 2 of control groups where its controllers
//! are there and delegated (`Delegate=yes` in a unit), else in version 1. A bound that cannot be had
//! is told once and is not there; the container runs all the same.
//!
//! The owner record of a group is its name, the agent's process and the time it started, and a lock
//! that the agent holds on the directory: an agent in another process namespace does not see that
//! process. A group whose owner is gone is removed by [`sweep`]; the kernel has ended its processes
//! already. So is one of this process that could not be removed when its run ended.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

mod left;

pub(super) use left::sweep;
use left::{fresh_name, live};

/// The group that the agent goes to, to make room for others beside it.
const OWN_LEAF: &str = "agent";
/// The time in which shares of the processors are counted, in microseconds.
const PERIOD: u64 = 100_000;
/// How long a group's last processes may take to leave it.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a group may take to freeze: what waits for a disk does it later.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Memory in KiB; no swap on top.
    pub(super) ram_kib: u64,
    /// Processor time, in processors.
    pub(super) cpus: u32,
    /// Processes and threads.
    pub(super) processes: u64,
}

/// A hierarchy of control groups as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// This process's group in it.
    own: PathBuf,
    /// Where it is mounted.
    mount: PathBuf,
    version: Version,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Version {
    One { controllers: Vec<String> },
    Two,
}

/// A value that bounds something.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Value {
    controller: &'static str,
    file: &'static str,
    value: String,
    /// Whether the bound is none without it.
    needed: bool,
}

/// The hierarchies out of `/proc/self/cgroup` and `/proc/self/mountinfo` (proc(5), cgroups(7)).
fn hierarchies(cgroup: &str, mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let before: Vec<&str> = before.split(' ').collect();
        let after: Vec<&str> = after.split(' ').collect();
        let (Some(root), Some(mount), Some(kind)) = (before.get(3), before.get(4), after.first())
        else {
            continue;
        };
        let options: BTreeSet<&str> = after
            .get(2)
            .map(|options| options.split(',').collect())
            .unwrap_or_default();
        let ours = cgroup.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let version = match *kind {
                "cgroup2" if controllers.is_empty() => Version::Two,
                "cgroup"
                    if !controllers.is_empty()
                        && controllers.split(',').all(|one| options.contains(one)) =>
                {
                    Version::One {
                        controllers: controllers.split(',').map(str::to_owned).collect(),
                    }
                }
                _ => return None,
            };
            Some((version, path.to_owned()))
        });
        let Some((version, path)) = ours else {
            continue;
        };
        // Another part of the hierarchy is mounted there than the one that we are in.
        let Ok(below) = Path::new(&path).strip_prefix(unescape(root)) else {
            continue;
        };
        if path.split('/').any(|part| part == "..") {
            continue;
        }
        let mount = PathBuf::from(unescape(mount));
        let hierarchy = Hierarchy {
            own: mount.join(below),
            mount,
            version,
        };
        if !found.iter().any(|one| one.version == hierarchy.version) {
            found.push(hierarchy);
        }
    }
    found
}

/// Blanks and the like are written in octal in `mountinfo`.
fn unescape(text: &str) -> String {
    let mut rest = text;
    let mut plain = String::new();
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
            .filter(u8::is_ascii);
        match code {
            Some(code) => {
                plain.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                plain.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    plain.push_str(rest);
    plain
}

/// The values in version 2.
fn values_two(bounds: &Bounds) -> Vec<Value> {
    let value = |controller, file, value, needed| Value {
        controller,
        file,
        value,
        needed,
    };
    vec![
        value(
            "memory",
            "memory.max",
            bounds.ram_kib.saturating_mul(1024).to_string(),
            true,
        ),
        value("memory", "memory.swap.max", "0".to_owned(), false),
        value("pids", "pids.max", bounds.processes.to_string(), true),
        value(
            "cpu",
            "cpu.max",
            format!("{} {PERIOD}", u64::from(bounds.cpus) * PERIOD),
            true,
        ),
    ]
}

/// The values in version 1.
fn values_one(bounds: &Bounds) -> Vec<Value> {
    let value = |controller, file, value, needed| Value {
        controller,
        file,
        value,
        needed,
    };
    let bytes = bounds.ram_kib.saturating_mul(1024).to_string();
    vec![
        value("memory", "memory.limit_in_bytes", bytes.clone(), true),
        value("memory", "memory.memsw.limit_in_bytes", bytes, false),
        value("pids", "pids.max", bounds.processes.to_string(), true),
        value("cpu", "cpu.cfs_period_us", PERIOD.to_string(), true),
        value(
            "cpu",
            "cpu.cfs_quota_us",
            (u64::from(bounds.cpus) * PERIOD).to_string(),
            true,
        ),
    ]
}

/// The control groups of one container. Dropping this removes them; the container must have ended.
/// What cannot be removed then is left for the next [`sweep`].
#[derive(Debug)]
pub(super) struct Groups {
    name: String,
    directories: Vec<PathBuf>,
    /// Held: whose groups these are lives.
    locks: Vec<File>,
    /// The one of version 2, which can freeze.
    freezer: Option<PathBuf>,
    /// Controllers whose bounds could not be had.
    pub(super) missing: Vec<&'static str>,
}

impl Groups {
    /// Makes the groups, as far as they can be had.
    pub(super) fn make(bounds: &Bounds) -> Self {
        Self::make_in(&found(), bounds, &fresh_name())
    }

    /// None at all.
    pub(super) fn none() -> Self {
        Self {
            name: String::new(),
            directories: Vec::new(),
            locks: Vec::new(),
            freezer: None,
            missing: vec!["memory", "pids", "cpu"],
        }
    }

    fn make_in(hierarchies: &[Hierarchy], bounds: &Bounds, name: &str) -> Self {
        // Before there is any: a sweep may come between.
        live().insert(name.to_owned());
        let mut groups = Self {
            name: name.to_owned(),
            directories: Vec::new(),
            locks: Vec::new(),
            freezer: None,
            missing: Vec::new(),
        };
        let mut bounded: BTreeSet<&'static str> = BTreeSet::new();
        for hierarchy in hierarchies {
            let (parent, values) = match &hierarchy.version {
                Version::One { controllers } => {
                    let mut values = values_one(bounds);
                    values.retain(|value| controllers.iter().any(|one| one == value.controller));
                    // nspawn makes a group in systemd's own hierarchy, which bounds nothing, too.
                    if values.is_empty() && controllers != &["name=systemd"] {
                        continue;
                    }
                    (hierarchy.own.clone(), values)
                }
                Version::Two => (room(hierarchy), values_two(bounds)),
            };
            let directory = parent.join(name);
            if let Err(error) = fs::create_dir(&directory) {
                tracing::debug!("no control group {}: {error}", directory.display());
                continue;
            }
            groups.directories.push(directory.clone());
            // Nobody else knows it yet, so that the lock is free.
            if let Ok(lock) = File::open(&directory)
                && lock.try_lock().is_ok()
            {
                groups.locks.push(lock);
            }
            if hierarchy.version == Version::Two && directory.join("cgroup.freeze").exists() {
                groups.freezer = Some(directory.clone());
            }
            // Of this hierarchy alone: what another one bounds stays bounded.
            let mut failed: BTreeSet<&'static str> = BTreeSet::new();
            let needed = values.iter().filter(|value| value.needed);
            let controllers: BTreeSet<&'static str> = needed.map(|one| one.controller).collect();
            for value in values {
                let written = write(&directory.join(value.file), &value.value);
                match written {
                    Ok(()) => {}
                    Err(error) => {
                        if value.needed {
                            failed.insert(value.controller);
                        }
                        tracing::debug!("no {} in {}: {error}", value.file, directory.display());
                    }
                }
            }
            bounded.extend(controllers.difference(&failed));
        }
        groups.missing = ["memory", "pids", "cpu"]
            .into_iter()
            .filter(|controller| !bounded.contains(controller))
            .collect();
        groups
    }

    /// Where a process writes its number to join each of the groups.
    ///
    /// # Errors
    ///
    /// When one of the files cannot be opened.
    pub(super) fn doors(&self) -> io::Result<Vec<OwnedFd>> {
        let mut doors = Vec::new();
        for directory in &self.directories {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            doors.push(rustix::fs::open(
                directory.join("cgroup.procs"),
                flags,
                Mode::empty(),
            )?);
        }
        Ok(doors)
    }

    /// Stops all processes in the groups, or lets them go on. None: there is no freezer. Frozen
    /// processes can be killed.
    pub(super) async fn freeze(&self, frozen: bool) -> Option<io::Result<()>> {
        let directory = self.freezer.as_ref()?;
        let wanted = if frozen { "1" } else { "0" };
        if let Err(error) = write(&directory.join("cgroup.freeze"), wanted) {
            return Some(Err(error));
        }
        let events = directory.join("cgroup.events");
        let deadline = Instant::now() + FREEZE_TIMEOUT;
        loop {
            match fs::read_to_string(&events) {
                Ok(text) if text.lines().any(|line| line == format!("frozen {wanted}")) => {
                    return Some(Ok(()));
                }
                Ok(_) if Instant::now() >= deadline => {
                    return Some(Err(io::ErrorKind::TimedOut.into()));
                }
                Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let deadline = Instant::now() + EMPTY_TIMEOUT;
        for directory in &self.directories {
            loop {
                match remove(directory) {
                    Ok(()) => break,
                    // A process that has ended leaves its group a moment later.
                    Err(error) if is_busy(&error) && Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(error) => {
                        tracing::warn!(
                            "unable to remove the control group {}: {error}; left for the next sweep",
                            directory.display()
                        );
                        break;
                    }
                }
            }
        }
        self.locks.clear();
        live().remove(&self.name);
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBUSY)
}

/// Removes a group and those in it, which nspawn makes and the container may have made.
fn remove(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn found() -> Vec<Hierarchy> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    hierarchies(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
}

/// Writes to a file that is there: the kernel's, all at once.
fn write(path: &Path, value: &str) -> io::Result<()> {
    use std::io::Write as _;
    fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
}

/// The group of version 2 below which containers' groups are made, with its controllers handed
/// down if that can be. A group with processes hands none down, the top one excepted; so where ours
/// is delegated to us (as systemd marks it), this process moves to a leaf of its own.
fn room(hierarchy: &Hierarchy) -> PathBuf {
    let own = &hierarchy.own;
    if hand_down(own) {
        return own.clone();
    }
    if let Some(parent) = own.parent()
        && parent.starts_with(&hierarchy.mount)
        && is_delegated(parent)
        && hand_down(parent)
    {
        return parent.to_owned();
    }
    if is_delegated(own) {
        let leaf = own.join(OWN_LEAF);
        let moved = match fs::create_dir(&leaf) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => move_all(own, &leaf),
        };
        match moved {
            Ok(()) if hand_down(own) => return own.clone(),
            Ok(()) => {}
            Err(error) => tracing::debug!("unable to move to {}: {error}", leaf.display()),
        }
    }
    own.clone()
}

/// Whether the controllers that bound a container are handed down from this group, as far as there are any.
fn hand_down(group: &Path) -> bool {
    let list = |file: &str| -> BTreeSet<String> {
        fs::read_to_string(group.join(file))
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let there = list("cgroup.controllers");
    let handed = list("cgroup.subtree_control");
    ["memory", "pids", "cpu"]
        .into_iter()
        .filter(|one| there.contains(*one) && !handed.contains(*one))
        .all(|one| write(&group.join("cgroup.subtree_control"), &format!("+{one}")).is_ok())
}

fn move_all(from: &Path, to: &Path) -> io::Result<()> {
    for process in fs::read_to_string(from.join("cgroup.procs"))?.lines() {
        match write(&to.join("cgroup.procs"), process) {
            // It has ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            result => result?,
        }
    }
    Ok(())
}

fn is_delegated(group: &Path) -> bool {
    ["user.delegate", "trusted.delegate"]
        .into_iter()
        .any(|name| {
            let mut value = [0; 8];
            rustix::fs::getxattr(group, name, &mut value[..])
                .is_ok_and(|length| value[..length] == *b"1")
        })
}

#[cfg(test)]
mod tests;
