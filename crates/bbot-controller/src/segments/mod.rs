//! The raw logs of runs, as agents send them while builds run (protocol, section 5): in files below `runs/` of the
//! data directory, one folder per build, kept until they are pruned.
//!
//! Not in the store: a log grows several times a second and is read from its end, which a file does for nothing.

pub mod log;
pub mod record;

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

pub use log::{Appended, Bounds, Piece, Position, RunLog, Skip};

/// So many logs that nobody uses at the moment stay open.
const IDLE: usize = 64;

/// All raw logs.
#[derive(Debug)]
pub struct Segments {
    directory: PathBuf,
    bounds: Bounds,
    open: Mutex<HashMap<i64, Arc<RunLog>>>,
}

impl Segments {
    /// The logs below this directory, which need not be there yet.
    #[must_use]
    pub fn new(directory: PathBuf, bounds: Bounds) -> Self {
        Self {
            directory,
            bounds,
            open: Mutex::default(),
        }
    }

    fn path(&self, build: i64, run: i64) -> PathBuf {
        self.directory
            .join(build.to_string())
            .join(format!("{run}.log"))
    }

    /// The log of a run of a build. Blocks: it may read the whole log.
    ///
    /// # Errors
    /// Its files cannot be read.
    pub fn log(&self, build: i64, run: i64) -> io::Result<Arc<RunLog>> {
        // Held while a log is scanned: two scans of one log would each think that they are alone.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = open.get(&run) {
            return Ok(Arc::clone(log));
        }
        if open.len() >= IDLE {
            open.retain(|_, log| Arc::strong_count(log) > 1);
        }
        let log = Arc::new(RunLog::open(self.path(build, run), self.bounds)?);
        open.insert(run, Arc::clone(&log));
        Ok(log)
    }

    /// Whether there is anything of a run.
    #[must_use]
    pub fn exists(&self, build: i64, run: i64) -> bool {
        self.path(build, run).exists()
    }

    /// Logs that nothing was written to since a time, as build and run. Blocks.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn unchanged_since(&self, time: SystemTime) -> io::Result<Vec<(i64, i64)>> {
        let mut found = Vec::new();
        let builds = match std::fs::read_dir(&self.directory) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(found),
            builds => builds?,
        };
        for folder in builds {
            let folder = folder?;
            let Some(build) = folder.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            for file in std::fs::read_dir(folder.path())? {
                let file = file?;
                let name = file.file_name();
                let run = name
                    .to_str()
                    .and_then(|n| n.strip_suffix(".log")?.parse().ok());
                if let Some(run) = run
                    && file.metadata()?.modified()? < time
                {
                    found.push((build, run));
                }
            }
        }
        Ok(found)
    }

    /// Removes the log of a run. Blocks.
    ///
    /// # Errors
    /// A file of it cannot be removed.
    pub fn remove(&self, build: i64, run: i64) -> io::Result<()> {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&run);
        log::remove(&self.path(build, run))?;
        // The folder goes with its last log.
        match std::fs::remove_dir(self.directory.join(build.to_string())) {
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
                Err(e)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn old_logs_are_found_by_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let segments = Segments::new(dir.path().join("runs"), Bounds::default());
        let now = SystemTime::now();
        let later = now + Duration::from_secs(60);
        assert_eq!(segments.unchanged_since(later).unwrap(), []);
        for (build, run) in [(1, 7), (2, 8)] {
            let log = segments.log(build, run).unwrap();
            log.append(1, Skip::No, "update", b"x").unwrap();
        }
        std::fs::write(dir.path().join("runs/1/7.log.1"), "").unwrap();
        std::fs::create_dir(dir.path().join("runs/other")).unwrap();
        let mut found = segments.unchanged_since(later).unwrap();
        found.sort_unstable();
        assert_eq!(found, [(1, 7), (2, 8)]);
        assert_eq!(
            segments
                .unchanged_since(now - Duration::from_secs(60))
                .unwrap(),
            []
        );
        segments.remove(1, 7).unwrap();
        assert_eq!(segments.unchanged_since(later).unwrap(), [(2, 8)]);
    }
}
