//! Getting results to their controllers: from the spool, again and again, until
//! each is taken or refused.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use bbot_manifest::{Era, ResultRequest};
use tokio::time::Instant;

use super::plan::MAX_AGE;
use crate::controller::{Kin, Link, Posted, Url};
use crate::result;
use crate::spool::{Destination, Entry, Held, MAX_TRIES, Spool};

/// A result that does not even fit into this is refused for good after a 413.
const SMALLEST: usize = 16 * 1024;

/// The results that are not taken yet.
#[derive(Debug)]
pub struct Delivery {
    spool: Spool,
    tries: HashMap<PathBuf, Tries>,
}

#[derive(Debug, Clone, Copy)]
struct Tries {
    count: u32,
    next: Instant,
}

impl Delivery {
    /// With the results that are in the spool already. Tasks that an agent before this
    /// one was killed over are given back.
    pub fn new(spool: Spool) -> Self {
        let mut delivery = Self {
            spool,
            tries: HashMap::new(),
        };
        delivery.move_held();
        delivery
    }

    /// Puts on disk what is posted should the agent end before the task's result is
    /// there. Its status may be one that 2017 does not know.
    ///
    /// # Errors
    ///
    /// When it cannot be put into words or on disk.
    pub fn hold(&mut self, url: &Url, request: &ResultRequest) -> Result<Held> {
        let body = request
            .serialize(Era::Later)
            .context("unable to write the result manifest")?;
        Ok(self
            .spool
            .hold(&stranger(url), body.as_bytes(), SystemTime::now())?)
    }

    /// The task has its result.
    pub fn release(&self, held: &Held) {
        if let Err(e) = self.spool.release(held) {
            tracing::warn!("{:#}", anyhow::Error::new(e));
        }
    }

    /// Posts what is held: its tasks will not be done. What is not taken now is sent
    /// again, by the next agent if need be.
    pub async fn give_back(&mut self, link: &dyn Link) {
        for path in self.move_held() {
            self.deliver_one(link, &path).await;
        }
    }

    fn move_held(&mut self) -> Vec<PathBuf> {
        match self.spool.give_back(SystemTime::now()) {
            Ok(paths) => {
                if !paths.is_empty() {
                    tracing::info!("giving back {} unfinished task(s)", paths.len());
                }
                paths
            }
            Err(e) => {
                tracing::error!("{:#}", anyhow::Error::new(e));
                Vec::new()
            }
        }
    }

    /// Puts a result on disk; [`Delivery::deliver`] sends it.
    ///
    /// # Errors
    ///
    /// When it cannot be put into words or on disk.
    pub fn add(&mut self, url: &Url, request: &ResultRequest, era: Era) -> Result<()> {
        let body = result::fit(request, era, result::STRANGERS_LIMIT)
            .context("unable to write the result manifest")?;
        self.spool
            .add(&stranger(url), body.as_bytes(), SystemTime::now())?;
        Ok(())
    }

    /// Sends what is due, each result once.
    pub async fn deliver(&mut self, link: &dyn Link) {
        let paths = self.spool.pending().unwrap_or_default();
        self.tries.retain(|path, _| paths.contains(path));
        for path in paths {
            let due = self
                .tries
                .get(&path)
                .is_none_or(|t| t.next <= Instant::now());
            if !due {
                continue;
            }
            self.deliver_one(link, &path).await;
        }
    }

    async fn deliver_one(&mut self, link: &dyn Link, path: &Path) {
        match self.spool.read(path) {
            Ok(entry) => {
                if let Err(e) = self.send(link, entry).await {
                    tracing::error!("{e:#}");
                    self.later(path);
                }
            }
            Err(e) => {
                tracing::error!("{:#}", anyhow::Error::new(e));
                self.put_aside(path);
            }
        }
    }

    /// When the next result is due, if there is one.
    pub fn next_due(&self) -> Option<Instant> {
        let paths = self.spool.pending().unwrap_or_default();
        let due = |path: &PathBuf| self.tries.get(path).map_or_else(Instant::now, |t| t.next);
        paths.iter().map(due).min()
    }

    async fn send(&mut self, link: &dyn Link, mut entry: Entry) -> Result<()> {
        loop {
            match link.post_result(&entry.to.url, entry.body.clone()).await {
                Posted::Taken => {
                    tracing::debug!("uploaded result to {}", entry.to.url);
                    self.tries.remove(&entry.path);
                    self.spool.taken(&entry.path)?;
                    return Ok(());
                }
                Posted::TooLarge => {
                    let Some(smaller) = cut(&entry.body) else {
                        tracing::error!(
                            "result refused by {}: it is too large although its logs are cut to {} bytes",
                            entry.to.url,
                            entry.body.len()
                        );
                        self.put_aside(&entry.path);
                        return Ok(());
                    };
                    tracing::warn!(
                        "{} does not take a result of {} bytes, cutting the logs to {}",
                        entry.to.url,
                        entry.body.len(),
                        smaller.len()
                    );
                    entry.body = smaller;
                    self.spool.rewrite(&entry)?;
                }
                Posted::Refused(why) => {
                    tracing::error!("result refused by {}: {why}", entry.to.url);
                    self.put_aside(&entry.path);
                    return Ok(());
                }
                Posted::Again(why) | Posted::Unreachable(why) => {
                    tracing::error!("unable to upload result to {}: {why}", entry.to.url);
                    let age = SystemTime::now()
                        .duration_since(entry.written)
                        .unwrap_or_default();
                    if age > MAX_AGE {
                        tracing::error!("giving it up after {} s", age.as_secs());
                        self.put_aside(&entry.path);
                    } else {
                        self.later(&entry.path);
                    }
                    return Ok(());
                }
            }
        }
    }

    fn later(&mut self, path: &Path) {
        let count = self.tries.get(path).map_or(0, |t| t.count) + 1;
        match pause_after(count) {
            Some(pause) => {
                let next = Instant::now() + pause;
                self.tries.insert(path.to_owned(), Tries { count, next });
            }
            None => {
                tracing::error!("giving {} up after {count} tries", path.display());
                self.put_aside(path);
            }
        }
    }

    fn put_aside(&mut self, path: &Path) {
        self.tries.remove(path);
        match self.spool.refuse(path) {
            Ok(kept) => tracing::info!("the result is kept in {}", kept.display()),
            Err(e) => {
                tracing::error!("{:#}", anyhow::Error::new(e));
                // It is still in the way; not so often.
                let next = Instant::now() + Duration::from_secs(600);
                self.tries.insert(path.to_owned(), Tries { count: 0, next });
            }
        }
    }
}

fn stranger(url: &Url) -> Destination {
    Destination {
        url: url.clone(),
        kin: Kin::Stranger,
    }
}

fn pause_after(tries: u32) -> Option<Duration> {
    if tries >= MAX_TRIES {
        return None;
    }
    let seconds = 1_u64 << tries.saturating_sub(1).min(10);
    Some(Duration::from_secs(seconds.min(600)))
}

/// The body with its logs cut so that it has half its length.
pub(super) fn cut(body: &[u8]) -> Option<Vec<u8>> {
    let limit = body.len() / 2;
    if limit < SMALLEST {
        return None;
    }
    let request = ResultRequest::parse(body, "spooled result").ok()?;
    // Whatever its era is, it holds no field that was not in it before.
    let cut = result::fit(&request, Era::Later, limit).ok()?.into_bytes();
    (cut.len() < body.len()).then_some(cut)
}
