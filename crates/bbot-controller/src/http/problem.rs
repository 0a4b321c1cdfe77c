//! What goes wrong with a request: one sentence for the client, the cause for the log, and the dress of the
//! answer by who asks (plain text for agents, JSON for tools, a page for people).

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::store::StoreError;

/// A request that is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
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

    /// Something of ours failed: the cause is for the log alone.
    pub(crate) fn internal(doing: &str, cause: &dyn std::error::Error) -> Self {
        let mut chain = cause.to_string();
        let mut next = cause.source();
        while let Some(source) = next {
            chain.push_str(": ");
            chain.push_str(&source.to_string());
            next = source.source();
        }
        tracing::error!("cannot {doing}: {chain}");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the controller cannot {doing}; its log says why. Try again later"),
        )
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::internal("use its store", &error)
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
        (
            status,
            [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
            format!("{sentence}\n"),
        )
            .into_response()
    }
}

impl IntoResponse for Json {
    fn into_response(self) -> Response {
        let Problem { status, sentence } = self.0;
        let body = serde_json::json!({ "error": sentence }).to_string();
        let mut response =
            (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
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
