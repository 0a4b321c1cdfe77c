//! What comes from people who mean harm, and from broken programs.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::cluster::on_both;
use crate::support::{Controller, curl, field, request, result};

#[test]
fn requests_for_another_host() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |c| c.names = vec!["farm.example".to_owned()]);
    let port = controller.address.port();
    for (host, expected) in [
        (format!("127.0.0.1:{port}"), 200),
        (format!("localhost:{port}"), 200),
        (format!("farm.example:{port}"), 200),
        (format!("evil.example:{port}"), 421),
        ("evil.example".to_owned(), 421),
        ("127.0.0.1".to_owned(), 421),
        (format!("127.0.0.2:{port}"), 421),
    ] {
        for path in ["/", "/api/v1/builds", "/style.css"] {
            let answer = curl(
                &["-H", &format!("Host: {host}"), &controller.url(path)],
                b"",
            );
            assert_eq!(answer.status, expected, "{host} {path}");
        }
    }
    let answer = curl(
        &[
            "-H",
            "Host: evil.example",
            &controller.url("/api/v1/builds"),
        ],
        b"",
    );
    assert!(answer.json()["error"].is_string());
    // No name at all, and two of them.
    for head in [
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n",
    ] {
        let answer = raw(&controller, head.as_bytes());
        assert!(
            answer.contains(" 421 ") || answer.contains(" 400 "),
            "{answer}"
        );
    }
}

#[test]
fn pages_elsewhere_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let authorization = format!("Authorization: Bearer {}", controller.token);
    for header in [
        "Origin: https://evil.example",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
    ] {
        for path in [
            format!("/api/v1/builds/{id}/rebuild"),
            "/sign-in".to_owned(),
            "/?build-task".to_owned(),
        ] {
            let answer = curl(
                &[
                    "-X",
                    "POST",
                    "-H",
                    &authorization,
                    "-H",
                    header,
                    "-d",
                    "",
                    &controller.url(&path),
                ],
                b"",
            );
            assert_eq!(answer.status, 403, "{header} {path}");
        }
    }
    assert_eq!(controller.build(&id)["state"], "queued");
}

/// Sends bytes and reads what comes until the other end is done.
fn raw(controller: &Controller, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(controller.address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    // The other end may have heard enough before all is said.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn garbage_and_slow_clients() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \xff\r\nConnection: close\r\n\r\n",
    ] {
        let mut bytes = bytes.to_vec();
        bytes.extend(b"\r\n\r\n");
        let answer = raw(&controller, &bytes);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{answer}"
        );
    }
    // A head that never ends is given up; others are served meanwhile.
    let begun = Instant::now();
    let mut slow = TcpStream::connect(controller.address).unwrap();
    slow.set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: ").unwrap();
    assert_eq!(controller.get("/").status, 200);
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest);
    assert!(begun.elapsed() < Duration::from_secs(40));
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(1_000_000));
    assert!(!raw(&controller, long.as_bytes()).contains(" 200 "));
    assert_eq!(controller.get("/").status, 200);
}

#[test]
fn paths_that_lead_elsewhere() {
    on_both(paths_that_lead_elsewhere_in);
}

fn paths_that_lead_elsewhere_in(database: Option<String>) {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |c| c.database = database);
    controller.archive();
    for place in ["archives", "objects/archives"] {
        let place = dir.path().join(place);
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join("x.tar.gz"), "secret").unwrap();
    }
    for path in [
        "/archives/../token",
        "/archives/..%2ftoken",
        "/archives/%2e%2e%2ftoken.tar.gz",
        "/archives/x.tar.gz",
        "/archives/.tar.gz",
        "/archives/%00.tar.gz",
        "/archives/../../../../etc/passwd",
        "/builds/1/log/../../../token",
        "/builds/1/log/..%2f..%2ftoken",
        "/builds/1'%20OR%20'1'='1",
        "/style.css/../token",
    ] {
        let answer = controller.get(path);
        assert_eq!(answer.status, 404, "{path}");
        assert!(!String::from_utf8_lossy(&answer.body).contains(&controller.token));
        assert!(!String::from_utf8_lossy(&answer.body).contains("secret"));
    }
    let put = controller.send("PUT", "/api/v1/archives/..%2f..%2fevil", b"\x1f\x8b");
    assert_eq!(put.status, 400);
}

