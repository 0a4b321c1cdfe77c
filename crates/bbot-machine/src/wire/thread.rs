//! The thread that serves one run's wire, over a socket or a TAP device.
//!
//! A thread, not a task: an upload is synced to disk before it is acknowledged,
//! and that must not hold up the agent's loop. It ends when the
//! [`WireThread`] is stopped or dropped.
//!
//! Nothing grows with what a guest sends. Frames are read only when the frame
//! before them is done with and all answers are sent; the queue of events is
//! bounded, and while it is full nothing is read: the socket fills up, QEMU stops
//! taking frames from the guest, and only the guest itself waits. So does a guest
//! that sends faster than [`flood::Bound`] lets it.

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

use super::flood::{self, Bound, Bucket};
use super::{Counters, Wire, ethernet};

/// Events that may wait for the agent.
const MAX_EVENTS: usize = 256;
/// Frames that are still taken after the machine has ended: more do not fit into
/// the send buffer of QEMU's end (`net.core.wmem_default`, some hundred of them).
const MAX_LEFTOVERS: usize = 4096;
/// The thread's stack: parsers and state machines, no recursion.
const STACK: usize = 512 * 1024;

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
            // Short of memory the host is only for a while.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNRESET | Errno::NOMEM | Errno::NOBUFS) => {
                Ok(None)
            }
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
            // Lost, as frames may be: it is sent again.
            | (Err(Errno::NOMEM), _)
            | (Err(Errno::CONNREFUSED | Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN), _)
            // The guest has taken its card down, or the device cannot make sense of the frame.
            | (Err(Errno::IO | Errno::INVAL), Self::Tap(_)) => Ok(true),
            (Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR), _) => Ok(false),
            (Err(error), _) => Err(error.into()),
        }
    }
}

/// What happens on a wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WireEvent {
    /// The guest asked for a file, fetched or uploaded one, or failed to.
    Tftp(bbot_tftp::Event),
    /// The guest sends faster than its [`Bound`], and is slowed down. Told once.
    Flooding,
    /// A frame of the guest could not be read. Told once, of the first;
    /// [`Counters::malformed`] has their number.
    Malformed,
}

/// What the thread serves: the frames of a wire, or the datagrams of a socket.
pub trait Service: Send + 'static {
    /// What is waited for.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Takes one frame or datagram. Gives what it cost, in frames. None: there
    /// was none.
    ///
    /// # Errors
    ///
    /// When there never will be one again.
    fn take(&mut self, now: Instant) -> io::Result<Option<u32>>;

    /// Sends the next answer.
    ///
    /// # Errors
    ///
    /// When none can be sent ever again.
    fn give(&mut self) -> io::Result<Given>;

    /// Drops the answers that wait: nobody will hear them.
    fn forget(&mut self);

    /// Lets time-outs happen.
    fn tick(&mut self, now: Instant);

    /// When [`Service::tick`] is to be called next.
    fn next_deadline(&self) -> Option<Instant>;

    /// The next thing that happened.
    fn poll_event(&mut self) -> Option<bbot_tftp::Event>;

    /// What happened so far.
    fn counters(&self) -> Counters;
}

/// What became of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// It is sent.
    Sent,
    /// There was none.
    Nothing,
    /// There is no room for it yet; it waits.
    NoRoom,
}

/// A wire at its end.
struct Frames {
    wire: Wire,
    end: End,
    /// The answer that there was no room for.
    waiting: Option<Vec<u8>>,
    /// One byte more than the largest frame shows that one is larger.
    buffer: [u8; ethernet::HEADER + ethernet::MTU + 1],
}

impl Service for Frames {
    fn fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    fn take(&mut self, now: Instant) -> io::Result<Option<u32>> {
        let Some(length) = self.end.receive(&mut self.buffer)? else {
            return Ok(None);
        };
        let requests = self.wire.counters().requests;
        self.wire.handle(&self.buffer[..length], now);
        Ok(Some(if self.wire.counters().requests == requests {
            1
        } else {
            flood::REQUEST_COST
        }))
    }

