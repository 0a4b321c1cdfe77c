//! A file that is read again when it has changed: what is in it counts a second later, without a restart.
//!
//! One that cannot be read any more, or is wrong, changes nothing: what was read before stays, and the log says why.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::Millis;

/// What was read is used for this long before the file is looked at, in milliseconds.
const FRESH: i64 = 1000;

/// What tells one state of a file from another: device, inode, size and change, in seconds and nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(path: &Path) -> Option<Stamp> {
    let data = std::fs::metadata(path).ok()?;
    Some((
        data.dev(),
        data.ino(),
        data.size(),
        data.ctime(),
        data.ctime_nsec(),
    ))
}

/// The value that a file had when it was last right.
#[derive(Debug)]
pub(crate) struct Watched<T, E> {
    path: Option<PathBuf>,
    load: fn(&Path) -> Result<T, E>,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    value: Arc<T>,
    /// None: it was not there.
    stamp: Option<Stamp>,
    looked: Option<Millis>,
}

impl<T, E: fmt::Display> Watched<T, E> {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// It cannot be read, or is wrong.
    pub(crate) fn open(path: &Path, load: fn(&Path) -> Result<T, E>) -> Result<Self, E> {
        // Before it is read: what changes meanwhile is read again.
        let stamp = stamp(path);
        let value = load(path)?;
        Ok(Self {
            path: Some(path.to_owned()),
            load,
            state: Mutex::new(State {
                value: Arc::new(value),
                stamp,
                looked: None,
            }),
        })
    }

    /// A value without a file.
    pub(crate) fn fixed(value: T, load: fn(&Path) -> Result<T, E>) -> Self {
        Self {
            path: None,
            load,
            state: Mutex::new(State {
                value: Arc::new(value),
                stamp: None,
                looked: None,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the file says, as it was a second ago at most.
    pub(crate) fn get(&self, now: Millis) -> Arc<T> {
        let mut state = self.lock();
        let is_fresh = state
            .looked
            .is_some_and(|looked| (0..FRESH).contains(&(now.0 - looked.0)));
        if !is_fresh {
            state.looked = Some(now);
            self.look(&mut state);
        }
        Arc::clone(&state.value)
    }

    /// Looks at once, whether there is something new.
    pub(crate) fn reload(&self) -> bool {
        self.look(&mut self.lock())
    }

    fn look(&self, state: &mut State<T>) -> bool {
        let Some(path) = &self.path else {
            return false;
        };
        let found = stamp(path);
        if found == state.stamp {
            return false;
        }
        state.stamp = found;
        match (self.load)(path) {
            Ok(value) => {
                state.value = Arc::new(value);
                tracing::info!("{} has changed and is used as it is now", path.display());
                true
            }
            Err(error) => {
                tracing::error!("{error}; what was read before goes on");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_a_second_later_and_a_mistake_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        let load = |path: &Path| -> Result<u32, String> {
            let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
            text.trim().parse().map_err(|e| format!("{text:?}: {e}"))
        };
        assert!(Watched::open(&path, load).is_err());
        std::fs::write(&path, "1").unwrap();
        let watched = Watched::open(&path, load).unwrap();
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
        assert_eq!(*Watched::fixed(5, load).get(Millis(0)), 5);
    }
}
