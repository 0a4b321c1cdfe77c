//! The world: events in the order of their time, and a network that loses, delays and repeats.

mod agents;
mod controllers;
mod faults;
mod figures;
mod results;
mod runs;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bbot_agent::delivery::plan::Verdict;
use bbot_agent::supervisor::{Event, HostState, Supervisor, Time};
use bbot_manifest::Status;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

pub use figures::Figures;

use crate::agent::{Agent, Run, Work};
use crate::check;
use crate::controller::{Controller, Heard, Held, Task};
use crate::script::{Fault, Script};

/// How long an agent waits for an answer, beyond what the controller may hold the request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// All must be done so long after the last fault.
const BOUND: Duration = Duration::from_secs(24 * 3600);

/// No seed needs so many steps.
const STEPS: u64 = 200_000;

/// How many steps a failure shows.
const TRACE: usize = 60;

/// Something that happens at a moment.
#[derive(Debug, Clone)]
enum What {
    Submit(usize, usize),
    Fault(usize),
    AgentStarts(usize),
    ControllerStarts(usize),
    Undrain(usize),
    HostRecovers(usize),
    Tick(usize, u64),
    PlanTick(usize, u64),
    Enumerated(usize, u64),
    AskArrives(usize, Held),
    HoldEnds(usize, u64),
    Answered(usize, u64, u64, Reply),
    AskTimeout(usize, u64, u64),
    RunEnds(usize, u64, u64, u32),
    RenewDue(usize, u64, u64, Duration),
    RenewArrives(usize, u64, u64),
    Renewed(usize, u64, u64, bool),
    /// Controller, agent, life, entry, session, status.
    PostArrives(usize, usize, u64, u64, u64, Status),
    Posted(usize, u64, u64, Verdict),
    Lapse(usize),
}

/// A controller's answer on its way.
#[derive(Debug, Clone)]
enum Reply {
    Nothing,
    Rubbish,
    Down,
    Task(usize, Task),
}

/// Until when the way to a controller is bad, and how.
#[derive(Debug, Clone, Copy, Default)]
struct Way {
    lossy_until: Time,
    slow_until: Time,
    twice_until: Time,
}

pub(crate) struct World {
    random: StdRng,
    pub(crate) now: Time,
    events: BTreeMap<(Time, u64), What>,
    last: u64,
    pub(crate) agents: Vec<Agent>,
    pub(crate) controllers: Vec<Controller>,
    ways: Vec<Way>,
    faults: Vec<(Time, Fault)>,
    tasks_left: usize,
    quiet: Time,
    is_ending: bool,
    pub(crate) figures: Figures,
    /// What the runs of a session came to, by controller and session.
    pub(crate) results: BTreeMap<(String, u64), Vec<Status>>,
    trace: Option<VecDeque<String>>,
}

impl World {
    pub(crate) fn new(seed: u64, is_traced: bool) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let script = Script::new(&mut random);
        let urls: Vec<(String, &'static str)> = script
            .controllers
            .iter()
            .enumerate()
            .map(|(n, (_, priority))| (format!("http://c{n}"), *priority))
            .collect();
        let controllers: Vec<Controller> = script
            .controllers
            .iter()
            .zip(&urls)
            .map(|((kin, _), (url, _))| Controller::new(url.clone(), *kin, script.machines))
            .collect();
        let agents = script.hosts.iter().map(|host| Agent::new(host, &urls));
        let mut world = Self {
            random,
            now: Time::ZERO,
            events: BTreeMap::new(),
            last: 0,
            agents: agents.collect(),
            ways: vec![Way::default(); controllers.len()],
            controllers,
            tasks_left: script.tasks.len(),
            quiet: script.quiet,
            faults: script.faults,
            is_ending: false,
            figures: Figures::default(),
            results: BTreeMap::new(),
            trace: is_traced.then(VecDeque::new),
        };
        for (at, controller, machine) in script.tasks {
            world.at(at, What::Submit(controller, machine));
        }
        for n in 0..world.faults.len() {
            world.at(world.faults[n].0, What::Fault(n));
        }
        for agent in 0..world.agents.len() {
            world.at(Time::ZERO, What::AgentStarts(agent));
        }
        world
    }

    pub(crate) fn figures(&self) -> Figures {
        let mut figures = self.figures;
        figures.seconds = self.now.as_secs();
        figures.late = self.controllers.iter().map(|c| c.late).sum();
        figures
    }

