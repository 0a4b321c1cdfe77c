//! Runs the fuzz targets of `fuzz/`, each for some seconds, several at once.
//!
//! What cargo-fuzz does, without it and with the stable compiler: the targets are built with the coverage counters that
//! libFuzzer steers by and with the address sanitizer, which stable has but keeps behind `RUSTC_BOOTSTRAP`. Every target
//! works on a copy of its corpus, in at most 256 MB, an input in at most 5 s; whatever breaks one of its promises is
//! kept in `fuzz/artifacts`.

mod corpus;
mod outcome;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use lexopt::ValueExt as _;

use crate::workspace;
use outcome::Outcome;

/// What a target may take of memory, in MB: the sanitizer's own part included.
const MEMORY: u32 = 256;

/// What one input may take, in seconds.
const TIMEOUT: u32 = 5;

/// How long a target may take to read its corpus and to end, beyond its time.
const GRACE: Duration = Duration::from_secs(120);

/// The longest input, in bytes: a few frames, packets, or lines.
const MAX_LEN: usize = 8192;

/// The longest one of what comes as long as a guest or a controller likes.
const MAX_LEN_OF_MANIFESTS: usize = 128 * 1024;

/// As cargo-fuzz has them. Without the threshold, branches that are folded would not be seen.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
    --cfg fuzzing -Zsanitizer=address";

/// Freed memory is kept from reuse only as long as fits the bound; a leak would show as growth.
const SANITIZER: &str = "detect_odr_violation=0:detect_leaks=0:quarantine_size_mb=8:allocator_release_to_os_interval_ms=500";

struct Options {
    seconds: u32,
    targets: Vec<String>,
    jobs: usize,
    seed: u32,
    keep: bool,
    replay: Option<PathBuf>,
}

impl Options {
    fn parse(arguments: Vec<OsString>) -> Result<Self, lexopt::Error> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut options = Self {
            seconds: 60,
            targets: Vec::new(),
            jobs: 2,
            // 0 would have libFuzzer choose, and nobody would know what.
            seed: now.subsec_nanos() | 1,
            keep: false,
            replay: None,
        };
        let mut parser = lexopt::Parser::from_args(arguments);
        while let Some(argument) = parser.next()? {
            match argument {
                lexopt::Arg::Long("seconds") => options.seconds = parser.value()?.parse()?,
                lexopt::Arg::Long("target") => options.targets.push(parser.value()?.string()?),
                lexopt::Arg::Long("jobs") => options.jobs = parser.value()?.parse()?,
                lexopt::Arg::Long("seed") => options.seed = parser.value()?.parse()?,
                lexopt::Arg::Long("keep") => options.keep = true,
                lexopt::Arg::Long("replay") => options.replay = Some(parser.value()?.into()),
                other => return Err(other.unexpected()),
            }
        }
        if options.replay.is_some() && options.targets.len() != 1 {
            return Err("--replay takes one --target".into());
        }
        Ok(options)
    }
}

/// The fuzz package, built.
struct Fuzz {
    home: PathBuf,
    programs: PathBuf,
}

impl Fuzz {
    fn program(&self, target: &str) -> PathBuf {
        self.programs.join(target)
    }

    fn corpus(&self, target: &str) -> PathBuf {
        self.home.join("corpus").join(target)
    }

    fn artifacts(&self, target: &str) -> PathBuf {
        self.home.join("artifacts").join(target)
    }

    fn command(&self, target: &str) -> Command {
        let mut command = Command::new(self.program(target));
        command
            .env("ASAN_OPTIONS", SANITIZER)
            .arg(format!("-rss_limit_mb={MEMORY}"))
            .arg(format!("-timeout={TIMEOUT}"))
            .stdin(Stdio::null());
        command
    }
}

