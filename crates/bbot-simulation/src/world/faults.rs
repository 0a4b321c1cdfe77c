//! The faults of the world: what goes wrong, as the script has it.

use bbot_agent::supervisor::{Event, HostState, Priority};

use super::{Reply, What, World};
use crate::script::Fault;

impl World {
    pub(super) fn fault(&mut self, fault: &Fault) -> Result<(), String> {
        let now = self.now;
        match *fault {
            Fault::AgentCrash { agent, down } => self.crash(agent, down),
            Fault::AgentCrashAt { agent, point } => self.agents[agent].crash_at = Some(point),
            Fault::ControllerCrash { controller, down } => {
                if self.controllers[controller].is_up {
                    self.figures.controller_crashes += 1;
                    self.controllers[controller].crash(now);
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
            Fault::Cancel { controller, number } => {
                let c = &mut self.controllers[controller];
                let index = number.checked_rem(c.builds.len());
                if c.is_up && index.is_some_and(|index| c.cancel(index)) {
                    self.figures.cancelled += 1;
                }
            }
            Fault::RenewalsLost { agent, lasts } => self.agents[agent].renewals_until = now + lasts,
        }
        Ok(())
    }
}
