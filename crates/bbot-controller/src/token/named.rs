//! Tokens with a name: what somebody holds (`bbot_<id>_<secret>`), and what of it is kept. The id is how it is found; of the
//! secret, which is 256 random bits, only a hash is kept, so that whoever reads the store cannot use it.

use std::fmt;
use std::io;

use sha2::{Digest as _, Sha256};

use crate::auth::{random_hex, same_secret};

/// A token as it was shown.
#[derive(Clone, Copy)]
pub(crate) struct Shown<'a> {
    /// How it is found.
    pub(crate) id: &'a str,
    secret: &'a str,
}

/// Never shows the secret.
impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shown({})", self.id)
    }
}

const ID_DIGITS: usize = 16;
const SECRET_DIGITS: usize = 64;

impl<'a> Shown<'a> {
    /// Takes a text apart that has the form of a token.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let (id, secret) = text.strip_prefix("bbot_")?.split_once('_')?;
        let is_hex = |text: &str, digits: usize| {
            text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())
        };
        (is_hex(id, ID_DIGITS) && is_hex(secret, SECRET_DIGITS)).then_some(Self { id, secret })
    }

    /// Whether it is the token of which this hash is kept.
    pub(crate) fn is(self, hash: &str) -> bool {
        same_secret(&hash_of(self.secret), hash)
    }
}

fn hash_of(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// A token that was just made.
pub(crate) struct Named {
    /// How it is found.
    pub(crate) id: String,
    /// What is kept of its secret.
    pub(crate) hash: String,
    /// What its holder gets, once.
    pub(crate) text: String,
}

impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Named({})", self.id)
    }
}

impl Named {
    /// Makes one.
    pub(crate) fn new() -> io::Result<Self> {
        let (id, secret) = (random_hex::<8>()?, random_hex::<32>()?);
        Ok(Self {
            hash: hash_of(&secret),
            text: format!("bbot_{id}_{secret}"),
            id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_known_again() {
        let (token, other) = (Named::new().unwrap(), Named::new().unwrap());
        let shown = Shown::parse(&token.text).unwrap();
        assert_eq!(shown.id, token.id);
        assert!(shown.is(&token.hash));
        assert!(!shown.is(&other.hash) && !shown.is(""));
        assert!(!token.hash.contains(shown.secret));
        for debug in [format!("{shown:?}"), format!("{token:?}")] {
            assert!(!debug.contains(shown.secret), "{debug}");
        }
        for bad in [
            "",
            "bbot_",
            "bbot_1_2",
            &token.text[1..],
            &token.text[..token.text.len() - 1],
            &token.text.replace('_', "-"),
        ] {
            assert!(Shown::parse(bad).is_none(), "{bad}");
        }
    }
}
