//! The JSON API, `/api/v1` (protocol, section 7).

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, RawQuery, State as Shared};
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bbot_manifest::PackageVersion;
use serde::Deserialize;
use serde_json::{Value, json};

use super::problem::{Json, Problem};
use super::{App, Base, body, follow, live, params, to_the_end, view};
use crate::queue::{Rebuild, State};
use crate::source::{Repository, Source, git, is_sha256};
use crate::store::{Build, Filter, Log, NewSubmission};

/// Builds of a list when no number is asked for, and at most.
const PAGE: i64 = 50;
const PAGE_LIMIT: i64 = 500;

/// Attempts that a build is shown with.
pub(super) const ATTEMPTS: i64 = 20;

/// Longest name, version, URL and reason, in bytes.
const NAME_LIMIT: usize = 128;
const URL_LIMIT: usize = 2048;
const REASON_LIMIT: usize = 1000;

/// A JSON answer.
pub(super) fn json(status: StatusCode, value: &Value) -> Response {
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        format!("{value:#}\n"),
    )
        .into_response()
}

/// Whether the request carries the token.
pub(super) fn authorize(app: &App, headers: &HeaderMap) -> Result<(), Problem> {
    let shown = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| {
            let (scheme, token) = v.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then_some(token.trim())
        });
    match shown {
        Some(token) if app.token.is(token) => Ok(()),
        Some(_) => Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "the token is not that of this controller",
        )),
        None => Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "this needs the controller's token: Authorization: Bearer <token>",
        )),
    }
}

/// Reads a number out of a path: what is no number names nothing.
pub(super) fn id(text: &str, what: &str) -> Result<i64, Problem> {
    text.parse::<i64>()
        .ok()
        .filter(|id| *id > 0)
        .ok_or_else(|| Problem::not_found(format_args!("{what} {text:?}")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Submit {
    name: String,
    version: String,
    source: Source,
    #[serde(default)]
    configurations: Option<Vec<String>>,
}

/// A package name that can stand in manifests, URLs and file names.
fn check_name(name: &str) -> Result<(), Problem> {
    let good = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= NAME_LIMIT
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_+.-".contains(c));
    if good {
        return Ok(());
    }
    Err(Problem::bad(format!(
        "{name:?} is not a package name: letters, digits and _ + . -, beginning with a letter or digit, at most {NAME_LIMIT}"
    )))
}

fn check_version(version: &str) -> Result<(), Problem> {
    if version.len() > NAME_LIMIT {
        return Err(Problem::bad(format!(
            "the version is longer than {NAME_LIMIT} characters"
        )));
    }
    match version.parse::<PackageVersion>() {
        Ok(_) => Ok(()),
        Err(e) => Err(Problem::bad(format!(
            "{version:?} is not a package version: {e}"
        ))),
    }
}

fn check_repository(repository: &Repository) -> Result<(), Problem> {
    let Repository { url, kind, trust } = repository;
    if url.is_empty() || url.len() > URL_LIMIT || !url.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Problem::bad(
            "the repository's URL is empty, too long, or has blanks or control characters",
        ));
    }
    if kind
        .as_deref()
        .is_some_and(|k| !matches!(k, "pkg" | "git" | "dir"))
    {
        return Err(Problem::bad(
            "the repository's type is not one of pkg, git, dir",
        ));
    }
    let fingerprint = |t: &String| {
        t == "yes"
            || (t.split(':').count() == 32
                && t.split(':')
                    .all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit())))
    };
    match trust.iter().find(|t| !fingerprint(t)) {
        None => Ok(()),
        Some(bad) => Err(Problem::bad(format!(
            "{bad:?} is not a certificate fingerprint: 32 pairs of hex digits with colons between, or yes"
        ))),
    }
}

/// Which configurations a submission is built in: all, or those named.
fn configurations(app: &App, names: Option<&[String]>) -> Result<Vec<(String, String)>, Problem> {
    let buildtab = app.buildtab();
    let all = buildtab.configurations();
    if let Some(names) = names {
        if names.is_empty() {
            return Err(Problem::bad(
                "\"configurations\" names none; leave it out for all",
            ));
        }
        if let Some(unknown) = names.iter().find(|n| !all.iter().any(|c| &c.name == *n)) {
            return Err(Problem::bad(format!(
                "there is no configuration {unknown:?} in the buildtab"
            )));
        }
    }
    Ok(all
        .iter()
        .filter(|c| names.is_none_or(|n| n.contains(&c.name)))
        .map(|c| (c.name.clone(), c.target.clone()))
        .collect())
}

/// `POST /api/v1/submissions`.
pub(super) async fn submit(
    Shared(app): Shared<Arc<App>>,
    Extension(base): Extension<Base>,
    request: Request<Body>,
) -> Result<Response, Json> {
    to_the_end(keep_submission(app, base, request)).await?
}

