//! What the agent tells of itself: plain data, the same for the page of `bbot agent
//! status`, for its `--json`, and for the metrics.
//!
//! A point in time is a [`Moment`]: seconds since the agent's start, on the
//! monotonic clock, so that neither a jump of the clock nor a suspended host makes a
//! task ten years old. [`Status::uptime`] is "now" on that scale; [`Status::started`]
//! ties it to the wall clock, for people.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point in time: seconds since the agent's start, to the millisecond.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub f64);

impl Moment {
    /// How long before `now` this was; zero when it lies ahead.
    pub fn before(self, now: Moment) -> Duration {
        span(now.0 - self.0)
    }

    /// How long after `now` this will be; zero when it is over.
    pub fn after(self, now: Moment) -> Duration {
        span(self.0 - now.0)
    }
}

impl From<Duration> for Moment {
    fn from(since_start: Duration) -> Self {
        Moment((since_start.as_secs_f64() * 1000.0).round() / 1000.0)
    }
}

/// What comes over a socket may be any number.
fn span(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default()
}

/// All that an agent tells of itself.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The agent's name, as the controllers are told.
    pub agent: String,
    /// The name of its toolchain.
    pub toolchain: String,
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// When it was started: seconds since 1970, by the wall clock of that time.
    pub started: u64,
    /// Now. The server sets it when it answers.
    pub uptime: Moment,
    /// Whether it takes tasks.
    pub mode: Mode,
    /// How many machines may run at once.
    pub slots: Slots,
    /// What the machines may use of the host.
    pub budgets: Budgets,
    /// The machines, by name.
    pub machines: Vec<Machine>,
    /// What runs, the oldest first.
    pub runs: Vec<Run>,
    /// The controllers, in the order of the command line.
    pub controllers: Vec<Controller>,
    /// The results that are not taken yet.
    pub spool: Spool,
    /// The machines that are kept for a person.
    pub suspended: Vec<Suspended>,
    /// What the host has left.
    pub resources: Resources,
    /// The last [`ERRORS`] errors and warnings, the oldest first.
    pub errors: Vec<Trouble>,
    /// What has happened since the start.
    pub counters: Counters,
}

/// How many of the last errors are told.
pub const ERRORS: usize = 20;

impl Status {
    /// Keeps an error, and forgets the oldest when there are too many.
    pub fn remember(&mut self, trouble: Trouble) {
        if self.errors.len() >= ERRORS {
            self.errors.drain(..=self.errors.len() - ERRORS);
        }
        self.errors.push(trouble);
    }
}

/// Whether the agent takes tasks.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Mode {
    /// It is not ready yet.
    #[default]
    Starting,
    /// It takes tasks.
    Running,
    /// It takes none; what runs may finish.
    Draining {
        /// When what runs is interrupted; absent: never.
        until: Option<Moment>,
    },
    /// It ends.
    Stopping {
        /// When what runs is interrupted.
        until: Option<Moment>,
    },
}

impl Mode {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Mode::Starting => "starting",
            Mode::Running => "running",
            Mode::Draining { .. } => "draining",
            Mode::Stopping { .. } => "stopping",
        }
    }
}

/// How many machines may run at once (`--instance-max`), and do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Slots {
    /// There are so many.
    pub total: u32,
    /// So many are in use, by tasks and bootstraps.
    pub used: u32,
}

/// What the machines may use of the host, and do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Budgets {
    /// Virtual processors that may be given out; 0: no bound.
    pub cpus: u32,
    /// Virtual processors that are.
    pub cpus_used: u32,
    /// Memory in KiB that may be given out.
    pub ram_kib: u64,
    /// Memory in KiB that is, suspended machines' too.
    pub ram_kib_used: u64,
}

/// A machine of the inventory.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its kind, as its manifest has it: `kvm`, `nspawn`.
    pub kind: String,
    /// What it can be used for.
    pub state: MachineState,
    /// Whether its tasks go on from its saved memory, and do not boot.
    pub warm: bool,
    /// How many of it are restored, or started where it is a container, and wait for a task.
    pub prepared: u64,
}

/// What a machine can be used for.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum MachineState {
    /// Builds.
    #[default]
    Usable,
    /// It waits for its bootstrap.
    MustBootstrap {
        /// Why.
        why: String,
    },
    /// It is being bootstrapped.
    Bootstrapping {
        /// Why.
        why: String,
    },
    /// It failed and is left alone for a while.
    BackingOff {
        /// What failed.
        why: String,
        /// When it is tried again.
        until: Moment,
    },
    /// Nothing, until somebody mends it.
    Bad {
        /// What is wrong.
        problem: String,
    },
}

