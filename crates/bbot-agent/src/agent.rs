//! The agent: the driver around the [`crate::supervisor`], which decides, and its
//! beginning and end.
//!
//! ```text
//!   signals, commands, time, what has ended --> events --> supervisor
//!   supervisor --> actions --> futures of their own: a look at the machines
//!                              (inventory), a request (ask), a task or a bootstrap (work)
//! ```
//!
//! All futures share one thread with the driver; what blocks goes to others
//! ([`crate::blocking`]). A run that is dropped leaves nothing of itself.
//!
//! ```text
//!   agent           opening, what it is made of
//!   driver          events in, actions out
//!   begin           what actions begin, and what follows when it ends
//!   ask             one request for a task
//!   work            one task, one bootstrap
//!   saving          a machine that is saved with its memory
//!   prepare         machines that are restored before there is a task
//!   once            --dump-machines, --fake-request: no controller is asked
//!   reload          SIGHUP
//!   steer           commands, and the watch over the host
//!   sweep           what is left behind
//!   show            the status
//! ```

mod answers;
mod ask;
mod begin;
mod blame;
mod drained;
mod driver;
mod once;
mod prepare;
mod reload;
mod saving;
mod show;
mod steer;
mod sweep;
mod work;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::auth::Keys;
use crate::config::Configuration;
use crate::control::{Signal, Signals};
use crate::controller::{self, Http, Link, Settings, Url};
use crate::delivery::{Bounds, Delivery, Handle};
use crate::host::Host;
use crate::inventory::watch::Watch;
use crate::inventory::{self, Inventory};
use crate::options::{HOLD, Options};
use crate::prepared::Stock;
use crate::source::Cache;
use crate::spool::Spool;
use crate::supervisor::{AskId, Config, ControllerConfig, Priority, RunId, Supervisor};
use crate::suspended::{Bounds as SuspendedBounds, Pool};
use crate::version;

/// Runs an agent that never reads its options again, until `stop` is cancelled or what
/// it was asked for (a dump, a fake request) is done. Machines that run when it is
/// stopped are killed, nothing of their runs is left, and the tasks are given back to
/// their controllers.
///
/// The agent wants a current-thread runtime of its own.
///
/// # Errors
///
/// Wrong options, a key that cannot be used, a directory that is not writable, a
/// program that is not installed: what the operator must mend.
pub async fn run(options: Options, stop: CancellationToken) -> Result<()> {
    serve(Configuration::fixed(options), Signals::from(stop)).await
}

/// Runs an agent until it is told to end, or what it was asked for is done.
///
/// # Errors
///
/// As [`run`].
pub async fn serve(configuration: Configuration, mut signals: Signals) -> Result<()> {
    configuration.options().check()?;
    let opened = tokio::select! {
        biased;
        () = end(&mut signals) => {
            tracing::info!("agent stopped");
            return Ok(());
        }
        opened = Agent::open(configuration) => opened?,
    };
    opened.until(&mut signals).await
}

/// Waits until the agent is told to end.
async fn end(signals: &mut Signals) {
    while signals.next().await == Signal::Reload {}
}

/// What an agent works with besides its options; the tests have others.
pub(crate) struct Parts {
    pub(crate) configuration: Configuration,
    pub(crate) host: Host,
    pub(crate) link: Arc<dyn Link>,
    pub(crate) keys: Keys,
    pub(crate) out: Box<dyn Write + Send>,
}

/// What runs and requests need. They keep what they began with when the agent reads
/// its configuration again.
#[derive(Debug, Clone)]
struct Context {
    host: Arc<Host>,
    link: Arc<dyn Link>,
    keys: Keys,
    /// None where no result is posted: dumps and fake requests.
    results: Option<Handle>,
    sources: Arc<Cache>,
}

