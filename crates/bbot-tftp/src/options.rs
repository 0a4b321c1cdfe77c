//! Options: what a client offers, what a server takes of it (RFC 2347, 2348, 2349, 7440).

use std::time::Duration;

use crate::limits::{Limits, Retransmit};
use crate::packet::RawOption;

/// The block size without options.
pub(crate) const DEFAULT_BLOCK_SIZE: u16 = 512;
/// The smallest and the largest block size (RFC 2348).
const BLOCK_SIZES: std::ops::RangeInclusive<u64> = 8..=65464;

pub(crate) const BLKSIZE: &str = "blksize";
pub(crate) const TSIZE: &str = "tsize";
pub(crate) const TIMEOUT: &str = "timeout";
pub(crate) const WINDOWSIZE: &str = "windowsize";

/// What both ends agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub(crate) block_size: u16,
    pub(crate) window: u16,
    /// The `timeout` option: the pause before a packet is sent again.
    pub(crate) timeout: Option<Duration>,
    /// The `tsize` that the other end told; it is nothing to rely on.
    pub(crate) size: Option<u64>,
}

impl Default for Agreed {
    fn default() -> Self {
        Self {
            block_size: DEFAULT_BLOCK_SIZE,
            window: 1,
            timeout: None,
            size: None,
        }
    }
}

impl Agreed {
    /// The pauses: they start with the peer's wish, if it has one, however fast it answers
    /// (RFC 2349: the time to wait before a packet is sent again), and grow all the same, so that
    /// the clock of a peer with the same pause is not always set back just before its end.
    pub(crate) fn retransmit(&self, ours: Retransmit) -> Retransmit {
        match self.timeout {
            Some(pause) => Retransmit {
                shortest: pause,
                first: pause,
                longest: ours.longest.max(pause * 2),
                ..ours
            },
            None => ours,
        }
    }
}

/// What the size option is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SizeAnswer {
    /// A GET: the size of the file, if it is known before reading.
    File(Option<u64>),
    /// A PUT: the client's number comes back to it.
    Echo,
}

fn value(bytes: &[u8]) -> Option<u64> {
    // More lenient than needed would let "+5" or blanks through.
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

fn is(name: &[u8], option: &str) -> bool {
    name.eq_ignore_ascii_case(option.as_bytes())
}

/// The server's side: what is agreed, and the options to acknowledge, in the client's order.
/// Options that are unknown or out of range are left out, as RFC 2347 asks.
pub(crate) fn accept(
    requested: &[RawOption<'_>],
    limits: &Limits,
    size: SizeAnswer,
) -> (Agreed, Vec<(&'static str, u64)>) {
    let mut agreed = Agreed::default();
    let mut answer: Vec<(&'static str, u64)> = Vec::new();
    let mut window = None;
    for &(name, text) in requested {
        let Some(number) = value(text) else { continue };
        let known = [BLKSIZE, TSIZE, TIMEOUT, WINDOWSIZE]
            .into_iter()
            .find(|known| is(name, known));
        let Some(option) = known else { continue };
        if answer.iter().any(|(seen, _)| *seen == option) {
            continue;
        }
        let agreed_value = match option {
            BLKSIZE if number >= *BLOCK_SIZES.start() => {
                let size = number
                    .min(*BLOCK_SIZES.end())
                    .min(limits.max_block_size.into());
                agreed.block_size = u16::try_from(size).unwrap_or(DEFAULT_BLOCK_SIZE);
                Some(u64::from(agreed.block_size))
            }
            TSIZE => match size {
                // curl takes a size of zero for an error; an option may always be left out.
                SizeAnswer::File(known) => known.filter(|&size| size > 0),
                SizeAnswer::Echo => {
                    agreed.size = Some(number);
                    Some(number)
                }
            },
            TIMEOUT if (1..=u64::from(limits.max_timeout)).contains(&number) => {
                agreed.timeout = Some(Duration::from_secs(number));
                Some(number)
            }
            WINDOWSIZE if (1..=65535).contains(&number) => {
                window = Some(number);
                Some(number)
            }
            _ => None,
        };
        if let Some(agreed_value) = agreed_value {
            answer.push((option, agreed_value));
        }
    }
    // The block size may come after the window, and decides how many blocks fit into it.
    if let Some(wanted) = window {
        agreed.window = limits
            .window_for(agreed.block_size)
            .min(u16::try_from(wanted).unwrap_or(u16::MAX));
        for (option, number) in &mut answer {
            if *option == WINDOWSIZE {
                *number = agreed.window.into();
            }
        }
    }
    (agreed, answer)
}

/// Why a client does not take a server's OACK.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadAnswer {
    #[error("the server acknowledged an option that was not asked for")]
    NotOffered,
    #[error("the server answered {0} with a value that was not offered")]
    OutOfRange(&'static str),
}

/// The client's side: what the server's OACK makes of the offer.
pub(crate) fn agree(
    offered: &[(&'static str, u64)],
    answer: &[RawOption<'_>],
) -> Result<Agreed, BadAnswer> {
    let mut agreed = Agreed::default();
    for &(name, text) in answer {
        let found = offered.iter().find(|(option, _)| is(name, option));
        let &(option, offer) = found.ok_or(BadAnswer::NotOffered)?;
        let number = value(text).ok_or(BadAnswer::OutOfRange(option))?;
        let fits = match option {
            BLKSIZE => (*BLOCK_SIZES.start()..=offer).contains(&number),
            WINDOWSIZE => (1..=offer).contains(&number),
            TIMEOUT => number == offer,
            _ => true,
        };
        if !fits {
            return Err(BadAnswer::OutOfRange(option));
        }
        let small = u16::try_from(number).unwrap_or(u16::MAX);
        match option {
            BLKSIZE => agreed.block_size = small,
            WINDOWSIZE => agreed.window = small,
            TIMEOUT => agreed.timeout = Some(Duration::from_secs(number)),
            _ => agreed.size = Some(number),
        }
    }
    Ok(agreed)
}
