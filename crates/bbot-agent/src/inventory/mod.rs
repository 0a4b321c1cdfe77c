//! Which machines there are: enumeration with its races, and bootstrapping what
//! must be bootstrapped.
//!
//! For each machine (the seed's plan):
//!
//! 1. resolve the link to the current revision; none: delete the bootstrapped
//!    copy and pass the machine over;
//! 2. [`decide`] by the revision's manifest whether the bootstrapped copy will
//!    do. New: nothing is copied to find that out;
//! 3. else copy the revision. If that fails since somebody changed the link and
//!    removed the revision, begin again, at most ten times, a second apart;
//! 4. read the manifest in the copy (not in the revision, which may be gone),
//!    decide again, bootstrap the copy, and put it in the old one's place.
//!
//! What is wrong with one machine concerns that machine alone: it is told once,
//! and the machine gets a growing pause before it is tried again.

pub mod decide;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use bbot_machine::durable;
use bbot_machine::hypervisor;
use bbot_machine::layout::{self, BOOTSTRAP_PROTOCOL, MachineDir};
use bbot_machine::owner::{self, Temporary};
use bbot_machine::volume::{self, Volume};
use bbot_manifest::{
    BootstrapManifest, BootstrappedMachine, Mac, MachineHeader, MachineKind, MachineManifest,
    MachineRole, ToolchainManifest,
};
use rustix::fs::OFlags;
use tokio::time::Instant;

use crate::bootstrap::{self, FAKE_MAC, Outcome, Plan};
use crate::host::{self, Host};
use crate::run::{Progress, Stage};
use crate::version;
use decide::{Agent, Decision, Existing, Why};

/// How often a machine whose revision changes under our hands is tried again.
const RETRIES: u32 = 10;

/// The pause between two such tries.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The first pause of a machine that failed; each further one is twice as long.
const FIRST_PENALTY: Duration = Duration::from_secs(60);

/// The longest.
const LONGEST_PENALTY: Duration = Duration::from_secs(60 * 60);

/// The largest manifest of a machine.
const MANIFEST_LIMIT: u64 = 1024 * 1024;

/// A machine that builds can run on.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Where it is in the layout.
    pub dir: MachineDir,
    /// The bootstrapped machine's directory, `<machine>-<toolchain>`.
    pub directory: PathBuf,
    /// What it is.
    pub manifest: BootstrappedMachine,
    /// What its copies are made with.
    pub volume: Arc<dyn Volume>,
}

impl Machine {
    /// What a controller hears of it.
    pub fn header(&self) -> &MachineHeader {
        &self.manifest.machine.header
    }
}

/// The machines, and what is known of those that cannot be used.
#[derive(Debug, Default)]
pub struct Inventory {
    told: HashSet<String>,
    penalties: HashMap<String, Penalty>,
}

#[derive(Debug, Clone)]
struct Penalty {
    /// What failed: another revision or toolchain is another try.
    of: String,
    count: u32,
    until: Instant,
}

/// What trying a machine once has come to.
enum Tried {
    Usable(Box<Machine>),
    Passed,
    /// It failed, and is left alone for this long.
    Failed(anyhow::Error, Duration),
    /// The revision changed or went meanwhile.
    Race(anyhow::Error),
}

impl Inventory {
    /// The machines that can be used now, those that must be bootstrapped first.
    /// What is wrong with the others is told once.
    ///
    /// # Errors
    ///
    /// When the machines directory itself cannot be read.
    pub async fn take(&mut self, host: &Host, progress: &mut dyn Progress) -> Result<Vec<Machine>> {
        let scan = scan(host)?;
        let mut problems: HashSet<String> = scan.problems.iter().map(ToString::to_string).collect();
        let mut machines = Vec::new();
        for dir in scan.machines {
            let error = match self.machine(host, &dir, progress).await {
                Ok(Tried::Usable(machine)) => {
                    machines.push(*machine);
                    continue;
                }
                Ok(Tried::Passed) => continue,
                Ok(Tried::Failed(e, pause)) => left_alone(e, pause),
                Ok(Tried::Race(e)) | Err(e) => e,
            };
            if host::is_at_fault(&error) {
                return Err(error);
            }
            problems.insert(format!("machine {}: {error:#}", dir.name));
        }
        for problem in problems.difference(&self.told) {
            tracing::error!("{problem}");
        }
        self.told = problems;
        Ok(machines)
    }

