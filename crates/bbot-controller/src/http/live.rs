//! A raw log as it is at the moment: as plain text, and its end for the page.

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};

use super::App;
use super::problem::{Cause, Problem};
use super::reader::{self, Reader};
use crate::objects::log::INLINE;
use crate::queue::late::{self, Missing};
use crate::segments::{Piece, Position};
use crate::store::Build;

/// Bytes of a raw log's end that a page shows.
const SHOWN: u64 = 40_000;

fn internal(error: Cause<'_>) -> Problem {
    Problem::internal("read a raw log", error)
}

/// Whether there is a raw log of a run.
pub(super) async fn exists(app: &Arc<App>, build: &Build, run: i64) -> Result<bool, Problem> {
    let (segments, id) = (Arc::clone(&app.segments), build.id);
    tokio::task::spawn_blocking(move || segments.exists(id, run))
        .await
        .map_err(|e| internal(&e))
}

/// Which operation the text is in, for the lines between.
#[derive(Debug, Default)]
struct Text {
    operation: Option<String>,
    /// Whether the last byte ended a line.
    begun: bool,
}

impl Text {
    /// A piece as text: with a line that names the operation where it changes and the whole log is asked for.
    fn of(&mut self, piece: Piece, wanted: Option<&str>) -> Vec<u8> {
        let mut text = Vec::new();
        match piece {
            Piece::Bytes { operation, .. } if wanted.is_some_and(|w| w != operation) => {}
            Piece::Bytes { operation, bytes } => {
                if wanted.is_none() && self.operation.as_ref() != Some(&operation) {
                    self.line(&mut text, &format!("==== {operation} ===="));
                    self.operation = Some(operation);
                }
                self.begun = bytes.last() != Some(&b'\n');
                text.extend_from_slice(&bytes);
            }
            Piece::Gap { left_out, missing } => {
                let what = match (left_out, missing) {
                    (0, missing) => format!("{missing} pieces of the log were lost by the agent"),
                    (left_out, _) => format!("{left_out} bytes are left out here"),
                };
                self.line(&mut text, &format!("==== ... {what} ... ===="));
            }
        }
        text
    }

    /// What is missing at the end.
    fn end(&mut self, missing: Missing) -> Vec<u8> {
        let what = match (missing.segments, missing.may_come) {
            (1, true) => "piece of the log has not come yet".to_owned(),
            (1, false) => "piece of the log never came".to_owned(),
            (n, true) => format!("{n} pieces of the log have not come yet"),
            (n, false) => format!("{n} pieces of the log never came"),
        };
        let mut text = Vec::new();
        let line = format!("==== ... the last {what} ... ====");
        self.line(&mut text, &line);
        text
    }

    fn line(&mut self, text: &mut Vec<u8>, line: &str) {
        if self.begun {
            text.push(b'\n');
        }
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
        self.begun = false;
    }
}

