//! The loop: machines, task, result, and again.
//!
//! ```text
//!   results that wait --> controllers
//!   enumerate machines, bootstrap what must be          (inventory)
//!   ask the controllers, each in its turn               (controller, assignment)
//!     none has a task: pause
//!     a task: sign its challenge, fetch its source      (auth, source)
//!             perform it                                (task)
//!             result to disk, then to its controller    (delivery)
//! ```
//!
//! A task that is refused (unexpected challenge, unknown machine) leaves nothing
//! behind: the next controller is asked, and a turn without a task ends in the
//! pause, so that a controller that misbehaves is not asked in a hot loop.

mod ask;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bbot_manifest::{BuildResult, Era, ResultRequest, Status};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::assignment::{self, Assignment};
use crate::auth::Signer;
use crate::controller::{self, Http, Kin, Link, Url};
use crate::delivery::Delivery;
use crate::host::{self, Host};
use crate::inventory::{self, Inventory, Machine};
use crate::options::{IDLE_PAUSE, IDLE_PAUSE_HELD, IDLE_PAUSE_OURS, Options};
use crate::run::Silent;
use crate::source::{Archive, Cache};
use crate::spool::Spool;
use crate::task::Job;
use crate::{fake, result, task, version};
use ask::{Asked, Controller, UnknownMachine};

/// What of the agent can change a build: its version. The controller gets it back
/// with the next task of the same configuration.
const AGENT_CHECKSUM: &str = version::OWN;

/// When the agent is stopped over a task, its controller is told within this time; if
/// that fails, at the next start.
const GIVE_BACK: Duration = Duration::from_secs(5);

/// Runs the agent until `stop` is cancelled or what it was asked for (a dump, a
/// fake request) is done. A machine that runs when it is stopped is killed, nothing
/// of the run is left, and the task is given back to its controller.
///
/// Snapshots block the thread, so the agent wants a current-thread runtime of its
/// own.
///
/// # Errors
///
/// Wrong options, a key that cannot be used, a directory that is not writable, a
/// program that is not installed: what the operator must mend.
pub async fn run(options: Options, stop: CancellationToken) -> Result<()> {
    options.check()?;
    let mut agent = tokio::select! {
        biased;
        () = stop.cancelled() => {
            tracing::info!("agent stopped");
            return Ok(());
        }
        agent = Agent::open(options) => agent?,
    };
    agent.until(&stop).await
}

/// What an agent works with besides its options; the tests have others.
pub(crate) struct Parts {
    pub(crate) host: Host,
    pub(crate) link: Arc<dyn Link>,
    pub(crate) signer: Option<Signer>,
    pub(crate) out: Box<dyn Write + Send>,
}

/// How a turn of the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Go on at once.
    Again,
    /// There was nothing to do.
    Idle,
    /// What was asked for is done.
    Ended,
}

pub(crate) struct Agent {
    host: Host,
    link: Arc<dyn Link>,
    signer: Option<Signer>,
    out: Box<dyn Write + Send>,
    controllers: Vec<Controller>,
    allowed_result_urls: Vec<Url>,
    /// The controller that is asked first: the one behind the one that gave the
    /// last task, so that one with much work does not starve the others.
    first: usize,
    inventory: Inventory,
    /// None where no result is posted: dumps and fake requests.
    delivery: Option<Delivery>,
    sources: Cache,
    had_machines: Option<bool>,
}

impl Agent {
    async fn open(options: Options) -> Result<Self> {
        let signer = match options.default_key() {
            Some(key) => Some(
                Signer::open(key, options.openssl.as_deref(), &options.openssl_option)
                    .await
                    .context("unable to obtain authentication public key")?,
            ),
            None => None,
        };
        let link = Arc::new(Http::new(Duration::from_secs(options.request_timeout))?);
        banner(&options, signer.as_ref());
        let host = Host::open(options).await?;
        Self::new(Parts {
            host,
            link,
            signer,
            out: Box::new(io::stdout()),
        })
    }

