//! QEMU's process: started with as little right as it needs, dead when the agent
//! is, and its end noticed at once.
//!
//! The kernel ties "die with your parent" (`PR_SET_PDEATHSIG`) to the *thread*
//! that forked, not to its process. So every child is forked by one thread that
//! lives as long as the agent does, whatever runtime the caller uses.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::words::Words;

/// How much of the end of standard error is kept.
const STDERR_TAIL: usize = 8192;
/// How much sooner than the agent a guest goes when the host's memory runs out
/// (`proc(5)`, `oom_score_adj`): without the agent all of them are lost. What a worker
/// in a container starts goes before the worker, at 500.
const OOM_SCORE_ADJ: &[u8] = b"300";
/// How long a killed process may take to go.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Whom a process runs as, when the agent is root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups: that of `/dev/kvm`, if it has one of its own.
    pub groups: Vec<u32>,
}

impl Credentials {
    /// Whom QEMU is to run as. None: the agent is not root and has no rights to
    /// give up.
    ///
    /// # Errors
    ///
    /// When there is no such user, or it is root.
    pub fn find(user: Option<&str>) -> io::Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let look_up = |name: &str| nix::unistd::User::from_name(name).map_err(io::Error::from);
        let found = match user {
            Some(name) => look_up(name)?,
            None => match look_up("bbot-qemu")? {
                Some(found) => Some(found),
                None => look_up("nobody")?,
            },
        };
        let name = user.unwrap_or("nobody");
        let found = found.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("there is no user '{name}': make one, or name another"),
            )
        })?;
        if found.uid.is_root() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("user '{name}' is root: name an unprivileged one"),
            ));
        }
        Ok(Some(Self {
            uid: found.uid.as_raw(),
            gid: found.gid.as_raw(),
            groups: kvm_group().into_iter().collect(),
        }))
    }
}

/// The group that may open `/dev/kvm`, unless that is root's.
fn kvm_group() -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata("/dev/kvm").ok()?;
    (metadata.gid() != 0 && metadata.mode() & 0o060 == 0o060).then(|| metadata.gid())
}

/// A process to start.
#[derive(Debug)]
pub struct Spec {
    /// The program: a path, or a name that is looked for in PATH.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where it runs.
    pub directory: PathBuf,
    /// Descriptors that it inherits, under the same numbers.
    pub inherited: Vec<OwnedFd>,
    /// Whom it runs as. None: as the agent does.
    pub credentials: Option<Credentials>,
    /// Where its standard output goes. None: nowhere.
    pub stdout: Option<File>,
}

/// What is done between fork and exec: system calls only, neither memory nor locks.
pub type Preparation = Box<dyn FnMut() -> io::Result<()> + Send + Sync>;

type Job = Box<dyn FnOnce() + Send>;

/// Runs a job on the thread that forks, and that never ends.
async fn on_forking_thread<T: Send + 'static>(
    job: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    static JOBS: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let gone = || io::Error::other("the thread that starts processes has ended");
    let jobs = match JOBS.get() {
        Some(jobs) => jobs,
        None => {
            let (jobs, queue) = mpsc::channel::<Job>();
            std::thread::Builder::new()
                .name("forker".to_owned())
                .spawn(move || {
                    for job in queue {
                        job();
                    }
                })?;
            // Of two that come first at once, one thread ends here unused: its
            // queue is dropped.
            JOBS.get_or_init(|| jobs)
        }
    };
    let (done_in, done) = oneshot::channel();
    jobs.send(Box::new(move || {
        // Nobody waits: then what the job made is dropped, and so ended.
        let _ = done_in.send(job());
    }))
    .map_err(|_| gone())?;
    done.await.map_err(|_| gone())?
}

/// A running process, killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    child: KilledChild,
    pidfd: AsyncFd<OwnedFd>,
    stderr: Option<Words>,
}

impl Process {
    /// Starts a process. It dies when this one does.
    ///
    /// # Errors
    ///
    /// Those of `fork(2)` and `execve(2)`; `NotFound` when the program is not installed.
    pub async fn start(spec: Spec) -> io::Result<Self> {
        Self::start_with(move || fork(spec)).await
    }

