//! Signals to a container: to its first process, and to all at once.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// `SIGRTMIN+4`: systemd powers off (systemd(1)). The C library's first real-time signal is 34.
const SYSTEMD_POWER_OFF: i32 = 38;

/// The first process of a container, and the namespaces that it is in.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) pid: u32,
    pidfd: OwnedFd,
    processes: OwnedFd,
    /// Held, so that the container's cards outlive it until all that they carried has been read.
    _network: OwnedFd,
}

impl Leader {
    /// The first process of the container that nspawn runs, which `wrapper` has started. None: it
    /// has ended.
    pub(super) fn find(wrapper: u32) -> Option<Self> {
        let nspawn = children(wrapper).into_iter().next()?;
        let pid = children(nspawn).into_iter().find(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            is_first(&status)
        })?;
        let open = |what: &str| fs::File::open(format!("/proc/{pid}/ns/{what}")).ok();
        let pidfd = pidfd_open(
            Pid::from_raw(i32::try_from(pid).ok()?)?,
            PidfdFlags::empty(),
        );
        Some(Self {
            pid,
            pidfd: pidfd.ok()?,
            processes: open("pid")?.into(),
            _network: open("net")?.into(),
        })
    }

    /// Asks it to power off, in the words that it understands now.
    pub(super) fn ask_to_power_off(&self) -> io::Result<()> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        self.signal(power_off_signal(&status))
    }

    /// Stops all processes of the container, or lets them go on. The kernel signals all of them
    /// without letting one fork meanwhile.
    pub(super) fn stop_all(&self, stop: bool) -> io::Result<()> {
        let signal = if stop { libc::SIGSTOP } else { libc::SIGCONT };
        let processes = self.processes.try_clone()?;
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                // Its children are in the container's namespace.
                setns(processes, CloneFlags::CLONE_NEWPID)?;
                signal_all_but_first(signal)
            })?
            .join()
            .map_err(|_| io::Error::other("the thread that sends signals panicked"))??;
        self.signal(signal)
    }

    fn signal(&self, number: i32) -> io::Result<()> {
        let sent = send(&self.pidfd, number);
        match sent {
            // It has ended.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }
}

fn send(pidfd: &OwnedFd, number: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    #[expect(unsafe_code, reason = "there is no safe form for real-time signals")]
    // SAFETY: the descriptor is open; a null pointer stands for the usual information.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Signals every process of the namespace that the calling thread's children are in, its first
/// process excepted, from a child.
fn signal_all_but_first(signal: i32) -> io::Result<()> {
    #[expect(unsafe_code, reason = "a child that makes two system calls")]
    // SAFETY: the child makes system calls with numbers only and ends without running anything else.
    let child = unsafe {
        match libc::fork() {
            0 => {
                // No process: all the better.
                libc::kill(-1, signal);
                libc::_exit(0)
            }
            child => child,
        }
    };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    let child = nix::unistd::Pid::from_raw(child);
    loop {
        match nix::sys::wait::waitpid(child, None) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Which signal asks the first process of a system to power off, out of its `/proc/<pid>/status`.
/// systemd blocks or catches `SIGRTMIN+4`; others follow `SIGPWR` or, as a container's simple first
/// program, `SIGTERM`.
fn power_off_signal(status: &str) -> i32 {
    let handled = ["SigBlk:", "SigCgt:"].into_iter().fold(0, |mask, name| {
        let field = status.lines().find_map(|line| line.strip_prefix(name));
        mask | field.map_or(0, |hex| u64::from_str_radix(hex.trim(), 16).unwrap_or(0))
    });
    [SYSTEMD_POWER_OFF, libc::SIGPWR]
        .into_iter()
        .find(|signal| handled & (1 << (signal - 1)) != 0)
        .unwrap_or(libc::SIGTERM)
}

/// Whether a process is the first of the innermost process namespace that it is in, and that one
/// is not the one nspawn itself is in.
fn is_first(status: &str) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .is_some_and(|numbers| {
            let numbers: Vec<&str> = numbers.split_whitespace().collect();
            numbers.len() >= 3 && numbers.last() == Some(&"1")
        })
}

/// The processes that a process has started and not yet waited for.
fn children(parent: u32) -> Vec<u32> {
    // Of its first thread, and neither the shell nor nspawn has others.
    match fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")) {
        Ok(numbers) => numbers
            .split_whitespace()
            .filter_map(|number| number.parse().ok())
            .collect(),
        Err(_) => children_of_all(parent),
    }
}

/// The same where the kernel does not tell (without `CONFIG_PROC_CHILDREN`): looks at all processes.
fn children_of_all(parent: u32) -> Vec<u32> {
    let parent = parent.to_string();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // Field 4; the second, a name in parentheses, may hold blanks (proc(5)).
            stat.rsplit_once(')')
                .is_some_and(|(_, rest)| rest.split_whitespace().nth(1) == Some(&parent))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signal_is_one_that_the_system_knows() {
        for (status, signal) in [
            // systemd blocks what it reads by a descriptor.
            (
                "SigBlk:\t7fe3c0fe28014a03\nSigCgt:\t00000000000004ec\n",
                SYSTEMD_POWER_OFF,
            ),
            ("SigCgt:\t0000000020000000\n", libc::SIGPWR),
            ("SigCgt:\t0000000000004000\n", libc::SIGTERM),
            ("SigBlk:\tnonsense\n", libc::SIGTERM),
            ("", libc::SIGTERM),
        ] {
            assert_eq!(power_off_signal(status), signal, "{status}");
        }
    }

    #[test]
    fn children_are_found_in_either_way() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let parent = std::process::id();
        // Which thread of this process has started it is not known.
        assert!(children_of_all(parent).contains(&child.id()));
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sleep 60 & echo $!; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 32];
        let length = io::Read::read(shell.stdout.as_mut().unwrap(), &mut said).unwrap();
        let number: u32 = String::from_utf8_lossy(&said[..length])
            .trim()
            .parse()
            .unwrap();
        assert_eq!(children(shell.id()), [number]);
        assert_eq!(children_of_all(shell.id()), [number]);
        for process in [&mut child, &mut shell] {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        let number = nix::unistd::Pid::from_raw(i32::try_from(number).unwrap());
        nix::sys::signal::kill(number, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    #[test]
    fn the_first_process_of_a_nested_namespace_is_known() {
        for (status, first) in [
            ("Name:\tsh\nNSpid:\t100\t7\t1\n", true),
            ("NSpid:\t100\t1\n", false),
            ("NSpid:\t100\t7\t2\n", false),
            ("", false),
        ] {
            assert_eq!(is_first(status), first, "{status}");
        }
    }
}
