//! The controllers of the world: they hand out tasks, hold requests, and notice that leases lapse.

use std::time::Duration;

use bbot_agent::supervisor::Kin;

use super::{Reply, What, World};
use crate::controller::Held;

impl World {
    pub(super) fn notice_lapses(&mut self, controller: usize) {
        let now = self.now;
        self.figures.lapses += self.controllers[controller].requeue_lapsed(now);
    }

    pub(super) fn lapse_later(&mut self, controller: usize) {
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
    pub(super) fn queue_changed(&mut self, controller: usize) {
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

    pub(super) fn ask_arrives(&mut self, controller: usize, held: Held) {
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

    pub(super) fn reply(&mut self, controller: usize, held: &Held, reply: Reply) {
        if let Some(travel) = self.travel(controller) {
            self.later(
                travel,
                What::Answered(held.agent, held.life, held.ask, reply),
            );
        }
    }
}
