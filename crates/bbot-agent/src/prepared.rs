//! Machines that are prepared ahead: restored, or started where they are containers, while there is no task
//! for them yet, and stopped until one comes (`docs/decisions/0017-prepared.md`).
//!
//! ```text
//!   warm machine --copy, restore, worker waits once more, stop--> Prepared --task--> goes on
//!   container    --copy, start,   worker waits,           stop-->
//!                                     (prepare)                     (Stock)
//! ```
//!
//! Which ones there are to be is a pure function of what there is ([`plan`]). A task that finds none
//! has its machine restored or started as ever.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use bbot_machine::machine::{Disk, Memory, Tftp};
use bbot_machine::warm::{Base, Waiting};
use bbot_manifest::{BootstrappedMachine, MachineKind};
use bbot_tftp::{Limits, Root};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::blocking::Elsewhere;
use crate::host::{Host, RunFolders};
use crate::inventory::Machine;
use crate::local;
use crate::run::{Running, Share, Start};
use crate::task::{RUN, copy_of};
use crate::warm::{PREPARED, RESTORED, Warmth, base_of, can_wait, until_waiting, waits};

/// What a prepared machine is a copy of, and what it has of the host.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Of {
    manifest: BootstrappedMachine,
    share: Share,
}

impl Of {
    pub(crate) fn new(machine: &Machine, share: Share) -> Self {
        Self {
            manifest: machine.manifest.clone(),
            share,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.manifest.machine.header.name
    }
}

/// A machine whose worker waits for a task, stopped. Dropping it leaves nothing of it.
#[derive(Debug)]
pub(crate) struct Prepared {
    of: Of,
    running: Elsewhere<Running>,
    waiting: Waiting,
    /// What it was restored from. None: it is a container.
    base: Option<Arc<Base>>,
}

impl Prepared {
    /// What it is a copy of.
    pub(crate) fn of(&self) -> &Of {
        &self.of
    }

    /// Lets it go on with a task.
    ///
    /// # Errors
    ///
    /// When it does not; nothing is left of it then.
    pub(crate) async fn go_on(
        mut self,
        root: Root,
        folders: Arc<RunFolders>,
    ) -> Result<(Elsewhere<Running>, Option<Arc<Base>>)> {
        let tftp = Tftp {
            root,
            limits: Limits::wire(),
        };
        self.running.machine.go_on(tftp, self.waiting).await?;
        self.running.folders = Some(folders);
        Ok((self.running, self.base))
    }
}

/// Why a machine was not prepared.
#[derive(Debug)]
pub(crate) enum Unprepared {
    /// Its worker does not wait, and will not the next time.
    Never(String),
    /// It may do better later.
    Passing(anyhow::Error),
    /// It is not wanted any more.
    Unwanted,
}

impl From<anyhow::Error> for Unprepared {
    fn from(error: anyhow::Error) -> Self {
        Self::Passing(error)
    }
}

/// Prepares a machine.
///
/// # Errors
///
/// When it cannot be; nothing is left of it then.
pub(crate) async fn prepare(
    host: &Host,
    machine: &Machine,
    share: Share,
) -> Result<Prepared, Unprepared> {
    let copy = copy_of(host, machine).await?;
    let manifest = &machine.manifest.machine;
    let (base, asks) = match manifest.kind {
        MachineKind::Kvm => {
            let base = base_of(host, machine, share, &copy)
                .await
                .ok_or_else(|| anyhow!("what was saved of it is of no use"))?;
            (Some(base), RESTORED)
        }
        MachineKind::Nspawn => (None, RUN),
    };
    let start = Start {
        manifest,
        mac: manifest.mac,
        share,
        disk: Disk::ThrowAway,
        memory: base.clone().map_or(Memory::Booted, Memory::Restored),
        // All that it takes to wait once more is known to QEMU by the time of a task, and need not be
        // translated then.
        root: waits(asks, PREPARED)?,
        folders: None,
    };
    let mut running = Running::start(host, copy, start).await?;
    let limit = host.options.build_startup(host.accelerator);
    let waiting = until_waiting(&mut running, limit)
        .await
        .map_err(Unprepared::Never)?;
    let suspended = running.machine.suspend().await;
    suspended.map_err(anyhow::Error::new)?;
    Ok(Prepared {
        of: Of::new(machine, share),
        running,
        waiting,
        base,
    })
}

/// A machine that could be prepared, and when it was used last.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) of: Of,
    pub(crate) used: Option<Instant>,
}

