//! Startup mode: gets the task, chooses the environment, runs the build as a process of its own and answers for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::Context;
use bbot_manifest::{BuildResult, OperationResult, Status, Task};

use crate::ABNORMAL_AND_UPLOADED;
use crate::ahead::Ahead;
use crate::channel::{Channel, Delivery, Given, RUN_MANIFEST, TASK_MANIFEST};
use crate::command::{BASE_PATH, shown};
use crate::options::Options;
use crate::report;

/// Name of a result whose task could not be read; the agent puts the task's own in its place.
const UNKNOWN: (&str, &str) = ("unknown", "0");

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let channel = Channel::new(options.agent);
    if options.verbose > 0 {
        eprintln!("info: asking {} for a task", options.agent);
    }
    let mut ahead = None;
    let given = channel.ask_ahead(|is_saved| get_ready(&mut ahead, options, is_saved));
    let task = match Task::parse(&given.task, TASK_MANIFEST) {
        Ok(task) => task,
        Err(error) => {
            eprintln!("{error}");
            let what = format!("the task cannot be read:\n{error}\n");
            let result = failed(UNKNOWN.0, UNKNOWN.1, Status::Abnormal, what);
            return deliver(&channel, &result);
        }
    };
    match build(options, &given, &task, ahead) {
        Ok(Built::Reported(code)) => Ok(code),
        Ok(Built::NotAtAll(why)) => deliver(
            &channel,
            &failed(&task.name, &task.version, Status::Abort, why),
        ),
        Ok(Built::Died(how)) => deliver(
            &channel,
            &failed(&task.name, &task.version, Status::Abnormal, how),
        ),
        Err(error) => {
            let what = format!("error: {error:#}\n");
            deliver(
                &channel,
                &failed(&task.name, &task.version, Status::Abnormal, what),
            )
        }
    }
}

/// How the build process ended.
enum Built {
    /// It has uploaded its result.
    Reported(ExitCode),
    /// It was not started, for this reason.
    NotAtAll(String),
    /// It has left nothing.
    Died(String),
}

/// Has a build process ready before there is a task. It is not to be had where a script may prepare its environment
/// first; then, and when it cannot be made, one is started for the task.
fn get_ready(ahead: &mut Option<Ahead>, options: &Options, is_saved: bool) {
    match ready(ahead.take(), options, is_saved) {
        Ok(process) => *ahead = process,
        Err(error) => eprintln!("trace: no build process ahead of its task: {error:#}"),
    }
}

fn ready(ahead: Option<Ahead>, options: &Options, is_saved: bool) -> anyhow::Result<Option<Ahead>> {
    let mut process = match ahead {
        Some(process) => process,
        None if choose(&options.environments, None) != Ok(None) => return Ok(None),
        None => {
            let mut command = command(options, &own_directory(options)?, None, "")?;
            command.arg("--ahead");
            if is_saved {
                command.arg("--to-be-saved");
            }
            Ahead::start(command)?
        }
    };
    process.get_ready()?;
    Ok(Some(process))
}

fn build(
    options: &Options,
    given: &Given,
    task: &Task,
    ahead: Option<Ahead>,
) -> anyhow::Result<Built> {
    let script = match choose(&options.environments, task.environment.as_deref()) {
        Ok(script) => script,
        Err(why) => return Ok(Built::NotAtAll(why)),
    };
    match (ahead, &script) {
        (Some(ahead), None) => match ahead.build(given) {
            Ok(status) => return Ok(built(status)),
            Err(error) => eprintln!("trace: the build process that was there: {error}"),
        },
        (Some(ahead), Some(_)) => ahead.dismiss(),
        (None, _) => {}
    }
    let directory = own_directory(options)?;
    put(&directory.join(TASK_MANIFEST), Some(&given.task))?;
    put(&directory.join(RUN_MANIFEST), given.run.as_deref())?;
    let mut command = command(options, &directory, script.as_deref(), &task.target)?;
    if options.verbose > 0 {
        eprintln!("{}", shown(&command).trim_end());
    }
    let status = command.stdin(Stdio::null()).status().with_context(|| {
        let program = command.get_program().to_string_lossy();
        format!("cannot run {program}")
    })?;
    Ok(built(status))
}

