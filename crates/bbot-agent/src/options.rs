//! The agent's command line: the seed's options with their meanings and
//! defaults, and those that are new.

use std::path::PathBuf;
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use bbot_machine::accel::{Accelerator, Choice};
use bbot_machine::bridge::{self, InterfaceName, Plan, Unusable, Wanted};
use bbot_machine::machine::Network;
use bbot_manifest::StandardVersion;
use clap::{Parser, ValueEnum};

use crate::auth::KeyOption;

/// How much longer a machine may take to start when it is translated (TCG)
/// instead of run by the processor: the seed's waits assume KVM, and a Debian
/// that boots in 4 s there was seen to take 20 s.
pub const TCG_FACTOR: u32 = 5;

/// The longest time that an option takes, in seconds: moments beyond a machine's life
/// cannot be reckoned with.
const YEAR: u64 = 365 * 24 * 60 * 60;

/// The seed's wait for the first request of a build, under KVM.
pub const BUILD_STARTUP: Duration = Duration::from_secs(60);

/// The seed's wait for the first request of a bootstrap, under KVM: a new MAC
/// address is something that Windows takes minutes to digest.
pub const BOOTSTRAP_STARTUP: Duration = Duration::from_secs(5 * 60);

/// The seed's wait for a bootstrapped machine to power off.
pub const BOOTSTRAP_SHUTDOWN: Duration = Duration::from_secs(5 * 60);

/// The seed's pause when there is nothing to do.
pub const IDLE_PAUSE: Duration = Duration::from_secs(60);

/// The same when several controllers are asked and all are ours: to ask them costs
/// little. Also the pause when there is no machine to offer, since to look costs
/// little too.
pub const IDLE_PAUSE_OURS: Duration = Duration::from_secs(5);

/// The same when there is one controller, and ours, from one request to the next: it
/// holds the request until it has a task, so most often there was the pause already.
pub const IDLE_PAUSE_HELD: Duration = Duration::from_secs(1);

/// For how long a controller of ours may hold a request.
pub const HOLD: Duration = Duration::from_secs(20);

/// Which of the controller's eras the agent speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum WireEra {
    /// The fields of 2017, which every controller knows.
    #[default]
    #[value(name = "2017")]
    Y2017,
    /// Those of later releases too: roles and RAM of the machines,
    /// `auxiliary-ram`, the agent's checksum. A controller of 2017 refuses them.
    Later,
}

impl From<WireEra> for bbot_manifest::Era {
    fn from(era: WireEra) -> Self {
        match era {
            WireEra::Y2017 => Self::Y2017,
            WireEra::Later => Self::Later,
        }
    }
}

/// The network of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NetworkChoice {
    /// Nothing but the wire to the agent: what a build needs comes with its task.
    None,
    /// The internet through `passt`, as a second card; the package passt must be installed.
    User,
    /// The host's bridge, as its one card (see --bridge).
    Bridge,
}

/// All that `bbot-agent` can be told.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "bbot-agent",
    about = "Asks controllers for build tasks, runs each in a throw-away machine, posts the results",
    override_usage = "bbot-agent [options] <controller-url>...",
    disable_version_flag = true,
    args_override_self = true,
    after_help = "Exit status: 0 done (also after SIGTERM), 1 failed or wrong usage."
)]
pub struct Options {
    /// URLs of the controllers to ask, in no order but that of their priorities,
    /// `[F]DCBA=URL` with digits: a higher A is asked first, a higher B also keeps
    /// the others waiting while its task runs, a higher C may also interrupt one of
    /// their tasks, a higher D all of them, and F = 1 gives its task all processors.
    /// `?build-task` is added to a URL without a query
    #[arg(value_name = "controller-url")]
    pub controllers: Vec<String>,

    /// Print the version and exit
    #[arg(long)]
    pub version: bool,

    /// How much to say, 0 (errors only) to 6 (everything)
    #[arg(long, value_name = "level", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=6))]
    pub verbose: u8,

    /// Run as a systemd daemon: each line of diagnostics begins with its level,
    /// and the first says what runs
    #[arg(long)]
    pub systemd_daemon: bool,

    /// Name of the toolchain: part of the bootstrapped machines' names and of
    /// the folders below --tftp
    #[arg(long, value_name = "name", default_value = "default", value_parser = toolchain_name)]
    pub toolchain_name: String,

    /// Number of the toolchain, unique on this host
    #[arg(long, value_name = "num", default_value_t = 1)]
    pub toolchain_num: u16,

