//! A request for a task as it is held until there is one: ten thousand agents may wait, each with a hundred machines.

use std::io::{self, Read as _, Write as _};
use std::time::Duration;

use bbot_manifest::{Era, TaskRequest};
use bbot_signature::PublicKey;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;

use super::Base;
use super::body::Whole;
use super::problem::Problem;
use super::reach::Bot;
use super::task::Wanted;
use crate::queue::era::Peer;
use crate::roll::Says;

/// A request for a task.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) wanted: Wanted,
    pub(super) era: Era,
    pub(super) peer: Peer,
    pub(super) base: Option<Base>,
    /// How long it may be held.
    pub(super) wait: Duration,
    pub(super) says: Says,
    /// The agent's part in the key of the session, where the request is signed.
    pub(super) agent_key: Option<PublicKey>,
    pub(super) bot: Bot,
    text: Text,
}

/// What was sent. What can be read from it takes more room than it does, and is read anew when it is woken.
#[derive(Debug)]
enum Text {
    Plain(Whole),
    /// Names of machines are much alike, so this takes a tenth.
    Packed(Whole),
}

impl Held {
    #[expect(
        clippy::too_many_arguments,
        reason = "each is another thing that is known of a request"
    )]
    pub(super) fn new(
        text: Whole,
        wanted: Wanted,
        era: Era,
        peer: Peer,
        base: Option<Base>,
        wait: Duration,
        says: Says,
        agent_key: Option<PublicKey>,
        bot: Bot,
    ) -> Self {
        Self {
            wanted,
            era,
            peer,
            base,
            wait,
            says,
            agent_key,
            bot,
            text: Text::Plain(text),
        }
    }

    /// Makes it small: it waits now.
    pub(super) fn pack(&mut self) {
        if let Text::Plain(text) = &mut self.text
            && let Ok(mut packed) = packed(text)
        {
            packed.shrink_to_fit();
            self.text = Text::Packed(std::mem::take(text).replaced(packed));
        }
    }

    /// What is asked for.
    pub(super) fn read(&self) -> Result<TaskRequest, Problem> {
        match &self.text {
            Text::Plain(text) => parse(text),
            Text::Packed(packed) => {
                let mut text = Vec::new();
                // As long as what was taken: it was packed here.
                DeflateDecoder::new(&packed[..])
                    .read_to_end(&mut text)
                    .map_err(|e| Problem::internal("read a request that was held", &e))?;
                parse(&text)
            }
        }
    }
}

fn packed(text: &[u8]) -> io::Result<Vec<u8>> {
    let mut packer = DeflateEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(text)?;
    packer.finish()
}

/// Reads a request for a task.
pub(super) fn parse(text: &[u8]) -> Result<TaskRequest, Problem> {
    TaskRequest::parse(text, "task-request").map_err(|e| Problem::bad(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_request_is_the_same_and_small() {
        let mut text =
            ": 1\nagent: a\ntoolchain-name: public\ntoolchain-version: 0.17.0\n".to_owned();
        for machine in 0..100 {
            text.push_str(&format!(
                ":\nid: linux-{machine}-1.1\nname: linux-{machine}\nsummary: Linux number {machine}\n"
            ));
        }
        let plain = parse(text.as_bytes()).unwrap();
        let mut held = Held::new(
            text.clone().into_bytes().into(),
            Wanted::default(),
            Era::Later,
            Peer::Ours,
            None,
            Duration::ZERO,
            Says::default(),
            None,
            Bot::default(),
        );
        assert_eq!(held.read().unwrap(), plain);
        held.pack();
        held.pack();
        assert_eq!(held.read().unwrap(), plain);
        let Text::Packed(packed) = &held.text else {
            panic!("{held:?}")
        };
        assert!(packed.len() * 5 < text.len(), "{}", packed.len());
    }
}
