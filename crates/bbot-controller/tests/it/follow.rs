//! Logs followed while they grow: many followers, slow ones, ones that come back.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::Value;

use crate::sessions::Task;
use crate::support::{Controller, request};

/// Nothing here takes longer.
const BOUND: Duration = Duration::from_secs(60);

/// An event of the stream.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) name: String,
    id: String,
    pub(crate) data: Value,
}

impl Event {
    fn bytes(&self) -> Vec<u8> {
        let text = self.data["bytes"].as_str().unwrap();
        base64::engine::general_purpose::STANDARD
            .decode(text)
            .unwrap()
    }
}

/// A client that follows.
pub(crate) struct Follower {
    head: String,
    stream: BufReader<TcpStream>,
    /// What of the last chunk was not looked at.
    pending: Vec<u8>,
}

impl Follower {
    fn connect(controller: &Controller, path: &str) -> Self {
        let mut stream = TcpStream::connect(controller.address).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n",
            controller.address
        )
        .unwrap();
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(stream.read_line(&mut head).unwrap() > 0, "{head}");
        }
        Self {
            head,
            stream,
            pending: Vec::new(),
        }
    }

    pub(crate) fn new(controller: &Controller, id: &str, more: &str) -> Self {
        let follower = Self::connect(
            controller,
            &format!("/api/v1/builds/{id}/log?follow=1{more}"),
        );
        assert!(
            follower.head.starts_with("HTTP/1.1 200 "),
            "{}",
            follower.head
        );
        assert!(
            follower.head.contains("text/event-stream"),
            "{}",
            follower.head
        );
        follower
    }

    /// The next event that is no comment; `None` at the end of the stream.
    pub(crate) fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.pending.windows(2).position(|w| w == b"\n\n") {
                let block: Vec<u8> = self.pending.drain(..end + 2).collect();
                let block = String::from_utf8(block).unwrap();
                let value = |name: &str| {
                    let line = block.lines().find_map(|l| l.strip_prefix(name));
                    line.unwrap_or_default().to_owned()
                };
                if block.starts_with(':') {
                    continue;
                }
                return Some(Event {
                    name: value("event: "),
                    id: value("id: "),
                    data: serde_json::from_str(&value("data: ")).unwrap(),
                });
            }
            let mut size = String::new();
            self.stream.read_line(&mut size).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            self.stream.read_exact(&mut chunk).unwrap();
            if size == 0 {
                return None;
            }
            self.pending.extend_from_slice(&chunk[..size]);
        }
    }

    fn expect(&mut self, name: &str) -> Event {
        let event = self.next().expect("the stream goes on");
        assert_eq!(event.name, name, "{event:?}");
        event
    }

    /// The log until the end of the build, and the last position.
    fn all(&mut self) -> (Vec<u8>, String) {
        let (mut bytes, mut id) = (Vec::new(), String::new());
        loop {
            let event = self.next().expect("the stream goes on");
            match event.name.as_str() {
                "log" => {
                    bytes.extend(event.bytes());
                    id = event.id;
                }
                "end" => return (bytes, id),
                _ => {}
            }
        }
    }
}

#[test]
fn a_follower_sees_the_build_from_the_queue_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let mut follower = Follower::new(&controller, &id, "");
    assert_eq!(follower.expect("state").data["state"], "queued");
    let task = Task::take(&controller);
    let state = follower.expect("state").data;
    assert_eq!(
        (&state["state"], &state["agent"]),
        (&"building".into(), &"bot".into())
    );
    assert!(state["started"].is_string() && state["machine"].is_string());
    task.log(1, b"configure\nchecking\n");
    let event = follower.expect("log");
    assert_eq!(
        (event.bytes(), event.id.as_str()),
        (b"checking\n".to_vec(), "1.9")
    );
    assert_eq!(event.data["operation"], "configure");
    task.log(2, b"update\n\0\xff\x1b[31m");
    assert_eq!(follower.expect("log").bytes(), b"\0\xff\x1b[31m");

    // One that comes now sees all of it, one that was here goes on, also by the browser's header, also one operation.
    let (mut late, mut back) = (
        Follower::new(&controller, &id, ""),
        Follower::new(&controller, &id, "&from=1.9"),
    );
    let mut only = Follower::connect(
        &controller,
        &format!("/api/v1/builds/{id}/log/update?follow"),
    );
    late.expect("state");
    assert_eq!(late.expect("log").bytes(), b"checking\n");
    back.expect("state");
    assert_eq!(back.expect("log").bytes(), b"\0\xff\x1b[31m");
    only.expect("state");
    assert_eq!(only.expect("log").data["operation"], "update");

    // Handed to another: its log begins anew.
    controller.clock.advance_seconds(61);
    let second = Task::take(&controller);
    let mut state = follower.expect("state").data;
    if state["state"] == "queued" {
        state = follower.expect("state").data;
    }
    assert_eq!(
        (&state["state"], &state["run"]),
        (&"building".into(), &2.into())
    );
    second.log(1, b"update\nagain");
    let event = follower.expect("log");
    assert_eq!(
        (event.bytes(), event.id.as_str()),
        (b"again".to_vec(), "2.5")
    );

    assert_eq!(second.result(&controller, "warning"), 200);
    let end = follower.expect("state").data;
    assert_eq!(end["state"], "built");
    let end = follower.expect("end").data;
    assert_eq!(
        (&end["status"], &end["attempt"]),
        (&"warning".into(), &1.into())
    );
    assert!(follower.next().is_none());
    // Built: nothing but the end for a new one, the rest for one that was cut off.
    assert_eq!(Follower::new(&controller, &id, "").all().0, b"");
    assert_eq!(Follower::new(&controller, &id, "&from=2.2").all().0, b"ain");
    assert_eq!(
        Follower::new(&controller, &id, "&from=1.9").all().0,
        b"again"
    );
    assert_eq!(
        Follower::new(&controller, &id, "&from=2.99999").all().0,
        b""
    );
    for bad in [
        "&from=x",
        "&from=1",
        "&attempt=1",
        "&raw=1",
        "&follow=yes",
        "&x=1",
    ] {
        let path = format!("/api/v1/builds/{id}/log?follow=1{bad}");
        assert_eq!(controller.get(&path).status, 400, "{bad}");
    }
    assert_eq!(controller.get("/api/v1/builds/99/log?follow=1").status, 404);
}

