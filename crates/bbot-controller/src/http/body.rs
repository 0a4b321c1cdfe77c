//! Reading a request's body within bounds of size and time.

use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use http_body_util::BodyExt as _;

use super::bodies::{Bodies, Room};
use super::problem::Problem;

/// A client that sends nothing for this long is given up.
const IDLE: Duration = Duration::from_secs(30);

/// A body that is read whole has this long: slow ones have room that others wait for.
const WHOLE: Duration = Duration::from_secs(60);

/// A long body has this long,
const GRACE: Duration = Duration::from_secs(60);

/// and a second more for each of so many bytes.
const SLOWEST: u64 = 16 << 10;

/// Bytes by which a body in memory grows.
const STEP: usize = 4 << 10;

/// After a body is found too large, so many bytes more are read and thrown away, so that the client
/// gets to read the answer instead of a broken connection, which it would take for a reason to try again.
const DRAIN: usize = 256 << 20;

/// The next piece of a body; `None` at its end.
pub(super) async fn next(body: &mut Body) -> Result<Option<Bytes>, Problem> {
    loop {
        match tokio::time::timeout(IDLE, body.frame()).await {
            Err(_) => {
                return Err(Problem::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "the request's body stopped coming",
                ));
            }
            Ok(None) => return Ok(None),
            Ok(Some(Err(_))) => return Err(Problem::bad("the request's body broke off")),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Reads and forgets the rest of a body, within reason.
pub(super) async fn drain(body: &mut Body) {
    drain_long(&mut Long::new(body)).await;
}

/// The same for one that has come so far at some speed.
pub(super) async fn drain_long(body: &mut Long<'_>) {
    let mut left = DRAIN;
    while let Ok(Some(data)) = body.next().await {
        left = left.saturating_sub(data.len());
        if left == 0 {
            return;
        }
    }
}

/// A body of any length, which has to come at some speed.
#[derive(Debug)]
pub(super) struct Long<'a> {
    body: &'a mut Body,
    /// How long was waited for it, and not for a disk of ours.
    waited: Duration,
    bytes: u64,
}

impl<'a> Long<'a> {
    pub(super) fn new(body: &'a mut Body) -> Self {
        Self {
            body,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// The next piece; `None` at its end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let may_take = GRACE + Duration::from_secs(self.bytes / SLOWEST);
        let begun = Instant::now();
        let left = may_take.saturating_sub(self.waited);
        let next = tokio::time::timeout(left, next(self.body)).await;
        self.waited += begun.elapsed();
        let piece = next.map_err(|_| too_slow())??;
        self.bytes += piece.as_ref().map_or(0, Bytes::len) as u64;
        Ok(piece)
    }
}

/// A body that is in memory whole, with the room that it has there.
#[derive(Debug, Default)]
pub(super) struct Whole {
    bytes: Vec<u8>,
    room: Room,
}

impl std::ops::Deref for Whole {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl From<Vec<u8>> for Whole {
    /// Without room of its own.
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            room: Room::default(),
        }
    }
}

impl Whole {
    /// Something shorter in its place, which gets its room.
    pub(super) fn replaced(mut self, bytes: Vec<u8>) -> Self {
        self.room.shrink(bytes.len());
        Self { bytes, ..self }
    }
}

/// The whole body; 413 unless it has fewer than `limit` bytes, which is how the original counts. 503 where there is no room for it.
pub(super) async fn read(bodies: &Bodies, body: Body, limit: usize) -> Result<Whole, Problem> {
    match tokio::time::timeout(WHOLE, read_all(bodies, body, limit)).await {
        Ok(Ok(read)) => Ok(read),
        Ok(Err((problem, mut body))) => {
            // It has given back its room by now.
            drain(&mut body).await;
            Err(problem)
        }
        Err(_) => Err(too_slow()),
    }
}

/// What is told to a client that was too slow.
pub(super) fn too_slow() -> Problem {
    Problem::new(
        StatusCode::REQUEST_TIMEOUT,
        "the request's body took too long",
    )
}

/// The whole body, or why it is not taken and what is left of it.
async fn read_all(bodies: &Bodies, mut body: Body, limit: usize) -> Result<Whole, (Problem, Body)> {
    let Whole {
        mut bytes,
        mut room,
    } = Whole::default();
    loop {
        let data = match next(&mut body).await {
            Ok(Some(data)) => data,
            Ok(None) => return Ok(Whole { bytes, room }),
            Err(problem) => return Err((problem, Body::empty())),
        };
        let length = bytes.len() + data.len();
        if length >= limit {
            let what = format!("payload too large: fewer than {limit} bytes are taken");
            return Err((Problem::new(StatusCode::PAYLOAD_TOO_LARGE, what), body));
        }
        if let Err(problem) = bodies.grow(&mut room, length) {
            return Err((problem, body));
        }
        if length > bytes.capacity() {
            // By steps, and not to the double: what is told of as its room is its room.
            bytes.reserve_exact(length.next_multiple_of(STEP) - bytes.len());
        }
        bytes.extend_from_slice(&data);
    }
}

/// What comes out of a channel, as the body of an answer. It is asked for piece by piece, as the client takes it.
pub(super) fn stream(receiver: tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>) -> Body {
    Body::new(Pieces(receiver))
}

/// The receiving end as a body.
struct Pieces(tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<std::io::Result<hyper::body::Frame<Bytes>>>> {
        self.0
            .poll_recv(context)
            .map(|piece| piece.map(|p| p.map(hyper::body::Frame::data)))
    }
}
