//! What the server makes of requests, options and acknowledgements, packet by packet.

use std::time::Duration;

use crate::bench::{Bench, data, entries, error_code, request};
use crate::support::content;
use bbot_tftp::packet::{self, ErrorCode, Packet};
use bbot_tftp::{Event, Failure, Kind, Limits, REQUEST_PORT, Root};

#[test]
fn events_tell_the_way_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let root =
        Root::new()
            .get_bytes("manifest", *b"task")
            .put_once(&["result"], folder.path(), 100);
    let mut bench = Bench::new(root);
    bench
        .download(&packet::read_request("/manifest", &[]))
        .unwrap();
    bench.upload("result", b"done");
    bench
        .download(&packet::read_request("absent", &[]))
        .unwrap_err();
    let peer = bench.peer;
    let events = bench.events();
    assert_eq!(
        events[..5],
        [
            Event::Requested {
                peer,
                kind: Kind::Get,
                name: "manifest".into()
            },
            Event::Fetched {
                name: "manifest".into(),
                bytes: 4
            },
            Event::Requested {
                peer,
                kind: Kind::Put,
                name: "result".into()
            },
            Event::Uploaded {
                name: "result".into(),
                path: folder.path().join("result"),
                bytes: 4
            },
            Event::Requested {
                peer,
                kind: Kind::Get,
                name: "absent".into()
            },
        ]
    );
    assert!(
        matches!(&events[5], Event::Failed { name, reason: Failure::Refused { code: ErrorCode::NotFound, .. } } if name == "absent")
    );
    assert_eq!(events.len(), 6);
}

#[test]
fn netascii_goes_out_and_does_not_come_in() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new()
        .get_bytes("text", *b"a\nb\rc\r\n")
        .put_any(folder.path(), 100);
    let mut bench = Bench::new(root);
    assert_eq!(
        bench
            .download(&request(1, b"text", b"NetASCII", &[]))
            .unwrap(),
        b"a\r\nb\r\0c\r\0\r\n"
    );
    // Its length is not the file's: no tsize.
    let (_, answer) = bench.ask(
        REQUEST_PORT,
        &request(1, b"text", b"netascii", &[("tsize", "0")]),
    );
    assert!(matches!(
        Packet::decode(&answer),
        Ok(Packet::Data { block: 1, .. })
    ));
    for mode in [&b"netascii"[..], b"mail", b""] {
        let (_, answer) = bench.ask(REQUEST_PORT, &request(2, b"up", mode, &[]));
        assert_eq!(error_code(&answer), ErrorCode::IllegalOperation);
    }
    // A pair that is cut by the end of a block goes on in the next.
    let lines = "\n".repeat(512);
    let mut bench = Bench::new(Root::new().get_bytes("text", format!("x{lines}").into_bytes()));
    let got = bench
        .download(&request(1, b"text", b"netascii", &[]))
        .unwrap();
    assert_eq!(got, format!("x{}", "\r\n".repeat(512)).into_bytes());
}

