//! The wire's thread over its real socket, with a guest made of hand-written frames.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use bbot_machine::wire::flood::Bound;
use bbot_machine::wire::thread::{End, Given, Service, WireEvent, WireThread, socket_pair};
use bbot_machine::wire::{AGENT, AGENT_MAC, Counters, GUEST, Wire, arp, dhcp, ethernet, ipv4, udp};
use bbot_tftp::{Event, Limits, Root, Server};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags};

const CARD: ethernet::Address = [2, 0, 0, 0, 0, 7];
const PATIENCE: Duration = Duration::from_secs(20);

/// A guest's card.
struct Card(OwnedFd);

impl Card {
    fn send(&self, frame: &[u8]) {
        rustix::net::send(&self.0, frame, SendFlags::empty()).unwrap();
    }

    fn receive(&self) -> Option<Vec<u8>> {
        self.receive_within(PATIENCE)
    }

    fn receive_within(&self, time: Duration) -> Option<Vec<u8>> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        if poll(&mut fds, Some(&Timespec::try_from(time).unwrap())).unwrap() == 0 {
            return None;
        }
        let mut buffer = [0; 2000];
        let (length, _) = rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty()).unwrap();
        Some(buffer[..length].to_vec())
    }

    fn send_udp(&self, port: u16, payload: &[u8]) {
        let packet = udp::build((GUEST, 5000), (AGENT, port), payload).unwrap();
        self.send(&ethernet::build(AGENT_MAC, CARD, ethernet::IPV4, &packet));
    }

    /// The next datagram: from which port, and what it carries.
    fn receive_udp(&self) -> (u16, Vec<u8>) {
        let frame = self.receive().expect("no answer");
        let frame = ethernet::parse(&frame).unwrap();
        assert_eq!((frame.source, frame.destination), (AGENT_MAC, CARD));
        let packet = ipv4::parse(frame.payload).unwrap();
        assert_eq!((packet.source, packet.destination), (AGENT, GUEST));
        let datagram = udp::parse(&packet).unwrap();
        assert_eq!(datagram.destination, 5000);
        (datagram.source, datagram.payload.to_vec())
    }
}

fn start(root: Root) -> (WireThread, Card) {
    let (ours, theirs) = socket_pair().unwrap();
    let wire = Wire::new(Server::new(root, Limits::wire()));
    (WireThread::start(wire, ours).unwrap(), Card(theirs))
}

async fn event(wire: &mut WireThread) -> Event {
    tokio::time::timeout(PATIENCE, wire.next_event())
        .await
        .unwrap()
        .expect("the wire has ended")
}