async fn keep_submission(
    app: Arc<App>,
    base: Base,
    request: Request<Body>,
) -> Result<Response, Json> {
    authorize(&app, request.headers())?;
    let text = body::read(request.into_body(), app.config.limits.form).await?;
    let submit: Submit = serde_json::from_slice(&text)
        .map_err(|e| Problem::bad(format!("the submission cannot be read: {e}")))?;
    check_name(&submit.name)?;
    check_version(&submit.version)?;
    let configurations = configurations(&app, submit.configurations.as_deref())?;
    if configurations.is_empty() {
        return Err(Problem::bad("the buildtab has no configurations").into());
    }
    let source = resolve(&app, submit.source).await?;
    let new = NewSubmission {
        name: &submit.name,
        version: &submit.version,
        source: &source,
        configurations: &configurations,
    };
    let (submission, builds) = app.store.submit(new, app.now()).await?;
    tracing::info!(
        submission.id,
        "{} {} is submitted: {} build(s) queued",
        submission.name,
        submission.version,
        builds.len()
    );
    app.figures.submitted(builds.len());
    for build in &builds {
        app.waits(build, Some(build.position));
    }
    Ok(json(
        StatusCode::CREATED,
        &view::submission(&submission, &builds, &base.0),
    ))
}

/// Makes sure that the source is one that a task can name.
async fn resolve(app: &App, source: Source) -> Result<Source, Problem> {
    match source {
        Source::Archive(sha256) if !is_sha256(&sha256) => Err(Problem::bad(format!(
            "{sha256:?} is not a SHA-256 in lower-case hex"
        ))),
        Source::Archive(sha256) if !app.archives.contains(&sha256) => Err(Problem::bad(format!(
            "archive {sha256} is not here: PUT it to /api/v1/archives/{sha256} first"
        ))),
        Source::Archive(sha256) => Ok(Source::Archive(sha256)),
        Source::Repository(repository) => {
            check_repository(&repository)?;
            Ok(Source::Repository(repository))
        }
        Source::Git(git) if git.archive.is_some() => Err(Problem::bad(
            "a git source is a \"url\" and a \"commit\"; its archive is made here",
        )),
        Source::Git(mut git) => {
            if git.url.len() > URL_LIMIT {
                return Err(Problem::bad(format!(
                    "the URL is longer than {URL_LIMIT} characters"
                )));
            }
            let _slot = app
                .git
                .acquire()
                .await
                .map_err(|e| Problem::internal("fetch a commit", &e))?;
            let limits = git::Limits {
                time: app.config.limits.git_time,
                bytes: app.config.limits.git,
                addresses: app.config.source_addresses,
                user: app.config.source_user,
            };
            match git::fetch(&git, &app.archives, &limits).await {
                Ok(sha256) => {
                    git.archive = Some(sha256);
                    Ok(Source::Git(git))
                }
                Err(e) if e.is_internal() => Err(Problem::internal("fetch a commit", &e)),
                Err(e) => Err(Problem::bad(e.to_string())),
            }
        }
    }
}

/// `GET /api/v1/submissions/<id>`.
pub(super) async fn submission(
    Shared(app): Shared<Arc<App>>,
    Extension(base): Extension<Base>,
    Path(text): Path<String>,
) -> Result<Response, Json> {
    let id = id(&text, "submission")?;
    let submission = app
        .store
        .submission(id)
        .await?
        .ok_or_else(|| Problem::not_found(format_args!("submission {id}")))?;
    let builds = app.store.builds_of(id).await?;
    Ok(json(
        StatusCode::OK,
        &view::submission(&submission, &builds, &base.0),
    ))
}

