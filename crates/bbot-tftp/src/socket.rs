//! What a host's network bounds: a window by the socket's receive buffer, a block by the link's MTU.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use rustix::net::sockopt;

use crate::packet::DATA_HEADER;

/// The headers below TFTP: of UDP (RFC 768), and of IPv4 (RFC 791) or IPv6 (RFC 8200).
const UDP_HEADER: usize = 8;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// Makes the socket's receive buffer at least `wanted` bytes where that is allowed; how large it is.
pub(crate) fn receive_buffer(socket: &UdpSocket, wanted: usize) -> io::Result<usize> {
    let size = sockopt::socket_recv_buffer_size(socket)?;
    if size >= wanted {
        return Ok(size);
    }
    // The kernel takes less without an error when its own limit is lower.
    sockopt::set_socket_recv_buffer_size(socket, wanted)?;
    Ok(sockopt::socket_recv_buffer_size(socket)?)
}

/// A socket that can speak to `server`, on a port of its own.
pub(crate) fn facing(server: SocketAddr) -> io::Result<UdpSocket> {
    let any = match server.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    UdpSocket::bind((any, 0))
}

/// The largest block that goes to `server` in one piece, as far as this host knows; none when there
/// is no way to it, or none yet.
pub(crate) fn block_in_one_piece(server: SocketAddr) -> Option<u16> {
    // Connecting sends nothing; it looks the route up.
    let probe = facing(server).ok()?;
    probe.connect(server).ok()?;
    let (mtu, header) = match server.ip() {
        IpAddr::V4(_) => (sockopt::ip_mtu(&probe).ok()?, IPV4_HEADER),
        IpAddr::V6(_) => (sockopt::ipv6_mtu(&probe).ok()?, IPV6_HEADER),
    };
    let block = usize::try_from(mtu)
        .ok()?
        .checked_sub(header + UDP_HEADER + DATA_HEADER)?;
    Some(u16::try_from(block).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_fits_into_the_links_frames() {
        // The loopback device has 64 KiB; a datagram over IPv4 has one byte less at most.
        let block = block_in_one_piece("127.0.0.1:69".parse().unwrap());
        assert_eq!(block, Some(u16::MAX - 32));
    }
}
