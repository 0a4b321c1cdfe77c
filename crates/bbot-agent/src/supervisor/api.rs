//! What the supervisor and its driver say to each other: plain data.

use std::fmt;
use std::time::Duration;

use bbot_manifest::Status;

use super::priority::Priority;
pub use crate::controller::Kin;

/// A moment: the time since the agent's start, monotonic.
pub type Time = Duration;

/// What the operator wants, as far as the supervisor decides by it.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Most machines that run at once, bootstraps included; 0: no bound.
    pub slots: u32,
    /// Processors of one machine (`--cpu`).
    pub cpus: u32,
    /// Memory of one machine in KiB (`--ram`); its manifest may raise or bound it.
    pub ram_kib: u64,
    /// Processors for all machines together; `None`: no bound.
    pub cpu_budget: Option<u32>,
    /// Memory for all machines together in KiB; `None`: no bound. Suspended ones have what is left.
    pub ram_budget: Option<u64>,
    /// Processors of the host: what a boosted task gets.
    pub host_cpus: u32,
    /// Whom to ask.
    pub controllers: Vec<ControllerConfig>,
    /// The longest that a controller of ours is asked to hold a request.
    pub hold: Duration,
    /// The pause when there is nothing to do; `None`: by whose the controllers are.
    pub idle_pause: Option<Duration>,
}

/// A controller on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerConfig {
    /// Its URL, without the priority: its name here.
    pub url: String,
    /// Its priority.
    pub priority: Priority,
}

/// A request for a task that is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// A machine that runs, for a task or to be bootstrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u64);

impl fmt::Display for AskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ask {}", self.0)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run {}", self.0)
    }
}

/// A machine as the inventory sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineView {
    /// Its name, unique on the host.
    pub name: String,
    /// Its id and the toolchain's: another one is another try for a machine that failed.
    pub identity: String,
    /// The least memory that it runs with, KiB.
    pub ram_minimum: Option<u64>,
    /// The most memory that it gets, KiB.
    pub ram_maximum: Option<u64>,
    /// What can be done with it.
    pub state: MachineState,
    /// Whether it may run once only at a time: its copies would meet on a bridge.
    pub exclusive: bool,
    /// What it is, for people: `kvm`, `nspawn`.
    pub kind: String,
    /// It can be used, and would start sooner once it is saved with its memory.
    pub cold: bool,
}

/// What can be done with a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineState {
    /// Tasks can run on it.
    Usable,
    /// It must be bootstrapped first.
    MustBootstrap {
        /// Why, for people.
        why: String,
    },
    /// Nothing, before somebody mends it.
    Bad {
        /// What is wrong, and where.
        problem: String,
    },
}

/// Whether the host has room for new work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostState {
    /// It has.
    Ok,
    /// Disk, memory, file handles or pids run short: which. Another text is another shortage, and told: no
    /// figures that change all the time.
    Low(String),
}

/// A controller's answer to [`Action::Ask`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It has no task.
    Nothing,
    /// A task for this machine. The driver keeps it under the number of the request.
    Task {
        /// The machine's name.
        machine: String,
    },
    /// It answered, and the answer is of no use: why.
    Refused(String),
    /// It did not answer: why. Also the answer of a request that was given up ([`Action::CancelAsk`]).
    Failed(String),
}

/// How a task's run ended. Its machine is gone and its result, if it has one, is in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There is a result with this status.
    Done(Status),
    /// The machine could not be run or never came up, which is its own fault.
    MachineFailed,
    /// What the task needs could not be fetched from its controller.
    LinkFailed {
        /// Whether it may be better in a while.
        passing: bool,
    },
    /// The host is at fault: no other task would do better now.
    HostFailed,
    /// Its machine filled the room that its disk had on the host, and the room is back since the machine
    /// is deleted: another task may do better at once.
    RoomFilled,
    /// It was interrupted.
    Interrupted,
}

impl Outcome {
    /// Whether another run may do better, so that the task goes back to its controller in
    /// place of an `abort`: what kept it from being done was not the build.
    ///
    /// A machine that does not come up may be what the task's controller wants to hear of,
    /// as ever; ours queues the task again, and bounds how often. So it is with one that filled the
    /// room of its disk: without a bound it would go round for ever.
    pub fn gives_back(self, kin: Kin, knows_interrupt: bool) -> bool {
        match self {
            Self::Done(_) | Self::LinkFailed { passing: false } => false,
            Self::HostFailed | Self::LinkFailed { passing: true } | Self::Interrupted => {
                knows_interrupt
            }
            Self::MachineFailed | Self::RoomFilled => kin == Kin::Ours,
        }
    }
}

