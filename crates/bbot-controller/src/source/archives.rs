//! Source archives: objects that submissions name, each known by the SHA-256 of its bytes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Bytes;

use super::is_sha256;
use crate::clock::Clock;
use crate::objects::{Kind, Object, ObjectError, Objects, Reading, Upload};
use crate::store::{Store, StoreError};

/// An archive could not be kept, or not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// It is not compressed by gzip.
    #[error("the archive is not a gzip-compressed tar: it does not begin with the gzip mark")]
    NotGzip,
    /// It is larger than allowed.
    #[error("the archive is larger than {limit} bytes")]
    TooLarge {
        /// The most bytes that an archive may have.
        limit: u64,
    },
    /// The object store.
    #[error("the archive cannot be kept: {0}")]
    Object(#[from] ObjectError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file.
    #[error("cannot read an archive that is to be kept")]
    Io(#[from] io::Error),
}

/// What became of an archive that was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is new.
    New,
    /// It was here already.
    Known,
}

/// The archives.
#[derive(Debug, Clone)]
pub struct Archives {
    objects: Objects,
    store: Store,
    clock: Arc<dyn Clock>,
    /// Where they were before there were objects.
    before: PathBuf,
    limit: u64,
}

/// The two bytes that every gzip file begins with (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Bytes of a file that are read at once.
const PIECE: usize = 256 << 10;

impl Archives {
    /// Archives of at most `limit` bytes each. `before`: a directory with files `<sha256>.tar.gz`, of before there were objects.
    #[must_use]
    pub fn new(
        objects: Objects,
        store: Store,
        clock: Arc<dyn Clock>,
        before: PathBuf,
        limit: u64,
    ) -> Self {
        Self {
            objects,
            store,
            clock,
            before,
            limit,
        }
    }

    /// The archive of this hash, if it is here.
    ///
    /// # Errors
    /// The stores cannot be asked.
    pub async fn known(&self, sha256: &str) -> Result<Option<Object>, ArchiveError> {
        if !is_sha256(sha256) {
            return Ok(None);
        }
        if let Some(object) = self.store.whole_object(Kind::Archive, sha256).await?
            && self.objects.exists(&object).await?
        {
            self.store
                .keep_known(Kind::Archive, sha256, self.clock.now())
                .await?;
            return Ok(Some(object));
        }
        self.move_one(sha256).await
    }

    /// Reads an archive; `None` when there never was one of this hash.
    ///
    /// # Errors
    /// It is lost, or the stores cannot be asked.
    pub async fn open(&self, sha256: &str) -> Result<Option<(Object, Reading)>, ArchiveError> {
        if !is_sha256(sha256) {
            return Ok(None);
        }
        let object = match self.store.object(Kind::Archive, sha256).await? {
            Some(object) => Some(object),
            None => self.move_one(sha256).await?,
        };
        match object {
            Some(object) => {
                let reading = self.objects.read(&object).await?;
                Ok(Some((object, reading)))
            }
            None => Ok(None),
        }
    }

    /// Begins an archive.
    ///
    /// # Errors
    /// It cannot be given a place.
    pub fn begin(&self, sha256: &str) -> Result<Incoming, ArchiveError> {
        self.begin_of(sha256, self.limit)
    }

    /// The same, of at most so many bytes.
    fn begin_of(&self, sha256: &str, limit: u64) -> Result<Incoming, ArchiveError> {
        Ok(Incoming {
            upload: self.objects.begin(Kind::Archive, sha256)?,
            archives: self.clone(),
            limit,
            start: Vec::new(),
        })
    }

    /// Keeps the archive in a file, from where that is read at.
    ///
    /// # Errors
    /// It is not what is said, too large, or cannot be kept.
    pub async fn put_file(
        &self,
        sha256: &str,
        file: std::fs::File,
    ) -> Result<Object, ArchiveError> {
        self.put_file_of(sha256, file, self.limit).await
    }

    /// The same, of at most so many bytes.
    async fn put_file_of(
        &self,
        sha256: &str,
        file: std::fs::File,
        limit: u64,
    ) -> Result<Object, ArchiveError> {
        use tokio::io::AsyncReadExt as _;
        if let Some(known) = self.store.whole_object(Kind::Archive, sha256).await?
            && self.objects.exists(&known).await?
        {
            self.store
                .keep_known(Kind::Archive, sha256, self.clock.now())
                .await?;
            return Ok(known);
        }
        let mut file = tokio::fs::File::from_std(file);
        file.set_max_buf_size(PIECE);
        let mut incoming = self.begin_of(sha256, limit)?;
        loop {
            let mut piece = vec![0; PIECE];
            let read = file.read(&mut piece).await?;
            if read == 0 {
                return incoming.finish().await;
            }
            piece.truncate(read);
            incoming.write(Bytes::from(piece)).await?;
        }
    }

