//! The directory of agents' keys (`--agent-keys`), read again as it changes.
//!
//! What cannot be read, or is half written, shuts nobody out: the last good key of a file goes on until the file is
//! good again, or gone. Meanwhile nobody knows whether a fingerprint that is not known is of such a file.

use std::collections::{BTreeMap, HashMap};
use std::error::Error as _;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rsa::RsaPublicKey;

use super::{PemError, fingerprint, public_key};
use crate::clock::Millis;
use crate::watched::{Stamp, stamp_of};

/// Largest key file that is read, in bytes.
const KEY_FILE_LIMIT: u64 = 64 * 1024;

/// Keys are used for this long before the directory is looked at anew, in milliseconds: a key that is added or removed counts
/// within a second, and a flood of requests does not look each time.
const FRESH: i64 = 1000;

/// The directory of agents' keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// It could not be read.
    #[error("cannot read the directory of agent keys {path}; give another with --agent-keys")]
    Directory {
        /// The directory.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// A file in it could not be read.
    #[error("cannot read the agent key {path}")]
    File {
        /// The file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// A file in it is no RSA public key.
    #[error(
        "{path} is not an RSA public key in PEM form; make one with: openssl rsa -in KEY -pubout -out {path}"
    )]
    NotRsa {
        /// The file.
        path: String,
    },
    /// A key is too small or too large.
    #[error(
        "the RSA key in {path} has {bits} bits; from 2048 to 8192 are taken: make another with `bbot keygen`"
    )]
    Size {
        /// The file.
        path: String,
        /// Its modulus' length.
        bits: usize,
    },
}

impl KeyError {
    /// What is wrong, and why.
    fn sentence(&self) -> String {
        match self.source() {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

/// What is known of a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Its key.
    Key(Box<RsaPublicKey>),
    /// It is that of no key.
    None,
    /// It is that of no key that was read, and some cannot be read now.
    Unsure,
}

/// The keys of the agents that are let in. Clones share them.
#[derive(Debug, Clone)]
pub struct AgentKeys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    /// Held while the directory is looked at.
    files: Arc<tokio::sync::Mutex<Files>>,
    keys: RwLock<Keys>,
}

/// The keys, as they were at the last look.
#[derive(Debug, Default)]
struct Keys {
    by_fingerprint: HashMap<String, RsaPublicKey>,
    is_unsure: bool,
    looked: Option<Millis>,
}

impl AgentKeys {
    /// The keys in this directory: every `*.pem` file one public key.
    ///
    /// # Errors
    /// The directory, or a key in it, cannot be used.
    pub fn open(directory: &Path) -> Result<Self, KeyError> {
        let mut files = Files::default();
        for (path, found) in list(directory)? {
            let stamp = found.map_err(|source| file_error(&path, source))?;
            let key = read_key(&path)?;
            let file = KeyFile {
                stamp: Some(stamp),
                key: Some((fingerprint(&key), key)),
                trouble: None,
            };
            files.known.insert(path, file);
        }
        let keys = RwLock::new(files.keys(None));
        Ok(Self(Arc::new(Inner {
            directory: directory.to_owned(),
            files: Arc::new(tokio::sync::Mutex::new(files)),
            keys,
        })))
    }

    /// Looks at the directory, if that was not done within a second before `now`, which is steady time. Not on the caller's thread.
    pub async fn refresh(&self, now: Millis) {
        if self.is_fresh(now) {
            return;
        }
        let mut files = Arc::clone(&self.0.files).lock_owned().await;
        if self.is_fresh(now) {
            return;
        }
        let inner = Arc::clone(&self.0);
        let looks = tokio::task::spawn_blocking(move || {
            files.look(&inner.directory);
            *inner.keys.write().unwrap_or_else(PoisonError::into_inner) = files.keys(Some(now));
        });
        if let Err(e) = looks.await {
            tracing::error!("cannot look at the agent keys: {e}");
        }
    }

    fn is_fresh(&self, now: Millis) -> bool {
        let keys = self.0.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.looked
            .is_some_and(|at| (0..FRESH).contains(&now.0.saturating_sub(at.0)))
    }

