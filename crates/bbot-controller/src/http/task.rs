//! `?build-task`: an agent asks for work.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Extensions, HeaderMap, Request, header};
use axum::response::{IntoResponse as _, Response};
use bbot_manifest::{
    Era, InteractiveMode, MachineRole, RepositoryType, Task, TaskRequest, TaskResponse, quoting,
};

use super::hand_out::HandOut;
use super::held::{Held, parse};
use super::problem::{Plain, Problem, one_line};
use super::{App, Base, Connection, body, session};
use crate::auth;
use crate::buildtab::Configuration;
use crate::dispatch::Desk;
use crate::dispatch::abilities::Abilities;
use crate::dispatch::heads::{Given, Look, Next};
use crate::dispatch::waiters::Waiter;
use crate::queue::era::{self, Peer};
use crate::queue::failure::{self, Failures};
use crate::queue::lease;
use crate::queue::rebuild::{Makings, controller_checksum};
use crate::queue::select::{Offer, Role};
use crate::roll::{Asking, ahead_text};
use crate::source::{Source, requested_repository};
use crate::store::{Instead, Lease, NewLease, StoreError, Waiting};

/// How often a lost race for a task is run again within one request.
const RACES: usize = 16;

/// Repositories that a request may be for.
const REPOSITORIES: usize = 16;

/// The longest name of an agent, a toolchain or a machine, in bytes: they are remembered.
const NAME: usize = 256;

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

/// What the URL's parameters ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Only packages of these repositories, by their canonical names; empty is any.
    repositories: Vec<String>,
    /// The agent's say about interactive builds, made narrower.
    interactive: Option<InteractiveMode>,
    /// Only packages of services; without the empty name there are none here.
    services: Vec<String>,
}

fn wanted(parameters: &[(String, String)]) -> Result<Wanted, Problem> {
    let mut wanted = Wanted::default();
    for (name, value) in parameters {
        match name.as_str() {
            "r" | "repository" if value.is_empty() => {
                return Err(Problem::bad("empty repository name"));
            }
            "r" | "repository" => wanted.repositories.push(requested_repository(value)),
            "interactive" => {
                wanted.interactive = Some(match value.as_str() {
                    "false" => InteractiveMode::False,
                    "true" => InteractiveMode::True,
                    "both" => InteractiveMode::Both,
                    _ => {
                        return Err(Problem::bad(
                            "invalid interactive mode: expected false, true or both",
                        ));
                    }
                });
            }
            "t" | "tenant_service_type" => wanted.services.push(value.clone()),
            other => return Err(Problem::bad(format!("unknown parameter {other:?}"))),
        }
    }
    // Each is looked for by itself, in each configuration.
    wanted.repositories.sort_unstable();
    wanted.repositories.dedup();
    if wanted.repositories.len() > REPOSITORIES {
        return Err(Problem::bad(format!(
            "more than {REPOSITORIES} repositories are asked for"
        )));
    }
    Ok(wanted)
}

