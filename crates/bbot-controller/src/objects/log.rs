//! Logs as objects: compressed, with their two ends in the row, so that a page need not ask for the object.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Bytes;
use sha2::{Digest as _, Sha256};

use super::{Kind, Object, ObjectError, Objects};

/// Bytes of a long log that its row holds, from its beginning and from its end: the errors are at the end.
const HEAD: usize = 8 << 10;
const TAIL: usize = 24 << 10;

/// A log of at most so many bytes is in its row alone: another file would take longer than all else that a small build costs.
pub const INLINE: usize = HEAD + TAIL;

/// A quick one: logs have so much in common with themselves that higher ones bring little.
const LEVEL: i32 = 3;

/// The beginning and the end of a log that is longer than [`INLINE`].
#[must_use]
pub fn ends(text: &str) -> (&str, &str) {
    let tail = text.ceil_char_boundary(text.len().saturating_sub(TAIL));
    (&text[..text.floor_char_boundary(HEAD)], &text[tail..])
}

/// A log that is ready to become an object.
#[derive(Debug)]
pub struct Packed {
    /// SHA-256 of the text.
    pub sha256: String,
    /// Length of the text.
    pub bytes: u64,
    packed: Bytes,
}

/// Compresses a log. It takes its time: not where other requests wait for their turn.
///
/// # Errors
/// There is no memory for it.
pub fn pack(text: &str) -> io::Result<Packed> {
    let mut encoder = zstd::bulk::Compressor::new(LEVEL)?;
    encoder.include_checksum(true)?;
    Ok(Packed {
        sha256: hex::encode(Sha256::digest(text.as_bytes())),
        bytes: super::length(text.as_bytes()),
        packed: encoder.compress(text.as_bytes())?.into(),
    })
}

impl Packed {
    /// Keeps it.
    ///
    /// # Errors
    /// The object store does not take it.
    pub async fn put(self, objects: &Objects) -> Result<Object, ObjectError> {
        let put = objects.put(Kind::Log, &self.sha256, self.bytes, self.packed);
        put.await
    }
}

/// A log of which all was read, and found to be what it was.
#[derive(Debug)]
pub struct Whole(From);

/// Where its text is read from.
#[derive(Debug)]
enum From {
    Memory(Bytes),
    Store(Objects, Object),
}

/// A log that is kept in at most so many bytes is held in memory. A larger one is read twice, piece by piece.
const HELD: u64 = 1 << 20;

/// Bytes of text that are given at once.
const PIECE: usize = 256 << 10;

/// A log is decompressed with what lies so far back (2 to the power of this), whatever a damaged one asks for.
const WINDOW: u32 = 23;

/// Reads a log, and checks all of it before anything is given away.
///
/// # Errors
/// It is missing, damaged, or cannot be had now.
pub async fn read(objects: &Objects, object: &Object) -> Result<Whole, ObjectError> {
    let from = if object.stored <= HELD {
        From::Memory(objects.read_all(object).await?)
    } else {
        From::Store(objects.clone(), object.clone())
    };
    let whole = Whole(from);
    let pieces = whole.pieces().await?;
    let checked = object.clone();
    let check = tokio::task::spawn_blocking(move || check(pieces, &checked)).await;
    match check.map_err(|e| Wrong::Damaged(e.to_string())).flatten() {
        Ok(()) => Ok(whole),
        Err(Wrong::Damaged(what)) => Err(ObjectError::Damaged {
            place: object.place.clone(),
            what,
        }),
        Err(Wrong::Unread(e)) => Err(objects.failed("read an object", e)),
    }
}

/// Why a log is not given.
enum Wrong {
    /// It is not what it was.
    Damaged(String),
    /// It could not be read to its end.
    Unread(io::Error),
}

fn check(mut pieces: Pieces, object: &Object) -> Result<(), Wrong> {
    let mut hash = Sha256::new();
    let mut bytes = 0;
    while let Some(piece) = pieces.next() {
        let piece = piece.map_err(|e| {
            if pieces.is_unread() {
                Wrong::Unread(e)
            } else {
                Wrong::Damaged(e.to_string())
            }
        })?;
        bytes += super::length(&piece);
        if bytes > object.bytes {
            break;
        }
        hash.update(&piece);
    }
    if bytes != object.bytes || hex::encode(hash.finalize()) != object.sha256 {
        let what = "it does not hold what it did when it was kept".to_owned();
        return Err(Wrong::Damaged(what));
    }
    Ok(())
}

impl Whole {
    /// Its text, from the beginning.
    ///
    /// # Errors
    /// It is missing now, or cannot be had.
    pub async fn pieces(&self) -> Result<Pieces, ObjectError> {
        let packed: Box<dyn Read + Send> = match &self.0 {
            From::Memory(packed) => Box::new(io::Cursor::new(packed.clone())),
            From::Store(objects, object) => objects.read(object).await?.into_reader(),
        };
        let unread = Arc::new(AtomicBool::new(false));
        let packed = Watched {
            inner: packed,
            unread: Arc::clone(&unread),
        };
        Ok(Pieces {
            decoder: Some(
                zstd::stream::read::Decoder::new(packed).and_then(|mut decoder| {
                    decoder.window_log_max(WINDOW)?;
                    Ok(decoder)
                }),
            ),
            unread,
        })
    }
}

