//! Opening the store. A computer that starts may start its database after us, or the network to it: that is waited for.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::store::{Store, StoreError};

/// Between the first two tries; each pause is twice as long as the one before,
const FIRST: Duration = Duration::from_millis(250);

/// up to this.
const LONGEST: Duration = Duration::from_secs(5);

/// The pause after one, when so much of the time is left; `None` when it is over.
fn pause(before: Option<Duration>, left: Duration) -> Option<Duration> {
    let pause = before.map_or(FIRST, |before| (before * 2).min(LONGEST));
    (!left.is_zero()).then(|| pause.min(left))
}

/// Opens the store that the configuration names. A database that is not there yet is waited for; `None` when `shutdown` came first.
///
/// # Errors
/// It cannot be opened, or was not there in time.
pub(crate) async fn open(
    config: &Config,
    shutdown: &CancellationToken,
) -> Result<Option<Store>, StoreError> {
    let Some(url) = &config.database else {
        let path = config.data_dir.join("controller.sqlite");
        return Store::open(&path).await.map(Some);
    };
    let end = Instant::now() + config.database_wait;
    let mut last = None;
    loop {
        let error = match Store::open_postgres(url, config.clock.steady()).await {
            Ok(store) => return Ok(Some(store)),
            Err(error) => error,
        };
        let left = end.saturating_duration_since(Instant::now());
        last = pause(last, left).filter(|_| error.is_away());
        let Some(pause) = last else {
            return Err(error);
        };
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::warn!(
            "the database is not there yet ({}): trying for {} s more",
            cause.unwrap_or_default(),
            left.as_secs()
        );
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_within_the_time() {
        let mut left = Duration::from_secs(20);
        let (mut last, mut all) = (None, Vec::new());
        while let Some(next) = pause(last, left) {
            all.push(next.as_millis());
            left -= next;
            last = Some(next);
        }
        assert_eq!(all, [250, 500, 1000, 2000, 4000, 5000, 5000, 2250]);
    }
}
