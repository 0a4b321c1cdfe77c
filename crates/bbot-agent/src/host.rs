//! What every run needs to know of its host: the options, the hypervisor, who
//! we are, and where things are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use bbot_machine::accel::{self, Accelerator};
use bbot_machine::bridge;
use bbot_machine::hypervisor::Hypervisors;
use bbot_machine::layout::{self, BOOTSTRAP_PROTOCOL, ToolchainName};
use bbot_machine::machine::Hypervisor;
use bbot_machine::nspawn::Nspawn;
use bbot_machine::owner::{self, Instance, OwnedFolder};
use bbot_machine::qemu::Qemu;
use bbot_manifest::BootstrappedMachine;

use crate::blocking::Blocking;
use crate::options::Options;
use crate::toolchain::{self, Toolchain};
use crate::warm::Bases;

/// How the folders of runs are called, so that they are told from others.
const RUN_PREFIX: &str = "run-";
const SOCKETS_PREFIX: &str = "bbot-run-";

/// The build host, as one agent sees it.
#[derive(Debug, Clone)]
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
    /// What blocks is done there.
    pub blocking: Blocking,
    /// Machines with a worker older than the agent that were bootstrapped all the same.
    pub older: Older,
    /// The machines' saved memory.
    pub bases: Bases,
}

/// Bootstrapped machines whose worker is older than the agent, with the ids of machine
/// and toolchain: to bootstrap them again would give the same.
#[derive(Debug, Clone, Default)]
pub struct Older(Arc<Mutex<HashMap<PathBuf, (String, String)>>>);

/// The folders of one run below the TFTP root; removed when this is dropped, on another
/// thread.
#[derive(Debug)]
pub(crate) struct RunFolders {
    /// Always there; taken out by the drop alone.
    folder: Option<OwnedFolder>,
    blocking: Blocking,
}

