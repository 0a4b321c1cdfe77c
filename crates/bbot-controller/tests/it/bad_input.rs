//! Requests of any shape are answered, none by an error of ours; what is small on the wire and large behind it costs no memory.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::process::Running;
use crate::support::{Controller, agent, curl, field, gzip, request, result};

/// Sends a request and reads its status.
fn status(address: SocketAddr, request: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(address).unwrap();
    let wait = Some(Duration::from_secs(20));
    stream.set_read_timeout(wait).unwrap();
    // The other end may have heard enough before all is said.
    let _ = stream.write_all(request);
    let mut head = [0; 12];
    stream.read_exact(&mut head).ok()?;
    std::str::from_utf8(&head[9..]).ok()?.parse().ok()
}

/// Paths of all routes, with `*` where something stands that a client chooses.
const PATHS: &[&str] = &[
    "/",
    "/@*",
    "/@*/",
    "/archives/*",
    "/builds/*",
    "/builds/*/log",
    "/builds/*/log/*",
    "/builds/*/rebuild",
    "/builds/*/cancel",
    "/submissions/*",
    "/submissions/*/cancel",
    "/configurations",
    "/agents",
    "/sessions/*/lease",
    "/sessions/*/log/*",
    "/sign-in",
    "/sign-out",
    "/style.css",
    "/healthz",
    "/metrics",
    "/api/v1/archives/*",
    "/api/v1/submissions",
    "/api/v1/submissions/*",
    "/api/v1/submissions/*/cancel",
    "/api/v1/submissions/*/excluded",
    "/api/v1/builds",
    "/api/v1/builds/*",
    "/api/v1/builds/*/attempts",
    "/api/v1/builds/*/log",
    "/api/v1/builds/*/log/*",
    "/api/v1/builds/*/rebuild",
    "/api/v1/builds/*/cancel",
    "/api/v1/configurations",
    "/api/v1/agents",
    "/api/v1/tokens",
    "/api/v1/tokens/*",
    "/api/v1/openapi.json",
    "/api/v1/*",
    "/*",
];

/// Bytes that may stand in a request's first line or in the value of a header, each as itself or escaped.
fn text(longest: usize) -> impl Strategy<Value = String> {
    let byte = prop_oneof![
        "[a-zA-Z0-9._~-]",
        "[0-9]",
        any::<u8>().prop_map(|b| format!("%{b:02X}")),
        Just("%".to_owned()),
        Just("..%2f".to_owned()),
        Just("'".to_owned()),
        Just("%00".to_owned()),
    ];
    proptest::collection::vec(byte, 0..longest).prop_map(|parts| parts.concat())
}

fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("1".to_owned()),
        Just("-1".to_owned()),
        Just("9223372036854775807".to_owned()),
        Just("0".repeat(64)),
        text(12),
    ];
    let parts = proptest::collection::vec(part, 3);
    (proptest::sample::select(PATHS), parts).prop_map(|(path, parts)| {
        let mut parts = parts.into_iter();
        path.split('*')
            .map(str::to_owned)
            .reduce(|all, next| format!("{all}{}{next}", parts.next().unwrap_or_default()))
            .unwrap_or_default()
    })
}