    /// What is known of this fingerprint, as of the last look.
    #[must_use]
    pub fn known(&self, fingerprint: &str) -> Known {
        let keys = self.0.keys.read().unwrap_or_else(PoisonError::into_inner);
        match keys.by_fingerprint.get(fingerprint) {
            Some(key) => Known::Key(Box::new(key.clone())),
            None if keys.is_unsure => Known::Unsure,
            None => Known::None,
        }
    }
}

/// The files of the directory.
#[derive(Debug, Default)]
struct Files {
    known: BTreeMap<PathBuf, KeyFile>,
    /// Why the directory cannot be read.
    trouble: Option<String>,
}

#[derive(Debug)]
struct KeyFile {
    /// How it was when it was read last.
    stamp: Option<Stamp>,
    /// Its last good key, with its fingerprint.
    key: Option<(String, RsaPublicKey)>,
    /// Why it is not good now.
    trouble: Option<String>,
}

impl Files {
    fn keys(&self, looked: Option<Millis>) -> Keys {
        let files = self.known.values();
        Keys {
            by_fingerprint: files.filter_map(|file| file.key.clone()).collect(),
            is_unsure: self.trouble.is_some() || self.known.values().any(|f| f.trouble.is_some()),
            looked,
        }
    }

    /// Reads what has changed, and what was not good; the log has a line for what is new. How many files were read.
    fn look(&mut self, directory: &Path) -> usize {
        let found = match list(directory) {
            Ok(found) => found,
            Err(e) => {
                let why = e.sentence();
                if self.trouble.as_ref() != Some(&why) {
                    tracing::error!("{why}; the keys that were read before go on");
                }
                self.trouble = Some(why);
                return 0;
            }
        };
        if self.trouble.take().is_some() {
            tracing::info!(
                "the agent keys in {} can be read again",
                directory.display()
            );
        }
        let before = self.known.len();
        self.known.retain(|path, _| found.contains_key(path));
        let gone = before - self.known.len();
        let (mut read, mut changed) = (0, 0);
        for (path, stamp) in found {
            let file = self.known.entry(path.clone()).or_insert(KeyFile {
                stamp: None,
                key: None,
                trouble: None,
            });
            let stamp = match stamp {
                Ok(stamp) if file.stamp == Some(stamp) && file.trouble.is_none() => continue,
                stamp => stamp,
            };
            read += 1;
            // From before it is read: what changes meanwhile is read again.
            file.stamp = stamp.as_ref().ok().copied();
            let key = stamp
                .map_err(|source| file_error(&path, source))
                .and_then(|_| read_key(&path));
            match key {
                Ok(key) => {
                    file.key = Some((fingerprint(&key), key));
                    file.trouble = None;
                    changed += 1;
                }
                Err(e) => {
                    let why = e.sentence();
                    if file.trouble.as_ref() != Some(&why) {
                        let goes_on = if file.key.is_some() {
                            "the key that it had before goes on until the file is removed"
                        } else {
                            "its agent is not let in"
                        };
                        tracing::error!("{why}; {goes_on}");
                    }
                    file.trouble = Some(why);
                }
            }
        }
        if gone + changed > 0 {
            tracing::info!(
                "agent keys in {}: {changed} new or changed, {gone} gone",
                directory.display()
            );
        }
        read
    }
}

type Found = BTreeMap<PathBuf, io::Result<Stamp>>;

/// The key files that there are.
fn list(directory: &Path) -> Result<Found, KeyError> {
    let fail = |source| KeyError::Directory {
        path: directory.display().to_string(),
        source,
    };
    let mut files = Found::new();
    for entry in std::fs::read_dir(directory).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_none_or(|e| e != "pem") {
            continue;
        }
        match std::fs::metadata(&path) {
            Ok(data) if data.is_file() => files.insert(path, Ok(stamp_of(&data))),
            // Removed just now, or a link to nothing.
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Ok(_) => None,
            Err(e) => files.insert(path, Err(e)),
        };
    }
    Ok(files)
}

fn file_error(path: &Path, source: io::Error) -> KeyError {
    KeyError::File {
        path: path.display().to_string(),
        source,
    }
}

