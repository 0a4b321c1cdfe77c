//! Guests on one bridge: each has its own run's TFTP, whatever the others do.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use bbot_machine::bridge::{Attached, GuestEnd, RECORDS};
use bbot_machine::mac::Mac;
use bbot_machine::machine::Tftp;
use bbot_machine::wire::AGENT;
use bbot_machine::wire::thread::WireThread;
use bbot_tftp::packet::{self, Packet};
use bbot_tftp::{Event, Limits, Root};

use super::namespace::{BRIDGE, Card, br1, inside, said};

const LONG: Duration = Duration::from_secs(20);
/// How long nothing is to come.
const QUIET: Duration = Duration::from_millis(400);

struct Run {
    card: Card,
    wire: WireThread,
    port: u16,
    attached: Attached,
    put: tempfile::TempDir,
}

fn run(number: u8) -> Run {
    let mac = Mac([2, 0, 0, 0, 0, number]);
    let mut attached = Attached::new(
        br1(),
        &format!("m{number}"),
        mac,
        &GuestEnd::Tap,
        Path::new(RECORDS),
    )
    .unwrap();
    let port = attached.port().unwrap();
    let put = tempfile::tempdir().unwrap();
    let root = Root::new()
        .get_bytes("f", format!("for {number}").into_bytes())
        .get_bytes("long", vec![number; 10_000])
        .put_any(put.path(), 100_000);
    let limits = Limits::default();
    let wire = attached.serve(&Tftp { root, limits }).unwrap();
    let card = Card::new(&mut attached, mac, Ipv4Addr::new(192, 168, 77, number));
    Run {
        card,
        wire,
        port,
        attached,
        put,
    }
}

impl Run {
    /// What the agent answers.
    fn answer(&self, port: u16, payload: &[u8]) -> Vec<u8> {
        self.card.ask(port, payload);
        let (from, to, answer) = self.card.hears(LONG).expect("no answer");
        assert_eq!((from, to), ((AGENT, 69), port));
        answer
    }

    /// Waits for an event.
    fn told(&mut self, is_it: impl Fn(&Event) -> bool) {
        let began = Instant::now();
        loop {
            match self.wire.try_event() {
                Some(event) if is_it(&event) => return,
                Some(_) => {}
                None => {
                    assert!(began.elapsed() < LONG, "it was not told");
                    std::thread::yield_now();
                }
            }
        }
    }

    fn fetches_its_own(&mut self, number: u8, port: u16) {
        let answer = self.answer(port, &packet::read_request("f", &[]));
        let expected = format!("for {number}");
        assert!(
            matches!(Packet::decode(&answer), Ok(Packet::Data { block: 1, data }) if data == expected.as_bytes()),
            "{answer:?}"
        );
        self.card.ask(port, &packet::ack(1));
        self.told(|event| matches!(event, Event::Fetched { .. }));
    }
}

/// Each guest reaches its run by the one address, files of many blocks go both ways, and it does not matter whether
/// bridged packets are shown to iptables.
#[test]
fn each_guest_has_its_own_run_at_the_one_address() {
    if !inside("apart::each_guest_has_its_own_run_at_the_one_address") {
        return;
    }
    for shown in ["0", "1"] {
        let switch = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
        if switch.exists() {
            std::fs::write(switch, shown).unwrap();
        }
        let mut runs = [run(10), run(11)];
        assert_ne!(runs[0].port, runs[1].port);
        for (run, number) in runs.iter_mut().zip([10, 11]) {
            run.fetches_its_own(number, 5000);
        }
        // In blocks as large as fit, in step with one another: each block from the same port.
        let options = [("blksize", 65464)];
        for run in &runs {
            let answer = run.answer(6000, &packet::read_request("long", &options));
            assert_eq!(answer, b"\0\x06blksize\x001468\0");
        }
        for block in 0..=6_u16 {
            for (run, number) in runs.iter().zip([10_u8, 11]) {
                let answer = run.answer(6000, &packet::ack(block));
                let Ok(Packet::Data { block: got, data }) = Packet::decode(&answer) else {
                    panic!("{answer:?}")
                };
                assert_eq!(got, block + 1);
                assert!(data.iter().all(|&byte| byte == number));
                assert_eq!(data.len(), if block < 6 { 1468 } else { 10_000 - 6 * 1468 });
            }
        }
        for run in &runs {
            run.card.ask(6000, &packet::ack(7));
            let answer = run.answer(7000, &packet::write_request("up", &[]));
            assert_eq!(answer, packet::ack(0));
            assert_eq!(run.answer(7000, b"\0\x03\0\x01result"), packet::ack(1));
            assert_eq!(std::fs::read(run.put.path().join("up")).unwrap(), b"result");
        }
        for run in &mut runs {
            run.told(|event| matches!(event, Event::Uploaded { .. }));
        }
    }
}

