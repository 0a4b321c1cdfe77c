//! The world of the test: machines, a toolchain, a controller and an agent, all below one folder.

use std::cell::RefCell;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use testkit::Mount;

use super::ask;
use super::left::{Inventory, Places};
use super::machine::{self, Kind};
use super::network::{Network, Networks};
use super::process::Running;

/// Where the controller listens: nobody else is on this loopback.
const CONTROLLER: ([u8; 4], u16) = ([127, 0, 0, 1], 2268);

/// Room for machines on their own file system, in bytes: files have holes, and only what is written counts.
const VOLUME: u64 = 2 << 30;

/// For how many seconds a machine is kept suspended: kills come more often.
const SUSPENDED: &str = "10";

/// Memory of a machine in KiB.
const RAM: u32 = 192 * 1024;

/// The programs under test, built.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub(super) agent: PathBuf,
    pub(super) controller: PathBuf,
    pub(super) worker: PathBuf,
    /// The toolchain's folder in the sources.
    pub(super) toolchain: PathBuf,
}

/// Everything below one folder.
#[derive(Debug)]
pub(super) struct World {
    home: PathBuf,
    programs: Programs,
    /// How many machines at once.
    instances: u32,
    kinds: Vec<Kind>,
    networks: Networks,
    /// Where the machines are: on btrfs, where that can be had.
    machines: PathBuf,
    volume: Option<Mount>,
    /// What control groups of the agents that were started are called.
    groups: RefCell<Vec<String>>,
}

impl World {
    /// Makes the folders, the machine and the toolchain.
    pub(super) fn make(
        home: &Path,
        programs: Programs,
        instances: u32,
        kinds: Vec<Kind>,
        networks: Networks,
    ) -> anyhow::Result<Self> {
        let volume = testkit::btrfs().then(|| Mount::btrfs(home, VOLUME));
        let machines = volume
            .as_ref()
            .map_or(home, |volume| volume.path())
            .join("machines");
        let world = Self {
            home: home.to_owned(),
            programs,
            instances,
            kinds,
            networks,
            machines,
            volume,
            groups: RefCell::default(),
        };
        for folder in ["tmp", "state", "controller"] {
            make_folder(&home.join(folder))?;
        }
        for kind in &world.kinds {
            machine::make(*kind, &world.machines.join("vol"), world.is_btrfs())?;
        }
        world.make_toolchain()?;
        let buildtab: String = world
            .configurations()
            .iter()
            .map(|name| format!("{name} {name} x86_64-linux-gnu\n"))
            .collect();
        write(&home.join("buildtab"), buildtab.as_bytes())?;
        Ok(world)
    }

    /// What tasks are built for: a configuration for each machine, of its name.
    pub(super) fn configurations(&self) -> Vec<&'static str> {
        self.kinds.iter().map(|kind| kind.name()).collect()
    }

    pub(super) fn networks(&self) -> &Networks {
        &self.networks
    }

    pub(super) fn is_btrfs(&self) -> bool {
        self.volume.is_some()
    }

    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::from(CONTROLLER)
    }

    fn make_toolchain(&self) -> anyhow::Result<()> {
        let folder = self.home.join("tftp/toolchains/default");
        make_folder(&folder)?;
        for (from, name) in [
            (self.programs.toolchain.join("bootstrap"), "bootstrap"),
            (self.programs.worker.clone(), "bbot-worker"),
        ] {
            let to = folder.join(name);
            fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755))
                .with_context(|| format!("cannot change {}", to.display()))?;
        }
        Ok(())
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.home.join(format!("{name}.log"))
    }

    pub(super) fn start_controller(&self) -> anyhow::Result<Running> {
        let mut command = self.command(&self.programs.controller);
        command
            .arg("--listen")
            .arg(self.address().to_string())
            .arg("--data")
            .arg(self.home.join("controller"))
            .arg("--buildtab")
            .arg(self.home.join("buildtab"));
        Running::start("controller", &mut command, &self.log("controller"))
    }

    /// The token of the controller's API; it is there once the controller is.
    pub(super) fn token(&self) -> anyhow::Result<String> {
        let path = self.home.join("controller/token");
        let token =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(token.trim().to_owned())
    }

    /// The next agent, with the next network.
    pub(super) fn start_agent(&self) -> anyhow::Result<Running> {
        let mut command = self.agent(self.networks.next());
        command.arg(format!("http://{}", self.address()));
        let agent = Running::start("agent", &mut command, &self.log("agent"))?;
        let group = format!("bbot-nspawn-{}-", agent.identity()?);
        self.groups.borrow_mut().push(group);
        Ok(agent)
    }

    /// How many machines the agent keeps suspended now.
    pub(super) fn suspended(&self) -> anyhow::Result<usize> {
        ask::suspended(&self.home.join("state/default.sock"))
    }

    /// Bootstraps the machine, so that every list that is taken later has it.
    pub(super) fn bootstrap(&self) -> anyhow::Result<()> {
        let output = self
            .agent(Network::Wire)
            .arg("--dump-machines")
            .stdin(Stdio::null())
            .output()
            .context("cannot start the agent")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "the machine is not bootstrapped ({}): {said}",
            output.status
        );
        for name in self.configurations() {
            let machine = self
                .machines
                .join(format!("vol/{name}/{name}-default/manifest"));
            ensure!(machine.exists(), "{name} is not bootstrapped: {said}");
        }
        Ok(())
    }

    fn agent(&self, network: Network) -> Command {
        let mut command = self.command(&self.programs.agent);
        command.args(network.options());
        for (option, value) in [
            ("--accel", "tcg"),
            ("--suspend-timeout", SUSPENDED),
            ("--idle-pause", "1"),
            ("--build-timeout", "300"),
            ("--build-startup", "90"),
            ("--min-free-disk", "0"),
            ("--verbose", "2"),
        ] {
            command.args([option, value]);
        }
        command.arg("--ram").arg(RAM.to_string());
        command
            .arg("--instance-max")
            .arg(self.instances.to_string());
        for (option, folder) in [("--tftp", "tftp"), ("--state", "state")] {
            command.arg(option).arg(self.home.join(folder));
        }
        command.arg("--machines").arg(&self.machines);
        command
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("TMPDIR", self.home.join("tmp"))
            .env("BBOT_LOG", "info");
        command
    }

    /// Everything that there is now.
    pub(super) fn inventory(&self) -> anyhow::Result<Inventory> {
        let folders = [
            self.machines.clone(),
            self.home.join("tftp"),
            self.home.join("state"),
            self.home.join("tmp"),
            PathBuf::from("/run"),
        ];
        let folders: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
        Inventory::take(Places {
            folders: &folders,
            groups: &self.groups.borrow(),
            ours: std::process::id(),
        })
    }
}

/// Ends in order: exit status 0, soon.
pub(super) fn end(running: Running, name: &str, problems: &mut Vec<String>) -> anyhow::Result<()> {
    match running.terminate(Duration::from_secs(60)) {
        Ok(status) if ExitStatus::success(&status) => {}
        Ok(status) => problems.push(format!("the {name} ended with {status} on SIGTERM")),
        Err(error) => problems.push(format!("{error:#}")),
    }
    Ok(())
}

fn make_folder(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}

fn write(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))
}
