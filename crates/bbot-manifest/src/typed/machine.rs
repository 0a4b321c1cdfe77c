//! Machines: what a controller hears of them, and what an agent knows.

use std::fmt;
use std::str::FromStr;

use super::Era;
use super::fields::{Builder, Fields, Stream};
use crate::error::{ManifestError, ParseError};
use crate::manifest::Manifest;
use crate::quoting::{self, QuotingError};
use crate::serializer::{SerializeError, Style, serialize};

/// What a machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MachineRole {
    /// It builds packages (the default).
    Build,
    /// It stands by a building machine: a data base, say.
    Auxiliary,
}

impl fmt::Display for MachineRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Build => "build",
            Self::Auxiliary => "auxiliary",
        })
    }
}

/// What a machine runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MachineKind {
    /// A virtual machine.
    Kvm,
    /// A container.
    Nspawn,
}

impl fmt::Display for MachineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Nspawn => "nspawn",
        })
    }
}

/// The address of a network card, written `de:ad:be:ef:01:02`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A text that is no MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a MAC address like de:ad:be:ef:01:02")]
pub struct ParseMacError(String);

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let error = || ParseMacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(error)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(error());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(error()),
        }
    }
}

/// The longest name or id of an agent, a toolchain or a machine, in bytes: controllers keep them.
pub const NAME_LIMIT: usize = 256;

/// The longest summary of a machine, in bytes: each build keeps its machine's.
pub const SUMMARY_LIMIT: usize = 512;

/// What a controller hears of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineHeader {
    /// Names this revision of the machine; it changes with whatever can change
    /// a build. At most [`NAME_LIMIT`] bytes.
    pub id: String,
    /// The machine's name, of at most [`NAME_LIMIT`] bytes: `linux_debian_12-gcc_13.1`.
    pub name: String,
    /// One line for people, of at most [`SUMMARY_LIMIT`] bytes.
    pub summary: String,
    /// What it is for; absent is [`MachineRole::Build`]. Later era.
    pub role: Option<MachineRole>,
    /// The least memory it runs with, in KiB. Later era.
    pub ram_minimum: Option<u64>,
    /// The most memory it has use for, in KiB. Later era.
    pub ram_maximum: Option<u64>,
}

impl MachineHeader {
    /// Reads a stream of exactly one machine header. `source` names it in errors.
    ///
    /// # Errors
    /// What is wrong, with its line and column.
    pub fn parse(input: &[u8], source: &str) -> Result<Self, ManifestError> {
        Stream::read(input, source, |s| {
            Self::from_fields(&s.expect("machine header")?)
        })
    }

    /// Writes it alone, as `--dump-machines` does.
    ///
    /// # Errors
    /// A value with characters that no manifest may hold.
    pub fn serialize(&self, era: Era) -> Result<String, SerializeError> {
        serialize(&[self.to_manifest(era)], Style::wire())
    }

    pub(super) fn from_fields(fields: &Fields<'_>) -> Result<Self, ParseError> {
        let role = match fields.optional("role")? {
            None => None,
            Some(field) => Some(match field.text() {
                "build" => MachineRole::Build,
                "auxiliary" => MachineRole::Auxiliary,
                _ => return Err(field.invalid("neither `build` nor `auxiliary`")),
            }),
        };
        let number = |name| fields.optional(name)?.map(|f| f.number()).transpose();
        Ok(Self {
            id: fields.required("id")?.word(NAME_LIMIT)?,
            name: fields.required("name")?.word(NAME_LIMIT)?,
            summary: fields.required("summary")?.word(SUMMARY_LIMIT)?,
            role,
            ram_minimum: number("ram-minimum")?,
            ram_maximum: number("ram-maximum")?,
        })
    }

    pub(super) fn put(&self, builder: &mut Builder, era: Era) {
        builder
            .put("id", &self.id)
            .put("name", &self.name)
            .put("summary", &self.summary);
        if era == Era::Later {
            builder
                .put_some("role", self.role.as_ref())
                .put_some("ram-minimum", self.ram_minimum.as_ref())
                .put_some("ram-maximum", self.ram_maximum.as_ref());
        }
    }

    pub(super) fn to_manifest(&self, era: Era) -> Manifest {
        let mut builder = Builder::default();
        self.put(&mut builder, era);
        builder.manifest()
    }
}

/// What an agent knows of a machine: the file `manifest` in its revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineManifest {
    /// What the controller hears of it.
    pub header: MachineHeader,
    /// What it runs in.
    pub kind: MachineKind,
    /// The address of its network card; absent, the agent makes one up and
    /// keeps it in the bootstrapped machine's manifest.
    pub mac: Option<Mac>,
    /// Options for the hypervisor as they stand in the manifest, in place of the
    /// default devices; see [`MachineManifest::option_list`].
    pub options: Option<String>,
    /// What has changed from revision to revision, for people.
    pub changes: Vec<String>,
}

impl MachineManifest {
    /// Reads a stream of exactly one machine manifest. `source` names it in errors.
    ///
    /// # Errors
    /// What is wrong, with its line and column.
    pub fn parse(input: &[u8], source: &str) -> Result<Self, ManifestError> {
        Stream::read(input, source, |s| Self::from_fields(&s.expect("machine")?))
    }

    /// Writes it as a file. Fields of the later era are written only if they
    /// are set, so what was read from a machine of 2017 stays readable by the
    /// original of that time.
    ///
    /// # Errors
    /// A value with characters that no manifest may hold.
    pub fn serialize(&self) -> Result<String, SerializeError> {
        serialize(&[self.to_manifest()], Style::wire())
    }

    /// The options taken apart at blanks, one level of quotes removed; `None`
    /// when the machine has none of its own.
    ///
    /// # Errors
    /// A quote that nothing closes. A manifest that was parsed has none.
    pub fn option_list(&self) -> Result<Option<Vec<String>>, QuotingError> {
        self.options.as_deref().map(quoting::split).transpose()
    }

    pub(super) fn from_fields(fields: &Fields<'_>) -> Result<Self, ParseError> {
        let kind = fields.required("type")?;
        let options = fields.optional("options")?;
        if let Some(field) = options {
            quoting::split(field.text()).map_err(|e| field.invalid(e))?;
        }
        Ok(Self {
            header: MachineHeader::from_fields(fields)?,
            kind: match kind.text() {
                "kvm" => MachineKind::Kvm,
                "nspawn" => MachineKind::Nspawn,
                _ => return Err(kind.invalid("neither `kvm` nor `nspawn`")),
            },
            mac: fields.optional("mac")?.map(|f| f.parsed()).transpose()?,
            options: options.map(|f| f.owned()),
            changes: fields.all("changes").map(|f| f.owned()).collect(),
        })
    }

    pub(super) fn to_manifest(&self) -> Manifest {
        let mut builder = Builder::default();
        self.header.put(&mut builder, Era::Later);
        builder
            .put("type", &self.kind)
            .put_some("mac", self.mac.as_ref())
            .put_some("options", self.options.as_ref())
            .put_all("changes", &self.changes);
        builder.manifest()
    }
}
