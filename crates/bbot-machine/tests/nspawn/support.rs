//! A container for the tests: its files, and how to speak to it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bbot_machine::accel::Accelerator;
use bbot_machine::machine::{
    Disk, Hypervisor, Machine, MachineEvent, Memory, Network, StartSpec, Tftp,
};
use bbot_machine::nspawn::Nspawn;
use bbot_manifest::MachineManifest;
use bbot_tftp::{Event, Limits, Root};
use tempfile::TempDir;

/// On a busy host, while others compile.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// True: containers cannot be made here, and nobody requires it.
pub(crate) fn must_skip() -> bool {
    !(testkit::root()
        && testkit::program("systemd-nspawn", "nspawn")
        && testkit::require("busybox", Path::new("/bin/busybox").is_file()))
}

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
trap 'poweroff -f' TERM
ifconfig lo up
for card in eth0 eth1; do
  [ -e /sys/class/net/$card ] || continue
  ifconfig $card up
  udhcpc -i $card -n -q -t 20 -T 1 -s /udhcpc
done
tftp -g -r script -l /script 196.254.111.222 && sh /script
echo "script ended with $?"
while :; do sleep 1000 & wait $!; done
"#;

const UDHCPC: &str = r#"#!/bin/sh
case $1 in bound|renew)
  ifconfig $interface $ip netmask $subnet
  for r in $router; do route add default gw $r dev $interface; done
  for d in $dns; do echo "nameserver $d" >> /etc/resolv.conf; done
  echo "$interface: ip=$ip subnet=$subnet router=$router dns=$dns lease=$lease server=$serverid"
esac
"#;

/// A system of a busybox, without anything else.
pub(crate) fn make_rootfs(rootfs: &Path) {
    for folder in [
        "bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "usr",
    ] {
        fs::create_dir_all(rootfs.join(folder)).unwrap();
        fs::set_permissions(rootfs.join(folder), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    for (path, text) in [("sbin/init", INIT), ("udhcpc", UDHCPC)] {
        fs::write(rootfs.join(path), text).unwrap();
        fs::set_permissions(rootfs.join(path), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nbuild:x:1000:1000::/:/bin/sh\n",
    )
    .unwrap();
}

pub(crate) fn manifest() -> MachineManifest {
    let text = ": 1\nid: test-1\nname: test\nsummary: A test\ntype: nspawn\n";
    MachineManifest::parse(text.as_bytes(), "manifest").unwrap()
}

/// Makes the folders of a test and says how to start the guest in them.
pub(crate) fn prepare(script: &str) -> (TempDir, StartSpec) {
    let folder = tempfile::tempdir().unwrap();
    let machine = folder.path().join("machine");
    let put = folder.path().join("put");
    fs::create_dir(&machine).unwrap();
    fs::create_dir(&put).unwrap();
    make_rootfs(&machine.join("rootfs"));
    let spec = StartSpec {
        directory: machine,
        manifest: manifest(),
        mac: None,
        cpus: 1,
        ram_kib: 192 * 1024,
        network: Network::None,
        accelerator: Accelerator::Tcg,
        disk: Disk::ThrowAway,
        memory: Memory::Booted,
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

/// A container that runs.
pub(crate) struct Guest {
    pub(crate) machine: Box<dyn Machine>,
    /// Everything of the test: `machine/`, `put/`, `run/`.
    pub(crate) folder: TempDir,
    console: Arc<Mutex<String>>,
}

impl Guest {
    pub(crate) async fn start_in(nspawn: &Nspawn, folder: TempDir, spec: StartSpec) -> Self {
        let console_path = spec.run_dir.join("nspawn/console");
        let machine = nspawn.start(spec).await.unwrap();
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

    pub(crate) async fn start(folder: TempDir, spec: StartSpec) -> Self {
        Self::start_in(&Nspawn::new(), folder, spec).await
    }

    pub(crate) async fn boot(script: &str) -> Self {
        let (folder, spec) = prepare(script);
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
    pub(crate) async fn uploaded(&mut self, wanted: &str) -> String {
        loop {
            match self.event().await {
                MachineEvent::Tftp(Event::Uploaded { name, path, .. }) if name == wanted => {
                    return String::from_utf8(fs::read(path).unwrap()).unwrap();
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

/// What the machine tells to people behind a word: a process's number.
pub(crate) fn number_after(info: &str, word: &str) -> u32 {
    let (_, rest) = info.split_once(word).unwrap();
    rest.split(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

/// The container's first process, as the host numbers it.
pub(crate) fn leader_of(info: &str) -> u32 {
    number_after(info, "--target ")
}

/// What starts the container, and ends it.
pub(crate) fn process_of(info: &str) -> u32 {
    number_after(info, "process ")
}

/// Whether a process has not ended; one that nobody has waited for yet has.
pub(crate) fn is_running(process: u32) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat"))
        .ok()
        .and_then(|stat| Some(!stat.rsplit_once(')')?.1.trim_start().starts_with('Z')))
        .unwrap_or(false)
}
