//! Warm machines: a machine that was bootstrapped is started once more, saved when its worker asks
//! for a task, and each task's copy goes on from there (`docs/decisions/0016-warm.md`).
//!
//! ```text
//!   bootstrapped --copy, boot, worker waits, save--> <machine>-<toolchain> with warm.*   (save)
//!   task: a copy, its memory from the base of that very machine                          (Bases)
//! ```
//!
//! A machine whose memory cannot be saved or restored boots, as without all this.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use bbot_machine::machine::{Disk, MachineEvent, Memory, Network};
use bbot_machine::owner::OwnerError;
use bbot_machine::warm::{Base, Waiting};
use bbot_manifest::{BootstrappedMachine, Fresh, MachineKind, RunManifest, WarmManifest};
use bbot_tftp::{Event, Root};
use tokio::time::{Instant, timeout_at};

use crate::blocking::Copied;
use crate::host::{Host, RunFolders};
use crate::inventory::Machine;
use crate::local;
use crate::run::{Progress, Running, Share, Stage, Start};
use crate::task::{RUN, TASK_NAMES, copy_of};
use crate::version;

/// The name under which the worker of a machine that is saved asks once more, and gets its answer
/// when it was restored.
pub(crate) const RESTORED: &str = "restored.manifest";

/// The same of one that was restored ahead of its task, and so is asked to wait once more; and of a container that
/// was started ahead of its task, whose worker is not saved at all.
pub(crate) const PREPARED: &str = "prepared.manifest";

/// How often one machine is saved: what does not go on after that never will, or somebody else saves
/// it for other ends.
const MOST_SAVES: u32 = 3;

/// The name of the host's time.
const CLOCK: &str = "clock";

/// What is known of the machines' saved memory. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Bases(
    Arc<Mutex<HashMap<PathBuf, Known>>>,
    Arc<Mutex<()>>,
    /// One was refused since somebody asked.
    Arc<AtomicBool>,
);

/// What is known of one machine's, by its directory.
#[derive(Debug, Default)]
struct Known {
    /// The saved memory, and the text that tells it from others.
    base: Option<Arc<Base>>,
    /// The one that is of no use.
    refused: Option<String>,
    /// The machine that cannot be saved: its id and its toolchain's.
    given_up: Option<String>,
    /// How often which machine was saved by this agent.
    saved: (String, u32),
}

impl Bases {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The memory that a copy of the machine at `directory` can go on with. None: it boots. Blocks
    /// for as long as it takes to load, the first time.
    pub(crate) fn of_copy(&self, directory: &Path, copy: &Path, share: Share) -> Option<Arc<Base>> {
        // The copy's own: the machine may be another one by now, with another disk.
        let text = Base::manifest_in(copy).ok()??;
        if !is_for(&text, share) {
            // One with all processors, say: it boots, and the next one does not.
            return None;
        }
        // One loads it for all that come at once.
        let _loading = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let known = self.lock();
            let known = known.get(directory);
            if known.is_some_and(|known| known.refused.as_ref() == Some(&text)) {
                return None;
            }
            let base = known.and_then(|known| known.base.as_ref());
            if let Some(base) = base.filter(|base| base.text() == text) {
                return Some(Arc::clone(base));
            }
        }
        // Where copies share blocks the memory is in the copy, else at the machine alone.
        let loaded = [copy, directory].into_iter().find_map(|place| {
            let base = Base::load(place).ok()??;
            (base.text() == text).then_some(base)
        });
        let mut known = self.lock();
        let known = known.entry(directory.to_owned()).or_default();
        match loaded {
            Some(base) => {
                let base = Arc::new(base);
                known.base = Some(Arc::clone(&base));
                Some(base)
            }
            None => {
                let why = match Base::load(directory) {
                    Err(e) => format!("{:#}", anyhow::Error::new(e)),
                    // Replaced meanwhile; the next copy is of the new one.
                    Ok(_) => return None,
                };
                tracing::warn!("{}: {why}; it boots", directory.display());
                known.base = None;
                known.refused = Some(text);
                None
            }
        }
    }

    /// That memory cannot be restored; it is not tried again.
    pub(crate) fn refuse(&self, directory: &Path, base: &Base) {
        let mut known = self.lock();
        let known = known.entry(directory.to_owned()).or_default();
        known.base = None;
        known.refused = Some(base.text().to_owned());
        self.2.store(true, Ordering::Relaxed);
    }

    /// Whether a machine is not warm any more since this was asked.
    pub(crate) fn has_news(&self) -> bool {
        self.2.swap(false, Ordering::Relaxed)
    }

    /// The machine as it is now cannot be saved; that is not tried again.
    fn give_up(&self, machine: &Machine) {
        let mut known = self.lock();
        let known = known.entry(machine.directory.clone()).or_default();
        known.given_up = Some(identity(&machine.manifest));
    }

    fn put(&self, directory: &Path, base: Arc<Base>) {
        let mut known = self.lock();
        let known = known.entry(directory.to_owned()).or_default();
        known.base = Some(base);
        known.refused = None;
    }

    /// The machine is about to be saved; not for ever.
    fn count(&self, machine: &Machine) {
        let mut known = self.lock();
        let known = known.entry(machine.directory.clone()).or_default();
        let identity = identity(&machine.manifest);
        let before = match &known.saved {
            (of, count) if *of == identity => *count,
            _ => 0,
        };
        if before + 1 >= MOST_SAVES {
            known.given_up = Some(identity.clone());
        }
        known.saved = (identity, before + 1);
    }

    /// Forgets all machines but these.
    pub(crate) fn retain(&self, is_there: impl Fn(&Path) -> bool) {
        self.lock().retain(|directory, _| is_there(directory));
    }
}

