//! The wire, driven frame by frame as a guest would.

use std::net::Ipv4Addr;
use std::time::Instant;

use proptest::prelude::*;

use super::*;

const CARD: ethernet::Address = [2, 0, 0, 0, 0, 1];

fn wire() -> Wire {
    let root = bbot_tftp::Root::new().get_bytes("task.manifest", *b": 1\n");
    Wire::new(bbot_tftp::Server::new(root, bbot_tftp::Limits::wire()))
}

fn frame(kind: u16, payload: &[u8]) -> Vec<u8> {
    ethernet::build(AGENT_MAC, CARD, kind, payload)
}

fn udp_frame(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    frame(ethernet::IPV4, &udp::build(from, to, payload).unwrap())
}

/// All frames that a frame brings forth.
fn answers(wire: &mut Wire, frame: &[u8]) -> Vec<Vec<u8>> {
    wire.handle(frame, Instant::now());
    std::iter::from_fn(|| wire.poll_frame()).collect()
}

fn datagram(frame: &[u8]) -> (ethernet::Address, ipv4::Packet<'_>, udp::Datagram<'_>) {
    let frame = ethernet::parse(frame).unwrap();
    let packet = ipv4::parse(frame.payload).unwrap();
    let datagram = udp::parse(&packet).unwrap();
    (frame.destination, packet, datagram)
}

/// A client's DHCP message.
fn dhcp_message(kind: u8, client: Ipv4Addr, options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 236];
    bytes[0..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(b"xid0");
    bytes[12..16].copy_from_slice(&client.octets());
    bytes[28..34].copy_from_slice(&CARD);
    bytes.extend_from_slice(&[99, 130, 83, 99, 53, 1, kind]);
    bytes.extend_from_slice(options);
    bytes.push(255);
    bytes
}

fn dhcp_frame(message: &[u8]) -> Vec<u8> {
    let packet = udp::build(
        (Ipv4Addr::UNSPECIFIED, dhcp::CLIENT_PORT),
        (Ipv4Addr::BROADCAST, dhcp::SERVER_PORT),
        message,
    );
    ethernet::build(ethernet::BROADCAST, CARD, ethernet::IPV4, &packet.unwrap())
}

/// The value of an option in a server's message.
fn option(message: &[u8], code: u8) -> Option<&[u8]> {
    let mut rest = &message[240..];
    while let [found, length, tail @ ..] = rest {
        if *found == 255 {
            return None;
        }
        let (value, tail) = tail.split_at(usize::from(*length));
        if *found == code {
            return Some(value);
        }
        rest = tail;
    }
    None
}

#[test]
fn dhcp_gives_the_one_address() {
    let mut wire = wire();
    let offers = answers(
        &mut wire,
        &dhcp_frame(&dhcp_message(1, Ipv4Addr::UNSPECIFIED, &[])),
    );
    let [offer] = &offers[..] else {
        panic!("{offers:?}")
    };
    let (to, packet, offer) = datagram(offer);
    assert_eq!(
        (to, packet.source, packet.destination),
        (CARD, AGENT, GUEST)
    );
    assert_eq!((offer.source, offer.destination), (67, 68));
    assert_eq!(offer.payload[4..8], *b"xid0");
    assert_eq!(offer.payload[16..20], GUEST.octets());
    assert_eq!(option(offer.payload, 53), Some(&[2][..]));
    assert_eq!(option(offer.payload, 54), Some(&AGENT.octets()[..]));
    assert_eq!(
        option(offer.payload, 51),
        Some(&86_400u32.to_be_bytes()[..])
    );
    assert_eq!(option(offer.payload, 1), Some(&[255, 255, 255, 0][..]));
    // No router and no name server: there is nothing behind the wire.
    assert_eq!(
        (option(offer.payload, 3), option(offer.payload, 6)),
        (None, None)
    );

    let chosen = [&[54, 4][..], &AGENT.octets(), &[50, 4], &GUEST.octets()].concat();
    let acks = answers(
        &mut wire,
        &dhcp_frame(&dhcp_message(3, Ipv4Addr::UNSPECIFIED, &chosen)),
    );
    let (_, _, ack) = datagram(&acks[0]);
    assert_eq!(option(ack.payload, 53), Some(&[5][..]));
    assert_eq!(ack.payload[16..20], GUEST.octets());
}

