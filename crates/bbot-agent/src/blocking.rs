//! What blocks goes to other threads: copies of machines, their deletion, scans.
//!
//! The agent's loop and all its runs share one thread, so whatever may take more than
//! some milliseconds is done elsewhere ([`Blocking`]). A copy of a machine that is
//! dropped, since its run was dropped, is deleted there as well; the agent waits for
//! all of that before it ends.

use std::path::Path;

use bbot_machine::owner::{OwnerError, Temporary};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

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
    fn detach(&self, work: impl FnOnce() + Send + 'static) {
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

/// A temporary copy of a machine, which one run has. Dropping it deletes it, on
/// another thread.
#[derive(Debug)]
pub(crate) struct Copied {
    /// Taken out by the drop, or by who has another end for it.
    temporary: Option<Temporary>,
    blocking: Blocking,
}

impl Copied {
    /// Makes a copy on another thread.
    ///
    /// # Errors
    ///
    /// What `copy` says.
    pub(crate) async fn make(
        blocking: &Blocking,
        copy: impl FnOnce() -> Result<Temporary, OwnerError> + Send + 'static,
    ) -> Result<Self, OwnerError> {
        let theirs = blocking.clone();
        // Guarded on that thread: should nobody wait any more, it is deleted there.
        let make = move || {
            Ok(Self {
                temporary: Some(copy()?),
                blocking: theirs,
            })
        };
        blocking.run(make).await
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
    pub(crate) async fn delete(mut self) -> Result<(), OwnerError> {
        match self.temporary.take() {
            Some(temporary) => self.blocking.run(move || temporary.delete()).await,
            None => Ok(()),
        }
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
