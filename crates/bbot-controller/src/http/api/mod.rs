//! The JSON API, `/api/v1` (protocol, section 7).

mod agents;
mod archives;
mod auth;
pub(super) mod builds;
mod configurations;
pub(super) mod logs;
pub(super) mod rebuild;
mod source;
mod submissions;
mod view;

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post, put};
use serde_json::Value;

use super::App;
use super::problem::{Json, Problem};

/// What is below `/api/v1`.
pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/archives/{sha256}", put(archives::put))
        .route("/submissions", post(submissions::submit))
        .route("/submissions/{id}", get(submissions::get))
        .route("/builds", get(builds::list))
        .route("/builds/{id}", get(builds::get))
        .route("/builds/{id}/log", get(logs::whole))
        .route("/builds/{id}/log/{operation}", get(logs::operation))
        .route("/builds/{id}/rebuild", post(rebuild::rebuild))
        .route("/configurations", get(configurations::list))
        .route("/agents", get(agents::list))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
}

/// A JSON answer.
fn json(status: StatusCode, value: &Value) -> Response {
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        format!("{value:#}\n"),
    )
        .into_response()
}

/// Reads a number out of a path: what is no number names nothing.
pub(super) fn id(text: &str, what: &str) -> Result<i64, Problem> {
    text.parse::<i64>()
        .ok()
        .filter(|id| *id > 0)
        .ok_or_else(|| Problem::not_found(format_args!("{what} {text:?}")))
}

/// Whatever else is asked for under `/api/v1`.
pub(super) async fn unknown() -> Json {
    Json(Problem::not_found("such resource"))
}

/// A method that a resource of the API does not have.
async fn wrong_method() -> Json {
    Json(Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this resource does not know that method",
    ))
}
