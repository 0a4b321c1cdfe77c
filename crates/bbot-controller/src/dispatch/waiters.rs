//! Who waits for a task: of those that can build what was queued, one is woken for each build, and no other.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::abilities::Abilities;
use super::lanes::Lanes;

/// Those who wait.
#[derive(Debug, Clone)]
pub(crate) struct Waiters {
    waiting: Arc<Mutex<Waiting>>,
    lanes: Arc<Lanes>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Nobody waits here any more.
    is_closed: bool,
    /// How many wait.
    count: usize,
    /// Counts up, so that who waits longest has the lowest.
    next: u64,
    /// What somebody can build, each with who can do just that and waits. They stay when nobody does: who has asked once asks again.
    groups: Vec<Group>,
    /// The group of these, by where they are in memory: the group keeps them there.
    by_place: HashMap<usize, usize>,
    /// The groups that can build a kind; the one whose turn is next is the first.
    able: HashMap<u32, VecDeque<usize>>,
    /// The same for kinds of other lanes than the plain one, of those that were asked for.
    extra: HashMap<u32, VecDeque<usize>>,
    /// The room that the groups take, in bytes, by and large; and what was left of it when they were tidied last.
    bytes: usize,
    left: usize,
}

#[derive(Debug)]
struct Group {
    able: Arc<Abilities>,
    waiting: BTreeMap<u64, oneshot::Sender<Woken>>,
}

/// Why somebody was woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// This kind has a build more.
    For(u32),
    /// All were.
    All,
}

/// Somebody who waits, until this is dropped.
#[derive(Debug)]
pub(crate) struct Waiter {
    waiters: Waiters,
    able: Arc<Abilities>,
    number: u64,
    woken: oneshot::Receiver<Woken>,
    /// It was told of something, and it is not known yet what became of that.
    told: Option<Woken>,
}

/// More lists than agents of a large farm have.
const GROUPS: usize = 20_000;

/// They have as many bytes, or twice as many as those that wait.
const BYTES: usize = 128 * 1024 * 1024;

impl Group {
    fn bytes(&self) -> usize {
        self.able.bytes() + self.able.kinds.len() * size_of::<usize>()
    }
}

