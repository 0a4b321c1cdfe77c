//! A scripted agent of either era, in the words of the original's own examples.

use bbot_controller::EraChoice;
use serde_json::json;

use crate::support::{Controller, field, request, result};

const TAB: &str = "\
windows** msvc x86_64-microsoft-win32-msvc14.3/vc143 \"all default\"\n\
linux* gcc x86_64-linux-gnu config.cc.coptions=\"-O3 -g\" ~\"my warning: .*\"\n";

fn with_tab(dir: &tempfile::TempDir) -> Controller {
    let tab = dir.path().join("buildtab");
    std::fs::write(&tab, TAB).unwrap();
    Controller::start(&dir.path().join("data"), |c| c.buildtab = Some(tab))
}

/// The session is random: the rest of the answer is compared to the letter.
fn without_session(text: &str) -> String {
    let session = field(text, "session");
    assert_eq!(session.len(), 64, "{text}");
    text.replace(&session, "SESSION")
}

#[test]
fn an_agent_of_2017_takes_a_task_and_brings_a_result() {
    let dir = tempfile::tempdir().unwrap();
    let controller = with_tab(&dir);
    let repository =
        json!({"repository": {"url": "https://pkg.cppget.org/1/stable", "type": "pkg"}});
    let ids = controller.submit_source("foo", "1.0.0", &repository);
    assert_eq!(ids.len(), 2);

    let answer = controller.agent("/?build-task", &[], &request("0.7.0"));
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        Some("text/manifest;charset=utf-8")
    );
    assert_eq!(answer.header("bbot-controller"), Some("1"));
    assert_eq!(
        without_session(&answer.text()),
        format!(
            ": 1\nsession: SESSION\nresult-url: {}\n:\nname: foo\nversion: 1.0.0\n\
             repository: https://pkg.cppget.org/1/stable\nmachine: linux_debian_12-gcc_13.1\ntarget: x86_64-linux-gnu\n\
             config: \"config.cc.coptions=-O3 -g\"\nwarning-regex: \"my warning: .*\"\n",
            controller.url("/?build-result")
        )
    );
    let build = controller.build(&ids[1]);
    assert_eq!(build["state"], "building");
    assert_eq!(build["agent"], "bot");
    assert_eq!(build["machine"], "linux_debian_12-gcc_13.1");
    assert_eq!(
        build["toolchain"],
        json!({"name": "dev", "version": "0.7.0"})
    );
    assert_eq!(
        controller.build(&ids[0])["state"],
        "queued",
        "no machine for windows was offered"
    );

    // Nothing more for this agent: an empty session and nothing else.
    let nothing = controller.agent("/?build-task", &[], &request("0.7.0"));
    assert_eq!(
        (nothing.status, nothing.text().as_str()),
        (200, ": 1\nsession:\n")
    );

    let text = ": 1\nsession: S\n:\nname: foo\nversion: 1.0.0\nstatus: error\nconfigure-status: success\n\
                update-status: error\nconfigure-log: ok\nupdate-log: \\\n\x1b[31merror\x1b[0m: <b> \n  two\n\\\n"
        .replace("session: S", &format!("session: {}", field(&answer.text(), "session")));
    let taken = controller.agent("/?build-result", &[], &text);
    assert_eq!((taken.status, taken.body.len()), (200, 0));
    let build = controller.build(&ids[1]);
    assert_eq!(build["state"], "built");
    assert_eq!(build["status"], "error");
    assert_eq!(build["operations"][1]["name"], "update");
    assert_eq!(build["operations"][1]["status"], "error");
    assert_eq!(
        controller
            .get(&format!("/api/v1/builds/{}/log/update", ids[1]))
            .text(),
        "error: <b> \n  two\n"
    );
    assert_eq!(
        controller
            .get(&format!("/api/v1/builds/{}/log", ids[1]))
            .text(),
        "==== configure ====\nok\n==== update ====\nerror: <b> \n  two\n"
    );
}

