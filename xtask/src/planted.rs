//! Plants each bug of a list in a copy of the sources; the simulation must find it.

mod bugs;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::simulate::{self, Output};
use crate::workspace;
use bugs::{BUGS, Bug};

/// So many seeds are played before a bug counts as not found.
const SEEDS: u64 = 2000;

/// Plants the bugs whose names contain `filter`, one at a time.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    let filter = arguments.first().and_then(|f| f.to_str());
    let filter = filter.unwrap_or_default();
    let (root, target) = (workspace::root()?, workspace::target()?);
    // Always the same place, so that cargo knows again what it has compiled there.
    let copy = target.join("planted");
    copy_sources(root, &copy)?;
    let arguments = ["--seeds".into(), SEEDS.to_string().into()];
    let began = Instant::now();
    if !simulate::play(&copy, &target, &arguments, Output::Hidden)?.success() {
        bail!("the simulation does not hold as it is: see cargo xtask simulate");
    }
    let (mut planted, mut missed) = (0, Vec::new());
    for bug in BUGS.iter().filter(|bug| bug.name.contains(filter)) {
        let path = copy.join(bug.file);
        let good = read(&path)?;
        fs::write(&path, bug.plant(&good)?)
            .with_context(|| format!("unable to write {}", path.display()))?;
        let played = simulate::play(&copy, &target, &arguments, Output::Hidden);
        fs::write(&path, good).with_context(|| format!("unable to write {}", path.display()))?;
        let is_found = !played
            .with_context(|| format!("bug {}", bug.name))?
            .success();
        planted += 1;
        let word = if is_found { "found" } else { "NOT FOUND" };
        println!("{word:9}  {}: {}", bug.name, bug.sentence);
        if !is_found {
            missed.push(bug.name);
        }
    }
    if planted == 0 {
        bail!("no planted bug has a name that contains {filter:?}");
    }
    let seconds = began.elapsed().as_secs();
    if missed.is_empty() {
        println!("planted bugs: all {planted} found in {seconds} s");
        Ok(())
    } else {
        println!(
            "planted bugs: {} of {planted} NOT found ({}) in {seconds} s",
            missed.len(),
            missed.join(", ")
        );
        bail!("the simulation misses bugs");
    }
}

impl Bug {
    /// The source with the bug in it.
    fn plant(&self, source: &str) -> Result<String> {
        let count = source.matches(self.old).count();
        if count != 1 {
            bail!(
                "planted bug {}: {} holds its old text {count} times, not once; mend the list in \
                 xtask/src/planted/bugs.rs",
                self.name,
                self.file,
            );
        }
        Ok(source.replace(self.old, self.new))
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("unable to read {}", path.display()))
}

/// Makes `copy` hold the sources that git knows, and nothing else but what was compiled there.
fn copy_sources(root: &Path, copy: &Path) -> Result<()> {
    let listed = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .args(["Cargo.toml", "Cargo.lock", ".cargo", "crates", "xtask"])
        .current_dir(root)
        .output()
        .context("unable to run git")?;
    if !listed.status.success() {
        bail!(
            "git cannot list the sources: {}",
            String::from_utf8_lossy(&listed.stderr)
        );
    }
    let mut kept = HashSet::new();
    for name in listed.stdout.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let name = String::from_utf8_lossy(name).into_owned();
        let (from, to) = (root.join(&name), copy.join(&name));
        if !from.is_file() {
            continue;
        }
        kept.insert(to.clone());
        let bytes = fs::read(&from).with_context(|| format!("unable to read {name}"))?;
        // One that is as it was keeps its time, so that cargo does not compile it again.
        if fs::read(&to).is_ok_and(|there| there == bytes) {
            continue;
        }
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("unable to make {}", folder.display()))?;
        }
        fs::write(&to, bytes).with_context(|| format!("unable to write {}", to.display()))?;
    }
    remove_others(copy, &kept).with_context(|| format!("unable to tidy {}", copy.display()))
}

/// Removes the files that are not kept: sources that are gone since the last time.
fn remove_others(folder: &Path, kept: &HashSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            remove_others(&path, kept)?;
        } else if !kept.contains(&path) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bug_can_still_be_planted() {
        assert!(BUGS.len() >= 10);
        for bug in BUGS {
            let good = read(&workspace::root().unwrap().join(bug.file)).unwrap();
            let bad = bug.plant(&good).unwrap();
            assert_ne!(good, bad, "{}", bug.name);
        }
        let mut names: Vec<_> = BUGS.iter().map(|bug| bug.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), BUGS.len(), "each has a name of its own");
    }

    #[test]
    fn the_copy_holds_what_the_sources_hold_now() {
        let copy = tempfile::tempdir().unwrap();
        copy_sources(workspace::root().unwrap(), copy.path()).unwrap();
        let (left, changed) = (
            copy.path().join("crates/left.rs"),
            copy.path().join("Cargo.toml"),
        );
        fs::write(&left, "gone since").unwrap();
        fs::write(&changed, "planted").unwrap();
        copy_sources(workspace::root().unwrap(), copy.path()).unwrap();
        assert!(!left.exists());
        assert_ne!(fs::read(&changed).unwrap(), b"planted");
    }

    #[test]
    fn a_bug_whose_place_is_gone_is_an_error() {
        let error = BUGS[0].plant("fn main() {}").unwrap_err().to_string();
        assert!(
            error.contains(BUGS[0].name) && error.contains("0 times"),
            "{error}"
        );
    }
}
