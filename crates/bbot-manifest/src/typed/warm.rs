//! The warm machine's manifest: what its saved state needs to be restored.

use super::fields::{Builder, Stream};
use crate::error::ManifestError;
use crate::serializer::{SerializeError, Style, serialize};

/// `warm.manifest` of a machine that was saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmManifest {
    /// The version of QEMU that saved it, in QEMU's words: no other reads the state.
    pub qemu: String,
    /// The machine type.
    pub machine_type: String,
    /// The processor's model.
    pub cpu_model: String,
    /// How instructions were run.
    pub accelerator: String,
    /// The host's processor, where the guest sees it as it is; empty elsewhere.
    pub host_cpu: Option<String>,
    /// The SHA-256 of all that QEMU was told, 64 lower-case hexadecimal digits.
    pub options: String,
    /// Virtual processors.
    pub cpus: u64,
    /// Memory in KiB.
    pub ram: u64,
    /// The SHA-256 of the devices' state.
    pub state: String,
    /// Who waits for an answer in the guest: its address and port.
    pub waiting: String,
    /// What it has asked: a TFTP request, in hexadecimal digits.
    pub request: String,
}

impl WarmManifest {
    /// Reads a stream of exactly one warm manifest. `source` names it in errors.
    ///
    /// # Errors
    /// What is wrong, with its line and column.
    pub fn parse(input: &[u8], source: &str) -> Result<Self, ManifestError> {
        Stream::read(input, source, |s| {
            let fields = s.expect("warm")?;
            let host_cpu = fields.optional("host-cpu")?;
            Ok(Self {
                qemu: fields.required("qemu")?.filled()?,
                machine_type: fields.required("machine-type")?.filled()?,
                cpu_model: fields.required("cpu-model")?.filled()?,
                accelerator: fields.required("accelerator")?.filled()?,
                host_cpu: host_cpu.map(|f| f.filled()).transpose()?,
                options: fields.required("options-sha256")?.hex64()?,
                cpus: fields.required("cpus")?.number()?,
                ram: fields.required("ram")?.number()?,
                state: fields.required("state-sha256")?.hex64()?,
                waiting: fields.required("waiting")?.filled()?,
                request: fields.required("request")?.filled()?,
            })
        })
    }

    /// Writes it.
    ///
    /// # Errors
    /// A value with characters that no manifest may hold.
    pub fn serialize(&self) -> Result<String, SerializeError> {
        let mut builder = Builder::default();
        builder
            .put("qemu", &self.qemu)
            .put("machine-type", &self.machine_type)
            .put("cpu-model", &self.cpu_model)
            .put("accelerator", &self.accelerator)
            .put_some("host-cpu", self.host_cpu.as_ref())
            .put("options-sha256", &self.options)
            .put("cpus", &self.cpus)
            .put("ram", &self.ram)
            .put("state-sha256", &self.state)
            .put("waiting", &self.waiting)
            .put("request", &self.request);
        serialize(&[builder.manifest()], Style::wire())
    }
}
