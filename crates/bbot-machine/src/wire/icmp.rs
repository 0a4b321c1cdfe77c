//! ICMP echo (RFC 792): the wire answers `ping`, so that a person in a guest can
//! tell whether it is there.

use super::ipv4;

/// The answer to an echo request. None: it is something else, or damaged.
pub fn echo_reply(request: &[u8]) -> Option<Vec<u8>> {
    // Type 8, code 0, checksum, identifier, sequence number.
    let (header, _data) = request.split_first_chunk::<8>()?;
    if header[0..2] != [8, 0] || ipv4::checksum(&[request]) != 0 {
        return None;
    }
    let mut reply = request.to_vec();
    reply[0] = 0;
    reply[2..4].fill(0);
    let sum = ipv4::checksum(&[&reply]);
    reply[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(reply)
}
