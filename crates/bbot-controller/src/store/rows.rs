//! What the rows of the store are, as plain data.

use bbot_manifest::Status;
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::{Doing as _, StoreError};
use crate::clock::Millis;
use crate::package::Particulars;
use crate::package::plan::{Excluded, Planned};
use crate::queue::State;
use crate::queue::failure::Failures;
use crate::queue::lane::{BadLane, Lane};
use crate::queue::order::{self, Class, Priority};
use crate::source::Source;

/// What was submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    /// Its number.
    pub id: i64,
    /// Package name.
    pub name: String,
    /// Package version, as it was given.
    pub version: String,
    /// Where the package is.
    pub source: Source,
    /// When it came.
    pub submitted: Millis,
    /// Who it is of.
    pub submitter: String,
    /// How urgent it is to them.
    pub priority: Priority,
    /// What its tasks say of it besides.
    pub particulars: Particulars,
    /// The service that it is of.
    pub service: Option<Service>,
}

/// A service that submits packages, such as one that builds what is pushed to a forge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// What kind of service: agents may ask for builds by it.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the service calls this submission.
    pub id: String,
}

/// A machine beside the one that a build is built on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuxiliaryMachine {
    /// The name of its environment; empty for the one without a name.
    pub name: String,
    /// The machine's name.
    pub machine: String,
}

/// An operation of a result, without its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Name, such as `update`.
    pub name: String,
    /// Status, in its text form.
    pub status: String,
    /// Length of the log in bytes.
    pub log_bytes: u64,
}

/// One package version in one configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// Its number.
    pub id: i64,
    /// Number of the submission that it came with.
    pub submission: i64,
    /// Package name.
    pub package: String,
    /// Package version.
    pub version: String,
    /// Name of the configuration.
    pub configuration: String,
    /// Its target.
    pub target: String,
    /// Name of the package configuration.
    pub package_configuration: String,
    /// What it asks of an agent beyond a machine for its configuration.
    pub lane: Lane,
    /// Where it stops for a person.
    pub breakpoint: Option<String>,
    /// Where it stands.
    pub state: State,
    /// Place in lists: the highest is what was asked for last.
    pub position: i64,
    /// Place in the queue: the lowest is the next.
    pub place: i64,
    /// Why it is queued, or was.
    pub class: Class,
    /// How urgent it is within its class.
    pub priority: Priority,
    /// Who it was queued by.
    pub submitter: String,
    /// Whether a rebuild was asked for while it was building.
    pub again: bool,
    /// The place that this has in the queue, and who asked for it.
    pub again_place: Option<(i64, String)>,
    /// Why a rebuild was asked for, or it was cancelled.
    pub reason: Option<String>,
    /// When it was last queued by a person.
    pub queued: Millis,
    /// When the task was last handed out.
    pub started: Option<Millis>,
    /// When the last result came, or it was cancelled.
    pub finished: Option<Millis>,
    /// When it was last built, or found to be as it would be built; none: it is not rebuilt by itself.
    pub checked: Option<Millis>,
    /// Number of the last finished attempt; 0 when there is none.
    pub attempt: i64,
    /// Status of the last finished attempt.
    pub status: Option<Status>,
    /// Operations of the last finished attempt.
    pub operations: Vec<Operation>,
    /// How often its task was given back since it was queued by a person.
    pub interrupts: u32,
    /// How often the lease of its task has lapsed since then.
    pub lapses: u32,
    /// The hosts on which the machine of its task has failed since then before it had begun.
    pub failures: Failures,
    /// The run, one handing out of its task, that is under way or was the last.
    pub run: Option<i64>,
    /// The session of the task that was last handed out.
    pub session: Option<String>,
    /// Until when the agent has it.
    pub lease_until: Option<Millis>,
    /// Name of the agent that has or had it.
    pub agent: Option<String>,
    /// Name of the machine.
    pub machine: Option<String>,
    /// The machine in a few words.
    pub machine_summary: Option<String>,
    /// Machines beside it.
    pub auxiliaries: Vec<AuxiliaryMachine>,
    /// How a person gets to the machine, where it stops for one.
    pub login: Option<String>,
    /// Name of the agent's toolchain.
    pub toolchain_name: Option<String>,
    /// Version of the agent's toolchain.
    pub toolchain_version: Option<String>,
}

impl Build {
    /// Whether it was handed out since it was last queued: agent, machine and toolchain are of that time then, else of
    /// an attempt before.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        match self.state {
            State::Queued => false,
            State::Building | State::Built => true,
            State::Cancelled => self.run.is_some(),
        }
    }

    /// How a person gets to the machine, as long as there is one that waits for somebody.
    #[must_use]
    pub fn login_now(&self) -> Option<&str> {
        self.login
            .as_deref()
            .filter(|_| self.state == State::Building)
    }
}

