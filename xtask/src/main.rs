//! Tasks of the project's developers: `cargo xtask <task>`.

mod fuzz;
mod kill;
mod planted;
mod simulate;
mod worker;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

const HELP: &str = "\
Usage: cargo xtask <task> [<option>...]

  worker    build the static worker and print its path
  fuzz      give everything that reads bytes from outside random ones
              --seconds N    how long each target (60)
              --target T     only this one; may be repeated
              --jobs N       so many at once (2)
              --seed S       of the random choices (a new one each time)
              --keep         put new inputs that reach new code into the corpus
              --replay FILE  run one input with the one --target given
  kill      kill agent, controller and machines over a stream of tasks: none is lost, nothing is left (root)
              --kills N      how many (200)
              --tasks N      at least so many (400)
              --seed S       of the sequence of kills (a new one each time)
              --machines K   only of the kind qemu or nspawn (both)
              --instances N  machines at once (2)
              --pause MS     from one kill to the next, on average (3500)
              --keep         keep the logs
  simulate  play agents and controllers against planted faults in virtual time
              --seeds N      how many (10000)
              --first S      the first one (0)
  planted   plant each listed bug in turn; the simulation must find it
              <text>         only those whose name contains it
";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let task = arguments.next().unwrap_or_default();
    let rest: Vec<OsString> = arguments.collect();
    let outcome = match (task.to_str(), rest.is_empty()) {
        (Some("worker"), true) => worker::run(),
        (Some("fuzz"), _) => fuzz::run(rest),
        (Some("kill"), _) => kill::run(rest),
        (Some("simulate"), _) => simulate::run(&rest),
        (Some("planted"), _) if rest.len() < 2 => planted::run(&rest),
        (Some("--help" | "-h"), true) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<lexopt::Error>() => {
            eprint!("error: {error}\n\n{HELP}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
