//! Rebuilds by themselves: when a build is due, and whether its agent may find that nothing has changed.
//!
//! ```text
//!   soft   checked (built, or found unchanged) longer ago than the time-out
//!   hard   built longer ago than the time-out
//! ```
//!
//! A soft rebuild's task has the checksums of the last result: whose agent, worker and dependencies give the same answers `skip`, and all
//! stays as it is. A hard one has none, and so has one that a person asks for, or that is built by other rules or on another machine.
//! A time-out may be another one within a daily window; who has no other time-out is rebuilt within it alone.

use std::str::FromStr;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::buildtab::Configuration;
use crate::clock::Millis;

/// Seconds of a day.
const DAY: u64 = 24 * 3600;

/// Minutes of a day.
const MINUTES: u16 = 24 * 60;

/// A part of each day, which may go over midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The first minute of the day, local time.
    start: u16,
    /// The first minute that is not in it any more.
    stop: u16,
    /// The time-out within it, where one is given.
    timeout: Option<Duration>,
}

/// A text that is no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not HH:MM-HH:MM, two different times of the day, or HH:MM-HH:MM/SECONDS")]
pub struct BadWindow(String);

impl FromStr for Window {
    type Err = BadWindow;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let time = |text: &str| {
            let (hours, minutes) = text.split_once(':')?;
            let number = |text: &str, below: u16| -> Option<u16> {
                let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
                text.parse().ok().filter(|n| digits && *n < below)
            };
            Some(number(hours, 24)? * 60 + number(minutes, 60)?)
        };
        let read = || {
            let (times, timeout) = match text.split_once('/') {
                Some((times, seconds)) => {
                    (times, Some(seconds.parse::<u64>().ok().filter(|s| *s > 0)?))
                }
                None => (text, None),
            };
            let (start, stop) = times.split_once('-')?;
            let (start, stop) = (time(start)?, time(stop)?);
            (start != stop).then_some(Self {
                start,
                stop,
                timeout: timeout.map(Duration::from_secs),
            })
        };
        read().ok_or_else(|| BadWindow(text.to_owned()))
    }
}

impl Window {
    fn contains(self, minute: u16) -> bool {
        if self.start < self.stop {
            (self.start..self.stop).contains(&minute)
        } else {
            minute >= self.start || minute < self.stop
        }
    }

    /// The time-out within it: where none is given, its length, and what the other one is longer than a day.
    fn timeout(self, other: Option<Duration>) -> Duration {
        self.timeout.unwrap_or_else(|| {
            let minutes = (self.stop + MINUTES - self.start) % MINUTES;
            let length = Duration::from_secs(u64::from(minutes) * 60);
            let day = Duration::from_secs(DAY);
            length + other.map_or(Duration::ZERO, |other| other.saturating_sub(day))
        })
    }
}

/// When one kind of rebuild is due.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rule {
    /// After so long; none: never, but within the window.
    pub timeout: Option<Duration>,
    /// Another time-out for a part of the day.
    pub window: Option<Window>,
}

impl Rule {
    /// The time-out that counts in this minute of the day.
    fn timeout_at(self, minute: u16) -> Option<Duration> {
        match self.window {
            Some(window) if window.contains(minute) => Some(window.timeout(self.timeout)),
            _ => self.timeout,
        }
    }

    /// What was done at this time or before is due.
    fn before(self, now: Millis, minute: u16) -> Option<Millis> {
        let timeout = i64::try_from(self.timeout_at(minute)?.as_millis()).ok()?;
        Some(Millis(now.0.saturating_sub(timeout)))
    }
}

/// When builds are rebuilt by themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// If something has changed.
    pub soft: Rule,
    /// Whatever has changed.
    pub hard: Rule,
}

/// A kind of rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its agent may find that nothing has changed.
    Soft,
    /// It is built.
    Hard,
}

impl Kind {
    /// Why a build is queued, for people.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Soft => "rebuilt by itself: has anything changed since it was last checked?",
            Self::Hard => "rebuilt by itself: it was last built long ago",
        }
    }
}

/// What is due now: what was last done at these times or before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Due {
    /// Checked: a soft rebuild.
    pub checked: Option<Millis>,
    /// Built: a hard one.
    pub built: Option<Millis>,
}

impl Policy {
    /// Whether nothing is ever rebuilt.
    #[must_use]
    pub fn is_off(self) -> bool {
        self == Self::default()
    }

    /// What is due in this minute of the day, local time.
    #[must_use]
    pub fn due(self, now: Millis, minute: u16) -> Due {
        Due {
            checked: self.soft.before(now, minute),
            built: self.hard.before(now, minute),
        }
    }
}

