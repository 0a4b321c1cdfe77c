//! The machine's own network: a wire whose one end is the guest's first network
//! card and whose other end is the agent itself (`docs/protocol.md`, section 1).
//!
//! [`Wire`] is the agent's end without any I/O: it takes Ethernet frames and
//! gives Ethernet frames. It answers ARP, DHCP, `ping` and TFTP at
//! 196.254.111.222 and drops everything else; there is nothing behind it, so a
//! guest reaches neither another guest nor the host. [`thread::WireThread`]
//! drives it over a socket.
//!
//! ```text
//!   guest -> ethernet -> arp
//!                     -> ipv4 -> icmp
//!                             -> udp -> dhcp
//!                                    -> bbot_tftp::Server
//! ```
//!
//! Every parser takes any bytes at all: what cannot be read is dropped and counted.

pub mod arp;
pub mod dhcp;
pub mod ethernet;
pub mod flood;
pub mod icmp;
pub mod ipv4;
pub mod thread;
pub mod udp;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Instant;

use crate::mac::Mac;
use crate::warm::Waiting;

/// The agent, as every guest sees it. The original's address.
pub const AGENT: Ipv4Addr = Ipv4Addr::new(196, 254, 111, 222);
/// The agent's hardware address, as every guest sees it.
pub const AGENT_MAC: ethernet::Address = [0x02, 0x62, 0x62, 0x6f, 0x74, 0x00];
/// Every guest's address.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(196, 254, 111, 2);
/// The mask of their network.
pub const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

/// The largest TFTP block that fits the wire's MTU: 1500 less the headers of
/// IPv4 (20), UDP (8) and TFTP (4).
pub const MAX_BLKSIZE: u16 = 1468;

/// How many answers of our own (ARP, DHCP, ICMP) may wait to be sent. A guest
/// that asks faster than it takes the answers does not get them all.
const MAX_WAITING: usize = 64;

/// What happened on a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Frames from the guest.
    pub frames: u64,
    /// Of these: could not be read.
    pub malformed: u64,
    /// Of these: readable, but nothing that is answered here.
    pub ignored: u64,
    /// Of these: requests for files.
    pub requests: u64,
    /// Answers that were given up, since too many waited.
    pub overflowed: u64,
}

impl Counters {
    /// Tells of the traffic of a machine that has ended.
    pub(crate) fn tell(&self, machine: &str) {
        tracing::debug!(machine, "wire: {self:?}");
        if self.malformed > 0 {
            tracing::warn!(
                machine,
                "{} of {} frames of the guest could not be read",
                self.malformed,
                self.frames
            );
        }
    }
}

/// Why a frame was not handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dropped {
    Malformed,
    Ignored,
}

/// The agent's end of a wire, without I/O.
#[derive(Debug)]
pub struct Wire {
    tftp: bbot_tftp::Server,
    /// The hardware address of the guest: the last that spoke IPv4. There is one
    /// guest, but its address may differ from its card's.
    guest: ethernet::Address,
    waiting: VecDeque<Vec<u8>>,
    counters: Counters,
}