fn query() -> impl Strategy<Value = String> {
    let name = proptest::sample::select(
        &[
            "build-result",
            "package",
            "configuration",
            "state",
            "status",
            "before",
            "limit",
            "attempt",
            "raw",
            "from",
            "after",
            "name",
            "next",
            "x",
        ][..],
    );
    let value = prop_oneof![
        text(8),
        Just("9223372036854775807".to_owned()),
        Just("-9223372036854775808".to_owned()),
        Just("built".to_owned()),
        Just("%2A%5C".to_owned()),
    ];
    let pair = (name, value).prop_map(|(name, value)| format!("{name}={value}"));
    proptest::collection::vec(pair, 0..4).prop_map(|pairs| pairs.join("&"))
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        proptest::collection::vec(any::<u8>(), 0..200),
        Just(br#"{"name": "a\u0000", "version": "1", "source": {"archive": "x"}}"#.to_vec()),
        Just(
            br#"{"name": "a", "scopes": ["admin"], "expires": "+999999-01-01T00:00:00Z"}"#.to_vec()
        ),
        Just(br#"{"reason": "\u0000\ud800"}"#.to_vec()),
        Just("[".repeat(60_000).into_bytes()),
        Just(b": 1\nsession: x\n:\nname: \0\nversion: 1\nstatus: success\n".to_vec()),
        Just(b"token=a&form=%00&next=//x".to_vec()),
    ]
}

#[test]
fn no_request_is_answered_by_an_error_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    controller.submit("foo", "1");
    let session = controller.take();
    controller.agent(
        "/?build-result",
        &[],
        &result(&session, "foo", "1", "error"),
    );
    controller.submit("bar", "1");
    let (address, token) = (controller.address, controller.token.clone());
    const METHODS: &[&str] = &[
        "GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "X",
    ];
    let header = (
        proptest::sample::select(
            &[
                "Cookie",
                "Authorization",
                "Content-Type",
                "Last-Event-ID",
                "Range",
                "Accept",
                "X",
            ][..],
        ),
        "[ -~]{0,40}",
    );
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: ProptestConfig::default().cases.max(1500),
        ..ProptestConfig::default()
    });
    let strategy = (
        proptest::sample::select(METHODS),
        path(),
        query(),
        proptest::option::of(header),
        body(),
        any::<bool>(),
    );
    runner
        .run(&strategy, |(method, path, query, header, body, knows)| {
            let mut head = format!(
                "{method} {path}?{query} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n",
                body.len()
            );
            if knows {
                head.push_str(&format!("Authorization: Bearer {token}\r\n"));
            } else if let Some((name, value)) = header {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            head.push_str("\r\n");
            let mut request = head.clone().into_bytes();
            request.extend(body);
            let status = status(address, &request);
            prop_assert!(status.is_some_and(|s| (200..500).contains(&s)), "{status:?}: {head}");
            Ok(())
        })
        .unwrap();
    assert_eq!(controller.get("/healthz").status, 200);
}

/// What is kept of an agent's words is bounded, each of them: a list reads a hundred rows.
#[test]
fn words_of_agents_that_are_too_long_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let good = request("0.17.0");
    for (word, limit) in [
        ("agent", 256),
        ("toolchain-name", 256),
        ("id", 256),
        ("name", 256),
        ("summary", 512),
    ] {
        let own = field(&good, word);
        let with = |length: usize| {
            let long = format!("\n{word}: {}\n", "x".repeat(length));
            good.replace(&format!("\n{word}: {own}\n"), &long)
        };
        let refused = controller.agent("/?build-task", &[], &with(limit + 1));
        assert_eq!(refused.status, 400, "{word}: {}", refused.text());
        let expected = format!("field `{word}`: the value has more than {limit} bytes\n");
        assert!(refused.text().ends_with(&expected), "{}", refused.text());
    }
    let longest = good.replace(
        "summary: Linux Debian 12 GCC 13.1",
        &format!("summary: {}", "x".repeat(512)),
    );
    let task = controller.agent("/?build-task", &["Bbot-Agent: 1"], &longest);
    let session = field(&task.text(), "session");
    assert!(!session.is_empty(), "there is a task");

    let with = |operations: &str| result(&session, "foo", "1", "success") + operations;
    let many: String = (0..257)
        .map(|n| format!("o{n}-status: success\n"))
        .collect();
    for (text, expected) in [
        (
            with(&format!("{}-status: success\n", "x".repeat(60_000_000))),
            "names an operation with more than 128 bytes\n",
        ),
        (with(&many), "is one of more than 256 operations\n"),
    ] {
        let refused = controller.agent("/?build-result", &["Bbot-Agent: 1"], &text);
        assert_eq!(refused.status, 400, "{expected}");
        assert!(refused.text().ends_with(expected), "{}", refused.text());
        assert!(refused.text().len() < 400, "{}", refused.text().len());
    }
    assert_eq!(controller.build(&id)["state"], "building");
    // It has still what it was given.
    let name = "x".repeat(128);
    let text = with(&format!("{name}-status: success\n"));
    let brought = controller.agent("/?build-result", &["Bbot-Agent: 1"], &text);
    assert_eq!(brought.status, 200, "{}", brought.text());
    assert_eq!(controller.build(&id)["operations"][0]["name"], name);
}

