//! Package versions: `1.2.3`, `1.2.3-beta.2+1`, `+2-2024c`. Any package has one;
//! their order is that of the original's package manager.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Why a text is not a package version; the texts are the reference's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PackageVersionError(String);

impl PackageVersionError {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// How [`PackageVersion::parse_with`] reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PackageVersionOptions {
    /// Keeps revision 0 apart from none (`1` < `1+0`) instead of folding them.
    pub keep_zero_revision: bool,
    /// Takes an iteration (`1+2#3`).
    pub allow_iteration: bool,
}

/// A package version. It compares by epoch, canonical upstream, canonical
/// release, revision and iteration, so `1`, `1.0` and `01` are equal.
#[derive(Debug, Clone)]
pub struct PackageVersion {
    epoch: u16,
    upstream: String,
    release: Option<String>,
    revision: Option<u16>,
    iteration: u32,
    canonical_upstream: String,
    canonical_release: String,
}

/// Digits in a component of digits alone; the canonical form pads to as many.
const DIGITS: usize = 16;

impl PackageVersion {
    /// Reads a version. Revision 0 is none; there is no iteration.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, PackageVersionError> {
        Self::parse_with(text, PackageVersionOptions::default())
    }

    /// Reads a version as `options` say.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse_with(
        text: &str,
        options: PackageVersionOptions,
    ) -> Result<Self, PackageVersionError> {
        let parts = Parts::scan(text, options.allow_iteration)?;
        let epoch = parts.epoch.map(|t| u16_of(t, "epoch")).transpose()?;
        let revision = parts.revision.map(|t| u16_of(t, "revision")).transpose()?;
        let revision = revision.filter(|&r| r != 0 || options.keep_zero_revision);
        let iteration = parts.iteration.map(iteration_of).transpose()?;
        let canonical_upstream = canonical(parts.upstream)?;
        let canonical_release = match parts.release {
            None => "~".to_owned(),
            Some("") => String::new(),
            Some(release) => canonical(release)?,
        };
        let is_stub = canonical_upstream.is_empty() && parts.release.is_none();
        let epoch = epoch.unwrap_or(if is_stub { 0 } else { 1 });
        if epoch == 0 && canonical_upstream.is_empty() && canonical_release.is_empty() {
            return Err(PackageVersionError::new("empty version"));
        }
        Ok(Self {
            epoch,
            upstream: parts.upstream.to_owned(),
            release: parts.release.map(str::to_owned),
            revision,
            iteration: iteration.unwrap_or(0),
            canonical_upstream,
            canonical_release,
        })
    }

    /// The epoch; unless given it is 1, and 0 for a stub (`0`, `0+1`).
    pub fn epoch(&self) -> u16 {
        self.epoch
    }

    /// The version of the software itself, as written.
    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    /// The pre-release, as written; empty for the earliest version (`1.2.3-`).
    pub fn release(&self) -> Option<&str> {
        self.release.as_deref()
    }

    /// The revision of the packaging.
    pub fn revision(&self) -> Option<u16> {
        self.revision
    }

    /// The iteration, 0 when there is none.
    pub fn iteration(&self) -> u32 {
        self.iteration
    }

    /// The upstream version as it is compared.
    pub fn canonical_upstream(&self) -> &str {
        &self.canonical_upstream
    }

    /// The release as it is compared: `~`, after everything, where there is none.
    pub fn canonical_release(&self) -> &str {
        &self.canonical_release
    }

    /// Orders as [`Ord`] does, but as if neither had an iteration.
    pub fn cmp_ignore_iteration(&self, other: &Self) -> Ordering {
        self.cmp_ignore_revision(other)
            .then(self.revision.cmp(&other.revision))
    }

    /// Orders as [`Ord`] does, but as if neither had revision and iteration.
    pub fn cmp_ignore_revision(&self, other: &Self) -> Ordering {
        let epoch = self.epoch.cmp(&other.epoch);
        epoch
            .then_with(|| self.canonical_upstream.cmp(&other.canonical_upstream))
            .then_with(|| self.canonical_release.cmp(&other.canonical_release))
    }
}

/// The text with upstream and release as written, the epoch only where it is
/// not the default, revision and iteration only where they are not none.
impl fmt::Display for PackageVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_stub = self.canonical_upstream.is_empty() && self.release.is_none();
        if self.epoch != if is_stub { 0 } else { 1 } {
            write!(f, "+{}-", self.epoch)?;
        }
        f.write_str(&self.upstream)?;
        if let Some(release) = &self.release {
            write!(f, "-{release}")?;
        }
        if let Some(revision) = self.revision {
            write!(f, "+{revision}")?;
        }
        if self.iteration != 0 {
            write!(f, "#{}", self.iteration)?;
        }
        Ok(())
    }
}

impl FromStr for PackageVersion {
    type Err = PackageVersionError;

    fn from_str(text: &str) -> Result<Self, PackageVersionError> {
        Self::parse(text)
    }
}