#[test]
fn a_long_log_has_its_two_ends_for_who_comes_late() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |c| {
        c.limits.run_log.head = 300_000;
        c.limits.run_log.tail = 300_000;
    });
    let id = controller.submit("foo", "1").remove(0);
    let task = Task::take(&controller);
    let mut whole = Vec::new();
    for number in 1..=30 {
        let piece = format!("{number:02} ").repeat(20_000);
        whole.extend_from_slice(piece.as_bytes());
        let body = [b"update\n", piece.as_bytes()].concat();
        assert_eq!(task.log(number, &body).status, 204, "never an error");
    }
    let on_disk: u64 = std::fs::read_dir(dir.path().join("runs").join(&id))
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum();
    assert!(on_disk <= 600_000, "{on_disk}");
    let mut follower = Follower::new(&controller, &id, "");
    task.result(&controller, "success");
    let (mut bytes, mut left_out) = (0, 0);
    loop {
        let event = follower.next().unwrap();
        match event.name.as_str() {
            "log" => bytes += event.bytes().len(),
            "gap" => left_out += usize::try_from(event.data["left_out"].as_u64().unwrap()).unwrap(),
            "end" => break,
            _ => {}
        }
    }
    assert!(left_out > 0);
    assert_eq!(bytes + left_out, whole.len());
    let text = controller
        .get(&format!("/api/v1/builds/{id}/log?raw=1"))
        .text();
    assert!(text.contains(&format!(
        "==== ... {left_out} bytes are left out here ... ===="
    )));
    assert!(text.ends_with("30 30 "));
}

/// Resident memory of this process, which is the controller's too, in KiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok())
        .unwrap()
}

#[test]
fn many_and_slow_followers_cost_little() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let task = Task::take(&controller);
    let before = memory();
    // They read nothing.
    let mut slow: Vec<Follower> = (0..128)
        .map(|_| Follower::new(&controller, &id, ""))
        .collect();
    // One too many, and a thousand that try.
    let path = format!("/api/v1/builds/{id}/log?follow=1");
    for _ in 0..1000 {
        let refused = Follower::connect(&controller, &path);
        assert!(
            refused.head.starts_with("HTTP/1.1 503 "),
            "{}",
            refused.head
        );
    }
    let piece = vec![b'x'; 65_536];
    let body = [b"update\n".to_vec(), piece.clone()].concat();
    const PIECES: usize = 30;
    for number in 1..=PIECES {
        assert_eq!(task.log(number, &body).status, 204);
    }
    // 128 x 2.6 MiB in base64 would be 340 MiB. Each may have some pieces in the buffers between.
    let grown = memory().saturating_sub(before);
    assert!(grown < 100_000, "{grown} KiB");
    // An agent is served all the same, and one who begins to read gets everything.
    assert_eq!(task.renew().status, 204);
    let begun = Instant::now();
    assert_eq!(
        controller
            .agent("/?build-task", &[], &request("0.7.0"))
            .status,
        200
    );
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(task.result(&controller, "success"), 200);
    let (bytes, last) = slow.pop().unwrap().all();
    assert_eq!(bytes.len(), PIECES * piece.len());
    assert_eq!(last, format!("1.{}", bytes.len()));
    // Whoever goes makes room.
    drop(slow);
    let begun = Instant::now();
    while Follower::connect(&controller, &path)
        .head
        .starts_with("HTTP/1.1 503 ")
    {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_end_of_the_controller_ends_the_streams() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let mut follower = Follower::new(&controller, &id, "");
    follower.expect("state");
    let begun = Instant::now();
    drop(controller);
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert!(follower.next().is_none(), "no event `end`: ask again");
}

#[test]
fn silence_and_slowness_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |c| {
        c.limits.heartbeat = Duration::from_millis(100);
        c.limits.slow_follower = Duration::from_secs(1);
        c.limits.followers = 1;
    });
    let id = controller.submit("foo", "1").remove(0);
    let path = format!("/api/v1/builds/{id}/log?follow=1");
    let mut follower = Follower::new(&controller, &id, "");
    follower.expect("state");
    let mut comments = 0;
    while comments < 3 {
        let mut line = String::new();
        assert!(follower.stream.read_line(&mut line).unwrap() > 0);
        comments += usize::from(line == ":\n");
    }
    // It reads no more, and more comes than lies between: it loses its place, and nobody else waits for it.
    let task = Task::take(&controller);
    let body = [b"update\n".to_vec(), vec![b'x'; 65_536]].concat();
    let begun = Instant::now();
    let mut number = 0;
    loop {
        let refused = Follower::connect(&controller, &path)
            .head
            .starts_with("HTTP/1.1 503 ");
        if !refused {
            break;
        }
        assert!(begun.elapsed() < BOUND);
        number += 1;
        assert_eq!(task.log(number, &body).status, 204);
    }
    assert!(number > 10, "it was not cut off for nothing: {number}");
    drop(follower);
}