#[tokio::test]
async fn address_then_download_then_upload() {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..1500u32).map(|i| i.to_le_bytes()[0]).collect();
    let root = Root::new()
        .get_bytes("down", bytes.clone())
        .put_any(folder.path(), 10_000);
    let (mut wire, card) = start(root);

    // DHCP: discover, offer, request, acknowledgement.
    let message = |kind: u8, options: &[u8]| {
        let mut bytes = vec![0; 236];
        bytes[0..3].copy_from_slice(&[1, 1, 6]);
        bytes[28..34].copy_from_slice(&CARD);
        bytes.extend_from_slice(&[99, 130, 83, 99, 53, 1, kind]);
        bytes.extend_from_slice(options);
        bytes.push(255);
        let packet = udp::build(
            (Ipv4Addr::UNSPECIFIED, dhcp::CLIENT_PORT),
            (Ipv4Addr::BROADCAST, dhcp::SERVER_PORT),
            &bytes,
        );
        ethernet::build(ethernet::BROADCAST, CARD, ethernet::IPV4, &packet.unwrap())
    };
    let wanted = [&[50, 4][..], &GUEST.octets(), &[54, 4], &AGENT.octets()].concat();
    for (kind, options, answer) in [(1, &[][..], 2), (3, &wanted[..], 5)] {
        card.send(&message(kind, options));
        let frame = card.receive().expect("no answer to DHCP");
        let packet = ipv4::parse(ethernet::parse(&frame).unwrap().payload).unwrap();
        let reply = udp::parse(&packet).unwrap();
        assert_eq!((reply.source, reply.destination), (67, 68));
        assert_eq!(reply.payload[16..20], GUEST.octets());
        assert_eq!(reply.payload[240..243], [53, 1, answer]);
    }

    // ARP.
    let request = arp::build(&arp::Packet {
        operation: arp::Operation::Request,
        sender: CARD,
        sender_ip: GUEST,
        target: [0; 6],
        target_ip: AGENT,
    });
    card.send(&ethernet::build(
        ethernet::BROADCAST,
        CARD,
        ethernet::ARP,
        &request,
    ));
    let frame = card.receive().expect("no answer to ARP");
    let reply = arp::parse(ethernet::parse(&frame).unwrap().payload).unwrap();
    assert_eq!((reply.sender, reply.sender_ip), (AGENT_MAC, AGENT));

    // GET in two blocks.
    card.send_udp(69, b"\0\x01down\0octet\0blksize\x001468\0");
    let (port, answer) = card.receive_udp();
    assert_eq!(answer, b"\0\x06blksize\x001468\0");
    card.send_udp(port, b"\0\x04\0\0");
    let mut got = Vec::new();
    for block in [1u8, 2] {
        let (from, data) = card.receive_udp();
        assert_eq!((from, &data[..4]), (port, &[0, 3, 0, block][..]));
        got.extend_from_slice(&data[4..]);
        card.send_udp(port, &[0, 4, 0, block]);
    }
    assert_eq!(got, bytes);
    assert!(matches!(event(&mut wire).await, Event::Requested { name, .. } if name == "down"));
    assert!(matches!(event(&mut wire).await, Event::Fetched { name, .. } if name == "down"));

    // PUT: what was acknowledged last is on disk.
    card.send_udp(69, b"\0\x02up\0octet\0");
    let (port, answer) = card.receive_udp();
    assert_eq!(answer, [0, 4, 0, 0]);
    card.send_udp(port, b"\0\x03\0\x01hello");
    assert_eq!(card.receive_udp(), (port, vec![0, 4, 0, 1]));
    assert_eq!(std::fs::read(folder.path().join("up")).unwrap(), b"hello");
    assert!(matches!(event(&mut wire).await, Event::Requested { name, .. } if name == "up"));
    assert!(matches!(
        event(&mut wire).await,
        Event::Uploaded { name, bytes: 5, .. } if name == "up"
    ));
}

#[tokio::test]
async fn a_block_without_an_answer_comes_again() {
    let (_wire, card) = start(Root::new().get_bytes("f", *b"x"));
    let began = Instant::now();
    card.send_udp(69, b"\0\x01f\0octet\0");
    let first = card.receive_udp();
    let again = card.receive_udp();
    assert_eq!(first, again);
    assert!(
        began.elapsed() > Duration::from_millis(500),
        "it came again at once"
    );
}

