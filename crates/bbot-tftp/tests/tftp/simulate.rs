//! Client and server over a simulated network with losses, duplicates, delays and reordering, in
//! simulated time. Whatever happens: identical bytes or a clean error at both ends, and an end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::support::{Random, assert_same, content};
use bbot_tftp::client::{Client, Options, Reason};
use bbot_tftp::packet::Packet;
use bbot_tftp::{Event, Limits, Retransmit, Root, Server};
use proptest::prelude::*;

/// How bad the network is; the chances are percentages.
#[derive(Debug, Clone)]
struct Network {
    seed: u64,
    loss: u64,
    duplication: u64,
    /// Each datagram takes up to this long, so that later ones overtake it.
    delay: Duration,
}

/// What went over the network.
#[derive(Debug, Default)]
struct Traffic {
    data: u64,
    acks: u64,
    /// When the last DATA was sent, after the start.
    took: Duration,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Datagram {
    at: Instant,
    number: u64,
    to_server: bool,
    port: u16,
    payload: Vec<u8>,
}

struct Link {
    network: Network,
    random: Random,
    under_way: BinaryHeap<Reverse<Datagram>>,
    number: u64,
    traffic: Traffic,
}

impl Link {
    fn new(network: &Network) -> Self {
        let random = Random::new(network.seed);
        Self {
            network: network.clone(),
            random,
            under_way: BinaryHeap::new(),
            number: 0,
            traffic: Traffic::default(),
        }
    }

    fn send(&mut self, now: Instant, to_server: bool, port: u16, payload: &[u8]) {
        match Packet::decode(payload).expect("only packets are sent") {
            Packet::Data { .. } => self.traffic.data += 1,
            Packet::Ack { .. } => self.traffic.acks += 1,
            _ => {}
        }
        let copies = if self.random.chance(self.network.duplication) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            if self.random.chance(self.network.loss) {
                continue;
            }
            let micros = u64::try_from(self.network.delay.as_micros()).unwrap();
            let delay = Duration::from_micros(50 + self.random.below(micros));
            self.number += 1;
            let (at, number) = (now + delay, self.number);
            self.under_way.push(Reverse(Datagram {
                at,
                number,
                to_server,
                port,
                payload: payload.to_vec(),
            }));
        }
    }
}

const CLIENT: &str = "192.0.2.2:4000";
const SERVER_IP: &str = "192.0.2.1";

/// Runs a client against a server until both are at their end.
fn simulate(
    mut client: Client<'_>,
    server: &mut Server,
    network: &Network,
    start: Instant,
) -> (Result<u64, Reason>, Vec<Event>, Traffic) {
    let peer: SocketAddr = CLIENT.parse().unwrap();
    let address = |port: u16| SocketAddr::new(SERVER_IP.parse().unwrap(), port);
    let mut link = Link::new(network);
    let mut events = Vec::new();
    let mut now = start;
    let (mut data, mut took) = (0, Duration::ZERO);
    client.start(&mut |to, packet| link.send(now, true, to.port(), packet));
    for step in 0.. {
        assert!(step < 2_000_000, "it never ends");
        let next_packet = link.under_way.peek().map(|Reverse(datagram)| datagram.at);
        let due = [next_packet, client.deadline(), server.next_deadline()]
            .into_iter()
            .flatten()
            .min();
        let Some(due) = due else { break };
        assert!(
            due < start + Duration::from_secs(24 * 3600),
            "it takes a day"
        );
        now = now.max(due);
        if next_packet == Some(due) {
            let Some(Reverse(datagram)) = link.under_way.pop() else {
                unreachable!("just peeked at")
            };
            let Datagram {
                to_server,
                port,
                payload,
                ..
            } = datagram;
            if to_server {
                server.handle(peer, port, &payload, now);
            } else {
                client.handle(address(port), &payload, now, &mut |to, packet| {
                    link.send(now, true, to.port(), packet);
                });
            }
        } else {
            client.tick(now, &mut |to, packet| {
                link.send(now, true, to.port(), packet);
            });
            server.tick(now);
        }
        while let Some(outgoing) = server.poll_outgoing() {
            assert_eq!(outgoing.peer, peer);
            link.send(now, false, outgoing.local_port, &outgoing.payload);
        }
        while let Some(event) = server.poll_event() {
            events.push(event);
        }
        if link.traffic.data > data {
            data = link.traffic.data;
            took = now - start;
        }
    }
    assert_eq!(server.sessions(), 0, "a session is left");
    link.traffic.took = took;
    (client.finish(), events, link.traffic)
}

