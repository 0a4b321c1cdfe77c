//! TFTP over hours of virtual time: a server and a client meet any packets at any moment; their answers stay few, small
//! and well-formed, files stay in their bounds, and in the end all is over and nothing is left behind.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bbot_fuzz::{Clock, Input, folder};
use bbot_tftp::client::{Client, Options};
use bbot_tftp::packet::{self, ErrorCode, Packet};
use bbot_tftp::{Event, Limits, REQUEST_PORT, Root, Server};
use libfuzzer_sys::fuzz_target;

const PUT_LIMIT: u64 = 3000;
const NAMES: [&str; 8] = [
    "manifest",
    "task.manifest",
    "small",
    "log.1",
    "log.2",
    "result.manifest",
    "../x",
    "nothing",
];

/// A packet: any bytes at all, or one that is almost right, as a fuzzer alone would seldom make it.
fn packet(input: &mut Input<'_>, block: u16) -> Vec<u8> {
    let kind = input.byte();
    let near = |input: &mut Input<'_>| {
        block
            .wrapping_add(u16::from(input.byte() & 3))
            .wrapping_sub(1)
    };
    match kind & 7 {
        0 => input.short().to_vec(),
        1 | 2 => {
            let name = NAMES[usize::from(input.byte() & 7)];
            let mut offered = Vec::new();
            let sizes = input.byte();
            if sizes & 1 != 0 {
                offered.push(("blksize", u64::from(input.number())));
            }
            if sizes & 2 != 0 {
                offered.push(("windowsize", u64::from(input.byte())));
            }
            if sizes & 4 != 0 {
                offered.push(("tsize", u64::from(input.number())));
            }
            if sizes & 8 != 0 {
                offered.push(("timeout", u64::from(input.byte())));
            }
            if kind & 7 == 1 {
                packet::read_request(name, &offered)
            } else {
                packet::write_request(name, &offered)
            }
        }
        3 | 4 => {
            let block = near(input);
            let length = usize::from(input.number() % 1600);
            [&[0, 3][..], &block.to_be_bytes(), &vec![kind; length]].concat()
        }
        5 => packet::ack(near(input)).to_vec(),
        6 => packet::error(ErrorCode::from_number(u16::from(input.byte())), "no"),
        _ => {
            let mut bytes = vec![0, 6];
            bytes.extend_from_slice(input.short());
            bytes
        }
    }
}

/// The last block that this datagram speaks of.
fn block_of(payload: &[u8]) -> Option<u16> {
    match Packet::decode(payload) {
        Ok(Packet::Data { block, .. } | Packet::Ack { block }) => Some(block),
        _ => None,
    }
}

fn serve(mut input: Input<'_>) {
    let folder = folder();
    let root = Root::new()
        .get_bytes("manifest", vec![1; 5000])
        .get_bytes("task.manifest", vec![2; 70_000])
        .get_bytes("small", vec![3; 10])
        .put_once(&["manifest", "result.manifest"], folder.path(), PUT_LIMIT)
        .put_numbered("log.", folder.path(), PUT_LIMIT);
    let limits = Limits {
        max_sessions: 4,
        ..Limits::wire()
    };
    let window = usize::from(limits.max_window);
    let mut server = Server::new(root, limits.clone());
    let mut clock = Clock::new();
    let mut blocks = [0; 4];
    let mut ports = [REQUEST_PORT; 4];
    let mut steps = 0;
    while !input.is_empty() && steps < 400 {
        steps += 1;
        let step = input.byte();
        let who = usize::from(step >> 4 & 3);
        let mut may_send = 1 + window;
        if step & 8 != 0 {
            clock.pass(u16::from(input.byte()));
            server.tick(clock.0);
            may_send = limits.max_sessions * (1 + window);
        } else {
            let payload = packet(&mut input, blocks[who]);
            let port = match step & 3 {
                0 => REQUEST_PORT,
                1 | 2 => ports[who],
                _ => 49152 + input.number() % 16384,
            };
            server.handle(peer(who), port, &payload, clock.0);
            if step & 4 != 0 {
                // Making room may send again what others wait for.
                may_send += limits.max_sessions * (1 + window);
            }
        }
        assert!(server.sessions() <= limits.max_sessions);
        let mut sent = 0;
        while let Some(outgoing) = server.poll_outgoing() {
            sent += 1;
            let Some(who) = (0..4).find(|who| peer(*who) == outgoing.peer) else {
                panic!("sent to a stranger: {}", outgoing.peer)
            };
            assert!(
                outgoing.payload.len() <= usize::from(limits.max_block_size) + packet::DATA_HEADER
            );
            assert!(Packet::decode(&outgoing.payload).is_ok());
            if outgoing.local_port != REQUEST_PORT {
                ports[who] = outgoing.local_port;
            }
            if let Some(block) = block_of(&outgoing.payload) {
                blocks[who] = block;
            }
        }
        assert!(
            sent <= may_send + limits.max_sessions * (1 + window),
            "{sent} packets at once"
        );
        while let Some(event) = server.poll_event() {
            if let Event::Uploaded { name, path, bytes } = event {
                assert!(bytes <= PUT_LIMIT && path == folder.path().join(&name));
                let there = std::fs::metadata(&path).expect("what was uploaded is there");
                assert_eq!(there.len(), bytes);
            }
        }
    }
    // Nobody speaks any more: everything ends by itself.
    let mut waits = 0;
    while let Some(deadline) = server.next_deadline() {
        clock.0 = clock.0.max(deadline);
        server.tick(clock.0);
        while server.poll_outgoing().is_some() {}
        waits += 1;
        assert!(waits < 1000, "transfers that never end");
    }
    assert_eq!(server.sessions(), 0);
    drop(server);
    for entry in std::fs::read_dir(folder.path()).expect("the folder is there") {
        let name = entry.expect("it can be read").file_name();
        let name = name.to_str().expect("only names that we know");
        assert!(
            matches!(name, "manifest" | "result.manifest") || name.starts_with("log."),
            "{name} is left"
        );
    }
}

