//! A network namespace for a test, and a card in it.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bbot_machine::bridge::{Attached, Bridge};
use bbot_machine::mac::Mac;
use bbot_machine::wire::{AGENT, arp, ethernet, ipv4, udp};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const INSIDE: &str = "BBOT_TEST_NAMESPACE";

/// The bridge's address.
pub(crate) const BRIDGE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);

/// Whether this is the test inside its namespace. Outside it runs the test in there, or skips it.
pub(crate) fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some_and(|name| name == test) {
        testkit::run("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
        for line in [
            "link set lo up",
            "link add br1 type bridge",
            "address add 192.168.77.1/24 dev br1",
            "link set br1 up",
        ] {
            testkit::run("ip", &line.split(' ').collect::<Vec<_>>());
        }
        return true;
    }
    if !testkit::root() || !testkit::program("ip", "root") || !testkit::program("nft", "nft") {
        return false;
    }
    let output = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "timeout",
            "560",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, test)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}\n{}\n{}",
        output.status,
        said(&output.stdout),
        said(&output.stderr)
    );
    println!("{}", said(&output.stdout));
    false
}

/// What a program says.
pub(crate) fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn br1() -> Bridge {
    Bridge {
        name: "br1".parse().unwrap(),
        port: 23401,
        by_default: false,
    }
}

/// The taps of ours that there are.
pub(crate) fn taps() -> Vec<String> {
    said("ip", &["-brief", "link", "show"])
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("bbot"))
        .map(|name| name.split('@').next().unwrap().to_owned())
        .collect()
}

/// The tables of nftables.
pub(crate) fn tables() -> Vec<String> {
    said("nft", &["list", "tables"])
        .lines()
        .map(str::to_owned)
        .collect()
}

/// What lies in the folder of the records.
pub(crate) fn records() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(bbot_machine::bridge::RECORDS) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A guest's card made of hand-written frames, at a tap.
pub(crate) struct Card {
    tap: OwnedFd,
    pub(crate) mac: Mac,
    pub(crate) address: Ipv4Addr,
}

/// The header for offloading before each frame (`struct virtio_net_hdr`).
const HEADER: usize = 10;

impl Card {
    pub(crate) fn new(attached: &mut Attached, mac: Mac, address: Ipv4Addr) -> Self {
        let tap = attached.take_tap().unwrap();
        let card = Self { tap, mac, address };
        card.announce(address);
        card
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(frame);
        rustix::io::write(&self.tap, &bytes).unwrap();
    }

    /// Says that an address is this card's.
    pub(crate) fn announce(&self, address: Ipv4Addr) {
        let packet = arp::build(&arp::Packet {
            operation: arp::Operation::Request,
            sender: self.mac.0,
            sender_ip: address,
            target: [0; 6],
            target_ip: BRIDGE,
        });
        self.send(&ethernet::build(
            ethernet::BROADCAST,
            self.mac.0,
            ethernet::ARP,
            &packet,
        ));
    }

    /// A datagram to whomever, by way of a router that nobody else is.
    pub(crate) fn send_udp(&self, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) {
        let packet = udp::build(from, to, payload).unwrap();
        self.send(&ethernet::build(
            [2, 9, 9, 9, 9, 9],
            self.mac.0,
            ethernet::IPV4,
            &packet,
        ));
    }

    /// A datagram to the agent.
    pub(crate) fn ask(&self, port: u16, payload: &[u8]) {
        self.send_udp((self.address, port), (AGENT, 69), payload);
    }

    /// The next frame that comes within that time. Asked for its address, the card answers.
    fn receive(&self, until: Instant) -> Option<Vec<u8>> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(&self.tap, PollFlags::IN)];
            if poll(&mut fds, Some(&Timespec::try_from(left).unwrap())).unwrap() == 0 {
                return None;
            }
            let mut buffer = [0; 4000];
            let Ok(length) = rustix::io::read(&self.tap, &mut buffer) else {
                continue;
            };
            let frame = buffer[HEADER..length].to_vec();
            let asked = ethernet::parse(&frame)
                .filter(|frame| frame.kind == ethernet::ARP)
                .and_then(|frame| arp::parse(frame.payload))
                .filter(|packet| {
                    packet.operation == arp::Operation::Request && packet.target_ip == self.address
                });
            if let Some(asked) = asked {
                let reply = arp::build(&arp::Packet {
                    operation: arp::Operation::Reply,
                    sender: self.mac.0,
                    sender_ip: self.address,
                    target: asked.sender,
                    target_ip: asked.sender_ip,
                });
                self.send(&ethernet::build(
                    asked.sender,
                    self.mac.0,
                    ethernet::ARP,
                    &reply,
                ));
                continue;
            }
            return Some(frame);
        }
    }

    /// The next datagram that comes within that time: from where, to which port, and what it carries.
    pub(crate) fn hears(&self, within: Duration) -> Option<((Ipv4Addr, u16), u16, Vec<u8>)> {
        let until = Instant::now() + within;
        loop {
            let frame = self.receive(until)?;
            let frame = ethernet::parse(&frame).unwrap();
            if frame.kind != ethernet::IPV4 {
                continue;
            }
            let Some(packet) =
                ipv4::parse(frame.payload).filter(|packet| packet.protocol == ipv4::UDP)
            else {
                continue;
            };
            // With offloading the sum is only begun; then QEMU or the guest's card ends it.
            let payload = packet.payload;
            let port = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
            return Some((
                (packet.source, port(0)),
                port(2),
                payload[udp::HEADER..].to_vec(),
            ));
        }
    }
}
