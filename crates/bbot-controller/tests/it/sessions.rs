//! What an agent of ours says while it builds: that it lives, and what its build prints.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::{Answer, Controller, agent, curl, field, request, result};

pub(crate) const OURS: &[&str] = &["Bbot-Agent: 1"];

/// A task that an agent of ours has.
pub(crate) struct Task {
    pub(crate) session: String,
    pub(crate) url: String,
    pub(crate) answer: Answer,
}

impl Task {
    pub(crate) fn of(answer: Answer) -> Self {
        Self {
            session: field(&answer.text(), "session"),
            url: answer
                .header("bbot-session-url")
                .expect("there is a session URL")
                .to_owned(),
            answer,
        }
    }

    pub(crate) fn take(controller: &Controller) -> Self {
        Self::of(controller.agent("/?build-task", OURS, &request("0.17.0")))
    }

    pub(crate) fn renew(&self) -> Answer {
        agent(&format!("{}/lease", self.url), OURS, b"")
    }

    pub(crate) fn log(&self, number: impl std::fmt::Display, body: &[u8]) -> Answer {
        agent(&format!("{}/log/{number}", self.url), OURS, body)
    }

    pub(crate) fn result(&self, controller: &Controller, status: &str) -> u16 {
        let text = result(&self.session, "foo", "1", status);
        controller.agent("/?build-result", OURS, &text).status
    }
}

fn next(answer: &Answer) -> (u16, Option<&str>) {
    (answer.status, answer.header("bbot-log-next"))
}

#[test]
fn a_lease_is_renewed_or_lapses() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let first = Task::take(&controller);
    assert!(first.url.starts_with(&controller.url("/sessions/")));
    assert!(
        !first.url.contains(&first.session) && first.url.rsplit('/').next().unwrap().len() == 64,
        "{}",
        first.url
    );
    let terms = |answer: &Answer| {
        let seconds = |name| answer.header(name).map(str::to_owned);
        (seconds("bbot-lease"), seconds("bbot-renew"))
    };
    let expected = (Some("60".to_owned()), Some("15".to_owned()));
    assert_eq!(terms(&first.answer), expected);
    for _ in 0..5 {
        controller.clock.advance_seconds(59);
        let renewed = first.renew();
        assert_eq!((renewed.status, terms(&renewed)), (204, expected.clone()));
    }
    assert_eq!(controller.build(&id)["state"], "building");

    // It lapses, but the agent is there before anybody else: it goes on, and nothing is held against it.
    let nobody = request("0.17.0").replace("name: linux_debian_12-gcc_13.1", "name: x");
    let sweep = || controller.agent("/?build-task&r=none", &[], &nobody);
    controller.clock.advance_seconds(60);
    sweep();
    let build = controller.build(&id);
    assert_eq!(
        (build["state"].as_str(), build["lapses"].as_u64()),
        (Some("queued"), Some(1))
    );
    assert_eq!(first.renew().status, 204);
    let build = controller.build(&id);
    assert_eq!(
        (build["state"].as_str(), build["lapses"].as_u64()),
        (Some("building"), Some(0))
    );

    // It lapses, and another one has it: over.
    controller.clock.advance_seconds(61);
    let second = Task::take(&controller);
    let over = first.renew();
    assert_eq!(over.status, 410);
    assert!(
        over.text().contains("the session is over"),
        "{}",
        over.text()
    );
    assert_eq!(first.log(1, b"update\nx").status, 410);
    assert_eq!(second.renew().status, 204);
    // But its result is taken, and the other one can stop.
    assert_eq!(first.result(&controller, "success"), 200);
    let build = controller.build(&id);
    assert_eq!(build["status"], "success");
    assert_eq!(build["attempts"][0]["late"], true);
    assert_eq!(second.renew().status, 410);
    assert_eq!(second.result(&controller, "error"), 410);
    assert_eq!(first.result(&controller, "success"), 200);
    assert_eq!(first.renew().status, 410);

    // A stranger has hours and no URL.
    assert_eq!(
        controller
            .send("POST", &format!("/api/v1/builds/{id}/rebuild"), b"")
            .status,
        200
    );
    let stranger = controller.agent("/?build-task", &[], &request("0.17.0"));
    assert!(!field(&stranger.text(), "session").is_empty());
    assert_eq!(stranger.header("bbot-session-url"), None);
    controller.clock.advance_seconds(3600);
    sweep();
    assert_eq!(controller.build(&id)["state"], "building");
}

