//! Taking typed values out of a manifest, and putting them into one.

use std::fmt::Display;
use std::str::FromStr;

use crate::error::{ManifestError, ParseError, Position};
use crate::manifest::{Manifest, Pair};
use crate::parser::{ReadManifest, ReadPair, Source};

/// A stream of manifests that a typed manifest is read from, front to back.
pub(super) struct Stream<'a> {
    pairs: &'a [ReadPair<'a>],
    manifests: std::slice::Iter<'a, ReadManifest>,
    end: Position,
}

impl<'a> Stream<'a> {
    /// Reads `input` as a whole with `read`, which must use up all manifests.
    pub(super) fn read<T>(
        input: &[u8],
        source_name: &str,
        read: impl FnOnce(&mut Stream<'_>) -> Result<T, ParseError>,
    ) -> Result<T, ManifestError> {
        let source = Source::of(input);
        let all = || {
            let all = source.read(MAX_PAIRS)?;
            let mut stream = Stream {
                pairs: &all.pairs,
                manifests: all.manifests.iter(),
                end: all.end,
            };
            let value = read(&mut stream)?;
            match stream.manifests.next() {
                None => Ok(value),
                Some(more) => Err(ParseError::at(
                    more.position,
                    "unexpected manifest behind the last one",
                )),
            }
        };
        all().map_err(|error: ParseError| error.in_source(source_name))
    }

    /// The next manifest, which the stream must have. `what` names it.
    pub(super) fn expect(&mut self, what: &'static str) -> Result<Fields<'a>, ParseError> {
        let end = self.end;
        self.next(what)
            .ok_or_else(|| ParseError::at(end, format!("{what} manifest expected")))
    }

    /// The next manifest, if there is one more.
    pub(super) fn next(&mut self, what: &'static str) -> Option<Fields<'a>> {
        let manifest = self.manifests.next()?;
        let pairs = &self.pairs[manifest.pairs.clone()];
        Some(Fields::new(pairs, manifest.end, what))
    }
}

/// More fields than any of these manifests has. Guests and strangers write them,
/// and a field in memory is many times larger than in the text.
const MAX_PAIRS: usize = 100_000;

/// One manifest whose fields are taken by name. What nobody takes is unknown,
/// and ignored.
pub(super) struct Fields<'a> {
    what: &'static str,
    end: Position,
    pairs: &'a [ReadPair<'a>],
    /// Where each field stands: by name, and in order where there are several of one.
    places: Vec<usize>,
}

/// A value with its place, for errors about it.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    what: &'static str,
    pair: &'a ReadPair<'a>,
}

impl<'a> Fields<'a> {
    fn new(pairs: &'a [ReadPair<'a>], end: Position, what: &'static str) -> Self {
        let mut places: Vec<usize> = (0..pairs.len()).collect();
        places.sort_by_key(|&i| pairs[i].name);
        Self {
            what,
            end,
            pairs,
            places,
        }
    }

    /// The only field of this name, if there is one.
    pub(super) fn optional(&self, name: &str) -> Result<Option<Field<'_>>, ParseError> {
        let places = self.places(name);
        if let [first, second, ..] = places[..] {
            return Err(ParseError::at(
                self.pairs[second].name_position,
                format!(
                    "{} field `{}` occurs more than once (first in line {})",
                    self.what,
                    short(name),
                    self.pairs[first].name_position.line
                ),
            ));
        }
        Ok(places.first().map(|&i| self.field(i)))
    }

    /// The only field of this name, which must be there.
    pub(super) fn required(&self, name: &str) -> Result<Field<'_>, ParseError> {
        self.optional(name)?.ok_or_else(|| self.missing(name))
    }

    /// The only field of one of two names, the same thing in two eras.
    pub(super) fn either(&self, later: &str, older: &str) -> Result<Option<Field<'_>>, ParseError> {
        match (self.optional(later)?, self.optional(older)?) {
            (Some(_), Some(field)) => Err(field.misplaced(format!(
                "means the same as `{later}`: only one may be given"
            ))),
            (later, older) => Ok(later.or(older)),
        }
    }

    /// All fields of this name in order.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = Field<'_>> {
        self.places(name).iter().map(|&i| self.field(i))
    }

    fn places(&self, name: &str) -> &[usize] {
        let name_of = |&i: &usize| self.pairs[i].name;
        let first = self.places.partition_point(|i| name_of(i) < name);
        let behind = self.places[first..].partition_point(|i| name_of(i) == name);
        &self.places[first..first + behind]
    }

    /// All fields whose name is not empty before `suffix`, with that part.
    pub(super) fn with_suffix<'f>(
        &'f self,
        suffix: &'f str,
    ) -> impl Iterator<Item = (&'f str, Field<'f>)> {
        self.fields().filter_map(move |field| {
            let stem = field.name().strip_suffix(suffix)?;
            (!stem.is_empty()).then_some((stem, field))
        })
    }

    /// All fields in order.
    pub(super) fn fields(&self) -> impl Iterator<Item = Field<'_>> {
        (0..self.pairs.len()).map(|i| self.field(i))
    }

    /// The error for a field that is not there: it stands at the manifest's end.
    pub(super) fn missing(&self, name: &str) -> ParseError {
        ParseError::at(
            self.end,
            format!("{} has no required field `{name}`", self.what),
        )
    }

    fn field(&self, index: usize) -> Field<'_> {
        Field {
            what: self.what,
            pair: &self.pairs[index],
        }
    }
}

