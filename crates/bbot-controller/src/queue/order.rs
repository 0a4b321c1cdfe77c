//! The order in which waiting builds are handed out: each has a *place* when it is queued, and the lowest place goes first.
//!
//! ```text
//!   place      =  turn + grade
//!   turn       =  the later of now and the submitter's next turn (in this class)
//!   next turn  =  turn + share
//!   grade      =  that of the class  -  2 h x priority (-2 to 2)
//!                 forced 4 h, new 16 h, rebuild 28 h
//!   share      =  the time in which the farm takes one build from the queue
//! ```
//!
//! *Forced, then new, then rebuilds; higher priorities first; nothing for ever.* A place is a time, so waiting counts: a build is
//! passed by others of a better grade only as long as these are queued within the difference of their grades. Once its place is past, nothing that is
//! queued then goes before it.
//!
//! *Fair between submitters.* Who queues a thousand builds at once gets a thousand turns, one share apart; what somebody else
//! queues meanwhile has the turn that is now, and so goes in between. Within a submitter and a class the oldest request goes first. Turns of
//! builds that are cancelled while they wait are given back.
//!
//! *The newest version first.* Of one package in one configuration, the builds of a submitter and a class keep their places among
//! them but exchange them by version, when one more is queued. One that has waited for a day keeps the place that it has then: else an
//! old version would wait for as long as newer ones come.
//!
//! A place never has to be computed anew, so an index finds the lowest one, however many builds wait.

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bbot_manifest::PackageVersion;

use crate::clock::Millis;

const HOUR: i64 = 3_600_000;

/// Why a build is queued, the most urgent reason first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A person has asked for this build, or waits to log in to its machine.
    Forced,
    /// There is no result yet.
    New,
    /// There is a result, which is old.
    Rebuild,
}

impl Class {
    /// All, the most urgent first.
    pub const ALL: [Self; 3] = [Self::Forced, Self::New, Self::Rebuild];

    /// The one text form, in the store and the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forced => "forced",
            Self::New => "new",
            Self::Rebuild => "rebuild",
        }
    }

    /// That of a submission's builds: an interactive one is waited for by a person.
    #[must_use]
    pub fn of_submission(is_interactive: bool) -> Self {
        if is_interactive {
            Self::Forced
        } else {
            Self::New
        }
    }

    fn grade(self) -> i64 {
        match self {
            Self::Forced => 4 * HOUR,
            Self::New => 16 * HOUR,
            Self::Rebuild => 28 * HOUR,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not one of forced, new, rebuild")]
pub struct UnknownClass(pub String);

impl FromStr for Class {
    type Err = UnknownClass;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|class| class.as_str() == text)
            .ok_or_else(|| UnknownClass(text.to_owned()))
    }
}

/// How urgent a submission is within its class: from -2 to 2, 0 when nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Priority(i64);

/// A number that is no priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a priority: expected a number from -2 (last) to 2 (first)")]
pub struct BadPriority(pub i64);

impl Priority {
    /// This priority.
    ///
    /// # Errors
    /// It is not from -2 to 2.
    pub fn new(number: i64) -> Result<Self, BadPriority> {
        if (-2..=2).contains(&number) {
            Ok(Self(number))
        } else {
            Err(BadPriority(number))
        }
    }

    /// As a number.
    #[must_use]
    pub fn number(self) -> i64 {
        self.0
    }
}

/// The place of a build whose turn is this: milliseconds since 1970, so that it can be compared with times.
#[must_use]
pub fn place(turn: Millis, class: Class, priority: Priority) -> i64 {
    turn.0
        .saturating_add(class.grade())
        .saturating_sub(2 * HOUR * priority.0)
}

/// A submitter's turn in a class, and the one after it. `next`: what the one before has left.
#[must_use]
pub fn turn(now: Millis, next: Option<Millis>, share: Duration) -> (Millis, Millis) {
    let turn = next.map_or(now, |next| next.max(now));
    (turn, turn.plus(share))
}

