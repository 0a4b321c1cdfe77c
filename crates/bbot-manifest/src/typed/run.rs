//! The run manifest: what an agent of ours offers to a worker of ours.

use super::fields::{Builder, Stream};
use crate::error::ManifestError;
use crate::serializer::{SerializeError, Style, serialize};

/// The source archive that the agent hands to the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its name on TFTP.
    pub name: String,
    /// Its SHA-256, 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// What the worker fetches as `run.manifest` before anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunManifest {
    /// Name and version of the agent: `bbot-agent/0.1.0`.
    pub agent: String,
    /// The format of log segments that the agent takes (1), if it takes them.
    pub log_segments: Option<u64>,
    /// The source, unless it is in the task's repository.
    pub source: Option<Source>,
}

impl RunManifest {
    /// Reads a stream of exactly one run manifest. `source` names it in errors.
    ///
    /// # Errors
    /// What is wrong, with its line and column.
    pub fn parse(input: &[u8], source: &str) -> Result<Self, ManifestError> {
        Stream::read(input, source, |s| {
            let fields = s.expect("run")?;
            let name = fields.optional("source")?;
            let sha256 = fields.optional("source-sha256")?;
            let source = match (name, sha256) {
                (Some(name), Some(sha256)) => Some(Source {
                    name: name.filled()?,
                    sha256: sha256.hex64()?,
                }),
                (None, None) => None,
                (Some(_), None) => return Err(fields.missing("source-sha256")),
                (None, Some(_)) => return Err(fields.missing("source")),
            };
            let segments = fields.optional("log-segments")?;
            Ok(Self {
                agent: fields.required("agent")?.filled()?,
                log_segments: segments.map(|f| f.number()).transpose()?,
                source,
            })
        })
    }

    /// Writes it for the worker.
    ///
    /// # Errors
    /// A value with characters that no manifest may hold.
    pub fn serialize(&self) -> Result<String, SerializeError> {
        let mut builder = Builder::default();
        builder
            .put("agent", &self.agent)
            .put_some("log-segments", self.log_segments.as_ref());
        if let Some(source) = &self.source {
            builder
                .put("source", &source.name)
                .put("source-sha256", &source.sha256);
        }
        serialize(&[builder.manifest()], Style::wire())
    }
}
