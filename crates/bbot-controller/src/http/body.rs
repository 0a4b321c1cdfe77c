//! Reading a request's body within bounds of size and time.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use http_body_util::BodyExt as _;

use super::problem::Problem;

/// A client that sends nothing for this long is given up.
const IDLE: Duration = Duration::from_secs(30);

/// A request that is read whole has this long: many slow ones must not fill the memory.
pub(super) const WHOLE: Duration = Duration::from_secs(600);

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
    let mut left = DRAIN;
    while let Ok(Some(data)) = next(body).await {
        left = left.saturating_sub(data.len());
        if left == 0 {
            return;
        }
    }
}

/// The whole body; 413 unless it has fewer than `limit` bytes, which is how the original counts.
pub(super) async fn read(body: Body, limit: usize) -> Result<Vec<u8>, Problem> {
    match tokio::time::timeout(WHOLE, read_all(body, limit)).await {
        Ok(read) => read,
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

async fn read_all(mut body: Body, limit: usize) -> Result<Vec<u8>, Problem> {
    let mut whole = Vec::new();
    while let Some(data) = next(&mut body).await? {
        if whole.len() + data.len() >= limit {
            drop(whole);
            drain(&mut body).await;
            return Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("payload too large: fewer than {limit} bytes are taken"),
            ));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole)
}

/// What comes out of a channel, as the body of an answer. It is asked for piece by piece, as the client takes it.
pub(crate) fn stream(receiver: tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>) -> Body {
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
