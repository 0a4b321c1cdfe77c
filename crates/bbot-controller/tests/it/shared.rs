//! Two controllers over one PostgreSQL, and what happens when either goes.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bbot_controller::clock::SystemClock;

use crate::cluster::Cluster;
use crate::process::Running;
use crate::support::{Answer, Controller, agent, curl, field, request, result};

const OURS: &[&str] = &["Bbot-Agent: 1"];

fn start(dir: &Path, url: &str, lease: Duration) -> Controller {
    Controller::start(dir, |config| {
        config.database = Some(url.to_owned());
        config.lease = lease;
        config.clock = Arc::new(SystemClock::start());
    })
}

/// A package without an archive.
fn submit(controller: &Controller, name: &str) -> String {
    let source = serde_json::json!({ "repository": { "url": "https://pkg.x.org/1/a" } });
    controller.submit_source(name, "1", &source).remove(0)
}

fn ask(controller: &Controller, wait: u32) -> Answer {
    let wait = format!("Bbot-Wait: {wait}");
    let headers = [OURS, &[&wait]].concat();
    agent(
        &controller.url("/?build-task"),
        &headers,
        request("0.17.0").as_bytes(),
    )
}

/// A request for a task that is held before anything more is done; what it got and when.
fn wait(controller: &Controller, query: &str) -> std::thread::JoinHandle<(String, Instant)> {
    let url = controller.url(query);
    controller.held(move || {
        let headers = [OURS, &["Bbot-Wait: 50"]].concat();
        let answer = agent(&url, &headers, request("0.17.0").as_bytes());
        (field(&answer.text(), "session"), Instant::now())
    })
}

fn bring(controller: &Controller, session: &str, name: &str, status: &str) -> u16 {
    let url = controller.url("/?build-result");
    let result = result(session, name, "1", status);
    agent(&url, OURS, result.as_bytes()).status
}

#[test]
fn what_is_queued_at_one_controller_is_handed_out_at_the_other_at_once() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.database();
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = start(a.path(), &url, Duration::from_secs(60));
    let second = start(b.path(), &url, Duration::from_secs(60));

    let waits = wait(&second, "/?build-task");
    let begun = Instant::now();
    let build = submit(&first, "foo");
    let (session, got) = waits.join().unwrap();
    assert!(!session.is_empty());
    assert!(
        got.duration_since(begun) < Duration::from_secs(5),
        "it was told, and did not find out by itself"
    );
    // Who follows at the one hears of what happens at the other.
    let mut follows = Command::new("curl")
        .args(["--silent", "--no-buffer", "--max-time", "60"])
        .arg(first.url(&format!("/api/v1/builds/{build}/log?follow=1")))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follows.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "event: state");
    // A result may be brought to any of them.
    let begun = Instant::now();
    assert_eq!(bring(&second, &session, "foo", "success"), 200);
    assert!(lines.any(|line| line.unwrap() == "event: end"));
    assert!(begun.elapsed() < Duration::from_secs(5));
    follows.wait().unwrap();
    assert_eq!(bring(&first, &session, "foo", "success"), 200, "once more");
    let seen = [&first, &second].map(|c| c.build(&build));
    for field in ["status", "attempts", "started", "finished", "run"] {
        assert_eq!(seen[0][field], seen[1][field], "{field}");
    }
    assert_eq!(seen[0]["attempt"], 1);
}

/// Also when it is the first build of a lane, and in none that the other one knows.
#[test]
fn a_lane_that_is_new_at_one_controller_is_known_to_the_other_at_once() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.database();
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = start(a.path(), &url, Duration::from_secs(60));
    let second = start(b.path(), &url, Duration::from_secs(60));
    let submit = |kind: &str| {
        let body = serde_json::json!({
            "name": "foo", "version": "1", "service": { "type": kind, "id": "1" },
            "source": { "repository": { "url": "https://pkg.x.org/1/a" } },
        });
        let answer = first.send("POST", "/api/v1/submissions", body.to_string().as_bytes());
        assert_eq!(answer.status, 201, "{}", answer.text());
    };
    for kind in ["ci", "ci", "other"] {
        let waits = wait(&second, &format!("/?build-task&t={kind}"));
        let begun = Instant::now();
        submit(kind);
        let (session, got) = waits.join().unwrap();
        assert!(!session.is_empty(), "{kind}");
        assert!(got.duration_since(begun) < Duration::from_secs(4), "{kind}");
        assert_eq!(bring(&second, &session, "foo", "success"), 200);
    }
}

