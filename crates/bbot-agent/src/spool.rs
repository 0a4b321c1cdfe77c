//! Results on disk, from before they are posted until they are taken.
//!
//! ```text
//! <state>/<toolchain>/held/<time>-<n>.result       to be posted if the agent ends before there is a better one
//! <state>/<toolchain>/results/<time>-<n>.result    to be posted
//! <state>/<toolchain>/refused/<time>-<n>.result    refused, or not taken in the time a controller waits
//! ```
//!
//! The first line of a file says where the result goes, the rest is the body of
//! the post. A file is written, synced and renamed before the first try, so that
//! a crash loses nothing.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::controller::{Url, parse_url};

/// After this time a result is not sent any more: the original's controller gives
/// a task up after three hours and lets another agent do it.
pub const MAX_AGE: Duration = Duration::from_secs(3 * 60 * 60);

/// How many results are tried at most, each, in one life of the agent.
pub const MAX_TRIES: u32 = 30;

/// How many refused results are kept; the oldest go first.
const REFUSED_KEPT: usize = 100;

const MAGIC: &str = "bbot-result 1";
const EXTENSION: &str = "result";
const WRITING: &str = ".writing-";

/// The spool cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("unable to {what} {}", path.display())]
pub struct SpoolError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn error<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> SpoolError + 'a {
    move |source| SpoolError {
        what,
        path: path.to_owned(),
        source,
    }
}

/// The spool's folders.
#[derive(Debug)]
pub struct Spool {
    held: PathBuf,
    results: PathBuf,
    refused: PathBuf,
    count: u32,
    /// Held, so that two agents never post the same results.
    _lock: fs::File,
}

/// One of the spool's folders that files are written to.
#[derive(Debug, Clone, Copy)]
enum Folder {
    Held,
    Results,
}

/// What is posted if the agent ends before it has a result.
#[derive(Debug)]
pub struct Held(PathBuf);

/// A result that waits to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its file.
    pub path: PathBuf,
    /// Where it goes.
    pub url: Url,
    /// When it was written.
    pub written: SystemTime,
    /// The body of the post.
    pub body: Vec<u8>,
}

impl Spool {
    /// The spool below the state directory (of one toolchain), which is made if
    /// needed.
    ///
    /// # Errors
    ///
    /// When the folders cannot be made, are not writable, or another agent uses them.
    pub fn open(state: &Path) -> Result<Self, SpoolError> {
        fs::create_dir_all(state).map_err(error("make the folder", state))?;
        let path = state.join("lock");
        let lock = fs::File::create(&path).map_err(error("write", &path))?;
        if let Err(fs::TryLockError::WouldBlock) = lock.try_lock() {
            let busy = "another agent of this toolchain uses it; give one of them another --state";
            return Err(error("use", state)(io::Error::other(busy)));
        }
        let spool = Self {
            held: state.join("held"),
            results: state.join("results"),
            refused: state.join("refused"),
            count: 0,
            _lock: lock,
        };
        for dir in [&spool.held, &spool.results, &spool.refused] {
            fs::create_dir_all(dir).map_err(error("make the folder", dir))?;
            for left in fs::read_dir(dir)
                .map_err(error("read the folder", dir))?
                .flatten()
            {
                // Half written when an agent died; its result was never promised.
                let name = left.file_name();
                if name.as_encoded_bytes().starts_with(WRITING.as_bytes()) {
                    let path = left.path();
                    fs::remove_file(&path).map_err(error("remove", &path))?;
                }
            }
        }
        // Found out now rather than after the first hour of building.
        tempfile::tempfile_in(&spool.results)
            .map_err(error("write to the folder", &spool.results))?;
        Ok(spool)
    }

