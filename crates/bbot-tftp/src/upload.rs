//! A file on its way in: written under a temporary name, visible under its own only when whole.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::packet::ErrorCode;
use crate::root::{PutRule, Repeated, open_folder};
use crate::transfer::{Refusal, Sink};

/// Bytes gathered before they are written; larger blocks go straight through.
const BUFFER: usize = 32 * 1024;

/// A file on its way in.
#[derive(Debug)]
pub(crate) struct Upload {
    rule: Arc<PutRule>,
    name: String,
    written: u64,
    target: Target,
}

#[derive(Debug)]
enum Target {
    /// The name was there when the request came and is kept: what comes is counted and dropped.
    Dropped,
    /// On its way.
    Part(Part),
    /// Whole, on disk, under its name.
    Committed(PathBuf),
    /// Refused at the end.
    Gone,
}

/// The temporary file; it is removed unless it gets its name.
#[derive(Debug)]
struct Part {
    folder: OwnedFd,
    temporary: String,
    file: BufWriter<File>,
}

impl Drop for Part {
    fn drop(&mut self) {
        // Nothing to be done when this fails; after a rename there is no such name any more.
        let _ = rustix::fs::unlinkat(&self.folder, self.temporary.as_str(), AtFlags::empty());
    }
}

impl Upload {
    pub(crate) fn create(rule: Arc<PutRule>, name: &str) -> Result<Self, Refusal> {
        let failed = |error: io::Error| refusal(&rule, name, &error);
        let folder = open_folder(&rule.folder).map_err(failed)?;
        let there = rule.is_there(&folder, name).map_err(failed)?;
        let target = match (there, rule.repeated) {
            (true, Repeated::Refuse) => return Err(there_already()),
            (true, Repeated::Drop) => Target::Dropped,
            _ if !rule.has_room(&folder).map_err(failed)? => {
                return Err(Refusal::new(
                    ErrorCode::DiskFull,
                    "too many files wait to be passed on",
                ));
            }
            _ => Target::Part(Part::create(folder).map_err(failed)?),
        };
        Ok(Self {
            name: name.to_owned(),
            written: 0,
            target,
            rule,
        })
    }

    /// Where the file is, once it is whole; none when it was dropped.
    pub(crate) fn committed(&self) -> Option<&PathBuf> {
        match &self.target {
            Target::Committed(path) => Some(path),
            _ => None,
        }
    }
}

impl Part {
    fn create(folder: OwnedFd) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            // A leading dot: such names are neither read nor written by TFTP.
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let temporary = format!(".{count}.{}.part", std::process::id());
            let mode = Mode::from_raw_mode(0o644);
            let file = match rustix::fs::openat(&folder, temporary.as_str(), flags, mode) {
                Ok(file) => BufWriter::with_capacity(BUFFER, file.into()),
                // Left by a killed process that had the same number.
                Err(Errno::EXIST) => continue,
                Err(error) => return Err(error.into()),
            };
            return Ok(Self {
                folder,
                temporary,
                file,
            });
        }
    }

    /// Whether it has its name; not when another one has it, which is kept.
    fn commit(&mut self, rule: &PutRule, name: &str) -> Result<bool, Refusal> {
        let failed = |error: io::Error| refusal(rule, name, &error);
        self.file.flush().map_err(failed)?;
        self.file.get_ref().sync_all().map_err(failed)?;
        {
            let _one_at_a_time = rule.lock();
            if rule.repeated != Repeated::Replace
                && rule.is_there(&self.folder, name).map_err(failed)?
            {
                // Another upload of the same name was faster.
                return if rule.repeated == Repeated::Drop {
                    Ok(false)
                } else {
                    Err(there_already())
                };
            }
            let flags = match rule.repeated {
                Repeated::Replace => RenameFlags::empty(),
                Repeated::Refuse | Repeated::Drop => RenameFlags::NOREPLACE,
            };
            let (folder, temporary) = (&self.folder, self.temporary.as_str());
            match rustix::fs::renameat_with(folder, temporary, folder, name, flags) {
                // Not every file system knows NOREPLACE; that nothing is there was just seen.
                Err(Errno::INVAL) => rustix::fs::renameat(folder, temporary, folder, name),
                other => other,
            }
            .map_err(|error| failed(error.into()))?;
        }
        match rustix::fs::fsync(&self.folder) {
            // Some file systems have no such thing for a directory.
            Ok(()) | Err(Errno::INVAL) => Ok(true),
            Err(error) => {
                // The peer is to try again, and must not find its own file in the way.
                let _ = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty());
                Err(failed(error.into()))
            }
        }
    }
}

impl Sink for Upload {
    fn write(&mut self, data: &[u8]) -> Result<(), Refusal> {
        self.written += data.len() as u64;
        if self.written > self.rule.limit {
            self.target = Target::Gone;
            return Err(Refusal::new(
                ErrorCode::DiskFull,
                format!("more than {} bytes", self.rule.limit),
            ));
        }
        match &mut self.target {
            Target::Part(part) => part
                .file
                .write_all(data)
                .map_err(|error| refusal(&self.rule, &self.name, &error)),
            _ => Ok(()),
        }
    }

    fn commit(&mut self) -> Result<(), Refusal> {
        if let Target::Part(part) = &mut self.target {
            let committed = part.commit(&self.rule, &self.name);
            self.target = match committed {
                Ok(true) => Target::Committed(self.rule.folder.join(&self.name)),
                Ok(false) => Target::Dropped,
                Err(_) => Target::Gone,
            };
            committed?;
        }
        Ok(())
    }
}

fn there_already() -> Refusal {
    Refusal::new(ErrorCode::FileExists, "it was uploaded already")
}

fn refusal(rule: &PutRule, name: &str, error: &io::Error) -> Refusal {
    Refusal::of_host(error, &rule.folder.join(name), "the file cannot be written")
}
