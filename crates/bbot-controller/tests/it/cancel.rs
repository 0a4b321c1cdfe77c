//! Cancelling: what waits leaves the queue, who builds is told at once.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::Cluster;
use crate::follow::Follower;
use crate::sessions::{OURS, Task};
use crate::support::{Answer, Controller, agent, curl, field, request, result};

/// Whoever is told at once is told within so long, however busy the computer is.
const AT_ONCE: Duration = Duration::from_secs(8);

fn cancel(controller: &Controller, what: &str, body: &str) -> Answer {
    controller.send("POST", &format!("/api/v1/{what}/cancel"), body.as_bytes())
}

fn gets_nothing(controller: &Controller) -> bool {
    let answer = controller.agent("/?build-task", OURS, &request("0.17.0"));
    assert_eq!(answer.status, 200);
    field(&answer.text(), "session").is_empty()
}

/// A renewal whose answer may be held for so many seconds, under way in another thread.
fn held(task: &Task, seconds: u32) -> std::thread::JoinHandle<(Answer, Instant)> {
    let url = format!("{}/lease", task.url);
    std::thread::spawn(move || {
        let wait = format!("Bbot-Wait: {seconds}");
        let answer = agent(&url, &[OURS[0], &wait], b"");
        (answer, Instant::now())
    })
}

fn state(build: &Value) -> (&str, Option<&str>) {
    (build["state"].as_str().unwrap(), build["status"].as_str())
}

#[test]
fn a_queued_build_leaves_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let path = format!("builds/{id}");
    let no_token = curl(
        &[
            "-X",
            "POST",
            &controller.url(&format!("/api/v1/{path}/cancel")),
        ],
        b"",
    );
    assert_eq!(no_token.status, 401);
    assert_eq!(state(&controller.build(&id)), ("queued", None));

    let answer = cancel(&controller, &path, r#"{"reason": "a typo"}"#);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let build = answer.json();
    assert_eq!(state(&build), ("cancelled", None));
    assert_eq!(build["reason"], "a typo");
    assert!(build["finished"].is_string() && build["agent"].is_null());
    assert!(gets_nothing(&controller));
    // Once more is no news, and changes nothing.
    let again = cancel(&controller, &path, r#"{"reason": "another"}"#);
    assert_eq!((again.status, again.json()), (200, build));
    let log = controller.get(&format!("/api/v1/builds/{id}/log"));
    assert_eq!(log.status, 404);
    assert!(log.text().contains("it is cancelled"), "{}", log.text());
    let listed = controller.get("/api/v1/builds?state=cancelled").json();
    assert_eq!(listed["builds"][0]["id"], *id);

    // A rebuild queues it as any other.
    let rebuild = format!("/api/v1/builds/{id}/rebuild");
    assert_eq!(
        controller.send("POST", &rebuild, b"").json()["state"],
        "queued"
    );
    let task = Task::take(&controller);
    assert_eq!(task.result(&controller, "success"), 200);
    let late = cancel(&controller, &path, "");
    assert_eq!(late.status, 409);
    assert!(
        late.text().contains("is built already (success)"),
        "{}",
        late.text()
    );
    assert_eq!(state(&controller.build(&id)), ("built", Some("success")));

    for (what, body, status) in [
        ("builds/99", "", 404),
        ("builds/x", "", 404),
        ("submissions/99", "", 404),
        (path.as_str(), "{", 400),
        (path.as_str(), r#"{"because": "x"}"#, 400),
    ] {
        let answer = cancel(&controller, what, body);
        assert_eq!(answer.status, status, "{what} {body}: {}", answer.text());
    }
}

#[test]
fn who_builds_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let task = Task::take(&controller);
    assert_eq!(task.renew().status, 204);
    assert_eq!(task.log(1, b"update\nso far\n").status, 204);
    let mut follower = Follower::new(&controller, &id, "");
    // Somebody wanted it twice: now nobody does.
    let rebuild = format!("/api/v1/builds/{id}/rebuild");
    assert_eq!(controller.send("POST", &rebuild, b"").status, 200);

    let waits = held(&task, 15);
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    let answer = cancel(&controller, &format!("builds/{id}"), "");
    assert_eq!(answer.status, 200);
    let (told, at) = waits.join().unwrap();
    assert_eq!(told.status, 410);
    assert!(told.text().contains("was cancelled"), "{}", told.text());
    assert!(at.duration_since(begun) < AT_ONCE);
    assert_eq!(task.renew().status, 410);
    let segment = task.log(2, b"update\nmore\n");
    assert_eq!(segment.status, 410);
    assert!(
        segment.text().contains("was cancelled"),
        "{}",
        segment.text()
    );

    let build = controller.build(&id);
    assert_eq!(state(&build), ("cancelled", None));
    assert_eq!(
        (&build["rebuild_asked"], &build["agent"]),
        (&false.into(), &"bot".into())
    );
    assert!(gets_nothing(&controller));
    let mut last = follower.next().unwrap();
    while let Some(event) = follower.next() {
        last = event;
    }
    assert_eq!(
        (last.name.as_str(), &last.data["status"]),
        ("end", &Value::Null)
    );
    // What had come of its log can be read.
    let log = controller.get(&format!("/api/v1/builds/{id}/log"));
    assert!(log.text().contains("so far"), "{}", log.text());
    let page = controller.get(&format!("/builds/{id}")).text();
    assert!(
        page.contains("It was cancelled") && page.contains("so far"),
        "{page}"
    );

    // The result that crosses with it, and the task that is given back.
    assert_eq!(task.result(&controller, "success"), 410);
    assert_eq!(task.result(&controller, "interrupt"), 200);
    let build = controller.build(&id);
    assert_eq!(
        (state(&build), &build["attempt"]),
        (("cancelled", None), &0.into())
    );

    // Whoever has it next is another session: the first one's result is still nobody's.
    assert_eq!(controller.send("POST", &rebuild, b"").status, 200);
    let next = Task::take(&controller);
    assert_eq!(task.renew().status, 410);
    assert_eq!(task.result(&controller, "error"), 410);
    assert_eq!(next.result(&controller, "success"), 200);
    assert_eq!(state(&controller.build(&id)), ("built", Some("success")));
}

/// An agent of the original cannot be told: what it brings is dropped, with the answer that it knows.
#[test]
fn a_strangers_late_result_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let session = controller.take();
    assert_eq!(cancel(&controller, &format!("builds/{id}"), "").status, 200);
    let text = result(&session, "foo", "1", "success");
    assert_eq!(controller.agent("/?build-result", &[], &text).status, 200);
    let build = controller.build(&id);
    assert_eq!(
        (state(&build), &build["attempt"]),
        (("cancelled", None), &0.into())
    );
}

