//! An object that is being read.

use std::io::Read;

use axum::body::{Body, Bytes};
use futures_util::TryStreamExt as _;
use object_store::{GetResult, GetResultPayload};
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

    /// As the body of an answer.
    pub fn into_body(self) -> Body {
        match self.0.payload {
            GetResultPayload::File(file, _) => of_file(tokio::fs::File::from_std(file)),
            GetResultPayload::Stream(stream) => Body::from_stream(stream),
        }
    }
}

fn of_file(mut file: tokio::fs::File) -> Body {
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(2);
    file.set_max_buf_size(PIECE);
    tokio::spawn(async move {
        loop {
            let mut piece = vec![0; PIECE];
            let read = match file.read(&mut piece).await {
                Ok(0) => return,
                Ok(n) => {
                    piece.truncate(n);
                    Ok(Bytes::from(piece))
                }
                Err(e) => Err(e),
            };
            let end = read.is_err();
            // Nobody listens any more, or nothing can be read any more.
            if sender.send(read).await.is_err() || end {
                return;
            }
        }
    });
    crate::http::stream(receiver)
}
