//! An object that is being read.

use std::io::Read;

use axum::body::{Body, Bytes};
use futures_util::TryStreamExt as _;
use object_store::{GetResult, GetResultPayload};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::io::{StreamReader, SyncIoBridge};

/// Bytes that are read from disk at once.
const PIECE: usize = 256 << 10;

/// An object that is being read: what was there when it was opened, whatever happens to its place.
#[derive(Debug)]
pub struct Reading(GetResult);

impl Reading {
    pub(super) fn new(found: GetResult) -> Self {
        Self(found)
    }

    /// How many bytes there are.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.meta.size
    }

    /// All of it.
    pub(super) async fn all(self) -> Result<Bytes, object_store::Error> {
        self.0.bytes().await
    }

    /// For those who read piece by piece.
    pub(super) fn into_async(self) -> Box<dyn AsyncRead + Send + Unpin> {
        match self.0.payload {
            GetResultPayload::File(file, _) => {
                let mut file = tokio::fs::File::from_std(file);
                file.set_max_buf_size(PIECE);
                Box::new(file)
            }
            GetResultPayload::Stream(stream) => {
                Box::new(StreamReader::new(stream.map_err(std::io::Error::other)))
            }
        }
    }

    /// For those who read and wait: within a runtime's task that may block.
    #[must_use]
    pub fn into_reader(self) -> Box<dyn Read + Send> {
        match self.0.payload {
            GetResultPayload::File(file, _) => Box::new(file),
            GetResultPayload::Stream(stream) => {
                let stream = stream.map_err(std::io::Error::other);
                Box::new(SyncIoBridge::new(StreamReader::new(stream)))
            }
        }
    }

    /// As the body of an answer, of an object that is kept as it is and has this hash. When it has another it breaks off before
    /// the end, and `damaged` is called.
    pub fn into_body(self, sha256: String, damaged: impl FnOnce() + Send + 'static) -> Body {
        let mut reader = self.into_async();
        let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(2);
        tokio::spawn(async move {
            let mut hash = Sha256::new();
            // The last one is given when all is known to be right.
            let mut last = Bytes::new();
            loop {
                let mut piece = vec![0; PIECE];
                let read = match reader.read(&mut piece).await {
                    Ok(0) => break,
                    Ok(n) => {
                        piece.truncate(n);
                        hash.update(&piece);
                        std::mem::replace(&mut last, piece.into())
                    }
                    Err(e) => {
                        // Nobody listens any more, or nothing can be read any more.
                        let _ = sender.send(Err(e)).await;
                        return;
                    }
                };
                if !read.is_empty() && sender.send(Ok(read)).await.is_err() {
                    return;
                }
            }
            let piece = if hex::encode(hash.finalize()) == sha256 {
                Ok(last)
            } else {
                damaged();
                Err(std::io::Error::other("it does not hold what it did"))
            };
            let _ = sender.send(piece).await;
        });
        crate::http::stream(receiver)
    }
}
