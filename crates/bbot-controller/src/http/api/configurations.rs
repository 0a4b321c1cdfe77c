//! What builds are made in: the lines of the buildtab.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::document::Reads;
use super::json;
use crate::buildtab;
use crate::http::App;

/// The lines of the buildtab, in its order.
#[derive(Debug, Serialize, ToSchema)]
struct Configurations {
    configurations: Vec<Configuration>,
}

/// A line of the buildtab.
#[derive(Debug, Serialize, ToSchema)]
struct Configuration {
    name: String,
    target: String,
    environment: Option<String>,
    /// Pattern of the names of machines that it is built on.
    machines: String,
    classes: Vec<String>,
    arguments: Vec<String>,
    warning_regexes: Vec<String>,
}

impl Configuration {
    fn of(line: &buildtab::Configuration) -> Self {
        Self {
            name: line.name.clone(),
            target: line.target.clone(),
            environment: line.environment.clone(),
            machines: line.pattern.clone(),
            classes: line.classes.clone(),
            arguments: line.arguments.clone(),
            warning_regexes: line.warning_regexes.clone(),
        }
    }
}

/// The configurations that packages are built in.
#[utoipa::path(
    get,
    path = "/configurations",
    tag = "configurations",
    responses((status = 200, description = "All of them", body = Configurations), Reads)
)]
pub(super) async fn list(State(app): State<Arc<App>>) -> Response {
    let buildtab = app.buildtab();
    let configurations = buildtab.configurations().iter().map(Configuration::of);
    let configurations = configurations.collect();
    json(StatusCode::OK, &Configurations { configurations })
}