/// The most memory that a process has had, in bytes.
pub(crate) fn most_memory(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

/// A tar archive, packed by gzip, of files with so many zeros.
fn bomb(files: &[(&str, u64)]) -> Vec<u8> {
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(encoder);
    for (name, size) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(*size);
        header.set_mode(0o644);
        header.set_path(name).unwrap();
        header.set_cksum();
        tar.append(&header, std::io::repeat(0).take(*size)).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

#[test]
fn archives_that_are_large_inside_cost_no_memory() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), |_| {});
    let token = std::fs::read_to_string(dir.path().join("token")).unwrap();
    let before = most_memory(running.pid());
    // The last says that it is larger than anything may be, and ends there.
    let mut lie = tar::Header::new_ustar();
    lie.set_size(1 << 40);
    lie.set_path("a-1/zeros").unwrap();
    lie.set_cksum();
    for (what, bytes, status) in [
        (
            "a file",
            bomb(&[("a-1/zeros", 400 * MIB), ("a-1/manifest", 10)]),
            201,
        ),
        ("the manifest", bomb(&[("a-1/manifest", 200 * MIB)]), 201),
        ("what is said", gzip(lie.as_bytes()), 400),
    ] {
        assert!(bytes.len() < 10 << 20, "{}", bytes.len());
        let sha256 = hex::encode(Sha256::digest(&bytes));
        let put = format!("/api/v1/archives/{sha256}");
        assert_eq!(running.send(token.trim(), "PUT", &put, &bytes).status, 201);
        let body = json!({"name": "a", "version": "1", "source": {"archive": sha256}}).to_string();
        let answer = running.send(token.trim(), "POST", "/api/v1/submissions", body.as_bytes());
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
    }
    let more = most_memory(running.pid()).saturating_sub(before);
    assert!(more < 64 << 20, "{more} bytes");
}

/// Logs without an end, as they come and in results, of one line, and read again.
#[test]
fn logs_without_an_end_cost_a_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), |_| {});
    let token = std::fs::read_to_string(dir.path().join("token")).unwrap();
    let body = json!({"name": "foo", "version": "1",
                      "source": {"repository": {"url": "https://pkg.example.org/1/a"}}});
    let body = body.to_string();
    let submitted = running.send(token.trim(), "POST", "/api/v1/submissions", body.as_bytes());
    assert_eq!(submitted.status, 201, "{}", submitted.text());
    let ours = ["Bbot-Agent: 1"];
    let url = format!("{}/?build-task", running.url);
    let task = agent(&url, &ours, request("0.17.0").as_bytes());
    let session = field(&task.text(), "session");
    let place = task.header("bbot-session-url").unwrap().to_owned();
    let before = most_memory(running.pid());

    // 16 MiB of one line, in segments as large as are taken.
    let mut segment = b"update\n".to_vec();
    segment.resize(
        segment.len() + bbot_controller::segments::record::DATA_LIMIT,
        b'x',
    );
    let segments = (16 << 20) / segment.len();
    for number in 1..=segments {
        let sent = agent(&format!("{place}/log/{number}"), &ours, &segment);
        assert!(
            sent.status < 300,
            "{number}: {} {}",
            sent.status,
            sent.text()
        );
    }
    segment.resize(4 << 20, b'x');
    let refused = agent(&format!("{place}/log/{}", segments + 1), &ours, &segment);
    assert_eq!(refused.status, 413, "{}", refused.text());
    let raw = curl(&[&format!("{}/api/v1/builds/1/log", running.url)], b"");
    assert_eq!(raw.status, 200);
    assert!(raw.body.len() >= 15 << 20, "{}", raw.body.len());

    let more = most_memory(running.pid()).saturating_sub(before);
    assert!(more < 48 << 20, "segments: {more} bytes");

    // A result of 60 MB, of one line: while it is read it is in memory, a few times.
    let mut text = result(&session, "foo", "1", "error").into_bytes();
    text.extend(b"update-status: error\nupdate-log: \\\n");
    text.resize(60_000_000, b'y');
    text.extend(b"\n\\\n");
    let brought = agent(&format!("{}/?build-result", running.url), &ours, &text);
    assert!(matches!(brought.status, 200 | 413), "{}", brought.text());
    for path in ["/builds/1", "/api/v1/builds/1", "/"] {
        let page = curl(&[&format!("{}{path}", running.url)], b"");
        assert_eq!(page.status, 200, "{path}");
        assert!(page.body.len() < 1 << 20, "{path}: {}", page.body.len());
    }
    let more = most_memory(running.pid()).saturating_sub(before);
    assert!(more < 256 << 20, "the result: {more} bytes");
}