#[test]
fn a_later_agent_is_answered_in_its_words() {
    let dir = tempfile::tempdir().unwrap();
    let controller = with_tab(&dir);
    let repository = json!({"repository": {"url": "https://example.org/r.git", "type": "git", "trust": ["yes"]}});
    controller.submit_source("foo", "1.0.0", &repository);
    // A line of the later era is for later agents alone.
    let windows =
        |version: &str| request(version).replace("linux_debian_12-gcc_13.1", "windows_10-msvc_17");
    let none = controller.agent("/?build-task", &[], &windows("0.7.0"));
    assert_eq!(none.text(), ": 1\nsession:\n");
    let answer = controller.agent("/?build-task", &[], &windows("0.17.0-a.1"));
    assert_eq!(
        without_session(&answer.text()),
        format!(
            ": 1\nsession: SESSION\nresult-url: {}\n:\nname: foo\nversion: 1.0.0\n\
             repository-url: https://example.org/r.git\nrepository-type: git\ntrust: yes\nmachine: windows_10-msvc_17\n\
             target: x86_64-microsoft-win32-msvc14.3\nenvironment: vc143\n",
            controller.url("/?build-result")
        )
    );
    let answer = controller.agent("/?build-task", &[], &request("0.17.0-a.1"));
    assert!(
        answer
            .text()
            .contains("target-config: \"config.cc.coptions=-O3 -g\"\n"),
        "{}",
        answer.text()
    );
    let minimal = format!(
        ": 1\nsession: {}\nagent-checksum: 1\n:\nname: foo\nversion: 1.0.0\nstatus: success\n",
        field(&answer.text(), "session")
    );
    assert_eq!(
        controller.agent("/?build-result", &[], &minimal).status,
        200
    );
}

#[test]
fn the_mark_of_our_agents_and_the_option_decide_the_era() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    controller.submit("a", "1");
    let answer = controller.agent("/?build-task", &["Bbot-Agent: 1"], &request("0.7.0"));
    assert!(
        answer.text().contains("\nrepository-url: "),
        "{}",
        answer.text()
    );
    assert!(answer.header("bbot-session-url").is_some());
    drop(controller);

    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |c| {
        c.era = EraChoice::Fixed(bbot_manifest::Era::Y2017);
    });
    let sha256 = controller.archive();
    controller.submit("a", "1");
    let answer = controller.agent("/?build-task", &["Bbot-Agent: 1"], &request("0.17.0"));
    let url = controller.url(&format!("/archives/{sha256}.tar.gz"));
    assert_eq!(field(&answer.text(), "repository"), url);
    let archive = crate::support::curl(&[&url], b"");
    assert_eq!(archive.status, 200);
    assert_eq!(archive.body, crate::support::archive(&[("README", "")]));
}

#[test]
fn requests_that_are_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let ids = controller.submit("foo", "1.0.0");
    for (query, body, expected) in [
        ("/?build-task", "", "task-request:1:1: error: "),
        ("/?build-task", "agent: bot\n", "task-request:1:1: error: "),
        ("/?build-task", ": 1\nagent: bot\n", "error: "),
        (
            "/?build-task",
            ": 1\nagent: bot\nagent: bot\n",
            "task-request:3:1: error: ",
        ),
        (
            "/?build-result",
            ": 1\nsession: a\n:\nname: x\nversion: 1\nstatus: good\n",
            "result-request:6:9: error: ",
        ),
        (
            "/?build-task&foo=1",
            &request("0.7.0"),
            "unknown parameter \"foo\"",
        ),
        (
            "/?build-task&interactive=maybe",
            &request("0.7.0"),
            "invalid interactive mode",
        ),
        ("/?build-result&x", "", "unknown parameter \"x\""),
    ] {
        let answer = controller.agent(query, &[], body);
        assert_eq!(answer.status, 400, "{query} {body}");
        assert!(
            answer
                .header("content-type")
                .unwrap()
                .starts_with("text/plain")
        );
        assert!(
            answer.text().contains(expected),
            "{query} {body:?}: {}",
            answer.text()
        );
    }
    let large = format!("{}# {}\n", request("0.7.0"), "x".repeat(102_400));
    assert_eq!(controller.agent("/?build-task", &[], &large).status, 413);
    assert_eq!(controller.get("/?build-task").status, 405);
    // The content type is nobody's business.
    let curl_default = crate::support::curl(
        &["--data-binary", "@-", &controller.url("/?build-task")],
        request("0.7.0").as_bytes(),
    );
    assert!(!field(&curl_default.text(), "session").is_empty());
    assert_eq!(controller.build(&ids[0])["state"], "building");
}

