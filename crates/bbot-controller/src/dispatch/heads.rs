//! The builds of each configuration that are next, as the store has them: kept until they may have changed, and each given to one
//! request only, so that those that come at once do not run for the same one.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::waiters::Waiters;
use crate::queue::failure::Failures;
use crate::store::Head;

/// So many builds of a configuration are looked up at once.
const AT_ONCE: usize = 32;

/// What is known of a kind: a configuration in a lane.
#[derive(Debug, Clone, Default)]
struct Slot {
    /// In the order of the queue.
    heads: VecDeque<Head>,
    /// No others wait in the store.
    is_all: bool,
    /// Counts up whenever others may wait than a look that is under way can see.
    changes: u64,
    /// Those that were queued while nothing was known, which a look that is under way may not see: the first ones.
    unseen: Vec<Head>,
}

/// A slot of which nothing is known.
static NOTHING: Slot = Slot {
    heads: VecDeque::new(),
    is_all: false,
    changes: 0,
    unseen: Vec::new(),
};

/// The heads of the kinds of one reading of the buildtab, by their numbers.
#[derive(Debug)]
pub(crate) struct Heads {
    state: Mutex<State>,
    /// Who is told of a build that was given and is free again.
    waiters: Waiters,
}

#[derive(Debug)]
struct State {
    slots: Vec<Slot>,
    /// Those of other lanes.
    extra: HashMap<u32, Slot>,
    /// Builds that were given to a request and may still wait in the store.
    given: HashSet<i64>,
}

/// A look at the store that is under way.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub(crate) struct Look {
    /// What is to be looked up.
    pub(crate) kind: u32,
    /// So many builds are to be looked up: those that are given to requests now may be the first.
    pub(crate) limit: usize,
    changes: u64,
}

/// What is to be done to know which build is next.
#[derive(Debug)]
pub(crate) enum Next<'a> {
    /// This one.
    Given(Given<'a>),
    /// None of these kinds has any; or, when it `is_refused`, none but those that others are to build.
    None { is_refused: bool },
    /// These have to be looked up first.
    LookUp(Vec<Look>),
}

/// A build that no other request is given, until this is dropped.
#[derive(Debug)]
pub(crate) struct Given<'a> {
    heads: &'a Heads,
    /// Its kind.
    pub(crate) kind: u32,
    /// Its number.
    pub(crate) build: i64,
    is_gone: bool,
}

impl Heads {
    /// So many configurations, of which nothing is known.
    pub(crate) fn new(configurations: usize, waiters: Waiters) -> Self {
        let state = Mutex::new(State {
            slots: vec![Slot::default(); configurations],
            extra: HashMap::new(),
            given: HashSet::new(),
        });
        Self { state, waiters }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of these kinds the build with the lowest place, without those that are refused: `refuses` says so of one of a
    /// kind, by where its machine has failed.
    pub(crate) fn next(&self, kinds: &[u32], refuses: impl Fn(u32, &Failures) -> bool) -> Next<'_> {
        let mut state = self.lock();
        let mut unknown = Vec::new();
        let mut lowest: Option<(i64, i64, u32, usize)> = None;
        let mut is_refused = false;
        for kind in kinds {
            let slot = state.slot(*kind).unwrap_or(&NOTHING);
            let is_open = |head: &Head| head.failures.is_empty() || !refuses(*kind, &head.failures);
            match slot.heads.iter().position(is_open) {
                Some(at) => {
                    let head = &slot.heads[at];
                    let this = (head.place, head.build, *kind, at);
                    lowest = Some(lowest.map_or(this, |lowest| lowest.min(this)));
                }
                // One whose host so many avoid gets what is behind them once others have taken these.
                None if !slot.heads.is_empty() => is_refused = true,
                None if !slot.is_all => unknown.push(Look {
                    kind: *kind,
                    limit: AT_ONCE + state.given.len(),
                    changes: slot.changes,
                }),
                None => {}
            }
        }
        if !unknown.is_empty() {
            return Next::LookUp(unknown);
        }
        let Some((_, build, kind, at)) = lowest else {
            return Next::None { is_refused };
        };
        state.slot_mut(kind).heads.remove(at);
        drop(state);
        Next::Given(self.give(kind, build))
    }

