//! Rebuilds by themselves: what is due, what an agent is told of the last result, and its answer that nothing has changed.

use std::time::Duration;

use bbot_controller::clock::Millis;
use bbot_controller::queue::State;
use bbot_controller::queue::order::Class;
use bbot_controller::queue::rebuild::{Due, Policy, Rule};
use bbot_controller::store::Store;
use serde_json::Value;

use crate::store::{decided, lease, on_both, result, submit, submit_as, submit_interactive};
use crate::support::{Answer, Controller, field, request};

const DAY: i64 = 24 * 3600;

fn after(days: u64) -> Rule {
    Rule {
        timeout: Some(Duration::from_secs(days * 24 * 3600)),
        window: None,
    }
}

/// Soft rebuilds daily, hard ones weekly; whatever is due is found within a moment.
fn start(dir: &tempfile::TempDir) -> Controller {
    let tab = dir.path().join("buildtab");
    std::fs::write(&tab, "linux** gcc x86_64-linux-gnu default a=b\n").unwrap();
    Controller::start(&dir.path().join("data"), |c| {
        c.buildtab = Some(tab);
        c.rebuilds = Policy {
            soft: after(1),
            hard: after(7),
        };
        c.rebuild_look = Duration::from_millis(20);
    })
}

const CHECKSUMS: [&str; 3] = ["agent-1", "worker-1", "dependency-1"];

fn bring(controller: &Controller, session: &str, status: &str, checksums: [&str; 3]) -> Answer {
    let [agent, worker, dependency] = checksums;
    let text = format!(
        ": 1\nsession: {session}\nagent-checksum: {agent}\n:\nname: foo\nversion: 1\nstatus: {status}\n\
         worker-checksum: {worker}\ndependency-checksum: {dependency}\n"
    );
    controller.agent("/?build-result", &[], &text)
}

fn ask(controller: &Controller, version: &str) -> String {
    controller
        .agent("/?build-task", &[], &request(version))
        .text()
}

fn given(task: &str) -> [String; 3] {
    ["agent-checksum", "worker-checksum", "dependency-checksum"].map(|name| field(task, name))
}

