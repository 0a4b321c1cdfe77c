//! A run as a future of its own: a task from its arrival to its result on disk, or a
//! bootstrap.
//!
//! ```text
//!   sign the challenge, hold `interrupt` on disk                (ask, before the run)
//!   fetch the source, perform it                                (source, task)
//!     interrupted: the machine is killed, `interrupt` is the result
//!   the result to disk, and so to its controller                (delivery)
//!   only then: the machine is ended, its copy deleted; or it is kept for a person
//!     (one that has filled its disk's room goes first)
//! ```

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bbot_manifest::{Era, Status, Task};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::answers::{Answers, Why};
use super::ask::Given;
use super::{Context, blame};
use crate::assignment::Assignment;
use crate::bootstrap::{self, Plan};
use crate::controller::{self, LinkError};
use crate::host::Host;
use crate::inventory::Machine;
use crate::prepared::{Of, Prepared};
use crate::resources::RELIEF_PAUSE;
use crate::run::{ENDING_LIMIT, Left, Progress, Share, Stage};
use crate::session::Session;
use crate::source::Archive;
use crate::status::Phase;
use crate::supervisor::{BootstrapOutcome, Outcome, RunId};
use crate::suspended::Departing;
use crate::task::{self, Fault, Job, Performed};
use crate::{fake, resources, result, version};

/// What of the agent can change a build: its version. The controller gets it back
/// with the next task of the same configuration.
pub(super) const AGENT_CHECKSUM: &str = version::OWN;

/// The longest that a task's source may take, all tries together: the largest archive over a
/// narrow way takes an hour.
pub(super) const PREPARING_LIMIT: Duration = Duration::from_secs(2 * 60 * 60);

/// What a run does now, for who looks. Clones are of the same run.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    now: Arc<Mutex<Now>>,
    changed: Arc<Notify>,
}

/// What a run does, and since when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) phase: Phase,
    pub(super) since: Instant,
    /// How often its machine was started.
    pub(super) starts: u32,
    /// When its guest asked for the first time.
    pub(super) worked: Option<Instant>,
}

impl Shown {
    pub(super) fn new(changed: Arc<Notify>) -> Self {
        let now = Now {
            phase: Phase::Preparing,
            since: Instant::now(),
            starts: 0,
            worked: None,
        };
        Self {
            now: Arc::new(Mutex::new(now)),
            changed,
        }
    }

    pub(super) fn now(&self) -> Now {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, phase: Phase) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.phase = phase;
        now.since = Instant::now();
        match phase {
            Phase::Booting => now.starts += 1,
            Phase::Working => now.worked = Some(now.since),
            Phase::Preparing | Phase::Copying | Phase::Ending => {}
        }
        self.changed.notify_one();
    }
}

impl Progress for Shown {
    fn stage(&mut self, stage: &Stage) {
        match stage {
            Stage::Copying { .. } => self.set(Phase::Copying),
            Stage::Starting { .. } => self.set(Phase::Booting),
            Stage::Working { .. } => self.set(Phase::Working),
            Stage::Finished { .. } => self.set(Phase::Ending),
            Stage::Bootstrapping { .. } | Stage::Saving { .. } => {}
        }
    }

    fn wants_log(&self) -> bool {
        false
    }

    fn log(&mut self, _: &str, _: &[u8]) {}
}

/// A task that is to be run.
#[derive(Debug)]
pub(super) struct TaskRun {
    pub(super) context: Context,
    pub(super) run: RunId,
    pub(super) given: Given,
    pub(super) machine: Machine,
    /// One of it that was prepared.
    pub(super) ready: Option<Prepared>,
    pub(super) share: Share,
    /// It is interrupted.
    pub(super) stop: CancellationToken,
    pub(super) shown: Shown,
    /// Suspended machines whose room it takes.
    pub(super) departing: Departing,
}

