//! A task in a throw-away copy of its machine: the task goes to the worker over
//! TFTP, the result comes back the same way, and nothing else remains.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bbot_machine::machine::{Disk, Error, Memory};
use bbot_machine::owner::Temporary;
use bbot_machine::volume::Stop;
use bbot_manifest::{BuildResult, Era, MachineKind, RunManifest, Source, Status, Task};
use bbot_tftp::{Event, Kind, Root};

use crate::blocking::Copied;
use crate::host::{Host, RunFolders};
use crate::inventory::Machine;
use crate::prepared::Prepared;
use crate::result::{self, AGENT_OPERATION, Judged};
use crate::run::{self, Left, Patience, Progress, Running, Share, Stage, Start, Startup, Waited};
use crate::segments::{self, Segments};
use crate::session::Session;
use crate::source;
use crate::warm::PREPARED;
use crate::{version, warm};

/// The largest result that is taken, packed or not.
const RESULT_LIMIT: u64 = 64 * 1024 * 1024;

/// The largest artifact.
const UPLOAD_LIMIT: u64 = 256 * 1024 * 1024;

/// How long a machine that was prepared may take to ask: it asks at once, or never.
const READY_STARTUP: Duration = Duration::from_secs(20);

/// How often a machine that is replaced while it is copied is copied again.
const COPY_RETRIES: u32 = 3;

/// The names under which the worker may fetch its task.
pub(crate) const TASK_NAMES: [&str; 2] = ["manifest", "task.manifest"];

/// The names under which the worker may upload its result.
const RESULT_NAMES: [&str; 3] = ["manifest", "result.manifest", PACKED];
const PACKED: &str = "result.manifest.lz4";

const SOURCE: &str = "source.tar.gz";
/// The name under which the worker asks what its agent offers.
pub(crate) const RUN: &str = "run.manifest";

/// What is to be done.
#[derive(Debug)]
pub struct Job {
    /// On this machine.
    pub machine: Machine,
    /// The task, as the worker gets it.
    pub task: Task,
    /// In whose words the worker gets it.
    pub era: Era,
    /// The source, if the agent has it.
    pub source: Option<source::Ready>,
    /// What the machine gets of the host.
    pub share: Share,
    /// Where its log goes while it grows.
    pub session: Session,
}

/// What has become of a task.
#[derive(Debug)]
pub(crate) struct Performed {
    /// Its result. Where something else than the build was at fault it says so, for those
    /// who cannot have their task back.
    pub(crate) result: BuildResult,
    /// What was at fault, if not the build: another run may do it.
    pub(crate) fault: Option<Fault>,
    /// Its machine, which is to be ended or kept once the result is on its way. None
    /// where none was started, or it went with its last try.
    pub(crate) left: Option<Left>,
    /// The machine that was ready for it did not go on.
    pub(crate) unready: bool,
}

/// What kept a task from being done, and why.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The host lacks something for it.
    Host(String),
    /// The guest has filled the room that its disk had on the host. How much of that comes back with the
    /// copy's deletion tells who is at fault.
    Full(String),
    /// The machine never came up.
    Machine(String),
}

