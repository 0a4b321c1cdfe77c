//! What a result depends on, so that a build that would come out the same need not be done once more.

use bbot_manifest::{Source, Status, Task};
use sha2::{Digest, Sha256};

use crate::isolation::Isolation;
use crate::options::Options;

/// Counts up whenever this worker builds otherwise than before: what was built by another number is built anew.
const LOGIC: u32 = 1;

/// The checksums of a build, in lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checksums {
    /// Of what the build is done with beyond its machine: this worker and the environment.
    pub(crate) worker: String,
    /// Of what it is done from. Its commands reach nothing else, so the source is all there is.
    pub(crate) dependency: String,
}

impl Checksums {
    /// None where the source is not all that a build can see: commands that have a network may find something else there each time.
    pub(crate) fn of(
        options: &Options,
        source: Option<&Source>,
        isolation: &Isolation,
    ) -> Option<Self> {
        let source = source.filter(|_| !isolation.has_network())?;
        let script = match &options.env_script {
            Some(path) => Some(std::fs::read(path).ok()?),
            None => None,
        };
        Some(Self {
            worker: worker(options, script.as_deref()),
            dependency: source.sha256.clone(),
        })
    }

    /// Whether the task's last result was made with the same.
    pub(crate) fn are_those_of(&self, task: &Task) -> bool {
        task.worker_checksum.as_ref() == Some(&self.worker)
            && task.dependency_checksum.as_ref() == Some(&self.dependency)
    }
}

/// Whether a result of this status says something of the package: one that was cut short may come out otherwise.
pub(crate) fn is_lasting(status: Status) -> bool {
    matches!(
        status,
        Status::Skip | Status::Success | Status::Warning | Status::Error
    )
}

fn worker(options: &Options, script: Option<&[u8]>) -> String {
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    add(&LOGIC.to_le_bytes());
    add(env!("CARGO_PKG_VERSION").as_bytes());
    add(script.unwrap_or_default());
    add(options.env_target.as_deref().unwrap_or_default().as_bytes());
    for argument in &options.arguments {
        add(argument.as_bytes());
    }
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Options {
        let words = std::iter::once(&"bbot-worker").chain(words);
        match crate::options::parse(words.map(Into::into)).unwrap() {
            crate::options::Parsed::Run(options) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn whatever_a_build_is_done_with_counts() {
        let plain = worker(&options(&[]), None);
        assert_eq!(plain, worker(&options(&["--verbose", "3"]), None));
        let others = [
            worker(&options(&[]), Some(b"export A=1")),
            worker(&options(&[]), Some(b"export A=2")),
            worker(&options(&["--env-target", "x"]), None),
            worker(&options(&["a=1", "b=2"]), None),
            worker(&options(&["a=1b=2"]), None),
        ];
        for (number, one) in others.iter().enumerate() {
            assert!(*one != plain && !others[..number].contains(one), "{number}");
        }
    }

    #[test]
    fn both_have_to_be_the_tasks() {
        let checksums = Checksums {
            worker: "w".to_owned(),
            dependency: "d".to_owned(),
        };
        let mut task = Task::new("p", "1", "http://r", "m", "t");
        assert!(!checksums.are_those_of(&task));
        task.worker_checksum = Some("w".to_owned());
        assert!(!checksums.are_those_of(&task));
        task.dependency_checksum = Some("d".to_owned());
        assert!(checksums.are_those_of(&task));
        task.worker_checksum = Some("v".to_owned());
        assert!(!checksums.are_those_of(&task));
    }
}
