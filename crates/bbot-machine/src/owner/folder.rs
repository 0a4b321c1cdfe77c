//! A folder of one run and its owner record, as one guard.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::temporary::{LockedRecord, Sync, remove_record, write_record};
use super::{Examined, Instance, OwnerError, examine, record_path};
use crate::durable;

/// A private folder of this process's, removed with all it holds when dropped. Killed, the process
/// leaves it with its record, for the next [`sweep_folders`].
///
/// Neither is flushed to the disk, since none of it is of use after a loss of power; a record that
/// has lost its text is the record of a folder that was left.
#[derive(Debug)]
pub struct OwnedFolder {
    path: PathBuf,
    record: LockedRecord,
}

impl OwnedFolder {
    /// `<parent>/<prefix><xxx>`, with mode 0700; `parent` is made if needed.
    ///
    /// # Errors
    /// When `parent` cannot be made or written.
    pub fn create(instance: &Instance, parent: &Path, prefix: &str) -> Result<Self, OwnerError> {
        let failed = |e| OwnerError::io("make a folder in", parent, e);
        // Another round is needed when another run has ended and removed the parent as empty, or a
        // sweep has taken the record, still empty, for one that was left.
        for _ in 0..10 {
            std::fs::create_dir_all(parent).map_err(failed)?;
            let name = format!("{prefix}{}", durable::random_hex().map_err(failed)?);
            let path = parent.join(name);
            let record = match write_record(instance, &path, "", Sync::No) {
                Ok(Some(record)) => record,
                Ok(None) => continue,
                Err(OwnerError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            if let Err(error) = DirBuilder::new().mode(0o700).create(&path) {
                remove_record(&record.path)?;
                return Err(failed(error));
            }
            return Ok(Self { path, record });
        }
        Err(failed(io::ErrorKind::ResourceBusy.into()))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for OwnedFolder {
    fn drop(&mut self) {
        let removed = remove(&self.path).and_then(|()| remove_record(&self.record.path));
        if let Err(error) = removed {
            let reason = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(
                path = %self.path.display(),
                "{error}: {}; left for the next sweep",
                reason.unwrap_or_default(),
            );
        }
    }
}

/// Removes the folders `<parent>/<prefix><xxx>` of this user's whose owners are gone, and touches
/// nothing else. What it removed, and what it could not. Safe to run at any time, by any number of
/// processes. Blocks for as long as the deletions take.
#[must_use]
pub fn sweep_folders(parent: &Path, prefix: &str) -> (Vec<PathBuf>, Vec<OwnerError>) {
    let (mut removed, mut problems) = (Vec::new(), Vec::new());
    // No parent, no folders.
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let Some(folder) = name
            .to_str()
            .and_then(|name| name.strip_prefix('.')?.strip_suffix(".owner"))
            .filter(|folder| folder.starts_with(prefix))
        else {
            continue;
        };
        // In a folder that everybody writes to, a record may say anything of anybody's.
        let is_ours = entry
            .metadata()
            .is_ok_and(|record| record.uid() == rustix::process::geteuid().as_raw());
        if !is_ours {
            continue;
        }
        let path = parent.join(folder);
        match sweep_one(&path) {
            Ok(true) => removed.push(path),
            Ok(false) => {}
            Err(error) => problems.push(error),
        }
    }
    (removed, problems)
}

/// Whether there was a folder to remove.
fn sweep_one(path: &Path) -> Result<bool, OwnerError> {
    let (_lock, why) = match examine(path)? {
        Examined::Nothing | Examined::Kept(_) => return Ok(false),
        Examined::Unfilled { _lock } => (_lock, "its record is empty".to_owned()),
        Examined::Gone { reason, _lock, .. } => (_lock, reason.to_string()),
    };
    let was_there = path.symlink_metadata().is_ok();
    remove(path)?;
    remove_record(&record_path(path)?)?;
    if was_there {
        tracing::info!(path = %path.display(), "removed {}, left behind: {why}", path.display());
    }
    Ok(was_there)
}

fn remove(path: &Path) -> Result<(), OwnerError> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(OwnerError::io("remove folder", path, e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn instance() -> Instance {
        Instance::new("test").unwrap()
    }

    fn names(parent: &Path) -> Vec<String> {
        let entries = fs::read_dir(parent).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// As a process that was killed leaves it.
    fn leave(parent: &Path) -> PathBuf {
        let folder = OwnedFolder::create(&instance(), parent, "run-").unwrap();
        let path = folder.path().to_owned();
        fs::write(path.join("file"), "").unwrap();
        let text = fs::read_to_string(record_path(&path).unwrap()).unwrap();
        drop(folder);
        fs::create_dir_all(path.join("get/deep")).unwrap();
        fs::write(record_path(&path).unwrap(), text).unwrap();
        path
    }

    #[test]
    fn it_is_private_and_leaves_nothing() {
        let top = tempfile::tempdir().unwrap();
        let parent = top.path().join("not/yet");
        let folder = OwnedFolder::create(&instance(), &parent, "run-").unwrap();
        let mode = fs::metadata(folder.path()).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o700);
        assert_eq!(names(&parent).len(), 2);
        fs::write(folder.path().join("file"), "").unwrap();
        drop(folder);
        assert_eq!(names(&parent), [""; 0]);
    }

    #[test]
    fn what_is_left_is_swept_at_once_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let living = OwnedFolder::create(&instance(), parent.path(), "run-").unwrap();
        let dead = leave(parent.path());
        // Killed before the record was filled, before the folder was made, and in the deletion.
        let unfilled = parent.path().join("run-unfilled");
        fs::write(record_path(&unfilled).unwrap(), "").unwrap();
        let half = leave(parent.path());
        fs::remove_dir_all(&half).unwrap();
        // A loss of power may take the text and leave the folder.
        let emptied = parent.path().join("run-emptied");
        fs::create_dir(&emptied).unwrap();
        fs::write(record_path(&emptied).unwrap(), "").unwrap();
        // Somebody else's: without a record, of another name, a record of something else.
        fs::create_dir(parent.path().join("run-stranger")).unwrap();
        let other = leave(parent.path());
        let renamed = parent.path().join("other");
        fs::rename(&other, &renamed).unwrap();
        fs::rename(record_path(&other).unwrap(), record_path(&renamed).unwrap()).unwrap();
        let copied = parent.path().join("run-copied");
        fs::create_dir(&copied).unwrap();
        fs::copy(
            record_path(&renamed).unwrap(),
            record_path(&copied).unwrap(),
        )
        .unwrap();

        let (mut removed, problems) = sweep_folders(parent.path(), "run-");
        removed.sort();
        let mut expected = [dead, emptied];
        expected.sort();
        assert_eq!(removed, expected);
        assert_eq!(problems.len(), 1, "{problems:?}");
        let path = living.path().to_owned();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let mut left = vec![
            format!(".{name}.owner"),
            ".other.owner".to_owned(),
            ".run-copied.owner".to_owned(),
            "other".to_owned(),
            name,
            "run-copied".to_owned(),
            "run-stranger".to_owned(),
        ];
        left.sort();
        assert_eq!(names(parent.path()), left);
        drop(living);
        assert!(!path.exists());
    }

    /// Whoever makes folders while others sweep keeps them.
    #[test]
    fn making_and_sweeping_at_once() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path();
        std::thread::scope(|scope| {
            let sweeps = scope.spawn(|| {
                for _ in 0..300 {
                    let (removed, problems) = sweep_folders(path, "run-");
                    assert!(removed.is_empty() && problems.is_empty(), "{problems:?}");
                }
            });
            while !sweeps.is_finished() {
                let folder = OwnedFolder::create(&instance(), path, "run-").unwrap();
                assert!(folder.path().is_dir());
            }
        });
        assert_eq!(names(path), [""; 0]);
    }
}
