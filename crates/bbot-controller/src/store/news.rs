//! What controllers over one database tell each other: that something was queued, that a build has changed. It is a hint, sent
//! after what it is about is kept (a transaction that notifies would make all others wait for its end), and only
//! shortens a wait: whoever misses it looks again within a minute.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use sqlx::postgres::PgListener;
use sqlx::{AnyPool, Executor as _};
use tokio::sync::Notify;

use super::error::{Doing as _, StoreError};
use super::reads::{self, Reads};

/// The channel, of one database.
const CHANNEL: &str = "bbot_controller";

/// So many builds are told one by one at once; more are told as all.
const BUILDS: usize = 200;

/// The same for configurations.
const KINDS: usize = 100;

/// Between a number of builds and a kind of the plain lane.
const PLAIN: char = 'x';

/// The same of another lane.
const IN_LANE: char = 'l';

/// News need not be on disk when they are told.
const TELL: &str = "SELECT set_config('synchronous_commit', 'off', TRUE), pg_notify($1, $2)";

/// The next news go so much later: what has happened by then goes along.
const GATHERED: Duration = Duration::from_millis(10);

/// After a failure it is tried again so much later.
const AFTER_ERROR: Duration = Duration::from_secs(1);

/// Where nothing was heard for so long it is asked whether anything would be: a connection that leads nowhere any more is as quiet.
const QUIET: Duration = Duration::from_secs(20);

/// What another controller tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// So many builds of a configuration in a lane were queued: agents that wait may get them. What is not of the plain lane may be of one
    /// that is not known there yet.
    Queued {
        kind: Kind,
        is_plain: bool,
        builds: usize,
    },
    /// This build has changed.
    Changed(i64),
    /// Something was said about agents.
    Agents,
    /// Anything may have happened.
    Missed,
}

/// A configuration in a lane as it is told: controllers number theirs differently, and names may be long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Kind(u64);

impl Kind {
    /// That of a configuration's name and target, and a lane's text.
    pub(crate) fn of(configuration: &str, target: &str, lane: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(configuration.len().to_le_bytes());
        hash.update(configuration);
        hash.update(target);
        if !lane.is_empty() {
            hash.update([0]);
            hash.update(lane);
        }
        let digest: [u8; 32] = hash.finalize().into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        Self(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }
}

/// What is still to be told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Pending {
    /// By whether they are plain, too.
    queued: BTreeMap<(Kind, bool), usize>,
    builds: BTreeSet<i64>,
    agents: bool,
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
                News::Queued {
                    kind,
                    is_plain,
                    builds,
                } => {
                    *pending.queued.entry((*kind, *is_plain)).or_default() += builds;
                }
                News::Agents => pending.agents = true,
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
        for (kind, builds) in untold.queued {
            *pending.queued.entry(kind).or_default() += builds;
        }
        pending.builds.extend(untold.builds);
        pending.agents |= untold.agents;
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
            let told = sqlx::query(TELL)
                .bind(CHANNEL)
                .bind(write(&self.name, &pending))
                .execute(&Reads(pool.clone()))
                .await;
            if let Err(e) = told {
                tracing::debug!("cannot tell other controllers: {e}");
                self.again(pending);
                tokio::time::sleep(AFTER_ERROR).await;
            } else {
                tokio::time::sleep(GATHERED).await;
            }
        }
    }
}

fn write(name: &str, pending: &Pending) -> String {
    let mut text = name.to_owned();
    if pending.builds.len() > BUILDS || pending.queued.len() > KINDS {
        text.push_str(" all");
        return text;
    }
    if pending.agents {
        text.push_str(" agents");
    }
    for ((Kind(kind), is_plain), builds) in &pending.queued {
        let mark = if *is_plain { PLAIN } else { IN_LANE };
        text.push_str(&format!(" {builds}{mark}{kind:016x}"));
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
        .map(|word| {
            let queued = word
                .split_once([PLAIN, IN_LANE])
                .and_then(|(builds, kind)| {
                    let kind = Kind(u64::from_str_radix(kind, 16).ok()?);
                    Some(News::Queued {
                        kind,
                        is_plain: !word.contains(IN_LANE),
                        builds: builds.parse().ok()?,
                    })
                });
            if word == "agents" {
                return News::Agents;
            }
            let changed = || word.parse().ok().map(News::Changed);
            // Other versions' words too: better one look too many.
            queued.or_else(changed).unwrap_or(News::Missed)
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
        let listener = within(async {
            let mut listener = PgListener::connect(url).await?;
            listener.listen(CHANNEL).await?;
            Ok(listener)
        });
        Ok(Self {
            name: Arc::clone(&teller.name),
            listener: listener.await?,
        })
    }

    /// The next.
    ///
    /// # Errors
    /// The database is not there.
    pub(crate) async fn next(&mut self) -> Result<Vec<News>, StoreError> {
        loop {
            let Ok(heard) = tokio::time::timeout(QUIET, self.listener.try_recv()).await else {
                within(self.listener.execute("SELECT 1")).await?;
                continue;
            };
            return Ok(match heard.doing(LISTENING)? {
                Some(heard) => read(&self.name, heard.payload()),
                // The connection was lost, and is there again with the next.
                None => vec![News::Missed],
            });
        }
    }
}

const LISTENING: &str = "listen to other controllers";

async fn within<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    let done = tokio::time::timeout(reads::LIMIT, work).await;
    done.unwrap_or_else(|_| Err(reads::silent()))
        .doing(LISTENING)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_heard_by_others_alone() {
        let (one, other) = (Kind::of("c", "t", ""), Kind::of("d", "t", ""));
        assert_ne!(Kind::of("ct", "", ""), one);
        let lane = Kind::of("c", "t", "l");
        assert!(lane != one && lane != Kind::of("c", "tl", ""));
        let mut pending = Pending {
            queued: [((one, true), 3), ((other, true), 1), ((lane, false), 2)].into(),
            builds: [7, 9].into(),
            agents: true,
        };
        let text = write("me", &pending);
        assert_eq!(read("me", &text), []);
        let queued = |kind, is_plain, builds| News::Queued {
            kind,
            is_plain,
            builds,
        };
        let heard = read("you", &text);
        assert_eq!(heard[0], News::Agents);
        for told in [
            queued(one, true, 3),
            queued(other, true, 1),
            queued(lane, false, 2),
        ] {
            assert!(heard.contains(&told), "{heard:?}");
        }
        assert_eq!(heard[4..], [News::Changed(7), News::Changed(9)]);
        pending.builds.extend(0..1000);
        let text = write("me", &pending);
        assert_eq!(read("you", &text), [News::Missed]);
        let many = |kinds: u64| Pending {
            queued: (0..kinds).map(|kind| ((Kind(kind), true), 1)).collect(),
            builds: BTreeSet::new(),
            agents: false,
        };
        let (few, all) = (KINDS as u64, KINDS as u64 + 1);
        assert_eq!(read("you", &write("me", &many(few))).len(), KINDS);
        assert_eq!(read("you", &write("me", &many(all))), [News::Missed]);
        let longest = Pending {
            queued: (0..few)
                .map(|kind| ((Kind(u64::MAX - kind), false), 1_000_000))
                .collect(),
            builds: (i64::MIN..).take(BUILDS).collect(),
            agents: true,
        };
        // A notification has fewer than 8000 bytes.
        assert!(write("0123456789abcdef", &longest).len() < 8000);
        for word in ["later-word", "queued", "x", "1x", "x1", "1xg", "l1", "1l"] {
            assert_eq!(read("you", &format!("me {word}")), [News::Missed], "{word}");
        }
    }
}
