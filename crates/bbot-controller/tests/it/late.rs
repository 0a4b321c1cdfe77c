//! The end of a log that comes after its result.

use crate::follow::Follower;
use crate::sessions::{OURS, Task};
use crate::support::{Controller, agent, result};

const DAY: i64 = 24 * 3600;

/// Brings the result of a task whose log has so many segments.
fn bring(controller: &Controller, task: &Task, status: &str, last: &str) -> u16 {
    let text = result(&task.session, "foo", "1", status);
    let last = format!("Bbot-Log-Last: {last}");
    let headers = [OURS[0], last.as_str()];
    controller.agent("/?build-result", &headers, &text).status
}

fn mark(what: &str) -> String {
    format!("==== ... the last {what} ... ====\n")
}

#[test]
fn the_end_of_a_log_is_marked_until_it_comes_after_the_result() {
    let dir = tempfile::tempdir().unwrap();
    let clock;
    let task;
    let id;
    let raw;
    {
        let controller = Controller::start(dir.path(), |_| {});
        clock = std::sync::Arc::clone(&controller.clock);
        id = controller.submit("foo", "1").remove(0);
        raw = format!("/api/v1/builds/{id}/log?raw=1");
        task = Task::take(&controller);
        let mut follower = Follower::new(&controller, &id, "");
        assert_eq!(task.log(1, b"update\none\n").status, 204);
        assert_eq!(bring(&controller, &task, "success", "4"), 200);
        assert_eq!(controller.build(&id)["status"], "success");
        let one = "==== update ====\none\n";
        let expected = one.to_owned() + &mark("3 pieces of the log have not come yet");
        assert_eq!(controller.get(&raw).text(), expected);
        // Who follows it is told, too.
        let events: Vec<_> = std::iter::from_fn(|| follower.next()).collect();
        let gap = events.iter().find(|event| event.name == "gap").unwrap();
        assert_eq!(gap.data["missing"], 3);
        assert_eq!(events.last().unwrap().name, "end");
        // The task is over, and its log is not. What it did not announce is not taken.
        assert_eq!(task.renew().status, 410);
        assert_eq!(task.log(2, b"update\ntwo\n").status, 204);
        assert_eq!(task.log(5, b"update\nfive\n").status, 410);
        assert_eq!(task.log(4, b"update\nfour\n").status, 409);
        // The result that comes once more changes nothing of that.
        assert_eq!(bring(&controller, &task, "success", "9"), 200);
        assert_eq!(task.log(5, b"update\nfive\n").status, 410);
        controller.send("POST", &format!("/api/v1/builds/{id}/rebuild"), b"");
    }
    // Also after a restart, and while the build is done again.
    let shared = std::sync::Arc::clone(&clock);
    let controller = Controller::start(dir.path(), |c| c.clock = shared);
    let url = task.url.rsplit('/').next().unwrap();
    let url = controller.url(&format!("/sessions/{url}"));
    let log = |number: u32, body: &[u8]| agent(&format!("{url}/log/{number}"), OURS, body).status;
    let again = Task::take(&controller);
    assert_eq!(log(3, b"update\nthree\n"), 204);
    let raw = format!("{raw}&attempt=1");
    let three = "==== update ====\none\ntwo\nthree\n";
    let expected = three.to_owned() + &mark("piece of the log has not come yet");
    assert_eq!(controller.get(&raw).text(), expected);
    clock.advance_seconds(DAY);
    let expected = three.to_owned() + &mark("piece of the log never came");
    assert_eq!(controller.get(&raw).text(), expected);
    assert_eq!(log(4, b"update\nfour\n"), 410);
    // A log that is there when its result comes has no mark, nor one of which nothing is said, or nothing that can be read.
    assert_eq!(again.log(1, b"update\nx\n").status, 204);
    assert_eq!(bring(&controller, &again, "success", "1"), 200);
    let raw = |attempt: u32| {
        let path = format!("/api/v1/builds/{id}/log?raw=1&attempt={attempt}");
        controller.get(&path).text()
    };
    assert_eq!(raw(2), "==== update ====\nx\n");
    for (attempt, last) in [(3, "-1"), (4, "x"), (5, "18446744073709551616")] {
        controller.send("POST", &format!("/api/v1/builds/{id}/rebuild"), b"");
        let task = Task::take(&controller);
        assert_eq!(task.log(1, b"update\nx\n").status, 204);
        assert_eq!(bring(&controller, &task, "success", last), 200, "{last}");
        assert_eq!(task.log(2, b"update\nx\n").status, 410);
        assert_eq!(raw(attempt), "==== update ====\nx\n");
    }
    controller.send("POST", &format!("/api/v1/builds/{id}/rebuild"), b"");
    let task = Task::take(&controller);
    assert_eq!(task.log(1, b"update\nx\n").status, 204);
    assert_eq!(
        bring(&controller, &task, "success", "18446744073709551615"),
        200
    );
    assert!(
        raw(6).ends_with(&mark(
            "9223372036854775806 pieces of the log have not come yet"
        )),
        "{}",
        raw(6)
    );
}