    pub(crate) fn new(parts: Parts) -> Result<Self> {
        let options = &parts.host.options;
        let controller = |text: &String| {
            Ok(Controller {
                url: controller::task_url(text)?,
                kin: Kin::Stranger,
                trouble: None,
            })
        };
        let controllers = options
            .controllers
            .iter()
            .map(controller)
            .collect::<Result<_>>()?;
        let allowed = options
            .allow_result_url
            .iter()
            .map(|text| controller::parse_url(text));
        let allowed_result_urls = allowed.collect::<Result<_, _>>()?;
        let state = options.state_dir();
        let hint = || {
            format!(
                "give --state a directory that is writable (now {})",
                state.display()
            )
        };
        if !options.is_fake() {
            parts.host.try_run_folders()?;
        }
        let posts = !options.dump_machines
            && !options.dump_task
            && !options.dump_result
            && options.fake_request.is_none();
        let delivery = if posts {
            // Agents of several toolchains share the host, and the default.
            let own = state.join(parts.host.toolchain.as_str());
            Some(Delivery::new(Spool::open(&own).with_context(hint)?))
        } else {
            None
        };
        let sources = Cache::open(&state).with_context(hint)?;
        Ok(Self {
            controllers,
            allowed_result_urls,
            delivery,
            sources,
            host: parts.host,
            link: parts.link,
            signer: parts.signer,
            out: parts.out,
            first: 0,
            inventory: Inventory::default(),
            had_machines: None,
        })
    }