#[test]
fn what_an_agent_asks_to_be_left_out_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    controller.submit_source(
        "foo",
        "1",
        &json!({"repository": {"url": "https://pkg.cppget.org/1/stable"}}),
    );
    for query in [
        "/?build-task&r=cppget.org/testing",
        "/?build-task&repository=pkg%3Acppget.org%2Ftesting",
        "/?build-task&interactive=true",
        "/?build-task&t=ci-github",
    ] {
        assert_eq!(
            controller.agent(query, &[], &request("0.7.0")).text(),
            ": 1\nsession:\n",
            "{query}"
        );
    }
    let query = "/?build-task&r=x&r=pkg%3Acppget.org%2Fstable&interactive=false&t=";
    assert_ne!(
        controller.agent(query, &[], &request("0.7.0")).text(),
        ": 1\nsession:\n"
    );
}

#[test]
fn what_becomes_of_results_by_session() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1.0.0").remove(0);
    let ours: &[&str] = &["Bbot-Agent: 1"];
    let post = |headers: &[&str], text: &str| controller.agent("/?build-result", headers, text);

    // Unknown.
    assert_eq!(
        post(&[], &result("none", "foo", "1.0.0", "success")).status,
        200
    );
    let unknown = post(ours, &result("none", "foo", "1.0.0", "success"));
    assert_eq!(
        (unknown.status, unknown.text().as_str()),
        (404, "the session is not known\n")
    );

    // Another package, and a status that needs checksums: for anyone.
    let session = controller.take();
    for headers in [&[][..], ours] {
        let answer = post(headers, &result(&session, "bar", "1.0.0", "success"));
        assert_eq!(answer.status, 400);
        assert!(
            answer.text().starts_with("invalid session: "),
            "{}",
            answer.text()
        );
        assert_eq!(
            post(headers, &result(&session, "foo", "1.0.1", "success")).status,
            400
        );
        assert_eq!(
            post(headers, &result(&session, "foo", "1.0.0", "skip")).status,
            400
        );
    }
    assert_eq!(controller.build(&id)["state"], "building");

    // Given up: queued again, and the old session is worth nothing.
    assert_eq!(
        post(ours, &result(&session, "foo", "1.0.0", "interrupt")).status,
        200
    );
    assert_eq!(controller.build(&id)["state"], "queued");
    assert_eq!(
        post(ours, &result(&session, "foo", "1.0.0", "success")).status,
        410
    );

    // Again and again: the task may be what ends its agents.
    for interrupt in 2..=5 {
        assert_eq!(controller.build(&id)["state"], "queued", "{interrupt}");
        let session = controller.take();
        let reason =
            format!("agent-status: abort\nagent-log: the {interrupt}th machine is out of order\n");
        let given_back = result(&session, "foo", "1.0.0", "interrupt") + &reason;
        assert_eq!(post(ours, &given_back).status, 200);
        // The answer was lost.
        assert_eq!(post(ours, &given_back).status, 200);
    }
    let build = controller.build(&id);
    assert_eq!(
        (&build["state"], &build["status"]),
        (&"built".into(), &"abort".into())
    );
    let log = controller.send("GET", &format!("/api/v1/builds/{id}/log"), b"");
    let log = log.text();
    assert!(
        log.contains("5 times in a row") && log.contains("\n  the 5th machine is out of order\n"),
        "{log}"
    );
    assert!(!log.contains("4th"), "{log}");
    let rebuild = format!("/api/v1/builds/{id}/rebuild");
    assert_eq!(controller.send("POST", &rebuild, b"").status, 200);

    // Late, but nobody else has it: taken. Once more: taken once. The version in another spelling.
    let session = controller.take();
    controller.clock.advance_seconds(10_800);
    // The next poll of anybody puts it back: one who has no machine for it.
    let other = request("0.7.0").replace("name: linux_debian_12-gcc_13.1", "name: x");
    let next = field(
        &controller.agent("/?build-task&r=none", &[], &other).text(),
        "session",
    );
    assert_eq!(next, "");
    assert_eq!(controller.build(&id)["state"], "queued");
    assert_eq!(
        post(ours, &result(&session, "foo", "1.0.0+0", "success")).status,
        200
    );
    assert_eq!(controller.build(&id)["status"], "success");
    assert_eq!(
        post(ours, &result(&session, "foo", "1.0.0", "error")).status,
        200
    );
    let build = controller.build(&id);
    assert_eq!(build["status"], "success");
    assert_eq!(build["attempts"].as_array().unwrap().len(), 2);

    // Late, and another agent has it.
    assert_eq!(
        controller
            .send("POST", &format!("/api/v1/builds/{id}/rebuild"), b"")
            .status,
        200
    );
    let first = controller.take();
    controller.clock.advance_seconds(10_801);
    let second = controller.take();
    assert_ne!(first, second);
    assert_eq!(controller.build(&id)["state"], "building");
    assert_eq!(
        post(ours, &result(&first, "foo", "1.0.0", "error")).status,
        200
    );
    let build = controller.build(&id);
    assert_eq!(
        (build["state"].as_str(), build["status"].as_str()),
        (Some("built"), Some("error"))
    );
    let attempts = build["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 3);
    let late: Vec<bool> = attempts.iter().map(|a| a["late"] == true).collect();
    assert_eq!(late, [true, true, false], "newest first");

    // The other one is too late now.
    assert_eq!(
        post(&[], &result(&second, "foo", "1.0.0", "warning")).status,
        200
    );
    let dropped = post(ours, &result(&second, "foo", "1.0.0", "warning"));
    assert_eq!(dropped.status, 410);
    assert!(dropped.text().contains("lapsed"), "{}", dropped.text());
    assert_eq!(controller.build(&id)["status"], "error");
}

