//! The parser: bytes to manifests, with the place of every pair.
//!
//! It behaves as the reference does, to the text and column of its errors. It
//! is quick because the bytes are first searched, many at a time, for the first
//! character that may not stand in a manifest; what comes before it is then
//! read by lines, and values of many lines are copied in runs between the few
//! places where a backslash ends a line.

use std::borrow::Cow;
use std::ops::Range;

use memchr::{memchr, memchr_iter, memmem, memrchr};

use crate::chars::{Bad, find_bad};
use crate::error::{ParseError, Position};
use crate::manifest::{Manifest, Pair};

/// Reads a stream of manifests.
///
/// An empty stream (or one of blanks and comments) holds no manifests; `: 1`
/// alone is one manifest without pairs. The format-version pairs are checked
/// and left out.
///
/// # Errors
/// The first thing that is not as the format demands, with its line and column.
pub fn parse(input: &[u8]) -> Result<Vec<Manifest>, ParseError> {
    let source = Source::of(input);
    let stream = source.read(usize::MAX)?;
    let mut pairs = stream.pairs.into_iter();
    let manifest = |read: ReadManifest| Manifest {
        position: read.position,
        pairs: pairs
            .by_ref()
            .take(read.pairs.len())
            .map(ReadPair::owned)
            .collect(),
        end: read.end,
    };
    Ok(stream.manifests.into_iter().map(manifest).collect())
}

/// A pair as it stands in the source: whoever takes a few of many values copies no other.
pub(crate) struct ReadPair<'a> {
    pub(crate) name: &'a str,
    pub(crate) value: Cow<'a, str>,
    pub(crate) name_position: Position,
    pub(crate) value_position: Position,
}

impl ReadPair<'_> {
    fn owned(self) -> Pair {
        Pair {
            name: self.name.to_owned(),
            value: self.value.into_owned(),
            name_position: self.name_position,
            value_position: self.value_position,
        }
    }
}

/// A manifest of a stream.
pub(crate) struct ReadManifest {
    pub(crate) position: Position,
    /// Which of the stream's pairs are its own.
    pub(crate) pairs: Range<usize>,
    pub(crate) end: Position,
}

/// A stream of manifests that has been read.
pub(crate) struct ReadStream<'a> {
    pub(crate) pairs: Vec<ReadPair<'a>>,
    pub(crate) manifests: Vec<ReadManifest>,
    pub(crate) end: Position,
}

/// What is read.
pub(crate) struct Source<'a> {
    /// All characters before the first bad one, with LF for every newline.
    text: Cow<'a, str>,
    /// The character that stands behind `text`, if the stream goes on there.
    bad: Option<Bad>,
}

impl<'a> Source<'a> {
    pub(crate) fn of(input: &'a [u8]) -> Self {
        let bad = find_bad(input);
        let good = bad.map_or(input, |b| &input[..b.offset]);
        let text = std::str::from_utf8(good).expect("find_bad has checked these bytes");
        Self {
            text: one_newline(text),
            bad,
        }
    }

    /// As [`parse`]. More than `max_pairs` pairs, those of the format version included, are an error: a pair takes much more
    /// memory than the two bytes that it has at least in the text.
    pub(crate) fn read(&self, max_pairs: usize) -> Result<ReadStream<'_>, ParseError> {
        let mut reader = Reader {
            text: &self.text,
            bytes: self.text.as_bytes(),
            bad: self.bad,
            at: 0,
            line: 1,
            line_start: 0,
        };
        let mut pairs = Vec::new();
        let mut manifests: Vec<ReadManifest> = Vec::new();
        let mut pairs_left = max_pairs;
        while let Some(pair) = reader.pair()? {
            pairs_left = pairs_left.checked_sub(1).ok_or_else(|| {
                let what = format!("more than {max_pairs} fields");
                ParseError::at(pair.name_position, what)
            })?;
            if !pair.name.is_empty() {
                let Some(manifest) = manifests.last_mut() else {
                    let what = "format version pair expected";
                    return Err(ParseError::at(pair.name_position, what));
                };
                pairs.push(pair);
                manifest.pairs.end = pairs.len();
                continue;
            }
            match &*pair.value {
                "1" => {}
                "" if !manifests.is_empty() => {}
                "" => {
                    let what = "format version value expected";
                    return Err(ParseError::at(pair.value_position, what));
                }
                other => {
                    let what = format!("unsupported format version {other}");
                    return Err(ParseError::at(pair.value_position, what));
                }
            }
            if let Some(previous) = manifests.last_mut() {
                previous.end = pair.name_position;
            }
            manifests.push(ReadManifest {
                position: pair.name_position,
                pairs: pairs.len()..pairs.len(),
                end: pair.name_position,
            });
        }
        let end = reader.here();
        if let Some(last) = manifests.last_mut() {
            last.end = end;
        }
        Ok(ReadStream {
            pairs,
            manifests,
            end,
        })
    }
}

