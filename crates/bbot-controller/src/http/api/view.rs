//! Builds and submissions as the API shows them. What is not known yet is null.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::excluded::ExcludedPage;
use crate::clock::Millis;
use crate::http::waits;
use crate::package::plan::Excluded;
use crate::queue::wait::{Before, Code};
use crate::source::Source;
use crate::{queue, store};

/// The number of something, as text: a number in JSON is not exact everywhere.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(into = "String")]
#[schema(value_type = String, pattern = "^[1-9][0-9]*$", example = "17")]
pub(super) struct Id(pub(super) i64);

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0.to_string()
    }
}

/// A point in time, RFC 3339 in UTC with milliseconds.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(into = "String")]
#[schema(value_type = String, format = DateTime, example = "2026-11-28T12:00:00.000Z")]
pub(super) struct Time(pub(super) Millis);

impl From<Time> for String {
    fn from(time: Time) -> Self {
        time.0.to_string()
    }
}

/// Where a build stands.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Queued,
    Building,
    Built,
    Cancelled,
}

impl From<queue::State> for State {
    fn from(state: queue::State) -> Self {
        match state {
            queue::State::Queued => Self::Queued,
            queue::State::Building => Self::Building,
            queue::State::Built => Self::Built,
            queue::State::Cancelled => Self::Cancelled,
        }
    }
}

impl From<State> for queue::State {
    fn from(state: State) -> Self {
        match state {
            State::Queued => Self::Queued,
            State::Building => Self::Building,
            State::Built => Self::Built,
            State::Cancelled => Self::Cancelled,
        }
    }
}

/// Why a build is queued, or was.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Class {
    Forced,
    New,
    Rebuild,
}

impl From<queue::order::Class> for Class {
    fn from(class: queue::order::Class) -> Self {
        use queue::order::Class as Given;
        match class {
            Given::Forced => Self::Forced,
            Given::New => Self::New,
            Given::Rebuild => Self::Rebuild,
        }
    }
}

/// What came out.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Skip,
    Success,
    Warning,
    Error,
    Abort,
    Abnormal,
    Interrupt,
}

impl From<bbot_manifest::Status> for Status {
    fn from(status: bbot_manifest::Status) -> Self {
        use bbot_manifest::Status as Given;
        match status {
            Given::Skip => Self::Skip,
            Given::Success => Self::Success,
            Given::Warning => Self::Warning,
            Given::Error => Self::Error,
            Given::Abort => Self::Abort,
            Given::Abnormal => Self::Abnormal,
            Given::Interrupt => Self::Interrupt,
        }
    }
}

impl From<Status> for bbot_manifest::Status {
    fn from(status: Status) -> Self {
        match status {
            Status::Skip => Self::Skip,
            Status::Success => Self::Success,
            Status::Warning => Self::Warning,
            Status::Error => Self::Error,
            Status::Abort => Self::Abort,
            Status::Abnormal => Self::Abnormal,
            Status::Interrupt => Self::Interrupt,
        }
    }
}

/// The toolchain of an agent.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Toolchain {
    pub(super) name: String,
    pub(super) version: String,
}

/// A machine beside the one that a build is built on.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuxiliaryMachine {
    /// The name of its environment; may be empty.
    name: String,
    machine: String,
}

impl AuxiliaryMachine {
    fn all(all: &[store::AuxiliaryMachine]) -> Vec<Self> {
        let shown = |auxiliary: &store::AuxiliaryMachine| Self {
            name: auxiliary.name.clone(),
            machine: auxiliary.machine.clone(),
        };
        all.iter().map(shown).collect()
    }
}

/// A service that submits packages.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    /// What kind of service: agents may ask for builds by it.
    #[serde(rename = "type")]
    #[schema(
        min_length = 1,
        max_length = 64,
        pattern = "^[A-Za-z0-9_+.-]+$",
        example = "forge"
    )]
    pub(super) kind: String,
    /// What the service calls this submission.
    #[schema(
        min_length = 1,
        max_length = 256,
        pattern = "^[!-~]+$",
        example = "push-17"
    )]
    pub(super) id: String,
}

