//! What goes wrong with a request: one sentence for the client, the cause for the log, and the dress of the
//! answer by who asks (plain text for agents, JSON for tools, a page for people).

use std::net::SocketAddr;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bbot_manifest::sanitize;

use super::api::document::Refusal;
use crate::objects::ObjectError;
use crate::room;
use crate::source::archives::ArchiveError;
use crate::store::StoreError;

/// Most bytes of a requester's text in a line of the log.
const LOGGED: usize = 400;

/// A request that is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) sentence: String,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, sentence: impl Into<String>) -> Self {
        Self {
            status,
            sentence: sentence.into(),
        }
    }

    pub(crate) fn bad(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, sentence)
    }

    pub(crate) fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no {what}"))
    }

    /// Leaves a line in the log when a requester is to blame; what is ours is logged where it happens.
    pub(super) fn log_refusal(&self, function: &str, peer: Option<SocketAddr>) {
        if self.status.is_client_error() {
            tracing::warn!(
                peer = peer.map(tracing::field::display),
                "a {function} request is refused: {}",
                one_line(&self.sentence)
            );
        }
    }

    /// Something of ours failed: the cause is for the log alone. What passes when there is room on the disk is 503.
    pub(crate) fn internal(doing: &str, cause: Cause<'_>) -> Self {
        tracing::error!("cannot {doing}: {}", chain(cause));
        if room::is_wanting(cause) {
            return Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!(
                    "the controller cannot {doing} now: its disk is full, or does not work. Try again later"
                ),
            );
        }
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the controller cannot {doing}; its log says why. Try again later"),
        )
    }
}

/// What something of ours failed by.
pub(super) type Cause<'a> = &'a (dyn std::error::Error + 'static);

/// An error with all its causes.
pub(super) fn chain(cause: &dyn std::error::Error) -> String {
    let mut chain = cause.to_string();
    let mut next = cause.source();
    while let Some(source) = next {
        chain.push_str(": ");
        chain.push_str(&source.to_string());
        next = source.source();
    }
    chain
}

/// What is answered 503 can be asked for again after so many seconds.
const RETRY_AFTER: axum::http::HeaderValue = axum::http::HeaderValue::from_static("10");

/// Says of an answer that is 503 when to ask again.
pub(super) fn tell_when(response: &mut Response) {
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, RETRY_AFTER);
    }
}

/// A requester's text as a part of one line of the log: bounded, and nothing that a terminal obeys. The
/// beginning is kept, since that is where an error says its place.
pub(super) fn one_line(text: &str) -> String {
    let end = text.floor_char_boundary(LOGGED);
    let mut line = sanitize(&text.as_bytes()[..end]).replace(char::is_control, " ");
    if end < text.len() {
        line.push_str("...");
    }
    line
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        if matches!(error, StoreError::UsedKey) {
            return Self::new(StatusCode::UNAUTHORIZED, format!("unauthorized: {error}"));
        }
        if error.is_passing() {
            tracing::error!("the store cannot be used now: {}", chain(&error));
            return Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the controller cannot use its store now; its log says why. Try again later",
            );
        }
        Self::internal("use its store", &error)
    }
}

impl From<ObjectError> for Problem {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::Missing { .. } | ObjectError::Damaged { .. } => {
                tracing::error!("{}", chain(&error));
                Self::new(
                    StatusCode::GONE,
                    "this is lost: the controller's object store does not have it any more as it was",
                )
            }
            ObjectError::Hash { .. } => Self::bad(error.to_string()),
            ObjectError::Failed { .. } | ObjectError::Open { .. } => {
                tracing::error!("the object store cannot be used now: {}", chain(&error));
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the controller cannot use its object store now; its log says why. Try again later",
                )
            }
        }
    }
}

impl From<ArchiveError> for Problem {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())
            }
            ArchiveError::NotGzip => Self::bad(error.to_string()),
            ArchiveError::Object(ObjectError::Hash { actual, expected }) => {
                Self::bad(format!("the archive's SHA-256 is {actual}, not {expected}"))
            }
            ArchiveError::Object(error) => error.into(),
            ArchiveError::Store(error) => error.into(),
            ArchiveError::Io(error) => Self::internal("keep an archive", &error),
        }
    }
}

/// Plain text, as the original answers its agents.
#[derive(Debug)]
pub(crate) struct Plain(pub(crate) Problem);

/// `{"error": "..."}`.
#[derive(Debug)]
pub(crate) struct Json(pub(crate) Problem);

impl<E: Into<Problem>> From<E> for Plain {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl<E: Into<Problem>> From<E> for Json {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Plain {
    fn into_response(self) -> Response {
        let Problem { status, sentence } = self.0;
        let mut response = (
            status,
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            format!("{sentence}\n"),
        )
            .into_response();
        tell_when(&mut response);
        response
    }
}

impl IntoResponse for Json {
    fn into_response(self) -> Response {
        let Problem { status, sentence } = self.0;
        let body = serde_json::to_string(&Refusal { error: sentence }).unwrap_or_default();
        let mut response =
            (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        tell_when(&mut response);
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(
                header::WWW_AUTHENTICATE,
                axum::http::HeaderValue::from_static("Bearer realm=\"bbot\""),
            );
        }
        response
    }
}

/// A method that a resource does not have.
pub(crate) fn wrong_method(allowed: &'static str) -> Response {
    let problem = Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("use {allowed} here"),
    );
    ([(header::ALLOW, allowed)], Plain(problem)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_away_is_worth_another_try() {
        let away = || Problem::from(StoreError::Closed { doing: "write" });
        for answer in [Plain(away()).into_response(), Json(away()).into_response()] {
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(answer.headers()[header::RETRY_AFTER], "10");
        }
        let damaged = StoreError::Damaged {
            build: 1,
            column: "state",
            value: "x".into(),
        };
        let answer = Plain(Problem::from(damaged)).into_response();
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(!answer.headers().contains_key(header::RETRY_AFTER));
    }

    #[test]
    fn a_full_disk_is_worth_another_try() {
        for (kind, status) in [
            (
                std::io::ErrorKind::StorageFull,
                StatusCode::SERVICE_UNAVAILABLE,
            ),
            (
                std::io::ErrorKind::NotFound,
                StatusCode::INTERNAL_SERVER_ERROR,
            ),
        ] {
            let error = ArchiveError::Io(kind.into());
            assert_eq!(Problem::from(error).status, status, "{kind}");
        }
    }

    #[test]
    fn foreign_text_is_one_bounded_line() {
        let long = "\u{e9}".repeat(LOGGED);
        let cut = format!("{}...", "\u{e9}".repeat(LOGGED / 2));
        for (text, expected) in [
            ("task-request:2:7: error: x", "task-request:2:7: error: x"),
            ("a\nb\tc\rd", "a b c d"),
            ("a\u{1b}[31mb\u{9b}c", "a?[31mb?c"),
            (long.as_str(), cut.as_str()),
        ] {
            assert_eq!(one_line(text), expected, "{text:?}");
        }
    }
}