#[test]
fn a_controller_that_is_gone_leaves_its_leases_to_the_others() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.database();
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = start(a.path(), &url, Duration::from_secs(1));
    let second = start(b.path(), &url, Duration::from_secs(1));
    let build = submit(&first, "foo");
    let lost = field(&ask(&first, 0).text(), "session");
    assert!(!lost.is_empty());
    drop(first);
    // Its lease lapses with nobody asking: the agent that waits is told.
    let (session, _) = wait(&second, "/?build-task").join().unwrap();
    assert!(!session.is_empty() && session != lost);
    assert_eq!(bring(&second, &session, "foo", "error"), 200);
    assert_eq!(bring(&second, &lost, "foo", "success"), 410, "too late");
    let build = second.build(&build);
    assert_eq!(
        (&build["status"], &build["attempt"]),
        (&"error".into(), &1.into())
    );
}

/// As when a computer starts everything at once.
#[test]
fn a_database_that_is_not_there_yet_is_waited_for() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.database();
    let dir = tempfile::tempdir().unwrap();
    cluster.stop();
    let run = |url: &str, wait: Duration| {
        let mut config = bbot_controller::Config::new(dir.path().to_owned());
        config.bind = ([127, 0, 0, 1], 0).into();
        config.database = Some(url.to_owned());
        config.database_wait = wait;
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let stop = tokio_util::sync::CancellationToken::new();
        let begun = Instant::now();
        let error = runtime.block_on(bbot_controller::run(config, stop));
        (error.unwrap_err().to_string(), begun.elapsed())
    };
    let (error, took) = run(&url, Duration::from_secs(1));
    assert!(error.contains("cannot use the database"), "{error}");
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(20));
    std::thread::scope(|scope| {
        let late = scope.spawn(|| {
            let controller = start(dir.path(), &url, Duration::from_secs(60));
            controller.get("/healthz").status
        });
        std::thread::sleep(Duration::from_secs(2));
        assert!(!late.is_finished());
        cluster.resume();
        assert_eq!(late.join().unwrap(), 200);
    });
    // What waiting does not mend is told at once.
    let none = url.replace("/t0", "/none");
    let (error, took) = run(&none, Duration::from_secs(60));
    assert!(error.contains("cannot use the database"), "{error}");
    assert!(took < Duration::from_secs(30), "{took:?}");
}

#[test]
fn a_database_that_is_away_is_told_and_heals_by_itself() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.database();
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path(), &url, Duration::from_secs(60));
    let build = submit(&controller, "foo");
    let session = field(&ask(&controller, 0).text(), "session");
    cluster.stop();
    let url = controller.url("/?build-result");
    let brought = result(&session, "foo", "1", "success");
    for answer in [
        controller.get(&format!("/api/v1/builds/{build}")),
        agent(&url, OURS, brought.as_bytes()),
        // What is known of the queue is believed until it is seen that nobody else can be heard.
        std::iter::repeat_with(|| ask(&controller, 0))
            .take(100)
            .inspect(|_| std::thread::sleep(Duration::from_millis(50)))
            .find(|answer| answer.status != 200)
            .expect("an agent is told that the database is away"),
        controller.get("/"),
    ] {
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert_eq!(answer.header("retry-after"), Some("10"));
        assert!(!answer.text().contains("postgres"), "{}", answer.text());
    }
    cluster.resume();
    // At once, and with what was there before.
    assert_eq!(agent(&url, OURS, brought.as_bytes()).status, 200);
    assert_eq!(controller.build(&build)["status"], "success");
    // An agent that was waiting meanwhile gets what comes.
    let waits = wait(&controller, "/?build-task");
    submit(&controller, "bar");
    assert!(!waits.join().unwrap().0.is_empty());
}

