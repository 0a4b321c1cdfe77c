//! Build mode: performs a task and uploads its result.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use anyhow::{Context, bail};
use bbot_manifest::{BuildResult, OperationResult, Source, Status, Task};

use crate::ABNORMAL_AND_UPLOADED;
use crate::ahead;
use crate::arguments::Arguments;
use crate::build_systems::{self, BuildSystem, Operation};
use crate::channel::{self, Channel, Delivery, Given, RUN_MANIFEST, TASK_MANIFEST};
use crate::checksums::{self, Checksums};
use crate::command::{Environment, Places, Shell, Stop, own_directory};
use crate::isolation::{self, Isolation};
use crate::log::Log;
use crate::options::Options;
use crate::rehearsal;
use crate::report;
use crate::segments::Stream;
use crate::source;
use crate::warnings::Patterns;

/// The format of log segments that this worker sends.
pub(crate) const SEGMENT_FORMAT: u64 = 1;

/// The directory below the build's in which all is done.
pub(crate) const WORK: &str = "work";

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    isolation::survive_want_of_memory();
    isolation::adopt_orphans();
    let channel = Channel::new(options.agent);
    let stream = options.ahead.then(|| Stream::to(channel.clone()));
    let isolation;
    let given = if options.ahead {
        // The machine may be saved once this is done: nothing in it may depend on the time or on chance.
        let made = Isolation::establish(options.agent);
        let mut get_ready = rehearsal::Rehearsals::new(options, made.as_ref().ok());
        let Some(given) = ahead::wait_for_task(|| get_ready.next())? else {
            return Ok(ExitCode::SUCCESS);
        };
        // What was in its way then may be gone, and something else be there.
        isolation = match made {
            Ok(made) if made.is_alone() => Ok(made),
            _ => Isolation::establish(options.agent),
        };
        given
    } else {
        let given = given(&options.build, &channel)?;
        isolation = Isolation::establish(options.agent);
        given
    };
    let isolation = isolation.as_ref().map_err(Clone::clone);
    build(options, &channel, &given, isolation, stream, None)
}

/// Performs the task that was given, and delivers its result. Its log goes into the stream that is there, if the agent wants
/// one; a command that runs still at the time `until` is ended.
pub(crate) fn build(
    options: &Options,
    channel: &Channel,
    given: &Given,
    isolation: Result<&Isolation, String>,
    stream: Option<Stream>,
    until: Option<Instant>,
) -> anyhow::Result<ExitCode> {
    let task = Task::parse(&given.task, TASK_MANIFEST)?;
    let run = given.run.as_deref().and_then(channel::read_run_manifest);

    let takes_segments = run.as_ref().and_then(|run| run.log_segments) == Some(SEGMENT_FORMAT);
    let stream = if takes_segments {
        stream.unwrap_or_else(|| Stream::to(channel.clone()))
    } else {
        Stream::nowhere()
    };
    let job = Job {
        options,
        channel,
        task: &task,
        source: run.as_ref().and_then(|run| run.source.as_ref()),
        isolation,
        stream: &stream,
        until,
    };
    let made_with = job
        .isolation
        .as_ref()
        .ok()
        .and_then(|isolation| Checksums::of(options, job.source, isolation));
    let is_same = made_with.as_ref().is_some_and(|c| c.are_those_of(&task));
    let operations = match is_same {
        true => Vec::new(),
        false => perform(&job),
    };
    // The result ends the run: what is still on its way goes first.
    stream.close();

    let mut result = BuildResult::new(&task.name, &task.version, Status::Skip);
    if !is_same {
        result.status = report::overall(operations.iter().map(|operation| operation.status));
        result.operations = operations;
    }
    if let Some(made_with) = made_with.filter(|_| checksums::is_lasting(result.status)) {
        result.worker_checksum = Some(made_with.worker);
        result.dependency_checksum = Some(made_with.dependency);
    }
    if options.verbose > 0 {
        eprintln!("info: {} {}: {}", task.name, task.version, result.status);
    }
    match channel.deliver(&report::manifest(&result)?) {
        Delivery::Taken if result.status == Status::Abnormal => {
            Ok(ExitCode::from(ABNORMAL_AND_UPLOADED))
        }
        Delivery::Taken => Ok(ExitCode::SUCCESS),
        Delivery::Refused(why) => bail!("the agent does not take the result: {why}"),
    }
}

/// What startup has left in the build directory, or, without it, what the agent gives.
fn given(directory: &Path, channel: &Channel) -> anyhow::Result<Given> {
    match read(&directory.join(TASK_MANIFEST))? {
        Some(task) => Ok(Given {
            run: read(&directory.join(RUN_MANIFEST))?,
            task,
        }),
        None => Ok(channel.ask(|| ())),
    }
}

fn read(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// What is to be built, and with what.
struct Job<'a> {
    options: &'a Options,
    channel: &'a Channel,
    task: &'a Task,
    /// None: the agent offers none.
    source: Option<&'a Source>,
    isolation: Result<&'a Isolation, String>,
    stream: &'a Stream,
    /// A command that runs still is ended then.
    until: Option<Instant>,
}

