//! `?build-task`: an agent asks for work.

mod answer;
mod give;
mod search;
mod wanted;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Extensions, HeaderMap, Request};
use axum::response::Response;
use bbot_manifest::{TaskRequest, TaskResponse};

use super::held::{Held, parse};
use super::problem::{Plain, Problem, one_line};
use super::{App, Base, Connection, body, reach, signed};
use crate::dispatch::waiters::Waiter;
use crate::queue::era::{self, Peer};
use crate::roll::{Asking, ahead_text};

use answer::{answer_of, written};
use give::{Search, find};
use search::Asked;

pub(super) use wanted::Wanted;

/// The longest that a request is held until there is a task.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Whether the request is of an agent of ours.
pub(super) fn peer(headers: &HeaderMap) -> Peer {
    if headers.contains_key("bbot-agent") {
        Peer::Ours
    } else {
        Peer::Stranger
    }
}

/// The other end of the connection that a request came by, for the log.
pub(super) fn address(extensions: &Extensions) -> Option<SocketAddr> {
    extensions.get::<Connection>().map(|c| c.peer)
}

/// Handles the request.
pub(super) async fn handle(
    app: &Arc<App>,
    parameters: &[(String, String)],
    request: Request<Body>,
) -> Result<Response, Plain> {
    let (mut held, task_request) = Box::pin(take(app, parameters, request)).await?;
    let asking = app.agents.asks(
        &task_request.agent,
        (
            &task_request.toolchain_name,
            &task_request.toolchain_version.to_string(),
        ),
        held.says,
        (app.now(), app.steady()),
    );
    if let Some(ahead) = asking.clock {
        tracing::warn!(
            "the clock of agent {} is {}",
            one_line(&task_request.agent),
            ahead_text(ahead)
        );
    }
    asking.is_choosy(!held.wanted.repositories.is_empty());
    let era = held.era;
    let nothing = || Ok(answer_of(Body::from(written(&TaskResponse::none(), era)?)));
    let serves = reach::of(app, &task_request, &held.wanted, (&held.bot, era));
    if serves.interactive.is_none() {
        // It has the machines, which why a build waits tells.
        let (desk, request) = (app.desk(), &task_request);
        let held = &held;
        asking.can(desk.reading, &Asked { request, held }.able(app, &desk));
        return nothing();
    }
    app.requeue_lapsed().await?;
    let deadline = tokio::time::Instant::now() + held.wait;
    let mut first = Some(task_request);
    let mut told: Option<Waiter> = None;
    loop {
        // In a box, which is gone while this waits: there may be ten thousand that do.
        let looked = Box::pin(look(app, &held, &asking, first.take(), told.take()));
        let mut waiter = match looked.await? {
            Looked::Found(answer) => return Ok(answer),
            Looked::Nothing => return nothing(),
            Looked::Waits(waiter) => waiter,
        };
        held.pack();
        let again = tokio::select! {
            _ = waiter.woken() => true,
            () = tokio::time::sleep_until(deadline) => false,
            () = app.shutdown.cancelled() => false,
        };
        if !again {
            return nothing();
        }
        told = Some(waiter);
    }
}

/// What is asked for, by an agent that may ask.
async fn take(
    app: &App,
    parameters: &[(String, String)],
    request: Request<Body>,
) -> Result<(Held, TaskRequest), Problem> {
    let (head, incoming) = request.into_parts();
    let (wanted, text, task_request) = read(app, parameters, incoming)
        .await
        .inspect_err(|problem| problem.log_refusal("build-task", address(&head.extensions)))?;
    let from = address(&head.extensions).map(|address| address.ip());
    let peer = peer(&head.headers);
    let era = era::detect(app.config.era, peer, &task_request);
    app.look_at_keys().await;
    let named = app.named(&app.desk(), &task_request, era).await?;
    let agent_key = signed::of_task(app, &head, &text, &task_request, named.is_some()).await;
    let agent_key = agent_key
        .inspect_err(|problem| problem.log_refusal("build-task", address(&head.extensions)))?;
    let bot = app.admit(&task_request, &head.headers, from, named)?;
    reach::check(app, &task_request, &wanted)
        .inspect_err(|problem| problem.log_refusal("build-task", address(&head.extensions)))?;
    let held = Held::new(
        text,
        wanted,
        era,
        peer,
        head.extensions.get::<Base>().cloned(),
        wait(&head.headers, peer),
        app.says(&head.headers),
        agent_key,
        bot,
    );
    Ok((held, task_request))
}

/// What a look into the queue comes to.
enum Looked {
    /// A task.
    Found(Response),
    /// None, and the agent does not wait.
    Nothing,
    /// None yet.
    Waits(Waiter),
}

/// Looks for a task. `request`: what is in the text, if that is known; `told`: that for which it has been woken.
async fn look(
    app: &Arc<App>,
    held: &Held,
    asking: &Asking<'_>,
    request: Option<TaskRequest>,
    told: Option<Waiter>,
) -> Result<Looked, Problem> {
    let request = match request {
        Some(request) => request,
        None => held.read()?,
    };
    let asked = Asked {
        request: &request,
        held,
    };
    app.look_at_keys().await;
    let desk = app.desk();
    let hold = app.hold(&request, &held.bot, held.says);
    let mut able = asked.able(app, &desk);
    // One that is drained on its host does not say what it has.
    if !request.machines.is_empty() || hold.is_none() {
        asking.can(desk.reading, &able);
    }
    if hold.is_none() && app.has_to_sign(held, &request) {
        return Err(signed::must_sign());
    }
    asking.is_held_back(hold);
    if hold.is_some() {
        able = desk.nothing(held.era);
    }
    if held.wait.is_zero() {
        return Ok(match find(app, &desk, &able, &asked).await? {
            Search::Found(found) => Looked::Found(found.answer),
            Search::None { .. } => Looked::Nothing,
        });
    }
    // Before looking, so that what is queued meanwhile is not slept over.
    let waiter = desk.waiters.wait(&able);
    let found = find(app, &desk, &able, &asked).await?;
    // What it was told of was its to look for until now. Had that failed, or has it something else, another is told.
    match (told, &found) {
        (Some(told), Search::None { is_refused: true }) => waiter.pass_on(told),
        (Some(told), Search::None { is_refused: false }) => told.done(),
        (Some(told), Search::Found(found)) if Some(found.kind) == told.kind() => told.done(),
        (told, Search::Found(_)) => drop(told),
        (None, Search::None { .. }) => {}
    }
    match found {
        Search::Found(found) => {
            waiter.done();
            Ok(Looked::Found(found.answer))
        }
        Search::None { .. } => Ok(Looked::Waits(waiter)),
    }
}

/// What is asked for with the text that says it, or what is wrong with the request.
async fn read(
    app: &App,
    parameters: &[(String, String)],
    incoming: Body,
) -> Result<(Wanted, body::Whole, TaskRequest), Problem> {
    let wanted = Wanted::parse(parameters)?;
    let text = body::read(&app.bodies, incoming, app.config.limits.task_request).await?;
    let task_request = parse(&text)?;
    Ok((wanted, text, task_request))
}

/// For how long an agent lets us hold its request.
pub(super) fn wait(headers: &HeaderMap, peer: Peer) -> Duration {
    let seconds = headers
        .get("bbot-wait")
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.trim().parse().ok());
    match (peer, seconds) {
        (Peer::Ours, Some(seconds)) => Duration::from_secs(seconds).min(LONGEST_WAIT),
        _ => Duration::ZERO,
    }
}