/// A finished attempt of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// 1, 2, 3...
    pub number: i64,
    /// What came out.
    pub status: Status,
    /// Its operations.
    pub operations: Vec<Operation>,
    /// Name of the agent.
    pub agent: Option<String>,
    /// Name of the machine.
    pub machine: Option<String>,
    /// Machines beside it.
    pub auxiliaries: Vec<AuxiliaryMachine>,
    /// Version of the toolchain.
    pub toolchain_version: Option<String>,
    /// When the task was handed out.
    pub started: Option<Millis>,
    /// When the result came.
    pub finished: Millis,
    /// Whether that was after its lease had lapsed.
    pub late: bool,
    /// The run that it was, by which its raw log is found.
    pub run: Option<i64>,
}

const DOING: &str = "read a row";

fn get<'r, T>(row: &'r AnyRow, column: &'static str) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Any> + sqlx::Type<sqlx::Any>,
{
    row.try_get(column).doing(DOING)
}

fn time(row: &AnyRow, column: &'static str) -> Result<Option<Millis>, StoreError> {
    Ok(get::<Option<i64>>(row, column)?.map(Millis))
}

fn operations(row: &AnyRow, build: i64) -> Result<Vec<Operation>, StoreError> {
    let text: String = get(row, "operations")?;
    serde_json::from_str(&text).map_err(|_| StoreError::Damaged {
        build,
        column: "operations",
        value: text,
    })
}

fn priority(row: &AnyRow, column: &'static str, id: i64) -> Result<Priority, StoreError> {
    let number: i64 = get(row, column)?;
    Priority::new(number).map_err(|e| StoreError::Damaged {
        build: id,
        column: "priority",
        value: e.0.to_string(),
    })
}

fn status(build: i64, text: &str) -> Result<Status, StoreError> {
    text.parse().map_err(|_| StoreError::Damaged {
        build,
        column: "status",
        value: text.to_owned(),
    })
}

pub(super) fn submission(row: &AnyRow) -> Result<Submission, StoreError> {
    let id = get(row, "id")?;
    Ok(Submission {
        id,
        name: get(row, "name")?,
        version: get(row, "version")?,
        source: source(id, get(row, "source")?)?,
        submitted: Millis(get(row, "submitted")?),
        submitter: get(row, "submitter")?,
        priority: priority(row, "priority", id)?,
        particulars: json(row, id, "particulars")?,
        service: service(row, id, "service")?,
    })
}

fn service(row: &AnyRow, id: i64, column: &'static str) -> Result<Option<Service>, StoreError> {
    let text: Option<String> = get(row, column)?;
    let damaged = |text: &str| StoreError::Damaged {
        build: id,
        column,
        value: text.to_owned(),
    };
    text.map(|text| serde_json::from_str(&text).map_err(|_| damaged(&text)))
        .transpose()
}

/// A build that was just submitted, without its number and places.
pub(super) fn queued(
    submission: &Submission,
    planned: Planned,
    breakpoint: Option<String>,
) -> Build {
    Build {
        id: 0,
        submission: submission.id,
        package: submission.name.clone(),
        version: submission.version.clone(),
        configuration: planned.configuration,
        target: planned.target,
        package_configuration: planned.package_configuration,
        lane: planned.lane,
        breakpoint,
        state: State::Queued,
        position: 0,
        place: 0,
        class: Class::New,
        priority: submission.priority,
        submitter: submission.submitter.clone(),
        again: false,
        again_place: None,
        reason: None,
        queued: submission.submitted,
        started: None,
        finished: None,
        checked: None,
        attempt: 0,
        status: None,
        operations: Vec::new(),
        interrupts: 0,
        lapses: 0,
        failures: Failures::default(),
        run: None,
        session: None,
        lease_until: None,
        agent: None,
        machine: None,
        machine_summary: None,
        auxiliaries: Vec::new(),
        login: None,
        toolchain_name: None,
        toolchain_version: None,
    }
}

/// The columns of a submission, when they are in a row with those of a build.
pub(super) const SUBMISSION: &str = "p.id AS submission_id, p.name AS submission_name, \
    p.version AS submission_version, p.source AS submission_source, p.submitted AS submission_submitted, \
    p.submitter AS submission_submitter, p.priority AS submission_priority, \
    p.particulars AS submission_particulars, p.service AS submission_service";

