//! A guest for the tests: its files, and how to speak to it.

use std::fs;
use std::io::{Read, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bbot_machine::accel::Accelerator;
use bbot_machine::machine::{
    Disk, Hypervisor, Machine, MachineEvent, Memory, Network, StartSpec, Tftp,
};
use bbot_machine::qemu::Qemu;
use bbot_manifest::MachineManifest;
use bbot_tftp::{Event, Limits, Root};
use tempfile::TempDir;
use testkit::guest::{self, GuestFile};

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

/// After what all begin with.
const INIT: &str = r#"for card in eth0 eth1; do
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

pub(crate) fn guest_files() -> Result<GuestFiles, String> {
    static FILES: std::sync::OnceLock<Result<GuestFiles, String>> = std::sync::OnceLock::new();
    FILES.get_or_init(make_guest_files).clone()
}

fn make_guest_files() -> Result<GuestFiles, String> {
    let kernel = guest::kernel()?;
    let power_button = GuestFile {
        name: "etc/acpi/PWRF/00000080",
        is_program: true,
        contents: b"#!/bin/sh\npoweroff -f\n",
    };
    let archive = guest::initrd(INIT, &[power_button])?;
    let cache = testkit::cache().join("qemu-guest");
    let initrd = cache.join("initrd");
    // Tests run in processes of their own, some of them in process namespaces, where ids are alike: each
    // finds a whole one.
    tempfile::NamedTempFile::new_in(&cache)
        .and_then(|mut fresh| {
            fresh.write_all(&archive)?;
            fresh.persist(&initrd).map_err(|error| error.error)
        })
        .map_err(|error| format!("{}: {error}", initrd.display()))?;
    Ok(GuestFiles { kernel, initrd })
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

    /// The end of the console, for people: how a kernel begins is always the same.
    fn last_lines(&self) -> String {
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    pub(crate) async fn event(&mut self) -> MachineEvent {
        match tokio::time::timeout(PATIENCE, self.machine.next_event()).await {
            Ok(event) => event,
            Err(_) => panic!(
                "nothing happens; the console said last:\n{}",
                self.last_lines()
            ),
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
                    "{other:?} before {wanted}; the console said last:\n{}",
                    self.last_lines()
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
