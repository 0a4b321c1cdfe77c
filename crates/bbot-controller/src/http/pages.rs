//! The pages: what people look at. They need no script, load nothing from elsewhere, and change nothing
//! when they are only looked at.

mod agents;
mod build;
mod forms;
mod parts;
mod sign;
mod submission;

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, RawQuery, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bbot_manifest::Status;

use self::parts::{Frame, Row};
use super::problem::Problem;
use super::{App, api, params};
use crate::buildtab::Configuration;
use crate::queue;
use crate::store::Filter;

pub(super) use self::agents::{agents, approve, drain, resume};
pub(super) use self::build::build;
pub(super) use self::forms::{cancel, cancel_submission, rebuild};
pub(super) use self::sign::{sign_in, sign_in_form, sign_out, signed_in};
pub(super) use self::submission::submission;

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
        let (queued, building) = app.counts().await?;
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
