//! What time it is, as the controller's parts are told: injected, so that a test can let a lease lapse
//! without waiting for it.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point in time: milliseconds since 1970-01-01 UTC. This is also how the store keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub i64);

impl Millis {
    /// This point plus so many seconds; stays at the end of time when it would overflow.
    #[must_use]
    pub fn plus_seconds(self, seconds: u64) -> Self {
        let millis = i64::try_from(seconds)
            .unwrap_or(i64::MAX)
            .saturating_mul(1000);
        Self(self.0.saturating_add(millis))
    }

    /// This point plus a span; stays at the end of time when it would overflow.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(millis))
    }

    /// From this point to a later one; nothing when that is not later.
    #[must_use]
    pub fn until(self, later: Self) -> Duration {
        Duration::from_millis(u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0))
    }
}

/// Minutes since midnight in this time zone.
#[must_use]
pub fn minute_of_day(time: Millis, zone: &jiff::tz::TimeZone) -> u16 {
    let time = jiff::Timestamp::from_millisecond(time.0).unwrap_or_default();
    let time = time.to_zoned(zone.clone()).time();
    let minutes = i16::from(time.hour()) * 60 + i16::from(time.minute());
    u16::try_from(minutes).unwrap_or(0)
}

/// RFC 3339 in UTC with milliseconds, as the API and the pages show it.
impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(time) => write!(f, "{time:.3}"),
            // Only a damaged store holds such a number; it must still be possible to look at it.
            Err(_) => write!(f, "{} ms", self.0),
        }
    }
}

/// Tells the time.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The current time, for people to read. It jumps when somebody sets the computer's clock.
    fn now(&self) -> Millis;

    /// The time that spans are measured in: it began with the current time and never jumps, so that no lease lapses
    /// because a clock is set.
    fn steady(&self) -> Millis;
}

/// The computer's own clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    begun: Instant,
    at: Millis,
}

impl SystemClock {
    /// The clock of a process that begins now.
    #[must_use]
    pub fn start() -> Self {
        Self {
            begun: Instant::now(),
            at: wall(),
        }
    }
}

fn wall() -> Millis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

impl Clock for SystemClock {
    fn now(&self) -> Millis {
        wall()
    }

    fn steady(&self) -> Millis {
        self.at.plus(self.begun.elapsed())
    }
}

/// A clock that goes only when it is told to: for tests.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock that stands at this time.
    #[must_use]
    pub fn at(time: Millis) -> Self {
        Self(AtomicI64::new(time.0))
    }

    /// Moves the clock on by so many seconds.
    pub fn advance_seconds(&self, seconds: i64) {
        self.0.fetch_add(seconds * 1000, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Millis {
        Millis(self.0.load(Ordering::SeqCst))
    }

    fn steady(&self) -> Millis {
        self.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_as_rfc_3339() {
        assert_eq!(Millis(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(
            Millis(1_795_447_115_250).to_string(),
            "2026-11-23T15:18:35.250Z"
        );
        assert_eq!(Millis(i64::MAX).to_string(), format!("{} ms", i64::MAX));
    }

    #[test]
    fn spans() {
        assert_eq!(Millis(5).plus(Duration::from_millis(20)), Millis(25));
        assert_eq!(Millis(5).plus(Duration::MAX), Millis(i64::MAX));
        assert_eq!(Millis(5).until(Millis(25)), Duration::from_millis(20));
        assert_eq!(Millis(25).until(Millis(5)), Duration::ZERO);
        assert_eq!(Millis(i64::MAX).until(Millis(i64::MIN)), Duration::ZERO);
    }

    #[test]
    fn steady_time_begins_at_the_wall_clock_and_goes_on() {
        let clock = SystemClock::start();
        let first = clock.steady();
        assert!(first.until(clock.now()) < Duration::from_secs(60));
        assert!(clock.steady() >= first);
    }

    #[test]
    fn seconds_saturate() {
        assert_eq!(Millis(5).plus_seconds(2), Millis(2005));
        assert_eq!(Millis(5).plus_seconds(u64::MAX), Millis(i64::MAX));
    }
}
