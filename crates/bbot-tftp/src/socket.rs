//! The receive buffers of UDP sockets, into which a window has to fit.

use std::io;
use std::net::UdpSocket;

use rustix::net::sockopt;

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