#[test]
fn dhcp_answers_by_the_book() {
    let none = Ipv4Addr::UNSPECIFIED;
    let elsewhere = Ipv4Addr::new(10, 0, 0, 1);
    let wanting = |address: Ipv4Addr| [&[50, 4][..], &address.octets()].concat();
    let choosing = |server: Ipv4Addr| [&[54, 4][..], &server.octets()].concat();
    // Message type, client's address, options; answer's type, destination, address given.
    let cases = [
        (3, none, wanting(GUEST), Some((5, GUEST, GUEST))),
        (
            3,
            none,
            wanting(elsewhere),
            Some((6, Ipv4Addr::BROADCAST, none)),
        ),
        (3, GUEST, vec![], Some((5, GUEST, GUEST))),
        (3, elsewhere, vec![], Some((6, Ipv4Addr::BROADCAST, none))),
        (3, none, choosing(elsewhere), None),
        (8, GUEST, vec![], Some((5, GUEST, none))),
        (4, none, vec![], None),
        (7, GUEST, vec![], None),
        (99, none, vec![], None),
    ];
    for (kind, client, options, expected) in cases {
        let mut wire = wire();
        let got = answers(
            &mut wire,
            &dhcp_frame(&dhcp_message(kind, client, &options)),
        );
        let got = got.first().map(|frame| {
            let (_, packet, datagram) = datagram(frame);
            let given: [u8; 4] = datagram.payload[16..20].try_into().unwrap();
            (
                option(datagram.payload, 53).unwrap()[0],
                packet.destination,
                Ipv4Addr::from(given),
            )
        });
        assert_eq!(got, expected, "{kind} {client} {options:?}");
    }
}

#[test]
fn dhcp_broadcasts_to_those_that_ask() {
    let mut message = dhcp_message(1, Ipv4Addr::UNSPECIFIED, &[]);
    message[10] = 0x80;
    let frames = answers(&mut wire(), &dhcp_frame(&message));
    let (to, packet, _) = datagram(&frames[0]);
    assert_eq!(
        (to, packet.destination),
        (ethernet::BROADCAST, Ipv4Addr::BROADCAST)
    );
}

fn arp_request(target_ip: Ipv4Addr) -> Vec<u8> {
    let packet = arp::build(&arp::Packet {
        operation: arp::Operation::Request,
        sender: CARD,
        sender_ip: GUEST,
        target: [0; 6],
        target_ip,
    });
    ethernet::build(ethernet::BROADCAST, CARD, ethernet::ARP, &packet)
}

#[test]
fn arp_tells_of_the_agent_alone() {
    let mut wire = wire();
    let replies = answers(&mut wire, &arp_request(AGENT));
    let frame = ethernet::parse(&replies[0]).unwrap();
    assert_eq!(frame.destination, CARD);
    assert_eq!(
        arp::parse(frame.payload).unwrap(),
        arp::Packet {
            operation: arp::Operation::Reply,
            sender: AGENT_MAC,
            sender_ip: AGENT,
            target: CARD,
            target_ip: GUEST,
        }
    );
    assert!(answers(&mut wire, &arp_request(Ipv4Addr::new(196, 254, 111, 1))).is_empty());
    assert!(answers(&mut wire, &arp_request(GUEST)).is_empty());
    assert_eq!(
        wire.counters(),
        Counters {
            frames: 3,
            ignored: 2,
            ..Counters::default()
        }
    );
}

