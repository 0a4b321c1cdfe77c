//! Machines in containers, by systemd-nspawn (`docs/decisions/0014-containers.md`).
//!
//! A container's files are in `rootfs/`, its first program is named in `cmdline` (`init=/path`) or
//! is the system's own. It sees what a virtual machine sees: a card whose other end is the agent.
//!
//! ```text
//!   agent                 agent's child: a shell, first of a process namespace
//!     | holds the other     | first user of nothing: root of the host, but
//!     | ends of the cards   | sees no network but the cards
//!     |                     +-- nspawn -- the container's first process: root of
//!     |                                   its own users, cards, mounts, processes
//!   rootfs    what it is started from
//!   users     whom its root really is
//!   network   its cards
//!   groups    its bounds, and the freezer
//!   enclosure what is done before nspawn runs
//!   command   what nspawn is told, pure
//!   launch    the start, also after a restart
//!   running   one running container
//!   signals   how it is told to end, or stopped
//!   console   what it prints
//! ```

mod command;
mod console;
mod enclosure;
mod groups;
mod launch;
mod network;
pub mod rootfs;
mod running;
mod signals;
mod users;

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use bbot_manifest::MachineKind;
use tokio::net::UnixDatagram;

use crate::bridge::{self, GuestEnd};
use crate::machine::{BoxFuture, Error, Hypervisor, Machine, Network, StartSpec};
use crate::qemu::internet::Internet;
use crate::qemu::process::{self, Credentials};
use crate::qemu::{choose_mac, second_mac};
use crate::socket_folder::SocketFolder;
use crate::wire::{self, thread::End};

use command::Plan;
use console::Console;
use groups::{Bounds, Groups};
use launch::Launch;
use network::{Cards, Last};
use running::{NspawnMachine, Parts};
use users::Range;

/// The socket that shows the console.
const CONSOLE: &str = "console";
/// The socket on which nspawn tells that the container runs.
const NOTIFY: &str = "notify";

/// Processes and threads of a container: enough for any build, too few to choke the host.
const PROCESSES: u64 = 4096;

/// Starts machines in containers.
#[derive(Debug, Clone)]
pub struct Nspawn {
    program: OsString,
    processes: u64,
    has_groups: bool,
}

impl Default for Nspawn {
    fn default() -> Self {
        Self::new()
    }
}

impl Nspawn {
    /// The `systemd-nspawn` that is found in PATH.
    #[must_use]
    pub fn new() -> Self {
        Self {
            program: "systemd-nspawn".into(),
            processes: PROCESSES,
            has_groups: true,
        }
    }

