//! What the tests of the supervisor share.

use bbot_manifest::Status;

use super::*;

pub(super) fn config(slots: u32) -> Config {
    Config {
        slots,
        cpus: 1,
        ram_kib: 1000,
        cpu_budget: None,
        ram_budget: None,
        host_cpus: 8,
        controllers: controllers(&["c"]),
        hold: Duration::from_secs(20),
        idle_pause: None,
    }
}

pub(super) fn controllers(arguments: &[&str]) -> Vec<ControllerConfig> {
    arguments
        .iter()
        .map(|argument| {
            let (priority, url) = Priority::split(argument).unwrap();
            ControllerConfig {
                url: url.to_owned(),
                priority,
            }
        })
        .collect()
}

pub(super) fn usable(name: &str) -> MachineView {
    MachineView {
        name: name.to_owned(),
        identity: "1".to_owned(),
        ram_minimum: None,
        ram_maximum: None,
        state: MachineState::Usable,
        exclusive: false,
        kind: "kvm".to_owned(),
        cold: false,
    }
}

pub(super) fn unready(name: &str) -> MachineView {
    MachineView {
        state: MachineState::MustBootstrap {
            why: "new".to_owned(),
        },
        ..usable(name)
    }
}

/// A supervisor whose actions are taken as they come.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) supervisor: Supervisor,
    pub(super) now: Time,
    /// What it did since it was looked at, reports aside.
    pub(super) done: Vec<Action>,
    pub(super) reports: Vec<String>,
}

impl Bench {
    pub(super) fn new(config: Config, machines: &[MachineView]) -> Self {
        let mut bench = Self {
            supervisor: Supervisor::new(config, 1),
            now: Time::ZERO,
            done: Vec::new(),
            reports: Vec::new(),
        };
        bench.event(Event::Tick);
        assert_eq!(bench.take(), [Action::Enumerate]);
        bench.machines(machines);
        bench
    }

    pub(super) fn event(&mut self, event: Event) {
        self.supervisor.handle(event, self.now);
        while let Some(action) = self.supervisor.poll_action() {
            match action {
                Action::Report(report) => self.reports.push(report.to_string()),
                action => self.done.push(action),
            }
        }
        assert!(
            self.supervisor
                .next_deadline()
                .is_none_or(|at| at > self.now)
        );
    }

    pub(super) fn machines(&mut self, machines: &[MachineView]) {
        self.event(Event::Enumerated(machines.to_vec()));
    }

    pub(super) fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.done)
    }

    /// What it did, in words: `ask c a,b`, `task a`, `bootstrap a`, `enumerate`, ...
    pub(super) fn words(&mut self) -> Vec<String> {
        self.take()
            .into_iter()
            .map(|action| match action {
                Action::Enumerate => "enumerate".to_owned(),
                Action::Ask {
                    controller,
                    machines,
                    ..
                } => format!("ask {controller} {}", machines.join(",")),
                Action::CancelAsk { .. } => "cancel".to_owned(),
                Action::StartTask { machine, .. } => format!("task {machine}"),
                Action::GiveBack { why, .. } => format!("give back: {why}"),
                Action::StartBootstrap { machine, .. } => format!("bootstrap {machine}"),
                Action::Interrupt { run, .. } => format!("interrupt {}", run.0),
                Action::Exit => "exit".to_owned(),
                Action::Report(report) => report.to_string(),
            })
            .collect()
    }

    pub(super) fn ask(&self) -> AskId {
        self.supervisor.ask.as_ref().expect("something is asked").id
    }

    /// The controller that is asked answers, as one of its kind.
    pub(super) fn answer_as(&mut self, kin: Kin, answer: Answer) {
        let ask = self.ask();
        let kin = Some(kin);
        self.event(Event::Answered { ask, answer, kin });
    }

    pub(super) fn answer(&mut self, answer: Answer) {
        self.answer_as(Kin::Stranger, answer);
    }

    /// The controller that is asked has a task for that machine.
    pub(super) fn task(&mut self, machine: &str) {
        self.answer(Answer::Task {
            machine: machine.to_owned(),
        });
    }

    /// Everybody that is asked has nothing, until nobody is.
    pub(super) fn nobody_has_a_task(&mut self, machines: &[MachineView]) {
        for _ in 0..20 {
            if self.supervisor.ask.is_some() {
                self.answer(Answer::Nothing);
            } else if self.supervisor.is_enumerating {
                self.machines(machines);
            } else {
                return;
            }
        }
        panic!("it goes on asking");
    }

    /// The run of a machine.
    pub(super) fn run(&self, machine: &str) -> RunId {
        let mut runs = self.supervisor.runs.iter();
        runs.find(|(_, r)| r.machine == machine).unwrap().0
    }

    pub(super) fn ends(&mut self, machine: &str, outcome: Outcome) {
        let run = self.run(machine);
        self.event(Event::RunEnded { run, outcome });
    }

    pub(super) fn is_built(&mut self, machine: &str) {
        self.ends(machine, Outcome::Done(Status::Success));
    }

    pub(super) fn bootstrap_ends(&mut self, machine: &str, outcome: BootstrapOutcome) {
        let run = self.run(machine);
        self.event(Event::BootstrapEnded { run, outcome });
    }

    /// The time of the next deadline comes.
    pub(super) fn tick(&mut self) {
        self.now = self
            .supervisor
            .next_deadline()
            .expect("there is a deadline");
        self.event(Event::Tick);
    }

    pub(super) fn after(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.event(Event::Tick);
    }
}

mod asking;
mod ends;
mod priorities;
mod properties;
mod room;
mod trouble;
