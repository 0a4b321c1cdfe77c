//! Who made what is temporary, so that it can be cleaned up when its maker is gone, and nothing
//! else ever is.
//!
//! Every temporary `<name>` of ours has a record `.<name>.owner` beside it, a small manifest. It is
//! written and flushed before the temporary is made and removed after it is gone, and its maker
//! holds a lock (`flock`) on the record itself for as long as it uses the temporary. So:
//!
//! - a directory without a record is never touched: it is somebody's (an agent of the original's, a
//!   revision, a bootstrapped machine);
//! - a record whose lock is held has a living owner, whatever else it says: the kernel gives a lock
//!   up with the process, and descriptors are not inherited by programs it starts;
//! - a record whose lock is free has been left, by a crash, a power cut, or a deletion that failed:
//!   [`sweep`] deletes the temporary and then the record;
//! - where the file system knows no locks, the boot id and the process id with its start time
//!   decide ([`is_gone`]).
//!
//! The folders of runs ([`OwnedFolder`]) have such records too.
//!
//! A machines directory belongs to one host: on a file system shared by hosts the locks must work
//! across them (NFS does so unless mounted with `local_lock`).

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::durable::{self, DurableError};
use crate::volume::VolumeError;

mod folder;
mod instance;
mod record;
mod sweep;
mod temporary;

pub use folder::{OwnedFolder, sweep_folders};
pub use instance::Instance;
pub(crate) use record::process;
pub use record::{Facts, Lock, Process, Reason, Record, Verdict, is_gone};
pub(crate) use sweep::{Examined, examine};
pub use sweep::{Kept, SweepProblem, Swept, sweep};
pub use temporary::Temporary;
pub(crate) use temporary::{LockedRecord, Sync, remove_record, write_record};

/// What went wrong with a temporary or its record.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OwnerError {
    /// The system refused.
    #[error("unable to {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// An instance's name has more than one line, or none.
    #[error("invalid instance name '{name}': it must be one line of text")]
    Name {
        /// The name.
        name: String,
    },
    /// A record that is not one, or not of the file it lies in.
    #[error("{} is no owner record of ours: {reason}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The volume refused.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Something could not be flushed to the disk.
    #[error(transparent)]
    Durable(#[from] DurableError),
}

impl OwnerError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    }

    /// Whether somebody else was quicker, so that another try from the start is worth it
    /// ([`VolumeError::is_race`]).
    #[must_use]
    pub fn is_race(&self) -> bool {
        matches!(self, Self::Volume(error) if error.is_race())
    }
}

/// `.<name>.owner` beside `<name>`.
fn record_path(path: &Path) -> Result<PathBuf, OwnerError> {
    Ok(durable::hidden_sibling(path, "owner")?)
}

/// Whether `path` has an owner record, so is a temporary of ours.
#[must_use]
pub fn is_owned(path: &Path) -> bool {
    record_path(path).is_ok_and(|record| record.symlink_metadata().is_ok())
}