/// What is read, and whether that has failed: what comes is damaged otherwise.
struct Watched {
    inner: Box<dyn Read + Send>,
    unread: Arc<AtomicBool>,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer);
        if read
            .as_ref()
            .is_err_and(|e| e.kind() != io::ErrorKind::Interrupted)
        {
            self.unread.store(true, Ordering::Relaxed);
        }
        read
    }
}

/// The text of a log, piece by piece; blocking. After an error there is nothing more.
pub struct Pieces {
    decoder: Option<io::Result<zstd::stream::read::Decoder<'static, io::BufReader<Watched>>>>,
    unread: Arc<AtomicBool>,
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pieces").finish_non_exhaustive()
    }
}

impl Pieces {
    /// Whether an error was of reading, and not of what was read.
    fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }
}

impl Iterator for Pieces {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<io::Result<Bytes>> {
        let mut decoder = match self.decoder.take()? {
            Ok(decoder) => decoder,
            Err(e) => return Some(Err(e)),
        };
        let mut piece = Vec::with_capacity(PIECE);
        match (&mut decoder).take(PIECE as u64).read_to_end(&mut piece) {
            Ok(0) => None,
            Ok(_) => {
                self.decoder = Some(Ok(decoder));
                Some(Ok(Bytes::from(piece)))
            }
            Err(e) => Some(Err(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_ends_are_whole_characters() {
        let text = "\u{e9}x".repeat(INLINE);
        let (head, tail) = ends(&text);
        assert!(head.len() <= HEAD && head.len() > HEAD - 2);
        assert!(tail.len() <= TAIL && tail.len() > TAIL - 2);
        assert!(text.starts_with(head) && text.ends_with(tail));
    }

    fn object(packed: &Packed) -> Object {
        Object {
            kind: Kind::Log,
            sha256: packed.sha256.clone(),
            bytes: packed.bytes,
            stored: super::super::length(&packed.packed),
            place: "logs/x".to_owned(),
        }
    }

    /// What is read of a log that has these bytes in a store.
    fn read_back(packed: Bytes, object: &Object) -> Result<Vec<u8>, String> {
        use futures_util::FutureExt as _;
        let whole = Whole(From::Memory(packed));
        let pieces = || whole.pieces().now_or_never().unwrap().unwrap();
        check(pieces(), object).map_err(|_| "damaged".to_owned())?;
        Ok(pieces().flat_map(Result::unwrap).collect())
    }

    /// However large it is, no more than a piece of it is held, and what was damaged is noticed before anything is given.
    #[tokio::test]
    async fn a_large_one_is_read_from_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::in_directory(dir.path()).unwrap();
        // Random enough to be large when it is packed.
        let mut state = 1_u64;
        let text: String = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            format!("{state:016x}\n")
        })
        .take(300_000)
        .collect();
        let object = pack(&text).unwrap().put(&objects).await.unwrap();
        assert!(object.stored > HELD);
        let whole = read(&objects, &object).await.unwrap();
        assert!(matches!(whole.0, From::Store(..)));
        let pieces = whole.pieces().await.unwrap();
        let mut longest = 0;
        let mut again = Vec::new();
        for piece in pieces {
            let piece = piece.unwrap();
            longest = longest.max(piece.len());
            again.extend_from_slice(&piece);
        }
        assert!(longest <= PIECE && again == text.as_bytes());

        let path = dir.path().join(&object.place);
        let mut packed = std::fs::read(&path).unwrap();
        let last = packed.len() - 5;
        packed[last] ^= 1;
        std::fs::write(&path, &packed).unwrap();
        let damaged = read(&objects, &object).await;
        assert!(
            matches!(damaged, Err(ObjectError::Damaged { .. })),
            "{damaged:?}"
        );
        std::fs::remove_file(&path).unwrap();
        let missing = read(&objects, &object).await;
        assert!(matches!(missing, Err(ObjectError::Missing { .. })));
    }

    proptest! {
        #[test]
        fn a_log_is_what_it_was(text in "\\PC{0,3000}", times in 1..20_usize) {
            let text = text.repeat(times);
            let packed = pack(&text).unwrap();
            let read = read_back(packed.packed.clone(), &object(&packed)).unwrap();
            prop_assert!(read == text.as_bytes());
        }

        #[test]
        fn damage_is_noticed(at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<bool>()) {
            let packed = pack(&"line\n".repeat(100)).unwrap();
            let mut bytes = packed.packed.to_vec();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            // A changed bit of the head may say the same.
            if let Ok(read) = read_back(bytes.into(), &object(&packed)) {
                prop_assert!(read == "line\n".repeat(100).as_bytes());
            }
        }
    }
}
