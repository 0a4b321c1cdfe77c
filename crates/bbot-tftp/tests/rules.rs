//! What the server grants and refuses, and how it ends, packet by packet.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use bbot_tftp::packet::{self, ErrorCode, Packet};
use bbot_tftp::{Event, Failure, Kind, Limits, REQUEST_PORT, Root, Server};
use proptest::prelude::*;
use support::content;

/// A server, its clock, and a peer by hand.
struct Bench {
    server: Server,
    now: Instant,
    peer: SocketAddr,
}

impl Bench {
    fn new(root: Root) -> Self {
        Self::with(root, Limits::default())
    }

    fn with(root: Root, limits: Limits) -> Self {
        let peer = "192.0.2.2:4000".parse().unwrap();
        Self {
            server: Server::new(root, limits),
            now: Instant::now(),
            peer,
        }
    }

    /// What the server sends in answer: its port and the packet.
    fn send(&mut self, port: u16, packet: &[u8]) -> Vec<(u16, Vec<u8>)> {
        self.server.handle(self.peer, port, packet, self.now);
        self.sent()
    }

    fn sent(&mut self) -> Vec<(u16, Vec<u8>)> {
        std::iter::from_fn(|| self.server.poll_outgoing())
            .map(|out| (out.local_port, out.payload))
            .collect()
    }

    /// Sends a packet that has one answer.
    #[track_caller]
    fn ask(&mut self, port: u16, packet: &[u8]) -> (u16, Vec<u8>) {
        let mut sent = self.send(port, packet);
        assert_eq!(sent.len(), 1, "one answer, not {sent:?}");
        sent.remove(0)
    }

    /// Lets the time pass until the server has something to do.
    fn wait(&mut self) -> Vec<(u16, Vec<u8>)> {
        let due = self
            .server
            .next_deadline()
            .expect("the server waits for something");
        self.now = self.now.max(due);
        self.server.tick(self.now);
        self.sent()
    }

    fn pass(&mut self, time: Duration) -> Vec<(u16, Vec<u8>)> {
        self.now += time;
        self.server.tick(self.now);
        self.sent()
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.server.poll_event()).collect()
    }

    /// A whole upload in blocks of 512; the last answer.
    fn upload(&mut self, name: &str, bytes: &[u8]) -> Vec<u8> {
        let (port, mut answer) = self.ask(REQUEST_PORT, &packet::write_request(name, &[]));
        for (index, block) in blocks(bytes).into_iter().enumerate() {
            if !matches!(Packet::decode(&answer), Ok(Packet::Ack { .. })) {
                break;
            }
            answer = self
                .ask(port, &data(u16::try_from(index + 1).unwrap(), &block))
                .1;
        }
        answer
    }

    /// A whole download in blocks of 512.
    fn download(&mut self, request: &[u8]) -> Result<Vec<u8>, ErrorCode> {
        let (port, mut answer) = self.ask(REQUEST_PORT, request);
        let mut bytes = Vec::new();
        loop {
            match Packet::decode(&answer).unwrap() {
                Packet::Data { block, data } => {
                    bytes.extend_from_slice(data);
                    let last = data.len() < 512;
                    let mut sent = self.send(port, &packet::ack(block));
                    if last {
                        assert!(sent.is_empty(), "nothing after the last ACK");
                        return Ok(bytes);
                    }
                    answer = sent.remove(0).1;
                }
                Packet::Error { code, .. } => return Err(code),
                other => panic!("{other:?}"),
            }
        }
    }
}

fn blocks(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut blocks: Vec<_> = bytes.chunks(512).map(<[u8]>::to_vec).collect();
    if bytes.len() % 512 == 0 {
        blocks.push(Vec::new());
    }
    blocks
}

fn data(block: u16, bytes: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 4];
    packet::data_header(&mut packet, block);
    packet.extend_from_slice(bytes);
    packet
}

fn request(operation: u8, name: &[u8], mode: &[u8], options: &[(&str, &str)]) -> Vec<u8> {
    let mut packet = vec![0, operation];
    packet.extend_from_slice(name);
    packet.push(0);
    packet.extend_from_slice(mode);
    packet.push(0);
    for (name, value) in options {
        packet.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
    }
    packet
}

