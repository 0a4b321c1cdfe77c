//! The pages: what people look at. They need no script, load nothing from elsewhere, and change nothing
//! when they are only looked at.

mod agents;
mod parts;
mod sign;

use std::sync::Arc;

use askama::Template;
use axum::body::Body;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bbot_manifest::Status;

use self::parts::{Frame, Mark, Row, SourceLine};
use super::access::Caller;
use super::live::{self, Tail};
use super::problem::Problem;
use super::{App, api, params};
use crate::buildtab::Configuration;
use crate::package::plan::Excluded;
use crate::queue;
use crate::store::{Artifact, Attempt, Build, Filter, LogExcerpt, StoreError};
use crate::token::Scope;

pub(super) use self::agents::{agents, approve, drain, resume};
pub(super) use self::sign::{sign_in, sign_in_form, sign_out, signed_in};

/// Builds on one page of the list.
const PAGE: i64 = 50;

/// A problem, dressed as a page.
#[derive(Debug)]
pub(super) struct Page {
    problem: Problem,
    frame: Frame,
}

#[derive(Template)]
#[template(path = "problem.html")]
struct ProblemPage<'a> {
    frame: &'a Frame,
    status: StatusCode,
    sentence: &'a str,
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let status = self.problem.status;
        let mut response = render(
            status,
            &ProblemPage {
                frame: &self.frame,
                status,
                sentence: &self.problem.sentence,
            },
        );
        super::problem::tell_when(&mut response);
        response
    }
}

fn render(status: StatusCode, page: &impl Template) -> Response {
    match page.render() {
        Ok(html) => (
            status,
            [(header::CONTENT_TYPE, "text/html; charset=utf-8")],
            html,
        )
            .into_response(),
        Err(e) => super::problem::Plain(Problem::internal("show a page", &e)).into_response(),
    }
}

/// Runs a page's body and dresses what goes wrong.
async fn framed<F>(frame: Frame, body: impl FnOnce(Frame) -> F) -> Result<Response, Page>
where
    F: Future<Output = Result<Response, Problem>>,
{
    body(frame.clone())
        .await
        .map_err(|problem| Page { problem, frame })
}

struct Choice {
    value: &'static str,
    word: &'static str,
    selected: bool,
}

fn choices(words: impl Iterator<Item = &'static str>, selected: Option<&str>) -> Vec<Choice> {
    std::iter::once(Choice {
        value: "",
        word: "any",
        selected: false,
    })
    .chain(words.map(|word| Choice {
        value: word,
        word,
        selected: selected == Some(word),
    }))
    .collect()
}

#[derive(Template)]
#[template(path = "builds.html")]
struct BuildsPage {
    frame: Frame,
    rows: Vec<Row>,
    queued: i64,
    building: i64,
    package: String,
    configuration: String,
    states: Vec<Choice>,
    statuses: Vec<Choice>,
    filtered: bool,
    /// Whether this is not the first page.
    later: bool,
    next: Option<i64>,
    /// The filter as URL parameters.
    query: String,
}

/// `GET /`: the list.
pub(super) async fn builds(
    app: &App,
    parameters: &[(String, String)],
    head: &Parts,
) -> Result<Response, Page> {
    let frame = Frame::of(
        app,
        &head.headers,
        head.uri.path_and_query().map_or("/", |p| p.as_str()),
        "builds",
    );
    framed(frame, async |frame| {
        // Names that the list does not know are for other functions of the original's root: no error here.
        let known: Vec<(String, String)> = parameters
            .iter()
            .filter(|(n, _)| {
                matches!(
                    n.as_str(),
                    "package" | "configuration" | "state" | "status" | "before"
                )
            })
            .cloned()
            .collect();
        let (filter, _) = api::builds::filter(known.clone())?;
        let (found, next) = app.store.builds(&filter, PAGE).await?;
        let (queued, building) = app.store.counts().await?;
        let now = app.now();
        let filtered = Filter {
            before: None,
            ..filter.clone()
        } != Filter::default();
        let query: Vec<String> = known
            .iter()
            .filter(|(name, value)| name != "before" && !value.is_empty())
            .map(|(name, value)| format!("{name}={}", params::encode(value)))
            .collect();
        let page = BuildsPage {
            rows: found.iter().map(|b| Row::of(b, now)).collect(),
            queued,
            building,
            states: choices(
                queue::State::ALL.iter().map(|s| s.as_str()),
                filter.state.map(queue::State::as_str),
            ),
            statuses: choices(
                Status::ALL
                    .iter()
                    .map(|s| s.as_str())
                    .filter(|s| !matches!(*s, "skip" | "interrupt")),
                filter.status.map(Status::as_str),
            ),
            package: filter.package.unwrap_or_default(),
            configuration: filter.configuration.unwrap_or_default(),
            filtered,
            later: filter.before.is_some(),
            next,
            query: query.join("&"),
            frame,
        };
        Ok(render(StatusCode::OK, &page))
    })
    .await
}