/// Whether there can be anything at all: builds here are never interactive and belong to no service.
fn anything(wanted: &Wanted, mode: Option<InteractiveMode>) -> bool {
    let only_interactive = |m: Option<InteractiveMode>| m == Some(InteractiveMode::True);
    !only_interactive(mode)
        && !only_interactive(wanted.interactive)
        && (wanted.services.is_empty() || wanted.services.iter().any(String::is_empty))
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
    let era = held.era;
    let nothing = || Ok(answer_of(Body::from(written(&TaskResponse::none(), era)?)));
    if !anything(&held.wanted, task_request.interactive_mode) {
        // What its machines could build is not for them.
        let desk = app.desk();
        asking.can(desk.reading, &desk.learned.of(&desk.buildtab, &[], era));
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
    app.admit(&task_request, &head.headers, from)?;
    let peer = peer(&head.headers);
    let held = Held::new(
        text,
        wanted,
        era::detect(app.config.era, peer, &task_request),
        peer,
        head.extensions.get::<Base>().cloned(),
        wait(&head.headers, peer),
        app.says(&head.headers),
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
    let desk = app.desk();
    let hold = app.hold(&request, held.says);
    let mut able = asked.able(&desk);
    // One that is drained on its host does not say what it has.
    if !request.machines.is_empty() || hold.is_none() {
        asking.can(desk.reading, &able);
    }
    asking.is_held_back(hold);
    if hold.is_some() {
        able = desk.learned.of(&desk.buildtab, &[], held.era);
    }
    if held.wait.is_zero() {
        return Ok(match find(app, &desk, &able, &asked).await? {
            Search::Found(found) => Looked::Found(found.answer),
            Search::None { .. } => Looked::Nothing,
        });
    }
    // Before looking, so that what is queued meanwhile is not slept over.
    let waiter = desk.waiters.wait(&able.kinds);
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

/// A request for a task while it is looked for.
struct Asked<'a> {
    request: &'a TaskRequest,
    held: &'a Held,
}

impl Asked<'_> {
    /// What it can build.
    fn able(&self, desk: &Desk) -> Arc<Abilities> {
        let offers: Vec<Offer<'_>> = self
            .request
            .machines
            .iter()
            .map(|m| Offer {
                name: &m.name,
                role: if m.role == Some(MachineRole::Auxiliary) {
                    Role::Auxiliary
                } else {
                    Role::Build
                },
            })
            .collect();
        desk.learned.of(&desk.buildtab, &offers, self.held.era)
    }
}

/// What is asked for with the text that says it, or what is wrong with the request.
async fn read(
    app: &App,
    parameters: &[(String, String)],
    incoming: Body,
) -> Result<(Wanted, Vec<u8>, TaskRequest), Problem> {
    let wanted = wanted(parameters)?;
    let text = body::read(incoming, app.config.limits.task_request).await?;
    let task_request = parse(&text)?;
    let names = [&task_request.agent, &task_request.toolchain_name];
    let machines = task_request.machines.iter().map(|machine| &machine.name);
    if let Some(long) = names.into_iter().chain(machines).find(|n| n.len() > NAME) {
        return Err(Problem::bad(format!(
            "a name has {} bytes: the names of agents, toolchains and machines have at most {NAME}",
            long.len()
        )));
    }
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

/// The build that is next for an agent that can build these; or none, and whether any was refused.
async fn next<'a>(
    app: &App,
    desk: &'a Desk,
    able: &Abilities,
    asked: &Asked<'_>,
) -> Result<Result<Given<'a>, bool>, StoreError> {
    if !asked.held.wanted.repositories.is_empty() {
        let given = next_of(app, desk, able, &asked.held.wanted.repositories).await?;
        return Ok(given.ok_or(false));
    }
    let refuses = |kind: u32, failures: &Failures| {
        let others = || {
            app.agents
                .others((desk.reading, kind), failures, app.steady())
        };
        failure::refuses(failures, &asked.request.agent, others)
    };
    loop {
        match desk.heads.next(&able.kinds, refuses) {
            Next::Given(given) => return Ok(Ok(given)),
            Next::None { is_refused } => return Ok(Err(is_refused)),
            Next::LookUp(_) => {}
        }
        // One looks, and the others find what it has found.
        let _looking = desk.looking.lock().await;
        match desk.heads.next(&able.kinds, refuses) {
            Next::Given(given) => return Ok(Ok(given)),
            Next::None { is_refused } => return Ok(Err(is_refused)),
            Next::LookUp(looks) => {
                let of = |look: &Look| desk.configuration(look.kind);
                let names: Vec<(&str, &str)> = looks
                    .iter()
                    .map(|look| of(look).map_or(("", ""), |c| (&c.name, &c.target)))
                    .collect();
                let limit = looks.iter().map(|look| look.limit).max().unwrap_or(0);
                let found = app.store.first_queued(&names, limit).await?;
                for (look, found) in looks.into_iter().zip(&found) {
                    desk.heads.found(look, found);
                }
            }
        }
    }
}

