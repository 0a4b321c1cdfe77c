//! A controller that is told to stop while it is at work: each request is answered whole or its connection closed with nothing said, and
//! what was acknowledged is there afterwards.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::process::Running;
use crate::support::{curl, field, request, result};

/// A connection that is kept for as long as it is.
struct Client {
    address: String,
    stream: Option<TcpStream>,
    keep: bool,
}

struct Answered {
    status: u16,
    head: String,
    body: String,
}

impl Client {
    /// A whole answer; `None` when the connection was closed before there was any of it. A part of one fails the test.
    fn send(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Option<Answered> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => TcpStream::connect(&self.address).ok()?,
        };
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let connection = if self.keep { "keep-alive" } else { "close" };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: {connection}\r\nContent-Length: {}\r\n{headers}\r\n{body}",
            self.address,
            body.len()
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = Vec::new();
        let mut piece = [0; 16 << 10];
        loop {
            if let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8(answer[..end].to_vec()).unwrap();
                let length = head.lines().find_map(|l| {
                    let (name, value) = l.split_once(':')?;
                    name.eq_ignore_ascii_case("content-length")
                        .then(|| value.trim().parse().unwrap())
                });
                let length: usize = length.unwrap_or(0);
                if answer.len() >= end + 4 + length {
                    if self.keep && !head.to_lowercase().contains("connection: close") {
                        self.stream = Some(stream);
                    }
                    return Some(Answered {
                        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
                        body: String::from_utf8(answer[end + 4..].to_vec()).unwrap(),
                        head,
                    });
                }
            }
            match stream.read(&mut piece) {
                Ok(0) | Err(_) => {
                    assert!(
                        answer.is_empty(),
                        "half an answer: {}",
                        String::from_utf8_lossy(&answer)
                    );
                    return None;
                }
                Ok(read) => answer.extend_from_slice(&piece[..read]),
            }
        }
    }
}

/// What was acknowledged.
#[derive(Default)]
struct Known {
    submitted: Vec<String>,
    /// Packages with results.
    built: Vec<String>,
    /// Builds and the numbers of their segments.
    segments: Vec<(String, u32)>,
}

const OURS: &str = "Bbot-Agent: 1\r\nContent-Type: text/manifest\r\n";

fn log_of(name: &str) -> String {
    // Some are objects, and some are in rows.
    let times = if name.len().is_multiple_of(2) {
        3000
    } else {
        3
    };
    format!("{name}: a line\n").repeat(times)
}

/// Submits, builds and logs until the controller is gone.
fn work(
    mut client: Client,
    token: &str,
    numbers: &AtomicUsize,
    known: &Mutex<Known>,
) -> Option<()> {
    let authorization = format!("Authorization: Bearer {token}\r\n");
    loop {
        let name = format!("p{}", numbers.fetch_add(1, Ordering::SeqCst));
        let body = serde_json::json!({
            "name": name, "version": "1", "source": { "repository": { "url": "https://example.org/1/x" } }
        });
        let answer = client.send(
            "POST",
            "/api/v1/submissions",
            &authorization,
            &body.to_string(),
        )?;
        match answer.status {
            201 => known.lock().unwrap().submitted.push(name),
            503 => {}
            other => panic!("{other}: {}", answer.body),
        }
        let task = client.send("POST", "/?build-task", OURS, &request("0.17.0"))?;
        assert_eq!(task.status, 200, "{}", task.body);
        let session = field(&task.body, "session");
        if session.is_empty() {
            continue;
        }
        let (_, task_part) = task.body.split_once("\n:\n").unwrap();
        let name = field(task_part, "name");
        let url = task.head.lines().find_map(|l| {
            let (header, value) = l.split_once(": ")?;
            header
                .eq_ignore_ascii_case("bbot-session-url")
                .then(|| value.trim().to_owned())
        });
        let path = url.unwrap();
        let path = path.splitn(4, '/').nth(3).unwrap().to_owned();
        for number in 1..=3 {
            let body = format!("update\n{name} segment {number}.\n");
            let answer = client.send("POST", &format!("/{path}/log/{number}"), OURS, &body)?;
            match answer.status {
                204 => known.lock().unwrap().segments.push((name.clone(), number)),
                503 => {}
                other => panic!("{other}: {}", answer.body),
            }
        }
        let text = result(&session, &name, "1", "success")
            + &format!(
                "update-status: success\nupdate-log: \\\n{}\\\n",
                log_of(&name)
            );
        let answer = client.send("POST", "/?build-result", OURS, &text)?;
        match answer.status {
            200 => known.lock().unwrap().built.push(name),
            503 => {}
            other => panic!("{other}: {}", answer.body),
        }
    }
}