#[test]
fn a_rebuild_that_is_asked_for_meanwhile_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let session = controller.take();
    let rebuild = format!("/api/v1/builds/{id}/rebuild");
    let asked = controller
        .send("POST", &rebuild, br#"{"reason": "again"}"#)
        .json();
    assert_eq!(
        (asked["state"].as_str(), asked["rebuild_asked"].as_bool()),
        (Some("building"), Some(true))
    );
    controller.agent(
        "/?build-result",
        &[],
        &result(&session, "foo", "1", "error"),
    );
    let build = controller.build(&id);
    assert_eq!(
        (&build["state"], &build["status"]),
        (&json!("queued"), &json!(null))
    );
    assert_eq!(build["previous_status"], "error");
    assert_eq!(build["reason"], "again");
    // The log of the result that is there can be read meanwhile.
    assert_eq!(
        controller.get(&format!("/api/v1/builds/{id}/log")).status,
        200
    );
    let session = controller.take();
    controller.agent(
        "/?build-result",
        &[],
        &result(&session, "foo", "1", "success"),
    );
    assert_eq!(controller.build(&id)["status"], "success");
}

#[test]
fn an_agent_that_waits_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let url = controller.url("/?build-task");
    let waiting = std::thread::spawn(move || {
        let begun = std::time::Instant::now();
        let answer = crate::support::agent(
            &url,
            &["Bbot-Agent: 1", "Bbot-Wait: 50"],
            request("0.7.0").as_bytes(),
        );
        (begun.elapsed(), answer)
    });
    // Whether the agent asks before or after: it must not wait until its time is up.
    controller.submit("foo", "1");
    let (took, answer) = waiting.join().unwrap();
    assert!(!field(&answer.text(), "session").is_empty());
    assert!(took < std::time::Duration::from_secs(20), "{took:?}");
}

