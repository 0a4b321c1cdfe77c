//! Machines that fail before their worker asks for anything: retried, elsewhere after the second time on a host.

use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::sessions::OURS;
use crate::support::{Answer, Controller, agent, field, result};

fn request(name: &str) -> String {
    format!(
        ": 1\nagent: {name}\ntoolchain-name: dev\ntoolchain-version: 0.17.0\n:\nid: a\nname: linux\nsummary: L\n"
    )
}

fn ask(controller: &Controller, name: &str) -> String {
    let answer = controller.agent("/?build-task", OURS, &request(name));
    assert_eq!(answer.status, 200, "{}", answer.text());
    field(&answer.text(), "session")
}

/// An agent gives its task back: under this operation it says why.
fn give_back(controller: &Controller, session: &str, operation: &str) -> Answer {
    let text = format!(
        ": 1\nsession: {session}\n:\nname: foo\nversion: 1\nstatus: interrupt\n\
         {operation}-status: abort\n{operation}-log: machine linux did not start its build in 2 tries\n"
    );
    controller.agent("/?build-result", OURS, &text)
}

/// An agent gets the task, and its machine fails.
fn fail(controller: &Controller, name: &str) {
    let session = ask(controller, name);
    assert!(!session.is_empty(), "{name} gets it");
    assert_eq!(give_back(controller, &session, "machine").status, 200);
}

/// Soon after its start a controller does not know who will come.
const SETTLED: i64 = 151;

#[test]
fn the_second_time_on_a_host_is_the_last_while_another_could() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    controller.clock.advance_seconds(SETTLED);
    let id = controller.submit("foo", "1").remove(0);
    // Agents that were heard of, one of which builds something else for now.
    fail(&controller, "a");
    let other = controller.submit("bar", "1").remove(0);
    let foo = ask(&controller, "b");
    assert_eq!(give_back(&controller, &foo, "agent").status, 200);
    assert_eq!(
        controller.build(&id)["machine_failures"],
        serde_json::json!({ "a": 1 })
    );
    fail(&controller, "a");
    let build = controller.build(&id);
    assert_eq!(build["machine_failures"], serde_json::json!({ "a": 2 }));
    assert_eq!(
        (&build["state"], &build["interrupts"]),
        (&"queued".into(), &3.into())
    );
    // What is behind it is for the host all the same.
    let session = ask(&controller, "a");
    assert_eq!(controller.build(&other)["agent"], "a");
    let text = result(&session, "bar", "1", "success");
    assert_eq!(controller.agent("/?build-result", OURS, &text).status, 200);
    assert_eq!(ask(&controller, "a"), "");
    // The other one is gone for long: better here than nowhere.
    controller.clock.advance_seconds(149);
    assert_eq!(ask(&controller, "a"), "");
    controller.clock.advance_seconds(2);
    fail(&controller, "a");
    assert_eq!(
        controller.build(&id)["machine_failures"],
        serde_json::json!({ "a": 3 })
    );
    fail(&controller, "b");
    let build = controller.build(&id);
    assert_eq!(
        (&build["state"], &build["status"]),
        (&"built".into(), &"abort".into())
    );
    let log = controller.get(&format!("/api/v1/builds/{id}/log")).text();
    assert!(
        log.contains("3 times of these a machine of a failed")
            && log.contains("once of these a machine of b failed"),
        "{log}"
    );
    // Asked for anew it begins anew.
    controller.send("POST", &format!("/api/v1/builds/{id}/rebuild"), b"");
    assert_eq!(
        controller.build(&id)["machine_failures"],
        serde_json::json!({})
    );
    let figures = controller.get("/metrics").text();
    assert!(
        figures.contains("came_back_tasks_total{kind=\"failed\"} 4"),
        "{figures}"
    );
}

#[test]
fn a_failure_after_the_first_request_is_a_result() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let session = ask(&controller, "a");
    let text = format!(
        ": 1\nsession: {session}\n:\nname: foo\nversion: 1\nstatus: abnormal\n\
         machine-status: abnormal\nmachine-log: the kernel panicked\n"
    );
    assert_eq!(controller.agent("/?build-result", OURS, &text).status, 200);
    let build = controller.build(&id);
    assert_eq!(
        (&build["state"], &build["status"]),
        (&"built".into(), &"abnormal".into())
    );
    assert_eq!(ask(&controller, "b"), "");
}

