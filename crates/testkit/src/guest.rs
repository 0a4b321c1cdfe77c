//! The smallest guest there is: Debian's kernel, and an initial RAM disk with a static busybox, the few drivers for the
//! wire and a disk, and a script. It boots in two to three seconds where QEMU translates.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache;

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

/// How `/init` begins in all of them: programs, file systems, drivers, the loopback.
const BEGIN: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules/list); do insmod /modules/$module.ko; done
ifconfig lo up
";

/// What busybox's DHCP client runs once it has an address.
pub const UDHCPC: &str = r#"#!/bin/sh
case $1 in bound|renew)
  ifconfig $interface $ip netmask $subnet
  for r in $router; do route add default gw $r dev $interface; done
  echo "$interface: ip=$ip subnet=$subnet router=$router dns=$dns lease=$lease server=$serverid"
esac
"#;

/// A file of the RAM disk: its name without a leading `/`, whether it may be run, and what is in it.
#[derive(Debug, Clone, Copy)]
pub struct GuestFile<'a> {
    /// The name.
    pub name: &'a str,
    /// Whether it is a program.
    pub is_program: bool,
    /// The contents.
    pub contents: &'a [u8],
}

/// The kernel, fetched once and kept.
///
/// # Errors
/// What is missing on this host.
pub fn kernel() -> Result<PathBuf, String> {
    only(&kernel_root()?.join("boot"), "vmlinuz-")
}

/// A static busybox of this host.
///
/// # Errors
/// There is none.
pub fn busybox() -> Result<Vec<u8>, String> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|path| fs::read(path).ok())
        .filter(|bytes| is_static(bytes))
        .ok_or_else(|| "busybox-static is not installed".to_owned())
}

/// An initial RAM disk: `/init`, which does this once programs, drivers and the loopback are there, `/bin/busybox`, `/udhcpc` for its DHCP client, `/modules/list` with the names of
/// `/modules/*.ko` in the order in which to load them, the folders that a system mounts things on, and these files.
///
/// # Errors
/// What is missing on this host.
pub fn initrd(init: &str, files: &[GuestFile<'_>]) -> Result<Vec<u8>, String> {
    let modules = only(&kernel_root()?.join("lib/modules"), "")?.join("kernel");
    let busybox = busybox()?;
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "proc", "sys", "modules"] {
        archive.folder(folder);
    }
    archive.file("bin/busybox", 0o755, &busybox);
    archive.file("init", 0o755, format!("{BEGIN}{init}").as_bytes());
    archive.file("udhcpc", 0o755, UDHCPC.as_bytes());
    for file in files {
        archive.file(
            file.name,
            if file.is_program { 0o755 } else { 0o644 },
            file.contents,
        );
    }
    let mut list = String::new();
    for module in MODULES {
        let path = modules.join(format!("{module}.ko"));
        let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let name = module.rsplit('/').next().unwrap_or(module);
        archive.file(&format!("modules/{name}.ko"), 0o644, &bytes);
        list.push_str(name);
        list.push('\n');
    }
    archive.file("modules/list", 0o644, list.as_bytes());
    Ok(archive.finish())
}

fn run_to_end(command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }
}

/// What the kernel's package holds, unpacked.
fn kernel_root() -> Result<PathBuf, String> {
    let cache = cache().join("qemu-guest");
    let text = |error: std::io::Error| format!("{}: {error}", cache.display());
    fs::create_dir_all(&cache).map_err(text)?;
    // Tests run in processes of their own: one fetches, the others wait.
    let lock = fs::File::create(cache.join("lock")).map_err(text)?;
    lock.lock().map_err(text)?;
    let root = cache.join("root");
    if !root.is_dir() {
        fetch_kernel(&cache, &root)?;
    }
    Ok(root)
}

fn fetch_kernel(cache: &Path, root: &Path) -> Result<(), String> {
    let depends =
        run_to_end(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
    let package = depends
        .split_whitespace()
        .find(|word| {
            // Not the one for debugging, nor the meta package itself.
            word.starts_with("linux-image-") && word.contains("cloud-amd64") && word.len() > 25
        })
        .ok_or("Debian's package linux-image-cloud-amd64 is not known here")?
        .to_owned();
    let work = cache.join(format!("fetch.{}", std::process::id()));
    let text = |error: std::io::Error| format!("{}: {error}", work.display());
    fs::create_dir(&work).map_err(text)?;
    let fetched = run_to_end(
        Command::new("apt-get")
            .arg("download")
            .arg(&package)
            .current_dir(&work),
    )
    .and_then(|_| only(&work, "linux-image-"))
    .and_then(|archive| {
        run_to_end(
            Command::new("dpkg")
                .arg("-x")
                .arg(archive)
                .arg(work.join("root")),
        )
    })
    .and_then(|_| fs::rename(work.join("root"), root).map_err(text));
    fs::remove_dir_all(&work).map_err(text)?;
    fetched
}

/// An ELF file without an interpreter.
fn is_static(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF") && !bytes.windows(9).take(4096).any(|part| part == b"/ld-linux")
}

/// The one thing in the folder whose name begins so.
fn only(folder: &Path, prefix: &str) -> Result<PathBuf, String> {
    fs::read_dir(folder)
        .map_err(|error| format!("{}: {error}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
        })
        .ok_or_else(|| format!("{} has no {prefix}*", folder.display()))
}

/// A cpio archive of the format "newc", as the kernel reads it.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    folders: Vec<String>,
}

impl Archive {
    /// Adds a folder, and those above it, unless they are there.
    fn folder(&mut self, name: &str) {
        let ends = name
            .match_indices('/')
            .map(|(at, _)| at)
            .chain([name.len()]);
        for end in ends {
            let folder = &name[..end];
            if !self.folders.iter().any(|known| known == folder) {
                self.folders.push(folder.to_owned());
                self.entry(folder, 0o040_755, b"");
            }
        }
    }

    fn file(&mut self, name: &str, mode: u32, contents: &[u8]) {
        if let Some((folder, _)) = name.rsplit_once('/') {
            self.folder(folder);
        }
        self.entry(name, 0o100_000 | mode, contents);
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) {
        let size = |length: usize| u32::try_from(length).expect("guests' files are small");
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [
            0,
            mode,
            0,
            0,
            1,
            0,
            size(contents.len()),
            0,
            0,
            0,
            0,
            size(name.len() + 1),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            write!(self.bytes, "{field:08x}").expect("memory takes what is written");
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_what_is_in_them_and_once() {
        let mut archive = Archive::default();
        archive.file("etc/acpi/PWRF/1", 0o755, b"x");
        archive.file("etc/passwd", 0o644, b"abc");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let places: Vec<usize> = [
            "etc\0",
            "etc/acpi\0",
            "etc/acpi/PWRF\0",
            "etc/acpi/PWRF/1\0",
            "etc/passwd\0",
            "TRAILER!!!\0",
        ]
        .iter()
        .map(|name| text.find(name).unwrap())
        .collect();
        assert!(places.is_sorted(), "{places:?}");
        assert_eq!(text.matches("070701").count(), 6);
        // The mode of the program, and the length of the file.
        assert!(text.contains("000081ed") && text.contains("00000003"));
    }
}