/// The same, of these repositories only: the store is asked each time, since none of ours asks so.
async fn next_of<'a>(
    app: &App,
    desk: &'a Desk,
    able: &Abilities,
    repositories: &[String],
) -> Result<Option<Given<'a>>, StoreError> {
    let waiting = |kind: &u32| {
        let configuration = desk.configuration(*kind);
        let of = move |repository| {
            configuration.map(|c| Waiting {
                configuration: &c.name,
                target: &c.target,
                repository: Some(repository),
            })
        };
        let kind = *kind;
        repositories
            .iter()
            .filter_map(move |repository| Some((kind, of(repository.as_str())?)))
            .collect::<Vec<_>>()
    };
    let (kinds, waiting): (Vec<u32>, Vec<Waiting<'_>>) =
        able.kinds.iter().flat_map(waiting).unzip();
    let first = app.store.first(&waiting).await?;
    Ok(first.and_then(|first| Some(desk.heads.give(*kinds.get(first.index)?, first.build))))
}

/// An answer with a task.
struct Found {
    /// Its configuration.
    kind: u32,
    answer: Response,
}

/// What looking for a task has come to.
enum Search {
    Found(Found),
    /// There is none; or, when it `is_refused`, none but such as others are to have.
    None {
        is_refused: bool,
    },
}

