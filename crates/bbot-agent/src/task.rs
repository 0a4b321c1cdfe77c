//! A task in a throw-away copy of its machine: the task goes to the worker over
//! TFTP, the result comes back the same way, and nothing else remains.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bbot_machine::durable;
use bbot_machine::machine::{Disk, StartSpec, Tftp};
use bbot_machine::owner::Temporary;
use bbot_manifest::{BuildResult, Era, RunManifest, Source, Status, Task};
use bbot_tftp::{Event, Kind, Limits, Root};

use crate::host::{Host, RunFolders};
use crate::inventory::Machine;
use crate::result::{self, AGENT_OPERATION, Judged};
use crate::run::{self, Progress, Stage, Startup, Waited};
use crate::segments::{self, Segments};
use crate::source;
use crate::version;

/// The largest result that is taken, packed or not.
const RESULT_LIMIT: u64 = 64 * 1024 * 1024;

/// The largest artifact.
const UPLOAD_LIMIT: u64 = 256 * 1024 * 1024;

/// How often a machine that is replaced while it is copied is copied again.
const COPY_RETRIES: u32 = 3;

/// The names under which the worker may fetch its task.
const TASK_NAMES: [&str; 2] = ["manifest", "task.manifest"];

/// The names under which the worker may upload its result.
const RESULT_NAMES: [&str; 3] = ["manifest", "result.manifest", PACKED];
const PACKED: &str = "result.manifest.lz4";

const SOURCE: &str = "source.tar.gz";
const RUN: &str = "run.manifest";

/// What is to be done.
#[derive(Debug)]
pub struct Job<'a> {
    /// On this machine.
    pub machine: &'a Machine,
    /// The task, as the worker gets it.
    pub task: &'a Task,
    /// In whose words the worker gets it.
    pub era: Era,
    /// The source, if the agent has it.
    pub source: Option<&'a source::Ready>,
}

/// Performs a task. Whatever becomes of it there is a result; an error means that
/// the host itself is at fault (no room, no permission).
///
/// # Errors
///
/// When the run cannot be prepared or its machine cannot be started.
pub async fn perform(
    host: &Host,
    job: &Job<'_>,
    progress: &mut dyn Progress,
) -> Result<BuildResult> {
    let options = &host.options;
    let task = job.task;
    if options.fake_build {
        return Ok(BuildResult::new(&task.name, &task.version, Status::Abort));
    }
    let folders = RunFolders::create(host, "build", &["get", "put"])?;
    let root = prepare(job, folders.path())?;
    let name = &job.machine.dir.name;
    let startup = options.build_startup(host.accelerator);
    let keep = options.suspend_timeout();
    let abort = |reason: String| Ok(result::of_agent(task, Status::Abort, &reason));

    // The seed's off by one is not kept: N retries are N + 1 starts.
    for attempt in 0..=options.build_retries {
        progress.stage(&Stage::Starting {
            machine: name.clone(),
            attempt: attempt + 1,
        });
        let copy = copy_of(host, job.machine)?;
        let sockets = host.socket_folder()?;
        let mut machine = host
            .hypervisor
            .start(StartSpec {
                directory: copy.path().to_owned(),
                manifest: job.machine.manifest.machine.clone(),
                mac: job.machine.manifest.machine.mac,
                cpus: options.cpu,
                ram_kib: options.ram,
                network: options.machine_network(),
                accelerator: host.accelerator,
                disk: Disk::ThrowAway,
                tftp: Tftp {
                    root: root.clone(),
                    limits: Limits::wire(),
                },
                run_dir: sockets.path().to_owned(),
                user: options.qemu_user.clone(),
            })
            .await?;
        let machine = machine.as_mut();

        // The first request says that the machine has booted and its worker runs.
        if let Startup::MisBoot(why) = run::until_alive(machine, startup, asks_for_task).await {
            if attempt == options.build_retries {
                run::suspend(
                    machine,
                    &format!("build startup timeout ({why})"),
                    copy.path(),
                    keep,
                )
                .await;
                return abort(format!(
                    "machine {name} did not start its build in {} tries: {why}",
                    attempt + 1
                ));
            }
            tracing::warn!("machine {name} appears to have mis-booted ({why}), retrying");
            run::force_down(machine).await;
            continue;
        }
        progress.stage(&Stage::Working {
            machine: name.clone(),
        });

        let limit = Duration::from_secs(options.build_timeout);
        let mut segments = Segments::default();
        let cut_short = |status, reason: &str, segments: &Segments| {
            Ok(result::cut_short(task, status, reason, &segments.text()))
        };
        let waited = run::until_uploaded(machine, limit, &RESULT_NAMES, |name, path| {
            segments.take(name, path, progress);
        })
        .await;
        progress.stage(&Stage::Finished {
            machine: name.clone(),
        });
        return match waited {
            Waited::Uploaded {
                name: uploaded,
                path,
            } => {
                let Judged { mut result, fault } = read_result(task, &uploaded, &path);
                if result.operations.iter().all(|o| o.name == AGENT_OPERATION) {
                    result::append_log(&mut result, &segments.text());
                }
                if let Some(fault) = &fault {
                    tracing::error!(
                        "result of {} {} from machine {name}: {fault}",
                        task.name,
                        task.version
                    );
                }
                if result.status == Status::Abnormal {
                    run::suspend(machine, "build terminated abnormally", copy.path(), keep).await;
                } else {
                    // No clean shutdown: the copy is thrown away next.
                    run::force_down(machine).await;
                }
                Ok(result)
            }
            Waited::TimedOut => {
                run::suspend(machine, "build timeout", copy.path(), keep).await;
                let reason = format!("no result within {} s", limit.as_secs());
                cut_short(Status::Abort, &reason, &segments)
            }
            Waited::Panicked => {
                let what = "the guest's kernel panicked during the build";
                run::suspend(machine, what, copy.path(), keep).await;
                let reason = format!("the kernel of machine {name} panicked during the build");
                cut_short(Status::Abnormal, &reason, &segments)
            }
            Waited::Ended(exit) => {
                let reason = format!("machine {name} ended before it uploaded a result: {exit}");
                tracing::error!("{reason}");
                cut_short(Status::Abnormal, &reason, &segments)
            }
        };
    }
    unreachable!("the last try returns")
}

