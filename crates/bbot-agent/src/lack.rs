//! A result that the host could not take: for how long the guest may try again.
//!
//! A worker of ours offers its result again, with pauses of at most 15 s, as long as the
//! host is short of something (docs/protocol.md, section 3). Others do not, and nothing
//! more is to be expected of a guest that has given up.

use std::time::Duration;

use bbot_tftp::Failure;
use bbot_tftp::packet::ErrorCode;
use tokio::time::Instant;

/// A guest that has not tried again after so long will not.
const SILENCE: Duration = Duration::from_secs(60);

/// A host that has been short for so long will be for longer than the worker tries.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a host lacks for a result.
#[derive(Debug, Default)]
pub(crate) struct Lack {
    since: Option<Instant>,
    /// The last try, until there is another one.
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    /// What was lacking, in words without a path of this host.
    what: String,
    /// Until when another try is waited for.
    until: Instant,
}

impl Lack {
    /// An upload of the result has failed.
    pub(crate) fn failed(&mut self, reason: &Failure, now: Instant) {
        let Failure::Refused { code, message, .. } = reason else {
            return;
        };
        if !reason.is_of_host() {
            return;
        }
        let since = *self.since.get_or_insert(now);
        let until = match code {
            ErrorCode::Undefined => (now + SILENCE).min(since + PATIENCE).max(now),
            // The guest was told that there is no use.
            _ => now,
        };
        let what = message.clone();
        self.last = Some(Last { what, until });
    }

    /// The guest tries again.
    pub(crate) fn tried(&mut self) {
        self.last = None;
    }

    /// When the run is to be ended, unless the guest tries again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.last.as_ref().map(|last| last.until)
    }

    /// What was lacking, when that time has come.
    pub(crate) fn over(&self, now: Instant) -> Option<&str> {
        let last = self.last.as_ref().filter(|last| last.until <= now)?;
        Some(&last.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: ErrorCode, detail: Option<&str>) -> Failure {
        Failure::Refused {
            code,
            message: "m".to_owned(),
            detail: detail.map(str::to_owned),
        }
    }

    #[test]
    fn a_guest_may_try_again_for_a_while() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let short = refused(ErrorCode::Undefined, Some("no room"));
        let mut lack = Lack::default();
        assert_eq!(lack.deadline(), None);
        // Each try may be the last, and all together have a bound.
        for (now, until) in [(0, 60), (50, 110), (200, 260), (250, 300), (400, 400)] {
            lack.failed(&short, at(now));
            assert_eq!(lack.deadline(), Some(at(until)), "{now}");
            assert_eq!(lack.over(at(until)), Some("m"));
            if until > now {
                assert_eq!(lack.over(at(until - 1)), None);
            }
            lack.tried();
            assert_eq!(lack.deadline(), None);
        }
    }

    #[test]
    fn a_guest_that_was_told_so_does_not_try_again() {
        let now = Instant::now();
        let mut lack = Lack::default();
        lack.failed(&refused(ErrorCode::AccessViolation, Some("no rights")), now);
        assert_eq!(lack.over(now), Some("m"));
    }

    #[test]
    fn what_the_guest_does_wrong_is_no_lack() {
        let mut lack = Lack::default();
        for failure in [
            refused(ErrorCode::DiskFull, None),
            refused(ErrorCode::Undefined, None),
            Failure::TimedOut { tries: 3 },
            Failure::Superseded,
        ] {
            lack.failed(&failure, Instant::now());
            assert_eq!(lack.deadline(), None, "{failure}");
        }
    }
}