/// Builds and runs the targets; an error when one has found something.
pub(crate) fn run(arguments: Vec<OsString>) -> anyhow::Result<()> {
    let mut options = Options::parse(arguments)?;
    let home = workspace::root()?.join("fuzz");
    let all = targets(&home)?;
    if let Some(unknown) = options.targets.iter().find(|t| !all.contains(t)) {
        bail!(
            "there is no target {unknown}: it is one of {}",
            all.join(", ")
        );
    }
    if options.targets.is_empty() {
        options.targets = all;
    }
    let fuzz = build(home, &options.targets)?;
    if let Some(file) = &options.replay {
        return replay(&fuzz, &options.targets[0], file);
    }
    println!(
        "{} target(s), {} s each, {} at once, seed {}",
        options.targets.len(),
        options.seconds,
        options.jobs,
        options.seed
    );
    let outcomes = run_all(&fuzz, &options)?;
    let failed: Vec<&Outcome> = outcomes.iter().filter(|o| !o.found.is_empty()).collect();
    let runs: u64 = outcomes.iter().map(|o| o.runs).sum();
    let new: u64 = outcomes.iter().map(Outcome::new_edges).sum();
    let memory = outcomes.iter().map(|o| o.memory).max().unwrap_or_default();
    let figures = format!(
        "{} targets, {} s each, {runs} runs, {new} new edges, at most {memory} MB",
        outcomes.len(),
        options.seconds
    );
    if failed.is_empty() {
        println!("fuzz: nothing found: {figures}");
        return Ok(());
    }
    for outcome in &failed {
        for found in &outcome.found {
            println!("{}: {found}", outcome.target);
        }
    }
    let names: Vec<&str> = failed.iter().map(|o| o.target.as_str()).collect();
    println!("fuzz: FAILED: {}: {figures}", names.join(", "));
    bail!("{} target(s) found something", failed.len())
}

/// The longest input of a target.
fn max_len(target: &str) -> usize {
    match target {
        "manifest" | "typed" => MAX_LEN_OF_MANIFESTS,
        _ => MAX_LEN,
    }
}

