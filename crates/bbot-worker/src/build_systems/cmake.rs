//! Packages with a `CMakeLists.txt`.

use std::path::Path;

use super::{BuildSystem, Operation, assignment, command};
use crate::arguments::Arguments;
use crate::command::{Shell, Stop};

#[derive(Debug)]
pub(super) struct CMake;

impl BuildSystem for CMake {
    fn name(&self) -> &'static str {
        "CMake"
    }

    fn is_for(&self, source: &Path) -> bool {
        source.join("CMakeLists.txt").is_file()
    }

    fn perform(
        &self,
        operation: Operation,
        arguments: &Arguments,
        shell: &mut Shell<'_>,
    ) -> Result<(), Stop> {
        let (source, out) = (shell.places.source.clone(), shell.places.out.clone());
        let jobs = shell.jobs.to_string();
        match operation {
            Operation::Configure => {
                let mut cmake = command(
                    "cmake",
                    [
                        "-S".as_ref(),
                        source.as_os_str(),
                        "-B".as_ref(),
                        out.as_os_str(),
                    ],
                );
                cmake.args(&arguments.options);
                cmake.args(
                    arguments
                        .settings()
                        .map(|setting| format!("-D{}", assignment(setting))),
                );
                // CMake reads compilers and their options from the environment, once, when it configures.
                for tool in arguments.tools() {
                    shell.say(&format!("info: in the environment: {}", assignment(tool)));
                }
                cmake.envs(arguments.tools().cloned());
                shell.run(cmake, &out)
            }
            Operation::Update => {
                let mut cmake = command("cmake", ["--build"]);
                cmake.arg(&out).args(["--parallel", &jobs]);
                shell.run(cmake, &out)
            }
            Operation::Test => shell.run(
                command("ctest", ["--output-on-failure", "--parallel", &jobs]),
                &out,
            ),
        }
    }
}
