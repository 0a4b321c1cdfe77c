//! Sources: the archive that a task of our controller names, fetched once, checked,
//! and kept under its hash.
//!
//! Only `<origin of the task's controller>/.../archives/<sha256>.tar.gz` is an
//! archive; any other repository is the worker's business.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};

use crate::controller::{Link, LinkError, Url, parse_url};

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The file.
    pub path: PathBuf,
    /// Its SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// The archives that were fetched.
#[derive(Debug)]
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

    /// The archive, fetched unless it is here.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched in several tries, or is not the one with this hash.
    pub async fn get(&self, link: &dyn Link, archive: &Archive) -> Result<Ready> {
        let path = self.dir.join(format!("{}.tar.gz", archive.sha256));
        // Touched, so that it is not what goes next.
        let here = fs::File::open(&path).is_ok_and(|f| f.set_modified(SystemTime::now()).is_ok());
        if !here {
            fetch(link, archive, &path)
                .await
                .with_context(|| format!("unable to fetch the source {}", archive.url))?;
            if let Err(e) = self.prune(&path) {
                tracing::warn!("unable to tidy {}: {e}", self.dir.display());
            }
        }
        Ok(Ready {
            path,
            sha256: archive.sha256.clone(),
        })
    }

    fn prune(&self, keep: &Path) -> std::io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            files.push((meta.modified()?, meta.len(), entry.path()));
        }
        files.sort_unstable();
        let mut total: u64 = files.iter().map(|(_, length, _)| length).sum();
        for (_, length, path) in files {
            if total <= self.limit {
                break;
            }
            if path != keep {
                fs::remove_file(&path)?;
                total -= length;
            }
        }
        Ok(())
    }
}

async fn fetch(link: &dyn Link, archive: &Archive, to: &Path) -> Result<(), LinkError> {
    for pause in PAUSES {
        match link.fetch(&archive.url, &archive.sha256, to).await {
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
    link.fetch(&archive.url, &archive.sha256, to).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::task_url;

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