struct OperationView {
    mark: Mark,
    name: String,
    /// The name as a part of a URL.
    segment: String,
    size: String,
    open: bool,
    head: Option<String>,
    tail: Option<String>,
}

struct AttemptView {
    number: i64,
    mark: Mark,
    machine: String,
    agent: String,
    finished: String,
    took: String,
    late: bool,
}

struct ArtifactView {
    kind: String,
    instance: String,
    name: String,
    size: String,
    sha256: String,
}

impl ArtifactView {
    fn of(artifact: Artifact) -> Self {
        Self {
            size: parts::size(artifact.bytes),
            kind: artifact.kind,
            instance: artifact.instance,
            name: artifact.name,
            sha256: artifact.sha256,
        }
    }
}

struct Shown {
    number: i64,
    older: bool,
}

#[derive(Template)]
#[template(path = "build.html")]
struct BuildPage {
    frame: Frame,
    row: Row,
    /// Seconds after which a browser looks again.
    refresh: Option<u32>,
    is_over: bool,
    cancelled: bool,
    live: Option<Tail>,
    /// Number that the attempt under way will have.
    underway: i64,
    live_size: String,
    note: Option<String>,
    summary: Option<String>,
    toolchain: Option<String>,
    /// Its class and priority.
    order: String,
    started: Option<String>,
    finished: Option<String>,
    /// When it was found not to have changed since.
    checked: Option<String>,
    source: SourceLine,
    submission: i64,
    reason: Option<String>,
    shown: Option<Shown>,
    operations: Vec<OperationView>,
    artifacts: Vec<ArtifactView>,
    attempts: Vec<AttemptView>,
}

