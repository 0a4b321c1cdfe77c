//! Getting results to their controllers: from the disk, again and again, until each is
//! taken or refused.
//!
//! ```text
//!   hold --> held/ --(released)--------------------------> gone
//!               \--(given back, or left by a dead agent)-->\
//!   add  ----------------------> results/ --> posted when the plan says --> taken: gone
//!      (either, disk full: memory) --^               \--> refused/
//! ```
//!
//! A task of its own posts, so that nothing waits for a controller but the results that
//! go to it. What goes when is [`plan`]'s decision; here are the disk and the link. All
//! that the agent needs is in the [`Handle`].

mod handle;
pub mod plan;
mod post;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bbot_manifest::ResultRequest;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::controller::{Destination, Link};
use crate::session::{Log, Session, patience};
use crate::spool::{Held, Spool};
use plan::{Entry, Id, Plan, Time};

/// How long a result waits for the rest of its log at most, whatever is heard of its
/// controller: [`session::patience`] says when sooner. What comes after it is not lost.
const LOG_FIRST: Duration = patience::GIVEN_UP;

/// No pause between two posts is as long: what is due later waits for its log.
const NO_PAUSE: Duration = Duration::from_secs(60 * 60);

/// How much may wait before the agent takes no more tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Results and log segments, in bytes (`--spool-max`).
    pub bytes: u64,
    /// How many results.
    pub results: usize,
    /// How many bytes of results may wait in memory, when the disk takes nothing any more.
    pub memory: u64,
}

impl Bounds {
    /// So many MiB, and a number of results that the folder still copes with.
    pub fn of_mib(mib: u64) -> Self {
        Self {
            bytes: mib.saturating_mul(1024 * 1024),
            results: 10_000,
            memory: 64 * 1024 * 1024,
        }
    }
}

/// What waits, as a person sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Results that are not taken yet.
    pub waiting: usize,
    /// Log segments that are not acknowledged yet.
    pub segments: usize,
    /// Their size together, in bytes.
    pub bytes: u64,
    /// How old the oldest result is.
    pub oldest: Option<Duration>,
    /// In what time the next result is posted; none when nothing waits but for its log, or
    /// one is on its way.
    pub next_try: Option<Duration>,
    /// Tasks that will be given back if the agent ends now.
    pub held: usize,
    /// Results that were refused or given up, and are kept for a person.
    pub refused: u64,
    /// Results that were taken since the start.
    pub taken: u64,
    /// Posts since the start that were not taken: refused, put off or without an answer.
    pub failed: u64,
    /// Results that the disk did not take, and that are in memory alone.
    pub unkept: usize,
    /// By controller (origin): how many wait, and why the last was not taken.
    pub controllers: BTreeMap<String, Way>,
    /// Why no more tasks should be asked for, if so.
    pub full: Option<&'static str>,
}

/// What waits for one controller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Way {
    /// How many results.
    pub waiting: usize,
    /// How many of them have stepped behind the others, since it did not take them.
    pub behind: usize,
    /// In what time the next is posted, if it does not wait for its log.
    pub next_try: Option<Duration>,
    /// Why the last one was not taken.
    pub error: Option<String>,
}

/// The beginning of it.
#[derive(Debug, Clone, Copy)]
pub struct Delivery;

impl Delivery {
    /// Starts with what is in the spool: the tasks that an agent before this one was
    /// killed over are given back, and what it has left of logs goes before what goes to the
    /// same controller.
    ///
    /// It must be called within a tokio runtime. Posting ends when the last clone of the
    /// handle is dropped.
    pub fn start(spool: Spool, link: Arc<dyn Link>, bounds: Bounds) -> Handle {
        let inner = Arc::new(Inner {
            spool,
            link: Mutex::new(link),
            bounds,
            begin: Instant::now(),
            state: Mutex::new(State {
                plan: Plan::new(rand::random()),
                items: HashMap::new(),
                errors: BTreeMap::new(),
                logs: Vec::new(),
                refused: 0,
                taken: 0,
                failed: 0,
                held: 0,
                busy: 0,
                last: 0,
            }),
            wake: Notify::new(),
            changed: watch::Sender::new(()),
        });
        inner.load();
        let posts = tokio::spawn(post::run(inner.clone())).abort_handle();
        Handle(Arc::new(Guard { inner, posts }))
    }
}

/// The way to the results that wait. Clones are the same.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Guard>);

#[derive(Debug)]
struct Guard {
    inner: Arc<Inner>,
    posts: AbortHandle,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.posts.abort();
        let (logs, items) = {
            let mut state = self.inner.state();
            (mem::take(&mut state.logs), mem::take(&mut state.items))
        };
        // Before their sessions are dropped with the results.
        for log in logs {
            log.leave();
        }
        drop(items);
        // At once, and not when the runtime gets round to dropping the task.
        self.inner.spool.unlock();
    }
}

