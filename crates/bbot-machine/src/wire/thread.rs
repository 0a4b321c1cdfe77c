//! The thread that serves one run's wire, over a socket or a TAP device.
//!
//! A thread, not a task: an upload is synced to disk before it is acknowledged,
//! and that must not hold up the agent's loop. It ends when the
//! [`WireThread`] is stopped or dropped.
//!
//! Nothing grows with what a guest sends. Frames are read only when the frame
//! before them is done with and all answers are sent; the queue of events is
//! bounded, and while it is full nothing is read: the socket fills up, QEMU stops
//! taking frames from the guest, and only the guest itself waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use tokio::sync::mpsc;

use super::{Counters, Wire, ethernet};

/// Events that may wait for the agent.
const MAX_EVENTS: usize = 256;
/// Frames that are still taken after the machine has ended: more do not fit into
/// the send buffer of QEMU's end (`net.core.wmem_default`, some hundred of them).
const MAX_LEFTOVERS: usize = 4096;

/// The two ends of a wire: ours and the guest's. Each frame is one datagram.
///
/// # Errors
///
/// Those of `socketpair(2)`.
pub fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Our end of a wire or of another card: where frames come from and go to.
#[derive(Debug)]
pub enum End {
    /// One of a [`socket_pair`], non-blocking or not.
    Socket(OwnedFd),
    /// A TAP device, non-blocking, without `IFF_VNET_HDR` and with `IFF_NO_PI`:
    /// what is read and written is the bare frame.
    Tap(OwnedFd),
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Socket(fd) | Self::Tap(fd) => fd.as_fd(),
        }
    }
}

impl End {
    /// Takes one frame. None: there is none.
    ///
    /// # Errors
    ///
    /// When there never will be one again.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let received = match self {
            Self::Socket(fd) => {
                rustix::net::recv(fd, buffer, RecvFlags::DONTWAIT).map(|(length, _)| length)
            }
            Self::Tap(fd) => rustix::io::read(fd, buffer),
        };
        match received {
            Ok(length) => Ok(Some(length)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNRESET) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives one frame. False: there is no room yet. A frame that nobody takes any
    /// more is as good as sent: its reader has ended.
    ///
    /// # Errors
    ///
    /// When none can be given ever again.
    pub fn send(&self, frame: &[u8]) -> io::Result<bool> {
        let sent = match self {
            Self::Socket(fd) => {
                rustix::net::send(fd, frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
            }
            Self::Tap(fd) => rustix::io::write(fd, frame),
        };
        match (sent, self) {
            (Ok(_), _)
            | (Err(Errno::CONNREFUSED | Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN), _)
            // The guest has taken its card down, or the device cannot make sense of the frame.
            | (Err(Errno::IO | Errno::INVAL), Self::Tap(_)) => Ok(true),
            (Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR), _) => Ok(false),
            (Err(error), _) => Err(error.into()),
        }
    }
}

/// A running wire. Dropping it ends the thread.
#[derive(Debug)]
pub struct WireThread {
    stop: Option<UnixStream>,
    events: mpsc::Receiver<bbot_tftp::Event>,
    counters: Arc<Mutex<Counters>>,
    thread: Option<JoinHandle<()>>,
}

impl WireThread {
    /// Serves `wire` over our end of a [`socket_pair`].
    ///
    /// # Errors
    ///
    /// When the thread or its means cannot be made.
    pub fn start(wire: Wire, socket: OwnedFd) -> io::Result<Self> {
        Self::start_over(wire, End::Socket(socket))
    }