impl From<Service> for store::Service {
    fn from(service: Service) -> Self {
        Self {
            kind: service.kind,
            id: service.id,
        }
    }
}

/// An operation of a result, without its log.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Operation {
    /// Name, such as `update`.
    name: String,
    /// Its status; several words where the result says so.
    status: String,
    /// Length of its log.
    log_bytes: u64,
}

/// Operations as they are shown.
fn operations(all: &[store::Operation]) -> Vec<Operation> {
    all.iter()
        .map(|o| Operation {
            name: o.name.clone(),
            status: o.status.clone(),
            log_bytes: o.log_bytes,
        })
        .collect()
}

/// One package version in one configuration.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Build {
    id: Id,
    /// The submission that it came with.
    submission: Id,
    package: String,
    version: String,
    configuration: String,
    target: String,
    /// Name of the package configuration.
    package_configuration: String,
    /// The machine that it is or was built on.
    machine: Option<String>,
    machine_summary: Option<String>,
    /// The auxiliary machines that are or were beside it.
    auxiliary_machines: Vec<AuxiliaryMachine>,
    toolchain: Option<Toolchain>,
    /// The agent that has or had it.
    agent: Option<String>,
    state: State,
    /// Only when it is built.
    status: Option<Status>,
    /// Why it is queued, or was.
    class: Class,
    /// How urgent it is within its class.
    #[schema(minimum = -2, maximum = 2)]
    priority: i64,
    /// Who it was queued by.
    submitter: String,
    /// Where it stops for a person to log in; null when it does not.
    breakpoint: Option<String>,
    /// How they do, while it is building.
    login: Option<String>,
    /// The type of the service that it is of.
    service: Option<String>,
    /// Patterns of the auxiliary machines that it wants, by the names of their environments.
    auxiliaries: BTreeMap<String, String>,
    /// Fingerprints of the keys of the custom bots that alone build it; empty: any agent.
    bots: Vec<String>,
    /// When it was last queued by a person.
    queued: Time,
    /// When its task was last handed out.
    started: Option<Time>,
    finished: Option<Time>,
    /// When it was last built, or found to be as it would be built; null also for what is not rebuilt by itself any more.
    checked: Option<Time>,
    /// Until when the agent has it, unless it renews that.
    lease_until: Option<Time>,
    /// Why a rebuild was asked for.
    reason: Option<String>,
    /// Whether it is queued again once the result is there that is under way.
    rebuild_asked: bool,
    /// The number of results so far.
    attempt: i64,
    /// The run (one handing out of its task) that is under way or was the last.
    run: Option<i64>,
    /// How often its task was given back since it was queued by a person.
    interrupts: u32,
    /// How often the lease of its task has lapsed since then.
    lapses: u32,
    /// Hosts on which its machine failed since then before its worker asked for anything, with how often.
    machine_failures: BTreeMap<String, usize>,
    /// What the last attempt gave, while the next is on its way.
    previous_status: Option<Status>,
    /// Of the result; empty until there is one.
    operations: Vec<Operation>,
    /// Its page.
    url: String,
}

