//! The task response: a controller's answer to a task request.

use std::collections::BTreeMap;

use super::Era;
use super::fields::{Builder, Fields, Stream, is_hex64};
use super::task::Task;
use crate::error::{ManifestError, ParseError};
use crate::serializer::{SerializeError, Style, serialize};

/// Whether a text is a challenge that an agent may sign: 64 lower-case
/// hexadecimal digits and nothing else.
pub fn is_challenge(text: &str) -> bool {
    is_hex64(text)
}

/// A task with its session, or the word that there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskResponse {
    /// Names the build to the controller, opaque to others. Empty when there is
    /// no task; then nothing else is set.
    pub session: String,
    /// What an agent with a key must sign, 64 lower-case hexadecimal digits.
    pub challenge: Option<String>,
    /// Where the result goes. Set when there is a task.
    pub result_url: Option<String>,
    /// Where artifacts go, by their type (`<type>-upload-url`). Later era.
    pub upload_urls: BTreeMap<String, String>,
    /// Of the previous build. Later era.
    pub agent_checksum: Option<String>,
    /// The task. Set when there is one.
    pub task: Option<Task>,
}

impl TaskResponse {
    const UPLOAD: &'static str = "-upload-url";

    /// The answer that there is no task.
    pub fn none() -> Self {
        Self::default()
    }

    /// Reads a task response. `source` names it in errors.
    ///
    /// # Errors
    /// What is wrong, with its line and column.
    pub fn parse(input: &[u8], source: &str) -> Result<Self, ManifestError> {
        Stream::read(input, source, |s| {
            let fields = s.expect("task response")?;
            let mut response = Self::from_fields(&fields)?;
            if !response.session.is_empty() {
                response.task = Some(Task::from_fields(&s.expect("task")?)?);
            }
            Ok(response)
        })
    }

    fn from_fields(fields: &Fields<'_>) -> Result<Self, ParseError> {
        let session = fields.required("session")?.owned();
        let challenge = fields.optional("challenge")?;
        let result_url = fields.optional("result-url")?;
        let agent_checksum = fields.optional("agent-checksum")?;
        let mut upload_urls = BTreeMap::new();
        for (kind, field) in fields.with_suffix(Self::UPLOAD) {
            fields.optional(field.name())?;
            upload_urls.insert(kind.to_owned(), field.filled()?);
        }
        if session.is_empty() {
            let uploads = fields.with_suffix(Self::UPLOAD).map(|(_, f)| f).next();
            if let Some(field) = challenge.or(result_url).or(agent_checksum).or(uploads) {
                return Err(field.misplaced("with an empty session"));
            }
        } else if result_url.is_none() {
            return Err(fields.missing("result-url"));
        }
        Ok(Self {
            session,
            challenge: challenge.map(|f| f.hex64()).transpose()?,
            result_url: result_url.map(|f| f.filled()).transpose()?,
            upload_urls,
            agent_checksum: agent_checksum.map(|f| f.owned()),
            task: None,
        })
    }

    /// Writes it for an agent of `era`.
    ///
    /// # Errors
    /// A value with characters that no manifest may hold.
    pub fn serialize(&self, era: Era) -> Result<String, SerializeError> {
        let mut builder = Builder::default();
        builder.put("session", &self.session);
        if !self.session.is_empty() {
            builder
                .put_some("challenge", self.challenge.as_ref())
                .put_some("result-url", self.result_url.as_ref());
            if era == Era::Later {
                for (kind, url) in &self.upload_urls {
                    builder.put(format!("{kind}{}", Self::UPLOAD), url);
                }
                builder.put_some("agent-checksum", self.agent_checksum.as_ref());
            }
        }
        let mut manifests = vec![builder.manifest()];
        if let Some(task) = self.task.as_ref().filter(|_| !self.session.is_empty()) {
            manifests.push(task.to_manifest(era));
        }
        serialize(&manifests, Style::wire())
    }
}