fn identity(machine: &BootstrappedMachine) -> String {
    format!("{} {}", machine.machine.header.id, machine.toolchain.id)
}

/// Whether a machine's tasks go on from its saved memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Warmth {
    /// It boots for each: it cannot be saved, or is not to be.
    #[default]
    Boots,
    /// It boots until it is saved.
    Cold,
    /// They do.
    Warm,
}

/// Whether a machine is to be saved: it can be, and is not, or what is saved of it is of no use. Reads
/// a small file.
pub(crate) fn warmth(host: &Host, directory: &Path, machine: &BootstrappedMachine) -> Warmth {
    if !can_be_warm(host, machine) {
        return Warmth::Boots;
    }
    let Ok(text) = Base::manifest_in(directory) else {
        return Warmth::Boots;
    };
    let known = host.bases.lock();
    let known = known.get(directory);
    let is_of_use = text.is_some_and(|text| {
        known.is_none_or(|known| known.refused.as_ref() != Some(&text))
            && is_for(&text, local::share(host, &machine.machine.header))
    });
    if is_of_use {
        Warmth::Warm
    } else if known.is_some_and(|known| known.given_up == Some(identity(machine))) {
        Warmth::Boots
    } else {
        Warmth::Cold
    }
}

/// Whether what was saved is for a machine with this share of the host.
fn is_for(text: &str, share: Share) -> bool {
    WarmManifest::parse(text.as_bytes(), "")
        .is_ok_and(|saved| saved.cpus == u64::from(share.cpus) && saved.ram == share.ram_kib)
}

/// Whether a machine can be saved and restored, as far as is known without trying.
pub(crate) fn can_be_warm(host: &Host, machine: &BootstrappedMachine) -> bool {
    machine.machine.kind == MachineKind::Kvm
        && host.options.is_warm(&machine.machine.header.name)
        && can_wait(host, machine)
}

/// Whether the worker of a machine can wait for its task, as far as is known without trying.
pub(crate) fn can_wait(host: &Host, machine: &BootstrappedMachine) -> bool {
    let options = &host.options;
    !options.fake_build
        && !options.fake_bootstrap
        // Its worker must know how to wait, and what to make its own.
        && machine.bootstrap.is_ours()
        && machine.machine.options.is_none()
        // What a second card leads to may be another one by the time of a task, and so may be its name servers.
        && options.machine_network().of(machine.machine.kind) == Network::None
}

/// The saved memory that a copy of a machine can go on with, if it may.
pub(crate) async fn base_of(
    host: &Host,
    machine: &Machine,
    share: Share,
    copy: &Copied,
) -> Option<Arc<Base>> {
    if !can_be_warm(host, &machine.manifest) {
        return None;
    }
    let (bases, directory) = (host.bases.clone(), machine.directory.clone());
    let copy = copy.path().to_owned();
    let load = move || bases.of_copy(&directory, &copy, share);
    host.blocking.run(load).await
}

/// How saving a machine has ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is warm.
    Saved,
    /// It has changed meanwhile: it must be looked at again.
    Stale,
    /// It cannot be saved, and boots.
    GaveUp(String),
}

/// Boots a copy of a machine until its worker asks for a task, saves it, and puts it in the
/// machine's place. Whatever comes of it, the machine can be used as before. Nothing of the run is
/// left when this is dropped.
pub(crate) async fn save(
    host: &Host,
    machine: &Machine,
    share: Share,
    progress: &mut dyn Progress,
) -> Outcome {
    host.bases.count(machine);
    match try_to_save(host, machine, share, progress).await {
        Ok(Outcome::GaveUp(why)) => {
            host.bases.give_up(machine);
            Outcome::GaveUp(why)
        }
        Ok(outcome) => outcome,
        Err(e) if is_race(&e) => Outcome::Stale,
        Err(e) => {
            host.bases.give_up(machine);
            Outcome::GaveUp(format!("{e:#}"))
        }
    }
}

