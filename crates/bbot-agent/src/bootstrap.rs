//! Making a machine ready for builds: it is started with nothing but a toolchain
//! to fetch, says what it has become, and takes the place of what there was.
//!
//! A revision or toolchain that changes meanwhile makes the bootstrapped machine
//! worth nothing: it is thrown away, and the next look at the machine says what is
//! to be done instead.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bbot_machine::durable;
use bbot_machine::layout::{self, BOOTSTRAP_PROTOCOL, MachineDir};
use bbot_machine::machine::{Disk, Memory, ShutdownOutcome};
use bbot_machine::owner::{OwnerError, Temporary};
use bbot_machine::volume::{Stop, Volume};
use bbot_manifest::{
    BootstrapManifest, BootstrappedMachine, Mac, MachineManifest, ToolchainManifest,
};
use bbot_tftp::{Event, Root};
use tokio::time::timeout;

use crate::blocking::Copied;
use crate::host::{Host, RunFolders};
use crate::inventory::decide::{self, Decision, Why};
use crate::inventory::{self, MacFile};
use crate::options::BOOTSTRAP_SHUTDOWN;
use crate::run::{
    self, ENDING_LIMIT, Left, Patience, Progress, Running, Share, Stage, Start, Startup, Waited,
};
use crate::toolchain::Toolchain;
use crate::version;

/// The file that the machine uploads when it is done.
const MANIFEST: &str = "manifest";

/// The largest bootstrap manifest (docs/protocol.md, section 3).
const MANIFEST_LIMIT: u64 = 64 * 1024;

/// The seed's id of a toolchain whose id is not known.
const NO_ID: &str = "bogus";

/// The card of a machine that was never started (`--fake-bootstrap`).
pub(crate) const FAKE_MAC: Mac = Mac([0xde, 0xad, 0xbe, 0xef, 0xde, 0xad]);

/// What is to be bootstrapped.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the machine is in the layout.
    pub dir: MachineDir,
    /// Its current revision.
    pub revision: PathBuf,
    /// Where the bootstrapped machine goes, `<machine>-<toolchain>`.
    pub directory: PathBuf,
    /// The revision's manifest.
    pub manifest: MachineManifest,
    /// The address of the bootstrapped machine that is there.
    pub mac: Option<Mac>,
    /// With this toolchain. None: nothing is started (`--fake-bootstrap`).
    pub toolchain: Option<Toolchain>,
    /// The toolchain's id, as the machine will bear it.
    pub toolchain_id: Option<String>,
    /// Why.
    pub why: Why,
    /// What its copies are made with.
    pub volume: Arc<dyn Volume>,
}

/// How a bootstrap ended.
#[derive(Debug)]
pub(crate) struct Bootstrapped {
    pub(crate) outcome: Outcome,
    /// Its machine, which is to be ended or kept. None where it has ended in good order.
    pub(crate) left: Option<Left>,
}

/// What a bootstrap has come to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The bootstrapped machine is in its place.
    Done,
    /// The machine or its toolchain has changed meanwhile: it must be looked at again.
    Stale(&'static str),
    /// It did not get there: why.
    Failed(String),
}

impl Bootstrapped {
    fn without_machine(outcome: Outcome) -> Self {
        Self {
            outcome,
            left: None,
        }
    }
}

/// Bootstraps a machine in a copy of it and puts the copy in its place. Nothing of the
/// run is left when this is dropped.
///
/// # Errors
///
/// When the run cannot be prepared or the machine cannot be started.
pub(crate) async fn bootstrap(
    host: &Host,
    plan: &Plan,
    share: Share,
    progress: &mut dyn Progress,
) -> Result<Bootstrapped> {
    let name = &plan.dir.name;
    match plan.why {
        Why::New => tracing::debug!("bootstrapping {}", plan.directory.display()),
        why => tracing::debug!("re-bootstrapping {}: {why}", plan.directory.display()),
    }
    progress.stage(&Stage::Bootstrapping {
        machine: name.clone(),
        why: plan.why.to_string(),
    });
    progress.stage(&Stage::Copying {
        machine: name.clone(),
        attempt: 1,
    });
    let copy = match copy_of(host, plan).await {
        Ok(copy) => copy,
        Err(e) if e.is_race() => {
            return Ok(Bootstrapped::without_machine(Outcome::Stale(
                "its revision was replaced",
            )));
        }
        Err(e) => return Err(e.into()),
    };
    // The copy's own, since the revision may be another one by now.
    let manifest = inventory::read_machine(&plan.dir, copy.path())?;
    if manifest.header.id != plan.manifest.header.id {
        copy.delete().await?;
        return Ok(Bootstrapped::without_machine(Outcome::Stale(
            "its revision was replaced",
        )));
    }
    let Some(toolchain) = &plan.toolchain else {
        let mut machine = manifest;
        machine.mac = Some(FAKE_MAC);
        let outcome = finish(host, plan, copy, machine, BootstrapManifest::ours()).await?;
        return Ok(Bootstrapped::without_machine(outcome));
    };
    start_and_watch(host, plan, share, copy, manifest, toolchain, progress).await
}

