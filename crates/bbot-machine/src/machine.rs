//! What a running machine is to the agent: start it, hear of it, stop it.
//!
//! [`Hypervisor`] and [`Machine`] are the seam between the agent's loop and the
//! outside world. The real one is [`crate::qemu::Qemu`]; [`fake`] plays a script,
//! so that the loop can be tested with paused time and planted
//! faults. Both traits are object safe, so their futures are boxed by hand.
//!
//! ```text
//!             start                       shutdown (obeyed)
//!   StartSpec ------> running ------------------------------> ended
//!                      |   ^  \  force_down, crash, power off   ^
//!              suspend v   | resume \___________________________|
//!                    suspended _________ force_down ____________|
//! ```

pub mod fake;

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bbot_manifest::{MachineKind, MachineManifest};

use crate::accel::Accelerator;
use crate::bridge::Bridge;
use crate::mac::Mac;
use crate::warm::{Base, Waiting};
use crate::wire::thread::{End, WireEvent, WireThread};
use crate::wire::{MAX_BLKSIZE, Wire};

/// A boxed future, so that the traits here are object safe.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Access of the guest to the world, besides the wire that ends in the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// Nothing but the wire.
    #[default]
    None,
    /// A second card with internet by way of `passt`, an ordinary process; the
    /// host itself cannot be reached over it.
    User,
    /// No wire: the one card is on a bridge of the host's, where the agent's TFTP
    /// server is found too.
    Bridge(Bridge),
}

impl Network {
    /// What a machine of this kind gets of it: one that needs no bridge is put on
    /// one only when that was asked for.
    #[must_use]
    pub fn of(self, kind: MachineKind) -> Self {
        match (self, kind) {
            (Self::Bridge(bridge), MachineKind::Nspawn) if bridge.by_default => Self::None,
            (network, _) => network,
        }
    }

    /// Whether a machine with this network ([`Network::of`] its kind) may run only
    /// once at a time: on a bridge clones would have one hardware address.
    #[must_use]
    pub fn is_exclusive(self) -> bool {
        matches!(self, Self::Bridge(_))
    }
}

/// What becomes of the machine's disk after the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// Kept (a bootstrap): what the guest flushed is on the disk, and the files
    /// are given back to their owner when the machine has ended.
    Kept,
    /// Thrown away with its snapshot (a build): flushes are not waited for.
    ThrowAway,
}

/// How a guest begins, and where its memory is.
#[derive(Debug, Clone, Default)]
pub enum Memory {
    /// It boots.
    #[default]
    Booted,
    /// It boots, and can be saved ([`Machine::save`]).
    ToBeSaved,
    /// It goes on from where it was saved, with the disk as it was then.
    Restored(Arc<Base>),
}

/// What the guest may fetch and upload on its wire.
#[derive(Debug, Clone)]
pub struct Tftp {
    /// The names it may GET and PUT.
    pub root: bbot_tftp::Root,
    /// Bounds. A block size above 1468 is never agreed to, so that nothing is
    /// fragmented on the wire.
    pub limits: bbot_tftp::Limits,
}

impl Tftp {
    /// Serves it on a wire of the machine's own. `heard` is what a restored guest waits for.
    pub(crate) fn serve_on(
        &self,
        end: End,
        heard: Option<(Mac, &Waiting)>,
    ) -> std::io::Result<WireThread> {
        let mut limits = self.limits.clone();
        limits.max_block_size = limits.max_block_size.min(MAX_BLKSIZE);
        let server = bbot_tftp::Server::new(self.root.clone(), limits);
        let mut wire = Wire::new(server);
        if let Some((guest, waiting)) = heard {
            wire.hear(guest, waiting, Instant::now());
        }
        WireThread::start_over(wire, end)
    }
}

/// All that is needed to start a machine.
#[derive(Debug, Clone)]
pub struct StartSpec {
    /// The machine's directory (a temporary snapshot): `disk.img`, and
    /// optionally `kernel`, `initrd` and `cmdline` for a direct boot.
    pub directory: PathBuf,
    /// The machine's manifest: its `options` replace the default disk and
    /// network devices.
    pub manifest: MachineManifest,
    /// The address of the card on the wire. Absent: the manifest's, and when it
    /// has none, a new one is made; [`Machine::mac`] tells.
    pub mac: Option<Mac>,
    /// Virtual processors, at least 1.
    pub cpus: u32,
    /// Memory of the guest in KiB.
    pub ram_kib: u64,
    /// Access to the world.
    pub network: Network,
    /// How the guest's instructions are run: [`crate::accel::choose`] tells.
    pub accelerator: Accelerator,
    /// What becomes of the disk.
    pub disk: Disk,
    /// How the guest begins.
    pub memory: Memory,
    /// What the guest may fetch and upload.
    pub tftp: Tftp,
    /// A directory for the run's sockets. It is made, with mode 0700, if it is
    /// not there; its path must be short enough for a socket's (about 90 bytes).
    pub run_dir: PathBuf,
    /// When the agent is root: the user that QEMU runs as. Absent: `bbot-qemu`
    /// where there is such a user, else `nobody`. Ignored for an agent that is
    /// not root.
    pub user: Option<String>,
}