    /// The machine of that name, bootstrapped first if it must be. No other machine
    /// is looked at.
    ///
    /// # Errors
    ///
    /// When the machines directory cannot be read, or this machine cannot be used:
    /// why, and where.
    pub async fn take_one(
        &mut self,
        host: &Host,
        name: &str,
        progress: &mut dyn Progress,
    ) -> Result<Machine> {
        let scan = scan(host)?;
        if let Some(dir) = scan.machines.iter().find(|dir| dir.name == name) {
            match self.machine(host, dir, progress).await {
                Ok(Tried::Usable(machine)) => return Ok(*machine),
                Ok(Tried::Passed) => {}
                Ok(Tried::Failed(e, _) | Tried::Race(e)) | Err(e) => {
                    // The host's own fault is not the machine's.
                    if host::is_at_fault(&e) {
                        return Err(e);
                    }
                    return Err(anyhow!("machine {name}: {e:#}"));
                }
            }
        }
        let of_it = |problem: &&layout::Problem| problem.machine.as_deref() == Some(name);
        if let Some(problem) = scan.problems.iter().find(of_it) {
            return Err(anyhow!("{problem}"));
        }
        Err(anyhow!(
            "no machine {name} can be used (looked in {}): see `bbot machine list`, or make one with `bbot machine create`",
            host.options.machines.display()
        ))
    }

    /// Deletes what runs of ours have left whose owners are gone.
    pub fn sweep(host: &Host) {
        host.sweep_run_folders();
        match layout::scan(&host.options.machines) {
            Ok(scan) => {
                for problem in owner::sweep(&scan.machines).problems {
                    tracing::warn!(
                        "machine {}: {:#}",
                        problem.machine,
                        anyhow::Error::new(problem.error)
                    );
                }
            }
            // Told when the machines are enumerated.
            Err(e) => tracing::trace!("{e}"),
        }
    }

    /// The machine failed: it is not used for a while, for as long as this says.
    pub fn penalize(&mut self, machine: &Machine) -> Duration {
        let of = format!("{} {}", machine.header().id, machine.manifest.toolchain.id);
        self.penalty(&machine.dir.name, of)
    }

    fn penalty(&mut self, name: &str, of: String) -> Duration {
        let before = self.penalties.get(name).filter(|p| p.of == of);
        let count = before.map_or(0, |p| p.count + 1);
        let pause = FIRST_PENALTY
            .saturating_mul(1 << count.min(10))
            .min(LONGEST_PENALTY);
        let until = Instant::now() + pause;
        self.penalties
            .insert(name.to_owned(), Penalty { of, count, until });
        pause
    }

    fn is_penalized(&self, name: &str, of: &str) -> bool {
        self.penalties
            .get(name)
            .is_some_and(|p| p.of == of && p.until > Instant::now())
    }

