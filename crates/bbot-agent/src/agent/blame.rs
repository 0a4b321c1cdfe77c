//! Whose fault it is that a task was not done: what rests for a while, and whether the task
//! goes back, follows from it.

use crate::controller::LinkError;
use crate::resources::Mark;
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

/// Less than this is no room, also where the operator wants no mark: a guest writes it in a second.
const ROOM: u64 = 64 << 20;

/// Who is at fault that a guest found no room for its disk. `free`: what its volume has, in bytes, now
/// that the copy is deleted; below `mark` no task would do better.
pub(super) fn of_full_disk(free: Option<u64>, mark: Mark) -> Outcome {
    match free {
        Some(free) if free >= mark.low.max(ROOM) => Outcome::RoomFilled,
        // What is not known is no better.
        _ => Outcome::HostFailed,
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use anyhow::{Context as _, anyhow};

    use super::*;
    use crate::controller::parse_url;
    use crate::resources::Limits;

    #[test]
    fn a_host_is_at_fault_that_is_short_without_the_copy_too() {
        let mark = |low| Mark { low, critical: 0 };
        let (mib, default) = (1 << 20, Limits::default().disk);
        for (free, mark, expected) in [
            (Some(2048 * mib), default, Outcome::RoomFilled),
            (Some(2048 * mib - 1), default, Outcome::HostFailed),
            (Some(0), default, Outcome::HostFailed),
            (None, default, Outcome::HostFailed),
            (Some(64 * mib), mark(0), Outcome::RoomFilled),
            (Some(64 * mib - 1), mark(0), Outcome::HostFailed),
            (Some(100 * mib), mark(100 * mib), Outcome::RoomFilled),
            (Some(99 * mib), mark(100 * mib), Outcome::HostFailed),
            (None, mark(0), Outcome::HostFailed),
        ] {
            assert_eq!(of_full_disk(free, mark), expected, "{free:?} {mark:?}");
        }
    }

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
