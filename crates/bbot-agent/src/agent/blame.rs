//! Whose fault it is that a task was not done: what rests for a while, and whether the task
//! goes back, follows from it.

use crate::controller::LinkError;
use crate::source::CacheError;
use crate::supervisor::Outcome;
use crate::{host, resources};

/// Who is at fault when a task could not be run.
pub(super) fn outcome_of(error: &anyhow::Error) -> Outcome {
    match error.downcast_ref::<LinkError>() {
        Some(LinkError::Write { .. }) => return Outcome::HostFailed,
        Some(e) => {
            return Outcome::LinkFailed {
                passing: e.is_passing(),
            };
        }
        None => {}
    }
    let is_of_host = error.is::<CacheError>()
        || host::is_at_fault(error)
        || resources::is_of_host(error.as_ref());
    if is_of_host {
        Outcome::HostFailed
    } else {
        Outcome::MachineFailed
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use anyhow::{Context as _, anyhow};

    use super::*;
    use crate::controller::parse_url;

    #[test]
    fn who_is_at_fault() {
        let link = |passing| Outcome::LinkFailed { passing };
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let path = PathBuf::from("/state/sources/x.tar.gz");
        for (error, expected) in [
            (anyhow!("no such device"), Outcome::MachineFailed),
            (denied().into(), Outcome::MachineFailed),
            (
                io::Error::from(rustix::io::Errno::NOSPC).into(),
                Outcome::HostFailed,
            ),
            (LinkError::Transport("down".to_owned()).into(), link(true)),
            (
                LinkError::Between("404 Not Found".to_owned()).into(),
                link(true),
            ),
            (LinkError::TooLong { limit: 1 }.into(), link(false)),
            (
                LinkError::Write {
                    path: path.clone(),
                    source: denied(),
                }
                .into(),
                Outcome::HostFailed,
            ),
            (
                CacheError::Open {
                    path: path.clone(),
                    source: denied(),
                }
                .into(),
                Outcome::HostFailed,
            ),
            (
                CacheError::Lost {
                    url: parse_url("http://c.example/archives/x.tar.gz").unwrap(),
                    dir: path,
                }
                .into(),
                Outcome::HostFailed,
            ),
        ] {
            let text = format!("{error:#}");
            assert_eq!(outcome_of(&error), expected, "{text}");
            let within: anyhow::Error = Err::<(), _>(error).context("a step").unwrap_err();
            assert_eq!(outcome_of(&within), expected, "{text}, with its context");
        }
    }
}