#[test]
fn results_up_to_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |c| c.limits.result = 10_240_000);
    let id = controller.submit("foo", "1").remove(0);
    let session = controller.take();
    let text = |bytes: usize, session: &str| {
        let head = format!(
            ": 1\nsession: {session}\n:\nname: foo\nversion: 1\nstatus: error\nupdate-status: error\nupdate-log: \\\n"
        );
        let tail = "\n\\\n";
        let line = "x".repeat(99) + "\n";
        let mut log = line.repeat(bytes / 100 + 1);
        log.truncate(bytes - head.len() - tail.len() - 1);
        let text = format!("{head}{log}y{tail}");
        assert_eq!(text.len(), bytes);
        text
    };
    assert_eq!(controller.build(&id)["state"], "building");
    assert_eq!(
        controller
            .agent("/?build-result", &[], &text(10_239_999, &session))
            .status,
        200
    );
    let build = controller.build(&id);
    let bytes = build["operations"][0]["log_bytes"].as_u64().unwrap();
    assert!(bytes > 10_200_000, "{bytes}");
    let log = controller.get(&format!("/api/v1/builds/{id}/log/update"));
    assert!(log.body.ends_with(b"xy\n") || log.body.ends_with(b"\ny\n"));
    // The page shows its beginning and its end, and says so.
    let page = controller.get(&format!("/builds/{id}"));
    assert!(page.body.len() < 200_000, "{}", page.body.len());
    assert!(page.text().contains("the middle is left out here"));
    // A longer one is cut; one that is far too long, or is no log, is refused.
    let session = again(&controller, &id);
    let long = text(30_000_000, &session);
    assert_eq!(controller.agent("/?build-result", &[], &long).status, 200);
    let log = controller
        .get(&format!("/api/v1/builds/{id}/log/update"))
        .text();
    assert!(
        log.len() < 10_240_000 && log.len() > 10_200_000,
        "{}",
        log.len()
    );
    assert!(log.starts_with("xxx") && log.ends_with("y\n"));
    let mark: Vec<&str> = log.lines().filter(|l| l.starts_with("... ")).collect();
    assert!(
        mark.len() == 1 && mark[0].ends_with(" bytes cut here ..."),
        "{mark:?}"
    );
    assert!(std::fs::read_dir(dir.path()).unwrap().all(|e| {
        !e.unwrap()
            .file_name()
            .as_encoded_bytes()
            .starts_with(b".tmp")
    }));
}

/// Has a build queued again, and takes its task.
fn again(controller: &Controller, id: &str) -> String {
    let asked = controller.send("POST", &format!("/api/v1/builds/{id}/rebuild"), b"");
    assert_eq!(asked.status, 200, "{}", asked.text());
    controller.take()
}

#[test]
fn a_result_that_no_cut_makes_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |c| c.limits.result = 100_000);
    let id = controller.submit("foo", "1").remove(0);
    let session = controller.take();
    let head = format!(
        ": 1\nsession: {session}\n:\nname: foo\nversion: 1\nstatus: error\nupdate-status: error\n"
    );
    let log = |bytes: usize| format!("{head}update-log: \\\n{}\n\\\n", "x".repeat(bytes));
    for (text, expected) in [
        (
            log(2_000_000),
            "payload too large: fewer than 1600000 bytes are taken",
        ),
        (
            format!("{head}# {}\n", "x".repeat(200_000)),
            "payload too large: without its logs",
        ),
    ] {
        let answer = controller.agent("/?build-result", &["Bbot-Agent: 1"], &text);
        assert_eq!(answer.status, 413);
        assert!(answer.text().starts_with(expected), "{}", answer.text());
    }
    assert_eq!(controller.build(&id)["state"], "building");
    let taken = controller.agent("/?build-result", &["Bbot-Agent: 1"], &log(1_000_000));
    assert_eq!(taken.status, 200);
    assert_eq!(controller.build(&id)["status"], "error");
}
