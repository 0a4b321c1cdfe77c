//! Sources: the archive that a task of our controller names, fetched once, checked,
//! and kept under its hash.
//!
//! An archive is hashed whenever it is used, and locked as long as it is: the agents
//! of several toolchains may share the cache, and none tidies away what another uses.
//!
//! Only `<origin of the task's controller>/.../archives/<sha256>.tar.gz` is an
//! archive; any other repository is the worker's business.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use rustix::fs::{Mode, OFlags};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use crate::controller::{Kin, Link, LinkError, Url, parse_url};

/// What the cache may hold; the archives that were used the longest ago go first.
const CACHE_LIMIT: u64 = 4 * 1024 * 1024 * 1024;

/// The pauses between tries to fetch an archive: a controller that is started again
/// must not cost its builds.
const PAUSES: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(20),
    Duration::from_secs(60),
];

/// The file whose lock is the cache's.
const GATE: &str = ".lock";

/// How often an archive is fetched that does not stay.
const TRIES: u32 = 3;

/// How files that are being fetched are called.
const FETCHING: &str = ".fetching-";

/// When a file that is being fetched was not written to for so long, its agent is gone, where no
/// lock tells.
const LEFT: Duration = Duration::from_secs(60 * 60);

/// An archive that the agent may fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// Where it is.
    pub url: Url,
    /// Its SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

impl Archive {
    /// The archive that a task's repository URL names, if it is one of the
    /// controller that gave the task.
    pub fn of_task(repository: &str, controller: &Url) -> Option<Self> {
        let url = parse_url(repository).ok()?;
        if url.origin() != controller.origin() || url.query().is_some() {
            return None;
        }
        let mut segments = url.path_segments()?.rev();
        let sha256 = segments.next()?.strip_suffix(".tar.gz")?.to_owned();
        let is_archive = segments.next()? == "archives" && is_sha256(&sha256);
        is_archive.then_some(Self { url, sha256 })
    }
}

fn is_sha256(text: &str) -> bool {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == 64 && text.bytes().all(digit)
}

/// A source archive on disk, ready for a worker.
#[derive(Debug)]
pub struct Ready {
    /// The file.
    pub path: PathBuf,
    /// Its SHA-256 in lower-case hexadecimal.
    pub sha256: String,
    /// One of the cache, locked: it is not tidied away until this is dropped.
    _lock: Option<File>,
}

impl Ready {
    /// A file of the user's, outside of the cache.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            sha256: sha256_of(&mut File::open(path)?)?,
            _lock: None,
        })
    }
}

/// What is wrong with the cache. Whatever the task and its machine, it is the host's fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// What was fetched just now cannot be opened.
    #[error("unable to open {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is fetched is gone each time before it can be locked.
    #[error("the source {url} does not stay in {}: another program removes it", dir.display())]
    Lost {
        /// The source.
        url: Url,
        /// The cache.
        dir: PathBuf,
    },
}

fn sha256_of(file: &mut File) -> io::Result<String> {
    let mut sum = Sha256::new();
    io::copy(file, &mut sum)?;
    Ok(hex::encode(sum.finalize()))
}

/// The archives that were fetched. Clones are the same cache.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
    limit: u64,
}

impl Cache {
    /// The cache below the state directory.
    ///
    /// # Errors
    ///
    /// When the folder cannot be made.
    pub fn open(state: &Path) -> Result<Self> {
        let dir = state.join("sources");
        fs::create_dir_all(&dir)
            .with_context(|| format!("unable to make the folder {}", dir.display()))?;
        Ok(Self {
            dir,
            limit: CACHE_LIMIT,
        })
    }

