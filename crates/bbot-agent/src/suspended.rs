//! Suspended machines: kept for a person to look at, within bounds.
//!
//! ```text
//!             resume                        killed, too long, one too many,
//!   stopped ---------> goes on              its memory is needed, ended by itself
//!      \__________________\________________________________________________--> gone
//! ```
//!
//! A task's result does not wait for any of this. Bounded are their number, their time,
//! and their memory, which a new run takes from the oldest; it waits for its end. So does
//! a run of a machine that may run once at a time for that of the same machine, and a
//! host that runs short ends the oldest before it interrupts any run. Nothing of a machine is
//! left when it has ended, or when the pool is dropped.

use std::collections::BTreeMap;
use std::time::Duration;

use bbot_machine::machine::MachineEvent;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::run::{ENDING_LIMIT, Left};
use crate::status::Attachment;

/// How many machines are kept, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most machines.
    pub count: usize,
    /// The longest time.
    pub time: Duration,
}

impl Bounds {
    /// Whether any machine is kept at all.
    pub fn keeps(&self) -> bool {
        self.count > 0 && !self.time.is_zero()
    }
}

/// What is known of a suspended machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its short name: `s1`, ...
    pub id: String,
    /// The machine's name.
    pub machine: String,
    /// Why it is kept.
    pub why: String,
    /// Since when.
    pub since: Instant,
    /// Until when at most.
    pub until: Instant,
    /// Its memory in KiB.
    pub ram_kib: u64,
    /// Whether a person has let it go on.
    pub resumed: bool,
    /// How to reach it.
    pub reach: Attachment,
}

/// The machines that are kept.
#[derive(Debug)]
pub struct Pool {
    /// By number, so the oldest first.
    kept: BTreeMap<u64, Kept>,
    count: u64,
    keepers: JoinSet<u64>,
}

#[derive(Debug)]
struct Kept {
    entry: Entry,
    orders: mpsc::Sender<Order>,
    /// Told to end, and so not counted any more.
    ending: bool,
    /// Cancelled when it is to end, though there is no room for the order.
    end: CancellationToken,
    /// Cancelled when nothing of it is left.
    gone: CancellationToken,
}

/// What a machine's keeper is told.
#[derive(Debug)]
enum Order {
    Resume(oneshot::Sender<Result<(), String>>),
    End { why: String },
}

/// How many of the oldest machines must go so that no more than `count` are left when
/// one more comes.
pub fn too_many(kept: usize, count: usize) -> usize {
    (kept + 1).saturating_sub(count)
}

/// How many of the oldest machines, with this memory each, must go so that all of them
/// together have no more than `room`.
pub fn too_large(memory: impl DoubleEndedIterator<Item = u64> + Clone, room: u64) -> usize {
    let mut sum: u128 = memory.clone().map(u128::from).sum();
    let mut go = 0;
    for ram in memory {
        if sum <= u128::from(room) {
            break;
        }
        sum -= u128::from(ram);
        go += 1;
    }
    go
}

/// Machines that are about to go.
#[derive(Debug)]
pub(crate) struct Departing(Vec<CancellationToken>);

impl Departing {
    /// Waits until nothing of them is left.
    pub(crate) async fn gone(&self) {
        for gone in &self.0 {
            gone.cancelled().await;
        }
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            kept: BTreeMap::new(),
            count: 0,
            keepers: JoinSet::new(),
        }
    }
}

