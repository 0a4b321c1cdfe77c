//! Builds: lists, and one with its attempts.

use std::sync::Arc;

use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::document::{Finds, Lists};
use super::paging::{self, Limit};
use super::view::{self, BuildWithAttempts};
use super::{id, json};
use crate::http::problem::{Json, Problem};
use crate::http::{App, Base, params};
use crate::store::{Build, Filter};

/// Attempts that a build is shown with.
pub(in crate::http) const ATTEMPTS: i64 = 20;

/// Which builds a list shows.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Name of the package, with the wildcards `*` and `?`.
    #[param(max_length = 256)]
    package: Option<String>,
    /// Name of the configuration, with the wildcards `*` and `?`.
    #[param(max_length = 256)]
    configuration: Option<String>,
    state: Option<view::State>,
    /// Only of builds that are built.
    status: Option<view::Status>,
    /// `next` of the page before.
    before: Option<String>,
    #[param(inline)]
    limit: Limit,
}

/// One page of builds, newest first. With a filter it may have fewer than were asked for, or none, and there is a next one.
#[derive(Debug, Serialize, ToSchema)]
struct Builds {
    builds: Vec<view::Build>,
    /// `before` of the next page; null at the end.
    next: Option<String>,
}

/// The filter in a list's parameters, and how many builds are wanted.
pub(in crate::http) fn filter(parameters: Vec<(String, String)>) -> Result<(Filter, i64), Problem> {
    let wanted: Wanted = params::read(params::without_empty(parameters))?;
    let before = wanted.before.as_deref().map(paging::number).transpose()?;
    let filter = Filter {
        package: paging::name("package", wanted.package)?,
        configuration: paging::name("configuration", wanted.configuration)?,
        state: wanted.state.map(Into::into),
        status: wanted.status.map(Into::into),
        before,
    };
    Ok((filter, wanted.limit.into()))
}

/// Builds, newest first.
#[utoipa::path(
    get,
    path = "/builds",
    tag = "builds",
    params(Wanted),
    responses((status = 200, description = "A page of them", body = Builds), Lists)
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(base): Extension<Base>,
    RawQuery(query): RawQuery,
) -> Result<Response, Json> {
    let (filter, limit) = filter(params::parse(&query.unwrap_or_default()))?;
    let (builds, next) = app.store.builds(&filter, limit).await?;
    let answer = Builds {
        builds: builds.iter().map(|b| view::Build::of(b, &base.0)).collect(),
        next: next.map(|n| n.to_string()),
    };
    Ok(json(StatusCode::OK, &answer))
}

/// The build that a path names.
pub(in crate::http) async fn find(app: &App, text: &str) -> Result<Build, Problem> {
    let id = id(text, "build")?;
    app.store
        .build(id)
        .await?
        .ok_or_else(|| Problem::not_found(format_args!("build {id}")))
}

/// One build.
#[utoipa::path(
    get,
    path = "/builds/{id}",
    tag = "builds",
    params(("id" = view::Id, Path, description = "Its number")),
    responses((status = 200, description = "It", body = BuildWithAttempts), Finds)
)]
pub(super) async fn get(
    State(app): State<Arc<App>>,
    Extension(base): Extension<Base>,
    Path(text): Path<String>,
) -> Result<Response, Json> {
    let build = find(&app, &text).await?;
    Ok(json(StatusCode::OK, &whole(&app, &build, &base).await?))
}

/// Which attempts a list shows.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct WantedAttempts {
    /// `next` of the page before.
    before: Option<String>,
    #[param(inline)]
    limit: Limit,
}

/// One page of attempts, newest first.
#[derive(Debug, Serialize, ToSchema)]
struct Attempts {
    attempts: Vec<view::Attempt>,
    /// `before` of the next page; null at the end.
    next: Option<String>,
}

/// Results of a build, newest first.
#[utoipa::path(
    get,
    path = "/builds/{id}/attempts",
    tag = "builds",
    params(("id" = view::Id, Path, description = "Its number"), WantedAttempts),
    responses((status = 200, description = "A page of them", body = Attempts), Finds)
)]
pub(super) async fn attempts(
    State(app): State<Arc<App>>,
    Path(text): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Json> {
    let parameters = params::parse(&query.unwrap_or_default());
    let wanted: WantedAttempts = params::read(params::without_empty(parameters))?;
    let before = wanted.before.as_deref().map(paging::number).transpose()?;
    let limit = wanted.limit.into();
    let build = find(&app, &text).await?;
    let attempts = app.store.attempts(build.id, before, limit + 1).await?;
    let (attempts, next) = paging::page(attempts, limit, |attempt| attempt.number);
    let answer = Attempts {
        attempts: attempts.iter().map(view::Attempt::of).collect(),
        next: next.map(|n| n.to_string()),
    };
    Ok(json(StatusCode::OK, &answer))
}

/// A build with its attempts: what its page shows.
pub(super) async fn whole(
    app: &App,
    build: &Build,
    base: &Base,
) -> Result<BuildWithAttempts, Problem> {
    let attempts = app.store.attempts(build.id, None, ATTEMPTS).await?;
    let waits = app.why_it_waits(build).await?;
    let artifacts = app
        .store
        .artifacts(build.id, build.run.unwrap_or(0))
        .await?;
    Ok(BuildWithAttempts::of(
        build, &attempts, waits, &artifacts, &base.0,
    ))
}