    /// Makes an object of an archive of before there were objects; `None` where there is no such file, or a damaged one, which stays: it
    /// is in nobody's way who has a good one. It was taken, whatever the limit is now.
    async fn move_one(&self, sha256: &str) -> Result<Option<Object>, ArchiveError> {
        let path = self.before.join(format!("{sha256}.tar.gz"));
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let object = match self.put_file_of(sha256, file, u64::MAX).await {
            Ok(object) => object,
            Err(
                e @ (ArchiveError::NotGzip
                | ArchiveError::Io(_)
                | ArchiveError::Object(ObjectError::Hash { .. })),
            ) => {
                tracing::warn!("archive {sha256} stays in {}: {e}", self.before.display());
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        match std::fs::remove_file(&path) {
            // Another controller was faster.
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(Some(object)),
        }
    }

    /// Makes objects of all archives of before there were objects; how many.
    ///
    /// # Errors
    /// They cannot be read, or not be kept. One that is damaged stays where it is.
    pub async fn move_all(&self) -> Result<usize, ArchiveError> {
        let entries = match std::fs::read_dir(&self.before) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(e) => return Err(e.into()),
        };
        let mut moved = 0;
        for entry in entries {
            let name = entry?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".tar.gz"));
            let Some(sha256) = name.filter(|name| is_sha256(name)) else {
                continue;
            };
            moved += usize::from(self.move_one(sha256).await?.is_some());
        }
        // With nothing in it, it is of no use to anybody.
        let _ = std::fs::remove_dir(&self.before);
        Ok(moved)
    }
}

/// An archive on its way in; dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct Incoming {
    archives: Archives,
    upload: Upload,
    limit: u64,
    start: Vec<u8>,
}

