//! The session of a running task with a controller of ours (docs/protocol.md, sections 5
//! and 6): its lease is renewed, its log goes to the controller while the build runs, and
//! the controller can end it.
//!
//! ```text
//!   task taken --> lease renewed at once, then as often as the controller says
//!                  segments --> disk --> posted in order, one at a time
//!                      410 to either --> over: cancelled()
//!   result in the spool: both go on until the result is taken
//! ```
//!
//! No trouble with the controller ends a build: the lease and the log are tried again for
//! as long as the session lasts, and a result that is late is taken all the same.

mod log;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::controller::{Acknowledged, Channel, Link, Renewed, Url, parse_url};
use crate::delivery::plan::pause_after;
use crate::segments;
use log::SegmentLog;

/// How often a lease is renewed when the controller does not say.
const RENEW: Duration = Duration::from_secs(15);

/// The longest pause between two tries to post a segment.
const LONGEST: Duration = Duration::from_secs(30);

/// For how long what an earlier agent left of a log is sent.
const RECOVER: Duration = Duration::from_secs(60 * 60);

/// The session's URL, if the controller has said one that may be used: its own.
pub fn url_of(text: Option<&str>, controller: &Url) -> Option<Url> {
    let text = text?;
    match parse_url(text) {
        Ok(url) if url.origin() == controller.origin() && url.query().is_none() => Some(url),
        _ => {
            tracing::warn!(
                "{controller} names a session URL that is not its own, which is left alone: {:.200}",
                text.escape_debug().to_string()
            );
            None
        }
    }
}

/// What makes a session.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Its URL (see [`url_of`]), and what its requests are signed with.
    pub channel: Channel,
    /// When the lease is to be renewed after the first time.
    pub renew: Option<Duration>,
    /// What diagnostics call it: package, version and machine.
    pub name: String,
}

/// A running task's session. Clones are the same session; when the last is dropped the
/// lease is not renewed any more, and what is left of the log is removed.
#[derive(Debug, Clone)]
pub struct Session(Option<Arc<Guard>>);

#[derive(Debug)]
struct Guard {
    inner: Arc<Inner>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.inner.log().close();
        self.inner.tell();
    }
}

#[derive(Debug)]
struct Inner {
    name: String,
    log: Mutex<SegmentLog>,
    /// A segment has come.
    wake: Notify,
    /// How many segments wait, and their size.
    waiting: watch::Sender<(usize, u64)>,
    over: CancellationToken,
    why: OnceLock<String>,
}

impl Inner {
    fn new(name: String, log: SegmentLog) -> Self {
        let waiting = watch::Sender::new((log.len(), log.bytes()));
        Self {
            name,
            log: Mutex::new(log),
            wake: Notify::new(),
            waiting,
            over: CancellationToken::new(),
            why: OnceLock::new(),
        }
    }

    fn log(&self) -> MutexGuard<'_, SegmentLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        let (count, bytes) = {
            let log = self.log();
            (log.len(), log.bytes())
        };
        self.waiting.send_replace((count, bytes));
    }

    /// The controller does not want anything of this session any more.
    fn end(&self, why: &str) {
        if self.why.set(why.to_owned()).is_ok() {
            tracing::info!("{}: the session is over: {why}", self.name);
        }
        self.log().close();
        self.tell();
        self.over.cancel();
    }

    /// A segment has been put in the log, or could not be.
    fn came(&self, put: std::io::Result<()>) {
        let (dropped, flush) = {
            let mut log = self.log();
            let flush = log.wants_flush(Instant::now());
            (log.take_dropped(), flush.then(|| log.dir().to_owned()))
        };
        if let Err(e) = put {
            tracing::warn!("{}: a piece of its log is lost: {e}", self.name);
        }
        if dropped > 0 {
            tracing::warn!(
                "{}: its controller does not take the log in time: {dropped} bytes of the \
                 middle are dropped",
                self.name
            );
        }
        if let Some(dir) = flush {
            // Nobody waits for it: see the module `log`.
            tokio::task::spawn_blocking(move || {
                let _ = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
            });
        }
        self.tell();
        self.wake.notify_one();
    }
}

