//! UDP datagrams in IPv4 (RFC 768).

use std::net::Ipv4Addr;

use super::ipv4;

/// Bytes of a header.
pub const HEADER: usize = 8;

/// A datagram that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Port that it comes from.
    pub source: u16,
    /// Port that it goes to.
    pub destination: u16,
    /// What it carries.
    pub payload: &'a [u8],
}

fn pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, length: u16) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[0..4].copy_from_slice(&source.octets());
    bytes[4..8].copy_from_slice(&destination.octets());
    bytes[9] = ipv4::UDP;
    bytes[10..12].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Reads the datagram that an IPv4 packet carries. None: too short, or a wrong
/// checksum (zero means that there is none).
pub fn parse<'a>(packet: &ipv4::Packet<'a>) -> Option<Datagram<'a>> {
    let header = packet.payload.first_chunk::<HEADER>()?;
    let length = u16::from_be_bytes([header[4], header[5]]);
    let datagram = packet.payload.get(..usize::from(length))?;
    let payload = datagram.get(HEADER..)?;
    if header[6..8] != [0, 0] {
        let pseudo = pseudo_header(packet.source, packet.destination, length);
        if ipv4::checksum(&[&pseudo, datagram]) != 0 {
            return None;
        }
    }
    Some(Datagram {
        source: u16::from_be_bytes([header[0], header[1]]),
        destination: u16::from_be_bytes([header[2], header[3]]),
        payload,
    })
}

/// Writes an IPv4 packet with a datagram. None: it would be longer than the
/// format can say.
pub fn build(
    source: (Ipv4Addr, u16),
    destination: (Ipv4Addr, u16),
    payload: &[u8],
) -> Option<Vec<u8>> {
    let length = u16::try_from(HEADER + payload.len()).ok()?;
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&source.1.to_be_bytes());
    bytes.extend_from_slice(&destination.1.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(payload);
    let sum = match ipv4::checksum(&[&pseudo_header(source.0, destination.0, length), &bytes]) {
        // Zero would mean that there is no checksum.
        0 => 0xffff,
        sum => sum,
    };
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    ipv4::build(source.0, destination.0, ipv4::UDP, &bytes)
}
