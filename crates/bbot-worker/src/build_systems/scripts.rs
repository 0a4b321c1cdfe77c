//! Packages that say themselves how they are built: programs in `.bbot/`, named after the operations.
//!
//! For what no build system here knows (`cargo`, `npm`, a language's own), and for packages that want more than theirs would do.

use std::path::{Path, PathBuf};

use super::{BuildSystem, Operation, assignment, command};
use crate::arguments::Arguments;
use crate::command::{Shell, Stop};

/// Where they are, below the sources.
const FOLDER: &str = ".bbot";

/// How many processes at once the machine is good for, as the scripts' environment says it.
const JOBS: &str = "BBOT_JOBS";

#[derive(Debug)]
pub(super) struct Scripts;

impl BuildSystem for Scripts {
    fn name(&self) -> &'static str {
        "scripts in .bbot/"
    }

    fn label(&self, _source: &Path) -> &'static str {
        "its own scripts"
    }

    fn is_for(&self, source: &Path) -> bool {
        Operation::ALL
            .into_iter()
            .any(|operation| source.join(script_of(operation)).is_file())
    }

    fn perform(
        &self,
        operation: Operation,
        arguments: &Arguments,
        shell: &mut Shell<'_>,
    ) -> Result<(), Stop> {
        let source = shell.places.source.clone();
        let script = script_of(operation);
        if !source.join(&script).is_file() {
            shell.say(&format!("info: no {}: nothing to do", script.display()));
            if operation == Operation::Configure {
                for option in &arguments.options {
                    shell.say(&format!("info: left out, it is for that: {option}"));
                }
            }
            return Ok(());
        }
        let script = Path::new(".").join(script);
        let mut run = if is_executable(&source.join(&script)) {
            command(&script.to_string_lossy(), [""; 0])
        } else {
            // An archive may have lost the script's right to be run.
            command("sh", [&script])
        };
        if operation == Operation::Configure {
            run.args(&arguments.options);
            for variable in &arguments.variables {
                shell.say(&format!(
                    "info: in the environment: {}",
                    assignment(variable)
                ));
            }
        }
        run.env(JOBS, shell.jobs.to_string())
            .envs(arguments.variables.iter().cloned());
        shell.run(run, &source)
    }
}

fn script_of(operation: Operation) -> PathBuf {
    Path::new(FOLDER).join(operation.name())
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|metadata| metadata.permissions().mode() & 0o111 != 0)
}
