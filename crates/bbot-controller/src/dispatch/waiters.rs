//! Who waits for a task: of those that can build what was queued, one is woken for each build, and no other.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// What somebody can build: numbers of configurations. Those with the same share one list.
pub(crate) type Kinds = Arc<[u32]>;

/// Those who wait.
#[derive(Debug, Clone, Default)]
pub(crate) struct Waiters(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    /// Nobody waits here any more.
    is_closed: bool,
    /// How many wait.
    count: usize,
    /// Counts up, so that who waits longest has the lowest.
    next: u64,
    /// Lists of configurations, each with who has that list and waits. They stay when nobody does: who has asked once asks again.
    groups: Vec<Group>,
    /// The group of a list, by where it is in memory: the group keeps it there.
    by_list: HashMap<usize, usize>,
    /// The groups that can build a configuration; the one whose turn is next is the first.
    able: HashMap<u32, VecDeque<usize>>,
}

#[derive(Debug)]
struct Group {
    kinds: Kinds,
    waiting: BTreeMap<u64, oneshot::Sender<Woken>>,
}

/// Why somebody was woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// This configuration has a build more.
    For(u32),
    /// All were.
    All,
}

/// Somebody who waits, until this is dropped.
#[derive(Debug)]
pub(crate) struct Waiter {
    waiters: Waiters,
    kinds: Kinds,
    number: u64,
    woken: oneshot::Receiver<Woken>,
    /// It was told of something, and it is not known yet what became of that.
    told: Option<Woken>,
}

/// More lists than agents of a large farm have.
const GROUPS: usize = 20_000;

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits from now on. What is queued later is told; what was before has to be looked for after this.
    pub(crate) fn wait(&self, kinds: &Kinds) -> Waiter {
        let (sender, woken) = oneshot::channel();
        let mut waiting = self.lock();
        let number = waiting.next;
        waiting.next += 1;
        let group = waiting.group(kinds);
        if waiting.is_closed {
            let _ = sender.send(Woken::All);
        } else if let Some(group) = waiting.groups.get_mut(group) {
            group.waiting.insert(number, sender);
            waiting.count += 1;
        }
        Waiter {
            waiters: self.clone(),
            kinds: Arc::clone(kinds),
            number,
            woken,
            told: None,
        }
    }

    /// So many builds of a configuration are queued: as many of those who can build it are woken, their
    /// lists in turn, and of one list who waited longest first.
    pub(crate) fn queued(&self, kind: u32, builds: usize) {
        let mut waiting = self.lock();
        for _ in 0..builds {
            if !waiting.wake_one(kind) {
                return;
            }
        }
    }

    /// Wakes all: what they can build may mean something else now.
    pub(crate) fn wake_all(&self) {
        let mut waiting = self.lock();
        for group in &mut waiting.groups {
            for (_, sender) in std::mem::take(&mut group.waiting) {
                let _ = sender.send(Woken::All);
            }
        }
        waiting.count = 0;
    }

    /// Wakes all, and whoever comes later at once.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.wake_all();
    }
}

impl Waiting {
    fn group(&mut self, kinds: &Kinds) -> usize {
        if self.groups.len() >= GROUPS && !self.by_list.contains_key(&kinds.as_ptr().addr()) {
            self.tidy();
        }
        let number = self.groups.len();
        match self.by_list.entry(kinds.as_ptr().addr()) {
            Entry::Occupied(group) => *group.get(),
            Entry::Vacant(vacant) => {
                vacant.insert(number);
                for kind in kinds.iter() {
                    self.able.entry(*kind).or_default().push_back(number);
                }
                self.groups.push(Group {
                    kinds: Arc::clone(kinds),
                    waiting: BTreeMap::new(),
                });
                number
            }
        }
    }

    /// Forgets the lists of those who do not wait now.
    fn tidy(&mut self) {
        let groups = std::mem::take(&mut self.groups);
        self.by_list.clear();
        self.able.clear();
        for group in groups.into_iter().filter(|g| !g.waiting.is_empty()) {
            let number = self.groups.len();
            self.by_list.insert(group.kinds.as_ptr().addr(), number);
            for kind in group.kinds.iter() {
                self.able.entry(*kind).or_default().push_back(number);
            }
            self.groups.push(group);
        }
    }

    fn remove(&mut self, kinds: &Kinds, number: u64) -> Option<oneshot::Sender<Woken>> {
        let group = *self.by_list.get(&kinds.as_ptr().addr())?;
        let sender = self.groups.get_mut(group)?.waiting.remove(&number)?;
        self.count -= 1;
        Some(sender)
    }

    /// Whether there was one.
    fn wake_one(&mut self, kind: u32) -> bool {
        let Some(able) = self.able.get_mut(&kind) else {
            return false;
        };
        for _ in 0..able.len() {
            if self.count == 0 {
                return false;
            }
            let Some(number) = able.pop_front() else {
                return false;
            };
            able.push_back(number);
            let Some(group) = self.groups.get_mut(number) else {
                continue;
            };
            while let Some((_, sender)) = group.waiting.pop_first() {
                self.count -= 1;
                // One that is gone meanwhile is passed by.
                if sender.send(Woken::For(kind)).is_ok() {
                    return true;
                }
            }
        }
        false
    }
}

impl Waiter {
    /// Waits to be woken. Cancel safe.
    pub(crate) async fn woken(&mut self) -> Woken {
        let why = (&mut self.woken).await.unwrap_or(Woken::All);
        self.told = Some(why);
        why
    }

    /// The configuration that it was told of.
    pub(crate) fn kind(&self) -> Option<u32> {
        match self.told {
            Some(Woken::For(kind)) => Some(kind),
            Some(Woken::All) | None => None,
        }
    }

