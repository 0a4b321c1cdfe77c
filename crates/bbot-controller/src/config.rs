//! How a controller is set up.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use crate::clock::{Clock, SystemClock};
use crate::login::Login;
use crate::objects::Where;
pub use crate::queue::era::EraChoice;
pub use crate::queue::rebuild::Policy;
use crate::segments::Bounds;
pub use crate::tls::TlsFiles;

/// The port that is listened on when none is said.
pub const DEFAULT_PORT: u16 = 2268;

/// How long raw logs and old results are kept when nothing is said: a year.
pub const KEEP_LOGS: Duration = Duration::from_secs(365 * 24 * 3600);

/// Everything that a controller needs to know before it starts.
#[derive(Debug)]
pub struct Config {
    /// Where to listen; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Directory of the store, the archives and the token; made where there is none.
    pub data_dir: PathBuf,
    /// URL of the PostgreSQL database that the store is in; none: SQLite in the data directory.
    pub database: Option<String>,
    /// A database that is not there is waited for so long at the start.
    pub database_wait: Duration,
    /// The buildtab; none: any machine builds the configuration `default`.
    pub buildtab: Option<PathBuf>,
    /// Directory of agents' public keys; none: agents need not prove who they are.
    pub agent_keys: Option<PathBuf>,
    /// Whether an agent that is not known waits until a person lets it in.
    pub approve_agents: bool,
    /// Agents that may have interactive builds, by name and login; none: there are no such builds.
    pub logins: Vec<Login>,
    /// Which wire agents are answered on.
    pub era: EraChoice,
    /// How long an agent may take for a task before it is given to another.
    pub result_timeout: Duration,
    /// The lease of an agent that renews it: after so long without a word its task is given to another.
    pub lease: Duration,
    /// When builds are rebuilt by themselves.
    pub rebuilds: Policy,
    /// How often those that are due are looked for.
    pub rebuild_look: Duration,
    /// The time zone of windows.
    pub time_zone: jiff::tz::TimeZone,
    /// For how long raw logs, and results that are not a build's last, are kept; none: for ever.
    pub keep_logs: Option<Duration>,
    /// For how long submissions are kept that are done and not the newest of their packages; none: for ever.
    pub keep_submissions: Option<Duration>,
    /// How agents and browsers reach this controller, where that differs from where it listens.
    pub external_url: Option<String>,
    /// Further names (`HOST` or `HOST:PORT`) that requests may be addressed to.
    pub names: Vec<String>,
    /// Where objects are kept; none: `objects` in the data directory.
    pub objects: Option<Where>,
    /// Types of artifacts that agents may upload.
    pub artifacts: Vec<String>,
    /// The token's file; none: `token` in the data directory.
    pub token_file: Option<PathBuf>,
    /// Whether looking needs a token, too.
    pub private: bool,
    /// Bounds on what comes in.
    pub limits: Limits,
    /// Whether sources may be fetched from private and loopback addresses.
    pub source_addresses: crate::source::git::Addresses,
    /// User and group ids that `git` runs as, where this process may say so.
    pub source_user: Option<(u32, u32)>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// The certificate, where it speaks TLS itself.
    pub tls: Option<TlsFiles>,
    /// Whoever asks has what may change while it runs looked at, at once.
    pub reload: Arc<Notify>,
    /// Is told the bound address once requests are taken.
    pub bound: Option<oneshot::Sender<SocketAddr>>,
}

/// Bounds on what comes in. Bytes, unless said otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A task request has fewer.
    pub task_request: usize,
    /// A result has fewer.
    pub result: usize,
    /// An archive has at most as many.
    pub archive: u64,
    /// An artifact has at most as many.
    pub artifact: u64,
    /// The tree of a git commit has at most as many, and so has what is fetched for it.
    pub git: u64,
    /// The longest time of a git fetch.
    pub git_time: Duration,
    /// A request of the API or of a form has at most as many.
    pub form: usize,
    /// Bodies of requests that are in memory have at most as many together.
    pub bodies: usize,
    /// Archives and artifacts that come into the object store at once: each takes some megabytes while it does.
    pub uploads: usize,
    /// Clients that read archives and artifacts at once: each takes a megabyte while it does.
    pub readers: usize,
    /// Who finds no room among these waits so long for it.
    pub patience: Duration,
    /// Connections that are open at once.
    pub connections: usize,
    /// Clients that follow a log at once.
    pub followers: usize,
    /// Clients that read a long log at once: each takes some megabytes while it does.
    pub log_readers: usize,
    /// A reader that takes nothing for so long is cut off.
    pub slow_reader: Duration,
    /// A follower hears something so often, so that both ends notice a dead connection.
    pub heartbeat: Duration,
    /// A follower that takes nothing for so long is cut off: it may come back.
    pub slow_follower: Duration,
    /// How much of the raw log of one run is kept.
    pub run_log: Bounds,
}

/// A database is waited for so long at the start: systemd waits for us longer.
const DATABASE_WAIT: Duration = Duration::from_secs(60);

impl Default for Limits {
    fn default() -> Self {
        Self {
            // The original's bound.
            task_request: 102_400,
            result: 64 << 20,
            archive: 512 << 20,
            artifact: 1 << 30,
            git: 1 << 30,
            git_time: Duration::from_secs(300),
            form: 64 << 10,
            bodies: 64 << 20,
            uploads: 8,
            readers: 64,
            patience: Duration::from_secs(30),
            connections: 16_384,
            followers: 128,
            log_readers: 32,
            slow_reader: Duration::from_secs(60),
            heartbeat: Duration::from_secs(15),
            slow_follower: Duration::from_secs(60),
            run_log: Bounds::default(),
        }
    }
}

impl Config {
    /// A controller on the loopback, with this data directory and defaults for all else.
    #[must_use]
    pub fn new(data_dir: PathBuf) -> Self {
        Self {
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)),
            data_dir,
            database: None,
            database_wait: DATABASE_WAIT,
            buildtab: None,
            agent_keys: None,
            approve_agents: false,
            logins: Vec::new(),
            era: EraChoice::Auto,
            // The original's build-result-timeout.
            result_timeout: Duration::from_secs(10_800),
            lease: crate::queue::lease::LEASE,
            rebuilds: Policy::default(),
            rebuild_look: Duration::from_secs(60),
            time_zone: jiff::tz::TimeZone::system(),
            keep_logs: Some(KEEP_LOGS),
            keep_submissions: None,
            external_url: None,
            names: Vec::new(),
            objects: None,
            artifacts: Vec::new(),
            token_file: None,
            private: false,
            limits: Limits::default(),
            source_addresses: crate::source::git::Addresses::Public,
            source_user: None,
            clock: Arc::new(SystemClock::start()),
            tls: None,
            reload: Arc::default(),
            bound: None,
        }
    }

    /// Where objects are kept.
    #[must_use]
    pub fn objects_place(&self) -> Where {
        let own = || Where::Directory(self.data_dir.join("objects"));
        self.objects.clone().unwrap_or_else(own)
    }

    /// The token's file.
    #[must_use]
    pub fn token_path(&self) -> PathBuf {
        self.token_file
            .clone()
            .unwrap_or_else(|| self.data_dir.join("token"))
    }
}
