//! `bbot-agent`: see the library for what it does. Here: the command line, the
//! diagnostics, the signals, the exit status.

use std::process::ExitCode;

use bbot_agent::diagnostics::{self, Form};
use bbot_agent::options::Options;
use clap::Parser as _;
use clap::error::ErrorKind;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(e) => {
            // Nobody to tell when even this fails.
            let _ = e.print();
            return match e.kind() {
                ErrorKind::DisplayHelp => ExitCode::SUCCESS,
                _ => ExitCode::FAILURE,
            };
        }
    };
    if options.version {
        print!("{}", bbot_agent::version::text());
        return ExitCode::SUCCESS;
    }
    let form = Form::of(&options);
    diagnostics::install(options.verbose, form);
    match run(options) {
        Ok(code) => code,
        Err(e) => {
            eprint!("{}", diagnostics::fatal(form, &format!("{e:#}")));
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut code = ExitCode::SUCCESS;
        let mut agent = std::pin::pin!(bbot_agent::run(options, stop.clone()));
        let (mut term, mut int, mut hup) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        );
        tokio::select! {
            ended = &mut agent => return ended.map(|()| code),
            _ = term.recv() => {}
            _ = int.recv() => {}
            // The seed's word for a feature that is not there: reloading.
            _ = hup.recv() => code = ExitCode::from(3),
        }
        stop.cancel();
        agent.await.map(|()| code)
    })
}