    pub(crate) fn trace(&self) -> Vec<String> {
        self.trace.iter().flatten().cloned().collect()
    }

    /// Plays until everything is done.
    pub(crate) fn play(&mut self) -> Result<(), String> {
        while let Some(((at, _), what)) = self.events.pop_first() {
            self.now = at;
            self.figures.steps += 1;
            if self.trace.is_some() {
                let line = format!("{:9.3} {what:?}", at.as_secs_f64());
                self.note(line);
            }
            self.step(what)?;
            check::controllers(self)?;
            if self.is_ending && self.agents.iter().all(|a| a.supervisor.is_none()) {
                break;
            }
            if !self.is_ending && self.is_done() {
                self.is_ending = true;
                for agent in 0..self.agents.len() {
                    let deadline = self.since(agent) + Duration::from_secs(60);
                    self.agents[agent].is_draining = true;
                    self.tell(agent, Event::Drain { deadline })?;
                }
            }
            if self.now > self.quiet + BOUND {
                return Err(format!(
                    "not done {} h after the last fault: {}",
                    BOUND.as_secs() / 3600,
                    check::unfinished(self)
                ));
            }
            if self.figures.steps > STEPS {
                return Err(format!(
                    "not done after {STEPS} steps: {}",
                    check::unfinished(self)
                ));
            }
        }
        check::at_the_end(self)
    }

