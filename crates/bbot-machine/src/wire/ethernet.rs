//! Ethernet II frames.

/// A hardware address as it is on the wire.
pub type Address = [u8; 6];

/// To everyone.
pub const BROADCAST: Address = [0xff; 6];
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;

/// Bytes of a frame's header: two addresses and the type.
pub const HEADER: usize = 14;
/// The largest payload: the wire's MTU.
pub const MTU: usize = 1500;
/// The shortest frame (IEEE 802.3, without the check sequence); shorter ones are
/// padded, as some emulated cards drop them.
pub const MINIMUM: usize = 60;

/// A frame that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// To whom.
    pub destination: Address,
    /// From whom.
    pub source: Address,
    /// What the payload is.
    pub kind: u16,
    /// The payload, padding included.
    pub payload: &'a [u8],
}

/// Reads a frame. None: it is too short, too long, or comes from a group
/// address, which no card has.
pub fn parse(bytes: &[u8]) -> Option<Frame<'_>> {
    if bytes.len() > HEADER + MTU {
        return None;
    }
    let (destination, rest) = bytes.split_first_chunk::<6>()?;
    let (source, rest) = rest.split_first_chunk::<6>()?;
    let (kind, payload) = rest.split_first_chunk::<2>()?;
    if source[0] & 1 != 0 {
        return None;
    }
    Some(Frame {
        destination: *destination,
        source: *source,
        kind: u16::from_be_bytes(*kind),
        payload,
    })
}

/// Writes a frame, padded to the shortest that there may be.
pub fn build(destination: Address, source: Address, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((HEADER + payload.len()).max(MINIMUM));
    bytes.extend_from_slice(&destination);
    bytes.extend_from_slice(&source);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(payload);
    if bytes.len() < MINIMUM {
        bytes.resize(MINIMUM, 0);
    }
    bytes
}
