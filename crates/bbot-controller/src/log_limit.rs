//! A bound on how many lines of one kind strangers can cause in the log.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Millis;

/// So many lines are written within [`SPAN`].
const LINES: u32 = 10;

const SPAN: Duration = Duration::from_secs(60);

/// Counts lines of one kind.
#[derive(Debug, Default)]
pub(crate) struct LogLimit(Mutex<Count>);

#[derive(Debug, Default)]
struct Count {
    /// When the present span began, in steady time.
    since: Option<Millis>,
    lines: u32,
    left_out: u64,
}

impl LogLimit {
    /// Whether a line is to be written now, and how many were left out before it.
    pub(crate) fn line(&self, now: Millis) -> Option<u64> {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if count.since.is_none_or(|since| since.plus(SPAN) <= now) {
            count.since = Some(now);
            count.lines = 0;
        }
        if count.lines >= LINES {
            count.left_out += 1;
            return None;
        }
        count.lines += 1;
        Some(std::mem::take(&mut count.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_a_minute_and_then_how_many_there_were() {
        let limit = LogLimit::default();
        let lines: Vec<u64> = (0..1000).filter_map(|n| limit.line(Millis(n))).collect();
        assert_eq!(lines, [0; 10]);
        assert_eq!(limit.line(Millis(59_999)), None);
        assert_eq!(limit.line(Millis(60_000)), Some(991));
        assert_eq!(limit.line(Millis(60_001)), Some(0));
    }
}
