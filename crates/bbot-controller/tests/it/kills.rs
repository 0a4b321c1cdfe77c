//! Controllers that are killed: what was acknowledged is there after the next start.

use std::process::Command;

use crate::process::{PROGRAM, Running};
use crate::support::{agent, curl, field, request, result};

#[test]
fn nothing_is_lost_when_it_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data directory? 50%");
    let start = || Running::start(&data, |_| {});
    let running = start();
    let token = std::fs::read_to_string(data.join("token"))
        .unwrap()
        .trim()
        .to_owned();
    let body = br#"{"name": "foo", "version": "1", "source": {"repository": {"url": "https://example.org/1/x"}}}"#;
    assert_eq!(
        running
            .send(&token, "POST", "/api/v1/submissions", body)
            .status,
        201
    );
    running.kill();

    let running = start();
    assert_eq!(running.build()["state"], "queued");
    let answer = agent(
        &format!("{}/?build-task", running.url),
        &[],
        request("0.7.0").as_bytes(),
    );
    let session = field(&answer.text(), "session");
    assert_eq!(session.len(), 64);
    running.kill();

    // The task is still out, and its result is taken.
    let running = start();
    assert_eq!(running.build()["state"], "building");
    let text = result(&session, "foo", "1", "warning") + "update-status: warning\nupdate-log: hm\n";
    let url = format!("{}/?build-result", running.url);
    assert_eq!(agent(&url, &["Bbot-Agent: 1"], text.as_bytes()).status, 200);
    running.kill();

    // What was answered with 200 is there, and the same result again changes nothing.
    let running = start();
    assert_eq!(running.build()["status"], "warning");
    let url = format!("{}/?build-result", running.url);
    assert_eq!(agent(&url, &["Bbot-Agent: 1"], text.as_bytes()).status, 200);
    assert_eq!(running.build()["attempt"], 1);
    assert_eq!(
        curl(
            &[&format!("{}/api/v1/builds/1/log/update", running.url)],
            b""
        )
        .text(),
        "hm\n"
    );
    assert_eq!(
        std::fs::read_to_string(data.join("token")).unwrap().trim(),
        token
    );

    // A second one keeps off, and the first ends in order.
    let second = Command::new(PROGRAM)
        .args(["--listen", "127.0.0.1:0", "--data"])
        .arg(&data)
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another controller uses"));
    assert_eq!(running.terminate(), Some(0));
}

/// `kill -9` after any answer: a lease that was renewed is held, a segment that was acknowledged is there, one that was
/// not can be sent again under its number, and what was never confirmed comes back.
#[test]
fn leases_and_logs_survive_kills() {
    use crate::sessions::{OURS, Task};
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    // A port of its own, so that the sessions' URLs stay the same.
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let start = || {
        Running::start_at(port, &data, |command| {
            command.args(["--lease", "5"]);
        })
    };
    let running = start();
    let token = std::fs::read_to_string(data.join("token")).unwrap();
    let body = br#"{"name": "foo", "version": "1", "source": {"repository": {"url": "https://example.org/1/x"}}}"#;
    let submitted = running.send(token.trim(), "POST", "/api/v1/submissions", body);
    assert_eq!(submitted.status, 201);
    let take = |running: &Running, more: &[&str]| {
        let headers = [OURS, more].concat();
        let url = format!("{}/?build-task", running.url);
        Task::of(agent(&url, &headers, request("0.17.0").as_bytes()))
    };
    let task = take(&running, &[]);
    running.kill();

    let mut expected = Vec::new();
    for number in 1..=12 {
        let running = start();
        assert_eq!(task.renew().status, 204, "{number}");
        let body = format!("update\nline {number}\n");
        let stored = task.log(number, body.as_bytes());
        assert_eq!(
            (stored.status, stored.header("bbot-log-next")),
            (204, Some(format!("{}", number + 1).as_str()))
        );
        expected.extend_from_slice(format!("line {number}\n").as_bytes());
        // The next one is under way when it is killed: the agent does not know whether it is there.
        let mut half = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
        let next = format!("update\nline {}\n", number + 1);
        let path = task.url.rsplit_once("/sessions/").unwrap().1;
        std::io::Write::write_all(
            &mut half,
            format!(
                "POST /sessions/{path}/log/{} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {}\r\n\r\n{next}",
                number + 1,
                next.len()
            )
            .as_bytes(),
        )
        .unwrap();
        running.kill();
    }
    let running = start();
    let url = format!("{}/api/v1/builds/1/log", running.url);
    let log = curl(&[&url], b"").body;
    let whole = [b"==== update ====\n".to_vec(), expected.clone()].concat();
    let more = [whole.clone(), b"line 13\n".to_vec()].concat();
    assert!(
        log == whole || log == more,
        "{}",
        String::from_utf8_lossy(&log)
    );
    assert_eq!(task.log(13, b"update\nline 13\n").status, 204);
    assert_eq!(curl(&[&url], b"").body, more);
    running.kill();

    // Its agent is gone now. The start gives it a whole lease, and the next one gets it when that is over.
    let running = start();
    let begun = std::time::Instant::now();
    let second = take(&running, &["Bbot-Wait: 30"]);
    assert!(
        begun.elapsed() > std::time::Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    assert!(
        begun.elapsed() < std::time::Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(task.renew().status, 410);
    let text = result(&second.session, "foo", "1", "success");
    let url = format!("{}/?build-result", running.url);
    assert_eq!(agent(&url, OURS, text.as_bytes()).status, 200);
    assert_eq!(running.build()["status"], "success");
    assert_eq!(running.build()["attempt"], 1);
}
