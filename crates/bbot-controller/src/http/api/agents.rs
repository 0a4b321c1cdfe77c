//! The agents, and what each of them does.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::document::Reads;
use super::json;
use super::view::{Id, Time, Toolchain};
use crate::http::App;
use crate::http::agents::{self, all};
use crate::http::problem::Json;
use crate::{roll, store};

/// All agents that were heard of or have a task, by name.
#[derive(Debug, Serialize, ToSchema)]
struct Agents {
    agents: Vec<Agent>,
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
        }
    }
}

/// Who is there, and what each does.
#[utoipa::path(
    get,
    path = "/agents",
    tag = "agents",
    responses((status = 200, description = "All agents", body = Agents), Reads)
)]
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Response, Json> {
    let agents = all(&app).await?.into_iter().map(Agent::of).collect();
    Ok(json(StatusCode::OK, &Agents { agents }))
}
