//! Where something stands in a manifest, and the errors that say so.

use std::fmt;

/// A place in a manifest stream. Lines and columns count from 1; a column is
/// a code point (a tab is one column), and any run of CR with or without a LF
/// behind it ends a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The line, from 1.
    pub line: u64,
    /// The column in code points, from 1.
    pub column: u64,
}

impl Position {
    /// The first character of a stream.
    pub const START: Self = Self { line: 1, column: 1 };

    /// The place at `line` and `column`, both from 1.
    pub const fn new(line: u64, column: u64) -> Self {
        Self { line, column }
    }
}

impl Default for Position {
    fn default() -> Self {
        Self::START
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Why a manifest cannot be read, and where. It does not know the name of its
/// source: [`ParseError::in_source`] adds it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: error: {what}")]
pub struct ParseError {
    /// The line of the offending character or field, from 1.
    pub line: u64,
    /// Its column in code points, from 1.
    pub column: u64,
    /// What is wrong, in the words of the reference parser for errors of the
    /// text format.
    pub what: String,
}

impl ParseError {
    pub(crate) fn at(position: Position, what: impl Into<String>) -> Self {
        Self {
            line: position.line,
            column: position.column,
            what: what.into(),
        }
    }

    /// The place of the error.
    pub fn position(&self) -> Position {
        Position::new(self.line, self.column)
    }

    /// The same error with the name of its source (a file, a URL, `task
    /// response`), as people read it: `name:LINE:COLUMN: error: what`.
    pub fn in_source(self, source_name: impl Into<String>) -> ManifestError {
        ManifestError {
            source_name: source_name.into(),
            error: self,
        }
    }
}

/// A [`ParseError`] with the name of the source it was found in. It displays as
/// `SOURCE:LINE:COLUMN: error: what`; the name part is left out when empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestError {
    /// The file, URL or other name that the reader gave the source.
    pub source_name: String,
    /// What is wrong, and where in the source.
    pub error: ParseError,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.source_name.is_empty() {
            write!(f, "{}:", self.source_name)?;
        }
        self.error.fmt(f)
    }
}

impl std::error::Error for ManifestError {}
