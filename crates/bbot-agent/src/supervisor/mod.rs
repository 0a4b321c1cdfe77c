//! The supervisor: what the agent does next, decided without I/O and without a clock.
//!
//! ```text
//!             events                             actions
//!   driver ----------->  Supervisor::handle  ----------->  driver
//!             Tick at next_deadline()
//!
//!   Enumerate -> Enumerated -> bootstrap what must be ------> StartBootstrap ... BootstrapEnded
//!                           -> ask the next controller -----> Ask ... Answered
//!                                nothing: ask the next one, then pause
//!                                a task:  StartTask ... RunEnded
//!                                         or Interrupt, and StartTask when there is room
//!                                         or GiveBack
//! ```
//!
//! At most one request for a task is on its way, and room for what it may bring is kept free meanwhile. What is
//! wrong with a machine, a controller or the host concerns that one alone: it gets a pause, which grows, and
//! the others go on.
//!
//! | mode | new work | what runs |
//! |---|---|---|
//! | running | yes | goes on |
//! | draining | no | goes on until the deadline; a bootstrap only as long as there is a task, too |
//! | stopping | no | is interrupted |
//! | ended | no | nothing does |

pub mod api;
mod backoff;
mod controllers;
mod decide;
mod machines;
pub mod priority;
mod room;
mod runs;
mod view;

use std::collections::VecDeque;
use std::time::Duration;

use bbot_manifest::Status;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

pub use api::*;
use controllers::{Controllers, Fault};
use decide::{Line, Situation, Turn, Wait, Way};
use machines::Machines;
pub use priority::{Priority, PriorityError};
use room::Room;
use runs::{Run, Runs, Task};

use crate::options::IDLE_PAUSE_OURS;

/// An inventory that is so old is looked at again before a controller is asked.
const FRESH: Duration = Duration::from_secs(1);

/// For how long a controller of ours may hold a request when more could be offered soon.
const SHORT_HOLD: Duration = Duration::from_secs(2);

/// A controller that was asked just before the end gets this long to answer: the task that it may give is
/// given back then, and is not missed for hours.
const LAST_ANSWER: Duration = Duration::from_secs(5);

/// A request on its way.
#[derive(Debug, Clone)]
struct Ask {
    id: AskId,
    controller: String,
    priority: Priority,
    machines: Vec<String>,
    is_held: bool,
    is_cancelled: bool,
    /// There is more to offer than this request says.
    is_outdated: bool,
}

/// A task that has come and waits until what it interrupted has ended.
#[derive(Debug, Clone)]
struct Waiting {
    ask: AskId,
    controller: String,
    priority: Priority,
    machine: String,
    victims: Vec<RunId>,
}

/// The host's own trouble.
#[derive(Debug, Clone, Default)]
struct HostTrouble {
    low: Option<String>,
    failures: u32,
    until: Time,
}

/// What the agent does next: a state machine. See the module.
#[derive(Debug, Clone)]
pub struct Supervisor {
    config: Config,
    random: StdRng,
    now: Time,
    mode: Mode,
    machines: Machines,
    controllers: Controllers,
    runs: Runs,
    suspended: u64,
    host: HostTrouble,
    ask: Option<Ask>,
    waiting: Option<Waiting>,
    turn: Turn,
    /// Whether the inventory is being looked at.
    is_enumerating: bool,
    /// When the inventory was looked at last; `None`: not since something changed.
    enumerated: Option<Time>,
    /// When the exit does not wait any longer for an answer.
    last_answer: Option<Time>,
    idle: Option<IdleReason>,
    last_id: u64,
    actions: VecDeque<Action>,
}