/// The turn of a build that has this place.
#[must_use]
pub fn turn_of(place: i64, class: Class, priority: Priority) -> Millis {
    Millis(
        place
            .saturating_sub(class.grade())
            .saturating_add(2 * HOUR * priority.0),
    )
}

/// A submitter's next turn after waiting builds with these turns of theirs are cancelled: one share for each that was still to
/// come, and never before the first of them.
#[must_use]
pub fn given_back(next: Millis, cancelled: &[Millis], now: Millis, share: Duration) -> Millis {
    let to_come = || cancelled.iter().copied().filter(|turn| *turn >= now);
    let Some(first) = to_come().min() else {
        return next;
    };
    let shares = u32::try_from(to_come().count()).unwrap_or(u32::MAX);
    let back = i64::try_from(share.saturating_mul(shares).as_millis()).unwrap_or(i64::MAX);
    next.min(first.max(Millis(next.0.saturating_sub(back))))
}

/// The shortest and the longest share: what is measured is about this farm now, and must not throw anybody far back.
const SHARE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// How fast the farm takes builds from the queue while some wait.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    share: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            share: Duration::from_secs(1),
        }
    }
}

impl Pace {
    /// The pace after a build was taken that had been queued when the one before was: a time in which some waited all along.
    /// An eighth of what is new counts, so that one long pause is little.
    #[must_use]
    pub fn after(self, since: Duration) -> Self {
        let share = (self.share * 7 + since.min(SHARE.1)) / 8;
        Self {
            share: share.clamp(SHARE.0, SHARE.1),
        }
    }

    /// The time in which one build is taken.
    #[must_use]
    pub fn share(self) -> Duration {
        self.share
    }
}

/// A build exchanges its place for so long after it was queued.
const EXCHANGED: u64 = 24 * 3600;

/// Whether a build that was queued then still exchanges its place.
#[must_use]
pub fn is_exchanged(queued: Millis, now: Millis) -> bool {
    queued.plus_seconds(EXCHANGED) > now
}