    /// Gives this build, whose kind is that, as it was found elsewhere.
    pub(crate) fn give(&self, kind: u32, build: i64) -> Given<'_> {
        self.lock().given.insert(build);
        Given {
            heads: self,
            kind,
            build,
            is_gone: false,
        }
    }

    /// What a look has found, in their order. It may have missed something that has changed since it began: then there may be others, and
    /// what it has found counts with what is known to have come meanwhile, else nobody would get anything as long as builds are
    /// queued faster than looked up.
    pub(crate) fn found(&self, look: Look, heads: &[Head]) {
        let mut state = self.lock();
        let State {
            slots,
            extra,
            given,
        } = &mut *state;
        let slot = slot_of(slots, extra, look.kind);
        let is_late = slot.changes != look.changes;
        if is_late && !slot.heads.is_empty() {
            return;
        }
        let unseen = std::mem::take(&mut slot.unseen);
        let mut all = heads.to_vec();
        if is_late {
            all.extend(unseen);
            all.sort_unstable();
            all.dedup_by_key(|head| head.build);
        }
        all.retain(|head| !given.contains(&head.build));
        slot.heads = all.into();
        slot.is_all = !is_late && heads.len() < look.limit;
    }

    /// Another build waits.
    pub(crate) fn queued(&self, kind: u32, head: Head) {
        let mut state = self.lock();
        let slot = state.slot_mut(kind);
        slot.changes += 1;
        let at = slot.heads.partition_point(|other| *other < head);
        // Behind the last that is known there may be others before it.
        if at < slot.heads.len() || slot.is_all {
            slot.heads.insert(at, head);
            if slot.heads.len() > AT_ONCE {
                slot.heads.pop_back();
                slot.is_all = false;
            }
        } else if slot.heads.is_empty() {
            let at = slot.unseen.partition_point(|other| *other < head);
            slot.unseen.insert(at, head);
            slot.unseen.truncate(AT_ONCE);
        }
    }

    /// It has changed: nothing is known of it.
    pub(crate) fn changed(&self, kind: u32) {
        self.lock().slot_mut(kind).forget();
    }

    /// Nothing is known of any.
    pub(crate) fn all_changed(&self) {
        let mut state = self.lock();
        let State { slots, extra, .. } = &mut *state;
        for slot in slots.iter_mut().chain(extra.values_mut()) {
            slot.forget();
        }
    }
}

impl State {
    fn slot(&self, kind: u32) -> Option<&Slot> {
        let plain = self.slots.get(kind as usize);
        plain.or_else(|| self.extra.get(&kind))
    }

    fn slot_mut(&mut self, kind: u32) -> &mut Slot {
        slot_of(&mut self.slots, &mut self.extra, kind)
    }
}

/// What is known of a kind; who names one knows that there is one.
fn slot_of<'a>(
    slots: &'a mut [Slot],
    extra: &'a mut HashMap<u32, Slot>,
    kind: u32,
) -> &'a mut Slot {
    match slots.get_mut(kind as usize) {
        Some(slot) => slot,
        None => extra.entry(kind).or_default(),
    }
}

impl Slot {
    fn forget(&mut self) {
        self.heads.clear();
        self.is_all = false;
        self.changes += 1;
    }
}

