//! What builds are made in: the lines of the buildtab.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::json;
use crate::http::App;

/// `GET /api/v1/configurations`.
pub(super) async fn list(State(app): State<Arc<App>>) -> Response {
    let all: Vec<Value> = app
        .buildtab()
        .configurations()
        .iter()
        .map(|c| {
            json!({
                "name": c.name, "target": c.target, "environment": c.environment, "machines": c.pattern,
                "classes": c.classes, "arguments": c.arguments, "warning_regexes": c.warning_regexes,
            })
        })
        .collect();
    json(StatusCode::OK, &json!({ "configurations": all }))
}
