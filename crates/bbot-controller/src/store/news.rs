//! What controllers over one database tell each other: that something was queued, that a build has changed. It is a hint, sent
//! after what it is about is kept (a transaction that notifies would make all others wait for its end), and only
//! shortens a wait: whoever misses it looks again within a minute.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::AnyPool;
use sqlx::postgres::PgListener;
use tokio::sync::Notify;

use super::error::{Doing as _, StoreError};

/// The channel, of one database.
const CHANNEL: &str = "bbot_controller";

/// So many builds are told one by one at once; more are told as all.
const BUILDS: usize = 200;

/// After a failure it is tried again so much later.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// What another controller tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// Something was queued: agents that wait may get it.
    Queued,
    /// This build has changed.
    Changed(i64),
    /// Anything may have happened.
    Missed,
}

/// What is still to be told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Pending {
    queued: bool,
    builds: BTreeSet<i64>,
}

/// Tells the others, from a task of its own.
#[derive(Debug, Clone)]
pub(super) struct Teller {
    /// Ours among all that is told.
    name: Arc<str>,
    pending: Arc<Mutex<Pending>>,
    more: Arc<Notify>,
}

impl Teller {
    /// Begins; ends when the pool is closed.
    pub(super) fn start(pool: AnyPool, name: &str) -> Self {
        let teller = Self {
            name: name.into(),
            pending: Arc::default(),
            more: Arc::new(Notify::new()),
        };
        tokio::spawn(teller.clone().run(pool));
        teller
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tell(&self, news: &News) {
        {
            let mut pending = self.pending();
            match news {
                News::Queued => pending.queued = true,
                News::Changed(build) => {
                    pending.builds.insert(*build);
                }
                News::Missed => return,
            }
        }
        self.more.notify_one();
    }

    /// What could not be told is told later.
    fn again(&self, untold: Pending) {
        let mut pending = self.pending();
        pending.queued |= untold.queued;
        pending.builds.extend(untold.builds);
        self.more.notify_one();
    }

    async fn run(self, pool: AnyPool) {
        loop {
            tokio::select! {
                () = self.more.notified() => {}
                () = pool.close_event() => return,
            }
            let pending = std::mem::take(&mut *self.pending());
            if pending == Pending::default() {
                continue;
            }
            let told = sqlx::query("SELECT pg_notify($1, $2)")
                .bind(CHANNEL)
                .bind(write(&self.name, &pending))
                .execute(&pool)
                .await;
            if let Err(e) = told {
                tracing::debug!("cannot tell other controllers: {e}");
                self.again(pending);
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
    }
}

fn write(name: &str, pending: &Pending) -> String {
    let mut text = name.to_owned();
    if pending.queued {
        text.push_str(" queued");
    }
    if pending.builds.len() > BUILDS {
        text.push_str(" all");
        return text;
    }
    for build in &pending.builds {
        text.push(' ');
        text.push_str(&build.to_string());
    }
    text
}

/// What a line tells; nothing when it is our own.
fn read(name: &str, text: &str) -> Vec<News> {
    let mut words = text.split(' ');
    if words.next() == Some(name) {
        return Vec::new();
    }
    words
        .map(|word| match word {
            "queued" => News::Queued,
            // A newer controller's words too: better one look too many.
            word => word.parse().map_or(News::Missed, News::Changed),
        })
        .collect()
}

/// Hears what the others tell.
#[derive(Debug)]
pub(crate) struct Listener {
    name: Arc<str>,
    listener: PgListener,
}

impl Listener {
    pub(super) async fn open(url: &str, teller: &Teller) -> Result<Self, StoreError> {
        const DOING: &str = "listen to other controllers";
        let mut listener = PgListener::connect(url).await.doing(DOING)?;
        listener.listen(CHANNEL).await.doing(DOING)?;
        Ok(Self {
            name: Arc::clone(&teller.name),
            listener,
        })
    }

    /// The next.
    ///
    /// # Errors
    /// The database is not there.
    pub(crate) async fn next(&mut self) -> Result<Vec<News>, StoreError> {
        let heard = self.listener.try_recv().await;
        Ok(match heard.doing("listen to other controllers")? {
            Some(heard) => read(&self.name, heard.payload()),
            // The connection was lost, and is there again with the next.
            None => vec![News::Missed],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_heard_by_others_alone() {
        let mut pending = Pending {
            queued: true,
            builds: [7, 9].into(),
        };
        let text = write("me", &pending);
        assert_eq!(read("me", &text), []);
        let heard = [News::Queued, News::Changed(7), News::Changed(9)];
        assert_eq!(read("you", &text), heard);
        pending.builds.extend(0..1000);
        let text = write("me", &pending);
        assert_eq!(read("you", &text), [News::Queued, News::Missed]);
        let longest = Pending {
            queued: true,
            builds: (i64::MIN..).take(BUILDS).collect(),
        };
        // A notification has fewer than 8000 bytes.
        assert!(write("0123456789abcdef", &longest).len() < 8000);
        assert_eq!(read("you", "me later-word"), [News::Missed]);
    }
}
