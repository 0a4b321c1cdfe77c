//! What a bootstrap and a build have in common: waiting for a guest, with
//! deadlines, and what is done when it fails.
//!
//! ```text
//!   started --first request--> alive --upload--> done
//!      |                         |
//!      | silent, or ended        | too long, panic        ended
//!      v                         v                          v
//!   mis-boot: once more,      suspended for a person,   no suspension: there
//!   at last suspended         then forced down          is nothing to look at
//! ```

use std::path::PathBuf;
use std::time::Duration;

use bbot_machine::machine::{Exit, Machine, MachineEvent};
use bbot_tftp::Event;
use tokio::time::{Instant, timeout_at};

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
    /// A machine is copied and started, for the time with this number (from 1).
    Starting {
        /// The machine.
        machine: String,
        /// Which try this is.
        attempt: u32,
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
    /// The machine has ended without it.
    Ended(Exit),
    /// The guest's kernel panicked.
    Panicked,
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
            Ok(other) => tracing::trace!("guest: {other:?}"),
        }
    }
}

/// Waits for one of the uploads in `names`; the others are handed to `other` as
/// they come.
pub(crate) async fn until_uploaded(
    machine: &mut dyn Machine,
    limit: Duration,
    names: &[&str],
    mut other: impl FnMut(&str, &std::path::Path),
) -> Waited {
    let begin = Instant::now();
    loop {
        match timeout_at(begin + limit, machine.next_event()).await {
            Err(_) => return Waited::TimedOut,
            Ok(MachineEvent::Tftp(event)) => {
                trace(&event);
                if let Event::Uploaded { name, path, .. } = event {
                    if names.contains(&name.as_str()) {
                        tracing::trace!("upload of {name} after {} s", begin.elapsed().as_secs());
                        return Waited::Uploaded { name, path };
                    }
                    other(&name, &path);
                }
            }
            Ok(MachineEvent::Exited(exit)) => return Waited::Ended(exit),
            Ok(MachineEvent::Panicked) => return Waited::Panicked,
            Ok(event) => tracing::trace!("guest: {event:?}"),
        }
    }
}

fn trace(event: &Event) {
    match event {
        Event::Failed { name, reason } => tracing::debug!("tftp: {name}: {reason}"),
        event => tracing::trace!("tftp: {event:?}"),
    }
}

/// The seed's soft failure: the machine is suspended so that a person can look at
/// it, and the run goes on when that person has ended it. New is the bound: after
/// `keep` it is forced down.
pub(crate) async fn suspend(
    machine: &mut dyn Machine,
    what: &str,
    directory: &std::path::Path,
    keep: Duration,
) {
    let directory = directory.display();
    if keep.is_zero() {
        tracing::error!("{what} for machine {directory}\n{}", machine.info());
        return force_down(machine).await;
    }
    tracing::error!(
        "{what} for machine {directory}, suspending for {} s\n{}\n{}",
        keep.as_secs(),
        machine.info(),
        end_of_suspension(keep)
    );
    match machine.suspend().await {
        Ok(()) => match tokio::time::timeout(keep, machine.wait()).await {
            Ok(exit) => {
                tracing::info!("the suspension of machine {directory} is over: {exit}");
            }
            Err(_) => tracing::info!(
                "machine {directory} was suspended for {} s, forcing it down",
                keep.as_secs()
            ),
        },
        Err(e) => tracing::warn!(
            "unable to suspend machine {directory}: {:#}",
            anyhow::Error::new(e)
        ),
    }
    force_down(machine).await;
}

/// The last line of what a person is told of a suspended machine, behind
/// [`Machine::info`], which names its process.
fn end_of_suspension(keep: Duration) -> String {
    format!(
        "it stays as it is until that process is killed, for {} s at most (--suspend-timeout)",
        keep.as_secs()
    )
}

/// Ends a machine. A failure is only told: dropping the machine kills it anyway.
pub(crate) async fn force_down(machine: &mut dyn Machine) {
    if let Err(e) = machine.force_down().await {
        tracing::warn!("{:#}", anyhow::Error::new(e));
    }
}
