//! `bbot build`: a package in a pristine machine, without a controller, its log on the terminal as
//! it grows.

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use bbot_agent::{
    diagnostics::{self, Form},
    local,
    run::{Progress as RunProgress, Stage},
};
use bbot_manifest::{BuildResult, Task};
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::{
    Exit, log, machine, succeeded,
    toolchain::{self, DEFAULT},
    up::{MachineOptions, end_on_signal},
};
use crate::{
    home::Home,
    progress::Progress,
    source::{self, Given},
};

/// Build a directory or an archive in a throw-away machine; no controller is needed.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage, 3 the build did not succeed."
)]
pub(crate) struct Build {
    /// A source directory, or an archive (tar, plain or compressed)
    #[arg(default_value = ".")]
    source: PathBuf,
    /// The machine to build on [default: the only one there is]
    #[arg(long, short, value_name = "NAME")]
    machine: Option<String>,
    /// An argument for the package's configuration, as for `configure` or `cmake`; may be repeated
    #[arg(
        long = "config",
        short,
        value_name = "ARGUMENT",
        allow_hyphen_values = true
    )]
    configuration: Vec<String>,
    /// A regular expression that makes a line of the log a warning; may be repeated
    #[arg(long, value_name = "REGEX")]
    warning: Vec<String>,
    /// The package's name, where its sources do not tell it
    #[arg(long)]
    name: Option<String>,
    /// The package's version, where its sources do not tell it
    #[arg(long)]
    version: Option<String>,
    /// Print nothing but the log
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    host: MachineOptions,
}

pub(crate) async fn run(options: Build, home: &Home) -> Result<Exit> {
    let machine = match &options.machine {
        Some(machine) => machine.clone(),
        None => only_machine(home)?,
    };
    let given = Given {
        name: options.name.clone(),
        version: options.version.clone(),
    };
    let package = source::package(&options.source, &given)?;
    home.create()?;
    // What goes right is on the terminal anyway.
    diagnostics::install(options.host.verbose, Form::Plain);
    toolchain::add_own(&home.tftp(), DEFAULT, options.host.worker.as_deref())?;
    // Somebody waits for the result, not for a suspended machine.
    let agent = options
        .host
        .agent(home, &["--suspend-timeout".into(), "0".into()])?;

    // The agent serves the archive by its path.
    let mut file = package.archive;
    let mut archive =
        tempfile::NamedTempFile::new().context("cannot make a temporary file for the sources")?;
    std::io::copy(&mut file, &mut archive).context("cannot write the source archive")?;

    let task = Task {
        warning_regex: options.warning.clone(),
        target_config: (!options.configuration.is_empty())
            .then(|| bbot_manifest::quoting::join(&options.configuration)),
        // Nothing is fetched from there: the agent hands the archive itself to the worker.
        ..Task::new(
            package.identity.name,
            package.identity.version,
            format!("{}.tar.gz", package.sha256),
            &machine,
            target(),
        )
    };
    let mut terminal = Terminal::new(options.quiet);
    terminal.spin(&format!("looking for {machine}"));

    let shutdown = CancellationToken::new();
    end_on_signal(&shutdown)?;
    let result = tokio::select! {
        result = local::build(agent, &task, archive.path(), &mut terminal) => result,
        () = shutdown.cancelled() => {
            // The future is dropped here, and with it the machine and its snapshot.
            bail!("interrupted: the machine is gone, nothing is left");
        }
    };
    terminal.finish();
    let result = result?;
    terminal.rest(&result)?;
    if !options.quiet {
        summary(&result, &machine);
    }
    Ok(if succeeded(result.status) {
        Exit::Done
    } else {
        Exit::BuildFailed
    })
}

/// The machine to use when none is named.
fn only_machine(home: &Home) -> Result<String> {
    let machines = home.machines();
    let names = machine::usable(&machines)?;
    match names.as_slice() {
        [name] => Ok(name.clone()),
        [] => bail!(
            "there is no machine below {}: make one with `bbot machine create debian-12`",
            machines.display()
        ),
        _ => bail!(
            "there are several machines: choose one with --machine ({})",
            names.join(", ")
        ),
    }
}

