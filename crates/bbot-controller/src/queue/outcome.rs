//! What a result does: to its build, and to the agent that brings it.
//!
//! The original answers 200 to results that it drops (a lapsed session, a wrong challenge), so that an
//! agent never learns. Strangers are answered like that here too; an agent of ours is told.

use bbot_manifest::{Status, cut_middle, log_text};

use super::State;
use super::failure::Failures;
use super::lease::{self, Lapse, Tries};

/// What the store knows of a result's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// There never was such a session.
    Unknown,
    /// Its result is here already.
    Answered,
    /// Its agent has given the task back (status `interrupt`).
    GivenBack,
    /// Its lease had lapsed and the task was handed out anew since, but nobody has brought a result yet.
    Overtaken,
    /// Somebody else has brought the result, or it was taken back before it arrived.
    Superseded,
    /// Its build was cancelled while this was a session that could have brought a result.
    Cancelled,
    /// It is the session of the build; of a queued one when its lease has lapsed and nobody else has the task yet.
    Current(State),
}

/// What became of the challenge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// None was asked for and none came, or it was answered well.
    Good,
    /// One was asked for and no answer came.
    Missing,
    /// None was asked for and an answer came.
    Unexpected,
    /// The answer is not the agent's signature of the challenge, or its key is gone.
    Wrong,
}

/// Whether the name and version in the result are those of the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// They are.
    Same,
    /// They are not.
    Different,
}

/// What a result would say with the status `skip`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// Nothing: its task came without checksums.
    NotOffered,
    /// It has those of its task.
    Same,
    /// It has others, or none.
    Different,
}

/// Everything that the decision depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The session.
    pub session: SessionState,
    /// The challenge.
    pub proof: Proof,
    /// Name and version.
    pub identity: Identity,
    /// The result's status.
    pub status: Status,
    /// Whether it may be `skip`.
    pub skip: Skip,
    /// Whether a rebuild was asked for while it was building.
    pub again: Again,
    /// How often its task is handed out.
    pub tries: Tries,
    /// Whether the agent says that the machine failed before its worker asked for anything.
    pub machine: Machine,
    /// How often its task was given back before, since it was queued.
    pub interrupts: u32,
    /// How often its lease has lapsed before, since it was queued.
    pub lapses: u32,
}

/// What a result that gives a task back says of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// It failed before its worker asked for anything: a matter of the host.
    Failed,
    /// Nothing of that kind.
    Unmentioned,
}

/// After so many interrupts and lapsed leases a build is not queued again: a task that crashes each agent that
/// takes it would go round for ever.
pub const INTERRUPTS: u32 = 5;

/// The operation under which the controller says why a build has no better result. Its name is opaque.
pub const CONTROLLER_OPERATION: &str = "controller";

/// The most that is kept of an agent's reason, in bytes.
const REASON: usize = 1024;

/// The log of a build whose task came back without a result too often; `lapses` of the times nothing was heard of
/// the agent any more, else it gave the task back; for `failures` since the machine failed. `agent` and `machine` are those that had it last, `reason` is why
/// that agent gave it back, if it said so.
#[must_use]
pub fn given_up_log(
    lapses: u32,
    failures: &Failures,
    agent: Option<&str>,
    machine: Option<&str>,
    reason: Option<&str>,
) -> String {
    let lapsed = match lapses {
        0 => String::new(),
        1 => "info: once of these nothing was heard of the agent in time\n".to_owned(),
        n => format!("info: {n} times of these nothing was heard of the agent in time\n"),
    };
    let failed: String = failures
        .by_host()
        .into_iter()
        .map(|(host, times)| {
            let times = match times {
                1 => "once".to_owned(),
                n => format!("{n} times"),
            };
            format!("info: {times} of these a machine of {host} failed before its worker asked for anything\n")
        })
        .collect();
    let agent = agent.unwrap_or("unknown");
    let machine = machine.unwrap_or("unknown");
    let last = match reason.map(quote).filter(|quoted| !quoted.is_empty()) {
        None => format!(
            "info: the last one was {agent} with the machine {machine}; see the logs of the agents, then ask for a rebuild\n"
        ),
        Some(quoted) => format!(
            "info: the last one was {agent} with the machine {machine}, and said why:\n\
             {quoted}\
             info: the logs of the agents say more; when it is mended, ask for a rebuild\n"
        ),
    };
    format!(
        "error: {INTERRUPTS} times in a row the agent that had this task was stopped or ended over it and gave it back, \
         or was not heard of any more, so it is not given out any more\n\
         {lapsed}{failed}{last}"
    )
}

/// The log of a build whose task is handed out once ([`Tries::Once`]) and came back without a result: since nothing was heard of the
/// agent any more, or it gave the task back (`reason`: why, if it said so).
#[must_use]
pub fn once_log(
    is_lapsed: bool,
    agent: Option<&str>,
    machine: Option<&str>,
    reason: Option<&str>,
) -> String {
    let agent = agent.unwrap_or("unknown");
    let machine = machine.unwrap_or("unknown");
    let what = if is_lapsed {
        "was not heard of in time"
    } else {
        "was stopped or ended over it and gave it back"
    };
    let said = reason.map(quote).filter(|quoted| !quoted.is_empty());
    let said = said.map_or_else(String::new, |quoted| {
        format!("info: the agent said why:\n{quoted}")
    });
    format!(
        "error: the agent that had this interactive build, {agent} with the machine {machine}, {what}\n\
         {said}info: an interactive build is not given to another agent by itself: who still wants to look into it asks for a rebuild\n"
    )
}