/// Performs a task, in the machine that is `ready` for it if there is one. Whatever becomes of it
/// there is a result; an error means that the host itself is at fault (no room, no permission). Nothing of the run is left
/// when this is dropped.
///
/// # Errors
///
/// When the run cannot be prepared or its machine cannot be started.
pub(crate) async fn perform(
    host: &Host,
    job: &Job,
    mut ready: Option<Prepared>,
    progress: &mut dyn Progress,
) -> Result<Performed> {
    let options = &host.options;
    let task = &job.task;
    if options.fake_build {
        return Ok(Performed {
            result: BuildResult::new(&task.name, &task.version, Status::Abort),
            fault: None,
            left: None,
            unready: false,
        });
    }
    let offer = Offer::of(job)?;
    let theirs = host.clone();
    // To a disk that others may keep busy.
    let prepared = host.blocking.run(move || {
        let folders = RunFolders::create(&theirs, "build", &["get", "put"])?;
        let root = offer.write(folders.path())?;
        anyhow::Ok((folders, root))
    });
    let (folders, root) = prepared.await?;
    let folders = Arc::new(folders);
    let name = &job.machine.dir.name;
    let startup = options.build_startup(host.accelerator);

    let mut attempt = 0;
    let mut may_restore = true;
    let mut unready = false;
    let (mut running, alive) = loop {
        let is_ready = ready.is_some();
        let (mut running, base) = if let Some(ready) = ready.take() {
            progress.stage(&Stage::Starting {
                machine: name.clone(),
                attempt: attempt + 1,
            });
            match ready.go_on(root.clone(), Arc::clone(&folders)).await {
                Ok(ready) => ready,
                Err(e) => {
                    tracing::warn!("machine {name}, which was prepared, does not go on: {e:#}");
                    unready = true;
                    continue;
                }
            }
        } else {
            progress.stage(&Stage::Copying {
                machine: name.clone(),
                attempt: attempt + 1,
            });
            let copy = copy_of(host, &job.machine).await?;
            progress.stage(&Stage::Starting {
                machine: name.clone(),
                attempt: attempt + 1,
            });
            let base = match may_restore {
                true => warm::base_of(host, &job.machine, job.share, &copy).await,
                false => None,
            };
            let manifest = &job.machine.manifest.machine;
            let start = Start {
                manifest,
                mac: manifest.mac,
                share: job.share,
                disk: Disk::ThrowAway,
                memory: base.clone().map_or(Memory::Booted, Memory::Restored),
                root: root.clone(),
                folders: Some(Arc::clone(&folders)),
            };
            match Running::start(host, copy, start).await {
                Err(e)
                    if let Some(base) = &base
                        && matches!(e.downcast_ref(), Some(Error::Unrestored { .. })) =>
                {
                    tracing::warn!("machine {name} boots: {e:#}");
                    host.bases.refuse(&job.machine.directory, base);
                    may_restore = false;
                    continue;
                }
                // Whatever it was, one that boots may do better.
                Err(e)
                    if base.is_some()
                        && matches!(e.downcast_ref(), Some(Error::NotStarted { .. })) =>
                {
                    tracing::warn!("machine {name} boots: {e:#}");
                    may_restore = false;
                    continue;
                }
                started => (started?, base),
            }
        };
        // The first request says that the machine has booted and its worker runs.
        let limit = match is_ready {
            true => startup.min(READY_STARTUP),
            false => startup,
        };
        let alive = run::until_alive(running.machine.as_mut(), limit, asks_for_task).await;
        match &alive {
            Startup::MisBoot(why) if is_ready => {
                tracing::warn!("machine {name}, which was prepared, does not go on: {why}");
                unready = true;
                Running::end(running).await?;
            }
            Startup::MisBoot(why) if let Some(base) = &base => {
                tracing::warn!(
                    "machine {name} does not go on from where it was saved ({why}), booting it"
                );
                host.bases.refuse(&job.machine.directory, base);
                may_restore = false;
                Running::end(running).await?;
            }
            // The seed's off by one is not kept: N retries are N + 1 starts.
            Startup::MisBoot(why) if attempt < options.build_retries => {
                tracing::warn!("machine {name} appears to have mis-booted ({why}), retrying");
                Running::end(running).await?;
                attempt += 1;
            }
            _ => break (running, alive),
        }
    };
    let ended = match alive {
        Startup::MisBoot(why) => {
            let reason = format!(
                "machine {name} did not start its build in {} tries: {why}",
                attempt + 1
            );
            Ended {
                result: result::of_agent(task, Status::Abort, &reason),
                look: Some(format!("build startup timeout ({why})")),
                fault: Some(Fault::Machine(reason)),
            }
        }
        Startup::DiskFull(detail) => Ended::host_full(task, Fault::Full, &detail, ""),
        Startup::Alive => {
            progress.stage(&Stage::Working {
                machine: name.clone(),
            });
            let ended = watch(host, &mut running, job, progress).await;
            progress.stage(&Stage::Finished {
                machine: name.clone(),
            });
            ended
        }
    };
    let Ended {
        mut result,
        look,
        fault,
    } = ended;
    if result.operations.iter().all(|o| o.name == AGENT_OPERATION) {
        // The worker has said nothing: what the guest said last is all there is.
        result::append_console(&mut result, &running.machine.last_words());
    }
    Ok(Performed {
        result,
        fault,
        left: Some(Left {
            running,
            name: name.clone(),
            share: job.share,
            look,
            span: tracing::Span::current(),
        }),
        unready,
    })
}

/// How a build has come to its end.
struct Ended {
    result: BuildResult,
    /// Why a person may want to look at the machine.
    look: Option<String>,
    fault: Option<Fault>,
}

impl Ended {
    fn over(result: BuildResult) -> Self {
        Self {
            result,
            look: None,
            fault: None,
        }
    }

    fn look(result: BuildResult, why: String) -> Self {
        Self {
            look: Some(why),
            ..Self::over(result)
        }
    }

    fn host_full(task: &Task, fault: fn(String) -> Fault, detail: &str, log: &str) -> Self {
        let reason = format!("the build host has no room for what the guest writes: {detail}");
        Self {
            result: result::cut_short(task, Status::Abort, &reason, log),
            look: None,
            fault: Some(fault(reason)),
        }
    }
}