/// Controllers are killed under load: nothing is lost, nothing is with two agents at once.
#[test]
fn no_task_is_lost_or_doubled_while_controllers_are_killed() {
    // `BBOT_TEST_KILLS` names another number.
    let kills = std::env::var("BBOT_TEST_KILLS").map_or(10, |kills| kills.parse().unwrap());
    let builds = 8 * kills;
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.database();
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let start = |n: usize, port| {
        Running::start_at(port, dirs[n].path(), |command| {
            command
                .env("BBOT_CONTROLLER_DATABASE", &url)
                .args(["--lease", "2"]);
        })
    };
    let port = |running: &Running| running.url.rsplit_once(':').unwrap().1.parse().unwrap();
    let mut both = [start(0, 0), start(1, 0)];
    let token = std::fs::read_to_string(dirs[1].path().join("token")).unwrap();
    for n in 0..builds {
        let body = serde_json::json!({
            "name": format!("p{n}"), "version": "1", "source": { "repository": { "url": "https://pkg.x.org/1/a" } }
        });
        let body = body.to_string();
        let answer = both[1].send(token.trim(), "POST", "/api/v1/submissions", body.as_bytes());
        assert_eq!(answer.status, 201, "{}", answer.text());
    }
    let work_of = Arc::new(Work::new(builds, both.each_ref().map(|c| c.url.clone())));
    let agents: Vec<_> = (0..4)
        .map(|n| {
            let all = Arc::clone(&work_of);
            std::thread::spawn(move || work(&all, n % 2))
        })
        .collect();
    let mut random = Random::start();
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(50 + random.next() % 200));
        let n = usize::from(random.next() % 2 == 1);
        let port = port(&both[n]);
        let fresh = {
            both[n].kill_now();
            start(n, port)
        };
        both[n] = fresh;
    }
    for agent in agents {
        agent.join().unwrap();
    }
    let mut done = work_of.done.lock().unwrap().clone();
    done.sort_unstable();
    let results = done.len();
    done.dedup();
    assert_eq!((done.len(), results), (builds, builds), "each once");
    let all = curl(&[&format!("{}/api/v1/builds?limit=500", both[0].url)], b"").json();
    for build in all["builds"].as_array().unwrap() {
        assert_eq!(
            (&build["status"], &build["attempt"]),
            (&"success".into(), &1.into())
        );
    }
}

/// Numbers that are others each time (xorshift64); where they began is told when the test fails.
struct Random(u64);

impl Random {
    fn start() -> Self {
        let seed = getrandom::u64().unwrap() | 1;
        eprintln!("random numbers from {seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }
}

/// What the agents have before them.
struct Work {
    urls: [String; 2],
    builds: usize,
    done: std::sync::Mutex<Vec<String>>,
    until: Instant,
}

impl Work {
    fn new(builds: usize, urls: [String; 2]) -> Self {
        Self {
            urls,
            builds,
            done: std::sync::Mutex::default(),
            until: Instant::now() + Duration::from_secs(90),
        }
    }

    fn is_over(&self) -> bool {
        self.done.lock().unwrap().len() >= self.builds || Instant::now() > self.until
    }
}

/// An agent that works until there is nothing left.
fn work(all: &Work, mut mine: usize) {
    let post = |n: usize, query: &str, body: &str| {
        let output = Command::new("curl")
            .args(["--silent", "--max-time", "30", "-w", "\n%{http_code}"])
            .args(["-H", "Content-Type: text/manifest", "-H", OURS[0]])
            .args(["--data-binary", body, &format!("{}{query}", all.urls[n])])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse::<u16>().unwrap_or(0), body.to_owned())
    };
    while !all.is_over() {
        let (status, task) = post(mine, "/?build-task", &request("0.17.0"));
        let session = field(&task, "session");
        if status != 200 || session.is_empty() {
            mine = 1 - mine;
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        let name = field(&task[task.find("\n:\n").unwrap_or(0)..], "name");
        let brought = result(&session, &name, "1", "success");
        // To whoever takes it: the task's own controller may be gone.
        while post(mine, "/?build-result", &brought).0 != 200 {
            assert!(!all.is_over(), "nobody takes the result of {name}");
            mine = 1 - mine;
            std::thread::sleep(Duration::from_millis(50));
        }
        all.done.lock().unwrap().push(name);
    }
}
