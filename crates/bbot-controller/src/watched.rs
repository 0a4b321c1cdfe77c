//! Files that are read again when they have changed: what is in them counts a second later, without a restart.
//!
//! Those that cannot be read any more, or are wrong, change nothing: what was read before stays, and the log says why.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::Millis;

/// What was read is used for this long before the file is looked at, in milliseconds.
const FRESH: i64 = 1000;

/// Files that are as they were when they could not be used are tried again after so long, in milliseconds: it may have been for a reason that passes,
/// as when no file could be opened.
const AGAIN: i64 = 30_000;

/// What tells one state of a file from another: device, inode, size and change, in seconds and nanoseconds.
pub(crate) type Stamp = (u64, u64, u64, i64, i64);

/// The state of a file.
pub(crate) fn stamp_of(data: &Metadata) -> Stamp {
    (
        data.dev(),
        data.ino(),
        data.size(),
        data.ctime(),
        data.ctime_nsec(),
    )
}

fn stamp(path: &Path) -> Option<Stamp> {
    std::fs::metadata(path).ok().map(|data| stamp_of(&data))
}

type Load<T, E> = Box<dyn Fn() -> Result<T, E> + Send + Sync>;

/// The value that files had when they were last right.
pub(crate) struct Watched<T, E> {
    /// None: they never change.
    load: Option<Load<T, E>>,
    paths: Vec<PathBuf>,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    value: Arc<T>,
    /// None for a file that was not there.
    stamps: Vec<Option<Stamp>>,
    looked: Option<Millis>,
    failed: Option<Failed>,
}

/// Files that could not be used.
#[derive(Debug)]
struct Failed {
    why: String,
    /// When they were tried last.
    tried: Option<Millis>,
}

impl<T: fmt::Debug, E> fmt::Debug for Watched<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("paths", &self.paths)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl<T, E: fmt::Display> Watched<T, E> {
    /// Reads these files for the first time, by `load`.
    ///
    /// # Errors
    /// They cannot be read, or are wrong.
    pub(crate) fn open(
        paths: Vec<PathBuf>,
        load: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        // Before they are read: what changes meanwhile is read again.
        let stamps = stamps(&paths);
        let value = Arc::new(load()?);
        Ok(Self {
            load: Some(Box::new(load)),
            paths,
            state: Mutex::new(State {
                value,
                stamps,
                looked: None,
                failed: None,
            }),
        })
    }

    /// A value without a file.
    pub(crate) fn fixed(value: T) -> Self {
        Self {
            load: None,
            paths: Vec::new(),
            state: Mutex::new(State {
                value: Arc::new(value),
                stamps: Vec::new(),
                looked: None,
                failed: None,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the files say, as they were a second ago at most.
    pub(crate) fn get(&self, now: Millis) -> Arc<T> {
        let mut state = self.lock();
        let is_fresh = state
            .looked
            .is_some_and(|looked| (0..FRESH).contains(&(now.0 - looked.0)));
        if !is_fresh {
            state.looked = Some(now);
            self.look(&mut state, Some(now));
        }
        Arc::clone(&state.value)
    }

    /// Looks at once, whether there is something new.
    pub(crate) fn reload(&self) -> bool {
        self.look(&mut self.lock(), None)
    }

    /// `now`: none when a person has asked, who need not wait.
    fn look(&self, state: &mut State<T>, now: Option<Millis>) -> bool {
        let Some(load) = &self.load else {
            return false;
        };
        let is_due = state.failed.as_ref().is_some_and(|failed| {
            let since = now.zip(failed.tried).map(|(now, tried)| now.0 - tried.0);
            since.is_none_or(|since| !(0..AGAIN).contains(&since))
        });
        let found = stamps(&self.paths);
        if found == state.stamps && !is_due {
            return false;
        }
        state.stamps = found;
        let names: Vec<String> = self.paths.iter().map(|p| p.display().to_string()).collect();
        let names = names.join(", ");
        match load() {
            Ok(value) => {
                state.value = Arc::new(value);
                state.failed = None;
                tracing::info!("{names}: changed, and used as it is now");
                true
            }
            Err(error) => {
                let why = error.to_string();
                if state.failed.as_ref().is_none_or(|failed| failed.why != why) {
                    tracing::error!("{names}: changed, but {why}; what was read before goes on");
                }
                state.failed = Some(Failed { why, tried: now });
                false
            }
        }
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| stamp(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_a_second_later_and_a_mistake_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        let file = path.clone();
        let load = move || -> Result<u32, String> {
            let text = std::fs::read_to_string(&file).map_err(|e| e.to_string())?;
            text.trim().parse().map_err(|e| format!("{text:?}: {e}"))
        };
        assert!(Watched::open(vec![path.clone()], load.clone()).is_err());
        std::fs::write(&path, "1").unwrap();
        let watched = Watched::open(vec![path.clone()], load).unwrap();
        let at = |time| *watched.get(Millis(time));
        assert_eq!(at(0), 1);
        std::fs::write(&path, "22").unwrap();
        assert_eq!(at(999), 1);
        assert_eq!(at(1000), 22);
        std::fs::write(&path, "x").unwrap();
        assert_eq!(at(2000), 22);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(at(3000), 22);
        std::fs::write(&path, "333").unwrap();
        // The clock may be set back.
        assert_eq!(at(10), 333);
        std::fs::write(&path, "4444").unwrap();
        assert!(watched.reload() && !watched.reload());
        assert_eq!(at(11), 4444);
    }

    #[test]
    fn what_could_not_be_used_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&path, "1").unwrap();
        std::fs::write(&other, "").unwrap();
        let (file, passing) = (path.clone(), other.clone());
        let load = move || -> Result<String, String> {
            std::fs::read(&passing).map_err(|e| e.to_string())?;
            std::fs::read_to_string(&file).map_err(|e| e.to_string())
        };
        let watched = Watched::open(vec![path.clone()], load).unwrap();
        let at = |time| watched.get(Millis(time)).as_str().to_owned();
        assert_eq!(at(0), "1");
        std::fs::remove_file(&other).unwrap();
        std::fs::write(&path, "22").unwrap();
        assert_eq!(at(1000), "1");
        std::fs::write(&other, "").unwrap();
        assert_eq!(at(30_000), "1");
        assert_eq!(at(31_000), "22");
        // Whoever asks need not wait.
        std::fs::remove_file(&other).unwrap();
        std::fs::write(&path, "333").unwrap();
        assert!(!watched.reload());
        std::fs::write(&other, "").unwrap();
        assert!(watched.reload());
        assert_eq!(at(32_000), "333");
        assert_eq!(*Watched::<_, String>::fixed(5).get(Millis(0)), 5);
    }
}
