//! What the rest of the agent does with its results: it holds, adds and gives back, and hears how things are.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use bbot_manifest::{Era, ResultRequest};
use tokio::sync::watch;

use super::{Handle, Inner, Item, LOG_FIRST, Place, Status, after_logs, at_once};
use crate::controller::{Destination, Link, Url};
use crate::result;
use crate::session::{self, Session};
use crate::spool::Held;

impl Handle {
    fn inner(&self) -> &Arc<Inner> {
        &self.0.inner
    }

    /// Runs what waits for the disk where it holds up nothing else.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> T + Send + 'static,
    ) -> Result<T> {
        let inner = self.inner().clone();
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .context("writing was broken off")
    }

    /// Puts on disk what is posted should the agent end before the task's result is
    /// there.
    ///
    /// # Errors
    ///
    /// When it cannot be put into words or on disk.
    pub async fn hold(&self, to: Destination, request: &ResultRequest, era: Era) -> Result<Held> {
        let body = request
            .serialize(era)
            .context("unable to write the result manifest")?;
        let held = self
            .on_disk(move |inner| inner.spool.hold(&to, body.as_bytes(), SystemTime::now()))
            .await??;
        self.inner().state().held += 1;
        Ok(held)
    }

    /// Nothing is to be posted for this task: it has a result, or its session is over.
    pub async fn release(&self, held: Held) {
        if let Err(e) = self.on_disk(move |inner| inner.release(&held)).await {
            tracing::warn!("{e:#}");
        }
    }

    /// Posts what is held for this task: it will not be done.
    pub async fn give_back(&self, held: Held) {
        if let Err(e) = self.on_disk(|inner| inner.give_back(held, at_once)).await {
            tracing::error!("{e:#}");
        }
    }

    /// Posts what is held: none of its tasks will be done. What is not taken now is sent
    /// again, by the next agent if need be.
    pub async fn give_back_all(&self) {
        if let Err(e) = self.on_disk(|inner| inner.give_back_all(at_once)).await {
            tracing::error!("{e:#}");
        }
    }

    /// Takes a result; it is on disk when this returns, and is sent from now on. What was
    /// held for the task is released, and what is left of its log goes before, as long as the
    /// controller may be waited for (`session::patience`), else beside it. Should the
    /// disk not take it, it is told and the result waits in memory.
    ///
    /// # Errors
    ///
    /// When it cannot be put into words, or neither disk nor memory has room for it. Then
    /// what was held is posted.
    pub async fn add(
        &self,
        mut to: Destination,
        request: ResultRequest,
        era: Era,
        held: Option<Held>,
        session: Option<Session>,
    ) -> Result<()> {
        let log = session.as_ref().and_then(Session::log).cloned();
        if let Some(log) = &log {
            log.complete();
            to.log = log.last();
        }
        let written = self.on_disk({
            let to = to.clone();
            move |inner| {
                let body = result::fit(&request, era, result::STRANGERS_LIMIT)
                    .context("unable to write the result manifest")?
                    .into_bytes();
                let written = inner.spool.add(&to, &body, SystemTime::now());
                Ok::<_, anyhow::Error>((body, written))
            }
        });
        let (body, written) = match written.await? {
            Ok(written) => written,
            Err(e) => {
                self.give_up(held).await;
                return Err(e);
            }
        };
        let bytes = body.len() as u64;
        let (place, held) = match written {
            Ok(entry) => {
                if let Some(held) = held {
                    self.release(held).await;
                }
                (Place::Disk(entry.path), None)
            }
            Err(e) => {
                let error = anyhow::Error::new(e);
                if bytes + self.unkept() > self.inner().bounds.memory {
                    self.give_up(held).await;
                    bail!("{error:#}; and there is no room in memory: the result is lost");
                }
                // No room on the disk must not cost the result.
                tracing::error!("{error:#}; uploading the result without keeping it");
                (Place::Memory(Arc::new(body)), held)
            }
        };
        let log = log.filter(|log| log.waiting().0 > 0);
        let item = Item {
            to,
            bytes,
            place,
            _session: session,
            held,
        };
        let gate = log.is_some().then_some(LOG_FIRST);
        let id = self.inner().add_item(item, Duration::ZERO, gate);
        if let Some(log) = log {
            tokio::spawn(after_logs(self.inner().clone(), vec![log], vec![id]));
        }
        Ok(())
    }

    async fn give_up(&self, held: Option<Held>) {
        if let Some(held) = held {
            self.give_back(held).await;
        }
    }

    fn unkept(&self) -> u64 {
        let state = self.inner().state();
        let unkept = state.items.values().filter_map(|item| match &item.place {
            Place::Memory(body) => Some(body.len() as u64),
            Place::Disk(_) => None,
        });
        unkept.sum()
    }

    /// A session for a running task. Its lease is renewed at once.
    pub fn session(&self, terms: session::Terms) -> Session {
        let inner = self.inner();
        let dir = inner.spool.free_log(SystemTime::now());
        let session = Session::start(terms, dir, inner.link());
        let mut state = inner.state();
        state.logs.retain(|log| !log.is_done());
        state.logs.extend(session.log().cloned());
        drop(state);
        session
    }

    /// From now on this is the way to the controllers: the configuration was read again.
    /// The leases of sessions that run keep theirs.
    pub fn set_link(&self, link: Arc<dyn Link>) {
        for log in &self.inner().state().logs {
            log.set_link(link.clone());
        }
        let current = self.inner().link.lock();
        *current.unwrap_or_else(PoisonError::into_inner) = link;
    }

    /// A controller has answered a request: what waits for it since it could not be
    /// reached goes now.
    pub fn reached(&self, url: &Url) {
        let origin = url.origin().ascii_serialization();
        let mut state = self.inner().state();
        state.plan.reached(&origin);
        for log in state.logs.iter().filter(|log| log.origin() == origin) {
            log.heard();
        }
        drop(state);
        self.inner().wake.notify_one();
    }

    /// What waits.
    pub fn status(&self) -> Status {
        self.inner().status()
    }

    /// Changes whenever [`Handle::status`] does, but for the passing of time and segments.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.inner().changed.subscribe()
    }

    /// Returns when there is no more room for results, or is again: when [`Status::full`]
    /// is there or is not there, as asked.
    pub async fn until_full_is(&self, full: bool) {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            if self.status().full.is_some() == full || changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Tries everything that waits once more, and returns when that is done, at most after
    /// this time. For the end of the agent; what is not taken is on disk.
    pub async fn settle(&self, within: Duration) {
        let inner = self.inner();
        let mut changes = inner.changed.subscribe();
        {
            let mut state = inner.state();
            let now = inner.now();
            state.plan.hurry(now);
        }
        inner.wake.notify_one();
        let settled = async {
            loop {
                changes.borrow_and_update();
                let now = inner.now();
                let is_idle = {
                    let state = inner.state();
                    state.busy == 0 && state.plan.is_idle(now)
                };
                if is_idle {
                    return;
                }
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(within, settled).await.is_err() {
            tracing::warn!("a controller does not answer; it gets its results at the next start");
        }
    }
}
