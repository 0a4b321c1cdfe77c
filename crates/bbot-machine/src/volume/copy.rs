//! Volumes of plain directories, for every file system that has no subvolumes.

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Once;
use std::time::Instant;

use super::{
    Kind, Stop, Volume, VolumeError, remove, rename_without_replacing, require_directory, tree,
    unfinished,
};

/// Machines as plain directories, copied.
///
/// - A snapshot shares the files' blocks where the file system can (reflink: XFS, bcachefs, newer
///   overlays), else it copies what is not a hole; that takes as long as writing the machine does,
///   and a word in the log says so once. Modes, times, symbolic and hard links and extended
///   attributes are kept, owners too when the caller is root.
/// - A snapshot is *not* atomic against writers of its source. Sources are revisions and
///   bootstrapped machines, which nobody writes; one that is removed or replaced meanwhile is
///   noticed ([`VolumeError::SourceChanged`]).
/// - An interrupted copy leaves its hidden sibling `.<name>.new`, which [`crate::owner::sweep`]
///   deletes with the temporary that it was to become.
/// - Read-only is a mark, not a lock: the write permission of the top directory is taken away. It
///   keeps an ordinary user from adding and removing entries at the top, and tells everybody what
///   is meant; it stops neither root nor a write into a file that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy;

const WRITE_BITS: u32 = 0o222;
const OWNER_WRITE: u32 = 0o200;

impl Volume for Copy {
    fn kind(&self) -> Kind {
        Kind::Copy
    }

    fn create(&self, path: &Path) -> Result<(), VolumeError> {
        std::fs::DirBuilder::new()
            .mode(0o755)
            .create(path)
            .map_err(|e| VolumeError::io("create directory", path, e))
    }

    fn snapshot_until(&self, from: &Path, to: &Path, stop: &Stop) -> Result<(), VolumeError> {
        copy_under_name(from, to, stop, |unfinished| self.create(unfinished))
    }

    fn set_read_only(&self, path: &Path, read_only: bool) -> Result<(), VolumeError> {
        set_read_only(path, read_only)
    }

    fn is_read_only(&self, path: &Path) -> Result<bool, VolumeError> {
        is_read_only(path)
    }

    fn delete(&self, path: &Path) -> Result<(), VolumeError> {
        remove::hide_and_remove(path)
    }
}

pub(super) fn set_read_only(path: &Path, read_only: bool) -> Result<(), VolumeError> {
    require_directory(path)?;
    let old = mode(path)?;
    let new = if read_only {
        old & !WRITE_BITS
    } else {
        // Others' write permission does not come back: nobody has recorded it, and a machine has
        // no use for it.
        old | OWNER_WRITE
    };
    if new == old {
        return Ok(());
    }
    std::fs::set_permissions(path, Permissions::from_mode(new))
        .map_err(|e| VolumeError::io("change the mode of", path, e))
}

pub(super) fn is_read_only(path: &Path) -> Result<bool, VolumeError> {
    require_directory(path)?;
    Ok(mode(path)? & WRITE_BITS == 0)
}

fn mode(path: &Path) -> Result<u32, VolumeError> {
    Ok(path
        .symlink_metadata()
        .map_err(|e| VolumeError::io("find", path, e))?
        .permissions()
        .mode()
        & 0o7777)
}

/// Copies `from` to `to` by way of a hidden sibling that `create` makes.
pub(super) fn copy_under_name(
    from: &Path,
    to: &Path,
    stop: &Stop,
    create: impl Fn(&Path) -> Result<(), VolumeError>,
) -> Result<(), VolumeError> {
    let source = require_directory(from)?;
    if to.symlink_metadata().is_ok() {
        return Err(VolumeError::io(
            "create snapshot",
            to,
            rustix::io::Errno::EXIST,
        ));
    }
    let unfinished = unfinished(to)?;
    create(&unfinished)?;
    let copied = fill(from, source, &unfinished, stop)
        .and_then(|()| rename_without_replacing(&unfinished, to));
    if copied.is_err()
        && let Err(error) = remove::remove_tree(&unfinished)
    {
        tracing::warn!(path = %unfinished.display(), "unable to remove an unfinished copy: {error}");
    }
    match copied {
        Err(_) if stop.is_set() => Err(VolumeError::Stopped {
            path: from.to_path_buf(),
        }),
        copied => copied,
    }
}

fn fill(
    from: &Path,
    source: (u64, u64),
    unfinished: &Path,
    stop: &Stop,
) -> Result<(), VolumeError> {
    let started = Instant::now();
    let tally = tree::copy_tree(from, unfinished, stop)?;
    // Who deletes a machine renames it first. So if the name still leads to the same directory
    // now, every entry was there while it was copied.
    match require_directory(from) {
        Ok(now) if now == source => {}
        _ => {
            return Err(VolumeError::SourceChanged {
                path: from.to_path_buf(),
            });
        }
    }
    set_read_only(unfinished, false)?;
    tracing::debug!(
        from = %from.display(),
        files = tally.files,
        shared_bytes = tally.shared_bytes,
        copied_bytes = tally.copied_bytes,
        "copied {} in {:?}",
        from.display(),
        started.elapsed(),
    );
    if tally.copied_bytes > SLOW_COPY {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            tracing::warn!(
                "the file system of {} has no reflink, so every snapshot is a full copy \
                 ({} MiB this time); machines on btrfs or XFS are copied in no time",
                from.display(),
                tally.copied_bytes >> 20,
            );
        });
    }
    Ok(())
}

/// From how many copied bytes on a snapshot is worth a word: what a slow disk writes in a second.
const SLOW_COPY: u64 = 100 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// Machines are replaced by renaming, so the name leads to another directory then.
    #[test]
    fn a_source_that_was_replaced_is_noticed() {
        let top = tempfile::tempdir().unwrap();
        let (from, to) = (top.path().join("from"), top.path().join("to"));
        for path in [&from, &to] {
            std::fs::create_dir(path).unwrap();
        }
        let source = require_directory(&from).unwrap();
        let stop = Stop::default();
        fill(&from, source, &to, &stop).unwrap();
        std::fs::rename(&from, top.path().join("old")).unwrap();
        let error = fill(&from, source, &to, &stop).unwrap_err();
        assert!(error.is_race(), "{error:?}");
        std::fs::create_dir(&from).unwrap();
        let error = fill(&from, source, &to, &stop).unwrap_err();
        assert!(
            matches!(error, VolumeError::SourceChanged { .. }),
            "{error:?}"
        );
        assert!(error.is_race());
    }
}
