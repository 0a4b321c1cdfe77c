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
//! No trouble with the controller ends a build: the lease is tried again for as long as the
//! session lasts, and a result that is late is taken all the same. The log (`sending`) goes
//! on after its session, until the controller has it or does not want it.

mod log;
pub(crate) mod patience;
mod sending;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::Instrument as _;

use crate::controller::{Channel, Link, Renewed, Url, parse_url};
use crate::segments;
use log::SegmentLog;
pub(crate) use sending::Log;

/// How often a lease is renewed when the controller does not say.
const RENEW: Duration = Duration::from_secs(15);

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
/// lease is not renewed any more. What is left of the log goes on.
#[derive(Debug, Clone)]
pub struct Session(Option<Arc<Guard>>);

#[derive(Debug)]
struct Guard {
    log: Log,
    lease: AbortHandle,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.lease.abort();
        self.log.complete();
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
        let log = Log::start(name, log, link.clone());
        let lease = renew_lease(log.clone(), link, channel, renew.unwrap_or(RENEW));
        let lease = tokio::spawn(lease.in_current_span()).abort_handle();
        Self(Some(Arc::new(Guard { log, lease })))
    }

    /// Its log, where it has one.
    pub(crate) fn log(&self) -> Option<&Log> {
        self.0.as_ref().map(|guard| &guard.log)
    }

    /// Resolves when the controller says that the session is over: the task was given to
    /// somebody else, or is built. Its result is worth nothing then.
    pub async fn cancelled(&self) {
        match self.log() {
            Some(log) => log.over().await,
            None => std::future::pending().await,
        }
    }

    /// Why the controller has ended the session, if it has.
    pub fn is_over(&self) -> Option<&str> {
        self.log()?.is_over()
    }

    /// Takes a segment that the worker has uploaded: the operation's name on its first
    /// line, then the log. The file is gone then. It waits for nobody.
    pub fn take(&self, path: &Path, bytes: u64) {
        match self.log() {
            Some(log) => log.put(|log| log.take(path, bytes)),
            None => return,
        }
        // Lost, or not wanted any more.
        let _ = std::fs::remove_file(path);
    }

    /// Takes a piece of an operation's log.
    pub fn push_log(&self, operation: &str, bytes: &[u8]) {
        let Some(log) = self.log() else { return };
        for piece in bytes.chunks(segments::MOST) {
            let segment = [operation.as_bytes(), b"\n", piece].concat();
            if !operation.contains('\n') && segments::is_segment(&segment) {
                log.put(|log| log.push(&segment));
            }
        }
    }

    /// How many segments wait, and their bytes.
    pub fn waiting(&self) -> (usize, u64) {
        self.log().map_or((0, 0), Log::waiting)
    }

    /// Resolves when no segment waits any more.
    pub async fn drained(&self) {
        if let Some(log) = self.log() {
            log.drained().await;
        }
    }
}

/// No controller holds a request for longer.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// The first renewal is answered at once, which confirms that the task has arrived. Each other one
/// the controller holds until the next is due, so that the end of the session is told at once.
async fn renew_lease(log: Log, link: Arc<dyn Link>, channel: Channel, mut every: Duration) {
    let mut number = 0;
    let mut hold = Duration::ZERO;
    let mut trouble = false;
    loop {
        let sent = Instant::now();
        let within = every.max(Duration::from_secs(1));
        number += 1;
        match link.renew_lease(&channel, number, hold, within).await {
            Renewed::Until(next) => {
                log.heard();
                if std::mem::take(&mut trouble) {
                    tracing::info!("{}: its lease is renewed again", log.name());
                }
                // Whether the controller has held it or not.
                sleep_until(sent + hold).await;
                every = next.unwrap_or(every);
                hold = every.min(LONGEST_HOLD);
            }
            Renewed::Over(why) => return log.session_is_over(&why),
            Renewed::Again(why) => {
                if !std::mem::replace(&mut trouble, true) {
                    tracing::warn!("{}: unable to renew its lease, going on: {why}", log.name());
                }
                sleep(every / 2).await;
                hold = Duration::ZERO;
            }
        }
    }
}

#[cfg(test)]
mod tests;