    /// A program of the caller's choice: a path, or a name that is looked for in PATH.
    #[must_use]
    pub fn with_program(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            ..Self::new()
        }
    }

    /// Bounds the processes and threads of each container to so many; 4096 unless told.
    #[must_use]
    pub fn with_processes(mut self, processes: u64) -> Self {
        self.processes = processes;
        self
    }

    /// Makes no control groups, as on a host that has none: containers are bounded in the processes
    /// of each user alone.
    #[must_use]
    pub fn without_control_groups(mut self) -> Self {
        self.has_groups = false;
        self
    }

    /// Removes what containers of agents that are gone, and those of this one that have ended, have
    /// left on this host: their control groups, known by their names. Their processes are gone, the
    /// kernel saw to that. Safe at any time.
    pub fn sweep() {
        groups::sweep();
    }

    /// Whether containers can be started here at all; else why not and how to mend it.
    fn require_usable(&self) -> Result<(), String> {
        if !rustix::process::geteuid().is_root() {
            return Err(
                "it is a container (type nspawn), which only an agent that runs as root can start; \
                 run the agent as root, or make the machine with --type kvm"
                    .to_owned(),
            );
        }
        if !process::is_installed(&self.program) {
            return Err(format!(
                "{} is not installed: install the package systemd-container (looked for it in PATH)",
                self.program.to_string_lossy()
            ));
        }
        let may = std::fs::read_to_string("/proc/sys/user/max_user_namespaces");
        if !Path::new("/proc/self/ns/user").exists() || may.is_ok_and(|most| most.trim() == "0") {
            return Err(
                "the kernel has no user namespaces to run its container in: build it with \
                 CONFIG_USER_NS, or allow them (sysctl user.max_user_namespaces=15000)"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

impl Hypervisor for Nspawn {
    fn start(&self, spec: StartSpec) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        Box::pin(async move {
            let machine = start(self, spec).await?;
            Ok(Box::new(machine) as Box<dyn Machine>)
        })
    }
}

/// Adds what was tried to a system error.
fn trying(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

async fn start(nspawn: &Nspawn, spec: StartSpec) -> Result<NspawnMachine, Error> {
    let name = spec.manifest.header.name.clone();
    let unsupported = |what: String| Error::Unsupported {
        machine: name.clone(),
        what,
    };
    if spec.manifest.kind != MachineKind::Nspawn {
        return Err(unsupported(format!(
            "its type is {}, and nspawn runs machines of type nspawn only",
            spec.manifest.kind
        )));
    }
    if spec.cpus == 0 || spec.ram_kib == 0 {
        return Err(unsupported(
            "it needs at least one CPU and some RAM".to_owned(),
        ));
    }
    if spec.manifest.options.is_some() {
        return Err(unsupported(
            "its manifest has options, which a container cannot have; take them out".to_owned(),
        ));
    }
    nspawn.require_usable().map_err(unsupported)?;
    let init = rootfs::check(&name, &spec.directory)?;
    let directory = std::fs::canonicalize(&spec.directory)
        .map_err(trying(format!("find {}", spec.directory.display())))?;
    let rootfs = directory.join(rootfs::ROOTFS);
    let rootfs = rootfs.to_str().map(str::to_owned).ok_or_else(|| {
        unsupported(format!(
            "{} is not UTF-8, as nspawn needs it; rename the directory",
            rootfs.display()
        ))
    })?;
    let root_directory = CString::new(rootfs.as_str())
        .map_err(|error| trying(format!("name {rootfs}"))(error.into()))?;
    let mac = choose_mac(&spec)?;
    rootfs::close(&directory).map_err(trying(format!(
        "close {} for others than root",
        directory.display()
    )))?;

    let users = Range::take().map_err(trying(format!("find users for machine {name}")))?;
    let bounds = Bounds {
        ram_kib: spec.ram_kib,
        cpus: spec.cpus,
        processes: nspawn.processes,
    };
    let groups = if nspawn.has_groups {
        Groups::make(&bounds)
    } else {
        Groups::none()
    };
    tell_missing(&groups.missing);
    let folder = SocketFolder::create(&spec.run_dir, "nspawn", &[CONSOLE, NOTIFY])?;
    let (console_path, notify_path) = (folder.path().join(CONSOLE), folder.path().join(NOTIFY));
    // nspawn makes it too; here it is mounted over.
    std::fs::create_dir_all(enclosure::OWN_FOLDER)
        .map_err(trying(format!("make {}", enclosure::OWN_FOLDER)))?;
    let notify = UnixDatagram::bind(&notify_path)
        .map_err(trying(format!("make {}", notify_path.display())))?;
    let (output, input) =
        io::pipe().map_err(trying(format!("make the console of machine {name}")))?;
    let console = Console::start(output.into(), &console_path)
        .map_err(trying(format!("make {}", console_path.display())))?;

    let network = spec.network.of(MachineKind::Nspawn);
    let first = (!matches!(network, Network::Bridge(_))).then_some(mac);
    let second = (network == Network::User).then(|| second_mac(mac));
    let making = || trying(format!("make the network cards of machine {name}"));
    let cards = Cards::make(first, second).map_err(making())?;
    let (wire, card, bridge) = match (network, cards.wire) {
        (Network::Bridge(bridge), _) => {
            let card = GuestEnd::In(cards.namespace.try_clone().map_err(making())?);
            let tftp = spec.tftp.clone();
            let (attached, wire) = bridge::attach(bridge, &name, mac, card, tftp).await?;
            (wire, None, Some(attached))
        }
        (_, Some(card)) => {
            let last = Last::of(&card).map_err(making())?;
            let wire = spec.tftp.serve_on(End::Tap(card), None);
            let wire = wire.map_err(trying(format!("serve the wire of machine {name}")))?;
            (wire, Some(last), None)
        }
        (_, None) => return Err(making()(io::Error::other("there is none for its wire"))),
    };
    let internet = match cards.internet {
        None => None,
        Some(card) => {
            let credentials = Credentials::find(spec.user.as_deref())
                .map_err(trying("run passt without the rights of root"))?;
            Some(Internet::start_over(&name, credentials.as_ref(), End::Tap(card)).await?)
        }
    };

    let launch = Launch {
        arguments: command::build(&Plan {
            rootfs: &rootfs,
            first_user: users.first,
            internet: internet.is_some(),
            processors: &processors(spec.cpus),
            address: bridge.is_none().then_some((wire::GUEST, wire::MASK)),
            init: &init,
        }),
        name,
        program: nspawn.program.clone(),
        directory,
        rootfs: root_directory,
        cards: cards.namespace,
        notify,
        output: std::fs::File::from(OwnedFd::from(input)),
        groups,
        _users: users,
        folder,
    };
    let started = launch.start().await.map_err(|error| match error {
        Error::NotStarted { machine, detail } => {
            let last = console.last_lines(3);
            let detail = if last.is_empty() {
                detail
            } else {
                format!("{detail}; its console ends with: {last}")
            };
            Error::NotStarted { machine, detail }
        }
        other => other,
    })?;
    Ok(NspawnMachine::new(Parts {
        mac,
        launch,
        started,
        wire,
        card,
        bridge,
        internet,
        console,
    }))
}

/// The processors for the next container.
fn processors(wanted: u32) -> Vec<usize> {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let Ok(allowed) = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)) else {
        return Vec::new();
    };
    let available: Vec<usize> = (0..nix::sched::CpuSet::count())
        .filter(|&processor| allowed.is_set(processor).unwrap_or(false))
        .collect();
    command::processors(&available, wanted, RUNS.fetch_add(1, Ordering::Relaxed))
}

/// Says once which bounds containers do not have on this host.
fn tell_missing(missing: &[&str]) {
    static TOLD: Once = Once::new();
    if missing.is_empty() {
        return;
    }
    TOLD.call_once(|| {
        tracing::warn!(
            "containers are not bounded in: {}; this host's control groups cannot be used for it \
             (run the agent in a unit with Delegate=yes)",
            missing.join(", ")
        );
    });
}
