//! Standard versions: `1.2.3`, `1.2.3-a.1`, `1.2.3-b.2.20240117093012.4f1c2a9be07d`.
//!
//! Toolchains have them, and the programs whose versions a bootstrap manifest
//! names. Numbers are decimal digits and nothing else (the original, by its use
//! of the C library, also lets blanks and signs pass before them).

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Why a text is not a version; the texts are the reference's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct VersionError(pub(crate) &'static str);

/// Which special forms [`StandardVersion::parse_with`] takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allow {
    /// `1.2.3-`: below everything of 1.2.3.
    pub earliest: bool,
    /// `0` and `0+1`: a package that exists elsewhere only.
    pub stub: bool,
}

/// The number of a stub.
const STUB: u64 = u64::MAX;
/// The snapshot number of the latest snapshot, written `z`.
const LATEST: u64 = u64::MAX;

/// A standard version. It compares by epoch, number, snapshot and revision; the
/// snapshot's id is ignored, so two versions that differ in it alone are equal.
#[derive(Debug, Clone)]
pub struct StandardVersion {
    epoch: u16,
    /// AAAAABBBBBCCCCCDDDE: see the crate's notes in [`StandardVersion::number`].
    number: u64,
    snapshot: u64,
    snapshot_id: String,
    revision: u16,
}