/// The names of the targets: of their files.
fn targets(home: &Path) -> anyhow::Result<Vec<String>> {
    let folder = home.join("fuzz_targets");
    let failed = || format!("cannot read {}", folder.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(failed)? {
        let path = entry.with_context(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(
                path.file_stem()
                    .and_then(|name| name.to_str())
                    .map(str::to_owned),
            );
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn build(home: PathBuf, targets: &[String]) -> anyhow::Result<Fuzz> {
    let triple = workspace::host_triple()?;
    let target = workspace::target()?.join("fuzz");
    let mut command = Command::new(workspace::cargo());
    command
        .args(["build", "--release", "--quiet", "--target", &triple])
        .current_dir(&home)
        .env("CARGO_TARGET_DIR", &target)
        // For -Zsanitizer; nothing else here needs more than the stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env(workspace::flags_variable(&triple), FLAGS)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stdin(Stdio::null());
    for name in targets {
        command.args(["--bin", name]);
    }
    let status = command.status().context("cannot run cargo")?;
    ensure!(
        status.success(),
        "the fuzz targets do not build ({status}); libFuzzer needs a C++ compiler (Debian's package g++)"
    );
    Ok(Fuzz {
        home,
        programs: target.join(triple).join("release"),
    })
}

fn replay(fuzz: &Fuzz, target: &str, file: &Path) -> anyhow::Result<()> {
    let status = fuzz
        .command(target)
        .arg(file)
        .status()
        .with_context(|| format!("cannot run {}", fuzz.program(target).display()))?;
    ensure!(
        status.success(),
        "{target} fails with {} ({status})",
        file.display()
    );
    println!("fuzz: {target} holds with {}", file.display());
    Ok(())
}

/// Runs the targets, some at once, in their order.
fn run_all(fuzz: &Fuzz, options: &Options) -> anyhow::Result<Vec<Outcome>> {
    let waiting = Mutex::new(options.targets.iter());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    // The lock is given up before the target runs.
                    let next = lock(&waiting).next();
                    let Some(target) = next else { return };
                    let outcome = run_one(fuzz, options, target);
                    if let Ok(outcome) = &outcome {
                        println!("{outcome}");
                    }
                    lock(&done).push(outcome);
                }
            });
        }
    });
    done.into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .into_iter()
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn run_one(fuzz: &Fuzz, options: &Options, target: &str) -> anyhow::Result<Outcome> {
    let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
    let inputs = scratch.path().join("corpus");
    corpus::copy(&fuzz.corpus(target), &inputs)?;
    let longest = max_len(target);
    if longest > MAX_LEN {
        corpus::grow(&inputs, longest)?;
    }
    let artifacts = fuzz.artifacts(target);
    fs::create_dir_all(&artifacts)
        .with_context(|| format!("cannot make {}", artifacts.display()))?;
    let log = scratch.path().join("log");
    let sink = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
    let before = corpus::names(&artifacts)?;

    let mut command = fuzz.command(target);
    command
        .arg(&inputs)
        .arg(format!("-max_total_time={}", options.seconds))
        .arg(format!("-max_len={longest}"))
        .arg(format!("-seed={}", options.seed))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .stdout(Stdio::null())
        .stderr(sink);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {}", fuzz.program(target).display()))?;
    let limit = Duration::from_secs(options.seconds.into()) + GRACE;
    let status = wait(&mut child, limit)?;

    let said = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let mut outcome = Outcome::read(target, &String::from_utf8_lossy(&said));
    for name in corpus::names(&artifacts)?.difference(&before) {
        outcome
            .found
            .push(artifacts.join(name).display().to_string());
    }
    match status {
        Some(status) if status.success() => {}
        Some(status) => {
            let kept = artifacts.join("last-log");
            fs::write(&kept, &said).with_context(|| format!("cannot write {}", kept.display()))?;
            outcome
                .found
                .push(format!("{status}; what it said is in {}", kept.display()));
        }
        None => outcome
            .found
            .push(format!("did not end within {} s", limit.as_secs())),
    }
    // Nothing that a target left lies around: an empty folder says nothing.
    let _ = fs::remove_dir(&artifacts);
    if options.keep && outcome.found.is_empty() {
        corpus::keep(fuzz.command(target), &inputs, &fuzz.corpus(target))?;
    }
    Ok(outcome)
}

/// Waits for its end; none when that does not come in time, and it is killed.
fn wait(child: &mut Child, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a target")? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            child.kill().context("cannot kill a target")?;
            child.wait().context("cannot wait for a target")?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_declared_and_has_a_corpus() {
        let home = workspace::root().unwrap().join("fuzz");
        let manifest = fs::read_to_string(home.join("Cargo.toml")).unwrap();
        let targets = targets(&home).unwrap();
        for target in &targets {
            assert!(
                manifest.contains(&format!(
                    "name = \"{target}\"\npath = \"fuzz_targets/{target}.rs\""
                )),
                "{target}"
            );
            let inputs = corpus::names(&home.join("corpus").join(target)).unwrap();
            assert!(inputs.len() >= 5, "{target} has {} inputs", inputs.len());
        }
        assert_eq!(manifest.matches("[[bin]]").count(), targets.len());
    }

    #[test]
    fn a_replay_has_one_target() {
        let parse = |text: &str| Options::parse(text.split(' ').map(OsString::from).collect());
        assert!(parse("--replay x").is_err());
        assert!(parse("--target a --replay x").is_ok());
        assert!(parse("--seconds ten").is_err());
        assert!(parse("what").is_err());
    }

    #[test]
    fn a_target_that_does_not_end_is_killed() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(
            wait(&mut child, Duration::from_millis(100))
                .unwrap()
                .is_none()
        );
        let mut child = Command::new("true").spawn().unwrap();
        assert!(
            wait(&mut child, Duration::from_secs(30))
                .unwrap()
                .unwrap()
                .success()
        );
    }
}
