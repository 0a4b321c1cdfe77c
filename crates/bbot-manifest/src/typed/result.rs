//! The result of a build, and the request that carries it to the controller.

use std::collections::HashMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::Era;
use super::fields::{Builder, Fields, Stream};
use super::status::Status;
use crate::error::{ManifestError, ParseError};
use crate::manifest::Manifest;
use crate::serializer::{SerializeError, Style, serialize};
use crate::text::{log_text, validate_value};

/// The longest name of an operation, in bytes.
pub const OPERATION_LIMIT: usize = 128;

/// Most operations that a result may have. The original knows about ten; a controller keeps a row for each.
pub const OPERATIONS: usize = 256;

/// How one operation (`configure`, `update`, `test`) of a build ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationResult {
    /// The operation's name, of at most [`OPERATION_LIMIT`] bytes.
    pub name: String,
    /// How it ended.
    pub status: Status,
    /// What it printed. Characters that no manifest may hold are replaced when
    /// it is written (see [`crate::log_text`]).
    pub log: String,
}

/// What a worker uploads and an agent passes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildResult {
    /// The package's name.
    pub name: String,
    /// The package's version as the worker wrote it. It may be anything but
    /// empty, so that no log is lost over it; `0` where the worker did not
    /// come to know.
    pub version: String,
    /// How the build ended.
    pub status: Status,
    /// The operations in the order they were performed, at most [`OPERATIONS`].
    pub operations: Vec<OperationResult>,
    /// Of this build. Later era.
    pub worker_checksum: Option<String>,
    /// Of this build. Later era.
    pub dependency_checksum: Option<String>,
}

impl BuildResult {
    /// A result without operations.
    pub fn new(name: impl Into<String>, version: impl Into<String>, status: Status) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            status,
            operations: Vec::new(),
            worker_checksum: None,
            dependency_checksum: None,
        }
    }

    /// Reads a stream of exactly one result manifest. `source` names it in errors.
    ///
    /// Operations come in the order of their statuses; one without a log has an
    /// empty one.
    ///
    /// # Errors
    /// What is wrong, with its line and column.
    pub fn parse(input: &[u8], source: &str) -> Result<Self, ManifestError> {
        Stream::read(input, source, |s| Self::from_fields(&s.expect("result")?))
    }

    /// Writes it for a reader of `era`: all statuses first, then all logs.
    ///
    /// # Errors
    /// A value other than a log with characters that no manifest may hold.
    pub fn serialize(&self, era: Era) -> Result<String, SerializeError> {
        serialize(&[self.to_manifest(era)], Style::wire())
    }

    fn from_fields(fields: &Fields<'_>) -> Result<Self, ParseError> {
        let mut operations: Vec<OperationResult> = Vec::new();
        let mut places = HashMap::new();
        for (name, field) in fields.with_suffix("-status") {
            fields.optional(field.name())?;
            if name.len() > OPERATION_LIMIT {
                let why = format!("names an operation with more than {OPERATION_LIMIT} bytes");
                return Err(field.misplaced(why));
            }
            if operations.len() == OPERATIONS {
                return Err(field.misplaced(format!("is one of more than {OPERATIONS} operations")));
            }
            places.insert(name, operations.len());
            operations.push(OperationResult {
                name: name.to_owned(),
                status: field.parsed()?,
                log: String::new(),
            });
        }
        for (name, field) in fields.with_suffix("-log") {
            fields.optional(field.name())?;
            let Some(&place) = places.get(name) else {
                return Err(field.misplaced("without a status of that operation"));
            };
            operations[place].log = field.owned();
        }
        let text = |name| Ok(fields.optional(name)?.map(|f| f.owned()));
        Ok(Self {
            name: fields.required("name")?.filled()?,
            version: fields.required("version")?.filled()?,
            status: fields.required("status")?.parsed()?,
            operations,
            worker_checksum: text("worker-checksum")?,
            dependency_checksum: text("dependency-checksum")?,
        })
    }

    fn to_manifest(&self, era: Era) -> Manifest {
        let mut builder = Builder::default();
        builder
            .put("name", &self.name)
            .put("version", &self.version)
            .put("status", &self.status.for_era(era));
        for operation in &self.operations {
            let status = operation.status.for_era(era);
            builder.put(format!("{}-status", operation.name), &status);
        }
        if era == Era::Later {
            builder
                .put_some("worker-checksum", self.worker_checksum.as_ref())
                .put_some("dependency-checksum", self.dependency_checksum.as_ref());
        }
        for operation in &self.operations {
            let name = format!("{}-log", operation.name);
            // A result must never be lost over what a compiler printed.
            if validate_value(operation.log.as_bytes(), "").is_ok() {
                builder.put(name, &operation.log);
            } else {
                builder.put(name, &log_text(operation.log.as_bytes()));
            }
        }
        builder.manifest()
    }
}

/// What an agent posts when a task is done: the session, then the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultRequest {
    /// As the task response had it.
    pub session: String,
    /// The answer to the challenge, if there was one; base64 in the manifest.
    pub challenge: Option<Vec<u8>>,
    /// Of this agent. Later era.
    pub agent_checksum: Option<String>,
    /// The result.
    pub result: BuildResult,
}

impl ResultRequest {
    /// Reads a result request. `source` names it in errors.
    ///
    /// # Errors
    /// What is wrong, with its line and column.
    pub fn parse(input: &[u8], source: &str) -> Result<Self, ManifestError> {
        Stream::read(input, source, |s| {
            let fields = s.expect("result request")?;
            let challenge = match fields.optional("challenge")? {
                None => None,
                Some(field) => {
                    let base64: String = field.text().split_ascii_whitespace().collect();
                    let bytes = BASE64_STANDARD.decode(base64);
                    Some(bytes.map_err(|e| field.invalid(format!("not base64: {e}")))?)
                }
            };
            let checksum = fields.optional("agent-checksum")?;
            Ok(Self {
                session: fields.required("session")?.filled()?,
                challenge,
                agent_checksum: checksum.map(|f| f.owned()),
                result: BuildResult::from_fields(&s.expect("result")?)?,
            })
        })
    }

    /// Writes it for a controller of `era`.
    ///
    /// # Errors
    /// A value other than a log with characters that no manifest may hold.
    pub fn serialize(&self, era: Era) -> Result<String, SerializeError> {
        let mut builder = Builder::default();
        builder.put("session", &self.session);
        if let Some(challenge) = &self.challenge {
            builder.put("challenge", &wrapped_base64(challenge));
        }
        if era == Era::Later {
            builder.put_some("agent-checksum", self.agent_checksum.as_ref());
        }
        let manifests = [builder.manifest(), self.result.to_manifest(era)];
        serialize(&manifests, Style::wire())
    }
}

/// Base64 with a newline between every 76 characters, as the original has it.
fn wrapped_base64(bytes: &[u8]) -> String {
    const LINE: usize = 76;
    let mut text = BASE64_STANDARD.encode(bytes);
    let mut at = LINE;
    while at < text.len() {
        text.insert(at, '\n');
        at += LINE + 1;
    }
    text
}