impl StandardVersion {
    /// Reads a version without special forms.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, VersionError> {
        Self::parse_with(text, Allow::default())
    }

    /// Reads a version; `allow` says which special forms are taken.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse_with(text: &str, allow: Allow) -> Result<Self, VersionError> {
        let version = Self::parse_digits(text, allow);
        match (&version, without_blanks(text)) {
            // What else is wrong is told first, as the original does, which skips these.
            (Err(_), Some(plain)) => Self::parse_digits(&plain, allow).and(version),
            _ => version,
        }
    }

    fn parse_digits(text: &str, allow: Allow) -> Result<Self, VersionError> {
        let mut rest = text.as_bytes();
        let zeros = text.bytes().take_while(|&b| b == b'0').count();
        if allow.stub && zeros > 0 && matches!(rest.get(zeros), None | Some(b'+')) {
            return Self::stub(&rest[zeros..]);
        }
        let mut epoch = 1;
        if let Some(after) = rest.strip_prefix(b"+") {
            rest = after;
            epoch = small(&mut rest, 1..=u64::from(u16::MAX), "invalid epoch")?;
            take(&mut rest, b'-', "'-' expected after epoch")?;
        }
        let major = number(&mut rest, 0..=99_999, "invalid major version")?;
        take(&mut rest, b'.', "'.' expected after major version")?;
        let minor = number(&mut rest, 0..=99_999, "invalid minor version")?;
        take(&mut rest, b'.', "'.' expected after minor version")?;
        let patch = number(&mut rest, 0..=99_999, "invalid patch version")?;
        if major == 0 && minor == 0 && patch == 0 {
            return Err(VersionError("0.0.0 version"));
        }
        let base = (major * 100_000 + minor) * 100_000 + patch;
        let mut version = Self {
            epoch,
            number: base * 10_000,
            snapshot: 0,
            snapshot_id: String::new(),
            revision: 0,
        };
        if let Some(after) = rest.strip_prefix(b"-") {
            rest = after;
            if rest.is_empty() && allow.earliest {
                version.number = (base - 1) * 10_000 + 1;
                return Ok(version);
            }
            // To the reference a NUL ends the text, and then something follows it.
            if rest.first() == Some(&0) && allow.earliest {
                return Err(VersionError("junk after version"));
            }
            version.take_pre_release(&mut rest, base)?;
        }
        if let Some(after) = rest.strip_prefix(b"+") {
            rest = after;
            version.revision = revision(&mut rest)?;
        }
        if !rest.is_empty() {
            return Err(VersionError("junk after version"));
        }
        Ok(version)
    }

    /// A stub with the revision that `rest` holds, if any.
    fn stub(rest: &[u8]) -> Result<Self, VersionError> {
        let mut version = Self {
            epoch: 0,
            number: STUB,
            snapshot: 0,
            snapshot_id: String::new(),
            revision: 0,
        };
        if let Some(mut rest) = rest.strip_prefix(b"+") {
            version.revision = revision(&mut rest)?;
            if !rest.is_empty() {
                return Err(VersionError("junk after version"));
            }
        }
        Ok(version)
    }

    /// Reads `a.1`, `b.2.z` and the like behind the `-`.
    fn take_pre_release(&mut self, rest: &mut &[u8], base: u64) -> Result<(), VersionError> {
        let letter = match rest.first() {
            Some(b'a') => 0,
            Some(b'b') => 500,
            _ => return Err(VersionError("'a' or 'b' expected in pre-release")),
        };
        *rest = &rest[1..];
        take(rest, b'.', "'.' expected after pre-release letter")?;
        let pre = number(rest, 0..=499, "invalid pre-release")?;
        self.number = (base - 1) * 10_000 + (letter + pre) * 10;
        let Some(after) = rest.strip_prefix(b".") else {
            return match pre {
                0 => Err(VersionError("invalid final pre-release")),
                _ => Ok(()),
            };
        };
        *rest = after;
        self.number += 1;
        if let Some(after) = rest.strip_prefix(b"z") {
            *rest = after;
            self.snapshot = LATEST;
            return Ok(());
        }
        self.snapshot = number(rest, 1..=LATEST - 1, "invalid snapshot number")?;
        if let Some(after) = rest.strip_prefix(b".") {
            let length = after
                .iter()
                .take_while(|b| b.is_ascii_alphanumeric())
                .count();
            if !(1..=16).contains(&length) {
                return Err(VersionError("invalid snapshot id"));
            }
            self.snapshot_id = after[..length].iter().map(|b| char::from(*b)).collect();
            *rest = &after[length..];
        }
        Ok(())
    }

    /// The epoch: 1 unless given, 0 for a stub.
    pub fn epoch(&self) -> u16 {
        self.epoch
    }

    /// The version as one number AAAAABBBBBCCCCCDDDE: major, minor and patch in
    /// five digits each, DDD the alpha's number or 500 plus the beta's, E 1 for
    /// snapshots and the earliest version. Where DDDE is not 0, AAAAABBBBBCCCCC
    /// is less by one, so that pre-releases sort below their release. A stub
    /// has the largest number of 64 bits.
    pub fn number(&self) -> u64 {
        self.number
    }

    fn base(&self) -> u64 {
        if self.is_stub() {
            return 0;
        }
        self.number / 10_000 + u64::from(!self.number.is_multiple_of(10_000))
    }

    /// The first number.
    pub fn major(&self) -> u64 {
        self.base() / 10_000_000_000
    }

    /// The second number.
    pub fn minor(&self) -> u64 {
        self.base() / 100_000 % 100_000
    }

    /// The third number.
    pub fn patch(&self) -> u64 {
        self.base() % 100_000
    }

    /// DDD of the number: the alpha's number, or 500 plus the beta's. Nothing
    /// for releases and stubs; 0 for the earliest version.
    pub fn pre_release(&self) -> Option<u64> {
        (!self.is_stub() && !self.is_release()).then(|| self.pre())
    }

    fn pre(&self) -> u64 {
        if self.is_stub() {
            0
        } else {
            self.number / 10 % 1000
        }
    }

    /// The snapshot's number, 0 for what is none and the largest for `z`.
    pub fn snapshot_number(&self) -> u64 {
        self.snapshot
    }

    /// The snapshot's id (an abbreviated commit, say), or nothing.
    pub fn snapshot_id(&self) -> &str {
        &self.snapshot_id
    }

    /// The revision of the packaging, 0 when there is none.
    pub fn revision(&self) -> u16 {
        self.revision
    }

    /// `0`, with or without a revision.
    pub fn is_stub(&self) -> bool {
        self.number == STUB
    }

    /// `1.2.3-`.
    pub fn is_earliest(&self) -> bool {
        !self.is_stub() && self.number % 10_000 == 1 && self.snapshot == 0
    }

    /// A snapshot of work in progress.
    pub fn is_snapshot(&self) -> bool {
        self.snapshot != 0
    }

    /// The snapshot `z`, after all others of its pre-release.
    pub fn is_latest_snapshot(&self) -> bool {
        self.snapshot == LATEST
    }

    /// Neither a pre-release nor a snapshot, nor a stub.
    pub fn is_release(&self) -> bool {
        !self.is_stub() && self.number.is_multiple_of(10_000)
    }

    /// Neither a snapshot nor a stub.
    pub fn is_final(&self) -> bool {
        !self.is_snapshot() && !self.is_stub()
    }

    /// Major, minor and patch alone; `0` for a stub.
    pub fn base_text(&self) -> String {
        if self.is_stub() {
            return "0".to_owned();
        }
        format!("{}.{}.{}", self.major(), self.minor(), self.patch())
    }

    /// The pre-release alone (`a.1`), nothing for a release.
    pub fn pre_release_text(&self) -> String {
        if self.is_stub() || self.is_release() || self.is_earliest() {
            return String::new();
        }
        match self.pre() {
            pre @ 0..500 => format!("a.{pre}"),
            pre => format!("b.{}", pre - 500),
        }
    }

    /// The snapshot alone (`20240117093012.4f1c2a9be07d` or `z`), if it is one.
    pub fn snapshot_text(&self) -> String {
        match (self.snapshot, self.snapshot_id.as_str()) {
            (0, _) => String::new(),
            (LATEST, _) => "z".to_owned(),
            (number, "") => number.to_string(),
            (number, id) => format!("{number}.{id}"),
        }
    }

    /// The version without epoch and revision.
    pub fn project_text(&self) -> String {
        self.project_with(&self.snapshot_text())
    }

    /// The same, with only the snapshot's id in place of number and id where
    /// there is one.
    pub fn project_id_text(&self) -> String {
        match self.snapshot_id.as_str() {
            "" => self.project_text(),
            id => self.project_with(id),
        }
    }

    fn project_with(&self, snapshot: &str) -> String {
        let mut text = self.base_text();
        if self.is_stub() || self.is_release() {
            return text;
        }
        text.push('-');
        text.push_str(&self.pre_release_text());
        if self.is_snapshot() {
            text.push('.');
            text.push_str(snapshot);
        }
        text
    }

    /// Orders as [`Ord`] does, but as if neither had a revision.
    pub fn cmp_ignore_revision(&self, other: &Self) -> Ordering {
        let key = |v: &Self| (v.epoch, v.number, v.snapshot);
        key(self).cmp(&key(other))
    }
}

