//! Which characters a manifest may hold: strict UTF-8 of "graphic" code points
//! and the three controls LF, CR and TAB, with the reference's words for
//! everything else.
//!
//! The table is fixed (Unicode 12), so that the two ends of a wire agree
//! whatever Unicode version they were built with. Code points that were not
//! assigned then count as graphic.

use std::fmt;

/// The class of code points that are refused, or `None` for a graphic one.
/// LF, CR and TAB are controls here; callers let them pass where they may.
pub(crate) fn refused_class(c: char) -> Option<&'static str> {
    let c = u32::from(c);
    if c < 0x20 || (0x7f..=0x9f).contains(&c) {
        return Some("control");
    }
    if c < 0xad {
        return None;
    }
    if (0xfdd0..=0xfdef).contains(&c) || c & 0xfffe == 0xfffe {
        return Some("noncharacter");
    }
    match c {
        0xad
        | 0x600..=0x605
        | 0x61c
        | 0x6dd
        | 0x70f
        | 0x8e2
        | 0x180e
        | 0x200b..=0x200f
        | 0x202a..=0x202e
        | 0x2060..=0x2064
        | 0x2066..=0x206f
        | 0xfeff
        | 0xfff9..=0xfffb
        | 0x110bd
        | 0x110cd
        | 0x13430..=0x13438
        | 0x1bca0..=0x1bca3
        | 0x1d173..=0x1d17a
        | 0xe0001
        | 0xe0020..=0xe007f => Some("format"),
        0xe000..=0xf8ff | 0xf0000..=0x10ffff => Some("private-use"),
        0x30000..=0xe0000 | 0xe0002..=0xe001f | 0xe0080..=0xe00ff | 0xe01f0..=0xeffff => {
            Some("reserved")
        }
        _ => None,
    }
}

/// Whether a manifest may hold this character.
pub(crate) fn is_allowed(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\t') || refused_class(c).is_none()
}

/// What is wrong with a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The byte at this place of a sequence (0 = first) cannot stand there.
    Byte { index: usize, byte: u8 },
    /// The first byte of a sequence of 5 or 6 bytes, which UTF-8 once had.
    Length(u8),
    /// The bytes end within a sequence.
    End,
    /// A well-formed code point of a class that is refused.
    Class(&'static str),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Byte { index, byte } => {
                // "forth" is how the reference spells it, and texts are compared.
                let place = ["first", "second", "third", "forth"][index.min(3)];
                write!(f, "invalid UTF-8 sequence {place} byte (0x{byte:02X}")?;
                if matches!(byte, 0x20..=0x7e) {
                    write!(f, " '{}'", char::from(byte))?;
                }
                f.write_str(")")
            }
            Self::Length(n) => write!(f, "{n}-byte length UTF-8 sequence"),
            Self::End => f.write_str("unexpected end of stream"),
            Self::Class(class) => write!(f, "invalid Unicode codepoint ({class})"),
        }
    }
}

/// A character that may not stand in a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bad {
    /// Offset of the first byte of its sequence.
    pub(crate) offset: usize,
    /// How many bytes of the sequence were well-formed before the fault (the
    /// whole sequence for a refused class).
    pub(crate) good_bytes: usize,
    /// What is wrong with it.
    pub(crate) fault: Fault,
}

impl Bad {
    const INCOMPLETE: &str = "incomplete UTF-8 sequence";

    /// The fault's text where a value is written line by line, so that the end of
    /// a line cuts a sequence short.
    pub(crate) fn detail_of_line(&self) -> String {
        match self.fault {
            Fault::Byte {
                index: 1..,
                byte: b'\n' | b'\r',
            } => Self::INCOMPLETE.to_owned(),
            _ => self.detail_of_value(),
        }
    }

    /// The fault's text where a value ends instead of a stream.
    pub(crate) fn detail_of_value(&self) -> String {
        match self.fault {
            Fault::End => Self::INCOMPLETE.to_owned(),
            fault => fault.to_string(),
        }
    }

    /// Whether the first byte alone shows the fault, so that looking at the
    /// next character, without taking it, already finds it.
    pub(crate) fn shows_at_first_byte(&self) -> bool {
        match self.fault {
            Fault::Byte { index, .. } => index == 0,
            Fault::Length(_) => true,
            Fault::End => false,
            Fault::Class(_) => self.good_bytes == 1,
        }
    }
}

