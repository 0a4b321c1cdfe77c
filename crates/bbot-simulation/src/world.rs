//! The world: events in the order of their time, and a network that loses, delays and repeats.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

use bbot_agent::delivery::plan::{Entry, Fate, Id, Plan, Verdict};
use bbot_agent::supervisor::{
    Action, Answer, AskId, BootstrapOutcome, Event, HostState, Kin, Outcome, Priority, RunId,
    Supervisor, Time,
};
use bbot_controller::queue::State;
use bbot_manifest::Status;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::agent::{Agent, Assigned, Run, Spooled, Work};
use crate::check;
use crate::controller::{Controller, Heard, Held, Task};
use crate::script::{CrashPoint, Fault, Script};

/// How long an agent waits for an answer, beyond what the controller may hold the request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// All must be done so long after the last fault.
const BOUND: Duration = Duration::from_secs(24 * 3600);

/// No seed needs so many steps.
const STEPS: u64 = 200_000;

/// How many steps a failure shows.
const TRACE: usize = 60;

/// What a run, or many, came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// Tasks that were submitted, all with one result in the end.
    pub tasks: u64,
    /// Faults that were planted.
    pub faults: u64,
    /// Steps that were played, the rules checked after each.
    pub steps: u64,
    /// Agents that were killed.
    pub agent_crashes: u64,
    /// Controllers that were killed.
    pub controller_crashes: u64,
    /// Messages that were lost.
    pub lost_messages: u64,
    /// Bootstraps that began.
    pub bootstraps: u64,
    /// Runs that were interrupted by the agent.
    pub interrupts: u64,
    /// Tasks that were given back without having run.
    pub given_back: u64,
    /// Leases that lapsed.
    pub lapses: u64,
    /// Results that were taken although the lease had lapsed.
    pub late: u64,
    /// Builds that ended as `abort` since they came back too often.
    pub given_up: u64,
    /// Virtual seconds.
    pub seconds: u64,
}

impl AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.tasks += other.tasks;
        self.faults += other.faults;
        self.steps += other.steps;
        self.agent_crashes += other.agent_crashes;
        self.controller_crashes += other.controller_crashes;
        self.lost_messages += other.lost_messages;
        self.bootstraps += other.bootstraps;
        self.interrupts += other.interrupts;
        self.given_back += other.given_back;
        self.lapses += other.lapses;
        self.late += other.late;
        self.given_up += other.given_up;
        self.seconds += other.seconds;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} agent crashes, {} controller crashes, {} lost messages, {} bootstraps, {} interrupted runs, {} tasks \
             given back, {} lapsed leases, {} late results, {} builds given up, {} virtual hours",
            self.agent_crashes,
            self.controller_crashes,
            self.lost_messages,
            self.bootstraps,
            self.interrupts,
            self.given_back,
            self.lapses,
            self.late,
            self.given_up,
            self.seconds / 3600
        )
    }
}