const HTML: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;";
const SQL: &str = "'; DROP TABLE builds; --";

#[test]
fn markup_and_sql_in_every_field() {
    on_both(markup_and_sql_in_every_field_in);
}

fn markup_and_sql_in_every_field_in(database: Option<String>) {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |c| c.database = database);
    let id = controller.submit("foo", "1").remove(0);
    // Everything that an agent may choose freely.
    let text = format!(
        ": 1\nagent: {HTML}\ntoolchain-name: {SQL}{HTML}\ntoolchain-version: 0.7.0\n:\nid: {HTML}\nname: {HTML}\nsummary: {SQL}{HTML}\n"
    );
    let answer = controller.agent("/?build-task", &[], &text);
    let session = field(&answer.text(), "session");
    assert_eq!(session.len(), 64, "{}", answer.text());
    let pages = [
        "/".to_owned(),
        format!("/builds/{id}"),
        "/submissions/1".to_owned(),
        "/configurations".to_owned(),
    ];
    let check = || {
        for page in &pages {
            let answer = controller.get(page);
            assert_eq!(answer.status, 200, "{page}");
            assert!(
                answer
                    .header("content-security-policy")
                    .unwrap()
                    .contains("default-src 'none'")
            );
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
            let text = answer.text();
            for bad in ["<script", "<img", "onerror=alert(2)>&amp;\""] {
                assert!(!text.contains(bad), "{page}: {text}");
            }
        }
    };
    check();
    let name = "<script>x</script>/../'%00\"";
    let result = format!(
        ": 1\nsession: {session}\n:\nname: foo\nversion: 1\nstatus: error\n{name}-status: error\n{name}-log: \\\n</pre>{HTML}{SQL}\n\\\n"
    );
    let taken = controller.agent("/?build-result", &[], &result);
    assert_eq!(taken.status, 200, "{}", taken.text());
    assert_eq!(controller.build(&id)["operations"][0]["name"], name);
    check();
    let log = controller.get(&format!("/builds/{id}/log"));
    assert_eq!(
        log.header("content-type"),
        Some("text/plain; charset=utf-8")
    );
    assert_eq!(log.header("x-content-type-options"), Some("nosniff"));
    assert!(log.text().contains(&format!("</pre>{HTML}{SQL}")));
    let one = "/log/%3Cscript%3Ex%3C%2Fscript%3E%2F..%2F%27%2500%22";
    assert_eq!(controller.get(&format!("/builds/{id}{one}")).status, 200);
    for filter in [HTML, SQL, "%", "_", "\\", "*'"] {
        let encoded: String = filter.bytes().map(|b| format!("%{b:02X}")).collect();
        for path in [
            format!("/?package={encoded}&configuration={encoded}"),
            format!("/api/v1/builds?package={encoded}"),
        ] {
            let answer = controller.get(&path);
            assert_eq!(answer.status, 200, "{path}");
            assert!(!answer.text().contains("<script>alert"), "{path}");
        }
        assert_eq!(controller.get(&format!("/?state={encoded}")).status, 400);
    }
    assert_eq!(
        controller.get("/api/v1/builds").json()["builds"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn a_result_with_very_many_operations_is_refused() {
    use std::fmt::Write as _;
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let session = controller.take();
    let mut text = result(&session, "foo", "1", "success");
    for n in 0..300 {
        writeln!(text, "o{n}-status: success").unwrap();
    }
    assert_eq!(controller.agent("/?build-result", &[], &text).status, 400);
    assert_eq!(controller.build(&id)["state"], "building");
}

#[test]
fn a_request_with_very_many_machines_is_answered_soon() {
    use std::fmt::Write as _;
    let dir = tempfile::tempdir().unwrap();
    let tab = dir.path().join("tab");
    std::fs::write(
        &tab,
        "a**b**c** x x86_64-linux-gnu all\n*a*b*c y x86_64-linux-gnu\n",
    )
    .unwrap();
    let controller = Controller::start(dir.path(), |c| c.buildtab = Some(tab));
    controller.submit("foo", "1");
    let mut text = request("0.7.0");
    for n in 0..1000 {
        write!(
            text,
            ":\nid: {n}\nname: {}\nsummary: x\n",
            "a-b-".repeat(15)
        )
        .unwrap();
    }
    let begun = Instant::now();
    let answer = controller.agent("/?build-task", &[], &text);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
}
