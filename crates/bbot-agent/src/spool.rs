//! Results on disk, from before they are posted until they are taken.
//!
//! ```text
//! <state>/<toolchain>/held/<time>-<n>.result       to be posted if the agent ends before there is a better one
//! <state>/<toolchain>/results/<time>-<n>.result    to be posted
//! <state>/<toolchain>/refused/<time>-<n>.result    refused, damaged, or not taken in the time a stranger waits
//! <state>/<toolchain>/logs/...                     log segments of running builds (module `session`)
//! ```
//!
//! The first line of a file says whose controller the result goes to, how long it is,
//! where it goes, how long its session's log is, and what it is signed with (so that only the
//! agent's user may read it); the rest is the body of the post. A file is written, synced and
//! renamed, and its folder synced, before the first try, so that a crash loses nothing.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bbot_signature::SessionKey;

use crate::controller::{Destination, Kin, parse_url};

/// How many refused results are kept; the oldest go first.
const REFUSED_KEPT: usize = 100;

/// The first word of a file; the number of its form follows.
const MAGIC: &str = "bbot-result";

/// The longest first line: a URL is some hundred bytes.
const HEADER_LIMIT: u64 = 16 * 1024;

const OURS: &str = "ours";
const STRANGER: &str = "stranger";

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

impl SpoolError {
    /// Whether the file itself is at fault and will never be read: it is damaged, or it
    /// is not there. All else (no file handle left, a disk that fails) may pass.
    pub fn is_of_file(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::InvalidData
                | io::ErrorKind::NotFound
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::IsADirectory
        )
    }
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
    logs: PathBuf,
    count: AtomicU32,
    /// No new name has an earlier time than this, in milliseconds since 1970: the order
    /// outlives a clock that is set back.
    newest: AtomicU64,
    /// Held, so that two agents never post the same results.
    lock: Mutex<Option<fs::File>>,
}

/// One of the spool's folders that files are written to.
#[derive(Debug, Clone, Copy)]
enum Folder {
    Held,
    Results,
}

/// What is posted if the agent ends before it has a result.
#[derive(Debug)]
pub struct Held(pub(crate) PathBuf);

/// What the first line of a file and its name say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Where the result goes.
    pub to: Destination,
    /// When it was written.
    pub written: SystemTime,
    /// How many bytes the file has.
    pub bytes: u64,
}

