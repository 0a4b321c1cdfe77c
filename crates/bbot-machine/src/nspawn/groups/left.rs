//! Groups that are left behind: of agents that are gone, and of this one's runs that are over.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{found, remove};
use crate::owner::Process;

/// How a container's group is called.
const PREFIX: &str = "bbot-nspawn-";

/// The names of this process's groups whose runs are not over. Locks do not tell: a new group has
/// none for a moment, and there may be none to be had.
static LIVE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

pub(super) fn live() -> MutexGuard<'static, BTreeSet<String>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the groups of runs that are over: what agents which are gone have left, and what this one
/// could not remove. Those of others stay.
pub(in super::super) fn sweep() {
    let mut removed = BTreeSet::new();
    for hierarchy in found() {
        let mut parents = vec![hierarchy.own.clone()];
        parents.extend(hierarchy.own.parent().map(Path::to_owned));
        for parent in parents {
            if parent.starts_with(&hierarchy.mount) {
                removed.extend(sweep_in(&parent, start_time));
            }
        }
    }
    // One container has a group in each hierarchy.
    if !removed.is_empty() {
        let names: Vec<String> = removed.into_iter().collect();
        tracing::info!("removed control groups, left behind: {}", names.join(", "));
    }
}

/// The names of the groups that are gone now.
pub(super) fn sweep_in(parent: &Path, start_time: impl Fn(u32) -> Option<u64>) -> Vec<String> {
    let mut removed = Vec::new();
    let Ok(entries) = fs::read_dir(parent) else {
        return removed;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some((name, (pid, started))) = name.to_str().and_then(|n| Some((n, owner(n)?))) else {
            continue;
        };
        let owner_lives = start_time(pid) == Some(started);
        let is_locked =
            || File::open(entry.path()).is_ok_and(|directory| directory.try_lock().is_err());
        // Tried last: a lock that is tried is held for a moment, in which its owner does not get it.
        if !is_left(owner_lives, own_run(name)) || is_locked() {
            continue;
        }
        match remove(&entry.path()) {
            Ok(()) => removed.push(name.to_owned()),
            Err(error) => tracing::warn!(
                "unable to remove the control group {}, left behind: {error}",
                entry.path().display()
            ),
        }
    }
    removed
}

/// Where a run of this process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    GoesOn,
    Over,
}

/// Whether a group that nobody has locked is left behind. `owner_lives`: the process that its name
/// speaks of is there; `own_run`: that is this process.
pub(super) fn is_left(owner_lives: bool, own_run: Option<Run>) -> bool {
    match own_run {
        Some(run) => run == Run::Over,
        None => !owner_lives,
    }
}

/// Where the run of a group stands, if it is one of this process.
fn own_run(name: &str) -> Option<Run> {
    let pid = std::process::id();
    if owner(name)? != (pid, start_time(pid)?) {
        return None;
    }
    if live().contains(name) {
        Some(Run::GoesOn)
    } else {
        Some(Run::Over)
    }
}

pub(super) fn fresh_name() -> String {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let pid = std::process::id();
    let started = start_time(pid).unwrap_or_default();
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{pid}-{started}-{run}")
}

/// The process that a group's name speaks of, and when it started.
pub(super) fn owner(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let owner = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let _run: u64 = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some(owner)
}

/// When a process started, in the kernel's ticks since it booted; None: there is no such process.
pub(super) fn start_time(pid: u32) -> Option<u64> {
    match crate::owner::process(pid) {
        Process::Running { start_time } => Some(start_time),
        Process::Ended | Process::Unknown => None,
    }
}
