//! Measures how fast a result manifest with big build logs is read and written.
//!
//! `throughput [--quick] [--json FILE]`; `bench/manifest` builds and runs it.
//! The manifest is made here and always the same. Times are the best of several
//! runs, so that a busy machine disturbs them as little as possible.

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bbot_manifest::{
    BuildResult, Era, Introducer, Manifest, OperationResult, Status, Style, log_text, parse,
    serialize,
};
use serde_json::{Value, json};

/// What the reference library took on one of the development machines, per
/// second of processor time: it is not built here.
const REFERENCE_PARSE: f64 = 53.0;
const REFERENCE_SERIALIZE: f64 = 70.0;
/// What we want to reach, in MB/s.
const AIM_PARSE: f64 = 300.0;

const USAGE: &str = "usage: throughput [--quick] [--json FILE]";

fn main() -> ExitCode {
    let mut quick = false;
    let mut json_file = None;
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--quick") => quick = true,
            Some("--json") => match args.next() {
                Some(file) => json_file = Some(PathBuf::from(file)),
                None => {
                    eprintln!("error: --json needs a file\n{USAGE}");
                    return ExitCode::from(2);
                }
            },
            Some("--help") => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            _ => {
                eprintln!("error: unknown argument {}\n{USAGE}", arg.display());
                return ExitCode::from(2);
            }
        }
    }
    let (megabytes, runs) = if quick { (8, 5) } else { (50, 9) };
    let cases = match measure(megabytes * 1_000_000, runs) {
        Ok(cases) => cases,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("{megabytes} MB result manifest, best of {runs} runs\n");
    print!("{}", table(&cases));
    if let Some(file) = json_file {
        let json: Value = cases.iter().map(Case::json).collect();
        if let Err(error) = std::fs::write(&file, format!("{json:#}\n")) {
            eprintln!("error: cannot write {}: {error}", file.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// One line of the table; speeds in MB/s.
struct Case {
    name: &'static str,
    peer_name: &'static str,
    ours: f64,
    peer: f64,
    /// What ours should reach.
    aim: f64,
}

impl Case {
    fn ratio(&self) -> f64 {
        self.ours / self.peer
    }

    fn holds(&self) -> bool {
        self.ours >= self.aim
    }

    fn json(&self) -> Value {
        let round = |x: f64| (x * 100.0).round() / 100.0;
        json!({
            "case": format!("{} (peer: {})", self.name, self.peer_name),
            "ours": round(self.ours),
            "peer": round(self.peer),
            "unit": "MB/s",
            "ratio": round(self.ratio()),
            "aim": self.aim,
            "holds": self.holds(),
        })
    }
}

fn table(cases: &[Case]) -> String {
    let mut out = format!(
        "{:<34} {:>9} {:>9} {:>7} {:>9}  {:<6} peer\n",
        "case", "ours MB/s", "peer MB/s", "ratio", "aim MB/s", "holds"
    );
    for case in cases {
        let holds = if case.holds() { "yes" } else { "NO" };
        // A string takes all that is written to it.
        let _ = writeln!(
            out,
            "{:<34} {:>9.0} {:>9.0} {:>6.1}x {:>9.0}  {:<6} {}",
            case.name,
            case.ours,
            case.peer,
            case.ratio(),
            case.aim,
            holds,
            case.peer_name
        );
    }
    out
}

/// The speed in MB/s at which `work` deals with `bytes`.
fn speed<T>(bytes: usize, runs: usize, mut work: impl FnMut() -> T) -> f64 {
    let mut best = Duration::MAX;
    for _ in 0..runs {
        let start = Instant::now();
        let result = black_box(work());
        best = best.min(start.elapsed());
        drop(result);
    }
    bytes as f64 / 1e6 / best.as_secs_f64()
}

/// The least that any reader of such a text does: check the UTF-8, find the
/// lines, and look at the start of each.
fn plain_pass(bytes: &[u8]) -> usize {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    text.split('\n')
        .filter(|line| line.starts_with('\\'))
        .count()
}

fn measure(size: usize, runs: usize) -> Result<Vec<Case>, Box<dyn std::error::Error>> {
    let reference = "reference library, recorded";
    let pass = "from_utf8 and line split, same run";
    let result = result(size);
    let wrapped = result.serialize(Era::Later)?;
    let manifests: Vec<Manifest> = parse(wrapped.as_bytes())?;
    let long = Style {
        introducer: Introducer::New,
        long_lines: true,
    };
    let plain = serialize(&manifests, long)?;
    // What is fast must also be right.
    let reread = parse(plain.as_bytes())?;
    if !reread[0].same_data(&manifests[0]) || BuildResult::parse(plain.as_bytes(), "")? != result {
        return Err("the manifest does not survive being written and read".into());
    }
    drop(reread);
    let coloured: String = result.operations.iter().map(|o| coloured(&o.log)).collect();

    let parse_plain = speed(plain.len(), runs, || parse(plain.as_bytes()));
    let parse_wrapped = speed(wrapped.len(), runs, || parse(wrapped.as_bytes()));
    let pass_plain = speed(plain.len(), runs, || plain_pass(plain.as_bytes()));
    let pass_wrapped = speed(wrapped.len(), runs, || plain_pass(wrapped.as_bytes()));
    let typed = speed(wrapped.len(), runs, || {
        BuildResult::parse(wrapped.as_bytes(), "")
    });
    let write_plain = speed(plain.len(), runs, || serialize(&manifests, long));
    let write_wrapped = speed(wrapped.len(), runs, || serialize(&manifests, Style::wire()));
    let write_typed = speed(wrapped.len(), runs, || result.serialize(Era::Later));
    let clean = speed(coloured.len(), runs, || log_text(coloured.as_bytes()));
    let pass_coloured = speed(coloured.len(), runs, || plain_pass(coloured.as_bytes()));

    let case = |name, ours, aim, peer_name, peer| Case {
        name,
        peer_name,
        ours,
        peer,
        aim,
    };
    Ok(vec![
        case("parse", parse_plain, AIM_PARSE, reference, REFERENCE_PARSE),
        case("parse", parse_plain, AIM_PARSE, pass, pass_plain),
        case(
            "parse, wrapped lines",
            parse_wrapped,
            AIM_PARSE,
            reference,
            REFERENCE_PARSE,
        ),
        case(
            "parse, wrapped lines",
            parse_wrapped,
            AIM_PARSE,
            pass,
            pass_wrapped,
        ),
        case(
            "parse to a typed result",
            typed,
            AIM_PARSE,
            reference,
            REFERENCE_PARSE,
        ),
        case(
            "serialize",
            write_plain,
            REFERENCE_SERIALIZE,
            reference,
            REFERENCE_SERIALIZE,
        ),
        case(
            "serialize, wrapped lines",
            write_wrapped,
            REFERENCE_SERIALIZE,
            reference,
            REFERENCE_SERIALIZE,
        ),
        case(
            "serialize a typed result",
            write_typed,
            REFERENCE_SERIALIZE,
            reference,
            REFERENCE_SERIALIZE,
        ),
        case(
            "clean a coloured log",
            clean,
            REFERENCE_SERIALIZE,
            pass,
            pass_coloured,
        ),
    ])
}

/// Numbers that are the same in each run (a linear congruential generator).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// A result with about `size` bytes of logs in four operations.
fn result(size: usize) -> BuildResult {
    let mut numbers = Numbers(2017);
    let mut result = BuildResult::new("libexample", "2.1.0", Status::Warning);
    for (name, status, percent) in [
        ("configure", Status::Success, 4),
        ("update", Status::Warning, 62),
        ("test", Status::Success, 26),
        ("install", Status::Success, 8),
    ] {
        let mut log = String::with_capacity(size * percent / 100 + 200);
        while log.len() < size * percent / 100 {
            line(&mut log, &mut numbers);
        }
        result.operations.push(OperationResult {
            name: name.to_owned(),
            status,
            log,
        });
    }
    result
}

/// Adds a line as builds print them.
fn line(log: &mut String, numbers: &mut Numbers) {
    let parts = [
        "parser", "net", "store", "render", "crypto", "index", "unicode",
    ];
    let part = parts[usize::try_from(numbers.below(7)).unwrap_or(0)];
    let (n, kind) = (numbers.below(400), numbers.below(20));
    // A string takes all that is written to it.
    let _ = match kind {
        0..=6 => writeln!(
            log,
            "c++ -std=c++23 -O2 -g -fPIC -Wall -Wextra -DNDEBUG -I../src/{part}/include \
             -I/build/root/usr/include -c ../src/{part}/{part}_{n}.cpp -o obj/{part}_{n}.o"
        ),
        7..=8 => writeln!(
            log,
            "../src/{part}/{part}_{n}.cpp:{}:{}: warning: comparison of ‘int’ and ‘unsigned’ \
             [-Wsign-compare]",
            n * 2 + 1,
            n % 60
        ),
        9 => writeln!(
            log,
            "{n:>5} |   for (int i = 0; i < {part}.size(); ++i) // C:\\{part}\\"
        ),
        10 => writeln!(
            log,
            "      | {:>1$}~~~~~",
            '^',
            usize::try_from(n % 40).unwrap_or(0)
        ),
        11..=12 => log.write_str("\n"),
        13..=15 => writeln!(log, "[{n:>3}/400] checking {part}::case_{n} ... ok"),
        16 => writeln!(log, "\tPASS: {part}/test-{n}.sh"),
        17 => writeln!(
            log,
            "install -m 644 {part}_{n}.h /build/root/usr/include/{part}/"
        ),
        _ => writeln!(log, "make[2]: Entering directory '/build/root/{part}/{n}'"),
    };
}

/// The log with colours, as a terminal would get it.
fn coloured(log: &str) -> String {
    log.replace("warning:", "\u{1b}[1;35mwarning:\u{1b}[0m")
        .replace("PASS", "\u{1b}[32mPASS\u{1b}[0m")
}
