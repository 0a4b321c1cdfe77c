//! Cleaning up taps and rules whose agents are gone.
//!
//! A tap goes with its machine: it lives as long as its descriptor. Rules do not. Both carry the
//! random word of their owner record, the rules as the name of their tables, the tap as its alias;
//! only what carries the word of a record whose owner is gone is ever taken away.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::attached::{in_words, record_of};
use super::{InterfaceName, command, host, rules};
use crate::owner::{Examined, OwnerError, Reason, examine, remove_record};

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Swept {
    /// The names of the taps whose rules, and which, if they were there, are gone now, and why.
    pub removed: Vec<(String, Reason)>,
    /// The taps whose owners live.
    pub kept: Vec<Kept>,
    /// What could not be looked at or taken away; the rest has been swept nevertheless.
    pub problems: Vec<Problem>,
}

/// A tap in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its name.
    pub tap: String,
    /// Its owner, for people.
    pub owner: String,
}

/// A tap that a sweep could not deal with.
#[derive(Debug, thiserror::Error)]
#[error("unable to clean up what tap {tap} has left")]
pub struct Problem {
    /// Its name.
    pub tap: String,
    /// What went wrong.
    #[source]
    pub source: io::Error,
}

/// The lines of a record that are about the network.
pub(super) fn more(table: &str) -> io::Result<String> {
    Ok(format!(
        "table: {table}\nnetwork-namespace: {}\n",
        namespace()?
    ))
}

/// The number of this thread's network namespace.
fn namespace() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/thread-self/ns/net")?.ino())
}

/// Takes away what agents that are gone have left of their machines' places on bridges: rules, and
/// taps that are still there. `records` is normally [`super::RECORDS`]. Safe to run at any time, by
/// any number of processes; without the right to change the network it finds problems, if anything.
/// Blocks for as long as it takes.
#[must_use]
pub fn sweep(records: &Path) -> Swept {
    let mut swept = Swept::default();
    let names = match names(records) {
        Ok(names) => names,
        Err(source) => {
            swept.problems.push(Problem {
                tap: records.display().to_string(),
                source,
            });
            return swept;
        }
    };
    for tap in names {
        match sweep_one(records, &tap) {
            Ok(Outcome::Nothing) => {}
            Ok(Outcome::Removed(reason)) => {
                tracing::info!(
                    tap,
                    "took away the rules of tap {tap}, left behind: {reason}"
                );
                swept.removed.push((tap, reason));
            }
            Ok(Outcome::Kept(owner)) => swept.kept.push(Kept { tap, owner }),
            Err(source) => swept.problems.push(Problem { tap, source }),
        }
    }
    swept
}

/// The names of the taps that have records.
fn names(records: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(records) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        if let Some(tap) = name
            .to_str()
            .and_then(|name| name.strip_prefix('.')?.strip_suffix(".owner"))
        {
            names.push(tap.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

enum Outcome {
    Nothing,
    Removed(Reason),
    Kept(String),
}

fn sweep_one(records: &Path, tap: &str) -> io::Result<Outcome> {
    let record = record_of(records, tap);
    match examine(&records.join(tap)).map_err(|error| in_words(&error))? {
        Examined::Nothing => Ok(Outcome::Nothing),
        // The tap and its rules are made later.
        Examined::Unfilled { .. } => {
            remove_record(&record).map_err(|error| in_words(&error))?;
            Ok(Outcome::Nothing)
        }
        Examined::Kept(owner) => Ok(Outcome::Kept(owner)),
        Examined::Gone { reason, text, .. } => {
            let malformed = |reason: &str| {
                in_words(&OwnerError::Record {
                    path: record.clone(),
                    reason: reason.to_owned(),
                })
            };
            let name: InterfaceName = tap.parse().map_err(io::Error::other)?;
            let field = |name: &str| {
                text.lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            };
            let table = field("table")
                .filter(|table| is_table(table))
                .ok_or_else(|| malformed("it names no table of ours"))?;
            let elsewhere = field("network-namespace").and_then(|number| number.parse().ok())
                != Some(namespace()?);
            if elsewhere && reason != Reason::OtherBoot {
                // Its rules cannot be reached from here, and perhaps are gone with their namespace.
                return Ok(Outcome::Kept(
                    "an agent in another network namespace".to_owned(),
                ));
            }
            // Of another boot, or of another namespace then, nothing is left but the record.
            if reason != Reason::OtherBoot {
                command::run("nft", &["-f", "-"], &rules::unload(table))?;
                delete_tap(name, table)?;
            }
            remove_record(&record).map_err(|error| in_words(&error))?;
            Ok(Outcome::Removed(reason))
        }
    }
}

/// Deletes the tap if it is still there, and that one: another may have got its name.
pub(super) fn delete_tap(name: InterfaceName, table: &str) -> io::Result<()> {
    let is_ours = |link: &serde_json::Value| link["ifalias"] == table;
    if !host::link(name)?.as_ref().is_some_and(is_ours) {
        return Ok(());
    }
    match command::run("ip", &["link", "delete", "dev", name.as_str()], "") {
        // It went by itself meanwhile.
        Err(_) if host::link(name)?.is_none() => Ok(()),
        other => other.map(drop),
    }
}

/// `bbot-` and sixteen hexadecimal digits.
fn is_table(text: &str) -> bool {
    text.strip_prefix("bbot-").is_some_and(|word| {
        word.len() == 16 && word.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_tables_are_named() {
        assert!(is_table("bbot-0123456789abcdef"));
        for text in [
            "",
            "bbot-",
            "filter",
            "bbot-0123456789abcdeF",
            "bbot-0123456789abcdef0",
        ] {
            assert!(!is_table(text), "{text}");
        }
        let text = more("bbot-0123456789abcdef").unwrap();
        assert!(
            text.ends_with('\n') && text.starts_with("table: bbot-0"),
            "{text}"
        );
    }
}
