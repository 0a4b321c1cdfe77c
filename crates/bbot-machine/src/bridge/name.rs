//! The name of a network interface.

use std::fmt;
use std::str::FromStr;

/// The longest name, in bytes: the kernel's `IFNAMSIZ` less the NUL.
pub const LONGEST: usize = 15;

/// The name of a network interface: 1 to 15 of `A`-`Z`, `a`-`z`, `0`-`9`, `.`, `_`, `-`. The kernel
/// takes nearly any bytes; these are safe in every tool's language.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct InterfaceName {
    bytes: [u8; LONGEST],
    length: u8,
}

/// Why a text is no interface's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no name of a network interface: give 1 to 15 letters, digits, dots, hyphens and underscores, such as br1"
)]
pub struct BadName(String);

impl InterfaceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).expect("it was made of ASCII")
    }
}

impl FromStr for InterfaceName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let bad = || BadName(text.escape_debug().take(40).collect());
        // The kernel keeps these two for itself; an option of a tool begins with a hyphen.
        if text.is_empty()
            || text == "."
            || text == ".."
            || text.starts_with('-')
            || !text.bytes().all(allowed)
        {
            return Err(bad());
        }
        let mut bytes = [0; LONGEST];
        bytes
            .get_mut(..text.len())
            .ok_or_else(bad)?
            .copy_from_slice(text.as_bytes());
        let length = u8::try_from(text.len()).map_err(|_| bad())?;
        Ok(Self { bytes, length })
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["br1", "b", "br-lan.7_x", "abcdefghijklmno"] {
            assert_eq!(name.parse::<InterfaceName>().unwrap().to_string(), name);
        }
        for name in [
            "",
            ".",
            "..",
            "-br",
            "abcdefghijklmnop",
            "br 1",
            "br/1",
            "br\"1",
            "bré",
            "br1\n",
        ] {
            assert!(name.parse::<InterfaceName>().is_err(), "{name:?}");
        }
    }
}
