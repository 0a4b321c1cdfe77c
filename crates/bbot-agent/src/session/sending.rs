//! A session's log on its way from the disk to its controller: posted in order, one segment
//! at a time, until each is acknowledged or refused for good.
//!
//! ```text
//!   running: segments come --> posted --> taken: gone
//!   complete (the result is there, or the session dropped): what is left is posted, and
//!       the folder goes with the last; an agent that ends leaves the rest to the next
//! ```

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::log::{First, SegmentLog};
use super::patience::{Mood, Patience, Try};
use crate::controller::{Acknowledged, Link};
use crate::delivery::plan::pause_after;
use crate::segments;

/// The longest pause between two tries to post a segment.
const LONGEST: Duration = Duration::from_secs(30);

/// The log of a session, or what an earlier agent has left of one. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Log(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    log: Mutex<SegmentLog>,
    link: Mutex<Arc<dyn Link>>,
    /// A segment has come, or none will any more.
    wake: Notify,
    waiting: watch::Sender<Waiting>,
    /// The controller has answered something else since the last try.
    is_heard: AtomicBool,
    /// It does so now.
    hears: Notify,
    over: CancellationToken,
    why: OnceLock<String>,
    task: OnceLock<AbortHandle>,
}

/// What waits.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    segments: usize,
    bytes: u64,
    mood: Mood,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// Sends what is there and what comes, from now on.
    pub(super) fn start(name: String, log: SegmentLog, link: Arc<dyn Link>) -> Self {
        let waiting = Waiting {
            segments: log.len(),
            bytes: log.bytes(),
            mood: Mood::First,
        };
        let log = Self(Arc::new(Inner {
            name,
            log: Mutex::new(log),
            link: Mutex::new(link),
            wake: Notify::new(),
            waiting: watch::Sender::new(waiting),
            is_heard: AtomicBool::new(false),
            hears: Notify::new(),
            over: CancellationToken::new(),
            why: OnceLock::new(),
            task: OnceLock::new(),
        }));
        let task = tokio::spawn(post(log.clone()).in_current_span());
        let _ = log.0.task.set(task.abort_handle());
        log
    }

    /// Sends what an earlier agent has left in this folder. None: it is of no use, and
    /// removed.
    pub(crate) fn recover(dir: &Path, link: Arc<dyn Link>) -> Option<Self> {
        let mut log = match SegmentLog::recover(dir) {
            Ok(log) => log,
            Err(e) => {
                tracing::warn!("a log in {} is lost: {e}", dir.display());
                if let Err(e) = std::fs::remove_dir_all(dir) {
                    tracing::warn!("unable to remove {}: {e}", dir.display());
                }
                return None;
            }
        };
        if log.len() == 0 {
            log.close();
            return None;
        }
        let url = log.channel().url.clone();
        tracing::info!(
            "sending {} segment(s) of a log that an earlier agent has left to {}",
            log.len(),
            url.origin().ascii_serialization()
        );
        log.complete();
        Some(Self::start(format!("session {url}"), log, link))
    }

    pub(super) fn name(&self) -> &str {
        &self.0.name
    }

    fn log(&self) -> MutexGuard<'_, SegmentLog> {
        lock(&self.0.log)
    }

    fn tell(&self) {
        let (segments, bytes) = {
            let log = self.log();
            (log.len(), log.bytes())
        };
        self.0.waiting.send_modify(|waiting| {
            (waiting.segments, waiting.bytes) = (segments, bytes);
        });
    }

    /// Scheme, host and port of where it goes.
    pub(crate) fn origin(&self) -> String {
        self.log().channel().url.origin().ascii_serialization()
    }

    /// How many segments wait, and their bytes.
    pub(crate) fn waiting(&self) -> (usize, u64) {
        let waiting = *self.0.waiting.borrow();
        (waiting.segments, waiting.bytes)
    }

    /// The number of the last segment that came; none when none has.
    pub(crate) fn last(&self) -> Option<u64> {
        self.log().last()
    }

    /// Whether nothing more is sent, now and later.
    pub(crate) fn is_done(&self) -> bool {
        self.log().is_closed()
    }

    /// Resolves when no segment waits any more.
    pub(super) async fn drained(&self) {
        let mut waiting = self.0.waiting.subscribe();
        // The sender lives as long as this.
        let _ = waiting.wait_for(|waiting| waiting.segments == 0).await;
    }

    /// Resolves when the result need not wait for it (any more).
    pub(crate) async fn gone_first(&self) {
        let mut waiting = self.0.waiting.subscribe();
        let is_so = |waiting: &Waiting| waiting.segments == 0 || waiting.mood != Mood::First;
        let _ = waiting.wait_for(is_so).await;
    }

    /// No more segments will come. What is left goes on whatever is said to the lease.
    pub(crate) fn complete(&self) {
        let mut log = self.log();
        log.complete();
        // Nobody need be waited for to see that nothing is left.
        if log.len() == 0 {
            log.close();
        }
        drop(log);
        self.tell();
        self.0.wake.notify_one();
    }

    /// The agent ends: what is there is left to the next one.
    pub(crate) fn leave(&self) {
        if let Some(task) = self.0.task.get() {
            task.abort();
        }
        self.log().leave();
        self.tell();
    }

    /// From now on this is the way to the controller.
    pub(crate) fn set_link(&self, link: Arc<dyn Link>) {
        *lock(&self.0.link) = link;
    }

    /// The controller has answered something: what waits for it to be there goes now.
    pub(crate) fn heard(&self) {
        self.0.is_heard.store(true, Ordering::Relaxed);
        self.0.hears.notify_waiters();
    }

    /// Resolves when the controller has ended the session.
    pub(super) async fn over(&self) {
        self.0.over.cancelled().await;
    }

    /// Why the controller has ended the session, if it has.
    pub(super) fn is_over(&self) -> Option<&str> {
        self.0.why.get().map(String::as_str)
    }

    /// The session is over, which the lease has brought to light. Of a log that is complete the
    /// controller may want the rest all the same: its result may be why.
    pub(super) fn session_is_over(&self, why: &str) {
        if self.log().is_complete() {
            tracing::debug!("{}: its lease is over: {why}", self.name());
            return;
        }
        self.not_wanted(why);
    }

    /// The controller does not want anything of this session any more.
    fn not_wanted(&self, why: &str) {
        let is_new = self.0.why.set(why.to_owned()).is_ok();
        let (is_complete, segments) = {
            let log = self.log();
            (log.is_complete(), log.len())
        };
        if is_complete && segments > 0 {
            tracing::warn!(
                "{}: its controller does not want the rest of its log, {segments} segment(s): {why}",
                self.name()
            );
        } else if is_new {
            tracing::info!("{}: the session is over: {why}", self.name());
        }
        self.close();
        self.0.over.cancel();
    }

    /// Nothing more is sent.
    fn close(&self) {
        self.log().close();
        self.tell();
        self.0.wake.notify_one();
    }

    /// Puts a segment into it.
    pub(super) fn put(&self, put: impl FnOnce(&mut SegmentLog) -> std::io::Result<()>) {
        let (put, dropped, flush) = {
            let mut log = self.log();
            let put = put(&mut log);
            let flush = log.wants_flush(Instant::now());
            let flush = flush.then(|| log.dir().to_owned());
            (put, log.take_dropped(), flush)
        };
        if let Err(e) = put {
            tracing::warn!("{}: a piece of its log is lost: {e}", self.name());
        }
        if dropped > 0 {
            tracing::warn!(
                "{}: its controller does not take the log in time: {dropped} bytes of the \
                 middle are dropped",
                self.name()
            );
        }
        if let Some(dir) = flush {
            // Nobody waits for it: see the module `log`.
            tokio::task::spawn_blocking(move || {
                let _ = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
            });
        }
        self.tell();
        self.0.wake.notify_one();
    }

    /// The first segment that waits, with what is in it. Those that are damaged are gaps.
    fn first(&self) -> Option<(First, Vec<u8>)> {
        loop {
            let first = self.log().first()?;
            let why = match std::fs::read(&first.path) {
                Ok(body) if segments::is_segment(&body) => return Some((first, body)),
                Ok(_) => "it is damaged".to_owned(),
                Err(e) => e.to_string(),
            };
            tracing::warn!(
                "{}: a piece of its log is lost: {}: {why}",
                self.name(),
                first.path.display()
            );
            self.log().lost();
            self.tell();
        }
    }

    /// Posts a segment once. What came of it, and why nothing, where it failed; none when
    /// nothing of this log is wanted any more.
    async fn post(&self, first: First, body: Vec<u8>) -> Option<(Try, String)> {
        let link = lock(&self.0.link).clone();
        let channel = self.log().channel().clone();
        let answer = link.post_segment(&channel, first.number, first.skips, body);
        let tried = match answer.await {
            Acknowledged::Taken => {
                self.log().taken(first.number);
                (Try::Taken, String::new())
            }
            Acknowledged::Gap(next) => {
                let tried = match self.log().expect(next) {
                    true => Try::Taken,
                    false => Try::Answered,
                };
                (tried, format!("it still waits for segment {next}"))
            }
            Acknowledged::Again(why) => (Try::Answered, why),
            Acknowledged::Silence(why) => (Try::Silence, why),
            Acknowledged::Over(why) => {
                self.not_wanted(&why);
                return None;
            }
            Acknowledged::Refused(why) => {
                tracing::error!(
                    "{}: its controller refuses segment {} of its log, and gets no more of it: \
                     {why}",
                    self.name(),
                    first.number
                );
                self.close();
                return None;
            }
        };
        self.tell();
        Some(tried)
    }
}

