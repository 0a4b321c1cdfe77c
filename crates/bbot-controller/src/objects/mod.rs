//! Objects: what is too large for a row of the store. Logs, archives: bytes that never change, in a directory or in a
//! bucket of an S3-compatible service. The store holds what an object holds (its SHA-256 and size) and where it is.
//!
//! Each upload has a place of its own, with the hash and a random part in its name, which appears whole or not at all. Only who
//! has uploaded it names it in the store, soon after; so what is old and not named there may be removed ([`sweep`](crate::http)
//! does), whoever else writes at the same time, and a copy that was lost is mended by putting it once more.

mod directory;
pub mod log;
mod owner;
mod reading;
mod s3;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Bytes;
use futures_util::StreamExt as _;
use object_store::buffered::BufWriter;
use object_store::path::Path as Place;
use object_store::{ObjectStore, ObjectStoreExt as _};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

pub use reading::Reading;
pub use s3::Bucket;

/// Bytes of an upload that are held in memory: a smaller one is put in one request, and a larger one in pieces of this size.
const PIECE: usize = 8 << 20;

/// Bytes of a file that are read at once.
const READ: usize = 256 << 10;

/// Pieces of one upload that are on their way at once.
const PIECES: usize = 2;

/// Where objects are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Where {
    /// In a directory.
    Directory(PathBuf),
    /// In a bucket.
    Bucket(Bucket),
}

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The log of an operation, compressed.
    Log,
    /// A source archive, as it came.
    Archive,
    /// What a build made, as it came.
    Artifact,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Log, Self::Archive, Self::Artifact];

    /// What the store calls it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Archive => "archive",
            Self::Artifact => "artifact",
        }
    }

    /// What the names of its places begin and end with.
    fn place(self) -> (&'static str, &'static str) {
        match self {
            Self::Log => ("logs", ".zst"),
            Self::Archive => ("archives", ".tar.gz"),
            Self::Artifact => ("artifacts", ""),
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut all = Self::ALL.into_iter();
        all.find(|kind| kind.as_str() == text).ok_or(())
    }
}

/// An object, as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub kind: Kind,
    /// SHA-256 of what it holds, in lower-case hex.
    pub sha256: String,
    /// Bytes of what it holds.
    pub bytes: u64,
    /// Bytes as they are kept.
    pub stored: u64,
    /// Its name in the object store.
    pub place: String,
}

