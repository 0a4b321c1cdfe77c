//! The page of a build: where it stands, its last result, the end of its log.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bbot_manifest::Status;

use super::parts::{self, Frame, Mark, Row, SourceLine};
use super::{Page, framed, render};
use crate::http::live::{self, Tail};
use crate::http::problem::Problem;
use crate::http::{App, api, params};
use crate::queue;
use crate::store::{Artifact, Attempt, Build, LogExcerpt, StoreError};

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
    /// Auxiliary machines beside its own.
    auxiliaries: Vec<String>,
    /// Where it stops for a person, and how they log in.
    breakpoint: Option<String>,
    login: Option<String>,
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
pub(in crate::http) async fn build(
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
            auxiliaries: parts::auxiliaries(&build),
            breakpoint: build.breakpoint.clone(),
            login: build.login_now().map(str::to_owned),
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
            (Some(agent), Some(started), Some(until)) if build.lane.interactive => format!(
                "{agent} builds it, for {} now, and stops for a person. When nothing is heard of it until {}, it ends.",
                parts::duration(started, app.now()),
                parts::time(until)
            ),
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