    /// Starts a process as the first of a process namespace of its own, after `prepare` has been
    /// run in it. Whatever it starts, and all they start, is dead when it has ended, by whatever
    /// cause: the kernel sees to that. For root only.
    ///
    /// # Errors
    ///
    /// Those of [`Process::start`], of `unshare(2)`, and of `prepare`.
    pub async fn start_enclosed(spec: Spec, prepare: Preparation) -> io::Result<Self> {
        Self::start_with(move || fork_enclosed(spec, prepare)).await
    }

    async fn start_with(
        fork: impl FnOnce() -> io::Result<KilledChild> + Send + 'static,
    ) -> io::Result<Self> {
        let mut child = on_forking_thread(fork).await?;
        let stderr = match child.0.stderr.take() {
            Some(pipe) => Some(Words::keep(pipe, STDERR_TAIL, "stderr")?),
            None => None,
        };
        let pidfd = pidfd_open(child.pid()?, PidfdFlags::empty())?;
        #[expect(unsafe_code, reason = "there is no safe registration of a descriptor")]
        // SAFETY: an `OwnedFd` names one open descriptor until it is dropped, and
        // nothing takes it out of the `AsyncFd`, which deregisters it first.
        let pidfd =
            unsafe { AsyncFd::register_with_interest(pidfd, tokio::io::Interest::READABLE)? };
        Ok(Self {
            child,
            pidfd,
            stderr,
        })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.0.id()
    }

    /// Waits for its end. Cancel safe, and answers again when asked again.
    ///
    /// # Errors
    ///
    /// Those of `wait(2)`.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.0.try_wait()? {
                if let Some(stderr) = self.stderr.as_mut() {
                    // The pipe's end comes with the process's, unless something
                    // it started holds it.
                    let _ = tokio::time::timeout(Duration::from_secs(1), stderr.over()).await;
                }
                return Ok(status);
            }
            let mut guard = self.pidfd.readable().await?;
            guard.clear_ready();
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.0.try_wait(), Ok(Some(_)))
    }

    /// Kills it. No error if it has ended.
    ///
    /// # Errors
    ///
    /// Those of `kill(2)`.
    pub fn kill(&mut self) -> io::Result<()> {
        if self.has_ended() {
            return Ok(());
        }
        match pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The end of what it said on standard error, as one line for people.
    pub fn stderr(&self) -> String {
        let text = self.stderr.as_ref().map(Words::text).unwrap_or_default();
        text.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join("; ")
    }
}

/// An exit status in words.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown status".to_owned(),
    }
}

/// A child that is killed and waited for when it is dropped.
#[derive(Debug)]
struct KilledChild(std::process::Child);

impl KilledChild {
    fn pid(&self) -> io::Result<Pid> {
        i32::try_from(self.0.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("a process without a number"))
    }
}

impl Drop for KilledChild {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Err(error) = self.0.kill() {
            tracing::error!("unable to kill process {}: {error}", self.0.id());
            return;
        }
        // Not yet waited for, so the number is still this child's.
        let waited = self.pid().and_then(|pid| {
            let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
            wait_readable(&pidfd, KILL_TIMEOUT)
        });
        match waited {
            Ok(true) => {
                if let Err(error) = self.0.wait() {
                    tracing::error!("unable to wait for process {}: {error}", self.0.id());
                }
            }
            Ok(false) => tracing::error!("process {} does not end though killed", self.0.id()),
            Err(error) => tracing::error!("unable to wait for process {}: {error}", self.0.id()),
        }
    }
}