impl Due {
    /// The rebuild that a build is due for, which was checked and built last at these times.
    #[must_use]
    pub fn of(self, checked: Millis, built: Millis) -> Option<Kind> {
        if self.built.is_some_and(|before| built <= before) {
            Some(Kind::Hard)
        } else if self.checked.is_some_and(|before| checked <= before) {
            Some(Kind::Soft)
        } else {
            None
        }
    }
}

/// What an agent says that its result was made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksums {
    /// Of the agent and how it is set up.
    pub agent: String,
    /// Of the worker and its environment.
    pub worker: String,
    /// Of what the package depends on.
    pub dependency: String,
}

/// Longest checksum that is kept, in bytes.
const LONGEST: usize = 256;

impl Checksums {
    /// All three, if they are there and of a reasonable length.
    #[must_use]
    pub fn new(
        agent: Option<&str>,
        worker: Option<&str>,
        dependency: Option<&str>,
    ) -> Option<Self> {
        let one = |text: Option<&str>| {
            text.filter(|text| !text.is_empty() && text.len() <= LONGEST)
                .map(str::to_owned)
        };
        Some(Self {
            agent: one(agent)?,
            worker: one(worker)?,
            dependency: one(dependency)?,
        })
    }
}

/// What a result is made with that the controller knows: the rules of its configuration, and the revision of its machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Makings {
    /// Of the configuration, by [`controller_checksum`].
    pub controller: String,
    /// Of the machine: its id.
    pub machine: String,
}

/// The checksums that go out with a task: none where its agent has to build.
#[must_use]
pub fn checksums(
    kind: Kind,
    before: Option<&Makings>,
    now: &Makings,
    last: Option<Checksums>,
) -> Option<Checksums> {
    last.filter(|_| kind == Kind::Soft && before == Some(now))
}

/// Counts up when the controller makes tasks otherwise, so that all is built anew.
const LOGIC: &str = "1";