#[test]
fn options_are_negotiated() {
    let bytes = content(100_000, 1);
    let wire = || Bench::with(Root::new().get_bytes("file", bytes.clone()), Limits::wire());
    type Asked = [(&'static str, &'static str)];
    type Answered = [(&'static str, u64)];
    let cases: &[(&Asked, &Answered)] = &[
        (&[("blksize", "8192")], &[("blksize", 1468)]),
        (
            &[("BLKSIZE", "1000"), ("TSize", "0")],
            &[("blksize", 1000), ("tsize", 100_000)],
        ),
        (&[("blksize", "7"), ("tsize", "0")], &[("tsize", 100_000)]),
        (
            &[("blksize", "99999999999999999999"), ("windowsize", "4")],
            &[("windowsize", 4)],
        ),
        (
            &[("windowsize", "65535"), ("blksize", "65464")],
            &[("windowsize", 64), ("blksize", 1468)],
        ),
        (&[("timeout", "3")], &[("timeout", 3)]),
        (
            &[("timeout", "200"), ("blksize", "512")],
            &[("blksize", 512)],
        ),
        (
            &[("multicast", ""), ("blksize", "600"), ("blksize", "700")],
            &[("blksize", 600)],
        ),
    ];
    for (asked, answered) in cases {
        let (_, answer) = wire().ask(REQUEST_PORT, &request(1, b"file", b"octet", asked));
        assert_eq!(answer, packet::option_ack(answered), "{asked:?}");
    }
    // Nothing that can be agreed to: as without options.
    for asked in [
        ("blksize", "x"),
        ("windowsize", "0"),
        ("timeout", "0"),
        ("blksize", "+9"),
    ] {
        let (_, answer) = wire().ask(REQUEST_PORT, &request(1, b"file", b"octet", &[asked]));
        assert!(
            matches!(Packet::decode(&answer), Ok(Packet::Data { block: 1, .. })),
            "{asked:?}"
        );
    }
    // Large blocks get a window that a socket's buffer can take.
    let mut bench = Bench::new(Root::new().get_bytes("file", bytes.clone()));
    let asked = request(
        1,
        b"file",
        b"octet",
        &[("blksize", "8192"), ("windowsize", "16")],
    );
    assert_eq!(
        bench.ask(REQUEST_PORT, &asked).1,
        packet::option_ack(&[("blksize", 8192), ("windowsize", 12)])
    );
}

#[test]
fn damaged_requests_are_refused() {
    let mut bench = Bench::new(Root::new());
    for packet in [
        &b""[..],
        b"\0",
        b"\0\x01",
        b"\0\x01name",
        b"\0\x01name\0octet",
        b"\0\x01n\0octet\0blksize\0",
        b"\0\x09x",
    ] {
        assert_eq!(
            error_code(&bench.ask(REQUEST_PORT, packet).1),
            ErrorCode::IllegalOperation,
            "{packet:?}"
        );
    }
    assert_eq!(
        error_code(&bench.ask(REQUEST_PORT, &packet::ack(0)).1),
        ErrorCode::UnknownTransfer
    );
    // An ERROR is never answered.
    assert!(
        bench
            .send(REQUEST_PORT, &packet::error(ErrorCode::Undefined, "x"))
            .is_empty()
    );
    assert!(
        bench
            .send(50_000, &packet::error(ErrorCode::Undefined, "x"))
            .is_empty()
    );
}

#[test]
fn a_strange_port_is_told_so() {
    let mut bench = Bench::new(Root::new().get_bytes("file", content(5000, 1)));
    let (port, _) = bench.ask(REQUEST_PORT, &packet::read_request("file", &[]));
    bench.server.handle(
        "192.0.2.2:4001".parse().unwrap(),
        port,
        &packet::ack(1),
        bench.now,
    );
    let sent = bench.server.poll_outgoing().unwrap();
    assert_eq!((sent.peer.port(), sent.local_port), (4001, port));
    assert_eq!(error_code(&sent.payload), ErrorCode::UnknownTransfer);
    // The transfer itself is not disturbed.
    let (_, answer) = bench.ask(port, &packet::ack(1));
    assert!(matches!(
        Packet::decode(&answer),
        Ok(Packet::Data { block: 2, .. })
    ));
}

#[test]
fn a_peers_error_ends_it_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new()
        .get_bytes("file", content(5000, 1))
        .put_any(folder.path(), 10_000);
    let mut bench = Bench::new(root);
    for packet in [
        packet::read_request("file", &[]),
        packet::write_request("up", &[]),
    ] {
        let (port, _) = bench.ask(REQUEST_PORT, &packet);
        assert_eq!(bench.server.sessions(), 1);
        assert!(
            bench
                .send(port, &packet::error(ErrorCode::DiskFull, "no \x1b room"))
                .is_empty()
        );
        assert_eq!(bench.server.sessions(), 0);
        assert_eq!(bench.server.next_deadline(), None);
        let events = bench.events();
        let Event::Failed { reason, .. } = &events[1] else {
            panic!("{events:?}")
        };
        assert_eq!(
            *reason,
            Failure::Peer {
                code: ErrorCode::DiskFull,
                message: "no ? room".into()
            }
        );
    }
    assert!(entries(folder.path()).is_empty());
}

#[test]
fn pauses_grow_and_end() {
    let mut bench = Bench::new(Root::new().get_bytes("file", content(5000, 1)));
    let (port, first) = bench.ask(REQUEST_PORT, &packet::read_request("file", &[]));
    let mut pauses = Vec::new();
    loop {
        let before = bench.now;
        let sent = bench.wait();
        pauses.push((bench.now - before).as_secs());
        if sent[0].1 != first {
            assert_eq!(error_code(&sent[0].1), ErrorCode::Undefined);
            break;
        }
        assert_eq!(sent, [(port, first.clone())]);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 8, 8]);
    assert!(matches!(
        bench.events()[1],
        Event::Failed {
            reason: Failure::TimedOut { tries: 6 },
            ..
        }
    ));
    assert_eq!(bench.server.sessions(), 0);

    // What the peer asks for is kept to.
    let (_, _) = bench.ask(
        REQUEST_PORT,
        &request(1, b"file", b"octet", &[("timeout", "3")]),
    );
    for pause in [3, 6, 8, 8] {
        let before = bench.now;
        bench.wait();
        assert_eq!(bench.now - before, Duration::from_secs(pause));
    }
}

