//! Room on disks: whether there is any, and which failures pass when somebody makes some.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::path::Path;

use rustix::io::Errno;

/// With fewer bytes left there is no room for what comes.
const LEAST: u64 = 1 << 20;

/// Whether something failed since a disk is full, or does not do its work: whoever asks again later may get what he wants.
pub(crate) fn is_wanting(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        if let Some(error) = error.downcast_ref::<io::Error>() {
            if is_of_disk(error) {
                return true;
            }
            if let Some(inner) = error.get_ref() {
                // Its source is that of what it holds, which is passed over.
                next = Some(inner);
            }
        }
    }
    false
}

fn is_of_disk(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem
    ) || error.raw_os_error() == Some(Errno::IO.raw_os_error())
}

/// Whether what another program has said is that of one whose disk is full, or does not do its work (in the locale C).
pub(crate) fn is_told(said: &str) -> bool {
    let words = [
        "No space left on device",
        "Disk quota exceeded",
        "Read-only file system",
        "Input/output error",
    ];
    words.iter().any(|words| said.contains(words))
}

/// Whether the file system of a directory has room for this process. Blocks.
///
/// # Errors
/// It cannot be asked.
pub(crate) fn is_there(directory: &Path) -> io::Result<bool> {
    let found = rustix::fs::statvfs(directory)?;
    // Some is set aside for root.
    let blocks = if rustix::process::geteuid().is_root() {
        found.f_bfree
    } else {
        found.f_bavail
    };
    // Not all file systems count their files.
    let has_files = found.f_files == 0 || found.f_ffree > 0;
    Ok(has_files && blocks.saturating_mul(found.f_frsize) >= LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::ObjectError;

    #[test]
    fn what_wants_room() {
        let full = || io::Error::from(Errno::NOSPC);
        let boxed = |source: io::Error| ObjectError::Failed {
            store: "x".into(),
            doing: "write",
            source: source.into(),
        };
        for (error, expected) in [
            (full(), true),
            (Errno::DQUOT.into(), true),
            (Errno::IO.into(), true),
            (Errno::ROFS.into(), true),
            (Errno::NOENT.into(), false),
            (ErrorKind::StorageFull.into(), true),
            (io::Error::other("full"), false),
            (io::Error::other(full()), true),
            (io::Error::other(boxed(full())), true),
            (io::Error::other(boxed(Errno::ACCESS.into())), false),
        ] {
            assert_eq!(is_wanting(&error), expected, "{error:?}");
        }
        assert!(is_wanting(&boxed(full())));
        assert!(is_told("fatal: write error: No space left on device"));
        assert!(!is_told("fatal: repository not found"));
    }

    #[test]
    fn there_is_room_here() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_there(dir.path()).unwrap());
        assert!(is_there(&dir.path().join("none")).is_err());
    }
}
