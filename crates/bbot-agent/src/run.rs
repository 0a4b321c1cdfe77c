//! What a bootstrap and a build have in common: waiting for a guest, with
//! deadlines, and what is done when it fails.
//!
//! ```text
//!   started --first request--> alive --upload--> done
//!      |                         |
//!      | silent, or ended        | too long, panic        ended
//!      v                         v                          v
//!   mis-boot: once more,      kept for a person         nothing to look at
//!   at last kept              (crate::suspended)
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bbot_machine::machine::{Disk, Exit, Machine, MachineEvent, Memory, StartSpec, Tftp};
use bbot_machine::owner::{OwnedFolder, OwnerError};
use bbot_manifest::{Mac, MachineManifest};
use bbot_tftp::{Event, Kind, Limits, Root};
use tokio::time::{Instant, timeout_at};

use crate::blocking::{Copied, Elsewhere};
use crate::host::{Host, RunFolders};
use crate::lack::Lack;

/// The longest that the end of a run may take: its machine is ended, its copy deleted or put in
/// its place.
pub(crate) const ENDING_LIMIT: Duration = Duration::from_secs(15 * 60);

/// What a person at a terminal is told while a run goes on.
pub trait Progress: Send {
    /// Something has begun.
    fn stage(&mut self, stage: &Stage);

    /// Whether the log is shown as it grows: then [`Progress::log`] is called, and the
    /// result of a build that is cut short does not repeat it.
    fn wants_log(&self) -> bool;

    /// A piece of an operation's raw log, in order.
    fn log(&mut self, operation: &str, bytes: &[u8]);
}

/// What a run is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// A machine is copied, for the time with this number (from 1).
    Copying {
        /// The machine.
        machine: String,
        /// Which try this is.
        attempt: u32,
    },
    /// The copy is started, the same.
    Starting {
        /// The machine.
        machine: String,
        /// Which try this is.
        attempt: u32,
    },
    /// A machine is started once more, and saved when its worker asks for a task.
    Saving {
        /// The machine.
        machine: String,
    },
    /// A machine is being bootstrapped.
    Bootstrapping {
        /// The machine.
        machine: String,
        /// Why.
        why: String,
    },
    /// The guest has asked for its task or its toolchain.
    Working {
        /// The machine.
        machine: String,
    },
    /// The guest has uploaded what was waited for.
    Finished {
        /// The machine.
        machine: String,
    },
}

/// Nobody looks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&mut self, _: &Stage) {}

    fn wants_log(&self) -> bool {
        false
    }

    fn log(&mut self, _: &str, _: &[u8]) {}
}

/// How a machine's start went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Startup {
    /// The guest has asked for something.
    Alive,
    /// It gave no sign of life, and why nothing can be expected any more.
    MisBoot(String),
    /// The host has no room for what the guest writes to its disk: where, and the system's words.
    DiskFull(String),
}

/// How waiting for an upload went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Waited {
    /// It has come.
    Uploaded {
        /// Its name.
        name: String,
        /// Where it is.
        path: PathBuf,
    },
    /// It took too long.
    TimedOut,
    /// Nothing was heard of the guest for this long.
    Quiet(Duration),
    /// The machine has ended without it.
    Ended(Exit),
    /// The guest's kernel panicked.
    Panicked,
    /// The guest restarts for ever.
    Restarting,
    /// The host has no room for what the guest writes to its disk: where, and the system's words.
    DiskFull(String),
    /// The host could not take the upload: what it lacks.
    HostFull(String),
}

/// For how long an upload is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// In all.
    pub(crate) whole: Duration,
    /// From one sign of life to the next; `None`: as long as that.
    pub(crate) quiet: Option<Duration>,
}

/// Waits for the first sign of life.
pub(crate) async fn until_alive(
    machine: &mut dyn Machine,
    limit: Duration,
    is_sign: impl Fn(&Event) -> bool,
) -> Startup {
    let begin = Instant::now();
    loop {
        match timeout_at(begin + limit, machine.next_event()).await {
            Err(_) => return Startup::MisBoot(format!("no request within {} s", limit.as_secs())),
            Ok(MachineEvent::Tftp(event)) => {
                trace(&event);
                if is_sign(&event) {
                    tracing::trace!("completed startup in {} s", begin.elapsed().as_secs());
                    return Startup::Alive;
                }
            }
            Ok(MachineEvent::Exited(exit)) => return Startup::MisBoot(exit.to_string()),
            Ok(MachineEvent::Panicked) => {
                return Startup::MisBoot("the guest's kernel panicked".to_owned());
            }
            Ok(MachineEvent::RebootLoop) => {
                return Startup::MisBoot("the guest restarts for ever".to_owned());
            }
            Ok(MachineEvent::DiskFull { detail }) => return Startup::DiskFull(detail),
            Ok(other) => tell(&other),
        }
    }
}