async fn start_and_watch(
    host: &Host,
    plan: &Plan,
    share: Share,
    first: Copied,
    mut manifest: MachineManifest,
    toolchain: &Toolchain,
    progress: &mut dyn Progress,
) -> Result<Bootstrapped> {
    let options = &host.options;
    let name = &plan.dir.name;
    let theirs = host.clone();
    let make = move || RunFolders::create(&theirs, "bootstrap", &[]);
    let folders = Arc::new(host.blocking.run(make).await?);
    let mac_file = MacFile::of(&plan.dir, host);
    let mut mac = manifest.mac.or(plan.mac).or_else(|| mac_file.read());
    let mut copy = first;
    let mut attempt = 0;
    let (mut running, alive) = loop {
        progress.stage(&Stage::Starting {
            machine: name.clone(),
            attempt: attempt + 1,
        });
        let root = Root::new().get_folder(&toolchain.path).put_once(
            &[MANIFEST],
            folders.path(),
            MANIFEST_LIMIT,
        );
        let start = Start {
            manifest: &manifest,
            mac,
            share,
            disk: Disk::Kept,
            memory: Memory::Booted,
            root,
            folders: Some(Arc::clone(&folders)),
        };
        let mut running = Running::start(host, copy, start).await?;
        let (file, own) = (mac_file.clone(), running.machine.mac());
        mac = Some(own);
        // It is synced to a disk that others may keep busy.
        host.blocking.run(move || file.write(own)).await;
        // Any request will do: what the original's images fetch first is their
        // own affair.
        let asks = |event: &Event| matches!(event, Event::Requested { .. });
        let limit = options.bootstrap_startup(host.accelerator);
        let alive = run::until_alive(running.machine.as_mut(), limit, asks).await;
        match &alive {
            Startup::MisBoot(why) if attempt < options.bootstrap_retries => {
                tracing::warn!("machine {name} appears to have mis-booted ({why}), retrying");
                Running::end(running).await?;
                attempt += 1;
                progress.stage(&Stage::Copying {
                    machine: name.clone(),
                    attempt: attempt + 1,
                });
                // The seed's retries start from what the try before has left.
                copy = copy_of(host, plan).await?;
            }
            _ => break (running, alive),
        }
    };
    let watched = match alive {
        Startup::MisBoot(why) => Err(Fault::look(format!("bootstrap startup timeout ({why})"))),
        Startup::DiskFull(detail) => Err(Fault::host_full(&detail)),
        Startup::Alive => {
            progress.stage(&Stage::Working {
                machine: name.clone(),
            });
            watch(&mut running, name, options.bootstrap_timeout).await?
        }
    };
    let versions = match watched {
        Ok(versions) => versions,
        Err(Fault { why, look }) => {
            return Ok(Bootstrapped {
                outcome: Outcome::Failed(why.clone()),
                left: Some(Left {
                    running,
                    name: name.clone(),
                    share,
                    look: look.then_some(why),
                    span: tracing::Span::current(),
                }),
            });
        }
    };
    progress.stage(&Stage::Finished {
        machine: name.clone(),
    });
    manifest.mac = mac;
    let copy = Running::into_copy(running).await;
    let finished = timeout(ENDING_LIMIT, finish(host, plan, copy, manifest, versions)).await;
    let outcome = finished.unwrap_or_else(|_| {
        let limit = ENDING_LIMIT.as_secs() / 60;
        let why = format!("the disk has not taken it within {limit} min");
        Ok(Outcome::Failed(why))
    })?;
    Ok(Bootstrapped::without_machine(outcome))
}

/// Why a bootstrap has failed, and whether there is something to look at.
struct Fault {
    why: String,
    look: bool,
}

impl Fault {
    fn look(why: String) -> Self {
        Self { why, look: true }
    }

    fn over(why: String) -> Self {
        Self { why, look: false }
    }

    fn host_full(detail: &str) -> Self {
        Self::over(format!(
            "the build host has no room for what the guest writes: {detail}"
        ))
    }
}