#[test]
fn ping_is_answered() {
    let mut request = vec![8, 0, 0, 0, 1, 2, 3, 4, b'h', b'i', b'!'];
    let sum = ipv4::checksum(&[&request]);
    request[2..4].copy_from_slice(&sum.to_be_bytes());
    let packet = ipv4::build(GUEST, AGENT, ipv4::ICMP, &request).unwrap();
    let replies = answers(&mut wire(), &frame(ethernet::IPV4, &packet));
    let reply = ethernet::parse(&replies[0]).unwrap();
    let reply = ipv4::parse(reply.payload).unwrap();
    assert_eq!((reply.source, reply.destination), (AGENT, GUEST));
    assert_eq!(reply.payload[0], 0);
    assert_eq!(reply.payload[4..], request[4..]);
    assert_eq!(ipv4::checksum(&[reply.payload]), 0);
}

#[test]
fn a_file_is_fetched() {
    let mut wire = wire();
    let request = b"\0\x01task.manifest\0octet\0";
    let data = answers(&mut wire, &udp_frame((GUEST, 5000), (AGENT, 69), request));
    let (to, packet, block) = datagram(&data[0]);
    assert_eq!(
        (to, packet.source, packet.destination),
        (CARD, AGENT, GUEST)
    );
    assert_eq!(block.destination, 5000);
    assert_eq!(block.payload, b"\0\x03\0\x01: 1\n");
    let ack = udp_frame((GUEST, 5000), (AGENT, block.source), b"\0\x04\0\x01");
    assert!(answers(&mut wire, &ack).is_empty());
    let events: Vec<_> = std::iter::from_fn(|| wire.poll_event()).collect();
    assert!(
        matches!(&events[..], [
            bbot_tftp::Event::Requested { .. },
            bbot_tftp::Event::Fetched { name, .. },
        ] if name == "task.manifest"),
        "{events:?}"
    );
}

#[test]
fn no_block_is_larger_than_a_frame() {
    let root = bbot_tftp::Root::new().get_bytes("f", vec![0; 10_000]);
    let mut wire = Wire::new(bbot_tftp::Server::new(root, bbot_tftp::Limits::wire()));
    let request = b"\0\x01f\0octet\0blksize\x0065464\0";
    let answer = answers(&mut wire, &udp_frame((GUEST, 5000), (AGENT, 69), request));
    assert_eq!(datagram(&answer[0]).2.payload, b"\0\x06blksize\x001468\0");
    let port = datagram(&answer[0]).2.source;
    let data = answers(
        &mut wire,
        &udp_frame((GUEST, 5000), (AGENT, port), b"\0\x04\0\0"),
    );
    assert_eq!(data[0].len(), ethernet::HEADER + ethernet::MTU);
}

