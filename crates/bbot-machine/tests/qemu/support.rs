//! A guest for the tests: its files, and how to speak to it.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bbot_machine::accel::Accelerator;
use bbot_machine::machine::{Disk, Hypervisor, Machine, MachineEvent, Network, StartSpec, Tftp};
use bbot_machine::qemu::Qemu;
use bbot_manifest::MachineManifest;
use bbot_tftp::{Event, Limits, Root};
use tempfile::TempDir;

/// Under TCG, on a busy host, while others compile.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// True: there is no QEMU or no guest, and nobody requires it.
pub(crate) fn must_skip() -> bool {
    if !testkit::program("qemu-system-x86_64", "qemu") {
        return true;
    }
    guest_files()
        .inspect_err(|why| testkit::missing("image", why))
        .is_err()
}

/// Kernel and initial RAM disk of the guest, made once and kept.
#[derive(Debug, Clone)]
pub(crate) struct GuestFiles {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

/// In the order in which each finds what it depends on.
const MODULES: [&str; 14] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "drivers/block/virtio_blk",
    "drivers/acpi/button",
    "drivers/input/evdev",
    "drivers/misc/pvpanic/pvpanic",
    "drivers/misc/pvpanic/pvpanic-mmio",
    "drivers/char/hw_random/virtio-rng",
];

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules/list); do insmod /modules/$module.ko; done
ifconfig lo up
for card in eth0 eth1; do
  [ -e /sys/class/net/$card ] || continue
  ifconfig $card up
  udhcpc -i $card -n -q -t 20 -T 2 -s /udhcpc
done
mkdir -p /var/run /var/log
acpid
tftp -g -r script -l /script 196.254.111.222 && sh /script
echo "script ended with $?"
while :; do sleep 1000; done
"#;

const UDHCPC: &str = r#"#!/bin/sh
case $1 in bound|renew)
  ifconfig $interface $ip netmask $subnet
  for r in $router; do route add default gw $r dev $interface; done
  echo "$interface: ip=$ip subnet=$subnet router=$router dns=$dns lease=$lease server=$serverid"
esac
"#;

fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .map_err(|error| format!("unable to run {command:?}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }
}

pub(crate) fn guest_files() -> Result<GuestFiles, String> {
    static FILES: std::sync::OnceLock<Result<GuestFiles, String>> = std::sync::OnceLock::new();
    FILES.get_or_init(make_guest_files).clone()
}

fn make_guest_files() -> Result<GuestFiles, String> {
    let cache = testkit::cache().join("qemu-guest");
    let text = |error: std::io::Error| format!("{}: {error}", cache.display());
    fs::create_dir_all(&cache).map_err(text)?;
    // Tests run in processes of their own: one fetches, the others wait.
    let lock = fs::File::create(cache.join("lock")).map_err(text)?;
    lock.lock().map_err(text)?;
    let root = cache.join("root");
    if !root.is_dir() {
        fetch_kernel(&cache, &root)?;
    }
    let kernel = only(&root.join("boot"), "vmlinuz-")?;
    let modules = only(&root.join("lib/modules"), "")?.join("kernel");
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|path| fs::read(path).ok())
        .filter(|bytes| is_static(bytes))
        .ok_or("busybox-static is not installed")?;
    let initrd = cache.join("initrd");
    let mut archive = Vec::new();
    for folder in [
        "bin",
        "dev",
        "proc",
        "sys",
        "modules",
        "etc",
        "etc/acpi",
        "etc/acpi/PWRF",
    ] {
        entry(&mut archive, folder, 0o040_755, b"");
    }
    entry(&mut archive, "bin/busybox", 0o100_755, &busybox);
    entry(&mut archive, "init", 0o100_755, INIT.as_bytes());
    entry(&mut archive, "udhcpc", 0o100_755, UDHCPC.as_bytes());
    entry(
        &mut archive,
        "etc/acpi/PWRF/00000080",
        0o100_755,
        b"#!/bin/sh\npoweroff -f\n",
    );
    let mut list = String::new();
    for module in MODULES {
        let bytes = fs::read(modules.join(format!("{module}.ko")))
            .map_err(|error| format!("{module}.ko: {error}"))?;
        let name = module.rsplit('/').next().unwrap();
        entry(
            &mut archive,
            &format!("modules/{name}.ko"),
            0o100_644,
            &bytes,
        );
        list.push_str(name);
        list.push('\n');
    }
    entry(&mut archive, "modules/list", 0o100_644, list.as_bytes());
    entry(&mut archive, "TRAILER!!!", 0, b"");
    let fresh = cache.join(format!("initrd.{}", std::process::id()));
    fs::write(&fresh, archive).map_err(text)?;
    fs::rename(&fresh, &initrd).map_err(text)?;
    Ok(GuestFiles { kernel, initrd })
}

/// An ELF file without an interpreter.
fn is_static(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF") && !bytes.windows(9).take(4096).any(|part| part == b"/ld-linux")
}