/// Waits for one of the uploads in `names`; the others are handed to `other` as
/// they come.
pub(crate) async fn until_uploaded(
    machine: &mut dyn Machine,
    patience: Patience,
    names: &[&str],
    mut other: impl FnMut(&str, &std::path::Path),
) -> Waited {
    let begin = Instant::now();
    let end = begin + patience.whole;
    let mut heard = begin;
    let mut lack = Lack::default();
    loop {
        let quiet = patience.quiet.map(|quiet| (quiet, heard + quiet));
        let times = [quiet.map(|(_, at)| at), lack.deadline()];
        let next = times.into_iter().flatten().fold(end, Instant::min);
        match timeout_at(next, machine.next_event()).await {
            Err(_) => {
                if let Some(what) = lack.over(next) {
                    return Waited::HostFull(what.to_owned());
                }
                return match quiet {
                    Some((quiet, at)) if at < end => Waited::Quiet(quiet),
                    _ => Waited::TimedOut,
                };
            }
            Ok(MachineEvent::Tftp(event)) => {
                trace(&event);
                heard = Instant::now();
                match event {
                    Event::Uploaded { name, path, .. } if names.contains(&name.as_str()) => {
                        tracing::trace!("upload of {name} after {} s", begin.elapsed().as_secs());
                        return Waited::Uploaded { name, path };
                    }
                    Event::Uploaded { name, path, .. } => other(&name, &path),
                    Event::Requested {
                        kind: Kind::Put,
                        name,
                        ..
                    } if names.contains(&name.as_str()) => lack.tried(),
                    Event::Failed { name, reason } if names.contains(&name.as_str()) => {
                        if reason.is_of_host() {
                            tracing::warn!("unable to take {name} of the guest: {reason}");
                        }
                        lack.failed(&reason, heard);
                    }
                    _ => {}
                }
            }
            Ok(MachineEvent::Exited(exit)) => return Waited::Ended(exit),
            Ok(MachineEvent::Panicked) => return Waited::Panicked,
            Ok(MachineEvent::RebootLoop) => return Waited::Restarting,
            Ok(MachineEvent::DiskFull { detail }) => return Waited::DiskFull(detail),
            Ok(event) => tell(&event),
        }
    }
}

/// Tells of an event that changes nothing for the run.
fn tell(event: &MachineEvent) {
    match event {
        MachineEvent::Flooding => {
            tracing::warn!("the guest floods its wire; it is slowed down");
        }
        MachineEvent::MalformedFrames => {
            tracing::warn!(
                "the guest sends frames that cannot be read; they are dropped, and counted at its end"
            );
        }
        MachineEvent::InternetLost { detail } => {
            tracing::warn!("the guest has lost the internet: {detail}");
        }
        event => tracing::trace!("guest: {event:?}"),
    }
}

fn trace(event: &Event) {
    match event {
        Event::Failed { name, reason } => tracing::debug!("tftp: {name}: {reason}"),
        event => tracing::trace!("tftp: {event:?}"),
    }
}

/// What a run gets of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in KiB.
    pub ram_kib: u64,
}

/// A machine that runs, and what it runs on. Dropping it leaves nothing of it.
#[derive(Debug)]
pub(crate) struct Running {
    // Dropped in this order: whatever serves the machine still has its folders.
    pub(crate) machine: Box<dyn Machine>,
    pub(crate) copy: Copied,
    _sockets: OwnedFolder,
    /// None before it has a task.
    pub(crate) folders: Option<Arc<RunFolders>>,
}