#[derive(Debug)]
struct Inner {
    spool: Spool,
    link: Mutex<Arc<dyn Link>>,
    bounds: Bounds,
    begin: Instant,
    state: Mutex<State>,
    /// Something is to be planned anew.
    wake: Notify,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    plan: Plan,
    items: HashMap<Id, Item>,
    /// Why the last result for an origin was not taken.
    errors: BTreeMap<String, String>,
    /// Logs of tasks and of results, and those that an earlier agent has left; the ones that
    /// are sent are dropped now and then.
    logs: Vec<Log>,
    refused: u64,
    taken: u64,
    failed: u64,
    held: usize,
    /// Posts that have not ended, or whose end is not on disk yet.
    busy: usize,
    last: u64,
}

/// A result that waits.
#[derive(Debug)]
struct Item {
    to: Destination,
    bytes: u64,
    place: Place,
    /// Goes on until the result is taken: a lease that lapses now would have the task
    /// done once more.
    _session: Option<Session>,
    /// Of one that the disk did not take: what the next agent is to post instead.
    held: Option<Held>,
}

/// Where a result is.
#[derive(Debug, Clone)]
enum Place {
    Disk(PathBuf),
    /// The disk did not take it.
    Memory(Arc<Vec<u8>>),
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self) -> Arc<dyn Link> {
        let link = self.link.lock();
        link.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn now(&self) -> Time {
        self.begin.elapsed()
    }

    fn tell(&self) {
        self.changed.send_replace(());
        self.wake.notify_one();
    }

    /// What waits on disk, and what is held there, which nobody works at any more.
    fn load(self: &Arc<Self>) {
        // Listed now, before there are any of this agent. Which of them is whose is not known:
        // what goes to a controller waits for all that goes there.
        let mut logs: BTreeMap<String, Vec<Log>> = BTreeMap::new();
        for dir in self.spool.left_logs() {
            if let Some(log) = Log::recover(&dir, self.link()) {
                self.state().logs.push(log.clone());
                logs.entry(log.origin()).or_default().push(log);
            }
        }
        let paths = self.spool.pending().unwrap_or_else(|e| {
            tracing::error!("{:#}", anyhow::Error::new(e));
            Vec::new()
        });
        self.drop_done(&paths);
        let gate = |origin: &str| logs.contains_key(origin).then_some(LOG_FIRST);
        for path in paths {
            self.add_file(path, gate);
        }
        self.give_back_all(gate);
        self.state().refused = self.spool.refused();
        for (origin, logs) in logs {
            let waiting = self.state().of_origin(&origin);
            tokio::spawn(after_logs(self.clone(), logs, waiting));
        }
    }

    /// An agent that is killed between writing a result and forgetting what it held for
    /// its lack leaves both. To give such a task back would have it done again.
    fn drop_done(&self, results: &[PathBuf]) {
        let held = self.spool.held().unwrap_or_default();
        if held.is_empty() || results.is_empty() {
            return;
        }
        let key = |path: &PathBuf| {
            let entry = self.spool.read(path).ok()?;
            let request = ResultRequest::parse(&entry.body, "spooled result").ok()?;
            Some((entry.to.url, request.session))
        };
        let done: HashSet<_> = results.iter().filter_map(key).collect();
        for path in held {
            if key(&path).is_some_and(|key| done.contains(&key)) {
                self.release(&Held(path));
            }
        }
    }

    /// Everything that is held is to be posted; `gate` as in [`Self::add_file`].
    fn give_back_all(&self, gate: impl Fn(&str) -> Option<Duration>) {
        let mut paths = self.spool.held().unwrap_or_else(|e| {
            tracing::error!("{:#}", anyhow::Error::new(e));
            Vec::new()
        });
        {
            let mut state = self.state();
            state.held = paths.len();
            // What these stand in for is on its way from memory.
            let items = state.items.values().filter_map(|item| item.held.as_ref());
            let kept: HashSet<_> = items.map(|held| &held.0).collect();
            paths.retain(|path| !kept.contains(path));
        }
        if !paths.is_empty() {
            tracing::info!("giving back {} unfinished task(s)", paths.len());
        }
        for held in paths.into_iter().map(Held) {
            self.give_back(held, &gate);
        }
    }

    /// What is held for a task is to be posted; `gate` as in [`Self::add_file`]. A disk that
    /// does not let it be moved must not keep the controller waiting: then it goes from memory,
    /// where it has some hundred bytes, and stays held until it is taken.
    fn give_back(&self, held: Held, gate: impl Fn(&str) -> Option<Duration>) {
        match self.spool.give_back(&held, SystemTime::now()) {
            Ok(path) => {
                self.forget_held();
                return self.add_file(path, gate);
            }
            Err(e) => tracing::error!("{:#}", anyhow::Error::new(e)),
        }
        let entry = match self.spool.read(&held.0) {
            Ok(entry) => entry,
            Err(e) => return tracing::error!("{:#}", anyhow::Error::new(e)),
        };
        let gate = gate(&entry.to.origin());
        let item = Item {
            to: entry.to,
            bytes: entry.body.len() as u64,
            place: Place::Memory(Arc::new(entry.body)),
            _session: None,
            held: Some(held),
        };
        self.add_item(item, Duration::ZERO, gate);
    }

    /// A file is to be posted; a damaged one is set aside. `gate`: for how long it waits for
    /// logs of its origin at most.
    fn add_file(&self, path: PathBuf, gate: impl Fn(&str) -> Option<Duration>) {
        let header = match self.spool.header(&path) {
            Ok(header) => header,
            Err(e) => {
                let is_of_file = e.is_of_file();
                tracing::error!("{:#}", anyhow::Error::new(e));
                // One that cannot be read now stays for the next start.
                if is_of_file {
                    self.set_aside(&path);
                }
                return;
            }
        };
        let gate = gate(&header.to.origin());
        let age = SystemTime::now()
            .duration_since(header.written)
            .unwrap_or_default();
        let item = Item {
            to: header.to,
            bytes: header.bytes,
            place: Place::Disk(path),
            _session: None,
            held: None,
        };
        self.add_item(item, age, gate);
    }

    fn add_item(&self, item: Item, age: Duration, gate: Option<Duration>) -> Id {
        let now = self.now();
        let mut state = self.state();
        state.last += 1;
        let id = Id(state.last);
        let entry = Entry {
            origin: item.to.origin(),
            kin: item.to.kin,
            age,
            gate: gate.map(|gate| now + gate),
        };
        state.plan.add(id, entry, now);
        state.items.insert(id, item);
        drop(state);
        self.tell();
        id
    }

    fn release(&self, held: &Held) {
        self.forget_held();
        if let Err(e) = self.spool.release(held) {
            tracing::warn!("{:#}", anyhow::Error::new(e));
        }
    }

    fn forget_held(&self) {
        let mut state = self.state();
        state.held = state.held.saturating_sub(1);
    }

    /// Keeps a file that will not be posted.
    fn set_aside(&self, path: &std::path::Path) {
        match self.spool.refuse(path) {
            Ok(kept) => tracing::info!("the result is kept in {}", kept.display()),
            // It stays where it is, and is tried again by the next agent.
            Err(e) => tracing::error!("{:#}", anyhow::Error::new(e)),
        }
        let refused = self.spool.refused();
        self.state().refused = refused;
    }

    fn open_gate(&self, ids: &[Id]) {
        let mut state = self.state();
        for id in ids {
            state.plan.open(*id);
        }
        drop(state);
        self.tell();
    }

    fn status(&self) -> Status {
        let now = self.now();
        let mut state = self.state();
        state.logs.retain(|log| !log.is_done());
        let shown = |at: Time| Some(at.saturating_sub(now)).filter(|within| *within < NO_PAUSE);
        let mut status = Status {
            waiting: state.items.len(),
            oldest: state.plan.oldest(now),
            next_try: state.plan.deadline().and_then(shown),
            held: state.held,
            refused: state.refused,
            taken: state.taken,
            failed: state.failed,
            ..Status::default()
        };
        for (count, bytes) in state.logs.iter().map(Log::waiting) {
            status.segments += count;
            status.bytes += bytes;
        }
        for item in state.items.values() {
            status.bytes += item.bytes;
            status.unkept += usize::from(matches!(item.place, Place::Memory(_)));
        }
        for way in state.plan.ways() {
            let error = state.errors.get(&way.origin).cloned();
            status.controllers.insert(
                way.origin,
                Way {
                    waiting: way.waiting,
                    behind: way.behind,
                    next_try: way.next.and_then(shown),
                    error,
                },
            );
        }
        status.full = if status.unkept > 0 {
            Some("the disk does not take results, which are in memory alone")
        } else if status.bytes >= self.bounds.bytes {
            Some("as much of results and logs waits to be taken as may (--spool-max)")
        } else if status.waiting >= self.bounds.results {
            Some("too many results wait to be taken")
        } else {
            None
        };
        status
    }
}

impl State {
    /// The results that wait for this origin.
    fn of_origin(&self, origin: &str) -> Vec<Id> {
        let items = self.items.iter();
        let of_it = items.filter(|(_, item)| item.to.origin() == origin);
        of_it.map(|(id, _)| *id).collect()
    }
}

/// Lets these results go when the logs need not go first (any more).
async fn after_logs(inner: Arc<Inner>, logs: Vec<Log>, results: Vec<Id>) {
    for log in &logs {
        log.gone_first().await;
    }
    inner.open_gate(&results);
}

/// No log goes before it.
fn at_once(_: &str) -> Option<Duration> {
    None
}

#[cfg(test)]
mod tests;