/// `GET /builds/<id>`.
pub(super) async fn build(
    State(app): State<Arc<App>>,
    Path(text): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Page> {
    let frame = Frame::of(
        &app,
        &headers,
        &format!("/builds/{}", params::encode(&text)),
        "",
    );
    framed(frame, async |frame| {
        let build = api::builds::find(&app, &text).await?;
        let wanted = api::logs::wanted_attempt(&build, query.as_deref())?;
        let attempts = app
            .store
            .attempts(build.id, None, api::builds::ATTEMPTS)
            .await?;
        let shown = app.store.attempt(build.id, wanted).await?;
        if shown.is_none() && wanted != build.attempt {
            return Err(Problem::not_found(format_args!(
                "attempt {wanted} of build {}",
                build.id
            )));
        }
        let operations = match &shown {
            Some(attempt) => {
                let excerpts = app.store.log_excerpts(build.id, attempt.number).await?;
                operations(attempt, excerpts)
            }
            None => Vec::new(),
        };
        // Those of the attempt that is shown, else of what is under way.
        let run = shown.as_ref().map_or(build.run, |attempt| attempt.run);
        let artifacts = app.store.artifacts(build.id, run.unwrap_or(0)).await?;
        let submission = app.store.submission(build.submission).await?;
        let source = submission.map_or_else(SourceLine::unknown, |s| SourceLine::of(&s.source));
        let waiting = !build.is_begun();
        let built = build.state == queue::State::Built;
        let live = match build.run {
            Some(run) if !waiting && !built && wanted == build.attempt => {
                live::tail(&app, &build, run).await?
            }
            _ => None,
        };
        let page = BuildPage {
            row: Row::of(&build, app.now()),
            refresh: match build.state {
                queue::State::Queued => Some(10),
                queue::State::Building => Some(if live.is_some() { 3 } else { 5 }),
                queue::State::Built | queue::State::Cancelled => None,
            },
            is_over: build.state.is_over(),
            cancelled: build.state == queue::State::Cancelled,
            underway: build.attempt + 1,
            live_size: live
                .as_ref()
                .map_or_else(String::new, |l| parts::size(l.length)),
            live,
            note: note(&app, &build).await?,
            summary: build.machine_summary.clone().filter(|_| !waiting),
            toolchain: match (&build.toolchain_name, &build.toolchain_version) {
                (Some(name), Some(version)) if !waiting => Some(format!("{name} {version}")),
                _ => None,
            },
            order: match build.priority.number() {
                0 => build.class.to_string(),
                priority => format!("{}, priority {priority}", build.class),
            },
            started: build.started.filter(|_| !waiting).map(parts::time),
            finished: build
                .finished
                .filter(|_| build.state.is_over())
                .map(parts::time),
            checked: build
                .checked
                .filter(|checked| built && build.finished.is_some_and(|f| f < *checked))
                .map(parts::time),
            source,
            submission: build.submission,
            reason: build.reason.clone(),
            shown: shown.map(|a| Shown {
                older: a.number != build.attempt,
                number: a.number,
            }),
            operations,
            artifacts: artifacts.into_iter().map(ArtifactView::of).collect(),
            attempts: if attempts.len() > 1 || (!built && !attempts.is_empty()) {
                attempts.iter().map(attempt_view).collect()
            } else {
                Vec::new()
            },
            frame,
        };
        Ok(render(StatusCode::OK, &page))
    })
    .await
}

/// What a person should know about a build that is not done.
async fn note(app: &App, build: &Build) -> Result<Option<String>, StoreError> {
    if let Some(waits) = app.why_it_waits(build).await? {
        let came_back = if build.session.is_some() || build.lapses > 0 {
            "Its agent was not heard of in time: it waits for another one. "
        } else if !build.failures.is_empty() {
            "Its machine failed before it had begun: it is tried again. "
        } else if build.interrupts > 0 {
            "Its agent was stopped and gave it back: it waits for another one. "
        } else {
            ""
        };
        return Ok(Some(format!("{came_back}{}", waits.sentence)));
    }
    Ok(match build.state {
        queue::State::Building if build.again => {
            Some("A rebuild is asked for: it is queued again when this attempt is done.".to_owned())
        }
        queue::State::Building => Some(match (&build.agent, build.started, build.lease_until) {
            (Some(agent), Some(started), Some(until)) => format!(
                "{agent} builds it, for {} now. When nothing is heard of it until {}, another agent gets it.",
                parts::duration(started, app.now()),
                parts::time(until)
            ),
            _ => "An agent builds it.".to_owned(),
        }),
        queue::State::Queued | queue::State::Built => None,
        queue::State::Cancelled => Some(
            "It was cancelled: no agent gets it, and a result that comes all the same is not kept. \
             A rebuild queues it again."
                .to_owned(),
        ),
    })
}

fn operations(attempt: &Attempt, excerpts: Vec<LogExcerpt>) -> Vec<OperationView> {
    // The worst one is open, the last of several: that is the one somebody came for.
    let worst = attempt
        .operations
        .iter()
        .filter_map(|o| o.status.parse::<Status>().ok())
        .max();
    let open = attempt
        .operations
        .iter()
        .rposition(|o| o.status.parse().ok() == worst);
    let mut excerpts = excerpts.into_iter();
    attempt
        .operations
        .iter()
        .enumerate()
        .map(|(index, o)| {
            let excerpt = excerpts.next();
            let (head, tail) = excerpt.map_or((None, None), |e| {
                (Some(e.head).filter(|h| !h.is_empty()), e.tail)
            });
            OperationView {
                mark: Mark::of_text(&o.status),
                segment: params::encode(&o.name),
                name: o.name.clone(),
                size: parts::size(o.log_bytes),
                open: open == Some(index),
                head,
                tail,
            }
        })
        .collect()
}

fn attempt_view(attempt: &Attempt) -> AttemptView {
    AttemptView {
        number: attempt.number,
        mark: Mark::of(attempt.status),
        machine: attempt.machine.clone().unwrap_or_default(),
        agent: attempt.agent.clone().unwrap_or_default(),
        finished: parts::time(attempt.finished),
        late: attempt.late,
        took: attempt
            .started
            .map(|s| parts::duration(s, attempt.finished))
            .unwrap_or_default(),
    }
}

#[derive(Template)]
#[template(path = "submission.html")]
struct SubmissionPage {
    frame: Frame,
    id: i64,
    name: String,
    version: String,
    submitted: String,
    source: SourceLine,
    rows: Vec<Row>,
    excluded: Vec<Excluded>,
    is_over: bool,
}

/// `GET /submissions/<id>`.
pub(super) async fn submission(
    State(app): State<Arc<App>>,
    Path(text): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Page> {
    let frame = Frame::of(
        &app,
        &headers,
        &format!("/submissions/{}", params::encode(&text)),
        "",
    );
    framed(frame, async |frame| {
        let id = api::id(&text, "submission")?;
        let (submission, builds) = api::submissions::find(&app, id).await?;
        let now = app.now();
        let page = SubmissionPage {
            rows: builds.iter().map(|b| Row::of(b, now)).collect(),
            is_over: builds.iter().all(|b| b.state.is_over()),
            excluded: app.store.excluded(id).await?,
            id,
            source: SourceLine::of(&submission.source),
            name: submission.name,
            version: submission.version,
            submitted: parts::time(submission.submitted),
            frame,
        };
        Ok(render(StatusCode::OK, &page))
    })
    .await
}

#[derive(Template)]
#[template(path = "configurations.html")]
struct ConfigurationsPage<'a> {
    frame: Frame,
    configurations: &'a [Configuration],
}

/// `GET /configurations`.
pub(super) async fn configurations(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let frame = Frame::of(&app, &headers, "/configurations", "configurations");
    render(
        StatusCode::OK,
        &ConfigurationsPage {
            frame,
            configurations: app.buildtab().configurations(),
        },
    )
}

/// `GET /builds/<id>/log`.
pub(super) async fn log(
    State(app): State<Arc<App>>,
    Path(text): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, super::problem::Plain> {
    Ok(api::logs::log_of(&app, &text, None, query.as_deref(), &headers).await?)
}

/// `GET /builds/<id>/log/<operation>`.
pub(super) async fn operation_log(
    State(app): State<Arc<App>>,
    Path((text, operation)): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, super::problem::Plain> {
    Ok(api::logs::log_of(&app, &text, Some(&operation), query.as_deref(), &headers).await?)
}

/// `POST /builds/<id>/rebuild`: the form.
pub(super) async fn rebuild(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(text): Path<String>,
    request: Request<Body>,
) -> Result<Response, Page> {
    let (head, body) = request.into_parts();
    let frame = Frame::of(
        &app,
        &head.headers,
        &format!("/builds/{}", params::encode(&text)),
        "",
    );
    framed(frame, async |frame| {
        let form = sign::checked_form(&app, &frame, body).await?;
        let reason = api::rebuild::reason(params::get(&form, "reason"))?;
        let submitter = caller.may(Scope::Rebuild)?;
        let build = api::builds::find(&app, &text).await?;
        api::rebuild::do_rebuild(&app, &build, submitter, reason.as_deref()).await?;
        Ok(sign::see_other(&format!(
            "{}/builds/{}",
            frame.root, build.id
        )))
    })
    .await
}

/// `POST /builds/<id>/cancel`: the form.
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(text): Path<String>,
    request: Request<Body>,
) -> Result<Response, Page> {
    let (head, body) = request.into_parts();
    let place = format!("/builds/{}", params::encode(&text));
    let frame = Frame::of(&app, &head.headers, &place, "");
    framed(frame, async |frame| {
        let form = sign::checked_form(&app, &frame, body).await?;
        let reason = api::rebuild::reason(params::get(&form, "reason"))?;
        caller.may(Scope::Cancel)?;
        let id = api::id(&text, "build")?;
        api::cancel::cancel(&app, id, reason).await?;
        Ok(sign::see_other(&format!("{}/builds/{id}", frame.root)))
    })
    .await
}

/// `POST /submissions/<id>/cancel`: the form.
pub(super) async fn cancel_submission(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(text): Path<String>,
    request: Request<Body>,
) -> Result<Response, Page> {
    let (head, body) = request.into_parts();
    let place = format!("/submissions/{}", params::encode(&text));
    let frame = Frame::of(&app, &head.headers, &place, "");
    framed(frame, async |frame| {
        let form = sign::checked_form(&app, &frame, body).await?;
        let reason = api::rebuild::reason(params::get(&form, "reason"))?;
        caller.may(Scope::Cancel)?;
        let id = api::id(&text, "submission")?;
        api::cancel::cancel_submission(&app, id, reason).await?;
        Ok(sign::see_other(&format!("{}/submissions/{id}", frame.root)))
    })
    .await
}

/// The style sheet.
pub(super) async fn style() -> Response {
    (
        [
            (header::CONTENT_TYPE, "text/css; charset=utf-8"),
            (header::CACHE_CONTROL, "max-age=300"),
        ],
        include_str!("../../assets/style.css"),
    )
        .into_response()
}

/// For a reader who has no right to look: a browser is sent to sign in.
pub(super) fn keep_out(app: &App, head: &Parts, problem: Problem) -> Response {
    let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
    let frame = Frame::of(app, &head.headers, path, "");
    if problem.status == StatusCode::UNAUTHORIZED {
        return sign::see_other(&format!("{}/sign-in?next={}", frame.root, frame.next));
    }
    Page { problem, frame }.into_response()
}

/// Whatever else is asked for.
pub(super) fn unknown(app: &App, headers: &HeaderMap) -> Page {
    Page {
        problem: Problem::not_found("such page"),
        frame: Frame::of(app, headers, "/", ""),
    }
}
