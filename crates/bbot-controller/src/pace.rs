//! How fast this controller's agents take builds from the queue, measured from one to the next.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Millis;
use crate::queue::order::Pace;

/// The pace so far, and when a build was taken last.
#[derive(Debug, Default)]
pub(crate) struct Paced(Mutex<(Pace, Option<Millis>)>);

impl Paced {
    fn lock(&self) -> MutexGuard<'_, (Pace, Option<Millis>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A build was taken now that was queued then.
    pub(crate) fn taken(&self, queued: Millis, now: Millis) {
        let mut paced = self.lock();
        let (pace, last) = *paced;
        let pace = match last {
            // It has waited since the one before was taken, so the time between was the farm's, not that of an empty queue.
            Some(last) if queued <= last => pace.after(last.until(now)),
            _ => pace,
        };
        *paced = (pace, Some(now));
    }

    /// The time in which one build is taken.
    pub(crate) fn share(&self) -> Duration {
        self.lock().0.share()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_in_which_something_waited_counts() {
        let paced = Paced::default();
        let first = paced.share();
        for hour in 0..100 {
            let now = Millis(0).plus_seconds(hour * 3600);
            paced.taken(now, now);
        }
        assert_eq!(paced.share(), first);
        let begun = Millis(0).plus_seconds(99 * 3600);
        for n in 1..100 {
            paced.taken(Millis(0), begun.plus_seconds(n * 20));
        }
        assert!(paced.share().abs_diff(Duration::from_secs(20)) < Duration::from_secs(1));
        // A clock that was set back is no time.
        for _ in 0..1000 {
            paced.taken(Millis(0), Millis(0));
        }
        assert!(paced.share() < Duration::from_secs(1));
    }
}
