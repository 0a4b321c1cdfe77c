//! Who is killed, and when: a sequence that its seed makes again.

use std::fmt;
use std::time::Duration;

/// Whom a kill is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Victim {
    Agent,
    Controller,
    /// One of the machines that run then: a QEMU, or the first process of a container.
    Machine,
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "agent",
            Self::Controller => "controller",
            Self::Machine => "machine",
        })
    }
}

/// One kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kill {
    pub(super) victim: Victim,
    /// After the one before it, and what that needed to be started again.
    pub(super) after: Duration,
    /// For how long the victim stays away, unless it is a machine.
    pub(super) away: Duration,
    /// Which of several machines.
    pub(super) choice: usize,
}

/// The kills of a seed. On average one comes every `mean`; half of them are for machines, of which there are more.
pub(super) fn kills(seed: u64, count: usize, mean: Duration) -> Vec<Kill> {
    let mut random = Random(seed);
    (0..count)
        .map(|_| {
            let victim = match random.below(10) {
                0..=3 => Victim::Agent,
                4..=7 => Victim::Machine,
                _ => Victim::Controller,
            };
            // From right after the start, where little is set up, to far into a build.
            let after = mean * u32::try_from(random.below(2001)).unwrap_or_default() / 1000;
            // Mostly back at once, as by a service manager; sometimes late.
            let away = match random.below(4) {
                0 => Duration::from_millis(random.below(3000)),
                _ => Duration::ZERO,
            };
            let choice = usize::try_from(random.below(1000)).unwrap_or_default();
            Kill {
                victim,
                after,
                away,
                choice,
            }
        })
        .collect()
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same with every release of every library.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of 0 to `bound` - 1; what the division makes uneven does not matter here.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEAN: Duration = Duration::from_secs(4);

    #[test]
    fn a_seed_makes_the_same_kills_again() {
        let first = kills(7, 50, MEAN);
        assert_eq!(first, kills(7, 50, MEAN));
        assert_eq!(first[..20], kills(7, 20, MEAN)[..]);
        assert_ne!(first, kills(8, 50, MEAN));
    }

    #[test]
    fn everybody_is_killed_at_all_times() {
        let all = kills(1, 200, MEAN);
        for (victim, least) in [
            (Victim::Agent, 50),
            (Victim::Machine, 50),
            (Victim::Controller, 20),
        ] {
            assert!(
                all.iter().filter(|kill| kill.victim == victim).count() >= least,
                "{victim}"
            );
        }
        let total: Duration = all.iter().map(|kill| kill.after).sum();
        assert!((MEAN * 160..MEAN * 240).contains(&total), "{total:?}");
        assert!(
            all.iter().any(|kill| kill.after < MEAN / 20)
                && all.iter().any(|kill| kill.after > MEAN * 19 / 10)
        );
    }
}
