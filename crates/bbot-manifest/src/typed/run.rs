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
    /// The machine is to be saved: once nothing more will happen in it by itself, the worker asks for
    /// the run manifest again under this name, and goes on with the answer.
    pub save: Option<String>,
    /// The machine was restored: what its worker makes right before anything else runs.
    pub fresh: Option<Fresh>,
}

/// What a guest that was restored from saved memory has to make its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fresh {
    /// The name on TFTP of the time: nanoseconds since 1970 (UTC) when it was asked for, as a
    /// decimal number.
    pub clock: String,
    /// Entropy of which no other guest has heard: 32 bytes in 64 lower-case hexadecimal digits.
    pub seed: String,
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
            let clock = fields.optional("clock")?;
            let seed = fields.optional("seed")?;
            let fresh = match (clock, seed) {
                (Some(clock), Some(seed)) => Some(Fresh {
                    clock: clock.filled()?,
                    seed: seed.hex64()?,
                }),
                (None, None) => None,
                (Some(_), None) => return Err(fields.missing("seed")),
                (None, Some(_)) => return Err(fields.missing("clock")),
            };
            let save = fields.optional("save")?;
            let segments = fields.optional("log-segments")?;
            Ok(Self {
                agent: fields.required("agent")?.filled()?,
                log_segments: segments.map(|f| f.number()).transpose()?,
                source,
                save: save.map(|f| f.filled()).transpose()?,
                fresh,
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
        builder.put_some("save", self.save.as_ref());
        if let Some(fresh) = &self.fresh {
            builder.put("clock", &fresh.clock).put("seed", &fresh.seed);
        }
        serialize(&[builder.manifest()], Style::wire())
    }
}