/// How a task's run has ended; but for a machine that is kept nothing of it is left.
#[derive(Debug)]
pub(super) struct TaskEnded {
    pub(super) run: RunId,
    pub(super) outcome: Outcome,
    /// The status of its result, where it was not given back.
    pub(super) status: Option<Status>,
    /// Its machine, which a person may want to look at.
    pub(super) keep: Option<Left>,
    /// What `--dump-result` prints.
    pub(super) dump: Option<String>,
    /// The machine that was prepared for it and did not go on.
    pub(super) unready: Option<Of>,
}

/// What building a task has come to.
enum Built {
    Performed(Box<Performed>),
    /// The host, the machine or the way to the controller is at fault.
    Failed(anyhow::Error),
    Interrupted,
    /// The controller has ended the session.
    Over,
}

impl TaskRun {
    pub(super) async fn perform(mut self) -> TaskEnded {
        let ended = |outcome| TaskEnded {
            run: self.run,
            outcome,
            status: None,
            keep: None,
            dump: None,
            unready: None,
        };
        let of = self.ready.as_ref().map(|ready| ready.of().clone());
        let options = &self.context.host.options;
        let (kept, dumps) = (
            options.suspend_max > 0 && options.suspend_timeout > 0,
            options.dump_result,
        );
        let task = task_of(&self.context, &self.given);
        let era = era_of(&self.context, &self.given);
        let session = self.given.session.clone();
        let what = format!("{}/{} on {}", task.name, task.version, task.machine);
        tracing::debug!("task for {what} from {}", self.given.from);

        let building = async {
            self.departing.gone().await;
            build(
                &self.context,
                &self.given,
                &task,
                On {
                    machine: &self.machine,
                    ready: self.ready.take(),
                    share: self.share,
                },
                session.clone(),
                &mut self.shown,
            )
            .await
        };
        let built = tokio::select! {
            biased;
            () = self.stop.cancelled() => Built::Interrupted,
            () = session.cancelled() => Built::Over,
            built = building => match built {
                Ok(performed) => Built::Performed(Box::new(performed)),
                Err(e) => Built::Failed(e),
            },
        };
        let answers = Answers::of(&self.context, &self.given);
        // Taken when it is used: should this run come to an end that nobody thought of, it is there.
        let pledge = &self.given.pledge;
        let (performed, outcome, why) = match built {
            Built::Interrupted => {
                answers.give_back(pledge.take(), None).await;
                tracing::info!("gave back {what}: interrupted");
                return ended(Outcome::Interrupted);
            }
            Built::Over => {
                // Nobody wants to hear of it any more.
                answers.forget(pledge.take()).await;
                let why = session.is_over().unwrap_or_default();
                tracing::info!("dropped {what}: its controller has ended the session: {why}");
                return ended(Outcome::Interrupted);
            }
            Built::Performed(mut performed) => {
                let (outcome, why) = match performed.fault.take() {
                    Some(Fault::Host(why)) => (Outcome::HostFailed, why),
                    Some(Fault::Full(why)) => {
                        // First of all: what is to be put on disk now may need that room.
                        let (host, machine) = (&self.context.host, &self.machine.directory);
                        let relieve = relieve(host, machine, performed.left.take());
                        let relieved = put_away(&self.stop, relieve).await;
                        (relieved.unwrap_or(Outcome::HostFailed), why)
                    }
                    Some(Fault::Machine(why)) => (Outcome::MachineFailed, why),
                    None => (Outcome::Done(performed.result.status), String::new()),
                };
                (*performed, outcome, why)
            }
            Built::Failed(e) => {
                let why = format!("{e:#}");
                tracing::error!("build error: {what}: {why}");
                let performed = Performed {
                    result: result::of_agent(&task, Status::Abort, &why),
                    fault: None,
                    left: None,
                    unready: false,
                };
                (performed, blame::outcome_of(&e), why)
            }
        };
        let mut ended = ended(outcome);
        ended.unready = of.filter(|_| performed.unready);
        if answers.gives_back(outcome) {
            let worked = self.shown.now().worked.is_some();
            let told = Why::of(outcome, worked, &why);
            answers.give_back(pledge.take(), Some(told)).await;
            tracing::error!("gave back {what}: {why}");
        } else {
            let status = performed.result.status;
            ended.status = Some(status);
            if dumps {
                match performed.result.serialize(era) {
                    Ok(text) => ended.dump = Some(text),
                    Err(e) => tracing::error!("unable to write the result manifest: {e}"),
                }
                put_away(&self.stop, clean_up(performed.left)).await;
                return ended;
            }
            tracing::info!("built {what} for {}: {status}", self.given.from);
            answers.post(performed.result, pledge.take(), session).await;
        }
        match performed.left {
            Some(left) if left.look.is_some() && kept => {
                ended.keep = put_away(&self.stop, left.suspend()).await.flatten();
            }
            left => {
                put_away(&self.stop, clean_up(left)).await;
            }
        }
        ended
    }
}