    /// Version of the toolchain, as the controllers are told. Default: the
    /// version of the agent
    #[arg(long, value_name = "version", value_parser = standard_version)]
    pub toolchain_ver: Option<StandardVersion>,

    /// Id of the toolchain: another id than a machine was bootstrapped with
    /// makes the agent bootstrap it again. Default: the checksum of the folder
    /// of a toolchain that `bbot toolchain add` has put there, else none
    #[arg(long, value_name = "id")]
    pub toolchain_id: Option<String>,

    /// Virtual processors of a machine
    #[arg(long, value_name = "num", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub cpu: u32,

    /// Memory of a machine, in KiB
    #[arg(long, alias = "build-ram", value_name = "KiB", default_value_t = 1024 * 1024, value_parser = clap::value_parser!(u64).range(1024..))]
    pub ram: u64,

    /// Where the machines are: VOLUME/MACHINE/ below it
    #[arg(long, value_name = "dir", default_value = "/build/machines/")]
    pub machines: PathBuf,

    /// Where the toolchains are, and the folders of the runs while they last
    #[arg(long, value_name = "dir", default_value = "/build/tftp/")]
    pub tftp: PathBuf,

    /// Base port of the TFTP of machines on a bridge: to it the number of the
    /// toolchain is added, and the next free port is taken. Other machines need
    /// no port of the host
    #[arg(long, value_name = "port", default_value_t = 23400)]
    pub tftp_port: u16,

    /// Where the agent keeps results that are not taken yet, fetched sources,
    /// and the sockets of the runs. Default: /var/lib/bbot-agent for root,
    /// otherwise ~/.local/state/bbot-agent
    #[arg(long, value_name = "dir")]
    pub state: Option<PathBuf>,

    /// Seconds that a bootstrap may take
    #[arg(long, value_name = "sec", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(..=YEAR))]
    pub bootstrap_timeout: u64,

    /// How many times a machine that does not start its bootstrap is started again
    #[arg(long, value_name = "num", default_value_t = 2)]
    pub bootstrap_retries: u32,

    /// Seconds to wait for the first request of a bootstrap. Default: 300, five
    /// times that where machines are translated (TCG)
    #[arg(long, value_name = "sec", value_parser = clap::value_parser!(u64).range(..=YEAR))]
    pub bootstrap_startup: Option<u64>,

    /// Seconds that a build may take
    #[arg(long, value_name = "sec", default_value_t = 1800, value_parser = clap::value_parser!(u64).range(..=YEAR))]
    pub build_timeout: u64,

    /// Seconds that nothing may be heard of a build: no line of its log, no transfer.
    /// Default: no bound but --build-timeout
    #[arg(long, value_name = "sec", value_parser = clap::value_parser!(u64).range(1..=YEAR))]
    pub build_quiet: Option<u64>,

    /// How many times a machine that does not start its build is started again
    #[arg(long, value_name = "num", default_value_t = 2)]
    pub build_retries: u32,

    /// Seconds to wait for the first request of a build. Default: 60, five times
    /// that where machines are translated (TCG)
    #[arg(long, value_name = "sec", value_parser = clap::value_parser!(u64).range(..=YEAR))]
    pub build_startup: Option<u64>,

    /// Seconds that a suspended machine is kept for a person to look at; 0: it
    /// is not kept
    #[arg(long, value_name = "sec", default_value_t = 600, value_parser = clap::value_parser!(u64).range(..=YEAR))]
    pub suspend_timeout: u64,

    /// Seconds that a request to a controller may take
    #[arg(long, value_name = "sec", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=YEAR))]
    pub request_timeout: u64,

    /// Seconds that making the connection for it may take
    #[arg(long, value_name = "sec", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=YEAR))]
    pub connect_timeout: u64,

    /// Seconds to pause when there is nothing to do. Default: 60; 5 where every
    /// controller is one of ours, and from one request to the next at least 1 where
    /// it is the only one, which holds them
    #[arg(long, value_name = "sec", value_parser = clap::value_parser!(u64).range(1..=YEAR))]
    pub idle_pause: Option<u64>,

    /// File with the agent's private RSA key (PEM). Its fingerprint goes with
    /// the task requests, and they and challenges are signed with it. With the
    /// beginning of a controller's URL before it, for that controller alone; can
    /// be repeated so
    #[arg(long, value_name = "[url=]file")]
    pub auth_key: Vec<KeyOption>,

