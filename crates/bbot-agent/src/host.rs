//! What every run needs to know of its host: the options, the hypervisor, who
//! we are, and where things are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bbot_machine::accel::Accelerator;
use bbot_machine::layout::ToolchainName;
use bbot_machine::machine::Hypervisor;
use bbot_machine::owner::Instance;
use tempfile::TempDir;

use crate::options::Options;
use crate::toolchain::{self, Toolchain};

/// The build host, as one agent sees it.
#[derive(Debug)]
pub struct Host {
    /// What the operator wants.
    pub options: Options,
    /// Starts machines.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// How machines run here.
    pub accelerator: Accelerator,
    /// This process, as owner of what is temporary.
    pub instance: Instance,
    /// The toolchain's name.
    pub toolchain: ToolchainName,
}

/// The folders of one run below the TFTP root; gone when this is dropped.
#[derive(Debug)]
pub(crate) struct RunFolders {
    dir: TempDir,
}

impl RunFolders {
    /// `<tftp>/<kind>/<toolchain>/<run>/` with these folders in it.
    pub(crate) fn create(host: &Host, kind: &str, folders: &[&str]) -> Result<Self> {
        let parent = host.options.tftp.join(kind).join(host.toolchain.as_str());
        let made = std::fs::create_dir_all(&parent).and_then(|()| {
            tempfile::Builder::new()
                .prefix(&format!("{}-", std::process::id()))
                .tempdir_in(&parent)
        });
        let dir = made.with_context(|| {
            format!(
                "unable to make a folder in {}: give --tftp a directory that is writable",
                parent.display()
            )
        })?;
        for folder in folders {
            let path = dir.path().join(folder);
            std::fs::create_dir(&path)
                .with_context(|| format!("unable to make the folder {}", path.display()))?;
        }
        Ok(Self { dir })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for RunFolders {
    fn drop(&mut self) {
        // The toolchain's folder goes with its last run; where another run is
        // still in it, this does nothing.
        let parent = self.dir.path().parent().map(Path::to_owned);
        if let Err(e) = std::fs::remove_dir_all(self.dir.path()) {
            tracing::warn!("unable to remove {}: {e}", self.dir.path().display());
        }
        if let Some(parent) = parent {
            let _ = std::fs::remove_dir(parent);
        }
    }
}

impl Host {
    /// The toolchain as it is now. Its id is the one given, else the one of a
    /// managed toolchain, else none.
    pub fn toolchain_now(&self) -> Result<Toolchain, toolchain::ToolchainError> {
        let mut toolchain = toolchain::resolve(&self.options.tftp, self.toolchain.as_str())?;
        if let Some(id) = &self.options.toolchain_id {
            toolchain.id = Some(id.clone()).filter(|id| !id.is_empty());
        }
        Ok(toolchain)
    }

    /// A private directory for a run's sockets, with a path that is short enough
    /// for them.
    pub(crate) fn run_dir(&self) -> Result<TempDir> {
        let candidates = [PathBuf::from("/run"), std::env::temp_dir()];
        let mut last = None;
        for parent in candidates {
            match tempfile::Builder::new().prefix("bbot-").tempdir_in(&parent) {
                Ok(dir) => return Ok(dir),
                Err(e) => {
                    last = Some(
                        anyhow::Error::new(e)
                            .context(format!("unable to make a folder in {}", parent.display())),
                    )
                }
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no directory for the run's sockets")))
    }

    /// Removes the folders of runs whose process is gone.
    pub(crate) fn sweep_run_folders(&self) {
        for kind in ["build", "bootstrap"] {
            let parent = self.options.tftp.join(kind).join(self.toolchain.as_str());
            let Ok(entries) = std::fs::read_dir(&parent) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let pid = name
                    .to_str()
                    .and_then(|n| n.split_once('-'))
                    .and_then(|(pid, _)| pid.parse::<u32>().ok());
                if let Some(pid) = pid
                    && pid != std::process::id()
                    && !Path::new("/proc").join(pid.to_string()).exists()
                {
                    match std::fs::remove_dir_all(entry.path()) {
                        Ok(()) => tracing::info!(
                            "removed {}, left by a run that has ended",
                            entry.path().display()
                        ),
                        Err(e) => {
                            tracing::warn!("unable to remove {}: {e}", entry.path().display())
                        }
                    }
                }
            }
            let _ = std::fs::remove_dir(&parent);
        }
    }
}

/// Whether an error is the host's and not one machine's: every machine would fail
/// alike, so the agent ends instead of going through them all.
pub(crate) fn is_at_fault(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(bbot_machine::machine::Error::NotInstalled { .. })
    )
}