impl Given<'_> {
    /// It does not wait any more: handed out, or gone otherwise.
    pub(crate) fn gone(mut self) {
        self.is_gone = true;
    }
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        let mut state = self.heads.lock();
        state.given.remove(&self.build);
        // Whether it waits still is for the store to say; a look that is under way may have passed over it.
        if self.is_gone {
            return;
        }
        state.slot_mut(self.kind).forget();
        drop(state);
        // Whoever was woken for it may have found it given, and wait again.
        self.heads.waiters.queued(self.kind, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the store has, by configuration.
    type Store = Vec<Vec<Head>>;

    fn waiters() -> Waiters {
        Waiters::new(std::sync::Arc::new(super::super::lanes::Lanes::new(9)))
    }

    fn head(place: i64, build: i64) -> Head {
        Head {
            place,
            build,
            failures: Failures::default(),
        }
    }

    fn first(store: &Store, kind: u32, limit: usize) -> Vec<Head> {
        let mut all = store[kind as usize].clone();
        all.sort_unstable();
        all.truncate(limit);
        all
    }

    fn next<'a>(heads: &'a Heads, kinds: &[u32], store: &Store) -> Option<Given<'a>> {
        loop {
            match heads.next(kinds, |_, _| false) {
                Next::Given(given) => return Some(given),
                Next::None { .. } => return None,
                Next::LookUp(looks) => {
                    for look in looks {
                        heads.found(look, &first(store, look.kind, look.limit));
                    }
                }
            }
        }
    }

    #[test]
    fn what_changes_during_a_look_is_looked_up_again() {
        let heads = Heads::new(2, waiters());
        let Next::LookUp(looks) = heads.next(&[1], |_, _| false) else {
            panic!("nothing is known yet")
        };
        let store = vec![vec![], vec![head(5, 5)]];
        heads.queued(1, head(5, 5));
        // It did not see what came meanwhile.
        heads.found(looks[0], &[]);
        assert_eq!(next(&heads, &[1], &store).unwrap().build, 5);
        // One of another lane has nothing that is known, either.
        assert!(matches!(heads.next(&[9], |_, _| false), Next::LookUp(_)));
        heads.queued(9, head(7, 7));
        heads.found(
            Look {
                kind: 9,
                limit: 2,
                changes: 1,
            },
            &[head(7, 7)],
        );
        assert_eq!(next(&heads, &[9], &store).unwrap().build, 7);
    }

    /// Each look is overtaken by builds that are queued: they are given all the same, in their order.
    #[test]
    fn queueing_faster_than_a_look_holds_nobody_up() {
        let heads = Heads::new(1, waiters());
        let give = |store: &[Head], meanwhile: Head| match heads.next(&[0], |_, _| false) {
            Next::Given(given) => {
                let build = given.build;
                given.gone();
                Some(build)
            }
            Next::None { .. } => None,
            Next::LookUp(looks) => {
                heads.queued(0, meanwhile);
                heads.found(looks[0], store);
                Some(-1)
            }
        };
        let (a, b) = (head(3, 30), head(7, 70));
        assert_eq!(give(&[a.clone(), b.clone()], head(5, 50)), Some(-1));
        for build in [30, 50, 70] {
            assert_eq!(give(&[], head(0, 0)), Some(build));
        }
        // Others may wait: it looks again, and what it does not see yet is known all the same.
        assert_eq!(give(&[], head(9, 90)), Some(-1));
        assert_eq!(give(&[], head(0, 0)), Some(90));
        // What came before the look was seen by it.
        heads.queued(0, head(1, 10));
        let Next::LookUp(looks) = heads.next(&[0], |_, _| false) else {
            panic!("it looks again")
        };
        heads.found(looks[0], &[]);
        assert!(matches!(heads.next(&[0], |_, _| false), Next::None { .. }));
    }

    #[test]
    fn a_build_is_given_once_until_it_is_given_back() {
        let heads = Heads::new(1, waiters());
        let store = vec![vec![head(1, 10), head(2, 20)]];
        let one = next(&heads, &[0], &store).unwrap();
        let two = next(&heads, &[0], &store).unwrap();
        assert_eq!((one.build, two.build), (10, 20));
        // A new look finds both in the store, and gives neither.
        heads.changed(0);
        assert!(next(&heads, &[0], &store).is_none());
        drop(one);
        two.gone();
        let again = next(&heads, &[0], &vec![vec![head(1, 10)]]).unwrap();
        assert_eq!(again.build, 10);
    }

    #[test]
    fn what_is_for_others_is_passed_by() {
        let heads = Heads::new(2, waiters());
        let failed = |place, build, host: &str| Head {
            failures: Failures::default().with(host).with(host),
            ..head(place, build)
        };
        let store = vec![
            vec![failed(1, 1, "a"), failed(2, 2, "b"), head(4, 4)],
            vec![failed(3, 3, "a")],
        ];
        // What is known of both.
        drop(next(&heads, &[0, 1], &store));
        let give = |host: &str, kinds: &[u32]| loop {
            match heads.next(kinds, |_, failures| failures.avoids(host)) {
                Next::Given(given) => {
                    let build = given.build;
                    given.gone();
                    return Ok(build);
                }
                Next::None { is_refused } => return Err(is_refused),
                Next::LookUp(looks) => {
                    for look in looks {
                        heads.found(look, &first(&store, look.kind, look.limit));
                    }
                }
            }
        };
        assert_eq!(give("a", &[0, 1]), Ok(2));
        assert_eq!(give("a", &[0, 1]), Ok(4));
        assert_eq!(give("a", &[0, 1]), Err(true));
        assert_eq!(give("b", &[1]), Ok(3));
        assert_eq!(give("b", &[0]), Ok(1));
        assert_eq!(give("a", &[0, 1]), Err(false));
    }

    #[test]
    fn more_requests_at_once_than_are_looked_up() {
        let heads = Heads::new(1, waiters());
        let builds = 3 * i64::try_from(AT_ONCE).unwrap();
        let store = vec![(0..builds).map(|n| head(n, n)).collect()];
        let all: Vec<_> = std::iter::from_fn(|| next(&heads, &[0], &store)).collect();
        let given: Vec<i64> = all.iter().map(|given| given.build).collect();
        assert_eq!(given, (0..builds).collect::<Vec<_>>());
    }

    proptest! {
        /// Whatever happens, each build is given in the order of the queue, and none is left out.
        #[test]
        fn the_lowest_of_the_store(
            steps in proptest::collection::vec((0_u32..3, 0_i64..50, 0_u8..8), 0..400),
        ) {
            let heads = Heads::new(3, waiters());
            let mut store: Store = vec![Vec::new(); 3];
            for (number, (kind, place, what)) in steps.into_iter().enumerate() {
                match what {
                    0..=3 => {
                        let head = head(place, i64::try_from(number).unwrap());
                        store[kind as usize].push(head.clone());
                        heads.queued(kind, head);
                    }
                    // Somebody else takes one without a word, and tells it later.
                    4 => {
                        let lowest = first(&store, kind, 1).pop();
                        store[kind as usize].retain(|head| Some(head) != lowest.as_ref());
                        heads.changed(kind);
                    }
                    5 => heads.all_changed(),
                    _ => {
                        let expected = (0..3).filter_map(|k| first(&store, k, 1).pop()).min();
                        let given = next(&heads, &[0, 1, 2], &store);
                        prop_assert_eq!(given.as_ref().map(|g| g.build), expected.map(|head| head.build));
                        if let Some(given) = given.filter(|_| what == 6) {
                            for builds in &mut store {
                                builds.retain(|head| head.build != given.build);
                            }
                            given.gone();
                        }
                    }
                }
            }
        }
    }
}
