//! The last errors and warnings of this process, for the status.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::status::ERRORS;

/// The longest message that is kept, in bytes.
const LONGEST: usize = 500;

/// An error or a warning that was told.
#[derive(Debug, Clone)]
pub struct Told {
    /// When.
    pub at: Instant,
    /// When, in seconds since 1970.
    pub time: u64,
    /// `error` or `warning`.
    pub level: &'static str,
    /// What; one line.
    pub message: String,
}

/// The diagnostics are the process's, and so is their memory.
static RECENT: Mutex<VecDeque<Told>> = Mutex::new(VecDeque::new());

pub(super) fn remember(level: &'static str, message: &str, now: SystemTime) {
    let end = message.floor_char_boundary(LONGEST);
    let message = message[..end]
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let told = Told {
        at: Instant::now(),
        time: now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        level,
        message,
    };
    // A thread that panicked over it has left it whole.
    let mut recent = RECENT
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if recent.len() >= ERRORS {
        recent.pop_front();
    }
    recent.push_back(told);
}

/// The last errors and warnings that were told, the oldest first.
pub fn recent() -> Vec<Told> {
    let recent = RECENT
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    recent.iter().cloned().collect()
}