    /// File with the certificates (PEM) of the authorities that https
    /// controllers are trusted by, in place of the system's
    #[arg(long, value_name = "file")]
    pub ca: Option<PathBuf>,

    /// MiB of results and logs that may wait for their controllers; beyond it
    /// the agent takes no more tasks
    #[arg(long, value_name = "MiB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..))]
    pub spool_max: u64,

    /// Fingerprint of a repository certificate to trust, in place of those that
    /// a task brings. Can be repeated
    #[arg(long, value_name = "fingerprint")]
    pub trust: Vec<String>,

    /// Let this program (openssl) do the cryptography, so that the key may be in
    /// hardware
    #[arg(long, value_name = "prog")]
    pub openssl: Option<PathBuf>,

    /// Option for the program of --openssl. Can be repeated
    #[arg(long, value_name = "opt", allow_hyphen_values = true)]
    pub openssl_option: Vec<String>,

    /// How machines run: by the processor (kvm), translated (tcg), or kvm where
    /// a trial shows that it works (auto)
    #[arg(long, value_name = "auto|kvm|tcg", default_value_t = Choice::Auto)]
    pub accel: Choice,

    /// Whether virtual machines are saved with their memory when they are
    /// bootstrapped, and restored for each task instead of booted, where that is
    /// possible (auto), or not (off). With a machine's name before it, for that
    /// machine alone; can be repeated so
    #[arg(long, value_name = "[machine=]auto|off")]
    pub warm: Vec<Warm>,

    /// Most machines that wait stopped before there is a task for them, each with the memory of
    /// one: virtual machines restored (see --warm), containers started; at most as many as run at once.
    /// Default: 2 on a host with 4 processors and 16 GiB or more, else 0
    #[arg(long, value_name = "num")]
    pub prepare: Option<u32>,

    /// Network of the machines: nothing but the wire to the agent (none), the
    /// internet as a second card (user), or the host's bridge (bridge). Default:
    /// bridge where br1 exists and may be used, else none
    #[arg(long, value_enum)]
    pub network: Option<NetworkChoice>,

    /// Bridge of the host for the machines, which somebody serves with DHCP; a
    /// machine then runs once at a time. Implies --network bridge. Needs root
    /// or CAP_NET_ADMIN, and the programs ip and nft. Default: br1
    #[arg(long, value_name = "iface")]
    pub bridge: Option<InterfaceName>,

    /// What became of the two above, once [`Options::check`] has decided it: see
    /// [`Options::machine_network`].
    #[arg(skip)]
    pub decided_network: OnceLock<Network>,

    /// User that QEMU runs as when the agent is root. Default: bbot-qemu where
    /// there is such a user, else nobody
    #[arg(long, value_name = "user")]
    pub qemu_user: Option<String>,

    /// URL prefix that results may be posted to although it is not their
    /// controller's. Can be repeated
    #[arg(long, value_name = "url")]
    pub allow_result_url: Vec<String>,

    /// Era of the controllers: later sends fields that 2017 does not know
    #[arg(long, value_enum, default_value_t = WireEra::Y2017)]
    pub era: WireEra,

    /// KiB of memory for auxiliary machines, as later controllers are told
    /// (with --era later)
    #[arg(long, value_name = "KiB")]
    pub auxiliary_ram: Option<u64>,

    /// Most machines to run at once, bootstraps included
    #[arg(long, value_name = "num", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub instance_max: u32,

    /// Later releases of the original have several agents of one toolchain, by
    /// number. Accepted for their service files: one agent runs all its machines
    #[arg(long, value_name = "num")]
    pub instance: Option<u32>,

    /// The same releases' bound on tries of a request. Accepted for their service
    /// files: what passes is tried again anyway
    #[arg(long, value_name = "num")]
    pub request_retries: Option<u32>,

    /// Builds that stop for a person: not there yet, so only false is taken
    #[arg(long, value_name = "false", value_parser = interactive)]
    pub interactive: Option<()>,

    /// Seconds that such a build may take. Accepted with --interactive false
    #[arg(long, alias = "intactive-timeout", value_name = "sec", value_parser = clap::value_parser!(u64).range(..=YEAR))]
    pub interactive_timeout: Option<u64>,

    /// Virtual processors of all machines together. Default: no bound, since the
    /// host shares its processors out
    #[arg(long, value_name = "num", value_parser = clap::value_parser!(u32).range(1..))]
    pub host_cpu: Option<u32>,

