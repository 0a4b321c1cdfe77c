//! The world of the test: a machine that boots in seconds, a toolchain, a controller and an agent, all below one folder.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, ensure};
use testkit::Mount;
use testkit::guest::{self, GuestFile};

use super::left::{Inventory, Places};
use super::process::Running;

/// Where the controller listens: nobody else is on this loopback.
const CONTROLLER: ([u8; 4], u16) = ([127, 0, 0, 1], 2268);

/// Room for machines on their own file system, in bytes: files have holes, and only what is written counts.
const VOLUME: u64 = 2 << 30;

/// Memory of a machine in KiB.
const RAM: u32 = 192 * 1024;

/// The first process of the machine: what a bootstrap has left comes from the disk, a tar archive without a file system
/// around it; then bootstrap protocol 1.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /root /build /run /var/run /var/log /usr/lib/bbot
mkdir -m 1777 /tmp
for module in $(cat /modules/list); do insmod /modules/$module.ko; done
ifconfig lo up
ifconfig eth0 up
until udhcpc -i eth0 -n -q -t 20 -T 1 -s /udhcpc; do :; done
tar -x -f /dev/vda -C / 2>/dev/null
if [ -x /usr/lib/bbot/bbot-worker ]; then
  /usr/lib/bbot/bbot-worker --startup
else
  acpid
  until tftp -g -b 1468 -r bootstrap -l /run/bootstrap 196.254.111.222; do sleep 1; done
  sh /run/bootstrap 196.254.111.222
fi
while :; do sleep 1000; done
"#;

/// What the power button does.
const POWER_OFF: &str = "#!/bin/sh\ntar -c -f /dev/vda -C / usr/lib/bbot\nsync\npoweroff -f\n";

/// Enough of make for a makefile with nothing in it, and a second of work.
const MAKE: &str = "#!/bin/sh
for word; do
  case $word in check|test) echo \"make: *** No rule to make target '$word'.  Stop.\" >&2; exit 2 ;; esac
done
echo made
";

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
    /// Where the machines are: on btrfs, where that can be had.
    machines: PathBuf,
    volume: Option<Mount>,
}

impl World {
    /// Makes the folders, the machine and the toolchain.
    pub(super) fn make(home: &Path, programs: Programs, instances: u32) -> anyhow::Result<Self> {
        let volume = testkit::btrfs().then(|| Mount::btrfs(home, VOLUME));
        let machines = volume
            .as_ref()
            .map_or(home, |volume| volume.path())
            .join("machines");
        let world = Self {
            home: home.to_owned(),
            programs,
            instances,
            machines,
            volume,
        };
        for folder in ["tmp", "state", "controller"] {
            make_folder(&home.join(folder))?;
        }
        world.make_machine()?;
        world.make_toolchain()?;
        write(&home.join("buildtab"), b"tiny tiny x86_64-linux-gnu\n")?;
        Ok(world)
    }

    /// What a task is built for.
    pub(super) fn configurations(&self) -> &[&str] {
        &["tiny"]
    }

    pub(super) fn is_btrfs(&self) -> bool {
        self.volume.is_some()
    }

    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::from(CONTROLLER)
    }

    fn make_machine(&self) -> anyhow::Result<()> {
        let machine = self.machines.join("vol/tiny");
        make_folder(&machine)?;
        let revision = machine.join("tiny-1.1");
        if self.is_btrfs() {
            testkit::run(
                "btrfs",
                &["-q", "subvolume", "create", testkit::text(&revision)],
            );
        } else {
            make_folder(&revision)?;
        }
        let files = [
            GuestFile {
                name: "bin/make",
                is_program: true,
                contents: MAKE.as_bytes(),
            },
            GuestFile {
                name: "etc/acpi/PWRF/00000080",
                is_program: true,
                contents: POWER_OFF.as_bytes(),
            },
            GuestFile {
                name: "etc/passwd",
                is_program: false,
                contents: b"root:x:0:0::/root:/bin/sh\nbuild:x:1000:1000::/:/bin/sh\n",
            },
            GuestFile {
                name: "etc/group",
                is_program: false,
                contents: b"root:x:0:\nbuild:x:1000:\n",
            },
        ];
        let initrd =
            guest::initrd(INIT, &files).map_err(|why| anyhow!("cannot make the guest: {why}"))?;
        let kernel = guest::kernel().map_err(|why| anyhow!("cannot make the guest: {why}"))?;
        fs::copy(&kernel, revision.join("kernel"))
            .with_context(|| format!("cannot copy {}", kernel.display()))?;
        write(&revision.join("initrd"), &initrd)?;
        write(&revision.join("cmdline"), b"console=ttyS0 panic=0\n")?;
        write(
            &revision.join("manifest"),
            b": 1\nid: tiny-1.1\nname: tiny\nsummary: Boots in seconds\ntype: kvm\n",
        )?;
        let disk = revision.join("disk.img");
        fs::File::create(&disk)
            .and_then(|file| file.set_len(16 << 20))
            .with_context(|| format!("cannot make {}", disk.display()))?;
        if self.is_btrfs() {
            testkit::run(
                "btrfs",
                &[
                    "property",
                    "set",
                    "-t",
                    "subvol",
                    testkit::text(&revision),
                    "ro",
                    "true",
                ],
            );
        }
        symlink("tiny-1.1", machine.join("tiny-1")).context("cannot make the link to the revision")
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

    pub(super) fn start_agent(&self) -> anyhow::Result<Running> {
        let mut command = self.agent();
        command.arg(format!("http://{}", self.address()));
        Running::start("agent", &mut command, &self.log("agent"))
    }

    /// Bootstraps the machine, so that every list that is taken later has it.
    pub(super) fn bootstrap(&self) -> anyhow::Result<()> {
        let output = self
            .agent()
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
        let machine = self.machines.join("vol/tiny/tiny-default/manifest");
        ensure!(machine.exists(), "there is no bootstrapped machine: {said}");
        Ok(())
    }

    fn agent(&self) -> Command {
        let mut command = self.command(&self.programs.agent);
        for (option, value) in [
            ("--accel", "tcg"),
            ("--suspend-timeout", "0"),
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
            PathBuf::from("/run/bbot-agent"),
        ];
        let folders: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
        Inventory::take(Places {
            folders: &folders,
            ours: std::process::id(),
        })
    }

    /// Lets the minute pass for which a folder of a run is left alone although nobody holds its lock.
    pub(super) fn let_a_minute_pass(&self) -> anyhow::Result<()> {
        for folder in ["tftp", "state", "tmp"] {
            make_old(&self.home.join(folder), 5)?;
        }
        Ok(())
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

/// Makes the lock files below a folder older.
fn make_old(folder: &Path, levels: u32) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_name() == ".lock" {
            fs::File::options()
                .write(true)
                .open(&path)
                .and_then(|file| file.set_modified(SystemTime::now() - Duration::from_secs(120)))
                .with_context(|| format!("cannot change {}", path.display()))?;
        } else if levels > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_old(&path, levels - 1)?;
        }
    }
    Ok(())
}