    /// Serves `wire` over our end of it.
    ///
    /// # Errors
    ///
    /// When the thread or its means cannot be made.
    pub fn start_over(wire: Wire, end: End) -> io::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let (sender, events) = mpsc::channel(MAX_EVENTS);
        let counters = Arc::new(Mutex::new(Counters::default()));
        let mut serving = Serving {
            wire,
            end,
            stopped,
            events: sender,
            counters: Arc::clone(&counters),
        };
        let thread = std::thread::Builder::new()
            .name("wire".to_owned())
            .spawn(move || {
                if let Err(error) = serving.run() {
                    tracing::error!("a machine's wire failed: {error}");
                }
            })?;
        Ok(Self {
            stop: Some(stop),
            events,
            counters,
            thread: Some(thread),
        })
    }

    /// The next event. None: the thread has ended. Cancel safe.
    pub async fn next_event(&mut self) -> Option<bbot_tftp::Event> {
        self.events.recv().await
    }

    /// An event that is there already.
    pub fn try_event(&mut self) -> Option<bbot_tftp::Event> {
        self.events.try_recv().ok()
    }

    /// Lets the thread end once it has taken what the guest has sent already.
    /// [`WireThread::next_event`] gives None when it has.
    pub fn finish(&mut self) {
        self.stop = None;
    }

    /// What happened on the wire so far.
    pub fn counters(&self) -> Counters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for WireThread {
    fn drop(&mut self) {
        self.stop = None;
        // Whoever waits for room in the queue must wake up.
        self.events.close();
        while self.events.try_recv().is_ok() {}
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a machine's wire panicked");
        }
    }
}

struct Serving {
    wire: Wire,
    end: End,
    stopped: UnixStream,
    events: mpsc::Sender<bbot_tftp::Event>,
    counters: Arc<Mutex<Counters>>,
}

/// What the thread was woken by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    Ready,
    Deadline,
    Stopped,
}

impl Serving {
    fn run(&mut self) -> io::Result<()> {
        // One byte more than the largest frame shows that one is larger.
        let mut buffer = [0; ethernet::HEADER + ethernet::MTU + 1];
        loop {
            if !self.flush()? {
                break;
            }
            match wait(
                self.end.as_fd(),
                PollFlags::IN,
                &self.stopped,
                self.wire.next_deadline(),
            )? {
                Woken::Ready => {
                    if let Some(length) = self.end.receive(&mut buffer)? {
                        self.wire.handle(&buffer[..length], Instant::now());
                    }
                    let now = Instant::now();
                    if self.wire.next_deadline().is_some_and(|at| at <= now) {
                        self.wire.tick(now);
                    }
                }
                Woken::Deadline => self.wire.tick(Instant::now()),
                Woken::Stopped => break,
            }
        }
        self.take_leftovers(&mut buffer)
    }

    /// Sends all answers and tells all events. False: it is time to stop.
    fn flush(&mut self) -> io::Result<bool> {
        while let Some(frame) = self.wire.poll_frame() {
            while !self.end.send(&frame)? {
                match wait(self.end.as_fd(), PollFlags::OUT, &self.stopped, None)? {
                    Woken::Ready | Woken::Deadline => {}
                    Woken::Stopped => return Ok(false),
                }
            }
        }
        let told = self.tell();
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = self.wire.counters();
        Ok(told)
    }

    /// Tells the agent what happened. False: it does not listen any more.
    fn tell(&mut self) -> bool {
        while let Some(event) = self.wire.poll_event() {
            if self.events.blocking_send(event).is_err() {
                return false;
            }
        }
        true
    }

    /// The machine has ended or is being ended: what its guest had sent by then
    /// counts (the last datagram of an upload), but nobody hears an answer.
    fn take_leftovers(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..MAX_LEFTOVERS {
            if self.events.is_closed() || !self.tell() {
                break;
            }
            let Some(length) = self.end.receive(buffer)? else {
                break;
            };
            self.wire.handle(&buffer[..length], Instant::now());
            while self.wire.poll_frame().is_some() {}
        }
        self.tell();
        Ok(())
    }
}

/// Waits for the socket, for the deadline or for the end.
fn wait(
    socket: BorrowedFd<'_>,
    flags: PollFlags,
    stopped: &UnixStream,
    deadline: Option<Instant>,
) -> io::Result<Woken> {
    loop {
        let timeout = deadline
            .map(|at| at.saturating_duration_since(Instant::now()))
            .map(timespec);
        let mut fds = [
            PollFd::from_borrowed_fd(socket, flags),
            PollFd::new(stopped, PollFlags::IN),
        ];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(Woken::Deadline),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        return Ok(if fds[1].revents().is_empty() {
            Woken::Ready
        } else {
            Woken::Stopped
        });
    }
}

fn timespec(duration: Duration) -> Timespec {
    // Whoever waits longer than a day for a deadline wakes up early.
    Timespec::try_from(duration.min(Duration::from_secs(86_400))).unwrap_or_default()
}
