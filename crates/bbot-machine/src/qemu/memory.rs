//! A guest's memory as a file: saved while its worker waits, and restored in another QEMU.
//!
//! The file is a `memfd` that other users may open, since QEMU opens it anew by the name of its
//! descriptor. QEMU itself neither saves nor reads it (`x-ignore-shared`): what is migrated is the
//! state of the devices alone, half a MiB. A restored guest maps the sealed memory of its
//! [`Base`] privately.
//!
//! QEMU notices most of what does not fit, but neither another processor nor another disk: what the
//! state needs is compared before ([`require_same`]).

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use bbot_manifest::WarmManifest;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout_at};

use super::command::{self, CardEnd, DirectBoot, MACHINE_TYPE, MemoryFile, Plan, cpu_model};
use super::process::Process;
use super::qmp::{Event, Qmp, QmpError};
use super::{events, hand, options, trying};
use crate::accel::Accelerator;
use crate::machine::{Error, Memory, Network, StartSpec};
use crate::warm::{Base, Waiting, memory_file};

/// How long QEMU may take to save or restore the state: some ten milliseconds, unless the host is
/// swamped.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(60);

/// The memory of a machine that is started.
#[derive(Debug)]
pub(super) struct Opened {
    /// As QEMU gets it.
    pub(super) file: MemoryFile,
    /// Kept for the end: what is to be saved.
    saved: Option<OwnedFd>,
}

/// A machine that can be saved.
#[derive(Debug)]
pub(super) struct Saving {
    memory: OwnedFd,
    traits: WarmManifest,
}

impl Opened {
    pub(super) fn into_saving(self, traits: WarmManifest) -> Option<Saving> {
        self.saved.map(|memory| Saving { memory, traits })
    }
}

/// Opens the memory that a machine is started with. None: QEMU has its own.
pub(super) fn open(
    spec: &StartSpec,
    inherited: &mut Vec<OwnedFd>,
) -> Result<Option<Opened>, Error> {
    let refuse = |why: &str| match spec.memory {
        Memory::Restored(_) => Error::Unrestored {
            why: why.to_owned(),
        },
        _ => Error::Unsaved {
            why: why.to_owned(),
        },
    };
    if !matches!(spec.memory, Memory::Booted) {
        if spec.manifest.options.is_some() {
            return Err(refuse("the machine has options of its own"));
        }
        if spec.network != Network::None {
            return Err(refuse("it has another network than its own wire"));
        }
    }
    let io = |error| {
        trying(format!(
            "open the memory of machine {}",
            spec.manifest.header.name
        ))(error)
    };
    Ok(match &spec.memory {
        Memory::Booted => None,
        Memory::ToBeSaved => {
            let bytes = spec.ram_kib.saturating_mul(1024);
            let memory = OwnedFd::from(memory_file("warm.ram", bytes).map_err(io)?);
            let fd = hand(inherited, memory.try_clone().map_err(io)?);
            Some(Opened {
                file: MemoryFile {
                    fd,
                    shared: true,
                    state: None,
                },
                saved: Some(memory),
            })
        }
        Memory::Restored(base) => {
            let fd = hand(inherited, base.memory().map_err(io)?);
            let state = hand(inherited, base.state().map_err(io)?);
            Some(Opened {
                file: MemoryFile {
                    fd,
                    shared: false,
                    state: Some(state),
                },
                saved: None,
            })
        }
    })
}

/// What the state of this machine needs, as far as it is known before QEMU runs; all that QEMU is
/// told is part of it, descriptors by their place.
pub(super) fn traits(plan: &Plan<'_>) -> Result<WarmManifest, options::OptionsError> {
    let boot = plan.boot.map(|boot| DirectBoot {
        kernel: "kernel".to_owned(),
        initrd: boot.initrd.as_ref().map(|_| "initrd".to_owned()),
        cmdline: boot.cmdline.clone(),
    });
    let all_alike = Plan {
        boot: boot.as_ref(),
        card: CardEnd::Wire(0),
        qmp: 0,
        sockets: "",
        console_log: 0,
        // How flushes go is nothing of the guest's.
        disk: crate::machine::Disk::ThrowAway,
        memory: plan.memory.map(|_| MemoryFile {
            fd: 0,
            shared: true,
            state: None,
        }),
        name: plan.name,
        options: plan.options,
        has_file: plan.has_file,
        mac: plan.mac,
        cpus: plan.cpus,
        ram_kib: plan.ram_kib,
        accelerator: plan.accelerator,
        second: plan.second,
    };
    let told = command::build(&all_alike)?.arguments.join("\0");
    Ok(WarmManifest {
        qemu: String::new(),
        machine_type: MACHINE_TYPE.to_owned(),
        cpu_model: cpu_model(plan.accelerator).to_owned(),
        accelerator: plan.accelerator.to_string(),
        host_cpu: host_cpu(plan.accelerator),
        options: hex::encode(Sha256::digest(told)),
        cpus: u64::from(plan.cpus),
        ram: plan.ram_kib,
        state: String::new(),
        waiting: String::new(),
        request: String::new(),
    })
}