/// The answer with a task, if there is one for this agent now.
async fn find(
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
            able.machine(given.kind)
                .and_then(|machine| request.machines.get(machine)),
        ) else {
            return Ok(NOTHING);
        };
        let random = |e| Problem::internal("make a session", &e);
        let session = auth::session().map_err(random)?;
        let path = auth::session().map_err(random)?;
        // Without a key nothing can be proved, and whoever has none was let in by its name.
        let fingerprint = request.fingerprint.as_deref().filter(|_| app.has_door());
        let challenge = fingerprint
            .map(|_| auth::challenge())
            .transpose()
            .map_err(random)?;
        let version = request.toolchain_version.to_string();
        let terms = lease::terms(asked.held.peer, app.config.lease, app.config.result_timeout);
        let until = app.steady().plus(terms.lease);
        let is_any = asked.held.wanted.repositories.is_empty();
        let lease = NewLease {
            build: given.build,
            // Another controller may be handing it out.
            instead: if app.store.is_shared() && is_any {
                Instead::First(Waiting {
                    configuration: &configuration.name,
                    target: &configuration.target,
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
            toolchain_name: &request.toolchain_name,
            toolchain_version: &version,
            makings: (asked.held.era == Era::Later).then(|| Makings {
                controller: controller_checksum(configuration),
                machine: machine.id.clone(),
            }),
        };
        let mut hand_out = HandOut::begin(app, &session);
        let lease = app.store.lease(&lease, app.now()).await?;
        let kind = given.kind;
        let is_given = lease.as_ref().is_some_and(|l| l.build.id == given.build);
        given.gone();
        if !is_given {
            desk.heads.changed(kind);
        }
        // It may have gone another way meanwhile; then the next one is looked for.
        let Some(lease) = lease else {
            hand_out.done();
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
            request.agent,
            machine.name
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
        return Ok(Search::Found(Found { kind, answer }));
    }
    Ok(NOTHING)
}
/// Where artifacts may be uploaded to, by their types; an agent of 2017 does not know of any.
fn uploads(app: &App, era: Era, base: &str) -> std::collections::BTreeMap<String, String> {
    let kinds = app.config.artifacts.iter().filter(|_| era == Era::Later);
    kinds
        .map(|kind| (kind.clone(), format!("{base}/?upload={kind}")))
        .collect()
}

fn task(lease: &Lease, configuration: &Configuration, machine: &str, base: &str) -> Task {
    let submission = &lease.submission;
    let url = match (&submission.source, submission.source.archive()) {
        (_, Some(sha256)) => format!("{base}/archives/{sha256}.tar.gz"),
        (Source::Repository(repository), None) => repository.url.clone(),
        (Source::Archive(_) | Source::Git(_), None) => String::new(),
    };
    let mut task = Task::new(
        &submission.name,
        &submission.version,
        url,
        machine,
        &configuration.target,
    );
    if let Source::Repository(repository) = &submission.source {
        task.repository_type = match repository.kind.as_deref() {
            Some("pkg") => Some(RepositoryType::Pkg),
            Some("git") => Some(RepositoryType::Git),
            Some("dir") => Some(RepositoryType::Dir),
            _ => None,
        };
        task.trust.clone_from(&repository.trust);
    }
    task.requires.clone_from(&submission.particulars.requires);
    let package = submission
        .particulars
        .of(&lease.build.package_configuration);
    task.package_config = package.and_then(|p| p.arguments.clone());
    if let Some(checksums) = &lease.checksums {
        task.worker_checksum = Some(checksums.worker.clone());
        task.dependency_checksum = Some(checksums.dependency.clone());
    }
    task.environment.clone_from(&configuration.environment);
    if !configuration.arguments.is_empty() {
        task.target_config = Some(quoting::join(&configuration.arguments));
    }
    task.warning_regex
        .clone_from(&configuration.warning_regexes);
    // A module of the build system is built where the build system itself is.
    let class = if submission.name.starts_with("libbuild2-") {
        "build2"
    } else {
        "host"
    };
    task.host = configuration.is_of_class(class).then_some(true);
    task
}

fn written(response: &TaskResponse, era: Era) -> Result<String, Problem> {
    response
        .serialize(era)
        .map_err(|e| Problem::internal("write a task", &e))
}

fn answer_of(body: Body) -> Response {
    (
        [(header::CONTENT_TYPE, "text/manifest;charset=utf-8")],
        body,
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        super::super::params::parse(text)
    }

    #[test]
    fn parameters() {
        for (text, expected) in [
            ("", Ok(0)),
            ("r=pkg%3Acppget.org%2Fstable&repository=x", Ok(2)),
            ("interactive=both&t=&t=github", Ok(0)),
            (
                "interactive=yes",
                Err("invalid interactive mode: expected false, true or both"),
            ),
            ("r=b&r=a&r=b&r=a", Ok(2)),
            ("foo=1", Err("unknown parameter \"foo\"")),
            ("r=", Err("empty repository name")),
        ] {
            match (wanted(&pairs(text)), expected) {
                (Ok(w), Ok(n)) => assert_eq!(w.repositories.len(), n, "{text}"),
                (Err(p), Err(what)) => assert_eq!(
                    (p.status, p.sentence.as_str()),
                    (axum::http::StatusCode::BAD_REQUEST, what)
                ),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }

    #[test]
    fn few_repositories_are_looked_for() {
        let many = |number| {
            let each = (0..number).map(|n| format!("r=a{n}&"));
            wanted(&pairs(each.collect::<String>().trim_end_matches('&')))
        };
        assert_eq!(many(16).unwrap().repositories.len(), 16);
        let problem = many(17).unwrap_err();
        assert_eq!(problem.sentence, "more than 16 repositories are asked for");
    }

    #[test]
    fn nothing_here_is_interactive_or_a_services() {
        for (text, mode, expected) in [
            ("", None, true),
            ("", Some(InteractiveMode::Both), true),
            ("", Some(InteractiveMode::True), false),
            ("interactive=true", Some(InteractiveMode::Both), false),
            ("interactive=false", None, true),
            ("t=", None, true),
            ("t=ci-github", None, false),
            ("t=ci-github&t=", None, true),
        ] {
            assert_eq!(
                anything(&wanted(&pairs(text)).unwrap(), mode),
                expected,
                "{text}"
            );
        }
    }
}
