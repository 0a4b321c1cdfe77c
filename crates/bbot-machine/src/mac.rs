//! Addresses of network cards, made up.
//!
//! A machine keeps its address across bootstraps (the seed's point: some systems react badly to a
//! new card), so it is generated once and recorded in the bootstrapped-machine manifest.

use std::io;

pub use bbot_manifest::Mac;

/// A random address that is locally administered and unicast, so that it can meet no card that was
/// ever sold.
///
/// # Errors
/// When the system has no random bytes.
pub fn generate() -> io::Result<Mac> {
    let mut octets = [0u8; 6];
    getrandom::fill(&mut octets).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(local(octets))
}

/// Bit 0 of the first octet marks a group's address, bit 1 a locally administered one (IEEE 802).
fn local(mut octets: [u8; 6]) -> Mac {
    octets[0] = (octets[0] & !0x01) | 0x02;
    Mac(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_become_a_local_unicast_address() {
        for first in 0..=255u8 {
            let Mac(octets) = local([first, 1, 2, 3, 4, 5]);
            assert_eq!(octets[0] & 0b11, 0b10, "{first:02x}");
            assert_eq!(octets[0] >> 2, first >> 2);
            assert_eq!(octets[1..], [1, 2, 3, 4, 5]);
        }
    }

    #[test]
    fn generated_ones_are_read_back_and_differ() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..64 {
            let mac = generate().unwrap();
            assert_eq!(mac.to_string().parse(), Ok(mac));
            assert!(seen.insert(mac), "{mac} came twice");
        }
    }
}