#[track_caller]
fn error_code(packet: &[u8]) -> ErrorCode {
    match Packet::decode(packet) {
        Ok(Packet::Error { code, .. }) => code,
        other => panic!("no error: {other:?}"),
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn get_names_and_folders() {
    let folder = tempfile::tempdir().unwrap();
    let tools = folder.path().join("tools");
    fs::create_dir_all(tools.join("sub")).unwrap();
    fs::write(tools.join("bootstrap"), "#!/bin/sh\n").unwrap();
    fs::write(tools.join("sub/inner"), "inner").unwrap();
    fs::write(tools.join(".hidden"), "hidden").unwrap();
    fs::write(folder.path().join("task"), "task").unwrap();
    std::os::unix::fs::symlink("../task", tools.join("link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        tools.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let root = Root::new()
        .get_file("manifest", folder.path().join("task"))
        .get_file("task.manifest", folder.path().join("task"))
        .get_bytes("run.manifest", *b"run")
        .get_folder(&tools);
    let mut bench = Bench::new(root);
    let mut get = |name: &str| {
        bench
            .download(&packet::read_request(name, &[]))
            .map(|b| String::from_utf8(b).unwrap())
    };
    assert_eq!(get("manifest").unwrap(), "task");
    assert_eq!(get("/task.manifest").unwrap(), "task");
    assert_eq!(get("run.manifest").unwrap(), "run");
    assert_eq!(get("bootstrap").unwrap(), "#!/bin/sh\n");
    assert_eq!(get("nothing"), Err(ErrorCode::NotFound));
    for name in [
        "link",
        "fifo",
        "sub",
        "sub/inner",
        ".hidden",
        "..",
        "../task",
        "//bootstrap",
        "/",
        "",
        "a\x07b",
    ] {
        assert_eq!(get(name), Err(ErrorCode::AccessViolation), "{name:?}");
    }
    assert_eq!(get(&"x".repeat(129)), Err(ErrorCode::AccessViolation));
    assert_eq!(get(&"x".repeat(128)), Err(ErrorCode::NotFound));
    // An upload is not granted by anything here.
    assert_eq!(
        error_code(&bench.upload("manifest", b"x")),
        ErrorCode::AccessViolation
    );
    assert_eq!(bench.server.sessions(), 0);
}

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
    let cases: &[(&[(&str, &str)], &[(&str, u64)])] = &[
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
            &[("windowsize", 16), ("blksize", 1468)],
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
    // And when it is over.
    assert_eq!(bench.ask(third, &data(1, b"x")).1, packet::ack(1));
    bench.ask(REQUEST_PORT, &packet::write_request("up", &[]));
    assert_eq!(bench.server.sessions(), 1);
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
fn the_last_ack_comes_after_the_file_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench =
        Bench::new(Root::new().put_once(&["manifest", "result.manifest"], folder.path(), 2000));
    let (port, answer) = bench.ask(REQUEST_PORT, &packet::write_request("manifest", &[]));
    assert_eq!(answer, packet::ack(0));
    bench.ask(port, &data(1, &[7; 512]));
    let there = entries(folder.path());
    assert!(
        there.len() == 1 && there[0].starts_with('.'),
        "not under its name yet: {there:?}"
    );
    // Nobody can fetch what is on its way.
    assert_eq!(bench.ask(port, &data(2, b"end")).1, packet::ack(2));
    assert_eq!(entries(folder.path()), ["manifest"]);
    assert_eq!(fs::read(folder.path().join("manifest")).unwrap().len(), 515);
    // The ACK was lost.
    for _ in 0..3 {
        bench.pass(Duration::from_secs(3));
        assert_eq!(bench.ask(port, &data(2, b"end")).1, packet::ack(2));
    }
    bench.pass(Duration::from_secs(10));
    assert_eq!(bench.server.sessions(), 0);
    assert_eq!(bench.events().len(), 2);
    // The first is the result, under whatever name the second comes.
    for name in ["manifest", "result.manifest"] {
        assert_eq!(
            error_code(&bench.upload(name, b"again")),
            ErrorCode::FileExists
        );
    }
    assert_eq!(entries(folder.path()), ["manifest"]);
}

#[test]
fn of_two_uploads_at_once_the_first_whole_one_counts() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench =
        Bench::new(Root::new().put_once(&["manifest", "result.manifest"], folder.path(), 2000));
    let (first, _) = bench.ask(REQUEST_PORT, &packet::write_request("manifest", &[]));
    bench.peer.set_port(4001);
    let (second, _) = bench.ask(REQUEST_PORT, &packet::write_request("result.manifest", &[]));
    assert_eq!(bench.ask(second, &data(1, b"second")).1, packet::ack(1));
    bench.peer.set_port(4000);
    assert_eq!(
        error_code(&bench.ask(first, &data(1, b"first")).1),
        ErrorCode::FileExists
    );
    assert_eq!(entries(folder.path()), ["result.manifest"]);
    let events = bench.events();
    assert_eq!(
        events
            .iter()
            .filter(|event| matches!(event, Event::Uploaded { .. }))
            .count(),
        1
    );
}

#[test]
fn log_segments() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(Root::new().put_numbered("log.", folder.path(), 1000));
    assert_eq!(bench.upload("log.1", b"one"), packet::ack(1));
    assert_eq!(bench.upload("log.20", b"twenty"), packet::ack(1));
    // There already: acknowledged and dropped.
    assert_eq!(bench.upload("log.1", b"ONE"), packet::ack(1));
    assert_eq!(fs::read(folder.path().join("log.1")).unwrap(), b"one");
    for name in [
        "log.",
        "log.0",
        "log.01",
        "log.1x",
        "log.-1",
        "log",
        "log.12345678901",
        "LOG.2",
        "log.\u{663}",
    ] {
        assert_eq!(
            error_code(&bench.upload(name, b"x")),
            ErrorCode::AccessViolation,
            "{name}"
        );
    }
    assert_eq!(entries(folder.path()), ["log.1", "log.20"]);
    let uploads = bench
        .events()
        .into_iter()
        .filter(|event| matches!(event, Event::Uploaded { .. }));
    assert_eq!(uploads.count(), 2);
}

#[test]
fn limits_hold_whatever_tsize_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(Root::new().put_any(folder.path(), 1024));
    assert_eq!(bench.upload("exact", &[1; 1024]), packet::ack(3));
    assert_eq!(
        error_code(&bench.upload("more", &[1; 1025])),
        ErrorCode::DiskFull
    );
    // A size that the file does not have is neither believed nor reserved.
    for size in ["9000000000000", "1"] {
        let asked = request(2, b"lie", b"octet", &[("tsize", size)]);
        let (port, answer) = bench.ask(REQUEST_PORT, &asked);
        assert_eq!(
            answer,
            packet::option_ack(&[("tsize", size.parse().unwrap())])
        );
        bench.ask(port, &data(1, &[2; 512]));
        bench.ask(port, &data(2, &[2; 100]));
        assert_eq!(fs::metadata(folder.path().join("lie")).unwrap().len(), 612);
    }
    assert_eq!(entries(folder.path()), ["exact", "lie"]);
}

#[test]
fn nothing_is_left_of_a_broken_upload() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(Root::new().put_any(folder.path(), 10_000));
    let (port, _) = bench.ask(REQUEST_PORT, &packet::write_request("up", &[]));
    bench.ask(port, &data(1, &[0; 512]));
    assert_eq!(entries(folder.path()).len(), 1);
    // A block larger than agreed.
    assert_eq!(
        error_code(&bench.ask(port, &data(2, &[0; 513])).1),
        ErrorCode::IllegalOperation
    );
    assert!(entries(folder.path()).is_empty());
    // A client that falls silent.
    let (port, _) = bench.ask(REQUEST_PORT, &packet::write_request("up", &[]));
    bench.ask(port, &data(1, &[0; 512]));
    while bench.server.sessions() > 0 {
        bench.wait();
    }
    assert!(entries(folder.path()).is_empty());
    // A server that goes.
    let (port, _) = bench.ask(REQUEST_PORT, &packet::write_request("up", &[]));
    bench.ask(port, &data(1, &[0; 512]));
    drop(bench);
    assert!(entries(folder.path()).is_empty());
}

