//! The agents of the world: they start, are told what happens, and what they want is done.

use std::time::Duration;

use bbot_agent::delivery::plan::Plan;
use bbot_agent::supervisor::{Action, Answer, AskId, Event, Supervisor};
use bbot_manifest::Status;
use rand::Rng as _;

use super::{REQUEST_TIMEOUT, Reply, What, World};
use crate::agent::{Assigned, Run, Spooled, Work};
use crate::check;
use crate::controller::Held;
use crate::script::CrashPoint;

impl World {
    pub(super) fn start(&mut self, agent: usize) -> Result<(), String> {
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
            self.brought(&held);
            self.agents[agent].spool.insert(self.last, held);
        }
        let a = &self.agents[agent];
        let waiting: Vec<(u64, Spooled)> = a.spool.iter().map(|(id, s)| (*id, s.clone())).collect();
        for (id, spooled) in waiting {
            self.plan(agent, id, &spooled);
        }
        self.tell(agent, Event::Tick)?;
        self.deliver(agent);
        Ok(())
    }

    pub(super) fn crash(&mut self, agent: usize, down: Duration) {
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
    pub(super) fn crashes(&mut self, agent: usize, point: CrashPoint) -> bool {
        let is_hit = self.agents[agent].crash_at == Some(point);
        if is_hit {
            self.agents[agent].crash_at = None;
            self.crash(agent, Duration::from_secs(20));
        }
        is_hit
    }

    /// Tells an agent's supervisor what happened, and does what it wants.
    pub(super) fn tell(&mut self, agent: usize, event: Event) -> Result<(), String> {
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

    pub(super) fn schedule(&mut self, agent: usize) {
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
                within,
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
                let within = within.unwrap_or(REQUEST_TIMEOUT);
                self.later(hold + within, What::AskTimeout(agent, life, ask.0));
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

    pub(super) fn answered(
        &mut self,
        agent: usize,
        life: u64,
        ask: u64,
        reply: Reply,
    ) -> Result<(), String> {
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
                self.last += 1;
                let held = self.last;
                let spooled = Spooled {
                    controller,
                    session: task.session,
                    status: self.not_done(controller),
                    written: self.now,
                };
                self.agents[agent].held.insert(held, spooled);
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
}