/// The build directory, made if need be.
fn own_directory(options: &Options) -> anyhow::Result<PathBuf> {
    let directory = &options.build;
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    fs::canonicalize(directory).with_context(|| format!("cannot find {}", directory.display()))
}

/// The build process, by way of the environment script if there is one.
fn command(
    options: &Options,
    directory: &Path,
    script: Option<&Path>,
    target: &str,
) -> anyhow::Result<Command> {
    let worker = std::env::current_exe().context("cannot find my own program")?;
    let mut command = match script {
        None => Command::new(worker),
        Some(script) => {
            let mut command = Command::new(script);
            command.arg(target).arg(worker);
            command.arg("--env-script").arg(script);
            command.arg("--env-target").arg(target);
            command
        }
    };
    command
        .arg("--build")
        .arg(directory)
        .arg("--tftp-host")
        .arg(options.agent.to_string())
        .arg("--verbose")
        .arg(options.verbose.to_string())
        .current_dir(directory)
        // What an environment script sets is all that a build sees; what the boot scripts set is not its business.
        .env_clear()
        .env(
            "PATH",
            std::env::var_os("PATH").unwrap_or_else(|| BASE_PATH.into()),
        )
        .env(
            "HOME",
            std::env::var_os("HOME").unwrap_or_else(|| "/root".into()),
        )
        .env("LANG", "C.UTF-8");
    Ok(command)
}

/// What the end of the build process says.
fn built(status: ExitStatus) -> Built {
    match status.code() {
        Some(0) => Built::Reported(ExitCode::SUCCESS),
        Some(code) if code == i32::from(ABNORMAL_AND_UPLOADED) => {
            Built::Reported(ExitCode::from(ABNORMAL_AND_UPLOADED))
        }
        _ => Built::Died(format!(
            "error: the build process ended without a result ({status}); the machine's console has its words\n"
        )),
    }
}

fn put(path: &Path, contents: Option<&[u8]>) -> anyhow::Result<()> {
    match contents {
        Some(contents) => fs::write(path, contents),
        None => match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
    .with_context(|| format!("cannot write {}", path.display()))
}

/// The environment script for a task, if one is needed; else why the task cannot be built here.
fn choose(directory: &Path, named: Option<&str>) -> Result<Option<PathBuf>, String> {
    match named {
        None => {
            let script = directory.join("default");
            Ok(script.is_file().then_some(script))
        }
        Some(name) if name.contains('/') || name.starts_with('.') || name.is_empty() => Err(
            format!("error: the task's environment {name:?} is not a name\n"),
        ),
        Some(name) => {
            let script = directory.join(name);
            if script.is_file() {
                Ok(Some(script))
            } else {
                Err(format!(
                    "error: this machine has no environment {name:?}: there is no {}\n",
                    script.display()
                ))
            }
        }
    }
}

/// A result without a build.
fn failed(name: &str, version: &str, status: Status, log: String) -> BuildResult {
    let mut result = BuildResult::new(name, version, status);
    result.operations.push(OperationResult {
        name: "configure".to_owned(),
        status,
        log,
    });
    result
}

fn deliver(channel: &Channel, result: &BuildResult) -> anyhow::Result<ExitCode> {
    for operation in &result.operations {
        eprint!("{}", operation.log);
    }
    match channel.deliver(&report::manifest(result)?) {
        Delivery::Taken => Ok(ExitCode::from(ABNORMAL_AND_UPLOADED)),
        Delivery::Refused(why) => anyhow::bail!("the agent does not take the result: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_a_file_in_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(choose(dir.path(), None), Ok(None));
        assert!(
            choose(dir.path(), Some("gcc"))
                .unwrap_err()
                .contains("no environment")
        );
        fs::write(dir.path().join("gcc"), "").unwrap();
        fs::write(dir.path().join("default"), "").unwrap();
        assert_eq!(
            choose(dir.path(), None),
            Ok(Some(dir.path().join("default")))
        );
        assert_eq!(
            choose(dir.path(), Some("gcc")),
            Ok(Some(dir.path().join("gcc")))
        );
        for name in ["../x", "/bin/sh", ".", ""] {
            assert!(
                choose(dir.path(), Some(name))
                    .unwrap_err()
                    .contains("not a name"),
                "{name}"
            );
        }
    }
}
