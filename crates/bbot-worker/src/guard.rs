//! Keeps the build's user away from the agent where it shares the guest's network: a policy rule of the kernel
//! (`ip rule add uidrange U-U to AGENT prohibit`), made over netlink, because a guest need not have the program `ip`.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};

/// Linux: `linux/fib_rules.h`.
const FR_ACT_PROHIBIT: u8 = 8;
const FRA_DST: u16 = 1;
const FRA_PRIORITY: u16 = 6;
const FRA_UID_RANGE: u16 = 20;

/// Before every rule but the one for the guest's own addresses, which is number 0.
const PRIORITY: u32 = 1;

/// Whether there is a way out of this machine besides the wire that leads to the agent: another interface that is up and
/// has an address.
pub(crate) fn has_second_card(agent: SocketAddrV4) -> io::Result<bool> {
    // Nothing is sent: the kernel only chooses the address that it would send from.
    let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    probe.connect(agent)?;
    let own = probe.local_addr()?.ip();
    let mut wire = None;
    let mut others = Vec::new();
    for interface in getifaddrs()? {
        let Some(address) = interface.address else {
            continue;
        };
        let is_own = address.as_sockaddr_in().is_some_and(|v4| own == v4.ip());
        // An interface gives itself a link-local IPv6 address that leads nowhere.
        let leads_on = address.as_sockaddr_in().is_some()
            || address
                .as_sockaddr_in6()
                .is_some_and(|v6| !v6.ip().is_unicast_link_local());
        if is_own {
            wire = Some(interface.interface_name);
        } else if leads_on
            && interface.flags.contains(InterfaceFlags::IFF_UP)
            && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
        {
            others.push(interface.interface_name);
        }
    }
    Ok(others.iter().any(|name| Some(name) != wire.as_ref()))
}

/// Forbids the user `uid` every packet to the agent, on this machine's network.
pub(crate) fn forbid(uid: u32, agent: Ipv4Addr) -> io::Result<()> {
    let socket = socket::socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    socket::send(socket.as_raw_fd(), &request(uid, agent), MsgFlags::empty())?;
    let mut answer = [0; 4096];
    let length = socket::recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    match outcome(&answer[..length]) {
        Some(0) => Ok(()),
        // The rule is there already.
        Some(code) if code == -libc::EEXIST => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel's answer cannot be read",
        )),
    }
}

/// A message RTM_NEWRULE (Linux: `struct nlmsghdr`, `struct fib_rule_hdr`, attributes), in the machine's byte order.
fn request(uid: u32, agent: Ipv4Addr) -> Vec<u8> {
    let mut body = Vec::new();
    // family, dst_len, src_len, tos, table, res1, res2, action
    body.extend([2, 32, 0, 0, 0, 0, 0, FR_ACT_PROHIBIT]);
    body.extend(0_u32.to_ne_bytes());
    let mut attribute = |kind: u16, value: &[u8]| {
        let length = 4 + u16::try_from(value.len()).expect("attributes here are a few bytes long");
        body.extend(length.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value);
    };
    attribute(FRA_DST, &agent.octets());
    attribute(FRA_PRIORITY, &PRIORITY.to_ne_bytes());
    attribute(
        FRA_UID_RANGE,
        &[uid.to_ne_bytes(), uid.to_ne_bytes()].concat(),
    );

    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let length = u32::try_from(16 + body.len()).expect("the message is a few bytes long");
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(libc::RTM_NEWRULE.to_ne_bytes());
    message.extend(
        u16::try_from(flags)
            .expect("the flags are 16 bits wide")
            .to_ne_bytes(),
    );
    message.extend(1_u32.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    message
}

/// The code in an answer NLMSG_ERROR, 0 for success.
fn outcome(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    if i32::from(kind) != libc::NLMSG_ERROR {
        return None;
    }
    Some(i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_its_lengths_right() {
        let message = request(1000, Ipv4Addr::new(196, 254, 111, 222));
        assert_eq!(message.len(), 16 + 12 + 8 + 8 + 12);
        assert_eq!(message[..4], 56_u32.to_ne_bytes());
        assert_eq!(message[16..24], [2, 32, 0, 0, 0, 0, 0, 8]);
        assert_eq!(message[32..36], [196, 254, 111, 222]);
    }

    #[test]
    fn an_answer_that_is_too_short_is_none() {
        assert_eq!(outcome(&[0; 10]), None);
        assert_eq!(outcome(&[0; 40]), None);
    }
}
