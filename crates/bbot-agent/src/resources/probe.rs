//! Asking the host what it has left. All of it is a handful of system calls; what
//! cannot be read is absent.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Facts, Use, VolumeFacts};

/// Asks the host; knows which folders matter.
#[derive(Debug, Clone)]
pub struct Probe {
    folders: Vec<PathBuf>,
    /// The control group of this process and those above it: each may bound it.
    groups: Vec<PathBuf>,
    proc: PathBuf,
}

impl Probe {
    /// For these folders: machines (and each of its volumes), TFTP, state. One that is
    /// not there yet is asked for by the nearest folder above it that is.
    pub fn new(folders: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            folders: folders.into_iter().collect(),
            groups: groups(
                Path::new("/sys/fs/cgroup"),
                &own_group().unwrap_or_default(),
            ),
            proc: PathBuf::from("/proc"),
        }
    }

    /// What there is now.
    pub fn facts(&self) -> Facts {
        let memory = fs::read_to_string(self.proc.join("meminfo")).unwrap_or_default();
        let pressure = |name: &str, word: &str| {
            let path = self.proc.join("pressure").join(name);
            psi(&fs::read_to_string(path).ok()?, word)
        };
        Facts {
            volumes: self.volumes(),
            memory_available: self.memory_available(&memory),
            memory_total: meminfo(&memory, "MemTotal"),
            memory_pressure: pressure("memory", "full"),
            cpu_pressure: pressure("cpu", "some"),
            io_pressure: pressure("io", "full"),
            handles: self.handles(),
            pids: self.pids(),
        }
    }

    fn volumes(&self) -> Vec<VolumeFacts> {
        let mut seen = HashSet::new();
        let mut volumes = Vec::new();
        for folder in self.folders.iter().flat_map(|folder| with_volumes(folder)) {
            let Some((path, stat)) = nearest(&folder) else {
                continue;
            };
            // The subvolumes of a btrfs have devices of their own and the same space;
            // the file system's id tells neither apart everywhere, so what counts is
            // whether the figures are those of one that is known.
            let blocks = (stat.f_fsid, stat.f_blocks, stat.f_bavail, stat.f_files);
            if !seen.insert(blocks) {
                continue;
            }
            volumes.push(VolumeFacts {
                path,
                free: free(&stat),
                total: stat.f_blocks.saturating_mul(stat.f_frsize),
                free_inodes: (stat.f_files > 0).then_some(stat.f_favail),
            });
        }
        volumes
    }

    fn memory_available(&self, meminfo_text: &str) -> Option<u64> {
        let host = meminfo(meminfo_text, "MemAvailable");
        let left_in = |group: &PathBuf| {
            let max = number(&group.join("memory.max"))?;
            let current = number(&group.join("memory.current"))?;
            // What is cached can be had, as in MemAvailable.
            let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
            let cached = stat
                .lines()
                .filter_map(|line| line.split_once(' '))
                .filter(|(name, _)| *name == "inactive_file" || *name == "active_file")
                .filter_map(|(_, value)| value.parse::<u64>().ok())
                .sum::<u64>();
            Some(max.saturating_sub(current.saturating_sub(cached)))
        };
        self.groups.iter().filter_map(left_in).chain(host).min()
    }

    fn handles(&self) -> Option<Use> {
        let limit = getrlimit(Resource::Nofile).current?;
        let used = match fs::read_dir(self.proc.join("self/fd")) {
            // One of them was for counting.
            Ok(open) => u64::try_from(open.count())
                .unwrap_or(u64::MAX)
                .saturating_sub(1),
            // There is not even one for counting.
            Err(e) if is_out_of(&e) => limit,
            Err(_) => return None,
        };
        Some(Use { used, limit })
    }

    /// The tightest of the bounds that hold for this process.
    fn pids(&self) -> Option<Use> {
        let running = || {
            // "0.25 0.12 0.05 2/345 6789": runnable and existing tasks.
            let text = fs::read_to_string(self.proc.join("loadavg")).ok()?;
            text.split(' ')
                .nth(3)?
                .split_once('/')?
                .1
                .parse::<u64>()
                .ok()
        };
        let host = (|| {
            let limit = number(&self.proc.join("sys/kernel/pid_max"))?;
            Some(Use {
                used: running()?,
                limit,
            })
        })();
        let groups = self.groups.iter().filter_map(|group| {
            Some(Use {
                used: number(&group.join("pids.current"))?,
                limit: number(&group.join("pids.max"))?,
            })
        });
        // Root is not bound by it.
        let user = (|| {
            let uid = rustix::process::getuid();
            if uid.is_root() {
                return None;
            }
            let limit = getrlimit(Resource::Nproc).current?;
            // Counting a user's threads costs a walk over /proc: only where the bound
            // is one that can be met.
            (limit < 100_000).then(|| Use {
                used: threads_of(&self.proc, uid.as_raw()),
                limit,
            })
        })();
        groups
            .chain(host)
            .chain(user)
            .min_by_key(|bound| bound.left())
    }
}