fn read_key(path: &Path) -> Result<RsaPublicKey, KeyError> {
    use std::io::Read as _;
    let shown = || path.display().to_string();
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(KEY_FILE_LIMIT).read_to_string(&mut text))
        .map_err(|source| file_error(path, source))?;
    public_key(&text).map_err(|e| match e {
        PemError::NotRsa => KeyError::NotRsa { path: shown() },
        PemError::Size(bits) => KeyError::Size {
            path: shown(),
            bits,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::pem;
    use rsa::BigUint;

    /// Two keys of 2048 bits, which nobody has the other half of.
    fn some_keys() -> [RsaPublicKey; 2] {
        [1_u32, 3].map(|odd| {
            let modulus = (BigUint::from(1_u32) << 2047) + BigUint::from(odd);
            RsaPublicKey::new(modulus, BigUint::from(65_537_u32)).unwrap()
        })
    }

    #[test]
    fn files_that_are_no_keys_are_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("readme.txt"), "ignored").unwrap();
        AgentKeys::open(dir.path()).unwrap();
        let bad = dir.path().join("bad.pem");
        std::fs::write(
            &bad,
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        )
        .unwrap();
        let error = AgentKeys::open(dir.path()).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("{} is not an RSA public key", bad.display())),
            "{error}"
        );
        assert!(AgentKeys::open(&dir.path().join("none")).is_err());
    }

    #[tokio::test]
    async fn the_last_good_keys_go_on_until_their_files_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("keys");
        std::fs::create_dir(&directory).unwrap();
        let [one, two] = some_keys();
        let file = directory.join("one.pem");
        std::fs::write(&file, pem(&one)).unwrap();
        let keys = AgentKeys::open(&directory).unwrap();
        let (first, second) = (fingerprint(&one), fingerprint(&two));
        let (one, two) = (Known::Key(Box::new(one)), Known::Key(Box::new(two)));
        let mut time = 0;
        let mut known = async || {
            time += FRESH;
            keys.refresh(Millis(time)).await;
            [keys.known(&first), keys.known(&second)]
        };
        assert_eq!(known().await, [one.clone(), Known::None]);

        // Half written, over the one that was there and beside it.
        let text = pem(&some_keys()[1]);
        let half = &text[..text.len() / 2];
        std::fs::write(&file, half).unwrap();
        assert_eq!(known().await, [one.clone(), Known::Unsure]);
        std::fs::write(&file, &text).unwrap();
        assert_eq!(known().await, [Known::None, two.clone()]);
        let other = directory.join("other.pem");
        std::fs::write(&other, half).unwrap();
        assert_eq!(known().await, [Known::Unsure, two.clone()]);
        std::fs::write(&other, pem(&some_keys()[0])).unwrap();
        assert_eq!(known().await, [one.clone(), two.clone()]);

        // The directory is away: root reads whatever has no mode, but no file as a directory.
        let away = dir.path().join("away");
        std::fs::rename(&directory, &away).unwrap();
        std::fs::write(&directory, "").unwrap();
        assert_eq!(known().await, [one.clone(), two.clone()]);
        assert_eq!(keys.known("other"), Known::Unsure);
        std::fs::remove_file(&directory).unwrap();
        assert_eq!(known().await, [one, two.clone()]);
        std::fs::rename(&away, &directory).unwrap();

        // What is removed on purpose ends.
        std::fs::remove_file(&other).unwrap();
        assert_eq!(known().await, [Known::None, two]);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(known().await, [Known::None, Known::None]);
    }

    #[tokio::test]
    async fn a_second_passes_between_looks() {
        let dir = tempfile::tempdir().unwrap();
        let keys = AgentKeys::open(dir.path()).unwrap();
        keys.refresh(Millis(0)).await;
        let [one, _] = some_keys();
        std::fs::write(dir.path().join("one.pem"), pem(&one)).unwrap();
        let is_known = |keys: &AgentKeys| keys.known(&fingerprint(&one)) != Known::None;
        keys.refresh(Millis(FRESH - 1)).await;
        assert!(!is_known(&keys));
        keys.refresh(Millis(FRESH)).await;
        assert!(is_known(&keys));
    }

    #[test]
    fn only_what_has_changed_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = some_keys().map(|key| pem(&key));
        for n in 0..9 {
            std::fs::write(dir.path().join(format!("{n}.pem")), &one).unwrap();
        }
        let mut files = Files::default();
        assert_eq!(files.look(dir.path()), 9);
        assert_eq!(files.look(dir.path()), 0);
        // Another file of the same size in the place of one.
        let new = dir.path().join("new");
        std::fs::write(&new, &two).unwrap();
        std::fs::rename(&new, dir.path().join("4.pem")).unwrap();
        assert_eq!(files.look(dir.path()), 1);
        // One that is not good is tried again, and is told once.
        std::fs::write(dir.path().join("5.pem"), "").unwrap();
        assert_eq!(files.look(dir.path()), 1);
        assert_eq!(files.look(dir.path()), 1);
        assert!(files.keys(None).is_unsure);
        assert_eq!(files.keys(None).by_fingerprint.len(), 2);
    }
}
