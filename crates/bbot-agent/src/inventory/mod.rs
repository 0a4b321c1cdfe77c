//! Which machines there are, and what can be done with each.
//!
//! To look changes nothing and starts nothing ([`scan`]): for each machine
//!
//! 1. the link to its current revision is resolved; none: a bootstrapped copy is of
//!    no use any more ([`remove_forsaken`]);
//! 2. [`decide`] says by the revision's manifest whether the bootstrapped copy will
//!    do;
//! 3. else there is a [`Plan`] to bootstrap it, which is another part's business.
//!
//! What is wrong with one machine concerns that machine alone. One that somebody
//! changes right now is looked at again, at most ten times, a second apart
//! ([`Inventory`]).

pub mod decide;
pub(crate) mod watch;

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

use crate::bootstrap::{FAKE_MAC, Plan};
use crate::host::Host;
use crate::warm::Warmth;
use crate::{version, warm};
use decide::{Agent, Decision, Existing, Why};

/// How often a machine whose revision changes under our hands is looked at again.
pub const RETRIES: u32 = 10;

/// The pause between two such looks.
pub const RETRY_PAUSE: Duration = Duration::from_secs(1);

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
    /// Whether its tasks go on from its saved memory.
    pub warmth: Warmth,
}

impl Machine {
    /// What a controller hears of it.
    pub fn header(&self) -> &MachineHeader {
        &self.manifest.machine.header
    }
}

/// What there is.
#[derive(Debug, Default)]
pub struct Scan {
    /// The machines, by name.
    pub machines: Vec<Seen>,
    /// What is wrong that is not one machine's: a volume that cannot be read.
    pub problems: Vec<String>,
}

/// A machine, and what can be done with it.
#[derive(Debug)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// What can be done with it.
    pub state: State,
}

/// What can be done with a machine.
#[derive(Debug)]
pub enum State {
    /// Tasks can run on it.
    Usable(Box<Machine>),
    /// It must be bootstrapped first.
    MustBootstrap(Box<Plan>),
    /// Nothing, before somebody mends it: what is wrong, and where.
    Bad(String),
    /// Somebody changes it right now: it must be looked at again.
    Changing(String),
    /// Nothing, and that is in order: there is no current revision, or its worker is
    /// newer than this agent.
    Passed,
}

/// Looks at all machines. Blocks.
///
/// # Errors
///
/// When the machines directory itself cannot be read.
pub fn scan(host: &Host) -> Result<Scan> {
    let found = scan_layout(host)?;
    let mut scan = Scan::default();
    for problem in found.problems {
        match &problem.machine {
            Some(name) => scan.machines.push(Seen {
                name: name.clone(),
                state: State::Bad(in_short(&problem)),
            }),
            None => scan.problems.push(problem.to_string()),
        }
    }
    // Looked at once for all, and served as it was then.
    let toolchain = Toolchain::now(host);
    for dir in found.machines {
        let state = look(host, &dir, &toolchain).unwrap_or_else(|e| State::Bad(format!("{e:#}")));
        let name = dir.name;
        scan.machines.push(Seen { name, state });
    }
    scan.machines.sort_by(|a, b| a.name.cmp(&b.name));
    host.bases.retain(Path::is_dir);
    Ok(scan)
}

/// What is wrong, without the machine's name, which is said anyway.
fn in_short(problem: &layout::Problem) -> String {
    let text = problem.to_string();
    match &problem.machine {
        Some(name) => text
            .strip_prefix(&format!("machine {name} "))
            .unwrap_or(&text)
            .to_owned(),
        None => text,
    }
}

/// Looks at the machine of that name, and at no other. Blocks.
///
/// # Errors
///
/// When the machines directory cannot be read, or there is no such machine.
pub fn look_for(host: &Host, name: &str) -> Result<State> {
    let found = scan_layout(host)?;
    if let Some(dir) = found.machines.iter().find(|dir| dir.name == name) {
        let state = look(host, dir, &Toolchain::now(host));
        // There but of no use: as if it were not there.
        if !matches!(state, Ok(State::Passed)) {
            return Ok(state.unwrap_or_else(|e| State::Bad(format!("{e:#}"))));
        }
    }
    let of_it = |problem: &&layout::Problem| problem.machine.as_deref() == Some(name);
    if let Some(problem) = found.problems.iter().find(of_it) {
        return Ok(State::Bad(in_short(problem)));
    }
    Err(anyhow!(
        "no machine {name} can be used (looked in {}): see `bbot machine list`, or make one with `bbot machine create`",
        host.options.machines.display()
    ))
}

