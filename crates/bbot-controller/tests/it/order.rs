//! The order of the queue from outside: which build an agent gets.

use bbot_controller::clock::Millis;
use bbot_controller::package::Particulars;
use bbot_controller::package::plan::Plan;
use bbot_controller::queue::order::Priority;
use bbot_controller::source::{Repository, Source};
use bbot_controller::store::{NewSubmission, Store, Submitted};
use serde_json::{Value, json};

use crate::store::{asker, lease, on_both};
use crate::support::{Answer, Controller, field, request, result};

fn submit(controller: &Controller, name: &str, version: &str, priority: &Value) -> Answer {
    let source = json!({ "repository": { "url": "https://example.org/1/x" } });
    let body = json!({ "name": name, "version": version, "source": source, "priority": priority });
    controller.send("POST", "/api/v1/submissions", body.to_string().as_bytes())
}

fn submitted(controller: &Controller, name: &str, version: &str, priority: i64) -> String {
    let answer = submit(controller, name, version, &json!(priority));
    assert_eq!(answer.status, 201, "{}", answer.text());
    let build = &answer.json()["builds"][0];
    assert_eq!(
        (&build["class"], &build["priority"], &build["submitter"]),
        (&json!("new"), &json!(priority), &json!("token"))
    );
    build["id"].as_str().unwrap().to_owned()
}

/// The package that an agent gets next, and its session.
fn next(controller: &Controller) -> (String, String) {
    let answer = controller.agent("/?build-task", &[], &request("0.7.0"));
    let text = answer.text();
    let name = format!("{}/{}", field(&text, "name"), field(&text, "version"));
    (name, field(&text, "session"))
}

fn all(controller: &Controller) -> Vec<String> {
    let next = || Some(next(controller).0).filter(|name| name != "/");
    std::iter::from_fn(next).collect()
}

#[test]
fn priorities_versions_and_what_a_person_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let done = submitted(&controller, "done", "1", 0);
    let (_, session) = next(&controller);
    let text = result(&session, "done", "1", "success");
    assert_eq!(controller.agent("/?build-result", &[], &text).status, 200);
    submitted(&controller, "last", "1", -2);
    submitted(&controller, "lib", "1.2", 0);
    let asked = submitted(&controller, "asked", "1", -1);
    submitted(&controller, "lib", "1.10", 0);
    submitted(&controller, "first", "1", 2);
    submitted(&controller, "lib", "1.9", 0);
    for id in [&asked, &done] {
        let rebuild = controller.send("POST", &format!("/api/v1/builds/{id}/rebuild"), b"");
        assert_eq!(rebuild.json()["class"], "forced", "{}", rebuild.text());
        assert_eq!(rebuild.json()["state"], "queued");
    }
    let page = controller.get(&format!("/builds/{asked}")).text();
    assert!(page.contains("forced, priority -1"), "{page}");
    let order = [
        "done/1", "asked/1", "first/1", "lib/1.10", "lib/1.9", "lib/1.2", "last/1",
    ];
    assert_eq!(all(&controller), order);
}

#[test]
fn a_rebuild_that_is_asked_for_while_it_is_building_is_forced() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = submitted(&controller, "foo", "1", 0);
    let (_, session) = next(&controller);
    let waits = submitted(&controller, "bar", "1", 2);
    let rebuild = controller.send("POST", &format!("/api/v1/builds/{id}/rebuild"), b"");
    let build = rebuild.json();
    assert_eq!(build["rebuild_asked"], true, "{}", rebuild.text());
    assert_eq!(
        (&build["state"], &build["class"]),
        (&json!("building"), &json!("new"))
    );
    let text = result(&session, "foo", "1", "success");
    assert_eq!(controller.agent("/?build-result", &[], &text).status, 200);
    let build = controller.build(&id);
    assert_eq!(
        (&build["state"], &build["class"]),
        (&json!("queued"), &json!("forced"))
    );
    assert_eq!(all(&controller), ["foo/1", "bar/1"]);
    assert_eq!(controller.build(&waits)["class"], "new");
}

#[test]
fn what_is_no_priority_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    for (priority, expected) in [
        (
            json!(3),
            "3 is not a priority: expected a number from -2 (last) to 2 (first)",
        ),
        (json!(i64::MIN), "is not a priority"),
        (json!(1.5), "the submission cannot be read"),
        (json!("high"), "the submission cannot be read"),
        (json!(null), "the submission cannot be read"),
    ] {
        let answer = submit(&controller, "foo", "1", &priority);
        let told = answer.json()["error"].as_str().unwrap().to_owned();
        assert_eq!(answer.status, 400, "{told}");
        assert!(told.contains(expected), "{told}");
    }
    assert_eq!(all(&controller), Vec::<String>::new());
}

async fn submit_many(store: &Store, who: &str, builds: usize, now: i64) -> Submitted {
    let source = Source::Repository(Repository {
        url: "https://pkg.x.org/1/a".into(),
        kind: None,
        trust: vec![],
    });
    let names: Vec<String> = (0..builds).map(|n| format!("c{n}")).collect();
    let pairs: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "t")).collect();
    let new = NewSubmission {
        name: "p",
        version: "1",
        source: &source,
        asker: &asker(who),
        priority: Priority::default(),
        particulars: &Particulars::default(),
        service: None,
        breakpoint: None,
        plan: &Plan::of(&pairs),
    };
    store.submit(new, Millis(now)).await.unwrap()
}

#[test]
fn nobody_waits_for_the_turns_of_cancelled_builds() {
    on_both(async |place| {
        let store = place.open().await;
        let share = asker("me").share;
        let place = async |who| submit_many(&store, who, 1, 1000).await.builds[0].place;
        let flood = submit_many(&store, "me", 300, 1000).await;
        let now = place("other").await;
        assert_eq!(place("me").await, now + 300 * 100);
        // One was handed out, so that its turn is used, whatever becomes of it.
        let first = flood.builds[0].id;
        let handed = store.lease(&lease(first, "s", 5000), Millis(1000)).await;
        assert!(handed.unwrap().is_some());
        let cancel = async |submission| {
            let cancelled = store.cancel_submission(submission, None, share, Millis(1000));
            cancelled.await.unwrap().len()
        };
        assert_eq!(cancel(flood.submission.id).await, 300);
        // The first of the flood, the one behind it, this one.
        assert_eq!(place("me").await, now + 2 * 100);
        assert_eq!(cancel(flood.submission.id).await, 0);
        assert_eq!(place("me").await, now + 3 * 100, "given back once");
        store.close().await;
    });
}