/// A window is more than a socket's queue may hold (`net.unix.max_dgram_qlen` is often 10): what does not fit waits, and
/// comes in order, whenever the guest's card takes it.
#[tokio::test]
async fn a_window_waits_for_a_slow_card() {
    const BLOCKS: usize = 200;
    let bytes: Vec<u8> = (0..BLOCKS * 1468 - 1)
        .map(|i: usize| (i / 1468).to_le_bytes()[0])
        .collect();
    let (wire, card) = start(Root::new().get_bytes("f", bytes.clone()));
    card.send_udp(69, b"\0\x01f\0octet\0blksize\x001468\0windowsize\x0016\0");
    let (port, answer) = card.receive_udp();
    assert_eq!(answer, b"\0\x06blksize\x001468\0windowsize\x0016\0");
    card.send_udp(port, b"\0\x04\0\0");
    let mut got = Vec::new();
    let mut block = 0_usize;
    while block < BLOCKS {
        // Until the wire has done what it can, nothing is taken.
        std::thread::sleep(Duration::from_millis(30));
        for _ in 0..16.min(BLOCKS - block) {
            block += 1;
            let (_, data) = card.receive_udp();
            let number = u16::try_from(block).unwrap().to_be_bytes();
            assert_eq!(data[..4], [0, 3, number[0], number[1]], "block {block}");
            got.extend_from_slice(&data[4..]);
        }
        let number = u16::try_from(block).unwrap().to_be_bytes();
        card.send_udp(port, &[0, 4, number[0], number[1]]);
    }
    assert!(got == bytes);
    assert_eq!(wire.counters().overflowed, 0);
}

/// The socket itself may be full: then the wire waits for room and loses nothing.
#[tokio::test]
async fn a_full_socket_loses_nothing() {
    let (wire, card) = start(Root::new().get_bytes("f", *b"x"));
    // Far more than a send buffer holds: each is answered with an error packet.
    let asked = 3000_u16;
    let sender = std::thread::spawn(move || {
        let mut answered = 0;
        for index in 0..asked {
            let packet = udp::build((GUEST, 5000), (AGENT, 50_000), &[0, 4, 0, 1]).unwrap();
            let frame = ethernet::build(AGENT_MAC, CARD, ethernet::IPV4, &packet);
            // Takes an answer only when the wire takes no more.
            while rustix::net::send(&card.0, &frame, SendFlags::DONTWAIT).is_err() {
                card.receive_within(PATIENCE)
                    .unwrap_or_else(|| panic!("both ends wait, at {index}"));
                answered += 1;
            }
        }
        while answered < asked {
            card.receive().expect("an answer was lost");
            answered += 1;
        }
        card
    });
    sender.join().unwrap();
    assert_eq!(wire.counters().overflowed, 0);
}

#[tokio::test]
async fn noise_is_dropped_and_counted() {
    let (wire, card) = start(Root::new().get_bytes("f", *b"x"));
    for length in [0, 1, 13, 14, 60, 1514, 1515, 1900] {
        card.send(&vec![0xaa; length]);
    }
    // Frames are taken in order: the answer shows that the noise is through.
    card.send_udp(69, b"\0\x01f\0octet\0");
    card.receive_udp();
    let began = Instant::now();
    while wire.counters().frames < 9 && began.elapsed() < PATIENCE {
        std::thread::yield_now();
    }
    let counters = wire.counters();
    assert_eq!(counters.frames, 9, "{counters:?}");
    assert_eq!(counters.malformed + counters.ignored, 8, "{counters:?}");
}

