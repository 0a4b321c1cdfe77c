//! The initial RAM disk of a Debian machine: a static busybox, the few drivers that reach the disk and the network,
//! and a script. Small, because under emulation every driver that is looked for costs boot time.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use super::cpio;

/// The first process in the RAM disk.
pub(super) const INIT: &[u8] = include_bytes!("guest/initrd-init.sh");

/// Drivers that a machine needs before anything else can be loaded from its disk, by module name. What is built into
/// the kernel is skipped, and what these depend on is found in `modules.dep`. `button` and `evdev` are the power button;
/// `pvpanic` tells the agent that the kernel has died.
const DRIVERS: [&str; 9] = [
    "virtio_pci",
    "virtio_blk",
    "ext4",
    "virtio_net",
    "virtio_rng",
    "button",
    "evdev",
    "pvpanic_mmio",
    "pvpanic_pci",
];

/// The parts of the base system that go into the RAM disk.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// The static busybox.
    pub(super) busybox: Vec<u8>,
    /// The kernel's `modules.dep`.
    pub(super) dependencies: String,
    /// The modules, by path below the version's directory (`kernel/...`).
    pub(super) modules: BTreeMap<String, Vec<u8>>,
}

/// Module name of a path: `kernel/drivers/char/hw_random/virtio-rng.ko` is `virtio_rng`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.split(".ko").next().unwrap_or(file);
    stem.replace('-', "_")
}

/// Paths of the modules to load, each after all that it depends on.
///
/// Read off `modules.dep`, whose lines are `path: path...`. The dependencies there are not in a useful order among
/// themselves (`virtio` needs `virtio_ring`), so each is followed to its own line.
pub(super) fn load_order(dependencies: &str, wanted: &[&str]) -> Vec<String> {
    let mut lines: BTreeMap<String, (&str, Vec<&str>)> = BTreeMap::new();
    for line in dependencies.lines() {
        if let Some((path, needs)) = line.split_once(':') {
            lines.insert(
                module_name(path),
                (path, needs.split_whitespace().collect()),
            );
        }
    }
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for name in wanted {
        visit(name, &lines, &mut seen, &mut order);
    }
    order
}

fn visit(
    name: &str,
    lines: &BTreeMap<String, (&str, Vec<&str>)>,
    seen: &mut BTreeSet<String>,
    order: &mut Vec<String>,
) {
    // Marked before its dependencies are followed, so that a circle in a broken file ends.
    if !seen.insert(name.to_owned()) {
        return;
    }
    let Some((path, needs)) = lines.get(name) else {
        return;
    };
    for need in needs {
        visit(&module_name(need), lines, seen, order);
    }
    order.push((*path).to_owned());
}

/// Writes the RAM disk, gzip-compressed.
///
/// # Errors
/// What the writer reports, and a module that `modules.dep` names but that is not there.
pub(super) fn write(parts: &Parts, to: impl Write) -> io::Result<()> {
    let gzip = flate2::write::GzEncoder::new(to, flate2::Compression::new(6));
    let mut archive = cpio::Writer::new(gzip);
    for dir in ["bin", "dev", "lib", "proc", "root", "sys"] {
        archive.directory(dir)?;
    }
    // The kernel opens it for the first process, before any device file system is there.
    archive.character_device("dev/console", 5, 1)?;
    archive.file("init", 0o755, INIT)?;
    archive.file("bin/busybox", 0o755, &parts.busybox)?;
    for applet in ["sh", "mount", "insmod", "sleep", "cat", "switch_root"] {
        archive.link(&format!("bin/{applet}"), "busybox")?;
    }
    let mut list = String::new();
    for path in load_order(&parts.dependencies, &DRIVERS) {
        let Some(module) = parts.modules.get(&path) else {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("the kernel's package has no {path}, which its modules.dep names"),
            ));
        };
        let file = format!("{}.ko", module_name(&path));
        archive.file(&format!("lib/{file}"), 0o644, module)?;
        list.push_str(&file);
        list.push('\n');
    }
    archive.file("modules", 0o644, list.as_bytes())?;
    archive.finish()?.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "\
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/net/virtio_net.ko: kernel/net/core/failover.ko kernel/drivers/net/net_failover.ko kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/net/core/failover.ko:
kernel/drivers/char/hw_random/virtio-rng.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/a.ko: kernel/b.ko
kernel/b.ko: kernel/a.ko
";

    #[test]
    fn each_module_comes_after_what_it_needs() {
        let order: Vec<String> = load_order(DEPENDENCIES, &["virtio_net", "virtio_rng", "ext4"])
            .iter()
            .map(|path| module_name(path))
            .collect();
        assert_eq!(
            order,
            [
                "failover",
                "net_failover",
                "virtio_ring",
                "virtio",
                "virtio_net",
                "virtio_rng"
            ]
        );
    }

    #[test]
    fn a_circle_ends() {
        assert_eq!(
            load_order(DEPENDENCIES, &["a"]),
            ["kernel/b.ko", "kernel/a.ko"]
        );
    }

    #[test]
    fn a_module_that_is_missing_is_named() {
        let parts = Parts {
            dependencies: "kernel/virtio_blk.ko:\n".to_owned(),
            ..Parts::default()
        };
        let error = write(&parts, Vec::new()).unwrap_err();
        assert!(error.to_string().contains("kernel/virtio_blk.ko"));
    }
}
