//! Revisions: listing, adding and removing them, for the operator's tool.

use std::cmp::Ordering;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{LayoutError, MachineDir, check, ends_like_a_temporary, resolve_current};
use crate::durable;
use crate::nspawn::rootfs;
use crate::owner::{self, Instance, Temporary};
use crate::volume::{self, Volume, VolumeError};

/// One revision of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    /// R: what stands behind `<machine>-<P>.`.
    pub name: String,
    /// Its directory.
    pub path: PathBuf,
    /// Whether the link leads to it.
    pub current: bool,
}

/// The revisions of a machine for a bootstrap protocol, oldest number first.
///
/// # Errors
/// When the machine's directory cannot be read.
pub fn revisions(machine: &MachineDir, protocol: u32) -> Result<Vec<Revision>, LayoutError> {
    let failed = |e| LayoutError::io("read directory", &machine.path, e);
    // A broken link is reported by `scan`; here it means that no revision is current.
    let current = resolve_current(machine, protocol).ok().flatten();
    let prefix = format!("{}-{protocol}.", machine.name);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&machine.path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let Some(revision) = name.to_str().and_then(|name| name.strip_prefix(&prefix)) else {
            continue;
        };
        let path = entry.path();
        if !entry.file_type().is_ok_and(|t| t.is_dir()) || owner::is_owned(&path) {
            continue;
        }
        found.push(Revision {
            name: revision.to_string(),
            current: current.as_ref() == Some(&path),
            path,
        });
    }
    found.sort_by(|a, b| by_number(&a.name, &b.name));
    Ok(found)
}

/// By the numbers between dots, then by text: `2 < 10 < 10.1`.
fn by_number(a: &str, b: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<Option<u64>> {
        text.split('.').map(|part| part.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b)).then_with(|| a.cmp(b))
}

/// A number for a new revision: one more than the highest.
///
/// # Errors
/// When the machine's directory cannot be read.
pub fn next_revision(machine: &MachineDir, protocol: u32) -> Result<String, LayoutError> {
    let highest = revisions(machine, protocol)?
        .iter()
        .filter_map(|revision| revision.name.split('.').next()?.parse::<u64>().ok())
        .max()
        .unwrap_or(0);
    Ok(highest.saturating_add(1).to_string())
}

/// Begins a new revision: an empty, writable subvolume to be filled, with an owner record, so that
/// nothing stays of it should it never be published with [`publish_revision`].
///
/// # Errors
/// When the number is taken or cannot be a revision's, or the directory cannot be written.
pub fn begin_revision(
    instance: &Instance,
    volume: &Arc<dyn Volume>,
    machine: &MachineDir,
    protocol: u32,
    revision: &str,
) -> Result<Temporary, LayoutError> {
    let path = free_revision(machine, protocol, revision)?;
    Ok(Temporary::create(instance, volume, &path)?)
}

/// Puts a filled revision under its name: flushed, read-only, in one step. It becomes the current
/// one by [`super::activate`].
///
/// # Errors
/// When the number was taken meanwhile, or the disk fails; the revision is then deleted.
pub fn publish_revision(
    temporary: Temporary,
    machine: &MachineDir,
    protocol: u32,
    revision: &str,
) -> Result<PathBuf, LayoutError> {
    let path = free_revision(machine, protocol, revision)?;
    temporary.volume().set_read_only(temporary.path(), true)?;
    match temporary.rename_to(&path) {
        Ok(()) => Ok(path),
        Err(owner::OwnerError::Volume(error)) if error.is_taken() => Err(exists(machine, revision)),
        Err(error) => Err(error.into()),
    }
}

/// Adds a copy of the directory `source` as a revision, read-only and durable; a container's nobody
/// but its owner may enter. It becomes the current one by [`super::activate`].
///
/// # Errors
/// When the number is taken, the source cannot be read, or the directory cannot be written.
pub fn add_revision(
    instance: &Instance,
    volume: &Arc<dyn Volume>,
    machine: &MachineDir,
    protocol: u32,
    revision: &str,
    source: &Path,
) -> Result<PathBuf, LayoutError> {
    let path = free_revision(machine, protocol, revision)?;
    let temporary = Temporary::copy(instance, volume, source, &path)?;
    if temporary
        .path()
        .join(rootfs::ROOTFS)
        .symlink_metadata()
        .is_ok()
    {
        // Programs in there run with the rights of their owners, root among them.
        rootfs::close(temporary.path())
            .map_err(|e| LayoutError::io("close for others", temporary.path(), e))?;
    }
    publish_revision(temporary, machine, protocol, revision)
}

