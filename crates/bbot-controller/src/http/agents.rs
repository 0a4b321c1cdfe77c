//! The agents: who is there, what each of them does.

use std::collections::BTreeMap;

use super::App;
use super::problem::Problem;
use crate::clock::Millis;
use crate::roll::{self, Doing};
use crate::store::Build;

/// Builds under way that are looked at.
const BUILDS: i64 = 10_000;

/// An agent and what it has.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) name: String,
    pub(super) doing: Doing,
    /// When it was heard of last; `None` when not since the controller's start.
    pub(super) seen: Option<Millis>,
    pub(super) toolchain: Option<(String, String)>,
    /// Its requests for a task that wait here.
    pub(super) asking: usize,
    pub(super) builds: Vec<Build>,
}

/// All agents that were heard of or have a task, by name.
pub(super) async fn all(app: &App) -> Result<Vec<Agent>, Problem> {
    let mut builds: BTreeMap<String, Vec<Build>> = BTreeMap::new();
    for build in app.store.building(BUILDS).await? {
        let name = build.agent.clone().unwrap_or_default();
        builds.entry(name).or_default().push(build);
    }
    let now = app.steady();
    let mut agents: Vec<Agent> = app
        .agents
        .list()
        .into_iter()
        .map(|entry| {
            let builds = builds.remove(&entry.name).unwrap_or_default();
            Agent {
                doing: roll::doing(builds.len(), entry.asking, Some(entry.steady.until(now))),
                seen: Some(entry.seen),
                toolchain: entry.toolchain,
                asking: entry.asking,
                name: entry.name,
                builds,
            }
        })
        .collect();
    // Those that were given their task before this start.
    agents.extend(builds.into_iter().map(|(name, builds)| {
        Agent {
            name,
            doing: Doing::Building,
            seen: None,
            toolchain: builds
                .first()
                .and_then(|b| b.toolchain_name.clone().zip(b.toolchain_version.clone())),
            asking: 0,
            builds,
        }
    }));
    agents.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(agents)
}
