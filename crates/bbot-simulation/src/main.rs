//! Plays seeds on all processors: `bbot-simulation [--seeds N] [--first S]`. The last line is the verdict; the exit
//! status is 0 only when every rule held for every seed.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bbot_simulation::{Failure, Figures};

const HELP: &str = "\
Usage: bbot-simulation [--seeds N] [--first S]

  --seeds N   how many seeds to play (10000)
  --first S   the first one (0)
";

/// After so many seeds that fail there is enough to look at.
const FAILURES: usize = 5;

fn arguments() -> Option<(u64, u64)> {
    let (mut seeds, mut first) = (10_000, 0);
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments.next()?.parse().ok()?;
        match option.as_str() {
            "--seeds" => seeds = value,
            "--first" => first = value,
            _ => return None,
        }
    }
    Some((seeds, first))
}

fn main() -> ExitCode {
    let Some((seeds, first)) = arguments() else {
        eprint!("{HELP}");
        return ExitCode::from(2);
    };
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let sum = Mutex::new((Figures::default(), Vec::<Failure>::new()));
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let lock = || {
        sum.lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let offset = next.fetch_add(1, Ordering::Relaxed);
                    if offset >= seeds || lock().1.len() >= FAILURES {
                        return;
                    }
                    let played = bbot_simulation::run(first.wrapping_add(offset));
                    let mut sum = lock();
                    match played {
                        Ok(figures) => sum.0 += figures,
                        Err(failure) => sum.1.push(failure),
                    }
                }
            });
        }
    });
    let (figures, mut failures) = std::mem::take(&mut *lock());
    failures.sort_by_key(|f| f.seed);
    for failure in &failures {
        println!("{failure}\n");
    }
    let seconds = began.elapsed().as_secs_f64();
    if failures.is_empty() {
        println!("{figures}");
        println!(
            "simulation holds: {seeds} seeds from {first}, {} tasks, {} faults, {} steps in {seconds:.1} s on {threads} threads",
            figures.tasks, figures.faults, figures.steps
        );
        ExitCode::SUCCESS
    } else {
        println!(
            "simulation FAILED: {} of the seeds played from {first} broke a rule, the first is {} ({seconds:.1} s)",
            failures.len(),
            failures[0].seed
        );
        ExitCode::FAILURE
    }
}
