//! The commands, one file each.

pub(crate) mod agent;
pub(crate) mod agents;
pub(crate) mod build;
pub(crate) mod builds;
pub(crate) mod cancel;
pub(crate) mod follow;
pub(crate) mod key;
pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod manifest;
pub(crate) mod rebuild;
pub(crate) mod submit;
pub(crate) mod suspended;
pub(crate) mod token;
pub(crate) mod toolchain;
pub(crate) mod up;

use std::process::ExitCode;

use bbot_manifest::Status;

/// How a command ended that did what it could. An error of its own is 1, wrong usage 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It is done.
    Done,
    /// It could not be done, and why has been said.
    Failed,
    /// The command did its work; the build that it was about did not succeed.
    BuildFailed,
}

/// Did the build do what it should? A warning is a success with something to say.
pub(crate) fn succeeded(status: Status) -> bool {
    matches!(status, Status::Success | Status::Warning | Status::Skip)
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::BuildFailed => 3,
        })
    }
}
