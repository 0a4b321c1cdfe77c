//! Builds and submissions as the API shows them.

use serde_json::{Value, json};

use crate::package::plan::Excluded;
use crate::queue::State;
use crate::store::{Attempt, Build, Submission};

/// A build. Status, end and operations are those of its result: as long as it is not built they are not
/// known yet, whatever an earlier attempt gave (`previous_status`).
pub(super) fn build(build: &Build, base: &str) -> Value {
    let built = build.state == State::Built;
    let waiting = build.state == State::Queued;
    json!({
        "id": build.id.to_string(),
        "submission": build.submission.to_string(),
        "package": build.package,
        "version": build.version,
        "configuration": build.configuration,
        "target": build.target,
        "package_configuration": build.package_configuration,
        "machine": build.machine.as_ref().filter(|_| !waiting),
        "machine_summary": build.machine_summary.as_ref().filter(|_| !waiting),
        "toolchain": match (&build.toolchain_name, &build.toolchain_version) {
            (Some(name), Some(version)) if !waiting => json!({"name": name, "version": version}),
            _ => Value::Null,
        },
        "agent": build.agent.as_ref().filter(|_| !waiting),
        "state": build.state.as_str(),
        "status": build.status.filter(|_| built).map(|s| s.to_string()),
        "queued": build.queued.to_string(),
        "started": build.started.filter(|_| !waiting).map(|t| t.to_string()),
        "finished": build.finished.filter(|_| built).map(|t| t.to_string()),
        "lease_until": build.lease_until.map(|t| t.to_string()),
        "reason": build.reason,
        "rebuild_asked": build.again,
        "class": build.class.as_str(),
        "priority": build.priority.number(),
        "submitter": build.submitter,
        "attempt": build.attempt,
        "run": build.run,
        "interrupts": build.interrupts,
        "lapses": build.lapses,
        "previous_status": build.status.filter(|_| !built).map(|s| s.to_string()),
        "operations": if built { serde_json::to_value(&build.operations).unwrap_or_default() } else { json!([]) },
        "url": format!("{base}/builds/{}", build.id),
    })
}

/// An attempt.
pub(super) fn attempt(attempt: &Attempt) -> Value {
    json!({
        "number": attempt.number,
        "status": attempt.status.to_string(),
        "agent": attempt.agent,
        "machine": attempt.machine,
        "toolchain_version": attempt.toolchain_version,
        "started": attempt.started.map(|t| t.to_string()),
        "finished": attempt.finished.to_string(),
        "late": attempt.late,
        "operations": attempt.operations,
    })
}

/// A submission with its builds, and those that it has not.
pub(super) fn submission(
    submission: &Submission,
    builds: &[Build],
    excluded: &[Excluded],
    base: &str,
) -> Value {
    json!({
        "id": submission.id.to_string(),
        "name": submission.name,
        "version": submission.version,
        "source": submission.source,
        "submitted": submission.submitted.to_string(),
        "submitter": submission.submitter,
        "priority": submission.priority.number(),
        "builds": builds.iter().map(|b| build(b, base)).collect::<Vec<_>>(),
        "excluded": excluded,
        "url": format!("{base}/submissions/{}", submission.id),
    })
}