/// A renewal is held until the next is due, and no longer.
#[test]
fn a_held_renewal_is_answered_when_the_next_is_due() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |c| c.lease = Duration::from_secs(4));
    controller.submit("foo", "1");
    let task = Task::take(&controller);
    let begun = Instant::now();
    let (answer, at) = held(&task, 50).join().unwrap();
    assert_eq!(
        (answer.status, answer.header("bbot-renew")),
        (204, Some("1"))
    );
    let took = at.duration_since(begun);
    assert!(
        took >= Duration::from_millis(900) && took < AT_ONCE,
        "{took:?}"
    );
    // A controller that ends lets nobody wait.
    let waits = held(&task, 50);
    std::thread::sleep(Duration::from_millis(200));
    drop(controller);
    assert_eq!(waits.join().unwrap().0.status, 204);
}

#[test]
fn a_submission_is_cancelled_but_for_what_is_built() {
    let dir = tempfile::tempdir().unwrap();
    let tab = dir.path().join("buildtab");
    let lines: String = (0..3)
        .map(|n| format!("linux* c{n} x86_64-linux-gnu\n"))
        .collect();
    std::fs::write(&tab, lines).unwrap();
    let controller = Controller::start(dir.path(), |c| c.buildtab = Some(tab));
    let ids = controller.submit("foo", "1");
    let other = controller.submit("bar", "1");
    let first = Task::take(&controller);
    assert_eq!(first.result(&controller, "success"), 200);
    let second = Task::take(&controller);
    let submission = controller.build(&ids[0])["submission"].clone();
    let what = format!("submissions/{}", submission.as_str().unwrap());
    let answer = cancel(&controller, &what, "");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let cancelled = answer.json()["cancelled"].clone();
    assert_eq!(cancelled, serde_json::json!(ids[1..]));
    assert_eq!(second.renew().status, 410);
    let states: Vec<String> = ids
        .iter()
        .map(|id| controller.build(id)["state"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(states, ["built", "cancelled", "cancelled"]);
    assert_eq!(controller.build(&other[0])["state"], "queued");
    let again = cancel(&controller, &what, "").json();
    assert_eq!(again["cancelled"], serde_json::json!([]));
    let metrics = controller.get("/metrics").text();
    assert!(
        metrics.contains("bbot_controller_cancelled_builds_total 2"),
        "{metrics}"
    );
}

#[test]
fn what_is_cancelled_at_one_controller_is_told_by_the_other() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.database();
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = |dir: &std::path::Path| {
        Controller::start(dir, |c| {
            c.database = Some(url.clone());
            c.clock = std::sync::Arc::new(bbot_controller::clock::SystemClock::start());
        })
    };
    let (first, second) = (start(a.path()), start(b.path()));
    let source = serde_json::json!({ "repository": { "url": "https://example.org/1/foo" } });
    let id = first.submit_source("foo", "1", &source).remove(0);
    let task = Task::take(&second);
    let waits = held(&task, 15);
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    assert_eq!(cancel(&first, &format!("builds/{id}"), "").status, 200);
    let (told, at) = waits.join().unwrap();
    assert_eq!(told.status, 410);
    assert!(at.duration_since(begun) < AT_ONCE);
    assert!(gets_nothing(&second));
}
