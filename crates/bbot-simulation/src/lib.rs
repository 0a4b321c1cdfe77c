//! Agents and controllers against planted faults, in virtual time: the decisions are the real ones (the agent's
//! supervisor and its plan of deliveries, the controller's queue), everything else is played.
//!
//! ```text
//!   script      what a seed makes: hosts, machines, controllers, tasks, faults
//!   world       the events in their order, the network that loses and delays
//!   agent       an agent: the real Supervisor and delivery Plan; what is on its disk survives a crash
//!   controller  a controller: the real queue decisions over a table
//!   check       what must hold after every step, and at the end
//! ```
//!
//! A seed gives the same run each time, so a failing one is replayed by its number.

mod agent;
mod check;
mod controller;
mod script;
mod world;

use std::fmt;

pub use world::Figures;

/// A rule that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The seed that shows it.
    pub seed: u64,
    /// What did not hold.
    pub what: String,
    /// The last steps before, oldest first.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.what)?;
        for line in &self.trace {
            writeln!(f, "    {line}")?;
        }
        write!(
            f,
            "replay: cargo xtask simulate --first {} --seeds 1",
            self.seed
        )
    }
}

/// Plays one seed.
///
/// # Errors
///
/// The first rule that did not hold.
pub fn run(seed: u64) -> Result<Figures, Failure> {
    // A fault of what is played is one more way to break the rules.
    std::panic::catch_unwind(|| play(seed)).unwrap_or_else(|panic| Err(of_panic(seed, &*panic)))
}

fn of_panic(seed: u64, panic: &(dyn std::any::Any + Send)) -> Failure {
    let said = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    Failure {
        seed,
        what: format!("it panicked: {}", said.unwrap_or("and did not say why")),
        trace: Vec::new(),
    }
}

fn play(seed: u64) -> Result<Figures, Failure> {
    let mut world = world::World::new(seed, false);
    match world.play() {
        Ok(()) => Ok(world.figures()),
        Err(what) => {
            // Once more, to see how it came to that.
            let mut world = world::World::new(seed, true);
            let again = world.play();
            let trace = world.trace();
            let what = again.err().unwrap_or(what);
            Err(Failure { seed, what, trace })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_hundred_seeds_hold() {
        let mut sum = Figures::default();
        for seed in 1_000_000..1_000_300 {
            match run(seed) {
                Ok(figures) => {
                    assert!(figures.tasks >= 20 && figures.faults >= 5, "{figures:?}");
                    sum += figures;
                }
                Err(failure) => panic!("{failure}"),
            }
        }
        // What is to be shown does happen.
        assert!(
            sum.agent_crashes > 50 && sum.controller_crashes > 50,
            "{sum:?}"
        );
        assert!(
            sum.interrupts > 50 && sum.lapses > 50 && sum.late > 0,
            "{sum:?}"
        );
        assert!(sum.bootstraps > 300 && sum.lost_messages > 300, "{sum:?}");
    }

    #[test]
    fn a_panic_names_its_seed() {
        let panic = std::panic::catch_unwind(|| panic!("no room for {}", 7)).unwrap_err();
        let failure = of_panic(42, &*panic).to_string();
        assert!(
            failure.starts_with("seed 42: it panicked: no room for 7"),
            "{failure}"
        );
        assert!(failure.contains("--first 42 --seeds 1"), "{failure}");
    }

    #[test]
    fn a_seed_is_played_the_same_way_each_time() {
        for seed in 0..5 {
            assert_eq!(run(seed), run(seed));
        }
    }
}
