//! Builds that are to be done again.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{Request, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use super::builds::{find, whole};
use super::document::Changes;
use super::json;
use super::view::{BuildWithAttempts, Id};
use crate::http::access::Caller;
use crate::http::problem::{Json, Problem};
use crate::http::{App, Base, body, to_the_end};
use crate::queue::Rebuild;
use crate::store::{Asker, Build};
use crate::token::Scope;

/// Longest reason, in bytes.
const REASON_LIMIT: usize = 1000;

/// What may be said about what is asked for.
#[derive(Debug, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Because {
    /// The build shows it.
    #[serde(default)]
    #[schema(max_length = 1000)]
    reason: Option<String>,
}

/// Why something is asked for: the body of the request.
pub(super) async fn because(app: &App, request: Request<Body>) -> Result<Option<String>, Problem> {
    let asked: Because = read(app, request).await?;
    reason(asked.reason.as_deref())
}

/// What a request says; an empty body says nothing.
pub(super) async fn read<T: DeserializeOwned + Default>(
    app: &App,
    request: Request<Body>,
) -> Result<T, Problem> {
    let body = body::read(&app.bodies, request.into_body(), app.config.limits.form).await?;
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    serde_json::from_slice(&body)
        .map_err(|e| Problem::bad(format!("the request cannot be read: {e}")))
}

/// Why something is asked for, made fit for the store; empty is none.
pub(in crate::http) fn reason(text: Option<&str>) -> Result<Option<String>, Problem> {
    let text = bbot_manifest::sanitize(text.unwrap_or_default().trim().as_bytes());
    if text.len() > REASON_LIMIT {
        return Err(Problem::bad(format!(
            "the reason is longer than {REASON_LIMIT} characters"
        )));
    }
    Ok(Some(text).filter(|t| !t.is_empty()))
}

/// Queues a build again, for who asks, and tells the agents.
pub(in crate::http) async fn do_rebuild(
    app: &Arc<App>,
    build: &Build,
    submitter: &str,
    reason: Option<&str>,
) -> Result<Build, Problem> {
    let (app, build, reason) = (Arc::clone(app), build.clone(), reason.map(str::to_owned));
    let asker = app.asker(submitter);
    to_the_end(async move { queue_again(&app, &build, &asker, reason.as_deref()).await }).await?
}

async fn queue_again(
    app: &App,
    build: &Build,
    asker: &Asker,
    reason: Option<&str>,
) -> Result<Build, Problem> {
    let done = app
        .store
        .rebuild(build.id, asker, reason, app.now())
        .await?;
    // Before it is read again, which may fail: who waits for it must be told.
    match done {
        Some(Rebuild::Queue | Rebuild::AlreadyQueued) => app.waits(build, None),
        Some(Rebuild::AfterThisOne) | None => app.build_changed(build.id),
    }
    if done == Some(Rebuild::Queue) {
        app.figures.submitted(1);
    }
    tracing::info!(
        build.id,
        ?done,
        "a rebuild of build {} is asked for",
        build.id
    );
    app.store
        .build(build.id)
        .await?
        .ok_or_else(|| Problem::not_found(format_args!("build {}", build.id)))
}

/// Queues a build again, at the end of the queue; one that is building once its result is there.
#[utoipa::path(
    post,
    path = "/builds/{id}/rebuild",
    tag = "builds",
    params(("id" = Id, Path, description = "Its number")),
    request_body = inline(Option<Because>),
    responses((status = 200, description = "The build as it is now", body = BuildWithAttempts), Changes),
    security(("token" = ["rebuild"]))
)]
pub(super) async fn rebuild(
    State(app): State<Arc<App>>,
    Extension(base): Extension<Base>,
    Extension(caller): Extension<Caller>,
    Path(text): Path<String>,
    request: Request<Body>,
) -> Result<Response, Json> {
    let submitter = caller.may(Scope::Rebuild)?;
    let reason = because(&app, request).await?;
    let build = find(&app, &text).await?;
    let build = do_rebuild(&app, &build, submitter, reason.as_deref()).await?;
    Ok(json(StatusCode::OK, &whole(&app, &build, &base).await?))
}
