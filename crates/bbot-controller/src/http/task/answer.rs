//! What the answer with a task says.

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bbot_manifest::{Auxiliary, Era, RepositoryType, Task, TaskResponse, quoting};

use crate::buildtab::Configuration;
use crate::http::App;
use crate::http::problem::Problem;
use crate::source::Source;
use crate::store::{AuxiliaryMachine, Lease};

/// As it is said to an agent.
fn named(auxiliary: &AuxiliaryMachine) -> Auxiliary {
    Auxiliary {
        name: auxiliary.name.clone(),
        value: auxiliary.machine.clone(),
    }
}

/// Where artifacts may be uploaded to, by their types; an agent of 2017 does not know of any.
pub(super) fn uploads(
    app: &App,
    era: Era,
    base: &str,
) -> std::collections::BTreeMap<String, String> {
    let kinds = app.config.artifacts.iter().filter(|_| era == Era::Later);
    kinds
        .map(|kind| (kind.clone(), format!("{base}/?upload={kind}")))
        .collect()
}

/// The task of a lease.
pub(super) fn task(
    lease: &Lease,
    configuration: &Configuration,
    machine: &str,
    base: &str,
) -> Task {
    let submission = &lease.submission;
    let url = match (&submission.source, submission.source.archive()) {
        (_, Some(sha256)) => format!("{base}/archives/{sha256}.tar.gz"),
        (Source::Repository(repository), None) => repository.url.clone(),
        (Source::Archive(_) | Source::Git(_), None) => String::new(),
    };
    let mut task = Task::new(
        &submission.name,
        &submission.version,
        url,
        machine,
        &configuration.target,
    );
    if let Source::Repository(repository) = &submission.source {
        task.repository_type = match repository.kind.as_deref() {
            Some("pkg") => Some(RepositoryType::Pkg),
            Some("git") => Some(RepositoryType::Git),
            Some("dir") => Some(RepositoryType::Dir),
            _ => None,
        };
        task.trust.clone_from(&repository.trust);
    }
    task.requires.clone_from(&submission.particulars.requires);
    let package = submission
        .particulars
        .of(&lease.build.package_configuration);
    task.package_config = package.and_then(|p| p.arguments.clone());
    task.auxiliary_machines = lease.build.auxiliaries.iter().map(named).collect();
    task.interactive.clone_from(&lease.build.breakpoint);
    if let Some(checksums) = &lease.checksums {
        task.worker_checksum = Some(checksums.worker.clone());
        task.dependency_checksum = Some(checksums.dependency.clone());
    }
    task.environment.clone_from(&configuration.environment);
    if !configuration.arguments.is_empty() {
        task.target_config = Some(quoting::join(&configuration.arguments));
    }
    task.warning_regex
        .clone_from(&configuration.warning_regexes);
    // A module of the build system is built where the build system itself is.
    let class = if submission.name.starts_with("libbuild2-") {
        "build2"
    } else {
        "host"
    };
    task.host = configuration.is_of_class(class).then_some(true);
    task
}

/// The text of a response.
pub(super) fn written(response: &TaskResponse, era: Era) -> Result<String, Problem> {
    response
        .serialize(era)
        .map_err(|e| Problem::internal("write a task", &e))
}

/// The answer with such a text.
pub(super) fn answer_of(body: Body) -> Response {
    (
        [(header::CONTENT_TYPE, "text/manifest;charset=utf-8")],
        body,
    )
        .into_response()
}
