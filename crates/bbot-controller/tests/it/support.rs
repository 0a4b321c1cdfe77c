//! What the tests share: a controller on a free port, `curl`, and an agent made of text.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bbot_controller::Config;
use bbot_controller::clock::{ManualClock, Millis};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

/// When the tests' clocks begin.
pub(crate) const START: Millis = Millis(1_790_000_000_000);

/// Whether the program is there: without it a test is skipped.
pub(crate) fn has(program: &str) -> bool {
    testkit::program(program, program)
}

/// An answer over HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("the body is UTF-8")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|l| l.split_once(':'))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.trim())
    }
}

/// Runs curl; the standard input is what `--data-binary @-` or `-T -` sends.
pub(crate) fn curl(arguments: &[&str], input: &[u8]) -> Answer {
    let mut child = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--include",
            "--http1.1",
            "--max-time",
            "60",
            "--path-as-is",
            "-H",
            "Expect:",
        ])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("curl runs");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // An early answer may leave the rest of the input unread.
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let split = output.stdout.windows(4).position(|w| w == b"\r\n\r\n");
    let split =
        split.unwrap_or_else(|| panic!("no answer: {}", String::from_utf8_lossy(&output.stderr)));
    let head = String::from_utf8(output.stdout[..split].to_vec()).unwrap();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap();
    Answer {
        status,
        head,
        body: output.stdout[split + 4..].to_vec(),
    }
}

/// A controller within this process.
pub(crate) struct Controller {
    pub(crate) address: SocketAddr,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) token: String,
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Controller {
    /// Starts one on this data directory.
    pub(crate) fn start(data: &Path, change: impl FnOnce(&mut Config)) -> Self {
        let clock = Arc::new(ManualClock::at(START));
        let shutdown = CancellationToken::new();
        let (sender, bound) = tokio::sync::oneshot::channel();
        let mut config = Config::new(data.to_owned());
        config.bind = SocketAddr::from(([127, 0, 0, 1], 0));
        config.clock = Arc::<ManualClock>::clone(&clock);
        config.bound = Some(sender);
        change(&mut config);
        let stop = shutdown.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime
                .block_on(bbot_controller::run(config, stop))
                .unwrap();
        });
        let address = bound.blocking_recv().expect("the controller starts");
        let token = std::fs::read_to_string(data.join("token"))
            .unwrap()
            .trim()
            .to_owned();
        Self {
            address,
            clock,
            token,
            shutdown,
            thread: Some(thread),
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        curl(&[&self.url(path)], b"")
    }

    /// A request of the API with the token.
    pub(crate) fn send(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let authorization = format!("Authorization: Bearer {}", self.token);
        curl(
            &[
                "-X",
                method,
                "-H",
                &authorization,
                "--data-binary",
                "@-",
                &self.url(path),
            ],
            body,
        )
    }

    /// Puts an archive that says nothing of its builds; its SHA-256.
    pub(crate) fn archive(&self) -> String {
        self.put(&archive(&[("README", "")]))
    }

    /// Puts this archive; its SHA-256.
    pub(crate) fn put(&self, bytes: &[u8]) -> String {
        let sha256 = hex::encode(Sha256::digest(bytes));
        let answer = self.send("PUT", &format!("/api/v1/archives/{sha256}"), bytes);
        assert!(matches!(answer.status, 200 | 201), "{}", answer.text());
        sha256
    }

    /// Submits a package with an archive; the ids of its builds.
    pub(crate) fn submit(&self, name: &str, version: &str) -> Vec<String> {
        let source = serde_json::json!({ "archive": self.archive() });
        self.submit_source(name, version, &source)
    }

    pub(crate) fn submit_source(&self, name: &str, version: &str, source: &Value) -> Vec<String> {
        let body = serde_json::json!({ "name": name, "version": version, "source": source });
        let answer = self.send("POST", "/api/v1/submissions", body.to_string().as_bytes());
        assert_eq!(answer.status, 201, "{}", answer.text());
        let builds = answer.json()["builds"].as_array().unwrap().clone();
        builds
            .iter()
            .map(|b| b["id"].as_str().unwrap().to_owned())
            .collect()
    }

    pub(crate) fn build(&self, id: &str) -> Value {
        let answer = self.get(&format!("/api/v1/builds/{id}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// An agent's request as curl sends it for the original.
    pub(crate) fn agent(&self, query: &str, headers: &[&str], body: &str) -> Answer {
        agent(&self.url(query), headers, body.as_bytes())
    }

    /// Has a request for a task sent, and goes on once it is held, or answered.
    pub(crate) fn held<T: Send + 'static>(
        &self,
        ask: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let asking = || -> u64 {
            let list = self.get("/api/v1/agents").json();
            let agents = list["agents"].as_array().unwrap().iter();
            agents.filter_map(|agent| agent["asking"].as_u64()).sum()
        };
        let before = asking();
        let waits = std::thread::spawn(ask);
        let begun = Instant::now();
        while asking() == before && !waits.is_finished() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it is held");
            std::thread::sleep(Duration::from_millis(10));
        }
        waits
    }

    /// Asks for a task as a stranger; the session, which must be there.
    pub(crate) fn take(&self) -> String {
        let answer = self.agent("/?build-task", &[], &request("0.7.0"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let session = field(&answer.text(), "session");
        assert!(!session.is_empty(), "there is a task");
        session
    }

    fn end(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                std::thread::panicking() || ended.is_ok(),
                "the controller ends in order"
            );
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.end();
    }
}

pub(crate) fn agent(url: &str, headers: &[&str], body: &[u8]) -> Answer {
    let mut arguments = vec!["-H", "Content-Type: text/manifest", "--data-binary", "@-"];
    for header in headers {
        arguments.extend(["-H", header]);
    }
    arguments.push(url);
    curl(&arguments, body)
}

/// A source archive of these files.
pub(crate) fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    gzip(&tar.into_inner().unwrap())
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::fast());
    let mut compressed = Vec::new();
    encoder.read_to_end(&mut compressed).unwrap();
    compressed
}

/// The task request that the original's developers use, with another toolchain version.
pub(crate) fn request(version: &str) -> String {
    format!(
        ": 1\nagent: bot\ntoolchain-name: dev\ntoolchain-version: {version}\n:\nid: a2b0c4b855\n\
         name: linux_debian_12-gcc_13.1\nsummary: Linux Debian 12 GCC 13.1\n"
    )
}

/// The shortest result.
pub(crate) fn result(session: &str, name: &str, version: &str, status: &str) -> String {
    format!(": 1\nsession: {session}\n:\nname: {name}\nversion: {version}\nstatus: {status}\n")
}

/// The first value of this name, its folded lines joined.
pub(crate) fn field(manifest: &str, name: &str) -> String {
    let manifest = manifest.replace("\\\n", "");
    let found = manifest
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    found.unwrap_or_default().trim().to_owned()
}
