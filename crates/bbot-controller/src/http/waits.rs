//! Why a build waits, as this controller knows the agents.

use super::App;
use crate::queue::State;
use crate::queue::wait::{self, Before, Code, Why};
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
        let number = desk.number(&build.configuration, &build.target);
        let agents = match number {
            Some(number) => {
                let of = (desk.reading, number, &build.lane);
                self.agents.for_build(of, &build.failures, self.steady())
            }
            None => Vec::new(),
        };
        let why = wait::why(number.is_some(), agents, before);
        let line = number.and_then(|number| desk.configuration(number));
        let pattern = line.map(|line| line.pattern.as_str());
        let avoided = build.failures.avoided();
        let lane = &build.lane;
        self.look_at_keys().await;
        // An agent with such a key is never a custom bot.
        let is_operators = why.code == Code::Bot && lane.keys.iter().all(|k| self.key(k).is_some());
        let of = (lane, is_operators);
        let sentence = why.sentence(&build.configuration, pattern, of, &avoided);
        Ok(Some(Waits { why, sentence }))
    }
}
