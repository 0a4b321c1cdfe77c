//! A container's console: what it prints, its end kept, and shown to whoever connects to a socket.
//!
//! A thread reads it, so that no container waits for a busy agent. Who looks gets the end of what
//! was printed and then what follows; who does not keep up loses some of it. Who types is told that
//! a container reads nothing.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::machine::LAST_WORDS;

/// How much of the end is kept.
const TAIL: usize = 64 << 10;
/// For how long nobody is let in when that failed: the agent has no file handle left, perhaps.
const DEAF: Duration = Duration::from_millis(200);
/// How many may look at once.
const MAX_VIEWERS: usize = 8;
/// What somebody who types is told, once.
const NO_INPUT: &[u8] = b"\r\n[this console shows what the container prints and takes no input; \
    `bbot agent status` names its process, and nsenter leads into it]\r\n";

/// A console. Dropping it ends its thread and all connections.
#[derive(Debug)]
pub(super) struct Console {
    tail: Arc<Mutex<Vec<u8>>>,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Console {
    /// Reads `output` and listens on a new socket at `socket`.
    ///
    /// # Errors
    ///
    /// When the socket or the thread cannot be made.
    pub(super) fn start(output: OwnedFd, socket: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = UnixStream::pair()?;
        let tail = Arc::new(Mutex::new(Vec::new()));
        let mut showing = Showing {
            output: Some(std::fs::File::from(output)),
            listener,
            stopped,
            deaf_until: None,
            viewers: Vec::new(),
            tail: Arc::clone(&tail),
        };
        let thread = std::thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || {
                if let Err(error) = showing.run() {
                    tracing::error!("a container's console failed: {error}");
                }
            })?;
        Ok(Self {
            tail,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The end of what was printed, for people.
    pub(super) fn last_words(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let start = tail.len().saturating_sub(LAST_WORDS);
        // A terminal's control sequences and what is cut off at the front do no harm as text.
        bbot_manifest::log_text(&tail[start..])
    }

    /// The last lines, as one line for people.
    pub(super) fn last_lines(&self, count: usize) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let text = bbot_manifest::log_text(&tail);
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        lines[lines.len().saturating_sub(count)..].join("; ")
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a container's console panicked");
        }
    }
}

struct Showing {
    /// None: the container has ended.
    output: Option<std::fs::File>,
    listener: UnixListener,
    deaf_until: Option<Instant>,
    stopped: UnixStream,
    viewers: Vec<Viewer>,
    tail: Arc<Mutex<Vec<u8>>>,
}

impl Showing {
    fn run(&mut self) -> io::Result<()> {
        let mut chunk = [0; 4096];
        loop {
            let deaf = self
                .deaf_until
                .and_then(|until| until.checked_duration_since(Instant::now()));
            let callers = match deaf {
                Some(_) => PollFlags::empty(),
                None => PollFlags::IN,
            };
            let timeout = deaf.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = vec![
                PollFd::new(&self.stopped, PollFlags::IN),
                PollFd::new(&self.listener, callers),
            ];
            fds.extend(
                self.viewers
                    .iter()
                    .map(|viewer| PollFd::new(&viewer.stream, PollFlags::IN)),
            );
            if let Some(output) = &self.output {
                fds.push(PollFd::new(output, PollFlags::IN));
            }
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            let viewers = self.viewers.len();
            if ready[0] {
                return Ok(());
            }
            if ready.get(2 + viewers) == Some(&true) {
                self.read(&mut chunk);
            }
            let mut at = 1;
            self.viewers.retain_mut(|viewer| {
                at += 1;
                !ready[at] || viewer.listens()
            });
            if ready[1] {
                self.accept();
            }
        }
    }