/// What somebody else says within a log of ours: bounded, and told from our own words by where it stands.
fn quote(text: &str) -> String {
    let text = log_text(text.as_bytes());
    let lines = cut_middle(text.trim(), REASON);
    lines.lines().map(|line| format!("  {line}\n")).collect()
}

/// Whether a build is to be queued once more when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// No.
    No,
    /// Somebody asked for a rebuild while it was building.
    Yes,
}

/// What to do with a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Keep it; the build is then in this state.
    Keep(State),
    /// The last result would be the same: it stays, and the build is then in this state.
    Unchanged(State),
    /// Forget it and queue the build again: the agent gave it up.
    Requeue,
    /// The same, and remember the host: its machine failed before the worker asked for anything.
    Retry,
    /// It was given up too often, or is handed out once only: the build ends as `abort`.
    GiveUp,
    /// The agent gives up what it has not got any more: its lease had lapsed, which has queued the build and was
    /// counted. Only its session ends.
    Release,
    /// It is kept already: say yes once more.
    Repeat,
    /// It is wrong, for anyone.
    Wrong(Mistake),
    /// It comes too late or from nowhere.
    Drop(Dropped),
}

/// A result that no controller takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// Another package than the task's.
    #[error("invalid session: the package name or version is not that of the task")]
    Identity,
    /// `skip` answers a task that came with checksums, and this one had none.
    #[error("unexpected status skip: the task was not given with checksums of a previous build")]
    Skip,
    /// What would not be the same was not skipped.
    #[error(
        "unexpected status skip: the agent's, worker's and dependency checksums are not all those of the task"
    )]
    Checksums,
}

/// Why a result is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    /// There never was such a session.
    #[error("the session is not known")]
    Unknown,
    /// The lease had lapsed, or the task was given back, and it is with another agent or built.
    #[error("the session has lapsed or ended: its task was given away again, or is built")]
    Superseded,
    /// A person has cancelled the build meanwhile, and was told that it is.
    #[error("the build was cancelled")]
    Cancelled,
    /// No answer to the challenge.
    #[error("the answer to the challenge is missing")]
    NoAnswer,
    /// An answer to no challenge.
    #[error("an answer to a challenge that was not given")]
    UnexpectedAnswer,
    /// Not the signature of the challenge by the agent's key.
    #[error("the answer to the challenge is wrong")]
    WrongAnswer,
}

/// Decides about a result.
#[must_use]
pub fn decide(facts: Facts) -> Verdict {
    // A result that says another name is refused even when it is late, as the original does: it is the
    // agent's own fault. Only an unknown session has nothing to compare with.
    if facts.session == SessionState::Unknown {
        return Verdict::Drop(Dropped::Unknown);
    }
    if facts.identity == Identity::Different {
        return Verdict::Wrong(Mistake::Identity);
    }
    match facts.session {
        SessionState::Answered => return Verdict::Repeat,
        // The answer to it was lost.
        SessionState::GivenBack if facts.status == Status::Interrupt => return Verdict::Repeat,
        // It gives back what is wanted no more: that is as it should be.
        SessionState::Cancelled if facts.status == Status::Interrupt => return Verdict::Repeat,
        SessionState::Cancelled => return Verdict::Drop(Dropped::Cancelled),
        SessionState::GivenBack
        | SessionState::Superseded
        | SessionState::Current(State::Built | State::Cancelled) => {
            return Verdict::Drop(Dropped::Superseded);
        }
        SessionState::Unknown
        | SessionState::Overtaken
        | SessionState::Current(State::Queued | State::Building) => {}
    }
    match facts.proof {
        Proof::Good => {}
        Proof::Missing => return Verdict::Drop(Dropped::NoAnswer),
        Proof::Unexpected => return Verdict::Drop(Dropped::UnexpectedAnswer),
        Proof::Wrong => return Verdict::Drop(Dropped::WrongAnswer),
    }
    let state = match facts.again {
        Again::Yes => State::Queued,
        Again::No => State::Built,
    };
    match (facts.status, facts.again) {
        (Status::Skip, _) => match facts.skip {
            Skip::NotOffered => Verdict::Wrong(Mistake::Skip),
            Skip::Different => Verdict::Wrong(Mistake::Checksums),
            Skip::Same => Verdict::Unchanged(state),
        },
        (Status::Interrupt, again) => {
            if facts.session != SessionState::Current(State::Building) {
                return Verdict::Release;
            }
            match (
                lease::lapse(facts.interrupts, facts.lapses, again, facts.tries),
                facts.machine,
            ) {
                (Lapse::GiveUp, _) => Verdict::GiveUp,
                (Lapse::Requeue, Machine::Failed) => Verdict::Retry,
                (Lapse::Requeue, Machine::Unmentioned) => Verdict::Requeue,
            }
        }
        _ => Verdict::Keep(state),
    }
}

#[cfg(test)]
mod tests;