/// The checksum of what a configuration says of its builds.
#[must_use]
pub fn controller_checksum(configuration: &Configuration) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update(text.len().to_le_bytes());
        hash.update(text.as_bytes());
    };
    add(LOGIC);
    add(&configuration.target);
    add(configuration.environment.as_deref().unwrap_or_default());
    for list in [&configuration.arguments, &configuration.warning_regexes] {
        add(&list.len().to_string());
        list.iter().for_each(|text| add(text));
    }
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buildtab::Buildtab;
    use proptest::prelude::*;

    const HOUR: i64 = 3_600_000;

    fn rule(timeout: u64, window: &str) -> Rule {
        Rule {
            timeout: Some(timeout).filter(|t| *t > 0).map(Duration::from_secs),
            window: Some(window)
                .filter(|w| !w.is_empty())
                .map(|w| w.parse().unwrap()),
        }
    }

    #[test]
    fn windows() {
        for text in ["22:00-06:00", "00:00-23:59", "08:30-08:31/1"] {
            assert!(text.parse::<Window>().is_ok(), "{text}");
        }
        for text in [
            "",
            "22-06",
            "22:00",
            "24:00-06:00",
            "22:60-06:00",
            "2:00-06:00",
            "06:00-06:00",
            "06:00-07:00/0",
            "06:00-07:00/x",
            "+6:00-07:00",
        ] {
            let error = text.parse::<Window>().unwrap_err().to_string();
            assert!(error.contains("HH:MM-HH:MM"), "{error}");
        }
        let contains = |text: &str, minute| text.parse::<Window>().unwrap().contains(minute);
        for (text, minute, expected) in [
            ("08:00-18:00", 8 * 60, true),
            ("08:00-18:00", 18 * 60, false),
            ("08:00-18:00", 7 * 60 + 59, false),
            ("22:00-06:00", 23 * 60, true),
            ("22:00-06:00", 0, true),
            ("22:00-06:00", 6 * 60, false),
            ("22:00-06:00", 12 * 60, false),
        ] {
            assert_eq!(contains(text, minute), expected, "{text} {minute}");
        }
    }

    #[test]
    fn time_outs() {
        let hours = |rule: Rule, hour: u16| rule.timeout_at(hour * 60).map(|t| t.as_secs() / 3600);
        let week = 7 * DAY;
        for (rule, inside, outside) in [
            (rule(0, ""), None, None),
            (rule(DAY, ""), Some(24), Some(24)),
            (rule(0, "22:00-06:00"), Some(8), None),
            (rule(0, "22:00-06:00/43200"), Some(12), None),
            (rule(DAY, "22:00-06:00"), Some(8), Some(24)),
            // A week and a window: in the night of the seventh day at the latest.
            (rule(week, "22:00-06:00"), Some(8 + 6 * 24), Some(7 * 24)),
            (rule(week, "22:00-06:00/3600"), Some(1), Some(7 * 24)),
        ] {
            assert_eq!(
                (hours(rule, 23), hours(rule, 12)),
                (inside, outside),
                "{rule:?}"
            );
        }
    }

    #[test]
    fn which_rebuild() {
        let policy = Policy {
            soft: rule(DAY, ""),
            hard: rule(7 * DAY, ""),
        };
        let now = Millis(1000 * HOUR);
        let ago = |hours: i64| Millis(now.0 - hours * HOUR);
        for (checked, built, expected) in [
            (1, 1, None),
            (23, 23, None),
            (24, 24, Some(Kind::Soft)),
            (1, 100, None),
            (24, 100, Some(Kind::Soft)),
            (1, 168, Some(Kind::Hard)),
            (200, 200, Some(Kind::Hard)),
        ] {
            assert_eq!(
                policy.due(now, 0).of(ago(checked), ago(built)),
                expected,
                "{checked} {built}"
            );
        }
        assert!(Policy::default().is_off() && !policy.is_off());
        assert_eq!(Policy::default().due(now, 0), Due::default());
        assert_eq!(Due::default().of(Millis(0), Millis(0)), None);
    }

    #[test]
    fn when_checksums_go_out() {
        let makings = |controller: &str, machine: &str| Makings {
            controller: controller.to_owned(),
            machine: machine.to_owned(),
        };
        let last = Checksums::new(Some("a"), Some("w"), Some("d"));
        let now = makings("c", "m");
        for (kind, before, is_given) in [
            (Kind::Soft, Some(makings("c", "m")), true),
            (Kind::Hard, Some(makings("c", "m")), false),
            (Kind::Soft, Some(makings("x", "m")), false),
            (Kind::Soft, Some(makings("c", "x")), false),
            (Kind::Soft, None, false),
        ] {
            let given = checksums(kind, before.as_ref(), &now, last.clone());
            assert_eq!(given.is_some(), is_given, "{kind:?} {before:?}");
            assert_eq!(checksums(kind, before.as_ref(), &now, None), None);
        }
        let long = "x".repeat(257);
        for (a, w, d) in [
            (None, Some("w"), Some("d")),
            (Some("a"), Some(""), Some("d")),
            (Some("a"), Some("w"), Some(long.as_str())),
        ] {
            assert_eq!(Checksums::new(a, w, d), None);
        }
    }

    #[test]
    fn what_a_configuration_says_is_in_its_checksum() {
        let of = |line: &str| {
            controller_checksum(&Buildtab::parse(line, "t").unwrap().configurations()[0])
        };
        let line = "m c t all a b ~r";
        // The name and the pattern of machines make no other result, nor do classes.
        assert_eq!(of(line), of("m* other t \"all default\" a b ~r"));
        for other in [
            "m c u all a b ~r",
            "m c t/e all a b ~r",
            "m c t all ab ~r",
            "m c t all b a ~r",
            "m c t all a b ~s",
            "m c t all a ~b ~r",
        ] {
            assert_ne!(of(line), of(other), "{other}");
        }
    }

    proptest! {
        /// What is looked up is what is due, and the other way round; who has no time-out is rebuilt within the window alone.
        #[test]
        fn nothing_is_rebuilt_before_its_time(
            soft in proptest::sample::select(vec![(0, ""), (DAY, ""), (0, "22:00-06:00"), (3 * DAY, "12:00-13:00/60")]),
            hard in proptest::sample::select(vec![(0, ""), (7 * DAY, ""), (0, "01:00-02:00/86400")]),
            minute in 0_u16..MINUTES,
            checked in 0_i64..400,
            since in 0_i64..400,
        ) {
            let policy = Policy { soft: rule(soft.0, soft.1), hard: rule(hard.0, hard.1) };
            let now = Millis(10_000 * HOUR);
            let checked = Millis(now.0 - checked * HOUR);
            let built = Millis(checked.0 - since * HOUR);
            let due = policy.due(now, minute);
            let kind = due.of(checked, built);
            let (by_soft, by_hard) = (
                policy.soft.timeout_at(minute).is_some_and(|t| checked.until(now) >= t),
                policy.hard.timeout_at(minute).is_some_and(|t| built.until(now) >= t),
            );
            prop_assert_eq!(kind == Some(Kind::Hard), by_hard);
            prop_assert_eq!(kind == Some(Kind::Soft), by_soft && !by_hard);
            let outside = |rule: Rule| rule.timeout.is_none() && !rule.window.is_some_and(|w| w.contains(minute));
            prop_assert!(!(outside(policy.soft) && outside(policy.hard)) || kind.is_none());
        }
    }
}
