//! `bbot`: the operator's and the developer's tool.

mod api;
mod commands;
mod home;
mod progress;
mod source;
mod table;

use std::{io, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use commands::{
    Exit, agent, build, builds, cancel, key, log, machine, manifest, rebuild, submit, token,
    toolchain, up,
};
use home::Home;

/// The heading in the help over what tells where things are.
const PLACES: &str = "Places";

/// Build packages in throw-away machines.
#[derive(Debug, Parser)]
#[command(
    name = "bbot",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "To begin: `bbot machine create debian-12`, then `bbot build DIR`, or `bbot up` and `bbot submit --follow DIR`.\n\n\
        Exit status: 0 done, 1 failed, 2 wrong usage; `build`, `submit --wait`, `submit --follow` and `log --follow` \
        exit with 3 when the build itself did not succeed."
)]
struct Options {
    /// The folder with machines, toolchains and state [default: /var/lib/bbot for root, else
    /// ~/.local/share/bbot]
    #[arg(long, env = "BBOT_HOME", value_name = "DIR", global = true, help_heading = PLACES)]
    home: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(build::Build),
    Up(up::Up),
    Submit(submit::Submit),
    Builds(builds::ListBuilds),
    Log(log::Log),
    Rebuild(rebuild::Rebuild),
    Cancel(cancel::Cancel),
    #[command(subcommand)]
    Token(token::Token),
    #[command(subcommand)]
    Machine(machine::Machine),
    #[command(subcommand)]
    Agent(agent::Agent),
    #[command(subcommand)]
    Toolchain(toolchain::Toolchain),
    #[command(subcommand)]
    Manifest(manifest::Manifest),
    Keygen(key::Keygen),
    Fingerprint(key::Fingerprint),
}

fn main() -> ExitCode {
    let options = Options::parse();
    // Two crates may each bring a TLS provider; the process has to choose one.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        eprintln!("bbot: error: cannot set up TLS");
        return ExitCode::FAILURE;
    }
    match run(options) {
        Ok(exit) => exit.into(),
        // Whoever reads our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bbot: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<Exit> {
    let home = Home::new(options.home)?;
    // One thread: QEMU is bound to the life of the thread that starts it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    match options.command {
        Command::Build(options) => runtime.block_on(build::run(options, &home)),
        Command::Up(options) => runtime.block_on(up::run(options, &home)),
        Command::Submit(options) => runtime.block_on(submit::run(options, &home)),
        Command::Builds(options) => runtime.block_on(builds::run(options, &home)),
        Command::Log(options) => runtime.block_on(log::run(options, &home)),
        Command::Rebuild(options) => runtime.block_on(rebuild::run(options, &home)),
        Command::Cancel(options) => runtime.block_on(cancel::run(options, &home)),
        Command::Token(command) => runtime.block_on(token::run(command, &home)),
        Command::Machine(command) => machine::run(command, &home),
        Command::Agent(command) => runtime.block_on(agent::run(&command, &home)),
        Command::Toolchain(command) => toolchain::run(command, &home),
        Command::Manifest(command) => manifest::run(&command),
        Command::Keygen(options) => key::keygen(&options),
        Command::Fingerprint(options) => key::fingerprint(&options),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Options::command().debug_assert();
    }
}
