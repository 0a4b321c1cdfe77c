//! `/sessions/<path>`: what an agent of ours says about a task that it has: that it lives, and what the build prints.
//!
//! Knowing the URL is the right to it: it is told to the agent that got the task and to nobody else, after whatever
//! that agent had to show for the task. Where the session has a key each request is signed by it, too. No result can be
//! brought with the URL.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bbot_manifest::OPERATION_LIMIT;
use bbot_signature::body_digest;

use super::problem::{Plain, Problem};
use super::{App, body, signed, task};
use crate::queue::era::Peer;
use crate::queue::late::{self, Wanted};
use crate::queue::lease::{self, Renewal};
use crate::queue::outcome::SessionState;
use crate::segments::record::{self, DATA_LIMIT};
use crate::segments::{Appended, Skip};
use crate::store::SessionFacts;

/// A segment with its line has fewer bytes.
const SEGMENT: usize = DATA_LIMIT + OPERATION_LIMIT + 2;

/// A renewal has no body worth reading.
const RENEWAL: usize = 1024;

/// A span as the wire has it: seconds, with a fraction where needed.
fn seconds(span: Duration) -> HeaderValue {
    let text = format!("{}", span.as_secs_f64());
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("1"))
}

/// Says on what terms the agent has its task.
pub(super) fn tell_terms(headers: &mut HeaderMap, terms: lease::Terms) {
    headers.insert("bbot-lease", seconds(terms.lease));
    if let Some(renew) = terms.renew {
        headers.insert("bbot-renew", seconds(renew));
    }
}

/// Whether the text can be what a session's URL ends with.
fn is_path(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn unknown() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "the session is not known")
}

pub(super) fn over(facts: Option<&SessionFacts>) -> Problem {
    let why = match facts.map(|f| f.state) {
        Some(SessionState::Cancelled) => "the session is over: its build was cancelled",
        _ => "the session is over: its task was given away again, is built, or took too long",
    };
    Problem::new(StatusCode::GONE, why)
}

/// The session whose URL ends so.
pub(super) async fn under_way(app: &App, path: &str) -> Result<SessionFacts, Problem> {
    if !is_path(path) {
        return Err(unknown());
    }
    app.store.session_by_path(path).await?.ok_or_else(unknown)
}

/// `POST /sessions/<path>/lease`: the agent lives.
pub(super) async fn lease(
    State(app): State<Arc<App>>,
    Path(path): Path<String>,
    request: Request<Body>,
) -> Result<Response, Plain> {
    let (head, body) = request.into_parts();
    let digest = body_digest(&body::read(&app.bodies, body, RENEWAL).await?);
    if !is_path(&path) {
        return Err(unknown().into());
    }
    let terms = lease::terms(Peer::Ours, app.config.lease, app.config.result_timeout);
    let head = Arc::new(head);
    let check = {
        let (app, head) = (Arc::clone(&app), Arc::clone(&head));
        move |facts: &SessionFacts| signed::number(&app, &head, facts, &digest)
    };
    let (renewal, facts) = app
        .store
        .renew_if(&path, terms.lease, app.steady(), app.now(), check)
        .await?
        .inspect_err(|problem| problem.log_refusal("lease", task::address(&head.extensions)))?;
    heard(&app, facts.as_ref());
    match renewal {
        Renewal::Renew => {}
        Renewal::Revive => {
            if let Some(facts) = &facts {
                tracing::info!(
                    build.id = facts.build.id,
                    "build {} was queued again, but its agent is there: it goes on",
                    facts.build.id
                );
                app.build_changed(facts.build.id);
            }
            app.lapses.expect(app.steady().plus(terms.lease));
        }
        Renewal::Over => return Err(over(facts.as_ref()).into()),
        Renewal::Unknown => return Err(unknown().into()),
    }
    if let Some(agent) = facts.as_ref().and_then(|f| f.agent.as_deref()) {
        app.agents.has_task(agent, app.steady().plus(terms.lease));
    }
    // No longer than until the next renewal is due: the lease must not lapse while its agent waits here.
    let wait = task::wait(&head.headers, Peer::Ours).min(terms.renew.unwrap_or_default());
    if let Some(facts) = facts.filter(|_| !wait.is_zero()) {
        until_over(&app, &path, facts.build.id, wait).await?;
    }
    let mut answer = StatusCode::NO_CONTENT.into_response();
    tell_terms(answer.headers_mut(), terms);
    Ok(answer)
}