    /// Memory of all machines together, in KiB. Default: the host's, less an eighth
    /// of it or 512 MiB, whichever is more; never less than one machine has
    #[arg(long, value_name = "KiB", value_parser = clap::value_parser!(u64).range(1024..))]
    pub host_ram: Option<u64>,

    /// Most suspended machines to keep; the oldest is ended for another one, or when
    /// its memory is needed. 0: none is kept
    #[arg(long, value_name = "num", default_value_t = 2)]
    pub suspend_max: u32,

    /// Seconds that what runs may go on after SIGTERM; then it is interrupted and
    /// given back to its controller. A second SIGTERM, or SIGINT, does that at once
    #[arg(long, value_name = "sec", default_value_t = 300, value_parser = clap::value_parser!(u64).range(..=YEAR))]
    pub drain_timeout: u64,

    /// File with more options, one a line as here without the dashes: `name value`
    /// or `name = value`, `controller URL` for a controller, `#` comments. SIGHUP
    /// reads it again. What is given here goes before what is in the file
    #[arg(long, value_name = "file")]
    pub config: Option<PathBuf>,

    /// UNIX socket for `bbot agent` and `bbot machine attach`. Default:
    /// TOOLCHAIN.sock in --state where that is given, else in /run/bbot-agent for
    /// root, else in $XDG_RUNTIME_DIR/bbot-agent
    #[arg(long, value_name = "path")]
    pub status_socket: Option<PathBuf>,

    /// Answer Prometheus at this address, on /metrics
    #[arg(long, value_name = "addr:port")]
    pub metrics: Option<std::net::SocketAddr>,

    /// Let --metrics be an address that other hosts reach: the metrics name
    /// packages and controllers, and need no password
    #[arg(long)]
    pub metrics_public: bool,

    /// MiB of disk below which no new task is taken; below a quarter of that the
    /// newest run is interrupted. 0: never
    #[arg(long, value_name = "MiB", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(..1 << 40))]
    pub min_free_disk: u64,

    /// MiB of the host's memory below which no new task is taken; below a quarter
    /// of that the newest run is interrupted. 0: never
    #[arg(long, value_name = "MiB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(..1 << 40))]
    pub min_free_memory: u64,

    /// Form of the diagnostics: lines for people (text), or an object per line (json)
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// Print the machines, one manifest each, and exit
    #[arg(long)]
    pub dump_machines: bool,

    /// Print the first task that is received and exit
    #[arg(long)]
    pub dump_task: bool,

    /// Print the first result and exit instead of posting it
    #[arg(long)]
    pub dump_result: bool,

    /// Take each machine as bootstrapped without starting it
    #[arg(long)]
    pub fake_bootstrap: bool,

    /// Answer each task with the result abort without starting a machine
    #[arg(long)]
    pub fake_build: bool,

    /// Pretend to have this one machine (machine header manifest): the task is
    /// put at build/TOOLCHAIN/get/manifest below --tftp, and the result is
    /// waited for at build/TOOLCHAIN/put/manifest
    #[arg(long, value_name = "file")]
    pub fake_machine: Option<PathBuf>,

    /// Run this task (task manifest) once instead of asking controllers, and exit
    #[arg(long, value_name = "file")]
    pub fake_request: Option<PathBuf>,
}

/// The form of the diagnostics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

fn interactive(text: &str) -> Result<(), String> {
    match text {
        "false" => Ok(()),
        _ => Err(
            "interactive builds are not there yet; give false or leave the option out".to_owned(),
        ),
    }
}

fn standard_version(text: &str) -> Result<StandardVersion, String> {
    StandardVersion::parse(text).map_err(|e| e.to_string())
}

/// A toolchain's name becomes part of file names.
fn toolchain_name(text: &str) -> Result<String, String> {
    crate::toolchain::check_name(text)
        .map(|()| text.to_owned())
        .map_err(|e| e.to_string())
}

/// A use of the options that makes no sense. Exit status 1, as the seed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Usage {
    /// There is nobody to ask.
    #[error("controller url expected\ninfo: run bbot-agent --help for details")]
    NoController,
    /// The metrics where others can read them.
    #[error("{0}")]
    Metrics(String),
    /// The bridge that was asked for cannot be used.
    #[error(transparent)]
    Bridge(#[from] Unusable),
    /// An option that has a meaning only with another one.
    #[error("{0} has no meaning without {1}")]
    Needs(&'static str, &'static str),
}

