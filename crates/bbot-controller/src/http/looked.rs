//! What many ask for and costs more the more there is: it is looked up by one at a time, and what was found is good for a while,
//! the longer the more it was.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

/// So many rows are read each time.
const FEW: u64 = 1_000;

/// Nothing is older than this.
const OLDEST: Duration = Duration::from_secs(10);

/// How long something is good for which so many rows were read: a millisecond for each, which is some twenty times what it took.
fn good_for(rows: u64) -> Duration {
    if rows < FEW {
        return Duration::ZERO;
    }
    Duration::from_millis(rows).min(OLDEST)
}

/// Something that is looked up.
#[derive(Debug)]
pub(super) struct Looked<T>(Mutex<Option<(Arc<T>, Instant)>>);

impl<T> Default for Looked<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Looked<T> {
    /// What was found a short time ago, else what `look` finds now. `rows`: how many were read for it.
    pub(super) async fn get<E>(
        &self,
        look: impl Future<Output = Result<T, E>>,
        rows: impl FnOnce(&T) -> u64,
    ) -> Result<Arc<T>, E> {
        let mut found = self.0.lock().await;
        if let Some((value, until)) = &*found
            && Instant::now() < *until
        {
            return Ok(Arc::clone(value));
        }
        let value = Arc::new(look.await?);
        *found = Some((Arc::clone(&value), Instant::now() + good_for(rows(&value))));
        Ok(value)
    }

    /// What was found is not good any more.
    pub(super) async fn forget(&self) {
        *self.0.lock().await = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn what_is_more_is_good_for_longer() {
        for (rows, expected) in [(0, 0), (999, 0), (2_000, 2_000), (1_000_000, 10_000)] {
            assert_eq!(good_for(rows), Duration::from_millis(expected), "{rows}");
        }
    }

    #[tokio::test]
    async fn much_is_looked_up_by_one_for_all_and_little_each_time() {
        let (looked, looks) = (Looked::default(), AtomicU64::new(0));
        let look = async || {
            let count = looks.fetch_add(1, Ordering::Relaxed) + 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok::<_, Infallible>(count)
        };
        let ask = async |rows| *looked.get(look(), |_| rows).await.unwrap();
        assert_eq!(tokio::join!(ask(10), ask(9_999), ask(1)), (1, 2, 2));
        assert_eq!(ask(1).await, 2);
        looked.forget().await;
        // Who does not wait until it is found leaves it to the next.
        let gone = tokio::time::timeout(Duration::from_millis(5), ask(1)).await;
        assert!(gone.is_err());
        assert_eq!(ask(1).await, 4);
        assert_eq!(looks.load(Ordering::Relaxed), 4);
    }
}