/// What there is for prepared machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Means {
    /// Most of them.
    pub(crate) most: usize,
    /// Memory for all of them, KiB.
    pub(crate) ram_kib: u64,
}

/// What is to be done now.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// Those of what is ready that go, by their place.
    pub(crate) drop: Vec<usize>,
    /// What is prepared next.
    pub(crate) make: Option<Of>,
}

/// Which machines are to be there: one of each, those used last first, then one more of each, and so
/// on, while there are the means for it.
pub(crate) fn plan(ready: &[Of], mut candidates: Vec<Candidate>, means: Means) -> Plan {
    candidates.sort_by_key(|candidate| (Reverse(candidate.used), candidate.of.name().to_owned()));
    let mut wanted = vec![0usize; candidates.len()];
    let (mut count, mut ram) = (0, 0u64);
    loop {
        let before = count;
        for (candidate, wanted) in candidates.iter().zip(&mut wanted) {
            let with = ram.saturating_add(candidate.of.share.ram_kib);
            if count < means.most && with <= means.ram_kib {
                *wanted += 1;
                (count, ram) = (count + 1, with);
            }
        }
        if count == before {
            break;
        }
    }
    let mut plan = Plan::default();
    for (place, of) in ready.iter().enumerate() {
        let at = candidates.iter().position(|other| other.of == *of);
        match at.and_then(|at| wanted.get_mut(at)) {
            Some(left) if *left > 0 => *left -= 1,
            _ => plan.drop.push(place),
        }
    }
    let missing = candidates.into_iter().zip(wanted);
    plan.make = missing
        .into_iter()
        .find_map(|(candidate, left)| (left > 0).then_some(candidate.of));
    plan
}

/// How long it rests after one could not be prepared by nobody's fault, and at first after the host
/// has run short.
const PAUSE: Duration = Duration::from_secs(5 * 60);

/// The longest rest after the host has run short again and again.
const LONGEST_REST: Duration = Duration::from_secs(4 * 60 * 60);

/// The machines that are ready.
#[derive(Debug, Default)]
pub(crate) struct Stock {
    ready: Vec<Prepared>,
    /// What is being prepared, one at a time, and its end when it is not wanted any more.
    in_work: Option<(Of, CancellationToken)>,
    /// What is not prepared as it is; until when, if not for ever.
    given_up: Vec<(Of, Option<Instant>)>,
    /// When each machine was used last.
    used: HashMap<String, Instant>,
    /// The host has run short over them, so often: until when nothing is prepared.
    rest: Option<(u32, Instant)>,
}

/// What is to be prepared.
#[derive(Debug)]
pub(crate) struct Order {
    /// The machine's name.
    pub(crate) name: String,
    /// What it has of the host.
    pub(crate) share: Share,
    /// It is not wanted any more.
    pub(crate) stop: CancellationToken,
}

impl Stock {
    /// One for a task. None: there is none.
    pub(crate) fn take(&mut self, machine: &Machine, share: Share) -> Option<Prepared> {
        let now = Instant::now();
        self.used.insert(machine.dir.name.clone(), now);
        let of = Of::new(machine, share);
        let place = self.ready.iter().position(|prepared| prepared.of == of)?;
        Some(self.ready.remove(place))
    }

    /// How many of a machine are ready.
    pub(crate) fn count(&self, name: &str) -> usize {
        let of_it = self.ready.iter().filter(|ready| ready.of.name() == name);
        of_it.count()
    }

