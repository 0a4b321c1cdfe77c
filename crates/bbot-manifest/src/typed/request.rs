//! The task request: what an agent has to offer.

use std::fmt;

use super::Era;
use super::fields::{Builder, Stream};
use super::machine::{MachineHeader, NAME_LIMIT};
use crate::error::ManifestError;
use crate::serializer::{SerializeError, Style, serialize};
use crate::standard_version::StandardVersion;

/// Whether an agent takes builds that stop for a person to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InteractiveMode {
    /// Only builds that do not (the default).
    False,
    /// Only builds that do.
    True,
    /// Any build.
    Both,
}

impl fmt::Display for InteractiveMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::False => "false",
            Self::True => "true",
            Self::Both => "both",
        })
    }
}

/// What an agent sends to ask for a task: itself, then its machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskRequest {
    /// The build host's name, of at most [`NAME_LIMIT`] bytes.
    pub agent: String,
    /// The toolchain's name, of at most [`NAME_LIMIT`] bytes: `default`, `public`.
    pub toolchain_name: String,
    /// The toolchain's version.
    pub toolchain_version: StandardVersion,
    /// Which builds it takes. Later era.
    pub interactive_mode: Option<InteractiveMode>,
    /// How a person logs in. Later era.
    pub interactive_login: Option<String>,
    /// SHA-256 of the agent's public key, 64 lower-case hexadecimal digits.
    pub fingerprint: Option<String>,
    /// Memory for auxiliary machines in KiB; absent is no limit. Later era.
    pub auxiliary_ram: Option<u64>,
    /// The machines that it offers, at least one.
    pub machines: Vec<MachineHeader>,
}

impl TaskRequest {
    /// Reads a task request. `source` names it in errors.
    ///
    /// # Errors
    /// What is wrong, with its line and column.
    pub fn parse(input: &[u8], source: &str) -> Result<Self, ManifestError> {
        Stream::read(input, source, |s| {
            let fields = s.expect("task request")?;
            let interactive_mode = match fields.optional("interactive-mode")? {
                None => None,
                Some(field) => Some(match field.text() {
                    "false" => InteractiveMode::False,
                    "true" => InteractiveMode::True,
                    "both" => InteractiveMode::Both,
                    _ => return Err(field.invalid("none of `false`, `true` and `both`")),
                }),
            };
            let fingerprint = fields.optional("fingerprint")?;
            let ram = fields.optional("auxiliary-ram")?;
            let login = fields.optional("interactive-login")?;
            let mut request = Self {
                agent: fields.required("agent")?.word(NAME_LIMIT)?,
                toolchain_name: fields.required("toolchain-name")?.word(NAME_LIMIT)?,
                toolchain_version: fields.required("toolchain-version")?.parsed()?,
                interactive_mode,
                interactive_login: login.map(|f| f.filled()).transpose()?,
                fingerprint: fingerprint.map(|f| f.hex64()).transpose()?,
                auxiliary_ram: ram.map(|f| f.number()).transpose()?,
                machines: vec![MachineHeader::from_fields(&s.expect("machine header")?)?],
            };
            while let Some(machine) = s.next("machine header") {
                request.machines.push(MachineHeader::from_fields(&machine)?);
            }
            Ok(request)
        })
    }

    /// Writes it for a controller of `era`.
    ///
    /// # Errors
    /// A value with characters that no manifest may hold.
    pub fn serialize(&self, era: Era) -> Result<String, SerializeError> {
        let mut builder = Builder::default();
        builder
            .put("agent", &self.agent)
            .put("toolchain-name", &self.toolchain_name)
            .put("toolchain-version", &self.toolchain_version);
        if era == Era::Later {
            builder
                .put_some("interactive-mode", self.interactive_mode.as_ref())
                .put_some("interactive-login", self.interactive_login.as_ref());
        }
        builder.put_some("fingerprint", self.fingerprint.as_ref());
        if era == Era::Later {
            builder.put_some("auxiliary-ram", self.auxiliary_ram.as_ref());
        }
        let mut manifests = vec![builder.manifest()];
        manifests.extend(self.machines.iter().map(|m| m.to_manifest(era)));
        serialize(&manifests, Style::wire())
    }
}