async fn post(log: Log) {
    let begin = Instant::now();
    let mut random = StdRng::from_entropy();
    let mut failures = 0;
    let mut patience = Patience::default();
    loop {
        let Some((first, body)) = log.first() else {
            if log.log().is_complete() {
                log.close();
            }
            if log.is_done() {
                return;
            }
            log.0.wake.notified().await;
            continue;
        };
        let Some((tried, why)) = log.post(first, body).await else {
            return;
        };
        let is_away = tried == Try::Silence;
        let tried = match (tried, log.0.is_heard.swap(false, Ordering::Relaxed)) {
            // It is there, and does not answer this.
            (Try::Silence, true) => Try::Answered,
            (tried, _) => tried,
        };
        let mood = patience.after(tried, begin.elapsed());
        log.0.waiting.send_modify(|waiting| waiting.mood = mood);
        if mood == Mood::GivenUp {
            let (segments, bytes) = log.waiting();
            tracing::error!(
                "{}: giving up the rest of its log, {segments} segment(s) of {bytes} bytes: {why}",
                log.name()
            );
            return log.close();
        }
        if tried == Try::Taken {
            failures = 0;
            continue;
        }
        if failures == 0 {
            tracing::warn!("{}: unable to send its log, going on: {why}", log.name());
        }
        failures += 1;
        tokio::select! {
            () = sleep(pause_after(failures, LONGEST, &mut random)) => {}
            () = log.0.hears.notified(), if is_away => {}
        }
    }
}