    /// Lets go of what is too much, and tells what is to be prepared now.
    pub(crate) fn next(&mut self, candidates: Vec<Candidate>, means: Means) -> Option<Order> {
        let now = Instant::now();
        let is_there = |of: &Of| candidates.iter().any(|candidate| candidate.of == *of);
        self.given_up
            .retain(|(of, until)| is_there(of) && until.is_none_or(|until| until > now));
        let is_given_up = |of: &Of| self.given_up.iter().any(|(other, _)| other == of);
        let usable = candidates.into_iter();
        let usable = usable.filter(|candidate| !is_given_up(&candidate.of));
        let means = match self.rest {
            Some((_, until)) if until > now => Means {
                most: 0,
                ram_kib: 0,
            },
            _ => means,
        };
        let ready: Vec<Of> = self.ready.iter().map(|ready| ready.of.clone()).collect();
        let plan = plan(&ready, usable.collect(), means);
        for place in plan.drop.into_iter().rev() {
            self.ready.remove(place);
        }
        if let Some((of, stop)) = &self.in_work {
            if plan.make.as_ref() != Some(of) && means.most == 0 {
                stop.cancel();
            }
            return None;
        }
        let of = plan.make?;
        let order = Order {
            name: of.name().to_owned(),
            share: of.share,
            stop: CancellationToken::new(),
        };
        self.in_work = Some((of, order.stop.clone()));
        Some(order)
    }

    /// Whether nothing is ready, nor is to be.
    pub(crate) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.in_work.is_none()
    }

    /// When a machine was used last.
    pub(crate) fn used(&self, name: &str) -> Option<Instant> {
        self.used.get(name).copied()
    }

    /// What was being prepared has ended so.
    pub(crate) fn prepared(&mut self, prepared: Result<Prepared, Unprepared>) {
        let in_work = self.in_work.take();
        let failed = match prepared {
            Ok(prepared) => return self.ready.push(prepared),
            Err(failed) => failed,
        };
        let Some((of, _)) = in_work else { return };
        match failed {
            Unprepared::Never(why) => {
                tracing::warn!("machine {} is not prepared ahead: {why}", of.name());
                self.given_up.push((of, None));
            }
            Unprepared::Passing(e) => {
                tracing::warn!("unable to prepare machine {} ahead: {e:#}", of.name());
                self.given_up.push((of, Some(Instant::now() + PAUSE)));
            }
            Unprepared::Unwanted => {}
        }
    }

    /// One that was taken did not go on.
    pub(crate) fn failed(&mut self, of: Of) {
        self.given_up.push((of, None));
    }

    /// The host runs short: all go, and for a while there are no more, the longer the oftener. Tells
    /// whether there were any.
    pub(crate) fn relieve(&mut self) -> bool {
        if self.is_empty() {
            return false;
        }
        let times = self.rest.map_or(0, |(times, _)| times);
        let rest = PAUSE.saturating_mul(1 << times.min(10)).min(LONGEST_REST);
        self.rest = Some((times.saturating_add(1), Instant::now() + rest));
        self.clear();
        true
    }

    /// Lets go of all.
    pub(crate) fn clear(&mut self) {
        self.ready.clear();
        if let Some((_, stop)) = &self.in_work {
            stop.cancel();
        }
    }

    /// Forgets all machines but these.
    pub(crate) fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.used.retain(|name, _| is_there(name));
    }
}

/// A machine that could be prepared, if it could.
pub(crate) fn candidate(host: &Host, machine: &Machine, stock: &Stock) -> Option<Candidate> {
    let can_be = match machine.manifest.machine.kind {
        MachineKind::Kvm => machine.warmth == Warmth::Warm,
        MachineKind::Nspawn => can_wait(host, &machine.manifest),
    };
    can_be.then(|| Candidate {
        of: Of::new(machine, local::share(host, machine.header())),
        used: stock.used(&machine.dir.name),
    })
}

#[cfg(test)]
mod tests;