/// An agent that hangs, or lies, must not keep its task for ever.
#[test]
fn nobody_renews_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |c| {
        c.result_timeout = Duration::from_secs(100);
    });
    let id = controller.submit("foo", "1").remove(0);
    let task = Task::take(&controller);
    for _ in 0..3 {
        controller.clock.advance_seconds(30);
        assert_eq!(task.renew().status, 204);
    }
    controller.clock.advance_seconds(10);
    assert_eq!(task.renew().status, 410);
    let next = Task::take(&controller);
    assert_eq!(next.renew().status, 204);
    // Late is late: who brings a result first has it.
    assert_eq!(task.result(&controller, "success"), 200);
    assert_eq!(controller.build(&id)["attempts"][0]["late"], true);
}

#[test]
fn a_task_that_ends_its_agents_ends_as_abort() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    for _ in 0..3 {
        Task::take(&controller);
        controller.clock.advance_seconds(60);
    }
    assert_eq!(
        Task::take(&controller).result(&controller, "interrupt"),
        200
    );
    let last = Task::take(&controller);
    controller.clock.advance_seconds(60);
    controller.agent("/?build-task", &[], &request("0.17.0"));
    let build = controller.build(&id);
    assert_eq!(
        (&build["state"], &build["status"]),
        (&"built".into(), &"abort".into())
    );
    let log = controller.get(&format!("/api/v1/builds/{id}/log")).text();
    assert!(
        log.contains("5 times in a row") && log.contains("4 times of these"),
        "{log}"
    );
    assert_eq!(last.renew().status, 410);
    assert_eq!(last.result(&controller, "success"), 410);
}

/// One timer for the next lease: nobody polls, and a waiting agent is told when it lapses.
#[test]
fn a_lapse_is_noticed_when_it_happens() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |c| {
        c.lease = Duration::from_secs(1);
        c.clock = std::sync::Arc::new(bbot_controller::clock::SystemClock::start());
    });
    controller.submit("foo", "1");
    let first = Task::take(&controller);
    let begun = Instant::now();
    let waits = [OURS, &["Bbot-Wait: 30"]].concat();
    let second = Task::of(controller.agent("/?build-task", &waits, &request("0.17.0")));
    let took = begun.elapsed();
    assert_ne!(first.session, second.session);
    assert!(
        took > Duration::from_millis(500) && took < Duration::from_secs(10),
        "{took:?}"
    );
    // Given back: told at once, long before the lease of a second ends again and again.
    let url = controller.url("/?build-task");
    let third = std::thread::spawn(move || agent(&url, &waits, request("0.17.0").as_bytes()));
    assert_eq!(second.result(&controller, "interrupt"), 200);
    let third = Task::of(third.join().unwrap());
    assert_eq!(third.result(&controller, "success"), 200);
}

fn raw_request(controller: &Controller, wait: u32) -> TcpStream {
    let body = request("0.17.0");
    let mut stream = TcpStream::connect(controller.address).unwrap();
    write!(
        stream,
        "POST /?build-task HTTP/1.1\r\nHost: {}\r\nBbot-Agent: 1\r\nBbot-Wait: {wait}\r\nContent-Length: {}\r\n\r\n{body}",
        controller.address,
        body.len()
    )
    .unwrap();
    stream
}

/// Waits for what is true soon.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn asking(controller: &Controller) -> u64 {
    let agents = controller.get("/api/v1/agents").json();
    agents["agents"][0]["asking"].as_u64().unwrap_or(0)
}