impl MachineState {
    /// The word for it.
    pub fn word(&self) -> &'static str {
        match self {
            MachineState::Usable => "usable",
            MachineState::MustBootstrap { .. } => "must-bootstrap",
            MachineState::Bootstrapping { .. } => "bootstrapping",
            MachineState::BackingOff { .. } => "backing-off",
            MachineState::Bad { .. } => "bad",
        }
    }

    /// Why it is so.
    pub fn why(&self) -> &str {
        match self {
            MachineState::Usable => "",
            MachineState::MustBootstrap { why }
            | MachineState::Bootstrapping { why }
            | MachineState::BackingOff { why, .. } => why,
            MachineState::Bad { problem } => problem,
        }
    }
}

/// A task or a bootstrap that runs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// The run's number.
    pub id: u64,
    /// What it does.
    pub what: RunKind,
    /// The machine.
    pub machine: String,
    /// What it does now.
    pub phase: Phase,
    /// When it began.
    pub since: Moment,
    /// When its phase is over at the latest.
    pub timeout_at: Option<Moment>,
    /// Virtual processors of its machine.
    pub cpus: u32,
    /// Memory of its machine in KiB.
    pub ram_kib: u64,
}

/// What a run does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum RunKind {
    /// Bootstraps its machine.
    #[default]
    Bootstrap,
    /// Saves its machine with its memory.
    Saving,
    /// A task.
    Task {
        /// The package's name.
        name: String,
        /// Its version.
        version: String,
        /// The task's session with its controller.
        session: String,
        /// The controller's URL.
        controller: String,
    },
}

/// What a run does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Its source is fetched.
    #[default]
    Preparing,
    /// Its machine is copied.
    Copying,
    /// Its machine has been started and has not asked for anything yet.
    Booting,
    /// The guest works.
    Working,
    /// Its machine is shut down and put away.
    Ending,
}

impl Phase {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Preparing => "preparing",
            Phase::Copying => "copying",
            Phase::Booting => "booting",
            Phase::Working => "working",
            Phase::Ending => "ending",
        }
    }
}

/// A controller.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Controller {
    /// Its URL.
    pub url: String,
    /// Its priority, as given: `[F]DCBA`, or empty.
    pub priority: String,
    /// Whether it is one of ours; absent: it has not answered yet.
    pub ours: Option<bool>,
    /// Whether it is being asked now.
    pub asking: bool,
    /// When it last answered, and what in a word: `nothing`, `task`, `refused` (what is of
    /// no use).
    pub last_answer: Option<(Moment, String)>,
    /// What is wrong with it.
    pub trouble: Option<String>,
    /// When it is asked next at the earliest.
    pub next_ask: Option<Moment>,
}

/// The results and log segments that are not taken yet.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Spool {
    /// Results that wait.
    pub waiting: u64,
    /// Log segments that wait.
    pub segments: u64,
    /// Their size on disk in bytes.
    pub bytes: u64,
    /// When the oldest was written: seconds since 1970.
    pub oldest: Option<u64>,
    /// When the next one is tried.
    pub next_try: Option<Moment>,
    /// Why those of a controller (its origin) are not taken.
    pub errors: BTreeMap<String, String>,
    /// Results that were refused for good, and are kept aside.
    pub refused: u64,
}

/// A machine that is kept for a person.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Suspended {
    /// Its id, for `bbot machine attach`.
    pub id: String,
    /// The machine's name.
    pub machine: String,
    /// What failed.
    pub why: String,
    /// Since when.
    pub since: Moment,
    /// When it is ended at the latest.
    pub until: Moment,
    /// Its memory in KiB.
    pub ram_kib: u64,
    /// Whether it goes on, since somebody has resumed it.
    pub resumed: bool,
    /// How to reach it.
    pub reach: Attachment,
}

/// How a person reaches a machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Attachment {
    /// UNIX socket of its serial console: raw bytes both ways.
    pub console: Option<PathBuf>,
    /// UNIX socket of its screen: VNC (RFB).
    pub screen: Option<PathBuf>,
    /// The command that opens a shell in it: a container.
    pub command: Option<Vec<String>>,
    /// What the machine tells of itself, for people.
    pub info: String,
}

/// What the host has left.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// How bad it is.
    pub level: crate::resources::Level,
    /// Why, each with how to mend it.
    pub reasons: Vec<String>,
    /// What was measured, and when.
    pub facts: crate::resources::Facts,
}

