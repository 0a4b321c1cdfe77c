//! Giving a task: the lease of the build that is next, and the answer that says so.

use std::sync::Arc;

use axum::response::Response;
use bbot_manifest::{Era, TaskRequest, TaskResponse};
use bbot_signature::{AgreementError, End, Ephemeral, PublicKey, SESSION_KEY, SessionKey};

use super::answer::{answer_of, task, uploads, written};
use super::search::{Asked, next};
use crate::auth;
use crate::dispatch::Desk;
use crate::dispatch::abilities::Abilities;
use crate::http::hand_out::HandOut;
use crate::http::problem::{Problem, one_line};
use crate::http::{App, session};
use crate::queue::lane::Lane;
use crate::queue::lease;
use crate::queue::reach::Reach;
use crate::queue::rebuild::{Makings, controller_checksum};
use crate::store::{AuxiliaryMachine, Instead, NewLease, SessionSigning, StoreError, Waiting};

/// How often a lost race for a task is run again within one request.
const RACES: usize = 16;

/// An answer with a task.
pub(super) struct Found {
    /// Its kind.
    pub(super) kind: u32,
    pub(super) answer: Response,
}

/// What looking for a task has come to.
pub(super) enum Search {
    Found(Found),
    /// There is none; or, when it `is_refused`, none but such as others are to have.
    None {
        is_refused: bool,
    },
}

