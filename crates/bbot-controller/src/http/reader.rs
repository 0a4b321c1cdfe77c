//! Whoever takes a long answer, piece by piece: so many at once, each of whom takes some memory, and none for ever.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::problem::Problem;
use super::{App, body};
use crate::objects::Reading;

/// Bytes that are read from disk at once.
const PIECE: usize = 256 << 10;

/// Waits for one's turn, among so many at once; 503, that there are too many of `what`, when it does not come.
pub(super) async fn turn(
    of: &Arc<Semaphore>,
    patience: Duration,
    what: &str,
) -> Result<OwnedSemaphorePermit, Problem> {
    let turn = tokio::time::timeout(patience, Arc::clone(of).acquire_owned()).await;
    turn.ok().and_then(Result::ok).ok_or_else(|| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("too many {what} at once: try again later"),
        )
    })
}

/// Leave to read long logs, as long as it is held.
pub(super) fn leave(app: &App) -> Result<OwnedSemaphorePermit, Problem> {
    let permit = Arc::clone(&app.log_readers).try_acquire_owned();
    permit.map_err(|_| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "{} clients read long logs already, and more are not served: try again later",
                app.config.limits.log_readers
            ),
        )
    })
}

/// Who takes an answer.
#[derive(Debug)]
pub(super) struct Reader {
    sender: mpsc::Sender<std::io::Result<Bytes>>,
    /// A piece that is not taken for so long is the last.
    patience: Duration,
    _leave: Option<OwnedSemaphorePermit>,
}

impl Reader {
    /// One who takes the body of an answer. `leave`: what is given back when it has ended.
    pub(super) fn new(app: &App, leave: Option<OwnedSemaphorePermit>) -> (Self, Body) {
        let (sender, receiver) = mpsc::channel(2);
        let reader = Self {
            sender,
            patience: app.config.limits.slow_reader,
            _leave: leave,
        };
        (reader, body::stream(receiver))
    }

    /// Gives a piece away; `None` when nobody takes it any more.
    pub(super) async fn send(&self, piece: std::io::Result<Bytes>) -> Option<()> {
        let sent = tokio::time::timeout(self.patience, self.sender.send(piece)).await;
        sent.ok()?.ok()
    }

    /// Gives an object away that is kept as it is and has this hash. When it has another it breaks off before the end, and `damaged` is
    /// called.
    pub(super) async fn take(
        self,
        object: Reading,
        sha256: &str,
        damaged: impl FnOnce(),
    ) -> Option<()> {
        let mut object = object.into_async();
        let mut hash = Sha256::new();
        // The last one is given when all is known to be right.
        let mut last = Bytes::new();
        loop {
            let mut piece = vec![0; PIECE];
            let read = match object.read(&mut piece).await {
                Ok(0) => break,
                Ok(n) => {
                    piece.truncate(n);
                    hash.update(&piece);
                    std::mem::replace(&mut last, piece.into())
                }
                Err(e) => return self.send(Err(e)).await,
            };
            if !read.is_empty() {
                self.send(Ok(read)).await?;
            }
        }
        if hex::encode(hash.finalize()) == sha256 {
            return self.send(Ok(last)).await;
        }
        damaged();
        self.send(Err(std::io::Error::other("it does not hold what it did")))
            .await
    }
}