/// The host's processor, where the guest sees it as it is: another one may have other instructions.
fn host_cpu(accelerator: Accelerator) -> Option<String> {
    if accelerator != Accelerator::Kvm {
        return None;
    }
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of_first = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let known = ["model name", "stepping", "microcode", "flags"].map(of_first);
    let known = known.map(Option::unwrap_or_default).join("\n");
    Some(hex::encode(Sha256::digest(known)))
}

/// Compares what a state needs with what there is.
///
/// # Errors
///
/// [`Error::Unrestored`] with the first difference.
pub(super) fn require_same(saved: &WarmManifest, here: &WarmManifest) -> Result<(), Error> {
    let differs = |what: &str, saved: &dyn std::fmt::Display, here: &dyn std::fmt::Display| {
        Err(Error::Unrestored {
            why: format!("it was saved with {what} {saved}, and here it is {here}"),
        })
    };
    if saved.accelerator != here.accelerator {
        return differs("accelerator", &saved.accelerator, &here.accelerator);
    }
    if saved.cpus != here.cpus {
        return differs("CPUs", &saved.cpus, &here.cpus);
    }
    if saved.ram != here.ram {
        return differs("RAM (KiB)", &saved.ram, &here.ram);
    }
    if saved.machine_type != here.machine_type {
        return differs("machine type", &saved.machine_type, &here.machine_type);
    }
    if saved.cpu_model != here.cpu_model {
        return differs("CPU model", &saved.cpu_model, &here.cpu_model);
    }
    let other = |what: &str| {
        Err(Error::Unrestored {
            why: format!("it was saved with {what}"),
        })
    };
    if saved.host_cpu != here.host_cpu {
        return other("another processor of the host");
    }
    if saved.options != here.options {
        return other("other options of QEMU");
    }
    Ok(())
}

fn require_version(saved: &str, here: &str) -> Result<(), Error> {
    if saved == here {
        return Ok(());
    }
    Err(Error::Unrestored {
        why: format!("it was saved with QEMU {saved}, and here it is {here}"),
    })
}

/// A guest that was saved, while QEMU may still have its memory mapped.
pub(super) struct Saved {
    saving: Saving,
    waiting: Waiting,
    state: OwnedFd,
}

impl Saved {
    /// For when QEMU has ended.
    pub(super) fn into_base(self) -> Result<Base, Error> {
        let Saving { memory, traits } = self.saving;
        Base::new(traits, self.waiting, memory, self.state).map_err(|error| unsaved(&error))
    }
}

fn unsaved(why: &impl ToString) -> Error {
    Error::Unsaved {
        why: why.to_string(),
    }
}

/// Saves a stopped guest. Other events that come meanwhile are added to `others`.
pub(super) async fn save(
    mut saving: Saving,
    waiting: Waiting,
    qmp: &mut Qmp,
    events: &mut events::Receiver,
    others: &mut Vec<Event>,
) -> Result<Saved, Error> {
    let state = memory_file("warm.state", 0).map_err(|error| unsaved(&error))?;
    let deadline = Instant::now() + MIGRATION_TIMEOUT;
    let told = async {
        let both = json!({ "capabilities": [on("x-ignore-shared"), on("events")] });
        execute(qmp, "migrate-set-capabilities", both).await?;
        // As fast as it can: nobody waits for the guest meanwhile.
        let unbounded = json!({ "max-bandwidth": 1u64 << 40 });
        execute(qmp, "migrate-set-parameters", unbounded).await?;
        qmp.hand("state", state.as_fd(), MIGRATION_TIMEOUT).await?;
        execute(qmp, "migrate", json!({ "uri": "fd:state" })).await
    };
    told.await.map_err(|error| unsaved(&error))?;
    migrated(events, deadline, others)
        .await
        .map_err(|why| unsaved(&why))?;
    qmp.version().clone_into(&mut saving.traits.qemu);
    Ok(Saved {
        saving,
        waiting,
        state: state.into(),
    })
}

