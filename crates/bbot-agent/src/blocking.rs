//! What blocks goes to other threads: copies of machines, their deletion, scans.
//!
//! The agent's loop and all its runs share one thread, so whatever may take more than
//! some milliseconds is done elsewhere ([`Blocking`]). What is dropped, since its run
//! was dropped, goes there as well: a machine is ended (`Elsewhere`), its copy is
//! deleted (`Copied`). The agent waits for all of that before it ends.

use std::io;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use bbot_machine::owner::{OwnerError, Temporary};
use bbot_machine::volume::{Stop, VolumeError};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// The longest that a copy may take, where the file system shares no blocks: of 100 GB at
/// 30 MB a second.
pub(crate) const COPY_LIMIT: Duration = Duration::from_secs(60 * 60);

/// Work on other threads that somebody waits for in the end. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Blocking(TaskTracker);

impl Blocking {
    /// Runs something that blocks. It is not cut short when this is dropped.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        // Its lines in the log belong to the run.
        let span = tracing::Span::current();
        let working = self.0.spawn_blocking(move || span.in_scope(work));
        match working.await {
            Ok(done) => done,
            Err(e) => match e.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends, and with it whoever waits here.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// The same for what nobody waits for but the agent's end. Without a runtime it is
    /// done here and now.
    pub(crate) fn detach(&self, work: impl FnOnce() + Send + 'static) {
        match Handle::try_current() {
            Ok(runtime) => {
                let span = tracing::Span::current();
                drop(
                    self.0
                        .spawn_blocking_on(move || span.in_scope(work), &runtime),
                );
            }
            Err(_) => work(),
        }
    }

    /// Waits until nothing is going on.
    pub(crate) async fn idle(&self) {
        self.0.close();
        self.0.wait().await;
        self.0.reopen();
    }
}

/// Something whose drop may take its time: a QEMU that does not end at once, a thread
/// that syncs a file. It is dropped on another thread.
#[derive(Debug)]
pub(crate) struct Elsewhere<T: Send + 'static> {
    /// Always there; taken out by the end alone.
    value: Option<T>,
    blocking: Blocking,
}

impl<T: Send + 'static> Elsewhere<T> {
    pub(crate) fn new(blocking: &Blocking, value: T) -> Self {
        Self {
            value: Some(value),
            blocking: blocking.clone(),
        }
    }

    /// Ends it on another thread, in this way. It is not cut short when nobody waits any
    /// more.
    pub(crate) async fn end<R: Send + 'static>(
        mut self,
        end: impl FnOnce(T) -> R + Send + 'static,
    ) -> R {
        let value = self.value.take().expect(THERE);
        self.blocking.run(move || end(value)).await
    }
}

const THERE: &str = "taken out by the end alone";

impl<T: Send + 'static> Deref for Elsewhere<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect(THERE)
    }
}

impl<T: Send + 'static> DerefMut for Elsewhere<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect(THERE)
    }
}

impl<T: Send + 'static> Drop for Elsewhere<T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.blocking.detach(move || drop(value));
        }
    }
}

/// A temporary copy of a machine, which one run has. Dropping it deletes it, on
/// another thread.
#[derive(Debug)]
pub(crate) struct Copied {
    /// Taken out by the drop, or by who has another end for it.
    temporary: Option<Temporary>,
    blocking: Blocking,
}

impl Copied {
    /// Makes a copy of `from` on another thread. When this is dropped it is broken off.
    ///
    /// # Errors
    ///
    /// What `copy` says; that it takes too long.
    pub(crate) async fn make(
        blocking: &Blocking,
        from: &Path,
        copy: impl FnOnce(&Stop) -> Result<Temporary, OwnerError> + Send + 'static,
    ) -> Result<Self, OwnerError> {
        let theirs = blocking.clone();
        let waited_for = WaitedFor::default();
        let stop = waited_for.0.clone();
        // Guarded on that thread: should nobody wait any more, it is deleted there.
        let make = move || {
            Ok(Self {
                temporary: Some(copy(&stop)?),
                blocking: theirs,
            })
        };
        let made = timeout(COPY_LIMIT, blocking.run(make)).await;
        made.unwrap_or_else(|_| {
            let why = format!("it takes more than {} min", COPY_LIMIT.as_secs() / 60);
            Err(OwnerError::Volume(VolumeError::Io {
                action: "copy",
                path: from.to_owned(),
                source: io::Error::new(io::ErrorKind::TimedOut, why),
            }))
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.temporary
            .as_ref()
            .map_or(Path::new(""), Temporary::path)
    }

    /// Deletes it.
    ///
    /// # Errors
    ///
    /// When it cannot be deleted; it then stays with its record, for the next sweep.
    pub(crate) async fn delete(self) -> Result<(), OwnerError> {
        let blocking = self.blocking.clone();
        blocking.run(move || self.delete_here()).await
    }

    /// The same on this thread.
    ///
    /// # Errors
    ///
    /// As [`Copied::delete`].
    pub(crate) fn delete_here(mut self) -> Result<(), OwnerError> {
        self.temporary.take().map_or(Ok(()), Temporary::delete)
    }

    /// Puts it in the place of `target`, which is deleted if it is there.
    ///
    /// # Errors
    ///
    /// When the disk fails; `target` is then what it was, and the copy is deleted.
    pub(crate) async fn replace(mut self, target: &Path) -> Result<(), OwnerError> {
        let target = target.to_owned();
        match self.temporary.take() {
            Some(temporary) => self.blocking.run(move || temporary.replace(&target)).await,
            None => Ok(()),
        }
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            // Its own drop says what goes wrong.
            self.blocking.detach(move || drop(temporary));
        }
    }
}

/// Breaks a copy off when nobody waits for it any more.
#[derive(Debug, Default)]
struct WaitedFor(Stop);

impl Drop for WaitedFor {
    fn drop(&mut self) {
        self.0.set();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// A copy that goes on for long, on a real thread in real time.
    fn long(began: oneshot::Sender<()>, stop: &Stop) -> Result<Temporary, OwnerError> {
        began.send(()).unwrap();
        let begin = std::time::Instant::now();
        while !stop.is_set() && begin.elapsed() < Duration::from_secs(40) {
            std::thread::yield_now();
        }
        let path = "disk.img".into();
        Err(OwnerError::Volume(VolumeError::Stopped { path }))
    }

    #[tokio::test]
    async fn a_copy_that_nobody_waits_for_any_more_is_broken_off() {
        let blocking = Blocking::default();
        let (began, begins) = oneshot::channel();
        let copy = Copied::make(&blocking, Path::new("m"), |stop| long(began, stop));
        tokio::select! {
            made = copy => panic!("{made:?}"),
            begun = begins => begun.unwrap(),
        }
        let idle = timeout(Duration::from_secs(20), blocking.idle()).await;
        idle.expect("the copy goes on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_that_takes_too_long_is_broken_off_and_told() {
        let blocking = Blocking::default();
        let (began, begins) = oneshot::channel();
        let copy = Copied::make(&blocking, Path::new("m"), |stop| long(began, stop));
        let late = async {
            begins.await.unwrap();
            // Time does not go on by itself while a thread works.
            tokio::time::advance(COPY_LIMIT).await;
            std::future::pending::<()>().await;
        };
        let error = tokio::select! {
            made = copy => made.unwrap_err(),
            () = late => unreachable!(),
        };
        let error = format!("{:#}", anyhow::Error::new(error));
        assert_eq!(error, "unable to copy m: it takes more than 60 min");
        blocking.idle().await;
    }
}