#[test]
fn an_agent_that_hangs_up_gets_no_task() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    // It waits, and goes.
    let stream = raw_request(&controller, 50);
    until("it asks", || asking(&controller) == 1);
    drop(stream);
    until("it is gone", || asking(&controller) == 0);
    let id = controller.submit("foo", "1").remove(0);
    assert_eq!(controller.build(&id)["state"], "queued");
    // Others go in the very moment: whatever they got, the next one has it soon, without waiting for a lease.
    for _ in 0..20 {
        drop(raw_request(&controller, 0));
    }
    let mut stream = raw_request(&controller, 0);
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    let _ = stream.read(&mut [0; 10]);
    // What was sent off into the void lapses; no time passes in this test but that one.
    until("somebody gets it", || {
        controller.clock.advance_seconds(60);
        let answer = controller.agent("/?build-task", OURS, &request("0.17.0"));
        !field(&answer.text(), "session").is_empty()
    });
    assert_eq!(controller.build(&id)["state"], "building");
}

#[test]
fn log_segments_are_taken_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let task = Task::take(&controller);
    let path = format!("/api/v1/builds/{id}/log");
    assert_eq!(controller.get(&path).status, 404, "nothing has come");
    assert_eq!(
        next(&task.log(1, b"configure\nchecking\n")),
        (204, Some("2"))
    );
    assert_eq!(
        next(&task.log(1, b"configure\nchecking\n")),
        (204, Some("2"))
    );
    assert_eq!(next(&task.log(3, b"update\nlost")), (409, Some("2")));
    assert_eq!(
        next(&task.log(2, b"update\n\x1b[31m\xff\0no newline")),
        (204, Some("3"))
    );
    let skip = agent(
        &format!("{}/log/6", task.url),
        &["Bbot-Agent: 1", "Bbot-Log-Skip: 1"],
        b"update\nlater\n",
    );
    assert_eq!(next(&skip), (204, Some("7")));
    let whole = controller.get(&path);
    assert_eq!(
        whole.header("content-type"),
        Some("text/plain; charset=utf-8")
    );
    assert_eq!(whole.header("x-content-type-options"), Some("nosniff"));
    let expected: &[u8] =
        b"==== configure ====\nchecking\n==== update ====\n\x1b[31m\xff\0no newline\n\
        ==== ... 3 pieces of the log were lost by the agent ... ====\nlater\n";
    // Over HTTP/1.1 in chunks, which curl puts together.
    assert_eq!(
        whole.body,
        expected,
        "{}",
        String::from_utf8_lossy(&whole.body)
    );
    assert_eq!(
        controller.get(&format!("{path}/configure")).body,
        b"checking\n==== ... 3 pieces of the log were lost by the agent ... ====\n"
    );
    // The page shows it, and nothing of it is markup or a colour.
    assert_eq!(
        next(&task.log(7, b"update\n<script>alert(1)</script>\n")),
        (204, Some("8"))
    );
    let page = controller.get(&format!("/builds/{id}"));
    let text = page.text();
    assert!(
        text.contains("Log so far") && text.contains("&#60;script&#62;alert"),
        "{text}"
    );
    assert!(
        text.contains("http-equiv=\"refresh\"") && text.contains("bot builds it"),
        "{text}"
    );
    assert!(
        !text.contains("<script") && !text.contains('\x1b'),
        "{text}"
    );

    // The result's log is the one that counts; the raw one can still be had.
    assert_eq!(task.result(&controller, "success"), 200);
    assert_eq!(task.log(8, b"update\nx").status, 410);
    assert_eq!(controller.get(&path).body, b"");
    let raw = controller.get(&format!("{path}?raw=1"));
    assert!(raw.body.starts_with(expected));
    assert!(
        !controller
            .get(&format!("/builds/{id}"))
            .text()
            .contains("Log so far")
    );

    // A rebuild begins with nothing; the last result's log is shown until there is another.
    assert_eq!(
        controller
            .send("POST", &format!("/api/v1/builds/{id}/rebuild"), b"")
            .status,
        200
    );
    let again = Task::take(&controller);
    assert_eq!(next(&again.log(1, b"update\nagain\n")), (204, Some("2")));
    assert_eq!(controller.get(&path).body, b"");
    assert_eq!(
        controller.get(&format!("{path}?attempt=2")).text(),
        "==== update ====\nagain\n"
    );
}

