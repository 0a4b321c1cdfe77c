//! `bbot log --follow` and `bbot submit --wait --follow` over a real controller, with an agent made of text.

#![expect(clippy::unwrap_used, unreachable_pub, reason = "tests")]

mod support;

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use support::Controller;

const BBOT: &str = env!("CARGO_BIN_EXE_bbot");
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/hello");

/// How long anything here may take.
const BOUND: Duration = Duration::from_secs(60);

/// An agent that has a task.
struct Agent {
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    root: String,
    session: String,
    session_url: String,
}

impl Agent {
    fn take(controller: &Controller) -> Agent {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let client = reqwest::Client::builder()
            .timeout(BOUND)
            // A connection from before a restart would be tried first.
            .pool_max_idle_per_host(0)
            .build()
            .unwrap();
        let root = controller.url();
        let (session_url, text) = runtime.block_on(async {
            let answer = client
                .post(format!("{root}/?build-task"))
                .header("Bbot-Agent", "1")
                .header("Bbot-Wait", "30")
                .body(
                    ": 1\nagent: desk\ntoolchain-name: t\ntoolchain-version: 0.17.0\n\
                     :\nid: 1\nname: m\nsummary: M\n",
                )
                .send()
                .await
                .unwrap();
            let url = answer.headers().get("bbot-session-url").unwrap();
            (
                url.to_str().unwrap().to_owned(),
                answer.text().await.unwrap(),
            )
        });
        let session = text
            .lines()
            .find_map(|l| l.strip_prefix("session: "))
            .unwrap()
            .to_owned();
        Agent {
            runtime,
            client,
            root,
            session,
            session_url,
        }
    }

    fn post(&self, url: &str, body: &[u8]) -> u16 {
        self.runtime.block_on(async {
            let request = self.client.post(url).header("Bbot-Agent", "1");
            let answer = request.body(body.to_vec()).send().await.unwrap();
            answer.status().as_u16()
        })
    }

    fn log(&self, number: u32, operation: &str, bytes: &[u8]) {
        let body = [operation.as_bytes(), b"\n", bytes].concat();
        let url = format!("{}/log/{number}", self.session_url);
        assert_eq!(self.post(&url, &body), 204);
    }

    fn result(&self, status: &str) {
        let text = format!(
            ": 1\nsession: {}\n:\nname: hello\nversion: 1.0.0\nstatus: {status}\nupdate-status: {status}\nupdate-log: in the result\n",
            self.session
        );
        let url = format!("{}/?build-result", self.root);
        assert_eq!(self.post(&url, text.as_bytes()), 200);
    }
}

/// `bbot` at work, its lines as they come.
struct Bbot {
    child: Child,
    lines: Receiver<String>,
}

impl Bbot {
    fn start(controller: &Controller, token: &Path, arguments: &[&str]) -> Bbot {
        let mut child = Command::new("timeout")
            .arg(BOUND.as_secs().to_string())
            .arg(BBOT)
            .args(arguments)
            .env("BBOT_CONTROLLER", controller.url())
            .env("BBOT_TOKEN_FILE", token)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines() {
                let _ = sender.send(line.unwrap());
            }
        });
        Bbot { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(BOUND).expect("there is a line")
    }

    /// The rest of its lines, what it said beside, and its exit code.
    fn end(mut self) -> (Vec<String>, String, Option<i32>) {
        let mut said = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        let code = self.child.wait().unwrap().code();
        (self.lines.iter().collect(), said, code)
    }
}

fn submit(controller: &Controller, token: &Path, more: &[&str]) -> Bbot {
    let arguments = ["submit", EXAMPLE, "--name", "hello", "--version", "1.0.0"];
    Bbot::start(controller, token, &[&arguments, more].concat())
}

