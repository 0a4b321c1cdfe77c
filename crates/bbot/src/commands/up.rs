//! `bbot up`: a controller and an agent in one process, for a desk or a first look.
//!
//! The controller runs on threads of its own. The agent runs on the main thread: a machine is bound
//! to the life of the thread that started it.

use std::{
    ffi::OsString,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, anyhow, bail};
use bbot_agent::{
    auth,
    diagnostics::{self, Form},
    options::Options as AgentOptions,
};
use bbot_controller::Config;
use bbot_machine::qemu::Qemu;
use clap::{Args, Parser};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tokio_util::sync::CancellationToken;

use super::{Exit, machine, toolchain};
use crate::{PLACES, home::Home};

/// Run a controller and an agent together; Ctrl-C ends both.
#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Where the controller listens: beyond loopback only behind a proxy that you trust
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:2268")]
    listen: SocketAddr,
    /// The buildtab: what is built on which machine [default: everything on any machine]
    #[arg(long, value_name = "FILE")]
    buildtab: Option<PathBuf>,
    /// The URL that people use for the page, when a proxy is in front of it
    #[arg(long, value_name = "URL")]
    external_url: Option<String>,
    /// Most machines to run at once
    #[arg(long, value_name = "NUM", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    instance_max: u32,
    #[command(flatten)]
    machine: MachineOptions,
}

/// What a machine gets of the host. `bbot build` has the same.
#[derive(Debug, Args)]
pub(crate) struct MachineOptions {
    /// Virtual processors of a machine [default: those of this host, at most 4]
    #[arg(long, value_name = "NUM", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cpu: Option<u32>,
    /// Memory of a machine in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..=16 << 20))]
    pub(crate) ram: u64,
    /// How a machine runs: `auto` tries whether KVM works
    #[arg(long, value_name = "KIND", default_value = "auto", value_parser = ["auto", "kvm", "tcg"])]
    pub(crate) accel: String,
    /// The network of a build: `user` is the internet
    #[arg(long, value_name = "KIND", default_value = "none", value_parser = ["none", "user"])]
    pub(crate) network: String,
    /// Seconds that a build may take
    #[arg(long, value_name = "SECONDS", default_value_t = 5400, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) build_timeout: u64,
    /// The static worker, when it is not beside this program
    #[arg(long, env = "BBOT_WORKER", value_name = "FILE", help_heading = PLACES)]
    pub(crate) worker: Option<PathBuf>,
    /// Say more; may be repeated
    #[arg(long, short, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

impl MachineOptions {
    /// The agent's options for the machines of this desk.
    pub(crate) fn agent(&self, home: &Home, more: &[OsString]) -> Result<AgentOptions> {
        let cpus = self.cpu.unwrap_or_else(|| {
            thread::available_parallelism()
                .map_or(1, |n| u32::try_from(n.get()).unwrap_or(1))
                .min(4)
        });
        let mut arguments: Vec<OsString> = vec!["bbot-agent".into()];
        let mut option = |name: &str, value: OsString| {
            arguments.push(name.into());
            arguments.push(value);
        };
        option("--toolchain-name", toolchain::DEFAULT.into());
        option("--machines", home.machines().into());
        option("--tftp", home.tftp().into());
        option("--state", home.state().into());
        option("--cpu", cpus.to_string().into());
        option("--ram", (self.ram * 1024).to_string().into());
        option("--accel", self.accel.clone().into());
        option("--network", self.network.clone().into());
        option("--build-timeout", self.build_timeout.to_string().into());
        option("--verbose", (1 + self.verbose).min(6).to_string().into());
        arguments.extend_from_slice(more);
        AgentOptions::try_parse_from(arguments).map_err(|error| anyhow!("{}", error.render()))
    }
}

pub(crate) async fn run(options: Up, home: &Home) -> Result<Exit> {
    home.create()?;
    diagnostics::install(1 + options.machine.verbose, Form::Plain);
    let _alone = alone(home)?;
    toolchain::add_own(
        &home.tftp(),
        toolchain::DEFAULT,
        options.machine.worker.as_deref(),
    )?;
    // Before anybody is told that it is up.
    Qemu::new().require_installed()?;
    let key = key(home)?;

    let shutdown = CancellationToken::new();
    end_on_signal(&shutdown)?;
    // The agent ends first: what it was building it gives back to a controller that still answers.
    let end_controller = CancellationToken::new();
    let mut controller =
        Controller::start(&options, home, end_controller.clone(), shutdown.clone())?;
    let address = controller.bound().await?;
    let url = format!("http://{}", reachable(address));
    fs::write(home.controller_url(), format!("{url}\n"))
        .with_context(|| format!("cannot write {}", home.controller_url().display()))?;
    let _url = RemoveFile(home.controller_url());

    println!(
        "bbot is up at {}",
        options.external_url.as_deref().unwrap_or(&url)
    );
    if machine::usable(&home.machines())?.is_empty() {
        println!("there is no machine yet: make one with `bbot machine create debian-12`");
    }
    let agent = options.machine.agent(
        home,
        &[
            "--instance-max".into(),
            options.instance_max.to_string().into(),
            "--auth-key".into(),
            key.into(),
            url.into(),
        ],
    )?;
    let result = bbot_agent::run(agent, shutdown.clone()).await;

    end_controller.cancel();
    let ended = controller.join();
    result.context("the agent failed")?;
    ended.context("the controller failed")?;
    Ok(Exit::Done)
}

/// Where this host reaches a program that listens at `address`: at "all addresses" by the loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The controller on its thread.
struct Controller {
    bound: Option<oneshot::Receiver<SocketAddr>>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl Controller {
    /// Starts it; it runs until `end`. When it ends by itself it ends the agent by `agent`, which
    /// cannot do anything useful without it.
    fn start(
        options: &Up,
        home: &Home,
        end: CancellationToken,
        agent: CancellationToken,
    ) -> Result<Controller> {
        let (sender, bound) = oneshot::channel();
        let mut config = Config::new(home.controller());
        config.bind = options.listen;
        config.buildtab = options.buildtab.clone();
        config.external_url = options.external_url.clone();
        config.agent_keys = Some(agent_keys(home));
        config.token_file = Some(home.token());
        config.bound = Some(sender);
        let thread = thread::Builder::new()
            .name("controller".to_string())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .context("cannot start the runtime")?;
                let _end_agent = agent.drop_guard();
                runtime.block_on(bbot_controller::run(config, end))?;
                Ok(())
            })
            .context("cannot start a thread")?;
        Ok(Controller {
            bound: Some(bound),
            thread: Some(thread),
        })
    }

