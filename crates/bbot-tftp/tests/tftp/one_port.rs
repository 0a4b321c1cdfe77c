//! A server whose transfers all answer from the port of requests, and a client that is no good.

use std::time::Duration;

use crate::bench::{Bench, data, entries, error_code};
use crate::support::content;
use bbot_tftp::packet::{self, ErrorCode, Packet};
use bbot_tftp::{Event, Failure, Limits, REQUEST_PORT, Root};

fn one_port(root: Root, limits: Limits) -> Bench {
    let mut bench = Bench::with(root, limits);
    bench.server = bench.server.on_one_port();
    bench
}

#[test]
fn transfers_of_many_peers_share_the_port() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new()
        .get_bytes("file", content(5000, 1))
        .put_any(folder.path(), 10_000);
    let mut bench = one_port(root, Limits::default());
    let peers = [4000, 4001, 4002].map(|port| std::net::SocketAddr::from(([192, 0, 2, 2], port)));
    // All in step: each gets the blocks of its own transfer.
    let mut got = vec![Vec::new(); peers.len()];
    for (peer, got) in peers.iter().zip(&mut got) {
        bench.peer = *peer;
        let (port, first) = bench.ask(REQUEST_PORT, &packet::read_request("file", &[]));
        assert_eq!(port, REQUEST_PORT);
        got.push(first);
    }
    for block in 1..10 {
        for (peer, got) in peers.iter().zip(&mut got) {
            bench.peer = *peer;
            let (port, next) = bench.ask(REQUEST_PORT, &packet::ack(block));
            assert_eq!(port, REQUEST_PORT);
            got.push(next);
        }
    }
    for got in got {
        let bytes: Vec<u8> = got.iter().flat_map(|packet| packet[4..].to_vec()).collect();
        assert!(bytes == content(5000, 1));
    }
    // Whole files both ways, one after the other from one port.
    bench.peer = peers[0];
    bench.send(REQUEST_PORT, &packet::ack(10));
    let last = bench.upload("up", &content(1500, 2));
    assert!(matches!(
        Packet::decode(&last),
        Ok(Packet::Ack { block: 3 })
    ));
    // The last answer was lost: the last block once more is answered once more.
    let (_, again) = bench.ask(REQUEST_PORT, &data(3, &content(1500, 2)[1024..]));
    assert_eq!(again, last);
    let read = packet::read_request("file", &[]);
    assert_eq!(bench.download(&read).unwrap(), content(5000, 1));
    assert_eq!(entries(folder.path()), ["up"]);
}

#[test]
fn what_belongs_to_nothing_is_refused_and_told() {
    let mut bench = one_port(Root::new(), Limits::default());
    let (_, refusal) = bench.ask(REQUEST_PORT, &packet::ack(7));
    assert_eq!(error_code(&refusal), ErrorCode::UnknownTransfer);
    assert!(
        bench
            .send(REQUEST_PORT, &packet::error(ErrorCode::Undefined, "x"))
            .is_empty()
    );
    let (_, refusal) = bench.ask(REQUEST_PORT, b"\0\x01name without an end");
    assert_eq!(error_code(&refusal), ErrorCode::IllegalOperation);
    let told: Vec<Event> = bench.events();
    assert_eq!(told.len(), 2, "{told:?}");
    for event in told {
        assert!(
            matches!(&event, Event::Failed { name, reason: Failure::Refused { .. } } if name.is_empty()),
            "{event:?}"
        );
    }
}

/// Sessions are bounded, the newest that finds no room is told, and stalled ones give way and leave nothing behind.
#[test]
fn thousands_of_sessions_that_stall_half_way_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::wire();
    let most = limits.max_sessions;
    for shared in [false, true] {
        let root = Root::new().put_any(folder.path(), 10_000);
        let mut bench = Bench::with(root, limits.clone());
        if shared {
            bench.server = bench.server.on_one_port();
        }
        let mut refused = 0;
        let mut events = 0;
        for number in 0..5000_u16 {
            bench.peer = ([192, 0, 2, 2], 1000 + number).into();
            let name = format!("up{number}");
            let (port, answer) = bench.ask(REQUEST_PORT, &packet::write_request(&name, &[]));
            if matches!(Packet::decode(&answer), Ok(Packet::Ack { .. })) {
                // Half way, and no word more.
                bench.ask(port, &data(1, &[7; 512]));
            } else {
                refused += 1;
            }
            assert!(bench.server.sessions() <= most);
            assert!(entries(folder.path()).len() <= most);
            events += bench.events().len();
            if number % 100 == 0 {
                bench.pass(Duration::from_secs(3));
            }
        }
        assert!(refused > 4000, "{refused}");
        // Each request has its event, each refusal its own too.
        assert!(events > 5000, "{events}");
        // Nobody comes back: all are given up in time, with their files.
        for _ in 0..20 {
            bench.pass(Duration::from_secs(10));
        }
        assert_eq!(bench.server.sessions(), 0);
        assert!(entries(folder.path()).is_empty());
        let last = bench.events();
        assert!(
            last.iter().any(|event| matches!(
                event,
                Event::Failed {
                    reason: Failure::TimedOut { .. },
                    ..
                }
            )),
            "{last:?}"
        );
    }
}