impl Session {
    /// Of a controller that knows nothing of sessions: nothing is sent, and it never ends.
    pub fn none() -> Self {
        Self(None)
    }

    /// Renews the lease at once, and from then on; `dir` is where the log waits.
    pub(crate) fn start(terms: Terms, dir: PathBuf, link: Arc<dyn Link>) -> Self {
        let Terms {
            channel,
            renew,
            name,
        } = terms;
        let log = SegmentLog::new(dir, channel.clone(), log::LIMIT);
        let inner = Arc::new(Inner::new(name, log));
        let lease = tokio::spawn(
            renew_lease(
                inner.clone(),
                link.clone(),
                channel.clone(),
                renew.unwrap_or(RENEW),
            )
            .in_current_span(),
        );
        let log = tokio::spawn(post_log(inner.clone(), link, channel).in_current_span());
        let tasks = vec![lease.abort_handle(), log.abort_handle()];
        Self(Some(Arc::new(Guard { inner, tasks })))
    }

    fn inner(&self) -> Option<&Inner> {
        self.0.as_ref().map(|guard| &*guard.inner)
    }

    /// Resolves when the controller says that the session is over: the task was given to
    /// somebody else, or is built. Its result is worth nothing then.
    pub async fn cancelled(&self) {
        match self.inner() {
            Some(inner) => inner.over.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Why the controller has ended the session, if it has.
    pub fn is_over(&self) -> Option<&str> {
        self.inner()?.why.get().map(String::as_str)
    }

    /// Takes a segment that the worker has uploaded: the operation's name on its first
    /// line, then the log. The file is gone then. It waits for nobody.
    pub fn take(&self, path: &Path, bytes: u64) {
        match self.inner() {
            Some(inner) => {
                let put = inner.log().take(path, bytes);
                inner.came(put);
            }
            None => return,
        }
        // Lost, or not wanted any more.
        let _ = std::fs::remove_file(path);
    }

    /// Takes a piece of an operation's log.
    pub fn push_log(&self, operation: &str, bytes: &[u8]) {
        let Some(inner) = self.inner() else { return };
        for piece in bytes.chunks(segments::MOST) {
            let segment = [operation.as_bytes(), b"\n", piece].concat();
            if !operation.contains('\n') && segments::is_segment(&segment) {
                let put = inner.log().push(&segment);
                inner.came(put);
            }
        }
    }

    /// How many segments wait, and their bytes.
    pub fn waiting(&self) -> (usize, u64) {
        self.inner().map_or((0, 0), |inner| *inner.waiting.borrow())
    }

    pub(crate) fn watch(&self) -> Option<Watch> {
        self.0.as_ref().map(|guard| Watch(Arc::downgrade(guard)))
    }

    /// Resolves when no segment waits any more.
    pub async fn drained(&self) {
        if let Some(inner) = self.inner() {
            let mut waiting = inner.waiting.subscribe();
            // The sender lives as long as `inner`.
            let _ = waiting.wait_for(|(count, _)| *count == 0).await;
        }
    }
}

/// Sees what waits of a session without keeping it alive.
#[derive(Debug)]
pub(crate) struct Watch(Weak<Guard>);

impl Watch {
    pub(crate) fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// How many segments wait, and their bytes.
    pub(crate) fn waiting(&self) -> (usize, u64) {
        let guard = self.0.upgrade();
        guard.map_or((0, 0), |guard| *guard.inner.waiting.borrow())
    }
}

/// What an earlier agent has left of a session's log. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Left(Arc<Inner>);

impl Left {
    /// Reads what is there. None: it is of no use, and removed.
    pub(crate) fn open(dir: &Path) -> Option<Self> {
        let log = match SegmentLog::recover(dir) {
            Ok(log) => log,
            Err(e) => {
                tracing::warn!("a log in {} is lost: {e}", dir.display());
                if let Err(e) = std::fs::remove_dir_all(dir) {
                    tracing::warn!("unable to remove {}: {e}", dir.display());
                }
                return None;
            }
        };
        let name = format!("session {}", log.channel().url);
        Some(Self(Arc::new(Inner::new(name, log))))
    }

    /// How many segments wait, and their bytes.
    pub(crate) fn waiting(&self) -> (usize, u64) {
        *self.0.waiting.borrow()
    }

    /// Sends it, for a while; then it is removed.
    pub(crate) async fn send(self, link: Arc<dyn Link>) {
        let inner = self.0;
        let channel = inner.log().channel().clone();
        let mut waiting = inner.waiting.subscribe();
        let count = waiting.borrow().0;
        if count > 0 {
            tracing::info!(
                "sending {count} segment(s) of a log that an earlier agent has left to {}",
                channel.url.origin().ascii_serialization()
            );
        }
        tokio::select! {
            _ = waiting.wait_for(|(count, _)| *count == 0) => {}
            () = post_log(inner.clone(), link, channel) => {}
            () = sleep(RECOVER) => {
                tracing::warn!("{}: giving the rest of its log up", inner.name);
            }
        }
        inner.log().close();
        inner.tell();
    }
}

/// No controller holds a request for longer.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// The first renewal is answered at once, which confirms that the task has arrived. Each other one
/// the controller holds until the next is due, so that the end of the session is told at once.
async fn renew_lease(
    inner: Arc<Inner>,
    link: Arc<dyn Link>,
    channel: Channel,
    mut every: Duration,
) {
    let mut number = 0;
    let mut hold = Duration::ZERO;
    let mut trouble = false;
    loop {
        let sent = Instant::now();
        let within = every.max(Duration::from_secs(1));
        number += 1;
        match link.renew_lease(&channel, number, hold, within).await {
            Renewed::Until(next) => {
                if std::mem::take(&mut trouble) {
                    tracing::info!("{}: its lease is renewed again", inner.name);
                }
                // Whether the controller has held it or not.
                sleep_until(sent + hold).await;
                every = next.unwrap_or(every);
                hold = every.min(LONGEST_HOLD);
            }
            Renewed::Over(why) => return inner.end(&why),
            Renewed::Again(why) => {
                if !std::mem::replace(&mut trouble, true) {
                    tracing::warn!("{}: unable to renew its lease, going on: {why}", inner.name);
                }
                sleep(every / 2).await;
                hold = Duration::ZERO;
            }
        }
    }
}

async fn post_log(inner: Arc<Inner>, link: Arc<dyn Link>, channel: Channel) {
    let mut random = StdRng::from_entropy();
    let mut failures = 0;
    loop {
        if inner.log().is_closed() {
            return;
        }
        let Some(first) = inner.log().first() else {
            inner.wake.notified().await;
            continue;
        };
        let body = match std::fs::read(&first.path) {
            Ok(body) if segments::is_segment(&body) => body,
            read => {
                let why = read.map_or_else(|e| e.to_string(), |_| "it is damaged".to_owned());
                tracing::warn!(
                    "{}: a piece of its log is lost: {}: {why}",
                    inner.name,
                    first.path.display()
                );
                inner.log().lost();
                inner.tell();
                continue;
            }
        };
        let answer = link.post_segment(&channel, first.number, first.skips, body);
        let again = match answer.await {
            Acknowledged::Taken => {
                inner.log().taken(first.number);
                inner.tell();
                failures = 0;
                continue;
            }
            Acknowledged::Over(why) => return inner.end(&why),
            Acknowledged::Refused(why) => {
                tracing::error!(
                    "{}: its controller refuses segment {} of its log, and gets no more of \
                     it before the result: {why}",
                    inner.name,
                    first.number
                );
                inner.log().close();
                inner.tell();
                return;
            }
            Acknowledged::Gap(next) => {
                let moved = inner.log().expect(next);
                inner.tell();
                if moved {
                    continue;
                }
                format!("it still waits for segment {next}")
            }
            Acknowledged::Again(why) => why,
        };
        if failures == 0 {
            tracing::warn!("{}: unable to send its log, going on: {again}", inner.name);
        }
        failures += 1;
        sleep(pause_after(failures, LONGEST, &mut random)).await;
    }
}

#[cfg(test)]
mod tests;
