//! Toolchains and bootstrapped machines.

use std::collections::BTreeMap;

use super::fields::{Builder, Fields, Stream};
use super::machine::MachineManifest;
use crate::error::{ManifestError, ParseError};
use crate::manifest::Manifest;
use crate::serializer::{SerializeError, Style, serialize};
use crate::standard_version::StandardVersion;

/// Which toolchain a machine was bootstrapped with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolchainManifest {
    /// The toolchain's id: it changes with whatever is in the toolchain. Not
    /// empty (the seed writes `bogus` where it knows none).
    pub id: String,
}

impl ToolchainManifest {
    /// Reads a stream of exactly one toolchain manifest. `source` names it in errors.
    ///
    /// # Errors
    /// What is wrong, with its line and column.
    pub fn parse(input: &[u8], source: &str) -> Result<Self, ManifestError> {
        Stream::read(input, source, |s| {
            Self::from_fields(&s.expect("toolchain")?)
        })
    }

    /// Writes it as a file.
    ///
    /// # Errors
    /// An id with characters that no manifest may hold.
    pub fn serialize(&self) -> Result<String, SerializeError> {
        serialize(&[self.to_manifest()], Style::wire())
    }

    fn from_fields(fields: &Fields<'_>) -> Result<Self, ParseError> {
        Ok(Self {
            id: fields.required("id")?.filled()?,
        })
    }

    fn to_manifest(&self) -> Manifest {
        Builder::default().put("id", &self.id).manifest()
    }
}

/// What a worker prints when it bootstraps: the versions of its parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootstrapManifest {
    /// The version of each part by its name; `bbot` for the field `bbot-version`.
    pub versions: BTreeMap<String, StandardVersion>,
}

impl BootstrapManifest {
    /// The part whose presence says that the worker is ours.
    pub const MARK: &'static str = "bbot-worker";
    const SUFFIX: &'static str = "-version";

    /// What the worker of this version prints: the four parts of the original,
    /// all with our version, and our mark.
    pub fn ours() -> Self {
        let version: StandardVersion = env!("CARGO_PKG_VERSION")
            .parse()
            .expect("a released package version is a standard version");
        let parts = ["bbot", "libbbot", "libbpkg", "libbutl", Self::MARK];
        Self {
            versions: parts.map(|part| (part.to_owned(), version.clone())).into(),
        }
    }

    /// Whether a worker of ours wrote it, so that its versions can be compared
    /// with our own.
    pub fn is_ours(&self) -> bool {
        self.versions.contains_key(Self::MARK)
    }

    /// Reads a stream of exactly one bootstrap manifest. `source` names it in errors.
    ///
    /// # Errors
    /// What is wrong, with its line and column.
    pub fn parse(input: &[u8], source: &str) -> Result<Self, ManifestError> {
        Stream::read(input, source, |s| {
            Self::from_fields(&s.expect("bootstrap")?)
        })
    }

    /// Writes it as a file.
    ///
    /// # Errors
    /// A part's name that no manifest may hold.
    pub fn serialize(&self) -> Result<String, SerializeError> {
        serialize(&[self.to_manifest()], Style::wire())
    }

    fn from_fields(fields: &Fields<'_>) -> Result<Self, ParseError> {
        let mut versions = BTreeMap::new();
        for (part, field) in fields.with_suffix(Self::SUFFIX) {
            fields.optional(field.name())?;
            versions.insert(part.to_owned(), field.parsed()?);
        }
        Ok(Self { versions })
    }

    fn to_manifest(&self) -> Manifest {
        let mut builder = Builder::default();
        for (part, version) in &self.versions {
            builder.put(format!("{part}{}", Self::SUFFIX), version);
        }
        builder.manifest()
    }
}

/// The manifest of a bootstrapped machine: a list of three.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrappedMachine {
    /// The machine as it was bootstrapped, its MAC address filled in.
    pub machine: MachineManifest,
    /// The toolchain that it was bootstrapped with.
    pub toolchain: ToolchainManifest,
    /// What the worker said of itself.
    pub bootstrap: BootstrapManifest,
}

impl BootstrappedMachine {
    /// Reads the list of machine, toolchain and bootstrap manifest. `source`
    /// names it in errors.
    ///
    /// # Errors
    /// What is wrong, with its line and column.
    pub fn parse(input: &[u8], source: &str) -> Result<Self, ManifestError> {
        Stream::read(input, source, |s| {
            Ok(Self {
                machine: MachineManifest::from_fields(&s.expect("machine")?)?,
                toolchain: ToolchainManifest::from_fields(&s.expect("toolchain")?)?,
                bootstrap: BootstrapManifest::from_fields(&s.expect("bootstrap")?)?,
            })
        })
    }

    /// Writes it as a file.
    ///
    /// # Errors
    /// A value with characters that no manifest may hold.
    pub fn serialize(&self) -> Result<String, SerializeError> {
        let manifests = [
            self.machine.to_manifest(),
            self.toolchain.to_manifest(),
            self.bootstrap.to_manifest(),
        ];
        serialize(&manifests, Style::wire())
    }
}
