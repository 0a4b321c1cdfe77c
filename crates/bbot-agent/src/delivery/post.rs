//! The task that posts what the plan says.

use std::sync::Arc;
use std::time::SystemTime;

use bbot_manifest::{Era, ResultRequest};
use tokio::task::JoinSet;

use super::plan::{Fate, Id, Verdict};
use super::{Inner, Place};
use crate::controller::{Destination, Kin, Posted};
use crate::result;
use crate::spool::Entry;

/// A result that does not even fit into this is not cut any more after a 413.
const SMALLEST: usize = 16 * 1024;

/// Posts until it is aborted.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut posts = JoinSet::new();
    loop {
        let deadline = {
            let mut state = inner.state();
            let now = inner.now();
            while let Some(id) = state.plan.next(now) {
                posts.spawn(post(inner.clone(), id));
            }
            state.plan.deadline()
        };
        let due = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(inner.begin + at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = inner.wake.notified() => {}
            // Each has told the plan; one that panicked by being dropped.
            Some(_) = posts.join_next() => {}
            () = due => {}
        }
    }
}

/// Tells the plan that a post has ended, come what may.
struct OnItsWay {
    inner: Arc<Inner>,
    id: Id,
    is_told: bool,
}

impl OnItsWay {
    fn ended(mut self, verdict: Verdict) -> Fate {
        self.is_told = true;
        let now = self.inner.now();
        self.inner.state().plan.posted(self.id, verdict, now)
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        if !self.is_told {
            let now = self.inner.now();
            let mut state = self.inner.state();
            state.plan.posted(self.id, Verdict::Unsent, now);
            drop(state);
            self.inner.tell();
        }
    }
}

/// Counts the posts whose end is not on disk yet.
struct Busy(Arc<Inner>);

impl Busy {
    fn new(inner: Arc<Inner>) -> Self {
        inner.state().busy += 1;
        Self(inner)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.state().busy -= 1;
        self.0.tell();
    }
}

/// Posts one result, once, and does what then is to be done with it.
async fn post(inner: Arc<Inner>, id: Id) {
    let _busy = Busy::new(inner.clone());
    let way = OnItsWay {
        inner: inner.clone(),
        id,
        is_told: false,
    };
    let (to, place) = {
        let state = inner.state();
        match state.items.get(&id) {
            Some(item) => (item.to.clone(), item.place.clone()),
            None => {
                drop(state);
                way.ended(Verdict::Refused);
                return;
            }
        }
    };
    let (verdict, why) = send(&inner, id, &to, place).await;
    let origin = to.origin();
    let fate = way.ended(verdict);
    {
        let mut state = inner.state();
        match verdict {
            Verdict::Taken => state.taken += 1,
            _ => state.failed += 1,
        }
        match verdict {
            Verdict::Taken => state.errors.remove(&origin),
            _ => state.errors.insert(origin, why.clone()),
        };
    }
    match fate {
        Fate::Forget => tracing::debug!("uploaded result to {}", to.url),
        Fate::SetAside => tracing::error!("result refused by {}: {why}", to.url),
        Fate::GivenUp { after } => tracing::error!(
            "unable to upload result to {}: {why}; giving it up after {} s of such answers",
            to.url,
            after.as_secs()
        ),
        Fate::Again { at } => tracing::error!(
            "unable to upload result to {}: {why}; again in {} s",
            to.url,
            at.saturating_sub(inner.now()).as_secs()
        ),
    }
    match fate {
        Fate::Again { .. } => keep(&inner, id).await,
        Fate::Forget => end(&inner, id, true).await,
        Fate::SetAside | Fate::GivenUp { .. } => end(&inner, id, false).await,
    }
}

/// The result is done with. It counts as waiting until that is so on disk too.
async fn end(inner: &Arc<Inner>, id: Id, is_taken: bool) {
    let (to, place, held) = {
        let mut state = inner.state();
        let Some(item) = state.items.get_mut(&id) else {
            return;
        };
        (item.to.clone(), item.place.clone(), item.held.take())
    };
    let on_disk = inner.clone();
    let ended = tokio::task::spawn_blocking(move || {
        if let Some(held) = &held {
            on_disk.release(held);
        }
        match &place {
            Place::Disk(path) if is_taken => {
                if let Err(e) = on_disk.spool.taken(path) {
                    tracing::error!("{:#}", anyhow::Error::new(e));
                }
            }
            Place::Disk(path) => on_disk.set_aside(path),
            Place::Memory(_) if is_taken => {}
            Place::Memory(body) => match on_disk.spool.add(&to, body, SystemTime::now()) {
                Ok(entry) => on_disk.set_aside(&entry.path),
                Err(e) => tracing::error!("the result is lost: {:#}", anyhow::Error::new(e)),
            },
        }
    });
    let _ = ended.await;
    let item = inner.state().items.remove(&id);
    // With it goes its session, and what is left of that on disk.
    drop(item);
}