/// The toolchain as it is now, and its id.
struct Toolchain {
    found: Result<crate::toolchain::Toolchain, crate::toolchain::ToolchainError>,
    id: Option<String>,
}

impl Toolchain {
    fn now(host: &Host) -> Self {
        let found = host.toolchain_now();
        let id = match &found {
            Ok(toolchain) => toolchain.id.clone(),
            Err(_) => host
                .options
                .toolchain_id
                .clone()
                .filter(|id| !id.is_empty()),
        };
        Self { found, id }
    }
}

/// Looks at one machine.
fn look(host: &Host, dir: &MachineDir, toolchain: &Toolchain) -> Result<State> {
    let directory = dir.bootstrapped(&host.toolchain);
    let current = match layout::resolve_current(dir, BOOTSTRAP_PROTOCOL) {
        Ok(Some(current)) => current,
        Ok(None) => return Ok(State::Passed),
        Err(e) if e.is_race() => return Ok(State::Changing(e.to_string())),
        Err(e) => return Err(e.into()),
    };
    let manifest = match read_machine(dir, &current) {
        Ok(manifest) => manifest,
        Err(e) if !current.is_dir() => return Ok(State::Changing(format!("{e:#}"))),
        Err(e) => return Err(e),
    };
    check_kind(&manifest)?;
    let volume: Arc<dyn Volume> = Arc::from(volume::detect(&dir.path)?);
    let agent = Agent {
        toolchain_id: toolchain.id.clone(),
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
        Decision::Use => {
            return Ok(match there {
                Ok(manifest) => State::Usable(Box::new(Machine {
                    dir: dir.clone(),
                    warmth: warm::warmth(host, &directory, &manifest),
                    directory,
                    manifest,
                    volume,
                })),
                // Nothing that is not there is ever used.
                Err(_) => State::Passed,
            });
        }
        Decision::Leave => {
            tracing::trace!(
                "ignoring {}: its worker is newer than this agent",
                directory.display()
            );
            return Ok(State::Passed);
        }
        Decision::Bootstrap(why) => why,
    };
    if let (Why::NewBbot, Ok(manifest)) = (why, &there)
        && host.accepts_older(&directory, manifest)
    {
        return Ok(State::Usable(Box::new(Machine {
            dir: dir.clone(),
            warmth: warm::warmth(host, &directory, manifest),
            directory,
            manifest: manifest.clone(),
            volume,
        })));
    }
    let fake = host.options.fake_bootstrap;
    let served = match (&toolchain.found, fake) {
        (_, true) => None,
        (Ok(found), false) => Some(found.clone()),
        (Err(e), false) => return Err(anyhow!("{e}")),
    };
    // Before it is copied, and where it can be mended.
    if !fake && let Err(e) = hypervisor::require_files(&manifest, &current) {
        if !current.is_dir() {
            return Ok(State::Changing(e.to_string()));
        }
        return Err(e.into());
    }
    Ok(State::MustBootstrap(Box::new(Plan {
        dir: dir.clone(),
        revision: current,
        directory,
        manifest,
        mac: there.ok().and_then(|there| there.machine.mac),
        toolchain: served,
        toolchain_id: toolchain.id.clone(),
        why,
        volume,
    })))
}

/// Deletes the bootstrapped copies of machines that have no current revision any
/// more. Blocks.
pub fn remove_forsaken(host: &Host) {
    // Told when the machines are looked at.
    let Ok(found) = scan_layout(host) else {
        return;
    };
    for dir in found.machines {
        let directory = dir.bootstrapped(&host.toolchain);
        let forsaken = matches!(layout::resolve_current(&dir, BOOTSTRAP_PROTOCOL), Ok(None));
        if !forsaken || !directory.is_dir() {
            continue;
        }
        tracing::debug!(
            "deleting {}: the machine has no current revision",
            directory.display()
        );
        let removed = volume::detect(&dir.path)
            .map_err(anyhow::Error::new)
            .and_then(|volume| {
                let volume = Arc::from(volume);
                Temporary::take(&host.instance, &volume, &directory)?.delete()?;
                Ok(())
            });
        if let Err(e) = removed {
            tracing::warn!("machine {}: {e:#}", dir.name);
        }
    }
}