    fn note(&mut self, line: String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() >= TRACE {
                trace.pop_front();
            }
            trace.push_back(line);
        }
    }

    fn is_done(&self) -> bool {
        self.tasks_left == 0
            && self.now > self.quiet
            && self
                .agents
                .iter()
                .all(|a| a.supervisor.is_some() && a.spool.is_empty() && a.runs.is_empty())
            && self
                .controllers
                .iter()
                .all(|c| c.is_up && c.builds.iter().all(|b| b.state.is_over()))
    }

    fn at(&mut self, at: Time, what: What) {
        self.last += 1;
        self.events.insert((at, self.last), what);
    }

    fn later(&mut self, pause: Duration, what: What) {
        self.at(self.now + pause, what);
    }

    fn since(&self, agent: usize) -> Time {
        self.now - self.agents[agent].since
    }

    fn is_quiet(&self) -> bool {
        self.now >= self.quiet
    }

    /// How long a message takes; `None`: it is lost.
    fn travel(&mut self, controller: usize) -> Option<Duration> {
        let way = self.ways[controller];
        let loss = match (self.is_quiet(), way.lossy_until > self.now) {
            (true, _) => 0.0,
            (false, true) => 0.4,
            (false, false) => 0.01,
        };
        if loss > 0.0 && self.random.gen_bool(loss) {
            self.figures.lost_messages += 1;
            return None;
        }
        let most = if way.slow_until > self.now {
            40_000
        } else {
            60
        };
        Some(Duration::from_millis(self.random.gen_range(1..most)))
    }

    fn step(&mut self, what: What) -> Result<(), String> {
        match what {
            What::Submit(controller, machine) => {
                self.tasks_left -= 1;
                self.figures.tasks += 1;
                self.controllers[controller].submit(format!("m{machine}"));
                self.queue_changed(controller);
            }
            What::Fault(n) => {
                self.figures.faults += 1;
                let fault = self.faults[n].1.clone();
                self.fault(&fault)?;
            }
            What::AgentStarts(agent) => self.start(agent)?,
            What::ControllerStarts(n) => {
                let now = self.now;
                self.controllers[n].restart(now);
                self.lapse_later(n);
            }
            What::Undrain(agent) => {
                if self.agents[agent].supervisor.is_some() {
                    let a = &mut self.agents[agent];
                    a.is_draining = a.is_stopping;
                    a.deadline = a.deadline.filter(|_| a.is_stopping);
                    self.tell(agent, Event::Undrain)?;
                }
            }
            What::HostRecovers(agent) => {
                if self.agents[agent].low_until <= self.now
                    && self.agents[agent].supervisor.is_some()
                {
                    self.agents[agent].is_low = false;
                    self.tell(agent, Event::Resources(HostState::Ok))?;
                }
            }
            What::Tick(agent, life) => {
                let now = self.since(agent);
                let a = &mut self.agents[agent];
                // Another one may have been asked for since.
                if a.life == life && a.tick == Some(self.now) {
                    a.tick = None;
                    let due = a.supervisor.as_ref().and_then(Supervisor::next_deadline);
                    if due.is_some_and(|at| at <= now) {
                        self.tell(agent, Event::Tick)?;
                    } else {
                        self.schedule(agent);
                    }
                }
            }
            What::PlanTick(agent, life) => {
                if self.agents[agent].life == life && self.agents[agent].plan_tick == Some(self.now)
                {
                    self.agents[agent].plan_tick = None;
                    self.deliver(agent);
                }
            }
            What::Enumerated(agent, life) => {
                if self.agents[agent].life == life {
                    self.agents[agent].is_enumerating = false;
                    let views = self.agents[agent].views(self.now);
                    let a = &mut self.agents[agent];
                    a.seen = a
                        .machines
                        .iter()
                        .map(|m| (m.name.clone(), m.revision))
                        .collect();
                    self.tell(agent, Event::Enumerated(views))?;
                }
            }
            What::AskArrives(controller, held) => self.ask_arrives(controller, held),
            What::HoldEnds(controller, ask) => {
                let held = &mut self.controllers[controller].held;
                if let Some(at) = held.iter().position(|h| h.ask == ask) {
                    let held = held.remove(at);
                    self.reply(controller, &held, Reply::Nothing);
                }
            }
            What::Answered(agent, life, ask, reply) => self.answered(agent, life, ask, reply)?,
            What::AskTimeout(agent, life, ask) => self.answered(agent, life, ask, Reply::Down)?,
            What::RunEnds(agent, life, run, version) => {
                if self.agents[agent].life == life {
                    self.run_ends(agent, run, version)?;
                }
            }
            What::RenewDue(agent, life, session, every) => {
                let a = &self.agents[agent];
                if let Some(controller) = a.leases.get(&session).copied().filter(|_| a.life == life)
                {
                    let is_lost = a.renewals_until > self.now;
                    if let (Some(travel), false) = (self.travel(controller), is_lost) {
                        self.later(travel, What::RenewArrives(agent, life, session));
                    }
                    self.later(every, What::RenewDue(agent, life, session, every));
                }
            }
            What::RenewArrives(agent, life, session) => {
                let Some(controller) = self.agents[agent].leases.get(&session).copied() else {
                    return Ok(());
                };
                if !self.controllers[controller].is_up {
                    return Ok(());
                }
                let now = self.now;
                self.notice_lapses(controller);
                let is_good = self.controllers[controller].renew(session, now);
                self.lapse_later(controller);
                if let Some(travel) = self.travel(controller) {
                    self.later(travel, What::Renewed(agent, life, session, is_good));
                }
            }
            What::Renewed(agent, life, session, is_good) => {
                let a = &mut self.agents[agent];
                if a.life == life && !is_good {
                    // Nobody wants the result: the driver ends the run.
                    a.leases.remove(&session);
                    let of_it = |run: &Run| matches!(&run.work, Work::Task(t, _) if t.task.session == session);
                    let found = a.runs.iter().find(|(_, r)| of_it(r)).map(|(id, _)| *id);
                    if let Some(run) = found {
                        self.end_soon(agent, run);
                    }
                }
            }
            What::PostArrives(controller, agent, life, entry, session, status) => {
                let c = &mut self.controllers[controller];
                let verdict = if !c.is_up {
                    Verdict::Unreachable
                } else if c.busy_until > self.now {
                    Verdict::Busy
                } else {
                    self.notice_lapses(controller);
                    match self.controllers[controller].take_result(session, status) {
                        Heard::Taken => Verdict::Taken,
                        Heard::Refused => Verdict::Refused,
                    }
                };
                self.queue_changed(controller);
                if let Some(travel) = self.travel(controller) {
                    self.later(travel, What::Posted(agent, life, entry, verdict));
                }
            }
            What::Posted(agent, life, entry, verdict) => {
                self.posted(agent, life, entry, verdict)?;
            }
            What::Lapse(controller) => {
                self.controllers[controller].lapse = None;
                if self.controllers[controller].is_up {
                    self.notice_lapses(controller);
                    self.queue_changed(controller);
                    self.lapse_later(controller);
                }
            }
        }
        Ok(())
    }
}
