//! What can be read out of a makefile without make.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;

/// The names that GNU make looks for, in its order.
pub(super) const NAMES: [&str; 3] = ["GNUmakefile", "makefile", "Makefile"];

/// The largest makefile that is read here, in bytes; make reads any.
const LARGEST: u64 = 64 * 1024;

/// Whether it is plain that the makefile in this directory has a rule for a target, so that make need not be asked. Of most
/// makefiles that are written by hand it is; of those with conditions, or that run make again, it never is.
pub(super) fn surely_has(directory: &Path, target: &str) -> bool {
    let first = NAMES
        .iter()
        .map(|name| directory.join(name))
        .find(|path| path.exists());
    let mut text = String::new();
    first
        .and_then(|path| open(&path).ok())
        .and_then(|file| file.take(LARGEST).read_to_string(&mut text).ok())
        .is_some_and(|length| (length as u64) < LARGEST && has_rule(&text, target))
}

/// A regular file alone: a build has made it, and it is not the build's user who opens it.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn has_rule(text: &str, target: &str) -> bool {
    // What could make a line that looks like a rule something else, or answer for the target in the name of another make.
    const OTHERWISE: [&str; 8] = [
        "if", "else", "endif", "define", "endef", "override", "undefine", "export",
    ];
    if text.contains("MAKE") || text.contains(".RECIPEPREFIX") || text.contains("make") {
        return false;
    }
    let mut goes_on = false;
    let mut is_found = false;
    for line in text.lines() {
        let is_first = !std::mem::replace(&mut goes_on, line.ends_with('\\'));
        if !is_first || line.starts_with('\t') {
            continue;
        }
        let word = line.split_whitespace().next().unwrap_or_default();
        if OTHERWISE.iter().any(|other| word.starts_with(other)) {
            return false;
        }
        is_found |= is_rule(line, target);
    }
    is_found
}

/// Whether this line begins a rule, and not a variable, for the target.
fn is_rule(line: &str, target: &str) -> bool {
    let Some((targets, rest)) = line.split_once(':') else {
        return false;
    };
    !targets.contains(['=', '$', '#', '%', '(', ' '])
        && targets == target
        && !rest.contains(['=', ':', '$', '%'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn rules_are_told_from_what_looks_like_one() {
        for (text, expected) in [
            ("all:\n\t@date\n\ncheck:\n\t@date\n", true),
            ("check: program\n\t./program\n", true),
            ("A = 1 \\\n2\ncheck: a b\n", true),
            ("", false),
            ("all:\n\tcheck: x\n", false),
            ("checks:\n", false),
            ("check := 1\n", false),
            ("check: A = 1\n", false),
            ("check:: a\n", false),
            ("A = \\\ncheck: x\n", false),
            (".PHONY: check\n", false),
            ("ifdef X\ncheck:\nendif\n", false),
            ("  ifeq (1,1)\ncheck:\nendif\n", false),
            ("define X\ncheck:\nendef\n", false),
            ("check:\n\t$(MAKE) -C sub check\n", false),
            ("check:\n\tmake -C sub check\n", false),
            ("# check: this\n", false),
        ] {
            assert_eq!(has_rule(text, "check"), expected, "{text}");
        }
    }

    #[test]
    fn the_makefile_is_the_one_that_make_reads() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!surely_has(dir.path(), "test"));
        fs::write(dir.path().join("Makefile"), "test:\n").unwrap();
        assert!(surely_has(dir.path(), "test"));
        fs::write(dir.path().join("GNUmakefile"), "all:\n").unwrap();
        assert!(!surely_has(dir.path(), "test"));
        let long = format!("test:\n{}", "#\n".repeat(64 * 1024));
        fs::write(dir.path().join("GNUmakefile"), long).unwrap();
        assert!(!surely_has(dir.path(), "test"));
    }
}