/// Waits until the session is over, which is the error then, or for so long.
async fn until_over(app: &App, path: &str, build: i64, wait: Duration) -> Result<(), Problem> {
    let deadline = tokio::time::Instant::now() + wait;
    // Before looking, so that what happens meanwhile is not slept over.
    let mut listening = app.ends.listen(build);
    loop {
        let facts = app.store.session_by_path(path).await?;
        let state = facts.as_ref().map_or(SessionState::Unknown, |f| f.state);
        match lease::renew(state) {
            Renewal::Renew | Renewal::Revive => {}
            Renewal::Over => return Err(over(facts.as_ref())),
            Renewal::Unknown => return Err(unknown()),
        }
        tokio::select! {
            () = listening.told() => {}
            () = tokio::time::sleep_until(deadline) => return Ok(()),
            () = app.shutdown.cancelled() => return Ok(()),
        }
    }
}

fn heard(app: &App, facts: Option<&SessionFacts>) {
    if let Some(agent) = facts.and_then(|f| f.agent.as_deref()) {
        app.agents.heard(agent, app.now(), app.steady());
    }
}

/// A segment's number in a path: decimal, from 1, without leading zeros.
fn number(text: &str) -> Result<u64, Problem> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    Some(text)
        .filter(|t| digits && !t.starts_with('0'))
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| Problem::bad("a log segment has a number from 1 on"))
}

/// `POST /sessions/<path>/log/<N>`: a piece of the raw log.
pub(super) async fn log(
    State(app): State<Arc<App>>,
    Path((path, segment)): Path<(String, String)>,
    request: Request<Body>,
) -> Result<Response, Plain> {
    const NEXT: HeaderName = HeaderName::from_static("bbot-log-next");
    if !is_path(&path) {
        return Err(unknown().into());
    }
    // Before the body: who has no session sends us nothing.
    let facts = app
        .store
        .session_by_path(&path)
        .await?
        .ok_or_else(unknown)?;
    let (head, incoming) = request.into_parts();
    let refused = |problem: &Problem| {
        problem.log_refusal("log", task::address(&head.extensions));
    };
    let signed = signed::of_session(&app, &head, &facts).inspect_err(refused)?;
    heard(&app, Some(&facts));
    let number = number(&segment)?;
    let run = match (
        late::wants(facts.state, facts.log_end, number, app.now()),
        facts.run,
    ) {
        (Wanted::Yes, Some(run)) => run,
        _ => return Err(over(Some(&facts)).into()),
    };
    let skip = if head.headers.contains_key("bbot-log-skip") {
        Skip::Yes
    } else {
        Skip::No
    };
    let text = body::read(&app.bodies, incoming, SEGMENT).await?;
    signed::is_of(signed.as_ref(), &body_digest(&text)).inspect_err(refused)?;
    // Looked at here, so that what cannot be read never comes near the disk.
    let (operation, data) = record::parse(&text).map_err(Problem::bad)?;
    if data.len() > DATA_LIMIT {
        return Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a log segment has at most {DATA_LIMIT} bytes of log"),
        )
        .into());
    }
    let from = text.len() - data.len();
    let operation = operation.to_owned();
    let segments = Arc::clone(&app.segments);
    let build = facts.build.id;
    let bytes = data.len();
    // Detached: what was begun is finished, whether the agent waits for the answer or not.
    let appended = tokio::task::spawn_blocking(move || {
        let data = text.get(from..).unwrap_or_default();
        segments
            .log(build, run)?
            .append(number, skip, &operation, data)
    })
    .await
    .map_err(|e| Problem::internal("keep a log segment", &e))?
    .map_err(|e| Problem::internal("keep a log segment", &e))?;
    if matches!(appended, Appended::Stored { .. }) {
        app.figures.segment(bytes);
    }
    let (status, next) = match appended {
        Appended::Stored { next } | Appended::Known { next } => (StatusCode::NO_CONTENT, next),
        Appended::Gap { next } => (StatusCode::CONFLICT, next),
    };
    let mut answer = status.into_response();
    answer.headers_mut().insert(NEXT, HeaderValue::from(next));
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_segments() {
        for (text, expected) in [
            ("1", Some(1)),
            ("18446744073709551615", Some(u64::MAX)),
            ("0", None),
            ("01", None),
            ("+1", None),
            ("-1", None),
            ("", None),
            ("1.0", None),
            ("../1", None),
            ("18446744073709551616", None),
            ("１", None),
        ] {
            assert_eq!(number(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn spans_on_the_wire() {
        for (millis, expected) in [(60_000, "60"), (15_000, "15"), (250, "0.25"), (1, "0.001")] {
            assert_eq!(seconds(Duration::from_millis(millis)), expected);
        }
    }

    #[test]
    fn paths_of_sessions() {
        assert!(is_path(&"0f".repeat(32)));
        for bad in [
            "",
            "0f",
            &"0F".repeat(32),
            &"0f".repeat(33),
            &"..".repeat(32),
        ] {
            assert!(!is_path(bad), "{bad}");
        }
    }
}