/// An object could not be kept, or not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// The object store cannot be used at all.
    #[error("cannot use the object store {store}; mend --objects and what goes with it")]
    Open {
        /// Where it is.
        store: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is not there.
    #[error("{place} is not in the object store {store}")]
    Missing {
        /// The object's place.
        place: String,
        /// The store.
        store: String,
    },
    /// It is not what it was.
    #[error("{place} in the object store is damaged: {what}")]
    Damaged {
        /// The object's place.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// What came is not what was said.
    #[error("the SHA-256 is {actual}, not {expected}")]
    Hash {
        /// What was said.
        expected: String,
        /// What it is.
        actual: String,
    },
    /// The object store does not do what it is asked to now.
    #[error("object store {store}: cannot {doing}")]
    Failed {
        /// The store.
        store: String,
        /// What was asked for.
        doing: &'static str,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The object store. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    name: Arc<str>,
}

impl Objects {
    /// Opens it; a directory is made where there is none.
    ///
    /// # Errors
    /// The directory cannot be used, or what is said of the bucket is wrong. Whether a bucket answers is seen when it is used.
    pub fn open(place: &Where) -> Result<Self, ObjectError> {
        let (store, name): (Arc<dyn ObjectStore>, String) = match place {
            Where::Directory(path) => {
                let name = path.display().to_string();
                let store = directory::open(path).map_err(|source| ObjectError::Open {
                    store: name.clone(),
                    source,
                })?;
                (Arc::new(store), name)
            }
            Where::Bucket(bucket) => {
                let name = bucket.to_string();
                let store = bucket.open().map_err(|source| ObjectError::Open {
                    store: name.clone(),
                    source,
                })?;
                (store, name)
            }
        };
        Ok(Self {
            store,
            name: name.into(),
        })
    }

    /// Objects in a directory.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn in_directory(path: &Path) -> Result<Self, ObjectError> {
        Self::open(&Where::Directory(path.to_owned()))
    }

    /// Where it is, for people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Keeps what is in memory, with the hash of what it holds; it is durable then. `bytes`: length of what it holds.
    ///
    /// # Errors
    /// The object store does not take it.
    pub async fn put(
        &self,
        kind: Kind,
        sha256: &str,
        bytes: u64,
        stored: Bytes,
    ) -> Result<Object, ObjectError> {
        let object = Object {
            kind,
            sha256: sha256.to_owned(),
            bytes,
            stored: length(&stored),
            place: place(kind, sha256)?,
        };
        let place = Place::from(object.place.as_str());
        let put = self.store.put(&place, stored.into()).await;
        put.map_err(|e| self.failed("keep an object", e))?;
        Ok(object)
    }

    /// Begins an object that comes in pieces, as it is to be kept.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn begin(&self, kind: Kind, sha256: &str) -> Result<Upload, ObjectError> {
        let place = place(kind, sha256)?;
        let writer =
            BufWriter::with_capacity(Arc::clone(&self.store), Place::from(place.as_str()), PIECE);
        Ok(Upload {
            objects: self.clone(),
            writer: Some(writer.with_max_concurrency(PIECES)),
            gathered: Vec::new(),
            hash: Sha256::new(),
            object: Object {
                kind,
                sha256: sha256.to_owned(),
                bytes: 0,
                stored: 0,
                place,
            },
        })
    }

    /// Keeps what is in a file, from where that is read at, as it is.
    ///
    /// # Errors
    /// It cannot be read, has another hash, or the object store does not take it.
    pub async fn put_file(
        &self,
        kind: Kind,
        sha256: &str,
        file: std::fs::File,
    ) -> Result<Object, ObjectError> {
        use tokio::io::AsyncReadExt as _;
        let mut file = tokio::fs::File::from_std(file);
        file.set_max_buf_size(READ);
        let mut upload = self.begin(kind, sha256)?;
        loop {
            let mut piece = vec![0; READ];
            let read = file.read(&mut piece).await;
            let read = read.map_err(|e| self.failed("read what is to be kept", e))?;
            if read == 0 {
                return upload.finish().await;
            }
            piece.truncate(read);
            upload.write(Bytes::from(piece)).await?;
        }
    }

    /// Whether there is something at an object's place.
    ///
    /// # Errors
    /// The object store cannot be asked.
    pub async fn exists(&self, object: &Object) -> Result<bool, ObjectError> {
        match self.store.head(&Place::from(object.place.as_str())).await {
            Ok(found) => Ok(found.size == object.stored),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.failed("look for an object", e)),
        }
    }

    /// What is at an object's place.
    ///
    /// # Errors
    /// It is missing, has another size, or cannot be had now.
    pub async fn read(&self, object: &Object) -> Result<Reading, ObjectError> {
        let found = self.store.get(&Place::from(object.place.as_str())).await;
        let found = match found {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => {
                return Err(ObjectError::Missing {
                    place: object.place.clone(),
                    store: self.name.to_string(),
                });
            }
            Err(e) => return Err(self.failed("read an object", e)),
        };
        if found.meta.size == object.stored {
            return Ok(Reading::new(found));
        }
        Err(ObjectError::Damaged {
            place: object.place.clone(),
            what: format!("it has {} bytes, not {}", found.meta.size, object.stored),
        })
    }

    /// All of what is at an object's place, which has to fit into memory.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_all(&self, object: &Object) -> Result<Bytes, ObjectError> {
        let reading = self.read(object).await?;
        let all = reading.all().await;
        all.map_err(|e| self.failed("read an object", e))
    }

    /// Puts a copy of what another object store has at an object's place at the same place here.
    ///
    /// # Errors
    /// It is missing or damaged there, or cannot be kept here.
    pub async fn copy_from(&self, other: &Self, object: &Object) -> Result<(), ObjectError> {
        use tokio::io::AsyncReadExt as _;
        let mut reading = other.read(object).await?.into_async();
        let place = Place::from(object.place.as_str());
        let mut writer = BufWriter::with_capacity(Arc::clone(&self.store), place, PIECE)
            .with_max_concurrency(PIECES);
        let mut piece = vec![0; 256 << 10];
        loop {
            let read = reading.read(&mut piece).await;
            let read = read.map_err(|e| other.failed("read an object", e))?;
            let written = if read == 0 {
                writer
                    .shutdown()
                    .await
                    .map_err(|e| self.failed("keep an object", e))
            } else {
                writer
                    .write_all(&piece[..read])
                    .await
                    .map_err(|e| self.failed("keep an object", e))
            };
            written?;
            if read == 0 {
                return Ok(());
            }
        }
    }

    /// Removes what is at a place; nothing there is as good.
    ///
    /// # Errors
    /// The object store does not do it.
    pub async fn remove(&self, place: &str) -> Result<(), ObjectError> {
        match self.store.delete(&Place::from(place)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed("remove an object", e)),
        }
    }

    /// The places of a kind that were written before a time, in pieces of at most `limit`.
    pub fn written_before(
        &self,
        kind: Kind,
        before: SystemTime,
        limit: usize,
    ) -> impl futures_util::Stream<Item = Result<Vec<String>, ObjectError>> + Send + use<> {
        let objects = self.clone();
        let folder = Place::from(kind.place().0);
        self.store
            .list(Some(&folder))
            .filter_map(move |found| {
                let place = match found {
                    Ok(found) if SystemTime::from(found.last_modified) >= before => None,
                    Ok(found) => Some(Ok(found.location.to_string())),
                    // Removed by somebody else while it was looked at.
                    Err(object_store::Error::NotFound { .. }) => None,
                    Err(e) => Some(Err(objects.failed("list objects", e))),
                };
                std::future::ready(place)
            })
            .chunks(limit)
            .map(|places| places.into_iter().collect())
    }

    fn failed(
        &self,
        doing: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ObjectError {
        ObjectError::Failed {
            store: self.name.to_string(),
            doing,
            source: source.into(),
        }
    }
}

