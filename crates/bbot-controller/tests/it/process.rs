//! The program itself: its options, exit codes, and what a kill leaves.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use sha2::Digest as _;

use crate::support::{Answer, agent, curl, field, request, result};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_bbot-controller");

/// A running program, killed when it is dropped.
pub(crate) struct Running {
    child: Child,
    pub(crate) url: String,
}

impl Running {
    pub(crate) fn start(data: &Path, change: impl FnOnce(&mut Command)) -> Self {
        Self::start_at(0, data, change)
    }

    /// On a port of its own, which may be one that a killed one had.
    pub(crate) fn start_at(port: u16, data: &Path, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(PROGRAM);
        command
            .args(["--listen", &format!("127.0.0.1:{port}"), "--data"])
            .arg(data)
            .env("BBOT_LOG", "off")
            .stdout(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let url = line
            .split_whitespace()
            .find(|w| w.starts_with("http://"))
            .expect("it says where it listens");
        Self {
            url: url.trim_end_matches('/').to_owned(),
            child,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(mut self) {
        self.kill_now();
    }

    pub(crate) fn kill_now(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap();
    }

    pub(crate) fn terminate(mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        self.child.wait().unwrap().code()
    }

    pub(crate) fn send(&self, token: &str, method: &str, path: &str, body: &[u8]) -> Answer {
        let authorization = format!("Authorization: Bearer {token}");
        curl(
            &[
                "-X",
                method,
                "-H",
                &authorization,
                "--data-binary",
                "@-",
                &format!("{}{path}", self.url),
            ],
            body,
        )
    }

    pub(crate) fn build(&self) -> serde_json::Value {
        curl(&[&format!("{}/api/v1/builds/1", self.url)], b"").json()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What comes while the disk is full is told to come again, what was there stays, and room is all that it takes.
#[test]
fn a_full_disk_is_told_and_heals_by_itself() {
    if !testkit::root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = testkit::Mount::new(&["-t", "tmpfs", "-o", "size=8m", "tmpfs"], dir.path());
    let running = Running::start(disk.path(), |command| {
        command.args(["--artifacts", "bindist"]);
    });
    let token = std::fs::read_to_string(disk.path().join("token")).unwrap();
    let health = || curl(&[&format!("{}/healthz", running.url)], b"").status;
    let submit = |version: usize| {
        let body = serde_json::json!({
            "name": "foo", "version": version.to_string(),
            "source": { "repository": { "url": "https://example.org/1/x" } }
        });
        let body = body.to_string();
        running.send(token.trim(), "POST", "/api/v1/submissions", body.as_bytes())
    };
    assert_eq!(submit(1).status, 201);
    let ours = ["Bbot-Agent: 1"];
    let task = format!("{}/?build-task", running.url);
    let task = agent(&task, &ours, request("0.17.0").as_bytes());
    let session = field(&task.text(), "session");
    let place = task.header("bbot-session-url").unwrap().to_owned();
    // Everything that is kept in a file, as it comes.
    let log = "x".repeat(100_000);
    let mut brought = result(&session, "foo", "1", "error").into_bytes();
    brought.extend(format!("update-status: error\nupdate-log: \\\n{log}\n\\\n").bytes());
    let archive = [&[0x1f, 0x8b], &vec![7; 300_000][..]].concat();
    let sha256 = |bytes: &[u8]| hex::encode(sha2::Sha256::digest(bytes));
    let form = |artifact: &[u8]| {
        let fields = [
            format!("session={session}"),
            "archive=@-;filename=a.tar".to_owned(),
            format!("sha256sum={}", sha256(artifact)),
        ];
        let mut words: Vec<&str> = fields.iter().flat_map(|f| ["--form", f]).collect();
        let url = format!("{}/?upload=bindist", running.url);
        words.extend(["-H", ours[0], &url]);
        curl(&words, artifact)
    };
    let pieces = |artifact: &[u8]| {
        let url = format!("{place}/artifacts/bindist/{}", sha256(artifact));
        let there = curl(&["--head", "-H", ours[0], &url], b"");
        let there: usize = there.header("bbot-artifact-next").unwrap().parse().unwrap();
        let said = [
            format!("Bbot-Artifact-Length: {}", artifact.len()),
            format!("Bbot-Artifact-Offset: {there}"),
        ];
        let words = ["-X", "PUT", "-H", &said[0], "-H", &said[1], "-H", ours[0]];
        let rest = &artifact[there..];
        curl(&[&words[..], &["--data-binary", "@-", &url]].concat(), rest)
    };
    let put = format!("/api/v1/archives/{}", sha256(&archive));
    let send_all = || {
        [
            (
                "a segment",
                agent(&format!("{place}/log/1"), &ours, b"update\nx"),
            ),
            (
                "an archive",
                running.send(token.trim(), "PUT", &put, &archive),
            ),
            ("an artifact in a form", form(&vec![1; 200_000])),
            ("an artifact in pieces", pieces(&vec![2; 200_000])),
            (
                "a result",
                agent(&format!("{}/?build-result", running.url), &ours, &brought),
            ),
        ]
    };
    assert_eq!(health(), 200);
    let large = disk.path().join("large");
    assert!(
        std::fs::write(&large, vec![0; 16 << 20]).is_err(),
        "it is full"
    );
    // One or two may find a place in what the files have already.
    let told = (2..20).map(submit).find(|answer| answer.status != 201);
    let told = told.expect("there is no room");
    assert_eq!(told.status, 503, "{}", told.text());
    assert_eq!(told.header("retry-after"), Some("10"));
    assert_eq!(health(), 503);
    for (what, answer) in send_all() {
        assert_eq!(answer.status, 503, "{what}: {}", answer.text());
        assert_eq!(answer.header("retry-after"), Some("10"), "{what}");
    }
    assert_eq!(running.build()["state"], "building", "it can still be read");
    std::fs::remove_file(&large).unwrap();
    assert_eq!(health(), 200);
    assert_eq!(submit(30).status, 201);
    for (what, answer) in send_all() {
        assert!(
            answer.status < 300,
            "{what}: {} {}",
            answer.status,
            answer.text()
        );
    }
    let build = running.build();
    assert_eq!(
        (&build["state"], &build["status"]),
        (&"built".into(), &"error".into())
    );
    assert_eq!(build["artifacts"].as_array().unwrap().len(), 2);
    let kept = format!("{}/api/v1/builds/1/log/update", running.url);
    assert_eq!(curl(&[&kept], b"").text(), format!("{log}\n"));
    running.kill();
    let running = Running::start(disk.path(), |_| {});
    assert_eq!(running.build()["version"], "1");
    drop(running);
}

/// It says that it works, that it comes round as long as it does, and that it stops.
#[test]
fn systemd_is_told_how_it_is() {
    if !testkit::program("python3", "python3") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let hear = |patience: u64| {
        let patience = std::time::Duration::from_millis(patience);
        socket.set_read_timeout(Some(patience)).unwrap();
        let mut text = [0; 1000];
        let length = socket.recv(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text[..length]).trim().to_owned())
    };
    let data = dir.path().join("data");
    let running = Running::start(&data, |command| {
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "300000");
    });
    let mut heard = Vec::new();
    while !(heard.iter().any(|m| m == "READY=1")
        && heard.iter().filter(|m| *m == "WATCHDOG=1").count() > 2)
    {
        heard.push(hear(20_000).expect("it works and comes round"));
    }
    // Somebody holds the store, so that whatever is to be written waits.
    let hold = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); \
                c.execute('BEGIN IMMEDIATE'); print('held', flush=True); sys.stdin.read()";
    let mut holder = Command::new("python3")
        .args(["-c", hold])
        .arg(data.join("controller.sqlite"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "held\n");
    while hear(500).is_some() {}
    assert_eq!(hear(1000), None, "it does not come round");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    assert_eq!(hear(20_000).as_deref(), Some("WATCHDOG=1"));
    assert_eq!(running.terminate(), Some(0));
    let last = std::iter::from_fn(|| hear(1000)).last();
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
}

#[test]
fn wrong_requests_leave_a_line_in_the_log_each() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let log = dir.path().join("log");
    let file = std::fs::File::create(&log).unwrap();
    let running = Running::start(&data, |command| {
        command.env_remove("BBOT_LOG").stderr(file);
    });
    let token = std::fs::read_to_string(data.join("token")).unwrap();
    let body = br#"{"name": "foo", "version": "1", "source": {"repository": {"url": "https://example.org/1/x"}}}"#;
    let submitted = running.send(token.trim(), "POST", "/api/v1/submissions", body);
    assert_eq!(submitted.status, 201);
    let good = request("0.7.0");
    let task = agent(
        &format!("{}/?build-task", running.url),
        &[],
        good.as_bytes(),
    );
    let session = field(&task.text(), "session");
    let large = format!("{good}# {}\n", "x".repeat(102_400));
    let long = format!("/?build-task&{}%0A%1B=1", "x".repeat(5000));
    for (path, body, status, expected) in [
        (
            "/?build-task",
            ": 1\nagent: bot\nagent: bot\n",
            400,
            "a build-task request is refused: task-request:3:1: error: ",
        ),
        (
            "/?build-task",
            ": 1\nag\u{1b}[31ment: bot\n",
            400,
            "a build-task request is refused: task-request:2:",
        ),
        (
            "/?build-task",
            ": 1\nagent: bot\n",
            400,
            "a build-task request is refused: task-request:",
        ),
        (
            "/?build-task&foo=1",
            &good,
            400,
            "a build-task request is refused: unknown parameter \"foo\"",
        ),
        (
            "/?build-task&foo%0A%1B=1",
            &good,
            400,
            "a build-task request is refused: unknown parameter \"foo",
        ),
        (
            &long,
            &good,
            400,
            "a build-task request is refused: unknown parameter \"xxx",
        ),
        (
            "/?build-task",
            &large,
            413,
            "a build-task request is refused: payload too large",
        ),
        (
            "/?build-result",
            ": 1\nsession: a\n:\nname: x\nversion: 1\nstatus: good\n",
            400,
            "a build-result request is refused: result-request:6:9: error: ",
        ),
        (
            "/?build-result&x",
            "",
            400,
            "a build-result request is refused: unknown parameter \"x\"",
        ),
        (
            "/?build-result",
            &result(&session, "bar", "1", "success"),
            400,
            "a build-result request is refused: ",
        ),
    ] {
        let before = std::fs::read_to_string(&log).unwrap().len();
        let answer = curl(
            &[
                "--data-binary",
                "@-",
                "--write-out",
                "peer=%{local_ip}:%{local_port}",
                &format!("{}{path}", running.url),
            ],
            body.as_bytes(),
        );
        assert_eq!(answer.status, status, "{path} {}", answer.text());
        let said = answer.text();
        let (_, peer) = said.rsplit_once('\n').unwrap();
        // The line is written before the answer.
        let logged = std::fs::read_to_string(&log).unwrap().split_off(before);
        assert_eq!(logged.lines().count(), 1, "{path}: {logged}");
        let line = logged.trim_end_matches('\n');
        assert!(
            line.contains("WARN") && line.contains(expected) && line.ends_with(peer),
            "{path}: {line:?}, {peer}"
        );
        assert!(
            !line.contains(char::is_control) && line.len() < 600,
            "{line:?}"
        );
    }
    assert_eq!(running.terminate(), Some(0));
}

/// What agents say is a part of a line, and never a line of its own.
#[test]
fn an_agent_cannot_write_lines_into_the_log() {
    let dir = tempfile::tempdir().unwrap();
    for format in ["text", "json"] {
        let data = dir.path().join(format);
        let log = dir.path().join(format!("{format}.log"));
        let file = std::fs::File::create(&log).unwrap();
        let running = Running::start(&data, |command| {
            command.env("BBOT_LOG", "debug").stderr(file);
            command.args(["--log-format", format]);
        });
        let token = std::fs::read_to_string(data.join("token")).unwrap();
        let body = br#"{"name": "foo", "version": "1", "source": {"repository": {"url": "https://example.org/1/x"}}}"#;
        let submit = || running.send(token.trim(), "POST", "/api/v1/submissions", body);
        let forged = "\\\nbot\nFORGED line\n\\\n";
        let asks = request("0.17.0")
            .replace("agent: bot\n", &format!("agent: {forged}"))
            .replace(
                "name: linux_debian_12-gcc_13.1\n",
                &format!("name: {forged}"),
            );
        let url = format!("{}/?build-task", running.url);
        let ask = || {
            assert_eq!(submit().status, 201);
            let task = agent(&url, &["Bbot-Agent: 1"], asks.as_bytes());
            let session = field(&task.text(), "session");
            assert!(!session.is_empty(), "{}", task.text());
            session
        };
        ask();
        let cancelled = running.send(token.trim(), "POST", "/api/v1/builds/1/cancel", b"{}");
        assert_eq!(cancelled.status, 200, "{}", cancelled.text());
        let brought = result(&ask(), "foo", "1", "success");
        let url = format!("{}/?build-result", running.url);
        // Also once more, and of a session that is none.
        let other = result("x", "a\nFORGED", "1", "success").replace("name: a", "name: \\\na");
        let other = other.replace("FORGED\n", "FORGED\n\\\n");
        for (text, status) in [(&brought, 200), (&brought, 200), (&other, 404)] {
            let answer = agent(&url, &["Bbot-Agent: 1"], text.as_bytes());
            assert_eq!(answer.status, status, "{}", answer.text());
        }
        assert_eq!(running.terminate(), Some(0));
        let logged = std::fs::read_to_string(&log).unwrap();
        assert!(logged.contains(" goes to bot FORGED"), "{logged}");
        for line in logged.lines() {
            let begins = line.starts_with(if format == "json" { "{\"" } else { "20" });
            assert!(begins && !line.contains(char::is_control), "{line:?}");
        }
    }
}

#[test]
fn exit_codes_and_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    std::fs::write(path("tab"), "* a x86_64-linux-gnu\n* 'b\n").unwrap();
    std::fs::write(path("file"), "").unwrap();
    std::fs::create_dir(path("keys")).unwrap();
    std::fs::write(path("keys/a.pem"), "no key").unwrap();
    let _listener = std::net::TcpListener::bind(&taken).ok();
    std::fs::create_dir(path("damaged")).unwrap();
    std::fs::write(path("damaged/controller.sqlite"), "no database at all").unwrap();
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = (busy.local_addr().unwrap().to_string(), busy);
    for (arguments, code, expected) in [
        (vec!["--help"], 0, "--buildtab"),
        (vec!["--version"], 0, "bbot-controller"),
        (vec![], 2, "--data"),
        (
            vec!["--data", &path("d"), "--era", "1999"],
            2,
            "auto, 2017, later",
        ),
        (vec!["--data", &path("d"), "--what"], 2, "--what"),
        (
            vec!["--data", &path("d"), "--listen", &busy.0],
            1,
            "another program listens there",
        ),
        (vec!["--data", &path("file")], 1, "give another with --data"),
        (
            vec!["--data", &path("damaged")],
            1,
            "damaged/controller.sqlite; put a good copy in its place",
        ),
        (
            vec!["--data", &path("d"), "--buildtab", &path("tab")],
            1,
            "tab:2:3: error: unterminated quote '",
        ),
        (
            vec!["--data", &path("d"), "--buildtab", &path("none")],
            1,
            "cannot read the buildtab",
        ),
        (
            vec!["--data", &path("d"), "--agent-keys", &path("keys")],
            1,
            "a.pem is not an RSA public key",
        ),
        (
            vec!["--data", &path("d"), "--external-url", "here"],
            1,
            "must begin with http",
        ),
        (
            vec!["--data", &path("d"), "--token-file", &path("no/token")],
            1,
            "cannot use the token file",
        ),
    ] {
        let output = Command::new(PROGRAM)
            .args(&arguments)
            .env("BBOT_LOG", "off")
            .output()
            .unwrap();
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
}

#[test]
fn sigterm_answers_those_who_wait() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(&dir.path().join("data"), |_| {});
    let url = format!("{}/?build-task", running.url);
    let agents = format!("{}/api/v1/agents", running.url);
    let waiting = std::thread::spawn(move || {
        agent(
            &url,
            &["Bbot-Agent: 1", "Bbot-Wait: 50"],
            request("0.7.0").as_bytes(),
        )
    });
    let begun = std::time::Instant::now();
    while curl(&[&agents], b"").json()["agents"][0]["asking"] != 1 {
        assert!(begun.elapsed() < std::time::Duration::from_secs(20));
    }
    assert_eq!(running.terminate(), Some(0));
    let answer = waiting.join().unwrap();
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (200, ": 1\nsession:\n")
    );
    assert!(begun.elapsed() < std::time::Duration::from_secs(25));
}