/// An error or a warning that was told.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Trouble {
    /// When, since the agent's start.
    pub at: Moment,
    /// When, in seconds since 1970.
    pub time: u64,
    /// `error` or `warning`.
    pub level: String,
    /// What.
    pub message: String,
}

/// What has happened since the agent's start. Numbers only grow.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Tasks that ended, by status.
    pub tasks: BTreeMap<String, u64>,
    /// Tasks that were given back unfinished.
    pub given_back: u64,
    /// Bootstraps that succeeded.
    pub bootstraps: u64,
    /// Bootstraps that failed.
    pub bootstraps_failed: u64,
    /// Machines that gave no sign of life in time.
    pub misboots: u64,
    /// Runs that were interrupted.
    pub interrupts: u64,
    /// Machines that were kept for a person.
    pub suspensions: u64,
    /// Runs that failed because the host ran out of something.
    pub host_failures: u64,
    /// Requests for a task, by outcome: `nothing`, `task`, `refused`, `failed`.
    pub asks: BTreeMap<String, u64>,
    /// Results that a controller has taken.
    pub results_taken: u64,
    /// Results that were refused for good.
    pub results_refused: u64,
    /// Attempts to send that failed and are made again.
    pub sends_failed: u64,
    /// How long a request for a task took that was not held, in seconds.
    pub ask_seconds: Histogram,
    /// How long from a task's arrival to the guest's first request, in seconds.
    pub pickup_seconds: Histogram,
    /// How long a task's run took, in seconds.
    pub run_seconds: Histogram,
}

impl Counters {
    /// One more in one of the counters that are kept by a word.
    pub fn count(counters: &mut BTreeMap<String, u64>, word: &str) {
        match counters.get_mut(word) {
            Some(count) => *count += 1,
            None => {
                counters.insert(word.to_owned(), 1);
            }
        }
    }
}

/// The upper bounds of a histogram's buckets, in seconds: from a restored machine to
/// a build that takes hours.
pub const BUCKETS: [f64; 12] = [
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0, 3600.0,
];

/// How a duration is distributed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Histogram {
    /// How many were at most [`BUCKETS`] long and longer than the bucket before.
    pub buckets: [u64; BUCKETS.len()],
    /// How many there were.
    pub count: u64,
    /// Their sum in seconds.
    pub sum: f64,
}

impl Histogram {
    /// One more.
    pub fn record(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        if let Some(bucket) = BUCKETS.iter().position(|&bound| seconds <= bound) {
            self.buckets[bucket] += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_errors_are_kept() {
        let mut status = Status::default();
        for number in 0..50 {
            status.remember(Trouble {
                message: number.to_string(),
                ..Trouble::default()
            });
        }
        assert_eq!(status.errors.len(), ERRORS);
        assert_eq!(status.errors[0].message, "30");
        assert_eq!(status.errors[ERRORS - 1].message, "49");
    }

    #[test]
    fn a_status_survives_json_and_unknown_fields() {
        let mut status = Status {
            mode: Mode::Draining {
                until: Some(Moment(7.5)),
            },
            ..Status::default()
        };
        status
            .counters
            .ask_seconds
            .record(Duration::from_millis(70));
        Counters::count(&mut status.counters.tasks, "success");
        status.machines.push(Machine {
            name: "m".to_owned(),
            kind: "kvm".to_owned(),
            state: MachineState::BackingOff {
                why: "w".to_owned(),
                until: Moment(1.0),
            },
            ..Machine::default()
        });
        let text = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
        let newer = text.replacen('{', "{\"of_tomorrow\": [1], ", 1);
        assert_eq!(serde_json::from_str::<Status>(&newer).unwrap(), status);
    }

    #[test]
    fn durations_go_into_their_bucket() {
        let mut histogram = Histogram::default();
        for milliseconds in [0, 50, 51, 3_600_000, 3_600_001] {
            histogram.record(Duration::from_millis(milliseconds));
        }
        assert_eq!(histogram.buckets[0], 2);
        assert_eq!(histogram.buckets[1], 1);
        assert_eq!(histogram.buckets[11], 1);
        assert_eq!(histogram.count, 5);
    }

    #[test]
    fn any_number_is_a_moment() {
        let now = Moment(10.0);
        assert_eq!(Moment(4.0).before(now), Duration::from_secs(6));
        assert_eq!(Moment(4.0).after(now), Duration::ZERO);
        assert_eq!(Moment(f64::INFINITY).after(now), Duration::ZERO);
        assert_eq!(Moment(f64::NAN).before(now), Duration::ZERO);
    }
}