/// Decodes the character at the start of `bytes` (not empty), strictly by
/// Unicode's table 3-7. On a fault the count is of the bytes before it.
pub(crate) fn decode(bytes: &[u8]) -> Result<(char, usize), (Fault, usize)> {
    let first = bytes[0];
    let (len, second) = match first {
        0..=0x7f => return Ok((char::from(first), 1)),
        0xc2..=0xdf => (2, 0x80..=0xbf),
        0xe0 => (3, 0xa0..=0xbf),
        0xe1..=0xec | 0xee..=0xef => (3, 0x80..=0xbf),
        0xed => (3, 0x80..=0x9f),
        0xf0 => (4, 0x90..=0xbf),
        0xf1..=0xf3 => (4, 0x80..=0xbf),
        0xf4 => (4, 0x80..=0x8f),
        0xf8..=0xfb => return Err((Fault::Length(5), 0)),
        0xfc..=0xfd => return Err((Fault::Length(6), 0)),
        byte => return Err((Fault::Byte { index: 0, byte }, 0)),
    };
    let mut code = u32::from(first) & (0x7f >> len);
    for index in 1..len {
        let Some(&byte) = bytes.get(index) else {
            return Err((Fault::End, index));
        };
        let fits = if index == 1 {
            second.contains(&byte)
        } else {
            (0x80..=0xbf).contains(&byte)
        };
        if !fits {
            return Err((Fault::Byte { index, byte }, index));
        }
        code = code << 6 | u32::from(byte & 0x3f);
    }
    // Table 3-7 leaves neither surrogates nor anything above U+10FFFF.
    let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    Ok((c, len))
}

/// Bytes that are looked at together; small enough that a line with one
/// non-ASCII character stays mostly on the fast path.
const CHUNK: usize = 32;

/// Whether all bytes are ASCII that a manifest may hold. Without branches, so
/// that the compiler makes vector code of it.
fn all_plain(chunk: &[u8; CHUNK]) -> bool {
    chunk.iter().fold(true, |ok, &b| {
        let graphic = b.wrapping_sub(0x20) < 0x5f;
        let white = b == b'\n' || b == b'\t' || b == b'\r';
        ok & (graphic | white)
    })
}

/// The first character that may not stand in a manifest, if there is one.
pub(crate) fn find_bad(bytes: &[u8]) -> Option<Bad> {
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at..].first_chunk::<CHUNK>() {
            Some(chunk) if all_plain(chunk) => {
                at += CHUNK;
                continue;
            }
            Some(_) => at + CHUNK,
            None => bytes.len(),
        };
        while at < end {
            let b = bytes[at];
            if matches!(b, 0x20..=0x7e | b'\n' | b'\t' | b'\r') {
                at += 1;
                continue;
            }
            let (fault, good_bytes) = match decode(&bytes[at..]) {
                Ok((c, len)) => match refused_class(c) {
                    None => {
                        at += len;
                        continue;
                    }
                    Some(class) => (Fault::Class(class), len),
                },
                Err(fault) => fault,
            };
            return Some(Bad {
                offset: at,
                good_bytes,
                fault,
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_agrees_with_the_standard_library() {
        for c in (0..=0x10_ffff).filter_map(char::from_u32) {
            let mut buffer = [0; 4];
            let bytes = c.encode_utf8(&mut buffer).as_bytes();
            assert_eq!(decode(bytes), Ok((c, bytes.len())));
        }
        // Every two-byte start, followed by good continuation bytes.
        for first in 0..=255 {
            for second in 0..=255 {
                let bytes = [first, second, 0x80, 0x80];
                let ours = decode(&bytes).ok();
                let theirs = (1..=4).find_map(|n| {
                    let s = std::str::from_utf8(&bytes[..n]).ok()?;
                    Some((s.chars().next()?, n))
                });
                assert_eq!(ours, theirs, "{bytes:02x?}");
            }
        }
    }

    #[test]
    fn a_fault_is_found_wherever_it_stands() {
        for at in 0..100 {
            for (bad, fault) in [
                (&b"\x1b"[..], Fault::Class("control")),
                (
                    b"\xff",
                    Fault::Byte {
                        index: 0,
                        byte: 0xff,
                    },
                ),
                (b"\xe2\x80\x8b", Fault::Class("format")),
            ] {
                for fill in ["x", "\n", "ж"] {
                    let mut bytes = fill.repeat(at).into_bytes();
                    let offset = bytes.len();
                    bytes.extend_from_slice(bad);
                    bytes.extend_from_slice(&[b'y'; 50]);
                    let found = find_bad(&bytes).map(|b| (b.offset, b.fault));
                    assert_eq!(found, Some((offset, fault)));
                }
            }
        }
        assert_eq!(find_bad("ж\tя\r\n ~".repeat(40).as_bytes()), None);
    }
}
