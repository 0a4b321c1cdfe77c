//! What separates a build from its worker: another user without a way to more rights, a network without the agent,
//! and an end for all its processes (`docs/protocol.md`, section 4).

#![expect(
    unsafe_code,
    reason = "what a child does between fork and exec are system calls"
)]

use std::ffi::CString;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::guard;
use crate::network::{self, Stock};
use crate::user::User;

/// How long processes that were killed may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// How long those that have ended may take to be seen off: by this worker, unless they are somebody else's children.
const SEEN_OFF: Duration = Duration::from_millis(200);

/// A user of nobody's, who kills for the worker: the last number that Debian keeps in reserve.
const KILLER: u32 = 65_533;

/// The most processes of a build at once: enough for any, too few to choke the guest.
const PROCESSES: u64 = 16_384;

/// Numbers of the C library in the types of the structures that hold them.
#[expect(
    clippy::cast_possible_truncation,
    reason = "constants that are known to fit"
)]
mod numbers {
    pub(super) const INTERNET: libc::sa_family_t = libc::AF_INET as libc::sa_family_t;
    pub(super) const ADDRESS_SIZE: libc::socklen_t =
        size_of::<libc::sockaddr_in>() as libc::socklen_t;
}
use numbers::{ADDRESS_SIZE, INTERNET};

/// Where a build's network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    /// A namespace of its own for each command, with nothing but the loopback.
    Own,
    /// The guest's, with a rule in the way to the agent.
    Guarded,
}

/// The separation, once it is known that it can be had.
#[derive(Debug)]
pub(crate) struct Isolation {
    pub(crate) user: User,
    network: Network,
    stock: Stock,
}