fn free_revision(
    machine: &MachineDir,
    protocol: u32,
    revision: &str,
) -> Result<PathBuf, LayoutError> {
    check("revision", revision)?;
    if ends_like_a_temporary(&format!("-{revision}")) {
        return Err(LayoutError::Name {
            what: "revision",
            name: revision.to_string(),
            reason: "temporaries have such names",
        });
    }
    let path = machine.revision(protocol, revision);
    if path.symlink_metadata().is_ok() {
        return Err(exists(machine, revision));
    }
    Ok(path)
}

fn exists(machine: &MachineDir, revision: &str) -> LayoutError {
    LayoutError::RevisionExists {
        machine: machine.name.clone(),
        revision: revision.to_string(),
    }
}

/// Removes one revision that is not the current one.
///
/// # Errors
/// When there is none of that number, it is the current one, or the caller may not.
pub fn remove_revision(
    machine: &MachineDir,
    protocol: u32,
    revision: &str,
) -> Result<(), LayoutError> {
    let found = revisions(machine, protocol)?
        .into_iter()
        .find(|found| found.name == revision);
    match found {
        None => Err(LayoutError::NoRevision {
            machine: machine.name.clone(),
            revision: revision.to_string(),
            path: machine.revision(protocol, revision),
        }),
        Some(found) if found.current => Err(LayoutError::Current {
            machine: machine.name.clone(),
            revision: revision.to_string(),
        }),
        Some(found) => {
            // As a temporary of this process, so that nothing stays should it be interrupted.
            let instance = Instance::new("bbot machine remove")?;
            let volume: Arc<dyn Volume> = volume::detect(&machine.path)?.into();
            Ok(Temporary::take(&instance, &volume, &found.path)?.delete()?)
        }
    }
}

/// Removes a machine with all its revisions and bootstrapped copies, for every toolchain.
///
/// First the links go, so that no agent begins anything; then what has been left by owners that are
/// gone; then the rest. Interrupted, it can be called again.
///
/// # Errors
/// [`LayoutError::InUse`] when an agent of ours uses the machine; the links are then back in their
/// place. (What an agent of the original uses cannot be told from what it has left.)
/// [`LayoutError::Foreign`] when something in the directory is not of this machine: nothing has been
/// touched then.
pub fn remove(machine: &MachineDir) -> Result<(), LayoutError> {
    let home = machine
        .path
        .canonicalize()
        .map_err(|e| LayoutError::io("find", &machine.path, e))?;
    in_use(machine)?;
    let entries = entries(machine)?;
    let volume = volume::detect(&machine.path)?;
    let (links, rest): (Vec<_>, Vec<_>) = entries.into_iter().partition(|path| path.is_symlink());
    let mut taken = Vec::new();
    for link in &links {
        taken.push((link, std::fs::read_link(link)));
        remove_file(link)?;
    }
    // An agent that read the link before it went has an owner record by now, or finds no revision,
    // or has its snapshot found by the last step, which then fails.
    if let Err(error) = in_use(machine) {
        for (link, target) in taken {
            if let Ok(target) = target {
                std::os::unix::fs::symlink(target, link)
                    .map_err(|e| LayoutError::io("restore link", link, e))?;
            }
        }
        return Err(error);
    }
    for path in rest {
        let is_directory = path.symlink_metadata().is_ok_and(|m| m.is_dir());
        let removed = if is_directory {
            volume.delete(&path)
        } else {
            std::fs::remove_file(&path).map_err(|e| VolumeError::io("delete", &path, e))
        };
        match removed {
            Err(error) if error.is_race() => {}
            other => other?,
        }
    }
    std::fs::remove_dir(&home).map_err(|e| LayoutError::io("delete", &home, e))?;
    if machine.path.is_symlink() {
        remove_file(&machine.path)?;
    }
    durable::sync_parent(&home)?;
    Ok(())
}

fn remove_file(path: &Path) -> Result<(), LayoutError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(LayoutError::io("delete", path, e)),
        _ => Ok(()),
    }
}

/// Sweeps the machine and tells whether an owner is left.
fn in_use(machine: &MachineDir) -> Result<(), LayoutError> {
    let swept = owner::sweep(std::slice::from_ref(machine));
    match swept.kept.into_iter().next() {
        None => Ok(()),
        Some(kept) => Err(LayoutError::InUse {
            machine: machine.name.clone(),
            path: kept.path,
            owner: kept.owner,
        }),
    }
}

/// Everything in a machine's directory, all of which must be of that machine.
fn entries(machine: &MachineDir) -> Result<Vec<PathBuf>, LayoutError> {
    let failed = |e| LayoutError::io("read directory", &machine.path, e);
    let prefix = format!("{}-", machine.name);
    let hidden = format!(".{prefix}");
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&machine.path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with(&prefix) && !name.starts_with(&hidden) {
            return Err(LayoutError::Foreign {
                machine: machine.name.clone(),
                path: entry.path(),
            });
        }
        paths.push(entry.path());
    }
    paths.sort();
    Ok(paths)
}
