//! Where the desk keeps its things: one folder with machines, toolchains, state and the controller's data.

use std::{
    env,
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The folder that `--home` or `BBOT_HOME` names; by default `/var/lib/bbot` for root and
/// `~/.local/share/bbot` for everybody else.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    directory: PathBuf,
}

impl Home {
    pub(crate) fn new(given: Option<PathBuf>) -> Result<Home> {
        let directory = match given {
            Some(directory) => directory,
            None => default_directory()?,
        };
        let directory = std::path::absolute(&directory)
            .with_context(|| format!("cannot tell where {} is", directory.display()))?;
        Ok(Home { directory })
    }

    /// Makes sure that the folders are there; nobody else may write to them.
    pub(crate) fn create(&self) -> Result<()> {
        for directory in [
            self.directory.clone(),
            self.volume(),
            self.tftp(),
            self.state(),
            self.cache(),
            self.controller(),
        ] {
            make_folder(&directory)?;
        }
        Ok(())
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The machines' root, as `bbot-agent --machines` takes it.
    pub(crate) fn machines(&self) -> PathBuf {
        self.directory.join("machines")
    }

    /// The volume that `bbot machine create` writes to.
    pub(crate) fn volume(&self) -> PathBuf {
        self.machines().join("default")
    }

    /// The TFTP root, as `bbot-agent --tftp` takes it; toolchains are below it.
    pub(crate) fn tftp(&self) -> PathBuf {
        self.directory.join("tftp")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.directory.join("cache")
    }

    pub(crate) fn controller(&self) -> PathBuf {
        self.directory.join("controller")
    }

    /// Written by `bbot up`: where its controller listens.
    pub(crate) fn controller_url(&self) -> PathBuf {
        self.controller().join("url")
    }

    /// Written by the controller: what a request that changes something must bear.
    pub(crate) fn token(&self) -> PathBuf {
        self.controller().join("token")
    }
}

/// Makes a folder, and those above it, that only we may write to.
pub(crate) fn make_folder(folder: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)
        .with_context(|| {
            format!(
                "cannot make {}: name a folder that you can write to with --home",
                folder.display()
            )
        })
}

fn default_directory() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/bbot"));
    }
    if let Some(data) = env::var_os("XDG_DATA_HOME").filter(|d| !d.is_empty()) {
        return Ok(PathBuf::from(data).join("bbot"));
    }
    let home = env::home_dir().context("there is no home directory: name a folder with --home")?;
    Ok(home.join(".local/share/bbot"))
}
