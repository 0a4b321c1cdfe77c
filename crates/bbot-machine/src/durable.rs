//! Files that are whole or not there: write beside, flush, rename, flush the directory.
//!
//! A file written here survives a crash of the process and a loss of power once the call has
//! returned, and a reader sees the old content or the new one, never a part. The seed calls
//! `fsync` on the results it receives for the same reason (`file_sync`).

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// What went wrong while something was made durable.
#[derive(Debug, Error)]
#[error("unable to {action} {}", path.display())]
pub struct DurableError {
    /// What was tried, as a verb: `write`, `rename`, `flush`.
    pub action: &'static str,
    /// The file or directory concerned.
    pub path: PathBuf,
    /// The system's reason.
    #[source]
    pub source: io::Error,
}

impl DurableError {
    fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self {
            action,
            path: path.to_path_buf(),
            source,
        }
    }
}

/// The permission bits of a file made by [`write()`].
pub const DEFAULT_MODE: u32 = 0o644;

/// Makes `content` the content of the file `path`, atomically and durably, with
/// [`DEFAULT_MODE`] (less the umask).
///
/// # Errors
/// When the directory cannot be written or the disk is full; the old file, if any, is then
/// untouched and nothing is left beside it.
pub fn write(path: &Path, content: &[u8]) -> Result<(), DurableError> {
    write_with_mode(path, content, DEFAULT_MODE)
}

/// As [`write()`], with the permission bits `mode` (less the umask); 0o600 for what is secret.
///
/// # Errors
/// As [`write()`].
pub fn write_with_mode(path: &Path, content: &[u8], mode: u32) -> Result<(), DurableError> {
    let temporary = hidden_sibling(path, &format!("{}.tmp", random_word(path)?))?;
    let written = write_temporary(&temporary, content, mode)
        .map_err(|e| DurableError::new("write", path, e))
        .and_then(|()| {
            std::fs::rename(&temporary, path).map_err(|e| DurableError::new("write", path, e))
        });
    if let Err(error) = written {
        // The first error is the one worth telling; a temporary that cannot be removed hurts nobody.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    sync_parent(path)
}

fn write_temporary(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Flushes a file's content and metadata to the disk.
///
/// # Errors
/// When the file cannot be opened or flushed.
pub fn sync_file(path: &Path) -> Result<(), DurableError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|e| DurableError::new("flush", path, e))
}

/// Flushes a directory's entries (names made, renamed or removed) to the disk. A file system that
/// cannot do this for directories is taken at its word.
///
/// # Errors
/// When the directory cannot be opened or flushed.
pub fn sync_directory(path: &Path) -> Result<(), DurableError> {
    let flushed = File::open(path).and_then(|directory| directory.sync_all());
    match flushed {
        // FUSE and some network file systems: EINVAL, they flush entries as they come.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other.map_err(|e| DurableError::new("flush", path, e)),
    }
}

/// Flushes the directory that holds `path`.
///
/// # Errors
/// As [`sync_directory`].
pub fn sync_parent(path: &Path) -> Result<(), DurableError> {
    sync_directory(&parent(path))
}

/// The directory that holds `path`: `.` for a bare name.
pub(crate) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// `.<name>.<ending>` beside `path`.
pub(crate) fn hidden_sibling(path: &Path, ending: &str) -> Result<PathBuf, DurableError> {
    let Some(name) = path.file_name() else {
        return Err(DurableError::new(
            "name something beside",
            path,
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the path does not end in a name",
            ),
        ));
    };
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".");
    hidden.push(ending);
    Ok(path.with_file_name(hidden))
}

/// Sixteen random hexadecimal digits, lower case.
pub(crate) fn random_hex() -> io::Result<String> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

fn random_word(path: &Path) -> Result<String, DurableError> {
    random_hex().map_err(|e| DurableError::new("find random bytes to write", path, e))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn writes_and_replaces() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("manifest");
        write(&path, b"one").unwrap();
        write_with_mode(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(names(directory.path()), ["manifest"]);
    }

    #[test]
    fn a_failure_leaves_nothing_beside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        let error = write(&path, b"content").unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("unable to write {}", path.display())
        );
        assert_eq!(names(directory.path()), ["taken"]);
    }

    #[test]
    fn a_missing_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("absent/manifest");
        let error = write(&path, b"content").unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::NotFound);
        assert_eq!(error.path, path);
    }

    #[test]
    fn a_path_without_a_name_is_refused() {
        assert!(write(Path::new("/"), b"content").is_err());
        assert!(write(Path::new(".."), b"content").is_err());
    }

    #[test]
    fn the_parent_of_a_bare_name_is_here() {
        assert_eq!(parent(Path::new("manifest")), Path::new("."));
        assert_eq!(parent(Path::new("a/manifest")), Path::new("a"));
    }
}