fn peer(who: usize) -> SocketAddr {
    let who = u16::try_from(who).expect("there are four");
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(196, 254, 111, 2)), 2000 + who)
}

fn ask(mut input: Input<'_>, is_get: bool) {
    const LIMIT: u64 = 10_000;
    let server = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(196, 254, 111, 222)), REQUEST_PORT);
    let mut clock = Clock::new();
    let choice = input.byte();
    let options = Options {
        block_size: if choice & 1 == 0 { 512 } else { 1468 },
        window: if choice & 2 == 0 { 1 } else { 16 },
        deadline: (choice & 4 != 0).then(|| clock.0 + std::time::Duration::from_secs(60)),
        limit: LIMIT,
        ..Options::default()
    };
    let mut got = Vec::new();
    let all = vec![7; 40_000];
    let mut from = &all[..];
    let mut client = if is_get {
        Client::get(server, "manifest", &mut got, &options, clock.0)
    } else {
        Client::put(
            server,
            "manifest",
            &mut from,
            Some(40_000),
            &options,
            clock.0,
        )
    };
    let mut block = 0;
    let mut sent = 0_usize;
    let out = |to: SocketAddr, payload: &[u8], block: &mut u16, sent: &mut usize| {
        assert_eq!(to.ip(), server.ip());
        assert!(payload.len() <= 1468 + packet::DATA_HEADER && Packet::decode(payload).is_ok());
        *sent += 1;
        *block = block_of(payload).unwrap_or(*block);
    };
    client.start(&mut |to, payload| out(to, payload, &mut block, &mut sent));
    let mut steps = 0;
    while !input.is_empty() && client.deadline().is_some() && steps < 400 {
        steps += 1;
        sent = 0;
        let step = input.byte();
        if step & 7 == 7 {
            clock.pass(u16::from(input.byte()));
            client.tick(clock.0, &mut |to, payload| {
                out(to, payload, &mut block, &mut sent)
            });
        } else {
            let payload = packet(&mut input, block);
            let port = if step & 8 == 0 { 50_000 } else { 50_001 };
            let from = SocketAddr::new(server.ip(), port);
            client.handle(from, &payload, clock.0, &mut |to, payload| {
                out(to, payload, &mut block, &mut sent)
            });
        }
        assert!(
            sent <= 1 + usize::from(options.window),
            "{sent} packets at once"
        );
    }
    let mut waits = 0;
    while let Some(deadline) = client.deadline() {
        clock.0 = clock.0.max(deadline);
        client.tick(clock.0, &mut |to, payload| {
            out(to, payload, &mut block, &mut sent)
        });
        waits += 1;
        assert!(waits < 1000, "a transfer that never ends");
    }
    match client.finish() {
        Ok(bytes) if is_get => assert!(bytes <= LIMIT && bytes == got.len() as u64),
        Ok(bytes) => assert!(bytes == 40_000 && from.is_empty()),
        Err(_) => assert!(got.len() as u64 <= LIMIT),
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    match input.byte() & 3 {
        0 | 1 => serve(input),
        2 => ask(input, true),
        _ => ask(input, false),
    }
});
