//! Following a log: an event stream of what a running build has printed, and of what it prints until it is built
//! (protocol, section 7).
//!
//! A follower holds a position and reads from the log's file: whoever is slow costs no memory, and whoever was cut off
//! goes on where he was.

use std::fmt::Write as _;
use std::str::FromStr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::problem::Problem;
use super::{App, body};
use crate::queue::State;
use crate::queue::late;
use crate::segments::{Piece, Position, RunLog};
use crate::store::Build;

/// Where a follower stands: in which run, and where in its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    run: i64,
    at: u64,
}

impl FromStr for Place {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        text.split_once('.')
            .and_then(|(run, at)| {
                Some(Self {
                    run: run.parse().ok().filter(|r| *r >= 0)?,
                    at: at.parse().ok()?,
                })
            })
            .ok_or_else(|| {
                Problem::bad(format!(
                    "{text:?} is not a position in a log: it is the id of an event, as in 7.1024"
                ))
            })
    }
}

/// The place that a request asks for: the parameter, else the header that browsers send.
pub(super) fn place(from: Option<&str>, headers: &HeaderMap) -> Result<Option<Place>, Problem> {
    let last = headers
        .get("last-event-id")
        .and_then(|v| v.to_str().ok())
        .filter(|v| !v.is_empty());
    from.or(last).map(str::parse).transpose()
}

/// The stream for a build; of one operation where one is named.
pub(super) fn answer(
    app: &Arc<App>,
    build: &Build,
    operation: Option<String>,
    from: Option<Place>,
) -> Result<Response, Problem> {
    let permit = Arc::clone(&app.followers)
        .try_acquire_owned()
        .map_err(|_| {
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!(
                    "{} clients follow logs already, and more are not served: try again later",
                    app.config.limits.followers
                ),
            )
        })?;
    // Two pieces: one on its way and one read ahead.
    let (sender, receiver) = mpsc::channel(2);
    let follower = Follower {
        app: Arc::clone(app),
        build: build.id,
        operation,
        sender,
        _permit: permit,
    };
    tokio::spawn(follower.run(from));
    Ok((
        [
            (header::CONTENT_TYPE, "text/event-stream"),
            // A server before us must not gather it.
            (header::HeaderName::from_static("x-accel-buffering"), "no"),
        ],
        body::stream(receiver),
    )
        .into_response())
}

/// The client is gone, or too slow, or we end.
struct Gone;

struct Follower {
    app: Arc<App>,
    build: i64,
    operation: Option<String>,
    sender: mpsc::Sender<std::io::Result<Bytes>>,
    _permit: OwnedSemaphorePermit,
}

/// What of a build is told as its state.
#[derive(PartialEq)]
struct Told {
    state: State,
    run: Option<i64>,
}

impl Follower {
    async fn run(self, from: Option<Place>) {
        // However it ends: without an event `end` the client asks again.
        let _ = self.follow(from).await;
    }

    async fn follow(&self, from: Option<Place>) -> Result<(), Gone> {
        let mut changed = self.app.changes.subscribe(self.build);
        let mut told: Option<Told> = None;
        let mut place = from;
        let mut position = Position {
            at: from.map_or(0, |p| p.at),
            number: 0,
        };
        let mut log: Option<(Arc<RunLog>, watch::Receiver<u64>)> = None;
        loop {
            // Before looking, so that what happens meanwhile is not slept over.
            changed.mark_unchanged();
            let build = self.look().await?;
            let now = Told {
                state: build.state,
                run: build.run,
            };
            let first = told.is_none();
            if told.as_ref() != Some(&now) {
                self.event("state", None, &state(&build)).await?;
                told = Some(now);
            }
            // Who comes when it is built reads the result's log. Who was here, or says where he was, gets the rest.
            let wanted = build.state != State::Built || !first || from.is_some();
            if let Some(run) = build.run.filter(|_| wanted) {
                if place.is_none_or(|p| p.run != run) {
                    position = Position::default();
                    log = None;
                }
                place = Some(Place {
                    run,
                    at: position.at,
                });
                if log.is_none() {
                    log = Some(self.open(run).await?);
                }
                if let Some((log, grown)) = &mut log {
                    grown.mark_unchanged();
                    self.drain(log, run, &mut position).await?;
                }
            }
            if build.state.is_over() {
                if let (Some((log, _)), Some(run)) = (&log, build.run) {
                    self.tell_missing(log, run, position).await?;
                }
                let status = build.status.filter(|_| build.state == State::Built);
                let status = status.map(|s| s.to_string());
                let end = json!({ "status": status, "attempt": build.attempt });
                return self.event("end", None, &end).await;
            }
            self.wait(&mut changed, log.as_mut().map(|(_, grown)| grown))
                .await?;
        }
    }

    /// Waits until there may be something to tell; says meanwhile that we are here.
    async fn wait(
        &self,
        changed: &mut watch::Receiver<u64>,
        grown: Option<&mut watch::Receiver<u64>>,
    ) -> Result<(), Gone> {
        let grown = async {
            match grown {
                // The log itself is gone only with its last user, which is us.
                Some(grown) => drop(grown.changed().await),
                None => std::future::pending().await,
            }
        };
        tokio::pin!(grown);
        loop {
            tokio::select! {
                changed = changed.changed() => return changed.map_err(|_| Gone),
                () = &mut grown => return Ok(()),
                () = self.app.shutdown.cancelled() => return Err(Gone),
                () = self.sender.closed() => return Err(Gone),
                () = tokio::time::sleep(self.app.config.limits.heartbeat) => self.send(":\n\n".to_owned()).await?,
            }
        }
    }

