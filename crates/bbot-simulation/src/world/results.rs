//! The results of the world: spooled by the agents, and sent until the controllers have taken them.

use std::time::Duration;

use bbot_agent::delivery::plan::{Entry, Fate, Id, Verdict};
use bbot_agent::supervisor::Kin;
use bbot_manifest::Status;

use super::{REQUEST_TIMEOUT, What, World};
use crate::agent::{Assigned, Spooled};
use crate::check;
use crate::script::CrashPoint;

impl World {
    pub(super) fn plan(&mut self, agent: usize, id: u64, spooled: &Spooled) {
        let entry = Entry {
            origin: self.controllers[spooled.controller].url.clone(),
            kin: self.controllers[spooled.controller].kin,
            age: self.now - spooled.written,
            gate: None,
        };
        let now = self.since(agent);
        self.agents[agent].plan.add(Id(id), entry, now);
    }

    /// What is said of a task that will not be done: the strangers here, of 2017, do not know `interrupt`.
    pub(super) fn not_done(&self, controller: usize) -> Status {
        match self.controllers[controller].kin {
            Kin::Ours => Status::Interrupt,
            Kin::Stranger => Status::Abort,
        }
    }

    /// A result that the world knows of.
    pub(super) fn brought(&mut self, spooled: &Spooled) {
        let key = (
            self.controllers[spooled.controller].url.clone(),
            spooled.session,
        );
        self.results.entry(key).or_default().push(spooled.status);
    }

    /// A task has its result: on disk, then what was held is released, then it is sent. False: the agent was killed
    /// over it.
    pub(super) fn result(&mut self, agent: usize, assigned: &Assigned, status: Status) -> bool {
        let status = match status {
            Status::Interrupt => self.not_done(assigned.controller),
            status => status,
        };
        self.last += 1;
        let id = self.last;
        let spooled = Spooled {
            controller: assigned.controller,
            session: assigned.task.session,
            status,
            written: self.now,
        };
        self.brought(&spooled);
        self.agents[agent].spool.insert(id, spooled.clone());
        if status != Status::Interrupt && self.crashes(agent, CrashPoint::AfterSpool) {
            return false;
        }
        self.agents[agent].held.remove(&assigned.held);
        self.plan(agent, id, &spooled);
        self.deliver(agent);
        true
    }

    pub(super) fn deliver(&mut self, agent: usize) {
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

    pub(super) fn posted(
        &mut self,
        agent: usize,
        life: u64,
        id: u64,
        verdict: Verdict,
    ) -> Result<(), String> {
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
}
