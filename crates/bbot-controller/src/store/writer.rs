//! The one that writes to SQLite: a task that takes whole operations, runs all that wait in one transaction, commits
//! once, and then answers all of them.
//!
//! SQLite has one writer at a time whatever one does. With one task for it nobody waits in SQLite's own way (asleep,
//! looking again), and a farm's worth of results that come at once costs one sync of the disk. Each operation has a
//! savepoint, so that one which fails harms no other. What was sent here is done, whether who sent it
//! still waits for it or not, and in the order in which it was sent.

use std::pin::Pin;
use std::sync::Arc;

use sqlx::{AnyConnection, Connection as _};
use tokio::sync::{mpsc, oneshot};

use super::StoreError;
use super::dialect::Dialect;
use super::ending::Ending;
use super::sqlite::{self, Durability, File};
use super::tx::{Sql, Tx};

/// So many operations wait here; more wait outside.
const WAITING: usize = 1024;

/// So many are in one transaction at most: the first of them waits for the last.
const GROUP: usize = 256;

/// A future that may borrow.
pub(super) type Boxed<'t, T> = Pin<Box<dyn Future<Output = T> + Send + 't>>;

/// Tells who sent an operation what became of it.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// An operation; none is left to be answered when it has failed.
type Work = Box<
    dyn for<'t, 'c> FnOnce(Result<&'t mut Tx<'c>, StoreError>) -> Boxed<'t, Option<Answer>> + Send,
>;

struct Job {
    durability: Durability,
    work: Work,
}

/// The way to the one that writes. Clones lead to the same.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
    ending: Ending,
}

impl Writer {
    /// Begins to write to this file.
    pub(super) fn start(file: File) -> Self {
        let (jobs, receiver) = mpsc::channel(WAITING);
        let end = Arc::new(tokio::sync::Notify::new());
        let task = tokio::spawn(
            Task {
                jobs: receiver,
                left: None,
                file,
                synced: None,
                passing: None,
            }
            .run(Arc::clone(&end)),
        );
        Self {
            jobs,
            ending: Ending::of(task, end),
        }
    }

    /// Has an operation done; what it gives, once that is kept.
    pub(super) async fn write<T, F>(
        &self,
        doing: &'static str,
        durability: Durability,
        work: F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'t, 'c> FnOnce(&'t mut Tx<'c>) -> Boxed<'t, Result<T, StoreError>> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let work: Work = Box::new(move |tx| {
            Box::pin(async move {
                let done = match tx {
                    Ok(tx) => {
                        tx.set_doing(doing);
                        work(tx).await
                    }
                    Err(e) => Err(e),
                };
                match done {
                    Ok(value) => Some(Box::new(move |kept: Result<(), StoreError>| {
                        // Whoever does not wait any more does not want to know.
                        let _ = sender.send(kept.map(|()| value));
                    }) as Answer),
                    Err(e) => {
                        let _ = sender.send(Err(e));
                        None
                    }
                }
            })
        });
        let closed = |()| StoreError::Closed { doing };
        let job = Job { durability, work };
        self.jobs.send(job).await.map_err(|_| closed(()))?;
        receiver.await.map_err(|_| closed(()))?
    }

    /// Does what has been sent, and ends.
    pub(super) async fn close(&self) {
        self.ending.close().await;
    }
}

struct Task {
    jobs: mpsc::Receiver<Job>,
    /// An operation that did not fit into the group before.
    left: Option<Job>,
    file: File,
    synced: Option<AnyConnection>,
    passing: Option<AnyConnection>,
}

impl Task {
    async fn run(mut self, end: Arc<tokio::sync::Notify>) {
        loop {
            let job = match self.left.take() {
                Some(job) => Some(job),
                None => tokio::select! {
                    job = self.jobs.recv() => job,
                    () = end.notified() => {
                        self.jobs.close();
                        self.jobs.recv().await
                    }
                },
            };
            let Some(job) = job else { break };
            self.group(job).await;
        }
        for connection in [self.passing.take(), self.synced.take()]
            .into_iter()
            .flatten()
        {
            if let Err(e) = connection.close().await {
                tracing::warn!("cannot close the store in order: {e}");
            }
        }
    }

    /// The next operation that waits and can be in a transaction of this kind.
    fn next(&mut self, durability: Durability) -> Option<Job> {
        if self.left.is_none() {
            self.left = self.jobs.try_recv().ok();
        }
        self.left.take_if(|job| {
            durability == Durability::Synced || job.durability == Durability::Passing
        })
    }

