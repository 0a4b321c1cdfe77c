//! What many ask for and costs more the more there is: much is looked up by one at a time, and what was found is good for a while,
//! the longer the more it was.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So many rows are read each time.
const FEW: u64 = 1_000;

/// What was found is good for so long at most.
const OLDEST: Duration = Duration::from_secs(10);

/// How long something is good for which so many rows were read: a millisecond for each, which is some twenty times what it took.
/// `None`: it is not worth keeping.
fn good_for(rows: u64) -> Option<Duration> {
    (rows >= FEW).then(|| Duration::from_millis(rows).min(OLDEST))
}

/// Something that is looked up.
#[derive(Debug)]
pub(super) struct Looked<T> {
    found: Mutex<Option<(Arc<T>, Instant)>>,
    /// Held by who looks.
    looking: tokio::sync::Mutex<()>,
}

impl<T> Default for Looked<T> {
    fn default() -> Self {
        Self {
            found: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
        }
    }
}

impl<T> Looked<T> {
    fn found(&self) -> MutexGuard<'_, Option<(Arc<T>, Instant)>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was found a short time ago, else what `look` finds now. `rows`: how many were read for it. Nobody waits for another who looks:
    /// that one's database may be away.
    pub(super) async fn get<E>(
        &self,
        look: impl Future<Output = Result<T, E>>,
        rows: impl FnOnce(&T) -> u64,
    ) -> Result<Arc<T>, E> {
        let known = self.found().clone();
        let looking = self.looking.try_lock();
        if let Some((value, until)) = known
            && (Instant::now() < until || looking.is_err())
        {
            return Ok(value);
        }
        let value = Arc::new(look.await?);
        let kept = good_for(rows(&value));
        *self.found() = kept.map(|time| (Arc::clone(&value), Instant::now() + time));
        Ok(value)
    }

    /// What was found is not good any more.
    pub(super) fn forget(&self) {
        *self.found() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn what_is_more_is_good_for_longer() {
        for (rows, expected) in [
            (0, None),
            (999, None),
            (2_000, Some(2_000)),
            (1_000_000, Some(10_000)),
        ] {
            let expected = expected.map(Duration::from_millis);
            assert_eq!(good_for(rows), expected, "{rows}");
        }
    }

    #[tokio::test]
    async fn much_is_looked_up_by_one_for_all_and_little_each_time() {
        let (looked, looks) = (Looked::default(), AtomicU64::new(0));
        let look = async || {
            let count = looks.fetch_add(1, Ordering::Relaxed) + 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
            if count == 3 { Err("away") } else { Ok(count) }
        };
        let ask = async |rows| looked.get(look(), |_| rows).await.map(|found| *found);
        assert_eq!(ask(10).await, Ok(1));
        assert_eq!(ask(9_999).await, Ok(2));
        assert_eq!(ask(1).await, Ok(2));
        // Too old: one looks, and has an error to tell; what the others have is little older.
        looked.found().as_mut().unwrap().1 = Instant::now();
        let asked = tokio::join!(ask(9_999), ask(9_999), ask(9_999));
        assert_eq!(asked, (Err("away"), Ok(2), Ok(2)));
        // Who does not wait until it is found leaves it to the next.
        looked.forget();
        let gone = tokio::time::timeout(Duration::from_millis(5), ask(1)).await;
        assert!(gone.is_err());
        assert_eq!(ask(1).await, Ok(5));
        assert_eq!(looks.load(Ordering::Relaxed), 5);
    }
}