#[test]
fn a_buildtab_that_changes_counts_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (tab, file) = (dir.path().join("buildtab"), dir.path().join("c.toml"));
    std::fs::write(&tab, "linux* gcc x86_64-linux-gnu\n").unwrap();
    std::fs::write(&file, format!("buildtab = {tab:?}\n")).unwrap();
    let running = Running::start(&data, |command| {
        command.arg("--config").arg(&file);
    });
    let token = std::fs::read_to_string(data.join("token")).unwrap();
    let body = br#"{"name": "foo", "version": "1", "source": {"repository": {"url": "https://example.org/1/x"}}}"#;
    let submitted = running.send(token.trim(), "POST", "/api/v1/submissions", body);
    assert_eq!(submitted.status, 201);

    // Nothing is built any more by the agent that asks now, until the line is back: it is told at once then.
    std::fs::write(&tab, "windows* msvc x86_64-microsoft-win32-msvc14.3\n").unwrap();
    running.signal(rustix::process::Signal::HUP);
    let names = || {
        let all = curl(&[&format!("{}/api/v1/configurations", running.url)], b"").json();
        all["configurations"][0]["name"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    while names() != "msvc" {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let url = format!("{}/?build-task", running.url);
    let waiting = std::thread::spawn(move || {
        let headers = ["Bbot-Agent: 1", "Bbot-Wait: 50"];
        agent(&url, &headers, request("0.7.0").as_bytes()).text()
    });
    let asking = || {
        let all = curl(&[&format!("{}/api/v1/agents", running.url)], b"").json();
        all["agents"][0]["asking"] == 1
    };
    while !asking() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // A mistake changes nothing.
    std::fs::write(&tab, "linux*\n").unwrap();
    running.signal(rustix::process::Signal::HUP);
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(names(), "msvc");
    std::fs::write(&tab, "linux* gcc x86_64-linux-gnu\n").unwrap();
    let began = std::time::Instant::now();
    running.signal(rustix::process::Signal::HUP);
    assert_eq!(field(&waiting.join().unwrap(), "session").len(), 64);
    assert!(began.elapsed() < std::time::Duration::from_secs(20));
}

/// Each line is an object: what happened in words, and what it is of as fields.
#[test]
fn the_log_is_lines_of_json_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let file = std::fs::File::create(&log).unwrap();
    let running = Running::start(&dir.path().join("data"), |command| {
        command
            .env_remove("BBOT_LOG")
            .args(["--log-format", "json"])
            .stderr(file);
    });
    let token = std::fs::read_to_string(dir.path().join("data/token")).unwrap();
    let body = br#"{"name": "foo", "version": "1", "source": {"repository": {"url": "https://example.org/1/x"}}}"#;
    let submitted = running.send(token.trim(), "POST", "/api/v1/submissions", body);
    assert_eq!(submitted.status, 201);
    let refused = agent(
        &format!("{}/?build-task", running.url),
        &[],
        b": 1\nag\x1b\"\nent: bot\n",
    );
    assert_eq!(refused.status, 400);
    assert_eq!(running.terminate(), Some(0));
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    for line in &lines {
        let of = |key: &str| {
            line[key]
                .as_str()
                .unwrap_or_else(|| panic!("no {key}: {line}"))
        };
        assert!(of("timestamp").ends_with('Z'));
        assert!(["INFO", "WARN", "ERROR"].contains(&of("level")));
        assert!(!of("message").is_empty());
    }
    let with = |words: &str| {
        let found = lines
            .iter()
            .find(|l| l["message"].as_str().unwrap().contains(words));
        found.unwrap_or_else(|| panic!("no {words}: {text}"))
    };
    assert!(
        with("listening on")["address"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.1:")
    );
    assert_eq!(with("foo 1 is submitted")["submission.id"], 1);
    assert!(
        with("a build-task request is refused")["peer"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.1:")
    );
    with("stopped");
}
