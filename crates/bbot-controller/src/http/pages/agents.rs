//! The page of the agents, and what can be said about them there.

use std::sync::Arc;

use askama::Template;
use axum::body::Body;
use axum::extract::{Extension, RawQuery, State};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::Response;

use super::parts::{self, Frame, Mark, Row};
use super::{Page, framed, render, sign};
use crate::http::access::Caller;
use crate::http::agents::{Drained, page};
use crate::http::problem::Problem;
use crate::http::{App, api, params, steer};
use crate::pending::Pending;
use crate::roll;
use crate::token::Scope;

struct AgentRow {
    name: String,
    mark: Mark,
    /// Why it gets no tasks.
    drained: Option<String>,
    /// How far its clock is off.
    clock: Option<String>,
    seen: Option<String>,
    toolchain: Option<String>,
    builds: Vec<Row>,
}

struct PendingRow {
    agent: String,
    fingerprint: Option<String>,
    address: String,
    machines: String,
    seen: String,
}

impl PendingRow {
    fn of(pending: Pending) -> Self {
        Self {
            agent: pending.agent,
            fingerprint: pending.fingerprint,
            address: pending.address.map(|a| a.to_string()).unwrap_or_default(),
            machines: pending.machines.join(", "),
            seen: parts::time(pending.seen),
        }
    }
}

fn drained(drained: Drained) -> String {
    match drained {
        Drained::There => "it was told so on its host".to_owned(),
        Drained::Here(since, None) => format!("since {}", parts::time(since)),
        Drained::Here(since, Some(why)) => format!("since {}, {why}", parts::time(since)),
    }
}

#[derive(Template)]
#[template(path = "agents.html")]
struct AgentsPage {
    frame: Frame,
    rows: Vec<AgentRow>,
    /// Whether this is not the first page.
    later: bool,
    /// What the next page begins after, in a URL.
    next: Option<String>,
    /// With the first page.
    pending: Vec<PendingRow>,
}

/// Agents on one page.
const PAGE: usize = 200;

/// `GET /agents`.
pub(in crate::http) async fn agents(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Page> {
    let frame = Frame::of(&app, &headers, "/agents", "agents");
    framed(frame, async |frame| {
        let now = app.now();
        let parameters = params::parse(&query.unwrap_or_default());
        let after = params::get(&parameters, "after").filter(|after| !after.is_empty());
        let (agents, next) = page(&app, after, PAGE).await?;
        let rows = agents
            .into_iter()
            .map(|agent| AgentRow {
                mark: Mark::of_agent(agent.doing),
                drained: agent.drained.map(drained),
                clock: agent.clock_ahead.map(roll::ahead_text),
                seen: agent.seen.map(parts::time),
                toolchain: agent.toolchain.map(|(n, v)| format!("{n} {v}")),
                builds: agent.builds.iter().map(|b| Row::of(b, now)).collect(),
                name: agent.name,
            })
            .collect();
        let pending = match after {
            None => app.pending.list(),
            Some(_) => Vec::new(),
        };
        let page = AgentsPage {
            frame,
            rows,
            later: after.is_some(),
            next: next.map(|next| params::encode(&next)),
            pending: pending.into_iter().map(PendingRow::of).collect(),
        };
        Ok(render(StatusCode::OK, &page))
    })
    .await
}

/// What a form says about an agent.
struct Form {
    agent: String,
    fields: Vec<(String, String)>,
}

impl Form {
    fn get(&self, name: &str) -> Option<&str> {
        params::get(&self.fields, name).filter(|value| !value.is_empty())
    }
}

/// Does what a form asks for, and shows the agents again.
async fn said(
    app: &Arc<App>,
    caller: &Caller,
    request: Request<Body>,
    say: impl AsyncFnOnce(&Arc<App>, Form) -> Result<(), Problem>,
) -> Result<Response, Page> {
    let (head, body) = request.into_parts();
    let frame = Frame::of(app, &head.headers, "/agents", "agents");
    framed(frame, async |frame| {
        let fields = sign::checked_form(app, &frame, body).await?;
        caller.may(Scope::Agents)?;
        let agent = params::get(&fields, "agent").unwrap_or_default().to_owned();
        say(app, Form { agent, fields }).await?;
        Ok(sign::see_other(&format!("{}/agents", frame.root)))
    })
    .await
}

/// `POST /agents/drain`: the form.
pub(in crate::http) async fn drain(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Result<Response, Page> {
    said(&app, &caller, request, async |app, form| {
        let reason = api::rebuild::reason(form.get("reason"))?;
        steer::drain(app, &form.agent, reason.as_deref()).await
    })
    .await
}

/// `POST /agents/resume`: the form.
pub(in crate::http) async fn resume(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Result<Response, Page> {
    said(&app, &caller, request, async |app, form| {
        steer::resume(app, &form.agent).await
    })
    .await
}

/// `POST /agents/approve`: the form.
pub(in crate::http) async fn approve(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Result<Response, Page> {
    said(&app, &caller, request, async |app, form| {
        steer::approve(app, &form.agent, form.get("fingerprint"), None).await
    })
    .await
}