/// The canonical text: the epoch only where it is not 1, no leading zeros.
impl fmt::Display for StandardVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.epoch != 1 && !self.is_stub() {
            write!(f, "+{}-", self.epoch)?;
        }
        f.write_str(&self.project_text())?;
        if self.revision != 0 {
            write!(f, "+{}", self.revision)?;
        }
        Ok(())
    }
}

impl FromStr for StandardVersion {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        Self::parse(text)
    }
}

impl Ord for StandardVersion {
    fn cmp(&self, other: &Self) -> Ordering {
        self.cmp_ignore_revision(other)
            .then(self.revision.cmp(&other.revision))
    }
}

impl PartialOrd for StandardVersion {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for StandardVersion {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for StandardVersion {}

/// `text` without the blanks before its numbers and the sign that may follow them; nothing where there
/// are none, or where the sign changes a number.
fn without_blanks(text: &str) -> Option<String> {
    let blank = |c: char| matches!(c, ' ' | '\t'..='\r');
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(blank) {
        plain.push_str(&rest[..at]);
        rest = rest[at..].trim_start_matches(blank);
        if let Some(after) = rest.strip_prefix(['+', '-']) {
            let digits = after.bytes().take_while(u8::is_ascii_digit).count();
            if rest.starts_with('-') && !after[..digits].trim_start_matches('0').is_empty() {
                return None;
            }
            rest = after;
        }
        if !rest.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
    }
    plain.push_str(rest);
    (plain != text).then_some(plain)
}

fn take(rest: &mut &[u8], byte: u8, error: &'static str) -> Result<(), VersionError> {
    match rest.split_first() {
        Some((&b, after)) if b == byte => {
            *rest = after;
            Ok(())
        }
        _ => Err(VersionError(error)),
    }
}

/// Takes decimal digits whose value is in `range`.
fn number(
    rest: &mut &[u8],
    range: std::ops::RangeInclusive<u64>,
    error: &'static str,
) -> Result<u64, VersionError> {
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let (number, after) = rest.split_at(digits);
    *rest = after;
    let value = number.iter().try_fold(0_u64, |value, digit| {
        value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    });
    match value {
        Some(value) if digits > 0 && range.contains(&value) => Ok(value),
        _ => Err(VersionError(error)),
    }
}

fn small(
    rest: &mut &[u8],
    range: std::ops::RangeInclusive<u64>,
    error: &'static str,
) -> Result<u16, VersionError> {
    let value = number(rest, range, error)?;
    u16::try_from(value).map_err(|_| VersionError(error))
}

fn revision(rest: &mut &[u8]) -> Result<u16, VersionError> {
    small(rest, 1..=u64::from(u16::MAX), "invalid revision")
}
