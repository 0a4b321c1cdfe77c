//! A machine's wire: whatever frames a guest sends, the answers are frames from the agent to it, few, and none too large.
#![no_main]

use std::net::Ipv4Addr;

use bbot_fuzz::{Clock, Input, folder};
use bbot_machine::wire::{AGENT, AGENT_MAC, GUEST, Wire, dhcp, ethernet, ipv4, udp};
use bbot_tftp::{Limits, Root, Server};
use libfuzzer_sys::fuzz_target;

const CARD: ethernet::Address = [2, 0, 0, 0, 0, 1];

/// A frame: any bytes at all, or a payload in headers whose checksums are right.
fn frame(input: &mut Input<'_>) -> Option<Vec<u8>> {
    let kind = input.byte();
    let to = if kind & 8 == 0 {
        AGENT_MAC
    } else {
        ethernet::BROADCAST
    };
    let packet = match kind & 7 {
        0 => return Some(input.long().to_vec()),
        1 => return Some(ethernet::build(to, CARD, ethernet::ARP, input.short())),
        2 => ipv4::build(GUEST, AGENT, input.byte(), input.long())?,
        3 => ipv4::build(GUEST, AGENT, ipv4::ICMP, &checked(input.long()))?,
        4 => udp::build(
            (Ipv4Addr::UNSPECIFIED, dhcp::CLIENT_PORT),
            (Ipv4Addr::BROADCAST, dhcp::SERVER_PORT),
            &lease(input),
        )?,
        5 => udp::build(
            (GUEST, 2000 + u16::from(input.byte())),
            (AGENT, 69),
            input.long(),
        )?,
        6 => udp::build(
            (GUEST, 2000 + u16::from(input.byte())),
            (AGENT, input.number()),
            input.long(),
        )?,
        _ => {
            let source = Ipv4Addr::from([196, 254, 111, input.byte()]);
            udp::build(
                (source, input.number()),
                (AGENT, input.number()),
                input.short(),
            )?
        }
    };
    Some(ethernet::build(to, CARD, ethernet::IPV4, &packet))
}

/// An ICMP message with its checksum made right.
fn checked(bytes: &[u8]) -> Vec<u8> {
    let mut message = bytes.to_vec();
    if message.len() >= 4 {
        message[2..4].fill(0);
        let sum = ipv4::checksum(&[&message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

/// A DHCP message: the fixed part with its cookie (RFC 2131), and any options.
fn lease(input: &mut Input<'_>) -> Vec<u8> {
    let mut message = vec![0; 236];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].fill(input.byte());
    message[10] = input.byte();
    message[12] = input.byte();
    message[28..34].copy_from_slice(&CARD);
    message.extend_from_slice(&[99, 130, 83, 99]);
    message.extend_from_slice(input.short());
    message
}

fuzz_target!(|data: &[u8]| {
    let folder = folder();
    let root = Root::new()
        .get_bytes("manifest", vec![1; 5000])
        .put_once(&["manifest", "result.manifest"], folder.path(), 3000)
        .put_numbered("log.", folder.path(), 3000);
    let limits = Limits::wire();
    let at_once = limits.max_sessions * (1 + usize::from(limits.max_window)) + 64;
    let mut wire = Wire::new(Server::new(root, limits));
    let mut input = Input::new(data);
    let mut clock = Clock::new();
    let mut frames = 0;
    while !input.is_empty() && frames < 200 {
        let step = input.byte();
        if step & 1 != 0 {
            clock.pass(u16::from(step));
            wire.tick(clock.0);
        }
        let Some(frame) = frame(&mut input) else {
            continue;
        };
        frames += 1;
        wire.handle(&frame, clock.0);
        let counters = wire.counters();
        assert_eq!(counters.frames, frames);
        assert!(counters.malformed + counters.ignored <= frames);
        // A guest may leave its answers where they are.
        if step & 2 != 0 {
            continue;
        }
        let mut answers = 0;
        while let Some(answer) = wire.poll_frame() {
            answers += 1;
            let answer = ethernet::parse(&answer).expect("our own frames can be read");
            assert_eq!(answer.source, AGENT_MAC);
            assert!(answer.payload.len() <= ethernet::MTU);
            if answer.kind == ethernet::IPV4 {
                let packet = ipv4::parse(answer.payload).expect("our own packets can be read");
                assert_eq!(packet.source, AGENT);
            }
        }
        assert!(answers <= at_once * 200, "{answers} answers");
        while wire.poll_event().is_some() {}
    }
    let mut waits = 0;
    while let Some(deadline) = wire.next_deadline() {
        clock.0 = clock.0.max(deadline);
        wire.tick(clock.0);
        while wire.poll_frame().is_some() {}
        waits += 1;
        assert!(waits < 1000, "transfers that never end");
    }
});