pub(crate) struct Agent {
    configuration: Configuration,
    context: Context,
    allowed_result_urls: Arc<[Url]>,
    out: Box<dyn Write + Send>,
    supervisor: Supervisor,
    inventory: Inventory,
    /// The machines as they were seen last.
    machines: HashMap<String, inventory::State>,
    /// Whether the machines were seen at all.
    has_looked: bool,
    /// Tells that something has changed about them; None where the system does not.
    watch: Option<Watch>,
    /// When they are looked at again without being asked for.
    look_again: Option<Instant>,
    /// Tasks that have come, until they are begun or given back.
    given: HashMap<AskId, ask::Given>,
    asks: HashMap<AskId, driver::Asking>,
    runs: BTreeMap<RunId, driver::Run>,
    jobs: JoinSet<driver::Happened>,
    /// What each job is for, should it panic.
    names: HashMap<tokio::task::Id, driver::Job>,
    suspended: Pool,
    /// Machines that wait for a task already.
    stock: Stock,
    /// Something has changed that the status tells.
    changed: Arc<Notify>,
    seen: show::Seen,
    steering: steer::Steering,
    sweeping: sweep::Sweeping,
    begin: Instant,
    /// What was asked for (a dump) is done.
    is_done: bool,
}

impl Agent {
    async fn open(configuration: Configuration) -> Result<Self> {
        let options = configuration.options();
        let keys = open_keys(options).await?;
        let link = open_link(options)?;
        banner(options, &keys);
        let host = Host::open(options.clone()).await?;
        let mut agent = Self::new(Parts {
            configuration,
            host,
            link,
            keys,
            out: Box::new(io::stdout()),
        })?;
        agent.steering.open(&agent.context.host.options)?;
        if agent.was_drained() {
            tracing::warn!(
                "no tasks, as told before the start: `bbot agent drain --resume` ends it"
            );
            agent.steering.drained = Some(steer::Drained { until: None });
            agent.remember_drained();
        }
        Ok(agent)
    }

    /// Within a runtime.
    pub(crate) fn new(parts: Parts) -> Result<Self> {
        let options = &parts.host.options;
        let config = config_of(options)?;
        let allowed_result_urls = allowed_result_urls(options)?;
        let state = options.state_dir();
        let hint = || {
            format!(
                "give --state a directory that is writable (now {})",
                state.display()
            )
        };
        if !options.is_fake() {
            parts.host.try_run_folders()?;
        }
        let posts = !options.dump_machines
            && !options.dump_task
            && !options.dump_result
            && options.fake_request.is_none();
        let results = if posts {
            // Agents of several toolchains share the host, and the default.
            let own = state.join(parts.host.toolchain.as_str());
            let spool = Spool::open(&own).with_context(hint)?;
            let bounds = Bounds::of_mib(options.spool_max);
            Some(Delivery::start(spool, Arc::clone(&parts.link), bounds))
        } else {
            None
        };
        let sources = Arc::new(Cache::open(&state).with_context(hint)?);
        let begin = Instant::now();
        let watch = open_watch(options);
        Ok(Self {
            allowed_result_urls,
            supervisor: Supervisor::new(config, rand::random()),
            steering: steer::Steering::new(options, begin),
            sweeping: sweep::Sweeping::new(begin),
            configuration: parts.configuration,
            context: Context {
                host: Arc::new(parts.host),
                link: parts.link,
                keys: parts.keys,
                results,
                sources,
            },
            out: parts.out,
            inventory: Inventory::default(),
            machines: HashMap::new(),
            has_looked: false,
            watch,
            look_again: None,
            given: HashMap::new(),
            asks: HashMap::new(),
            runs: BTreeMap::new(),
            jobs: JoinSet::new(),
            names: HashMap::new(),
            suspended: Pool::default(),
            stock: Stock::default(),
            changed: Arc::new(Notify::new()),
            seen: show::Seen::default(),
            begin,
            is_done: false,
        })
    }

    /// Works until there is nothing more to do, something is at fault, or it is told to
    /// end; a task that is not finished then is given back.
    pub(crate) async fn until(mut self, signals: &mut Signals) -> Result<()> {
        let host = Arc::clone(&self.context.host);
        // What a run before this one has left goes first.
        let sweep = sweep::everything(&self.context);
        let sweep = self.steering.asking_for_time(sweep);
        let is_told = tokio::select! {
            biased;
            () = end(signals) => true,
            () = sweep => false,
        };
        let options = &host.options;
        let ended = if is_told {
            tracing::info!("agent stopped");
            Ok(())
        } else if options.dump_machines || options.fake_request.is_some() {
            tokio::select! {
                biased;
                () = end(signals) => {
                    tracing::info!("agent stopped");
                    Ok(())
                }
                ended = self.once() => ended,
            }
        } else {
            self.drive(signals).await
        };
        self.wind_up().await;
        ended
    }

