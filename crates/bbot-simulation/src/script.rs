//! What a seed makes: hosts, machines, controllers, tasks, and what goes wrong when.

use std::time::Duration;

use bbot_agent::supervisor::{Kin, Time};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

/// Where an agent is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CrashPoint {
    /// A task came, and is noted on disk; it does not run yet.
    TaskCame,
    /// A task is done; its result is not on disk yet.
    BeforeSpool,
    /// The result is on disk, and what was held in its place still is, too.
    AfterSpool,
    /// The controller has taken the result; it is still on disk.
    Taken,
}

/// Something that goes wrong.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    AgentCrash {
        agent: usize,
        down: Duration,
    },
    AgentCrashAt {
        agent: usize,
        point: CrashPoint,
    },
    ControllerCrash {
        controller: usize,
        down: Duration,
    },
    Lossy {
        controller: usize,
        lasts: Duration,
    },
    Slow {
        controller: usize,
        lasts: Duration,
    },
    Duplicates {
        controller: usize,
        lasts: Duration,
    },
    Rubbish {
        controller: usize,
        lasts: Duration,
    },
    Confused {
        controller: usize,
        lasts: Duration,
    },
    Busy {
        controller: usize,
        lasts: Duration,
    },
    ClockJump {
        controller: usize,
        seconds: i64,
    },
    Guests {
        agent: usize,
        lasts: Duration,
    },
    BootstrapsFail {
        agent: usize,
        machine: usize,
        times: u32,
    },
    NewRevision {
        agent: usize,
        machine: usize,
    },
    BadMachine {
        agent: usize,
        machine: usize,
        lasts: Duration,
    },
    HostLow {
        agent: usize,
        lasts: Duration,
    },
    HostFails {
        agent: usize,
    },
    Drain {
        agent: usize,
        within: Duration,
        back_after: Option<Duration>,
    },
    Stop {
        agent: usize,
    },
    Reload {
        agent: usize,
        slots: u32,
        priorities: bool,
    },
    RenewalsLost {
        agent: usize,
        lasts: Duration,
    },
    /// A person cancels a build: one of those that there are then, by this number.
    Cancel {
        controller: usize,
        number: usize,
    },
}

/// An agent's host.
#[derive(Debug)]
pub(crate) struct HostScript {
    pub(crate) slots: u32,
    pub(crate) cpu_budget: Option<u32>,
    pub(crate) ram_budget: Option<u64>,
    pub(crate) idle_pause: Option<Duration>,
    pub(crate) controllers: Vec<usize>,
    pub(crate) machines: Vec<MachineScript>,
}

/// A machine of a host.
#[derive(Debug)]
pub(crate) struct MachineScript {
    pub(crate) number: usize,
    pub(crate) is_exclusive: bool,
    pub(crate) ram_minimum: Option<u64>,
    pub(crate) is_bootstrapped: bool,
}

/// Everything that a seed decides beforehand.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) controllers: Vec<(Kin, &'static str)>,
    pub(crate) hosts: Vec<HostScript>,
    pub(crate) machines: usize,
    /// When, at which controller, for which machine.
    pub(crate) tasks: Vec<(Time, usize, usize)>,
    pub(crate) faults: Vec<(Time, Fault)>,
    /// From then on nothing goes wrong any more.
    pub(crate) quiet: Time,
}

const PRIORITIES: [&str; 8] = [
    "", "0001=", "0010=", "0012=", "0100=", "0200=", "1000=", "11000=",
];

fn seconds(random: &mut StdRng, from: u64, to: u64) -> Duration {
    Duration::from_millis(random.gen_range(from * 1000..to * 1000))
}

