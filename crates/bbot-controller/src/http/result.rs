//! `?build-result`: an agent brings a result.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bbot_manifest::{OperationResult, PackageVersion, ResultRequest, Status, log_text};
use bbot_signature::BodyDigest;
use rsa::RsaPublicKey;
use tokio::sync::OwnedSemaphorePermit;

use super::bodies::Room;
use super::kept::{self, Share};
use super::problem::{Plain, Problem, one_line};
use super::spool::Text;
use super::{App, signed, task};
use crate::auth;
use crate::figures::CameBack;
use crate::queue::State;
use crate::queue::era::Peer;
use crate::queue::lease::Tries;
use crate::queue::outcome::{self, Dropped, Facts, Identity, Proof, SessionState, Skip, Verdict};
use crate::queue::rebuild::Checksums;
use crate::store::{Build, NewResult, SessionFacts, StoreError, Taken};

/// Handles the request.
pub(super) async fn handle(
    app: &App,
    parameters: &[(String, String)],
    tenant: Option<&str>,
    request: Request<Body>,
) -> Result<Response, Plain> {
    let peer = task::peer(request.headers());
    let (head, incoming) = request.into_parts();
    let log_last = log_last(&head, peer);
    let address = task::address(&head.extensions);
    let (request, digest, _room) = take_in(app, parameters, incoming, peer)
        .await
        .inspect_err(|problem| problem.log_refusal("build-result", address))?;
    let ResultRequest {
        session,
        challenge,
        agent_checksum,
        result,
    } = request;

    // An answer to a challenge is checked before, not where others wait for the store: a challenge never changes.
    let operations: Arc<[OperationResult]> = result.operations.into();
    let is_long = operations.iter().any(|o| kept::is_long(&o.log));
    let known = if challenge.is_some() || is_long || tenant.is_some() {
        app.store.session(&session).await?
    } else {
        None
    };
    if let Some(facts) = &known
        && let Err(problem) = is_signed(app, &head, facts, &digest)
    {
        problem.log_refusal("build-result", address);
        // Strangers are answered as the original does, and never learn.
        return match peer {
            Peer::Ours => Err(problem.into()),
            Peer::Stranger => Ok(StatusCode::OK.into_response()),
        };
    }
    if let Some(facts) = &known {
        check_tenant(facts, tenant)
            .inspect_err(|problem| problem.log_refusal("build-result", address))?;
    }
    let proof = match (challenge.as_deref(), &known) {
        (Some(answer), Some(facts)) => Some(prove(app, facts, answer).await?),
        (Some(_), None) => Some(Proof::Good),
        (None, _) => None,
    };
    let machine = NewResult::machine_of(result.status, operations.iter().map(|o| o.name.as_str()));
    let checksums = Checksums::new(
        agent_checksum.as_deref(),
        result.worker_checksum.as_deref(),
        result.dependency_checksum.as_deref(),
    );
    let (name, version, status) = (result.name, result.version, result.status);
    let decide = {
        let (name, version, keys) = (name.clone(), version.clone(), app.wants_keys());
        let checksums = checksums.clone();
        move |facts: &SessionFacts| {
            outcome::decide(Facts {
                session: facts.state,
                proof: proof.unwrap_or_else(|| unanswered(facts, keys)),
                identity: identity(&facts.build.package, &facts.build.version, &name, &version),
                status,
                skip: match &facts.checksums {
                    None => Skip::NotOffered,
                    Some(_) if facts.checksums == checksums => Skip::Same,
                    Some(_) => Skip::Different,
                },
                again: facts.again,
                tries: Tries::of(&facts.build.lane),
                machine,
                interrupts: facts.build.interrupts,
                lapses: facts.build.lapses,
            })
        }
    };
    // What nobody waits for fills no object store.
    let is_wanted = known.is_some_and(|facts| matches!(decide(&facts), Verdict::Keep(_)));
    let mut new = NewResult {
        status,
        operations: if is_long && is_wanted {
            kept::as_objects(app, &operations, Share::Yes).await?
        } else {
            kept::in_rows(&operations)
        },
        checksums,
        log_last,
    };
    let take = |new: NewResult| {
        app.store
            .take_result(&session, new, app.now(), decide.clone())
    };
    let taken = match take(new.clone()).await {
        Err(StoreError::NoObject { .. }) => {
            new.operations = kept::as_objects(app, &operations, Share::No).await?;
            take(new.clone()).await?
        }
        taken => taken?,
    };
    if let Some(agent) = taken.as_ref().and_then(|t| t.facts.agent.as_deref()) {
        app.agents.brings(agent, app.now(), app.steady());
    }
    let verdict = taken
        .as_ref()
        .map_or(Verdict::Drop(Dropped::Unknown), |t| t.verdict);
    let late = |t: &Taken| t.facts.state != SessionState::Current(State::Building);
    let from = From {
        peer,
        address,
        late: taken.as_ref().is_some_and(late),
        build: taken.map(|taken| taken.facts.build),
    };
    tell(app, verdict, &name, &version, &new, &from).map_err(Plain)
}