impl Pool {
    /// Keeps a machine that is stopped; the oldest are ended where there would be too many. Tells its
    /// short name.
    pub(crate) fn add(&mut self, left: Left, bounds: Bounds) -> String {
        let span = left.span.clone();
        let living: Vec<u64> = self.living().collect();
        for number in &living[..too_many(living.len(), bounds.count).min(living.len())] {
            self.end(*number, "to make room for another suspended machine");
        }
        self.count += 1;
        let number = self.count;
        let id = format!("s{number}");
        let since = Instant::now();
        let machine = left.running.machine.as_ref();
        let entry = Entry {
            id: id.clone(),
            machine: left.name.clone(),
            why: left.look.clone().unwrap_or_default(),
            since,
            until: since + bounds.time,
            ram_kib: left.share.ram_kib,
            resumed: false,
            reach: Attachment {
                console: machine.console(),
                screen: machine.screen(),
                command: machine.shell(),
                info: machine.info(),
            },
        };
        tracing::error!(
            parent: &span,
            "{} for machine {}, suspended as {id} for {} s at most (--suspend-timeout)\n{}\n\
             `bbot machine attach {id}` looks at it, `resume` lets it go on, `kill` ends it",
            entry.why,
            left.running.copy.path().display(),
            bounds.time.as_secs(),
            entry.reach.info
        );
        let (orders, receiver) = mpsc::channel(8);
        let end = CancellationToken::new();
        let ends = end.clone();
        let gone = CancellationToken::new();
        let leaves = gone.clone().drop_guard();
        let until = entry.until;
        let keeper = async move {
            let number = keep(number, left, until, receiver, ends).await;
            drop(leaves);
            number
        };
        self.keepers.spawn(keeper.instrument(span));
        self.kept.insert(
            number,
            Kept {
                entry,
                orders,
                ending: false,
                end,
                gone,
            },
        );
        id
    }

    fn living(&self) -> impl DoubleEndedIterator<Item = u64> + Clone {
        self.kept
            .iter()
            .filter(|(_, kept)| !kept.ending)
            .map(|(number, _)| *number)
    }

    /// The machines that are kept, the oldest first.
    pub fn list(&self) -> impl Iterator<Item = &Entry> {
        self.kept.values().map(|kept| &kept.entry)
    }

    /// The memory of all of them in KiB.
    pub fn ram_kib(&self) -> u64 {
        self.list().fold(0, |sum, e| sum.saturating_add(e.ram_kib))
    }

    /// Ends the oldest until the others have no more than this memory together (KiB).
    pub fn shrink_to(&mut self, room: u64) {
        let living: Vec<u64> = self.living().collect();
        let memory = living.iter().map(|number| self.kept[number].entry.ram_kib);
        let go = too_large(memory, room);
        for number in &living[..go] {
            self.end(*number, "since its memory is needed");
        }
    }

    /// Ends those of this machine, which another run of it would be in the way of.
    pub fn give_way(&mut self, machine: &str) {
        let all: Vec<u64> = self.living().collect();
        for number in all {
            if self.kept[&number].entry.machine == machine {
                self.end(
                    number,
                    "since its machine runs again, and may run once at a time",
                );
            }
        }
    }

    /// Ends the oldest, unless one is about to end already. False: there is none.
    pub fn relieve(&mut self, why: &str) -> bool {
        if self.kept.values().any(|kept| kept.ending) {
            return true;
        }
        let oldest = self.living().next();
        if let Some(oldest) = oldest {
            self.end(oldest, why);
        }
        oldest.is_some()
    }

    /// Those that were told to end, and of which something may be left.
    pub(crate) fn departing(&self) -> Departing {
        let ending = self.kept.values().filter(|kept| kept.ending);
        Departing(ending.map(|kept| kept.gone.clone()).collect())
    }

    /// The machine of that short name, or the only one of that machine's name.
    ///
    /// # Errors
    ///
    /// A sentence for the person who asked.
    fn find(&self, id: &str) -> Result<u64, String> {
        let named: Vec<u64> = self
            .kept
            .iter()
            .filter(|(_, kept)| {
                // By its machine's name one that is about to end is not meant.
                kept.entry.id == id || (kept.entry.machine == id && !kept.ending)
            })
            .map(|(number, _)| *number)
            .collect();
        match named[..] {
            [number] => Ok(number),
            [] => Err(format!(
                "there is no suspended machine {id}: `bbot machine list --suspended` shows what there is"
            )),
            [..] => Err(format!(
                "several machines {id} are suspended: name one by its id"
            )),
        }
    }

    /// How a person reaches a machine.
    ///
    /// # Errors
    ///
    /// A sentence for the person who asked.
    pub fn attach(&self, id: &str) -> Result<Attachment, String> {
        Ok(self.kept[&self.find(id)?].entry.reach.clone())
    }