/// What there is of a run's log, as it came.
pub(super) async fn answer(
    app: &Arc<App>,
    build: &Build,
    run: i64,
    operation: Option<&str>,
) -> Result<Response, Problem> {
    let (segments, id) = (Arc::clone(&app.segments), build.id);
    let log = tokio::task::spawn_blocking(move || segments.log(id, run))
        .await
        .map_err(|e| internal(&e))?
        .map_err(|e| internal(&e))?;
    let (end, now) = (app.store.log_end(run).await?, app.now());
    let operation = operation.map(str::to_owned);
    let is_long = log.length() > INLINE as u64;
    let leave = is_long.then(|| reader::leave(app)).transpose()?;
    let (reader, body) = Reader::new(app, leave);
    tokio::spawn(async move {
        let mut position = Position::default();
        let mut text = Text::default();
        loop {
            let (source, from) = (Arc::clone(&log), position);
            let read = tokio::task::spawn_blocking(move || source.read(from))
                .await
                .map_err(std::io::Error::other)
                .flatten();
            let piece = match read {
                Ok(None) => {
                    if let Some(missing) = late::missing(end, log.last(), now) {
                        let mark = text.end(missing);
                        // Whoever has gone needs no more.
                        let _ = reader.send(Ok(mark.into())).await;
                    }
                    return;
                }
                Ok(Some((piece, next))) => {
                    position = next;
                    Ok(Bytes::from(text.of(piece, operation.as_deref())))
                }
                Err(e) => Err(e),
            };
            let end = piece.is_err();
            if piece.as_ref().is_ok_and(Bytes::is_empty) {
                continue;
            }
            // Nobody listens any more, or nothing can be read any more.
            if reader.send(piece).await.is_none() || end {
                return;
            }
        }
    });
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

/// The end of a run's log for a page.
#[derive(Debug)]
pub(super) struct Tail {
    /// Made fit to be read.
    pub(super) text: String,
    /// Whether there is something before it.
    pub(super) cut: bool,
    /// Length of the whole.
    pub(super) length: u64,
}

/// The end of a run's log; `None` when nothing has come.
pub(super) async fn tail(app: &Arc<App>, build: &Build, run: i64) -> Result<Option<Tail>, Problem> {
    let (segments, id) = (Arc::clone(&app.segments), build.id);
    tokio::task::spawn_blocking(move || {
        let log = segments.log(id, run)?;
        let length = log.length();
        if length == 0 {
            return Ok(None);
        }
        let at = length.saturating_sub(SHOWN);
        let mut position = Position { at, number: 0 };
        let (mut text, mut bytes) = (Text::default(), Vec::new());
        while let Some((piece, next)) = log.read(position)? {
            position = next;
            bytes.extend_from_slice(&text.of(piece, None));
            // It grows while it is read, and a page has an end.
            if position.at >= length {
                break;
            }
        }
        Ok(Some(Tail {
            text: bbot_manifest::log_text(&bytes),
            cut: at > 0,
            length,
        }))
    })
    .await
    .map_err(|e| internal(&e))?
    .map_err(|e: std::io::Error| internal(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_told_apart() {
        let bytes = |operation: &str, bytes: &str| Piece::Bytes {
            operation: operation.into(),
            bytes: bytes.into(),
        };
        let gap = |left_out, missing| Piece::Gap { left_out, missing };
        let pieces = || {
            [
                bytes("a", "x\ny"),
                bytes("a", "z"),
                bytes("b", "1\n"),
                gap(10, 0),
                gap(0, 3),
                bytes("b", "2"),
            ]
        };
        let text = |wanted: Option<&str>| {
            let mut text = Text::default();
            let parts: Vec<u8> = pieces()
                .into_iter()
                .flat_map(|p| text.of(p, wanted))
                .collect();
            String::from_utf8(parts).unwrap_or_default()
        };
        assert_eq!(
            text(None),
            "==== a ====\nx\nyz\n==== b ====\n1\n==== ... 10 bytes are left out here ... ====\n\
             ==== ... 3 pieces of the log were lost by the agent ... ====\n2"
        );
        assert!(text(Some("a")).starts_with("x\nyz\n===="));
    }

    #[test]
    fn an_end_that_is_missing_is_marked_on_a_line_of_its_own() {
        for (segments, may_come, what) in [
            (2, true, "2 pieces of the log have not come yet"),
            (2, false, "2 pieces of the log never came"),
            (1, true, "piece of the log has not come yet"),
            (1, false, "piece of the log never came"),
        ] {
            let mut text = Text::default();
            let piece = Piece::Bytes {
                operation: "a".to_owned(),
                bytes: b"x".to_vec(),
            };
            assert_eq!(text.of(piece, Some("a")), b"x");
            let missing = Missing { segments, may_come };
            let mark = format!("\n==== ... the last {what} ... ====\n");
            assert_eq!(text.end(missing), mark.as_bytes());
        }
    }
}