/// A submission out of a row with [`SUBMISSION`].
pub(super) fn submission_of(row: &AnyRow) -> Result<Submission, StoreError> {
    let id = get(row, "submission_id")?;
    Ok(Submission {
        id,
        name: get(row, "submission_name")?,
        version: get(row, "submission_version")?,
        source: source(id, get(row, "submission_source")?)?,
        submitted: Millis(get(row, "submission_submitted")?),
        submitter: get(row, "submission_submitter")?,
        priority: priority(row, "submission_priority", id)?,
        particulars: json(row, id, "submission_particulars")?,
        service: service(row, id, "submission_service")?,
    })
}

/// The number of the run that a build is handed out as.
pub(super) fn next_run(row: &AnyRow) -> Result<i64, StoreError> {
    get(row, "next_run")
}

/// The builds that a submission has not.
pub(super) fn excluded(row: &AnyRow, submission: i64) -> Result<Vec<Excluded>, StoreError> {
    json(row, submission, "excluded")
}

fn json<T: serde::de::DeserializeOwned>(
    row: &AnyRow,
    id: i64,
    column: &'static str,
) -> Result<T, StoreError> {
    let text: String = get(row, column)?;
    serde_json::from_str(&text).map_err(|_| StoreError::Damaged {
        build: id,
        column,
        value: text,
    })
}

fn source(id: i64, text: String) -> Result<Source, StoreError> {
    serde_json::from_str(&text).map_err(|_| StoreError::Damaged {
        build: id,
        column: "source",
        value: text,
    })
}

pub(super) fn build(row: &AnyRow) -> Result<Build, StoreError> {
    let id = get(row, "id")?;
    let again = get::<i64>(row, "again")? != 0;
    let state: String = get(row, "state")?;
    let state = state.parse().map_err(|_| StoreError::Damaged {
        build: id,
        column: "state",
        value: state,
    })?;
    Ok(Build {
        id,
        submission: get(row, "submission")?,
        package: get(row, "package")?,
        version: get(row, "version")?,
        configuration: get(row, "configuration")?,
        target: get(row, "target")?,
        package_configuration: get(row, "package_configuration")?,
        lane: Lane::parse(&get::<String>(row, "lane")?).map_err(|BadLane(value)| {
            StoreError::Damaged {
                build: id,
                column: "lane",
                value,
            }
        })?,
        breakpoint: get(row, "breakpoint")?,
        state,
        position: get(row, "position")?,
        place: get(row, "place")?,
        class: get::<String>(row, "class")?
            .parse()
            .map_err(|order::UnknownClass(value)| StoreError::Damaged {
                build: id,
                column: "class",
                value,
            })?,
        priority: priority(row, "priority", id)?,
        submitter: get(row, "submitter")?,
        again,
        again_place: get::<Option<i64>>(row, "again_place")?
            .zip(get::<Option<String>>(row, "again_by")?)
            .filter(|_| again),
        reason: get(row, "reason")?,
        queued: Millis(get(row, "queued")?),
        started: time(row, "started")?,
        finished: time(row, "finished")?,
        checked: time(row, "checked")?,
        attempt: get(row, "attempt")?,
        status: get::<Option<String>>(row, "status")?
            .map(|text| status(id, &text))
            .transpose()?,
        operations: operations(row, id)?,
        interrupts: u32::try_from(get::<i64>(row, "interrupts")?).unwrap_or(u32::MAX),
        lapses: u32::try_from(get::<i64>(row, "lapses")?).unwrap_or(u32::MAX),
        failures: Failures::parse(&get::<String>(row, "failures")?),
        run: get(row, "run")?,
        session: get(row, "session")?,
        lease_until: time(row, "lease_until")?,
        agent: get(row, "agent")?,
        machine: get(row, "machine")?,
        machine_summary: get(row, "machine_summary")?,
        auxiliaries: json(row, id, "auxiliaries")?,
        login: get(row, "login")?,
        toolchain_name: get(row, "toolchain_name")?,
        toolchain_version: get(row, "toolchain_version")?,
    })
}

pub(super) fn attempt(row: &AnyRow, build: i64) -> Result<Attempt, StoreError> {
    Ok(Attempt {
        number: get(row, "number")?,
        status: status(build, &get::<String>(row, "status")?)?,
        operations: operations(row, build)?,
        agent: get(row, "agent")?,
        machine: get(row, "machine")?,
        auxiliaries: json(row, build, "auxiliaries")?,
        toolchain_version: get(row, "toolchain_version")?,
        started: time(row, "started")?,
        finished: Millis(get(row, "finished")?),
        late: get::<i64>(row, "late")? != 0,
        run: get(row, "run")?,
    })
}
