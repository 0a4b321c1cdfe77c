//! The roll of agents: who has been heard of since the start, and when. In memory: who is there says so again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Millis;

/// Names come from agents; so many are remembered, those that were heard of last: more than a large farm has.
const LIMIT: usize = 20_000;

/// An agent that was not heard of for so long is silent: those that hold no request ask once a minute.
const SILENT: Duration = Duration::from_secs(150);

/// What an agent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doing {
    /// It has at least one task.
    Building,
    /// It has none and asks for one.
    Asking,
    /// It has none, and was not heard of for a while.
    Silent,
}

impl Doing {
    /// The one text form, in the API and on the page.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Asking => "asking",
            Self::Silent => "silent",
        }
    }
}

/// What an agent with so many tasks does that was heard of `since` ago and has so many requests waiting here.
pub(crate) fn doing(tasks: usize, asking: usize, since: Option<Duration>) -> Doing {
    if tasks > 0 {
        Doing::Building
    } else if asking > 0 || since.is_some_and(|s| s < SILENT) {
        Doing::Asking
    } else {
        Doing::Silent
    }
}

/// What is remembered of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its name.
    pub(crate) name: String,
    /// When it was heard of last, for people.
    pub(crate) seen: Millis,
    /// The same in steady time.
    pub(crate) steady: Millis,
    /// Its toolchain: name and version.
    pub(crate) toolchain: Option<(String, String)>,
    /// Its requests for a task that wait here now.
    pub(crate) asking: usize,
}

/// The roll.
#[derive(Debug, Default)]
pub(crate) struct Roll(Mutex<HashMap<String, Entry>>);

impl Roll {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An agent was heard of.
    pub(crate) fn heard(&self, name: &str, seen: Millis, steady: Millis) {
        let mut all = self.lock();
        entry(&mut all, name, seen, steady);
    }

    /// An agent asks for a task, until what is returned is dropped.
    pub(crate) fn asks(
        &self,
        name: &str,
        toolchain: (&str, &str),
        seen: Millis,
        steady: Millis,
    ) -> Asking<'_> {
        let mut all = self.lock();
        let entry = entry(&mut all, name, seen, steady);
        entry.toolchain = Some((toolchain.0.to_owned(), toolchain.1.to_owned()));
        entry.asking += 1;
        Asking {
            roll: self,
            name: name.to_owned(),
        }
    }

    /// All of them, by name.
    pub(crate) fn list(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> = self.lock().values().cloned().collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

fn entry<'a>(
    all: &'a mut HashMap<String, Entry>,
    name: &str,
    seen: Millis,
    steady: Millis,
) -> &'a mut Entry {
    if all.len() >= LIMIT && !all.contains_key(name) {
        let oldest = all
            .values()
            .min_by_key(|e| (e.asking > 0, e.steady))
            .map(|e| e.name.clone());
        oldest.and_then(|name| all.remove(&name));
    }
    let entry = all.entry(name.to_owned()).or_insert_with(|| Entry {
        name: name.to_owned(),
        seen,
        steady,
        toolchain: None,
        asking: 0,
    });
    (entry.seen, entry.steady) = (seen, steady);
    entry
}

/// A request for a task that waits.
#[derive(Debug)]
pub(crate) struct Asking<'a> {
    roll: &'a Roll,
    name: String,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.roll.lock().get_mut(&self.name) {
            entry.asking = entry.asking.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_does() {
        let ago = |seconds| Some(Duration::from_secs(seconds));
        for (tasks, asking, since, expected) in [
            (1, 0, None, Doing::Building),
            (2, 1, ago(9999), Doing::Building),
            (0, 1, ago(9999), Doing::Asking),
            (0, 0, ago(60), Doing::Asking),
            (0, 0, ago(150), Doing::Silent),
            (0, 0, None, Doing::Silent),
        ] {
            assert_eq!(doing(tasks, asking, since), expected);
        }
    }

    #[test]
    fn asking_ends_with_the_request() {
        let roll = Roll::default();
        let first = roll.asks("a", ("t", "1"), Millis(1), Millis(1));
        let second = roll.asks("a", ("t", "2"), Millis(2), Millis(2));
        roll.heard("b", Millis(3), Millis(3));
        assert_eq!(roll.list()[0].asking, 2);
        drop(first);
        drop(second);
        let all = roll.list();
        assert_eq!((all[0].asking, all[0].seen), (0, Millis(2)));
        assert_eq!(all[0].toolchain, Some(("t".to_owned(), "2".to_owned())));
        assert_eq!(
            (all[1].name.as_str(), all[1].toolchain.as_ref()),
            ("b", None)
        );
    }

    #[test]
    fn so_many_names_and_no_more() {
        let roll = Roll::default();
        let waiting = roll.asks("waits", ("t", "1"), Millis(0), Millis(0));
        let last = i64::try_from(LIMIT).unwrap() + 50;
        for n in 0..=last {
            roll.heard(&format!("agent-{n}"), Millis(n), Millis(n));
        }
        let last = format!("agent-{last}");
        let all = roll.list();
        assert_eq!(all.len(), LIMIT);
        assert!(all.iter().any(|e| e.name == "waits") && all.iter().any(|e| e.name == last));
        drop(waiting);
    }
}
