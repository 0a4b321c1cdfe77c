//! Numbers of users that a container has for itself: its root is none of the host's users.
//!
//! A range is held by the name of an abstract socket, which the kernel gives up with the process:
//! nothing is left to be cleaned up.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The first number that nobody uses: systemd gives 524288 to 1879048191 to containers of its own,
/// and calls 1879048192 to 2147352575 unused (its page "Users, Groups, UIDs and GIDs").
const FIRST: u32 = 1_879_048_192;
/// How many numbers a container has: 16 bits of them, as most systems expect.
pub(super) const SIZE: u32 = 65_536;
/// How many ranges there are.
const RANGES: u32 = (2_147_352_576 - FIRST) / SIZE;

/// A range of numbers, of users and of groups alike. Free again when this is dropped.
#[derive(Debug)]
pub(super) struct Range {
    /// What root of the container is on the host.
    pub(super) first: u32,
    _held: UnixDatagram,
}

impl Range {
    /// One that no other container of ours has.
    ///
    /// # Errors
    ///
    /// When there is no free one, or the system has no random bytes.
    pub(super) fn take() -> io::Result<Self> {
        let mut random = [0; 4];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let start = u32::from_ne_bytes(random) % RANGES;
        for step in 0..RANGES {
            let first = FIRST + (start + step) % RANGES * SIZE;
            let name = SocketAddr::from_abstract_name(format!("bbot-users-{first}"))?;
            match UnixDatagram::bind_addr(&name) {
                Ok(held) => return Ok(Self { first, _held: held }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("all ranges of user numbers are in use"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_containers_share_no_number() {
        let ranges: Vec<Range> = (0..50).map(|_| Range::take().unwrap()).collect();
        let mut firsts: Vec<u32> = ranges.iter().map(|range| range.first).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 50);
        for first in firsts {
            assert_eq!(first % SIZE, 0);
            assert!(first >= FIRST && first + (SIZE - 1) <= 2_147_352_575);
        }
    }
}
