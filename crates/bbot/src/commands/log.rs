//! `bbot log`: the log of a build, whole or of one operation.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use clap::Args;

use super::{Exit, builds::took};
use crate::{
    api::{Api, Build, ControllerOptions},
    home::Home,
};

/// Print the log of a build.
#[derive(Debug, Args)]
pub(crate) struct Log {
    /// The build's id, as `bbot builds` lists it
    id: String,
    /// One operation only: configure, update, test
    operation: Option<String>,
    #[command(flatten)]
    controller: ControllerOptions,
}

pub(crate) async fn run(options: Log, home: &Home) -> Result<Exit> {
    let api = Api::new(&options.controller, home)?;
    let build = api.build(&options.id).await?;
    if !build.is_built() {
        eprintln!("build {} is {}: there is no log yet", build.id, build.state);
        return Ok(Exit::Failed);
    }
    let log = api.log(&options.id, options.operation.as_deref()).await?;
    let mut out = std::io::stdout().lock();
    out.write_all(&log)
        .and_then(|()| out.flush())
        .context("cannot write the log")?;
    if options.operation.is_none() && std::io::stderr().is_terminal() {
        print_summary(&build);
    }
    Ok(Exit::Done)
}

/// One line per operation and one for the whole, on standard error.
pub(crate) fn print_summary(build: &Build) {
    for operation in &build.operations {
        eprintln!("{:>12}  {}", operation.name, paint(&operation.status));
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
