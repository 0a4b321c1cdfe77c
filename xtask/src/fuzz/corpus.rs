//! A target's corpus: the inputs that it begins with.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// The longest input that is kept, in bytes: a corpus is read by people too, and by git.
const LONGEST: u64 = 2048;

/// The most inputs that are kept for a target: those found anew come behind those that are there, the shorter ones first.
const MOST: usize = 80;

/// The names of the files in a folder; none when it is not there.
pub(super) fn names(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    if !folder.exists() {
        return Ok(BTreeSet::new());
    }
    let failed = || format!("cannot read {}", folder.display());
    fs::read_dir(folder)
        .with_context(failed)?
        .map(|entry| {
            Ok(entry
                .with_context(failed)?
                .file_name()
                .to_string_lossy()
                .into_owned())
        })
        .collect()
}

/// A copy that a target may fill.
pub(super) fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for name in names(from)? {
        let source = from.join(&name);
        fs::copy(&source, to.join(&name))
            .with_context(|| format!("cannot copy {}", source.display()))?;
    }
    Ok(())
}

/// Makes a corpus of the fewest of `inputs` that reach all code they reach together.
pub(super) fn keep(mut target: Command, inputs: &Path, corpus: &Path) -> anyhow::Result<()> {
    let merged = inputs.with_file_name("merged");
    fs::create_dir_all(&merged).with_context(|| format!("cannot make {}", merged.display()))?;
    let status = target
        .args(["-set_cover_merge=1", "-use_counters=0"])
        .args([&merged, inputs])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot run a target to merge its corpus")?;
    ensure!(
        status.success(),
        "the corpus {} cannot be merged ({status})",
        corpus.display()
    );
    let before = names(corpus)?;
    let mut found = Vec::new();
    for name in names(&merged)? {
        let path = merged.join(&name);
        let size = fs::metadata(&path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .len();
        if size <= LONGEST || before.contains(&name) {
            found.push((!before.contains(&name), size, name));
        }
    }
    found.sort_unstable();
    let kept: BTreeSet<String> = found
        .into_iter()
        .take(MOST)
        .map(|(_, _, name)| name)
        .collect();
    fs::create_dir_all(corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
    for name in &kept {
        let to = corpus.join(name);
        fs::copy(merged.join(name), &to)
            .with_context(|| format!("cannot write {}", to.display()))?;
    }
    for name in before.difference(&kept) {
        let path = corpus.join(name);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}
