//! The server's side of DHCP (RFC 2131, 2132), for a network with one guest: it
//! always has the same address to give, so there is nothing to remember.

use std::net::Ipv4Addr;

use super::ethernet::Address;

/// UDP port of servers.
pub const SERVER_PORT: u16 = 67;
/// UDP port of clients.
pub const CLIENT_PORT: u16 = 68;

/// Bytes of the fixed part, before the magic cookie.
const FIXED: usize = 236;
/// Marks the start of the options.
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// BOOTP's shortest packet: some clients drop shorter ones.
const MINIMUM: usize = 300;
/// One day, in seconds.
const LEASE: u32 = 86_400;

const OPTION_PAD: u8 = 0;
const OPTION_MASK: u8 = 1;
const OPTION_ADDRESS: u8 = 50;
const OPTION_LEASE: u8 = 51;
const OPTION_TYPE: u8 = 53;
const OPTION_SERVER: u8 = 54;
const OPTION_END: u8 = 255;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;
const INFORM: u8 = 8;

/// A client's message that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Message type (RFC 2132, 9.6).
    pub kind: u8,
    /// Ties question and answer together.
    pub transaction: [u8; 4],
    /// The flags; the first bit asks for a broadcast answer.
    pub flags: [u8; 2],
    /// The client's address, when it has one already.
    pub client: Ipv4Addr,
    /// Its hardware address.
    pub hardware: Address,
    /// The address that it would like.
    pub wanted: Option<Ipv4Addr>,
    /// The server that it has chosen.
    pub server: Option<Ipv4Addr>,
}

/// What is given to the guest.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// Our address.
    pub server: Ipv4Addr,
    /// The guest's.
    pub guest: Ipv4Addr,
    /// Their network's mask.
    pub mask: Ipv4Addr,
}

/// An answer and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// To which IP address.
    pub destination: Ipv4Addr,
    /// To which hardware address: the client's, or everyone's.
    pub broadcast: bool,
    /// The message.
    pub payload: Vec<u8>,
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

/// Reads a client's message. None: it is too short, not from an Ethernet
/// client, or not DHCP (BOOTP has no message type).
pub fn parse(bytes: &[u8]) -> Option<Request> {
    let fixed = bytes.first_chunk::<FIXED>()?;
    // A request, over Ethernet, with addresses of six bytes.
    if fixed[0..3] != [1, 1, 6] {
        return None;
    }
    let mut options = bytes.get(FIXED..)?.strip_prefix(&COOKIE)?;
    let mut kind = None;
    let mut wanted = None;
    let mut server = None;
    while let [code, rest @ ..] = options {
        match *code {
            OPTION_PAD => {
                options = rest;
                continue;
            }
            OPTION_END => break,
            _ => {}
        }
        let (length, rest) = rest.split_first()?;
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        options = rest;
        match *code {
            OPTION_TYPE => kind = value.first().copied(),
            OPTION_ADDRESS => wanted = address(value),
            OPTION_SERVER => server = address(value),
            _ => {}
        }
    }
    let mut hardware = [0; 6];
    hardware.copy_from_slice(&fixed[28..34]);
    Some(Request {
        kind: kind?,
        transaction: [fixed[4], fixed[5], fixed[6], fixed[7]],
        flags: [fixed[10], fixed[11]],
        client: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]),
        hardware,
        wanted,
        server,
    })
}

/// What a server answers. None: nothing, since the message needs no answer or is
/// meant for another server.
pub fn answer(request: &Request, offer: &Offer) -> Option<Answer> {
    if request.server.is_some_and(|server| server != offer.server) {
        return None;
    }
    let kind = match request.kind {
        DISCOVER => OFFER,
        INFORM => ACK,
        REQUEST => {
            // Selecting and rebooting clients say which address they want,
            // renewing ones which they have (RFC 2131, 4.3.2).
            let wanted = request.wanted.unwrap_or(request.client);
            if wanted == offer.guest { ACK } else { NAK }
        }
        // DECLINE and RELEASE: there is no other address and no list of leases.
        _ => return None,
    };
    let leased = kind != NAK && request.kind != INFORM;
    // Where it goes: RFC 2131, 4.1.
    let wants_broadcast = request.flags[0] & 0x80 != 0;
    let (destination, broadcast) = if kind == NAK {
        (Ipv4Addr::BROADCAST, true)
    } else if !request.client.is_unspecified() {
        (request.client, false)
    } else if wants_broadcast || !leased {
        (Ipv4Addr::BROADCAST, true)
    } else {
        (offer.guest, false)
    };

    let mut bytes = vec![0; FIXED];
    // An answer, over Ethernet, with addresses of six bytes.
    bytes[0..3].copy_from_slice(&[2, 1, 6]);
    bytes[4..8].copy_from_slice(&request.transaction);
    bytes[10..12].copy_from_slice(&request.flags);
    if kind == ACK {
        bytes[12..16].copy_from_slice(&request.client.octets());
    }
    if leased {
        bytes[16..20].copy_from_slice(&offer.guest.octets());
    }
    bytes[28..34].copy_from_slice(&request.hardware);
    bytes.extend_from_slice(&COOKIE);
    bytes.extend_from_slice(&[OPTION_TYPE, 1, kind, OPTION_SERVER, 4]);
    bytes.extend_from_slice(&offer.server.octets());
    if leased {
        bytes.extend_from_slice(&[OPTION_LEASE, 4]);
        bytes.extend_from_slice(&LEASE.to_be_bytes());
    }
    if kind != NAK {
        bytes.extend_from_slice(&[OPTION_MASK, 4]);
        bytes.extend_from_slice(&offer.mask.octets());
    }
    bytes.push(OPTION_END);
    if bytes.len() < MINIMUM {
        bytes.resize(MINIMUM, OPTION_PAD);
    }
    Some(Answer {
        destination,
        broadcast,
        payload: bytes,
    })
}
