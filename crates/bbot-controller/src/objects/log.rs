//! Logs as objects: compressed, with their two ends in the row, so that a page need not ask for the object.

use std::io::Read;

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
pub fn pack(text: &str) -> std::io::Result<Packed> {
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

/// A log that was read and found to be what it was.
#[derive(Debug)]
pub struct Whole(Bytes);

/// Bytes of text that are given at once.
const PIECE: usize = 256 << 10;

/// Reads a log, and checks all of it before anything is given away.
///
/// # Errors
/// It is missing, damaged, or cannot be had now.
pub async fn read(objects: &Objects, object: &Object) -> Result<Whole, ObjectError> {
    let packed = objects.read_all(object).await?;
    let checked = object.clone();
    let check = tokio::task::spawn_blocking(move || check(packed, &checked)).await;
    check
        .map_err(|e| e.to_string())
        .flatten()
        .map_err(|what| ObjectError::Damaged {
            place: object.place.clone(),
            what,
        })
}

fn check(packed: Bytes, object: &Object) -> Result<Whole, String> {
    let mut hash = Sha256::new();
    let mut bytes = 0;
    let whole = Whole(packed);
    for piece in whole.pieces() {
        let piece = piece.map_err(|e| e.to_string())?;
        bytes += super::length(&piece);
        if bytes > object.bytes {
            break;
        }
        hash.update(&piece);
    }
    if bytes != object.bytes || hex::encode(hash.finalize()) != object.sha256 {
        return Err("it does not hold what it did when it was kept".to_owned());
    }
    Ok(whole)
}

impl Whole {
    /// Its text, piece by piece; blocking.
    pub fn pieces(&self) -> impl Iterator<Item = std::io::Result<Bytes>> + Send + use<> {
        let packed = std::io::Cursor::new(self.0.clone());
        let mut decoder = zstd::stream::read::Decoder::with_buffer(packed);
        std::iter::from_fn(move || {
            let decoder = match &mut decoder {
                Ok(decoder) => decoder,
                Err(e) => return Some(Err(std::io::Error::new(e.kind(), e.to_string()))),
            };
            let mut piece = Vec::with_capacity(PIECE);
            match decoder.take(PIECE as u64).read_to_end(&mut piece) {
                Ok(0) => None,
                Ok(_) => Some(Ok(Bytes::from(piece))),
                Err(e) => Some(Err(e)),
            }
        })
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

    proptest! {
        #[test]
        fn a_log_is_what_it_was(text in "\\PC{0,3000}", times in 1..20_usize) {
            let text = text.repeat(times);
            let packed = pack(&text).unwrap();
            let whole = check(packed.packed.clone(), &object(&packed)).unwrap();
            let pieces: Vec<u8> = whole.pieces().flat_map(Result::unwrap).collect();
            prop_assert!(pieces == text.as_bytes());
        }

        #[test]
        fn damage_is_noticed(at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<bool>()) {
            let packed = pack(&"line\n".repeat(100)).unwrap();
            let mut bytes = packed.packed.to_vec();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            // A changed bit of the head may say the same.
            if let Ok(whole) = check(bytes.into(), &object(&packed)) {
                let pieces: Vec<u8> = whole.pieces().flat_map(Result::unwrap).collect();
                prop_assert!(pieces == "line\n".repeat(100).as_bytes());
            }
        }
    }
}