impl Wire {
    /// A wire with this TFTP server at its end.
    pub fn new(tftp: bbot_tftp::Server) -> Self {
        Self {
            tftp,
            guest: ethernet::BROADCAST,
            waiting: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes a frame from the guest.
    pub fn handle(&mut self, frame: &[u8], now: Instant) {
        self.counters.frames += 1;
        match self.take(frame, now) {
            Ok(()) => {}
            Err(Dropped::Malformed) => self.counters.malformed += 1,
            Err(Dropped::Ignored) => self.counters.ignored += 1,
        }
    }

    /// Takes a request that a guest has sent before it was saved, as if it came now.
    pub fn hear(&mut self, guest: Mac, waiting: &Waiting, now: Instant) {
        self.guest = guest.0;
        self.counters.requests += 1;
        let port = bbot_tftp::REQUEST_PORT;
        self.tftp.handle(waiting.peer, port, &waiting.request, now);
    }

    /// Lets time-outs happen.
    pub fn tick(&mut self, now: Instant) {
        self.tftp.tick(now);
    }

    /// When [`Wire::tick`] is to be called next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.tftp.next_deadline()
    }

    /// The next frame for the guest.
    pub fn poll_frame(&mut self) -> Option<Vec<u8>> {
        if let Some(frame) = self.waiting.pop_front() {
            return Some(frame);
        }
        while let Some(outgoing) = self.tftp.poll_outgoing() {
            let SocketAddr::V4(peer) = outgoing.peer else {
                continue;
            };
            let packet = udp::build(
                (AGENT, outgoing.local_port),
                (*peer.ip(), peer.port()),
                &outgoing.payload,
            );
            // A packet above the MTU cannot come from a server that keeps to
            // MAX_BLKSIZE; should one, the guest would never see it.
            if let Some(packet) = packet.filter(|packet| packet.len() <= ethernet::MTU) {
                return Some(self.to_guest(ethernet::IPV4, &packet));
            }
            self.counters.overflowed += 1;
        }
        None
    }

    /// The next thing that happened to the server.
    pub fn poll_event(&mut self) -> Option<bbot_tftp::Event> {
        self.tftp.poll_event()
    }

    fn to_guest(&self, kind: u16, payload: &[u8]) -> Vec<u8> {
        ethernet::build(self.guest, AGENT_MAC, kind, payload)
    }

    fn answer(&mut self, frame: Vec<u8>) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(frame);
        } else {
            self.counters.overflowed += 1;
        }
    }

    fn take(&mut self, bytes: &[u8], now: Instant) -> Result<(), Dropped> {
        let frame = ethernet::parse(bytes).ok_or(Dropped::Malformed)?;
        if frame.destination != AGENT_MAC && frame.destination != ethernet::BROADCAST {
            return Err(Dropped::Ignored);
        }
        match frame.kind {
            ethernet::ARP => self.take_arp(frame.payload),
            ethernet::IPV4 => self.take_ipv4(&frame, now),
            _ => Err(Dropped::Ignored),
        }
    }

    fn take_arp(&mut self, bytes: &[u8]) -> Result<(), Dropped> {
        let packet = arp::parse(bytes).ok_or(Dropped::Malformed)?;
        // A probe for our own address by a guest that would like to have it is
        // answered too: that is how it learns that it is taken.
        if packet.operation != arp::Operation::Request || packet.target_ip != AGENT {
            return Err(Dropped::Ignored);
        }
        let reply = arp::build(&arp::Packet {
            operation: arp::Operation::Reply,
            sender: AGENT_MAC,
            sender_ip: AGENT,
            target: packet.sender,
            target_ip: packet.sender_ip,
        });
        self.answer(ethernet::build(
            packet.sender,
            AGENT_MAC,
            ethernet::ARP,
            &reply,
        ));
        Ok(())
    }

    fn take_ipv4(&mut self, frame: &ethernet::Frame<'_>, now: Instant) -> Result<(), Dropped> {
        let packet = ipv4::parse(frame.payload).ok_or(Dropped::Malformed)?;
        match packet.protocol {
            ipv4::UDP => {
                let datagram = udp::parse(&packet).ok_or(Dropped::Malformed)?;
                if datagram.destination == dhcp::SERVER_PORT {
                    // The one service for those that have no address yet.
                    if packet.destination != AGENT && packet.destination != Ipv4Addr::BROADCAST {
                        return Err(Dropped::Ignored);
                    }
                    return self.take_dhcp(datagram.payload);
                }
                self.require_guest(&packet)?;
                self.guest = frame.source;
                if datagram.destination == bbot_tftp::REQUEST_PORT {
                    self.counters.requests += 1;
                }
                let peer = SocketAddr::V4(SocketAddrV4::new(packet.source, datagram.source));
                self.tftp
                    .handle(peer, datagram.destination, datagram.payload, now);
                Ok(())
            }
            ipv4::ICMP => {
                self.require_guest(&packet)?;
                let reply = icmp::echo_reply(packet.payload).ok_or(Dropped::Ignored)?;
                let packet = ipv4::build(AGENT, packet.source, ipv4::ICMP, &reply)
                    .ok_or(Dropped::Malformed)?;
                self.guest = frame.source;
                let reply = self.to_guest(ethernet::IPV4, &packet);
                self.answer(reply);
                Ok(())
            }
            _ => Err(Dropped::Ignored),
        }
    }

    /// A packet must be for us alone, from an address of the wire's network.
    fn require_guest(&self, packet: &ipv4::Packet<'_>) -> Result<(), Dropped> {
        let on_wire = packet.source & MASK == AGENT & MASK
            && packet.source != AGENT
            && packet.source & !MASK != Ipv4Addr::UNSPECIFIED
            && packet.source & !MASK != !MASK;
        if packet.destination == AGENT && on_wire {
            Ok(())
        } else {
            Err(Dropped::Ignored)
        }
    }

    fn take_dhcp(&mut self, bytes: &[u8]) -> Result<(), Dropped> {
        let request = dhcp::parse(bytes).ok_or(Dropped::Malformed)?;
        if request.hardware[0] & 1 != 0 {
            return Err(Dropped::Malformed);
        }
        let offer = dhcp::Offer {
            server: AGENT,
            guest: GUEST,
            mask: MASK,
        };
        let answer = dhcp::answer(&request, &offer).ok_or(Dropped::Ignored)?;
        let packet = udp::build(
            (AGENT, dhcp::SERVER_PORT),
            (answer.destination, dhcp::CLIENT_PORT),
            &answer.payload,
        )
        .ok_or(Dropped::Malformed)?;
        let to = if answer.broadcast {
            ethernet::BROADCAST
        } else {
            request.hardware
        };
        self.answer(ethernet::build(to, AGENT_MAC, ethernet::IPV4, &packet));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
