//! The task: which package to build, where and how.

use std::fmt;

use super::Era;
use super::fields::{Builder, Field, Fields, Stream};
use crate::error::{ManifestError, ParseError};
use crate::manifest::Manifest;
use crate::package_version::PackageVersion;
use crate::quoting;
use crate::serializer::{SerializeError, Style, serialize};

/// What a repository is. Later era; absent, its URL says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RepositoryType {
    /// An archive-based package repository.
    Pkg,
    /// A git repository.
    Git,
    /// A directory.
    Dir,
}

impl fmt::Display for RepositoryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pkg => "pkg",
            Self::Git => "git",
            Self::Dir => "dir",
        })
    }
}

/// A field `auxiliary-machine[-<name>]` or `auxiliary-environment[-<name>]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auxiliary {
    /// The `<name>` in the field's name; empty when there is none.
    pub name: String,
    /// The machine's name, or the environment's text.
    pub value: String,
}

/// A build task, as a controller gives it out and a worker reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The package's name.
    pub name: String,
    /// The package's version, as the controller wrote it: the result must
    /// repeat it, so it is kept to the letter. It reads as a
    /// [`crate::PackageVersion`], or as one with an epoch of 2017 (`1~2.3`).
    pub version: String,
    /// Where the package is: `repository-url`, or `repository` in 2017.
    pub repository_url: String,
    /// What is at that URL. Later era.
    pub repository_type: Option<RepositoryType>,
    /// Fingerprints of repository certificates to trust; `yes` trusts all.
    pub trust: Vec<String>,
    /// Requirements of the package. Later era.
    pub requires: Vec<String>,
    /// Separate test packages. Later era.
    pub tests: Vec<String>,
    /// Separate example packages. Later era.
    pub examples: Vec<String>,
    /// Separate benchmark packages. Later era.
    pub benchmarks: Vec<String>,
    /// Of the previous build. Later era.
    pub dependency_checksum: Option<String>,
    /// The name of the machine to build on, one of those offered.
    pub machine: String,
    /// Auxiliary machines. Later era.
    pub auxiliary_machines: Vec<Auxiliary>,
    /// The target triplet.
    pub target: String,
    /// The name of the worker's environment. Later era.
    pub environment: Option<String>,
    /// Filled in by the agent when auxiliary machines are up. Later era.
    pub auxiliary_environments: Vec<Auxiliary>,
    /// Configuration of the target, a list for [`quoting::split`]:
    /// `target-config`, or `config` in 2017.
    pub target_config: Option<String>,
    /// Configuration of the package, such a list as well. Later era.
    pub package_config: Option<String>,
    /// Whether the target configuration is that of the build system itself.
    /// Later era.
    pub host: Option<bool>,
    /// More regexes that tell warnings in logs.
    pub warning_regex: Vec<String>,
    /// Where to stop for a person. Later era.
    pub interactive: Option<String>,
    /// Of the previous build. Later era.
    pub worker_checksum: Option<String>,
}

