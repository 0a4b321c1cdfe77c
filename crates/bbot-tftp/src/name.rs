//! The names of files on TFTP: flat, short, and never a way out of a folder.

use std::fmt;

/// The longest name, in bytes.
const LONGEST: usize = 128;

/// A name that passed the rules: one leading `/` dropped, then no `/`, no control character, no
/// leading `.`, 1 to 128 bytes of UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(String);

/// Why a name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadName {
    /// Nothing is left of it.
    #[error("the name is empty")]
    Empty,
    /// More than 128 bytes.
    #[error("the name is longer than {LONGEST} bytes")]
    Long,
    /// A `/` that is not the first byte, or a second one.
    #[error("the name has a folder in it")]
    Folder,
    /// It starts with `.`.
    #[error("the name starts with a dot")]
    Hidden,
    /// It has a control character.
    #[error("the name has a control character in it")]
    Control,
    /// It is not UTF-8.
    #[error("the name is not UTF-8")]
    Encoding,
}

impl Name {
    /// Checks a name from a request.
    ///
    /// # Errors
    ///
    /// [`BadName`] says which rule it breaks.
    pub fn new(bytes: &[u8]) -> Result<Self, BadName> {
        let bytes = bytes.strip_prefix(b"/").unwrap_or(bytes);
        if bytes.is_empty() {
            return Err(BadName::Empty);
        }
        if bytes.len() > LONGEST {
            return Err(BadName::Long);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| BadName::Encoding)?;
        if text.contains('/') {
            return Err(BadName::Folder);
        }
        if text.starts_with('.') {
            return Err(BadName::Hidden);
        }
        if text.chars().any(char::is_control) {
            return Err(BadName::Control);
        }
        Ok(Self(text.to_owned()))
    }

    /// The name, without a leading `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A refused name as an event or a message may show it: printable, and cut.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(LONGEST)];
    cut.iter()
        .map(|&b| {
            if b.is_ascii_graphic() || b == b' ' {
                char::from(b)
            } else {
                '?'
            }
        })
        .collect()
}
