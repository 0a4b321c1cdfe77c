//! Why a build waits, as its page and the API tell it.

use serde_json::{Value, json};

use crate::sessions::OURS;
use crate::support::{Controller, agent, field, result};

const BUILDTAB: &str = "linux* gcc x86_64-linux-gnu all\nwindows* msvc x86_64-windows/vc143 all\n";

fn start(dir: &std::path::Path) -> Controller {
    std::fs::write(dir.join("buildtab"), BUILDTAB).unwrap();
    let buildtab = dir.join("buildtab");
    Controller::start(&dir.join("data"), |config| config.buildtab = Some(buildtab))
}

/// A build of a package in one configuration.
fn submit(controller: &Controller, name: &str, configuration: &str) -> String {
    let source = json!({ "repository": { "url": "https://example.org/1/x" } });
    let body = json!({ "name": name, "version": "1", "source": source, "configurations": [configuration] });
    let answer = controller.send("POST", "/api/v1/submissions", body.to_string().as_bytes());
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()["builds"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn request(name: &str, version: &str, machine: &str) -> String {
    format!(
        ": 1\nagent: {name}\ntoolchain-name: dev\ntoolchain-version: {version}\n:\nid: a\nname: {machine}\nsummary: M\n"
    )
}

/// An agent of ours asks for a task: its session and the session's URL.
fn ask(controller: &Controller, name: &str, machine: &str) -> (String, Option<String>) {
    let answer = controller.agent("/?build-task", OURS, &request(name, "0.17.0", machine));
    let url = answer.header("bbot-session-url").map(str::to_owned);
    (field(&answer.text(), "session"), url)
}

/// The code and the sentence; the page says the same.
fn waits(controller: &Controller, build: &str) -> (Value, String) {
    let waits = controller.build(build)["waits"].clone();
    let sentence = waits["sentence"].as_str().unwrap().to_owned();
    let page = controller.get(&format!("/builds/{build}")).text();
    assert!(page.contains(&sentence.replace('\'', "&#39;")), "{page}");
    (waits, sentence)
}

#[test]
fn what_agents_there_are_tells_why() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path());
    let (gcc, msvc) = (
        submit(&controller, "a", "gcc"),
        submit(&controller, "a", "msvc"),
    );
    let (told, sentence) = waits(&controller, &gcc);
    assert_eq!(
        (&told["code"], &told["agents"]),
        (&json!("no-agent"), &json!(0))
    );
    assert_eq!(
        sentence,
        "No agent was heard of since the controller's start."
    );

    assert_eq!(ask(&controller, "bsd", "freebsd").0, "");
    let (told, sentence) = waits(&controller, &msvc);
    assert_eq!(told["code"], "no-machine");
    assert_eq!(
        sentence,
        "No machine of the 1 agent that is known matches windows*."
    );

    // One of 2017 has the machine, but the line is of the later era.
    let old = controller.agent("/?build-task", &[], &request("old", "0.7.0", "windows_10"));
    assert_eq!(field(&old.text(), "session"), "");
    let (told, sentence) = waits(&controller, &msvc);
    assert_eq!((&told["code"], &told["agents"]), (&json!("era"), &json!(1)));
    assert!(sentence.contains("of the later era"), "{sentence}");

    // An agent that has it, and builds it now; what comes after it waits for that agent.
    let (session, url) = ask(&controller, "desk", "linux_gcc");
    assert!(!session.is_empty());
    assert_eq!(controller.build(&gcc)["waits"], Value::Null);
    let (next, last) = (
        submit(&controller, "b", "gcc"),
        submit(&controller, "c", "gcc"),
    );
    let (told, sentence) = waits(&controller, &last);
    let expected =
        json!({ "code": "busy", "sentence": sentence, "agents": 1, "before": 1, "more": false });
    assert_eq!(told, expected);
    assert_eq!(
        sentence,
        "The agent that could build it is busy; 1 build goes before it in this configuration."
    );
    // It renews its lease, and is busy still.
    controller.clock.advance_seconds(50);
    assert_eq!(
        agent(&format!("{}/lease", url.unwrap()), OURS, b"").status,
        204
    );
    controller.clock.advance_seconds(50);
    assert_eq!(waits(&controller, &next).0["code"], "busy");

    // Its result is there, and it asks for what is next: the last one is next then.
    let text = result(&session, "a", "1", "success");
    assert_eq!(controller.agent("/?build-result", OURS, &text).status, 200);
    let (told, _) = waits(&controller, &next);
    assert_eq!(
        (&told["code"], &told["before"]),
        (&json!("next"), &json!(0))
    );
    let (told, sentence) = waits(&controller, &last);
    assert_eq!(
        (&told["code"], &told["before"]),
        (&json!("next"), &json!(1))
    );
    assert_eq!(
        sentence,
        "1 agent could build it and may ask for it at any time; 1 build goes before it in this configuration."
    );

    // It is gone.
    controller.clock.advance_seconds(150);
    let (told, sentence) = waits(&controller, &last);
    assert_eq!(told["code"], "silent");
    assert!(
        sentence.starts_with("1 agent that could build it was not heard of"),
        "{sentence}"
    );
}

#[test]
fn hosts_that_are_avoided_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path());
    let id = submit(&controller, "foo", "gcc");
    for _ in 0..2 {
        let (session, _) = ask(&controller, "broken", "linux");
        let text = format!(
            ": 1\nsession: {session}\n:\nname: foo\nversion: 1\nstatus: interrupt\nmachine-status: abort\nmachine-log: x\n"
        );
        assert_eq!(controller.agent("/?build-result", OURS, &text).status, 200);
    }
    let (told, sentence) = waits(&controller, &id);
    assert_eq!(
        (&told["code"], &told["agents"]),
        (&json!("avoided"), &json!(1))
    );
    assert!(
        sentence.starts_with("Its machine failed on broken before it had begun"),
        "{sentence}"
    );
    let page = controller.get(&format!("/builds/{id}")).text();
    assert!(page.contains("it is tried again"), "{page}");
    // Another one comes and gets it.
    assert_eq!(ask(&controller, "broken", "linux").0, "");
    assert!(!ask(&controller, "good", "linux").0.is_empty());
}

#[test]
fn a_line_that_is_gone_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path());
    let id = submit(&controller, "foo", "gcc");
    ask(&controller, "other", "bsd");
    std::fs::write(
        dir.path().join("buildtab"),
        "bsd* clang x86_64-freebsd all\n",
    )
    .unwrap();
    controller.clock.advance_seconds(2);
    let (told, sentence) = waits(&controller, &id);
    assert_eq!(told["code"], "no-configuration");
    assert!(
        sentence.contains("The buildtab has no configuration gcc"),
        "{sentence}"
    );
    // By the new buildtab the agent has not said yet what it can build.
    let other = submit(&controller, "foo", "clang");
    let (told, sentence) = waits(&controller, &other);
    assert_eq!(told["code"], "unknown");
    assert_eq!(
        sentence,
        "1 agent has not said yet which machines there are."
    );
}

#[test]
fn no_more_than_a_hundred_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path());
    let ids: Vec<String> = (0..102)
        .map(|n| submit(&controller, &format!("p{n}"), "gcc"))
        .collect();
    for (at, before, more) in [
        (0, 0, false),
        (1, 1, false),
        (100, 100, false),
        (101, 100, true),
    ] {
        let (told, _) = waits(&controller, &ids[at]);
        assert_eq!(
            (&told["before"], &told["more"]),
            (&json!(before), &json!(more))
        );
    }
}