/// A folder, and the folders in it that may be volumes of their own (also by a link).
fn with_volumes(folder: &Path) -> Vec<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    let Ok(entries) = fs::read_dir(folder) else {
        return folders;
    };
    // A folder with very many is none of volumes.
    for entry in entries.take(64).flatten() {
        let name = entry.file_name();
        let path = entry.path();
        if !name.to_string_lossy().starts_with('.') && path.is_dir() {
            folders.push(path);
        }
    }
    folders
}

/// The figures of the nearest folder that is there.
fn nearest(folder: &Path) -> Option<(PathBuf, rustix::fs::StatVfs)> {
    let path = folder.ancestors().find(|path| path.is_dir())?;
    let stat = rustix::fs::statvfs(path).ok()?;
    Some((path.to_owned(), stat))
}

/// Bytes that may still be written on the volume of this folder, or of the nearest one above it that is
/// there. Blocks.
pub fn free_at(folder: &Path) -> Option<u64> {
    let (_, stat) = nearest(folder)?;
    Some(free(&stat))
}

fn free(stat: &rustix::fs::StatVfs) -> u64 {
    stat.f_bavail.saturating_mul(stat.f_frsize)
}

/// A value of `/proc/meminfo` in bytes.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// `avg10` of a line of `/proc/pressure/*`.
fn psi(text: &str, word: &str) -> Option<f32> {
    let line = text.lines().find_map(|line| line.strip_prefix(word))?;
    let average = line
        .split_whitespace()
        .find_map(|field| field.strip_prefix("avg10="))?;
    average.parse().ok().filter(|share: &f32| share.is_finite())
}

/// A file with one number; `max` is none.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The control group of this process below the root of its hierarchy, where it is of version 2.
fn own_group() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(path.into())
}

/// A control group and all that are above it. The agent moves into one below its unit's with
/// the first container, and the unit's bounds hold all the same.
fn groups(root: &Path, path: &Path) -> Vec<PathBuf> {
    let all = path.ancestors().map(|group| root.join(group));
    all.filter(|group| group.is_dir()).collect()
}

fn threads_of(proc: &Path, uid: u32) -> u64 {
    let Ok(entries) = fs::read_dir(proc) else {
        return 0;
    };
    entries
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        })
        .filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok())
        .filter_map(|status| threads_if_of(&status, uid))
        .sum()
}

/// The threads of the process whose `/proc/PID/status` this is, when the user is its.
fn threads_if_of(status: &str, uid: u32) -> Option<u64> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let owner: u32 = field("Uid:")?.split_whitespace().next()?.parse().ok()?;
    if owner != uid {
        return None;
    }
    field("Threads:")?.trim().parse().ok()
}

/// Raises the number of files that this process may open as far as it may: each
/// machine takes some. Returns what it is now.
pub fn raise_handles() -> Option<u64> {
    let now = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: now.maximum,
        maximum: now.maximum,
    };
    if now.current == now.maximum || setrlimit(Resource::Nofile, raised).is_err() {
        return now.current;
    }
    now.maximum
}

/// Whether an error, or one behind it, means that the host has run out of something:
/// file handles, disk, memory, processes. Then neither the machine nor the task is at
/// fault, and the agent goes on.
pub fn is_of_host(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(e) = error.downcast_ref::<io::Error>()
            && is_out_of(e)
        {
            return true;
        }
        if let Some(e) = error.downcast_ref::<rustix::io::Errno>()
            && is_out_of(&io::Error::from_raw_os_error(e.raw_os_error()))
        {
            return true;
        }
        if let Some(e) = error.downcast_ref::<nix::errno::Errno>()
            && is_out_of(&io::Error::from_raw_os_error(*e as i32))
        {
            return true;
        }
        cause = error.source();
    }
    false
}