#[test]
fn a_folder_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone");
    let mut bench = Bench::new(Root::new().get_folder(&gone).put_any(&gone, 100));
    assert_eq!(
        bench.download(&packet::read_request("x", &[])),
        Err(ErrorCode::AccessViolation)
    );
    assert_eq!(
        error_code(&bench.upload("x", b"")),
        ErrorCode::AccessViolation
    );
    // The peer is told no path of the host; the log is.
    let (_, answer) = bench.ask(REQUEST_PORT, &packet::read_request("x", &[]));
    assert!(!String::from_utf8_lossy(&answer).contains("gone"));
    let told = bench.events().into_iter().any(|event| match event {
        Event::Failed { reason, .. } => reason.to_string().contains("gone"),
        _ => false,
    });
    assert!(told);
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

/// Pieces of names that have opened other people's servers.
fn wicked_name() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"..".to_vec()),
        Just(b"/".to_vec()),
        Just(b"\\".to_vec()),
        Just(b".".to_vec()),
        Just(b"%2e%2e%2f".to_vec()),
        Just(b"\xc0\xae\xc0\xae\xc0\xaf".to_vec()),
        Just(b"secret".to_vec()),
        Just(b"in".to_vec()),
        Just(b"link".to_vec()),
        Just(b"folder".to_vec()),
        Just(b"allowed".to_vec()),
        Just(b"/proc/self/root/".to_vec()),
        proptest::collection::vec(1..=255u8, 1..4),
    ];
    proptest::collection::vec(piece, 0..7).prop_map(|pieces| pieces.concat())
}

fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry
            .file_name()
            .into_string()
            .unwrap_or_else(|name| format!("{name:?}"));
        let kind = entry.file_type().unwrap();
        if kind.is_symlink() {
            let target = fs::read_link(entry.path()).unwrap();
            files.insert(name, target.into_os_string().into_encoded_bytes());
        } else if kind.is_dir() {
            files.extend(
                tree(&entry.path())
                    .into_iter()
                    .map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)),
            );
        } else {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    files
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the name: only the folder's own files go out, and nothing comes in beside it.
    #[test]
    fn no_name_leaves_the_root(name in prop_oneof![wicked_name(), proptest::collection::vec(1..=255u8, 0..140)]) {
        let world = tempfile::tempdir().unwrap();
        let inside = world.path().join("in");
        fs::create_dir_all(inside.join("folder")).unwrap();
        fs::write(world.path().join("secret"), "SECRET").unwrap();
        fs::write(inside.join("folder/secret"), "SECRET").unwrap();
        fs::write(inside.join("allowed"), "allowed").unwrap();
        std::os::unix::fs::symlink("../secret", inside.join("link")).unwrap();
        std::os::unix::fs::symlink("..", inside.join("linkfolder")).unwrap();
        let mut bench = Bench::new(Root::new().get_folder(&inside).put_any(&inside, 100));
        for sent in bench.send(REQUEST_PORT, &request(1, &name, b"octet", &[])) {
            if let Ok(Packet::Data { data, .. }) = Packet::decode(&sent.1) {
                prop_assert_eq!(data, b"allowed");
            }
        }
        let before = tree(world.path());
        bench.peer.set_port(4001);
        let (port, _) = bench.ask(REQUEST_PORT, &request(2, &name, b"octet", &[]));
        bench.send(port, &data(1, b"mine"));
        drop(bench);
        let changed: Vec<_> =
            tree(world.path()).into_iter().filter(|(path, bytes)| before.get(path) != Some(bytes)).collect();
        prop_assert!(changed.len() <= 1, "{changed:?}");
        for (path, bytes) in changed {
            // A link itself may be replaced by the file; what it points to may not.
            prop_assert!(path.strip_prefix("in/").is_some_and(|name| !name.contains('/')), "{path}");
            prop_assert_eq!(bytes, b"mine");
        }
    }

    /// Bytes from outside never stop the server, in whatever state it is.
    #[test]
    fn no_bytes_stop_it(packets in proptest::collection::vec((0..3u8, proptest::collection::vec(any::<u8>(), 0..40)), 0..20)) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new().get_bytes("file", content(3000, 1)).put_any(folder.path(), 10_000);
        let mut bench = Bench::new(root);
        let (get, _) = bench.ask(REQUEST_PORT, &packet::read_request("file", &[("windowsize", 3)]));
        bench.peer.set_port(4001);
        let (put, _) = bench.ask(REQUEST_PORT, &packet::write_request("up", &[("windowsize", 3)]));
        for (to, mut packet) in packets {
            if let [high, low, ..] = packet.as_mut_slice() {
                (*high, *low) = (0, *low % 8);
            }
            bench.peer.set_port(if to == 1 { 4000 } else { 4001 });
            bench.send([REQUEST_PORT, get, put][usize::from(to)], &packet);
            bench.pass(Duration::from_millis(300));
        }
        prop_assert!(bench.server.sessions() <= 4);
    }
}