/// Waits for the result of a build that has begun.
async fn watch(
    host: &Host,
    running: &mut Running,
    job: &Job,
    progress: &mut dyn Progress,
) -> Ended {
    let (task, name) = (&job.task, &job.machine.dir.name);
    let limit = Duration::from_secs(host.options.build_timeout);
    let patience = Patience {
        whole: limit,
        quiet: host.options.build_quiet.map(Duration::from_secs),
    };
    let mut segments = Segments::of(job.session.clone());
    let waited = run::until_uploaded(
        running.machine.as_mut(),
        patience,
        &RESULT_NAMES,
        |name, path| segments.take(name, path, progress),
    )
    .await;
    let cut_short =
        |status, reason: &str| result::cut_short(task, status, reason, &segments.text());
    match waited {
        Waited::Uploaded {
            name: uploaded,
            path,
        } => {
            let theirs = task.clone();
            let read = move || read_result(&theirs, &uploaded, &path);
            let Judged { mut result, fault } = host.blocking.run(read).await;
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
            match result.status {
                Status::Abnormal => Ended::look(result, "build terminated abnormally".to_owned()),
                _ => Ended::over(result),
            }
        }
        Waited::TimedOut => {
            let reason = format!("no result within {} s", limit.as_secs());
            let result = cut_short(Status::Abort, &reason);
            Ended::look(result, "build timeout".to_owned())
        }
        Waited::Quiet(quiet) => {
            let reason = format!(
                "nothing was heard of the build for {} s (--build-quiet)",
                quiet.as_secs()
            );
            let result = cut_short(Status::Abort, &reason);
            Ended::look(result, "quiet build".to_owned())
        }
        Waited::Panicked => {
            let reason = format!("the kernel of machine {name} panicked during the build");
            let result = cut_short(Status::Abnormal, &reason);
            let look = "the guest's kernel panicked during the build".to_owned();
            Ended::look(result, look)
        }
        Waited::Restarting => {
            let reason = format!("machine {name} restarts for ever");
            Ended::look(cut_short(Status::Abnormal, &reason), reason)
        }
        Waited::DiskFull(detail) => Ended::host_full(task, Fault::Full, &detail, &segments.text()),
        Waited::HostFull(detail) => Ended::host_full(task, Fault::Host, &detail, &segments.text()),
        Waited::Ended(exit) => {
            let reason = format!("machine {name} ended before it uploaded a result: {exit}");
            tracing::error!("{reason}");
            // There is nothing to look at.
            Ended::over(cut_short(Status::Abnormal, &reason))
        }
    }
}

/// A copy of the bootstrapped machine. Another process may put a new one in its
/// place while it is copied: then once more.
pub(crate) async fn copy_of(host: &Host, machine: &Machine) -> Result<Copied> {
    let instance = host.instance.clone();
    let base = machine.dir.bootstrapped(&host.toolchain);
    let (volume, from) = (Arc::clone(&machine.volume), machine.directory.clone());
    let copy = move |stop: &Stop| {
        let mut tries = 0;
        loop {
            match Temporary::copy_until(&instance, &volume, &from, &base, stop) {
                Err(e) if e.is_race() && tries < COPY_RETRIES => tries += 1,
                made => return made,
            }
        }
    };
    Ok(Copied::make(&host.blocking, &machine.directory, copy).await?)
}

/// What the worker fetches.
struct Offer {
    kind: MachineKind,
    task: String,
    run: RunManifest,
    source: Option<PathBuf>,
}

impl Offer {
    fn of(job: &Job) -> Result<Self> {
        let run = RunManifest {
            agent: format!("bbot-agent/{}", version::OWN),
            log_segments: Some(segments::FORMAT),
            source: job.source.as_ref().map(|source| Source {
                name: SOURCE.to_owned(),
                sha256: source.sha256.clone(),
            }),
            save: None,
            fresh: None,
        };
        Ok(Self {
            kind: job.machine.manifest.machine.kind,
            task: job
                .task
                .serialize(job.era)
                .context("unable to write the task manifest")?,
            run,
            source: job.source.as_ref().map(|source| source.path.clone()),
        })
    }

    /// Writes it, and says what the worker may fetch and upload.
    fn write(self, folders: &Path) -> Result<Root> {
        let (get, put) = (folders.join("get"), folders.join("put"));
        let manifest = get.join("manifest");
        // Gone with the run: nobody reads it after a power loss.
        fs::write(&manifest, self.task.as_bytes())
            .with_context(|| format!("unable to write {}", manifest.display()))?;
        let run = self.run.serialize();
        let run = run.context("unable to write the run manifest")?;
        let run = run.into_bytes();
        let mut root = Root::new().get_bytes(RUN, run.clone());
        root = match self.kind {
            MachineKind::Kvm => warm::fresh(root, &self.run)?,
            // Its time and entropy are the host's.
            MachineKind::Nspawn => root.get_bytes(PREPARED, run),
        };
        for name in TASK_NAMES {
            root = root.get_file(name, &manifest);
        }
        if let Some(source) = &self.source {
            root = root.get_file(SOURCE, source);
        }
        // Always: when the build is cut short, this is all there is of its log.
        Ok(root
            .put_numbered(segments::PREFIX, &put, segments::LIMIT)
            .put_once(&RESULT_NAMES, &put, RESULT_LIMIT)
            .put_once(&["upload.tar"], &put, UPLOAD_LIMIT))
    }
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
