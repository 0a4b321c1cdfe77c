//! How a build or one of its operations ended.

use std::fmt;
use std::str::FromStr;

use super::Era;

/// The status of a result or an operation, from best to worst. The overall
/// status of a result is the worst of its operations'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Nothing has changed since the last build.
    Skip,
    /// Done, without warnings.
    Success,
    /// Done, with warnings.
    Warning,
    /// The package does not build, or its tests fail.
    Error,
    /// Stopped before its end: a time-out, a limit, a missing machine.
    Abort,
    /// Killed, crashed, or a result that cannot be used.
    Abnormal,
    /// Taken away for something more urgent; it will be built again.
    Interrupt,
}

impl Status {
    /// All of them, from best to worst.
    pub const ALL: [Self; 7] = [
        Self::Skip,
        Self::Success,
        Self::Warning,
        Self::Error,
        Self::Abort,
        Self::Abnormal,
        Self::Interrupt,
    ];

    /// The word in manifests, pages and the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Success => "success",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Abort => "abort",
            Self::Abnormal => "abnormal",
            Self::Interrupt => "interrupt",
        }
    }

    /// Whether the package is built: nothing worse than warnings.
    pub const fn is_built(self) -> bool {
        matches!(self, Self::Skip | Self::Success | Self::Warning)
    }

    /// The status as a reader of `era` knows it. 2017 knew neither `skip`, which
    /// was a success then, nor `interrupt`, which was an abort.
    pub const fn for_era(self, era: Era) -> Self {
        match (era, self) {
            (Era::Y2017, Self::Skip) => Self::Success,
            (Era::Y2017, Self::Interrupt) => Self::Abort,
            (_, status) => status,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that is no status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown status `{0}`")]
pub struct ParseStatusError(String);

impl FromStr for Status {
    type Err = ParseStatusError;

    fn from_str(text: &str) -> Result<Self, ParseStatusError> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| ParseStatusError(text.to_owned()))
    }
}
