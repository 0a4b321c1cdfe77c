//! Source archives on disk, each named by the SHA-256 of its bytes.
//!
//! An archive appears under its name only once it is whole and on disk: temporary file in the same
//! directory, fsync, rename, fsync of the directory.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::is_sha256;

/// An archive could not be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// Its bytes are not what its name says.
    #[error("the archive's SHA-256 is {actual}, not {expected}")]
    Hash {
        /// The name.
        expected: String,
        /// The hash of the bytes.
        actual: String,
    },
    /// It is not compressed by gzip.
    #[error("the archive is not a gzip-compressed tar: it does not begin with the gzip mark")]
    NotGzip,
    /// It is larger than allowed.
    #[error("the archive is larger than {limit} bytes")]
    TooLarge {
        /// The most bytes that an archive may have.
        limit: u64,
    },
    /// The disk.
    #[error("cannot keep the archive in {directory}")]
    Io {
        /// Where archives are kept.
        directory: String,
        /// Why not.
        source: io::Error,
    },
}

/// What became of an archive that was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is new.
    New,
    /// It was here already.
    Known,
}

/// The directory of archives.
#[derive(Debug, Clone)]
pub struct Archives {
    directory: PathBuf,
    limit: u64,
}

/// Whether nothing was written to the file for so long. One whose time cannot be told is left alone, unless any
/// will do.
fn is_unused(entry: &std::fs::DirEntry, unused: Duration) -> bool {
    unused.is_zero()
        || entry
            .metadata()
            .and_then(|m| m.modified())
            .is_ok_and(|m| m.elapsed().is_ok_and(|e| e >= unused))
}

impl Archives {
    /// Archives in this directory, each of at most `limit` bytes.
    #[must_use]
    pub fn new(directory: PathBuf, limit: u64) -> Self {
        Self { directory, limit }
    }

    /// Makes the directory and removes what uploads of an earlier run left behind: what was not written to for
    /// `unused`, since other controllers that share the directory may be at it.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn prepare(&self, unused: Duration) -> io::Result<()> {
        std::fs::create_dir_all(&self.directory)?;
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(PREFIX.as_bytes())
                && is_unused(&entry, unused)
            {
                match std::fs::remove_file(entry.path()) {
                    // Another controller was faster.
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file of an archive; `None` when the name is no hash, so that no name leads elsewhere.
    #[must_use]
    pub fn path(&self, sha256: &str) -> Option<PathBuf> {
        is_sha256(sha256).then(|| self.directory.join(format!("{sha256}.tar.gz")))
    }

    /// Whether the archive is here.
    #[must_use]
    pub fn contains(&self, sha256: &str) -> bool {
        self.path(sha256).is_some_and(|path| path.is_file())
    }

    /// Begins an archive. Blocking, as are the incoming archive's own functions.
    ///
    /// # Errors
    /// No file can be made.
    pub fn begin(&self) -> Result<Incoming, ArchiveError> {
        let file = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempfile_in(&self.directory)
            .map_err(|e| self.io(e))?;
        Ok(Incoming {
            archives: self.clone(),
            file,
            hash: Sha256::new(),
            bytes: 0,
            start: Vec::new(),
        })
    }

    fn io(&self, source: io::Error) -> ArchiveError {
        ArchiveError::Io {
            directory: self.directory.display().to_string(),
            source,
        }
    }
}

/// Name prefix of an archive that is not whole yet.
const PREFIX: &str = ".incoming-";

/// The two bytes that every gzip file begins with (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// An archive on its way in; dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct Incoming {
    archives: Archives,
    file: tempfile::NamedTempFile,
    hash: Sha256,
    bytes: u64,
    start: Vec<u8>,
}

impl Incoming {
    /// Adds bytes.
    ///
    /// # Errors
    /// It gets too large, is no gzip file, or the disk is full.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.bytes = self
            .bytes
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if self.bytes > self.archives.limit {
            return Err(ArchiveError::TooLarge {
                limit: self.archives.limit,
            });
        }
        let missing = GZIP.len().saturating_sub(self.start.len());
        self.start.extend(bytes.iter().take(missing));
        if !GZIP.starts_with(&self.start) {
            return Err(ArchiveError::NotGzip);
        }
        self.hash.update(bytes);
        self.file.write_all(bytes).map_err(|e| self.archives.io(e))
    }