impl Incoming {
    /// Adds bytes.
    ///
    /// # Errors
    /// It gets too large, is no gzip file, or cannot be kept.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), ArchiveError> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.upload.bytes().saturating_add(length) > self.limit {
            return Err(ArchiveError::TooLarge { limit: self.limit });
        }
        let missing = GZIP.len().saturating_sub(self.start.len());
        self.start.extend(bytes.iter().take(missing));
        if !GZIP.starts_with(&self.start) {
            return Err(ArchiveError::NotGzip);
        }
        Ok(self.upload.write(bytes).await?)
    }

    /// Keeps it.
    ///
    /// # Errors
    /// Its hash is another than was said, there are no bytes, or it cannot be kept.
    pub async fn finish(self) -> Result<Object, ArchiveError> {
        if self.start != GZIP {
            return Err(ArchiveError::NotGzip);
        }
        let object = self.upload.finish().await?;
        let archives = self.archives;
        archives
            .store
            .keep_object(&object, archives.clock.now())
            .await?;
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{ManualClock, Millis};
    use sha2::{Digest as _, Sha256};
    use std::path::Path;

    async fn archives(dir: &Path, limit: u64) -> Archives {
        let objects = Objects::in_directory(&dir.join("objects")).unwrap();
        let store = Store::open(&dir.join("s.sqlite")).await.unwrap();
        let clock = Arc::new(ManualClock::at(Millis(1)));
        Archives::new(objects, store, clock, dir.join("archives"), limit)
    }

    fn files(dir: &Path) -> usize {
        std::fs::read_dir(dir.join("objects/archives"))
            .unwrap()
            .count()
    }

    const GOOD: [u8; 5] = [0x1f, 0x8b, 1, 2, 3];

    fn hash(bytes: &[u8]) -> String {
        hex::encode(Sha256::digest(bytes))
    }

    #[tokio::test]
    async fn kept_under_its_hash() {
        let dir = tempfile::tempdir().unwrap();
        let archives = archives(dir.path(), 100).await;
        let sha256 = hash(&GOOD);
        assert_eq!(archives.known(&sha256).await.unwrap(), None);
        let mut incoming = archives.begin(&sha256).unwrap();
        incoming
            .write(Bytes::from_static(&GOOD[..1]))
            .await
            .unwrap();
        incoming
            .write(Bytes::from_static(&GOOD[1..]))
            .await
            .unwrap();
        let object = incoming.finish().await.unwrap();
        assert_eq!(archives.known(&sha256).await.unwrap(), Some(object.clone()));
        assert_eq!(archives.objects.read_all(&object).await.unwrap(), &GOOD[..]);
        assert_eq!(files(dir.path()), 1);
        // Lost and put once more, it is there again.
        archives.objects.remove(&object.place).await.unwrap();
        assert_eq!(archives.known(&sha256).await.unwrap(), None);
        assert!(matches!(
            archives.open(&sha256).await,
            Err(ArchiveError::Object(ObjectError::Missing { .. }))
        ));
        let mut again = archives.begin(&sha256).unwrap();
        again.write(Bytes::from_static(&GOOD)).await.unwrap();
        again.finish().await.unwrap();
        let (object, reading) = archives.open(&sha256).await.unwrap().unwrap();
        assert_eq!(reading.bytes(), 5);
        // Found to be damaged, it is put once more too, elsewhere, and is then good.
        archives
            .store
            .note_damaged(&object, Millis(1))
            .await
            .unwrap();
        assert_eq!(archives.known(&sha256).await.unwrap(), None);
        let mut again = archives.begin(&sha256).unwrap();
        again.write(Bytes::from_static(&GOOD)).await.unwrap();
        let new = again.finish().await.unwrap();
        archives
            .store
            .note_damaged(&object, Millis(1))
            .await
            .unwrap();
        assert_eq!(archives.known(&sha256).await.unwrap(), Some(new));
    }

    #[tokio::test]
    async fn refused_ones_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let archives = archives(dir.path(), 8).await;
        let begin = || archives.begin(&hash(&GOOD)).unwrap();
        let mut large = begin();
        large
            .write(Bytes::from_static(&[0x1f, 0x8b, 0, 0]))
            .await
            .unwrap();
        assert!(matches!(
            large.write(Bytes::from_static(&[0; 5])).await,
            Err(ArchiveError::TooLarge { limit: 8 })
        ));
        drop(large);
        assert!(matches!(
            begin().write(Bytes::from_static(b"PK")).await,
            Err(ArchiveError::NotGzip)
        ));
        assert!(matches!(begin().finish().await, Err(ArchiveError::NotGzip)));
        let mut other = begin();
        other.write(Bytes::from_static(&GZIP)).await.unwrap();
        assert!(matches!(
            other.finish().await,
            Err(ArchiveError::Object(ObjectError::Hash { .. }))
        ));
        tokio::task::yield_now().await;
        assert_eq!(files(dir.path()), 0);
    }

    #[tokio::test]
    async fn those_of_before_are_moved() {
        let dir = tempfile::tempdir().unwrap();
        let archives = archives(dir.path(), 100).await;
        let before = dir.path().join("archives");
        assert_eq!(archives.move_all().await.unwrap(), 0);
        std::fs::create_dir(&before).unwrap();
        let (first, second) = (GOOD.to_vec(), [&GOOD[..], b"x"].concat());
        for bytes in [&first, &second] {
            std::fs::write(before.join(format!("{}.tar.gz", hash(bytes))), bytes).unwrap();
        }
        let damaged = before.join(format!("{}.tar.gz", "0".repeat(64)));
        std::fs::write(&damaged, GOOD).unwrap();
        // It was taken when more was allowed.
        let large = [&GOOD[..], &[0; 100]].concat();
        std::fs::write(before.join(format!("{}.tar.gz", hash(&large))), &large).unwrap();
        // One is asked for before its turn.
        assert_eq!(
            archives
                .open(&hash(&second))
                .await
                .unwrap()
                .unwrap()
                .1
                .bytes(),
            6
        );
        assert_eq!(archives.move_all().await.unwrap(), 2);
        for bytes in [&first, &large] {
            assert!(archives.known(&hash(bytes)).await.unwrap().is_some());
        }
        assert_eq!(std::fs::read_dir(&before).unwrap().count(), 1);
        std::fs::remove_file(damaged).unwrap();
        // A damaged one does not keep a good one out, and goes when that is there.
        let late = [&GOOD[..], b"y"].concat();
        std::fs::write(before.join(format!("{}.tar.gz", hash(&late))), GOOD).unwrap();
        assert_eq!(archives.move_all().await.unwrap(), 0);
        assert_eq!(archives.known(&hash(&late)).await.unwrap(), None);
        assert!(archives.open(&hash(&late)).await.unwrap().is_none());
        let mut incoming = archives.begin(&hash(&late)).unwrap();
        incoming.write(Bytes::from(late.clone())).await.unwrap();
        incoming.finish().await.unwrap();
        assert!(before.exists());
        archives.move_all().await.unwrap();
        assert!(!before.exists());
    }

    #[tokio::test]
    async fn no_name_leads_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let archives = archives(dir.path(), 8).await;
        for name in [
            "../x",
            "/etc/passwd",
            "",
            "#1",
            &"0".repeat(63),
            &format!("{}/..", "0".repeat(61)),
        ] {
            assert!(archives.open(name).await.unwrap().is_none(), "{name}");
            assert!(archives.known(name).await.unwrap().is_none());
        }
    }
}
