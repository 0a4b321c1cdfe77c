//! Cleaning up after owners that are gone.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::record::{self, Facts, Lock, RECORD_LIMIT, Reason, Record, Verdict, is_gone, try_lock};
use super::temporary::{delete_all, is_same_file, remove_record};
use super::{OwnerError, record_path};
use crate::layout::MachineDir;
use crate::volume::{detect, half_deleted, unfinished};

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Swept {
    /// The temporaries that were deleted, and why.
    pub removed: Vec<(PathBuf, Reason)>,
    /// The temporaries whose owners live.
    pub kept: Vec<Kept>,
    /// What could not be looked at or deleted; the rest has been swept nevertheless.
    pub problems: Vec<SweepProblem>,
}

/// A temporary in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The temporary.
    pub path: PathBuf,
    /// Its owner, for people.
    pub owner: String,
}

/// One temporary, or directory, that a sweep could not deal with.
#[derive(Debug)]
pub struct SweepProblem {
    /// The machine.
    pub machine: String,
    /// What went wrong.
    pub error: OwnerError,
}

/// Deletes the temporaries of ours, of whatever toolchain, whose owners are gone; touches nothing
/// that has no owner record, and nothing whose owner lives. Safe to run at any time, by any number
/// of processes. Blocks for as long as the deletions take.
#[must_use]
pub fn sweep(machines: &[MachineDir]) -> Swept {
    let mut swept = Swept::default();
    for machine in machines {
        let records = match records(machine) {
            Ok(records) => records,
            Err(error) => {
                swept.problem(machine, error);
                continue;
            }
        };
        for name in records {
            let path = machine.path.join(name);
            match sweep_one(machine, &path) {
                Ok(Outcome::Nothing) => {}
                Ok(Outcome::Removed(reason)) => {
                    tracing::info!(
                        path = %path.display(),
                        "deleted {}, left behind: {reason}",
                        path.display(),
                    );
                    swept.removed.push((path, reason));
                }
                Ok(Outcome::Kept(owner)) => swept.kept.push(Kept { path, owner }),
                Err(error) => swept.problem(machine, error),
            }
        }
    }
    swept
}

impl Swept {
    fn problem(&mut self, machine: &MachineDir, error: OwnerError) {
        self.problems.push(SweepProblem {
            machine: machine.name.clone(),
            error,
        });
    }
}

/// The names of the temporaries of a machine that have records.
fn records(machine: &MachineDir) -> Result<Vec<String>, OwnerError> {
    let failed = |e| OwnerError::io("read directory", &machine.path, e);
    let prefix = format!("{}-", machine.name);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&machine.path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(temporary) = name
            .to_str()
            .and_then(|name| name.strip_prefix('.')?.strip_suffix(".owner"))
            .filter(|temporary| temporary.starts_with(&prefix))
        {
            names.push(temporary.to_string());
        }
    }
    names.sort();
    Ok(names)
}

enum Outcome {
    /// There was nothing left but, perhaps, a record.
    Nothing,
    Removed(Reason),
    Kept(String),
}

fn sweep_one(machine: &MachineDir, path: &Path) -> Result<Outcome, OwnerError> {
    let record_path = record_path(path)?;
    match examine(path)? {
        Examined::Nothing => Ok(Outcome::Nothing),
        // The temporary is made later. If there is one nevertheless, it is not ours to touch.
        Examined::Unfilled { .. } if is_left(path)? => Err(OwnerError::Record {
            path: record_path,
            reason: "it is empty".to_string(),
        }),
        Examined::Unfilled { .. } => {
            remove_record(&record_path)?;
            Ok(Outcome::Nothing)
        }
        Examined::Kept(owner) => Ok(Outcome::Kept(owner)),
        Examined::Gone { reason, .. } => {
            let left = is_left(path)?;
            delete_all(&*detect(&machine.path)?, path)?;
            remove_record(&record_path)?;
            Ok(if left {
                Outcome::Removed(reason)
            } else {
                Outcome::Nothing
            })
        }
    }
}

/// What is to be made of an owner record. Whoever holds a result with a lock is the only one to
/// clean up, so that two sweeps never delete the same thing.
#[derive(Debug)]
pub(crate) enum Examined {
    /// There is none, or there is none any more.
    Nothing,
    /// A crash between making and filling the record has left it.
    Unfilled { _lock: File },
    /// The owner lives: its name for people.
    Kept(String),
    /// The owner is gone.
    Gone {
        reason: Reason,
        /// The whole record.
        text: String,
        _lock: File,
    },
}

/// Looks at the owner record of `path`.
pub(crate) fn examine(path: &Path) -> Result<Examined, OwnerError> {
    let record_path = record_path(path)?;
    let failed = |e| OwnerError::io("read owner record", &record_path, e);
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&record_path);
    let mut file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Examined::Nothing),
        Err(e) => return Err(failed(e)),
    };
    let malformed = |reason: String| OwnerError::Record {
        path: record_path.clone(),
        reason,
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(malformed("it is not a file".to_string()));
    }
    // From here on the lock is ours if it was free.
    let lock = try_lock(&file).map_err(failed)?;
    let mut bytes = Vec::new();
    (&mut file)
        .take(RECORD_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if lock == Lock::Held {
        let owner = std::str::from_utf8(&bytes)
            .ok()
            .and_then(|text| Record::parse(text).ok())
            .map_or_else(
                || "another process".to_string(),
                |record| record.to_string(),
            );
        return Ok(Examined::Kept(owner));
    }
    // Its owner, or another sweep, has removed it before we had the lock.
    if !is_same_file(&file, &record_path) {
        return Ok(Examined::Nothing);
    }
    if bytes.is_empty() && lock == Lock::Free {
        return Ok(Examined::Unfilled { _lock: file });
    }
    let text = String::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8".to_string()))?;
    let record = Record::parse(&text).map_err(malformed)?;
    if path
        .file_name()
        .is_none_or(|name| name != &*record.temporary)
    {
        return Err(malformed(format!("it is about {}", record.temporary)));
    }
    let facts = Facts {
        boot_id: record::boot_id()?,
        lock,
        process: record::process(record.pid),
    };
    Ok(match is_gone(&record, &facts) {
        Verdict::Present => Examined::Kept(record.to_string()),
        Verdict::Gone(reason) => Examined::Gone {
            reason,
            text,
            _lock: file,
        },
    })
}

/// Whether there is anything of a temporary.
fn is_left(path: &Path) -> Result<bool, OwnerError> {
    Ok([path.to_path_buf(), unfinished(path)?, half_deleted(path)?]
        .iter()
        .any(|path| path.symlink_metadata().is_ok()))
}