fn fetch_kernel(cache: &Path, root: &Path) -> Result<(), String> {
    let depends = run(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
    let package = depends
        .split_whitespace()
        .find(|word| {
            word.starts_with("linux-image-") && word.contains("cloud-amd64") && word.len() > 25
        })
        .ok_or("Debian's package linux-image-cloud-amd64 is not known here")?
        .to_owned();
    let work = tempfile::tempdir_in(cache).map_err(|error| error.to_string())?;
    run(Command::new("apt-get")
        .arg("download")
        .arg(&package)
        .current_dir(work.path()))?;
    let archive = only(work.path(), "linux-image-")?;
    let fresh = work.path().join("root");
    run(Command::new("dpkg").arg("-x").arg(archive).arg(&fresh))?;
    fs::rename(&fresh, root).map_err(|error| error.to_string())
}

fn only(folder: &Path, prefix: &str) -> Result<PathBuf, String> {
    fs::read_dir(folder)
        .map_err(|error| format!("{}: {error}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(prefix)
        })
        .ok_or_else(|| format!("{} has no {prefix}*", folder.display()))
}

/// Adds a file to a cpio archive of the format "newc".
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, contents: &[u8]) {
    let fields = [
        0,
        mode,
        0,
        0,
        1,
        0,
        u32::try_from(contents.len()).unwrap(),
        0,
        0,
        0,
        0,
        u32::try_from(name.len() + 1).unwrap(),
        0,
    ];
    archive.extend_from_slice(b"070701");
    for field in fields {
        write!(archive, "{field:08x}").unwrap();
    }
    let pad = |archive: &mut Vec<u8>| archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(contents);
    pad(archive);
}

pub(crate) fn manifest(options: Option<&str>) -> MachineManifest {
    let mut text = ": 1\nid: test-1\nname: test\nsummary: A test\ntype: kvm\n".to_owned();
    if let Some(options) = options {
        text.push_str(&format!("options: {options}\n"));
    }
    MachineManifest::parse(text.as_bytes(), "manifest").unwrap()
}

/// A guest that runs.
pub(crate) struct Guest {
    pub(crate) machine: Box<dyn Machine>,
    /// Everything of the test: `machine/`, `put/`, `run/`.
    pub(crate) folder: TempDir,
    console: Arc<Mutex<String>>,
}

/// Makes the folders of a test and says how to start the guest in them.
pub(crate) fn prepare(script: &str, options: Option<&str>) -> (TempDir, StartSpec) {
    let files = guest_files().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let machine = folder.path().join("machine");
    let put = folder.path().join("put");
    fs::create_dir(&machine).unwrap();
    fs::create_dir(&put).unwrap();
    fs::copy(files.kernel, machine.join("kernel")).unwrap();
    fs::copy(files.initrd, machine.join("initrd")).unwrap();
    fs::write(machine.join("cmdline"), "console=ttyS0 panic=0\n").unwrap();
    // Only root may read it: QEMU gets it as a descriptor.
    let disk = fs::File::create(machine.join("disk.img")).unwrap();
    disk.set_len(1 << 20).unwrap();
    fs::set_permissions(
        machine.join("disk.img"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    let spec = StartSpec {
        directory: machine,
        manifest: manifest(options),
        mac: None,
        cpus: 1,
        ram_kib: 192 * 1024,
        network: Network::None,
        accelerator: Accelerator::Tcg,
        disk: Disk::ThrowAway,
        tftp: Tftp {
            root: Root::new()
                .get_bytes("script", script.as_bytes())
                .put_any(put, 8 << 20),
            limits: Limits::wire(),
        },
        run_dir: folder.path().join("run"),
        user: None,
    };
    (folder, spec)
}

impl Guest {
    pub(crate) async fn start(folder: TempDir, spec: StartSpec) -> Self {
        let console_path = spec.run_dir.join("qemu/console");
        let machine = Qemu::new().start(spec).await.unwrap();
        let console = Arc::new(Mutex::new(String::new()));
        let mut stream = std::os::unix::net::UnixStream::connect(console_path).unwrap();
        let kept = Arc::clone(&console);
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut chunk) {
                let text = String::from_utf8_lossy(&chunk[..length]).into_owned();
                kept.lock().unwrap().push_str(&text);
            }
        });
        Self {
            machine,
            folder,
            console,
        }
    }

    pub(crate) async fn boot(script: &str) -> Self {
        let (folder, spec) = prepare(script, None);
        Self::start(folder, spec).await
    }

    pub(crate) fn console(&self) -> String {
        self.console.lock().unwrap().clone()
    }

    pub(crate) async fn event(&mut self) -> MachineEvent {
        match tokio::time::timeout(PATIENCE, self.machine.next_event()).await {
            Ok(event) => event,
            Err(_) => panic!("nothing happens; the console said:\n{}", self.console()),
        }
    }

    /// Waits for the upload of a file and gives what is in it.
    pub(crate) async fn uploaded(&mut self, wanted: &str) -> Vec<u8> {
        loop {
            match self.event().await {
                MachineEvent::Tftp(Event::Uploaded { name, path, .. }) if name == wanted => {
                    return fs::read(path).unwrap();
                }
                MachineEvent::Tftp(_) => {}
                other => panic!(
                    "{other:?} before {wanted}; the console said:\n{}",
                    self.console()
                ),
            }
        }
    }

    /// Waits for an event that is none of TFTP's.
    pub(crate) async fn other_event(&mut self) -> MachineEvent {
        loop {
            match self.event().await {
                MachineEvent::Tftp(_) => {}
                other => return other,
            }
        }
    }
}

/// QEMU's process, as the machine tells it to people.
pub(crate) fn process_of(info: &str) -> u32 {
    let (_, rest) = info.split_once("process ").unwrap();
    rest.split(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap()
        .parse()
        .unwrap()
}
