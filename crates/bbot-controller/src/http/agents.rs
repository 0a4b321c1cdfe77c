//! The agents: who is there, what each of them does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::App;
use super::problem::Problem;
use crate::clock::Millis;
use crate::crew::Said;
use crate::roll::{self, Doing};
use crate::store::{Build, StoreError};

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
    /// Why it gets no tasks, where a person has drained it.
    pub(super) drained: Option<Drained>,
    /// By how many seconds its clock is ahead of ours, if that is worth a word.
    pub(super) clock_ahead: Option<i64>,
}

/// A person has drained an agent.
#[derive(Debug)]
pub(super) enum Drained {
    /// Here, since then and perhaps for a reason.
    Here(Millis, Option<String>),
    /// At the agent itself.
    There,
}

/// Builds that are with agents.
async fn building(app: &App) -> Result<Arc<Vec<Build>>, StoreError> {
    let rows = |found: &Vec<Build>| u64::try_from(found.len()).unwrap_or(u64::MAX);
    app.building.get(app.store.building(BUILDS), rows).await
}

/// What each of the same agents does, and how many of its requests wait here.
pub(super) async fn each(app: &App) -> Result<Vec<(Doing, usize)>, Problem> {
    let building = building(app).await?;
    let mut builds: HashMap<&str, usize> = HashMap::new();
    for build in building.iter() {
        *builds
            .entry(build.agent.as_deref().unwrap_or_default())
            .or_default() += 1;
    }
    let (now, said) = (app.steady(), app.crew.said());
    let heard = app.agents.list();
    let known: HashSet<&str> = heard.iter().map(|entry| entry.name.as_str()).collect();
    let others = said.standings().map(|s| s.name.as_str());
    let silent: HashSet<&str> = others
        .filter(|name| !known.contains(name) && !builds.contains_key(name))
        .collect();
    let of = |entry: &roll::Entry| {
        let tasks = builds.get(entry.name.as_str()).copied().unwrap_or(0);
        let doing = roll::doing(tasks, entry.asking, Some(entry.steady.until(now)));
        (doing, entry.asking)
    };
    let mut each: Vec<_> = heard.iter().map(of).collect();
    let left = builds.keys().filter(|name| !known.contains(*name));
    each.extend(left.map(|_| (Doing::Building, 0)));
    each.extend(silent.iter().map(|_| (Doing::Silent, 0)));
    Ok(each)
}

/// All agents that were heard of or have a task, by name.
pub(super) async fn all(app: &App) -> Result<Vec<Agent>, Problem> {
    let mut builds: BTreeMap<String, Vec<Build>> = BTreeMap::new();
    for build in building(app).await?.iter() {
        let name = build.agent.clone().unwrap_or_default();
        builds.entry(name).or_default().push(build.clone());
    }
    let (now, said) = (app.steady(), app.crew.said());
    let mut agents: Vec<Agent> = app
        .agents
        .list()
        .into_iter()
        .map(|entry| {
            let builds = builds.remove(&entry.name).unwrap_or_default();
            Agent {
                drained: drained(&said, &entry.name, entry.says.drained),
                clock_ahead: entry.says.clock_ahead(),
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
            drained: drained(&said, &name, false),
            clock_ahead: None,
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
    let known: HashSet<String> = agents.iter().map(|a| a.name.clone()).collect();
    let others = said.standings().filter(|s| !known.contains(&s.name));
    agents.extend(others.map(|said| {
        Agent {
            name: said.name.clone(),
            doing: Doing::Silent,
            seen: None,
            toolchain: None,
            asking: 0,
            builds: Vec::new(),
            drained: said
                .drained
                .clone()
                .map(|(since, why)| Drained::Here(since, why)),
            clock_ahead: None,
        }
    }));
    agents.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(agents)
}

fn drained(said: &Said, agent: &str, says_so: bool) -> Option<Drained> {
    match said.of(agent).and_then(|s| s.drained.clone()) {
        Some((since, why)) => Some(Drained::Here(since, why)),
        None => says_so.then_some(Drained::There),
    }
}