    fn suspended_bounds(&self) -> SuspendedBounds {
        let options = &self.context.host.options;
        SuspendedBounds {
            count: usize::try_from(options.suspend_max).unwrap_or(usize::MAX),
            time: options.suspend_timeout(),
        }
    }

    /// Prints what a dump prints; that was all that was asked for.
    fn print(&mut self, text: &str) -> Result<()> {
        self.is_done = true;
        let written = self.out.write_all(text.as_bytes());
        match written.and_then(|()| self.out.flush()) {
            // Whoever reads has seen enough.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(e) => Err(e).context("unable to write to standard output"),
            Ok(()) => Ok(()),
        }
    }
}

async fn open_keys(options: &Options) -> Result<Keys> {
    Keys::open(
        &options.auth_key,
        options.openssl.as_deref(),
        &options.openssl_option,
    )
    .await
    .context("unable to obtain authentication public key")
}

/// A watch over the machines, where there are real ones.
fn open_watch(options: &Options) -> Option<Watch> {
    if options.fake_machine.is_some() {
        return None;
    }
    let watch = Watch::new();
    watch
        .inspect_err(|e| {
            tracing::warn!(
                "unable to watch the machines: {e}; they are looked at before each task"
            );
        })
        .ok()
}

fn open_link(options: &Options) -> Result<Arc<dyn Link>> {
    let settings = Settings {
        timeout: Duration::from_secs(options.request_timeout),
        connect_timeout: Duration::from_secs(options.connect_timeout),
        ca: options.ca.clone(),
    };
    Ok(Arc::new(Http::open(&settings)?))
}

fn allowed_result_urls(options: &Options) -> Result<Arc<[Url]>> {
    let urls = options.allow_result_url.iter();
    let urls = urls.map(|text| controller::parse_url(text));
    Ok(urls.collect::<Result<Vec<_>, _>>()?.into())
}

/// What the supervisor is told of the options.
fn config_of(options: &Options) -> Result<Config> {
    let controller = |argument: &String| {
        let (priority, url) = Priority::split(argument)?;
        Ok(ControllerConfig {
            url: controller::task_url(url)?.to_string(),
            priority,
        })
    };
    let controllers = options.controllers.iter().map(controller);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Config {
        slots: options.instance_max,
        cpus: options.cpu,
        ram_kib: options.ram,
        cpu_budget: options.host_cpu,
        ram_budget: Some(options.ram_budget()),
        host_cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        controllers: controllers.collect::<Result<_>>()?,
        hold: HOLD.min(Duration::from_secs(options.request_timeout) / 2),
        idle_pause: options.idle_pause.map(Duration::from_secs),
    })
}

/// What a daemon says first (the seed).
fn banner(options: &Options, keys: &Keys) {
    if !options.systemd_daemon {
        return;
    }
    tracing::info!("bbot agent {}", version::OWN);
    let line = |name: &str, value: &dyn std::fmt::Display| {
        tracing::info!("{name:<14} {value}");
    };
    for argument in &options.controllers {
        let url = Priority::split(argument).map_or(argument.as_str(), |(_, url)| url);
        let key = controller::task_url(url).ok().and_then(|url| keys.of(&url));
        if let Some(signer) = key {
            line("auth key fp", &signer.fingerprint());
        }
    }
    line("toolchain name", &options.toolchain_name);
    line("toolchain num", &options.toolchain_num);
    line("toolchain ver", &options.toolchain_version());
    line(
        "toolchain id",
        &options.toolchain_id.as_deref().unwrap_or_default(),
    );
    line("instances", &options.instance_max);
    line("CPU(s)", &options.cpu);
    line("RAM(kB)", &options.ram);
    line("host RAM(kB)", &options.ram_budget());
    for url in &options.controllers {
        line("controller url", url);
    }
}

#[cfg(test)]
mod tests;