    fn give(&mut self) -> io::Result<Given> {
        let Some(frame) = self.waiting.take().or_else(|| self.wire.poll_frame()) else {
            return Ok(Given::Nothing);
        };
        if self.end.send(&frame)? {
            return Ok(Given::Sent);
        }
        self.waiting = Some(frame);
        Ok(Given::NoRoom)
    }

    fn forget(&mut self) {
        self.waiting = None;
        while self.wire.poll_frame().is_some() {}
    }

    fn tick(&mut self, now: Instant) {
        self.wire.tick(now);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.wire.next_deadline()
    }

    fn poll_event(&mut self) -> Option<bbot_tftp::Event> {
        self.wire.poll_event()
    }

    fn counters(&self) -> Counters {
        self.wire.counters()
    }
}

/// A running wire. Dropping it ends the thread.
#[derive(Debug)]
pub struct WireThread {
    stop: Option<UnixStream>,
    events: mpsc::Receiver<WireEvent>,
    counters: Arc<Mutex<Counters>>,
    thread: Option<JoinHandle<io::Result<()>>>,
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
        Self::start_bounded(wire, end, Bound::default())
    }

    /// The same with a bound of the caller's choice.
    ///
    /// # Errors
    ///
    /// When the thread or its means cannot be made.
    pub fn start_bounded(wire: Wire, end: End, bound: Bound) -> io::Result<Self> {
        let frames = Frames {
            wire,
            end,
            waiting: None,
            buffer: [0; ethernet::HEADER + ethernet::MTU + 1],
        };
        Self::serve(frames, bound)
    }

    /// Serves anything.
    ///
    /// # Errors
    ///
    /// When the thread or its means cannot be made.
    pub fn serve(service: impl Service, bound: Bound) -> io::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let (sender, events) = mpsc::channel(MAX_EVENTS);
        let counters = Arc::new(Mutex::new(Counters::default()));
        let mut serving = Serving {
            service,
            bucket: Bucket::new(bound, Instant::now()),
            told_flood: false,
            told_malformed: false,
            stopped,
            events: sender,
            counters: Arc::clone(&counters),
        };
        // Its lines in the log belong to the run.
        let span = tracing::Span::current();
        let thread = std::thread::Builder::new()
            .name("wire".to_owned())
            .stack_size(STACK)
            .spawn(move || span.in_scope(|| serving.run()))?;
        Ok(Self {
            stop: Some(stop),
            events,
            counters,
            thread: Some(thread),
        })
    }

    /// The next thing that happens. None: the thread has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<WireEvent> {
        self.events.recv().await
    }

    /// The next event of the TFTP server, for who is not interested in others.
    /// None: the thread has ended. Cancel safe.
    pub async fn next_event(&mut self) -> Option<bbot_tftp::Event> {
        loop {
            if let WireEvent::Tftp(event) = self.next().await? {
                return Some(event);
            }
        }
    }

    /// An event of the TFTP server that is there already.
    pub fn try_event(&mut self) -> Option<bbot_tftp::Event> {
        loop {
            if let WireEvent::Tftp(event) = self.events.try_recv().ok()? {
                return Some(event);
            }
        }
    }

    /// Lets the thread end once it has taken what the guest has sent already.
    /// [`WireThread::next`] gives None when it has.
    pub fn finish(&mut self) {
        self.stop = None;
    }

    /// Why the thread has ended, though nobody had stopped it: for who got None of
    /// [`WireThread::next`] before its time.
    pub fn failure(&mut self) -> String {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => error.to_string(),
            Some(Err(panic)) => format!("a fault of this program: {}", words_of(&*panic)),
            Some(Ok(Ok(()))) | None => "it has ended".to_owned(),
        }
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
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => tracing::error!("a machine's wire failed: {error}"),
            Some(Err(panic)) => {
                tracing::error!("a machine's wire panicked: {}", words_of(&*panic));
            }
            Some(Ok(Ok(()))) | None => {}
        }
    }
}

/// What a panic said.
fn words_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without words")
}

struct Serving<S> {
    service: S,
    bucket: Bucket,
    told_flood: bool,
    told_malformed: bool,
    stopped: UnixStream,
    events: mpsc::Sender<WireEvent>,
    counters: Arc<Mutex<Counters>>,
}

