//! A temporary machine and its owner record, as one guard.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{Lock, try_lock};
use super::{Instance, OwnerError, record_path};
use crate::durable;
use crate::layout::{MachineDir, ToolchainName, fresh};
use crate::volume::{Stop, Volume, VolumeError, half_deleted, unfinished};

/// A temporary directory of this process's, deleted when the guard is dropped unless it was renamed
/// or kept. Dropping blocks; in async code rather call [`Temporary::delete`] on a blocking thread.
///
/// What cannot be deleted is logged and stays with its record, for the next [`super::sweep`].
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    instance: Instance,
    volume: Arc<dyn Volume>,
    /// `None` once there is nothing left to clean up.
    record: Option<LockedRecord>,
}

/// The record's file, whose lock goes with it.
#[derive(Debug)]
pub(crate) struct LockedRecord {
    pub(crate) path: PathBuf,
    _lock: File,
}

impl Temporary {
    /// A copy of `from` under a new temporary name `<machine>-<toolchain>-<xxx>`.
    ///
    /// # Errors
    /// [`OwnerError::is_race`] when `from` is gone or went meanwhile. Nothing is left of it.
    pub fn snapshot(
        instance: &Instance,
        volume: &Arc<dyn Volume>,
        machine: &MachineDir,
        toolchain: &ToolchainName,
        from: &Path,
    ) -> Result<Self, OwnerError> {
        Self::copy(instance, volume, from, &machine.bootstrapped(toolchain))
    }

    /// A copy of `from` under the temporary name `<base>-<xxx>`.
    ///
    /// # Errors
    /// As [`Temporary::snapshot`].
    pub fn copy(
        instance: &Instance,
        volume: &Arc<dyn Volume>,
        from: &Path,
        base: &Path,
    ) -> Result<Self, OwnerError> {
        Self::copy_until(instance, volume, from, base, &Stop::default())
    }

    /// As [`Temporary::copy`], and can be broken off.
    ///
    /// # Errors
    /// As [`Temporary::snapshot`], and [`VolumeError::Stopped`].
    pub fn copy_until(
        instance: &Instance,
        volume: &Arc<dyn Volume>,
        from: &Path,
        base: &Path,
        stop: &Stop,
    ) -> Result<Self, OwnerError> {
        // To flush the directory would have all commit that has gone on in it, and the copy does that once more.
        let sync = match volume.keeps_order() {
            true => Sync::Content,
            false => Sync::Yes,
        };
        let temporary = Self::claim(instance, volume, base, sync)?;
        volume.snapshot_until(from, &temporary.path, stop)?;
        Ok(temporary)
    }

