//! The agents, and what each of them does.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::{Request, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::document::{Changes, Lists, Refusal};
use super::json;
use super::paging::ByName;
use super::rebuild::{Because, because, read};
use super::view::{Id, Time, Toolchain};
use crate::http::App;
use crate::http::access::Caller;
use crate::http::problem::Json;
use crate::http::{agents, params, steer};
use crate::pending::Pending;
use crate::token::Scope;
use crate::{roll, store};

/// A page of the agents that were heard of, have a task, or about whom something was said, by name.
#[derive(Debug, Serialize, ToSchema)]
struct Agents {
    agents: Vec<Agent>,
    /// Those that wait for a person to let them in, a thousand at most; with the first page.
    pending: Vec<PendingAgent>,
    /// `after` of the next page; null at the end.
    next: Option<String>,
}

/// An agent that waits for a person to let it in.
#[derive(Debug, Serialize, ToSchema)]
struct PendingAgent {
    /// As it says.
    name: String,
    /// Of its key; null when it shows none.
    fingerprint: Option<String>,
    /// Whether the key itself is known, so that it need not be given to let the agent in.
    key_known: bool,
    /// Where it asks from.
    address: Option<String>,
    /// The first of them.
    machines: Vec<String>,
    last_seen: Time,
}

impl PendingAgent {
    fn of(pending: Pending) -> Self {
        Self {
            name: pending.agent,
            fingerprint: pending.fingerprint,
            key_known: pending.key.is_some(),
            address: pending.address.map(|a| a.to_string()),
            machines: pending.machines,
            last_seen: Time(pending.seen),
        }
    }
}

/// Why an agent gets no tasks.
#[derive(Debug, Serialize, ToSchema)]
struct Drained {
    by: By,
    /// Null where it was drained at the agent.
    since: Option<Time>,
    reason: Option<String>,
}

/// Where a person has said so.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum By {
    Controller,
    Agent,
}

impl Drained {
    fn of(drained: agents::Drained) -> Self {
        match drained {
            agents::Drained::Here(since, reason) => Self {
                by: By::Controller,
                since: Some(Time(since)),
                reason,
            },
            agents::Drained::There => Self {
                by: By::Agent,
                since: None,
                reason: None,
            },
        }
    }
}

/// An agent and what it has.
#[derive(Debug, Serialize, ToSchema)]
struct Agent {
    name: String,
    state: Doing,
    /// Null when it was not heard of since the controller's start.
    last_seen: Option<Time>,
    toolchain: Option<Toolchain>,
    /// Its requests for a task that wait here.
    asking: usize,
    builds: Vec<Has>,
    /// Null when it gets tasks.
    drained: Option<Drained>,
    /// By how many seconds its clock is ahead of the controller's; null when that is not much, or not known.
    clock_ahead: Option<i64>,
}

/// What an agent does.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Doing {
    Building,
    Asking,
    Silent,
}

impl From<roll::Doing> for Doing {
    fn from(doing: roll::Doing) -> Self {
        match doing {
            roll::Doing::Building => Self::Building,
            roll::Doing::Asking => Self::Asking,
            roll::Doing::Silent => Self::Silent,
        }
    }
}

/// A build that an agent has.
#[derive(Debug, Serialize, ToSchema)]
struct Has {
    id: Id,
    package: String,
    version: String,
    configuration: String,
    machine: Option<String>,
    started: Option<Time>,
    lease_until: Option<Time>,
}

impl Has {
    fn of(build: store::Build) -> Self {
        Self {
            id: Id(build.id),
            package: build.package,
            version: build.version,
            configuration: build.configuration,
            machine: build.machine,
            started: build.started.map(Time),
            lease_until: build.lease_until.map(Time),
        }
    }
}

