//! What the worker knows of build systems: one file for each.
//!
//! To add one, write its file, with a type that is a [`BuildSystem`], and put it into [`ALL`] at the place where it is
//! to be looked for.

mod autoconf;
mod cmake;
mod make;
mod makefile;
mod scripts;

use std::fmt;
use std::io;
use std::path::Path;
use std::process::Command;

use crate::arguments::Arguments;
use crate::command::{Shell, Stop};

/// A part of a build, with a status and a log of its own. In their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Finds out what the system has.
    Configure,
    /// Compiles.
    Update,
    /// Runs the package's tests.
    Test,
}

impl Operation {
    pub(crate) const ALL: [Self; 3] = [Self::Configure, Self::Update, Self::Test];

    /// The name in results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::Update => "update",
            Self::Test => "test",
        }
    }
}

/// How packages of one kind are built.
pub(crate) trait BuildSystem: fmt::Debug + Sync {
    /// What people call it.
    fn name(&self) -> &'static str;

    /// What people call the way in which this source tree is built.
    fn label(&self, _source: &Path) -> &'static str {
        self.name()
    }

    /// Whether this source tree is built with it.
    fn is_for(&self, source: &Path) -> bool;

    /// Performs an operation: runs its commands in the shell, which ends it at the first that fails.
    fn perform(
        &self,
        operation: Operation,
        arguments: &Arguments,
        shell: &mut Shell<'_>,
    ) -> Result<(), Stop>;
}

/// Those that are known, in the order in which they are looked for: what a package says itself goes first. Packages that have
/// several others keep `configure` for everyone and the rest for those who ask for it.
const ALL: [&dyn BuildSystem; 4] = [
    &scripts::Scripts,
    &autoconf::Autoconf,
    &cmake::CMake,
    &make::Make,
];

/// The build system of a source tree.
pub(crate) fn detect(source: &Path) -> Option<&'static dyn BuildSystem> {
    ALL.into_iter().find(|system| system.is_for(source))
}

/// The names of all, for a message.
pub(crate) fn names() -> String {
    let names: Vec<&str> = ALL.iter().map(|system| system.name()).collect();
    names.join(", ")
}

/// A command with arguments.
fn command<S: AsRef<std::ffi::OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Runs the first of these targets that the makefile has, and says so when it has none.
fn make_test(shell: &mut Shell<'_>, variables: &[String], directory: &Path) -> Result<(), Stop> {
    for target in ["check", "test"] {
        if makefile::surely_has(directory, target) {
            return shell.run(make_command(target, variables), directory);
        }
        let probe = command(
            "make",
            ["-n", target]
                .into_iter()
                .chain(variables.iter().map(String::as_str)),
        );
        match shell.probe(probe, directory) {
            // Any other failure will show itself when the target is made.
            Ok((output, false)) if lacks_target(&output, target) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                shell.say("error: make is not installed in this machine");
                return Err(Stop(bbot_manifest::Status::Error));
            }
            _ => return shell.run(make_command(target, variables), directory),
        }
    }
    shell.say(
        "info: the makefile has neither a target 'check' nor a target 'test': nothing to test",
    );
    Ok(())
}

fn make_command(target: &str, variables: &[String]) -> Command {
    let mut make = command("make", [target]);
    make.args(variables);
    make
}

/// Whether make says that it does not know how to make this target (GNU make 3.8 quotes with a backtick).
fn lacks_target(output: &str, target: &str) -> bool {
    let text = format!("No rule to make target '{target}'.");
    output.replace('`', "'").contains(&text) || output.contains("don't know how to make")
}

/// A variable as an argument.
fn assignment((name, value): &(String, String)) -> String {
    format!("{name}={value}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn source_trees_are_told_apart() {
        let cases: [(&[&str], Option<&str>); 9] = [
            (&[".bbot/test", "configure"], Some("scripts in .bbot/")),
            (&[".bbot/notes", "Makefile"], Some("make")),
            (
                &["configure", "CMakeLists.txt", "Makefile"],
                Some("autoconf"),
            ),
            (&["configure.ac", "Makefile.am"], Some("autoconf")),
            (&["CMakeLists.txt", "Makefile"], Some("CMake")),
            (&["Makefile"], Some("make")),
            (&["GNUmakefile"], Some("make")),
            (&["makefile"], Some("make")),
            (&["README"], None),
        ];
        for (files, expected) in cases {
            let dir = tempfile::tempdir().unwrap();
            for file in files {
                let file = dir.path().join(file);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, "").unwrap();
            }
            assert_eq!(
                detect(dir.path()).map(BuildSystem::name),
                expected,
                "{files:?}"
            );
        }
    }

    #[test]
    fn a_missing_target_is_told_from_other_failures() {
        assert!(lacks_target(
            "make: *** No rule to make target 'check'.  Stop.\n",
            "check"
        ));
        assert!(lacks_target(
            "make: *** No rule to make target `check'.  Stop.\n",
            "check"
        ));
        assert!(!lacks_target(
            "make: *** No rule to make target 'x.c', needed by 'check'.  Stop.\n",
            "check"
        ));
    }
}