impl Script {
    pub(crate) fn new(random: &mut StdRng) -> Self {
        let has_priorities = random.gen_bool(0.3);
        let controllers: Vec<(Kin, &'static str)> = (0..random.gen_range(1..=3))
            .map(|_| {
                let kin = if random.gen_bool(0.8) {
                    Kin::Ours
                } else {
                    Kin::Stranger
                };
                let priority = if has_priorities {
                    PRIORITIES.choose(random).copied().unwrap_or_default()
                } else {
                    ""
                };
                (kin, priority)
            })
            .collect();
        let machines = random.gen_range(1..=4);
        let hosts: Vec<HostScript> = (0..random.gen_range(1..=3))
            .map(|n| Self::host(n, controllers.len(), machines, random))
            .collect();
        let tasks = (0..random.gen_range(20..=30))
            .map(|_| {
                let at = if random.gen_bool(0.5) {
                    Time::from_secs(1)
                } else {
                    seconds(random, 1, 900)
                };
                (
                    at,
                    random.gen_range(0..controllers.len()),
                    random.gen_range(0..machines),
                )
            })
            .collect();
        let mut faults: Vec<(Time, Fault)> = (0..random.gen_range(5..=12))
            .map(|_| {
                let at = seconds(random, 1, 1200);
                (at, Self::fault(&hosts, controllers.len(), random))
            })
            .collect();
        faults.sort_by_key(|(at, _)| *at);
        Self {
            controllers,
            hosts,
            machines,
            tasks,
            faults,
            quiet: Time::from_secs(1800),
        }
    }

    /// The first one has every machine and knows every controller, so that each task can be done in the end.
    fn host(number: usize, controllers: usize, machines: usize, random: &mut StdRng) -> HostScript {
        let is_first = number == 0;
        let known: Vec<usize> = (0..controllers)
            .filter(|c| is_first || *c == 0 || random.gen_bool(0.6))
            .collect();
        let has: Vec<MachineScript> = (0..machines)
            .filter(|_| is_first || random.gen_bool(0.6))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|number| MachineScript {
                number,
                is_exclusive: random.gen_bool(0.3),
                ram_minimum: random.gen_bool(0.3).then(|| random.gen_range(500..4000)),
                is_bootstrapped: random.gen_bool(0.5),
            })
            .collect();
        HostScript {
            slots: random.gen_range(1..=4),
            cpu_budget: random.gen_bool(0.3).then(|| random.gen_range(1..=4)),
            ram_budget: random.gen_bool(0.6).then(|| random.gen_range(4000..9000)),
            idle_pause: random.gen_bool(0.3).then(|| seconds(random, 5, 60)),
            controllers: known,
            machines: has,
        }
    }

    fn fault(hosts: &[HostScript], controllers: usize, random: &mut StdRng) -> Fault {
        let agent = random.gen_range(0..hosts.len());
        let controller = random.gen_range(0..controllers);
        let machine = random.gen_range(0..hosts[agent].machines.len().max(1));
        let lasts = seconds(random, 5, 300);
        match random.gen_range(0..25) {
            0 | 1 => Fault::AgentCrash {
                agent,
                down: seconds(random, 1, 120),
            },
            2 | 3 => Fault::AgentCrashAt {
                agent,
                point: *[
                    CrashPoint::TaskCame,
                    CrashPoint::BeforeSpool,
                    CrashPoint::AfterSpool,
                    CrashPoint::Taken,
                ]
                .choose(random)
                .unwrap_or(&CrashPoint::TaskCame),
            },
            4 | 5 => Fault::ControllerCrash {
                controller,
                down: seconds(random, 1, 200),
            },
            6 => Fault::Lossy { controller, lasts },
            7 => Fault::Slow { controller, lasts },
            8 => Fault::Duplicates { controller, lasts },
            9 => Fault::Rubbish { controller, lasts },
            10 => Fault::Confused { controller, lasts },
            11 => Fault::Busy { controller, lasts },
            12 => Fault::ClockJump {
                controller,
                seconds: random.gen_range(-7200..7200),
            },
            13 => Fault::Guests { agent, lasts },
            14 => Fault::BootstrapsFail {
                agent,
                machine,
                times: random.gen_range(1..4),
            },
            15 => Fault::NewRevision { agent, machine },
            16 => Fault::BadMachine {
                agent,
                machine,
                lasts,
            },
            17 => Fault::HostLow { agent, lasts },
            18 => Fault::HostFails { agent },
            19 => Fault::Drain {
                agent,
                within: seconds(random, 1, 200),
                back_after: random.gen_bool(0.5).then(|| seconds(random, 1, 100)),
            },
            20 => Fault::Stop { agent },
            21 => Fault::Reload {
                agent,
                slots: random.gen_range(1..=4),
                priorities: random.gen_bool(0.5),
            },
            22 => Fault::RenewalsLost { agent, lasts },
            _ => Fault::Cancel {
                controller,
                number: random.gen_range(0..1000),
            },
        }
    }
}
