//! The serializer: manifests to text, wrapped and escaped as the reference does.

use memchr::{memchr, memchr2};

use crate::chars::find_bad;
use crate::manifest::Manifest;

/// How a value of many lines is announced. Both forms are read by everybody
/// since 2021; only the older one is read by all releases of the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Introducer {
    /// `name: \` at the end of the name's line.
    Old,
    /// `\` on a line of its own behind `name:`.
    New,
}

/// How manifests are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// The form of values with many lines.
    pub introducer: Introducer,
    /// Leaves lines as long as they are, instead of breaking them at 78 columns
    /// with backslashes.
    pub long_lines: bool,
}

impl Style {
    /// What is sent to others: the introducer that every release reads, lines
    /// broken as the reference breaks them.
    pub const fn wire() -> Self {
        Self {
            introducer: Introducer::Old,
            long_lines: false,
        }
    }
}

impl Default for Style {
    fn default() -> Self {
        Self::wire()
    }
}

/// Why manifests cannot be written. The texts are the reference's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SerializeError {
    /// A pair came before any format-version pair.
    #[error("format version pair expected")]
    VersionExpected,
    /// A format-version pair with another version than 1.
    #[error("unsupported format version {0}")]
    UnsupportedVersion(String),
    /// Something came after the end of the stream.
    #[error("serialization after eos")]
    AfterEnd,
    /// A field without a name, which would start or end a manifest.
    #[error("name is empty")]
    NameEmpty,
    /// The name would be read as a comment.
    #[error("name starts with '#'")]
    NameStartsWithHash,
    /// The name holds a space, tab or newline.
    #[error("name contains whitespace")]
    NameContainsWhitespace,
    /// The name holds the character that ends names.
    #[error("name contains ':'")]
    NameContainsColon,
    /// A name, value or comment with a character that no manifest may hold.
    #[error("invalid {part}: {detail}")]
    Invalid {
        /// `name`, `value` or `comment`.
        part: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// The same within a named field, as [`serialize`] reports it.
    #[error("cannot write manifest field `{name}`: {error}")]
    Field {
        /// The field's name.
        name: String,
        /// What is wrong with it.
        error: Box<SerializeError>,
    },
}

/// Writes the manifests as one stream: `: 1`, the pairs, `:`, and so on.
///
/// # Errors
/// A name that the format cannot hold, or a value with characters that no
/// manifest may hold (see [`crate::sanitize`]), with the field's name.
pub fn serialize(manifests: &[Manifest], style: Style) -> Result<String, SerializeError> {
    let values = manifests.iter().flat_map(|m| &m.pairs);
    let size: usize = values.map(|p| p.name.len() + p.value.len() + 8).sum();
    let mut serializer = Serializer::new(style);
    serializer.out.reserve(size + size / 16);
    for manifest in manifests {
        serializer.pair(b"", b"1")?;
        for pair in &manifest.pairs {
            let written = match pair.name.as_str() {
                "" => Err(SerializeError::NameEmpty),
                name => serializer.field(name.as_bytes(), pair.value.as_bytes()),
            };
            written.map_err(|error| SerializeError::Field {
                name: pair.name.clone(),
                error: Box::new(error),
            })?;
        }
        serializer.pair(b"", b"")?;
    }
    if manifests.is_empty() {
        return Ok(String::new());
    }
    serializer.pair(b"", b"")?;
    Ok(serializer.finish())
}

/// Where in a stream the serializer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between manifests.
    Start,
    /// Within one.
    Body,
    /// Behind the last one.
    End,
}

/// Writes a stream pair by pair, with comments where one wants them. Pairs with
/// an empty name are special, as in the reference: with a value they start a
/// manifest, without one they end it, and a second such one ends the stream.
#[derive(Debug)]
pub struct Serializer {
    style: Style,
    state: State,
    started: bool,
    out: String,
}

impl Serializer {
    /// A serializer at the start of a stream.
    pub fn new(style: Style) -> Self {
        Self {
            style,
            state: State::Start,
            started: false,
            out: String::new(),
        }
    }

    /// What has been written.
    pub fn finish(self) -> String {
        self.out
    }

    /// Writes a pair, or starts or ends a manifest (see the type).
    ///
    /// # Errors
    /// A pair out of order, or one that the format cannot hold. What was written
    /// before stays.
    pub fn pair(&mut self, name: &[u8], value: &[u8]) -> Result<(), SerializeError> {
        match (self.state, name, value) {
            (State::End, ..) => Err(SerializeError::AfterEnd),
            (State::Start, b"", b"") => {
                self.state = State::End;
                Ok(())
            }
            (State::Body, b"", b"") => {
                self.state = State::Start;
                Ok(())
            }
            (_, b"", b"1") => {
                self.out
                    .push_str(if self.started { ":\n" } else { ": 1\n" });
                self.started = true;
                self.state = State::Body;
                Ok(())
            }
            (_, b"", other) => Err(SerializeError::UnsupportedVersion(
                String::from_utf8_lossy(other).into_owned(),
            )),
            (State::Start, ..) => Err(SerializeError::VersionExpected),
            (State::Body, ..) => self.field(name, value),
        }
    }

