//! Asking one controller for a task. One that comes is on disk, to be given back, and its
//! lease is renewed, before anybody hears of it: from then on no end of the agent loses it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use bbot_manifest::{Era, TaskRequest};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::Context;
use super::answers::{Answers, Pledge};
use crate::assignment::{self, Assignment, Terms};
use crate::auth::Signer;
use crate::controller::{Kin, LinkError, Manner, RequestKey, Url};
use crate::inventory::Machine;
use crate::session::Session;
use crate::supervisor::{Answer, AskId};

/// How long a controller that holds no request gets to answer one that is given up:
/// the task that it may give is then given back.
const LAST_WORD: Duration = Duration::from_secs(2);

/// A request for a task.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) ask: AskId,
    /// The controller's URL, with its query.
    pub(super) url: Url,
    /// For how long it may hold the request.
    pub(super) hold: Duration,
    /// In what time it has to answer, where that is not as long as any request may take.
    pub(super) within: Option<Duration>,
    pub(super) machines: Vec<Machine>,
    /// URLs that results may be posted to besides those of their controllers.
    pub(super) allowed_result_urls: Arc<[Url]>,
    /// It is given up.
    pub(super) cancel: CancellationToken,
}

/// A task that a controller has given.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) assignment: Assignment,
    /// The controller.
    pub(super) from: String,
    /// The machine, as it was offered. None: it was not.
    pub(super) machine: Option<Machine>,
    /// The answer to its challenge.
    pub(super) answer: Option<Vec<u8>>,
    /// What is held for it.
    pub(super) pledge: Pledge,
    /// Its lease and its log, where the controller knows of such.
    pub(super) session: Session,
}

impl Given {
    /// Of a task that was not asked for.
    pub(super) fn of_nobody(assignment: Assignment, from: String) -> Self {
        Self {
            assignment,
            from,
            machine: None,
            answer: None,
            pledge: Pledge::default(),
            session: Session::none(),
        }
    }

    /// Whether its controller knows the status `interrupt`. A stranger of 2017 does not.
    pub(super) fn knows_interrupt(&self, era: Era) -> bool {
        self.assignment.kin == Kin::Ours || era == Era::Later
    }
}

/// What came of a request.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) ask: AskId,
    pub(super) answer: Answer,
    pub(super) kin: Option<Kin>,
    pub(super) given: Option<Box<Given>>,
}

impl Question {
    /// Asks, until there is an answer or the request is given up.
    pub(super) async fn ask(self, context: Context) -> Answered {
        let given_up = async {
            self.cancel.cancelled().await;
            if self.hold.is_zero() {
                tokio::time::sleep(LAST_WORD).await;
            }
        };
        let mut kin = None;
        let asked = tokio::select! {
            biased;
            asked = self.try_ask(&context, &mut kin) => asked,
            () = given_up => Err(Wrong::Silent("the request was given up".to_owned())),
        };
        // What has come is kept, also of a request that is given up meanwhile.
        let given = match asked {
            Ok(Some(assignment)) => {
                let kept = self.keep(&context, assignment).await.map(Some);
                kept.map_err(|e| Wrong::Useless(format!("{e:#}")))
            }
            Ok(None) => Ok(None),
            Err(wrong) => Err(wrong),
        };
        let (answer, given) = match given {
            Ok(None) => (Answer::Nothing, None),
            Ok(Some(given)) => {
                let machine = given.assignment.task.machine.clone();
                (Answer::Task { machine }, Some(given))
            }
            Err(Wrong::Silent(why)) => (Answer::Failed(why), None),
            Err(Wrong::Useless(why)) => (Answer::Refused(why), None),
        };
        Answered {
            ask: self.ask,
            answer,
            kin,
            given: given.map(Box::new),
        }
    }

    async fn try_ask(
        &self,
        context: &Context,
        kin: &mut Option<Kin>,
    ) -> Result<Option<Assignment>, Wrong> {
        let signer = context.keys.of(&self.url).cloned();
        let body = request(context, signer.as_deref(), &self.machines)
            .map_err(|e| Wrong::Silent(format!("{e:#}")))?;
        let manner = Manner {
            hold: self.hold,
            is_drained: false,
            key: signer.clone().map(|s| s as Arc<dyn RequestKey>),
        };
        let asked = context.link.request_task(&self.url, body, manner);
        let answer = match self.within {
            None => asked.await,
            Some(within) => timeout(within, asked).await.unwrap_or_else(|_| {
                let why = format!("no answer within {} s", within.as_secs());
                Err(LinkError::Transport(why))
            }),
        };
        let answer = answer.map_err(|e| Wrong::Silent(format!("unable to request task: {e}")))?;
        *kin = Some(answer.kin);
        if let Some(results) = &context.results {
            results.reached(&self.url);
        }
        let terms = Terms {
            has_key: signer.is_some(),
            allowed_result_urls: &self.allowed_result_urls,
        };
        assignment::of_answer(&answer, &self.url, terms)
            .map_err(|e| Wrong::Useless(format!("unable to take its answer: {e}")))
    }

    /// Signs the challenge, holds the task, and says to its controller that it has come. A
    /// key that cannot sign would make hours of work worthless.
    async fn keep(&self, context: &Context, assignment: Assignment) -> Result<Given> {
        let span = tracing::info_span!(
            "task",
            session = %assignment.session,
            machine = %assignment.task.machine,
        );
        let keep = async {
            let signer = context.keys.of(&self.url);
            let answer = match (&assignment.challenge, signer) {
                (Some(challenge), Some(signer)) => Some(
                    signer
                        .sign(challenge)
                        .await
                        .context("unable to sign task response challenge")?,
                ),
                _ => None,
            };
            let mut machines = self.machines.iter();
            let mut given = Given {
                machine: machines
                    .find(|m| m.header().name == assignment.task.machine)
                    .cloned(),
                answer,
                ..Given::of_nobody(assignment, self.url.to_string())
            };
            let answers = Answers::of(context, &given);
            // On disk first: the first renewal says that the task has come.
            let pledge = Pledge::of(answers.hold().await);
            let session = answers.session();
            (given.pledge, given.session) = (pledge, session);
            Ok(given)
        };
        keep.instrument(span).await
    }
}

/// The request for a task on one of these machines.
pub(super) fn request(
    context: &Context,
    signer: Option<&Signer>,
    machines: &[Machine],
) -> Result<String> {
    let options = &context.host.options;
    let request = TaskRequest {
        agent: host_name()?,
        toolchain_name: options.toolchain_name.clone(),
        toolchain_version: options.toolchain_version(),
        interactive_mode: None,
        interactive_login: None,
        fingerprint: signer.map(|s| s.fingerprint().to_owned()),
        auxiliary_ram: options.auxiliary_ram,
        machines: machines.iter().map(|m| m.header().clone()).collect(),
    };
    request
        .serialize(options.era.into())
        .context("unable to write the task request")
}

/// What is wrong with a controller.
enum Wrong {
    /// It did not answer.
    Silent(String),
    /// Its answer is of no use.
    Useless(String),
}

/// How controllers are told who asks.
pub(super) fn host_name() -> Result<String> {
    let name = nix::unistd::gethostname().context("unable to obtain hostname")?;
    name.into_string()
        .map_err(|name| anyhow!("the host's name {} is not text", name.display()))
}