/// Each run of CR, with a LF behind it or not, becomes one LF.
pub(crate) fn one_newline(text: &str) -> Cow<'_, str> {
    if memchr(b'\r', text.as_bytes()).is_none() {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(cr) = memchr(b'\r', rest.as_bytes()) {
        out.push_str(&rest[..cr]);
        out.push('\n');
        rest = rest[cr..].trim_start_matches('\r');
        rest = rest.strip_prefix('\n').unwrap_or(rest);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// What stands at the reading place.
#[derive(PartialEq, Eq)]
enum Next {
    Byte(u8),
    End,
    /// A character that is refused, but whose first byte is fair.
    BadLater,
}

struct Reader<'a> {
    text: &'a str,
    bytes: &'a [u8],
    bad: Option<Bad>,
    at: usize,
    line: u64,
    line_start: usize,
}

impl<'a> Reader<'a> {
    fn here(&self) -> Position {
        let columns = self.text[self.line_start..self.at].chars().count();
        Position::new(self.line, columns as u64 + 1)
    }

    /// Looks at the next character. A first byte that cannot be one is an error
    /// whose text starts with `prefix`.
    fn peek(&self, prefix: &str) -> Result<Next, ParseError> {
        match (self.bytes.get(self.at), self.bad) {
            (Some(&b), _) => Ok(Next::Byte(b)),
            (None, None) => Ok(Next::End),
            (None, Some(bad)) if bad.shows_at_first_byte() => Err(self.bad_character(prefix)),
            (None, Some(_)) => Ok(Next::BadLater),
        }
    }

    /// The error for the bad character behind the text.
    fn bad_character(&self, prefix: &str) -> ParseError {
        let newlines = memchr_iter(b'\n', self.bytes).count() as u64;
        let start = memrchr(b'\n', self.bytes).map_or(0, |n| n + 1);
        let position = Position::new(newlines + 1, self.text[start..].chars().count() as u64 + 1);
        let what = match self.bad {
            Some(bad) => format!("{prefix}: {}", bad.fault),
            None => prefix.to_owned(),
        };
        ParseError::at(position, what)
    }

    /// Goes past the newline at the reading place.
    fn newline(&mut self) {
        self.at += 1;
        self.line += 1;
        self.line_start = self.at;
    }

    fn skip_blanks(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t')) {
            self.at += 1;
        }
    }

    /// Skips blanks, blank lines and comments.
    fn skip_between_pairs(&mut self) -> Result<(), ParseError> {
        loop {
            self.skip_blanks();
            match self.bytes.get(self.at) {
                Some(b'\n') => self.newline(),
                Some(b'#') => match memchr(b'\n', &self.bytes[self.at..]) {
                    Some(length) => {
                        self.at += length;
                        self.newline();
                    }
                    None if self.bad.is_some() => {
                        return Err(self.bad_character("invalid manifest"));
                    }
                    None => self.at = self.bytes.len(),
                },
                _ => return Ok(()),
            }
        }
    }

    /// The next pair, format-version pairs included, or `None` at the end.
    fn pair(&mut self) -> Result<Option<ReadPair<'a>>, ParseError> {
        const MANIFEST: &str = "invalid manifest";
        self.skip_between_pairs()?;
        if self.peek(MANIFEST)? == Next::End {
            return Ok(None);
        }
        let name_position = self.here();
        let start = self.at;
        let rest = &self.bytes[start..];
        let stop = rest
            .iter()
            .position(|b| matches!(b, b':' | b' ' | b'\t' | b'\n'));
        self.at += stop.unwrap_or(rest.len());
        if stop.is_none() && self.bad.is_some() {
            return Err(self.bad_character("invalid manifest name"));
        }
        let name = &self.text[start..self.at];
        self.skip_blanks();
        if self.peek(MANIFEST)? != Next::Byte(b':') {
            return Err(ParseError::at(self.here(), "':' expected after name"));
        }
        self.at += 1;
        self.skip_blanks();
        let next = self.peek(MANIFEST)?;
        let (value, value_position) = self.value(&next)?;
        Ok(Some(ReadPair {
            name,
            value,
            name_position,
            value_position,
        }))
    }

    /// The value, from its first character that is not blank to its newline.
    fn value(&mut self, next: &Next) -> Result<(Cow<'a, str>, Position), ParseError> {
        let position = self.here();
        match next {
            Next::End => Ok((Cow::default(), position)),
            // The newer introducer of a value of many lines: a line of its own.
            Next::Byte(b'\n') => {
                self.newline();
                if self.introduces_lines()? {
                    let body = self.here();
                    return Ok((self.lines()?.into(), body));
                }
                Ok((Cow::default(), position))
            }
            Next::Byte(b'\\') if self.introduces_lines()? => {
                let body = self.here();
                Ok((self.lines()?.into(), body))
            }
            Next::Byte(_) | Next::BadLater => Ok((self.simple()?, position)),
        }
    }

    /// Takes a backslash that ends its line or the stream; leaves anything else.
    fn introduces_lines(&mut self) -> Result<bool, ParseError> {
        if self.peek(VALUE)? != Next::Byte(b'\\') {
            return Ok(false);
        }
        self.at += 1;
        match self.peek(VALUE)? {
            Next::Byte(b'\n') => self.newline(),
            Next::End => {}
            Next::Byte(_) | Next::BadLater => {
                self.at -= 1;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The rest of the line, without its newline, and whether it has one.
    fn rest_of_line(&self) -> Result<(&'a str, bool), ParseError> {
        match memchr(b'\n', &self.bytes[self.at..]) {
            Some(length) => Ok((&self.text[self.at..self.at + length], true)),
            None if self.bad.is_some() => Err(self.bad_character(VALUE)),
            None => Ok((&self.text[self.at..], false)),
        }
    }

    /// A value on one line, or on several joined by backslashes.
    fn simple(&mut self) -> Result<Cow<'a, str>, ParseError> {
        let blanks = [' ', '\t'];
        let (line, has_newline) = self.rest_of_line()?;
        if trailing_backslashes(line) == 0 {
            self.at += line.len();
            if has_newline {
                self.newline();
            }
            return Ok(line.trim_end_matches(blanks).into());
        }
        let mut value = String::new();
        loop {
            let (line, has_newline) = self.rest_of_line()?;
            let continued = match trailing_backslashes(line) {
                0 => {
                    value.push_str(line);
                    false
                }
                n => {
                    value.push_str(&line[..line.len() - 1]);
                    n == 1
                }
            };
            self.at += line.len();
            if !has_newline {
                break;
            }
            self.newline();
            if !continued {
                break;
            }
            // A line of one backslash behind a continuation is a newline in the
            // value. Behind that one, such a line is a continuation again.
            let (line, has_newline) = self.rest_of_line()?;
            if line == "\\" {
                value.push('\n');
                self.at += 1;
                if has_newline {
                    self.newline();
                }
            }
        }
        value.truncate(value.trim_end_matches(blanks).len());
        Ok(value.into())
    }

    /// The body of a value of many lines, its last line (one backslash) included.
    fn lines(&mut self) -> Result<String, ParseError> {
        let mut value = String::new();
        // Whether the value ends with a newline that a terminator would drop.
        let mut droppable = false;
        loop {
            // Everything up to the next line that a backslash ends is data.
            let rest = &self.bytes[self.at..];
            let Some(backslash) = memmem::find(rest, b"\\\n") else {
                return self.last_lines(value, droppable);
            };
            let line_start = memrchr(b'\n', &rest[..backslash]).map_or(0, |n| n + 1);
            if line_start > 0 {
                value.push_str(&self.text[self.at..self.at + line_start]);
                droppable = true;
                self.line += memchr_iter(b'\n', &rest[..line_start]).count() as u64;
            }
            let line = &self.text[self.at + line_start..=self.at + backslash];
            self.at += line_start + line.len();
            self.newline();
            if line == "\\" {
                if droppable {
                    value.pop();
                }
                return Ok(value);
            }
            value.push_str(&line[..line.len() - 1]);
            droppable = trailing_backslashes(line) > 1;
            if droppable {
                value.push('\n');
            }
        }
    }

    /// The end of a body that the end of the stream ends.
    fn last_lines(&mut self, mut value: String, droppable: bool) -> Result<String, ParseError> {
        if self.bad.is_some() {
            return Err(self.bad_character(VALUE));
        }
        let rest = &self.text[self.at..];
        let newline = memrchr(b'\n', rest.as_bytes());
        let last = &rest[newline.map_or(0, |n| n + 1)..];
        self.line += memchr_iter(b'\n', rest.as_bytes()).count() as u64;
        if let Some(newline) = newline {
            self.line_start = self.at + newline + 1;
        }
        self.at = self.bytes.len();
        value.push_str(&rest[..rest.len() - last.len()]);
        if last == "\\" {
            if droppable || newline.is_some() {
                value.pop();
            }
        } else {
            value.push_str(last.strip_suffix('\\').unwrap_or(last));
        }
        Ok(value)
    }
}

const VALUE: &str = "invalid manifest value";

fn trailing_backslashes(line: &str) -> usize {
    line.len() - line.trim_end_matches('\\').len()
}