    /// What another waiter of the same request was told of is not for that request: somebody else is told, who may have it.
    pub(crate) fn pass_on(&self, mut told: Self) {
        let Some(kind) = told.kind() else {
            return;
        };
        told.told = None;
        let mut waiting = self.waiters.lock();
        let own = waiting.remove(&self.kinds, self.number);
        waiting.wake_one(kind);
        if let Some(sender) = own {
            let group = waiting.group(&self.kinds);
            if let Some(group) = waiting.groups.get_mut(group) {
                group.waiting.insert(self.number, sender);
                waiting.count += 1;
            }
        }
    }

    /// It has a task, or there is nothing left of what it was told of: nobody else need be.
    pub(crate) fn done(mut self) {
        self.told = None;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = self.waiters.lock();
        let is_here = waiting.remove(&self.kinds, self.number).is_some();
        // It was told, and goes before it could do anything about it: the next one is.
        let unheard = if is_here {
            None
        } else {
            self.woken.try_recv().ok()
        };
        for told in [self.told, unheard] {
            if let Some(Woken::For(kind)) = told {
                waiting.wake_one(kind);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(waiter: &mut Waiter) -> Option<Woken> {
        let woken = waiter.woken.try_recv().ok();
        waiter.told = woken;
        woken
    }

    #[test]
    fn one_that_can_is_woken_for_each_build() {
        let waiters = Waiters::default();
        let (ab, b): (Kinds, Kinds) = (Arc::from([1, 2]), Arc::from([2]));
        let mut first = waiters.wait(&ab);
        let mut second = waiters.wait(&b);
        let mut third = waiters.wait(&ab);
        waiters.queued(3, 5);
        assert_eq!(waiters.lock().count, 3);
        waiters.queued(2, 2);
        assert_eq!(now(&mut first), Some(Woken::For(2)));
        assert_eq!(now(&mut second), Some(Woken::For(2)));
        assert_eq!(now(&mut third), None);
        waiters.queued(1, 9);
        assert_eq!(now(&mut third), Some(Woken::For(1)));
        for waiter in [first, second, third] {
            waiter.done();
        }
        assert_eq!(waiters.lock().count, 0);
        assert_eq!(waiters.lock().groups.len(), 2);
    }

    #[test]
    fn one_that_has_a_task_leaves_the_next_what_it_was_told_of_and_did_not_hear() {
        let waiters = Waiters::default();
        let kinds: Kinds = Arc::from([1]);
        let first = waiters.wait(&kinds);
        let mut second = waiters.wait(&kinds);
        waiters.queued(1, 1);
        first.done();
        assert_eq!(now(&mut second), Some(Woken::For(1)));
    }

    #[test]
    fn lists_of_those_who_wait_no_more_are_forgotten_in_the_end() {
        let waiters = Waiters::default();
        let kept: Kinds = Arc::from([7]);
        let mut waiter = waiters.wait(&kept);
        for number in 0..50_000 {
            let kinds: Kinds = Arc::from([number]);
            waiters.wait(&kinds).done();
        }
        assert!(waiters.lock().groups.len() <= GROUPS);
        waiters.queued(7, 1);
        assert_eq!(now(&mut waiter), Some(Woken::For(7)));
    }

    #[test]
    fn one_that_goes_without_its_task_has_the_next_one_told() {
        let waiters = Waiters::default();
        let kinds: Kinds = Arc::from([1]);
        // Gone before it was told, told and gone before it looked, and looked and gone.
        drop(waiters.wait(&kinds));
        let told = waiters.wait(&kinds);
        let mut looked = waiters.wait(&kinds);
        let mut last = waiters.wait(&kinds);
        waiters.queued(1, 1);
        drop(told);
        assert_eq!(now(&mut looked), Some(Woken::For(1)));
        assert_eq!(now(&mut last), None);
        drop(looked);
        assert_eq!(now(&mut last), Some(Woken::For(1)));
        last.done();
        assert_eq!(waiters.lock().count, 0);
    }

    #[test]
    fn what_is_not_for_one_is_passed_on_to_others_alone() {
        let waiters = Waiters::default();
        let kinds: Kinds = Arc::from([1]);
        let told = |woken: &mut Waiter| now(woken) == Some(Woken::For(1));
        let mut first = waiters.wait(&kinds);
        waiters.queued(1, 1);
        assert!(told(&mut first));
        // It waits anew, and so does another.
        let mut again = waiters.wait(&kinds);
        let mut other = waiters.wait(&Arc::from([1]));
        again.pass_on(first);
        assert!(told(&mut other));
        assert_eq!(now(&mut again), None);
        // There is nobody else: it is told of the next one all the same.
        again.pass_on(other);
        assert_eq!(now(&mut again), None);
        waiters.queued(1, 1);
        assert!(told(&mut again));
        again.done();
        assert_eq!(waiters.lock().count, 0);
    }

    #[test]
    fn all_can_be_woken() {
        let waiters = Waiters::default();
        let mut one = waiters.wait(&Arc::from([1]));
        let mut other = waiters.wait(&Arc::from([]));
        waiters.wake_all();
        assert_eq!(now(&mut one), Some(Woken::All));
        assert_eq!(now(&mut other), Some(Woken::All));
        let mut again = waiters.wait(&Arc::from([1]));
        assert_eq!(now(&mut again), None);
        waiters.close();
        assert_eq!(now(&mut again), Some(Woken::All));
        assert_eq!(now(&mut waiters.wait(&Arc::from([1]))), Some(Woken::All));
    }
}