impl Supervisor {
    /// A supervisor that has not done anything yet: its first event (a [`Event::Tick`]) starts it. Equal seeds
    /// and events give equal actions.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        Self {
            controllers: Controllers::new(&config.controllers),
            config,
            random: StdRng::seed_from_u64(seed),
            now: Time::ZERO,
            mode: Mode::Running,
            machines: Machines::default(),
            runs: Runs::default(),
            suspended: 0,
            host: HostTrouble::default(),
            ask: None,
            waiting: None,
            turn: Turn::Bootstrap,
            is_enumerating: false,
            enumerated: None,
            last_answer: None,
            idle: None,
            last_id: 0,
            actions: VecDeque::new(),
        }
    }

    /// Something happened. `now` never goes back (if it does, it is taken as standing still).
    pub fn handle(&mut self, event: Event, now: Time) {
        self.now = self.now.max(now);
        if self.mode == Mode::Ended {
            return;
        }
        match event {
            Event::Tick => {}
            Event::Enumerated(machines) => self.enumerated(machines),
            Event::Answered { ask, answer, kin } => self.answered(ask, answer, kin),
            Event::RunEnded { run, outcome } => self.run_ended(run, outcome),
            Event::BootstrapEnded { run, outcome } => self.bootstrap_ended(run, outcome),
            Event::Resources(HostState::Ok) => {
                if self.host.low.take().is_some() {
                    self.changed();
                }
            }
            Event::Resources(HostState::Low(why)) => self.host.low = Some(why),
            Event::SuspendedRam(kib) => {
                if kib < self.suspended {
                    self.changed();
                }
                self.suspended = kib;
            }
            Event::Drain { deadline } => {
                if matches!(self.mode, Mode::Running | Mode::Draining { .. }) {
                    self.mode = Mode::Draining { deadline };
                }
            }
            Event::Undrain => {
                if matches!(self.mode, Mode::Draining { .. }) {
                    self.mode = Mode::Running;
                    self.last_answer = None;
                    self.changed();
                }
            }
            Event::Stop => {
                self.mode = Mode::Stopping;
            }
            Event::Reload(config) => {
                self.controllers.reload(&config.controllers, self.now);
                self.config = config;
                self.machines.forgive();
                self.host.until = self.now;
                self.changed();
            }
        }
        self.step();
    }

    /// The next thing to do; all are to be taken after each event.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Tick`] is wanted, if nothing happens before. Always later than the last event.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let mut deadlines: Vec<Time> = self.last_answer.into_iter().collect();
        match self.mode {
            Mode::Running => {
                deadlines.push(self.host.until);
                deadlines.extend(self.machines.deadlines());
                if self.ask.is_none() && self.waiting.is_none() {
                    deadlines.extend(self.controllers.all.iter().map(|c| c.next));
                    deadlines.extend(self.look_again().filter(|_| !self.is_enumerating));
                }
            }
            Mode::Draining { deadline } => deadlines.push(deadline),
            Mode::Stopping | Mode::Ended => {}
        }
        deadlines.into_iter().filter(|at| *at > self.now).min()
    }

    fn situation(&self) -> Situation<'_> {
        Situation {
            config: &self.config,
            machines: &self.machines,
            runs: &self.runs,
            suspended: self.suspended,
            now: self.now,
        }
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn report(&mut self, report: Report) {
        self.act(Action::Report(report));
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// There may be more to offer than a moment ago.
    fn changed(&mut self) {
        self.enumerated = None;
        self.controllers.ask_again(self.now);
        if let Some(ask) = &mut self.ask {
            ask.is_outdated = true;
        }
    }

    fn enumerated(&mut self, machines: Vec<MachineView>) {
        self.is_enumerating = false;
        if self.machines.replace(machines) {
            self.changed();
        }
        self.enumerated = Some(self.now);
        let situation = self.situation();
        let problem = |machine: &MachineView| match &machine.state {
            MachineState::Bad { problem } => Some(problem.clone()),
            MachineState::Usable | MachineState::MustBootstrap { .. } => {
                situation.too_large(machine)
            }
        };
        let problems = self
            .machines
            .iter()
            .filter_map(|m| Some((m.name.clone(), problem(m)?)))
            .collect();
        for report in self.machines.tell(&problems) {
            self.report(report);
        }
    }

    fn answered(&mut self, id: AskId, answer: Answer, kin: Option<Kin>) {
        let Some(ask) = self.ask.take_if(|ask| ask.id == id) else {
            if let Answer::Task { .. } = answer {
                let why = "nobody asked for it".to_owned();
                self.act(Action::GiveBack { ask: id, why });
            }
            return;
        };
        self.last_answer = None;
        let url = ask.controller.clone();
        if let (Some(kin), Some(controller)) = (kin, self.controllers.get_mut(&url)) {
            controller.kin = kin;
        }
        let trouble = match answer {
            // What we gave up ourselves is nobody's fault.
            Answer::Failed(_) if ask.is_cancelled => None,
            Answer::Failed(why) => Some((Fault::Silent, why)),
            Answer::Refused(why) => Some((Fault::Wrong, why)),
            Answer::Nothing => {
                self.answers_again(&url);
                let (controllers, config) = (&mut self.controllers, &self.config);
                controllers.had_nothing(&url, config, ask.is_outdated, self.now);
                None
            }
            Answer::Task { machine } if !ask.machines.contains(&machine) => {
                let why = format!("a task for machine {machine}, which was not offered");
                self.act(Action::GiveBack {
                    ask: id,
                    why: why.clone(),
                });
                Some((Fault::Wrong, why))
            }
            Answer::Task { machine } => {
                self.answers_again(&url);
                self.controllers.gave_task(&url);
                self.controllers.ask_again(self.now);
                self.take(ask, machine);
                None
            }
        };
        if let Some((fault, why)) = trouble {
            self.trouble(&url, fault, &why);
        }
    }

    fn answers_again(&mut self, url: &str) {
        if self.controllers.well(url) {
            self.report(Report::ControllerAnswers {
                controller: url.to_owned(),
            });
        }
    }

    fn trouble(&mut self, url: &str, fault: Fault, why: &str) {
        let random = &mut self.random;
        if let Some(pause) = self.controllers.trouble(url, fault, why, self.now, random) {
            self.report(Report::ControllerTrouble {
                controller: url.to_owned(),
                why: why.to_owned(),
                pause,
            });
        }
    }

    /// A task has come: it is started, waits for what it interrupts, or is given back.
    fn take(&mut self, ask: Ask, machine: String) {
        let refusal = match (&self.mode, self.block()) {
            (Mode::Running, None) => None,
            (Mode::Running, Some(why)) => Some(why.to_string()),
            _ => Some(IdleReason::Draining.to_string()),
        };
        let way = self
            .machines
            .usable(self.now)
            .find(|m| m.name == machine)
            .map(|m| self.situation().way(m, ask.priority, Line::Passed));
        let victims = match (refusal, way) {
            (None, Some(Way::After(victims))) => victims,
            (Some(why), _) => return self.act(Action::GiveBack { ask: ask.id, why }),
            (None, None) => {
                let why = format!("machine {machine} cannot be used any more");
                return self.act(Action::GiveBack { ask: ask.id, why });
            }
            (None, Some(Way::None)) => {
                let why = format!("there is no room for machine {machine} any more");
                return self.act(Action::GiveBack { ask: ask.id, why });
            }
        };
        for victim in &victims {
            let why = format!("a task of {} is more urgent", ask.controller);
            self.interrupt(*victim, why);
        }
        self.waiting = Some(Waiting {
            ask: ask.id,
            controller: ask.controller,
            priority: ask.priority,
            machine,
            victims,
        });
    }

    fn interrupt(&mut self, run: RunId, why: String) {
        if let Some(r) = self.runs.get_mut(run).filter(|r| !r.is_interrupted) {
            r.is_interrupted = true;
            self.act(Action::Interrupt { run, why });
        }
    }

    fn interrupt_all(&mut self, why: &str) {
        let all: Vec<RunId> = self.runs.iter().map(|(id, _)| id).collect();
        for run in all {
            self.interrupt(run, why.to_owned());
        }
    }

    /// The end of a run that there is; its room is free.
    fn ended(&mut self, id: RunId) -> Option<Run> {
        let run = self.runs.remove(id)?;
        if let Some(waiting) = &mut self.waiting {
            waiting.victims.retain(|victim| *victim != id);
        }
        self.changed();
        Some(run)
    }

    fn run_ended(&mut self, id: RunId, outcome: Outcome) {
        let Some(run) = self.ended(id) else { return };
        match outcome {
            // A guest that crashed, or that nobody heard of in time, proves nothing about its machine.
            Outcome::Done(Status::Abort | Status::Abnormal | Status::Interrupt) => {}
            Outcome::Done(_) => {
                self.machines.well(&run.machine, run.since);
                self.host.failures = 0;
                let controller = run
                    .task
                    .and_then(|t| self.controllers.get_mut(&t.controller));
                if let Some(controller) = controller.filter(|c| c.trouble.is_none()) {
                    controller.failures = 0;
                }
            }
            Outcome::MachineFailed => self.machine_failed(&run, "it could not be run"),
            Outcome::LinkFailed => {
                if let Some(task) = run.task {
                    let why = "what its task needs could not be fetched";
                    self.trouble(&task.controller, Fault::Wrong, why);
                }
            }
            Outcome::HostFailed => {
                let pause = backoff::HOST.after(self.host.failures);
                self.host.failures = self.host.failures.saturating_add(1);
                self.host.until = self.now.saturating_add(pause);
                self.report(Report::HostTrouble { pause });
            }
            Outcome::Interrupted => {}
        }
    }

    fn bootstrap_ended(&mut self, id: RunId, outcome: BootstrapOutcome) {
        let Some(run) = self.ended(id) else { return };
        self.machines.bootstrap_ended(&run.machine);
        match outcome {
            BootstrapOutcome::Done => self.machines.well(&run.machine, run.since),
            BootstrapOutcome::Failed(why) => self.machine_failed(&run, &why),
            BootstrapOutcome::Interrupted if run.is_interrupted => {}
            BootstrapOutcome::Interrupted => {
                self.machines
                    .overtaken(&run.machine, &run.identity, self.now);
            }
        }
    }

    fn machine_failed(&mut self, run: &Run, why: &str) {
        let report = self
            .machines
            .failed(&run.machine, &run.identity, why, self.now);
        self.report(report);
    }

    /// Why nothing new may begin, if so.
    fn block(&self) -> Option<IdleReason> {
        if let Some(why) = &self.host.low {
            Some(IdleReason::HostLow(why.clone()))
        } else {
            (self.host.until > self.now).then_some(IdleReason::HostFailed)
        }
    }

    /// Whatever can be done now is done.
    fn step(&mut self) {
        match self.mode {
            Mode::Running => self.work(),
            Mode::Draining { deadline } => {
                if deadline <= self.now {
                    self.interrupt_all("the agent ends");
                } else if self.runs.tasks().next().is_none() {
                    self.interrupt_all("the agent ends, and no task is left to wait for");
                }
                self.wind_down();
            }
            Mode::Stopping => {
                self.interrupt_all("the agent ends");
                self.wind_down();
            }
            Mode::Ended => {}
        }
        self.tell_idle();
    }

    fn wind_down(&mut self) {
        self.machines.forget_waits();
        if let Some(waiting) = self.waiting.take() {
            let why = IdleReason::Draining.to_string();
            self.act(Action::GiveBack {
                ask: waiting.ask,
                why,
            });
        }
        if let Some(ask) = self.ask.as_mut().filter(|ask| !ask.is_cancelled) {
            let until = *self
                .last_answer
                .get_or_insert(self.now.saturating_add(LAST_ANSWER));
            // One that holds the request notices that nobody waits any more; its lease, if it just gave one,
            // lapses soon. Others answer at once.
            if ask.is_held || until <= self.now {
                ask.is_cancelled = true;
                self.last_answer = None;
                let ask = ask.id;
                self.act(Action::CancelAsk { ask });
            }
        }
        if self.runs.is_empty() && self.ask.is_none() {
            self.mode = Mode::Ended;
            self.act(Action::Exit);
        }
    }

    fn work(&mut self) {
        self.start_waiting();
        let situation = self.situation();
        let waits: Vec<Wait> = self.machines.iter().map(|m| situation.waiting(m)).collect();
        self.machines.wait(waits, self.now);
        if self.block().is_some() || self.waiting.is_some() || self.is_enumerating {
            return;
        }
        if self.ask.is_some() {
            // Room for what the request may bring is kept.
            self.start_bootstraps();
            return;
        }
        if self.must_enumerate() {
            self.is_enumerating = true;
            self.act(Action::Enumerate);
            return;
        }
        self.start_bootstraps();
        self.ask_next();
        let has_room = !self.situation().offers(Priority::default()).is_empty();
        if self.ask.is_none() && self.turn == Turn::Build && has_room {
            // Nobody has a task: a bootstrap that waits for its turn has it.
            self.turn = Turn::Bootstrap;
            self.start_bootstraps();
        }
    }

    /// Whether the inventory is to be looked at now: before anything is started by one that is not fresh, and
    /// where there is nothing that could be.
    fn must_enumerate(&self) -> bool {
        let Some(at) = self.enumerated else {
            return self.is_slot_free() || self.is_anybody_to_be_asked();
        };
        let is_stale = at.saturating_add(FRESH) <= self.now;
        let would_bootstrap = || self.situation().bootstrap(Turn::Bootstrap, &[]).is_some();
        (is_stale && (would_bootstrap() || self.is_anybody_to_be_asked()))
            || self.look_again().is_some_and(|at| at <= self.now)
    }

    fn is_anybody_to_be_asked(&self) -> bool {
        let situation = self.situation();
        let mut due = self.controllers.all.iter().filter(|c| c.next <= self.now);
        due.any(|c| !situation.is_held_back(c.priority) && !situation.offers(c.priority).is_empty())
    }

    fn is_slot_free(&self) -> bool {
        let slots = room::Limits::of(&self.config).slots;
        slots.is_none_or(|most| self.runs.used().slots < most)
    }

    /// When it is to be looked whether there are other machines now, where nothing can be done with those that
    /// there are.
    fn look_again(&self) -> Option<Time> {
        let at = self.enumerated.filter(|_| self.is_slot_free())?;
        let situation = self.situation();
        let could = !situation.offers(Priority::default()).is_empty()
            || situation.bootstrap(Turn::Bootstrap, &[]).is_some();
        let pause = self.config.idle_pause.unwrap_or(IDLE_PAUSE_OURS);
        (!could).then_some(at.saturating_add(pause))
    }

    fn start_waiting(&mut self) {
        let Some(waiting) = self.waiting.take_if(|w| w.victims.is_empty()) else {
            return;
        };
        let machine = self
            .machines
            .usable(self.now)
            .find(|m| m.name == waiting.machine);
        let situation = self.situation();
        let can_start = machine.filter(|_| self.block().is_none()).filter(|m| {
            let way = situation.way(m, waiting.priority, Line::Passed);
            matches!(way, Way::After(first) if first.is_empty())
        });
        let Some(machine) = can_start.cloned() else {
            let why = format!("machine {} cannot be started any more", waiting.machine);
            self.act(Action::GiveBack {
                ask: waiting.ask,
                why,
            });
            return;
        };
        let mut room = Room::need(&self.config, &machine);
        if waiting.priority.is_boosted() {
            let taken = self.runs.used().cpus;
            let left = self
                .config
                .cpu_budget
                .map_or(u32::MAX, |most| most.saturating_sub(taken));
            room.cpus = room.cpus.max(self.config.host_cpus.min(left));
        }
        let task = Task {
            ask: waiting.ask,
            controller: waiting.controller,
            priority: waiting.priority,
        };
        let run = self.begin(&machine, room, Some(task));
        self.turn = Turn::Bootstrap;
        self.act(Action::StartTask {
            run,
            ask: waiting.ask,
            machine: machine.name,
            cpus: room.cpus,
            ram_kib: room.ram_kib,
        });
    }

    fn begin(&mut self, machine: &MachineView, room: Room, task: Option<Task>) -> RunId {
        let id = RunId(self.next_id());
        let run = Run {
            machine: machine.name.clone(),
            identity: machine.identity.clone(),
            room,
            since: self.now,
            task,
            is_interrupted: false,
        };
        self.runs.insert(id, run);
        id
    }

    fn start_bootstraps(&mut self) {
        loop {
            let offered = self.ask.as_ref().map_or(&[][..], |ask| &ask.machines);
            let Some(machine) = self.situation().bootstrap(self.turn, offered).cloned() else {
                return;
            };
            let room = Room::need(&self.config, &machine);
            let run = self.begin(&machine, room, None);
            self.machines.bootstraps(&machine.name, self.now);
            self.turn = Turn::Build;
            self.act(Action::StartBootstrap {
                run,
                machine: machine.name,
                cpus: room.cpus,
                ram_kib: room.ram_kib,
            });
        }
    }

    fn ask_next(&mut self) {
        for index in self.controllers.due(self.now, &mut self.random) {
            let controller = &self.controllers.all[index];
            let priority = controller.priority;
            let situation = self.situation();
            if situation.is_held_back(priority) {
                continue;
            }
            let machines: Vec<String> = situation
                .offers(priority)
                .into_iter()
                .map(|m| m.name.clone())
                .collect();
            if machines.is_empty() {
                continue;
            }
            let hold = self.hold(&machines);
            self.machines.offered(&machines);
            let url = controller.url.clone();
            let id = AskId(self.next_id());
            self.ask = Some(Ask {
                id,
                controller: url.clone(),
                priority,
                machines: machines.clone(),
                is_held: !hold.is_zero(),
                is_cancelled: false,
                is_outdated: false,
            });
            self.act(Action::Ask {
                ask: id,
                controller: url,
                machines,
                hold,
            });
            return;
        }
    }

    /// For how long a request that offers these machines may be held.
    fn hold(&self, offered: &[String]) -> Duration {
        if !self.controllers.is_single_of_ours() {
            return Duration::ZERO;
        }
        let is_waited_for = self
            .machines
            .to_bootstrap(self.now)
            .any(|m| !self.runs.is_bootstrapping(&m.name));
        if is_waited_for && self.turn == Turn::Build {
            // A bootstrap has its turn when there is no task.
            return Duration::ZERO;
        }
        let is_all = self
            .machines
            .iter()
            .all(|m| matches!(m.state, MachineState::Bad { .. }) || offered.contains(&m.name));
        if is_all {
            self.config.hold
        } else {
            self.config.hold.min(SHORT_HOLD)
        }
    }

    /// Tells, once, that there can be no new work, and that there can be again.
    fn tell_idle(&mut self) {
        let now = match self.mode {
            Mode::Draining { .. } | Mode::Stopping => Some(IdleReason::Draining),
            Mode::Ended => return,
            Mode::Running => self.block().or_else(|| self.nothing_usable()),
        };
        if now == self.idle {
            return;
        }
        let report = match &now {
            Some(why) => Report::Idle { why: why.clone() },
            None => Report::Working,
        };
        self.idle = now;
        self.report(report);
    }

    fn nothing_usable(&self) -> Option<IdleReason> {
        if self.enumerated.is_none() {
            // Not known now: as it was.
            return self
                .idle
                .clone()
                .filter(|why| matches!(why, IdleReason::NoMachines | IdleReason::NothingUsable));
        }
        if self.machines.is_empty() {
            return Some(IdleReason::NoMachines);
        }
        let is_usable = self.machines.usable(self.now).next().is_some()
            || self.machines.to_bootstrap(self.now).next().is_some();
        (!is_usable && self.runs.is_empty()).then_some(IdleReason::NothingUsable)
    }
}

#[cfg(test)]
mod tests;
