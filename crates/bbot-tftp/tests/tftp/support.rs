//! What several test programs share.

use std::process::Command;

/// A small generator (xorshift64*): the same seed gives the same run everywhere.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// True in `percent` of a hundred cases.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Bytes that repeat nowhere in a way that a lost or doubled block could hide in.
pub(crate) fn content(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Whether a program is there: without it a test is skipped.
pub(crate) fn have(program: &str) -> bool {
    testkit::program(program, "tftp")
}

/// Runs a command to its end, within a bound.
pub(crate) fn run(command: &mut Command) -> std::process::Output {
    let mut bounded = Command::new("timeout");
    bounded
        .args(["--kill-after=1", "100"])
        .arg(command.get_program())
        .args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        bounded.current_dir(folder);
    }
    bounded.output().expect("timeout of coreutils runs")
}

/// Compares without printing megabytes when it fails.
#[track_caller]
pub(crate) fn assert_same(left: &[u8], right: &[u8], what: &str) {
    if left != right {
        let at = left.iter().zip(right).position(|(a, b)| a != b);
        panic!(
            "{what}: {} bytes against {}, first difference at {at:?}",
            left.len(),
            right.len()
        );
    }
}