#[test]
fn what_was_acknowledged_survives_a_stop_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let numbers = Arc::new(AtomicUsize::new(0));
    let known = Arc::new(Mutex::new(Known::default()));
    for round in 0..4_u64 {
        let running = Running::start(dir.path(), |_| {});
        let address = running.url.strip_prefix("http://").unwrap().to_owned();
        let token = std::fs::read_to_string(dir.path().join("token"))
            .unwrap()
            .trim()
            .to_owned();
        let workers: Vec<_> = (0..8)
            .map(|number| {
                let client = Client {
                    address: address.clone(),
                    stream: None,
                    keep: number % 2 == 0,
                };
                let (token, numbers, known) =
                    (token.clone(), Arc::clone(&numbers), Arc::clone(&known));
                std::thread::spawn(move || work(client, &token, &numbers, &known))
            })
            .collect();
        // One that waits for a task is told that there is none.
        let waiting = std::thread::spawn({
            let mut client = Client {
                address: address.clone(),
                stream: None,
                keep: false,
            };
            let other = request("0.17.0").replace("linux_debian_12-gcc_13.1", "none");
            move || {
                client.send(
                    "POST",
                    "/?build-task",
                    &format!("{OURS}Bbot-Wait: 50\r\n"),
                    &other,
                )
            }
        });
        std::thread::sleep(Duration::from_millis(600 + 150 * round));
        let begun = Instant::now();
        assert_eq!(running.terminate(), Some(0));
        assert!(
            begun.elapsed() < Duration::from_secs(9),
            "nobody holds it up: {:?}",
            begun.elapsed()
        );
        for worker in workers {
            worker.join().unwrap();
        }
        waiting.join().unwrap();
    }
    let known = Arc::into_inner(known).unwrap().into_inner().unwrap();
    assert!(known.built.len() > 20, "{} were built", known.built.len());

    let running = Running::start(dir.path(), |_| {});
    let get = |path: &str| curl(&[&format!("{}{path}", running.url)], b"");
    let mut ids = std::collections::HashMap::new();
    let mut next = String::new();
    loop {
        let page = get(&format!("/api/v1/builds?limit=500{next}")).json();
        for build in page["builds"].as_array().unwrap() {
            let name = build["package"].as_str().unwrap().to_owned();
            ids.insert(
                name,
                (
                    build["id"].as_str().unwrap().to_owned(),
                    build["state"].clone(),
                ),
            );
        }
        match page["next"].as_str() {
            Some(before) => next = format!("&before={before}"),
            None => break,
        }
    }
    for name in &known.submitted {
        assert!(ids.contains_key(name), "{name} was acknowledged");
    }
    for name in &known.built {
        let (id, state) = &ids[name];
        assert_eq!(state, "built", "{name}");
        let log = get(&format!("/api/v1/builds/{id}/log/update"));
        assert_eq!(
            (log.status, log.body == log_of(name).as_bytes()),
            (200, true),
            "{name}"
        );
    }
    // One thing after the other is enough of these.
    let mut found = 0;
    for (name, number) in known.segments.iter().rev().take(60) {
        let (id, state) = &ids[name];
        let of = if state == "built" {
            "?raw=1"
        } else {
            "?attempt=1"
        };
        let log = get(&format!("/api/v1/builds/{id}/log{of}"));
        let expected = format!("{name} segment {number}.\n");
        // A task that was handed out anew has another log.
        if log.status == 200 && state != "queued" {
            assert!(
                log.text().contains(&expected),
                "{expected:?}: {}",
                log.text()
            );
            found += 1;
        }
    }
    assert!(found > 10, "{found} segments were looked for");
}