/// The answer with a task, if there is one for this agent now.
pub(super) async fn find(
    app: &Arc<App>,
    desk: &Desk,
    able: &Abilities,
    asked: &Asked<'_>,
) -> Result<Search, Problem> {
    const NOTHING: Search = Search::None { is_refused: false };
    let request = asked.request;
    for _ in 0..RACES {
        let given = match next(app, desk, able, asked).await? {
            Ok(given) => given,
            Err(is_refused) => return Ok(Search::None { is_refused }),
        };
        let (Some(configuration), Some(machine)) = (
            desk.configuration(given.kind),
            able.machine(desk.lanes.configuration(given.kind))
                .and_then(|machine| request.machines.get(machine)),
        ) else {
            return Ok(NOTHING);
        };
        let lane = desk.lanes.lane(given.kind);
        let Some(auxiliaries) = auxiliaries(request, &able.reach, &lane) else {
            return Ok(NOTHING);
        };
        let random = |e| Problem::internal("make a session", &e);
        let session = auth::session().map_err(random)?;
        let path = auth::session().map_err(random)?;
        // Without a key nothing can be proved, and whoever has none was let in by its name.
        let is_proved = app.has_door() || !lane.keys.is_empty();
        let fingerprint = request.fingerprint.as_deref().filter(|_| is_proved);
        let challenge = fingerprint
            .map(|_| auth::challenge())
            .transpose()
            .map_err(random)?;
        let agreed = match &asked.held.agent_key {
            Some(key) => Some(agree(key, &session)?),
            None => None,
        };
        let version = request.toolchain_version.to_string();
        let terms = lease::terms(asked.held.peer, app.config.lease, app.config.result_timeout);
        let until = app.steady().plus(terms.lease);
        let is_any = asked.held.wanted.repositories.is_empty();
        let lane_text = desk.lanes.text(given.kind);
        let lease = NewLease {
            build: given.build,
            // Another controller may be handing it out.
            instead: if app.store.is_shared() && is_any {
                Instead::First(Waiting {
                    configuration: &configuration.name,
                    target: &configuration.target,
                    lane: &lane_text,
                    repository: None,
                })
            } else {
                Instead::None
            },
            session: &session,
            path: &path,
            until,
            renews: terms.renew.is_some(),
            latest: app.steady().plus(app.config.result_timeout),
            agent: &request.agent,
            fingerprint,
            challenge: challenge.as_deref(),
            machine: &machine.name,
            machine_summary: &machine.summary,
            auxiliaries: &auxiliaries,
            login: request
                .interactive_login
                .as_deref()
                .filter(|_| lane.interactive),
            toolchain_name: &request.toolchain_name,
            toolchain_version: &version,
            // What a person has done in it is in no checksum.
            makings: (asked.held.era == Era::Later && !lane.interactive).then(|| Makings {
                controller: controller_checksum(configuration),
                machine: machine.id.clone(),
            }),
            signing: agreed.as_ref().map(|agreed| SessionSigning {
                key: &agreed.key,
                agent: agreed.agent,
            }),
        };
        let mut hand_out = HandOut::begin(app, &session);
        let lease = app.store.lease(&lease, app.now()).await;
        let lease = lease.inspect_err(|e| {
            // Nothing was handed out.
            if matches!(e, StoreError::UsedKey) {
                hand_out.done();
            }
        })?;
        let kind = given.kind;
        let is_given = lease.as_ref().is_some_and(|l| l.build.id == given.build);
        given.gone();
        if !is_given {
            desk.heads.changed(kind);
        }
        // It may have gone another way meanwhile; then the next one is looked for.
        let Some(lease) = lease else {
            hand_out.done();
            if app.store.is_drained(&request.agent).await? {
                // Since it was looked at. What it does not get is another's.
                return Ok(Search::None { is_refused: true });
            }
            continue;
        };
        app.figures.handed_out(lease.build.queued.until(app.now()));
        app.paced.taken(lease.build.queued, app.now());
        app.lapses.expect(until);
        app.agents.has_task(&request.agent, until);
        app.build_changed(lease.build.id);
        tracing::info!(
            build.id = lease.build.id,
            agent = request.agent,
            machine = machine.name,
            "build {} ({} {}) goes to {} on {}",
            lease.build.id,
            lease.build.package,
            lease.build.version,
            one_line(&request.agent),
            one_line(&machine.name)
        );
        let base = asked.held.base.as_ref().map_or("", |b| b.0.as_str());
        let response = TaskResponse {
            result_url: Some(format!("{base}/?build-result")),
            challenge,
            agent_checksum: lease.checksums.as_ref().map(|c| c.agent.clone()),
            task: Some(task(&lease, configuration, &machine.name, base)),
            upload_urls: uploads(app, asked.held.era, base),
            session,
        };
        let mut answer = answer_of(hand_out.body(written(&response, asked.held.era)?));
        if terms.renew.is_some()
            && let Ok(url) = format!("{base}/sessions/{path}").parse()
        {
            answer.headers_mut().insert("bbot-session-url", url);
            session::tell_terms(answer.headers_mut(), terms);
        }
        if let Some(agreed) = agreed
            && let Ok(public) = agreed.public.parse()
        {
            answer.headers_mut().insert(SESSION_KEY, public);
        }
        return Ok(Search::Found(Found { kind, answer }));
    }
    Ok(NOTHING)
}

/// The key of a session, and what its agent needs to find it.
struct Agreed<'a> {
    key: SessionKey,
    agent: &'a PublicKey,
    /// Our own part.
    public: String,
}

/// Agrees on the key of this session with the agent.
fn agree<'a>(agent: &'a PublicKey, session: &str) -> Result<Agreed<'a>, Problem> {
    let failed = |e: AgreementError| match e {
        AgreementError::Random => Problem::internal("make a session's key", &e),
        _ => Problem::bad(e.to_string()),
    };
    let own = Ephemeral::new().map_err(failed)?;
    let public = own.public();
    let agreement = own.agree(End::Controller, agent).map_err(failed)?;
    Ok(Agreed {
        key: agreement.key(session),
        agent,
        public,
    })
}

/// The machines that serve the environments of a lane, by their names; `None` when there are none for one of them.
fn auxiliaries(request: &TaskRequest, reach: &Reach, lane: &Lane) -> Option<Vec<AuxiliaryMachine>> {
    let chosen = reach.auxiliaries_for(lane)?;
    let of = |(name, machine): (&String, usize)| {
        Some(AuxiliaryMachine {
            name: name.clone(),
            machine: request.machines.get(machine)?.name.clone(),
        })
    };
    lane.auxiliaries.keys().zip(chosen).map(of).collect()
}