    /// What was taken and not begun comes first next time.
    fn put_back(&mut self, job: Option<Job>) {
        if job.is_some() {
            self.left = job;
        }
    }

    /// Runs an operation and those that wait in one transaction.
    async fn group(&mut self, first: Job) {
        let durability = first.durability;
        let kept = match durability {
            Durability::Synced => self.synced.take(),
            Durability::Passing => self.passing.take(),
        };
        let connection = match kept {
            Some(connection) => Ok(connection),
            None => sqlite::connect(&self.file, durability).await,
        };
        let mut connection = match connection {
            Ok(connection) => connection,
            Err(source) => {
                let doing = "reach the store's file";
                (first.work)(Err(StoreError::Statement { doing, source })).await;
                return;
            }
        };
        if self.transaction(durability, &mut connection, first).await {
            match durability {
                Durability::Synced => self.synced = Some(connection),
                Durability::Passing => self.passing = Some(connection),
            }
        }
    }

    /// The same over this connection; whether it is still good.
    async fn transaction(
        &mut self,
        durability: Durability,
        connection: &mut AnyConnection,
        first: Job,
    ) -> bool {
        let mut tx = Tx::new(connection, Dialect::Sqlite);
        // A deferred one that turns writer later fails at once when another is first, whatever the time-out.
        tx.later(Sql::new("BEGIN IMMEDIATE"));
        let mut answers: Vec<Answer> = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next.take() {
            let alone = answers.is_empty();
            if !alone {
                tx.later(Sql::new("SAVEPOINT operation"));
            }
            let answer = (job.work)(Ok(&mut tx)).await;
            if answers.len() + 1 < GROUP {
                next = self.next(durability);
            }
            let failed = match answer {
                Some(answer) => {
                    if !alone {
                        tx.later(Sql::new("RELEASE operation"));
                    }
                    // The last one takes the commit along.
                    if next.is_none() {
                        tx.later(Sql::new("COMMIT"));
                    }
                    match tx.flush().await {
                        Ok(()) => {
                            answers.push(answer);
                            None
                        }
                        Err(e) => Some((answer, e)),
                    }
                }
                None if alone => {
                    // Nothing else is in it: it never was.
                    self.put_back(next);
                    return undo(tx).await;
                }
                None => {
                    if let Err(e) = back(&mut tx, next.is_none()).await {
                        self.put_back(next);
                        fail(answers, e);
                        return false;
                    }
                    None
                }
            };
            if let Some((answer, e)) = failed {
                answer(Err(e));
                if alone {
                    self.put_back(next);
                    return undo(tx).await;
                }
                // After a commit that failed there is nothing to go back to.
                if let Err(e) = back(&mut tx, next.is_none()).await {
                    self.put_back(next);
                    fail(answers, e);
                    return false;
                }
            }
        }
        for answer in answers {
            answer(Ok(()));
        }
        true
    }
}

/// Ends a transaction with nothing in it; whether the connection is still good.
async fn undo(mut tx: Tx<'_>) -> bool {
    tx.forget();
    if !tx.sent() {
        return true;
    }
    tx.later(Sql::new("ROLLBACK"));
    // SQLite has done that by itself where the disk is full: the next one begins with a new connection.
    tx.flush().await.is_ok()
}

/// Takes back what the last operation did, and commits the others when it was the last.
async fn back(tx: &mut Tx<'_>, last: bool) -> Result<(), StoreError> {
    tx.forget();
    tx.later(Sql::new("ROLLBACK TO operation"));
    tx.later(Sql::new("RELEASE operation"));
    if last {
        tx.later(Sql::new("COMMIT"));
    }
    tx.flush().await
}

