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

/// How many inputs are made longer: few, since they cost the time of a hundred short ones.
const GROWN: usize = 2;

/// Adds long inputs to a copy of a corpus, which a target would not come to by itself in its time: the longest that are there,
/// each once with all of it, and once with a byte of its longest line, again and again, to half of `longest`.
pub(super) fn grow(inputs: &Path, longest: usize) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for name in names(inputs)? {
        let path = inputs.join(&name);
        all.push(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    all.sort_unstable_by_key(|input| std::cmp::Reverse(input.len()));
    for (number, input) in all.iter().take(GROWN).enumerate() {
        for (way, grown) in [
            ("again", again(input, longest / 2)),
            ("wide", wide(input, longest / 2)),
        ] {
            let path = inputs.join(format!("{way}-{number}"));
            fs::write(&path, grown).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(())
}

fn again(input: &[u8], length: usize) -> Vec<u8> {
    input.iter().copied().cycle().take(length).collect()
}

fn wide(input: &[u8], length: usize) -> Vec<u8> {
    let lines = input.split_inclusive(|byte| *byte == b'\n');
    let Some(longest) = lines.max_by_key(|line| line.len()) else {
        return Vec::new();
    };
    // Past its middle: of a name and a value that is the value.
    let at = longest.as_ptr().addr() - input.as_ptr().addr() + longest.len() * 3 / 4;
    let (front, back) = input.split_at(at);
    let more = length.saturating_sub(input.len());
    [front, &vec![back[0]; more], back].concat()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_grow_to_half_of_the_longest() {
        let dir = tempfile::tempdir().unwrap();
        let input = b": 1\nname: value\n\n";
        fs::write(dir.path().join("a"), input).unwrap();
        fs::write(dir.path().join("b"), b"").unwrap();
        grow(dir.path(), 2000).unwrap();
        let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
        assert_eq!(read("a"), input);
        let again = read("again-0");
        assert_eq!((again.len(), &again[17..34]), (1000, &input[..]));
        let wide = String::from_utf8(read("wide-0")).unwrap();
        assert_eq!(wide.len(), 1000);
        assert!(
            wide.starts_with(": 1\nname: valuu") && wide.ends_with("uue\n\n"),
            "{wide}"
        );
        assert_eq!((read("again-1").len(), read("wide-1").len()), (0, 0));
    }
}
