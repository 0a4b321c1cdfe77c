//! A folder that one run works in: held by a lock while the run lasts, removed at
//! its end, and swept away later when the run's process died over it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

/// The file whose lock says that the folder is in use. Hidden, so that it is never
/// served.
const LOCK: &str = ".lock";

/// How long a folder may be there before its lock is taken.
const NEW: Duration = Duration::from_secs(60);

/// A folder of one run. Dropping it removes it with all it holds.
#[derive(Debug)]
pub(crate) struct RunFolder {
    dir: TempDir,
    _lock: File,
}

impl RunFolder {
    /// `<parent>/<prefix><xxx>`, with mode 0700; `parent` is made if needed.
    pub(crate) fn create(parent: &Path, prefix: &str) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(prefix);
        let mut tries = 0;
        let dir = loop {
            fs::create_dir_all(parent)?;
            match builder.tempdir_in(parent) {
                // Another run has ended and removed the parent as empty.
                Err(e) if e.kind() == io::ErrorKind::NotFound && tries < 10 => tries += 1,
                made => break made?,
            }
        };
        let lock = File::create_new(dir.path().join(LOCK))?;
        // Where the file system knows no locks nothing is ever swept.
        let _ = lock.try_lock();
        Ok(Self { dir, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        let path = self.dir.path();
        if let Err(e) = fs::remove_dir_all(path) {
            tracing::warn!("unable to remove {}: {e}", path.display());
        }
    }
}

/// Removes the folders in `parent` whose runs are gone, and returns them.
pub(crate) fn sweep(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut swept = Vec::new();
    let Ok(entries) = fs::read_dir(parent) else {
        return swept;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let named = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(prefix.as_bytes());
        if !named || !is_left(&path) {
            continue;
        }
        match fs::remove_dir_all(&path) {
            Ok(()) => {
                tracing::info!("removed {}, left by a run that has ended", path.display());
                swept.push(path);
            }
            Err(e) => tracing::warn!("unable to remove {}: {e}", path.display()),
        }
    }
    swept
}

fn is_left(folder: &Path) -> bool {
    // One without a lock file is not ours, or is being made.
    let Ok(lock) = File::open(folder.join(LOCK)) else {
        return false;
    };
    let age = lock
        .metadata()
        .and_then(|m| m.modified())
        .ok()
        .map(|at| apart(SystemTime::now(), at));
    age.is_some_and(|age| age > NEW) && lock.try_lock().is_ok()
}

/// How far apart two times of the wall clock are, whichever is later: after the clock
/// was set back, what an earlier run has left may be from the future.
pub(crate) fn apart(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other)
        .unwrap_or_else(|later| later.duration())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make_old(folder: &Path) {
        let lock = File::options().write(true).open(folder.join(LOCK)).unwrap();
        lock.set_modified(SystemTime::now() - NEW * 2).unwrap();
    }

    #[test]
    fn a_clock_that_is_set_back_or_ahead_makes_no_difference() {
        let parent = tempfile::tempdir().unwrap();
        let year = Duration::from_secs(365 * 24 * 3600);
        let now = SystemTime::now();
        for at in [now - year, now + year] {
            let living = RunFolder::create(parent.path(), "run-").unwrap();
            let dead = parent.path().join("run-dead");
            fs::create_dir(&dead).unwrap();
            fs::write(dead.join(LOCK), "").unwrap();
            for folder in [living.path(), &dead] {
                let lock = File::options().write(true).open(folder.join(LOCK)).unwrap();
                lock.set_modified(at).unwrap();
            }
            assert_eq!(sweep(parent.path(), "run-"), [dead]);
            assert!(living.path().exists());
        }
    }

    #[test]
    fn a_run_in_progress_is_never_swept_and_a_dead_one_is() {
        let parent = tempfile::tempdir().unwrap();
        let living = RunFolder::create(parent.path(), "run-").unwrap();
        make_old(living.path());
        // As a process that was killed leaves it: no lock is held.
        let dead = parent.path().join("run-dead");
        fs::create_dir_all(dead.join("get")).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        make_old(&dead);
        let new = parent.path().join("run-new");
        fs::create_dir(&new).unwrap();
        fs::write(new.join(LOCK), "").unwrap();
        let strangers = parent.path().join("run-other");
        fs::create_dir(&strangers).unwrap();

        assert_eq!(sweep(parent.path(), "run-"), [dead]);
        assert!(living.path().exists() && new.exists() && strangers.exists());
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists());
    }
}