    /// Writes a result; it is on disk when this returns.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn add(&mut self, url: &Url, body: &[u8], now: SystemTime) -> Result<Entry, SpoolError> {
        let path = self.free_path(Folder::Results, now);
        self.write_new(path, url, body, now)
    }

    /// Writes what is to be posted if the agent ends before it has a result; it is on
    /// disk when this returns.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn hold(&mut self, url: &Url, body: &[u8], now: SystemTime) -> Result<Held, SpoolError> {
        let path = self.free_path(Folder::Held, now);
        Ok(Held(self.write_new(path, url, body, now)?.path))
    }

    /// There is a result: what was held for this case is not needed.
    ///
    /// # Errors
    ///
    /// When its file cannot be removed: it will be posted after the result, which
    /// changes nothing then.
    pub fn release(&self, held: &Held) -> Result<(), SpoolError> {
        fs::remove_file(&held.0).map_err(error("remove", &held.0))?;
        sync_dir(&self.held)
    }

    /// Everything that is held is to be posted now, after the results that wait
    /// already: one that was written just before an agent was killed comes first.
    ///
    /// # Errors
    ///
    /// When a file cannot be moved; those moved before it are.
    pub fn give_back(&mut self, now: SystemTime) -> Result<Vec<PathBuf>, SpoolError> {
        let failed = error("read the folder", &self.held);
        let mut held = Vec::new();
        for entry in fs::read_dir(&self.held).map_err(&failed)? {
            let path = entry.map_err(&failed)?.path();
            if is_result(&path) {
                held.push(path);
            }
        }
        drop(failed);
        held.sort_unstable();
        let mut given = Vec::new();
        for path in held {
            let to = self.free_path(Folder::Results, now);
            fs::rename(&path, &to).map_err(error("move", &path))?;
            given.push(to);
        }
        if !given.is_empty() {
            sync_dir(&self.results)?;
            sync_dir(&self.held)?;
        }
        Ok(given)
    }

    fn free_path(&mut self, folder: Folder, now: SystemTime) -> PathBuf {
        let millis = now
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        let dir = match folder {
            Folder::Held => &self.held,
            Folder::Results => &self.results,
        };
        loop {
            self.count += 1;
            let name = format!(
                "{millis:014}-{}-{}.{EXTENSION}",
                std::process::id(),
                self.count
            );
            let path = dir.join(name);
            if !path.exists() {
                return path;
            }
        }
    }

    fn write_new(
        &self,
        path: PathBuf,
        url: &Url,
        body: &[u8],
        now: SystemTime,
    ) -> Result<Entry, SpoolError> {
        let entry = Entry {
            path,
            url: url.clone(),
            written: now,
            body: body.to_vec(),
        };
        self.write(&entry)?;
        Ok(entry)
    }

    /// Writes a result's body anew (its logs were cut).
    ///
    /// # Errors
    ///
    /// When it cannot be written; then the file is as it was.
    pub fn rewrite(&self, entry: &Entry) -> Result<(), SpoolError> {
        self.write(entry)
    }

    fn write(&self, entry: &Entry) -> Result<(), SpoolError> {
        let failed = error("write the result", &entry.path);
        let dir = entry.path.parent().unwrap_or(&self.results);
        let mut file = tempfile::Builder::new()
            .prefix(WRITING)
            .tempfile_in(dir)
            .map_err(&failed)?;
        writeln!(file, "{MAGIC} {}", entry.url)
            .and_then(|()| file.write_all(&entry.body))
            .and_then(|()| file.as_file().sync_all())
            .map_err(&failed)?;
        file.persist(&entry.path).map_err(|e| failed(e.error))?;
        sync_dir(dir)
    }

    /// The results that wait, oldest first, and what is wrong with files that
    /// cannot be read (which stay where they are).
    pub fn pending(&self) -> (Vec<PathBuf>, Vec<SpoolError>) {
        let failed = error("read the folder", &self.results);
        let mut paths = Vec::new();
        let mut problems = Vec::new();
        match fs::read_dir(&self.results) {
            Ok(entries) => {
                for entry in entries {
                    match entry {
                        Ok(e) if is_result(&e.path()) => paths.push(e.path()),
                        Ok(_) => {}
                        Err(e) => problems.push(failed(e)),
                    }
                }
            }
            Err(e) => problems.push(failed(e)),
        }
        paths.sort_unstable();
        (paths, problems)
    }

    /// Reads a result that waits.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or is not a result.
    pub fn read(&self, path: &Path) -> Result<Entry, SpoolError> {
        let failed = error("read the result", path);
        let wrong = || {
            failed(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is not a spooled result",
            ))
        };
        let mut bytes = fs::read(path).map_err(&failed)?;
        let end = bytes.iter().position(|b| *b == b'\n').ok_or_else(wrong)?;
        let url = std::str::from_utf8(&bytes[..end])
            .ok()
            .and_then(|line| line.strip_prefix(MAGIC))
            .and_then(|rest| parse_url(rest.trim()).ok())
            .ok_or_else(wrong)?;
        let written = path
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.split('-').next())
            .and_then(|n| n.parse().ok())
            .map(|millis| UNIX_EPOCH + Duration::from_millis(millis))
            .ok_or_else(wrong)?;
        bytes.drain(..=end);
        Ok(Entry {
            path: path.to_owned(),
            url,
            written,
            body: bytes,
        })
    }

    /// The result is taken.
    ///
    /// # Errors
    ///
    /// When its file cannot be removed: it will be posted again.
    pub fn taken(&self, path: &Path) -> Result<(), SpoolError> {
        fs::remove_file(path).map_err(error("remove the result", path))?;
        sync_dir(&self.results)
    }

    /// The result will not be taken: keeps it for a person, and returns where.
    ///
    /// # Errors
    ///
    /// When it cannot be moved.
    pub fn refuse(&self, path: &Path) -> Result<PathBuf, SpoolError> {
        let kept = self.refused.join(path.file_name().unwrap_or_default());
        fs::rename(path, &kept).map_err(error("move the result", path))?;
        sync_dir(&self.refused)?;
        self.forget_oldest()?;
        Ok(kept)
    }

    fn forget_oldest(&self) -> Result<(), SpoolError> {
        let failed = error("tidy the folder", &self.refused);
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.refused).map_err(&failed)? {
            let path = entry.map_err(&failed)?.path();
            if is_result(&path) {
                paths.push(path);
            }
        }
        paths.sort_unstable();
        let surplus = paths.len().saturating_sub(REFUSED_KEPT);
        for path in &paths[..surplus] {
            fs::remove_file(path).map_err(&failed)?;
        }
        Ok(())
    }
}

