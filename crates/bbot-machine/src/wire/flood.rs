//! How much of a processor a guest may make the agent spend on its wire: a token
//! bucket (`docs/decisions/0008-flood.md`).
//!
//! Who has used up its tokens is not read for a while. Its frames wait in the
//! socket, QEMU stops taking more from the guest, and only the guest waits.

use std::time::{Duration, Instant};

/// What a request for a file costs, in frames: it opens files, is told to the
/// agent, and an upload ends with a flush of the disk.
pub const REQUEST_COST: u32 = 50;

/// For how long nothing is read once there are no tokens, so that the thread
/// does not wake for each frame.
const PAUSE: Duration = Duration::from_millis(50);

/// The bound on a guest's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Frames a second, for ever.
    pub rate: u32,
    /// Frames at once, before that.
    pub burst: u32,
}

impl Default for Bound {
    /// 20,000 a second are 29 MB/s in full blocks, and less than a tenth of a
    /// processor; the burst lets 290 MB through as fast as they come.
    fn default() -> Self {
        Self {
            rate: 20_000,
            burst: 200_000,
        }
    }
}

/// The tokens of one guest.
#[derive(Debug)]
pub struct Bucket {
    bound: Bound,
    /// In frames; negative by what the last one cost too much.
    tokens: f64,
    /// When they were counted.
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(bound: Bound, now: Instant) -> Self {
        Self {
            bound,
            tokens: f64::from(bound.burst),
            at: now,
        }
    }

    /// Pays for what was just done. An instant: nothing is to be done until then.
    pub fn spend(&mut self, cost: u32, now: Instant) -> Option<Instant> {
        let rate = f64::from(self.bound.rate.max(1));
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.tokens = (self.tokens + passed * rate).min(f64::from(self.bound.burst));
        self.tokens -= f64::from(cost);
        if self.tokens > 0.0 {
            return None;
        }
        let missing = Duration::from_secs_f64(-self.tokens / rate);
        Some(now + missing + PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_passes_and_a_flood_is_held_to_the_rate() {
        let bound = Bound {
            rate: 1000,
            burst: 5000,
        };
        let begin = Instant::now();
        let mut now = begin;
        let mut bucket = Bucket::new(bound, now);
        let mut at_once = 0;
        while bucket.spend(1, now).is_none() {
            at_once += 1;
        }
        assert_eq!(at_once, 4999);
        // For ever: no more than the rate.
        let mut frames = 0_u32;
        while now < begin + Duration::from_secs(100) {
            frames += 1;
            if let Some(at) = bucket.spend(1, now) {
                now = at;
            }
        }
        assert!((90_000..=101_000).contains(&frames), "{frames}");
        // Who was quiet may burst again.
        now += Duration::from_secs(10);
        for _ in 0..4000 {
            assert_eq!(bucket.spend(1, now), None);
        }
    }

    #[test]
    fn requests_are_dear() {
        let now = Instant::now();
        let mut bucket = Bucket::new(Bound::default(), now);
        let mut requests = 0;
        while bucket.spend(REQUEST_COST, now).is_none() {
            requests += 1;
        }
        assert_eq!(requests, 3999);
    }

    proptest! {
        #[test]
        fn nobody_waits_for_long(
            costs in proptest::collection::vec((0..200_u32, 0..1000_u64), 1..200),
        ) {
            let mut now = Instant::now();
            let mut bucket = Bucket::new(Bound { rate: 100, burst: 10 }, now);
            for (cost, millis) in costs {
                now += Duration::from_millis(millis);
                if let Some(at) = bucket.spend(cost, now) {
                    prop_assert!(at > now);
                    // What was done can be dearer than what was left, no more.
                    prop_assert!(at - now <= Duration::from_secs(3));
                    now = at;
                }
            }
        }
    }
}