/// One word of `--warm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warm {
    /// For this machine; absent: for all that are not named.
    pub machine: Option<String>,
    /// Whether it is saved and restored where that is possible.
    pub auto: bool,
}

impl std::str::FromStr for Warm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (machine, word) = match text.rsplit_once('=') {
            Some((machine, word)) => (Some(machine.to_owned()), word),
            None => (None, text),
        };
        let auto = match word {
            "auto" => true,
            "off" => false,
            _ => return Err(format!("'{word}' is neither auto nor off")),
        };
        if machine.as_deref() == Some("") {
            return Err("there is no machine before the '='".to_owned());
        }
        Ok(Self { machine, auto })
    }
}

impl Options {
    /// Whether this machine is saved and restored where that is possible: the last word on it
    /// counts, else the last on all.
    pub fn is_warm(&self, machine: &str) -> bool {
        let of = |name: Option<&str>| {
            let mut words = self.warm.iter().rev();
            words.find(|word| word.machine.as_deref() == name)
        };
        of(Some(machine))
            .or_else(|| of(None))
            .is_none_or(|word| word.auto)
    }

    /// What `bbot-agent` with these options alone would be told; for embedding
    /// the agent in another program.
    pub fn with_controllers(controllers: &[String]) -> Self {
        let mut options = Self::parse_from(["bbot-agent"]);
        options.controllers = controllers.to_vec();
        options
    }

    /// Checks what clap cannot.
    ///
    /// # Errors
    ///
    /// [`Usage`].
    pub fn check(&self) -> Result<(), Usage> {
        if self.controllers.is_empty() && !self.dump_machines && self.fake_request.is_none() {
            return Err(Usage::NoController);
        }
        if !self.openssl_option.is_empty() && self.openssl.is_none() {
            return Err(Usage::Needs("--openssl-option", "--openssl"));
        }
        if self.auxiliary_ram.is_some() && self.era == WireEra::Y2017 {
            return Err(Usage::Needs("--auxiliary-ram", "--era later"));
        }
        if self.bridge.is_some() && !matches!(self.network, None | Some(NetworkChoice::Bridge)) {
            return Err(Usage::Needs("--bridge", "--network bridge"));
        }
        if !self.is_fake() && self.decided_network.get().is_none() {
            let network = self.decide_network()?;
            // Somebody else was quicker: it comes to the same.
            let _ = self.decided_network.set(network);
        }
        match self.metrics {
            Some(address) => crate::metrics::check_address(address, self.metrics_public)
                .map_err(Usage::Metrics)?,
            None if self.metrics_public => {
                return Err(Usage::Needs("--metrics-public", "--metrics"));
            }
            None => {}
        }
        Ok(())
    }

    /// The marks below which the host is short of something.
    pub fn resource_limits(&self) -> crate::resources::Limits {
        use crate::resources::{Limits, Mark};
        Limits {
            disk: Mark::at(self.min_free_disk << 20),
            memory: Mark::at(self.min_free_memory << 20),
            ..Limits::default()
        }
    }

    /// The key for every controller that has none of its own.
    pub fn default_key(&self) -> Option<&std::path::Path> {
        let keys = self.auth_key.iter().rev();
        let mut defaults = keys.filter(|key| key.controller.is_none());
        defaults.next().map(|key| key.file.as_path())
    }

    /// What is to be done about a bridge.
    pub fn wanted_bridge(&self) -> Wanted {
        let default = || {
            bridge::DEFAULT_BRIDGE
                .parse()
                .expect("it is a name of an interface")
        };
        match (self.network, self.bridge) {
            (Some(NetworkChoice::None | NetworkChoice::User), _) => Wanted::Wire,
            (Some(NetworkChoice::Bridge), name) => Wanted::Bridge(name.unwrap_or_else(default)),
            (None, Some(name)) => Wanted::Bridge(name),
            (None, None) => Wanted::IfUsable(default()),
        }
    }

    /// The network of the machines, decided by [`Options::check`], or else now. A clone that was
    /// made later has the same.
    pub fn machine_network(&self) -> Network {
        *self
            .decided_network
            .get_or_init(|| match self.decide_network() {
                Ok(network) => network,
                Err(error) => {
                    tracing::error!("{error}");
                    Network::None
                }
            })
    }

