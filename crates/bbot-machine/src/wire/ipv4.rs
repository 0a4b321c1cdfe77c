//! IPv4 packets (RFC 791) without fragments, and the checksum of the Internet (RFC 1071).

use std::net::Ipv4Addr;

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Bytes of a header without options, which is what we write.
pub const HEADER: usize = 20;

/// A packet that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// From whom.
    pub source: Ipv4Addr,
    /// To whom.
    pub destination: Ipv4Addr,
    /// What the payload is.
    pub protocol: u8,
    /// The payload, without the frame's padding.
    pub payload: &'a [u8],
}

/// The one's complement sum of the 16-bit words of several pieces. Each piece
/// but the last must have an even length.
pub fn checksum(pieces: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for piece in pieces {
        let mut words = piece.chunks_exact(2);
        for word in &mut words {
            sum += u64::from(u16::from_be_bytes([word[0], word[1]]));
        }
        if let [last] = words.remainder() {
            sum += u64::from(u16::from_be_bytes([*last, 0]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // The loop above leaves 16 bits.
    !u16::try_from(sum).unwrap_or(0)
}

/// Reads a packet. None: too short, of another version, a wrong checksum, or a
/// fragment (nothing that is meant for us needs to be fragmented).
pub fn parse(bytes: &[u8]) -> Option<Packet<'_>> {
    let first = *bytes.first()?;
    let header_length = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header_length < HEADER {
        return None;
    }
    let header = bytes.get(..header_length)?;
    if checksum(&[header]) != 0 {
        return None;
    }
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let payload = bytes.get(header_length..total)?;
    // "More fragments", or an offset.
    if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
        return None;
    }
    Some(Packet {
        source: Ipv4Addr::new(header[12], header[13], header[14], header[15]),
        destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]),
        protocol: header[9],
        payload,
    })
}

/// Writes a packet that must not be fragmented. None: it would be longer than
/// the format can say.
pub fn build(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let total = u16::try_from(HEADER + payload.len()).ok()?;
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    // Version 4, five words of header; no service class.
    bytes.extend_from_slice(&[0x45, 0]);
    bytes.extend_from_slice(&total.to_be_bytes());
    // Identification is of no use without fragments (RFC 6864); "don't
    // fragment"; 64 hops; the checksum comes last.
    bytes.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
    bytes.extend_from_slice(&source.octets());
    bytes.extend_from_slice(&destination.octets());
    let sum = checksum(&[&bytes]);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend_from_slice(payload);
    Some(bytes)
}