    /// Removes what agents that were killed have fetched in part. Blocks.
    pub fn sweep(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if is_fetching(&path) && !is_used(&path) {
                // If not now, then later.
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// The archive, fetched from its controller, which is of this kin, unless it is here and whole.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched in several tries, or is not the one with this hash ([`LinkError`]);
    /// when it cannot be kept ([`CacheError`]).
    pub async fn get(&self, link: &dyn Link, kin: Kin, archive: &Archive) -> Result<Ready> {
        let path = self.dir.join(format!("{}.tar.gz", archive.sha256));
        if let Some(lock) = self.whole(&path, &archive.sha256).await {
            return Ok(Ready {
                path,
                sha256: archive.sha256.clone(),
                _lock: Some(lock),
            });
        }
        for _ in 0..TRIES {
            fetch(link, kin, archive, &path)
                .await
                .with_context(|| format!("unable to fetch the source {}", archive.url))?;
            // Its hash was checked on the way. Another agent may have tidied it away
            // before it was locked: once more.
            let (cache, theirs) = (self.clone(), path.clone());
            let opened = tokio::task::spawn_blocking(move || {
                let lock = cache.open_locked(&theirs)?;
                if lock.is_some()
                    && let Err(e) = cache.prune(&theirs)
                {
                    tracing::warn!("unable to tidy {}: {e}", cache.dir.display());
                }
                Ok::<_, io::Error>(lock)
            });
            let Some(lock) =
                opened
                    .await
                    .map_err(io::Error::other)
                    .flatten()
                    .map_err(|source| CacheError::Open {
                        path: path.clone(),
                        source,
                    })?
            else {
                continue;
            };
            return Ok(Ready {
                path,
                sha256: archive.sha256.clone(),
                _lock: Some(lock),
            });
        }
        Err(CacheError::Lost {
            url: archive.url.clone(),
            dir: self.dir.clone(),
        }
        .into())
    }

    /// The archive that is here, locked; none when it is missing or damaged.
    async fn whole(&self, path: &Path, sha256: &str) -> Option<File> {
        // Another agent may hold the gate, and the archive may be large.
        let (cache, theirs) = (self.clone(), path.to_owned());
        let hashed = tokio::task::spawn_blocking(move || {
            let Some(mut file) = cache.open_locked(&theirs)? else {
                return Ok(None);
            };
            // Touched, so that it is not what goes next.
            let _ = file.set_modified(SystemTime::now());
            sha256_of(&mut file).map(|sum| Some((file, sum)))
        });
        let why = match hashed.await.map_err(io::Error::other).flatten() {
            Ok(None) => return None,
            Ok(Some((file, sum))) if sum == sha256 => return Some(file),
            Ok(Some((_, sum))) => format!("its SHA-256 is {sum}"),
            Err(e) => e.to_string(),
        };
        tracing::warn!("{} is of no use ({why}); fetching it anew", path.display());
        None
    }

    /// Opens an archive and locks it against being tidied away. None: there is no such
    /// file.
    fn open_locked(&self, path: &Path) -> io::Result<Option<File>> {
        let _gate = self.gate()?;
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let _ = file.try_lock_shared();
        Ok(Some(file))
    }

    /// Held for the moment in which an archive gets its lock, and while the cache is
    /// tidied, so that nothing is removed between being found and being locked.
    fn gate(&self) -> io::Result<File> {
        let gate = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.dir.join(GATE))?;
        let _ = gate.lock();
        Ok(gate)
    }

    fn prune(&self, keep: &Path) -> io::Result<()> {
        let _gate = self.gate()?;
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name() == GATE {
                continue;
            }
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                // Another agent has given it its name.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            files.push((meta.modified()?, meta.len(), entry.path()));
        }
        files.sort_unstable();
        let mut total: u64 = files.iter().map(|(_, length, _)| length).sum();
        for (_, length, path) in files {
            if total <= self.limit {
                break;
            }
            if path != keep && !is_used(&path) {
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => total -= length,
                }
            }
        }
        Ok(())
    }
}

/// Whether an agent uses this archive, or is fetching it.
fn is_used(path: &Path) -> bool {
    // A FIFO, which is none of ours, would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()).map(File::from) else {
        return false;
    };
    match file.try_lock() {
        Ok(()) => false,
        Err(TryLockError::WouldBlock) => true,
        // Where the file system knows no locks, an archive that was touched last is the last to go,
        // and one that is being fetched is written to now and then.
        Err(TryLockError::Error(_)) => {
            let touched = file.metadata().and_then(|m| m.modified());
            is_fetching(path) && touched.is_ok_and(|at| apart(SystemTime::now(), at) < LEFT)
        }
    }
}

/// Whether a file of the cache is not under its name yet.
fn is_fetching(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(FETCHING.as_bytes()))
}

/// How far apart two times of the wall clock are, whichever is later: after the clock
/// was set back, what an earlier agent has left may be from the future.
fn apart(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other)
        .unwrap_or_else(|later| later.duration())
}

