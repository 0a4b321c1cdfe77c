//! Why a build waits, as this controller knows the agents.

use super::App;
use crate::queue::State;
use crate::queue::wait::{self, Before, Why};
use crate::store::{Build, StoreError};

/// So many builds are counted that go before one.
const COUNTED: usize = 100;

/// Why a build waits, and the same as a sentence.
#[derive(Debug)]
pub(super) struct Waits {
    pub(super) why: Why,
    pub(super) sentence: String,
}

impl App {
    /// Why a build waits; `None` when it does not.
    pub(super) async fn why_it_waits(&self, build: &Build) -> Result<Option<Waits>, StoreError> {
        if build.state != State::Queued {
            return Ok(None);
        }
        let before = self.store.count_before(build, COUNTED + 1).await?;
        let before = if before > COUNTED {
            Before::MoreThan(COUNTED)
        } else {
            Before::Exactly(before)
        };
        let desk = self.desk();
        let kind = desk.kind(&build.configuration, &build.target);
        let agents = match kind {
            Some(kind) => {
                self.agents
                    .for_build((desk.reading, kind), &build.failures, self.steady())
            }
            None => Vec::new(),
        };
        let why = wait::why(kind.is_some(), agents, before);
        let line = kind.and_then(|kind| desk.configuration(kind));
        let pattern = line.map(|line| line.pattern.as_str());
        let sentence = why.sentence(&build.configuration, pattern, &build.failures.avoided());
        Ok(Some(Waits { why, sentence }))
    }
}