    async fn look(&self) -> Result<Build, Gone> {
        match self.app.store.build(self.build).await {
            Ok(Some(build)) => Ok(build),
            Ok(None) => Err(Gone),
            Err(e) => {
                tracing::error!("cannot follow a log: {e}");
                Err(Gone)
            }
        }
    }

    async fn open(&self, run: i64) -> Result<(Arc<RunLog>, watch::Receiver<u64>), Gone> {
        let (segments, build) = (Arc::clone(&self.app.segments), self.build);
        match tokio::task::spawn_blocking(move || segments.log(build, run)).await {
            Ok(Ok(log)) => {
                let grown = log.grown();
                Ok((log, grown))
            }
            Ok(Err(e)) => {
                tracing::error!("cannot read a raw log: {e}");
                Err(Gone)
            }
            Err(_) => Err(Gone),
        }
    }

    /// Sends what there is from the position on.
    async fn drain(
        &self,
        log: &Arc<RunLog>,
        run: i64,
        position: &mut Position,
    ) -> Result<(), Gone> {
        loop {
            let (reader, from) = (Arc::clone(log), *position);
            let read = tokio::task::spawn_blocking(move || reader.read(from)).await;
            let (piece, next) = match read {
                Ok(Ok(Some(found))) => found,
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(e)) => {
                    tracing::error!("cannot read a raw log: {e}");
                    return Err(Gone);
                }
                Err(_) => return Err(Gone),
            };
            *position = next;
            let id = format!("{run}.{}", next.at);
            match piece {
                Piece::Bytes { operation, bytes } => {
                    if self.operation.as_ref().is_none_or(|o| *o == operation) {
                        let bytes = base64::engine::general_purpose::STANDARD.encode(bytes);
                        let data = json!({ "operation": operation, "bytes": bytes });
                        self.event("log", Some(&id), &data).await?;
                    }
                }
                Piece::Gap { left_out, missing } => {
                    let data = json!({ "left_out": left_out, "missing": missing });
                    self.event("gap", Some(&id), &data).await?;
                }
            }
        }
    }

    /// Says that the end of the log has not come, where that is known.
    async fn tell_missing(&self, log: &RunLog, run: i64, at: Position) -> Result<(), Gone> {
        let end = match self.app.store.log_end(run).await {
            Ok(end) => end,
            Err(e) => {
                tracing::error!("cannot follow a log: {e}");
                return Err(Gone);
            }
        };
        let Some(missing) = late::missing(end, log.last(), self.app.now()) else {
            return Ok(());
        };
        let id = format!("{run}.{}", at.at);
        let data = json!({ "left_out": 0, "missing": missing.segments });
        self.event("gap", Some(&id), &data).await
    }

    async fn event(&self, name: &str, id: Option<&str>, data: &Value) -> Result<(), Gone> {
        let mut text = format!("event: {name}\n");
        if let Some(id) = id {
            let _ = writeln!(text, "id: {id}");
        }
        // JSON on one line has no line breaks: serde_json escapes those in strings.
        let _ = write!(text, "data: {data}\n\n");
        self.send(text).await
    }

    async fn send(&self, text: String) -> Result<(), Gone> {
        let slow = self.app.config.limits.slow_follower;
        tokio::select! {
            // Not while we end: whoever does not read would hold it up.
            () = self.app.shutdown.cancelled() => Err(Gone),
            sent = tokio::time::timeout(slow, self.sender.send(Ok(Bytes::from(text)))) => match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) | Err(_) => Err(Gone),
            },
        }
    }
}

fn state(build: &Build) -> Value {
    let waiting = !build.is_begun();
    json!({
        "state": build.state.as_str(),
        "agent": build.agent.as_ref().filter(|_| !waiting),
        "machine": build.machine.as_ref().filter(|_| !waiting),
        "started": build.started.filter(|_| !waiting).map(|t| t.to_string()),
        "run": build.run,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        for (text, expected) in [
            ("7.1024", Some((7, 1024))),
            ("0.0", Some((0, 0))),
            ("7", None),
            ("", None),
            ("7.-1", None),
            ("-7.1", None),
            ("7.1.2", None),
            ("a.b", None),
            ("7.99999999999999999999", None),
        ] {
            let place = text.parse::<Place>().ok().map(|p| (p.run, p.at));
            assert_eq!(place, expected, "{text}");
        }
    }

    #[test]
    fn the_parameter_comes_before_the_header() {
        let mut headers = HeaderMap::new();
        assert_eq!(place(None, &headers), Ok(None));
        headers.insert("last-event-id", header::HeaderValue::from_static("3.4"));
        assert_eq!(place(None, &headers), Ok(Some(Place { run: 3, at: 4 })));
        assert_eq!(
            place(Some("5.6"), &headers),
            Ok(Some(Place { run: 5, at: 6 }))
        );
        assert!(place(Some("x"), &headers).is_err());
    }
}
