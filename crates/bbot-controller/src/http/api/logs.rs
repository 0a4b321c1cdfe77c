//! Logs: of results, raw, and as they grow.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State as Shared};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use super::builds::find;
use super::document::Gets;
use super::view::Id;
use crate::http::problem::{Json, Problem};
use crate::http::reader::{self, Reader};
use crate::http::{App, follow, live, params};
use crate::objects::ObjectError;
use crate::objects::log::{self, Whole};
use crate::queue::State;
use crate::store::{Build, Log, LogText};

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
    results_log(app, logs, operation.is_none()).await
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

/// A log that is ready to be given.
enum Ready {
    Text(String),
    Object(Whole),
}

async fn ready(app: &App, text: LogText) -> Result<Ready, ObjectError> {
    match text {
        LogText::Whole(text) => Ok(Ready::Text(text)),
        LogText::Kept {
            object: Some(object),
            ..
        } => {
            let read = log::read(&app.objects, &object).await;
            if matches!(read, Err(ObjectError::Damaged { .. })) {
                app.note_damaged(&object).await;
            }
            Ok(Ready::Object(read?))
        }
        LogText::Kept {
            object: None,
            sha256,
        } => Err(ObjectError::Missing {
            place: format!("the log {sha256}"),
            store: app.objects.name().to_owned(),
        }),
    }
}

/// Logs as one text; of a whole result each is under a line with its name, and one that is lost says so. One that is asked for by
/// itself is told as lost.
async fn results_log(app: &Arc<App>, mut logs: Vec<Log>, whole: bool) -> Result<Response, Problem> {
    let is_long = logs
        .iter()
        .any(|log| matches!(log.text, LogText::Kept { .. }));
    let leave = is_long.then(|| reader::leave(app)).transpose()?;
    let (taker, body) = Reader::new(app, leave);
    if !whole && logs.len() == 1 {
        let log = logs.remove(0);
        // By itself: who has gone meanwhile has not made room for another before it is checked.
        let app = Arc::clone(app);
        let looking = tokio::spawn(async move { (ready(&app, log.text).await, taker) });
        let looked = looking.await;
        let (ready, taker) = looked.map_err(|e| Problem::internal("read a log", &e))?;
        let ready = ready?;
        tokio::spawn(async move {
            // Whoever has gone needs no more.
            let _ = give(&taker, ready).await;
        });
    } else {
        let app = Arc::clone(app);
        tokio::spawn(async move {
            for log in logs {
                let mut head = String::new();
                if whole {
                    head = format!("==== {} ====\n", log.operation);
                }
                let ready = ready(&app, log.text).await.unwrap_or_else(|error| {
                    let problem = Problem::from(error);
                    Ready::Text(format!("==== {} ====\n", problem.sentence))
                });
                if taker.send(Ok(head.into())).await.is_none()
                    || give(&taker, ready).await.is_none()
                {
                    return;
                }
            }
        });
    }
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

/// Gives a log away, with a newline at its end; `None` when nobody takes it any more.
async fn give(taker: &Reader, log: Ready) -> Option<()> {
    let whole = match log {
        Ready::Text(mut text) => {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            return taker.send(Ok(text.into())).await;
        }
        Ready::Object(whole) => whole,
    };
    let mut pieces = match whole.pieces().await {
        Ok(pieces) => pieces,
        Err(e) => {
            // It was there a moment ago: what comes is broken off, and not taken for the whole.
            let problem = Problem::from(e);
            taker
                .send(Err(std::io::Error::other(problem.sentence)))
                .await;
            return None;
        }
    };
    let mut last = Bytes::new();
    loop {
        let (piece, rest) = tokio::task::spawn_blocking(move || (pieces.next(), pieces))
            .await
            .ok()?;
        pieces = rest;
        match piece {
            None if last.ends_with(b"\n") => return Some(()),
            None => return taker.send(Ok(Bytes::from_static(b"\n"))).await,
            Some(Ok(piece)) => {
                last = piece.clone();
                taker.send(Ok(piece)).await?;
            }
            Some(Err(e)) => {
                taker.send(Err(e)).await?;
                return None;
            }
        }
    }
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
        Gets
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
        Gets
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