/// Whether there is something to boot from: `disk.img`, unless the machine's own
/// options say what its disks are.
///
/// # Errors
///
/// [`Error::NoDisk`] when there is not.
pub fn require_disk(manifest: &MachineManifest, directory: &Path) -> Result<(), Error> {
    if manifest.options.is_none() && !directory.join("disk.img").is_file() {
        return Err(Error::NoDisk {
            directory: directory.to_owned(),
        });
    }
    Ok(())
}

/// Starts machines.
pub trait Hypervisor: Send + Sync + fmt::Debug {
    /// Starts a machine; it is running when this returns.
    ///
    /// # Errors
    ///
    /// When it cannot be started; nothing is left behind then.
    fn start(&self, spec: StartSpec) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>>;
}

/// A machine that was started. Dropping it kills it.
pub trait Machine: Send + fmt::Debug {
    /// The address of its card on the wire.
    fn mac(&self) -> Mac;

    /// The next thing that happens. Cancel safe: no event is lost. After
    /// [`MachineEvent::Exited`] it never completes again.
    fn next_event(&mut self) -> BoxFuture<'_, MachineEvent>;

    /// Asks the guest to power off and waits for it. Events that happen
    /// meanwhile stay queued for [`Machine::next_event`]. After
    /// [`ShutdownOutcome::TimedOut`] the machine still runs.
    ///
    /// # Errors
    ///
    /// When the machine cannot be asked.
    fn shutdown(&mut self, timeout: Duration) -> BoxFuture<'_, Result<ShutdownOutcome, Error>>;

    /// Ends the machine at once; it has ended when this returns. Ending one that
    /// has ended is no error.
    ///
    /// # Errors
    ///
    /// When its process cannot be ended.
    fn force_down(&mut self) -> BoxFuture<'_, Result<(), Error>>;

    /// Stops the guest's clock and processors; memory and devices stay, so that
    /// a person can look at it.
    ///
    /// # Errors
    ///
    /// When the machine has ended or does not obey.
    fn suspend(&mut self) -> BoxFuture<'_, Result<(), Error>>;

    /// Lets a suspended guest go on.
    ///
    /// # Errors
    ///
    /// When the machine has ended or does not obey.
    fn resume(&mut self) -> BoxFuture<'_, Result<(), Error>>;

    /// Saves a machine that was started to be saved ([`Memory::ToBeSaved`]) while its worker waits
    /// for the answer to a request that was held back, and ends it. Its disk then belongs to what was
    /// saved.
    ///
    /// # Errors
    ///
    /// When it was not started so, or cannot be saved.
    fn save(&mut self, waiting: Waiting) -> BoxFuture<'_, Result<Base, Error>> {
        drop(waiting);
        Box::pin(async {
            Err(Error::Unsaved {
                why: "machines of its kind are not saved".to_owned(),
            })
        })
    }

    /// Lets a suspended guest go on whose worker waits for the answer to a request that was held
    /// back: from now on it is served from this root. What happened on its wire before is forgotten.
    /// A virtual machine must have been restored for that; once only.
    ///
    /// # Errors
    ///
    /// When it is not one of these, or does not obey.
    fn go_on(&mut self, tftp: Tftp, waiting: Waiting) -> BoxFuture<'_, Result<(), Error>> {
        drop((tftp, waiting));
        Box::pin(async {
            Err(Error::Unrestored {
                why: "machines of its kind do not wait for a task".to_owned(),
            })
        })
    }

    /// Waits until the machine has ended, and tells why. Cancel safe, and
    /// answers again when asked again.
    fn wait(&mut self) -> BoxFuture<'_, Exit>;

    /// What a person needs to look at it: name, process, state, and how to reach
    /// its console and screen. Several lines, without a newline at the end.
    fn info(&self) -> String;

    /// The number of its process, while it has one.
    fn process(&self) -> Option<u32> {
        None
    }

    /// The UNIX socket of its serial console. Whoever connects speaks to the
    /// guest, one at a time; a second one waits until the first has left.
    fn console(&self) -> Option<PathBuf> {
        None
    }

    /// The UNIX socket of its screen, which speaks VNC (RFB).
    fn screen(&self) -> Option<PathBuf> {
        None
    }

    /// The command that opens a shell in it, for root of the host. None where only the
    /// guest itself can open one.
    fn shell(&self) -> Option<Vec<String>> {
        None
    }

    /// The end of what the guest said on its console, at most
    /// [`LAST_WORDS`] bytes, with everything taken out that a terminal would
    /// obey. Empty when it said nothing or has no console.
    fn last_words(&self) -> String {
        String::new()
    }
}

/// How much of the end of a console is kept, in bytes.
pub const LAST_WORDS: usize = 64 * 1024;

/// After so many restarts of one guest it is taken to restart for ever. An
/// installation restarts a few times, and QEMU may tell of one restart thrice.
pub const MAX_RESETS: u32 = 64;

