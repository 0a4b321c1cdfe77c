//! The agents: who is there, what each of them does.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Bound;
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

/// Agents that were heard of, have a task, or about whom something was said, by name: at most `limit` after a name; and the last one's where
/// there are more.
pub(super) async fn page(
    app: &App,
    after: Option<&str>,
    limit: usize,
) -> Result<(Vec<Agent>, Option<String>), Problem> {
    let building = building(app).await?;
    let (heard, said) = (app.agents.list(), app.crew.said());
    let mut names = BTreeSet::new();
    names.extend(heard.iter().map(|entry| entry.name.as_str()));
    names.extend(building.iter().map(agent_of));
    names.extend(said.standings().map(|s| s.name.as_str()));
    let after = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut names = names.range::<str, _>((after, Bound::Unbounded)).copied();
    let here: HashSet<&str> = names.by_ref().take(limit).collect();
    let is_more = names.next().is_some();
    let mut heard: HashMap<&str, &roll::Entry> = heard
        .iter()
        .filter(|entry| here.contains(entry.name.as_str()))
        .map(|entry| (entry.name.as_str(), entry))
        .collect();
    let mut builds: HashMap<&str, Vec<Build>> = HashMap::new();
    for build in building.iter().filter(|b| here.contains(agent_of(b))) {
        builds
            .entry(agent_of(build))
            .or_default()
            .push(build.clone());
    }
    let mut agents: Vec<Agent> = here
        .into_iter()
        .map(|name| {
            let builds = builds.remove(name).unwrap_or_default();
            Agent::of(name, heard.remove(name), builds, &said, app.steady())
        })
        .collect();
    agents.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let next = agents.last().filter(|_| is_more).map(|a| a.name.clone());
    Ok((agents, next))
}

/// The agent of this name, whether anything is known of it or not.
pub(super) async fn one(app: &App, name: &str) -> Result<Agent, Problem> {
    let building = building(app).await?;
    let builds = building.iter().filter(|b| agent_of(b) == name);
    let (heard, said) = (app.agents.list(), app.crew.said());
    let entry = heard.iter().find(|entry| entry.name == name);
    Ok(Agent::of(
        name,
        entry,
        builds.cloned().collect(),
        &said,
        app.steady(),
    ))
}

fn agent_of(build: &Build) -> &str {
    build.agent.as_deref().unwrap_or_default()
}

impl Agent {
    fn of(
        name: &str,
        heard: Option<&roll::Entry>,
        builds: Vec<Build>,
        said: &Said,
        now: Millis,
    ) -> Self {
        let asking = heard.map_or(0, |entry| entry.asking);
        let since = heard.map(|entry| entry.steady.until(now));
        // One that was given its task before this start has not said it here.
        let of_build = |b: &Build| b.toolchain_name.clone().zip(b.toolchain_version.clone());
        Self {
            name: name.to_owned(),
            doing: roll::doing(builds.len(), asking, since),
            seen: heard.map(|entry| entry.seen),
            toolchain: match heard {
                Some(entry) => entry.toolchain.clone(),
                None => builds.first().and_then(of_build),
            },
            asking,
            drained: drained(said, name, heard.is_some_and(|entry| entry.says.drained)),
            clock_ahead: heard.and_then(|entry| entry.says.clock_ahead()),
            builds,
        }
    }
}

fn drained(said: &Said, agent: &str, says_so: bool) -> Option<Drained> {
    match said.of(agent).and_then(|s| s.drained.clone()) {
        Some((since, why)) => Some(Drained::Here(since, why)),
        None => says_so.then_some(Drained::There),
    }
}
