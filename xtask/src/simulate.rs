//! Plays agents and controllers against planted faults (`bbot-simulation`).

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::workspace;

/// Plays seeds; `arguments` are the program's own.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    let target = workspace::target()?;
    let status = play(workspace::root()?, &target, arguments, Output::Shown)?;
    if !status.success() {
        // What failed has been said; the program's last line is the verdict.
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}

/// What becomes of what the simulation says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Shown,
    Hidden,
}

/// Builds the simulation of a workspace and plays seeds.
pub(crate) fn play(
    sources: &Path,
    target: &Path,
    arguments: &[OsString],
    output: Output,
) -> Result<ExitStatus> {
    let mut build = Command::new(workspace::cargo());
    build
        .args(["build", "--quiet", "--package", "bbot-simulation"])
        .current_dir(sources)
        .env("CARGO_TARGET_DIR", target);
    if output == Output::Shown {
        // Ten thousand seeds are quicker with it; one planted bug is found before it is compiled so.
        for package in ["bbot-agent", "bbot-controller"] {
            let level = format!("profile.dev.package.{package}.opt-level=1");
            build.args(["--config", &level]);
        }
    }
    if output == Output::Hidden {
        // What a planted bug leaves unused is no news.
        build.stderr(Stdio::null());
    }
    if !build.status().context("unable to run cargo")?.success() {
        bail!("the simulation in {} does not compile", sources.display());
    }
    let mut simulation = Command::new(target.join("debug/bbot-simulation"));
    simulation.args(arguments);
    if output == Output::Hidden {
        simulation.stdout(Stdio::null());
    }
    simulation.status().context("unable to run the simulation")
}