    async fn machine(
        &mut self,
        host: &Host,
        dir: &MachineDir,
        progress: &mut dyn Progress,
    ) -> Result<Tried> {
        let mut last = None;
        for retry in 0..=RETRIES {
            if retry > 0 {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            match self.attempt(host, dir, progress).await? {
                Tried::Race(e) => {
                    tracing::trace!("machine {}: {e:#}, trying again", dir.name);
                    last = Some(e);
                }
                tried => return Ok(tried),
            }
        }
        Err(last.unwrap_or_else(|| anyhow!("it changes all the time")))
    }

    async fn attempt(
        &mut self,
        host: &Host,
        dir: &MachineDir,
        progress: &mut dyn Progress,
    ) -> Result<Tried> {
        let directory = dir.bootstrapped(&host.toolchain);
        let volume: Arc<dyn Volume> = Arc::from(volume::detect(&dir.path)?);
        let current = match layout::resolve_current(dir, BOOTSTRAP_PROTOCOL) {
            Ok(Some(current)) => current,
            Ok(None) => {
                if directory.is_dir() {
                    tracing::debug!(
                        "deleting {}: the machine has no current revision",
                        directory.display()
                    );
                    Temporary::take(&host.instance, &volume, &directory)?.delete()?;
                }
                tracing::trace!(
                    "skipping {}: no link to a current revision",
                    dir.path.display()
                );
                return Ok(Tried::Passed);
            }
            Err(e) if e.is_race() => return Ok(Tried::Race(e.into())),
            Err(e) => return Err(e.into()),
        };
        let manifest = match read_machine(dir, &current) {
            Ok(manifest) => manifest,
            Err(e) if !current.is_dir() => return Ok(Tried::Race(e)),
            Err(e) => return Err(e),
        };
        check_kind(&manifest)?;

        // The toolchain is looked at once for the decision and for what is served.
        let toolchain = host.toolchain_now();
        let toolchain_id = match &toolchain {
            Ok(toolchain) => toolchain.id.clone(),
            Err(_) => host
                .options
                .toolchain_id
                .clone()
                .filter(|id| !id.is_empty()),
        };
        let agent = Agent {
            toolchain_id: toolchain_id.clone(),
            version: version::own(),
        };
        let there = read_bootstrapped(&directory);
        if let Err(Some(e)) = &there {
            tracing::warn!("{e:#}");
        }
        let existing = match &there {
            Ok(there) => Existing::Bootstrapped(there),
            Err(Some(_)) => Existing::Unreadable,
            Err(None) => Existing::Nothing,
        };
        let why = match decide::decide(&agent, &manifest.header, existing) {
            Decision::Use => return Ok(self.usable(dir, directory, there, volume)),
            Decision::Leave => {
                tracing::trace!(
                    "ignoring {}: its worker is newer than this agent",
                    directory.display()
                );
                return Ok(Tried::Passed);
            }
            Decision::Bootstrap(why) => why,
        };

        let of = format!(
            "{} {}",
            manifest.header.id,
            toolchain_id.as_deref().unwrap_or_default()
        );
        if self.is_penalized(&dir.name, &of) {
            return Ok(Tried::Passed);
        }
        let fake = host.options.fake_bootstrap;
        if let (Err(e), false) = (&toolchain, fake) {
            return Err(anyhow!("{e}"));
        }
        // Before it is copied, and where it can be mended.
        if !fake && let Err(e) = hypervisor::require_files(&manifest, &current) {
            if !current.is_dir() {
                return Ok(Tried::Race(e.into()));
            }
            return Ok(Tried::Failed(e.into(), self.penalty(&dir.name, of)));
        }
        let copy = || Temporary::snapshot(&host.instance, &volume, dir, &host.toolchain, &current);
        let first = match copy() {
            Ok(copy) => copy,
            Err(e) if e.is_race() => return Ok(Tried::Race(e.into())),
            Err(e) => {
                return Ok(Tried::Failed(e.into(), self.penalty(&dir.name, of)));
            }
        };
        let copied = read_machine(dir, first.path())?;
        if copied.header.id != manifest.header.id {
            return Ok(Tried::Race(anyhow!("the revision was replaced")));
        }
        match why {
            Why::New => tracing::debug!("bootstrapping {}", directory.display()),
            why => tracing::debug!("re-bootstrapping {}: {why}", directory.display()),
        }
        progress.stage(&Stage::Bootstrapping {
            machine: dir.name.clone(),
            why: why.to_string(),
        });

        let outcome = if fake {
            bootstrap::fake(first, &copied, toolchain_id.as_deref())
        } else {
            let mac_file = MacFile::of(dir, host);
            let mac = there
                .as_ref()
                .ok()
                .and_then(|t| t.machine.mac)
                .or_else(|| mac_file.read());
            let plan = Plan {
                manifest: &copied,
                mac,
                keep_mac: &mut |mac| mac_file.write(mac),
                toolchain: toolchain.as_ref().map_err(|e| anyhow!("{e}"))?,
                copy: &mut || Ok(copy()?),
            };
            bootstrap::bootstrap(host, plan, first, progress).await
        };
        let (finished, bootstrapped) = match outcome {
            Ok(Outcome::Done(finished, bootstrapped)) => (finished, *bootstrapped),
            Ok(Outcome::Failed) => {
                // What exactly has been told when it happened.
                let pause = self.penalty(&dir.name, of);
                return Ok(Tried::Failed(anyhow!("it failed to bootstrap"), pause));
            }
            Err(e) => {
                let pause = self.penalty(&dir.name, of);
                return Ok(Tried::Failed(e.context("unable to bootstrap"), pause));
            }
        };
        // The old one, and with it its address, was there until now.
        finished.replace(&directory)?;
        self.penalties.remove(&dir.name);
        tracing::info!("bootstrapped {}", dir.name);
        if decide::after_bootstrap(&agent, &bootstrapped.bootstrap) == Decision::Leave {
            tracing::warn!(
                "ignoring {}: its worker is newer than this agent",
                directory.display()
            );
            return Ok(Tried::Passed);
        }
        if decide::compare_worker(&bootstrapped.bootstrap, &agent.version).is_lt() {
            tracing::warn!(
                "bootstrapped {} worker is older than agent; assuming test setup",
                directory.display()
            );
        }
        Ok(self.usable(dir, directory, Ok(bootstrapped), volume))
    }

    fn usable(
        &self,
        dir: &MachineDir,
        directory: PathBuf,
        manifest: Result<BootstrappedMachine, Option<anyhow::Error>>,
        volume: Arc<dyn Volume>,
    ) -> Tried {
        let Ok(manifest) = manifest else {
            return Tried::Passed;
        };
        let of = format!("{} {}", manifest.machine.header.id, manifest.toolchain.id);
        if self.is_penalized(&dir.name, &of) {
            return Tried::Passed;
        }
        Tried::Usable(Box::new(Machine {
            dir: dir.clone(),
            directory,
            manifest,
            volume,
        }))
    }
}

fn scan(host: &Host) -> Result<layout::Scan> {
    layout::scan(&host.options.machines).with_context(|| {
        format!(
            "no machines can be had from {}: give --machines their directory, or make one with `bbot machine create`",
            host.options.machines.display()
        )
    })
}

/// The one machine of `--fake-machine`.
///
/// # Errors
///
/// When its header cannot be read.
pub fn fake_machine(host: &Host, file: &Path) -> Result<Machine> {
    let bytes = fs::File::open(file)
        .and_then(read_bounded)
        .with_context(|| format!("unable to read {}", file.display()))?;
    let header = MachineHeader::parse(&bytes, &file.display().to_string())?;
    let path = host.options.machines.join(&header.name);
    let dir = MachineDir {
        path,
        name: header.name.clone(),
    };
    Ok(Machine {
        directory: dir.path.clone(),
        dir,
        manifest: BootstrappedMachine {
            machine: MachineManifest {
                header,
                kind: MachineKind::Kvm,
                mac: Some(FAKE_MAC),
                options: None,
                changes: Vec::new(),
            },
            toolchain: ToolchainManifest {
                id: host.options.toolchain_id.clone().unwrap_or_default(),
            },
            bootstrap: BootstrapManifest::default(),
        },
        volume: Arc::new(volume::Copy),
    })
}

/// Why a machine failed, and for how long it is left alone for it: one line.
fn left_alone(error: anyhow::Error, pause: Duration) -> anyhow::Error {
    // The host's own fault ends the agent.
    if host::is_at_fault(&error) {
        return error;
    }
    error.context(format!("left alone for {} s", pause.as_secs()))
}

fn check_kind(manifest: &MachineManifest) -> Result<()> {
    if manifest.header.role == Some(MachineRole::Auxiliary) {
        return Err(anyhow!(
            "it is an auxiliary machine, which this version cannot use"
        ));
    }
    Ok(())
}

fn read_machine(dir: &MachineDir, revision: &Path) -> Result<MachineManifest> {
    let path = revision.join("manifest");
    let bytes = open_regular(&path)
        .and_then(read_bounded)
        .with_context(|| format!("unable to read {}", path.display()))?;
    let manifest = MachineManifest::parse(&bytes, &path.display().to_string())?;
    if manifest.header.name != dir.name {
        return Err(anyhow!(
            "{} calls it '{}'; rename the directory or mend the manifest",
            path.display(),
            manifest.header.name
        ));
    }
    Ok(manifest)
}

/// The bootstrapped machine's manifest; no error when there is no such machine.
fn read_bootstrapped(directory: &Path) -> Result<BootstrappedMachine, Option<anyhow::Error>> {
    if directory.symlink_metadata().is_err() {
        return Err(None);
    }
    let path = directory.join("manifest");
    let bytes = open_regular(&path).and_then(read_bounded).map_err(|e| {
        Some(anyhow::Error::new(e).context(format!("unable to read {}", path.display())))
    })?;
    BootstrappedMachine::parse(&bytes, &path.display().to_string()).map_err(|e| Some(e.into()))
}

/// Opens a machine's manifest: a pipe or a device in its place must not hold up the
/// agent.
fn open_regular(path: &Path) -> io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = fs::File::options()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ));
    }
    Ok(file)
}