#[test]
fn a_guest_reaches_no_other_run() {
    if !inside("apart::a_guest_reaches_no_other_run") {
        return;
    }
    let mut good = run(10);
    let mut bad = run(66);
    good.fetches_its_own(10, 5000);
    bad.fetches_its_own(66, 5000);
    let before = good.wire.counters();
    let own = (bad.card.address, 5001);
    let theirs = (good.card.address, 5000);
    let request = packet::read_request("f", &[]);
    let upload = packet::write_request("forged", &[]);

    // By the other run's real port, from its own address and from the other guest's.
    bad.card.send_udp(own, (BRIDGE, good.port), &request);
    bad.card.send_udp(theirs, (BRIDGE, good.port), &upload);
    assert_eq!(bad.card.hears(QUIET), None);
    // As the other guest, by the one address: it is its own run that hears it, if any.
    bad.card.send_udp(theirs, (AGENT, 69), &upload);
    // As the agent, to the other guest, directly and by way of the host.
    bad.card
        .send_udp((AGENT, 69), theirs, b"\0\x03\0\x01forged");
    let to_good =
        bbot_machine::wire::udp::build((AGENT, 69), theirs, b"\0\x03\0\x01forged").unwrap();
    let ip4 = bbot_machine::wire::ethernet::IPV4;
    let build = bbot_machine::wire::ethernet::build;
    bad.card
        .send(&build(good.card.mac.0, bad.card.mac.0, ip4, &to_good));
    bad.card
        .send(&build([0xff; 6], bad.card.mac.0, ip4, &to_good));
    // To the other guest as itself: there is no way from guest to guest.
    let hello = bbot_machine::wire::udp::build(own, theirs, b"hello").unwrap();
    bad.card
        .send(&build(good.card.mac.0, bad.card.mac.0, ip4, &hello));
    // With the other guest's hardware address: the bridge must not learn that it is here.
    bad.card
        .send(&build([0xff; 6], good.card.mac.0, ip4, &hello));
    assert_eq!(good.card.hears(QUIET), None);
    let learnt = said("bridge", &["fdb", "show", "br", "br1"]);
    let place = format!("{} dev {} ", good.card.mac, good.attached.tap_name());
    assert!(learnt.contains(&place), "{place} is not in {learnt}");
    // The host itself is nobody's guest.
    let host = UdpSocket::bind((BRIDGE, 0)).unwrap();
    host.send_to(&request, (BRIDGE, good.port)).unwrap();
    host.set_read_timeout(Some(QUIET)).unwrap();
    assert!(host.recv(&mut [0; 100]).is_err());

    let after = good.wire.counters();
    assert_eq!(after.frames, before.frames, "the other run has heard it");
    assert!(!good.put.path().join("forged").exists());
    good.fetches_its_own(10, 5002);

    // The host has come to believe that the other guest is here: it gets none of its answers all the same.
    let word = |mac: Mac| mac.to_string();
    let claim = [
        "neigh",
        "replace",
        "192.168.77.10",
        "lladdr",
        &word(bad.card.mac),
        "dev",
        "br1",
    ];
    testkit::run("ip", &claim);
    let before = good.wire.counters().frames;
    good.card.ask(5003, &request);
    let began = Instant::now();
    while good.wire.counters().frames == before && began.elapsed() < LONG {
        std::thread::yield_now();
    }
    // Its own run repeats its answer to what it asked as the other guest.
    while let Some((_, to, payload)) = bad.card.hears(QUIET) {
        assert_eq!((to, payload), (5000, packet::ack(0).to_vec()));
    }
    testkit::run("ip", &["neigh", "del", "192.168.77.10", "dev", "br1"]);
    good.card.announce(good.card.address);
    bad.card.announce(bad.card.address);
    good.fetches_its_own(10, 5004);

    // From an address of elsewhere: the host must not answer there.
    let before = bad.wire.counters();
    bad.card
        .send_udp((Ipv4Addr::new(198, 51, 100, 7), 53), (AGENT, 69), &request);
    bad.fetches_its_own(66, 5005);
    let after = bad.wire.counters();
    assert_eq!(
        after.frames - before.frames - (after.ignored - before.ignored),
        2,
        "{after:?}"
    );
    drop(good.attached);
}
