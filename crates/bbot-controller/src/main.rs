//! `bbot-controller`: the controller of the build bot as a daemon.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use bbot_controller::backup::{self, Copied};
use bbot_controller::options::{Command, LogFormat, Options, in_order};
use bbot_controller::watchdog::say;
use bbot_controller::{Config, config_file};
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    // clap leaves with 2 for wrong usage and 0 for --help and --version.
    let arguments = in_order(std::env::args_os().collect());
    if arguments
        .iter()
        .skip(1)
        .any(|word| word == "--print-config")
    {
        print!("{}", config_file::documented());
        return ExitCode::SUCCESS;
    }
    let options = match config_file::options(arguments) {
        Ok(options) => options,
        Err(e) => {
            eprintln!("bbot-controller: {:#}", anyhow::Error::from(e));
            return ExitCode::from(2);
        }
    };
    log_to_standard_error(options.log_format);
    match start(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bbot-controller: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_standard_error(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BBOT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,sqlx=warn"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .init(),
    }
}

async fn carry_out(command: &Command, config: &Config) -> anyhow::Result<()> {
    let (
        Copied {
            objects,
            bytes,
            lost,
        },
        what,
    ) = match command {
        Command::Backup { directory } => (
            backup::backup(config, directory).await?,
            format!("backed up into {}", directory.display()),
        ),
        Command::Restore { directory } => (
            backup::restore(config, directory).await?,
            format!("restored from {}", directory.display()),
        ),
    };
    println!("{what}: the database and {objects} archives and logs ({bytes} bytes)");
    if lost > 0 {
        println!("{lost} archives and logs were lost before");
    }
    Ok(())
}

fn start(options: Options) -> anyhow::Result<()> {
    use anyhow::Context as _;
    let command = options.command.clone();
    let mut config = options.into_config()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    if let Some(command) = command {
        return runtime.block_on(async move { carry_out(&command, &config).await });
    }
    runtime.block_on(async move {
        let shutdown = CancellationToken::new();
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
                .context("cannot wait for SIGTERM")?;
        let mut interrupt =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
                .context("cannot wait for SIGINT")?;
        let mut hang_up = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())
            .context("cannot wait for SIGHUP")?;
        let reload = std::sync::Arc::clone(&config.reload);
        tokio::spawn(async move {
            while hang_up.recv().await.is_some() {
                reload.notify_one();
            }
        });
        let stop = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            say(NotifyState::Stopping);
            stop.cancel();
        });
        let (sender, bound) = tokio::sync::oneshot::channel();
        config.bound = Some(sender);
        let token = config.token_path();
        let scheme = if config.tls.is_some() {
            "https"
        } else {
            "http"
        };
        tokio::spawn(async move {
            if let Ok(address) = bound.await {
                println!(
                    "bbot-controller listens on {scheme}://{address}/ (token: {})",
                    token.display()
                );
                say(NotifyState::Ready);
            }
        });
        bbot_controller::run(config, shutdown).await?;
        Ok(())
    })
}