/// What the thread was woken by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    Ready,
    Deadline,
    Stopped,
}

impl<S: Service> Serving<S> {
    fn run(&mut self) -> io::Result<()> {
        loop {
            if !self.flush()? {
                break;
            }
            let deadline = self.service.next_deadline();
            let woken = wait(
                Some((self.service.fd(), PollFlags::IN)),
                &self.stopped,
                deadline,
            )?;
            match woken {
                Woken::Ready => {
                    let cost = self.service.take(Instant::now())?;
                    let now = Instant::now();
                    if self.service.next_deadline().is_some_and(|at| at <= now) {
                        self.service.tick(now);
                    }
                    if let Some(cost) = cost
                        && let Some(until) = self.bucket.spend(cost, now)
                        && !self.pause(until)?
                    {
                        break;
                    }
                }
                Woken::Deadline => self.service.tick(Instant::now()),
                Woken::Stopped => break,
            }
        }
        self.take_leftovers()
    }

    /// Reads nothing until then; answers and time-outs go on. False: it is time
    /// to stop.
    fn pause(&mut self, until: Instant) -> io::Result<bool> {
        if !self.told_flood {
            self.told_flood = true;
            if self.events.blocking_send(WireEvent::Flooding).is_err() {
                return Ok(false);
            }
        }
        loop {
            if !self.flush()? {
                return Ok(false);
            }
            let deadline = self.service.next_deadline();
            let next = deadline.map_or(until, |at| at.min(until));
            match wait(None, &self.stopped, Some(next))? {
                Woken::Stopped => return Ok(false),
                Woken::Ready | Woken::Deadline => {}
            }
            let now = Instant::now();
            if deadline.is_some_and(|at| at <= now) {
                self.service.tick(now);
            }
            if now >= until {
                return Ok(true);
            }
        }
    }

    /// Sends all answers and tells all events. False: it is time to stop.
    fn flush(&mut self) -> io::Result<bool> {
        loop {
            match self.service.give()? {
                Given::Sent => {}
                Given::Nothing => break,
                Given::NoRoom => {
                    let room = Some((self.service.fd(), PollFlags::OUT));
                    if wait(room, &self.stopped, None)? == Woken::Stopped {
                        return Ok(false);
                    }
                }
            }
        }
        let told = self.tell();
        let counters = self.service.counters();
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters;
        if !self.told_malformed && counters.malformed > 0 {
            self.told_malformed = true;
            return Ok(told && self.events.blocking_send(WireEvent::Malformed).is_ok());
        }
        Ok(told)
    }

    /// Tells the agent what happened. False: it does not listen any more.
    fn tell(&mut self) -> bool {
        while let Some(event) = self.service.poll_event() {
            if self.events.blocking_send(WireEvent::Tftp(event)).is_err() {
                return false;
            }
        }
        true
    }

    /// The machine has ended or is being ended: what its guest had sent by then
    /// counts (the last datagram of an upload), but nobody hears an answer.
    fn take_leftovers(&mut self) -> io::Result<()> {
        for _ in 0..MAX_LEFTOVERS {
            if self.events.is_closed() || !self.tell() {
                break;
            }
            if self.service.take(Instant::now())?.is_none() {
                break;
            }
            self.service.forget();
        }
        self.tell();
        Ok(())
    }
}

/// Waits for the socket, if any, for the deadline or for the end.
fn wait(
    socket: Option<(BorrowedFd<'_>, PollFlags)>,
    stopped: &UnixStream,
    deadline: Option<Instant>,
) -> io::Result<Woken> {
    loop {
        let timeout = deadline
            .map(|at| at.saturating_duration_since(Instant::now()))
            .map(timespec);
        let stop = PollFd::new(stopped, PollFlags::IN);
        let mut fds = match socket {
            Some((fd, flags)) => [stop, PollFd::from_borrowed_fd(fd, flags)],
            // Twice the same: poll has no empty place.
            None => [stop.clone(), stop],
        };
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(Woken::Deadline),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        return Ok(if fds[0].revents().is_empty() {
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
