//! One log segment on disk: a head that says what follows and proves that it is whole, the operation's name, the
//! bytes. Pure.
//!
//! ```text
//!   "bbs1" | number u64 | at u64 | operation's length u16 | bytes' length u32 | digest 8 | operation | bytes
//! ```
//! Numbers are little-endian. The digest (the first bytes of the SHA-256 of everything else) tells a record from the
//! zeros or the old blocks that a power cut may leave where the end of a file was.

use bbot_manifest::OPERATION_LIMIT;
use sha2::{Digest as _, Sha256};

/// Bytes of a record before the operation's name.
pub const HEAD: usize = 34;

/// Most bytes of log in a segment (protocol, section 5).
pub const DATA_LIMIT: usize = 65_536;

const MAGIC: [u8; 4] = *b"bbs1";
const DIGEST: usize = 8;

/// What a record's head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The segment's number: 1, 2, 3...
    pub number: u64,
    /// Offset of its first byte in the whole log.
    pub at: u64,
    /// Length of the operation's name.
    pub operation: usize,
    /// Length of its bytes.
    pub data: usize,
    digest: [u8; DIGEST],
}

impl Head {
    /// Length of the whole record.
    #[must_use]
    pub fn length(&self) -> u64 {
        (HEAD + self.operation + self.data) as u64
    }

    /// Reads a head; `None` for what is none.
    #[must_use]
    pub fn read(bytes: &[u8; HEAD]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (number, rest) = rest.split_first_chunk::<8>()?;
        let (at, rest) = rest.split_first_chunk::<8>()?;
        let (operation, rest) = rest.split_first_chunk::<2>()?;
        let (data, rest) = rest.split_first_chunk::<4>()?;
        let head = Self {
            number: u64::from_le_bytes(*number),
            at: u64::from_le_bytes(*at),
            operation: usize::from(u16::from_le_bytes(*operation)),
            data: usize::try_from(u32::from_le_bytes(*data)).ok()?,
            digest: *rest.first_chunk()?,
        };
        let sound = *magic == MAGIC
            && head.number > 0
            && (1..=OPERATION_LIMIT).contains(&head.operation)
            && (1..=DATA_LIMIT).contains(&head.data)
            && head.at.checked_add(DATA_LIMIT as u64).is_some();
        sound.then_some(head)
    }

    /// Whether this is the operation's name and bytes that the head was written for.
    #[must_use]
    pub fn proves(&self, body: &[u8]) -> bool {
        body.len() == self.operation + self.data
            && body
                .split_at_checked(self.operation)
                .is_some_and(|(operation, data)| {
                    digest(self.number, self.at, operation, data) == self.digest
                })
    }
}

fn digest(number: u64, at: u64, operation: &[u8], data: &[u8]) -> [u8; DIGEST] {
    let mut hash = Sha256::new();
    hash.update(MAGIC);
    hash.update(number.to_le_bytes());
    hash.update(at.to_le_bytes());
    // The operation's name has no NUL: it says by itself where it ends.
    hash.update(operation);
    hash.update([0]);
    hash.update(data);
    let hash: [u8; 32] = hash.finalize().into();
    let mut first = [0; DIGEST];
    first.copy_from_slice(&hash[..DIGEST]);
    first
}

/// A record; `None` when the operation's name or the bytes are not of a length that may be.
#[must_use]
pub fn write(number: u64, at: u64, operation: &str, data: &[u8]) -> Option<Vec<u8>> {
    if !(1..=OPERATION_LIMIT).contains(&operation.len()) || !(1..=DATA_LIMIT).contains(&data.len())
    {
        return None;
    }
    let mut record = Vec::with_capacity(HEAD + operation.len() + data.len());
    record.extend_from_slice(&MAGIC);
    record.extend_from_slice(&number.to_le_bytes());
    record.extend_from_slice(&at.to_le_bytes());
    record.extend_from_slice(&u16::try_from(operation.len()).ok()?.to_le_bytes());
    record.extend_from_slice(&u32::try_from(data.len()).ok()?.to_le_bytes());
    record.extend_from_slice(&digest(number, at, operation.as_bytes(), data));
    record.extend_from_slice(operation.as_bytes());
    record.extend_from_slice(data);
    Some(record)
}

/// A segment as it comes: the operation's name, a newline, the bytes.
///
/// # Errors
/// What is wrong with it, for the agent.
pub fn parse(body: &[u8]) -> Result<(&str, &[u8]), &'static str> {
    let newline = body
        .iter()
        .position(|b| *b == b'\n')
        .ok_or("a log segment begins with a line that names the operation")?;
    let (operation, data) = (&body[..newline], &body[newline + 1..]);
    let operation = std::str::from_utf8(operation)
        .ok()
        .filter(|o| (1..=OPERATION_LIMIT).contains(&o.len()) && !o.contains(char::is_control))
        .ok_or("the operation's name is empty, too long, not UTF-8 or has control characters")?;
    if data.is_empty() {
        return Err("a log segment has at least one byte of log");
    }
    Ok((operation, data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(record: &[u8]) -> Option<Head> {
        Head::read(record.first_chunk()?)
    }

    #[test]
    fn a_record_comes_back() {
        let record = write(7, 1 << 40, "update", b"a\0\xff").unwrap();
        let read = head(&record).unwrap();
        assert_eq!((read.number, read.at), (7, 1 << 40));
        assert_eq!(read.length(), record.len() as u64);
        assert!(read.proves(&record[HEAD..]));
        assert!(!read.proves(&record[HEAD..record.len() - 1]));
        assert!(!read.proves(b""));
    }

    #[test]
    fn what_no_segment_may_be_is_not_written() {
        let long = "x".repeat(OPERATION_LIMIT + 1);
        for (operation, data) in [
            ("", &b"x"[..]),
            (long.as_str(), b"x"),
            ("a", b""),
            ("a", &[0; DATA_LIMIT + 1]),
        ] {
            assert_eq!(write(1, 0, operation, data), None);
        }
        assert!(write(1, 0, "a", &[0; DATA_LIMIT]).is_some());
    }

    #[test]
    fn segments_as_they_come() {
        assert_eq!(parse(b"update\nx\ny"), Ok(("update", &b"x\ny"[..])));
        assert_eq!(parse("ü\n\0".as_bytes()), Ok(("ü", &b"\0"[..])));
        let long = [vec![b'x'; OPERATION_LIMIT + 1], b"\nx".to_vec()].concat();
        for bad in [
            &b""[..],
            b"update",
            b"\nx",
            b"a\x1b\nx",
            b"\xff\nx",
            b"update\n",
            &long,
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_found(data in proptest::collection::vec(any::<u8>(), 1..100), index in any::<prop::sample::Index>(), bit in 0_u8..8) {
            let mut record = write(3, 9, "test", &data).unwrap();
            let index = index.index(record.len());
            record[index] ^= 1 << bit;
            let good = head(&record).is_some_and(|h| h.length() == record.len() as u64 && h.proves(&record[HEAD..]));
            prop_assert!(!good);
        }

        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), HEAD..200)) {
            if let Some(head) = head(&bytes) {
                let _ = head.proves(&bytes[HEAD..]);
            }
            let _ = parse(&bytes);
        }
    }
}