/// A result that waits to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its file.
    pub path: PathBuf,
    /// Where it goes.
    pub to: Destination,
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
            logs: state.join("logs"),
            count: AtomicU32::new(0),
            newest: AtomicU64::new(0),
            lock: Mutex::new(Some(lock)),
        };
        for dir in [&spool.held, &spool.results, &spool.refused, &spool.logs] {
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
        let left = results_in(&spool.results).map_err(error("read the folder", &spool.results))?;
        let newest = left.iter().filter_map(|path| millis_of(path)).max();
        // One more: what has the same time is told apart by numbers that begin anew.
        let newest = newest.map_or(0, |millis| millis.saturating_add(1));
        spool.newest.store(newest, Ordering::Relaxed);
        // Found out now rather than after the first hour of building.
        tempfile::tempfile_in(&spool.results)
            .map_err(error("write to the folder", &spool.results))?;
        Ok(spool)
    }

    /// Lets another agent use the state directory; nothing is written or removed after
    /// this.
    pub(crate) fn unlock(&self) {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        *lock = None;
    }

    /// The folders of the logs that an earlier agent has left.
    pub fn left_logs(&self) -> Vec<PathBuf> {
        let folders = fs::read_dir(&self.logs).into_iter().flatten().flatten();
        folders.map(|folder| folder.path()).collect()
    }

    /// A folder for the log segments of a running build; it is not made.
    pub fn free_log(&self, now: SystemTime) -> PathBuf {
        loop {
            let path = self.logs.join(self.free_name(now));
            if !path.exists() {
                return path;
            }
        }
    }

    /// Writes a result; it is on disk when this returns.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn add(&self, to: &Destination, body: &[u8], now: SystemTime) -> Result<Entry, SpoolError> {
        let path = self.free_path(Folder::Results, now);
        self.write_new(path, to, body, now)
    }

    /// Writes what is to be posted if the agent ends before it has a result; it is on
    /// disk when this returns.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn hold(&self, to: &Destination, body: &[u8], now: SystemTime) -> Result<Held, SpoolError> {
        let path = self.free_path(Folder::Held, now);
        Ok(Held(self.write_new(path, to, body, now)?.path))
    }

    /// There is a result: what was held for this case is not needed. Not synced: should it
    /// be there again after a power loss, the result beside it tells that it is not needed, or
    /// else its controller, which has the result by then.
    ///
    /// # Errors
    ///
    /// When its file cannot be removed: it will be posted after the result, which
    /// changes nothing then.
    pub fn release(&self, held: &Held) -> Result<(), SpoolError> {
        fs::remove_file(&held.0).map_err(error("remove", &held.0))
    }

    /// What is held is to be posted now, after the results that wait already: one that was
    /// written just before an agent was killed comes first.
    ///
    /// # Errors
    ///
    /// When its file cannot be moved.
    pub fn give_back(&self, held: &Held, now: SystemTime) -> Result<PathBuf, SpoolError> {
        let to = self.free_path(Folder::Results, now);
        fs::rename(&held.0, &to).map_err(error("move", &held.0))?;
        // If this is not on disk after a power loss it is held as before.
        let _ = sync_dir(&self.results).and_then(|()| sync_dir(&self.held));
        Ok(to)
    }

    /// The files of what is held, oldest first.
    ///
    /// # Errors
    ///
    /// When the folder cannot be read.
    pub fn held(&self) -> Result<Vec<PathBuf>, SpoolError> {
        results_in(&self.held).map_err(error("read the folder", &self.held))
    }

    /// How many results were refused, or given up, and are kept.
    pub fn refused(&self) -> u64 {
        results_in(&self.refused).map_or(0, |paths| paths.len() as u64)
    }

    fn free_path(&self, folder: Folder, now: SystemTime) -> PathBuf {
        let dir = match folder {
            Folder::Held => &self.held,
            Folder::Results => &self.results,
        };
        loop {
            let path = dir.join(format!("{}.{EXTENSION}", self.free_name(now)));
            if !path.exists() {
                return path;
            }
        }
    }

    /// With the leading zeros the names sort as they were made.
    fn free_name(&self, now: SystemTime) -> String {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let millis = self.newest.fetch_max(now, Ordering::Relaxed).max(now);
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        format!("{millis:014}-{}-{count:08}", std::process::id())
    }

    fn write_new(
        &self,
        path: PathBuf,
        to: &Destination,
        body: &[u8],
        now: SystemTime,
    ) -> Result<Entry, SpoolError> {
        let entry = Entry {
            path,
            to: to.clone(),
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
        let kin = match entry.to.kin {
            Kin::Ours => OURS,
            Kin::Stranger => STRANGER,
        };
        let (length, url) = (entry.body.len(), &entry.to.url);
        let key = entry.to.key.as_ref().map(SessionKey::secret_text);
        let (form, rest) = match (entry.to.log, key) {
            (None, None) => (2, String::new()),
            (None, Some(key)) => (3, format!(" {key}")),
            (Some(last), None) => (4, format!(" {last}")),
            (Some(last), Some(key)) => (4, format!(" {last} {key}")),
        };
        writeln!(file, "{MAGIC} {form} {kin} {length} {url}{rest}")
            .and_then(|()| file.write_all(&entry.body))
            .and_then(|()| file.as_file().sync_all())
            .map_err(&failed)?;
        file.persist(&entry.path).map_err(|e| failed(e.error))?;
        sync_dir(dir)
    }

    /// The results that wait, oldest first.
    ///
    /// # Errors
    ///
    /// When the folder cannot be read.
    pub fn pending(&self) -> Result<Vec<PathBuf>, SpoolError> {
        results_in(&self.results).map_err(error("read the folder", &self.results))
    }

    /// Reads a result that waits.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or is not a result.
    pub fn read(&self, path: &Path) -> Result<Entry, SpoolError> {
        let mut file = fs::File::open(path).map_err(error("read the result", path))?;
        let (header, skip) = read_header(&mut file, path)?;
        let mut body = Vec::new();
        file.seek(io::SeekFrom::Start(skip))
            .and_then(|_| file.read_to_end(&mut body))
            .map_err(error("read the result", path))?;
        Ok(Entry {
            path: path.to_owned(),
            to: header.to,
            written: header.written,
            body,
        })
    }

    /// Reads of a result that waits, or is held, where it goes.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is not a result, or is not whole.
    pub fn header(&self, path: &Path) -> Result<Header, SpoolError> {
        let mut file = fs::File::open(path).map_err(error("read the result", path))?;
        Ok(read_header(&mut file, path)?.0)
    }

    /// The result is taken. Not synced: should it be there again after a power loss it is
    /// posted again, to a controller that says so.
    ///
    /// # Errors
    ///
    /// When its file cannot be removed: it will be posted again.
    pub fn taken(&self, path: &Path) -> Result<(), SpoolError> {
        fs::remove_file(path).map_err(error("remove the result", path))
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
        let paths = results_in(&self.refused).map_err(&failed)?;
        let surplus = paths.len().saturating_sub(REFUSED_KEPT);
        for path in &paths[..surplus] {
            fs::remove_file(path).map_err(&failed)?;
        }
        Ok(())
    }
}