/// A copy of the bootstrapped machine. Another process may put a new one in its
/// place while it is copied: then once more.
fn copy_of(host: &Host, machine: &Machine) -> Result<Temporary> {
    let mut tries = 0;
    loop {
        match Temporary::snapshot(
            &host.instance,
            &machine.volume,
            &machine.dir,
            &host.toolchain,
            &machine.directory,
        ) {
            Err(e) if e.is_race() && tries < COPY_RETRIES => tries += 1,
            made => return Ok(made?),
        }
    }
}

/// Writes what the worker fetches, and says what it may fetch and upload.
fn prepare(job: &Job<'_>, folders: &Path) -> Result<Root> {
    let (get, put) = (folders.join("get"), folders.join("put"));
    let manifest = get.join("manifest");
    let text = job
        .task
        .serialize(job.era)
        .context("unable to write the task manifest")?;
    durable::write(&manifest, text.as_bytes())?;
    let offer = RunManifest {
        agent: format!("bbot-agent/{}", version::OWN),
        log_segments: Some(segments::FORMAT),
        source: job.source.map(|source| Source {
            name: SOURCE.to_owned(),
            sha256: source.sha256.clone(),
        }),
    };
    let offer = offer
        .serialize()
        .context("unable to write the run manifest")?;

    let mut root = Root::new().get_bytes(RUN, offer.into_bytes());
    for name in TASK_NAMES {
        root = root.get_file(name, &manifest);
    }
    if let Some(source) = job.source {
        root = root.get_file(SOURCE, &source.path);
    }
    // Always: when the build is cut short, this is all there is of its log.
    Ok(root
        .put_numbered(segments::PREFIX, &put, segments::LIMIT)
        .put_once(&RESULT_NAMES, &put, RESULT_LIMIT)
        .put_once(&["upload.tar"], &put, UPLOAD_LIMIT))
}

fn asks_for_task(event: &Event) -> bool {
    match event {
        Event::Requested {
            kind: Kind::Get,
            name,
            ..
        } => TASK_NAMES.contains(&name.as_str()) || name == RUN,
        // A worker that never asked for its task has come to know that it cannot.
        Event::Requested {
            kind: Kind::Put,
            name,
            ..
        } => RESULT_NAMES.contains(&name.as_str()),
        _ => false,
    }
}

fn read_result(task: &Task, name: &str, path: &Path) -> Judged {
    let bytes = fs::read(path).map_err(|e| format!("unable to read {}: {e}", path.display()));
    let bytes = match name {
        PACKED => bytes.and_then(|packed| result::unpack(&packed)),
        _ => bytes,
    };
    match bytes {
        Ok(bytes) => result::judge(task, &bytes),
        Err(fault) => Judged {
            result: result::of_agent(task, Status::Abnormal, &fault),
            fault: Some(fault),
        },
    }
}