fn read_bounded(file: fs::File) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    file.take(MANIFEST_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MANIFEST_LIMIT {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it is longer than {MANIFEST_LIMIT} bytes"),
        ));
    }
    Ok(bytes)
}

/// The address of a machine's card, `.<machine>-<toolchain>.mac` beside its
/// revisions: it survives a bootstrap that fails, and a machine that is gone for
/// a while.
struct MacFile(PathBuf);

impl MacFile {
    fn of(dir: &MachineDir, host: &Host) -> Self {
        Self(
            dir.path
                .join(format!(".{}-{}.mac", dir.name, host.toolchain)),
        )
    }

    fn read(&self) -> Option<Mac> {
        fs::read_to_string(&self.0).ok()?.trim().parse().ok()
    }

    fn write(&self, mac: Mac) {
        if self.read() != Some(mac)
            && let Err(e) = durable::write(&self.0, format!("{mac}\n").as_bytes())
        {
            tracing::warn!(
                "unable to keep the address {mac}: {:#}",
                anyhow::Error::new(e)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_manifests() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [fifo.as_path(), dir.path(), Path::new("/dev/zero")] {
            let error = open_regular(path).unwrap_err();
            assert_eq!(error.to_string(), "it is not a regular file", "{path:?}");
        }
        let file = dir.path().join("file");
        fs::write(&file, "text").unwrap();
        let read = |path| open_regular(path).and_then(read_bounded);
        assert_eq!(read(&file).unwrap(), b"text");
        let long = fs::File::options().write(true).open(&file).unwrap();
        long.set_len(MANIFEST_LIMIT + 1).unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("longer than"));
    }

    #[test]
    fn a_failure_and_its_pause_are_one_line() {
        let error = left_alone(anyhow!("no disk"), FIRST_PENALTY);
        assert_eq!(format!("{error:#}"), "left alone for 60 s: no disk");
    }
}
