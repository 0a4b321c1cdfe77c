//! Many at once: what they send and take has an end in memory, however many they are; who comes too many is told to come again.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::bad_input::most_memory;
use crate::process::Running;
use crate::support::{Answer, Controller, agent, request};

/// Waits for so long at most until it is so.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Begins a request, whose body is to be sent.
fn begin(address: SocketAddr, head: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let wait = Some(Duration::from_secs(60));
    stream.set_read_timeout(wait).unwrap();
    write!(
        stream,
        "{head}\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    stream
}

/// The answer to a request that is sent.
fn answer(mut stream: TcpStream) -> Answer {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let end = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(all[..end].to_vec()).unwrap();
    Answer {
        status: head[9..12].parse().unwrap(),
        head,
        body: all[end + 4..].to_vec(),
    }
}

fn is_full(answer: &Answer) -> bool {
    let is_full = answer.status == 503;
    assert!(!is_full || answer.header("retry-after") == Some("10"));
    is_full
}

/// Bytes that are an archive, as far as anybody looks.
fn archive(length: usize, last: u8) -> (String, Vec<u8>) {
    let mut bytes = vec![7; length];
    bytes[..2].copy_from_slice(&[0x1f, 0x8b]);
    bytes[length - 1] = last;
    (hex::encode(Sha256::digest(&bytes)), bytes)
}

#[test]
fn short_bodies_have_so_much_room_together() {
    const SENT: usize = 60_000;
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |config| {
        // For four of these.
        config.limits.bodies = 256 << 10;
    });
    let good = request("0.17.0");
    let text = format!("{good}# {}\n", "x".repeat(100_000 - good.len()));
    let head = format!(
        "POST /?build-task HTTP/1.1\r\nContent-Length: {}",
        text.len()
    );
    let whole = || agent(&controller.url("/?build-task"), &[], text.as_bytes());
    assert_eq!(whole().status, 200);
    let mut come: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = begin(controller.address, &head);
            stream.write_all(&text.as_bytes()[..SENT]).unwrap();
            stream
        })
        .collect();
    until("there is no room", || is_full(&whole()));
    // What is short is served as ever.
    let short = agent(&controller.url("/?build-task"), &[], good.as_bytes());
    assert_eq!(short.status, 200);
    // Nothing tells which of them have been refused; one that comes to be read only now would find the room of those that are done.
    std::thread::sleep(Duration::from_millis(500));
    for stream in &mut come {
        stream.write_all(&text.as_bytes()[SENT..]).unwrap();
    }
    let served = come.into_iter().filter(|stream| {
        let answer = answer(stream.try_clone().unwrap());
        assert!(is_full(&answer) || answer.status == 200, "{}", answer.head);
        answer.status == 200
    });
    let served = served.count();
    assert!((1..=4).contains(&served), "{served}");
    assert_eq!(whole().status, 200, "there is room again");
}

#[test]
fn so_many_archives_come_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |config| {
        config.limits.uploads = 1;
        config.limits.patience = Duration::from_secs(1);
    });
    let (sha256, bytes) = archive(1 << 20, 1);
    let head = format!(
        "PUT /api/v1/archives/{sha256} HTTP/1.1\r\nAuthorization: Bearer {}\r\nContent-Length: {}",
        controller.token,
        bytes.len()
    );
    let (half, rest) = bytes.split_at(bytes.len() / 2);
    let mut first = begin(controller.address, &head);
    first.write_all(half).unwrap();
    // Another each time: what is here already needs no turn.
    let number = std::cell::Cell::new(1_u8);
    let put = || {
        number.set(number.get().wrapping_add(1));
        let (sha256, other) = archive(1 << 20, number.get());
        controller.send("PUT", &format!("/api/v1/archives/{sha256}"), &other)
    };
    until("it has its turn", || is_full(&put()));
    first.write_all(rest).unwrap();
    assert_eq!(answer(first).status, 201);
    assert_eq!(put().status, 201);
}

/// Fifty at once take no more memory than those few that have a turn.
#[test]
fn archives_that_come_cost_a_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), |_| {});
    let address: SocketAddr = running.url["http://".len()..].parse().unwrap();
    let token = std::fs::read_to_string(dir.path().join("token")).unwrap();
    let token = token.trim();
    let head = |last: u8| {
        let (sha256, bytes) = archive(7 << 20, last);
        let head = format!(
            "PUT /api/v1/archives/{sha256} HTTP/1.1\r\nAuthorization: Bearer {token}\r\nContent-Length: 100000000"
        );
        (head, bytes)
    };
    let before = most_memory(running.pid());
    let come: Vec<_> = (0..50)
        .map(|n| {
            let (head, bytes) = head(n);
            std::thread::spawn(move || {
                let mut stream = begin(address, &head);
                let wait = Some(Duration::from_secs(5));
                stream.set_write_timeout(wait).unwrap();
                // Who has no turn sends as much as the system takes.
                let _ = stream.write_all(&bytes);
                stream
            })
        })
        .collect();
    let come: Vec<TcpStream> = come.into_iter().map(|t| t.join().unwrap()).collect();
    let more = most_memory(running.pid()).saturating_sub(before);
    assert!(more < 128 << 20, "fifty: {more} bytes");
    drop(come);
    let (sha256, bytes) = archive(7 << 20, 77);
    let put = format!("/api/v1/archives/{sha256}");
    assert_eq!(running.send(token, "PUT", &put, &bytes).status, 201);
}

#[test]
fn so_many_read_archives_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |config| {
        config.limits.readers = 1;
        config.limits.patience = Duration::from_secs(1);
        config.limits.slow_reader = Duration::from_secs(3);
    });
    let (_, bytes) = archive(30 << 20, 1);
    let path = format!("/archives/{}.tar.gz", controller.put(&bytes));
    let mut slow = BufReader::new(begin(controller.address, &format!("GET {path} HTTP/1.1")));
    let mut line = String::new();
    slow.read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 200 OK\r\n");
    let other = controller.get(&path);
    assert!(is_full(&other), "{}", other.head);
    assert_eq!(
        other.text(),
        "too many clients read archives and artifacts at once: try again later\n"
    );
    // It is cut off.
    until("it has its turn", || !is_full(&controller.get(&path)));
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest);
    assert!(rest.len() < bytes.len(), "{}", rest.len());
    assert_eq!(controller.get(&path).body, bytes);
}