/// An agent that waits, in the background: the session that it gets.
fn waits(controller: &Controller, name: &'static str) -> std::thread::JoinHandle<String> {
    let url = controller.url("/?build-task");
    std::thread::spawn(move || {
        let headers = [OURS[0], "Bbot-Wait: 30"];
        field(
            &agent(&url, &headers, request(name).as_bytes()).text(),
            "session",
        )
    })
}

fn until_asking(controller: &Controller, requests: u64) {
    let begun = Instant::now();
    loop {
        let agents = controller.get("/api/v1/agents").json();
        let asking = |a: &serde_json::Value| a["asking"].as_u64().unwrap_or(0);
        if agents["agents"]
            .as_array()
            .unwrap()
            .iter()
            .map(asking)
            .sum::<u64>()
            == requests
        {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{agents}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whoever of those that wait is told first: the one that may have it gets it, at once.
#[test]
fn one_that_is_avoided_passes_it_on() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    fail(&controller, "a");
    let session = ask(&controller, "a");
    let avoided = waits(&controller, "a");
    until_asking(&controller, 1);
    let (other, again) = (waits(&controller, "b"), waits(&controller, "a"));
    until_asking(&controller, 3);
    let begun = Instant::now();
    assert_eq!(give_back(&controller, &session, "machine").status, 200);
    assert!(!other.join().unwrap().is_empty());
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(controller.build(&id)["agent"], "b");
    // The two that are avoided wait on, and get what comes next.
    until_asking(&controller, 2);
    controller.submit("foo", "2");
    controller.submit("foo", "3");
    for waiting in [avoided, again] {
        assert!(!waiting.join().unwrap().is_empty());
    }
}

#[test]
fn hosts_are_avoided_after_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    fail(&controller, "a");
    fail(&controller, "a");
    drop(controller);
    let controller = Controller::start(dir.path(), |_| {});
    assert_eq!(ask(&controller, "a"), "");
    assert!(!ask(&controller, "b").is_empty());
    assert_eq!(controller.build(&id)["agent"], "b");
}

#[test]
fn hosts_are_avoided_by_all_controllers_of_a_database() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.database();
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [first, second] = dirs
        .each_ref()
        .map(|dir| Controller::start(dir.path(), |config| config.database = Some(url.clone())));
    let id = first.submit("foo", "1").remove(0);
    fail(&first, "a");
    let session = ask(&first, "a");
    let other = waits(&second, "b");
    until_asking(&second, 1);
    assert_eq!(give_back(&second, &session, "machine").status, 200);
    let session = other.join().unwrap();
    assert_eq!(first.build(&id)["agent"], "b");
    assert_eq!(give_back(&first, &session, "agent").status, 200);
    for controller in [&first, &second] {
        assert_eq!(ask(controller, "a"), "");
    }
    assert!(!ask(&first, "b").is_empty());
}

/// Who asks for some repositories' packages only is like others: its host is avoided, and it is not counted on to take what it may not want.
#[test]
fn hosts_of_agents_that_choose_are_avoided_too() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    controller.clock.advance_seconds(SETTLED);
    let source = |name: &str| {
        let url = format!("https://pkg.x.org/1/{name}");
        serde_json::json!({ "repository": { "url": url } })
    };
    let id = controller
        .submit_source("foo", "1", &source("foo"))
        .remove(0);
    let choose = |name: &str, repository: &str| {
        let query = format!("/?build-task&r={repository}");
        let answer = controller.agent(&query, OURS, &request(name));
        assert_eq!(answer.status, 200, "{}", answer.text());
        field(&answer.text(), "session")
    };
    for _ in 0..2 {
        let session = choose("a", "x.org/foo");
        assert!(!session.is_empty());
        assert_eq!(give_back(&controller, &session, "machine").status, 200);
    }
    // There is another one, but it wants something else.
    assert_eq!(choose("b", "x.org/bar"), "");
    let session = choose("a", "x.org/foo");
    assert!(!session.is_empty(), "better here than nowhere");
    assert_eq!(give_back(&controller, &session, "agent").status, 200);
    // One that takes anything.
    let other = controller
        .submit_source("bar", "1", &source("foo"))
        .remove(0);
    controller.clock.advance_seconds(1);
    assert_eq!(choose("b", "x.org/bar"), "");
    let taken = ask(&controller, "c");
    assert_eq!(controller.build(&id)["agent"], "c");
    assert_eq!(give_back(&controller, &taken, "agent").status, 200);
    // What is behind it is for the host all the same.
    assert!(!choose("a", "x.org/foo").is_empty());
    assert_eq!(controller.build(&other)["agent"], "a");
    assert_eq!(choose("a", "x.org/foo"), "");
    assert_eq!(controller.build(&id)["state"], "queued");
}