impl Isolation {
    /// Finds out whether a build can be separated from this worker; else why not.
    pub(crate) fn establish(agent: SocketAddr) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err(
                "the worker does not run as root, so builds cannot run as another user".to_owned(),
            );
        }
        let user = User::find();
        if user.uid == 0 {
            return Err(format!("the user {} is root", user.name));
        }
        let running = processes_of(user.uid)
            .map_err(|error| format!("cannot look for processes: {error}"))?;
        if running > 0 {
            return Err(format!(
                "{running} processes of the user {} (uid {}) are running; a build needs a user of its own, \
                 since all of that user's processes are killed after it",
                user.name, user.uid
            ));
        }
        let network = match agent {
            SocketAddr::V4(v4) => match guard::has_second_card(v4) {
                Ok(false) => Network::Own,
                Ok(true) => {
                    guard::forbid(user.uid, *v4.ip()).map_err(|error| {
                        format!("the kernel takes no rule for the build's user: {error}")
                    })?;
                    Network::Guarded
                }
                Err(error) => return Err(format!("cannot look at the network: {error}")),
            },
            SocketAddr::V6(_) => Network::Own,
        };
        let isolation = Self {
            user,
            network,
            stock: Stock::default(),
        };
        isolation
            .make_ahead(1)
            .map_err(|error| format!("a network namespace cannot be made: {error}"))?;
        match isolation.reaches(agent) {
            Ok(false) => Ok(isolation),
            Ok(true) => Err(format!(
                "a build could reach the agent at {agent}, and so forge its result"
            )),
            Err(error) => Err(format!("the build's surroundings cannot be made: {error}")),
        }
    }

    /// Whether nothing runs as the build's user.
    pub(crate) fn is_alone(&self) -> bool {
        has_processes(self.user.uid).is_ok_and(|has| !has)
    }

    /// Whether commands have a network beyond the loopback.
    pub(crate) fn has_network(&self) -> bool {
        self.network != Network::Own
    }

    /// Makes what the next commands, so many, would have to make first.
    pub(crate) fn make_ahead(&self, commands: usize) -> io::Result<()> {
        match self.network {
            Network::Own => self.stock.fill(commands),
            Network::Guarded => Ok(()),
        }
    }

    /// Makes a command run in this separation, in `directory`, once it is started.
    pub(crate) fn confine(&self, command: &mut Command, directory: &Path) -> io::Result<()> {
        let directory = CString::new(directory.as_os_str().as_bytes())?;
        let (uid, gid, network) = (self.user.uid, self.user.gid, self.network);
        let namespace = self.stock.take();
        // SAFETY: the closure runs between fork and exec; it makes system calls on its own values and the stack, and
        // allocates nothing.
        unsafe {
            command.pre_exec(move || {
                let namespace = namespace.as_deref().map(AsFd::as_fd);
                become_builder(uid, gid, network, namespace)?;
                // With the user's rights: what it cannot reach must fail here, by name, and not later.
                check(libc::chdir(directory.as_ptr()))
            });
        }
        Ok(())
    }

    /// Whether the build's user, where it is put, could send to the agent. Nothing is sent.
    fn reaches(&self, agent: SocketAddr) -> io::Result<bool> {
        let (uid, gid, network) = (self.user.uid, self.user.gid, self.network);
        // The first command gets it next: this leaves nothing in it.
        let namespace = self.stock.look();
        let code = in_child(|| {
            let namespace = namespace.as_deref().map(AsFd::as_fd);
            if become_builder(uid, gid, network, namespace).is_err() {
                return 2;
            }
            // SAFETY: these calls take no pointers but to the local address; the descriptor ends with the process.
            unsafe {
                let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
                let SocketAddr::V4(v4) = agent else { return 0 };
                // In a network of its own the loopback answers for itself, not for an agent on the guest's.
                if v4.ip().is_loopback() && network == Network::Own {
                    return 0;
                }
                let address = libc::sockaddr_in {
                    sin_family: INTERNET,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(v4.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                i32::from(libc::connect(socket, (&raw const address).cast(), ADDRESS_SIZE) == 0)
            }
        })?;
        match code {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(io::Error::other(
                "a process cannot be given a network namespace, another user and no new privileges",
            )),
        }
    }

    /// Kills every process of the build's user and waits until they are gone.
    pub(crate) fn kill_all(&self) -> io::Result<()> {
        let began = Instant::now();
        let uid = self.user.uid;
        loop {
            reap();
            if !has_processes(uid)? {
                return Ok(());
            }
            in_child(|| {
                if become_killer(uid).is_err() {
                    return 1;
                }
                // SAFETY: numbers only; the process may signal the build's and no others.
                unsafe {
                    libc::kill(-1, libc::SIGKILL);
                }
                0
            })?;
            if began.elapsed() >= SEEN_OFF {
                let left = processes_of(uid)?;
                if left == 0 {
                    return Ok(());
                }
                if began.elapsed() >= GONE {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("{left} processes of the build do not end"),
                    ));
                }
            }
            // Between being killed and being gone there is no event for a process that is not a child.
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Turns the calling process, a fresh child of a root process, into one of the build. Async-signal-safe.
fn become_builder(
    uid: u32,
    gid: u32,
    network: Network,
    namespace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    // SAFETY: system calls with numbers, pointers to locals, and a null pointer for an empty list of groups.
    unsafe {
        // A session of its own: no terminal, and no process group shared with the worker.
        if libc::setsid() < 0 {
            return Err(io::Error::last_os_error());
        }
        if network == Network::Own {
            network::enter(namespace)?;
        }
        for (resource, most) in [(libc::RLIMIT_CORE, 0), (libc::RLIMIT_NPROC, PROCESSES)] {
            let mut limit = libc::rlimit {
                rlim_cur: most,
                rlim_max: most,
            };
            check(libc::getrlimit(resource, &raw mut limit))?;
            // A container may have a lower bound, which its root may not raise.
            limit.rlim_max = limit.rlim_max.min(most);
            limit.rlim_cur = limit.rlim_max;
            check(libc::setrlimit(resource, &raw const limit))?;
        }
        libc::umask(0o022);
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(gid, gid, gid))?;
        check(libc::setresuid(uid, uid, uid))
    }
}

/// Turns the calling process, a fresh child of a root process, into one that may signal the processes of this user, but
/// that none of them may signal: the kernel asks for the effective user of who sends, and for the real and the saved user
/// of who receives. Async-signal-safe.
fn become_killer(uid: u32) -> io::Result<()> {
    // SAFETY: a system call with numbers.
    unsafe { check(libc::setresuid(KILLER, uid, KILLER)) }
}

/// Runs `work` in a forked child and gives its exit code.
///
/// `work` must be async-signal-safe: other threads may hold the allocator's lock.
fn in_child(work: impl FnOnce() -> i32) -> io::Result<i32> {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};
    // SAFETY: the child calls `work`, which is async-signal-safe, and leaves by `_exit`.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let code = work();
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => loop {
            match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(code),
                // A process of the build may kill what runs as its user.
                Ok(_) => return Ok(-1),
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        },
    }
}

/// Makes this process the parent of those that the build leaves without one, so that it can see them off.
pub(crate) fn adopt_orphans() {
    // SAFETY: a system call with numbers. Where it fails, the guest's first process is their parent.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    }
}