/// Deletes what has filled the room of a machine's volume, and says who is at fault by what there is
/// then. What a deletion gives back may take a while to show (btrfs).
async fn relieve(host: &Host, machine: &Path, left: Option<Left>) -> Outcome {
    clean_up(left).await;
    let mark = host.options.resource_limits().disk;
    let end = Instant::now() + RELIEF_PAUSE;
    loop {
        let beside = machine.to_owned();
        let free = host.blocking.run(move || resources::free_at(&beside)).await;
        let outcome = blame::of_full_disk(free, mark);
        if outcome != Outcome::HostFailed || Instant::now() >= end {
            return outcome;
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// Does what is left to do of a run that has its result. None: the agent ends, or it takes too
/// long. Nobody waits for it then: what is dropped kills its machine, and the deletion of its
/// copy goes on by itself.
async fn put_away<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = stop.cancelled() => None,
        () = sleep(ENDING_LIMIT) => {
            let limit = ENDING_LIMIT.as_secs() / 60;
            tracing::warn!("the run has not ended in good order within {limit} min: its machine is dropped");
            None
        }
    }
}

pub(super) async fn clean_up(left: Option<Left>) {
    if let Some(left) = left {
        if let Some(why) = &left.look {
            let info = left.running.machine.info();
            tracing::error!("{why} for machine {}\n{info}", left.name);
        }
        left.clean_up().await;
    }
}

/// The task as the worker gets it.
pub(super) fn task_of(context: &Context, given: &Given) -> Task {
    let options = &context.host.options;
    let mut task = given.assignment.task.clone();
    if !options.trust.is_empty() {
        task.trust.clone_from(&options.trust);
    }
    if given.assignment.agent_checksum.as_deref() != Some(AGENT_CHECKSUM) {
        // Another agent built it: what its worker found cannot be relied on.
        task.worker_checksum = None;
        task.dependency_checksum = None;
    }
    task
}

/// In whose words the controller is answered.
pub(super) fn era_of(context: &Context, given: &Given) -> Era {
    match Era::from(context.host.options.era) {
        Era::Later => Era::Later,
        Era::Y2017 => given.assignment.era,
    }
}

/// What a task is built on.
pub(super) struct On<'a> {
    pub(super) machine: &'a Machine,
    /// One of it that was prepared.
    pub(super) ready: Option<Prepared>,
    pub(super) share: Share,
}

/// Builds a task, with its source if that is one of its controller's.
pub(super) async fn build(
    context: &Context,
    given: &Given,
    task: &Task,
    on: On<'_>,
    session: Session,
    progress: &mut dyn Progress,
) -> Result<Performed> {
    let options = &context.host.options;
    let era = given.assignment.era;
    if options.fake_machine.is_some() && !options.fake_build {
        return Ok(Performed {
            result: fake::perform(&context.host, task, era).await?,
            fault: None,
            left: None,
            unready: false,
        });
    }
    let controller = controller::parse_url(&given.from).ok();
    let archive = controller.and_then(|c| Archive::of_task(&task.repository_url, &c));
    let source = match &archive {
        Some(archive) if !options.fake_build => {
            let source = context
                .sources
                .get(&*context.link, given.assignment.kin, archive);
            let source = timeout(PREPARING_LIMIT, source).await.unwrap_or_else(|_| {
                let limit = PREPARING_LIMIT.as_secs() / 60;
                let late = LinkError::Transport(format!("not there within {limit} min"));
                Err(late).with_context(|| format!("unable to fetch the source {}", archive.url))
            });
            Some(source?)
        }
        _ => None,
    };
    let job = Job {
        machine: on.machine.clone(),
        task: task.clone(),
        era,
        source,
        share: on.share,
        session,
    };
    task::perform(&context.host, &job, on.ready, progress).await
}