impl Running {
    /// Starts a machine in a copy of it.
    ///
    /// # Errors
    ///
    /// When it cannot be started; then nothing is left of it.
    pub(crate) async fn start(host: &Host, copy: Copied, of: Start<'_>) -> Result<Elsewhere<Self>> {
        let sockets = host.socket_folder()?;
        let options = &host.options;
        let spec = StartSpec {
            directory: copy.path().to_owned(),
            manifest: of.manifest.clone(),
            mac: of.mac,
            cpus: of.share.cpus,
            ram_kib: of.share.ram_kib,
            network: options.machine_network(),
            accelerator: host.accelerator,
            disk: of.disk,
            memory: of.memory,
            tftp: Tftp {
                root: of.root,
                limits: Limits::wire(),
            },
            run_dir: sockets.path().to_owned(),
            user: options.qemu_user.clone(),
        };
        let hypervisor = Arc::clone(&host.hypervisor);
        let starting = async move {
            anyhow::Ok(Self {
                machine: hypervisor.start(spec).await?,
                copy,
                _sockets: sockets,
                folders: of.folders,
            })
        };
        // What is half started may take its time to end as well.
        let mut starting = Elsewhere::new(&host.blocking, Box::pin(starting));
        let running = starting.as_mut().await?;
        Ok(Elsewhere::new(&host.blocking, running))
    }

    /// Ends the machine, if it has not ended, and deletes its copy.
    ///
    /// # Errors
    ///
    /// When the copy cannot be deleted; it then stays with its record, for the next sweep.
    pub(crate) async fn end(mut this: Elsewhere<Self>) -> Result<(), OwnerError> {
        force_down(this.machine.as_mut()).await;
        let end = |running: Self| {
            drop(running.machine);
            if let Some(folders) = running.folders.and_then(Arc::into_inner) {
                folders.remove_here();
            }
            running.copy.delete_here()
        };
        this.end(end).await
    }

    /// The copy of a machine that has ended.
    pub(crate) async fn into_copy(this: Elsewhere<Self>) -> Copied {
        let end = |running: Self| {
            drop(running.machine);
            running.copy
        };
        this.end(end).await
    }
}

/// What a machine is started with, besides what its host says.
pub(crate) struct Start<'a> {
    pub(crate) manifest: &'a MachineManifest,
    pub(crate) mac: Option<Mac>,
    pub(crate) share: Share,
    pub(crate) disk: Disk,
    pub(crate) memory: Memory,
    pub(crate) root: Root,
    /// What is in them goes when the machine has gone, and nobody else has them.
    pub(crate) folders: Option<Arc<RunFolders>>,
}

/// What is left of a run that has come to its end.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) running: Elsewhere<Running>,
    /// The machine's name.
    pub(crate) name: String,
    /// What it has of the host.
    pub(crate) share: Share,
    /// Why a person may want to look at it (the seed's soft failures).
    pub(crate) look: Option<String>,
    /// The run's: what is said of the machine later is of its session, too.
    pub(crate) span: tracing::Span,
}

impl Left {
    /// Stops the machine, so that a person finds it as it was. None: it could not be
    /// stopped, and nothing of it is left.
    pub(crate) async fn suspend(mut self) -> Option<Self> {
        if let Err(e) = self.running.machine.suspend().await {
            let e = anyhow::Error::new(e);
            tracing::warn!("unable to suspend machine {}: {e:#}", self.name);
            self.clean_up().await;
            return None;
        }
        Some(self)
    }

    /// Ends the machine, if it has not ended, and removes all of the run. Without a
    /// clean shutdown: the copy is thrown away.
    pub(crate) async fn clean_up(self) {
        if let Err(e) = Running::end(self.running).await {
            tracing::warn!("{:#}; left for the next sweep", anyhow::Error::new(e));
        }
    }
}

/// Ends a machine. A failure is only told: dropping the machine kills it anyway.
pub(crate) async fn force_down(machine: &mut dyn Machine) {
    if let Err(e) = machine.force_down().await {
        tracing::warn!("{:#}", anyhow::Error::new(e));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostics::Form;
    use crate::diagnostics::tests::told;

    /// At the default verbosity, whatever becomes of the run.
    #[test]
    fn what_a_guest_does_to_its_wire_is_told() {
        for (event, words) in [
            (MachineEvent::MalformedFrames, "frames that cannot be read"),
            (MachineEvent::Flooding, "floods its wire"),
        ] {
            let said = told(1, Form::Plain, || tell(&event));
            assert!(said.starts_with("warning: the guest "), "{said}");
            assert!(said.contains(words), "{said}");
        }
    }
}
