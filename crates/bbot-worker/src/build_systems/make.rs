//! Packages with nothing but a makefile.

use std::path::Path;

use super::{BuildSystem, Operation, assignment, command, make_test, makefile};
use crate::arguments::Arguments;
use crate::command::{Shell, Stop};

#[derive(Debug)]
pub(super) struct Make;

impl BuildSystem for Make {
    fn name(&self) -> &'static str {
        "make"
    }

    fn is_for(&self, source: &Path) -> bool {
        makefile::NAMES
            .iter()
            .any(|file| source.join(file).is_file())
    }

    fn perform(
        &self,
        operation: Operation,
        arguments: &Arguments,
        shell: &mut Shell<'_>,
    ) -> Result<(), Stop> {
        let source = shell.places.source.clone();
        let variables: Vec<String> = arguments.variables.iter().map(assignment).collect();
        match operation {
            Operation::Configure => {
                shell.say("info: a package with nothing but a makefile: nothing to configure");
                // They are meant for `configure`; make would take them for its own.
                for option in &arguments.options {
                    shell.say(&format!("info: left out, make has no use for it: {option}"));
                }
                Ok(())
            }
            Operation::Update => {
                let mut make = command("make", [format!("-j{}", shell.jobs)]);
                make.args(&variables);
                shell.run(make, &source)
            }
            Operation::Test => make_test(shell, &variables, &source),
        }
    }
}
