//! What libFuzzer says of a run.

use std::fmt;

/// A target's run, in figures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) target: String,
    /// How many inputs were run.
    pub(super) runs: u64,
    /// How many edges of the code the corpus reached at the start, and all inputs in the end.
    pub(super) edges: (u64, u64),
    /// The most memory that it took, in MB.
    pub(super) memory: u64,
    /// What was found: files, and what else went wrong.
    pub(super) found: Vec<String>,
}

impl Outcome {
    /// Reads what libFuzzer has written; what it has not said is 0.
    pub(super) fn read(target: &str, log: &str) -> Self {
        let after = |line: &str, word: &str| -> Option<u64> {
            let mut words = line.split_whitespace();
            words.find(|w| *w == word)?;
            words.next()?.parse().ok()
        };
        let statistic = |name: &str| {
            log.lines()
                .rev()
                .find_map(|line| {
                    line.strip_prefix("stat::")?
                        .strip_prefix(name)?
                        .strip_prefix(':')?
                        .trim()
                        .parse()
                        .ok()
                })
                .unwrap_or_default()
        };
        let steps = || log.lines().filter(|line| line.starts_with('#'));
        let first = steps()
            .filter(|line| line.contains("INITED"))
            .find_map(|line| after(line, "cov:"));
        let last = steps().rev().find_map(|line| after(line, "cov:"));
        Self {
            target: target.to_owned(),
            runs: statistic("number_of_executed_units"),
            edges: (first.unwrap_or_default(), last.unwrap_or_default()),
            memory: statistic("peak_rss_mb"),
            found: Vec::new(),
        }
    }

    pub(super) fn new_edges(&self) -> u64 {
        self.edges.1.saturating_sub(self.edges.0)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            target,
            runs,
            edges,
            memory,
            found,
        } = self;
        let verdict = if found.is_empty() { "holds" } else { "FAILS" };
        write!(
            f,
            "{target:<10} {verdict}  {runs:>9} runs, {:>5} edges, {:>4} of them new, {memory} MB",
            edges.1,
            self.new_edges()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_among_the_noise() {
        let log = "INFO: Seed: 7\n#12\tINITED cov: 100 ft: 120 corp: 3/7b exec/s: 0 rss: 40Mb\n\
            #99\tNEW    cov: 130 ft: 150\n#5000\tDONE   cov: 140 ft: 160 corp: 9/70b lim: 40\nDone 5000 runs in 2 second(s)\n\
            stat::number_of_executed_units: 5000\nstat::peak_rss_mb:             61\n";
        let outcome = Outcome::read("x", log);
        assert_eq!(
            (outcome.runs, outcome.edges, outcome.memory),
            (5000, (100, 140), 61)
        );
        assert_eq!(outcome.new_edges(), 40);
        assert_eq!(
            Outcome::read("x", ""),
            Outcome {
                target: "x".to_owned(),
                ..Outcome::default()
            }
        );
    }
}