    /// Lets a machine go on; `reply` hears when it does.
    pub fn resume(&mut self, id: &str, reply: oneshot::Sender<Result<(), String>>) {
        // Whoever asked may have gone.
        let number = match self.find(id) {
            Ok(number) => number,
            Err(e) => return drop(reply.send(Err(e))),
        };
        let Some(kept) = self.kept.get_mut(&number) else {
            return;
        };
        match kept.orders.try_send(Order::Resume(reply)) {
            Ok(()) => kept.entry.resumed = true,
            Err(e) => {
                if let Order::Resume(reply) = e.into_inner() {
                    let _ = reply.send(Err(format!("machine {id} is about to end")));
                }
            }
        }
    }

    /// Ends a machine.
    ///
    /// # Errors
    ///
    /// A sentence for the person who asked.
    pub fn kill(&mut self, id: &str) -> Result<(), String> {
        let number = self.find(id)?;
        self.end(number, "as it was told to");
        Ok(())
    }

    /// Ends all of them.
    pub fn kill_all(&mut self) {
        let all: Vec<u64> = self.living().collect();
        for number in all {
            self.end(number, "since the agent ends");
        }
    }

    fn end(&mut self, number: u64, why: &str) {
        if let Some(kept) = self.kept.get_mut(&number) {
            kept.ending = true;
            let why = why.to_owned();
            // Closed: it is about to end for other reasons. Full: it hears of it below.
            let _ = kept.orders.try_send(Order::End { why });
            kept.end.cancel();
        }
    }

    /// Waits until one of them has ended and nothing of it is left. Never, when there
    /// is none. Cancel safe.
    pub async fn ended(&mut self) {
        match self.keepers.join_next().await {
            Some(Ok(number)) => {
                self.kept.remove(&number);
            }
            // Its keeper panicked, and has dropped the machine.
            Some(Err(_)) => self.kept.retain(|_, kept| !kept.orders.is_closed()),
            None => std::future::pending().await,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

/// Keeps one machine until it ends, or is to end.
async fn keep(
    number: u64,
    mut left: Left,
    until: Instant,
    mut orders: mpsc::Receiver<Order>,
    end: CancellationToken,
) -> u64 {
    let id = format!("s{number}");
    let machine = left.running.machine.as_mut();
    let mut resumed = false;
    loop {
        let order = tokio::select! {
            biased;
            order = orders.recv() => order,
            () = end.cancelled() => break,
            exit = async {
                if !resumed {
                    return machine.wait().await;
                }
                // What it does is its own affair, but it must not be held up.
                loop {
                    if let MachineEvent::Exited(exit) = machine.next_event().await {
                        return exit;
                    }
                }
            } => {
                tracing::info!("the suspended machine {id} has ended: {exit}");
                break;
            }
            () = sleep_until(until) => {
                tracing::info!("the suspended machine {id} was kept for long enough");
                break;
            }
        };
        match order {
            Some(Order::Resume(reply)) => {
                let done = machine.resume().await;
                resumed |= done.is_ok();
                // Whoever asked may have gone.
                let _ = reply.send(done.map_err(|e| format!("{:#}", anyhow::Error::new(e))));
            }
            Some(Order::End { why }) => {
                tracing::info!("the suspended machine {id} is ended {why}");
                break;
            }
            // The pool is gone.
            None => break,
        }
    }
    // What does not end in time goes on by itself; nobody waits for it any more.
    if timeout(ENDING_LIMIT, left.clean_up()).await.is_err() {
        tracing::warn!("the suspended machine {id} has not ended in time");
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        for (kept, count, go) in [(0, 2, 0), (1, 2, 0), (2, 2, 1), (5, 2, 4), (0, 1, 0)] {
            assert_eq!(too_many(kept, count), go, "{kept} of {count}");
        }
    }

    #[test]
    fn the_oldest_go_until_the_others_have_room() {
        let memory = [4, 2, 1];
        for (room, go) in [(7, 0), (8, 0), (6, 1), (3, 1), (2, 2), (1, 2), (0, 3)] {
            assert_eq!(too_large(memory.into_iter(), room), go, "{room}");
        }
        assert_eq!(too_large([u64::MAX, u64::MAX].into_iter(), 5), 2);
        assert_eq!(too_large([].into_iter(), 0), 0);
    }
}