/// Restores a guest and lets it go on. In few words: QEMU takes a tenth of a millisecond to read each
/// byte of them.
pub(super) async fn restore(
    base: &Base,
    state: i32,
    qmp: &mut Qmp,
    events: &mut events::Receiver,
    process: &Process,
) -> Result<(), Error> {
    require_version(&base.manifest().qemu, qmp.version())?;
    let deadline = Instant::now() + MIGRATION_TIMEOUT;
    let told = async {
        let memory_is_no_part = json!({ "capabilities": [on("x-ignore-shared")] });
        execute(qmp, "migrate-set-capabilities", memory_is_no_part).await?;
        let uri = json!({ "uri": format!("fd:{state}") });
        execute(qmp, "migrate-incoming", uri).await
    };
    let restored = match told.await {
        // Nothing of what else is told is the guest's, which does not run yet.
        Ok(()) => migrated(events, deadline, &mut Vec::new()).await,
        Err(error) => Err(error.to_string()),
    };
    let gone_on = match restored {
        Ok(()) => qmp
            .execute("cont", None, MIGRATION_TIMEOUT)
            .await
            .map_err(|error| error.to_string()),
        Err(why) => Err(why),
    };
    gone_on.map(drop).map_err(|why| Error::Unrestored {
        why: match process.stderr() {
            said if said.is_empty() => why,
            said => format!("{why}: {said}"),
        },
    })
}

/// A capability that is to be there.
fn on(name: &str) -> Value {
    json!({ "capability": name, "state": true })
}

async fn execute(qmp: &mut Qmp, command: &str, arguments: Value) -> Result<(), QmpError> {
    let arguments = match arguments {
        Value::Object(arguments) => arguments,
        _ => Map::new(),
    };
    qmp.execute(command, Some(arguments), MIGRATION_TIMEOUT)
        .await
        .map(drop)
}

/// Waits for the end of a migration.
async fn migrated(
    events: &mut events::Receiver,
    deadline: Instant,
    others: &mut Vec<Event>,
) -> Result<(), String> {
    loop {
        let event = match timeout_at(deadline, events.recv()).await {
            Ok(Some(event)) => event,
            Ok(None) => return Err("QEMU has ended over it".to_owned()),
            Err(_) => {
                let seconds = MIGRATION_TIMEOUT.as_secs();
                return Err(format!("QEMU was not done with it within {seconds} s"));
            }
        };
        if event.name != "MIGRATION" {
            others.push(event);
            continue;
        }
        match event.data["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed") => return Err("QEMU failed over it".to_owned()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> WarmManifest {
        WarmManifest {
            qemu: "7.2.22".to_owned(),
            machine_type: "q35".to_owned(),
            cpu_model: "max".to_owned(),
            accelerator: "tcg".to_owned(),
            host_cpu: None,
            options: "a".repeat(64),
            cpus: 2,
            ram: 1024,
            state: "b".repeat(64),
            waiting: String::new(),
            request: String::new(),
        }
    }

    #[test]
    fn what_differs_is_told() {
        let changed = |change: fn(&mut WarmManifest)| {
            let mut here = saved();
            change(&mut here);
            require_same(&saved(), &here).map_err(|error| error.to_string())
        };
        // What is not known before it is restored does not count.
        assert_eq!(changed(|here| here.state = "c".repeat(64)), Ok(()));
        assert_eq!(changed(|here| here.qemu = String::new()), Ok(()));
        type Change = fn(&mut WarmManifest);
        let cases: [(Change, &str); 7] = [
            (
                |here| here.accelerator = "kvm".into(),
                "accelerator tcg, and here it is kvm",
            ),
            (|here| here.cpus = 1, "CPUs 2, and here it is 1"),
            (
                |here| here.ram = 2048,
                "RAM (KiB) 1024, and here it is 2048",
            ),
            (|here| here.machine_type = "pc".into(), "machine type q35"),
            (|here| here.cpu_model = "host".into(), "CPU model max"),
            (|here| here.host_cpu = Some("x".into()), "another processor"),
            (|here| here.options = "0".repeat(64), "other options"),
        ];
        for (change, expected) in cases {
            let error = changed(change).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let error = require_version("7.2.22", "10.0.2").unwrap_err().to_string();
        assert!(
            error.contains("QEMU 7.2.22, and here it is 10.0.2"),
            "{error}"
        );
    }
}