/// How long to wait after the try with this number (from 1) before the next; none
/// when it was the last.
pub fn pause_after(tries: u32) -> Option<Duration> {
    if tries >= MAX_TRIES {
        return None;
    }
    let seconds = 1_u64 << tries.saturating_sub(1).min(10);
    Some(Duration::from_secs(seconds.min(600)))
}

fn is_result(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|e| e == EXTENSION)
}

fn sync_dir(dir: &Path) -> Result<(), SpoolError> {
    fs::File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(error("sync the folder", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url() -> Url {
        parse_url("http://c.example/?build-result").unwrap()
    }

    #[test]
    fn what_is_added_is_there_after_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let now = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let mut spool = Spool::open(state.path()).unwrap();
        let first = spool.add(&url(), b": 1\nsession: a\n", now).unwrap();
        let second = spool.add(&url(), b"", now).unwrap();
        drop(spool);

        let spool = Spool::open(state.path()).unwrap();
        let (paths, problems) = spool.pending();
        assert!(problems.is_empty());
        assert_eq!(paths, [first.path.clone(), second.path.clone()]);
        assert_eq!(spool.read(&first.path).unwrap(), first);
        assert_eq!(spool.read(&second.path).unwrap(), second);

        let cut = Entry {
            body: b"cut".to_vec(),
            ..first.clone()
        };
        spool.rewrite(&cut).unwrap();
        assert_eq!(spool.read(&first.path).unwrap(), cut);

        spool.taken(&first.path).unwrap();
        let kept = spool.refuse(&second.path).unwrap();
        assert!(kept.exists());
        assert_eq!(spool.pending().0, Vec::<PathBuf>::new());
    }

    #[test]
    fn what_is_held_is_given_back_after_what_waits() {
        let state = tempfile::tempdir().unwrap();
        let at = |second: u64| UNIX_EPOCH + Duration::from_secs(1_700_000_000 + second);
        let mut spool = Spool::open(state.path()).unwrap();
        let done = spool.hold(&url(), b"done", at(0)).unwrap();
        spool.hold(&url(), b"not done", at(1)).unwrap();
        let result = spool.add(&url(), b"result", at(2)).unwrap();
        spool.release(&done).unwrap();
        assert_eq!(spool.pending().0, std::slice::from_ref(&result.path));
        // As an agent leaves it that is killed while it holds one more.
        fs::write(spool.held.join(".writing-x.result"), "half").unwrap();
        drop(spool);

        let mut spool = Spool::open(state.path()).unwrap();
        let given = spool.give_back(at(3)).unwrap();
        assert_eq!(spool.pending().0, [&[result.path][..], &given].concat());
        let entry = spool.read(&given[0]).unwrap();
        assert_eq!((entry.body, entry.written), (b"not done".to_vec(), at(3)));
        assert_eq!(spool.give_back(at(4)).unwrap(), Vec::<PathBuf>::new());
        assert_eq!(fs::read_dir(&spool.held).unwrap().count(), 0);
    }

    #[test]
    fn other_files_are_not_results() {
        let state = tempfile::tempdir().unwrap();
        let spool = Spool::open(state.path()).unwrap();
        for name in ["x", ".writing-1.result"] {
            fs::write(spool.results.join(name), "x").unwrap();
        }
        assert_eq!(spool.pending().0, Vec::<PathBuf>::new());
        for text in [
            "",
            "x",
            "bbot-result 1 ftp://x/\n",
            "bbot-result 1 \n",
            "\n\n",
        ] {
            let path = spool.results.join("1-1-1.result");
            fs::write(&path, text).unwrap();
            let error = spool.read(&path).unwrap_err();
            assert!(error.to_string().contains("1-1-1.result"), "{error}");
        }
    }

    #[test]
    fn refused_results_do_not_fill_the_disk() {
        let state = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(state.path()).unwrap();
        for second in 0..REFUSED_KEPT as u64 + 3 {
            let at = UNIX_EPOCH + Duration::from_secs(second + 1000);
            let entry = spool.add(&url(), b"", at).unwrap();
            spool.refuse(&entry.path).unwrap();
        }
        let mut kept: Vec<_> = fs::read_dir(&spool.refused)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        kept.sort_unstable();
        assert_eq!(kept.len(), REFUSED_KEPT);
        assert!(
            kept[0].to_str().unwrap().starts_with("00000001003000-"),
            "{:?}",
            kept[0]
        );
    }

    #[test]
    fn a_state_directory_that_is_not_one_is_named() {
        let state = tempfile::tempdir().unwrap();
        let file = state.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Spool::open(&file).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");

        let _one = Spool::open(state.path()).unwrap();
        let second = Spool::open(state.path()).unwrap_err();
        assert!(
            std::error::Error::source(&second)
                .unwrap()
                .to_string()
                .contains("another agent")
        );
    }

    #[test]
    fn pauses_grow_and_end() {
        let pauses: Vec<u64> = (1..).map_while(pause_after).map(|p| p.as_secs()).collect();
        assert_eq!(pauses[..4], [1, 2, 4, 8]);
        assert!(pauses.is_sorted() && pauses.ends_with(&[600]));
        assert_eq!(pauses.len(), MAX_TRIES as usize - 1);
    }
}