impl Build {
    /// Status, end and operations are those of its result: as long as it is not built they are not known yet, whatever an
    /// earlier attempt gave.
    pub(super) fn of(build: &store::Build, base: &str) -> Self {
        let built = build.state == queue::State::Built;
        let begun = build.is_begun();
        let status = build.status.map(Status::from);
        let toolchain = build
            .toolchain_name
            .clone()
            .zip(build.toolchain_version.clone());
        Self {
            id: Id(build.id),
            submission: Id(build.submission),
            package: build.package.clone(),
            version: build.version.clone(),
            configuration: build.configuration.clone(),
            target: build.target.clone(),
            package_configuration: build.package_configuration.clone(),
            machine: build.machine.clone().filter(|_| begun),
            machine_summary: build.machine_summary.clone().filter(|_| begun),
            auxiliary_machines: if begun {
                AuxiliaryMachine::all(&build.auxiliaries)
            } else {
                Vec::new()
            },
            toolchain: toolchain
                .filter(|_| begun)
                .map(|(name, version)| Toolchain { name, version }),
            agent: build.agent.clone().filter(|_| begun),
            state: build.state.into(),
            status: status.filter(|_| built),
            class: build.class.into(),
            priority: build.priority.number(),
            submitter: build.submitter.clone(),
            breakpoint: build.breakpoint.clone(),
            login: build.login_now().map(str::to_owned),
            service: build.lane.service.clone(),
            auxiliaries: build.lane.auxiliaries.clone(),
            bots: build.lane.keys.iter().cloned().collect(),
            queued: Time(build.queued),
            started: build.started.filter(|_| begun).map(Time),
            finished: build.finished.filter(|_| build.state.is_over()).map(Time),
            checked: build.checked.filter(|_| built).map(Time),
            lease_until: build.lease_until.map(Time),
            reason: build.reason.clone(),
            rebuild_asked: build.again,
            attempt: build.attempt,
            run: build.run,
            interrupts: build.interrupts,
            lapses: build.lapses,
            machine_failures: build
                .failures
                .by_host()
                .into_iter()
                .map(|(host, times)| (host.to_owned(), times))
                .collect(),
            previous_status: status.filter(|_| !built),
            operations: if built {
                operations(&build.operations)
            } else {
                Vec::new()
            },
            url: format!("{base}/builds/{}", build.id),
        }
    }
}

/// A build with its last attempts, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BuildWithAttempts {
    #[serde(flatten)]
    build: Build,
    /// Why it waits, when it does.
    waits: Option<Waits>,
    attempts: Vec<Attempt>,
    /// What the run that is under way or was the last has made beside its result.
    artifacts: Vec<Artifact>,
}

/// What a build has made beside its result.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Artifact {
    /// What it is, such as `bindist`.
    #[serde(rename = "type")]
    kind: String,
    /// What its file is called.
    name: String,
    /// Which of several of its type, as its agent says; may be empty.
    instance: String,
    sha256: String,
    bytes: u64,
    uploaded: Time,
    /// Where it can be had.
    url: String,
}

impl Artifact {
    fn of(artifact: &store::Artifact, base: &str) -> Self {
        Self {
            url: format!(
                "{base}/builds/{}/artifacts/{}",
                artifact.build, artifact.sha256
            ),
            kind: artifact.kind.clone(),
            name: artifact.name.clone(),
            instance: artifact.instance.clone(),
            sha256: artifact.sha256.clone(),
            bytes: artifact.bytes,
            uploaded: Time(artifact.uploaded),
        }
    }
}

impl BuildWithAttempts {
    pub(super) fn of(
        build: &store::Build,
        attempts: &[store::Attempt],
        waits: Option<waits::Waits>,
        artifacts: &[store::Artifact],
        base: &str,
    ) -> Self {
        Self {
            artifacts: artifacts.iter().map(|a| Artifact::of(a, base)).collect(),
            build: Build::of(build, base),
            waits: waits.map(Waits::of),
            attempts: attempts.iter().map(Attempt::of).collect(),
        }
    }
}

/// What keeps a build from an agent.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum WaitsFor {
    Next,
    Busy,
    Drained,
    NotApproved,
    Avoided,
    Unknown,
    Silent,
    Era,
    NoInteractive,
    NoAuxiliary,
    NoService,
    NoBot,
    NoMachine,
    NoAgent,
    NoConfiguration,
}

impl From<Code> for WaitsFor {
    fn from(code: Code) -> Self {
        match code {
            Code::Next => Self::Next,
            Code::Busy => Self::Busy,
            Code::Drained => Self::Drained,
            Code::Unapproved => Self::NotApproved,
            Code::Avoided => Self::Avoided,
            Code::Unknown => Self::Unknown,
            Code::Silent => Self::Silent,
            Code::Era => Self::Era,
            Code::Interactive => Self::NoInteractive,
            Code::Auxiliary => Self::NoAuxiliary,
            Code::Service => Self::NoService,
            Code::Bot => Self::NoBot,
            Code::NoMachine => Self::NoMachine,
            Code::NoAgent => Self::NoAgent,
            Code::NoConfiguration => Self::NoConfiguration,
        }
    }
}

