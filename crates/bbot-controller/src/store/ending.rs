//! The end of a task that others send work to: it does what was asked for first.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// A task, and how it is told to end. Clones are of the same.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
    end: Arc<Notify>,
}

impl Ending {
    /// Of this task, which ends some time after `end` tells it to.
    pub(super) fn of(task: JoinHandle<()>, end: Arc<Notify>) -> Self {
        Self {
            task: Arc::new(Mutex::new(Some(task))),
            end,
        }
    }

    /// Tells it, and waits for its end.
    pub(super) async fn close(&self) {
        self.end.notify_one();
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task {
            // It ends by itself in whatever way: there is nothing to be done about it here.
            let _ = task.await;
        }
    }
}
