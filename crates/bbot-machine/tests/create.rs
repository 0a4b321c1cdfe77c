//! Makes a Debian machine for real and boots it as far as bootstrap protocol 1 goes without an agent.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bbot_machine::create::{self, Options, Suite};
use testkit::cache;

/// A guest under emulation, on a host that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(120);

/// The machine `debian-12`, made if it is not there yet; `None` where that cannot be.
fn machine() -> Option<PathBuf> {
    let destination = cache().join("created");
    fs::create_dir_all(cache()).unwrap();
    let lock = fs::File::create(cache().join("created.lock")).unwrap();
    lock.lock().unwrap();
    let scratch = cache().join("created.new");
    let _ = fs::remove_dir_all(&scratch);
    let options = Options::new(
        "debian-12",
        Suite::Bookworm,
        &scratch,
        &cache().join("base"),
    );
    match create::debian(&options, &mut |line| println!("{line}")) {
        Ok(created) => {
            println!("{created:?}");
            let id = format!("id: {}\n", created.id);
            // An image of the same base that others may be using stays.
            let manifest = fs::read_to_string(destination.join("manifest"));
            if manifest.is_ok_and(|manifest| manifest.contains(&id)) {
                fs::remove_dir_all(&scratch).unwrap();
            } else {
                let _ = fs::remove_dir_all(&destination);
                fs::rename(&scratch, &destination).unwrap();
            }
            Some(destination)
        }
        Err(error) => {
            testkit::missing("image", &error.to_string());
            None
        }
    }
}

/// A QEMU process that does not outlive its test.
struct Guest {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Guest {
    /// Boots the machine with QEMU's own network, which is told to look like the agent's wire: its DHCP server and its
    /// TFTP server (read only) stand in for the agent.
    fn boot(machine: &Path, disk: &Path, tftp: &Path, qmp: &Path) -> Self {
        let mut child = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-cpu", "max", "-M", "q35", "-m", "512"])
            .args(["-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio"])
            .arg("-kernel")
            .arg(machine.join("kernel"))
            .arg("-initrd")
            .arg(machine.join("initrd"))
            .arg("-append")
            .arg(fs::read_to_string(machine.join("cmdline")).unwrap())
            .arg("-drive")
            .arg(format!("file={},if=virtio,format=raw,cache=unsafe", disk.display()))
            .arg("-netdev")
            .arg(format!(
                "user,id=n,restrict=on,net=196.254.111.0/24,host=196.254.111.222,dhcpstart=196.254.111.2,tftp={}",
                tftp.display()
            ))
            .args(["-device", "virtio-net-pci,netdev=n,romfile="])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", qmp.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            lines,
            seen: Vec::new(),
        }
    }

    /// Waits for a line that contains `text`.
    fn until(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => self.seen.push(line),
                Err(_) => panic!("no {text:?} from the guest, but:\n{}", self.seen.join("\n")),
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn power_button(socket: &Path) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    answers.read_line(&mut line).unwrap();
    for command in ["qmp_capabilities", "system_powerdown"] {
        writeln!(stream, "{{\"execute\": \"{command}\"}}").unwrap();
        line.clear();
        while !line.contains("\"return\"") {
            line.clear();
            assert_ne!(answers.read_line(&mut line).unwrap(), 0);
        }
    }
}

#[test]
fn a_machine_is_made_boots_asks_for_its_bootstrap_and_obeys_the_power_button() {
    let Some(machine) = machine() else { return };
    let manifest = fs::read(machine.join("manifest")).unwrap();
    let manifest = bbot_manifest::MachineManifest::parse(&manifest, "manifest").unwrap();
    assert_eq!(manifest.header.name, "debian-12");
    assert!(manifest.header.id.starts_with("debian-12-"));

    if !testkit::program("qemu-system-x86_64", "qemu") {
        return;
    }
    let dir = tempfile::tempdir_in(cache()).unwrap();
    let disk = dir.path().join("disk.img");
    let copied = Command::new("cp")
        .args(["--sparse=always", "--reflink=auto"])
        .args([&machine.join("disk.img"), &disk])
        .status()
        .unwrap();
    assert!(copied.success());
    let tftp = dir.path().join("tftp");
    fs::create_dir(&tftp).unwrap();
    fs::write(
        tftp.join("bootstrap"),
        "echo \"host $1 user $(id -u) build $(id -u build)\"\n\
         for tool in gcc c++ make cmake autoreconf libtoolize pkg-config ip; do command -v $tool >/dev/null || echo \"lost $tool\"; done\n\
         echo \"address $(ip -4 -o addr show eth0 | grep -o '196.254.111.2/24')\"\n\
         echo 'int main(void) { return 7; }' >/tmp/t.c; gcc -o /tmp/t /tmp/t.c; /tmp/t; echo \"compiled $?\"\n",
    )
    .unwrap();

    let qmp = dir.path().join("qmp");
    let mut guest = Guest::boot(&machine, &disk, &tftp, &qmp);
    assert!(
        guest
            .until("host ")
            .contains("host 196.254.111.222 user 0 build 1000")
    );
    assert!(guest.until("address").contains("196.254.111.2/24"));
    assert!(guest.until("compiled").contains("compiled 7"));
    assert!(
        !guest.seen.iter().any(|line| line.contains("lost ")),
        "{:?}",
        guest.seen
    );

    power_button(&qmp);
    guest.until("power off");
    let deadline = Instant::now() + PATIENCE;
    while guest.child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the guest does not power off");
        thread::sleep(Duration::from_millis(20));
    }
    // Left clean: a journal to be replayed has the flag "needs recovery" set.
    let features = Command::new("dumpe2fs").arg("-h").arg(&disk).output();
    if let Ok(features) = features {
        let text = String::from_utf8_lossy(&features.stdout).into_owned();
        assert!(!text.contains("needs_recovery"), "{text}");
    }
}
