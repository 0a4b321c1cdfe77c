//! What is said to a task's controller, and what is held on disk until there is a result.

use std::sync::{Arc, Mutex, PoisonError};

use bbot_manifest::{BuildResult, Era, ResultRequest, Status};

use super::Context;
use super::ask::Given;
use super::work::{AGENT_CHECKSUM, era_of};
use crate::controller::{Destination, Kin};
use crate::delivery::Handle;
use crate::result;
use crate::session::Session;
use crate::spool::Held;
use crate::supervisor::Outcome;

/// What a controller that does not know `interrupt` keeps as the log of a task that was
/// not done.
const NOT_DONE: &str = "the agent was interrupted before this build was done (it was stopped, or had to make room); \
                        nothing is known against the package, and the build may be tried again";

/// Why a task is given back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Why<'a> {
    /// The operation that it is told under.
    operation: &'static str,
    reason: &'a str,
}

impl<'a> Why<'a> {
    /// Why a task is given back whose run ended so; `worked`: after its worker had asked for something. The controller
    /// remembers the host of one that did not get so far.
    pub(super) fn of(outcome: Outcome, worked: bool, reason: &'a str) -> Self {
        let operation = match outcome {
            Outcome::MachineFailed | Outcome::HostFailed | Outcome::RoomFilled if !worked => {
                result::MACHINE_OPERATION
            }
            Outcome::MachineFailed
            | Outcome::HostFailed
            | Outcome::RoomFilled
            | Outcome::LinkFailed { .. }
            | Outcome::Interrupted
            | Outcome::Done(_) => result::AGENT_OPERATION,
        };
        Self { operation, reason }
    }
}

/// What is held on disk for a task. The driver has a clone: should the run come to an end
/// that nobody thought of, the task is given back all the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Pledge(Arc<Mutex<Option<Held>>>);

impl Pledge {
    pub(super) fn of(held: Option<Held>) -> Self {
        Self(Arc::new(Mutex::new(held)))
    }

    /// Whoever has it must see to it.
    pub(super) fn take(&self) -> Option<Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Gives the task back, if nobody has done anything for it yet.
    pub(super) async fn redeem(&self, results: &Handle) {
        if let Some(held) = self.take() {
            results.give_back(held).await;
        }
    }
}

/// What is said to a task's controller.
pub(super) struct Answers<'a> {
    context: &'a Context,
    given: &'a Given,
    era: Era,
}

impl<'a> Answers<'a> {
    pub(super) fn of(context: &'a Context, given: &'a Given) -> Self {
        Self {
            context,
            given,
            era: era_of(context, given),
        }
    }

    fn request(&self, result: BuildResult) -> ResultRequest {
        ResultRequest {
            session: self.given.assignment.session.clone(),
            challenge: self.given.answer.clone(),
            agent_checksum: Some(AGENT_CHECKSUM.to_owned()),
            result,
        }
    }

    /// What is posted for a task that will not be done, and in whose words. None: it is left
    /// to its time-out.
    fn not_done(&self, why: Option<Why<'_>>) -> Option<(ResultRequest, Era)> {
        let task = &self.given.assignment.task;
        if self.given.knows_interrupt(self.era) {
            let result = match why {
                None => BuildResult::new(&task.name, &task.version, Status::Interrupt),
                Some(why) => result::not_done(task, why.operation, why.reason),
            };
            return Some((self.request(result), Era::Later));
        }
        // For a machine that was not offered there may be another agent in time.
        self.given.machine.as_ref()?;
        let result = result::of_agent(task, Status::Abort, NOT_DONE);
        Some((self.request(result), self.era))
    }

    /// Where the result goes, where it goes anywhere.
    fn to(&self) -> Option<(Destination, &'a Handle)> {
        let assignment = &self.given.assignment;
        let to = Destination {
            url: assignment.result_url.clone()?,
            kin: assignment.kin,
            key: assignment.key.clone(),
            log: None,
        };
        Some((to, self.context.results.as_ref()?))
    }

    /// Whether a task that ended so goes back to its controller.
    pub(super) fn gives_back(&self, outcome: Outcome) -> bool {
        let knows_interrupt = self.given.knows_interrupt(self.era);
        let to = self.to();
        to.is_some_and(|(to, _)| outcome.gives_back(to.kin, knows_interrupt))
    }

    /// Puts on disk that the task is given back should the agent end over it.
    pub(super) async fn hold(&self) -> Option<Held> {
        let (to, results) = self.to()?;
        let (request, era) = self.not_done(None)?;
        let held = results.hold(to, &request, era).await;
        // It only makes the controller wait if things go wrong.
        held.map_err(|e| tracing::warn!("{e:#}")).ok()
    }

    /// The session, where the controller knows of such.
    pub(super) fn session(&self) -> Session {
        match (self.given.assignment.session_terms(), self.to()) {
            (Some(terms), Some((_, results))) => results.session(terms),
            _ => Session::none(),
        }
    }

    /// The task will not be done; why, if that is more than that the agent was told so.
    pub(super) async fn give_back(&self, held: Option<Held>, why: Option<Why<'_>>) {
        let Some((to, results)) = self.to() else {
            return;
        };
        // A stranger looks for no reason in what it does not keep.
        let why = why.filter(|_| to.kin == Kin::Ours);
        let held = match (held, why) {
            // It lies there in the same words.
            (Some(held), None) => return results.give_back(held).await,
            (held, _) => held,
        };
        let Some((request, era)) = self.not_done(why) else {
            return;
        };
        let added = results.add(to, request, era, held, None);
        if let Err(e) = added.await {
            tracing::error!("{e:#}");
        }
    }

    /// Nothing is said to the controller.
    pub(super) async fn forget(&self, held: Option<Held>) {
        if let (Some(held), Some((_, results))) = (held, self.to()) {
            results.release(held).await;
        }
    }

    /// Puts the result on disk, to be sent.
    pub(super) async fn post(&self, result: BuildResult, held: Option<Held>, session: Session) {
        let Some((to, results)) = self.to() else {
            return;
        };
        let request = self.request(result);
        let added = results.add(to, request, self.era, held, Some(session));
        if let Err(e) = added.await {
            tracing::error!("{e:#}");
        }
    }
}

/// Gives back a task that is not begun.
pub(super) async fn give_back(context: Context, given: Given, why: String) {
    let task = &given.assignment.task;
    tracing::info!(
        "giving back {}/{} on {} to {}: {why}",
        task.name,
        task.version,
        task.machine,
        given.from
    );
    let held = given.pledge.take();
    let answers = Answers::of(&context, &given);
    let why = Why::of(Outcome::Interrupted, false, &why);
    answers.give_back(held, Some(why)).await;
}
