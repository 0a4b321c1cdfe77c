//! What PostgreSQL reads for what a farm asks: of a queue of many builds only what is near its first ones, whether the server has
//! counted the queue lately or not.

use std::time::Duration;

use serde_json::json;

use crate::cluster::Cluster;
use crate::support::{Controller, agent, field, result};

const KINDS: usize = 100;
const WAITING: usize = 100_000;

/// No statement reads more rows of the table of builds. An agent has half of the configurations; of each some 30 builds are looked up at once.
const READ: u64 = 4_000;

/// The server tells what each statement has read, and counts no table by itself.
const SETTINGS: &[&str] = &[
    "session_preload_libraries=auto_explain",
    "auto_explain.log_min_duration=0",
    "auto_explain.log_analyze=on",
    "auto_explain.log_timing=off",
    "autovacuum=off",
];

fn start(dir: &std::path::Path, url: &str) -> Controller {
    let tab = dir.join("buildtab");
    let lines: Vec<String> = (0..KINDS)
        .map(|n| format!("linux-{n} c{n} x86_64-linux-gnu\n"))
        .collect();
    std::fs::write(&tab, lines.concat()).unwrap();
    Controller::start(&dir.join("data"), |config| {
        config.database = Some(url.to_owned());
        config.buildtab = Some(tab);
        config.lease = Duration::from_secs(60);
    })
}

/// Lists of what a word selects go through the builds in steps of so many.
const STEP: u64 = 20_000;

/// The one statement that counts: from an index, and what it found serves all pages for a while.
const COUNTS: &str = "SELECT (SELECT COUNT(*) FROM builds WHERE state = 'queued')";

/// The request of an agent with every other machine.
fn request() -> String {
    let machines: Vec<String> = (0..KINDS)
        .step_by(2)
        .map(|n| format!(":\nid: m{n}\nname: linux-{n}\nsummary: Linux\n"))
        .collect();
    let head = ": 1\nagent: bot\ntoolchain-name: dev\ntoolchain-version: 0.17.0\n";
    format!("{head}{}", machines.concat())
}

/// The number after this word.
fn number(line: &str, word: &str) -> Option<u64> {
    let digits = line.split_once(word)?.1;
    let end = digits.find(|c: char| !c.is_ascii_digit());
    digits[..end.unwrap_or(digits.len())].parse().ok()
}

/// The rows of builds that this line of a plan has read, whether it gave them or not. (The lines about rows that were passed over belong to
/// some scan; all count.)
fn read(line: &str) -> u64 {
    let passed = number(line, "Rows Removed by Filter: ")
        .or_else(|| number(line, "Rows Removed by Join Filter: "));
    if let Some(passed) = passed {
        return passed;
    }
    if !line.contains(" on builds") || !line.contains("Scan") {
        return 0;
    }
    let actual = line.split_once("(actual ").map_or("", |(_, actual)| actual);
    number(actual, "rows=").unwrap_or(0) * number(actual, "loops=").unwrap_or(0)
}

