//! The client's state machine against servers of all manners, packet by packet.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bbot_tftp::client::{Client, Options, Reason};
use bbot_tftp::packet::{self, ErrorCode, Packet};
use proptest::prelude::*;

const SERVER: &str = "192.0.2.1:69";
const TRANSFER: &str = "192.0.2.1:50000";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Hands the client a packet; what it sends.
fn hand(
    client: &mut Client<'_>,
    from: &str,
    packet: &[u8],
    now: Instant,
) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut sent = Vec::new();
    let mut out = |to, packet: &[u8]| sent.push((to, packet.to_vec()));
    client.handle(address(from), packet, now, &mut out);
    sent
}

fn tick(client: &mut Client<'_>, now: Instant) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut sent = Vec::new();
    client.tick(now, &mut |to, packet: &[u8]| {
        sent.push((to, packet.to_vec()));
    });
    sent
}

fn to_transfer(packet: &[u8]) -> (SocketAddr, Vec<u8>) {
    (address(TRANSFER), packet.to_vec())
}

fn data(block: u16, bytes: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 4];
    packet::data_header(&mut packet, block);
    packet.extend_from_slice(bytes);
    packet
}

#[test]
fn a_server_without_options() {
    let (now, mut got) = (Instant::now(), Vec::new());
    let mut client = Client::get(address(SERVER), "file", &mut got, &Options::default(), now);
    let sent = hand(&mut client, TRANSFER, &data(1, &[1; 512]), now);
    assert_eq!(
        sent,
        [to_transfer(&packet::ack(1))],
        "every block is acknowledged"
    );
    let sent = hand(&mut client, TRANSFER, &data(2, b"end"), now);
    assert_eq!(sent, [to_transfer(&packet::ack(2))]);
    assert_eq!(client.deadline(), None);
    assert_eq!(client.finish().unwrap(), 515);

    let mut source = &[2; 600][..];
    let mut client = Client::put(
        address(SERVER),
        "file",
        &mut source,
        None,
        &Options::default(),
        now,
    );
    let sent = hand(&mut client, TRANSFER, &packet::ack(0), now);
    assert_eq!(sent, [to_transfer(&data(1, &[2; 512]))], "one block of 512");
    let sent = hand(&mut client, TRANSFER, &packet::ack(1), now);
    assert_eq!(sent, [to_transfer(&data(2, &[2; 88]))]);
    hand(&mut client, TRANSFER, &packet::ack(2), now);
    assert_eq!(client.finish().unwrap(), 600);
}

#[test]
fn a_server_that_refuses_options() {
    let (now, mut got) = (Instant::now(), Vec::new());
    let mut client = Client::get(address(SERVER), "file", &mut got, &Options::default(), now);
    let refusal = packet::error(ErrorCode::OptionRefused, "no options");
    let plain = packet::read_request("file", &[]);
    let sent = hand(&mut client, TRANSFER, &refusal, now);
    assert_eq!(sent, [(address(SERVER), plain.clone())]);
    // A copy of the refusal changes nothing, and it is the plain request that is repeated.
    assert!(hand(&mut client, TRANSFER, &refusal, now).is_empty());
    let due = client.deadline().unwrap();
    assert_eq!(tick(&mut client, due), [(address(SERVER), plain)]);
    hand(&mut client, "192.0.2.1:50001", &data(1, b"x"), now);
    assert_eq!(client.finish().unwrap(), 1);
}

#[test]
fn a_server_that_grants_less() {
    let (now, mut got) = (Instant::now(), Vec::new());
    let mut client = Client::get(address(SERVER), "file", &mut got, &Options::default(), now);
    let answer = packet::option_ack(&[("blksize", 600), ("windowsize", 2)]);
    assert_eq!(
        hand(&mut client, TRANSFER, &answer, now),
        [to_transfer(&packet::ack(0))]
    );
    // Our ACK was lost, and the server repeats itself.
    assert_eq!(
        hand(&mut client, TRANSFER, &answer, now),
        [to_transfer(&packet::ack(0))]
    );
    assert!(hand(&mut client, TRANSFER, &data(1, &[1; 600]), now).is_empty());
    assert!(
        hand(&mut client, TRANSFER, &answer, now).is_empty(),
        "too late to matter"
    );
    let sent = hand(&mut client, TRANSFER, &data(2, &[1; 600]), now);
    assert_eq!(sent, [to_transfer(&packet::ack(2))]);
    hand(&mut client, TRANSFER, &data(3, b""), now);
    assert_eq!(client.finish().unwrap(), 1200);
}

