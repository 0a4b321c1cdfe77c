//! Submissions: packages that are to be built.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::{Request, StatusCode};
use axum::response::Response;
use bbot_manifest::PackageVersion;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::document::{Finds, Lists, Makes};
use super::paging::{self, Limit};
use super::source::{not_here, of_package, resolve};
use super::view::{self, Id, SubmissionWithBuilds};
use super::{id, json};
use crate::http::access::Caller;
use crate::http::problem::{Json, Problem};
use crate::http::{App, Base, body, params, to_the_end};
use crate::package::plan::plan;
use crate::queue::lane::{Lane, SERVICE};
use crate::queue::order::Priority;
use crate::source::Source;
use crate::store::{self, NewSubmission, StoreError, Submission, Submitted};
use crate::token::Scope;

/// Builds that are given with a submission at once.
pub(super) const BUILDS: usize = 500;

/// Longest name and version, in bytes.
const NAME_LIMIT: usize = 128;

/// Longest name of where a build stops, in bytes.
const BREAKPOINT: usize = 128;

/// Longest name that a service has for a submission, in bytes.
const SERVICE_ID: usize = 256;

/// A package that is to be built.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Submit {
    #[schema(
        max_length = 128,
        pattern = "^[A-Za-z0-9][A-Za-z0-9_+.-]*$",
        example = "libhello"
    )]
    name: String,
    #[schema(max_length = 128, example = "1.2.3")]
    version: String,
    source: Source,
    /// Names of lines of the buildtab; all of them when it is absent.
    #[serde(default)]
    #[schema(min_items = 1)]
    configurations: Option<Vec<String>>,
    /// From last to first.
    #[serde(default)]
    #[schema(minimum = -2, maximum = 2, default = 0)]
    priority: i64,
    /// Values of a package manifest that count in the place of its own.
    overrides: Option<String>,
    /// Its build stops for a person to log in: at the first `error` or `warning`, or before this step. It has to be one build.
    #[schema(
        min_length = 1,
        max_length = 128,
        pattern = "^[!-~]+$",
        example = "error"
    )]
    interactive: Option<String>,
    /// The service that submits it.
    service: Option<view::Service>,
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

/// What a submission asks of agents, all of its builds alike.
fn asks(app: &App, submit: &Submit) -> Result<Lane, Problem> {
    let is_graphic = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
    if let Some(breakpoint) = &submit.interactive {
        if app.config.logins.is_empty() {
            return Err(Problem::bad(
                "there are no interactive builds here: the controller has no --interactive-login",
            ));
        }
        if breakpoint.is_empty() || breakpoint.len() > BREAKPOINT || !is_graphic(breakpoint) {
            return Err(Problem::bad(format!(
                "{breakpoint:?} is not where a build can stop: error, warning or a step, without blanks and of at most {BREAKPOINT} characters"
            )));
        }
    }
    if let Some(service) = &submit.service {
        let is_word = |c: char| c.is_ascii_alphanumeric() || "_+.-".contains(c);
        let kind = &service.kind;
        if kind.is_empty() || kind.len() > SERVICE || !kind.chars().all(is_word) {
            return Err(Problem::bad(format!(
                "{kind:?} is not a type of service: letters, digits and _ + . -, at most {SERVICE}"
            )));
        }
        if service.id.is_empty() || service.id.len() > SERVICE_ID || !is_graphic(&service.id) {
            return Err(Problem::bad(format!(
                "{:?} is not what a service calls a submission: no blanks, at most {SERVICE_ID} characters",
                service.id
            )));
        }
    }
    Ok(Lane {
        interactive: submit.interactive.is_some(),
        service: submit.service.as_ref().map(|service| service.kind.clone()),
        ..Lane::default()
    })
}

/// The names of target configurations that a submission may be built in are in the buildtab.
fn check_configurations(app: &App, names: Option<&[String]>) -> Result<(), Problem> {
    let buildtab = app.buildtab();
    let all = buildtab.configurations();
    if all.is_empty() {
        return Err(Problem::bad("the buildtab has no configurations"));
    }
    let Some(names) = names else { return Ok(()) };
    if names.is_empty() {
        return Err(Problem::bad(
            "\"configurations\" names none; leave it out for all",
        ));
    }
    match names.iter().find(|n| !all.iter().any(|c| &c.name == *n)) {
        None => Ok(()),
        Some(unknown) => Err(Problem::bad(format!(
            "there is no configuration {unknown:?} in the buildtab"
        ))),
    }
}

