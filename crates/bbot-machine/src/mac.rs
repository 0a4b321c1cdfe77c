//! Addresses of network cards.
//!
//! A machine keeps its address across bootstraps (the seed's point: some systems react badly to a
//! new card), so it is generated once and recorded in the bootstrapped-machine manifest.

use std::fmt;
use std::io;
use std::str::FromStr;

use thiserror::Error;

/// The address of an Ethernet card. Displays as `xx:xx:xx:xx:xx:xx` in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// Why a text is not the address of a card.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "invalid MAC address '{text}': expected six pairs of hexadecimal digits, XX:XX:XX:XX:XX:XX"
)]
pub struct MacError {
    /// The text as it was given.
    pub text: String,
}

impl Mac {
    /// A random address that is locally administered and unicast, so that it can meet no card
    /// that was ever sold.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn generate() -> io::Result<Self> {
        let mut octets = [0u8; 6];
        getrandom::fill(&mut octets).map_err(|e| io::Error::other(e.to_string()))?;
        // Bit 0 of the first octet: group address; bit 1: locally administered (IEEE 802).
        octets[0] = (octets[0] & !0x01) | 0x02;
        Ok(Self(octets))
    }

    /// The six octets in the order of the wire.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }

    /// Whether one card alone can have this address.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        self.0[0] & 0x01 == 0
    }

    /// Whether the address was given out by the one who uses it, not by a maker of cards.
    #[must_use]
    pub fn is_locally_administered(self) -> bool {
        self.0[0] & 0x02 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let invalid = || MacError {
            text: text.chars().take(64).collect(),
        };
        let mut octets = [0u8; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or_else(invalid)?;
            // `from_str_radix` alone would take a sign and one digit.
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(invalid());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        match parts.next() {
            None => Ok(Self(octets)),
            Some(_) => Err(invalid()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_either_case_and_writes_lower() {
        let mac: Mac = "DE:ad:BE:ef:00:0A".parse().unwrap();
        assert_eq!(mac.octets(), [0xde, 0xad, 0xbe, 0xef, 0, 0x0a]);
        assert_eq!(mac.to_string(), "de:ad:be:ef:00:0a");
    }

    #[test]
    fn refuses_what_is_not_an_address() {
        for text in [
            "",
            "de:ad:be:ef:de",
            "de:ad:be:ef:de:ad:00",
            "de:ad:be:ef:de:a",
            "de:ad:be:ef:de:+1",
            "de-ad-be-ef-de-ad",
            "de:ad:be:ef:de:ag",
            " de:ad:be:ef:de:ad",
            "dé:ad:be:ef:de:ad",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn generated_ones_are_local_unicast_and_differ() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..64 {
            let mac = Mac::generate().unwrap();
            assert!(mac.is_unicast() && mac.is_locally_administered(), "{mac}");
            assert_eq!(mac.to_string().parse(), Ok(mac));
            assert!(seen.insert(mac), "{mac} came twice");
        }
    }
}