/// Waits for what a guest that is alive uploads, and for its shutdown.
async fn watch(
    running: &mut Running,
    name: &str,
    limit: u64,
) -> Result<Result<BootstrapManifest, Fault>> {
    let machine = running.machine.as_mut();
    let patience = Patience {
        whole: Duration::from_secs(limit),
        // What a toolchain does in the guest is its own affair.
        quiet: None,
    };
    let path = match run::until_uploaded(machine, patience, &[MANIFEST], |_, _| {}).await {
        Waited::Uploaded { path, .. } => path,
        Waited::TimedOut | Waited::Quiet(_) => {
            return Ok(Err(Fault::look("bootstrap timeout".to_owned())));
        }
        Waited::Panicked => {
            let why = "kernel panic during bootstrap".to_owned();
            return Ok(Err(Fault::look(why)));
        }
        Waited::Restarting => {
            let why = "the guest restarts for ever".to_owned();
            return Ok(Err(Fault::look(why)));
        }
        Waited::DiskFull(detail) | Waited::HostFull(detail) => {
            return Ok(Err(Fault::host_full(&detail)));
        }
        Waited::Ended(exit) => {
            let why = format!("it ended before it was bootstrapped: {exit}");
            return Ok(Err(Fault::over(why)));
        }
    };
    // What the guest has written must be on its disk.
    match machine.shutdown(BOOTSTRAP_SHUTDOWN).await? {
        ShutdownOutcome::Down => {}
        ShutdownOutcome::Ended(exit) => {
            let why = format!("it ended before it was shut down: {exit}");
            return Ok(Err(Fault::over(why)));
        }
        ShutdownOutcome::TimedOut => {
            return Ok(Err(Fault::look("bootstrap shutdown timeout".to_owned())));
        }
    }
    let bytes = fs::read(&path).with_context(|| format!("unable to read {}", path.display()))?;
    let source = format!("bootstrap manifest of {name}");
    Ok(BootstrapManifest::parse(&bytes, &source).map_err(|e| Fault::over(e.to_string())))
}

async fn copy_of(host: &Host, plan: &Plan) -> Result<Copied, OwnerError> {
    let instance = host.instance.clone();
    let base = plan.dir.bootstrapped(&host.toolchain);
    let (volume, from) = (Arc::clone(&plan.volume), plan.revision.clone());
    let copy = move |stop: &Stop| Temporary::copy_until(&instance, &volume, &from, &base, stop);
    Copied::make(&host.blocking, &plan.revision, copy).await
}

/// Writes the bootstrapped machine's manifest over the machine's, and puts it in its
/// place, unless it is obsolete by now.
async fn finish(
    host: &Host,
    plan: &Plan,
    copy: Copied,
    machine: MachineManifest,
    bootstrap: BootstrapManifest,
) -> Result<Outcome> {
    let toolchain_id = plan.toolchain_id.as_deref().unwrap_or(NO_ID).to_owned();
    let machine = BootstrappedMachine {
        machine,
        toolchain: ToolchainManifest { id: toolchain_id },
        bootstrap,
    };
    let text = machine
        .serialize()
        .context("unable to write the bootstrapped machine's manifest")?;
    let path = copy.path().join(MANIFEST);
    host.blocking
        .run(move || write_manifest(&path, &text))
        .await?;
    if let Some(what) = changed(host, plan) {
        copy.delete().await?;
        return Ok(Outcome::Stale(what));
    }
    // The old one, and with it its address, was there until now.
    copy.replace(&plan.directory).await?;
    let own = version::own();
    if decide::after_bootstrap(&own, &machine.bootstrap) == Decision::Leave {
        tracing::warn!(
            "ignoring {}: its worker is newer than this agent",
            plan.directory.display()
        );
    } else if decide::compare_worker(&machine.bootstrap, &own).is_lt() {
        tracing::warn!(
            "bootstrapped {} worker is older than agent; assuming test setup",
            plan.directory.display()
        );
        // Bootstrapped again it would be the same.
        host.accept_older(&plan.directory, &machine);
    }
    Ok(Outcome::Done)
}

/// What has changed since the bootstrap began.
fn changed(host: &Host, plan: &Plan) -> Option<&'static str> {
    let current = layout::resolve_current(&plan.dir, BOOTSTRAP_PROTOCOL)
        .ok()
        .flatten();
    let id = current
        .and_then(|current| inventory::read_machine(&plan.dir, &current).ok())
        .map(|manifest| manifest.header.id);
    if id.as_ref() != Some(&plan.manifest.header.id) {
        return Some("its revision was replaced");
    }
    let now = host.toolchain_now().ok().and_then(|now| now.id);
    if plan.toolchain.is_some() && now != plan.toolchain_id {
        return Some("the toolchain was replaced");
    }
    None
}

fn write_manifest(path: &Path, text: &str) -> Result<()> {
    // Memory that was saved of the revision, if that was bootstrapped once, is not this disk's.
    if let Some(directory) = path.parent() {
        for name in [layout::WARM_MANIFEST, layout::WARM_STATE, layout::WARM_RAM] {
            match fs::remove_file(directory.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
    }
    durable::write(path, text.as_bytes())?;
    Ok(())
}
