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
