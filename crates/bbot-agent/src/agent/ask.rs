//! Asking the controllers for a task, each in its turn.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use bbot_manifest::{Era, MachineHeader, TaskRequest};

use super::Agent;
use crate::assignment::{self, Assignment, Terms};
use crate::controller::{Kin, Url};
use crate::delivery::Delivery;
use crate::inventory::Machine;
use crate::options::HOLD;

/// What asking the controllers has come to.
pub(super) enum Asked {
    /// A task, and the number of the controller that gave it.
    Task(Box<Assignment>, usize),
    /// No task but one for a machine that was not offered.
    UnknownMachine,
    /// No task.
    Nothing,
}

/// A task for a machine that was not offered.
#[derive(Debug, thiserror::Error)]
#[error("task from {from} for unknown machine {machine}")]
pub(super) struct UnknownMachine {
    pub(super) from: String,
    pub(super) machine: String,
}

/// A controller as far as it is known.
pub(super) struct Controller {
    pub(super) url: Url,
    pub(super) kin: Kin,
    /// The last trouble with it, so that it is told once.
    pub(super) trouble: Option<String>,
}

impl Agent {
    /// Asks the controllers until one has a task for one of the machines.
    pub(super) async fn ask(&mut self, machines: &[Machine]) -> Result<Asked> {
        let options = &self.host.options;
        let era: Era = options.era.into();
        let request = TaskRequest {
            agent: host_name()?,
            toolchain_name: options.toolchain_name.clone(),
            toolchain_version: options.toolchain_version(),
            interactive_mode: None,
            interactive_login: None,
            fingerprint: self.signer.as_ref().map(|s| s.fingerprint().to_owned()),
            auxiliary_ram: options.auxiliary_ram,
            machines: machines.iter().map(|m| m.header().clone()).collect(),
        };
        let body = request
            .serialize(era)
            .context("unable to write the task request")?;
        let count = self.controllers.len();
        let mut asked = Asked::Nothing;
        for number in (self.first..count).chain(0..self.first) {
            let url = self.controllers[number].url.clone();
            match self.ask_one(&url, number, &body, &request.machines).await {
                Ok(None) => self.trouble(number, None),
                Ok(Some(assignment)) => {
                    self.trouble(number, None);
                    self.first = (number + 1) % count;
                    return Ok(Asked::Task(Box::new(assignment), number));
                }
                Err(e) => {
                    if e.is::<UnknownMachine>() {
                        asked = Asked::UnknownMachine;
                    }
                    self.trouble(number, Some(format!("{e:#}")));
                }
            }
        }
        Ok(asked)
    }

    async fn ask_one(
        &mut self,
        url: &Url,
        number: usize,
        body: &str,
        offered: &[MachineHeader],
    ) -> Result<Option<Assignment>> {
        // One that is held keeps the others, and results that wait, from their turn.
        let is_free = self.controllers.len() == 1
            && self
                .delivery
                .as_ref()
                .and_then(Delivery::next_due)
                .is_none();
        let hold = if is_free {
            HOLD.min(Duration::from_secs(self.host.options.request_timeout) / 2)
        } else {
            Duration::ZERO
        };
        let answer = self
            .link
            .request_task(url, body.to_owned(), hold)
            .await
            .with_context(|| format!("unable to request task from {url}"))?;
        self.controllers[number].kin = answer.kin;
        let terms = Terms {
            has_key: self.signer.is_some(),
            allowed_result_urls: &self.allowed_result_urls,
        };
        let assignment = assignment::read(&answer.body, url, terms)
            .with_context(|| format!("unable to take the answer of {url}"))?;
        if let Some(assignment) = &assignment
            && !offered.iter().any(|m| m.name == assignment.task.machine)
        {
            return Err(UnknownMachine {
                from: url.to_string(),
                machine: assignment.task.machine.clone(),
            }
            .into());
        }
        Ok(assignment)
    }

    /// Tells of trouble with a controller when it is new, and when it is over.
    fn trouble(&mut self, number: usize, now: Option<String>) {
        let controller = &mut self.controllers[number];
        match (&controller.trouble, &now) {
            (Some(before), Some(now)) if before == now => tracing::debug!("{now}"),
            (_, Some(now)) => tracing::error!("{now}"),
            (Some(_), None) => tracing::info!("controller {} answers again", controller.url),
            (None, None) => {}
        }
        controller.trouble = now;
    }
}

fn host_name() -> Result<String> {
    let name = nix::unistd::gethostname().context("unable to obtain hostname")?;
    name.into_string()
        .map_err(|name| anyhow!("the host's name {} is not text", name.display()))
}