#[test]
fn nothing_else_is_answered() {
    let request = b"\0\x01task.manifest\0octet\0";
    let ours = (AGENT, 69);
    let outside = Ipv4Addr::new(192, 0, 2, 1);
    let good = udp::build((GUEST, 5000), ours, request).unwrap();
    let damaged = |at: usize, by: u8| {
        let mut packet = good.clone();
        packet[at] ^= by;
        frame(ethernet::IPV4, &packet)
    };
    let fragment = {
        let mut packet = good.clone();
        packet[6] = 0x20;
        packet[10..12].fill(0);
        let sum = ipv4::checksum(&[&packet[..20]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        frame(ethernet::IPV4, &packet)
    };
    let cases: [(&str, Vec<u8>, bool); 15] = [
        (
            "to another address",
            udp_frame((GUEST, 5000), (outside, 69), request),
            false,
        ),
        (
            "to everyone",
            udp_frame((GUEST, 5000), (Ipv4Addr::BROADCAST, 69), request),
            false,
        ),
        (
            "from another network",
            udp_frame((outside, 5000), ours, request),
            false,
        ),
        (
            "from ourselves",
            udp_frame((AGENT, 5000), ours, request),
            false,
        ),
        (
            "from the network itself",
            udp_frame((Ipv4Addr::new(196, 254, 111, 0), 5000), ours, request),
            false,
        ),
        (
            "to another card",
            ethernet::build([2; 6], CARD, ethernet::IPV4, &good),
            false,
        ),
        ("IPv6", frame(0x86dd, &[0x60; 60]), false),
        (
            "TCP",
            frame(
                ethernet::IPV4,
                &ipv4::build(GUEST, AGENT, 6, &[0; 20]).unwrap(),
            ),
            false,
        ),
        ("a wrong header checksum", damaged(11, 1), true),
        ("a wrong UDP checksum", damaged(30, 1), true),
        ("a fragment", fragment, true),
        ("nothing", vec![], true),
        ("half a header", vec![0; 13], true),
        ("a giant", vec![0; 2000], true),
        (
            "from a group",
            ethernet::build(AGENT_MAC, [3; 6], ethernet::IPV4, &good),
            true,
        ),
    ];
    for (what, bytes, malformed) in cases {
        let mut wire = wire();
        assert!(answers(&mut wire, &bytes).is_empty(), "{what} was answered");
        assert!(wire.poll_event().is_none(), "{what} made an event");
        let counters = wire.counters();
        assert_eq!(
            (counters.malformed, counters.ignored),
            (u64::from(malformed), u64::from(!malformed)),
            "{what}"
        );
    }
    assert!(!answers(&mut wire(), &frame(ethernet::IPV4, &good)).is_empty());
}

#[test]
fn answers_do_not_pile_up() {
    let mut wire = wire();
    for _ in 0..1000 {
        wire.handle(&arp_request(AGENT), Instant::now());
    }
    assert_eq!(
        std::iter::from_fn(|| wire.poll_frame()).count(),
        MAX_WAITING
    );
    assert_eq!(wire.counters().overflowed, 1000 - MAX_WAITING as u64);
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut wire = wire();
        for kind in [ethernet::ARP, ethernet::IPV4] {
            answers(&mut wire, &frame(kind, &bytes));
        }
        answers(&mut wire, &bytes);
        arp::parse(&bytes);
        dhcp::parse(&bytes);
        icmp::echo_reply(&bytes);
        if let Some(packet) = ipv4::parse(&bytes) {
            udp::parse(&packet);
        }
    }

    /// Well-formed on the outside, so that the inner parsers are reached.
    #[test]
    fn any_payload_is_survived(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        port in prop_oneof![Just(67u16), Just(68), Just(69), any::<u16>()],
        options in proptest::collection::vec(any::<u8>(), 0..60),
        protocol in any::<u8>(),
    ) {
        let mut wire = wire();
        answers(&mut wire, &udp_frame((GUEST, 5000), (AGENT, port), &bytes));
        answers(&mut wire, &dhcp_frame(&dhcp_message(3, GUEST, &options)));
        answers(&mut wire, &frame(ethernet::IPV4, &ipv4::build(GUEST, AGENT, protocol, &bytes).unwrap()));
    }

    #[test]
    fn what_is_written_is_read(
        payload in proptest::collection::vec(any::<u8>(), 0..1472),
        from in any::<(u32, u16)>(),
        to in any::<(u32, u16)>(),
    ) {
        let from = (Ipv4Addr::from(from.0), from.1);
        let to = (Ipv4Addr::from(to.0), to.1);
        let bytes = frame(ethernet::IPV4, &udp::build(from, to, &payload).unwrap());
        prop_assert!(bytes.len() >= ethernet::MINIMUM);
        let (destination, packet, datagram) = datagram(&bytes);
        prop_assert_eq!(destination, AGENT_MAC);
        prop_assert_eq!((packet.source, datagram.source), from);
        prop_assert_eq!((packet.destination, datagram.destination), to);
        prop_assert_eq!(datagram.payload, &payload[..]);
    }

    #[test]
    fn one_wrong_bit_is_noticed(
        payload in proptest::collection::vec(any::<u8>(), 1..100),
        at in any::<prop::sample::Index>(),
        bit in 0..8u8,
    ) {
        let mut packet = udp::build((GUEST, 5000), (AGENT, 69), &payload).unwrap();
        let at = at.index(packet.len());
        packet[at] ^= 1u8 << bit;
        // No checksum at all is allowed; another length covers other bytes.
        prop_assume!(packet[26..28] != [0, 0] && !(24..26).contains(&at));
        let survived = ipv4::parse(&packet).and_then(|packet| udp::parse(&packet).map(|_| ()));
        prop_assert!(survived.is_none());
    }
}
