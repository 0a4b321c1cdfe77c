//! ARP for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use super::ethernet::Address;

/// Bytes of a packet.
const LENGTH: usize = 28;
/// Hardware type Ethernet, protocol type IPv4, and the lengths of their addresses.
const PREFIX: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// What a packet does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Asks who has an address.
    Request,
    /// Tells it.
    Reply,
}

/// A packet that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// What it does.
    pub operation: Operation,
    /// Hardware address of whoever sent it.
    pub sender: Address,
    /// Its IP address, unspecified in a probe.
    pub sender_ip: Ipv4Addr,
    /// Hardware address it is for, zero in a request.
    pub target: Address,
    /// The IP address that it is about.
    pub target_ip: Ipv4Addr,
}

/// Reads a packet. None: it is too short or of another kind.
pub fn parse(bytes: &[u8]) -> Option<Packet> {
    let rest = bytes.strip_prefix(&PREFIX)?;
    let (operation, rest) = rest.split_first_chunk::<2>()?;
    let (sender, rest) = rest.split_first_chunk::<6>()?;
    let (sender_ip, rest) = rest.split_first_chunk::<4>()?;
    let (target, rest) = rest.split_first_chunk::<6>()?;
    let (target_ip, _padding) = rest.split_first_chunk::<4>()?;
    Some(Packet {
        operation: match u16::from_be_bytes(*operation) {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return None,
        },
        sender: *sender,
        sender_ip: Ipv4Addr::from(*sender_ip),
        target: *target,
        target_ip: Ipv4Addr::from(*target_ip),
    })
}

/// Writes a packet.
pub fn build(packet: &Packet) -> Vec<u8> {
    let operation: u16 = match packet.operation {
        Operation::Request => 1,
        Operation::Reply => 2,
    };
    let mut bytes = Vec::with_capacity(LENGTH);
    bytes.extend_from_slice(&PREFIX);
    bytes.extend_from_slice(&operation.to_be_bytes());
    bytes.extend_from_slice(&packet.sender);
    bytes.extend_from_slice(&packet.sender_ip.octets());
    bytes.extend_from_slice(&packet.target);
    bytes.extend_from_slice(&packet.target_ip.octets());
    bytes
}