impl<'a> Field<'a> {
    pub(super) fn name(self) -> &'a str {
        self.pair.name
    }

    pub(super) fn text(self) -> &'a str {
        &self.pair.value
    }

    pub(super) fn owned(self) -> String {
        self.text().to_owned()
    }

    /// The text, which must not be empty.
    pub(super) fn filled(self) -> Result<String, ParseError> {
        if self.text().is_empty() {
            return Err(self.invalid("the value is empty"));
        }
        Ok(self.owned())
    }

    /// The text, which must not be empty, of at most `limit` bytes.
    pub(super) fn word(self, limit: usize) -> Result<String, ParseError> {
        if self.text().len() > limit {
            return Err(self.invalid(format!("the value has more than {limit} bytes")));
        }
        self.filled()
    }

    /// The text as a value of another type.
    pub(super) fn parsed<T: FromStr<Err: Display>>(self) -> Result<T, ParseError> {
        self.text().parse().map_err(|e| self.invalid(e))
    }

    /// The text as a number of decimal digits.
    pub(super) fn number(self) -> Result<u64, ParseError> {
        let digits = self.text().bytes().all(|b| b.is_ascii_digit());
        match self.text().parse() {
            Ok(number) if digits => Ok(number),
            _ => Err(self.invalid("not an unsigned number")),
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(self) -> Result<bool, ParseError> {
        match self.text() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(self.invalid("neither `true` nor `false`")),
        }
    }

    /// 64 lower-case hexadecimal digits.
    pub(super) fn hex64(self) -> Result<String, ParseError> {
        if !is_hex64(self.text()) {
            return Err(self.invalid("not 64 lower-case hexadecimal digits"));
        }
        Ok(self.owned())
    }

    /// The error for a value that is not what it should be.
    pub(super) fn invalid(self, why: impl Display) -> ParseError {
        let (name, why) = (short(self.name()), why.to_string());
        let what = format!("invalid {} field `{name}`: {}", self.what, short(&why));
        ParseError::at(self.pair.value_position, what)
    }

    /// An error about the field itself, which stands at its name: that it is
    /// there, together with something else (`with an empty session`).
    pub(super) fn misplaced(self, why: impl Display) -> ParseError {
        let what = format!("{} field `{}` {why}", self.what, short(self.name()));
        ParseError::at(self.pair.name_position, what)
    }
}

/// The text as it may stand in an error: in one line, and not the megabytes that
/// a broken or hostile end can put where a word is expected.
fn short(text: &str) -> String {
    const MAX: usize = 200;
    let one_line = |c| if matches!(c, '\n' | '\t') { ' ' } else { c };
    let mut short: String = text.chars().take(MAX).map(one_line).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}

/// Whether a text is 64 lower-case hexadecimal digits: a SHA-256, a challenge.
pub(super) fn is_hex64(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A manifest under construction.
#[derive(Default)]
pub(super) struct Builder {
    pairs: Vec<Pair>,
}

impl Builder {
    pub(super) fn put(
        &mut self,
        name: impl Into<String>,
        value: &(impl ToString + ?Sized),
    ) -> &mut Self {
        self.pairs.push(Pair::new(name, value.to_string()));
        self
    }

    pub(super) fn put_some(&mut self, name: &str, value: Option<&impl ToString>) -> &mut Self {
        if let Some(value) = value {
            self.put(name, value);
        }
        self
    }

    pub(super) fn put_all(&mut self, name: &str, values: &[String]) -> &mut Self {
        for value in values {
            self.put(name, value);
        }
        self
    }

    pub(super) fn manifest(&mut self) -> Manifest {
        Manifest::new(std::mem::take(&mut self.pairs))
    }
}