/// A new file in `dir` to fetch an archive to, locked as long as it is fetched.
pub(crate) fn new_fetching(dir: &Path) -> io::Result<NamedTempFile> {
    loop {
        let file = tempfile::Builder::new().prefix(FETCHING).tempfile_in(dir)?;
        let _ = file.as_file().try_lock();
        // Another agent that tidies up may have come between.
        if file.as_file().metadata()?.nlink() > 0 {
            return Ok(file);
        }
    }
}

async fn fetch(link: &dyn Link, kin: Kin, archive: &Archive, to: &Path) -> Result<(), LinkError> {
    for pause in PAUSES {
        match link.fetch(&archive.url, kin, &archive.sha256, to).await {
            Err(e) if e.is_passing() => {
                let seconds = pause.as_secs();
                tracing::warn!(
                    "unable to fetch the source {}: {e}; again in {seconds} s",
                    archive.url
                );
                tokio::time::sleep(pause).await;
            }
            ended => return ended,
        }
    }
    link.fetch(&archive.url, kin, &archive.sha256, to).await
}

#[cfg(test)]
mod tests {
    use bbot_machine::machine::BoxFuture;

    use super::*;
    use crate::controller::{
        Acknowledged, Channel, Destination, Manner, Posted, Renewed, TaskAnswer, task_url,
    };

    const HASH: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    #[test]
    fn only_archives_of_the_tasks_own_controller() {
        let controller = task_url("http://c.example:8080/?build-task").unwrap();
        let of = |url: &str| Archive::of_task(url, &controller);
        for url in [
            format!("http://c.example:8080/archives/{HASH}.tar.gz"),
            format!("http://c.example:8080/bbot/archives/{HASH}.tar.gz"),
        ] {
            let archive = of(&url).unwrap();
            assert_eq!(
                (archive.url.as_str(), archive.sha256.as_str()),
                (url.as_str(), HASH)
            );
        }
        for url in [
            format!("http://c.example/archives/{HASH}.tar.gz"),
            format!("https://c.example:8080/archives/{HASH}.tar.gz"),
            format!("http://other.example:8080/archives/{HASH}.tar.gz"),
            format!("http://c.example:8080/archives/{HASH}.tar.gz?x"),
            format!("http://c.example:8080/archives/{HASH}.tar.xz"),
            format!("http://c.example:8080/{HASH}.tar.gz"),
            format!(
                "http://c.example:8080/archives/{}.tar.gz",
                HASH.to_uppercase()
            ),
            format!("http://c.example:8080/archives/..%2f{HASH}.tar.gz"),
            "file:///archives/x.tar.gz".to_owned(),
            "git://c.example:8080/x.git".to_owned(),
            String::new(),
        ] {
            assert_eq!(of(&url), None, "{url}");
        }
    }

    /// A controller with one archive, and how often it was fetched.
    #[derive(Debug, Default)]
    struct Archives {
        fetched: std::sync::atomic::AtomicU32,
        /// What is fetched is gone at once.
        vanishes: bool,
    }

    const CONTENT: &[u8] = b"0123456789";

