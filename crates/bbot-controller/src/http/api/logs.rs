//! Logs: of results, raw, and as they grow.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State as Shared};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use super::builds::find;
use super::document::Finds;
use super::view::Id;
use crate::http::problem::{Json, Problem};
use crate::http::{App, follow, live, params};
use crate::queue::State;
use crate::store::{Build, Log};

/// The attempt that a page is asked of: the one named, else the last.
pub(in crate::http) fn wanted_attempt(build: &Build, query: Option<&str>) -> Result<i64, Problem> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wanted {
        attempt: Option<i64>,
    }
    let wanted: Wanted = params::read(params::parse(query.unwrap_or_default()))?;
    Ok(wanted.attempt.unwrap_or(build.attempt))
}

/// What a log is asked for with.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct LogRequest {
    /// Number of the attempt; the last one when it is absent.
    #[param(minimum = 0)]
    attempt: Option<i64>,
    /// Give the log of the attempt under way as it grows, as an event stream, until the build is built.
    follow: bool,
    /// Follow from here: the id of an event.
    #[param(pattern = "^[0-9]+\\.[0-9]+$")]
    from: Option<String>,
    /// Give the log as it came while the attempt was under way, not that of its result.
    raw: bool,
}

fn log_request(query: Option<&str>) -> Result<LogRequest, Problem> {
    let asked: LogRequest = params::read(params::parse(query.unwrap_or_default()))?;
    if asked.follow && (asked.attempt.is_some() || asked.raw) {
        return Err(Problem::bad(
            "follow is of the attempt under way, as it comes: without attempt and raw",
        ));
    }
    if asked.from.is_some() && !asked.follow {
        return Err(Problem::bad("from goes with follow"));
    }
    Ok(asked)
}

/// The log that a request asks for, of one operation where one is named: followed, raw, or of a result.
pub(in crate::http) async fn log_of(
    app: &Arc<App>,
    text: &str,
    operation: Option<&str>,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let asked = log_request(query)?;
    let build = find(app, text).await?;
    if asked.follow {
        let place = follow::place(asked.from.as_deref(), headers)?;
        return follow::answer(app, &build, operation.map(str::to_owned), place);
    }
    let attempt = asked.attempt.unwrap_or(build.attempt);
    let underway = build.state != State::Built && attempt == build.attempt + 1;
    // Of the first attempt, as long as it runs, there is nothing else.
    let first = build.state != State::Built && attempt == 0 && asked.attempt.is_none();
    if (underway || first)
        && let Some(run) = build.run
        && live::exists(app, &build, run).await?
    {
        return live::answer(app, &build, run, operation).await;
    }
    if asked.raw {
        let run = app
            .store
            .attempt(build.id, attempt)
            .await?
            .and_then(|a| a.run);
        return match run {
            Some(run) if live::exists(app, &build, run).await? => {
                live::answer(app, &build, run, operation).await
            }
            _ => Err(Problem::not_found(format_args!(
                "raw log of attempt {attempt} of build {}",
                build.id
            ))),
        };
    }
    let logs = logs(app, &build, attempt, operation).await?;
    Ok(log_answer(logs, operation.is_none()))
}

/// Logs of an attempt; the last one's also while the next one is under way.
async fn logs(
    app: &App,
    build: &Build,
    attempt: i64,
    operation: Option<&str>,
) -> Result<Vec<Log>, Problem> {
    if app.store.attempt(build.id, attempt).await?.is_none() {
        return Err(Problem::not_found(if attempt == 0 {
            format!("log of build {} yet: it is {}", build.id, build.state)
        } else {
            format!("attempt {attempt} of build {}", build.id)
        }));
    }
    let logs = app.store.logs(build.id, attempt, operation).await?;
    match operation {
        Some(operation) if logs.is_empty() => Err(Problem::not_found(format_args!(
            "operation {operation:?} in build {}",
            build.id
        ))),
        _ => Ok(logs),
    }
}

/// Logs as one text; with more than one operation, each under a line with its name.
fn log_answer(logs: Vec<Log>, whole: bool) -> Response {
    let mut text = String::with_capacity(logs.iter().map(|l| l.text.len() + 64).sum());
    for log in logs {
        if whole {
            text.push_str("==== ");
            text.push_str(&log.operation);
            text.push_str(" ====\n");
        }
        text.push_str(&log.text);
        if !log.text.is_empty() && !log.text.ends_with('\n') {
            text.push('\n');
        }
    }
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

/// The log of a build. A line with its name goes before the log of each operation.
#[utoipa::path(
    get,
    path = "/builds/{id}/log",
    tag = "logs",
    params(
        ("id" = Id, Path, description = "Number of the build"),
        LogRequest
    ),
    responses(
        (status = 200, description = "The log", content(
            (String = "text/plain"),
            (String = "text/event-stream")
        )),
        Finds
    )
)]
pub(super) async fn whole(
    Shared(app): Shared<Arc<App>>,
    Path(text): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Json> {
    Ok(log_of(&app, &text, None, query.as_deref(), &headers).await?)
}

/// The log of one operation of a build.
#[utoipa::path(
    get,
    path = "/builds/{id}/log/{operation}",
    tag = "logs",
    params(
        ("id" = Id, Path, description = "Number of the build"),
        ("operation" = String, Path, description = "Name of the operation", example = "update"),
        LogRequest
    ),
    responses(
        (status = 200, description = "The log", content(
            (String = "text/plain"),
            (String = "text/event-stream")
        )),
        Finds
    )
)]
pub(super) async fn operation(
    Shared(app): Shared<Arc<App>>,
    Path((text, operation)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Json> {
    Ok(log_of(&app, &text, Some(&operation), query.as_deref(), &headers).await?)
}
