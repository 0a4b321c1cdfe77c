//! The agents: who is there, what each of them does.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::problem::{Json, Problem};
use super::{App, api};
use crate::clock::Millis;
use crate::queue;
use crate::roll::{self, Doing};
use crate::store::{Build, Filter};

/// Builds under way that are looked at.
const BUILDS: i64 = 10_000;

/// An agent and what it has.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) name: String,
    pub(super) doing: Doing,
    /// When it was heard of last; `None` when not since the controller's start.
    pub(super) seen: Option<Millis>,
    pub(super) toolchain: Option<(String, String)>,
    /// Its requests for a task that wait here.
    pub(super) asking: usize,
    pub(super) builds: Vec<Build>,
}

/// All agents that were heard of or have a task, by name.
pub(super) async fn all(app: &App) -> Result<Vec<Agent>, Problem> {
    let filter = Filter {
        state: Some(queue::State::Building),
        ..Filter::default()
    };
    let mut builds: BTreeMap<String, Vec<Build>> = BTreeMap::new();
    for build in app.store.builds(&filter, BUILDS).await? {
        let name = build.agent.clone().unwrap_or_default();
        builds.entry(name).or_default().push(build);
    }
    let now = app.steady();
    let mut agents: Vec<Agent> = app
        .agents
        .list()
        .into_iter()
        .map(|entry| {
            let builds = builds.remove(&entry.name).unwrap_or_default();
            Agent {
                doing: roll::doing(builds.len(), entry.asking, Some(entry.steady.until(now))),
                seen: Some(entry.seen),
                toolchain: entry.toolchain,
                asking: entry.asking,
                name: entry.name,
                builds,
            }
        })
        .collect();
    // Those that were given their task before this start.
    agents.extend(builds.into_iter().map(|(name, builds)| {
        Agent {
            name,
            doing: Doing::Building,
            seen: None,
            toolchain: builds
                .first()
                .and_then(|b| b.toolchain_name.clone().zip(b.toolchain_version.clone())),
            asking: 0,
            builds,
        }
    }));
    agents.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(agents)
}

/// `GET /api/v1/agents`.
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Response, Json> {
    let agents: Vec<Value> = all(&app).await?.iter().map(view).collect();
    Ok(api::json(StatusCode::OK, &json!({ "agents": agents })))
}

fn view(agent: &Agent) -> Value {
    let builds: Vec<Value> = agent
        .builds
        .iter()
        .map(|b| {
            json!({
                "id": b.id.to_string(),
                "package": b.package,
                "version": b.version,
                "configuration": b.configuration,
                "machine": b.machine,
                "started": b.started.map(|t| t.to_string()),
                "lease_until": b.lease_until.map(|t| t.to_string()),
            })
        })
        .collect();
    json!({
        "name": agent.name,
        "state": agent.doing.as_str(),
        "last_seen": agent.seen.map(|t| t.to_string()),
        "toolchain": agent.toolchain.as_ref().map(|(name, version)| json!({"name": name, "version": version})),
        "asking": agent.asking,
        "builds": builds,
    })
}