/// What can be read once this child has ended. None: the kernel has no such thing.
pub(crate) fn end_of(child: &Child) -> Option<OwnedFd> {
    let pid = libc::pid_t::try_from(child.id()).ok()?;
    // SAFETY: a system call with numbers. The child was not waited for, so that the number is still its own.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel has just given it to nobody else.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sees off the children that have ended. The build's commands have been waited for when this is called.
fn reap() {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}

/// Whether there is any process with this real user, zombies included. The kernel knows all: none can hide, as in `/proc`.
fn has_processes(uid: u32) -> io::Result<bool> {
    // SAFETY: a system call with numbers. The C library's would return a priority that looks like an error.
    let priority = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_USER, uid) };
    match Errno::result(priority) {
        Ok(_) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// How many processes, other than zombies, have this user as real, effective or saved one.
fn processes_of(uid: u32) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if !entry.file_name().as_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // One that has ended meanwhile is none.
        if let Ok(status) = fs::read_to_string(entry.path().join("status"))
            && belongs_to(&status, uid)
        {
            count += 1;
        }
    }
    Ok(count)
}

/// Reads `/proc/<pid>/status`.
fn belongs_to(status: &str, uid: u32) -> bool {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .unwrap_or_default()
    };
    let state = field("State").trim_start();
    !state.starts_with(['Z', 'X'])
        && field("Uid")
            .split_whitespace()
            .any(|word| word.parse() == Ok(uid))
}

/// Lets the kernel's killer for want of memory take the build before the worker.
pub(crate) fn survive_want_of_memory() {
    // Not to have this right is no reason not to build.
    let _ = fs::write("/proc/self/oom_score_adj", "-900");
}

/// The same for a process of the build.
pub(crate) fn first_to_go(pid: u32) {
    let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), "500");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A container's root may not raise the number of processes that it may have.
    #[test]
    fn a_lower_bound_on_processes_stays() {
        if !testkit::root() {
            return;
        }
        let kept = in_child(|| {
            let low = libc::rlimit {
                rlim_cur: 4096,
                rlim_max: 4096,
            };
            let mut after = low;
            // SAFETY: system calls with numbers and pointers to locals.
            let is_low = unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &raw const low) == 0 };
            if !is_low || become_builder(54_322, 54_322, Network::Guarded, None).is_err() {
                return 2;
            }
            // SAFETY: a system call with a number and a pointer to a local.
            let is_told = unsafe { libc::getrlimit(libc::RLIMIT_NPROC, &raw mut after) == 0 };
            i32::from(is_told && after.rlim_cur == 4096 && after.rlim_max == 4096)
        });
        assert_eq!(kept.unwrap(), 1);
    }

    /// A build that stops whatever has its user must not stop who is to kill it.
    #[test]
    fn the_killer_kills_and_cannot_be_stopped() {
        use std::os::unix::process::ExitStatusExt;

        if !testkit::root() {
            return;
        }
        // A number that nobody has here.
        let uid = 54_321;
        let mut victim = Command::new("sleep").arg("600").uid(uid).spawn().unwrap();
        // One of the build's tries to end the killer, its parent.
        let harmed = in_child(|| {
            if become_killer(uid).is_err() {
                return 2;
            }
            // SAFETY: system calls with numbers, and a pointer to a local.
            unsafe {
                let child = libc::fork();
                if child == 0 {
                    let code = if libc::setresuid(uid, uid, uid) == 0 {
                        i32::from(libc::kill(libc::getppid(), libc::SIGTERM) == 0)
                    } else {
                        3
                    };
                    libc::_exit(code);
                }
                let mut status = 0;
                if libc::waitpid(child, &raw mut status, 0) != child {
                    return 4;
                }
                libc::WEXITSTATUS(status)
            }
        });
        assert!(has_processes(uid).unwrap());
        let killed = in_child(|| {
            if become_killer(uid).is_err() {
                return 2;
            }
            // SAFETY: numbers only; nothing but the victim has this user.
            i32::from(unsafe { libc::kill(-1, libc::SIGKILL) } != 0)
        });
        let ended = killed.as_ref().is_ok_and(|code| *code == 0);
        if !ended {
            victim.kill().unwrap();
        }
        let status = victim.wait().unwrap();
        assert!(!has_processes(uid).unwrap());
        assert_eq!(harmed.unwrap(), 0, "the build's user could signal it");
        assert_eq!(killed.unwrap(), 0);
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn processes_are_told_by_user_and_state() {
        let status = |state: &str, uids: &str| format!("Name:\tx\nState:\t{state}\nUid:\t{uids}\n");
        assert!(belongs_to(
            &status("S (sleeping)", "1000\t1000\t1000\t1000"),
            1000
        ));
        assert!(belongs_to(&status("R (running)", "0\t0\t1000\t0"), 1000));
        assert!(!belongs_to(
            &status("Z (zombie)", "1000\t1000\t1000\t1000"),
            1000
        ));
        assert!(!belongs_to(
            &status("S (sleeping)", "10000\t100\t100\t0"),
            1000
        ));
        assert!(!belongs_to("", 1000));
    }
}
