//! Builds: lists, and one with its attempts.

use std::sync::Arc;

use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::{id, json, view};
use crate::http::problem::{Json, Problem};
use crate::http::{App, Base, params};
use crate::store::{Build, Filter};

/// Builds of a list when no number is asked for, and at most.
const PAGE: i64 = 50;
const PAGE_LIMIT: i64 = 500;

/// Attempts that a build is shown with.
pub(in crate::http) const ATTEMPTS: i64 = 20;

/// The filter in a list's parameters. Empty ones are as good as absent: that is how a form sends them.
pub(in crate::http) fn filter(parameters: &[(String, String)]) -> Result<(Filter, i64), Problem> {
    let mut filter = Filter::default();
    let mut limit = PAGE;
    for (name, value) in parameters.iter().filter(|(_, value)| !value.is_empty()) {
        let bad = |e: &dyn std::fmt::Display| Problem::bad(format!("parameter {name}: {e}"));
        match name.as_str() {
            "package" => filter.package = Some(value.clone()),
            "configuration" => filter.configuration = Some(value.clone()),
            "state" => filter.state = Some(value.parse().map_err(|e| bad(&e))?),
            "status" => filter.status = Some(value.parse().map_err(|e| bad(&e))?),
            "before" => {
                let cursor = value
                    .parse()
                    .map_err(|_| bad(&"not a cursor of this list"))?;
                filter.before = Some(cursor);
            }
            "limit" => {
                limit = value
                    .parse()
                    .ok()
                    .filter(|n| (1..=PAGE_LIMIT).contains(n))
                    .ok_or_else(|| bad(&format_args!("from 1 to {PAGE_LIMIT}")))?;
            }
            other => return Err(Problem::bad(format!("unknown parameter {other:?}"))),
        }
    }
    Ok((filter, limit))
}

/// One page of builds and where the next one begins.
pub(in crate::http) async fn page(
    app: &App,
    filter: &Filter,
    limit: i64,
) -> Result<(Vec<Build>, Option<i64>), Problem> {
    let mut builds = app.store.builds(filter, limit + 1).await?;
    let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = builds.len() > wanted;
    builds.truncate(wanted);
    let next = builds.last().filter(|_| more).map(|b| b.position);
    Ok((builds, next))
}

/// `GET /api/v1/builds`.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(base): Extension<Base>,
    RawQuery(query): RawQuery,
) -> Result<Response, Json> {
    let (filter, limit) = filter(&params::parse(&query.unwrap_or_default()))?;
    let (builds, next) = page(&app, &filter, limit).await?;
    let builds: Vec<Value> = builds.iter().map(|b| view::build(b, &base.0)).collect();
    Ok(json(
        StatusCode::OK,
        &json!({ "builds": builds, "next": next.map(|n| n.to_string()) }),
    ))
}

/// The build that a path names.
pub(in crate::http) async fn find(app: &App, text: &str) -> Result<Build, Problem> {
    let id = id(text, "build")?;
    app.store
        .build(id)
        .await?
        .ok_or_else(|| Problem::not_found(format_args!("build {id}")))
}

/// `GET /api/v1/builds/<id>`.
pub(super) async fn get(
    State(app): State<Arc<App>>,
    Extension(base): Extension<Base>,
    Path(text): Path<String>,
) -> Result<Response, Json> {
    let build = find(&app, &text).await?;
    Ok(json(StatusCode::OK, &whole(&app, &build, &base).await?))
}

/// A build with its attempts: what its page shows.
pub(super) async fn whole(app: &App, build: &Build, base: &Base) -> Result<Value, Problem> {
    let mut value = view::build(build, &base.0);
    let attempts = app.store.attempts(build.id, ATTEMPTS).await?;
    value["attempts"] = attempts.iter().map(view::attempt).collect();
    Ok(value)
}