/// A guest that asks without end makes the queue full, not long.
#[tokio::test]
async fn events_wait_in_a_bounded_queue_and_none_is_lost() {
    let (mut wire, card) = start(Root::new());
    let asked = 1000;
    let (heard_in, heard) = std::sync::mpsc::channel::<()>();
    let sender = std::thread::spawn(move || {
        for index in 0..asked {
            // This blocks while the wire does not read: the guest waits.
            card.send_udp(69, format!("\0\x01f{index}\0octet\0").as_bytes());
            while card.receive_within(Duration::ZERO).is_some() {}
        }
        // Who takes no answers gets no further question through.
        while heard.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            card.receive_within(Duration::from_millis(10));
        }
    });
    for index in 0..asked {
        let wanted = format!("f{index}");
        loop {
            match event(&mut wire).await {
                Event::Requested { name, .. } => {
                    assert_eq!(name, wanted);
                    break;
                }
                Event::Failed { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    drop(heard_in);
    sender.join().unwrap();
}

#[tokio::test]
async fn what_was_sent_before_the_end_counts() {
    let folder = tempfile::tempdir().unwrap();
    let (mut wire, card) = start(Root::new().put_any(folder.path(), 10_000));
    card.send_udp(69, b"\0\x02up\0octet\0");
    let (port, _) = card.receive_udp();
    card.send_udp(port, b"\0\x03\0\x01last words");
    // The guest is gone before anyone looked.
    drop(card);
    wire.finish();
    let mut uploaded = false;
    while let Some(event) = tokio::time::timeout(PATIENCE, wire.next_event())
        .await
        .unwrap()
    {
        uploaded |= matches!(&event, Event::Uploaded { name, .. } if name == "up");
    }
    assert!(uploaded);
    assert_eq!(
        std::fs::read(folder.path().join("up")).unwrap(),
        b"last words"
    );
}

#[tokio::test]
async fn dropping_it_ends_the_thread_whatever_waits() {
    // Its queue is full, the guest takes no answers: both must not matter.
    let (wire, card) = start(Root::new().get_bytes("f", vec![0; 100_000]));
    let packet = udp::build(
        (GUEST, 5000),
        (AGENT, 69),
        b"\0\x01f\0octet\0windowsize\x0016\0",
    );
    let frame = ethernet::build(AGENT_MAC, CARD, ethernet::IPV4, &packet.unwrap());
    for _ in 0..2000 {
        if rustix::net::send(&card.0, &frame, SendFlags::DONTWAIT).is_err() {
            break;
        }
    }
    let (done_in, done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(wire);
        done_in.send(()).unwrap();
    });
    done.recv_timeout(PATIENCE)
        .expect("the wire's thread does not end");
    drop(card);
}

/// Processor time of the thread that serves a wire, in seconds.
fn seconds_of_the_wire() -> f64 {
    let ticks: u64 = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok())
        .filter_map(|stat| {
            let rest = stat.split_once("(wire) ")?.1;
            let field = |index| rest.split(' ').nth(index)?.parse::<u64>().ok();
            // utime and stime are fields 14 and 15; the state is field 3.
            Some(field(11)? + field(12)?)
        })
        .sum();
    // USER_HZ is 100 on every Linux.
    f64::from(u32::try_from(ticks).unwrap()) / 100.0
}

/// Whatever a guest sends, and however fast, its wire takes a small part of one processor, is
/// told of as flooded, once, and serves again when it is over.
#[tokio::test]
async fn a_flood_is_slowed_down_told_once_and_survived() {
    let (mut wire, card) = start(Root::new().get_bytes("f", *b"x"));
    let (stop_in, stop) = std::sync::mpsc::channel::<()>();
    let flooder = std::thread::spawn(move || {
        let noise = ethernet::build(AGENT_MAC, CARD, ethernet::IPV4, &[0xaa; 46]);
        while stop.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            // Without waiting for room, so that the test can end.
            if rustix::net::send(&card.0, &noise, SendFlags::DONTWAIT).is_err() {
                std::thread::yield_now();
            }
        }
        card
    });
    let mut told = Vec::new();
    while !told.contains(&WireEvent::Flooding) {
        let event = tokio::time::timeout(PATIENCE, wire.next()).await.unwrap();
        told.push(event.unwrap());
    }
    assert_eq!(told, [WireEvent::Malformed, WireEvent::Flooding]);
    let before = seconds_of_the_wire();
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = seconds_of_the_wire() - before;
    let share = used / began.elapsed().as_secs_f64();
    println!(
        "the wire of a flooding guest takes {:.0} % of a processor",
        share * 100.0
    );
    assert!(share < 0.5, "{share}");
    drop(stop_in);
    let card = flooder.join().unwrap();
    // The guest thinks better of it: it is served as before.
    let asked = tokio::task::spawn_blocking(move || {
        card.send_udp(69, b"\0\x01f\0octet\0");
        card.receive_udp()
    });
    let (_, data) = tokio::time::timeout(PATIENCE, asked)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(data, b"\0\x03\0\x01x");
    let event = tokio::time::timeout(PATIENCE, wire.next()).await.unwrap();
    assert!(
        matches!(event, Some(WireEvent::Tftp(Event::Requested { .. }))),
        "{event:?}"
    );
}

