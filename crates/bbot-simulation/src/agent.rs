//! An agent: the real supervisor and the real plan of deliveries, and a driver around them that plays what the real
//! one does. The spool and the machines are on its disk; all else is gone when it crashes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bbot_agent::delivery::plan::Plan;
use bbot_agent::supervisor::{
    Config, ControllerConfig, MachineState, MachineView, Outcome, Priority, Supervisor, Time,
};
use bbot_manifest::Status;

use crate::controller::Task;
use crate::script::{CrashPoint, HostScript};

/// A result on the agent's disk.
#[derive(Debug, Clone)]
pub(crate) struct Spooled {
    pub(crate) controller: usize,
    pub(crate) session: u64,
    pub(crate) status: Status,
    pub(crate) written: Time,
}

/// A task that came.
#[derive(Debug, Clone)]
pub(crate) struct Assigned {
    pub(crate) controller: usize,
    pub(crate) task: Task,
    /// What is held on disk for it.
    pub(crate) held: u64,
}

/// A machine that runs.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) machine: String,
    pub(crate) cpus: u32,
    pub(crate) ram_kib: u64,
    pub(crate) work: Work,
    /// Raised when its end is moved.
    pub(crate) version: u32,
    pub(crate) is_interrupted: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Work {
    Task(Assigned, Outcome),
    /// Of this revision; the supervisor has seen that one, maybe a moment before.
    Bootstrap {
        revision: u32,
        seen: u32,
    },
}

/// A machine on the agent's disk.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) revision: u32,
    pub(crate) bootstrapped: Option<u32>,
    pub(crate) is_exclusive: bool,
    pub(crate) ram_minimum: Option<u64>,
    pub(crate) bad_until: Time,
    /// So many bootstraps fail.
    pub(crate) fails: u32,
}

#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) supervisor: Option<Supervisor>,
    /// Counts the lives: what comes for another one is for nobody.
    pub(crate) life: u64,
    pub(crate) since: Time,
    pub(crate) config: Config,
    pub(crate) machines: Vec<Machine>,
    /// The revisions that the last enumeration saw.
    pub(crate) seen: BTreeMap<String, u32>,

    pub(crate) spool: BTreeMap<u64, Spooled>,
    pub(crate) held: BTreeMap<u64, Spooled>,

    pub(crate) plan: Plan,
    pub(crate) posts: BTreeSet<u64>,
    /// The request that is on its way, and to which controller.
    pub(crate) ask: Option<(u64, usize)>,
    /// Something has happened since it was asked for a task that may make the task unwelcome.
    pub(crate) is_disturbed: bool,
    pub(crate) is_enumerating: bool,
    pub(crate) assigned: BTreeMap<u64, Assigned>,
    pub(crate) runs: BTreeMap<u64, Run>,
    /// Sessions whose lease is renewed, and their controllers.
    pub(crate) leases: BTreeMap<u64, usize>,
    pub(crate) is_draining: bool,
    pub(crate) is_stopping: bool,
    /// When what runs must have been interrupted.
    pub(crate) deadline: Option<Time>,
    /// When the bootstrap of a machine failed, and of which revision.
    pub(crate) failed: BTreeMap<String, (Time, u32)>,
    pub(crate) is_low: bool,
    pub(crate) tick: Option<Time>,
    pub(crate) plan_tick: Option<Time>,
    pub(crate) recent: VecDeque<Time>,

    pub(crate) low_until: Time,
    pub(crate) guests_until: Time,
    pub(crate) renewals_until: Time,
    pub(crate) crash_at: Option<CrashPoint>,
    pub(crate) host_fails: bool,
}

impl Agent {
    pub(crate) fn new(host: &HostScript, controllers: &[(String, &'static str)]) -> Self {
        let controllers = host
            .controllers
            .iter()
            .map(|c| ControllerConfig {
                url: controllers[*c].0.clone(),
                priority: Priority::split(controllers[*c].1)
                    .map_or(Priority::default(), |(priority, _)| priority),
            })
            .collect();
        let machines = host
            .machines
            .iter()
            .map(|m| Machine {
                name: format!("m{}", m.number),
                revision: 1,
                bootstrapped: m.is_bootstrapped.then_some(1),
                is_exclusive: m.is_exclusive,
                ram_minimum: m.ram_minimum,
                bad_until: Time::ZERO,
                fails: 0,
            })
            .collect();
        Self {
            supervisor: None,
            life: 0,
            since: Time::ZERO,
            config: Config {
                slots: host.slots,
                cpus: 1,
                ram_kib: 1000,
                cpu_budget: host.cpu_budget,
                ram_budget: host.ram_budget,
                host_cpus: 8,
                controllers,
                hold: Duration::from_secs(20),
                idle_pause: host.idle_pause,
            },
            machines,
            seen: BTreeMap::new(),
            spool: BTreeMap::new(),
            held: BTreeMap::new(),
            plan: Plan::new(0),
            posts: BTreeSet::new(),
            ask: None,
            is_disturbed: false,
            is_enumerating: false,
            assigned: BTreeMap::new(),
            runs: BTreeMap::new(),
            leases: BTreeMap::new(),
            is_draining: false,
            is_stopping: false,
            deadline: None,
            failed: BTreeMap::new(),
            is_low: false,
            tick: None,
            plan_tick: None,
            recent: VecDeque::new(),
            low_until: Time::ZERO,
            guests_until: Time::ZERO,
            renewals_until: Time::ZERO,
            crash_at: None,
            host_fails: false,
        }
    }

    /// It is gone, and with it all that is not on disk. Its machines end with it, or are ended by the next start.
    pub(crate) fn crash(&mut self) {
        self.supervisor = None;
        self.life += 1;
        self.plan = Plan::new(0);
        self.posts.clear();
        self.ask = None;
        self.is_enumerating = false;
        self.assigned.clear();
        self.runs.clear();
        self.leases.clear();
        self.is_draining = false;
        self.is_stopping = false;
        self.deadline = None;
        self.failed.clear();
        self.is_low = false;
        self.tick = None;
        self.plan_tick = None;
    }

    /// The machines as an inventory finds them.
    pub(crate) fn views(&self, now: Time) -> Vec<MachineView> {
        let view = |machine: &Machine| MachineView {
            name: machine.name.clone(),
            identity: machine.revision.to_string(),
            ram_minimum: machine.ram_minimum,
            ram_maximum: None,
            state: if machine.bad_until > now {
                MachineState::Bad {
                    problem: "its manifest cannot be read".to_owned(),
                }
            } else if machine.bootstrapped == Some(machine.revision) {
                MachineState::Usable
            } else {
                MachineState::MustBootstrap {
                    why: "new".to_owned(),
                }
            },
            exclusive: machine.is_exclusive,
            kind: "kvm".to_owned(),
            cold: false,
        };
        self.machines.iter().map(view).collect()
    }

    pub(crate) fn machine(&mut self, name: &str) -> Option<&mut Machine> {
        self.machines.iter_mut().find(|m| m.name == name)
    }
}
