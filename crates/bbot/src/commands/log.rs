//! `bbot log`: the log of a build, whole or of one operation.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use clap::Args;

use super::{Exit, builds::took, follow};
use crate::{
    api::{Api, Build, ControllerOptions},
    home::Home,
};

/// Print the log of a build.
#[derive(Debug, Args)]
#[command(
    after_help = "With --follow it waits for an agent where there is none yet, goes on where it was when the controller is restarted, \
        and ends when the build is built.\n\n\
        Exit status: 0 done, 1 failed, 2 wrong usage; with --follow 3 when the build did not succeed."
)]
pub(crate) struct Log {
    /// The build's id, as `bbot builds` lists it
    id: String,
    /// One operation only: configure, update, test
    operation: Option<String>,
    /// The same as an option
    #[arg(
        long = "operation",
        value_name = "OPERATION",
        conflicts_with = "operation"
    )]
    only: Option<String>,
    /// Print the log as it grows, until the build is built
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    controller: ControllerOptions,
}

pub(crate) async fn run(options: Log, home: &Home) -> Result<Exit> {
    let api = Api::new(&options.controller, home)?;
    let operation = options.operation.as_deref().or(options.only.as_deref());
    if options.follow {
        let build = follow::follow(&api, &options.id, operation).await?;
        if std::io::stderr().is_terminal() {
            print_summary(&build);
        }
        return Ok(if build.succeeded() {
            Exit::Done
        } else {
            Exit::BuildFailed
        });
    }
    // While it is built once more, this is the log of the time before.
    let log = api.log(&options.id, operation).await?;
    print(&log)?;
    if operation.is_none() && std::io::stderr().is_terminal() {
        print_summary(&api.build(&options.id).await?);
    }
    Ok(Exit::Done)
}

/// The log itself, on standard output.
pub(crate) fn print(log: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(log)
        .and_then(|()| out.flush())
        .context("cannot write the log")
}

/// One line on an operation, on standard error.
pub(crate) fn print_operation(name: &str, status: &str) {
    eprintln!("{name:>12}  {}", paint(status));
}

/// One line per operation and one for the whole, on standard error.
pub(crate) fn print_summary(build: &Build) {
    for operation in &build.operations {
        print_operation(&operation.name, &operation.status);
    }
    let on = build
        .machine
        .as_deref()
        .map(|machine| format!(" on {machine}"))
        .unwrap_or_default();
    let took = took(build)
        .map(|took| format!(" in {took}"))
        .unwrap_or_default();
    eprintln!(
        "{}/{} ({}{on}): {}{took}",
        build.package,
        build.version,
        build.configuration,
        paint(build.status.as_deref().unwrap_or(&build.state))
    );
    if let Some(url) = &build.url {
        eprintln!("{url}");
    }
}

/// A status in its colour, on a terminal.
pub(crate) fn paint(status: &str) -> String {
    if !std::io::stderr().is_terminal() {
        return status.to_string();
    }
    let colour = match status {
        "success" | "skip" => 32,
        "warning" => 33,
        "error" | "abort" | "abnormal" => 31,
        _ => 36,
    };
    format!("\x1b[1;{colour}m{status}\x1b[0m")
}
