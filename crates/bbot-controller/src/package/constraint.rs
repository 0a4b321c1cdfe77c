//! Target configurations that a package puts in or leaves out by name: `build-exclude: *-msvc_14**/i?86-** ; Linker crash.`
//!
//! They are looked at in their order, and the first whose patterns match decides; where none does, the configuration is built.
//! Patterns are matched as the era of the buildtab's line has it.

use bbot_manifest::split_comment;

use super::plan::reason;
use crate::pattern::{self, Matching};

/// One value of `build-include` or `build-exclude`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    /// Whether what matches is left out.
    pub excludes: bool,
    /// Pattern of names of target configurations.
    configuration: String,
    /// Pattern of targets; none: any.
    target: Option<String>,
    /// What is said to whom it leaves out.
    reason: String,
}

/// Longest pattern, in bytes.
const LONGEST: usize = 256;

/// A value that is no constraint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// There is no pattern.
    #[error("expected <configuration-pattern>[/<target-pattern>]")]
    Empty,
    /// A pattern is too long.
    #[error("longer than {LONGEST} characters")]
    Long,
}

impl Constraint {
    /// Reads the value of this name (`build-exclude`, `<configuration>-build-include`).
    ///
    /// # Errors
    /// A pattern is missing or too long.
    pub fn parse(name: &str, value: &str, excludes: bool) -> Result<Self, ConstraintError> {
        let (text, comment) = split_comment(value);
        let text = text.trim();
        let (configuration, target) = match text.split_once('/') {
            Some((configuration, target)) => (configuration, Some(target)),
            None => (text, None),
        };
        if configuration.is_empty() || target == Some("") {
            return Err(ConstraintError::Empty);
        }
        if text.len() > LONGEST {
            return Err(ConstraintError::Long);
        }
        Ok(Self {
            excludes,
            configuration: configuration.to_owned(),
            target: target.map(str::to_owned),
            reason: reason(name, text, &comment),
        })
    }

    fn matches(&self, matching: Matching, name: &str, target: &str) -> bool {
        let of_target = |pattern: &String| pattern::matches(matching, pattern, target);
        pattern::matches(matching, &self.configuration, name)
            && self.target.as_ref().is_none_or(of_target)
    }
}

/// Why a target configuration is left out; `None`: it is not.
#[must_use]
pub fn why_not(
    constraints: &[Constraint],
    matching: Matching,
    name: &str,
    target: &str,
) -> Option<String> {
    let first = constraints
        .iter()
        .find(|constraint| constraint.matches(matching, name, target))?;
    first.excludes.then(|| first.reason.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(values: &[&str]) -> Vec<Constraint> {
        let one = |value: &&str| match value.strip_prefix('+') {
            Some(value) => Constraint::parse("build-include", value, false).unwrap(),
            None => Constraint::parse("build-exclude", value, true).unwrap(),
        };
        values.iter().map(one).collect()
    }

    /// The examples of the package manager's manual; `+` marks an inclusion.
    #[test]
    fn examples() {
        let linker = &["*-msvc_14**/i?86-** ; Linker crash."];
        let only_linux = &["+linux**", "** ; Only supported on Linux."];
        for (values, name, target, is_built) in [
            (&["windows**"][..], "windows_10-msvc_15", "t", false),
            (&["macos*-gcc**"], "macos_10.13-gcc_8.1-O3", "t", false),
            (&["linux-gcc*-*"], "linux-gcc_8.1", "t", false),
            (&["linux-gcc*-*"], "linux-gcc_8.1-O3", "t", false),
            (&["linux-gcc*-*"], "linux_debian-gcc_8.1-O3", "t", true),
            (
                linker,
                "windows_10-msvc_14.3-O2",
                "i686-microsoft-win32-msvc14.3",
                false,
            ),
            (
                linker,
                "windows_10-msvc_14.3-O2",
                "x86_64-microsoft-win32-msvc14.3",
                true,
            ),
            (
                linker,
                "windows_10-msvc_15",
                "i686-microsoft-win32-msvc15",
                true,
            ),
            (only_linux, "linux_debian_12-gcc_13", "t", true),
            (only_linux, "macos_11-gcc_11.2_homebrew", "t", false),
            (&[], "anything", "t", true),
        ] {
            let why = why_not(&read(values), Matching::Components, name, target);
            assert_eq!(
                why.is_none(),
                is_built,
                "{values:?} {name} {target}: {why:?}"
            );
        }
        assert_eq!(
            why_not(&read(linker), Matching::Components, "w-msvc_14", "i686-w").as_deref(),
            Some("\"build-exclude: *-msvc_14**/i?86-**\": Linker crash.")
        );
    }

    #[test]
    fn a_line_of_2017_is_matched_in_its_own_way() {
        for (pattern, name, is_excluded) in [
            ("linux*", "linux-gcc-O2", true),
            ("linux-gcc*-*", "linux-gcc_8.1", false),
            ("[l]*", "linux", false),
        ] {
            let why = why_not(&read(&[pattern]), Matching::Plain, name, "t");
            assert_eq!(why.is_some(), is_excluded, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_wrong() {
        for value in ["", "; why", "/t", "c/", "  "] {
            assert_eq!(
                Constraint::parse("build-exclude", value, true),
                Err(ConstraintError::Empty),
                "{value:?}"
            );
        }
        assert_eq!(
            Constraint::parse("build-exclude", &"a".repeat(257), true),
            Err(ConstraintError::Long)
        );
    }

    proptest! {
        #[test]
        fn the_first_that_matches_decides(
            values in proptest::collection::vec(("[ab*]{1,3}(-[ab*]{1,2})?", any::<bool>()), 0..6),
            name in "[ab]{1,2}(-[ab]{1,2})?",
        ) {
            let all: Vec<Constraint> = values.iter().map(|(p, e)| Constraint::parse("build-exclude", p, *e).unwrap()).collect();
            let first = values.iter().find(|(p, _)| pattern::matches(Matching::Components, p, &name));
            let why = why_not(&all, Matching::Components, &name, "t");
            prop_assert_eq!(why.is_some(), first.is_some_and(|(_, excludes)| *excludes));
        }
    }
}