fn is_race(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<OwnerError>()
        .is_some_and(OwnerError::is_race)
}

async fn try_to_save(
    host: &Host,
    machine: &Machine,
    share: Share,
    progress: &mut dyn Progress,
) -> Result<Outcome> {
    let name = &machine.dir.name;
    progress.stage(&Stage::Saving {
        machine: name.clone(),
    });
    let theirs = host.clone();
    let make = move || RunFolders::create(&theirs, "bootstrap", &[]);
    let folders = Arc::new(host.blocking.run(make).await?);
    let copy = copy_of(host, machine).await?;
    let manifest = &machine.manifest.machine;
    let start = Start {
        manifest,
        mac: manifest.mac,
        share,
        disk: Disk::Kept,
        memory: Memory::ToBeSaved,
        root: waits(RUN, RESTORED)?,
        folders: Some(folders),
    };
    let mut running = Running::start(host, copy, start).await?;
    let limit = host.options.build_startup(host.accelerator);
    let saved = match until_waiting(&mut running, limit).await {
        Ok(waiting) => running
            .machine
            .save(waiting)
            .await
            .map_err(|e| format!("{:#}", anyhow::Error::new(e))),
        Err(why) => Err(why),
    };
    let base = match saved {
        Ok(base) => base,
        Err(why) => {
            Running::end(running).await?;
            return Ok(Outcome::GaveUp(why));
        }
    };
    let copy = Running::into_copy(running).await;
    let path = copy.path().to_owned();
    let (base, stored) = host
        .blocking
        .run(move || {
            let stored = base.store(&path);
            (Arc::new(base), stored)
        })
        .await;
    stored?;
    if has_changed(machine) {
        copy.delete().await?;
        return Ok(Outcome::Stale);
    }
    copy.replace(&machine.directory).await?;
    host.bases.put(&machine.directory, base);
    Ok(Outcome::Saved)
}

/// What a worker that asks by this name is told: to ask by another one, and to wait for that answer.
pub(crate) fn waits(asks: &str, again: &str) -> Result<Root> {
    let run = RunManifest {
        agent: format!("bbot-agent/{}", version::OWN),
        log_segments: None,
        source: None,
        save: Some(again.to_owned()),
        fresh: None,
    };
    let run = run
        .serialize()
        .context("unable to write the run manifest")?;
    Ok(Root::new()
        .get_bytes(asks, run.into_bytes())
        .get_held(again))
}

/// Waits until the guest's worker has made everything ready to be saved.
pub(crate) async fn until_waiting(
    running: &mut Running,
    limit: Duration,
) -> Result<Waiting, String> {
    let deadline = Instant::now() + limit;
    loop {
        match timeout_at(deadline, running.machine.next_event()).await {
            Err(_) => {
                let seconds = limit.as_secs();
                return Err(format!(
                    "its worker did not ask for a task within {seconds} s"
                ));
            }
            Ok(MachineEvent::Tftp(Event::Held { peer, request, .. })) => {
                return Ok(Waiting { peer, request });
            }
            Ok(MachineEvent::Tftp(Event::Requested { name, .. }))
                if TASK_NAMES.contains(&name.as_str()) =>
            {
                return Err(
                    "its worker does not know how to wait; a newer toolchain has one that does"
                        .to_owned(),
                );
            }
            Ok(MachineEvent::Exited(exit)) => return Err(exit.to_string()),
            Ok(MachineEvent::Panicked) => return Err("the guest's kernel panicked".to_owned()),
            Ok(MachineEvent::RebootLoop) => return Err("the guest restarts for ever".to_owned()),
            Ok(MachineEvent::DiskFull { detail }) => return Err(detail),
            Ok(_) => {}
        }
    }
}

/// Whether another one has taken the machine's place meanwhile.
fn has_changed(machine: &Machine) -> bool {
    let path = machine.directory.join("manifest");
    let now = std::fs::read(&path)
        .ok()
        .and_then(|bytes| BootstrappedMachine::parse(&bytes, "").ok());
    now.as_ref() != Some(&machine.manifest)
}

/// What a worker that was restored makes its machine's own, and where it finds it.
pub(crate) fn fresh(root: Root, run: &RunManifest) -> Result<Root> {
    let seed: [u8; 32] = rand::random();
    let run = RunManifest {
        fresh: Some(Fresh {
            clock: CLOCK.to_owned(),
            seed: hex::encode(seed),
        }),
        ..run.clone()
    };
    let run = run
        .serialize()
        .context("unable to write the run manifest")?;
    let run = run.into_bytes();
    Ok(root
        .get_bytes(RESTORED, run.clone())
        .get_bytes(PREPARED, run)
        .get_made(CLOCK, || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            now.unwrap_or_default().as_nanos().to_string().into_bytes()
        }))
}