impl Agent {
    fn of(agent: agents::Agent) -> Self {
        Self {
            name: agent.name,
            state: agent.doing.into(),
            last_seen: agent.seen.map(Time),
            toolchain: agent
                .toolchain
                .map(|(name, version)| Toolchain { name, version }),
            asking: agent.asking,
            builds: agent.builds.into_iter().map(Has::of).collect(),
            drained: agent.drained.map(Drained::of),
            clock_ahead: agent.clock_ahead,
        }
    }
}

/// Who is there, and what each does.
#[utoipa::path(
    get,
    path = "/agents",
    tag = "agents",
    params(ByName),
    responses((status = 200, description = "A page of them", body = Agents), Lists)
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Json> {
    let parameters = params::parse(&query.unwrap_or_default());
    let wanted: ByName = params::read(params::without_empty(parameters))?;
    let limit = usize::try_from(i64::from(wanted.limit)).unwrap_or(1);
    let (agents, next) = agents::page(&app, wanted.after.as_deref(), limit).await?;
    let pending = match wanted.after {
        None => app.pending.list(),
        Some(_) => Vec::new(),
    };
    let answer = Agents {
        agents: agents.into_iter().map(Agent::of).collect(),
        pending: pending.into_iter().map(PendingAgent::of).collect(),
        next,
    };
    Ok(json(StatusCode::OK, &answer))
}

/// The answer to what was said about an agent.
async fn as_it_is(app: &App, name: &str) -> Result<Response, Json> {
    let agent = agents::one(app, name).await?;
    Ok(json(StatusCode::OK, &Agent::of(agent)))
}

/// One agent gets no tasks from now on; what it has it may finish.
#[utoipa::path(
    post,
    path = "/agents/{name}/drain",
    tag = "agents",
    params(("name" = String, Path, description = "Its name")),
    request_body = inline(Option<Because>),
    responses((status = 200, description = "The agent as it is now", body = Agent), Changes),
    security(("token" = ["agents"]))
)]
pub(super) async fn drain(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    request: Request<Body>,
) -> Result<Response, Json> {
    caller.may(Scope::Agents)?;
    let reason = because(&app, request).await?;
    steer::drain(&app, &name, reason.as_deref()).await?;
    as_it_is(&app, &name).await
}

/// One agent gets tasks again.
#[utoipa::path(
    post,
    path = "/agents/{name}/resume",
    tag = "agents",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "The agent as it is now", body = Agent), Changes),
    security(("token" = ["agents"]))
)]
pub(super) async fn resume(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Response, Json> {
    caller.may(Scope::Agents)?;
    steer::resume(&app, &name).await?;
    as_it_is(&app, &name).await
}

/// Which agent is let in.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LetIn {
    /// The fingerprint of its key, where several claim the name.
    fingerprint: Option<String>,
    /// Its RSA public key in PEM form, where it does not show it itself.
    key: Option<String>,
}

/// An agent is let in: by its key, or by its name where it has none.
#[utoipa::path(
    post,
    path = "/agents/{name}/approve",
    tag = "agents",
    params(("name" = String, Path, description = "Its name")),
    request_body = inline(Option<LetIn>),
    responses(
        (status = 200, description = "The agent as it is now", body = Agent),
        (status = 409, description = "It is not clear which, or with which key", body = Refusal),
        Changes
    ),
    security(("token" = ["agents"]))
)]
pub(super) async fn approve(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    request: Request<Body>,
) -> Result<Response, Json> {
    caller.may(Scope::Agents)?;
    let asked: LetIn = read(&app, request).await?;
    steer::approve(
        &app,
        &name,
        asked.fingerprint.as_deref(),
        asked.key.as_deref(),
    )
    .await?;
    as_it_is(&app, &name).await
}

/// An agent is let in no more: its key is removed if it was added here, and its approval is taken back.
#[utoipa::path(
    post,
    path = "/agents/{name}/refuse",
    tag = "agents",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "The agent as it is now", body = Agent), Changes),
    security(("token" = ["agents"]))
)]
pub(super) async fn refuse(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Response, Json> {
    caller.may(Scope::Agents)?;
    steer::refuse(&app, &name).await?;
    as_it_is(&app, &name).await
}