/// Requests are dearer than other frames: they cost the disk too.
#[tokio::test]
async fn a_flood_of_uploads_is_slowed_down() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = socket_pair().unwrap();
    let tftp = bbot_tftp::Server::new(Root::new().put_any(folder.path(), 1000), Limits::wire());
    let bound = Bound {
        rate: 100,
        burst: 1000,
    };
    let mut wire = WireThread::start_bounded(Wire::new(tftp), End::Socket(ours), bound).unwrap();
    let card = Card(theirs);
    let began = Instant::now();
    let guest = std::thread::spawn(move || {
        for number in 0..24 {
            let name = format!("\0\x02up{number}\0octet\0");
            card.send_udp(69, name.as_bytes());
            let (port, _) = card.receive_udp();
            card.send_udp(port, b"\0\x03\0\x01\xff\0any bytes");
            card.receive_udp();
        }
        card
    });
    let mut flooding = 0;
    let mut uploaded = 0;
    while uploaded < 24 {
        match tokio::time::timeout(PATIENCE, wire.next())
            .await
            .unwrap()
            .unwrap()
        {
            WireEvent::Flooding => flooding += 1,
            WireEvent::Tftp(Event::Uploaded { .. }) => uploaded += 1,
            WireEvent::Tftp(Event::Requested { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    // 24 times 51 frames, of which 1000 came at once.
    assert!(
        began.elapsed() > Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(flooding, 1);
    drop(guest.join().unwrap());
    // Stopping does not wait for the pause.
    drop(wire);
}

/// A service that comes to an end that nobody asked for.
struct Failing {
    socket: OwnedFd,
    panics: bool,
}

impl Service for Failing {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn take(&mut self, _: Instant) -> io::Result<Option<u32>> {
        assert!(!self.panics, "a frame that nobody thought of");
        Err(io::Error::other("the device is gone"))
    }

    fn give(&mut self) -> io::Result<Given> {
        Ok(Given::Nothing)
    }

    fn forget(&mut self) {}

    fn tick(&mut self, _: Instant) {}

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn poll_event(&mut self) -> Option<Event> {
        None
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }
}

#[tokio::test]
async fn a_wire_that_fails_ends_at_once_and_says_why() {
    for (panics, why) in [
        (false, "the device is gone"),
        (
            true,
            "a fault of this program: a frame that nobody thought of",
        ),
    ] {
        let (socket, theirs) = socket_pair().unwrap();
        let failing = Failing { socket, panics };
        let mut wire = WireThread::serve(failing, Bound::default()).unwrap();
        Card(theirs).send(b"x");
        let ended = tokio::time::timeout(PATIENCE, wire.next()).await.unwrap();
        assert_eq!(ended, None);
        assert_eq!(wire.failure(), why);
    }
}

/// Once, of the first; their number is known all the same.
#[tokio::test]
async fn frames_that_cannot_be_read_are_told_of_once_and_counted() {
    let (mut wire, card) = start(Root::new().get_bytes("f", *b"x"));
    for _ in 0..30 {
        card.send(b"x");
    }
    card.send_udp(69, b"\0\x01f\0octet\0");
    let mut told = Vec::new();
    for _ in 0..2 {
        let event = tokio::time::timeout(PATIENCE, wire.next()).await.unwrap();
        told.push(event.unwrap());
    }
    assert_eq!(told[0], WireEvent::Malformed);
    assert!(
        matches!(&told[1], WireEvent::Tftp(Event::Requested { .. })),
        "{told:?}"
    );
    wire.finish();
    while wire.next().await.is_some() {}
    assert_eq!(wire.counters().malformed, 30);
}
