//! Which build is next for who asks.

use std::sync::Arc;

use bbot_manifest::{MachineRole, TaskRequest};

use crate::dispatch::Desk;
use crate::dispatch::abilities::Abilities;
use crate::dispatch::heads::{Given, Look, Next};
use crate::http::App;
use crate::http::held::Held;
use crate::queue::failure::{self, Failures};
use crate::queue::select::{Offer, Role};
use crate::store::{StoreError, Waiting};

/// A request for a task while it is looked for.
pub(super) struct Asked<'a> {
    pub(super) request: &'a TaskRequest,
    pub(super) held: &'a Held,
}

impl Asked<'_> {
    /// What it can build.
    pub(super) fn able(&self, desk: &Desk) -> Arc<Abilities> {
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

/// The build that is next for an agent that can build these; or none, and whether any was refused.
pub(super) async fn next<'a>(
    app: &App,
    desk: &'a Desk,
    able: &Abilities,
    asked: &Asked<'_>,
) -> Result<Result<Given<'a>, bool>, StoreError> {
    let refuses = |kind: u32, failures: &Failures| {
        let others = || {
            app.agents
                .others((desk.reading, kind), failures, app.steady())
        };
        failure::refuses(failures, &asked.request.agent, others)
    };
    let repositories = &asked.held.wanted.repositories;
    if !repositories.is_empty() {
        return next_of(app, desk, able, repositories, refuses).await;
    }
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

/// So many builds that others are to have are passed over by one look for some repositories' packages.
const PASSED: usize = 32;

/// The same, of these repositories only: the store is asked each time, since none of ours asks so.
async fn next_of<'a>(
    app: &App,
    desk: &'a Desk,
    able: &Abilities,
    repositories: &[String],
    refuses: impl Fn(u32, &Failures) -> bool,
) -> Result<Result<Given<'a>, bool>, StoreError> {
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
    let mut passed = None;
    for _ in 0..PASSED {
        let first = app.store.first_after(&waiting, passed.as_ref()).await?;
        let kind = first.as_ref().and_then(|first| kinds.get(first.index));
        let (Some(first), Some(kind)) = (first, kind) else {
            break;
        };
        if !refuses(*kind, &first.failures) {
            return Ok(Ok(desk.heads.give(*kind, first.build)));
        }
        passed = Some(first);
    }
    Ok(Err(passed.is_some()))
}