/// The filter in a list's parameters. Empty ones are as good as absent: that is how a form sends them.
pub(super) fn filter(parameters: &[(String, String)]) -> Result<(Filter, i64), Problem> {
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
pub(super) async fn page(
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
pub(super) async fn builds(
    Shared(app): Shared<Arc<App>>,
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
pub(super) async fn find(app: &App, text: &str) -> Result<Build, Problem> {
    let id = id(text, "build")?;
    app.store
        .build(id)
        .await?
        .ok_or_else(|| Problem::not_found(format_args!("build {id}")))
}

/// `GET /api/v1/builds/<id>`.
pub(super) async fn build(
    Shared(app): Shared<Arc<App>>,
    Extension(base): Extension<Base>,
    Path(text): Path<String>,
) -> Result<Response, Json> {
    let build = find(&app, &text).await?;
    Ok(json(StatusCode::OK, &whole(&app, &build, &base).await?))
}

/// A build with its attempts: what its page shows.
async fn whole(app: &App, build: &Build, base: &Base) -> Result<Value, Problem> {
    let mut value = view::build(build, &base.0);
    let attempts = app.store.attempts(build.id, ATTEMPTS).await?;
    value["attempts"] = attempts.iter().map(view::attempt).collect();
    Ok(value)
}

/// The attempt that a page is asked of: the one named, else the last.
pub(super) fn wanted_attempt(build: &Build, query: Option<&str>) -> Result<i64, Problem> {
    match params::parse(query.unwrap_or_default()).as_slice() {
        [] => Ok(build.attempt),
        [(name, value)] if name == "attempt" => attempt_number(value),
        [(name, _), ..] => Err(Problem::bad(format!("unknown parameter {name:?}"))),
    }
}

fn attempt_number(value: &str) -> Result<i64, Problem> {
    value
        .parse()
        .map_err(|_| Problem::bad(format!("{value:?} is not the number of an attempt")))
}

/// What a log is asked for with.
#[derive(Debug, Default)]
struct LogRequest {
    attempt: Option<i64>,
    follow: bool,
    from: Option<String>,
    raw: bool,
}

fn log_request(query: Option<&str>) -> Result<LogRequest, Problem> {
    let mut asked = LogRequest::default();
    let flag = |name: &str, value: &str| match value {
        "" | "1" => Ok(true),
        "0" => Ok(false),
        _ => Err(Problem::bad(format!("parameter {name}: 1 or 0"))),
    };
    for (name, value) in params::parse(query.unwrap_or_default()) {
        match name.as_str() {
            "attempt" => asked.attempt = Some(attempt_number(&value)?),
            "follow" => asked.follow = flag(&name, &value)?,
            "raw" => asked.raw = flag(&name, &value)?,
            "from" => asked.from = Some(value),
            other => return Err(Problem::bad(format!("unknown parameter {other:?}"))),
        }
    }
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
pub(super) async fn log_of(
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

/// `GET /api/v1/builds/<id>/log`.
pub(super) async fn log(
    Shared(app): Shared<Arc<App>>,
    Path(text): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Json> {
    Ok(log_of(&app, &text, None, query.as_deref(), &headers).await?)
}

/// `GET /api/v1/builds/<id>/log/<operation>`.
pub(super) async fn operation_log(
    Shared(app): Shared<Arc<App>>,
    Path((text, operation)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Json> {
    Ok(log_of(&app, &text, Some(&operation), query.as_deref(), &headers).await?)
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RebuildRequest {
    #[serde(default)]
    reason: Option<String>,
}

/// Why a rebuild is asked for, made fit for the store; empty is none.
pub(super) fn reason(text: Option<&str>) -> Result<Option<String>, Problem> {
    let text = bbot_manifest::sanitize(text.unwrap_or_default().trim().as_bytes());
    if text.len() > REASON_LIMIT {
        return Err(Problem::bad(format!(
            "the reason is longer than {REASON_LIMIT} characters"
        )));
    }
    Ok(Some(text).filter(|t| !t.is_empty()))
}

/// Queues a build again and tells the agents.
pub(super) async fn do_rebuild(
    app: &Arc<App>,
    build: &Build,
    reason: Option<&str>,
) -> Result<Build, Problem> {
    let (app, build, reason) = (Arc::clone(app), build.clone(), reason.map(str::to_owned));
    to_the_end(async move { queue_again(&app, &build, reason.as_deref()).await }).await?
}

async fn queue_again(app: &App, build: &Build, reason: Option<&str>) -> Result<Build, Problem> {
    let done = app.store.rebuild(build.id, reason, app.now()).await?;
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

/// `POST /api/v1/builds/<id>/rebuild`.
pub(super) async fn rebuild(
    Shared(app): Shared<Arc<App>>,
    Extension(base): Extension<Base>,
    Path(text): Path<String>,
    request: Request<Body>,
) -> Result<Response, Json> {
    authorize(&app, request.headers())?;
    let body = body::read(request.into_body(), app.config.limits.form).await?;
    let asked: RebuildRequest = if body.iter().all(u8::is_ascii_whitespace) {
        RebuildRequest::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|e| Problem::bad(format!("the request cannot be read: {e}")))?
    };
    let reason = reason(asked.reason.as_deref())?;
    let build = find(&app, &text).await?;
    let build = do_rebuild(&app, &build, reason.as_deref()).await?;
    Ok(json(StatusCode::OK, &whole(&app, &build, &base).await?))
}

/// `GET /api/v1/configurations`.
pub(super) async fn configurations_list(Shared(app): Shared<Arc<App>>) -> Response {
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

/// Whatever else is asked for under `/api/v1`.
pub(super) async fn unknown() -> Json {
    Json(Problem::not_found("such resource"))
}

/// A method that a resource of the API does not have.
pub(super) async fn wrong_method() -> Json {
    Json(Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this resource does not know that method",
    ))
}