fn folder() -> tempfile::TempDir {
    // Nothing here is about disks, and an fsync for each case would take the longest time of all.
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

#[derive(Debug, Clone)]
struct Case {
    network: Network,
    length: usize,
    block_size: u16,
    window: u16,
    server_block_size: u16,
    server_window: u16,
    shortest: Duration,
    retries: u32,
}

impl Case {
    fn retransmit(&self) -> Retransmit {
        let (first, longest) = (Duration::from_millis(200), Duration::from_secs(2));
        Retransmit {
            shortest: self.shortest,
            first,
            longest,
            retries: self.retries,
        }
    }

    fn options(&self) -> Options {
        Options {
            block_size: self.block_size,
            window: self.window,
            retransmit: self.retransmit(),
            dally: Duration::from_secs(5),
            ..Options::default()
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            max_block_size: self.server_block_size,
            max_window: self.server_window,
            retransmit: self.retransmit(),
            ..Limits::default()
        }
    }

    fn get(&self) -> (Result<u64, Reason>, Vec<Event>, Traffic) {
        let bytes = content(self.length, self.network.seed);
        let mut server = Server::new(Root::new().get_bytes("file", bytes.clone()), self.limits());
        let start = Instant::now();
        let mut got = Vec::new();
        let client = Client::get(
            format!("{SERVER_IP}:69").parse().unwrap(),
            "file",
            &mut got,
            &self.options(),
            start,
        );
        let (result, events, traffic) = simulate(client, &mut server, &self.network, start);
        if let Ok(length) = result {
            assert_eq!(length, bytes.len() as u64);
            assert_same(&got, &bytes, "what the client got");
        }
        let fetched = events
            .iter()
            .filter(|event| matches!(event, Event::Fetched { .. }))
            .count();
        assert!(fetched <= 1, "fetched once: {events:?}");
        if fetched == 1 {
            assert!(
                result.is_ok(),
                "the server says fetched, the client says {result:?}"
            );
        }
        (result, events, traffic)
    }

    fn put(&self) -> (Result<u64, Reason>, Vec<Event>, Traffic) {
        let bytes = content(self.length, self.network.seed);
        let folder = folder();
        let root = Root::new().put_once(&["file"], folder.path(), 1 << 30);
        let mut server = Server::new(root, self.limits());
        let start = Instant::now();
        let (mut source, size) = (bytes.as_slice(), Some(bytes.len() as u64));
        let address = format!("{SERVER_IP}:69").parse().unwrap();
        let client = Client::put(address, "file", &mut source, size, &self.options(), start);
        let (result, events, traffic) = simulate(client, &mut server, &self.network, start);
        let uploaded = events
            .iter()
            .filter(|event| matches!(event, Event::Uploaded { .. }))
            .count();
        let path = folder.path().join("file");
        assert_eq!(
            uploaded,
            usize::from(path.exists()),
            "one event for one file: {events:?}"
        );
        if path.exists() {
            assert_same(
                &std::fs::read(&path).unwrap(),
                &bytes,
                "what the server has",
            );
        }
        if result.is_ok() {
            assert_eq!(uploaded, 1, "the client believes that it is there");
        }
        drop(server);
        let left: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left.len(), uploaded, "nothing else is left: {left:?}");
        (result, events, traffic)
    }
}