impl Task {
    /// A task with the required fields and nothing else.
    pub fn new(
        name: impl Into<String>,
        version: impl Into<String>,
        repository_url: impl Into<String>,
        machine: impl Into<String>,
        target: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            repository_url: repository_url.into(),
            repository_type: None,
            trust: Vec::new(),
            requires: Vec::new(),
            tests: Vec::new(),
            examples: Vec::new(),
            benchmarks: Vec::new(),
            dependency_checksum: None,
            machine: machine.into(),
            auxiliary_machines: Vec::new(),
            target: target.into(),
            environment: None,
            auxiliary_environments: Vec::new(),
            target_config: None,
            package_config: None,
            host: None,
            warning_regex: Vec::new(),
            interactive: None,
            worker_checksum: None,
        }
    }

    /// Reads a stream of exactly one task manifest. `source` names it in errors.
    ///
    /// # Errors
    /// What is wrong, with its line and column.
    pub fn parse(input: &[u8], source: &str) -> Result<Self, ManifestError> {
        Stream::read(input, source, |s| Self::from_fields(&s.expect("task")?))
    }

    /// Writes it for a reader of `era`.
    ///
    /// # Errors
    /// A value with characters that no manifest may hold.
    pub fn serialize(&self, era: Era) -> Result<String, SerializeError> {
        serialize(&[self.to_manifest(era)], Style::wire())
    }

    pub(super) fn from_fields(fields: &Fields<'_>) -> Result<Self, ParseError> {
        let repository = fields.either("repository-url", "repository")?;
        let repository = repository.ok_or_else(|| fields.missing("repository-url"))?;
        let repository_type = match fields.optional("repository-type")? {
            None => None,
            Some(field) => Some(match field.text() {
                "pkg" => RepositoryType::Pkg,
                "git" => RepositoryType::Git,
                "dir" => RepositoryType::Dir,
                _ => return Err(field.invalid("none of `pkg`, `git` and `dir`")),
            }),
        };
        let text = |name| Ok(fields.optional(name)?.map(|f| f.owned()));
        let list = |name| fields.all(name).map(|f| f.owned()).collect();
        let host = fields.optional("host")?;
        Ok(Self {
            name: fields.required("name")?.filled()?,
            version: version(fields.required("version")?)?,
            repository_url: repository.filled()?,
            repository_type,
            trust: list("trust"),
            requires: list("requires"),
            tests: list("tests"),
            examples: list("examples"),
            benchmarks: list("benchmarks"),
            dependency_checksum: text("dependency-checksum")?,
            machine: fields.required("machine")?.filled()?,
            auxiliary_machines: auxiliaries(fields, "auxiliary-machine")?,
            target: fields.required("target")?.filled()?,
            environment: text("environment")?,
            auxiliary_environments: auxiliaries(fields, "auxiliary-environment")?,
            target_config: fields.either("target-config", "config")?.map(|f| f.owned()),
            package_config: text("package-config")?,
            host: host.map(|f| f.boolean()).transpose()?,
            warning_regex: warning_regex(fields)?,
            interactive: text("interactive")?,
            worker_checksum: text("worker-checksum")?,
        })
    }

    pub(super) fn to_manifest(&self, era: Era) -> Manifest {
        let mut b = Builder::default();
        b.put("name", &self.name).put("version", &self.version);
        // One value with a list is what both eras of the original send.
        let warnings = quoting::join(&self.warning_regex);
        let warnings = Some(warnings).filter(|list| !list.is_empty());
        match era {
            Era::Y2017 => {
                b.put("repository", &self.repository_url)
                    .put_all("trust", &self.trust)
                    .put("machine", &self.machine)
                    .put("target", &self.target)
                    .put_some("config", self.target_config.as_ref())
                    .put_some("warning-regex", warnings.as_ref());
            }
            Era::Later => {
                b.put("repository-url", &self.repository_url)
                    .put_some("repository-type", self.repository_type.as_ref())
                    .put_all("trust", &self.trust)
                    .put_all("requires", &self.requires)
                    .put_all("tests", &self.tests)
                    .put_all("examples", &self.examples)
                    .put_all("benchmarks", &self.benchmarks)
                    .put_some("dependency-checksum", self.dependency_checksum.as_ref())
                    .put("machine", &self.machine);
                put_auxiliaries(&mut b, "auxiliary-machine", &self.auxiliary_machines);
                b.put("target", &self.target)
                    .put_some("environment", self.environment.as_ref());
                put_auxiliaries(
                    &mut b,
                    "auxiliary-environment",
                    &self.auxiliary_environments,
                );
                b.put_some("target-config", self.target_config.as_ref())
                    .put_some("package-config", self.package_config.as_ref())
                    .put_some("host", self.host.as_ref())
                    .put_some("warning-regex", warnings.as_ref())
                    .put_some("interactive", self.interactive.as_ref())
                    .put_some("worker-checksum", self.worker_checksum.as_ref());
            }
        }
        b.manifest()
    }
}

/// One field is a list whose elements may be quoted. Where the field is repeated,
/// each is one regex, blanks and all, unless quotes enclose the whole of it: a
/// list would make of `^warning: .+` a regex that matches everything.
fn warning_regex(fields: &Fields<'_>) -> Result<Vec<String>, ParseError> {
    let all: Vec<Field<'_>> = fields.all("warning-regex").collect();
    if let [field] = all[..] {
        return quoting::split(field.text()).map_err(|e| field.invalid(e));
    }
    let one = |field: &Field<'_>| {
        let text = field.text();
        let is_quoted = text.starts_with(['"', '\'']) && text.ends_with(['"', '\'']);
        match quoting::split(text) {
            Ok(list) if is_quoted && list.len() == 1 => list.concat(),
            _ => text.to_owned(),
        }
    };
    Ok(all.iter().map(one).collect())
}

/// Checks that a text is a package version, perhaps with an epoch of 2017
/// (`2~1.3`) in front.
fn version(field: Field<'_>) -> Result<String, ParseError> {
    let text = field.filled()?;
    let plain = match text.split_once('~') {
        Some((epoch, rest)) if epoch.bytes().all(|b| b.is_ascii_digit()) => rest,
        _ => &text,
    };
    PackageVersion::parse(plain).map_err(|e| field.invalid(e))?;
    Ok(text)
}

fn auxiliaries(fields: &Fields<'_>, stem: &str) -> Result<Vec<Auxiliary>, ParseError> {
    let mut all = Vec::new();
    for field in fields.fields() {
        let Some(rest) = field.name().strip_prefix(stem) else {
            continue;
        };
        let name = match rest.strip_prefix('-') {
            Some(name) if !name.is_empty() => name,
            None if rest.is_empty() => "",
            _ => continue,
        };
        fields.optional(field.name())?;
        all.push(Auxiliary {
            name: name.to_owned(),
            value: field.owned(),
        });
    }
    Ok(all)
}

fn put_auxiliaries(builder: &mut Builder, stem: &str, all: &[Auxiliary]) {
    for auxiliary in all {
        let name = match auxiliary.name.as_str() {
            "" => stem.to_owned(),
            name => format!("{stem}-{name}"),
        };
        builder.put(name, &auxiliary.value);
    }
}