#[test]
fn segments_that_are_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let task = Task::take(&controller);
    let long_name = [vec![b'x'; 129], b"\nx".to_vec()].concat();
    for (number, body, status) in [
        ("0", &b"update\nx"[..], 400),
        ("01", b"update\nx", 400),
        ("-1", b"update\nx", 400),
        ("1e3", b"update\nx", 400),
        ("%2e%2e", b"update\nx", 400),
        ("..%2f..%2ftoken", b"update\nx", 400),
        ("%00", b"update\nx", 400),
        ("18446744073709551616", b"update\nx", 400),
        ("18446744073709551615", b"update\nx", 409),
        ("1", b"", 400),
        ("1", b"update", 400),
        ("1", b"\nx", 400),
        ("1", b"a\x07\nx", 400),
        ("1", b"\xff\nx", 400),
        ("1", b"update\n", 400),
        ("1", &long_name, 400),
    ] {
        let answer = task.log(number, body);
        assert_eq!(answer.status, status, "{number} {body:?} {}", answer.text());
    }
    let with = |bytes: usize| [b"update\n".to_vec(), vec![b'x'; bytes]].concat();
    assert_eq!(task.log(1, &with(65_537)).status, 413);
    assert_eq!(task.log(1, &with(10_000_000)).status, 413);
    assert_eq!(task.log(1, &with(65_536)).status, 204);
    // The biggest number that is taken, and nothing after it.
    let skip = ["Bbot-Log-Skip: 1"];
    let at = |number: u64| agent(&format!("{}/log/{number}", task.url), &skip, b"update\nx");
    assert_eq!(at(u64::MAX).status, 409);
    assert_eq!(at(u64::MAX - 1).status, 204);
    assert_eq!(at(u64::MAX).status, 409);
    // Nothing but the one log is there.
    let runs: Vec<_> = std::fs::read_dir(dir.path().join("runs").join(&id))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(runs, ["1.log"]);
    // GET is no renewal, and a page elsewhere cannot renew.
    assert_eq!(curl(&[&format!("{}/lease", task.url)], b"").status, 405);
    let foreign = agent(
        &format!("{}/lease", task.url),
        &["Origin: http://evil.example"],
        b"",
    );
    assert_eq!(foreign.status, 403);
}

#[test]
fn other_peoples_sessions() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    controller.submit("foo", "1");
    let task = Task::take(&controller);
    let own = task.url.rsplit('/').next().unwrap().to_owned();
    for path in [
        "0".repeat(64),
        // The session itself is another secret.
        task.session.clone(),
        own.to_uppercase(),
        own[..63].to_owned(),
        format!("{own}0"),
        "%27%20OR%201=1".to_owned(),
        "..".to_owned(),
        "x".repeat(5000),
    ] {
        for below in ["lease", "log/1"] {
            let url = controller.url(&format!("/sessions/{path}/{below}"));
            let answer = agent(&url, OURS, b"update\nx");
            assert_eq!(answer.status, 404, "{path} {below}");
        }
    }
    // And what the URL holds brings no result.
    let text = result(&own, "foo", "1", "success");
    assert_eq!(controller.agent("/?build-result", OURS, &text).status, 404);
    assert_eq!(task.renew().status, 204);
}

#[test]
fn agents_and_what_they_do() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    assert!(
        controller
            .get("/agents")
            .text()
            .contains("No agent has asked")
    );
    let id = controller.submit("foo", "1").remove(0);
    let task = Task::take(&controller);
    let other = request("0.7.0").replace("agent: bot", "agent: <b>other");
    controller.agent("/?build-task", &[], &other);
    let list = || controller.get("/api/v1/agents").json()["agents"].clone();
    let agents = list();
    assert_eq!(agents.as_array().unwrap().len(), 2, "{agents}");
    assert_eq!(
        (&agents[0]["name"], &agents[0]["state"]),
        (&"<b>other".into(), &"asking".into())
    );
    assert_eq!(
        (&agents[1]["name"], &agents[1]["state"]),
        (&"bot".into(), &"building".into())
    );
    assert_eq!(agents[1]["toolchain"]["version"], "0.17.0");
    assert_eq!(agents[1]["builds"][0]["id"].as_str(), Some(id.as_str()));
    assert!(agents[1]["builds"][0]["lease_until"].is_string());
    let page = controller.get("/agents").text();
    assert!(
        page.contains("building") && page.contains("&#60;b&#62;other"),
        "{page}"
    );
    // Who builds is there, whatever its last word; who is not heard of is silent.
    let before = agents[1]["last_seen"].clone();
    controller.clock.advance_seconds(30);
    assert_eq!(task.renew().status, 204);
    let agents = list();
    assert_ne!(agents[1]["last_seen"], before);
    assert_eq!(task.result(&controller, "success"), 200);
    assert_eq!(list()[1]["state"], "asking");
    controller.clock.advance_seconds(150);
    assert_eq!(
        (&list()[0]["state"], &list()[1]["state"]),
        (&"silent".into(), &"silent".into())
    );
}