#[test]
fn duplicates_do_not_prolong_a_dead_transfer() {
    let mut bench = Bench::new(Root::new().get_bytes("file", content(5000, 1)));
    let (port, _) = bench.ask(REQUEST_PORT, &packet::read_request("file", &[]));
    bench.ask(port, &packet::ack(1));
    let started = bench.now;
    while bench.server.sessions() > 0 {
        bench.send(port, &packet::ack(1));
        bench.pass(Duration::from_millis(100));
        assert!(
            bench.now - started < Duration::from_secs(40),
            "the old ACK keeps it alive"
        );
    }
}

#[test]
fn one_request_one_session() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new()
        .get_bytes("file", content(5000, 1))
        .put_any(folder.path(), 10_000);
    let mut bench = Bench::new(root);
    let read = packet::read_request("file", &[]);
    let (port, first) = bench.ask(REQUEST_PORT, &read);
    // The answer was lost: the same one again, from the same port.
    assert_eq!(bench.ask(REQUEST_PORT, &read), (port, first));
    bench.ask(port, &packet::ack(1));
    // A late copy, when the transfer runs: nothing.
    assert!(bench.send(REQUEST_PORT, &read).is_empty());
    assert_eq!(bench.server.sessions(), 1);
    // Something else from the same port: the client has begun anew.
    let (other, _) = bench.ask(REQUEST_PORT, &packet::write_request("up", &[]));
    assert_ne!(other, port);
    assert_eq!(bench.server.sessions(), 1);
    let reasons: Vec<_> = bench
        .events()
        .into_iter()
        .filter(|event| matches!(event, Event::Failed { .. }))
        .collect();
    assert_eq!(
        reasons,
        [Event::Failed {
            name: "file".into(),
            reason: Failure::Superseded
        }]
    );
    // The same again when the old transfer has stalled in its middle: begun anew, too.
    bench.ask(other, &data(1, &[0; 512]));
    bench.pass(Duration::from_secs(2));
    let (third, _) = bench.ask(REQUEST_PORT, &packet::write_request("up", &[]));
    assert_ne!(third, other);
    assert_eq!(bench.server.sessions(), 1);
    // A late copy after the end: nothing. Later it is a new request, and the finished upload
    // answers for its last block all the same.
    assert_eq!(bench.ask(third, &data(1, b"x")).1, packet::ack(1));
    let write = packet::write_request("up", &[]);
    assert!(bench.send(REQUEST_PORT, &write).is_empty());
    bench.pass(Duration::from_secs(2));
    let (fourth, _) = bench.ask(REQUEST_PORT, &write);
    assert_ne!(fourth, third);
    assert_eq!(bench.server.sessions(), 2);
    assert_eq!(bench.ask(third, &data(1, b"x")).1, packet::ack(1));
}

#[test]
fn sessions_are_bounded() {
    let limits = Limits {
        max_sessions: 2,
        ..Limits::default()
    };
    let mut bench = Bench::with(Root::new().get_bytes("file", content(5000, 1)), limits);
    let read = packet::read_request("file", &[]);
    let ask_from = |bench: &mut Bench, port: u16| {
        bench.peer.set_port(port);
        bench.ask(REQUEST_PORT, &read).1
    };
    for port in [1001, 1002] {
        assert!(matches!(
            Packet::decode(&ask_from(&mut bench, port)),
            Ok(Packet::Data { .. })
        ));
    }
    assert_eq!(
        error_code(&ask_from(&mut bench, 1003)),
        ErrorCode::Undefined
    );
    assert_eq!(bench.server.sessions(), 2);
    // The ones that do not answer give way.
    bench.pass(Duration::from_millis(1500));
    assert!(matches!(
        Packet::decode(&ask_from(&mut bench, 1003)),
        Ok(Packet::Data { .. })
    ));
    assert_eq!(bench.server.sessions(), 2);
}