/// Exchanges the places of waiting builds of one package in one configuration so that newer versions go first: for each of
/// them (place and version), in the order given, its new place. Of one version the older request goes first; what is no version is older
/// than all that are.
#[must_use]
pub fn by_version(builds: &[(i64, &str)]) -> Vec<i64> {
    let mut newest: Vec<usize> = (0..builds.len()).collect();
    newest.sort_by_cached_key(|&index| {
        let (place, version) = builds[index];
        (Reverse(version.parse::<PackageVersion>().ok()), place)
    });
    let mut sorted: Vec<i64> = builds.iter().map(|(place, _)| *place).collect();
    sorted.sort_unstable();
    let mut new = sorted.clone();
    for (index, place) in newest.into_iter().zip(sorted) {
        new[index] = place;
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn classes_and_priorities() {
        let normal = Priority::default();
        let now = Millis(1_000_000);
        let at = |class, priority| place(now, class, Priority::new(priority).unwrap());
        let order = [
            at(Class::Forced, 2),
            at(Class::Forced, 0),
            at(Class::Forced, -2),
            at(Class::New, 2),
            at(Class::New, 1),
            at(Class::New, 0),
            at(Class::New, -2),
            at(Class::Rebuild, 2),
            at(Class::Rebuild, 0),
            at(Class::Rebuild, -2),
        ];
        assert!(order.is_sorted_by(|a, b| a < b), "{order:?}");
        // A rebuild that has waited for a day goes before what is forced now.
        let tomorrow = now.plus_seconds(24 * 3600 + 1);
        assert!(place(now, Class::Rebuild, normal) < place(tomorrow, Class::Forced, normal));
        assert_eq!(Priority::new(3), Err(BadPriority(3)));
        assert_eq!(Class::of_submission(true), Class::Forced);
        assert_eq!(Class::of_submission(false), Class::New);
        for class in Class::ALL {
            assert_eq!(class.to_string().parse(), Ok(class));
        }
        assert_eq!(
            "New".parse::<Class>().unwrap_err().to_string(),
            "\"New\" is not one of forced, new, rebuild"
        );
    }

    #[test]
    fn the_pace_follows_the_farm_within_bounds() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace = pace.after(Duration::from_millis(300));
        }
        assert!((pace.share().as_millis()).abs_diff(300) <= 8, "{pace:?}");
        for (since, expected) in [(Duration::ZERO, SHARE.0), (Duration::MAX, SHARE.1)] {
            for _ in 0..1000 {
                pace = pace.after(since);
            }
            assert!(
                pace.share().abs_diff(expected) < Duration::from_millis(10),
                "{pace:?}"
            );
        }
    }

    #[test]
    fn newer_versions_take_the_better_places() {
        let new = by_version(&[(10, "1.9"), (20, "1.11"), (30, "1.10"), (40, "1.11")]);
        assert_eq!(new, [40, 10, 30, 20]);
        assert_eq!(by_version(&[(1, "?"), (2, "0.0.1-a.1")]), [2, 1]);
        assert!(by_version(&[]).is_empty());
    }

    #[test]
    fn turns_of_cancelled_builds_are_given_back() {
        let share = Duration::from_secs(1);
        let (now, next) = (Millis(5_000), Millis(100_000));
        for (cancelled, expected) in [
            (vec![], 100_000),
            // What had its turn has used it.
            (vec![4_000, 4_999], 100_000),
            (vec![5_000, 4_000], 99_000),
            // From the middle: those behind keep their turns, and what comes goes among them.
            (vec![30_000, 31_000, 32_000], 97_000),
            // Shares were shorter when these were taken: no more than they had.
            (vec![99_500, 99_600, 99_700], 99_500),
            // What had exchanged its place with one of another priority seems to be later than it was.
            (vec![800_000], 100_000),
        ] {
            let cancelled: Vec<Millis> = cancelled.into_iter().map(Millis).collect();
            let left = given_back(next, &cancelled, now, share);
            assert_eq!(left, Millis(expected), "{cancelled:?}");
        }
    }

    /// A request of the tests: who, when (a step of time before it), how many builds, of which kind.
    type Request = (u8, u64, u8, u8, i64);

    fn class(number: u8) -> Class {
        Class::ALL[usize::from(number) % 3]
    }

    proptest! {
        /// Whatever comes later: once a build's place is past, nothing is queued before it any more. So it waits for the builds that
        /// were before it then, and for no others.
        #[test]
        fn nothing_waits_for_ever(
            requests in proptest::collection::vec((0_u8..4, 0_u64..40_000, 1_u8..20, any::<u8>(), -2_i64..=2), 1..40),
            pace in 0_u64..70_000,
        ) {
            let share = Pace::default().after(Duration::from_millis(pace)).share();
            let mut next: BTreeMap<(u8, Class), Millis> = BTreeMap::new();
            let mut now = Millis(0);
            let mut queued: Vec<i64> = Vec::new();
            for (who, step, builds, kind, priority) in requests as Vec<Request> {
                now = now.plus_seconds(step);
                for _ in 0..builds {
                    let key = (who, class(kind));
                    let (turn, after) = turn(now, next.get(&key).copied(), share);
                    next.insert(key, after);
                    let place = place(turn, class(kind), Priority::new(priority).unwrap());
                    prop_assert!(queued.iter().all(|p| *p >= now.0 || *p < place));
                    queued.push(place);
                }
            }
        }

        /// However many one has queued, what another queues is taken in turn with it.
        #[test]
        fn a_flood_does_not_hold_up_others(flood in 10_usize..300, taken in 0_usize..200, few in 1_usize..20) {
            let share = Pace::default().share();
            let taken = taken.min(flood);
            let mut queue: Vec<(i64, bool)> = Vec::new();
            let mut queue_up = |now: Millis, builds: usize, is_other: bool| {
                let mut next = None;
                for _ in 0..builds {
                    let (turn, after) = turn(now, next, share);
                    next = Some(after);
                    queue.push((place(turn, Class::New, Priority::default()), is_other));
                }
            };
            queue_up(Millis(0), flood, false);
            // The farm keeps its pace until the other comes.
            queue_up(Millis(0).plus(share * u32::try_from(taken).unwrap()), few, true);
            queue.sort_unstable();
            let mut before = 0;
            let mut others = 0;
            for (_, is_other) in queue.into_iter().skip(taken) {
                if is_other {
                    others += 1;
                    prop_assert!(before <= others, "{before} of the flood before {others}");
                } else {
                    before += 1;
                }
            }
        }

        /// However fast newer versions of a package come: the first one is taken in the end, long before all that came after it.
        #[test]
        fn newer_versions_do_not_hold_up_an_old_one_for_ever(at_once in 1_usize..4, step in 3600_u64..10_000) {
            let step = Duration::from_secs(step);
            let mut next = None;
            let mut queue: Vec<(i64, Millis, String)> = Vec::new();
            let mut now = Millis(0);
            for version in 1.. {
                for part in 0..at_once {
                    let (turn, after) = turn(now, next, step);
                    next = Some(after);
                    queue.push((place(turn, Class::New, Priority::default()), now, format!("{version}.{part}")));
                    let mut group: Vec<_> = queue.iter_mut().filter(|(_, queued, _)| is_exchanged(*queued, now)).collect();
                    let builds: Vec<(i64, &str)> = group.iter().map(|(place, _, version)| (*place, version.as_str())).collect();
                    let places = by_version(&builds);
                    for (build, place) in group.iter_mut().zip(places) {
                        build.0 = place;
                    }
                }
                let first = (0..queue.len()).min_by_key(|&build| queue[build].0).unwrap();
                if queue.swap_remove(first).2 == "1.0" {
                    break;
                }
                now = now.plus(step);
                let latest = (24 * u32::try_from(at_once).unwrap() + 17) * 3600;
                prop_assert!(now.0 < i64::from(latest) * 1000, "{at_once} each {step:?}");
            }
        }

        /// Whoever cancels all that waits has the turn that is now, however much that was, and nobody gets ahead by it of what
        /// others, who cancel nothing, would have.
        #[test]
        fn cancelled_builds_are_not_waited_for(
            priorities in proptest::collection::vec(-2_i64..=2, 1..60),
            later in 0_u64..90,
            cancel in any::<u64>(),
        ) {
            let share = Pace::default().share();
            let (mut next, mut turns) = (None, Vec::new());
            for priority in priorities {
                let priority = Priority::new(priority).unwrap();
                let (turn, after) = turn(Millis(0), next, share);
                prop_assert_eq!(turn_of(place(turn, Class::New, priority), Class::New, priority), turn);
                next = Some(after);
                turns.push(turn);
            }
            let (now, next) = (Millis(0).plus_seconds(later), next.unwrap());
            let all = given_back(next, &turns, now, share);
            prop_assert_eq!(all.max(now), now);
            let some: Vec<Millis> = turns.iter().enumerate().filter(|(n, _)| cancel >> n & 1 == 1).map(|(_, turn)| *turn).collect();
            let left = given_back(next, &some, now, share);
            // One share from now on for each of those that were not cancelled and whose turn is still to come.
            let others = turns.iter().filter(|turn| **turn >= now && !some.contains(turn)).count();
            let others = now.plus(share * u32::try_from(others).unwrap());
            prop_assert_eq!(left.max(now), if next > now { others } else { now });
        }

        #[test]
        fn places_are_only_exchanged(waiting in proptest::collection::vec((any::<i64>(), 0_u8..5), 0..12)) {
            let places: Vec<i64> = waiting.iter().map(|(place, _)| *place).collect();
            let versions: Vec<String> = waiting.iter().map(|(_, version)| version.to_string()).collect();
            let builds: Vec<(i64, &str)> = places.iter().copied().zip(versions.iter().map(String::as_str)).collect();
            let new = by_version(&builds);
            let (mut had, mut have) = (places.clone(), new.clone());
            had.sort_unstable();
            have.sort_unstable();
            prop_assert_eq!(had, have);
            for (a, (_, older)) in waiting.iter().enumerate() {
                for (b, (_, newer)) in waiting.iter().enumerate() {
                    prop_assert!(newer <= older || new[b] <= new[a]);
                }
            }
        }
    }
}