    fn decide_network(&self) -> Result<Network, Unusable> {
        if self.network == Some(NetworkChoice::User) {
            return Ok(Network::User);
        }
        let wanted = self.wanted_bridge();
        let (Wanted::IfUsable(name) | Wanted::Bridge(name)) = wanted else {
            return Ok(Network::None);
        };
        let port = self.tftp_port.saturating_add(self.toolchain_num);
        match bridge::decide(wanted, &bridge::facts(name), port)? {
            Plan::Wire => Ok(Network::None),
            Plan::WireSince(why) => {
                tracing::warn!(
                    "machines get the agent's own wire and no other network: {why}; \
                     --network none says that this is meant"
                );
                Ok(Network::None)
            }
            Plan::Bridge(bridge) => Ok(Network::Bridge(bridge)),
        }
    }

    /// Whether no machine is ever started.
    pub fn is_fake(&self) -> bool {
        self.fake_machine.is_some() || (self.fake_bootstrap && self.fake_build)
    }

    /// The version of the toolchain that controllers are told.
    pub fn toolchain_version(&self) -> StandardVersion {
        self.toolchain_ver
            .clone()
            .unwrap_or_else(crate::version::own)
    }

    /// How long to wait for the first request of a build.
    pub fn build_startup(&self, accelerator: Accelerator) -> Duration {
        startup(self.build_startup, BUILD_STARTUP, accelerator)
    }

    /// How long to wait for the first request of a bootstrap.
    pub fn bootstrap_startup(&self, accelerator: Accelerator) -> Duration {
        startup(self.bootstrap_startup, BOOTSTRAP_STARTUP, accelerator)
    }

    /// Memory of all machines together, in KiB.
    pub fn ram_budget(&self) -> u64 {
        self.host_ram
            .unwrap_or_else(|| default_ram_budget(physical_ram_kib(), self.ram))
    }

    /// How long what runs may go on when the agent is to end.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout)
    }

    /// Most machines that are prepared ahead.
    pub fn prepare_max(&self) -> usize {
        static DEFAULT: LazyLock<u32> = LazyLock::new(|| {
            let cpus = std::thread::available_parallelism().map_or(1, usize::from);
            default_prepared(cpus, physical_ram_kib())
        });
        let most = self.prepare.unwrap_or_else(|| *DEFAULT);
        let most = most.min(self.instance_max);
        usize::try_from(most).unwrap_or(usize::MAX)
    }

    /// How long a suspended machine is kept.
    pub fn suspend_timeout(&self) -> Duration {
        Duration::from_secs(self.suspend_timeout)
    }

    /// The state directory, which depends on who runs the agent.
    pub fn state_dir(&self) -> PathBuf {
        if let Some(state) = &self.state {
            return state.clone();
        }
        if rustix::process::geteuid().is_root() {
            return PathBuf::from("/var/lib/bbot-agent");
        }
        let base = std::env::var_os("XDG_STATE_HOME")
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
            .or_else(|| std::env::home_dir().map(|home| home.join(".local/state")))
            .unwrap_or_else(std::env::temp_dir);
        base.join("bbot-agent")
    }
}

/// The host's memory in KiB.
fn physical_ram_kib() -> u64 {
    let info = rustix::system::sysinfo();
    let total: u64 = info.totalram;
    total.saturating_mul(u64::from(info.mem_unit)) / 1024
}

/// What machines may have of a host with so much memory (KiB), so that the host itself
/// and QEMU have the rest; enough for one machine in any case, as the seed has it.
fn default_ram_budget(physical: u64, one: u64) -> u64 {
    const RESERVE: u64 = 512 * 1024;
    physical.saturating_sub(RESERVE.max(physical / 8)).max(one)
}

/// How many machines a host with so many processors and so much memory (KiB) prepares ahead: to
/// restore one takes from what runs.
fn default_prepared(cpus: usize, ram_kib: u64) -> u32 {
    // A host of 16 GiB has a little less for its programs.
    let is_large = cpus >= 4 && ram_kib >= 15 * 1024 * 1024;
    if is_large { 2 } else { 0 }
}

/// What was asked for is taken as it is; the default knows of the accelerator.
fn startup(given: Option<u64>, default: Duration, accelerator: Accelerator) -> Duration {
    match (given, accelerator) {
        (Some(seconds), _) => Duration::from_secs(seconds),
        (None, Accelerator::Kvm) => default,
        (None, Accelerator::Tcg) => default * TCG_FACTOR,
    }
}

#[cfg(test)]
mod tests;
