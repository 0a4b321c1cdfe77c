//! Cancelling builds: what waits leaves the queue, who builds is told to stop.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, State as Shared};
use axum::http::{Request, StatusCode};
use axum::response::Response;

use super::builds::{find, whole};
use super::document::{Changes, Refusal};
use super::rebuild::{Because, because};
use super::submissions::{find as find_submission, with_builds};
use super::view::{BuildWithAttempts, CancelledSubmission, Id};
use super::{id, json};
use crate::http::access::Caller;
use crate::http::problem::{Json, Problem, one_line};
use crate::http::{App, Base, to_the_end};
use crate::queue::{Cancel, State};
use crate::store::Build;
use crate::token::Scope;

/// Cancels a build that is queued or building; once more is no error.
#[utoipa::path(
    post,
    path = "/builds/{id}/cancel",
    tag = "builds",
    params(("id" = Id, Path, description = "Its number")),
    request_body = inline(Option<Because>),
    responses(
        (status = 200, description = "The build as it is now", body = BuildWithAttempts),
        (status = 409, description = "It is built", body = Refusal),
        Changes
    ),
    security(("token" = ["cancel"]))
)]
pub(super) async fn build(
    Shared(app): Shared<Arc<App>>,
    Extension(base): Extension<Base>,
    Extension(caller): Extension<Caller>,
    Path(text): Path<String>,
    request: Request<Body>,
) -> Result<Response, Json> {
    caller.may(Scope::Cancel)?;
    let reason = because(&app, request).await?;
    cancel(&app, id(&text, "build")?, reason).await?;
    let build = find(&app, &text).await?;
    Ok(json(StatusCode::OK, &whole(&app, &build, &base).await?))
}

/// Cancels all builds of a submission that are queued or building.
#[utoipa::path(
    post,
    path = "/submissions/{id}/cancel",
    tag = "submissions",
    params(("id" = Id, Path, description = "Its number")),
    request_body = inline(Option<Because>),
    responses((status = 200, description = "The submission as it is now", body = CancelledSubmission), Changes),
    security(("token" = ["cancel"]))
)]
pub(super) async fn submission(
    Shared(app): Shared<Arc<App>>,
    Extension(base): Extension<Base>,
    Extension(caller): Extension<Caller>,
    Path(text): Path<String>,
    request: Request<Body>,
) -> Result<Response, Json> {
    caller.may(Scope::Cancel)?;
    let reason = because(&app, request).await?;
    let id = id(&text, "submission")?;
    let cancelled = cancel_submission(&app, id, reason).await?;
    let answer = CancelledSubmission {
        submission: with_builds(&app, id, None, &base).await?,
        cancelled: cancelled.iter().map(|build| Id(build.id)).collect(),
    };
    Ok(json(StatusCode::OK, &answer))
}

/// Cancels a build. Once more is no error; one that is built cannot be cancelled.
pub(in crate::http) async fn cancel(
    app: &Arc<App>,
    id: i64,
    reason: Option<String>,
) -> Result<(), Problem> {
    let app = Arc::clone(app);
    to_the_end(async move {
        let share = app.paced.share();
        let done = app.store.cancel(id, reason.as_deref(), share, app.now());
        let done = done.await?;
        match done {
            None => Err(Problem::not_found(format_args!("build {id}"))),
            Some((Cancel::Already, _)) => Ok(()),
            Some((Cancel::TooLate, build)) => Err(Problem::new(
                StatusCode::CONFLICT,
                format!(
                    "build {id} is built already{}: there is nothing to cancel",
                    build.status.map(|s| format!(" ({s})")).unwrap_or_default()
                ),
            )),
            Some((Cancel::Now, build)) => {
                tell(&app, &build);
                Ok(())
            }
        }
    })
    .await?
}

/// Cancels whatever of a submission is not over; the builds that were not.
pub(in crate::http) async fn cancel_submission(
    app: &Arc<App>,
    id: i64,
    reason: Option<String>,
) -> Result<Vec<Build>, Problem> {
    find_submission(app, id).await?;
    let app = Arc::clone(app);
    to_the_end(async move {
        let reason = reason.as_deref();
        let share = app.paced.share();
        let cancelled = app.store.cancel_submission(id, reason, share, app.now());
        let cancelled = cancelled.await?;
        for build in &cancelled {
            tell(&app, build);
        }
        Ok(cancelled)
    })
    .await?
}

/// Tells all whom it concerns that a build is cancelled, which was so before.
fn tell(app: &App, build: &Build) {
    app.figures.cancelled();
    match (build.state, &build.agent) {
        (State::Building, Some(agent)) => tracing::info!(
            build.id,
            agent,
            "build {} is cancelled: {} is told to stop",
            build.id,
            one_line(agent)
        ),
        _ => tracing::info!(build.id, "build {} is cancelled", build.id),
    }
    app.desk().gone(build);
    app.build_changed(build.id);
}