/// An object on its way in; dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct Upload {
    objects: Objects,
    writer: Option<BufWriter>,
    /// What has come and is not with the writer: many small pieces would each take more than they hold.
    gathered: Vec<u8>,
    hash: Sha256,
    object: Object,
}

impl Upload {
    /// Adds bytes.
    ///
    /// # Errors
    /// The object store does not take them.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), ObjectError> {
        self.object.bytes += length(&bytes);
        self.hash.update(&bytes);
        if self.gathered.is_empty() && bytes.len() >= READ {
            return self.hand_over(bytes).await;
        }
        self.gathered.extend_from_slice(&bytes);
        if self.gathered.len() < READ {
            return Ok(());
        }
        let gathered = std::mem::take(&mut self.gathered);
        self.hand_over(gathered.into()).await
    }

    async fn hand_over(&mut self, bytes: Bytes) -> Result<(), ObjectError> {
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        let written = writer.put(bytes).await;
        written.map_err(|e| self.objects.failed("keep an object", e))
    }

    /// How many bytes there are.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.object.bytes
    }

    /// Ends it: it is durable then. What it holds must have the hash that it was begun with.
    ///
    /// # Errors
    /// The hash differs, or the object store does not take it.
    pub async fn finish(mut self) -> Result<Object, ObjectError> {
        let actual = hex::encode(std::mem::take(&mut self.hash).finalize());
        if actual != self.object.sha256 {
            return Err(ObjectError::Hash {
                expected: self.object.sha256.clone(),
                actual,
            });
        }
        let gathered = std::mem::take(&mut self.gathered);
        if !gathered.is_empty() {
            self.hand_over(gathered.into()).await?;
        }
        if let Some(mut writer) = self.writer.take() {
            let ended = writer.shutdown().await;
            if let Err(e) = ended {
                let failed = self.objects.failed("keep an object", e);
                self.writer = Some(writer);
                return Err(failed);
            }
        }
        Ok(Object {
            stored: self.object.bytes,
            ..self.object.clone()
        })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // A bucket keeps the pieces of what is not ended until it is told.
        if let Some(mut writer) = self.writer.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { writer.abort().await });
        }
    }
}

/// All that is in a folder as a directory of objects has it: their places, and how long they are. What they hold is not known.
///
/// # Errors
/// It cannot be read.
pub fn in_folder(path: &Path) -> std::io::Result<Vec<Object>> {
    let mut objects = Vec::new();
    for kind in Kind::ALL {
        let folder = kind.place().0;
        let entries = match std::fs::read_dir(path.join(folder)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            if let Some(name) = entry.file_name().to_str() {
                objects.push(Object {
                    kind,
                    sha256: String::new(),
                    bytes: 0,
                    stored: entry.metadata()?.len(),
                    place: format!("{folder}/{name}"),
                });
            }
        }
    }
    Ok(objects)
}

/// A new place.
fn place(kind: Kind, sha256: &str) -> Result<String, ObjectError> {
    let mut random = [0; 6];
    getrandom::fill(&mut random).map_err(|e| ObjectError::Failed {
        store: String::new(),
        doing: "name an object",
        source: e.to_string().into(),
    })?;
    let (folder, extension) = kind.place();
    Ok(format!(
        "{folder}/{sha256}-{}{extension}",
        hex::encode(random)
    ))
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each piece that a writer is given has a place of its own, and more than it holds.
    #[tokio::test]
    async fn small_pieces_are_gathered() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::in_directory(dir.path()).unwrap();
        let bytes: Vec<u8> = (0..=250).cycle().take(2 * READ + 10).collect();
        let sha256 = hex::encode(Sha256::digest(&bytes));
        let mut upload = objects.begin(Kind::Archive, &sha256).unwrap();
        for (n, byte) in (1..).zip(&bytes) {
            upload
                .write(Bytes::copy_from_slice(&[*byte]))
                .await
                .unwrap();
            assert_eq!(upload.gathered.len(), n % READ);
        }
        let object = upload.finish().await.unwrap();
        assert_eq!(
            (object.bytes, object.stored),
            (bytes.len() as u64, bytes.len() as u64)
        );
        assert_eq!(objects.read_all(&object).await.unwrap(), bytes);
        // A large one goes on as it is, behind what came before it.
        let mut upload = objects.begin(Kind::Archive, &sha256).unwrap();
        for piece in [&bytes[..READ], &bytes[READ..READ + 5], &bytes[READ + 5..]] {
            upload.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        let object = upload.finish().await.unwrap();
        assert_eq!(objects.read_all(&object).await.unwrap(), bytes);
    }
}
