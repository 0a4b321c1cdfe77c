//! A result on its way in: a short one in memory, a long one in a file without a name until all of it is there.

use std::io::Write as _;
use std::sync::Arc;

use axum::body::Body;
use axum::http::StatusCode;
use bbot_signature::{BodyDigest, body_digest};
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::bodies::{Bodies, Room};
use super::problem::{Cause, Problem};
use super::{body, cut, reader};

/// A result of so many bytes is kept in memory.
const SHORT: usize = 64 << 10;

/// A result may be so many times as long as what is kept of it.
const LONGEST: usize = 16;

/// Long results that are in memory at once: each is there twice, as text and as logs.
const LARGE: usize = 2;

/// One has this long to come.
const WHOLE: std::time::Duration = std::time::Duration::from_secs(600);

/// One that is there waits so long for its turn to be in memory.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// What bounds results that are on their way.
#[derive(Debug)]
pub(super) struct Spool {
    directory: std::path::PathBuf,
    /// Bytes that are kept of one.
    limit: usize,
    /// Room in memory for what comes.
    bodies: Bodies,
    /// Room for those that come, in pieces of [`SHORT`].
    room: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// A result's text.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) bytes: Vec<u8>,
    /// The SHA-256 of what came, before anything was cut.
    pub(super) digest: BodyDigest,
    /// Whoever has it may have so much in memory.
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// The same of what is short.
    pub(super) room: Room,
}

impl Spool {
    /// Long results go into files in this directory; fewer than `limit` bytes of each are kept.
    pub(super) fn new(directory: std::path::PathBuf, limit: usize, bodies: Bodies) -> Self {
        // Two of the longest, or any number of usual ones.
        let room = (2 * LONGEST * limit / SHORT).clamp(1, Semaphore::MAX_PERMITS);
        Self {
            directory,
            limit,
            bodies,
            room: Arc::new(Semaphore::new(room)),
            large: Arc::new(Semaphore::new(LARGE)),
        }
    }

    /// Reads a result's text, of which the logs are cut where it has `limit` bytes or more.
    pub(super) async fn read(&self, body: Body) -> Result<Text, Problem> {
        match tokio::time::timeout(WHOLE, self.take(body)).await {
            Ok(Ok(Taken::Short(bytes, room))) => Ok(Text {
                digest: body_digest(&bytes),
                bytes,
                permit: None,
                room,
            }),
            Ok(Ok(Taken::Long(long))) => self.kept(long).await,
            Ok(Err(problem)) => Err(problem),
            Err(_) => Err(body::too_slow()),
        }
    }

    async fn take(&self, mut body: Body) -> Result<Taken, Problem> {
        let mut short = Vec::new();
        let mut room = Room::default();
        while let Some(data) = body::next(&mut body).await? {
            let length = (short.len() + data.len()).min(SHORT);
            if let Err(problem) = self.bodies.grow(&mut room, length) {
                drop((short, room));
                body::drain(&mut body).await;
                return Err(problem);
            }
            short.extend_from_slice(&data);
            if short.len() > SHORT || short.len() >= self.limit {
                // Of a long one as much is in memory at a time.
                let taken = self.take_long(short, body).await;
                drop(room);
                return taken;
            }
        }
        Ok(Taken::Short(short, room))
    }

    async fn take_long(&self, begun: Vec<u8>, mut body: Body) -> Result<Taken, Problem> {
        let failed = |e: Cause<'_>| {
            // A full disk, mostly.
            let _ = Problem::internal("keep a result that comes", e);
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the controller cannot keep a result of this size now; its log says why. Try again later",
            )
        };
        let most = LONGEST.saturating_mul(self.limit);
        let mut file = tempfile::tempfile_in(&self.directory).map_err(|e| failed(&e))?;
        let mut held: Option<OwnedSemaphorePermit> = None;
        let mut length = 0;
        let mut pieces = begun;
        let mut hash = Sha256::new();
        loop {
            length += pieces.len();
            if length >= most {
                drop(file);
                body::drain(&mut body).await;
                return Err(Problem::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("payload too large: fewer than {most} bytes are taken"),
                ));
            }
            while held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) * SHORT < length {
                let Ok(more) = Arc::clone(&self.room).try_acquire_owned() else {
                    drop(file);
                    body::drain(&mut body).await;
                    return Err(Problem::new(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "too many long results come at once: try again later",
                    ));
                };
                match &mut held {
                    Some(held) => held.merge(more),
                    None => held = Some(more),
                }
            }
            // Elsewhere than where other requests wait: a disk may be slow.
            let written = tokio::task::spawn_blocking(move || {
                hash.update(&pieces);
                let written = file.write_all(&pieces);
                pieces.clear();
                written.map(|()| (file, pieces, hash))
            })
            .await
            .map_err(|e| failed(&e))?;
            (file, pieces, hash) = written.map_err(|e| failed(&e))?;
            while pieces.len() < SHORT {
                match body::next(&mut body).await? {
                    Some(data) => pieces.extend_from_slice(&data),
                    None => break,
                }
            }
            if pieces.is_empty() {
                return Ok(Taken::Long(Long {
                    file,
                    length,
                    digest: hash.finalize().into(),
                    held,
                }));
            }
        }
    }

    /// What is kept of a long one.
    async fn kept(&self, long: Long) -> Result<Text, Problem> {
        let Long {
            mut file,
            length,
            digest,
            held,
        } = long;
        let failed = |e: Cause<'_>| Problem::internal("read a result that came", e);
        let permit = reader::turn(&self.large, PATIENCE, "long results are kept").await?;
        let limit = self.limit;
        let kept = tokio::task::spawn_blocking(move || {
            if length >= limit {
                return cut::cut(&mut file, limit as u64 - 1);
            }
            let mut bytes = Vec::with_capacity(length);
            std::io::Seek::rewind(&mut file)?;
            std::io::Read::read_to_end(&mut file, &mut bytes)?;
            Ok(Some(bytes))
        });
        let kept = kept.await.map_err(|e| failed(&e))?;
        // The file has its room until here.
        drop(held);
        match kept.map_err(|e| failed(&e))? {
            Some(bytes) => Ok(Text {
                bytes,
                digest,
                permit: Some(permit),
                room: Room::default(),
            }),
            None => Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("payload too large: without its logs it has more than {limit} bytes"),
            )),
        }
    }
}

enum Taken {
    Short(Vec<u8>, Room),
    Long(Long),
}

/// A long one that has come whole.
struct Long {
    file: std::fs::File,
    length: usize,
    digest: BodyDigest,
    /// The room that it has.
    held: Option<OwnedSemaphorePermit>,
}