impl RunFolders {
    /// `<tftp>/<kind>/<toolchain>/<run>/` with these folders in it.
    pub(crate) fn create(host: &Host, kind: &str, folders: &[&str]) -> Result<Self> {
        let parent = host.run_folders(kind);
        let make = || -> Result<OwnedFolder> {
            let folder = OwnedFolder::create(&host.instance, &parent, RUN_PREFIX)?;
            for name in folders {
                std::fs::create_dir(folder.path().join(name))?;
            }
            Ok(folder)
        };
        let folder = make().with_context(|| {
            format!(
                "unable to make a folder in {}: give --tftp a directory that is writable",
                parent.display()
            )
        })?;
        Ok(Self {
            folder: Some(folder),
            blocking: host.blocking.clone(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder
            .as_ref()
            .map_or(Path::new(""), OwnedFolder::path)
    }
}

impl RunFolders {
    /// Removes them on this thread.
    pub(crate) fn remove_here(mut self) {
        self.folder.take().into_iter().for_each(remove);
    }
}

impl Drop for RunFolders {
    fn drop(&mut self) {
        if let Some(folder) = self.folder.take() {
            self.blocking.detach(move || remove(folder));
        }
    }
}

/// Removes a run's folder.
fn remove(folder: OwnedFolder) {
    let parent = folder.path().parent().map(Path::to_owned);
    drop(folder);
    // The toolchain's folder goes with its last run; where another run is still in it,
    // this does nothing.
    if let Some(parent) = parent {
        let _ = std::fs::remove_dir(parent);
    }
}

impl Host {
    /// The real host, as the options say.
    ///
    /// # Errors
    ///
    /// When QEMU is needed and not there, or a name cannot be used.
    pub async fn open(options: Options) -> Result<Self> {
        let toolchain = options.toolchain_name.parse()?;
        let instance = Instance::new(&format!("bbot-agent {}", options.toolchain_name))?;
        let qemu = Qemu::new();
        // Where nothing is started there is no need to find out how.
        let accelerator = if options.is_fake() {
            Accelerator::Tcg
        } else {
            // Now rather than over the first task.
            qemu.require_installed()?;
            let machine = machine_to_try(&options);
            let state_dir = options.state_dir();
            let host = accel::Host {
                qemu: &qemu,
                user: options.qemu_user.as_deref(),
                state_dir: &state_dir,
            };
            accel::choose(options.accel, machine.as_deref(), host)
                .await?
                .accelerator
        };
        let hypervisor: Arc<dyn Hypervisor> = Arc::new(Hypervisors::new(qemu, Nspawn::new()));
        Ok(Self {
            options,
            hypervisor,
            accelerator,
            instance,
            toolchain,
            blocking: Blocking::default(),
            older: Older::default(),
            bases: Bases::default(),
        })
    }

    /// The toolchain as it is now. Its id is the one given, else the one of a
    /// managed toolchain, else none.
    pub fn toolchain_now(&self) -> Result<Toolchain, toolchain::ToolchainError> {
        let mut toolchain = toolchain::resolve(&self.options.tftp, self.toolchain.as_str())?;
        if let Some(id) = &self.options.toolchain_id {
            toolchain.id = Some(id.clone()).filter(|id| !id.is_empty());
        }
        Ok(toolchain)
    }

    /// Remembers a machine whose worker is older than the agent although it was
    /// bootstrapped just now.
    pub(crate) fn accept_older(&self, directory: &Path, machine: &BootstrappedMachine) {
        let ids = (
            machine.machine.header.id.clone(),
            machine.toolchain.id.clone(),
        );
        let mut older = self.older.0.lock().unwrap_or_else(PoisonError::into_inner);
        older.insert(directory.to_owned(), ids);
    }

    /// Whether that is so of this one.
    pub(crate) fn accepts_older(&self, directory: &Path, machine: &BootstrappedMachine) -> bool {
        let older = self.older.0.lock().unwrap_or_else(PoisonError::into_inner);
        older
            .get(directory)
            .is_some_and(|(machine_id, toolchain_id)| {
                *machine_id == machine.machine.header.id && *toolchain_id == machine.toolchain.id
            })
    }

    /// Finds out whether runs will have a place for their folders.
    pub(crate) fn try_run_folders(&self) -> Result<()> {
        RunFolders::create(self, "build", &[]).map(drop)
    }

    fn run_folders(&self, kind: &str) -> PathBuf {
        self.options.tftp.join(kind).join(self.toolchain.as_str())
    }

    /// A private directory for a run's sockets, with a path that is short enough
    /// for them.
    pub(crate) fn socket_folder(&self) -> Result<OwnedFolder> {
        let [first, second] = socket_parents();
        OwnedFolder::create(&self.instance, &first, SOCKETS_PREFIX)
            .or_else(|_| OwnedFolder::create(&self.instance, &second, SOCKETS_PREFIX))
            .with_context(|| format!("unable to make a folder in {}", second.display()))
    }

    /// Removes what runs that are gone have left, but for their copies of machines: folders, control groups,
    /// taps and rules.
    pub(crate) fn sweep_run_folders(&self) {
        for kind in ["build", "bootstrap"] {
            let parent = self.run_folders(kind);
            sweep_folders(&parent, RUN_PREFIX);
            let _ = std::fs::remove_dir(&parent);
        }
        for parent in socket_parents() {
            sweep_folders(&parent, SOCKETS_PREFIX);
        }
        Nspawn::sweep();
        for problem in bridge::sweep(Path::new(bridge::RECORDS)).problems {
            tracing::warn!("{:#}", anyhow::Error::new(problem));
        }
    }
}

/// The current revision of some machine with a kernel, to try the accelerator with.
fn machine_to_try(options: &Options) -> Option<PathBuf> {
    let scan = layout::scan(&options.machines).ok()?;
    scan.machines
        .iter()
        .filter_map(|machine| layout::resolve_current(machine, BOOTSTRAP_PROTOCOL).ok()?)
        .find(|revision| revision.join("kernel").is_file())
}

fn sweep_folders(parent: &Path, prefix: &str) {
    let (_, problems) = owner::sweep_folders(parent, prefix);
    for problem in problems {
        tracing::warn!("{:#}", anyhow::Error::new(problem));
    }
}

fn socket_parents() -> [PathBuf; 2] {
    [PathBuf::from("/run"), std::env::temp_dir()]
}

/// Whether an error is the host's and not one machine's: every machine would fail
/// alike.
pub(crate) fn is_at_fault(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(bbot_machine::machine::Error::NotInstalled { .. })
    )
}
