//! An object that is being read.

use std::io::Read;

use axum::body::Bytes;
use futures_util::TryStreamExt as _;
use object_store::{GetResult, GetResultPayload};
use tokio::io::AsyncRead;
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
    pub(crate) fn into_async(self) -> Box<dyn AsyncRead + Send + Unpin> {
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
}
