//! The bounds within which a server works.

use std::time::Duration;

/// When an unanswered packet is sent again, and when that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retransmit {
    /// The shortest first pause, however fast the peer answers; between this and
    /// [`Retransmit::first`] the pause follows the time that answers take (RFC 6298). A receiver's
    /// is four times as long: it is the sender's to repeat first. As long as the first: fixed.
    pub shortest: Duration,
    /// The first pause as long as nothing is known of the peer; each further one is twice as long.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
    /// How often a packet is sent again before the transfer is given up. Repetitions after
    /// pauses below the first do not count.
    pub retries: u32,
}

impl Default for Retransmit {
    /// From 10 ms, a few ticks of a kernel's clock, up to the first second, then 2, 4, 8, 8, 8 s: a guest under emulation may be busy for seconds, and one that is gone
    /// should not hold its session for minutes. The longest pause is longer than the 5 s after
    /// which common clients repeat a block: some start their clock anew with each repeated ACK,
    /// and would never come to it if the ACKs came sooner.
    fn default() -> Self {
        Self {
            shortest: Duration::from_millis(10),
            first: Duration::from_secs(1),
            longest: Duration::from_secs(8),
            retries: 5,
        }
    }
}

impl Retransmit {
    /// For a guest's own network, at either end: it loses next to nothing, but a guest may stand
    /// still for a while, and all that is repeated takes its time. From 200 ms, as TCP on Linux.
    #[must_use]
    pub fn guest() -> Self {
        Self {
            shortest: Duration::from_millis(200),
            ..Self::default()
        }
    }
}

/// The bounds within which a server works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How many transfers may run at once.
    pub max_sessions: usize,
    /// The largest `blksize` that is agreed to, in bytes; RFC 2348 allows 8 to 65464.
    pub max_block_size: u16,
    /// The largest `windowsize` that is agreed to, in blocks.
    pub max_window: u16,
    /// What a window may take of the receive buffer at its end, in bytes; a larger window would
    /// be lost in it. The default is Linux's default buffer, since a client's is not known.
    pub window_bytes: usize,
    /// How large the buffer is made of a socket that an upload comes to, in bytes, as far as the
    /// kernel allows it; the window fits into what it is.
    pub upload_buffer: usize,
    /// The pauses before packets are sent again, unless the peer asks for others (`timeout`).
    pub retransmit: Retransmit,
    /// The longest `timeout` that a peer may ask for, in seconds; others are not agreed to.
    pub max_timeout: u8,
    /// How long a finished upload still answers a repeated last block.
    pub dally: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_sessions: 32,
            max_block_size: 65464,
            max_window: 64,
            window_bytes: 212_992,
            upload_buffer: 1 << 20,
            retransmit: Retransmit::default(),
            max_timeout: 30,
            dally: Duration::from_secs(12),
        }
    }
}

impl Limits {
    /// The bounds for a machine's own wire: an MTU of 1500 and few transfers at once.
    #[must_use]
    pub fn wire() -> Self {
        Self {
            max_sessions: 8,
            max_block_size: 1468,
            // A whole window: there is no socket's buffer here, and a card has room for more frames.
            window_bytes: 256 * 1024,
            retransmit: Retransmit::guest(),
            ..Self::default()
        }
    }

    /// The largest window for a block size, by [`Limits::max_window`] and [`Limits::window_bytes`].
    #[must_use]
    pub fn window_for(&self, block_size: u16) -> u16 {
        fitting_window(self.window_bytes, block_size).min(self.max_window.max(1))
    }
}

/// Beyond this, old and new blocks could not be told apart by their 16 bits.
const LARGEST_WINDOW: u16 = 16384;

/// What Linux charges a receive buffer for a datagram, at most: the allocation is rounded up to a
/// power of two, and the buffer's own description comes on top.
fn charged(block_size: u16) -> usize {
    2 * usize::from(block_size) + 1024
}

/// How many blocks fit into a receive buffer of `bytes`, at least one.
pub(crate) fn fitting_window(bytes: usize, block_size: u16) -> u16 {
    let fitting = u16::try_from(bytes / charged(block_size)).unwrap_or(u16::MAX);
    fitting.clamp(1, LARGEST_WINDOW)
}

/// The receive buffer in bytes that a window needs.
pub(crate) fn buffer_for(window: u16, block_size: u16) -> usize {
    usize::from(window.min(LARGEST_WINDOW)) * charged(block_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_fit_into_the_buffer() {
        let limits = Limits::default();
        let windows = [512, 1428, 8192, 65464].map(|size| limits.window_for(size));
        assert_eq!(windows, [64, 54, 12, 1]);
        let wire = Limits::wire();
        assert_eq!(wire.window_for(1468), wire.max_window);
        let none = Limits {
            max_window: 0,
            window_bytes: 0,
            ..Limits::default()
        };
        assert_eq!(none.window_for(512), 1, "there is always one");
    }
}