/// Number of the last segment of the run's log, as an agent of ours says it with the result. One that cannot be read says
/// nothing: a result is worth more than the end of its log.
fn log_last(head: &Parts, peer: Peer) -> Option<u64> {
    let last = head.headers.get("bbot-log-last")?.to_str().ok()?;
    last.parse().ok().filter(|_| peer == Peer::Ours)
}

/// Whether a result is signed by the key of its session, where that has one.
fn is_signed(
    app: &App,
    head: &Parts,
    facts: &SessionFacts,
    digest: &BodyDigest,
) -> Result<(), Problem> {
    let signed = signed::of_session(app, head, facts)?;
    signed::is_of(signed.as_ref(), digest)
}

/// The result with the digest of its text, or what is wrong with the request.
async fn take_in(
    app: &App,
    parameters: &[(String, String)],
    incoming: Body,
    peer: Peer,
) -> Result<
    (
        ResultRequest,
        BodyDigest,
        (Option<OwnedSemaphorePermit>, Room),
    ),
    Problem,
> {
    if let Some((name, _)) = parameters.first() {
        return Err(Problem::bad(format!("unknown parameter {name:?}")));
    }
    let Text {
        bytes,
        digest,
        permit,
        room,
    } = app.spool.read(incoming).await?;
    let request = if permit.is_none() {
        read(&bytes, peer)?
    } else {
        // Megabytes of text: not where other requests wait for their turn.
        tokio::task::spawn_blocking(move || read(&bytes, peer))
            .await
            .map_err(|e| Problem::internal("read a result", &e))??
    };
    Ok((request, digest, (permit, room)))
}

fn read(text: &[u8], peer: Peer) -> Result<ResultRequest, Problem> {
    match ResultRequest::parse(text, "result-request") {
        Ok(request) => Ok(request),
        // Agents of the original of 2017 send logs as they came, colours and broken characters included,
        // and its controller took them.
        Err(first) if peer == Peer::Stranger => {
            ResultRequest::parse(log_text(text).as_bytes(), "result-request")
                .map_err(|_| Problem::bad(first.to_string()))
        }
        Err(e) => Err(Problem::bad(e.to_string())),
    }
}

/// Refuses what is said of a session below another submission's URL than its own.
pub(super) fn check_tenant(facts: &SessionFacts, tenant: Option<&str>) -> Result<(), Problem> {
    let own = facts.build.submission.to_string();
    if tenant.is_none_or(|tenant| tenant == own) {
        return Ok(());
    }
    Err(Problem::bad(
        "invalid session: it is of another submission than the one in the URL",
    ))
}

/// What it proves that nothing was answered.
pub(super) fn unanswered(facts: &SessionFacts, keys: bool) -> Proof {
    // Without a challenge the task was given before agents had to prove themselves, and now they may have to.
    if keys || facts.challenge.is_some() {
        Proof::Missing
    } else {
        Proof::Good
    }
}

pub(super) async fn prove(
    app: &App,
    facts: &SessionFacts,
    answer: &[u8],
) -> Result<Proof, Problem> {
    let Some(challenge) = &facts.challenge else {
        return Ok(Proof::Unexpected);
    };
    let key = if facts.build.lane.keys.is_empty() {
        if !app.has_door() {
            return Ok(Proof::Good);
        }
        app.look_at_keys().await;
        match facts.fingerprint.as_deref() {
            Some(fingerprint) => app.sure_key(fingerprint)?,
            None => None,
        }
    } else {
        bots_key(app, facts).await?
    };
    Ok(
        if key.is_some_and(|key| auth::verify(&key, challenge, answer)) {
            Proof::Good
        } else {
            Proof::Wrong
        },
    )
}

/// The key of a custom bot, as the package names it.
async fn bots_key(app: &App, facts: &SessionFacts) -> Result<Option<RsaPublicKey>, StoreError> {
    let submission = app.store.submission(facts.build.submission).await?;
    let named = |fingerprint: &str| {
        let bots = &submission.as_ref()?.particulars.bots;
        auth::public_key(bots.get(fingerprint)?).ok()
    };
    Ok(facts.fingerprint.as_deref().and_then(named))
}

fn identity(task_name: &str, task_version: &str, name: &str, version: &str) -> Identity {
    let canonical = |v: &str| {
        v.parse::<PackageVersion>()
            .map(|v| v.to_string())
            .unwrap_or_else(|_| v.to_owned())
    };
    let same = task_name == name
        && (task_version == version || canonical(task_version) == canonical(version));
    if same {
        Identity::Same
    } else {
        Identity::Different
    }
}

/// Who brings a result, and when.
struct From {
    peer: Peer,
    address: Option<SocketAddr>,
    /// After its lease had lapsed.
    late: bool,
    /// What it was of, as it was before.
    build: Option<Build>,
}