/// A machine that is to be bootstrapped.
#[derive(Debug)]
pub(super) struct BootstrapRun {
    pub(super) context: Context,
    pub(super) run: RunId,
    pub(super) plan: Plan,
    pub(super) share: Share,
    /// It is interrupted.
    pub(super) stop: CancellationToken,
    pub(super) shown: Shown,
    /// Suspended machines whose room it takes.
    pub(super) departing: Departing,
}

/// How a bootstrap has ended; but for a machine that is kept nothing of it is left.
#[derive(Debug)]
pub(super) struct BootstrapEnded {
    pub(super) run: RunId,
    pub(super) outcome: BootstrapOutcome,
    /// Its machine, which a person may want to look at.
    pub(super) keep: Option<Left>,
}

impl BootstrapRun {
    pub(super) async fn perform(mut self) -> BootstrapEnded {
        let name = &self.plan.dir.name;
        let host = &self.context.host;
        let bootstrapping = async {
            self.departing.gone().await;
            bootstrap::bootstrap(host, &self.plan, self.share, &mut self.shown).await
        };
        let bootstrapped = tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            ended = bootstrapping => Some(ended),
        };
        let mut keep = None;
        let outcome = match bootstrapped {
            None => {
                tracing::debug!("the bootstrap of {name} was interrupted");
                BootstrapOutcome::Interrupted
            }
            Some(Err(e)) => {
                BootstrapOutcome::Failed(format!("{:#}", e.context("unable to bootstrap")))
            }
            Some(Ok(ended)) => {
                match ended.left {
                    Some(left)
                        if left.look.is_some()
                            && host.options.suspend_max > 0
                            && host.options.suspend_timeout > 0 =>
                    {
                        keep = put_away(&self.stop, left.suspend()).await.flatten();
                    }
                    left => {
                        put_away(&self.stop, clean_up(left)).await;
                    }
                }
                match ended.outcome {
                    bootstrap::Outcome::Done => {
                        tracing::info!("bootstrapped {name}");
                        BootstrapOutcome::Done
                    }
                    bootstrap::Outcome::Stale(why) => {
                        tracing::info!("the bootstrap of {name} is of no use: {why}");
                        BootstrapOutcome::Interrupted
                    }
                    bootstrap::Outcome::Failed(why) => {
                        BootstrapOutcome::Failed(format!("it failed to bootstrap: {why}"))
                    }
                }
            }
        };
        BootstrapEnded {
            run: self.run,
            outcome,
            keep,
        }
    }
}

/// What `--dump-task` prints.
///
/// # Errors
///
/// When the task cannot be put into words.
pub(super) fn task_of_dump(given: &Given) -> Result<String> {
    let Assignment { task, era, .. } = &given.assignment;
    task.serialize(*era)
        .context("unable to write the task manifest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_left_of_a_run_holds_up_neither_the_end_nor_its_slot_for_ever() {
        let never = std::future::pending::<()>;
        let stop = CancellationToken::new();
        assert_eq!(put_away(&stop, async { 1 }).await, Some(1));
        let begin = Instant::now();
        assert_eq!(put_away(&stop, never()).await, None);
        assert_eq!(begin.elapsed(), ENDING_LIMIT);
        stop.cancel();
        let begin = Instant::now();
        assert_eq!(put_away(&stop, never()).await, None);
        assert_eq!(begin.elapsed(), Duration::ZERO);
        // What takes no time is done all the same.
        assert_eq!(put_away(&stop, async { 1 }).await, Some(1));
    }
}