fn wait(controller: &Controller, id: &str, state: &str) -> Value {
    for _ in 0..500 {
        let build = controller.build(id);
        if build["state"] == state {
            return build;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{state}: {:#}", controller.build(id));
}

fn nothing_happens(controller: &Controller, id: &str) {
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(controller.build(id)["state"], "built");
}

/// A build that is built, and then queued again after a day.
fn due(controller: &Controller) -> String {
    let id = controller.submit("foo", "1").remove(0);
    let task = ask(controller, "0.17.0");
    assert_eq!(given(&task), ["", "", ""]);
    let taken = bring(controller, &field(&task, "session"), "warning", CHECKSUMS);
    assert_eq!(taken.status, 200, "{}", taken.text());
    controller.clock.advance_seconds(DAY - 1);
    nothing_happens(controller, &id);
    controller.clock.advance_seconds(1);
    let build = wait(controller, &id, "queued");
    assert_eq!(
        (&build["class"], &build["previous_status"]),
        (&"rebuild".into(), &"warning".into())
    );
    assert!(
        build["reason"].as_str().unwrap().contains("by itself"),
        "{build:#}"
    );
    id
}

#[test]
fn what_has_not_changed_is_skipped_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(&dir);
    let id = due(&controller);
    let task = ask(&controller, "0.17.0");
    assert_eq!(given(&task), CHECKSUMS);
    let session = field(&task, "session");
    for wrong in [
        ["agent-2", "worker-1", "dependency-1"],
        ["agent-1", "worker-1", ""],
        ["agent-1", "", "dependency-1"],
    ] {
        let refused = bring(&controller, &session, "skip", wrong);
        assert_eq!(refused.status, 400, "{}", refused.text());
        assert!(
            refused
                .text()
                .contains("checksums are not all those of the task"),
            "{}",
            refused.text()
        );
    }
    assert_eq!(controller.build(&id)["state"], "building");
    for _ in 0..2 {
        assert_eq!(bring(&controller, &session, "skip", CHECKSUMS).status, 200);
        let build = controller.build(&id);
        assert_eq!(
            (&build["state"], &build["status"], &build["attempt"]),
            (&"built".into(), &"warning".into(), &1.into())
        );
        assert_eq!(build["attempts"].as_array().unwrap().len(), 1);
        assert_eq!(build["machine"], "linux_debian_12-gcc_13.1");
        let times =
            ["started", "finished", "checked"].map(|name| build[name].as_str().unwrap().to_owned());
        assert!(times[0] <= times[1] && times[1] < times[2], "{times:?}");
    }
    // It counts from then on, until a week after it was built: then it is built, whatever its agent says.
    for _ in 0..5 {
        controller.clock.advance_seconds(DAY - 1);
        nothing_happens(&controller, &id);
        controller.clock.advance_seconds(1);
        wait(&controller, &id, "queued");
        let task = ask(&controller, "0.17.0");
        assert_eq!(given(&task), CHECKSUMS);
        assert_eq!(
            bring(&controller, &field(&task, "session"), "skip", CHECKSUMS).status,
            200
        );
    }
    controller.clock.advance_seconds(DAY);
    let build = wait(&controller, &id, "queued");
    assert!(
        build["reason"].as_str().unwrap().contains("long ago"),
        "{build:#}"
    );
    let task = ask(&controller, "0.17.0");
    assert_eq!(given(&task), ["", "", ""]);
    let session = field(&task, "session");
    assert_eq!(bring(&controller, &session, "skip", CHECKSUMS).status, 400);
    assert_eq!(
        bring(&controller, &session, "success", CHECKSUMS).status,
        200
    );
    let build = controller.build(&id);
    assert_eq!(
        (&build["status"], &build["attempt"]),
        (&"success".into(), &2.into())
    );
}

#[test]
fn what_is_made_otherwise_is_built() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(&dir);
    let id = due(&controller);
    // An agent with another revision of the machine would build otherwise.
    let other = request("0.17.0").replace("id: a2b0c4b855", "id: another");
    for (request, checksums) in [(&other, ["", "", ""]), (&request("0.17.0"), CHECKSUMS)] {
        let task = controller.agent("/?build-task", &[], request).text();
        assert_eq!(given(&task), checksums, "{task}");
        assert_eq!(
            bring(
                &controller,
                &field(&task, "session"),
                "interrupt",
                CHECKSUMS
            )
            .status,
            200
        );
        wait(&controller, &id, "queued");
    }
    // So would other arguments of the configuration.
    std::fs::write(
        dir.path().join("buildtab"),
        "linux** gcc x86_64-linux-gnu default a=c\n",
    )
    .unwrap();
    controller.clock.advance_seconds(2);
    let task = ask(&controller, "0.17.0");
    assert_eq!(field(&task, "target-config"), "a=c");
    assert_eq!(given(&task), ["", "", ""]);
}

#[test]
fn a_rebuild_that_a_person_asks_for_is_not_skipped_and_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(&dir);
    let id = due(&controller);
    let rebuild = format!("/api/v1/builds/{id}/rebuild");
    // While the soft one is on its way: it may say that nothing has changed, and then it is built.
    let task = ask(&controller, "0.17.0");
    assert_eq!(
        controller.send("POST", &rebuild, b"").json()["rebuild_asked"],
        true
    );
    assert_eq!(
        bring(&controller, &field(&task, "session"), "skip", CHECKSUMS).status,
        200
    );
    let build = controller.build(&id);
    assert_eq!(
        (&build["state"], &build["class"]),
        (&"queued".into(), &"forced".into())
    );
    let task = ask(&controller, "0.17.0");
    assert_eq!(given(&task), ["", "", ""]);
    assert_eq!(
        bring(&controller, &field(&task, "session"), "success", CHECKSUMS).status,
        200
    );
    // While the soft one waits.
    controller.clock.advance_seconds(DAY);
    wait(&controller, &id, "queued");
    assert_eq!(controller.send("POST", &rebuild, b"").status, 200);
    let task = ask(&controller, "0.17.0");
    assert_eq!(given(&task), ["", "", ""]);
    assert_eq!(
        bring(&controller, &field(&task, "session"), "success", CHECKSUMS).status,
        200
    );
}

/// Nothing is rebuilt by itself unless it is wanted.
#[test]
fn it_is_off_by_default() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |c| c.rebuild_look = Duration::from_millis(20));
    let id = controller.submit("foo", "1").remove(0);
    let task = ask(&controller, "0.17.0");
    assert_eq!(
        bring(&controller, &field(&task, "session"), "success", CHECKSUMS).status,
        200
    );
    controller.clock.advance_seconds(100 * DAY);
    nothing_happens(&controller, &id);
}

async fn build(store: &Store, id: i64, now: i64) {
    let session = format!("s{id}-{now}");
    let lease = lease(id, &session, i64::MAX);
    assert!(store.lease(&lease, Millis(now)).await.unwrap().is_some());
    store
        .take_result(&session, result("log"), Millis(now), decided)
        .await
        .unwrap();
}

