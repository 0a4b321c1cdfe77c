//! This process, as owner records name it.

use super::record::Record;
use super::{OwnerError, record};

/// This agent instance: a name for people, the boot, and the process with its start time, which
/// together no other process ever has. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    name: String,
    boot_id: String,
    pid: u32,
    start_time: u64,
}

impl Instance {
    /// Finds out about this process. `name` is for people: the toolchain and instance of an agent,
    /// or the command of the tool.
    ///
    /// # Errors
    /// When the name is not one line of text, or `/proc` is not there.
    pub fn new(name: &str) -> Result<Self, OwnerError> {
        let name = name.trim();
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(OwnerError::Name {
                name: name.escape_debug().to_string(),
            });
        }
        Ok(Self {
            name: name.to_string(),
            boot_id: record::boot_id()?,
            pid: std::process::id(),
            start_time: record::own_start_time()?,
        })
    }

    /// The name for people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The record of a temporary of this instance.
    pub(super) fn record(&self, temporary: &str) -> Record {
        Record {
            temporary: temporary.to_string(),
            instance: self.name.clone(),
            boot_id: self.boot_id.clone(),
            pid: self.pid,
            start_time: self.start_time,
        }
    }
}