/// Tells all of a group that it was not kept.
fn fail(answers: Vec<Answer>, error: StoreError) {
    let error = Arc::new(error);
    for answer in answers {
        answer(Err(StoreError::NotKept {
            source: Arc::clone(&error),
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sqlx::Row as _;
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::store::Store;

    async fn store(dir: &tempfile::TempDir) -> Store {
        Store::open(&dir.path().join("s.sqlite")).await.unwrap()
    }

    fn insert(name: impl Into<String>) -> Sql {
        Sql::new("INSERT INTO counters (name, value) VALUES ($1, 0)").bind(name.into())
    }

    /// The names that a reader sees.
    async fn seen(store: &Store) -> Vec<String> {
        sqlx::query_scalar("SELECT name FROM counters WHERE name LIKE 'test%' ORDER BY name")
            .fetch_all(&store.pool)
            .await
            .unwrap()
    }

    async fn add(store: &Store, name: &'static str) -> Result<(), StoreError> {
        store
            .write("add", move |tx| {
                Box::pin(async move {
                    tx.later(insert(name));
                    Ok(())
                })
            })
            .await
    }

    /// An operation that has begun, and is not over before it is told to.
    async fn hold(
        store: &Store,
        name: &'static str,
    ) -> (JoinHandle<Result<(), StoreError>>, Arc<Notify>) {
        let (store, go) = (store.clone(), Arc::new(Notify::new()));
        let (wait, begun) = (Arc::clone(&go), Arc::new(Notify::new()));
        let begins = Arc::clone(&begun);
        let task = tokio::spawn(async move {
            store
                .write("hold", move |tx| {
                    Box::pin(async move {
                        tx.later(insert(name));
                        tx.flush().await?;
                        begins.notify_one();
                        wait.notified().await;
                        Ok(())
                    })
                })
                .await
        });
        begun.notified().await;
        (task, go)
    }

    /// Waits until so many operations wait for the one that is held.
    async fn until_waiting(store: &Store, number: usize) {
        let crate::store::Backend::Sqlite(writer) = &store.backend else {
            panic!("it is an SQLite store");
        };
        while WAITING - writer.jobs.capacity() < number {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_waits_is_one_transaction_and_what_fails_in_it_harms_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir).await;
        let (held, go) = hold(&store, "test-0").await;
        let mut others = Vec::new();
        for (number, name) in [(1, "test-1"), (2, "test-0"), (3, "test-2")] {
            let writes = store.clone();
            others.push(tokio::spawn(async move { add(&writes, name).await }));
            // In this order.
            until_waiting(&store, number).await;
        }
        let (writes, reads) = (store.clone(), store.clone());
        let last = tokio::spawn(async move {
            writes
                .write("look", move |tx| {
                    Box::pin(async move {
                        let all = "SELECT COUNT(*) AS n FROM counters WHERE name LIKE 'test%'";
                        let inside = tx.all(Sql::new(all)).await?;
                        Ok((
                            seen(&reads).await,
                            inside[0].try_get::<i64, _>("n").unwrap(),
                        ))
                    })
                })
                .await
        });
        until_waiting(&store, 4).await;
        go.notify_one();
        held.await.unwrap().unwrap();
        let mut failed = Vec::new();
        for other in others {
            failed.push(other.await.unwrap().is_err());
        }
        assert_eq!(failed, [false, true, false]);
        // Nobody saw anything before it was all kept.
        assert_eq!(last.await.unwrap().unwrap(), (vec![], 3));
        assert_eq!(seen(&store).await, ["test-0", "test-1", "test-2"]);
        store.close().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_sent_is_done_whether_anybody_waits_or_not_and_nothing_after_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir).await;
        let (held, go) = hold(&store, "test-0").await;
        {
            let forgotten = add(&store, "test-1");
            tokio::select! {
                biased;
                _ = forgotten => panic!("it waits for the first"),
                () = tokio::task::yield_now() => {}
            }
        }
        held.abort();
        let closing = tokio::spawn({
            let store = store.clone();
            async move {
                // Readers stay: they look afterwards.
                if let crate::store::Backend::Sqlite(writer) = &store.backend {
                    writer.close().await;
                }
            }
        });
        go.notify_one();
        closing.await.unwrap();
        assert_eq!(seen(&store).await, ["test-0", "test-1"]);
        let after = add(&store, "test-2").await;
        assert!(matches!(after, Err(StoreError::Closed { .. })), "{after:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_full_disk_is_told_to_all_of_a_group_and_heals() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir).await;
        let (held, go) = hold(&store, "test-0").await;
        let writes = store.clone();
        let large = tokio::spawn(async move {
            writes
                .write("grow", move |tx| {
                    Box::pin(async move {
                        // As full as it is: not a page more. Only this connection knows.
                        tx.later(Sql::new("PRAGMA max_page_count = 1"));
                        tx.later(insert(format!("test-{}", "x".repeat(100_000))));
                        Ok(())
                    })
                })
                .await
        });
        until_waiting(&store, 1).await;
        go.notify_one();
        for told in [held.await.unwrap(), large.await.unwrap()] {
            let error = told.unwrap_err();
            assert!(error.is_passing(), "{error:?}");
        }
        assert_eq!(seen(&store).await, Vec::<String>::new());
        add(&store, "test-1").await.unwrap();
        assert_eq!(seen(&store).await, ["test-1"]);
    }
}