impl Ord for PackageVersion {
    fn cmp(&self, other: &Self) -> Ordering {
        self.cmp_ignore_iteration(other)
            .then(self.iteration.cmp(&other.iteration))
    }
}

impl PartialOrd for PackageVersion {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for PackageVersion {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for PackageVersion {}

/// Which part of a version is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Epoch,
    Upstream,
    Release,
    Revision,
    Iteration,
}

/// The texts of a version's parts.
#[derive(Default)]
struct Parts<'a> {
    epoch: Option<&'a str>,
    upstream: &'a str,
    release: Option<&'a str>,
    revision: Option<&'a str>,
    iteration: Option<&'a str>,
}

impl<'a> Parts<'a> {
    /// Takes a version apart at its separators, checking that they stand where
    /// they may and that components are alphanumeric and not empty.
    fn scan(text: &'a str, allow_iteration: bool) -> Result<Self, PackageVersionError> {
        let mut parts = Self::default();
        let (mut part, mut start) = match text.strip_prefix('+') {
            Some(_) => (Part::Epoch, 1),
            None => (Part::Upstream, 0),
        };
        // Where the current component starts.
        let mut component = start;
        for (at, c) in text.char_indices().skip(start) {
            let empty = at == component;
            let misplaced = || PackageVersionError(format!("unexpected '{c}' character position"));
            let next = match (part, c) {
                (Part::Iteration, _) => continue,
                (Part::Epoch, '-') if !empty => Part::Upstream,
                (Part::Revision, '#') if allow_iteration => Part::Iteration,
                (Part::Epoch | Part::Revision, '+' | '-' | '.') => return Err(misplaced()),
                (Part::Epoch | Part::Revision, _) => continue,
                (Part::Upstream, '-') if !empty => Part::Release,
                (_, '+') if !empty => Part::Revision,
                (_, '#') if allow_iteration && !empty => Part::Iteration,
                (_, '.') if !empty => {
                    component = at + 1;
                    continue;
                }
                (_, '+' | '-' | '.') => return Err(misplaced()),
                (_, '#') if allow_iteration => return Err(misplaced()),
                (_, c) if c.is_ascii_alphanumeric() => continue,
                _ => {
                    return Err(PackageVersionError::new(
                        "alpha-numeric characters expected in a component",
                    ));
                }
            };
            parts.set(part, &text[start..at])?;
            (part, start, component) = (next, at + 1, at + 1);
        }
        // Only the release may be empty at the end: the earliest version. The
        // reference also drops a dot behind a release.
        let may_be_empty = matches!(part, Part::Release | Part::Iteration);
        // An epoch alone is the epoch of nothing.
        if part == Part::Epoch || component == text.len() && !may_be_empty {
            return Err(PackageVersionError::new("unexpected end"));
        }
        let last = &text[start..];
        let last = match part {
            Part::Release => last.strip_suffix('.').unwrap_or(last),
            _ => last,
        };
        parts.set(part, last)?;
        Ok(parts)
    }

    fn set(&mut self, part: Part, text: &'a str) -> Result<(), PackageVersionError> {
        match part {
            Part::Epoch => self.epoch = Some(text),
            Part::Upstream => self.upstream = text,
            Part::Release => self.release = Some(text),
            Part::Revision if text.is_empty() => {
                return Err(PackageVersionError::new("unexpected end"));
            }
            Part::Revision => self.revision = Some(text),
            Part::Iteration => self.iteration = Some(text),
        }
        Ok(())
    }
}

fn u16_of(text: &str, what: &str) -> Result<u16, PackageVersionError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits => Ok(number),
        _ => Err(PackageVersionError(format!(
            "{what} should be 2-byte unsigned integer"
        ))),
    }
}

/// Blanks may stand before an iteration, a peculiarity of the reference.
fn iteration_of(text: &str) -> Result<u32, PackageVersionError> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits => Ok(number),
        _ => Err(PackageVersionError::new(
            "iteration should be 4-byte unsigned integer",
        )),
    }
}

/// The form in which components compare as text: numbers padded with zeros,
/// the rest in lower case, numbers of value 0 at the end dropped.
fn canonical(text: &str) -> Result<String, PackageVersionError> {
    let mut out = String::new();
    let mut significant = 0;
    for (i, component) in text.split('.').enumerate() {
        if i > 0 {
            out.push('.');
        }
        if component.bytes().all(|b| b.is_ascii_digit()) {
            if component.len() > DIGITS {
                return Err(PackageVersionError(format!(
                    "{DIGITS} digits maximum allowed in a component"
                )));
            }
            out.extend(std::iter::repeat_n('0', DIGITS - component.len()));
            out.push_str(component);
            if component.bytes().any(|b| b != b'0') {
                significant = out.len();
            }
        } else {
            out.extend(component.chars().map(|c| c.to_ascii_lowercase()));
            significant = out.len();
        }
    }
    out.truncate(significant);
    Ok(out)
}