    /// Where it listens; an error when it cannot.
    async fn bound(&mut self) -> Result<SocketAddr> {
        let bound = self
            .bound
            .take()
            .context("the controller was asked twice")?;
        match bound.await {
            Ok(address) => Ok(address),
            Err(_) => {
                self.join().context("the controller cannot start")?;
                bail!("the controller ended before it could be used");
            }
        }
    }

    fn join(&mut self) -> Result<()> {
        match self.thread.take().map(thread::JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => bail!("the controller panicked"),
        }
    }
}

fn agent_keys(home: &Home) -> PathBuf {
    home.controller().join("agent-keys")
}

/// The agent's key, made at the first start and made known to the controller.
fn key(home: &Home) -> Result<PathBuf> {
    let key = home.state().join("agent.key");
    if !key.is_file() {
        auth::keygen_file(&key, 2048)?;
    }
    let keys = agent_keys(home);
    fs::create_dir_all(&keys).with_context(|| format!("cannot make {}", keys.display()))?;
    let public = keys.join("desk.pem");
    fs::write(&public, auth::public_key(&key)?)
        .with_context(|| format!("cannot write {}", public.display()))?;
    Ok(key)
}

/// Held while this `bbot up` runs: two would hand each other's machines to their builds.
fn alone(home: &Home) -> Result<File> {
    let path = home.state().join("up.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => bail!(
            "another `bbot up` is running with {}: use it, end it, or name another folder with --home",
            home.directory().display()
        ),
        Err(fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Ctrl-C, SIGTERM and a closed terminal end it in good order; the second one at once.
pub(crate) fn end_on_signal(shutdown: &CancellationToken) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for signals")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot watch for signals")?;
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            if shutdown.is_cancelled() {
                // QEMU ends with us; what is temporary has its owner record and goes at the next start.
                std::process::exit(130);
            }
            shutdown.cancel();
        }
    });
    Ok(())
}

struct RemoveFile(PathBuf);

impl Drop for RemoveFile {
    fn drop(&mut self) {
        // Best effort: a stale address only makes the next `bbot submit` say that nobody answers.
        let _ = fs::remove_file(Path::new(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_addresses_are_reached_by_the_loopback() {
        for (address, reached) in [
            ("0.0.0.0:2268", "127.0.0.1:2268"),
            ("[::]:2268", "[::1]:2268"),
            ("192.0.2.1:80", "192.0.2.1:80"),
        ] {
            assert_eq!(reachable(address.parse().unwrap()).to_string(), reached);
        }
    }
}
