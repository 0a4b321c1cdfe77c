//! The agents, and what each of them does.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::json;
use crate::http::App;
use crate::http::agents::{Agent, all};
use crate::http::problem::Json;

/// `GET /api/v1/agents`.
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Response, Json> {
    let agents: Vec<Value> = all(&app).await?.iter().map(view).collect();
    Ok(json(StatusCode::OK, &json!({ "agents": agents })))
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