    /// Writes a comment line. Newlines in it are not handled, as in the
    /// reference: do not pass any.
    ///
    /// # Errors
    /// A character that no manifest may hold.
    pub fn comment(&mut self, text: &[u8]) -> Result<(), SerializeError> {
        if self.state == State::End {
            return Err(SerializeError::AfterEnd);
        }
        let text = checked(text, "comment")?;
        self.out.push('#');
        if !text.is_empty() {
            self.out.push(' ');
            self.out.push_str(text);
        }
        self.out.push('\n');
        Ok(())
    }

    fn field(&mut self, name: &[u8], value: &[u8]) -> Result<(), SerializeError> {
        if name.first() == Some(&b'#') {
            return Err(SerializeError::NameStartsWithHash);
        }
        let name = checked_name(name)?;
        let value = checked(value, "value")?;
        self.out.push_str(name);
        self.out.push(':');
        if value.is_empty() {
            self.out.push('\n');
            return Ok(());
        }
        let column = name.chars().count() + 2;
        let blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
        let bytes = value.as_bytes();
        let many_lines = column > 39
            || memchr2(b'\n', b'\r', bytes).is_some()
            || blank(bytes.first())
            || blank(bytes.last());
        if !many_lines {
            self.out.push(' ');
            self.piece(value, column);
            self.out.push('\n');
            return Ok(());
        }
        self.out.push_str(match self.style.introducer {
            Introducer::Old => " \\\n",
            Introducer::New => "\n\\\n",
        });
        if memchr(b'\r', bytes).is_some() {
            let value = value.replace("\r\n", "\n").replace('\r', "\n");
            self.body(&value);
        } else {
            self.body(value);
        }
        self.out.push_str("\\\n");
        Ok(())
    }

    /// Writes a value line by line, each with its newline.
    fn body(&mut self, value: &str) {
        let mut rest = value;
        while let Some(newline) = memchr(b'\n', rest.as_bytes()) {
            self.piece(&rest[..newline], 0);
            self.out.push('\n');
            rest = &rest[newline + 1..];
        }
        self.piece(rest, 0);
        self.out.push('\n');
    }

    /// Writes a text without newlines; `column` code points are on its line.
    fn piece(&mut self, text: &str, column: usize) {
        if self.style.long_lines || column + text.len() <= HARD {
            self.out.push_str(text);
        } else {
            wrap(text, column, &mut self.out);
        }
        if text.ends_with('\\') {
            self.out.push('\\');
        }
    }
}

/// A line is broken before the code point in this column (from 0), whatever it is.
const HARD: usize = 77;
/// From here on a line is broken before a blank, if the next word does not fit.
const SOFT: usize = 57;

/// Writes `text`, broken into lines by backslashes as the reference does. Its
/// peculiarities are kept on purpose, so that both write the same bytes: the
/// next blank's distance and the last character are measured in bytes, columns
/// in code points, and no line is broken behind a backslash.
fn wrap(text: &str, mut column: usize, out: &mut String) {
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut after_backslash = false;
    while at < bytes.len() {
        // Nothing is ever broken at or before the soft limit.
        let plain = (SOFT + 1).saturating_sub(column).min(bytes.len() - at);
        if plain > 0 && bytes[at..at + plain].is_ascii() {
            out.push_str(&text[at..at + plain]);
            at += plain;
            column += plain;
            after_backslash = bytes[at - 1] == b'\\';
            continue;
        }
        if !after_backslash {
            let last = at + 1 == bytes.len();
            let hard = column > HARD || (column == HARD && !last);
            if hard || (column > SOFT && breaks_softly(&bytes[at..], column)) {
                out.push_str("\\\n");
                column = 0;
            }
        }
        let length = char_len(bytes[at]);
        out.push_str(&text[at..at + length]);
        after_backslash = bytes[at] == b'\\';
        at += length;
        column += 1;
    }
}

/// Whether the line is broken before this blank, because the word behind it
/// would go over the edge.
fn breaks_softly(rest: &[u8], column: usize) -> bool {
    if !matches!(rest[0], b' ' | b'\t') {
        return false;
    }
    match memchr2(b' ', b'\t', &rest[1..]) {
        Some(n) => column + n + 1 > HARD,
        None => column + rest.len() > HARD + 1,
    }
}

/// The length in bytes of the character that starts with this byte.
fn char_len(first: u8) -> usize {
    match first {
        0..=0x7f => 1,
        0x80..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xff => 4,
    }
}

fn checked<'a>(bytes: &'a [u8], part: &'static str) -> Result<&'a str, SerializeError> {
    match find_bad(bytes) {
        None => Ok(std::str::from_utf8(bytes).expect("find_bad has checked these bytes")),
        Some(bad) => Err(SerializeError::Invalid {
            part,
            detail: bad.detail_of_line(),
        }),
    }
}

/// Checks a name character by character: the first fault counts, of whichever kind.
fn checked_name(name: &[u8]) -> Result<&str, SerializeError> {
    let bad = find_bad(name);
    let good = &name[..bad.map_or(name.len(), |b| b.offset)];
    for b in good {
        match b {
            b':' => return Err(SerializeError::NameContainsColon),
            b' ' | b'\t' | b'\r' | b'\n' => return Err(SerializeError::NameContainsWhitespace),
            _ => {}
        }
    }
    checked(name, "name")
}
