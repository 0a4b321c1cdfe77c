//! Which build is next for who asks.

use std::borrow::Cow;
use std::sync::Arc;

use bbot_manifest::{MachineRole, TaskRequest};

use crate::dispatch::Desk;
use crate::dispatch::abilities::Abilities;
use crate::dispatch::heads::{Given, Next};
use crate::http::held::Held;
use crate::http::{App, reach};
use crate::queue::failure::{self, Failures};
use crate::queue::select::{Offer, Role};
use crate::store::{InLane, StoreError, Waiting};

/// A request for a task while it is looked for.
pub(super) struct Asked<'a> {
    pub(super) request: &'a TaskRequest,
    pub(super) held: &'a Held,
}

impl Asked<'_> {
    /// What it can build.
    pub(super) fn able(&self, app: &App, desk: &Desk) -> Arc<Abilities> {
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
        let held = self.held;
        let reach = reach::of(app, self.request, &held.wanted, (&held.bot, held.era));
        desk.learned.of(&desk.buildtab, &offers, held.era, reach)
    }
}

/// The build that is next for an agent that can build these; or none, and whether any was refused.
pub(super) async fn next<'a>(
    app: &App,
    desk: &'a Desk,
    able: &Abilities,
    asked: &Asked<'_>,
) -> Result<Result<Given<'a>, bool>, StoreError> {
    app.learn_lanes(desk).await?;
    let refuses = |kind: u32, failures: &Failures| {
        let others = || {
            let (number, lane) = (desk.lanes.configuration(kind), desk.lanes.lane(kind));
            let of = (desk.reading, number, &*lane);
            app.agents.others(of, failures, app.steady())
        };
        failure::refuses(failures, &asked.request.agent, others)
    };
    let repositories = &asked.held.wanted.repositories;
    if !repositories.is_empty() {
        return next_of(app, desk, able, repositories, refuses).await;
    }
    next_in(app, desk, &kinds(desk, able), refuses).await
}

/// The kinds that somebody can have, of all lanes: what is next is a matter of places alone, or what goes first by its kind would keep all else
/// waiting for as long as it comes.
fn kinds<'a>(desk: &Desk, able: &'a Abilities) -> Cow<'a, [u32]> {
    let others = desk.lanes.kinds(able);
    if others.is_empty() {
        Cow::Borrowed(&*able.kinds)
    } else {
        Cow::Owned([&*able.kinds, &others].concat())
    }
}

/// The build that is next of these kinds; or none, and whether any was refused.
async fn next_in<'a>(
    app: &App,
    desk: &'a Desk,
    kinds: &[u32],
    refuses: impl Fn(u32, &Failures) -> bool + Copy,
) -> Result<Result<Given<'a>, bool>, StoreError> {
    loop {
        match desk.heads.next(kinds, refuses) {
            Next::Given(given) => return Ok(Ok(given)),
            Next::None { is_refused } => return Ok(Err(is_refused)),
            Next::LookUp(_) => {}
        }
        // One looks, and the others find what it has found.
        let _looking = desk.looking.lock().await;
        match desk.heads.next(kinds, refuses) {
            Next::Given(given) => return Ok(Ok(given)),
            Next::None { is_refused } => return Ok(Err(is_refused)),
            Next::LookUp(looks) => {
                let lanes: Vec<Arc<str>> = looks.iter().map(|l| desk.lanes.text(l.kind)).collect();
                let each = looks.iter().zip(&lanes);
                let wanted: Vec<InLane<'_>> = each
                    .map(|(look, lane)| in_lane(desk, look.kind, lane))
                    .collect();
                let limit = looks.iter().map(|look| look.limit).max().unwrap_or(0);
                let found = app.store.first_queued(&wanted, limit).await?;
                for (look, found) in looks.into_iter().zip(&found) {
                    desk.heads.found(look, found);
                }
            }
        }
    }
}

/// So many builds that others are to have are passed over by one look for some repositories' packages.
const PASSED: usize = 32;

fn in_lane<'a>(desk: &'a Desk, kind: u32, lane: &'a str) -> InLane<'a> {
    let configuration = desk.configuration(kind);
    configuration.map_or_else(InLane::default, |c| InLane {
        configuration: &c.name,
        target: &c.target,
        lane,
    })
}

/// The same, of these repositories only: the store is asked each time, since none of ours asks so.
async fn next_of<'a>(
    app: &App,
    desk: &'a Desk,
    able: &Abilities,
    repositories: &[String],
    refuses: impl Fn(u32, &Failures) -> bool,
) -> Result<Result<Given<'a>, bool>, StoreError> {
    let kinds = kinds(desk, able);
    let lanes: Vec<Arc<str>> = kinds.iter().map(|kind| desk.lanes.text(*kind)).collect();
    let mut of = Vec::new();
    let mut waiting = Vec::new();
    for (kind, lane) in kinds.iter().zip(&lanes) {
        let InLane {
            configuration,
            target,
            lane,
        } = in_lane(desk, *kind, lane);
        for repository in repositories {
            of.push(*kind);
            waiting.push(Waiting {
                configuration,
                target,
                lane,
                repository: Some(repository),
            });
        }
    }
    let mut passed = None;
    for _ in 0..PASSED {
        let first = app.store.first_after(&waiting, passed.as_ref()).await?;
        let kind = first.as_ref().and_then(|first| of.get(first.index));
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