/// What happens to a running machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MachineEvent {
    /// The guest asked for a file, fetched or uploaded one, or failed to.
    Tftp(bbot_tftp::Event),
    /// The machine has ended. The last event.
    Exited(Exit),
    /// The guest reported that its kernel panicked; it is halted for a look.
    Panicked,
    /// The guest began to power off; [`MachineEvent::Exited`] follows.
    PoweringOff,
    /// The guest restarted itself. May be told more than once for one restart;
    /// restarts in quick succession may be told once.
    Reset,
    /// The guest has restarted itself [`MAX_RESETS`] times: it will not come to
    /// its work. Told once; it still runs.
    RebootLoop,
    /// The guest sends faster on its wire than anything of use does, and is
    /// slowed down (`docs/decisions/0008-flood.md`). Told once; it still runs.
    Flooding,
    /// A frame that the guest sent on its wire could not be read, and was dropped.
    /// Told once, of the first; how many there were is in the log when the machine
    /// has ended. It still runs.
    MalformedFrames,
    /// The host has no room for what the guest wrote to its disk. The guest is
    /// halted in the middle of that; [`Machine::resume`] lets it try again.
    DiskFull {
        /// Which of its disks, and the system's words.
        detail: String,
    },
    /// The way to the internet ([`Network::User`]) has ended; the guest runs on
    /// without.
    InternetLost {
        /// How its process ended.
        detail: String,
    },
}

impl From<WireEvent> for MachineEvent {
    fn from(event: WireEvent) -> Self {
        match event {
            WireEvent::Tftp(event) => Self::Tftp(event),
            WireEvent::Flooding => Self::Flooding,
            WireEvent::Malformed => Self::MalformedFrames,
        }
    }
}

/// How [`Machine::shutdown`] ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShutdownOutcome {
    /// The guest has powered off: what it wrote is on its disk.
    Down,
    /// The machine has ended otherwise, of itself or by another's hand: of what the
    /// guest wrote some may be missing.
    Ended(Exit),
    /// It did not obey in time and still runs.
    TimedOut,
}

impl ShutdownOutcome {
    /// That of a machine that has ended.
    pub(crate) fn of(exit: &Exit) -> Self {
        match exit.cause {
            ExitCause::PoweredOff => Self::Down,
            ExitCause::Forced | ExitCause::Crashed => Self::Ended(exit.clone()),
        }
    }
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// By whose doing.
    pub cause: ExitCause,
    /// The exit status or signal of its process, and the end of what it said on
    /// standard error. For people.
    pub detail: String,
}

/// By whose doing a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCause {
    /// The guest powered off, by itself or since it was asked to.
    PoweredOff,
    /// We ended it.
    Forced,
    /// Its process ended though nobody asked: it crashed or was killed. So is one
    /// whose wire has failed, since nobody would hear of it any more.
    Crashed,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.cause {
            ExitCause::PoweredOff => "the guest powered off",
            ExitCause::Forced => "the machine was forced down",
            ExitCause::Crashed => "the machine ended unexpectedly",
        })?;
        if self.detail.is_empty() {
            Ok(())
        } else {
            write!(f, ": {}", self.detail)
        }
    }
}

/// Why a machine could not be started or did not obey.
#[expect(clippy::error_impl_error, reason = "used as `machine::Error`")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program is missing.
    #[error("{program} is not installed: install the package {package} (looked for it in PATH)")]
    NotInstalled {
        /// The program's name.
        program: String,
        /// Debian's package of it.
        package: &'static str,
    },
    /// The machine has nothing to boot from.
    #[error(
        "its disk {} is not there; create or import the machine again",
        directory.join("disk.img").display()
    )]
    NoDisk {
        /// The machine's directory.
        directory: PathBuf,
    },
    /// The machine's manifest, or what was asked, cannot be done.
    #[error("machine {machine}: {what}")]
    Unsupported {
        /// The machine's name.
        machine: String,
        /// What, and how to mend it.
        what: String,
    },
    /// A file, socket or process could not be made.
    #[error("unable to {what}")]
    Io {
        /// What was tried, with the path.
        what: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The machine's process ended before the machine ran.
    #[error("machine {machine} did not start: {detail}")]
    NotStarted {
        /// The machine's name.
        machine: String,
        /// What the process said.
        detail: String,
    },
    /// The machine cannot be saved.
    #[error("unable to save its memory: {why}")]
    Unsaved {
        /// Why.
        why: String,
    },
    /// What was saved of the machine cannot be restored here and now.
    #[error("unable to restore its saved memory: {why}")]
    Unrestored {
        /// Why.
        why: String,
    },
    /// The machine refused a command.
    #[error("machine {machine} refused {command}: {reason}")]
    Refused {
        /// The machine's name.
        machine: String,
        /// The command.
        command: String,
        /// Its reason.
        reason: String,
    },
    /// The machine did not answer in time.
    #[error("machine {machine} did not answer {command} within {} s", timeout.as_secs())]
    NoAnswer {
        /// The machine's name.
        machine: String,
        /// The command.
        command: String,
        /// How long was waited.
        timeout: Duration,
    },
    /// The machine has ended.
    #[error("machine {machine} is not running any more")]
    Ended {
        /// The machine's name.
        machine: String,
    },
}