/// The files in a folder that are called results, oldest first.
fn results_in(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if is_result(&path) {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

/// What a file's first line and its name say, and how long the line is.
fn read_header(file: &mut fs::File, path: &Path) -> Result<(Header, u64), SpoolError> {
    let failed = error("read the result", path);
    let wrong = |why: &str| failed(io::Error::new(io::ErrorKind::InvalidData, why));
    let mut line = Vec::new();
    BufReader::new(&mut *file)
        .take(HEADER_LIMIT)
        .read_until(b'\n', &mut line)
        .map_err(&failed)?;
    let skip = line.len() as u64;
    let bytes = file.metadata().map_err(&failed)?.len();
    let (to, length) = std::str::from_utf8(&line)
        .ok()
        .and_then(|line| line.strip_suffix('\n'))
        .and_then(first_line)
        .ok_or_else(|| wrong("it is not a spooled result"))?;
    if length.is_some_and(|length| skip + length != bytes) {
        return Err(wrong("it is not whole"));
    }
    let written = millis_of(path)
        .and_then(|millis| UNIX_EPOCH.checked_add(Duration::from_millis(millis)))
        .ok_or_else(|| wrong("its name is not one of a spooled result"))?;
    Ok((Header { to, written, bytes }, skip))
}

/// When a file of this name was written, in milliseconds since 1970.
fn millis_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.split('-').next()?.parse().ok()
}

/// Where a result goes, and how long its body is where the line says so: agents before
/// this one did not, and posted to strangers as to ours.
fn first_line(line: &str) -> Option<(Destination, Option<u64>)> {
    let mut words = line.strip_prefix(MAGIC)?.split_ascii_whitespace();
    let form = words.next()?;
    let (kin, length) = match form {
        "1" => (Kin::Stranger, None),
        "2" | "3" | "4" => {
            let kin = match words.next()? {
                OURS => Kin::Ours,
                STRANGER => Kin::Stranger,
                _ => return None,
            };
            (kin, Some(words.next()?.parse().ok()?))
        }
        _ => return None,
    };
    let url = parse_url(words.next()?).ok()?;
    let log = match form {
        "4" => Some(words.next()?.parse().ok()?),
        _ => None,
    };
    let key = match (form, words.next()) {
        ("3" | "4", Some(key)) => Some(SessionKey::parse(key)?),
        ("1" | "2" | "4", None) => None,
        _ => return None,
    };
    let to = Destination { url, kin, key, log };
    words.next().is_none().then_some((to, length))
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

    fn to(kin: Kin) -> Destination {
        let url = parse_url("http://c.example/?build-result").unwrap();
        Destination {
            url,
            kin,
            key: None,
            log: None,
        }
    }

    #[test]
    fn what_is_added_is_there_after_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let now = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let spool = Spool::open(state.path()).unwrap();
        let first = spool
            .add(&to(Kin::Ours), b": 1\nsession: a\n", now)
            .unwrap();
        let second = spool.add(&to(Kin::Stranger), b"", now).unwrap();
        drop(spool);

        let spool = Spool::open(state.path()).unwrap();
        let paths = spool.pending().unwrap();
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
        assert_eq!(spool.pending().unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn what_it_is_signed_with_is_kept_for_the_agent_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let state = tempfile::tempdir().unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let spool = Spool::open(state.path()).unwrap();
        let signed = Destination {
            key: SessionKey::parse(&"0f".repeat(32)),
            ..to(Kin::Ours)
        };
        let held = spool.hold(&signed, b"body", now).unwrap();
        let path = spool.give_back(&held, now).unwrap();
        assert_eq!(spool.read(&path).unwrap().to, signed);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // As agents before this one have written it, and what nobody has.
        let text = fs::read_to_string(&path).unwrap();
        let key = format!(" {}", "0f".repeat(32));
        fs::write(
            &path,
            text.replace("result 3", "result 2").replace(&key, ""),
        )
        .unwrap();
        assert_eq!(spool.read(&path).unwrap().to, to(Kin::Ours));
        for wrong in [
            text.replace(&key, ""),
            text.replace(&key, " 0f"),
            text.replace("result 3", "result 2"),
            text.replace("result 3", "result 4"),
        ] {
            fs::write(&path, wrong).unwrap();
            assert!(spool.read(&path).unwrap_err().is_of_file());
        }
    }

    #[test]
    fn how_long_its_log_is_is_kept() {
        let state = tempfile::tempdir().unwrap();
        let spool = Spool::open(state.path()).unwrap();
        let key = SessionKey::parse(&"0f".repeat(32));
        for (log, key) in [(Some(1), None), (Some(u64::MAX), key.clone()), (None, key)] {
            let to = Destination {
                key,
                log,
                ..to(Kin::Ours)
            };
            let path = spool.add(&to, b"body", UNIX_EPOCH).unwrap().path;
            assert_eq!(spool.read(&path).unwrap().to, to);
            let text = fs::read_to_string(&path).unwrap();
            for wrong in [text.replace(" 1\n", " x\n"), text.replace('\n', " 1\n")] {
                if wrong != text {
                    fs::write(&path, wrong).unwrap();
                    assert!(spool.read(&path).unwrap_err().is_of_file());
                }
            }
        }
    }

    #[test]
    fn the_order_outlives_a_clock_that_is_set_back() {
        let state = tempfile::tempdir().unwrap();
        let at = |second: u64| UNIX_EPOCH + Duration::from_secs(second);
        let mut written = Vec::new();
        // The years of the clock while two agents run one after the other.
        for clock in [[2_000_000_000, 0], [1_700_000_000, 5]] {
            let spool = Spool::open(state.path()).unwrap();
            for second in clock {
                let entry = spool.add(&to(Kin::Ours), b"x", at(second)).unwrap();
                written.push(entry.path);
            }
        }
        let spool = Spool::open(state.path()).unwrap();
        assert_eq!(spool.pending().unwrap(), written);
    }

    #[test]
    fn what_is_held_is_given_back_after_what_waits() {
        let state = tempfile::tempdir().unwrap();
        let at = |second: u64| UNIX_EPOCH + Duration::from_secs(1_700_000_000 + second);
        let spool = Spool::open(state.path()).unwrap();
        let done = spool.hold(&to(Kin::Stranger), b"done", at(0)).unwrap();
        spool.hold(&to(Kin::Stranger), b"not done", at(1)).unwrap();
        let result = spool.add(&to(Kin::Stranger), b"result", at(2)).unwrap();
        spool.release(&done).unwrap();
        assert_eq!(spool.pending().unwrap(), std::slice::from_ref(&result.path));
        // As an agent leaves it that is killed while it holds one more.
        fs::write(spool.held.join(".writing-x.result"), "half").unwrap();
        drop(spool);

        let spool = Spool::open(state.path()).unwrap();
        let held = spool.held().unwrap();
        assert_eq!(held.len(), 1);
        let held = Held(held[0].clone());
        let given = spool.give_back(&held, at(3)).unwrap();
        assert_eq!(spool.pending().unwrap(), [result.path, given.clone()]);
        let entry = spool.read(&given).unwrap();
        assert_eq!((entry.body, entry.written), (b"not done".to_vec(), at(3)));
        spool.give_back(&held, at(4)).unwrap_err();
        assert_eq!(fs::read_dir(&spool.held).unwrap().count(), 0);
    }

    #[test]
    fn other_files_are_not_results() {
        let state = tempfile::tempdir().unwrap();
        let spool = Spool::open(state.path()).unwrap();
        for name in ["x", ".writing-1.result"] {
            fs::write(spool.results.join(name), "x").unwrap();
        }
        assert_eq!(spool.pending().unwrap(), Vec::<PathBuf>::new());
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
        let spool = Spool::open(state.path()).unwrap();
        for second in 0..REFUSED_KEPT as u64 + 3 {
            let at = UNIX_EPOCH + Duration::from_secs(second + 1000);
            let entry = spool.add(&to(Kin::Stranger), b"", at).unwrap();
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
}