impl Waiters {
    /// Nobody waits. `lanes`: those that builds wait in.
    pub(crate) fn new(lanes: Arc<Lanes>) -> Self {
        Self {
            waiting: Arc::default(),
            lanes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits from now on. What is queued later is told; what was before has to be looked for after this.
    pub(crate) fn wait(&self, able: &Arc<Abilities>) -> Waiter {
        let (sender, woken) = oneshot::channel();
        let mut waiting = self.lock();
        let number = waiting.next;
        waiting.next += 1;
        let group = waiting.group(able, &self.lanes);
        if waiting.is_closed {
            let _ = sender.send(Woken::All);
        } else if let Some(group) = waiting.groups.get_mut(group) {
            group.waiting.insert(number, sender);
            waiting.count += 1;
        }
        Waiter {
            waiters: self.clone(),
            able: Arc::clone(able),
            number,
            woken,
            told: None,
        }
    }

    /// So many builds of a kind are queued: as many of those who can build it are woken, their
    /// lists in turn, and of one list who waited longest first.
    pub(crate) fn queued(&self, kind: u32, builds: usize) {
        let mut waiting = self.lock();
        for _ in 0..builds {
            if !waiting.wake_one(kind, &self.lanes) {
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

/// Where they are in memory.
fn place(able: &Arc<Abilities>) -> usize {
    Arc::as_ptr(able).addr()
}

impl Waiting {
    fn group(&mut self, able: &Arc<Abilities>, lanes: &Lanes) -> usize {
        if let Some(group) = self.by_place.get(&place(able)) {
            return *group;
        }
        if self.groups.len() >= GROUPS || self.bytes > BYTES.max(2 * self.left) {
            self.tidy();
        }
        let group = Group {
            able: Arc::clone(able),
            waiting: BTreeMap::new(),
        };
        self.add(group, lanes)
    }

    fn add(&mut self, group: Group, lanes: &Lanes) -> usize {
        let number = self.groups.len();
        self.by_place.insert(place(&group.able), number);
        self.bytes += group.bytes();
        for kind in group.able.kinds.iter() {
            self.able.entry(*kind).or_default().push_back(number);
        }
        for (kind, able) in &mut self.extra {
            if lanes.can(&group.able, *kind) {
                able.push_back(number);
            }
        }
        self.groups.push(group);
        number
    }

    /// Forgets what those can build who do not wait now.
    fn tidy(&mut self) {
        let groups = std::mem::take(&mut self.groups);
        self.by_place.clear();
        self.able.clear();
        // Found again when they are asked for.
        self.extra.clear();
        self.bytes = 0;
        for group in groups.into_iter().filter(|g| !g.waiting.is_empty()) {
            self.add(group, &Lanes::new(0));
        }
        self.left = self.bytes;
    }

    fn remove(&mut self, able: &Arc<Abilities>, number: u64) -> Option<oneshot::Sender<Woken>> {
        let group = *self.by_place.get(&place(able))?;
        let sender = self.groups.get_mut(group)?.waiting.remove(&number)?;
        self.count -= 1;
        Some(sender)
    }

    /// The groups that can build a kind.
    fn able(&mut self, kind: u32, lanes: &Lanes) -> Option<&mut VecDeque<usize>> {
        if lanes.is_plain(kind) {
            return self.able.get_mut(&kind);
        }
        let groups = &self.groups;
        let find = || {
            let all = groups.iter().enumerate();
            let can = all.filter(|(_, group)| lanes.can(&group.able, kind));
            can.map(|(number, _)| number).collect()
        };
        Some(self.extra.entry(kind).or_insert_with(find))
    }

    /// Whether there was one.
    fn wake_one(&mut self, kind: u32, lanes: &Lanes) -> bool {
        let groups = self.able(kind, lanes).map_or(0, |able| able.len());
        for _ in 0..groups {
            if self.count == 0 {
                return false;
            }
            let able = self.able(kind, lanes);
            let Some(number) = able.and_then(|able| {
                able.rotate_left(1);
                able.back().copied()
            }) else {
                return false;
            };
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

    /// The kind that it was told of.
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
        let own = waiting.remove(&self.able, self.number);
        waiting.wake_one(kind, &self.waiters.lanes);
        if let Some(sender) = own {
            let group = waiting.group(&self.able, &self.waiters.lanes);
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
        let is_here = waiting.remove(&self.able, self.number).is_some();
        // It was told, and goes before it could do anything about it: the next one is.
        let unheard = if is_here {
            None
        } else {
            self.woken.try_recv().ok()
        };
        for told in [self.told, unheard] {
            if let Some(Woken::For(kind)) = told {
                waiting.wake_one(kind, &self.waiters.lanes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of many configurations.
    fn waiters() -> Waiters {
        Waiters::new(Arc::new(Lanes::new(100_000)))
    }

    fn now(waiter: &mut Waiter) -> Option<Woken> {
        let woken = waiter.woken.try_recv().ok();
        waiter.told = woken;
        woken
    }

    #[test]
    fn one_that_can_is_woken_for_each_build() {
        let waiters = waiters();
        let (ab, b) = (Abilities::plain(&[1, 2]), Abilities::plain(&[2]));
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
        let waiters = waiters();
        let kinds = Abilities::plain(&[1]);
        let first = waiters.wait(&kinds);
        let mut second = waiters.wait(&kinds);
        waiters.queued(1, 1);
        first.done();
        assert_eq!(now(&mut second), Some(Woken::For(1)));
    }

    #[test]
    fn lists_of_those_who_wait_no_more_are_forgotten_in_the_end() {
        let waiters = waiters();
        let kept = Abilities::plain(&[7]);
        let mut waiter = waiters.wait(&kept);
        for number in 0..50_000 {
            let kinds = Abilities::plain(&[number]);
            waiters.wait(&kinds).done();
        }
        assert!(waiters.lock().groups.len() <= GROUPS);
        // Long ones sooner.
        let many: Vec<u32> = (8..10_000).collect();
        for _ in 0..1500 {
            waiters.wait(&Abilities::plain(&many)).done();
            assert!(waiters.lock().bytes <= BYTES + (1 << 20));
        }
        let waiting = waiters.lock();
        assert!(waiting.groups.len() < 1000);
        let held: usize = waiting.groups.iter().map(Group::bytes).sum();
        assert_eq!(held, waiting.bytes);
        drop(waiting);
        waiters.queued(7, 1);
        assert_eq!(now(&mut waiter), Some(Woken::For(7)));
    }

    #[test]
    fn one_that_goes_without_its_task_has_the_next_one_told() {
        let waiters = waiters();
        let kinds = Abilities::plain(&[1]);
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
        let waiters = waiters();
        let kinds = Abilities::plain(&[1]);
        let told = |woken: &mut Waiter| now(woken) == Some(Woken::For(1));
        let mut first = waiters.wait(&kinds);
        waiters.queued(1, 1);
        assert!(told(&mut first));
        // It waits anew, and so does another.
        let mut again = waiters.wait(&kinds);
        let mut other = waiters.wait(&Abilities::plain(&[1]));
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
        let waiters = waiters();
        let mut one = waiters.wait(&Abilities::plain(&[1]));
        let mut other = waiters.wait(&Abilities::plain(&[]));
        waiters.wake_all();
        assert_eq!(now(&mut one), Some(Woken::All));
        assert_eq!(now(&mut other), Some(Woken::All));
        let mut again = waiters.wait(&Abilities::plain(&[1]));
        assert_eq!(now(&mut again), None);
        waiters.close();
        assert_eq!(now(&mut again), Some(Woken::All));
        assert_eq!(
            now(&mut waiters.wait(&Abilities::plain(&[1]))),
            Some(Woken::All)
        );
    }

    /// What waits in a lane is told to those who serve it, also when the lane is new and they wait already.
    #[test]
    fn lanes_that_are_new_find_those_who_serve_them() {
        use crate::buildtab::Buildtab;
        use crate::dispatch::abilities::Learned;
        use crate::queue::lane::tests::interactive;
        use crate::queue::reach::Reach;
        use crate::queue::select::{Offer, Role};
        use crate::store::Kind;
        use bbot_manifest::{Era, InteractiveMode};
        let tab = Buildtab::parse("linux* a t\nbsd* b t\n", "t").unwrap();
        let learned = Learned::default();
        let able = |name, mode| {
            let reach = Reach {
                interactive: Some(mode),
                ..Reach::default()
            };
            let role = Role::Build;
            learned.of(&tab, &[Offer { name, role }], Era::Later, reach)
        };
        let lanes = Arc::new(Lanes::new(2));
        let waiters = Waiters::new(Arc::clone(&lanes));
        let (plain, both) = (
            able("linux", InteractiveMode::False),
            able("linux", InteractiveMode::Both),
        );
        let (other, only) = (
            able("bsd", InteractiveMode::Both),
            able("linux", InteractiveMode::True),
        );
        let mut waiting: Vec<Waiter> = [&plain, &both, &other]
            .map(|able| waiters.wait(able))
            .into();
        let told = Kind::of("a", "t", &interactive().text());
        let kind = lanes.learn(0, &interactive(), told).unwrap();
        waiters.queued(kind, 3);
        let woken: Vec<bool> = waiting
            .iter_mut()
            .map(|w| now(w) == Some(Woken::For(kind)))
            .collect();
        assert_eq!(woken, [false, true, false]);
        // One that comes later is found as well, and it gets nothing plain.
        let mut only = waiters.wait(&only);
        waiters.queued(0, 1);
        assert_eq!(now(&mut waiting[0]), Some(Woken::For(0)));
        assert_eq!(now(&mut only), None);
        waiters.queued(kind, 1);
        assert_eq!(now(&mut only), Some(Woken::For(kind)));
        for waiter in waiting.into_iter().chain([only]) {
            waiter.done();
        }
    }
}