    /// Works until there is nothing more to do, something is at fault, or `stop` is
    /// cancelled; a task that is not finished then is given back.
    async fn until(&mut self, stop: &CancellationToken) -> Result<()> {
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => {
                tracing::info!("agent stopped");
                Ok(())
            }
            ended = self.work() => ended,
        };
        if let Some(delivery) = &mut self.delivery {
            let posted = tokio::time::timeout(GIVE_BACK, delivery.give_back(&*self.link)).await;
            if posted.is_err() {
                tracing::warn!("the controller does not answer; it is told at the next start");
            }
        }
        ended
    }

    /// Turns until there is nothing more to do, which for a daemon is never.
    async fn work(&mut self) -> Result<()> {
        Inventory::sweep(&self.host);
        loop {
            match self.turn().await? {
                Turn::Again => {}
                Turn::Ended => return Ok(()),
                Turn::Idle => tokio::time::sleep(self.pause()).await,
            }
        }
    }

    /// How long to pause when there is nothing to do.
    pub(crate) fn pause(&self) -> Duration {
        let all_ours = self.controllers.iter().all(|c| c.kin == Kin::Ours);
        let idle = match self.host.options.idle_pause {
            Some(seconds) => Duration::from_secs(seconds),
            None if self.had_machines == Some(false) => IDLE_PAUSE_OURS,
            None if all_ours && self.controllers.len() == 1 => IDLE_PAUSE_HELD,
            None if all_ours => IDLE_PAUSE_OURS,
            None => IDLE_PAUSE,
        };
        match self.delivery.as_ref().and_then(Delivery::next_due) {
            Some(due) => idle.min(due.saturating_duration_since(Instant::now())),
            None => idle,
        }
    }

    /// One turn of the loop.
    pub(crate) async fn turn(&mut self) -> Result<Turn> {
        let options = &self.host.options;
        if let Some(delivery) = &mut self.delivery {
            delivery.deliver(&*self.link).await;
        }
        let machines = match &options.fake_machine {
            Some(file) => vec![inventory::fake_machine(&self.host, file)?],
            None => self.inventory.take(&self.host, &mut Silent).await?,
        };
        if options.dump_machines {
            let mut text = String::new();
            for machine in &machines {
                text.push_str(&machine.header().serialize(options.era.into())?);
            }
            return self.print(&text);
        }
        if machines.is_empty() {
            if options.fake_request.is_some() {
                bail!(
                    "no build machines for toolchain {} in {}",
                    self.host.toolchain,
                    options.machines.display()
                );
            }
            if self.had_machines != Some(false) {
                tracing::warn!("no build machines for toolchain {}", self.host.toolchain);
            }
            self.had_machines = Some(false);
            return Ok(Turn::Idle);
        }
        self.had_machines = Some(true);

        let (assignment, from, kin) = match &options.fake_request {
            Some(file) => {
                let name = file.display().to_string();
                let body = std::fs::read(file).with_context(|| format!("unable to read {name}"))?;
                (assignment::fake(&body, &name)?, name, Kin::Stranger)
            }
            None => match self.ask(&machines).await? {
                Asked::Task(assignment, controller) => {
                    let Controller { url, kin, .. } = &self.controllers[controller];
                    (*assignment, url.to_string(), *kin)
                }
                // The seed ends so, and says nothing on standard output.
                Asked::UnknownMachine if self.host.options.dump_task => return Ok(Turn::Ended),
                Asked::UnknownMachine | Asked::Nothing => {
                    tracing::debug!("no tasks from any controllers, sleeping");
                    return Ok(Turn::Idle);
                }
            },
        };
        let Some(machine) = machines
            .iter()
            .find(|m| m.header().name == assignment.task.machine)
        else {
            // Only --fake-request comes here: a controller's answer was checked.
            let machine = assignment.task.machine;
            let unknown = UnknownMachine { from, machine };
            if self.host.options.dump_task {
                tracing::error!("{unknown}");
                return Ok(Turn::Ended);
            }
            return Err(unknown.into());
        };
        self.perform(assignment, machine, &from, kin).await
    }

    async fn perform(
        &mut self,
        assignment: Assignment,
        machine: &Machine,
        from: &str,
        kin: Kin,
    ) -> Result<Turn> {
        let options = &self.host.options;
        let mut task = assignment.task;
        tracing::info!(
            "task for {}/{} on {} from {from}",
            task.name,
            task.version,
            task.machine
        );
        if options.dump_task {
            let text = task.serialize(assignment.era)?;
            return self.print(&text);
        }
        if !options.trust.is_empty() {
            task.trust.clone_from(&options.trust);
        }
        if assignment.agent_checksum.as_deref() != Some(AGENT_CHECKSUM) {
            // Another agent built it: what its worker found cannot be relied on.
            task.worker_checksum = None;
            task.dependency_checksum = None;
        }
        // Before the build: a key that cannot sign makes hours of work worthless.
        // The set-up is at fault, so this ends the agent, as in the seed.
        let challenge = match (&assignment.challenge, &self.signer) {
            (Some(challenge), Some(signer)) => Some(
                signer
                    .sign(challenge)
                    .await
                    .context("unable to sign task response challenge")?,
            ),
            _ => None,
        };
        let era = match Era::from(options.era) {
            Era::Later => Era::Later,
            Era::Y2017 => assignment.era,
        };
        let answer = |result: BuildResult| ResultRequest {
            session: assignment.session.clone(),
            challenge: challenge.clone(),
            agent_checksum: Some(AGENT_CHECKSUM.to_owned()),
            result,
        };
        // A stranger of 2017 does not know this status: it gives the task to another
        // agent when its time is over, as ever.
        let knows_interrupt = kin == Kin::Ours || era == Era::Later;
        let held = match (&assignment.result_url, &mut self.delivery) {
            (Some(url), Some(delivery)) if knows_interrupt => {
                let given_up = BuildResult::new(&task.name, &task.version, Status::Interrupt);
                let held = delivery.hold(url, &answer(given_up));
                // It only makes the controller wait if things go wrong.
                held.map_err(|e| tracing::warn!("{e:#}")).ok()
            }
            _ => None,
        };

        let performed = if options.fake_machine.is_some() && !options.fake_build {
            fake::perform(&self.host, &task, assignment.era).await?
        } else {
            match self.build(&task, assignment.era, machine, from).await {
                Ok(result) => result,
                Err(e) if host::is_at_fault(&e) => return Err(e),
                Err(e) => {
                    if is_of_link(&e) {
                        tracing::error!("build error: {e:#}");
                    } else {
                        let pause = self.inventory.penalize(machine).as_secs();
                        let name = &machine.dir.name;
                        tracing::error!(
                            "build error: machine {name}: left alone for {pause} s: {e:#}"
                        );
                    }
                    result::of_agent(&task, Status::Abort, &format!("{e:#}"))
                }
            }
        };
        if self.host.options.dump_result {
            return self.print(&performed.serialize(era)?);
        }
        let (Some(result_url), Some(delivery)) = (&assignment.result_url, &mut self.delivery)
        else {
            tracing::info!("{}/{}: {}", task.name, task.version, performed.status);
            return Ok(Turn::Ended);
        };
        tracing::info!(
            "built {}/{} on {} for {from}: {}",
            task.name,
            task.version,
            task.machine,
            performed.status
        );
        let request = answer(performed);
        let kept = match delivery.add(result_url, &request, era) {
            Ok(()) => true,
            Err(e) => {
                // No room on the disk must not cost the result.
                tracing::error!("{e:#}; uploading the result without keeping it");
                let body = result::fit(&request, era, result::STRANGERS_LIMIT)?;
                match self.link.post_result(result_url, body.into_bytes()).await {
                    controller::Posted::Taken => true,
                    posted => {
                        tracing::error!("unable to upload result to {result_url}: {posted:?}");
                        false
                    }
                }
            }
        };
        match held {
            Some(held) if kept => delivery.release(&held),
            // The result is lost: somebody else may do the task.
            Some(_) => delivery.give_back(&*self.link).await,
            None => {}
        }
        delivery.deliver(&*self.link).await;
        Ok(Turn::Again)
    }

    async fn build(
        &self,
        task: &bbot_manifest::Task,
        era: Era,
        machine: &Machine,
        from: &str,
    ) -> Result<BuildResult> {
        let controller = controller::parse_url(from).ok();
        let archive = controller.and_then(|c| Archive::of_task(&task.repository_url, &c));
        let source = match &archive {
            Some(archive) if !self.host.options.fake_build => {
                Some(self.sources.get(&*self.link, archive).await?)
            }
            _ => None,
        };
        let job = Job {
            machine,
            task,
            era,
            source: source.as_ref(),
        };
        task::perform(&self.host, &job, &mut Silent).await
    }

    fn print(&mut self, text: &str) -> Result<Turn> {
        match self
            .out
            .write_all(text.as_bytes())
            .and_then(|()| self.out.flush())
        {
            // Whoever reads has seen enough.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Turn::Ended),
            Err(e) => Err(e).context("unable to write to standard output"),
            Ok(()) => Ok(Turn::Ended),
        }
    }
}

/// What a daemon says first (the seed).
fn banner(options: &Options, signer: Option<&Signer>) {
    if !options.systemd_daemon {
        return;
    }
    tracing::info!("bbot agent {}", version::OWN);
    let line = |name: &str, value: &dyn std::fmt::Display| {
        tracing::info!("{name:<14} {value}");
    };
    if let Some(signer) = signer {
        line("auth key fp", &signer.fingerprint());
    }
    line("toolchain name", &options.toolchain_name);
    line("toolchain num", &options.toolchain_num);
    line("toolchain ver", &options.toolchain_version());
    line(
        "toolchain id",
        &options.toolchain_id.as_deref().unwrap_or_default(),
    );
    line("CPU(s)", &options.cpu);
    line("RAM(kB)", &options.ram);
    for url in &options.controllers {
        line("controller url", url);
    }
}

/// Whether an error is the controller's, or of the way to it: another task may do better
/// on the same machine.
fn is_of_link(error: &anyhow::Error) -> bool {
    use controller::LinkError;
    error
        .downcast_ref::<LinkError>()
        .is_some_and(|e| !matches!(e, LinkError::Write { .. }))
}

#[cfg(test)]
mod tests;
