//! Asking controllers for tasks, and what comes of an answer.

use std::time::Duration;

use super::controllers::Fault;
use super::decide::{Line, Turn, Way};
use super::{
    Action, Answer, Ask, AskId, IdleReason, Kin, MachineState, Mode, Report, Supervisor, Waiting,
};

/// In what time a controller has to answer when others wait for their turn: to hand out a task takes
/// milliseconds, and one that takes every connection and says nothing must not keep the host from the others.
const ANSWER: Duration = Duration::from_secs(30);

/// For how long a controller of ours may hold a request when more could be offered soon.
const SHORT_HOLD: Duration = Duration::from_secs(2);

impl Supervisor {
    pub(super) fn answered(&mut self, id: AskId, answer: Answer, kin: Option<Kin>) {
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
                let times = (ask.since, self.now);
                controllers.had_nothing(&url, config, ask.is_outdated, times);
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

    pub(super) fn trouble(&mut self, url: &str, fault: Fault, why: &str) {
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

    pub(super) fn is_anybody_to_be_asked(&self) -> bool {
        let situation = self.situation();
        let mut due = self.controllers.all.iter().filter(|c| c.next <= self.now);
        due.any(|c| !situation.is_held_back(c.priority) && !situation.offers(c.priority).is_empty())
    }

    pub(super) fn ask_next(&mut self) {
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
                since: self.now,
            });
            // Who is the only one may hold it.
            let within = (self.controllers.all.len() > 1).then_some(ANSWER);
            self.act(Action::Ask {
                ask: id,
                controller: url,
                machines,
                hold,
                within,
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
}