fn cases(loss: std::ops::Range<u64>, retries: u32) -> impl Strategy<Value = Case> {
    let block_sizes = prop_oneof![
        Just(512u16),
        Just(8),
        Just(1428),
        Just(1468),
        Just(8192),
        8..2000u16
    ];
    let windows = prop_oneof![Just(1u16), Just(2), Just(8), Just(64), 1..40u16];
    // Pauses that follow the answers, and fixed ones.
    let shortest = prop_oneof![Just(10), Just(200), 1..200u64];
    let network = (any::<u64>(), loss, 0..30u64, 1..60_000u64).prop_map(
        |(seed, loss, duplication, delay)| Network {
            seed,
            loss,
            duplication,
            delay: Duration::from_micros(delay),
        },
    );
    (
        network,
        0..40u64,
        -1..=1i64,
        block_sizes.clone(),
        windows.clone(),
        block_sizes,
        windows,
        shortest,
    )
        .prop_map(
            move |(
                network,
                blocks,
                more,
                block_size,
                window,
                server_block_size,
                server_window,
                shortest,
            )| {
                // Lengths around the multiples of the block are the ones that matter.
                let agreed = i64::from(block_size.min(server_block_size));
                let length = i64::try_from(blocks).unwrap() * agreed + more;
                let length = usize::try_from(length.max(0)).unwrap();
                Case {
                    network,
                    length,
                    block_size,
                    window,
                    server_block_size,
                    server_window,
                    shortest: Duration::from_millis(shortest),
                    retries,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// With patience every file arrives.
    #[test]
    fn arrives_over_a_bad_network(case in cases(0..20, 40)) {
        let (got, events, _) = case.get();
        prop_assert!(got.is_ok(), "{got:?} {events:?}");
        let (put, events, _) = case.put();
        prop_assert!(put.is_ok(), "{put:?} {events:?}");
    }

    /// With little patience and a hopeless network it ends all the same; `get` and `put` check how.
    #[test]
    fn ends_cleanly_over_a_hopeless_network(case in cases(20..95, 3)) {
        drop(case.get());
        drop(case.put());
    }
}

fn quiet(seed: u64) -> Network {
    Network {
        seed,
        loss: 0,
        duplication: 0,
        delay: Duration::from_micros(1),
    }
}

fn lock_step(length: usize, network: Network) -> Case {
    Case {
        network,
        length,
        block_size: 512,
        window: 1,
        server_block_size: 512,
        server_window: 1,
        shortest: Duration::from_millis(200),
        retries: 5,
    }
}

#[test]
fn block_numbers_wrap() {
    // 8-byte blocks: 70,000 of them wrap once. And an end exactly at the wrap.
    for length in [8 * 70_000 + 3, 8 * 65_535, 8 * 65_536, 8 * 65_537] {
        let mut case = lock_step(length, quiet(1));
        (case.block_size, case.server_block_size) = (8, 8);
        case.get().0.unwrap();
        case.put().0.unwrap();
        (case.window, case.server_window) = (7, 64);
        case.network.loss = 1;
        case.retries = 20;
        case.get().0.unwrap();
        case.put().0.unwrap();
    }
}

#[test]
fn the_apprentice_stays_asleep() {
    // Every datagram comes twice: in lock-step no block is sent twice because of it.
    let mut network = quiet(7);
    network.duplication = 100;
    network.delay = Duration::from_micros(200);
    let blocks = 1000;
    let case = lock_step(512 * blocks - 1, network);
    for (result, events, traffic) in [case.get(), case.put()] {
        result.unwrap();
        assert_eq!(traffic.data, blocks as u64, "{events:?}");
    }
    // With windows a repeated ACK may mean a gap and is answered, but the answers' echoes are not:
    // nothing is sent more than twice, and with every window out of order it does not run away.
    let mut case = Case {
        window: 8,
        server_window: 8,
        ..case
    };
    for (delay, most) in [(1, 2), (200, 8)] {
        case.network.delay = Duration::from_micros(delay);
        for (result, events, traffic) in [case.get(), case.put()] {
            result.unwrap();
            let sent = traffic.data;
            assert!(
                sent <= most * blocks as u64,
                "{sent} for {blocks}: {events:?}"
            );
        }
    }
}

#[test]
fn windows_save_acknowledgements() {
    let mut case = lock_step(512 * 999, quiet(3));
    (case.window, case.server_window) = (16, 64);
    // 1000 blocks in windows of 16, in order: 63 ACKs, and in a GET the one of the options.
    case.network.delay = Duration::from_micros(1);
    let (result, _, traffic) = case.get();
    result.unwrap();
    assert_eq!((traffic.data, traffic.acks), (1000, 64));
    let (result, _, traffic) = case.put();
    result.unwrap();
    assert_eq!((traffic.data, traffic.acks), (1000, 63));
}

#[test]
fn a_loss_costs_hundredths_of_a_second() {
    // 1 % is lost both ways. In lock-step each loss waits for a clock; in windows few do, since the
    // blocks that follow a lost one tell of it.
    for (window, bound) in [(1, 4000), (16, 800), (64, 600)] {
        let network = Network {
            loss: 1,
            ..quiet(5)
        };
        let case = Case {
            network,
            length: 1428 * 5000,
            block_size: 1428,
            window,
            server_block_size: 1428,
            server_window: window,
            shortest: Duration::from_millis(10),
            retries: 5,
        };
        for (result, _, traffic) in [case.get(), case.put()] {
            result.unwrap();
            assert!(
                traffic.took < Duration::from_millis(bound),
                "window {window}: {traffic:?}"
            );
        }
    }
}

#[test]
fn a_slow_answer_is_no_loss() {
    // A guest under emulation answers after hundredths of a second, one time sooner than another.
    let network = Network {
        delay: Duration::from_millis(60),
        ..quiet(9)
    };
    let case = Case {
        shortest: Duration::from_millis(10),
        ..lock_step(512 * 500, network)
    };
    for (result, _, traffic) in [case.get(), case.put()] {
        result.unwrap();
        assert!(traffic.data < 520, "{traffic:?}");
    }
}

#[test]
fn a_silent_server_is_given_up() {
    let mut network = quiet(1);
    network.loss = 100;
    let case = lock_step(10, network);
    assert!(matches!(case.get().0, Err(Reason::TimedOut { tries: 6 })));
    assert!(matches!(case.put().0, Err(Reason::TimedOut { tries: 6 })));
}