#[test]
fn windows_recover_by_the_rfc() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(512 * 10, 1);
    let root = Root::new()
        .get_bytes("file", bytes.clone())
        .put_any(folder.path(), 1 << 20);
    let mut bench = Bench::new(root);
    let options = [("windowsize", "4")];
    let numbers = |sent: Vec<(u16, Vec<u8>)>| -> Vec<u16> {
        sent.iter()
            .map(|(_, packet)| match Packet::decode(packet) {
                Ok(Packet::Data { block, .. } | Packet::Ack { block }) => block,
                other => panic!("{other:?}"),
            })
            .collect()
    };
    // GET: an ACK in the middle of a window means that the rest was lost.
    let (port, _) = bench.ask(REQUEST_PORT, &request(1, b"file", b"octet", &options));
    assert_eq!(numbers(bench.send(port, &packet::ack(0))), [1, 2, 3, 4]);
    assert_eq!(numbers(bench.send(port, &packet::ack(2))), [3, 4, 5, 6]);
    assert_eq!(numbers(bench.send(port, &packet::ack(6))), [7, 8, 9, 10]);
    // The first block of the window was lost: the ACK of the one before comes again.
    assert_eq!(numbers(bench.send(port, &packet::ack(6))), [7, 8, 9, 10]);
    assert!(
        bench.send(port, &packet::ack(6)).is_empty(),
        "once for a window"
    );
    assert_eq!(numbers(bench.wait()), [7, 8, 9, 10]);
    assert_eq!(numbers(bench.send(port, &packet::ack(10))), [11]);
    assert!(bench.send(port, &packet::ack(11)).is_empty());
    assert_eq!(bench.server.sessions(), 0);

    // PUT: one ACK for a window; at a gap one of the last block in order; nothing for what follows.
    bench.peer.set_port(4001);
    let (port, _) = bench.ask(REQUEST_PORT, &request(2, b"up", b"octet", &options));
    let block = |number: u16| data(number, &bytes[..512]);
    for number in 1..4 {
        assert!(bench.send(port, &block(number)).is_empty());
    }
    assert_eq!(numbers(bench.send(port, &block(4))), [4]);
    assert!(bench.send(port, &block(5)).is_empty());
    assert_eq!(numbers(bench.send(port, &block(7))), [5], "6 is missing");
    assert!(bench.send(port, &block(8)).is_empty());
    for number in 6..9 {
        assert!(bench.send(port, &block(number)).is_empty());
    }
    assert_eq!(numbers(bench.send(port, &block(9))), [9]);
    // Silence: the last ACK once more.
    assert_eq!(numbers(bench.wait()), [9]);
    assert_eq!(numbers(bench.send(port, &data(10, b""))), [10]);
}

#[test]
fn what_is_held_back_is_told_and_answered_by_another_server() {
    let mut bench = Bench::new(
        Root::new()
            .get_bytes("manifest", *b"task")
            .get_held("later"),
    );
    let request = packet::read_request("later", &[]);
    assert_eq!(bench.send(REQUEST_PORT, &request), []);
    let peer = bench.peer;
    let told = [
        Event::Requested {
            peer,
            kind: Kind::Get,
            name: "later".into(),
        },
        Event::Held {
            peer,
            name: "later".into(),
            request: request.clone(),
        },
    ];
    assert_eq!(bench.events(), told);
    // Asked again it is told again, and nothing has begun.
    assert_eq!(bench.send(REQUEST_PORT, &request), []);
    assert_eq!(bench.events(), told);
    assert_eq!(bench.server.sessions(), 0);

    let mut later = Bench::new(Root::new().get_bytes("later", *b"now"));
    assert_eq!(later.download(&request).unwrap(), b"now");
}

#[test]
fn what_is_made_is_made_at_each_request() {
    let count = std::sync::atomic::AtomicU8::new(0);
    let make = move || vec![count.fetch_add(1, std::sync::atomic::Ordering::Relaxed)];
    let mut bench = Bench::new(Root::new().get_made("count", make));
    for n in 0..3 {
        let request = packet::read_request("count", &[]);
        assert_eq!(bench.download(&request).unwrap(), [n]);
        bench.peer.set_port(bench.peer.port() + 1);
    }
}