/// One of everything that happens often.
fn live(controller: &Controller) {
    let ours = ["Bbot-Agent: 1"];
    let mut sessions = Vec::new();
    for _ in 0..8 {
        let task = agent(&controller.url("/?build-task"), &ours, request().as_bytes());
        assert_eq!(task.status, 200, "{}", task.text());
        let task = task.text();
        let session = field(&task, "session");
        assert!(!session.is_empty());
        sessions.push((session, field(&task, "name")));
    }
    for (session, package) in &sessions {
        let brought = result(session, package, "1.0", "success");
        let answer = agent(&controller.url("/?build-result"), &ours, brought.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let source = json!({ "repository": { "url": "https://x.org/1/x" } });
    let builds = controller.submit_source("package-1", "2.0", &source);
    assert_eq!(builds.len(), KINDS);
    for path in [
        "/".to_owned(),
        "/api/v1/builds?limit=50".to_owned(),
        "/api/v1/builds?state=queued&limit=50".to_owned(),
        "/api/v1/builds?package=package-7&limit=50".to_owned(),
        "/api/v1/submissions?limit=50".to_owned(),
        // Why each waits, among all.
        format!("/api/v1/builds/{}", builds[0]),
        format!("/builds/{}", builds[1]),
        "/api/v1/builds/17".to_owned(),
        "/api/v1/submissions/3".to_owned(),
    ] {
        assert_eq!(controller.get(&path).status, 200, "{path}");
    }
    for (path, status) in [
        (format!("/api/v1/builds/{}/cancel", builds[2]), 200),
        ("/api/v1/builds/17/rebuild".to_owned(), 200),
    ] {
        let answer = controller.send("POST", &path, br#"{"reason":"a test"}"#);
        assert_eq!(answer.status, status, "{path} {}", answer.text());
    }
}

#[test]
fn what_is_read_does_not_grow_with_the_queue() {
    let Some(cluster) = Cluster::start_with(SETTINGS) else {
        return;
    };
    let url = cluster.database();
    let dir = tempfile::tempdir().unwrap();
    // The tables, and what is planned for them while they are empty: the server keeps it for as long as a connection lasts.
    let early = start(dir.path(), &url);
    let source = json!({ "repository": { "url": "https://x.org/1/x" } });
    for package in ["early-1", "early-2", "early-3"] {
        assert_eq!(early.submit_source(package, "1.0", &source).len(), KINDS);
    }
    for _ in 0..3 {
        live(&early);
    }
    let packages = WAITING / KINDS;
    for statement in [
        format!(
            "INSERT INTO submissions (id, name, version, source, submitted) SELECT n + 1001, 'package-' || n, '1.0', \
             '{{\"repository\":{{\"url\":\"https://x.org/1/x\"}}}}', 1700000000000 FROM generate_series(0, {packages} - 1) n"
        ),
        format!(
            "INSERT INTO builds (id, submission, package, version, configuration, target, repository, state, position, place, again, queued, \
             attempt, operations) SELECT n + 10001, n / {KINDS} + 1001, 'package-' || n / {KINDS}, '1.0', 'c' || n % {KINDS}, 'x86_64-linux-gnu', \
             'x.org/1', 'queued', n + 10001, 1700000000000 + n, 0, 1700000000000, 0, '[]' FROM generate_series(0, {WAITING} - 1) n"
        ),
        format!(
            "SELECT setval('submission_numbers', {packages} + 1001), setval('build_numbers', {WAITING} + 10001), setval('queue_numbers', {WAITING} + 10001)"
        ),
    ] {
        Cluster::execute(&url, &statement);
    }
    let before = cluster.log().len();
    for _ in 0..3 {
        live(&early);
    }
    drop(early);
    look(&cluster.log().split_off(before), "planned early");
    for (is_counted, when) in [(false, "not counted"), (true, "counted")] {
        if is_counted {
            Cluster::execute(&url, "ANALYZE");
        }
        let before = cluster.log().len();
        // Often enough for the server to keep plans that are not for these values alone.
        let controller = start(dir.path(), &url);
        for _ in 0..7 {
            live(&controller);
        }
        drop(controller);
        look(&cluster.log().split_off(before), when);
    }
}

/// No statement of this log has read more than it may.
fn look(log: &str, when: &str) {
    let of_builds = log
        .lines()
        .filter(|line| line.contains(" on builds"))
        .count();
    assert!(of_builds > 100, "{of_builds}: the server tells its plans");
    let mut statement = "";
    for line in log.lines() {
        if line.contains("Query Text:") {
            statement = line;
        }
        let bound = if statement.contains("position") {
            STEP + READ
        } else {
            READ
        };
        let is_within = read(line) <= bound || statement.contains(COUNTS);
        assert!(is_within, "{when}\n{statement}\n{line}");
    }
}
