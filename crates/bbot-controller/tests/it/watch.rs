//! What programs that watch over a controller see.

use crate::support::{Controller, field, request, result};

#[test]
fn what_happens_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let health = controller.get("/healthz");
    assert_eq!((health.status, health.text().as_str()), (200, "ok\n"));

    controller.submit("foo", "1");
    controller.submit("bar", "1");
    let answer = controller.agent("?build-task", &["Bbot-Agent: 1"], &request("0.7.0"));
    let session = field(&answer.text(), "session");
    let lease = answer.header("bbot-session-url").unwrap().to_owned();
    let log = lease[lease.find("/sessions/").unwrap()..].to_owned() + "/log/1";
    assert_eq!(
        controller.send("POST", &log, b"update\nhello\n").status,
        204
    );
    let text = result(&session, "foo", "1", "warning");
    assert_eq!(controller.agent("?build-result", &[], &text).status, 200);
    assert_eq!(controller.agent("?build-task", &[], ": 1\n").status, 400);
    controller.agent("?build-task", &[], &request("0.7.0"));

    let metrics = controller.get("/metrics");
    assert!(
        metrics
            .header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    let text = metrics.text();
    for line in [
        "bbot_controller_builds{state=\"queued\"} 0",
        "bbot_controller_builds{state=\"building\"} 1",
        "bbot_controller_agents{state=\"building\"} 1",
        "bbot_controller_submitted_builds_total 2",
        "bbot_controller_handed_out_tasks_total 2",
        "bbot_controller_pick_up_seconds_count 2",
        "bbot_controller_results_total{status=\"warning\"} 1",
        "bbot_controller_log_segments_total 1",
        "bbot_controller_log_bytes_total 6",
        "bbot_controller_requests_total{kind=\"task\",code=\"200\"} 2",
        "bbot_controller_requests_total{kind=\"task\",code=\"400\"} 1",
        "bbot_controller_requests_total{kind=\"result\",code=\"200\"} 1",
        "bbot_controller_requests_total{kind=\"log\",code=\"204\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
    assert!(text.ends_with("# EOF\n"));
}