#[test]
fn a_log_is_followed_over_a_restart_of_the_controller() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    let controller = Controller::start(dir.path(), 0, |_| ());
    let (_, said, code) = submit(&controller, &token, &[]).end();
    assert_eq!(code, Some(0), "{said}");

    // It waits for an agent.
    let follow = Bbot::start(&controller, &token, &["log", "1", "--follow"]);
    let only = Bbot::start(
        &controller,
        &token,
        &["log", "1", "-f", "--operation", "test"],
    );
    let agent = Agent::take(&controller);
    // Both are there.
    agent.log(1, "test", b"first\n");
    assert_eq!(only.line(), "first");
    assert_eq!([follow.line(), follow.line()], ["==== test ====", "first"]);
    agent.log(2, "update", b"one\n\x1b[31mtwo\x1b[0m\nthr");
    assert_eq!(
        [follow.line(), follow.line(), follow.line()],
        ["==== update ====", "one", "two"]
    );
    agent.log(3, "update", b"ee\x1b]0;x\x07\n");
    assert_eq!(follow.line(), "three?");

    let port = controller.address.port();
    drop(controller);
    let controller = Controller::start(dir.path(), port, |_| ());
    agent.log(4, "update", b"four\n");
    assert_eq!(follow.line(), "four", "nothing twice, nothing lost");
    agent.log(5, "test", b"no newline");
    agent.result("warning");
    let (rest, said, code) = follow.end();
    assert_eq!(rest, ["==== test ====", "no newline"], "{said}");
    assert_eq!((code, said.as_str()), (Some(0), ""));
    let (lines, said, code) = only.end();
    assert_eq!(
        (lines, code),
        (vec!["no newline".to_owned()], Some(0)),
        "{said}"
    );

    // Built: the result's log.
    let (lines, _, code) = Bbot::start(&controller, &token, &["log", "1", "-f"]).end();
    assert_eq!((lines.len(), code), (2, Some(0)));
    assert_eq!(lines[1], "in the result");
}

#[test]
fn the_exit_code_is_that_of_the_build() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    let controller = Controller::start(dir.path(), 0, |_| ());
    let following = submit(&controller, &token, &["--wait", "--follow"]);
    let agent = Agent::take(&controller);
    agent.log(1, "update", b"error: no\n");
    assert_eq!(following.line(), "==== update ====");
    assert_eq!(following.line(), "error: no");
    agent.result("error");
    let (rest, said, code) = following.end();
    assert_eq!((rest.len(), code), (0, Some(3)), "{said}");
    assert!(
        said.contains("queued hello/1.0.0") && said.contains(": error"),
        "{said}"
    );
    let (_, _, code) = Bbot::start(&controller, &token, &["log", "1", "--follow"]).end();
    assert_eq!(code, Some(3));
}

#[test]
fn what_cannot_be_followed_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    let controller = Controller::start(dir.path(), 0, |_| ());
    let end = |arguments: &[&str]| Bbot::start(&controller, &token, arguments).end();
    let (_, said, code) = end(&["log", "7", "--follow"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("there is no build 7"), "{said}");
    let (_, said, code) = end(&["log", "1", "update", "--operation", "test"]);
    assert_eq!(code, Some(2), "{said}");
    let (_, said, code) = end(&["submit", EXAMPLE, "--follow", "--json"]);
    assert_eq!(code, Some(2), "{said}");
    let nobody = ["log", "1", "-f", "--controller", "http://127.0.0.1:9"];
    let (_, said, code) = end(&nobody);
    assert_eq!(code, Some(1));
    assert!(said.contains("no controller answers at"), "{said}");
}

/// However many pages of builds the controller gives.
#[test]
fn all_builds_of_a_large_submission_are_told() {
    const BUILDS: usize = 1100;
    let dir = tempfile::tempdir().unwrap();
    let tab: String = (0..BUILDS)
        .map(|n| format!("linux** c{n} x86_64-linux-gnu default\n"))
        .collect();
    let path = dir.path().join("buildtab");
    std::fs::write(&path, tab).unwrap();
    let token = dir.path().join("token");
    let controller = Controller::start(dir.path(), 0, |config| config.buildtab = Some(path));
    let (_, said, code) = submit(&controller, &token, &[]).end();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches("queued hello/1.0.0 for c").count(), BUILDS);
    let (_, said, code) = Bbot::start(&controller, &token, &["cancel", "--submission", "1"]).end();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches(" is cancelled").count(), BUILDS);
}