    fn read(&mut self, chunk: &mut [u8]) {
        let Some(output) = &mut self.output else {
            return;
        };
        match output.read(chunk) {
            Ok(length @ 1..) => {
                let new = &chunk[..length];
                let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
                tail.extend_from_slice(new);
                let excess = tail.len().saturating_sub(TAIL);
                tail.drain(..excess);
                drop(tail);
                for viewer in &mut self.viewers {
                    // What does not fit is lost for this one; one that has gone is noticed above.
                    let _ = viewer.stream.write(new);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => self.output = None,
        }
    }

    fn accept(&mut self) {
        let mut viewer = match self.listener.accept() {
            Ok((viewer, _)) => viewer,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // Who waits is still there, and would be noticed again at once.
            Err(error) => {
                tracing::debug!("nobody is let in to a container's console: {error}");
                self.deaf_until = Some(Instant::now() + DEAF);
                return;
            }
        };
        if self.viewers.len() >= MAX_VIEWERS || viewer.set_nonblocking(true).is_err() {
            return;
        }
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = viewer.write(&tail);
        drop(tail);
        self.viewers.push(Viewer {
            stream: viewer,
            told: false,
        });
    }
}

/// Somebody who looks.
struct Viewer {
    stream: UnixStream,
    /// That nothing can be typed.
    told: bool,
}

impl Viewer {
    /// Whether somebody is still there. What is typed is dropped.
    fn listens(&mut self) -> bool {
        let mut typed = [0; 256];
        match self.stream.read(&mut typed) {
            Ok(0) => false,
            Ok(_) => {
                if !self.told {
                    self.told = true;
                    let _ = self.stream.write(NO_INPUT);
                }
                true
            }
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str = "BBOT_TEST_WITHOUT_HANDLES";

    /// In a process of its own, which it takes all handles from.
    #[test]
    fn without_file_handles_it_waits_and_does_not_spin() {
        if std::env::var_os(ROLE).is_none() {
            let name = "nspawn::console::tests::without_file_handles_it_waits_and_does_not_spin";
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name])
                .env(ROLE, "1")
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let (output, mut input) = io::pipe().unwrap();
        let _console = Console::start(output.into(), &path).unwrap();
        input.write_all(b"before\n").unwrap();
        let limit = rustix::process::Resource::Nofile;
        let before = rustix::process::getrlimit(limit);
        let mut few = before;
        few.current = Some(64);
        rustix::process::setrlimit(limit, few).unwrap();
        let mut taken: Vec<_> = std::iter::from_fn(|| input.try_clone().ok()).collect();
        taken.pop();
        let mut viewer = UnixStream::connect(&path).unwrap();
        let spent = || {
            let clock = rustix::time::ClockId::ProcessCPUTime;
            Duration::try_from(rustix::time::clock_gettime(clock)).unwrap()
        };
        let begin = spent();
        std::thread::sleep(Duration::from_millis(600));
        let spent = spent() - begin;
        assert!(spent < Duration::from_millis(100), "{spent:?} were spent");
        // Who has waited is let in once there are some again.
        drop(taken);
        rustix::process::setrlimit(limit, before).unwrap();
        let mut got = [0; 7];
        viewer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"before\n");
    }

    #[test]
    fn who_looks_sees_the_end_and_what_follows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let (output, mut input) = io::pipe().unwrap();
        let console = Console::start(output.into(), &path).unwrap();
        let mut first = UnixStream::connect(&path).unwrap();
        let read = |stream: &mut UnixStream, text: &str| {
            let mut got = vec![0; text.len()];
            stream.read_exact(&mut got).unwrap();
            assert_eq!(got, text.as_bytes());
        };
        input.write_all(b"one\n\x1b[1mtwo\x1b[0m\n").unwrap();
        read(&mut first, "one\n\x1b[1mtwo\x1b[0m\n");
        assert_eq!(console.last_lines(1), "two");
        assert_eq!(console.last_lines(9), "one; two");
        // Who types is told, once, that it is of no use.
        first.write_all(b"typed").unwrap();
        read(&mut first, std::str::from_utf8(NO_INPUT).unwrap());
        first.write_all(b"more").unwrap();
        let mut second = UnixStream::connect(&path).unwrap();
        read(&mut second, "one\n");
        input.write_all(b"three\n").unwrap();
        read(&mut first, "three\n");
        drop(first);
        // A flood is cut at its front.
        for _ in 0..40 {
            input.write_all(&[b'x'; 4096]).unwrap();
        }
        drop(input);
        drop(second);
        drop(console);
        assert!(UnixStream::connect(&path).is_err());
    }
}
