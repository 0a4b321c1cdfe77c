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
mod asking;
mod backoff;
mod controllers;
mod decide;
mod ends;
mod machines;
pub mod priority;
mod room;
mod runs;
mod view;
mod work;

use std::collections::VecDeque;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;

pub use api::*;
use controllers::Controllers;
use decide::{Situation, Turn};
use machines::Machines;
pub use priority::{Priority, PriorityError};
use runs::Runs;

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
    since: Time,
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
    /// How many machines in a row have filled their room, with nothing done between.
    fills: u32,
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
    host: HostTrouble,
    ask: Option<Ask>,
    waiting: Option<Waiting>,
    turn: Turn,
    /// Whether changes of the machines are told.
    is_watched: bool,
    /// Whether something has changed since the look that goes on began.
    must_look_again: bool,
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
            host: HostTrouble::default(),
            ask: None,
            waiting: None,
            turn: Turn::Bootstrap,
            is_watched: false,
            must_look_again: false,
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
            Event::Watched(is_watched) => self.is_watched = is_watched,
            Event::MachinesChanged => {
                self.enumerated = None;
                // What is being looked at may have been seen before.
                self.must_look_again |= self.is_enumerating;
            }
            Event::Answered { ask, answer, kin } => self.answered(ask, answer, kin),
            Event::RunEnded { run, outcome } => self.run_ended(run, outcome),
            Event::BootstrapEnded { run, outcome } => self.bootstrap_ended(run, outcome),
            Event::Resources(HostState::Ok) => {
                if self.host.low.take().is_some() {
                    self.changed();
                }
            }
            Event::Resources(HostState::Low(why)) => self.host.low = Some(why),
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

    /// There may be more to offer than a moment ago, other machines perhaps.
    fn changed(&mut self) {
        self.enumerated = None;
        self.must_look_again |= self.is_enumerating;
        self.has_room();
    }

    /// There may be more to offer than a moment ago, of the same machines.
    fn has_room(&mut self) {
        if !self.is_watched {
            self.enumerated = None;
        }
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
        self.enumerated = (!std::mem::take(&mut self.must_look_again)).then_some(self.now);
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