fn is_out_of(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let out = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::NOMEM,
        // What fork(2) says when there may be no more processes.
        Errno::AGAIN,
    ];
    if error
        .raw_os_error()
        .is_some_and(|code| out.iter().any(|errno| errno.raw_os_error() == code))
    {
        return true;
    }
    // An error that wraps another one: tempfile's, for one.
    error
        .get_ref()
        .is_some_and(|inner| is_of_host(inner as &(dyn std::error::Error + 'static)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_understood() {
        let text = "MemTotal:        8145052 kB\nMemFree: 1 kB\nMemAvailable:    5000000 kB\n";
        assert_eq!(meminfo(text, "MemAvailable"), Some(5_000_000 * 1024));
        assert_eq!(meminfo(text, "Mem"), None);
        assert_eq!(meminfo("MemAvailable: x kB", "MemAvailable"), None);
        let text =
            "some avg10=1.25 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.50 avg60=0 total=0\n";
        assert_eq!(psi(text, "some"), Some(1.25));
        assert_eq!(psi(text, "full"), Some(0.5));
        assert_eq!(psi("full avg10=nan", "full"), None);
        assert_eq!(psi("", "some"), None);
        let status = "Name:\tx\nUid:\t7\t7\t7\t7\nThreads:\t4\n";
        assert_eq!(threads_if_of(status, 7), Some(4));
        assert_eq!(threads_if_of(status, 8), None);
    }

    #[test]
    fn the_host_tells_what_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("not/there/yet");
        let probe = Probe::new([folder.path().to_owned(), missing]);
        let facts = probe.facts();
        assert_eq!(facts.volumes.len(), 1, "one file system, told once");
        assert!(facts.volumes[0].total >= facts.volumes[0].free);
        assert!(facts.memory_available.is_some_and(|bytes| bytes > 0));
        let handles = facts.handles.unwrap();
        assert!(handles.used >= 3 && handles.limit > handles.used);
        assert!(facts.pids.unwrap().used > 0);
    }

    #[test]
    fn the_tightest_bound_of_all_groups_holds() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path();
        let unit = root.join("system.slice/bbot-agent.service");
        let write = |group: &Path, name: &str, text: &str| {
            fs::create_dir_all(group).unwrap();
            fs::write(group.join(name), text).unwrap();
        };
        let probe = |own: &str| Probe {
            groups: groups(root, Path::new(own)),
            ..Probe::new([])
        };
        for (name, text) in [("pids.max", "100\n"), ("pids.current", "60\n")] {
            write(&unit, name, text);
        }
        let stat = "anon 5\nactive_file 100\ninactive_file 200\n";
        for (name, text) in [
            ("memory.max", "1000\n"),
            ("memory.current", "900\n"),
            ("memory.stat", stat),
        ] {
            write(&unit, name, text);
        }
        // The leaf that the agent has moved to, with bounds of none.
        for (name, text) in [("pids.max", "max\n"), ("memory.max", "max\n")] {
            write(&unit.join("agent"), name, text);
        }
        for own in [
            "system.slice/bbot-agent.service",
            "system.slice/bbot-agent.service/agent",
        ] {
            let facts = probe(own).facts();
            assert_eq!(facts.pids.map(Use::left), Some(40), "{own}");
            assert_eq!(facts.memory_available, Some(400), "{own}");
        }
        // The slice may be tighter still, and a group that is gone bounds nothing.
        write(&root.join("system.slice"), "pids.max", "70\n");
        write(&root.join("system.slice"), "pids.current", "65\n");
        let facts = probe("system.slice/bbot-agent.service/gone").facts();
        assert_eq!(facts.pids.map(Use::left), Some(5));
    }

    #[test]
    fn an_error_of_the_host_is_known_however_deep() {
        #[derive(Debug, thiserror::Error)]
        #[error("unable to start")]
        struct Outer(#[source] io::Error);
        use rustix::io::Errno;
        for errno in [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOSPC,
            Errno::NOMEM,
            Errno::AGAIN,
        ] {
            let error = Outer(io::Error::from_raw_os_error(errno.raw_os_error()));
            assert!(is_of_host(&error), "{errno}");
            assert!(is_of_host(&errno));
        }
        let wrapped = io::Error::other(io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error()));
        assert!(is_of_host(&wrapped));
        assert!(!is_of_host(&Outer(io::ErrorKind::NotFound.into())));
        assert!(!is_of_host(&io::Error::other("words")));
    }
}
