//! Making a machine ready for builds: it is started with nothing but a toolchain
//! to fetch, and says what it has become.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bbot_machine::durable;
use bbot_machine::machine::{Disk, ShutdownOutcome, StartSpec, Tftp};
use bbot_machine::owner::Temporary;
use bbot_manifest::{
    BootstrapManifest, BootstrappedMachine, Mac, MachineManifest, ToolchainManifest,
};
use bbot_tftp::{Event, Limits, Root};

use crate::host::{Host, RunFolders};
use crate::options::BOOTSTRAP_SHUTDOWN;
use crate::run::{self, Progress, Stage, Startup, Waited};
use crate::toolchain::Toolchain;

/// The file that the machine uploads when it is done.
const MANIFEST: &str = "manifest";

/// The largest bootstrap manifest (docs/protocol.md, section 3).
const MANIFEST_LIMIT: u64 = 64 * 1024;

/// The seed's id of a toolchain whose id is not known.
const NO_ID: &str = "bogus";

/// The card of a machine that was never started (`--fake-bootstrap`).
pub(crate) const FAKE_MAC: Mac = Mac([0xde, 0xad, 0xbe, 0xef, 0xde, 0xad]);

/// How a bootstrap ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The temporary is the bootstrapped machine, its manifest written.
    Done(Temporary, Box<BootstrappedMachine>),
    /// It did not get there; it was told why.
    Failed,
}

/// What is to be bootstrapped.
pub(crate) struct Plan<'a> {
    /// The machine's manifest.
    pub(crate) manifest: &'a MachineManifest,
    /// The address that it had before.
    pub(crate) mac: Option<Mac>,
    /// Called with the address that it has, as soon as that is known.
    pub(crate) keep_mac: &'a mut (dyn FnMut(Mac) + Send),
    /// With this toolchain.
    pub(crate) toolchain: &'a Toolchain,
    /// Makes another copy of the machine: the seed's retries start from what the
    /// try before has left, ours do not.
    pub(crate) copy: &'a mut (dyn FnMut() -> Result<Temporary> + Send),
}

/// Takes a machine as bootstrapped without starting it.
pub(crate) fn fake(
    copy: Temporary,
    manifest: &MachineManifest,
    toolchain_id: Option<&str>,
) -> Result<Outcome> {
    let mut machine = manifest.clone();
    machine.mac = Some(FAKE_MAC);
    finish(copy, machine, toolchain_id, BootstrapManifest::ours())
}

/// Bootstraps a machine in a copy of it.
///
/// # Errors
///
/// When the run cannot be prepared or the machine cannot be started.
pub(crate) async fn bootstrap(
    host: &Host,
    plan: Plan<'_>,
    first: Temporary,
    progress: &mut dyn Progress,
) -> Result<Outcome> {
    let options = &host.options;
    let name = &plan.manifest.header.name;
    let folders = RunFolders::create(host, "bootstrap", &[])?;
    let startup = options.bootstrap_startup(host.accelerator);
    let limit = Duration::from_secs(options.bootstrap_timeout);
    let keep = options.suspend_timeout();
    let mut mac = plan.manifest.mac.or(plan.mac);
    let mut copy = first;

    for attempt in 0..=options.bootstrap_retries {
        if attempt > 0 {
            copy.delete()?;
            copy = (plan.copy)()?;
        }
        progress.stage(&Stage::Starting {
            machine: name.clone(),
            attempt: attempt + 1,
        });
        let root = Root::new().get_folder(&plan.toolchain.path).put_once(
            &[MANIFEST],
            folders.path(),
            MANIFEST_LIMIT,
        );
        let sockets = host.socket_folder()?;
        let mut machine = host
            .hypervisor
            .start(StartSpec {
                directory: copy.path().to_owned(),
                manifest: plan.manifest.clone(),
                mac,
                cpus: options.cpu,
                ram_kib: options.ram,
                network: options.machine_network(),
                accelerator: host.accelerator,
                disk: Disk::Kept,
                tftp: Tftp {
                    root,
                    limits: Limits::wire(),
                },
                run_dir: sockets.path().to_owned(),
                user: options.qemu_user.clone(),
            })
            .await?;
        let machine = machine.as_mut();
        mac = Some(machine.mac());
        (plan.keep_mac)(machine.mac());

        // Any request will do: what the original's images fetch first is their
        // own affair.
        let asks = |event: &Event| matches!(event, Event::Requested { .. });
        if let Startup::MisBoot(why) = run::until_alive(machine, startup, asks).await {
            if attempt == options.bootstrap_retries {
                let what = format!("bootstrap startup timeout ({why})");
                run::suspend(machine, &what, copy.path(), keep).await;
                return Ok(Outcome::Failed);
            }
            tracing::warn!("machine {name} appears to have mis-booted ({why}), retrying");
            run::force_down(machine).await;
            continue;
        }
        progress.stage(&Stage::Working {
            machine: name.clone(),
        });

        let path = match run::until_uploaded(machine, limit, &[MANIFEST], |_, _| {}).await {
            Waited::Uploaded { path, .. } => path,
            Waited::TimedOut => {
                run::suspend(machine, "bootstrap timeout", copy.path(), keep).await;
                return Ok(Outcome::Failed);
            }
            Waited::Panicked => {
                run::suspend(machine, "kernel panic during bootstrap", copy.path(), keep).await;
                return Ok(Outcome::Failed);
            }
            Waited::Ended(exit) => {
                tracing::error!("machine {name} ended before it was bootstrapped: {exit}");
                return Ok(Outcome::Failed);
            }
        };
        // What the guest has written must be on its disk.
        match machine.shutdown(BOOTSTRAP_SHUTDOWN).await? {
            ShutdownOutcome::Down => {}
            ShutdownOutcome::TimedOut => {
                run::suspend(machine, "bootstrap shutdown timeout", copy.path(), keep).await;
                return Ok(Outcome::Failed);
            }
        }
        progress.stage(&Stage::Finished {
            machine: name.clone(),
        });

        let bytes =
            fs::read(&path).with_context(|| format!("unable to read {}", path.display()))?;
        let source = format!("bootstrap manifest of {name}");
        let versions = match BootstrapManifest::parse(&bytes, &source) {
            Ok(versions) => versions,
            Err(e) => {
                tracing::error!("{e}");
                return Ok(Outcome::Failed);
            }
        };
        let mut manifest = plan.manifest.clone();
        manifest.mac = mac;
        return finish(copy, manifest, plan.toolchain.id.as_deref(), versions);
    }
    unreachable!("the last try returns")
}

/// Writes the bootstrapped machine's manifest over the machine's.
fn finish(
    copy: Temporary,
    machine: MachineManifest,
    toolchain_id: Option<&str>,
    bootstrap: BootstrapManifest,
) -> Result<Outcome> {
    let machine = BootstrappedMachine {
        machine,
        toolchain: ToolchainManifest {
            id: toolchain_id.unwrap_or(NO_ID).to_owned(),
        },
        bootstrap,
    };
    let text = machine
        .serialize()
        .context("unable to write the bootstrapped machine's manifest")?;
    write_manifest(&copy.path().join(MANIFEST), &text)?;
    Ok(Outcome::Done(copy, Box::new(machine)))
}

fn write_manifest(path: &Path, text: &str) -> Result<()> {
    durable::write(path, text.as_bytes())?;
    Ok(())
}
