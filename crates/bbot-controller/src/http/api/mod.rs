//! The JSON API, `/api/v1` (protocol, section 7).

mod agents;
mod archives;
pub(super) mod builds;
pub(super) mod cancel;
mod configurations;
pub(super) mod document;
mod excluded;
pub(super) mod logs;
mod paging;
pub(super) mod rebuild;
mod source;
pub(super) mod submissions;
mod tokens;
mod view;

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::problem::{Json, Problem};

/// What is below `/api/v1`.
pub(super) fn router() -> Router<Arc<App>> {
    Router::from(routes())
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
}

/// What there is, each with its description.
fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(agents::list))
        .routes(routes!(agents::drain))
        .routes(routes!(agents::resume))
        .routes(routes!(agents::approve))
        .routes(routes!(agents::refuse))
        .routes(routes!(archives::put))
        .routes(routes!(builds::list))
        .routes(routes!(builds::get))
        .routes(routes!(builds::attempts))
        .routes(routes!(configurations::list))
        .routes(routes!(document::get))
        .routes(routes!(logs::whole))
        .routes(routes!(logs::operation))
        .routes(routes!(rebuild::rebuild))
        .routes(routes!(cancel::build))
        .routes(routes!(cancel::submission))
        .routes(routes!(submissions::list, submissions::submit))
        .routes(routes!(submissions::get))
        .routes(routes!(excluded::list))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
}

/// A JSON answer.
fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_string_pretty(value) {
        Ok(text) => (
            status,
            [(header::CONTENT_TYPE, "application/json")],
            format!("{text}\n"),
        )
            .into_response(),
        Err(e) => Json(Problem::internal("write an answer", &e)).into_response(),
    }
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
