//! `bbot-agent`: see the library for what it does. Here: the command line, the
//! diagnostics, the signals, the exit status.

use std::process::ExitCode;
use std::time::Duration;

use bbot_agent::config::{ConfigError, Configuration};
use bbot_agent::control::{Control, Signal};
use bbot_agent::diagnostics::{self, Form};
use clap::error::ErrorKind;
use tokio::signal::unix::{SignalKind, signal};

/// How long the process waits for its other threads when the agent has ended.
const LAST_THREADS: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let configuration = match Configuration::read(std::env::args_os()) {
        Ok(configuration) => configuration,
        Err(ConfigError::CommandLine(e)) => {
            // Nobody to tell when even this fails.
            let _ = e.print();
            return match e.kind() {
                ErrorKind::DisplayHelp => ExitCode::SUCCESS,
                _ => ExitCode::FAILURE,
            };
        }
        Err(e) => {
            eprint!("{}", diagnostics::fatal(Form::Plain, &e.to_string()));
            return ExitCode::FAILURE;
        }
    };
    let options = configuration.options();
    if options.version {
        print!("{}", bbot_agent::version::text());
        return ExitCode::SUCCESS;
    }
    let form = Form::of(options);
    diagnostics::install(options.verbose, form);
    match run(configuration) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprint!("{}", diagnostics::fatal(form, &format!("{e:#}")));
            ExitCode::FAILURE
        }
    }
}

fn run(configuration: Configuration) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        let (control, signals) = Control::new();
        let (mut term, mut int, mut hup) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        );
        let mut agent = std::pin::pin!(bbot_agent::serve(configuration, signals));
        let mut is_ending = false;
        loop {
            let told = tokio::select! {
                ended = &mut agent => return ended,
                _ = term.recv() => match std::mem::replace(&mut is_ending, true) {
                    false => Signal::Drain,
                    true => Signal::Stop,
                },
                _ = int.recv() => Signal::Stop,
                _ = hup.recv() => Signal::Reload,
            };
            control.send(told);
        }
    });
    // What goes on on other threads had its time. A runtime that is dropped would wait for it
    // for ever: for a disk that is stuck, for a lock that another process holds.
    runtime.shutdown_timeout(LAST_THREADS);
    ended
}