    impl Link for Archives {
        fn request_task<'a>(
            &'a self,
            _: &'a Url,
            _: String,
            _: Manner,
        ) -> BoxFuture<'a, Result<TaskAnswer, LinkError>> {
            unreachable!("no task is asked for")
        }

        fn post_result<'a>(&'a self, _: &'a Destination, _: Vec<u8>) -> BoxFuture<'a, Posted> {
            unreachable!("no result is posted")
        }

        fn renew_lease<'a>(
            &'a self,
            _: &'a Channel,
            _: u64,
            _: Duration,
            _: Duration,
        ) -> BoxFuture<'a, Renewed> {
            Box::pin(async { Renewed::Until(None) })
        }

        fn post_segment<'a>(
            &'a self,
            _: &'a Channel,
            _: u64,
            _: bool,
            _: Vec<u8>,
        ) -> BoxFuture<'a, Acknowledged> {
            Box::pin(async { Acknowledged::Taken })
        }

        fn fetch<'a>(
            &'a self,
            _: &'a Url,
            _: Kin,
            _: &'a str,
            to: &'a Path,
        ) -> BoxFuture<'a, Result<(), LinkError>> {
            self.fetched
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if !self.vanishes {
                fs::write(to, CONTENT).unwrap();
            }
            Box::pin(async { Ok(()) })
        }
    }

    impl Archives {
        fn fetched(&self) -> u32 {
            self.fetched.load(std::sync::atomic::Ordering::Relaxed)
        }
    }

    fn archive() -> Archive {
        Archive {
            url: parse_url("http://c.example/archives/x.tar.gz").unwrap(),
            sha256: hex::encode(Sha256::digest(CONTENT)),
        }
    }

    #[tokio::test]
    async fn a_damaged_archive_is_fetched_anew() {
        let state = tempfile::tempdir().unwrap();
        let cache = Cache::open(state.path()).unwrap();
        let link = Archives::default();
        let path = cache.get(&link, Kin::Ours, &archive()).await.unwrap().path;
        cache.get(&link, Kin::Ours, &archive()).await.unwrap();
        assert_eq!(link.fetched(), 1, "it is kept");
        for damage in [&b"0123456780"[..], b"", b"01234"] {
            let before = link.fetched();
            fs::write(&path, damage).unwrap();
            let ready = cache.get(&link, Kin::Ours, &archive()).await.unwrap();
            assert_eq!(link.fetched(), before + 1);
            assert_eq!(fs::read(&ready.path).unwrap(), CONTENT);
        }
    }

    /// The host's disk, or who works on it, is at fault, and not the task's controller.
    #[tokio::test]
    async fn what_cannot_be_kept_is_the_caches_fault() {
        let state = tempfile::tempdir().unwrap();
        let cache = Cache::open(state.path()).unwrap();
        let get = async |vanishes| {
            let link = Archives {
                vanishes,
                ..Archives::default()
            };
            let error = cache.get(&link, Kin::Ours, &archive()).await.unwrap_err();
            assert_eq!(link.fetched(), if vanishes { TRIES } else { 1 });
            error.downcast::<CacheError>().unwrap()
        };
        let lost = get(true).await;
        assert!(matches!(lost, CacheError::Lost { .. }), "{lost}");
        let gate = cache.dir.join(GATE);
        fs::remove_file(&gate).unwrap();
        fs::create_dir(&gate).unwrap();
        let closed = get(false).await;
        assert!(matches!(closed, CacheError::Open { .. }), "{closed}");
    }

    #[tokio::test]
    async fn what_one_agent_uses_another_does_not_tidy_away() {
        let state = tempfile::tempdir().unwrap();
        let link = Archives::default();
        let one = Cache::open(state.path()).unwrap();
        let mut other = Cache::open(state.path()).unwrap();
        other.limit = 0;
        let newest = other.dir.join("newest");
        fs::write(&newest, "x").unwrap();
        let file = new_fetching(&other.dir).unwrap();
        let fetching = file.path().to_owned();
        // Fetched just now, and found in the cache.
        for _ in 0..2 {
            let ready = one.get(&link, Kin::Ours, &archive()).await.unwrap();
            other.prune(&newest).unwrap();
            assert!(ready.path.exists() && fetching.exists());
        }
        assert_eq!(link.fetched(), 1);
        let path = one.get(&link, Kin::Ours, &archive()).await.unwrap().path;
        // As an agent that is killed over it leaves it.
        let (lock, kept) = file.keep().unwrap();
        drop(lock);
        other.prune(&newest).unwrap();
        assert!(!path.exists() && !kept.exists() && newest.exists());
    }

    #[test]
    fn what_was_fetched_in_part_goes_with_the_next_sweep() {
        let state = tempfile::tempdir().unwrap();
        let cache = Cache::open(state.path()).unwrap();
        let whole = cache.dir.join("whole");
        fs::write(&whole, "x").unwrap();
        let living = new_fetching(&cache.dir).unwrap();
        let (lock, dead) = new_fetching(&cache.dir).unwrap().keep().unwrap();
        drop(lock);
        cache.sweep();
        assert!(whole.exists() && living.path().exists() && !dead.exists());
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_was_used_last() {
        let state = tempfile::tempdir().unwrap();
        let mut cache = Cache::open(state.path()).unwrap();
        cache.limit = 25;
        let file = |name: &str, age: u64| {
            let path = cache.dir.join(name);
            fs::write(&path, "0123456789").unwrap();
            let at = SystemTime::now() - std::time::Duration::from_secs(age);
            fs::File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(at)
                .unwrap();
            path
        };
        let (old, older, newest) = (file("a", 10), file("b", 20), file("c", 0));
        cache.prune(&newest).unwrap();
        assert_eq!(
            (older.exists(), old.exists(), newest.exists()),
            (false, true, true)
        );
        cache.limit = 5;
        cache.prune(&newest).unwrap();
        assert_eq!((old.exists(), newest.exists()), (false, true));
    }
}
