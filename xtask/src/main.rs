//! Tasks of the project's developers: `cargo xtask <task>`.

mod worker;

use std::process::ExitCode;

const HELP: &str = "\
Usage: cargo xtask <task>

  worker   build the static worker and print its path
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let outcome = match (arguments.next().as_deref(), arguments.next()) {
        (Some("worker"), None) => worker::run(),
        (Some("--help" | "-h"), None) => {
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
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