#[test]
fn a_server_that_grants_what_was_not_asked() {
    for answer in [
        &[("blksize", 1469)][..],
        &[("blksize", 7)],
        &[("windowsize", 65)],
        &[("windowsize", 0)],
        &[("timeout", 1)],
        &[("multicast", 1)],
    ] {
        let (now, mut got) = (Instant::now(), Vec::new());
        let mut client = Client::get(address(SERVER), "file", &mut got, &Options::default(), now);
        let sent = hand(&mut client, TRANSFER, &packet::option_ack(answer), now);
        let Ok(Packet::Error { code, .. }) = Packet::decode(&sent[0].1) else {
            panic!("{sent:?}")
        };
        assert_eq!(
            (sent[0].0, code),
            (address(TRANSFER), ErrorCode::OptionRefused)
        );
        assert!(
            matches!(client.finish(), Err(Reason::Protocol(_))),
            "{answer:?}"
        );
    }
}

#[test]
fn another_port_is_another_transfer() {
    let (now, mut got) = (Instant::now(), Vec::new());
    let mut client = Client::get(address(SERVER), "file", &mut got, &Options::default(), now);
    hand(&mut client, TRANSFER, &data(1, &[1; 512]), now);
    // A second answer to a repeated request is sent away; a stranger is not even answered.
    let sent = hand(&mut client, "192.0.2.1:50001", &data(1, &[9; 512]), now);
    let Ok(Packet::Error {
        code: ErrorCode::UnknownTransfer,
        ..
    }) = Packet::decode(&sent[0].1)
    else {
        panic!("{sent:?}")
    };
    assert_eq!(sent[0].0, address("192.0.2.1:50001"));
    let error = packet::error(ErrorCode::Undefined, "x");
    assert!(hand(&mut client, "192.0.2.1:50001", &error, now).is_empty());
    assert!(hand(&mut client, "192.0.2.9:50000", &data(2, b"evil"), now).is_empty());
    hand(&mut client, TRANSFER, &data(2, b"end"), now);
    assert_eq!(client.finish().unwrap(), 515);
    assert!(got.ends_with(b"end"));
}

#[test]
fn errors_are_told_apart() {
    let now = Instant::now();
    let mut got = Vec::new();
    let mut client = Client::get(address(SERVER), "file", &mut got, &Options::default(), now);
    hand(
        &mut client,
        TRANSFER,
        &packet::error(ErrorCode::NotFound, "none"),
        now,
    );
    let Err(Reason::Peer { code, message }) = client.finish() else {
        panic!("an error is expected")
    };
    assert_eq!((code, message.as_str()), (ErrorCode::NotFound, "none"));

    // In the middle of the transfer.
    let mut got = Vec::new();
    let mut client = Client::get(address(SERVER), "file", &mut got, &Options::default(), now);
    hand(&mut client, TRANSFER, &data(1, &[1; 512]), now);
    hand(
        &mut client,
        TRANSFER,
        &packet::error(ErrorCode::DiskFull, "x"),
        now,
    );
    assert_eq!(client.deadline(), None, "it ends at once");
    assert!(matches!(
        client.finish(),
        Err(Reason::Peer {
            code: ErrorCode::DiskFull,
            ..
        })
    ));

    // The time is up: the server is told, and the caller too.
    let options = Options {
        deadline: Some(now + Duration::from_millis(10)),
        ..Options::default()
    };
    let mut got = Vec::new();
    let mut client = Client::get(address(SERVER), "file", &mut got, &options, now);
    hand(&mut client, TRANSFER, &data(1, &[1; 512]), now);
    assert_eq!(client.deadline(), options.deadline);
    let sent = tick(&mut client, now + Duration::from_millis(10));
    assert!(matches!(
        Packet::decode(&sent[0].1),
        Ok(Packet::Error { .. })
    ));
    assert!(matches!(client.finish(), Err(Reason::Deadline)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes from a server never stop it, whatever they are.
    #[test]
    fn no_bytes_stop_it(
        putting in any::<bool>(),
        packets in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..20),
    ) {
        let mut now = Instant::now();
        let (mut got, mut source) = (Vec::new(), &[1; 9000][..]);
        let options = Options { limit: 1000, ..Options::default() };
        let mut client = if putting {
            Client::put(address(SERVER), "file", &mut source, Some(9000), &options, now)
        } else {
            Client::get(address(SERVER), "file", &mut got, &options, now)
        };
        for (answer, mut bytes) in packets {
            if let [high, low, ..] = bytes.as_mut_slice() {
                (*high, *low) = (0, *low % 8);
            }
            if answer {
                bytes = packet::option_ack(&[("blksize", 8 + u64::from(bytes.len() > 20)), ("windowsize", 3)]);
            }
            hand(&mut client, TRANSFER, &bytes, now);
            now += Duration::from_millis(400);
            tick(&mut client, now);
        }
        let _ = client.finish();
        prop_assert!(got.len() <= 1000);
    }
}