/// The target triplet of this host: machines run its own architecture.
fn target() -> String {
    format!("{}-linux-gnu", std::env::consts::ARCH)
}

/// What a person at the terminal sees: a spinner until the log begins, then the log.
struct Terminal {
    quiet: bool,
    spinner: Option<Progress>,
    /// The operation whose log is printed, and its text up to the next newline.
    operation: String,
    pending: Vec<u8>,
    /// Operations that something was printed of.
    printed: Vec<String>,
    failed: Option<std::io::Error>,
}

impl Terminal {
    fn new(quiet: bool) -> Terminal {
        Terminal {
            quiet,
            spinner: None,
            operation: String::new(),
            pending: Vec::new(),
            printed: Vec::new(),
            failed: None,
        }
    }

    fn spin(&mut self, text: &str) {
        let hidden = self.quiet || !std::io::stderr().is_terminal();
        match &self.spinner {
            Some(spinner) => spinner.set(text),
            None => self.spinner = Some(Progress::start(text, hidden)),
        }
        if hidden && !self.quiet {
            eprintln!("{text}");
        }
    }

    /// Prints what is complete: whole lines, so that neither a character nor an escape sequence is
    /// cut in two. A guest's bytes never reach the terminal as they are.
    fn print(&mut self, all: bool) {
        let end = match (all, self.pending.iter().rposition(|&b| b == b'\n')) {
            (true, _) => self.pending.len(),
            (false, Some(newline)) => newline + 1,
            // Something without lines: better in pieces than never.
            (false, None) if self.pending.len() > 64 * 1024 => self.pending.len(),
            (false, None) => return,
        };
        let text = bbot_manifest::log_text(&self.pending[..end]);
        self.pending.drain(..end);
        self.write(&text);
    }

    fn write(&mut self, text: &str) {
        let mut out = std::io::stdout().lock();
        if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            self.failed.get_or_insert(error);
        }
    }

    fn finish(&mut self) {
        self.print(true);
        self.spinner = None;
    }

    /// Prints the logs that did not come while the build ran.
    fn rest(&mut self, result: &BuildResult) -> Result<()> {
        for operation in &result.operations {
            if !self.printed.contains(&operation.name) {
                self.write(&operation.log);
                if !operation.log.is_empty() && !operation.log.ends_with('\n') {
                    self.write("\n");
                }
            }
        }
        match self.failed.take() {
            Some(error) => Err(error).context("cannot write the log"),
            None => Ok(()),
        }
    }
}

impl RunProgress for Terminal {
    fn stage(&mut self, stage: &Stage) {
        // Once the log runs, it speaks for itself.
        if self.printed.is_empty() {
            self.spin(&describe(stage));
        }
    }

    fn wants_log(&self) -> bool {
        true
    }

    fn log(&mut self, operation: &str, bytes: &[u8]) {
        self.spinner = None;
        if operation != self.operation {
            self.print(true);
            self.operation = operation.to_string();
            self.printed.push(operation.to_string());
        }
        self.pending.extend_from_slice(bytes);
        self.print(false);
    }
}

fn describe(stage: &Stage) -> String {
    match stage {
        Stage::Copying { machine, .. } => format!("copying {machine}"),
        Stage::Starting {
            machine,
            attempt: 1,
        } => format!("starting {machine}"),
        Stage::Starting { machine, attempt } => format!("starting {machine}, try {attempt}"),
        Stage::Saving { machine } => format!("saving {machine}, to start sooner from now on"),
        Stage::Bootstrapping { machine, why } => format!("bootstrapping {machine}: {why}"),
        Stage::Working { machine } => format!("{machine} is at work"),
        Stage::Finished { machine } => format!("{machine} is done"),
        _ => "working".to_string(),
    }
}

fn summary(result: &BuildResult, machine: &str) {
    for operation in &result.operations {
        log::print_operation(&operation.name, &operation.status.to_string());
    }
    eprintln!(
        "{}/{} on {machine}: {}",
        result.name,
        result.version,
        log::paint(&result.status.to_string())
    );
}