fn wait_readable(fd: &OwnedFd, timeout: Duration) -> io::Result<bool> {
    let until = Instant::now() + timeout;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Forks and executes. Runs on the thread that forks.
fn fork(spec: Spec) -> io::Result<KilledChild> {
    let parent = std::process::id();
    let has_parent = move || {
        #[expect(unsafe_code, reason = "a system call between fork and exec")]
        // SAFETY: it takes nothing and cannot fail.
        let now = unsafe { libc::getppid() };
        u32::try_from(now).ok() == Some(parent)
    };
    fork_with(spec, Box::new(|| Ok(())), has_parent)
}

/// The same into a new process namespace.
fn fork_enclosed(spec: Spec, prepare: Preparation) -> io::Result<KilledChild> {
    use nix::sched::{CloneFlags, setns, unshare};
    let own = File::open("/proc/thread-self/ns/pid")?;
    let agent = rustix::process::getpid();
    let agent = pidfd_open(agent, PidfdFlags::empty())?;
    let has_parent = move || {
        // In its namespace it has no parent that it could name.
        let mut fds = [PollFd::new(&agent, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
    };
    unshare(CloneFlags::CLONE_NEWPID)?;
    let child = fork_with(spec, prepare, has_parent);
    // The next child is an ordinary one again.
    setns(own, CloneFlags::CLONE_NEWPID)?;
    child
}

fn fork_with(
    spec: Spec,
    mut prepare: Preparation,
    has_parent: impl Fn() -> bool + Send + Sync + 'static,
) -> io::Result<KilledChild> {
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.arguments)
        .current_dir(&spec.directory)
        .stdin(Stdio::null())
        .stdout(spec.stdout.map_or_else(Stdio::null, Stdio::from))
        .stderr(Stdio::piped())
        // Ctrl-C at a terminal is for the agent, which then ends its machines.
        .process_group(0);
    let inherited: Vec<RawFd> = spec.inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let credentials = spec.credentials;
    let prepare = move || {
        let _ = be_the_kernels_choice();
        prepare()?;
        restrict(&inherited, credentials.as_ref())?;
        // The parent may have ended before that: then nobody would tell.
        if has_parent() {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::ESRCH))
        }
    };
    #[expect(unsafe_code, reason = "pre_exec is the only way between fork and exec")]
    // SAFETY: these make nothing but system calls that are safe after a
    // fork of a process with threads: they neither allocate nor take a lock.
    unsafe {
        command.pre_exec(prepare);
    }
    let child = command.spawn().map(KilledChild)?;
    // The child has its own copies.
    drop(spec.inherited);
    Ok(child)
}

/// Asks the kernel to end this process, and what it starts, before the agent. No right
/// is needed for that, but where there is no such file there is nothing to ask.
fn be_the_kernels_choice() -> rustix::io::Result<()> {
    let (path, mode) = (c"/proc/self/oom_score_adj", rustix::fs::Mode::empty());
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, mode)?;
    rustix::io::write(&file, OOM_SCORE_ADJ).map(drop)
}

/// Gives up rights, between fork and exec. Only system calls here.
fn restrict(inherited: &[RawFd], credentials: Option<&Credentials>) -> io::Result<()> {
    let check = |result: libc::c_int| {
        if result == -1 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    };
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    #[expect(unsafe_code, reason = "system calls between fork and exec")]
    // SAFETY: all are plain system calls; the pointers are to live values of the
    // right type, and the descriptors belong to this process.
    unsafe {
        for &fd in inherited {
            check(libc::fcntl(fd, libc::F_SETFD, 0))?;
        }
        libc::umask(0o077);
        // A core file would hold the guest's memory.
        check(libc::setrlimit(libc::RLIMIT_CORE, &raw const none))?;
        if let Some(credentials) = credentials {
            check(libc::setgroups(
                credentials.groups.len(),
                credentials.groups.as_ptr(),
            ))?;
            check(libc::setgid(credentials.gid))?;
            check(libc::setuid(credentials.uid))?;
        }
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        // After the change of user, which clears it.
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
    }
    Ok(())
}

/// Whether a program is there to be started: a path to a file, or a name that is
/// in one of PATH's folders.
pub fn is_installed(program: &std::ffi::OsStr) -> bool {
    let executable = |path: &std::path::Path| {
        CString::new(path.as_os_str().as_encoded_bytes())
            .is_ok_and(|path| rustix::fs::access(&path, rustix::fs::Access::EXEC_OK).is_ok())
            && path.is_file()
    };
    if program.as_encoded_bytes().contains(&b'/') {
        return executable(std::path::Path::new(program));
    }
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| executable(&folder.join(program)))
    })
}
