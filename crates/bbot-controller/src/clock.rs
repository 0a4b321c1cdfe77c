//! What time it is, as the controller's parts are told: injected, so that a test can let a lease lapse
//! without waiting for it.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

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
    /// The current time.
    fn now(&self) -> Millis;
}

/// The computer's own clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Millis {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
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
    fn seconds_saturate() {
        assert_eq!(Millis(5).plus_seconds(2), Millis(2005));
        assert_eq!(Millis(5).plus_seconds(u64::MAX), Millis(i64::MAX));
    }
}