/// All that is needed before the first command can run.
struct Prepared<'a> {
    isolation: &'a Isolation,
    arguments: Arguments,
    places: Places,
    system: &'static dyn BuildSystem,
}

/// Performs the operations, until one does not succeed.
fn perform(job: &Job<'_>) -> Vec<OperationResult> {
    let Job {
        options,
        task,
        stream,
        ..
    } = *job;
    let mut results = Vec::new();
    let patterns = match Patterns::compile(&task.warning_regex) {
        Ok(patterns) => patterns,
        Err(error) => {
            results.push(unprepared(
                Status::Abort,
                &format!("error: {error}\n"),
                stream,
            ));
            return results;
        }
    };
    let prepared = match prepare(job) {
        Ok(prepared) => prepared,
        Err((status, why)) => {
            results.push(unprepared(status, &format!("error: {why}\n"), stream));
            return results;
        }
    };
    let jobs = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let environment = match options.env_script {
        Some(_) => Environment::Prepared,
        None => Environment::Clean,
    };
    for operation in Operation::ALL {
        let mut shell = Shell {
            places: &prepared.places,
            isolation: prepared.isolation,
            environment,
            jobs,
            until: job.until,
            log: Log::new(operation.name(), stream, &patterns),
        };
        if operation == Operation::Configure {
            introduce(task, options, &prepared, &mut shell);
        }
        let outcome = prepared
            .system
            .perform(operation, &prepared.arguments, &mut shell);
        let cleared = prepared.isolation.kill_all();
        if let Err(error) = &cleared {
            shell.say(&format!("error: {error}"));
        }
        let status = match (outcome, cleared) {
            (_, Err(_)) => Status::Abnormal,
            (Err(Stop(status)), _) => status,
            (Ok(()), _) if shell.log.warned() => Status::Warning,
            (Ok(()), _) => Status::Success,
        };
        results.push(OperationResult {
            name: operation.name().to_owned(),
            status,
            log: text(shell.log),
        });
        if status > Status::Warning {
            break;
        }
    }
    results
}

/// The first words of the log: what is built, how, where.
fn introduce(task: &Task, options: &Options, prepared: &Prepared<'_>, shell: &mut Shell<'_>) {
    shell.say(&format!(
        "info: {} {} for {} on {}, with {}",
        task.name,
        task.version,
        task.target,
        task.machine,
        prepared.system.label(&prepared.places.source)
    ));
    if let Some(script) = &options.env_script {
        let target = options.env_target.as_deref().unwrap_or(&task.target);
        shell.say(&format!(
            "info: environment {} for {target}",
            script.display()
        ));
    }
    for word in &prepared.arguments.others {
        shell.say(&format!(
            "info: left out, neither an option nor NAME=value: {word}"
        ));
    }
}

fn prepare<'a>(job: &Job<'a>) -> Result<Prepared<'a>, (Status, String)> {
    let Job { options, task, .. } = *job;
    let abort = |why: String| (Status::Abort, why);
    let arguments = Arguments::of(task, &options.arguments).map_err(abort)?;
    let isolation = job.isolation.clone().map_err(abort)?;
    let Some(source) = job.source else {
        return Err(abort(format!(
            "the agent offers no source archive, and this worker does not fetch repositories ({})",
            task.repository_url
        )));
    };
    let failed = |what: &str, error: &io::Error| (Status::Abnormal, format!("{what}: {error}"));
    let work = options.build.join(WORK);
    match fs::remove_dir_all(&work) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed(
                "cannot remove what an earlier build has left",
                &error,
            ));
        }
        _ => {}
    }
    fs::create_dir(&work)
        .and_then(|()| fs::canonicalize(&work))
        .map_err(|error| failed("cannot make a directory to build in", &error))
        .and_then(|work| {
            let root = source::prepare(job.channel, source, &work, isolation)
                .map_err(|error| abort(format!("{error:#}")))?;
            let places = Places {
                source: root,
                out: work.join("out"),
                home: work.join("home"),
                tmp: work.join("tmp"),
            };
            for directory in [&places.out, &places.home, &places.tmp] {
                own_directory(directory, isolation)
                    .map_err(|error| failed("cannot make a directory to build in", &error))?;
            }
            let Some(system) = build_systems::detect(&places.source) else {
                return Err((
                    Status::Error,
                    format!(
                        "the package has none of the build systems that are known here ({})",
                        build_systems::names()
                    ),
                ));
            };
            Ok(Prepared {
                isolation,
                arguments,
                places,
                system,
            })
        })
}

/// The first operation of a build that never came to its first command.
fn unprepared(status: Status, why: &str, stream: &Stream) -> OperationResult {
    let name = Operation::Configure.name();
    stream.push(name, why.as_bytes());
    OperationResult {
        name: name.to_owned(),
        status,
        log: why.to_owned(),
    }
}

/// A log as text: what is no UTF-8 is replaced as everywhere in manifests.
fn text(log: Log<'_>) -> String {
    bbot_manifest::log_text(&log.into_bytes())
}
