//! The one place that knows which kinds of machines there are and what runs each.

use bbot_manifest::{MachineKind, MachineManifest};
use std::path::Path;

use crate::machine::{BoxFuture, Error, Hypervisor, Machine, StartSpec, require_disk};
use crate::nspawn::Nspawn;
use crate::qemu::Qemu;

/// Starts machines of every kind, each in what its manifest says.
#[derive(Debug, Clone, Default)]
pub struct Hypervisors {
    qemu: Qemu,
    nspawn: Nspawn,
}

impl Hypervisors {
    /// Those of the caller's choice.
    #[must_use]
    pub fn new(qemu: Qemu, nspawn: Nspawn) -> Self {
        Self { qemu, nspawn }
    }

    /// What runs machines of this kind.
    fn of(&self, kind: MachineKind) -> &dyn Hypervisor {
        match kind {
            MachineKind::Kvm => &self.qemu,
            MachineKind::Nspawn => &self.nspawn,
        }
    }
}

impl Hypervisor for Hypervisors {
    fn start(&self, spec: StartSpec) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        self.of(spec.manifest.kind).start(spec)
    }
}

/// Whether a machine's directory has what a machine of its kind is started from.
///
/// # Errors
///
/// What is missing, and how to mend it.
pub fn require_files(manifest: &MachineManifest, directory: &Path) -> Result<(), Error> {
    match manifest.kind {
        MachineKind::Kvm => require_disk(manifest, directory),
        MachineKind::Nspawn => {
            crate::nspawn::rootfs::check(&manifest.header.name, directory).map(drop)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_files_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let said = |kind: &str| {
            let text = format!(": 1\nid: m-1\nname: m\nsummary: m\ntype: {kind}\n");
            let manifest = MachineManifest::parse(text.as_bytes(), "manifest").unwrap();
            require_files(&manifest, directory.path())
                .unwrap_err()
                .to_string()
        };
        assert!(said("kvm").contains("disk.img"));
        assert!(said("nspawn").contains("rootfs"));
    }
}