/// Logs what became of the result, and answers.
fn tell(
    app: &App,
    verdict: Verdict,
    name: &str,
    version: &str,
    result: &NewResult,
    From {
        peer,
        address,
        late,
        build,
    }: &From,
) -> Result<Response, Problem> {
    // A word of an agent, which may be of several lines.
    let (name, version) = (one_line(name), one_line(version));
    let changed = || {
        if let Some(build) = build {
            app.build_changed(build.id);
        }
    };
    let waits = || {
        if let Some(build) = build {
            app.waits(build, None);
        }
    };
    let status = result.status;
    match verdict {
        Verdict::Keep(state) => {
            app.figures.result(status);
            let late = if *late {
                " (late: its lease had lapsed)"
            } else {
                ""
            };
            tracing::info!(%status, "{name} {version} is built: {status}{late}");
            match state {
                State::Queued => waits(),
                State::Building | State::Built | State::Cancelled => changed(),
            }
        }
        Verdict::Unchanged(state) => {
            app.figures.result(status);
            tracing::info!(%status, "{name} {version} is as it was built before");
            match state {
                State::Queued => waits(),
                State::Building | State::Built | State::Cancelled => changed(),
            }
        }
        Verdict::Requeue => {
            app.figures.came_back(CameBack::Given);
            let why = result.reason().map(|why| format!(": {}", one_line(why)));
            tracing::info!(
                "{name} {version} was given back by its agent and is queued again{}",
                why.unwrap_or_default()
            );
            waits();
        }
        Verdict::Retry => {
            app.figures.came_back(CameBack::Failed);
            let host = build.as_ref().and_then(|b| b.agent.as_deref());
            let why = result.reason().map(|why| format!(": {}", one_line(why)));
            tracing::warn!(
                "the machine of {name} {version} failed on {} before its worker asked for anything, it is queued again{}",
                one_line(host.unwrap_or("an unknown host")),
                why.unwrap_or_default()
            );
            waits();
        }
        Verdict::GiveUp => {
            app.figures.came_back(match result.machine() {
                outcome::Machine::Failed => CameBack::Failed,
                outcome::Machine::Unmentioned => CameBack::Given,
            });
            app.figures.result(Status::Abort);
            if build.as_ref().is_some_and(|b| b.lane.interactive) {
                tracing::warn!(
                    "{name} {version} is interactive and came back from its agent: abort"
                );
            } else {
                tracing::warn!(
                    "{name} {version} came back from its agents without a result {} times: abort",
                    outcome::INTERRUPTS
                );
            }
            changed();
        }
        Verdict::Release => {
            tracing::info!("{name} {version} was given back after its lease had lapsed");
        }
        Verdict::Repeat => tracing::debug!("the result of {name} {version} came once more"),
        Verdict::Wrong(mistake) => {
            tracing::warn!(
                peer = address.map(tracing::field::display),
                "a build-result request is refused: {mistake}: {}",
                one_line(&format!("{name} {version}"))
            );
            return Err(Problem::bad(mistake.to_string()));
        }
        Verdict::Drop(why) => {
            tracing::warn!(
                peer = address.map(tracing::field::display),
                "a result ({status}) is dropped: {why}: {}",
                one_line(&format!("{name} {version}"))
            );
            // Strangers are answered as the original does, and never learn.
            if *peer == Peer::Ours {
                return Err(Problem::new(dropped_status(why), why.to_string()));
            }
        }
    }
    Ok(StatusCode::OK.into_response())
}

/// 401 would be tried again for ever: none of these gets better by it.
fn dropped_status(why: Dropped) -> StatusCode {
    match why {
        Dropped::Unknown => StatusCode::NOT_FOUND,
        Dropped::Superseded | Dropped::Cancelled => StatusCode::GONE,
        Dropped::NoAnswer | Dropped::UnexpectedAnswer | Dropped::WrongAnswer => {
            StatusCode::FORBIDDEN
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_canonically() {
        for (version, other, expected) in [
            ("1.2.3", "1.2.3", Identity::Same),
            ("1.2.3+0", "1.2.3", Identity::Same),
            ("1.2.3", "1.2.4", Identity::Different),
            ("not a version", "not a version", Identity::Same),
            ("1.2.3", "0", Identity::Different),
        ] {
            assert_eq!(
                identity("p", version, "p", other),
                expected,
                "{version} {other}"
            );
        }
        assert_eq!(identity("p", "1", "q", "1"), Identity::Different);
    }

    #[test]
    fn a_strangers_colours_are_taken_and_our_own_agents_know_better() {
        let text = b": 1\nsession: s\n:\nname: a\nversion: 1\nstatus: error\nupdate-status: error\nupdate-log:\\\n\x1b[31merror\x1b[0m \xff\n\\\n";
        assert_eq!(
            read(text, Peer::Stranger).unwrap().result.operations[0].log,
            "error ?"
        );
        assert_eq!(
            read(text, Peer::Ours).unwrap_err().status,
            StatusCode::BAD_REQUEST
        );
    }
}
