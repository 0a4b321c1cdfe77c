//! The worker of the build bot: runs inside a machine, builds a package there and reports the result to the agent.
//!
//! Three modes. *Bootstrap* prints what is installed; *startup* asks the agent for a task, prepares the environment and
//! starts itself again in *build* mode, which does the work. Two processes, so that a build that brings its own process
//! down is still reported.

mod ahead;
mod arguments;
mod build;
mod build_systems;
mod channel;
mod checksums;
mod command;
mod fresh;
mod guard;
mod isolation;
mod log;
mod network;
mod options;
mod rehearsal;
mod report;
mod segments;
mod source;
mod startup;
mod unpack;
mod user;
mod warnings;

use std::process::ExitCode;

use options::{Mode, Parsed};

/// Exit code of the build mode: the build ended abnormally, and the result that says so has been uploaded.
const ABNORMAL_AND_UPLOADED: u8 = 2;

fn main() -> ExitCode {
    let options = match options::parse(std::env::args_os()) {
        Ok(Parsed::Run(options)) => options,
        Ok(Parsed::Help) => {
            print!("{}", options::HELP);
            return ExitCode::SUCCESS;
        }
        Ok(Parsed::Version) => {
            println!("bbot-worker {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error}\n  info: run 'bbot-worker --help' for the options");
            return ExitCode::FAILURE;
        }
    };
    let outcome = match options.mode {
        Mode::Bootstrap => bootstrap(),
        Mode::Startup => startup::run(&options),
        Mode::Build => build::run(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bootstrap() -> anyhow::Result<ExitCode> {
    print!("{}", bbot_manifest::BootstrapManifest::ours().serialize()?);
    Ok(ExitCode::SUCCESS)
}