/// Deletes what runs of ours have left whose owners are gone. Blocks.
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
        // Told when the machines are looked at.
        Err(e) => tracing::trace!("{e}"),
    }
}

/// What is known of the machines from one look to the next.
#[derive(Debug, Default)]
pub struct Inventory {
    /// The problems that were told and are there still.
    told: HashSet<String>,
    /// How often a machine was found changing, in a row.
    changing: HashMap<String, (u32, Instant)>,
}

impl Inventory {
    /// Takes note of what was seen. Problems that are no machine's are told when they
    /// are new; a machine that is changing all the time is bad. Tells whether another
    /// look is due in [`RETRY_PAUSE`].
    pub fn note(&mut self, scan: &mut Scan) -> bool {
        let problems: HashSet<String> = scan.problems.iter().cloned().collect();
        for problem in problems.difference(&self.told) {
            tracing::error!("{problem}");
        }
        self.told = problems;
        let mut again = false;
        let mut changing = HashMap::new();
        for seen in &mut scan.machines {
            if let State::Changing(why) = &seen.state {
                // It may be looked at more often, whenever it changes.
                let (count, at) = match self.changing.get(&seen.name) {
                    Some((count, at)) if at.elapsed() < RETRY_PAUSE => (*count, *at),
                    Some((count, _)) => (count + 1, Instant::now()),
                    None => (1, Instant::now()),
                };
                changing.insert(seen.name.clone(), (count, at));
                tracing::trace!("machine {}: {why}, looking again", seen.name);
                if count > RETRIES {
                    seen.state = State::Bad(why.clone());
                } else {
                    again = true;
                }
            }
        }
        self.changing = changing;
        again
    }
}

fn scan_layout(host: &Host) -> Result<layout::Scan> {
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
        warmth: Warmth::Boots,
    })
}

fn check_kind(manifest: &MachineManifest) -> Result<()> {
    if manifest.header.role == Some(MachineRole::Auxiliary) {
        return Err(anyhow!(
            "it is an auxiliary machine, which this version cannot use"
        ));
    }
    Ok(())
}

/// The manifest of the machine in `revision`.
///
/// # Errors
///
/// When it cannot be read, or is another machine's.
pub(crate) fn read_machine(dir: &MachineDir, revision: &Path) -> Result<MachineManifest> {
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
#[derive(Debug, Clone)]
pub(crate) struct MacFile(PathBuf);

impl MacFile {
    pub(crate) fn of(dir: &MachineDir, host: &Host) -> Self {
        Self(
            dir.path
                .join(format!(".{}-{}.mac", dir.name, host.toolchain)),
        )
    }

    pub(crate) fn read(&self) -> Option<Mac> {
        fs::read_to_string(&self.0).ok()?.trim().parse().ok()
    }

    pub(crate) fn write(&self, mac: Mac) {
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

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_changes_all_the_time_is_bad_after_ten_looks_more() {
        let mut inventory = Inventory::default();
        let look = |state| Scan {
            machines: vec![Seen {
                name: "linux".to_owned(),
                state,
            }],
            problems: Vec::new(),
        };
        let changing = || look(State::Changing("link".to_owned()));
        for _ in 0..RETRIES {
            // Looks in between do not count.
            for _ in 0..3 {
                assert!(inventory.note(&mut changing()));
            }
            tokio::time::advance(RETRY_PAUSE).await;
        }
        let mut last = changing();
        assert!(!inventory.note(&mut last));
        assert!(matches!(&last.machines[0].state, State::Bad(why) if why == "link"));
        // One good look, and it starts from the beginning.
        assert!(!inventory.note(&mut look(State::Passed)));
        assert!(inventory.note(&mut changing()));
    }
}