/// How a bootstrap ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootstrapOutcome {
    /// The machine can be used (the next enumeration says so).
    Done,
    /// It failed: why.
    Failed(String),
    /// It was interrupted, or overtaken by a new revision.
    Interrupted,
}

/// What happens to the agent.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The time of [`super::Supervisor::next_deadline`] has come.
    Tick,
    /// What machines there are: the answer to [`Action::Enumerate`].
    Enumerated(Vec<MachineView>),
    /// Whether changes of the machines are told from now on: then they need not be looked at to find out.
    Watched(bool),
    /// Something has changed about the machines, or may have.
    MachinesChanged,
    /// What a controller answered.
    Answered {
        /// The request.
        ask: AskId,
        /// The answer.
        answer: Answer,
        /// Whose controller it is, where it said so.
        kin: Option<Kin>,
    },
    /// A task's run ended.
    RunEnded {
        /// Which.
        run: RunId,
        /// How.
        outcome: Outcome,
    },
    /// A bootstrap ended.
    BootstrapEnded {
        /// Which.
        run: RunId,
        /// How.
        outcome: BootstrapOutcome,
    },
    /// What the host has left.
    Resources(HostState),
    /// No new work; what runs may go on until the deadline; then exit.
    Drain {
        /// Until when.
        deadline: Time,
    },
    /// On with the work.
    Undrain,
    /// End everything now; then exit.
    Stop,
    /// The configuration was read again. What runs goes on as it began.
    Reload(Config),
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Look what machines there are.
    Enumerate,
    /// Ask a controller for a task.
    Ask {
        /// The number of the request, and of the task that it may bring.
        ask: AskId,
        /// The controller's URL.
        controller: String,
        /// The machines that are offered.
        machines: Vec<String>,
        /// For how long the controller may hold the request.
        hold: Duration,
        /// Without an answer within this time it has failed, since others wait for their turn; `None`: as long
        /// as a request may take at all.
        within: Option<Duration>,
    },
    /// Give the request up. It must still be answered: by [`Answer::Failed`], or by what came before.
    CancelAsk {
        /// Which.
        ask: AskId,
    },
    /// Run the task that a request brought.
    StartTask {
        /// The new run.
        run: RunId,
        /// The request that brought it.
        ask: AskId,
        /// The machine.
        machine: String,
        /// Its processors.
        cpus: u32,
        /// Its memory, KiB.
        ram_kib: u64,
    },
    /// Give the task that a request brought back to its controller (`interrupt`).
    GiveBack {
        /// The request that brought it.
        ask: AskId,
        /// Why, for people.
        why: String,
    },
    /// Bootstrap a machine; one that can be used is saved with its memory.
    StartBootstrap {
        /// The new run.
        run: RunId,
        /// The machine.
        machine: String,
        /// Its processors.
        cpus: u32,
        /// Its memory, KiB.
        ram_kib: u64,
    },
    /// End a run's machine now; a task's result is `interrupt`. The run still ends by its event.
    Interrupt {
        /// Which.
        run: RunId,
        /// Why, for people.
        why: String,
    },
    /// Everything has ended.
    Exit,
    /// Tell people.
    Report(Report),
}

/// What people are told, once each time it becomes so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// A machine failed and is left alone for a while.
    MachineBackedOff {
        /// Its name.
        machine: String,
        /// For how long.
        pause: Duration,
        /// Why.
        why: String,
    },
    /// Something is wrong with a machine.
    MachineProblem {
        /// Its name.
        machine: String,
        /// What.
        problem: String,
    },
    /// What was wrong with a machine is mended.
    MachineMended {
        /// Its name.
        machine: String,
    },
    /// A controller does not do what it should; it is left alone for a while.
    ControllerTrouble {
        /// Its URL.
        controller: String,
        /// What is wrong.
        why: String,
        /// For how long.
        pause: Duration,
    },
    /// It does again.
    ControllerAnswers {
        /// Its URL.
        controller: String,
    },
    /// The host failed a task: no work is taken for a while.
    HostTrouble {
        /// For how long.
        pause: Duration,
    },
    /// No new task is asked for, and why.
    Idle {
        /// Why.
        why: IdleReason,
    },
    /// There can be work again.
    Working,
}

