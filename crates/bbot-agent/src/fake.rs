//! `--fake-machine`: a person or a script plays the machine.
//!
//! The task is put where a worker would fetch it, on the seed's path without a
//! run, and the result is taken from where a worker would have uploaded it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bbot_machine::durable;
use bbot_manifest::{BuildResult, Era, Task};

use crate::host::Host;

/// There is no event to wait for: whoever plays the machine writes a plain file.
/// The seed looks once a second.
const LOOK: Duration = Duration::from_millis(200);

/// How long a file that cannot be read as a result may still be being written.
const PATIENCE: u32 = 5;

/// Puts the task at `<tftp>/build/<toolchain>/get/manifest` and waits for the
/// result at `.../put/manifest`. Both folders are gone at the end.
///
/// # Errors
///
/// When the folders cannot be made or the result cannot be read.
pub(crate) async fn perform(host: &Host, task: &Task, era: Era) -> Result<BuildResult> {
    let base = host
        .options
        .tftp
        .join("build")
        .join(host.toolchain.as_str());
    let _folders = Folders(&base);
    let (get, put) = (base.join("get"), base.join("put"));
    for dir in [&get, &put] {
        fs::create_dir_all(dir).with_context(|| {
            format!(
                "unable to make the folder {}: give --tftp a directory that is writable",
                dir.display()
            )
        })?;
    }
    durable::write(&get.join("manifest"), task.serialize(era)?.as_bytes())?;
    let path = put.join("manifest");
    let mut patience = PATIENCE;
    loop {
        match fs::read(&path) {
            Ok(bytes) => match BuildResult::parse(&bytes, &path.display().to_string()) {
                Ok(result) => return Ok(result),
                Err(e) if patience == 0 => return Err(e.into()),
                Err(_) => patience -= 1,
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                tracing::trace!("waiting for result manifest {}", path.display());
            }
            Err(e) => return Err(e).with_context(|| format!("unable to read {}", path.display())),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The two folders of a fake run, removed at its end. Those of other runs beside
/// them stay.
struct Folders<'a>(&'a Path);

impl Drop for Folders<'_> {
    fn drop(&mut self) {
        for name in ["get", "put"] {
            let path = self.0.join(name);
            if let Err(e) = fs::remove_dir_all(&path)
                && e.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!("unable to remove {}: {e}", path.display());
            }
        }
        let _ = fs::remove_dir(self.0);
    }
}
