//! A build without a controller: `bbot build`.

use std::path::Path;

use anyhow::{Context as _, Result};
use bbot_manifest::{BuildResult, Era, Task};

use crate::host::Host;
use crate::inventory::Inventory;
use crate::options::Options;
use crate::run::Progress;
use crate::source;
use crate::task::{self, Job};

/// Builds the source archive in a throw-away copy of the machine that the task
/// names, which is bootstrapped first if it must be. `progress` hears what happens
/// and gets the log as it grows. Nothing of the run is left when this returns or
/// is dropped.
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
    Inventory::sweep(host);
    let source = source::Ready::of_file(archive)
        .with_context(|| format!("unable to read {}", archive.display()))?;
    let machine = Inventory::default()
        .take_one(host, &task.machine, progress)
        .await?;
    let job = Job {
        machine: &machine,
        task,
        era: Era::Later,
        source: Some(&source),
    };
    task::perform(host, &job, progress).await
}