/// Why there can be no new work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdleReason {
    /// There is no machine at all.
    NoMachines,
    /// There are machines, and none can be used.
    NothingUsable,
    /// The host has run short of something.
    HostLow(String),
    /// The host failed a task.
    HostFailed,
    /// The agent ends when what runs has ended.
    Draining,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MachineBackedOff {
                machine,
                pause,
                why,
            } => write!(
                f,
                "machine {machine}: left alone for {} s: {why}",
                pause.as_secs()
            ),
            Self::MachineProblem { machine, problem } => {
                write!(f, "machine {machine}: {problem}")
            }
            Self::MachineMended { machine } => write!(f, "machine {machine}: in order again"),
            Self::ControllerTrouble {
                controller,
                why,
                pause,
            } => write!(
                f,
                "controller {controller}: {why}; not asked for {} s",
                pause.as_secs()
            ),
            Self::ControllerAnswers { controller } => {
                write!(f, "controller {controller} answers again")
            }
            Self::HostTrouble { pause } => write!(
                f,
                "the host failed a task: no work is taken for {} s",
                pause.as_secs()
            ),
            Self::Idle { why } => write!(f, "{why}"),
            Self::Working => f.write_str("tasks are asked for again"),
        }
    }
}

impl fmt::Display for IdleReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMachines => f.write_str("no build machines"),
            Self::NothingUsable => f.write_str("no build machine can be used now"),
            Self::HostLow(what) => write!(f, "no new work: {what}"),
            Self::HostFailed => f.write_str("no new work: the host failed a task"),
            Self::Draining => f.write_str("no new work: the agent is about to end"),
        }
    }
}

/// What the agent is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It works.
    Running,
    /// It ends when what runs has ended, at the latest at this time.
    Draining {
        /// When what still runs is interrupted.
        deadline: Time,
    },
    /// It ends.
    Stopping,
    /// It has ended.
    Ended,
}

/// How things stand: plain data for the status.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// What the agent is about.
    pub mode: Mode,
    /// Most machines at once; 0: no bound.
    pub slots: u32,
    /// Machines that run.
    pub slots_used: u32,
    /// Processors for all machines.
    pub cpu_budget: Option<u32>,
    /// Processors of those that run.
    pub cpus_used: u32,
    /// Memory for all machines, KiB.
    pub ram_budget: Option<u64>,
    /// Memory of those that run, KiB.
    pub ram_used: u64,
    /// Why no new task is asked for, if so.
    pub idle: Option<IdleReason>,
    /// The controller that is being asked.
    pub asking: Option<String>,
    /// The machines.
    pub machines: Vec<MachineStatus>,
    /// What runs.
    pub runs: Vec<RunView>,
    /// The controllers.
    pub controllers: Vec<ControllerView>,
}

/// A machine in a [`View`].
#[derive(Debug, Clone, PartialEq)]
pub struct MachineStatus {
    /// What the inventory says.
    pub machine: MachineView,
    /// How many of it run.
    pub running: u32,
    /// Whether it is being bootstrapped.
    pub bootstrapping: bool,
    /// Until when it is left alone since it failed.
    pub backed_off_until: Option<Time>,
    /// How often in a row it failed.
    pub failures: u32,
}

/// A run in a [`View`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunView {
    /// Its number.
    pub run: RunId,
    /// Its machine.
    pub machine: String,
    /// The request that brought its task; `None`: a bootstrap.
    pub ask: Option<AskId>,
    /// Its processors.
    pub cpus: u32,
    /// Its memory, KiB.
    pub ram_kib: u64,
    /// Since when it runs.
    pub since: Time,
    /// Whether it was told to end.
    pub interrupted: bool,
}

/// A controller in a [`View`].
#[derive(Debug, Clone, PartialEq)]
pub struct ControllerView {
    /// Its URL.
    pub url: String,
    /// Its priority.
    pub priority: Priority,
    /// Whose it is, as far as known.
    pub kin: Kin,
    /// What is wrong with it.
    pub trouble: Option<String>,
    /// How often in a row it was in trouble.
    pub failures: u32,
    /// When it can be asked again.
    pub next: Time,
}