/// The result waits on. One that is in memory alone is put on disk, if that is possible
/// now.
async fn keep(inner: &Arc<Inner>, id: Id) {
    let (to, body) = match inner.state().items.get(&id) {
        Some(item) => match &item.place {
            Place::Memory(body) => (item.to.clone(), body.clone()),
            Place::Disk(_) => return,
        },
        None => return,
    };
    let on_disk = inner.clone();
    let written =
        tokio::task::spawn_blocking(move || on_disk.spool.add(&to, &body, SystemTime::now()));
    let Ok(Ok(entry)) = written.await else { return };
    tracing::info!("the disk takes results again");
    let held = {
        let mut state = inner.state();
        let item = state.items.get_mut(&id);
        item.and_then(|item| {
            item.place = Place::Disk(entry.path);
            item.held.take()
        })
    };
    if let Some(held) = held {
        inner.release(&held);
    }
}

/// Posts the body, and cuts it when it is too large. What came of it, and why.
async fn send(inner: &Arc<Inner>, id: Id, to: &Destination, place: Place) -> (Verdict, String) {
    let mut body = match read(inner, &place).await {
        Ok(body) => body,
        Err(unread) => return unread,
    };
    loop {
        let length = body.len();
        match inner.link().post_result(to, body).await {
            Posted::Taken => return (Verdict::Taken, String::new()),
            Posted::Refused(why) => return (Verdict::Refused, why),
            Posted::Again(why) => return (Verdict::Busy, why),
            Posted::Unreachable(why) => return (Verdict::Unreachable, why),
            Posted::TooLarge => {}
        }
        let whole = match read(inner, &current(inner, id, &place)).await {
            Ok(body) => body,
            Err(unread) => return unread,
        };
        // By what was sent: the disk may not have let the last cut be kept.
        let smaller = tokio::task::spawn_blocking(move || cut(&whole, length)).await;
        let Ok(Some(smaller)) = smaller else {
            let why = format!("it is too large although its logs are cut to {length} bytes");
            let verdict = match to.kin {
                // Ours takes one of this size: somebody between us does not.
                Kin::Ours => Verdict::Busy,
                Kin::Stranger => Verdict::Refused,
            };
            return (verdict, why);
        };
        tracing::warn!(
            "{} does not take a result of {length} bytes, cutting the logs to {}",
            to.url,
            smaller.len()
        );
        if let Err(why) = replace(inner, id, to, &smaller).await {
            return (Verdict::Unsent, why);
        }
        body = smaller;
    }
}

fn current(inner: &Inner, id: Id, place: &Place) -> Place {
    let state = inner.state();
    let item = state.items.get(&id);
    item.map_or_else(|| place.clone(), |item| item.place.clone())
}

/// The body; what its post has come to when it cannot be read. A disk or a process that
/// is at its limits may recover, and must not cost the result.
async fn read(inner: &Arc<Inner>, place: &Place) -> Result<Vec<u8>, (Verdict, String)> {
    match place {
        Place::Memory(body) => Ok(body.to_vec()),
        Place::Disk(path) => {
            let (inner, path) = (inner.clone(), path.clone());
            let read = tokio::task::spawn_blocking(move || inner.spool.read(&path));
            match read.await {
                Ok(Ok(entry)) => Ok(entry.body),
                Ok(Err(e)) => {
                    let verdict = match e.is_of_file() {
                        true => Verdict::Refused,
                        false => Verdict::Unsent,
                    };
                    Err((verdict, format!("{:#}", anyhow::Error::new(e))))
                }
                Err(e) => Err((Verdict::Unsent, e.to_string())),
            }
        }
    }
}

/// The cut body takes the place of the whole one, so that the next try begins with it.
async fn replace(inner: &Arc<Inner>, id: Id, to: &Destination, body: &[u8]) -> Result<(), String> {
    let mut entry = {
        let mut state = inner.state();
        let Some(item) = state.items.get_mut(&id) else {
            return Ok(());
        };
        item.bytes = body.len() as u64;
        match &mut item.place {
            Place::Memory(whole) => {
                *whole = Arc::new(body.to_vec());
                return Ok(());
            }
            Place::Disk(path) => Entry {
                path: path.clone(),
                to: to.clone(),
                written: SystemTime::now(),
                body: Vec::new(),
            },
        }
    };
    entry.body = body.to_vec();
    let inner = inner.clone();
    let written = tokio::task::spawn_blocking(move || inner.spool.rewrite(&entry));
    match written.await {
        // The whole one is still there: the cut one goes all the same.
        Ok(Err(e)) => tracing::warn!("{:#}", anyhow::Error::new(e)),
        Ok(Ok(())) => {}
        Err(e) => return Err(e.to_string()),
    }
    Ok(())
}

/// The body with its logs cut so that it has half of what was too long.
fn cut(body: &[u8], length: usize) -> Option<Vec<u8>> {
    let limit = length.min(body.len()) / 2;
    if limit < SMALLEST {
        return None;
    }
    let request = ResultRequest::parse(body, "spooled result").ok()?;
    // Whatever its era is, it holds no field that was not in it before.
    let cut = result::fit(&request, Era::Later, limit).ok()?.into_bytes();
    (cut.len() < body.len()).then_some(cut)
}