/// Who waits and takes another build than it was woken for leaves that one to the next.
#[test]
fn each_build_finds_an_agent_whoever_takes_which() {
    let dir = tempfile::tempdir().unwrap();
    let tab = dir.path().join("buildtab");
    std::fs::write(&tab, "m2 c2 x86_64-linux-gnu\nm1 c1 x86_64-linux-gnu\n").unwrap();
    let controller = Controller::start(&dir.path().join("data"), |c| c.buildtab = Some(tab));
    let url = controller.url("/?build-task");
    for round in 0..3 {
        let wait = |name: &str, machines: &[&str]| {
            let mut body =
                format!(": 1\nagent: {name}\ntoolchain-name: dev\ntoolchain-version: 0.17.0\n");
            for machine in machines {
                body += &format!(":\nid: {machine}-1\nname: {machine}\nsummary: M\n");
            }
            let url = url.clone();
            std::thread::spawn(move || {
                let headers = ["Bbot-Agent: 1", "Bbot-Wait: 6"];
                let answer = agent(&url, &headers, body.as_bytes());
                field(&answer.text(), "session")
            })
        };
        let waiting = [
            wait("c", &["m2"]),
            wait("a", &["m1", "m2"]),
            wait("b", &["m1"]),
        ];
        until("three agents wait", || {
            let agents = controller.get("/api/v1/agents").json();
            let asking = |a: &serde_json::Value| a["asking"].as_u64().unwrap_or(0);
            agents["agents"]
                .as_array()
                .unwrap()
                .iter()
                .map(asking)
                .sum::<u64>()
                == 3
        });
        let builds = controller.submit("foo", &format!("{round}"));
        assert_eq!(builds.len(), 2);
        until("both builds are with agents", || {
            builds
                .iter()
                .all(|id| controller.build(id)["state"] == "building")
        });
        let sessions = waiting.map(|agent| agent.join().unwrap());
        assert_eq!(sessions.iter().filter(|s| !s.is_empty()).count(), 2);
    }
}

/// What was submitted is found, though the client was gone before it was told.
#[test]
fn a_submission_whose_client_hangs_up_is_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let taken = |wait: &str| {
        let headers = ["Bbot-Agent: 1", wait];
        let answer = controller.agent("/?build-task", &headers, &request("0.17.0"));
        !field(&answer.text(), "session").is_empty()
    };
    // That nothing waits is known now.
    assert!(!taken("Bbot-Wait: 0"));
    let body = r#"{"name": "foo", "version": "1", "source": {"repository": {"url": "https://example.org/1/x"}}}"#;
    for after in 0..20 {
        let mut stream = TcpStream::connect(controller.address).unwrap();
        write!(
            stream,
            "POST /api/v1/submissions HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{body}",
            controller.address,
            controller.token,
            body.len()
        )
        .unwrap();
        // Sooner or later than it is kept; one that hangs up before it was read has submitted nothing.
        std::thread::sleep(Duration::from_millis(after));
        drop(stream);
    }
    let queued = || {
        let builds = controller.get("/api/v1/builds?state=queued").json();
        builds["builds"].as_array().unwrap().len()
    };
    let mut kept = 0;
    until("no more are kept", || {
        std::thread::sleep(Duration::from_millis(200));
        let before = std::mem::replace(&mut kept, queued());
        kept > 0 && kept == before
    });
    for _ in 0..kept {
        assert!(taken("Bbot-Wait: 0"), "{} of {kept} are left", queued());
    }
}