    /// An empty, writable subvolume under the temporary name `<base>-<xxx>`.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn create(
        instance: &Instance,
        volume: &Arc<dyn Volume>,
        base: &Path,
    ) -> Result<Self, OwnerError> {
        let temporary = Self::claim(instance, volume, base, Sync::Yes)?;
        volume.create(&temporary.path)?;
        Ok(temporary)
    }

    /// Takes an existing machine off its name `path` and makes it temporary, so that it is deleted
    /// even if this process dies over it: `Temporary::take(..)?.delete()`.
    ///
    /// # Errors
    /// When there is no such directory, or it cannot be renamed.
    pub fn take(
        instance: &Instance,
        volume: &Arc<dyn Volume>,
        path: &Path,
    ) -> Result<Self, OwnerError> {
        let temporary = Self::claim(instance, volume, path, Sync::Yes)?;
        volume.rename(path, &temporary.path)?;
        Ok(temporary)
    }

    /// A fresh name with its record, and nothing under it yet.
    fn claim(
        instance: &Instance,
        volume: &Arc<dyn Volume>,
        base: &Path,
        sync: Sync,
    ) -> Result<Self, OwnerError> {
        // A name is random, so that a second round is needed only when a sweep takes the record,
        // still empty, for one that was left.
        for _ in 0..8 {
            let path = fresh(base).map_err(|e| OwnerError::io("find a name beside", base, e))?;
            if path.symlink_metadata().is_ok() {
                continue;
            }
            if let Some(record) = write_record(instance, &path, "", sync)? {
                return Ok(Self {
                    path,
                    instance: instance.clone(),
                    volume: Arc::clone(volume),
                    record: Some(record),
                });
            }
        }
        Err(OwnerError::io(
            "find a free name beside",
            base,
            io::ErrorKind::AlreadyExists.into(),
        ))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The volume it lies on.
    #[must_use]
    pub fn volume(&self) -> &Arc<dyn Volume> {
        &self.volume
    }

    /// Flushes it to the disk and gives it the name `target` (in the same directory) in one step,
    /// durably. Never replaces anything.
    ///
    /// # Errors
    /// When `target` exists ([`VolumeError::is_taken`]) or the disk fails; the temporary is then
    /// deleted.
    pub fn rename_to(mut self, target: &Path) -> Result<(), OwnerError> {
        self.volume.sync(&self.path)?;
        self.volume.rename(&self.path, target)?;
        self.finish();
        Ok(())
    }

    /// As [`Temporary::rename_to`], but takes the place of what is under `target`, if anything, which
    /// is deleted. There is a whole machine under `target` at every moment (on a file system that
    /// cannot exchange names: but for an instant).
    ///
    /// # Errors
    /// When the disk fails; the temporary is then deleted and `target` is what it was.
    pub fn replace(mut self, target: &Path) -> Result<(), OwnerError> {
        self.volume.sync(&self.path)?;
        match self.volume.exchange(&self.path, target) {
            Ok(()) => {
                // The new one is in its place; the old one is what is temporary now. Should its
                // deletion fail, that is logged and left to a sweep.
                drop(self);
                Ok(())
            }
            Err(error) if error.is_race() => {
                self.volume.rename(&self.path, target)?;
                self.finish();
                Ok(())
            }
            Err(VolumeError::Io { source, .. })
                if matches!(source.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) =>
            {
                self.replace_in_two_steps(target)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn replace_in_two_steps(mut self, target: &Path) -> Result<(), OwnerError> {
        let old = Self::take(&self.instance, &self.volume, target)?;
        if let Err(error) = self.volume.rename(&self.path, target) {
            return match old.rename_to(target) {
                Ok(()) => Err(error.into()),
                Err(worse) => Err(worse),
            };
        }
        self.finish();
        Ok(())
    }

    /// Leaves the directory where it is, no longer temporary and nobody's: nothing cleans it up.
    ///
    /// # Errors
    /// When the record cannot be removed; the directory is then deleted by the next sweep.
    pub fn keep(mut self) -> Result<PathBuf, OwnerError> {
        if let Some(record) = self.record.take() {
            remove_record(&record.path)?;
            durable::sync_parent(&record.path)?;
        }
        Ok(std::mem::take(&mut self.path))
    }

    /// Deletes it and its record.
    ///
    /// # Errors
    /// When it cannot be deleted; it then stays with its record, for the next sweep.
    pub fn delete(mut self) -> Result<(), OwnerError> {
        self.dismantle()
    }

    /// It is no longer under its temporary name: only the record is left to remove.
    fn finish(&mut self) {
        if let Some(record) = self.record.take()
            && let Err(error) = remove_record(&record.path)
        {
            // The record names nothing any more; a sweep removes it.
            tracing::warn!(path = %record.path.display(), "{error}");
        }
    }

    fn dismantle(&mut self) -> Result<(), OwnerError> {
        let Some(record) = self.record.take() else {
            return Ok(());
        };
        delete_all(&*self.volume, &self.path)?;
        remove_record(&record.path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = self.dismantle() {
            let error: &dyn std::error::Error = &error;
            let reason = error.source().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(
                path = %self.path.display(),
                "{error}: {reason}; left for the next sweep",
            );
        }
    }
}

/// Deletes a temporary with what an interrupted copy or deletion of it has left.
pub(super) fn delete_all(volume: &dyn Volume, path: &Path) -> Result<(), OwnerError> {
    for path in [unfinished(path)?, path.to_path_buf(), half_deleted(path)?] {
        match path.symlink_metadata() {
            Ok(_) => match volume.delete(&path) {
                Err(error) if error.is_race() => {}
                other => other?,
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(OwnerError::io("find", &path, e)),
        }
    }
    Ok(())
}

pub(crate) fn remove_record(path: &Path) -> Result<(), OwnerError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(OwnerError::io("remove owner record", path, e))
        }
        _ => Ok(()),
    }
}

/// Whether a record is to outlive a loss of power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sync {
    /// With its name.
    Yes,
    /// What is in it; its name is on the disk before what it speaks of.
    Content,
    No,
}

/// Makes, locks, fills and, if asked to, flushes the record of `path`, with `more` lines at its end.
/// `None` when somebody has removed it meanwhile, or has one of that name.
pub(crate) fn write_record(
    instance: &Instance,
    path: &Path,
    more: &str,
    sync: Sync,
) -> Result<Option<LockedRecord>, OwnerError> {
    let record = record_path(path)?;
    let failed = |e| OwnerError::io("write owner record", &record, e);
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&record);
    let mut file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let written = try_lock(&file).and_then(|lock| {
        // A sweep has come between making and locking. It removes the empty record.
        if lock == Lock::Held || !is_same_file(&file, &record) {
            return Ok(false);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = instance.record(&name).to_text() + more;
        file.write_all(text.as_bytes())?;
        if sync != Sync::No {
            file.sync_all()?;
        }
        Ok(true)
    });
    match written {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(e) => {
            let _ = std::fs::remove_file(&record);
            return Err(failed(e));
        }
    }
    if sync == Sync::Yes {
        durable::sync_parent(&record)?;
    }
    Ok(Some(LockedRecord {
        path: record,
        _lock: file,
    }))
}

/// Whether `path` (no symbolic link) is still the name of the open file.
pub(super) fn is_same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(open), Ok(named)) => open.dev() == named.dev() && open.ino() == named.ino(),
        _ => false,
    }
}
