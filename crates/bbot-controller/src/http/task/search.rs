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
