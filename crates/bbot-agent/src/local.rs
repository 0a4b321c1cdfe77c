//! A build without a controller: `bbot build`.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use bbot_manifest::{BuildResult, Era, Task};

use crate::bootstrap::{self, Outcome};
use crate::host::Host;
use crate::inventory::{self, Machine, RETRIES, RETRY_PAUSE, State};
use crate::options::Options;
use crate::run::{Progress, Share};
use crate::session::Session;
use crate::task::{self, Job};
use crate::warm::Warmth;
use crate::{source, warm};

/// Builds the source archive in a throw-away copy of the machine that the task
/// names, which is bootstrapped first if it must be. `progress` hears what happens
/// and gets the log as it grows. Nothing of the run is left when this returns; a
/// machine is never kept for a person to look at, since somebody waits.
///
/// # Errors
///
/// When there is no such machine, it cannot be bootstrapped, or the run cannot be
/// prepared. A package that does not build is no error: the result says so.
pub async fn build(
    options: Options,
    task: &Task,
    archive: &Path,
    progress: &mut dyn Progress,
) -> Result<BuildResult> {
    let host = Host::open(options).await?;
    build_on(&host, task, archive, progress).await
}

/// As [`build`], on a host that is open already.
///
/// # Errors
///
/// As [`build`].
pub async fn build_on(
    host: &Host,
    task: &Task,
    archive: &Path,
    progress: &mut dyn Progress,
) -> Result<BuildResult> {
    let theirs = host.clone();
    host.blocking.run(move || inventory::sweep(&theirs)).await;
    let source = source::Ready::of_file(archive)
        .with_context(|| format!("unable to read {}", archive.display()))?;
    let machine = machine(host, &task.machine, progress).await?;
    let job = Job {
        share: share(host, &machine.manifest.machine.header),
        machine,
        task: task.clone(),
        era: Era::Later,
        source: Some(source),
        session: Session::none(),
    };
    let performed = task::perform(host, &job, None, progress).await?;
    if let Some(left) = performed.left {
        if let Some(why) = &left.look {
            tracing::error!("{why} on machine {}", left.name);
        }
        left.clean_up().await;
    }
    Ok(performed.result)
}

/// The machine of that name, bootstrapped first if it must be.
///
/// # Errors
///
/// When there is no such machine, or it cannot be used: why, and where.
pub(crate) async fn machine(
    host: &Host,
    name: &str,
    progress: &mut dyn Progress,
) -> Result<Machine> {
    let mut tries = 0;
    loop {
        let (theirs, wanted) = (host.clone(), name.to_owned());
        let look = move || inventory::look_for(&theirs, &wanted);
        let plan = match host.blocking.run(look).await? {
            State::Usable(machine) if machine.warmth == Warmth::Cold => {
                let share = share(host, machine.header());
                match warm::save(host, &machine, share, progress).await {
                    warm::Outcome::Saved => tracing::info!("saved {name}"),
                    warm::Outcome::Stale => tracing::debug!("machine {name} was replaced"),
                    warm::Outcome::GaveUp(why) => {
                        tracing::warn!("{name} cannot be saved and boots for each task: {why}");
                        return Ok(*machine);
                    }
                }
                tries += 1;
                if tries > RETRIES {
                    return Ok(*machine);
                }
                continue;
            }
            State::Usable(machine) => return Ok(*machine),
            State::MustBootstrap(plan) => plan,
            State::Bad(problem) => bail!("machine {name}: {problem}"),
            State::Changing(why) if tries >= RETRIES => bail!("machine {name}: {why}"),
            State::Changing(_) => {
                tries += 1;
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            }
            // There is no such machine: told by the look itself.
            State::Passed => bail!("machine {name} cannot be used"),
        };
        tries += 1;
        if tries > RETRIES {
            bail!("machine {name} changes all the time");
        }
        let share = share(host, &plan.manifest.header);
        let ended = bootstrap::bootstrap(host, &plan, share, progress)
            .await
            .map_err(|e| anyhow!("machine {name}: {:#}", e.context("unable to bootstrap")))?;
        if let Some(left) = ended.left {
            left.clean_up().await;
        }
        match ended.outcome {
            Outcome::Done => tracing::info!("bootstrapped {name}"),
            Outcome::Stale(why) => tracing::debug!("machine {name}: {why}, looking again"),
            Outcome::Failed(why) => bail!("machine {name}: it failed to bootstrap: {why}"),
        }
    }
}

/// What a machine gets of the host when nobody else has anything of it.
pub(crate) fn share(host: &Host, header: &bbot_manifest::MachineHeader) -> Share {
    let options = &host.options;
    let ram = options.ram.max(header.ram_minimum.unwrap_or(0));
    Share {
        cpus: options.cpu,
        ram_kib: ram.min(header.ram_maximum.unwrap_or(u64::MAX)),
    }
}