/// Something that happens at a moment.
#[derive(Debug, Clone)]
enum What {
    Submit(usize, usize),
    Fault(usize),
    AgentStarts(usize),
    ControllerStarts(usize),
    Undrain(usize),
    HostRecovers(usize),
    Resumed(usize),
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
                .all(|c| c.is_up && c.builds.iter().all(|b| b.state == State::Built))
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
            What::Resumed(agent) => {
                self.agents[agent].suspended = 0;
                self.tell(agent, Event::SuspendedRam(0))?;
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

    // The controllers.

    fn notice_lapses(&mut self, controller: usize) {
        let now = self.now;
        self.figures.lapses += self.controllers[controller].requeue_lapsed(now);
    }

    fn lapse_later(&mut self, controller: usize) {
        if let Some(at) = self.controllers[controller].next_lapse(self.now) {
            let at = at.max(self.now + Duration::from_millis(1));
            let c = &mut self.controllers[controller];
            if c.lapse.is_none_or(|lapse| at < lapse) {
                c.lapse = Some(at);
                self.at(at, What::Lapse(controller));
            }
        }
    }

    /// Requests that are held are answered where there is a task now.
    fn queue_changed(&mut self, controller: usize) {
        if !self.controllers[controller].is_up {
            return;
        }
        for held in std::mem::take(&mut self.controllers[controller].held) {
            if !self.try_hand_out(controller, &held) {
                self.controllers[controller].held.push(held);
            }
        }
    }

    fn try_hand_out(&mut self, controller: usize, held: &Held) -> bool {
        let (session, now) = (self.last + 1, self.now);
        let c = &mut self.controllers[controller];
        let Some(mut task) = c.hand_out(&held.machines, session, now) else {
            return false;
        };
        self.last += 1;
        if c.confused_until > now {
            task.machine = "windows".to_owned();
        }
        self.lapse_later(controller);
        self.reply(controller, held, Reply::Task(controller, task));
        true
    }

    fn ask_arrives(&mut self, controller: usize, held: Held) {
        let c = &self.controllers[controller];
        if !c.is_up {
            return self.reply(controller, &held, Reply::Down);
        }
        if c.rubbish_until > self.now {
            return self.reply(controller, &held, Reply::Rubbish);
        }
        self.notice_lapses(controller);
        if self.try_hand_out(controller, &held) {
            return;
        }
        if self.controllers[controller].kin == Kin::Ours && held.until > self.now {
            self.at(held.until, What::HoldEnds(controller, held.ask));
            self.controllers[controller].held.push(held);
        } else {
            self.reply(controller, &held, Reply::Nothing);
        }
    }

    fn reply(&mut self, controller: usize, held: &Held, reply: Reply) {
        if let Some(travel) = self.travel(controller) {
            self.later(
                travel,
                What::Answered(held.agent, held.life, held.ask, reply),
            );
        }
    }

    // The agents.

    fn start(&mut self, agent: usize) -> Result<(), String> {
        let seed = self.random.r#gen();
        let now = self.now;
        let a = &mut self.agents[agent];
        if a.supervisor.is_some() {
            return Ok(());
        }
        a.since = now;
        a.supervisor = Some(Supervisor::new(a.config.clone(), seed));
        a.plan = Plan::new(seed);
        // What was held was not done: it goes behind the results that wait already.
        for (_, held) in std::mem::take(&mut a.held) {
            self.last += 1;
            a.spool.insert(self.last, held);
        }
        let waiting: Vec<(u64, Spooled)> = a.spool.iter().map(|(id, s)| (*id, s.clone())).collect();
        for (id, spooled) in waiting {
            self.plan(agent, id, &spooled);
        }
        self.tell(agent, Event::Tick)?;
        self.deliver(agent);
        Ok(())
    }

    fn plan(&mut self, agent: usize, id: u64, spooled: &Spooled) {
        let entry = Entry {
            origin: self.controllers[spooled.controller].url.clone(),
            kin: self.controllers[spooled.controller].kin,
            age: self.now - spooled.written,
            gate: None,
        };
        let now = self.since(agent);
        self.agents[agent].plan.add(Id(id), entry, now);
    }

    fn crash(&mut self, agent: usize, down: Duration) {
        if self.agents[agent].supervisor.is_some() {
            self.figures.agent_crashes += 1;
            self.agents[agent].crash();
            // Controllers notice that nobody waits for the answer any more.
            for controller in &mut self.controllers {
                controller.held.retain(|h| h.agent != agent);
            }
            self.later(down, What::AgentStarts(agent));
        }
    }

    /// Whether the agent is killed here.
    fn crashes(&mut self, agent: usize, point: CrashPoint) -> bool {
        let is_hit = self.agents[agent].crash_at == Some(point);
        if is_hit {
            self.agents[agent].crash_at = None;
            self.crash(agent, Duration::from_secs(20));
        }
        is_hit
    }

    /// Tells an agent's supervisor what happened, and does what it wants.
    pub(crate) fn tell(&mut self, agent: usize, event: Event) -> Result<(), String> {
        let now = self.since(agent);
        let Some(supervisor) = &mut self.agents[agent].supervisor else {
            return Ok(());
        };
        supervisor.handle(event, now);
        let mut actions = Vec::new();
        while let Some(action) = supervisor.poll_action() {
            actions.push(action);
        }
        for action in actions {
            if self.trace.is_some() {
                self.note(format!("            agent {agent}: {action:?}"));
            }
            self.act(agent, action)?;
        }
        check::agent(self, agent)?;
        self.schedule(agent);
        Ok(())
    }

    fn schedule(&mut self, agent: usize) {
        let a = &mut self.agents[agent];
        let Some(due) = a.supervisor.as_ref().and_then(Supervisor::next_deadline) else {
            return;
        };
        let at = a.since + due;
        if a.tick.is_none_or(|tick| at < tick) {
            a.tick = Some(at);
            let life = a.life;
            self.at(at, What::Tick(agent, life));
        }
    }

    fn act(&mut self, agent: usize, action: Action) -> Result<(), String> {
        check::action(self, agent, &action)?;
        let life = self.agents[agent].life;
        match action {
            Action::Enumerate => {
                self.agents[agent].is_enumerating = true;
                let takes = Duration::from_millis(self.random.gen_range(1..200));
                self.later(takes, What::Enumerated(agent, life));
            }
            Action::Ask {
                ask,
                controller,
                machines,
                hold,
            } => {
                let to = self.controllers.iter().position(|c| c.url == controller);
                let to =
                    to.ok_or_else(|| format!("an unknown controller {controller} is asked"))?;
                self.agents[agent].ask = Some((ask.0, to));
                self.agents[agent].is_disturbed = false;
                let held = Held {
                    agent,
                    life,
                    ask: ask.0,
                    machines,
                    until: self.now + hold,
                };
                if let Some(travel) = self.travel(to) {
                    self.later(travel, What::AskArrives(to, held));
                }
                self.later(hold + REQUEST_TIMEOUT, What::AskTimeout(agent, life, ask.0));
            }
            Action::CancelAsk { ask } => {
                for controller in &mut self.controllers {
                    controller
                        .held
                        .retain(|h| (h.agent, h.life, h.ask) != (agent, life, ask.0));
                }
                self.later(
                    Duration::from_millis(1),
                    What::AskTimeout(agent, life, ask.0),
                );
            }
            Action::StartTask {
                run,
                ask,
                machine,
                cpus,
                ram_kib,
            } => {
                let assigned = self.agents[agent].assigned.remove(&ask.0);
                let assigned = assigned.ok_or_else(|| format!("{run} is for no task that came"))?;
                let (outcome, takes) = self.guest(agent);
                let work = Work::Task(assigned, outcome);
                self.begin(
                    agent,
                    run,
                    Run {
                        machine,
                        cpus,
                        ram_kib,
                        work,
                        version: 0,
                        is_interrupted: false,
                    },
                    takes,
                );
            }
            Action::StartBootstrap {
                run,
                machine,
                cpus,
                ram_kib,
            } => {
                self.figures.bootstraps += 1;
                let revision = self.agents[agent]
                    .machine(&machine)
                    .map_or(0, |m| m.revision);
                let takes = Duration::from_millis(self.random.gen_range(5_000..300_000));
                let seen = self.agents[agent].seen.get(&machine).copied().unwrap_or(0);
                let work = Work::Bootstrap { revision, seen };
                self.begin(
                    agent,
                    run,
                    Run {
                        machine,
                        cpus,
                        ram_kib,
                        work,
                        version: 0,
                        is_interrupted: false,
                    },
                    takes,
                );
            }
            Action::GiveBack { ask, .. } => {
                self.figures.given_back += 1;
                let assigned = self.agents[agent].assigned.remove(&ask.0);
                let assigned = assigned
                    .ok_or_else(|| format!("{ask} brought no task, and it is given back"))?;
                self.result(agent, &assigned, Status::Interrupt);
            }
            Action::Interrupt { run, .. } => {
                self.figures.interrupts += 1;
                self.end_soon(agent, run.0);
            }
            Action::Exit => {
                self.agents[agent].crash();
                if !self.is_ending {
                    let down = Duration::from_millis(self.random.gen_range(1_000..60_000));
                    self.later(down, What::AgentStarts(agent));
                }
            }
            Action::Report(_) => {}
        }
        Ok(())
    }

    /// What a guest does with its task, and for how long.
    fn guest(&mut self, agent: usize) -> (Outcome, Duration) {
        let is_bad = !self.is_quiet() && self.agents[agent].guests_until > self.now;
        let trouble = if is_bad { 0.7 } else { 0.02 };
        if std::mem::take(&mut self.agents[agent].host_fails) {
            return (Outcome::HostFailed, Duration::from_secs(1));
        }
        if self.is_quiet() || !self.random.gen_bool(trouble) {
            let status = match self.random.gen_range(0..10) {
                0 | 1 => Status::Error,
                2 => Status::Warning,
                _ => Status::Success,
            };
            let takes = Duration::from_millis(self.random.gen_range(500..150_000));
            return (Outcome::Done(status), takes);
        }
        let takes = |seconds| Duration::from_secs(seconds);
        match self.random.gen_range(0..6) {
            // It crashes, or panics.
            0 | 1 => (Outcome::Done(Status::Abnormal), takes(20)),
            // It hangs, until the time-out.
            2 => (Outcome::Done(Status::Abort), takes(1800)),
            // It does not start, three times.
            3 => (Outcome::Done(Status::Abort), takes(180)),
            4 => (Outcome::MachineFailed, takes(2)),
            _ => (Outcome::LinkFailed, takes(2)),
        }
    }

    fn begin(&mut self, agent: usize, id: RunId, run: Run, takes: Duration) {
        let life = self.agents[agent].life;
        self.agents[agent].runs.insert(id.0, run);
        self.later(takes, What::RunEnds(agent, life, id.0, 0));
    }

    fn end_soon(&mut self, agent: usize, run: u64) {
        let pause = Duration::from_millis(self.random.gen_range(1..3000));
        let a = &mut self.agents[agent];
        if let Some(r) = a.runs.get_mut(&run) {
            r.version += 1;
            r.is_interrupted = true;
            let what = What::RunEnds(agent, a.life, run, r.version);
            self.later(pause, what);
        }
    }

    fn run_ends(&mut self, agent: usize, id: u64, version: u32) -> Result<(), String> {
        let Some(run) = self.agents[agent]
            .runs
            .get(&id)
            .filter(|r| r.version == version)
            .cloned()
        else {
            return Ok(());
        };
        if !run.is_interrupted {
            check::run_ends(self, agent, id)?;
        }
        let event = match run.work {
            Work::Task(assigned, outcome) => {
                if matches!(outcome, Outcome::MachineFailed | Outcome::HostFailed) {
                    self.agents[agent].is_disturbed = true;
                }
                let outcome = if run.is_interrupted {
                    Outcome::Interrupted
                } else {
                    outcome
                };
                let status = match outcome {
                    Outcome::Done(status) => status,
                    Outcome::MachineFailed | Outcome::LinkFailed => Status::Abort,
                    Outcome::HostFailed | Outcome::Interrupted => Status::Interrupt,
                };
                if status != Status::Interrupt && self.crashes(agent, CrashPoint::BeforeSpool) {
                    return Ok(());
                }
                self.agents[agent].runs.remove(&id);
                if !self.result(agent, &assigned, status) {
                    return Ok(());
                }
                Event::RunEnded {
                    run: RunId(id),
                    outcome,
                }
            }
            Work::Bootstrap { revision, seen } => {
                self.agents[agent].runs.remove(&id);
                let mut failed = None;
                let outcome = match self.agents[agent].machine(&run.machine) {
                    Some(machine) if machine.fails > 0 && !run.is_interrupted => {
                        machine.fails -= 1;
                        failed = Some(machine.name.clone());
                        BootstrapOutcome::Failed("no sign of life".to_owned())
                    }
                    Some(machine) if machine.revision == revision && !run.is_interrupted => {
                        machine.bootstrapped = Some(revision);
                        BootstrapOutcome::Done
                    }
                    _ => BootstrapOutcome::Interrupted,
                };
                if let Some(machine) = failed {
                    let now = self.now;
                    self.agents[agent].failed.insert(machine, (now, seen));
                }
                Event::BootstrapEnded {
                    run: RunId(id),
                    outcome,
                }
            }
        };
        self.tell(agent, event)
    }

    /// A task has its result: on disk, then what was held is released, then it is sent. False: the agent was killed
    /// over it.
    fn result(&mut self, agent: usize, assigned: &Assigned, status: Status) -> bool {
        let kin = self.controllers[assigned.controller].kin;
        if status == Status::Interrupt && kin == Kin::Stranger {
            // One of 2017 does not know this status.
            self.agents[agent].leases.remove(&assigned.task.session);
            return true;
        }
        self.last += 1;
        let id = self.last;
        let spooled = Spooled {
            controller: assigned.controller,
            session: assigned.task.session,
            status,
            written: self.now,
        };
        let key = (
            self.controllers[assigned.controller].url.clone(),
            spooled.session,
        );
        self.results.entry(key).or_default().push(status);
        self.agents[agent].spool.insert(id, spooled.clone());
        if status != Status::Interrupt && self.crashes(agent, CrashPoint::AfterSpool) {
            return false;
        }
        if let Some(held) = assigned.held {
            self.agents[agent].held.remove(&held);
        }
        self.plan(agent, id, &spooled);
        self.deliver(agent);
        true
    }

    fn answered(&mut self, agent: usize, life: u64, ask: u64, reply: Reply) -> Result<(), String> {
        let a = &mut self.agents[agent];
        let Some((_, asked)) = a.ask.filter(|(id, _)| a.life == life && *id == ask) else {
            return Ok(());
        };
        a.ask = None;
        let (answer, is_known) = match reply {
            Reply::Nothing => (Answer::Nothing, true),
            Reply::Rubbish => (Answer::Refused("unreadable".to_owned()), false),
            Reply::Down => (Answer::Failed("no answer".to_owned()), false),
            Reply::Task(controller, task) => {
                let is_ours = self.controllers[controller].kin == Kin::Ours;
                let held = is_ours.then(|| {
                    self.last += 1;
                    let spooled = Spooled {
                        controller,
                        session: task.session,
                        status: Status::Interrupt,
                        written: self.now,
                    };
                    self.agents[agent].held.insert(self.last, spooled);
                    self.last
                });
                if self.crashes(agent, CrashPoint::TaskCame) {
                    return Ok(());
                }
                let machine = task.machine.clone();
                self.agents[agent].is_disturbed |= machine == "windows";
                if let Some(every) = task.renew {
                    self.agents[agent].leases.insert(task.session, controller);
                    self.later(
                        Duration::ZERO,
                        What::RenewDue(agent, life, task.session, every),
                    );
                }
                let assigned = Assigned {
                    controller,
                    task,
                    held,
                };
                self.agents[agent].assigned.insert(ask, assigned);
                (Answer::Task { machine }, true)
            }
        };
        let kin = is_known.then_some(self.controllers[asked].kin);
        self.tell(
            agent,
            Event::Answered {
                ask: AskId(ask),
                answer,
                kin,
            },
        )
    }

    fn deliver(&mut self, agent: usize) {
        let now = self.since(agent);
        let life = self.agents[agent].life;
        while let Some(Id(id)) = self.agents[agent].plan.next(now) {
            self.agents[agent].posts.insert(id);
            let Some(spooled) = self.agents[agent].spool.get(&id).cloned() else {
                continue;
            };
            let c = spooled.controller;
            let count = if self.ways[c].twice_until > self.now {
                2
            } else {
                1
            };
            for _ in 0..count {
                if let Some(travel) = self.travel(c) {
                    let what =
                        What::PostArrives(c, agent, life, id, spooled.session, spooled.status);
                    self.later(travel, what);
                }
            }
            self.later(
                REQUEST_TIMEOUT,
                What::Posted(agent, life, id, Verdict::Unreachable),
            );
        }
        let a = &mut self.agents[agent];
        if let Some(due) = a.plan.deadline() {
            let at = (a.since + due).max(self.now + Duration::from_millis(1));
            if a.plan_tick.is_none_or(|tick| at < tick) {
                a.plan_tick = Some(at);
                self.at(at, What::PlanTick(agent, life));
            }
        }
    }

    fn posted(&mut self, agent: usize, life: u64, id: u64, verdict: Verdict) -> Result<(), String> {
        if self.agents[agent].life != life || !self.agents[agent].posts.contains(&id) {
            return Ok(());
        }
        if verdict == Verdict::Taken && self.crashes(agent, CrashPoint::Taken) {
            return Ok(());
        }
        let now = self.since(agent);
        self.agents[agent].posts.remove(&id);
        let fate = self.agents[agent].plan.posted(Id(id), verdict, now);
        check::fate(self, agent, id, verdict, fate)?;
        match fate {
            Fate::Forget | Fate::SetAside | Fate::GivenUp { .. } => {
                let a = &mut self.agents[agent];
                if let Some(spooled) = a.spool.remove(&id) {
                    a.leases.remove(&spooled.session);
                }
            }
            Fate::Again { .. } => {}
        }
        self.deliver(agent);
        Ok(())
    }

    // What goes wrong.

    fn fault(&mut self, fault: &Fault) -> Result<(), String> {
        let now = self.now;
        match *fault {
            Fault::AgentCrash { agent, down } => self.crash(agent, down),
            Fault::AgentCrashAt { agent, point } => self.agents[agent].crash_at = Some(point),
            Fault::ControllerCrash { controller, down } => {
                if self.controllers[controller].is_up {
                    self.figures.controller_crashes += 1;
                    self.controllers[controller].is_up = false;
                    for held in std::mem::take(&mut self.controllers[controller].held) {
                        self.reply(controller, &held, Reply::Down);
                    }
                    self.later(down, What::ControllerStarts(controller));
                }
            }
            Fault::Lossy { controller, lasts } => self.ways[controller].lossy_until = now + lasts,
            Fault::Slow { controller, lasts } => self.ways[controller].slow_until = now + lasts,
            Fault::Duplicates { controller, lasts } => {
                self.ways[controller].twice_until = now + lasts;
            }
            Fault::Rubbish { controller, lasts } => {
                self.controllers[controller].rubbish_until = now + lasts;
            }
            Fault::Confused { controller, lasts } => {
                self.controllers[controller].confused_until = now + lasts;
            }
            Fault::Busy { controller, lasts } => {
                self.controllers[controller].busy_until = now + lasts;
            }
            Fault::ClockJump {
                controller,
                seconds,
            } => self.controllers[controller].wall += seconds * 1000,
            Fault::Guests { agent, lasts } => self.agents[agent].guests_until = now + lasts,
            Fault::BootstrapsFail {
                agent,
                machine,
                times,
            } => {
                if let Some(m) = self.agents[agent].machines.get_mut(machine) {
                    m.fails += times;
                    m.bootstrapped = None;
                }
            }
            Fault::NewRevision { agent, machine } => {
                if let Some(m) = self.agents[agent].machines.get_mut(machine) {
                    m.revision += 1;
                }
            }
            Fault::BadMachine {
                agent,
                machine,
                lasts,
            } => {
                if let Some(m) = self.agents[agent].machines.get_mut(machine) {
                    m.bad_until = now + lasts;
                }
            }
            Fault::HostLow { agent, lasts } => {
                if self.agents[agent].supervisor.is_some() {
                    self.agents[agent].is_low = true;
                    self.agents[agent].is_disturbed = true;
                    self.agents[agent].low_until = now + lasts;
                    self.later(lasts, What::HostRecovers(agent));
                    self.tell(
                        agent,
                        Event::Resources(HostState::Low("the disk is full".to_owned())),
                    )?;
                }
            }
            Fault::HostFails { agent } => self.agents[agent].host_fails = true,
            Fault::Suspended { agent, kib, lasts } => {
                if self.agents[agent].supervisor.is_some() {
                    self.agents[agent].suspended = kib;
                    self.agents[agent].is_disturbed = true;
                    self.later(lasts, What::Resumed(agent));
                    self.tell(agent, Event::SuspendedRam(kib))?;
                }
            }
            Fault::Drain {
                agent,
                within,
                back_after,
            } => {
                if self.agents[agent].supervisor.is_some() {
                    let deadline = self.since(agent) + within;
                    self.agents[agent].is_disturbed = true;
                    self.agents[agent].is_draining = true;
                    if !self.agents[agent].is_stopping {
                        self.agents[agent].deadline = Some(now + within);
                    }
                    if let Some(after) = back_after {
                        self.later(after, What::Undrain(agent));
                    }
                    self.tell(agent, Event::Drain { deadline })?;
                }
            }
            Fault::Stop { agent } => {
                if self.agents[agent].supervisor.is_some() {
                    self.agents[agent].is_draining = true;
                    self.agents[agent].is_stopping = true;
                    self.agents[agent].deadline = Some(now);
                    self.tell(agent, Event::Stop)?;
                }
            }
            Fault::Reload {
                agent,
                slots,
                priorities,
            } => {
                let config = &mut self.agents[agent].config;
                config.slots = slots;
                for controller in &mut config.controllers {
                    controller.priority = if priorities {
                        Priority::parse("0100").unwrap_or_default()
                    } else {
                        Priority::default()
                    };
                }
                let config = config.clone();
                self.agents[agent].is_disturbed = true;
                self.agents[agent].failed.clear();
                self.tell(agent, Event::Reload(config))?;
            }
            Fault::RenewalsLost { agent, lasts } => self.agents[agent].renewals_until = now + lasts,
        }
        Ok(())
    }
}