    /// Keeps it under the hash of its bytes, which must be the expected one where one is given.
    ///
    /// # Errors
    /// The hash differs, there are no bytes, or the disk fails.
    pub fn finish(self, expected: Option<&str>) -> Result<(String, Put), ArchiveError> {
        let actual = hex::encode(self.hash.finalize());
        if let Some(expected) = expected
            && expected != actual
        {
            return Err(ArchiveError::Hash {
                expected: expected.to_owned(),
                actual,
            });
        }
        if self.start != GZIP {
            return Err(ArchiveError::NotGzip);
        }
        let path = self.archives.directory.join(format!("{actual}.tar.gz"));
        if path.is_file() {
            return Ok((actual, Put::Known));
        }
        let keep = || -> io::Result<()> {
            self.file.as_file().sync_all()?;
            self.file.persist(&path)?;
            File::open(&self.archives.directory)?.sync_all()
        };
        let archives = self.archives.clone();
        keep().map_err(|e| archives.io(e))?;
        Ok((actual, Put::New))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archives(limit: u64) -> (tempfile::TempDir, Archives) {
        let dir = tempfile::tempdir().unwrap();
        let archives = Archives::new(dir.path().join("archives"), limit);
        archives.prepare(Duration::ZERO).unwrap();
        (dir, archives)
    }

    fn files(archives: &Archives) -> usize {
        std::fs::read_dir(archives.directory()).unwrap().count()
    }

    #[test]
    fn kept_under_its_hash() {
        let (_dir, archives) = archives(100);
        for expected in [Put::New, Put::Known] {
            let mut incoming = archives.begin().unwrap();
            incoming.write(&[0x1f]).unwrap();
            incoming.write(&[0x8b, 1, 2, 3]).unwrap();
            let (sha256, put) = incoming.finish(None).unwrap();
            assert_eq!(put, expected);
            assert!(archives.contains(&sha256));
            assert_eq!(
                std::fs::read(archives.path(&sha256).unwrap()).unwrap(),
                [0x1f, 0x8b, 1, 2, 3]
            );
        }
        assert_eq!(files(&archives), 1);
    }

    #[test]
    fn refused_ones_leave_nothing() {
        let (_dir, archives) = archives(8);
        let mut large = archives.begin().unwrap();
        large.write(&[0x1f, 0x8b, 0, 0]).unwrap();
        assert!(matches!(
            large.write(&[0; 5]),
            Err(ArchiveError::TooLarge { limit: 8 })
        ));
        drop(large);
        assert!(matches!(
            archives.begin().unwrap().write(b"PK"),
            Err(ArchiveError::NotGzip)
        ));
        assert!(matches!(
            archives.begin().unwrap().finish(None),
            Err(ArchiveError::NotGzip)
        ));
        let mut other = archives.begin().unwrap();
        other.write(&[0x1f, 0x8b]).unwrap();
        assert!(matches!(
            other.finish(Some(&"0".repeat(64))),
            Err(ArchiveError::Hash { .. })
        ));
        assert_eq!(files(&archives), 0);
    }

    #[test]
    fn no_name_leads_elsewhere() {
        let (_dir, archives) = archives(8);
        for name in [
            "../x",
            "/etc/passwd",
            "",
            ".incoming-x",
            &"0".repeat(63),
            &format!("{}/..", "0".repeat(61)),
        ] {
            assert_eq!(archives.path(name), None, "{name}");
            assert!(!archives.contains(name));
        }
    }

    #[test]
    fn leftovers_are_removed() {
        let (_dir, archives) = archives(8);
        std::fs::write(archives.directory().join(".incoming-abc"), "x").unwrap();
        std::fs::write(archives.directory().join("other"), "x").unwrap();
        // Somebody may still write to it.
        archives.prepare(Duration::from_secs(3600)).unwrap();
        assert_eq!(files(&archives), 2);
        archives.prepare(Duration::ZERO).unwrap();
        assert_eq!(files(&archives), 1);
    }
}