/// Why a build waits, as this controller knows the agents.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Waits {
    code: WaitsFor,
    /// The same for people.
    sentence: String,
    /// How many agents it is said of.
    agents: usize,
    /// How many builds go before it in its configuration.
    before: usize,
    /// Whether there are more than that: they are counted up to a hundred.
    more: bool,
}

impl Waits {
    fn of(waits: waits::Waits) -> Self {
        let (before, more) = match waits.why.before {
            Before::Exactly(before) => (before, false),
            Before::MoreThan(before) => (before, true),
        };
        Self {
            code: waits.why.code.into(),
            sentence: waits.sentence,
            agents: waits.why.agents,
            before,
            more,
        }
    }
}

/// A result of a build.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Attempt {
    /// 1, 2, 3...
    number: i64,
    status: Status,
    agent: Option<String>,
    machine: Option<String>,
    /// Those that were beside it.
    auxiliary_machines: Vec<AuxiliaryMachine>,
    toolchain_version: Option<String>,
    started: Option<Time>,
    finished: Time,
    /// Whether it came after its lease had lapsed.
    late: bool,
    operations: Vec<Operation>,
}

impl Attempt {
    pub(super) fn of(attempt: &store::Attempt) -> Self {
        Self {
            number: attempt.number,
            status: attempt.status.into(),
            agent: attempt.agent.clone(),
            machine: attempt.machine.clone(),
            auxiliary_machines: AuxiliaryMachine::all(&attempt.auxiliaries),
            toolchain_version: attempt.toolchain_version.clone(),
            started: attempt.started.map(Time),
            finished: Time(attempt.finished),
            late: attempt.late,
            operations: operations(&attempt.operations),
        }
    }
}

/// What was submitted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Submission {
    id: Id,
    name: String,
    version: String,
    source: Source,
    submitted: Time,
    /// Who it is of.
    submitter: String,
    /// How urgent it is to them.
    #[schema(minimum = -2, maximum = 2)]
    priority: i64,
    /// The service that it is of.
    service: Option<Service>,
    /// Its page.
    url: String,
}

impl Submission {
    pub(super) fn of(submission: &store::Submission, base: &str) -> Self {
        Self {
            id: Id(submission.id),
            name: submission.name.clone(),
            version: submission.version.clone(),
            source: submission.source.clone(),
            submitted: Time(submission.submitted),
            submitter: submission.submitter.clone(),
            priority: submission.priority.number(),
            service: submission.service.clone().map(|service| Service {
                kind: service.kind,
                id: service.id,
            }),
            url: format!("{base}/submissions/{}", submission.id),
        }
    }
}

/// A submission of which builds were cancelled.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CancelledSubmission {
    #[serde(flatten)]
    pub(super) submission: SubmissionWithBuilds,
    /// The builds that were queued or building until then.
    pub(super) cancelled: Vec<Id>,
}

/// A submission with its builds, in the order of the buildtab: 500 of them at most.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SubmissionWithBuilds {
    #[serde(flatten)]
    submission: Submission,
    builds: Vec<Build>,
    /// `after` of the submission's next page; null at the end.
    next: Option<String>,
    /// The builds that it has not: with the first page of its builds, and 500 of them at most.
    excluded: Vec<Excluded>,
    /// `after` of the list of those that follow; null when these are all.
    excluded_next: Option<String>,
}

impl SubmissionWithBuilds {
    pub(super) fn of(
        submission: &store::Submission,
        (builds, next): (&[store::Build], Option<i64>),
        excluded: Vec<Excluded>,
        base: &str,
    ) -> Self {
        let ExcludedPage {
            excluded,
            next: excluded_next,
        } = ExcludedPage::of(excluded, 0);
        Self {
            excluded_next,
            submission: Submission::of(submission, base),
            builds: builds.iter().map(|b| Build::of(b, base)).collect(),
            next: next.map(|next| next.to_string()),
            excluded,
        }
    }
}