#[test]
fn each_that_is_due_is_queued_once_and_only_the_newest() {
    on_both(async |place| {
        let store = place.open().await;
        let mut ids = Vec::new();
        // Of a, the second is newer; c has one that is newer and has no result yet.
        for (n, name) in (1..).zip(["a", "a", "b", "c"]) {
            let id = submit(&store, name, 0).await;
            build(&store, id, n).await;
            ids.push(id);
        }
        let newer = submit(&store, "c", 0).await;
        let queue = async |due: Due, now: i64| {
            let share = Duration::from_secs(1);
            let found = store.queue_due(due, share, 2, Millis(now), |c, t| (c, t) == ("c", "t"));
            found.await.unwrap()
        };
        let due = |checked: i64, built: Option<i64>| Due {
            checked: Some(Millis(checked)),
            built: built.map(Millis),
        };
        assert!(queue(due(0, None), 100).await.queued.is_empty());
        assert!(queue(Due::default(), 100).await.queued.is_empty());
        // Two at once: the older of a is passed over for good.
        let found = queue(due(3, None), 100).await;
        assert_eq!(
            found.queued.iter().map(|b| b.id).collect::<Vec<_>>(),
            ids[1..2]
        );
        assert!(found.is_more);
        let found = queue(due(4, Some(4)), 101).await;
        assert_eq!(
            found.queued.iter().map(|b| b.id).collect::<Vec<_>>(),
            ids[2..]
        );
        // What waits is not queued once more, nor what is no more rebuilt.
        let found = queue(due(1000, Some(1000)), 1000).await;
        assert!(found.queued.is_empty() && !found.is_more);
        for id in &ids[1..] {
            let build = store.build(*id).await.unwrap().unwrap();
            assert_eq!((build.state, build.class), (State::Queued, Class::Rebuild));
        }
        assert_eq!(
            store.build(ids[0]).await.unwrap().unwrap().state,
            State::Built
        );
        // A result counts from when it came; one whose configuration is gone is left alone.
        build(&store, ids[2], 2000).await;
        assert!(queue(due(1999, Some(1999)), 3000).await.queued.is_empty());
        let gone = store.queue_due(due(2000, None), Duration::ZERO, 9, Millis(3000), |_, _| {
            false
        });
        assert!(gone.await.unwrap().queued.is_empty());
        assert!(queue(due(2000, None), 3000).await.queued.is_empty());
        // The newer of c goes first: it is new, the other is not.
        let first = crate::store::first_queued(&store, "c", "t", None).await;
        assert_eq!(first.map(|(_, id)| id), Some(newer));
    });
}

/// A person has looked into the same one, and it goes on to be rebuilt by itself.
#[test]
fn an_interactive_build_takes_no_place_of_another() {
    on_both(async |place| {
        let store = place.open().await;
        let ordinary = submit(&store, "a", 0).await;
        build(&store, ordinary, 1).await;
        let interactive = submit_interactive(&store, "a", 0).await;
        build(&store, interactive, 2).await;
        let queue = async |now: i64| {
            let due = Due {
                checked: Some(Millis(now)),
                built: Some(Millis(now)),
            };
            let found = store.queue_due(due, Duration::ZERO, 9, Millis(now), |_, _| true);
            let found = found.await.unwrap().queued;
            found.iter().map(|b| b.id).collect::<Vec<_>>()
        };
        assert_eq!(queue(100).await, [ordinary]);
        // Nor does it once it has been built again; an ordinary one that is newer does.
        build(&store, ordinary, 200).await;
        assert_eq!(queue(300).await, [ordinary]);
        build(&store, ordinary, 400).await;
        let newer = submit(&store, "a", 400).await;
        build(&store, newer, 401).await;
        assert_eq!(queue(500).await, [newer]);
        let interactive = store.build(interactive).await.unwrap().unwrap();
        assert_eq!((interactive.state, interactive.attempt), (State::Built, 1));
    });
}

#[test]
fn several_who_look_at_once_queue_each_once() {
    on_both(async |place| {
        let store = place.open().await;
        // Of several submitters, whose turns they take: in an order in which no two wait for each other.
        for n in 0..240 {
            let who = ["me", "you", "she"][n % 3];
            let id = submit_as(&store, who, &format!("p{n}"), 0).await;
            build(&store, id, 5).await;
        }
        let mut looks = tokio::task::JoinSet::new();
        for _ in 0..6 {
            let store = store.clone();
            looks.spawn(async move {
                let due = Due {
                    checked: Some(Millis(10)),
                    built: None,
                };
                let mut queued = Vec::new();
                loop {
                    let found = store
                        .queue_due(due, Duration::ZERO, 7, Millis(20), |_, _| true)
                        .await
                        .unwrap();
                    queued.extend(found.queued.iter().map(|b| b.id));
                    if !found.is_more {
                        return queued;
                    }
                }
            });
        }
        let mut all: Vec<i64> = looks.join_all().await.concat();
        all.sort_unstable();
        assert_eq!(all, (1..=240).collect::<Vec<_>>());
    });
}