/// Submits a package: a build is queued for each configuration.
#[utoipa::path(
    post,
    path = "/submissions",
    tag = "submissions",
    request_body = Submit,
    responses(
        (status = 201, description = "Its builds are queued", body = SubmissionWithBuilds),
        Makes
    ),
    security(("token" = ["submit"]))
)]
pub(super) async fn submit(
    State(app): State<Arc<App>>,
    Extension(base): Extension<Base>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Result<Response, Json> {
    let submitter = caller.may(Scope::Submit)?;
    let text = body::read(&app.bodies, request.into_body(), app.config.limits.form).await?;
    let submit: Submit = serde_json::from_slice(&text)
        .map_err(|e| Problem::bad(format!("the submission cannot be read: {e}")))?;
    check_name(&submit.name)?;
    check_version(&submit.version)?;
    let priority = Priority::new(submit.priority).map_err(|e| Problem::bad(e.to_string()))?;
    let chosen = submit.configurations.as_deref();
    check_configurations(&app, chosen)?;
    let asks = asks(&app, &submit)?;
    let service = submit.service.map(store::Service::from);
    let source = resolve(&app, submit.source).await?;
    let package = of_package(&app, &source, submit.overrides.as_deref()).await?;
    let plan =
        plan(&package, &app.buildtab(), chosen, &asks).map_err(|e| Problem::bad(e.to_string()))?;
    if submit.interactive.is_some() {
        plan.check_one().map_err(|e| Problem::bad(e.to_string()))?;
    }
    let asker = app.asker(submitter);
    let (name, version, breakpoint) = (submit.name, submit.version, submit.interactive);
    // Until here whoever has gone is let go, with what is fetched for it; what is written is told to those who wait for it.
    let (submitted, excluded) = to_the_end(async move {
        let new = NewSubmission {
            name: &name,
            version: &version,
            source: &source,
            asker: &asker,
            priority,
            particulars: &package.particulars(),
            service: service.as_ref(),
            breakpoint: breakpoint.as_deref(),
            plan: &plan,
        };
        let submitted = keep(&app, new).await?;
        Ok::<_, Problem>((submitted, plan.excluded))
    })
    .await??;
    let Submitted {
        submission, builds, ..
    } = submitted;
    let first = &builds[..builds.len().min(BUILDS)];
    let next = first.last().filter(|_| builds.len() > BUILDS);
    let page = (first, next.map(|build| build.id));
    Ok(json(
        StatusCode::CREATED,
        &SubmissionWithBuilds::of(&submission, page, excluded, &base.0),
    ))
}

/// Keeps a submission, and tells those who wait for builds.
async fn keep(app: &App, new: NewSubmission<'_>) -> Result<Submitted, Problem> {
    let left_out = new.plan.excluded.len();
    let submitted = match app.store.submit(new, app.now()).await {
        // It was put so long ago that it was removed just now.
        Err(StoreError::NoObject { sha256, .. }) => return Err(not_here(&sha256)),
        submitted => submitted?,
    };
    let Submitted {
        submission,
        builds,
        exchanged,
    } = &submitted;
    tracing::info!(
        submission.id,
        "{} {} is submitted: {} build(s) queued, {left_out} left out",
        submission.name,
        submission.version,
        builds.len(),
    );
    app.figures.submitted(builds.len());
    for build in builds {
        app.waits(build, Some(build.place).filter(|_| !exchanged));
    }
    Ok(submitted)
}

/// The submission of this number.
pub(in crate::http) async fn find(app: &App, id: i64) -> Result<Submission, Problem> {
    let found = app.store.submission(id).await?;
    found.ok_or_else(|| Problem::not_found(format_args!("submission {id}")))
}

/// A submission with those of its builds that come after one.
pub(super) async fn with_builds(
    app: &App,
    id: i64,
    after: Option<i64>,
    base: &Base,
) -> Result<SubmissionWithBuilds, Problem> {
    let submission = find(app, id).await?;
    let (builds, next) = app.store.builds_of(id, after, BUILDS).await?;
    let excluded = match after {
        None => app.store.excluded(id).await?,
        Some(_) => Vec::new(),
    };
    let page = (builds.as_slice(), next);
    Ok(SubmissionWithBuilds::of(
        &submission,
        page,
        excluded,
        &base.0,
    ))
}

/// The build that a page of a submission's builds begins after.
pub(in crate::http) fn after(query: Option<&str>) -> Result<Option<i64>, Problem> {
    let parameters = params::parse(query.unwrap_or_default());
    let wanted: After = params::read(params::without_empty(parameters))?;
    wanted
        .after
        .map(|after| {
            let number = after.parse();
            number.map_err(|_| Problem::bad("parameter after: not a cursor of this list"))
        })
        .transpose()
}

/// Which builds of a submission are shown.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct After {
    /// `next` of the page before.
    after: Option<String>,
}

/// Which submissions a list shows.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// Name of the package, with the wildcards `*` and `?`.
    #[param(max_length = 256)]
    name: Option<String>,
    /// `next` of the page before.
    before: Option<String>,
    #[param(inline)]
    limit: Limit,
}

/// One page of submissions, newest first. With a pattern it may have fewer than were asked for, or none, and there is a next one.
#[derive(Debug, Serialize, ToSchema)]
struct Submissions {
    submissions: Vec<view::Submission>,
    /// `before` of the next page; null at the end.
    next: Option<String>,
}

/// Submissions, newest first, without their builds.
#[utoipa::path(
    get,
    path = "/submissions",
    tag = "submissions",
    params(Wanted),
    responses((status = 200, description = "A page of them", body = Submissions), Lists)
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(base): Extension<Base>,
    RawQuery(query): RawQuery,
) -> Result<Response, Json> {
    let parameters = params::parse(&query.unwrap_or_default());
    let wanted: Wanted = params::read(params::without_empty(parameters))?;
    let before = wanted.before.as_deref().map(paging::number).transpose()?;
    let name = paging::name("name", wanted.name)?;
    let (submissions, next) = app
        .store
        .submissions(name.as_deref(), before, wanted.limit.into())
        .await?;
    let answer = Submissions {
        submissions: submissions
            .iter()
            .map(|s| view::Submission::of(s, &base.0))
            .collect(),
        next: next.map(|n| n.to_string()),
    };
    Ok(json(StatusCode::OK, &answer))
}

/// One submission, with a page of its builds.
#[utoipa::path(
    get,
    path = "/submissions/{id}",
    tag = "submissions",
    params(("id" = Id, Path, description = "Its number"), After),
    responses((status = 200, description = "It", body = SubmissionWithBuilds), Finds)
)]
pub(super) async fn get(
    State(app): State<Arc<App>>,
    Extension(base): Extension<Base>,
    Path(text): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Json> {
    let id = id(&text, "submission")?;
    let after = after(query.as_deref())?;
    let answer = with_builds(&app, id, after, &base).await?;
    Ok(json(StatusCode::OK, &answer))
}
