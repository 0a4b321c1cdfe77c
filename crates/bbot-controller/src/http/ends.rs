//! Agents that are told at once when their session ends: they have renewed their lease, and the answer is held.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Who waits, by the build.
#[derive(Debug, Default)]
pub(super) struct Ends(Mutex<HashMap<i64, watch::Sender<()>>>);

impl Ends {
    fn lock(&self) -> MutexGuard<'_, HashMap<i64, watch::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears of whatever happens to this build from now on.
    pub(super) fn listen(&self, build: i64) -> Listening<'_> {
        let told = self.lock().entry(build).or_default().subscribe();
        Listening {
            ends: self,
            build,
            told: Some(told),
        }
    }

    /// Something happened to this build.
    pub(super) fn tell(&self, build: i64) {
        if let Some(sender) = self.lock().get(&build) {
            sender.send_replace(());
        }
    }

    /// Something may have happened to any.
    pub(super) fn tell_all(&self) {
        for sender in self.lock().values() {
            sender.send_replace(());
        }
    }
}

/// Somebody who listens; nothing is remembered of the build when the last of them is gone.
#[derive(Debug)]
pub(super) struct Listening<'a> {
    ends: &'a Ends,
    build: i64,
    told: Option<watch::Receiver<()>>,
}

impl Listening<'_> {
    /// Something has happened since this was called last, or since the beginning.
    pub(super) async fn told(&mut self) {
        let told = match &mut self.told {
            Some(told) => told.changed().await.is_ok(),
            None => false,
        };
        if !told {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        let mut ends = self.ends.lock();
        drop(self.told.take());
        if ends
            .get(&self.build)
            .is_some_and(|sender| sender.receiver_count() == 0)
        {
            ends.remove(&self.build);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn who_listens_hears_of_its_build_alone_and_is_forgotten() {
        let ends = Ends::default();
        let (mut mine, mut too, mut other) = (ends.listen(7), ends.listen(7), ends.listen(8));
        ends.tell(7);
        mine.told().await;
        drop(mine);
        too.told().await;
        let short = Duration::from_millis(20);
        assert!(timeout(short, other.told()).await.is_err());
        assert!(timeout(short, too.told()).await.is_err());
        ends.tell_all();
        other.told().await;
        drop((too, other));
        assert!(ends.lock().is_empty());
        ends.tell(7);
        assert!(ends.lock().is_empty());
    }
}
