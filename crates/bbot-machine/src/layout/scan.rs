//! Finding the machines: what is there, and what is wrong with it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{DirEntry, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bbot_manifest::MachineManifest;

use super::{BOOTSTRAP_PROTOCOL, LayoutError, MachineDir, check_machine_name, resolve_current};

/// What lies in a machines directory.
#[derive(Debug, Default)]
pub struct Scan {
    /// The machines that can be used, by name.
    pub machines: Vec<MachineDir>,
    /// What is wrong; none of it concerns the machines above.
    pub problems: Vec<Problem>,
}

/// Something wrong with one volume or machine, which is therefore left alone.
#[derive(Debug)]
pub struct Problem {
    /// The machine's name, when it is about one.
    pub machine: Option<String>,
    /// The directory concerned.
    pub path: PathBuf,
    /// What is wrong.
    pub kind: ProblemKind,
}

/// What can be wrong with a volume or a machine.
#[derive(Debug)]
#[non_exhaustive]
pub enum ProblemKind {
    /// It cannot be read.
    Unreadable(io::Error),
    /// A symbolic link that leads to nothing; a disk that is not mounted, perhaps.
    Dangling,
    /// A directory's name cannot be a machine's.
    Name(LayoutError),
    /// The same machine lies on several volumes.
    Twice {
        /// All its directories.
        paths: Vec<PathBuf>,
    },
    /// The link to its current revision is broken.
    Link(LayoutError),
    /// The files of its current revision are closed to this user: those of a container are to
    /// everybody but root.
    Closed {
        /// The revision.
        path: PathBuf,
    },
    /// Its manifest cannot be read or is malformed.
    Manifest(String),
    /// The manifest gives another name than the directory.
    OtherName {
        /// The manifest's name for it.
        manifest: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.machine {
            Some(machine) => write!(f, "machine {machine} in {}: ", self.path.display())?,
            None => write!(f, "{}: ", self.path.display())?,
        }
        match &self.kind {
            ProblemKind::Unreadable(error) => write!(f, "unable to read: {error}"),
            ProblemKind::Dangling => {
                f.write_str("the link leads to nothing; is a disk not mounted?")
            }
            ProblemKind::Name(error) | ProblemKind::Link(error) => write!(f, "{error}"),
            ProblemKind::Twice { paths } => {
                f.write_str("it exists more than once, leave one of")?;
                for (index, path) in paths.iter().enumerate() {
                    write!(
                        f,
                        "{} {}",
                        if index == 0 { "" } else { "," },
                        path.display()
                    )?;
                }
                Ok(())
            }
            ProblemKind::Closed { path } => write!(
                f,
                "{} is closed to this user; a container (type nspawn) is for root alone: run this as root, \
                 or make the machine with --type kvm",
                path.display()
            ),
            ProblemKind::Manifest(error) => f.write_str(error),
            ProblemKind::OtherName { manifest } => write!(
                f,
                "its manifest calls it '{manifest}'; rename the directory or mend the manifest"
            ),
        }
    }
}

/// Finds the machines of all volumes in `machines`. Nothing is changed.
///
/// A problem of one volume or machine is reported beside the others' results; the machine it is
/// about is left out. Machines without a current revision are found too (their bootstrapped copies
/// are to be deleted).
///
/// # Errors
/// When `machines` itself cannot be read.
pub fn scan(machines: &Path) -> Result<Scan, LayoutError> {
    let mut found: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let mut problems = Vec::new();
    let volumes = directories(machines, &mut problems)
        .map_err(|e| LayoutError::io("read machines directory", machines, e))?;
    for volume in volumes {
        let entries = match directories(&volume, &mut problems) {
            Ok(entries) => entries,
            Err(e) => {
                problems.push(problem(None, volume, ProblemKind::Unreadable(e)));
                continue;
            }
        };
        for path in entries {
            match machine_name(&path) {
                Ok(name) => found.entry(name).or_default().push(path),
                Err(error) => problems.push(problem(None, path, ProblemKind::Name(error))),
            }
        }
    }
    let mut scan = Scan {
        machines: Vec::new(),
        problems,
    };
    for (name, mut paths) in found {
        paths.sort();
        if paths.len() > 1 {
            let path = paths[0].clone();
            scan.problems
                .push(problem(Some(name), path, ProblemKind::Twice { paths }));
            continue;
        }
        for path in paths {
            let machine = MachineDir {
                path,
                name: name.clone(),
            };
            match look_at(&machine) {
                Ok(()) => scan.machines.push(machine),
                Err(kind) => scan
                    .problems
                    .push(problem(Some(machine.name), machine.path, kind)),
            }
        }
    }
    Ok(scan)
}

fn problem(machine: Option<String>, path: PathBuf, kind: ProblemKind) -> Problem {
    Problem {
        machine,
        path,
        kind,
    }
}

fn machine_name(path: &Path) -> Result<String, LayoutError> {
    let name = path.file_name().unwrap_or_default();
    let Some(text) = name.to_str() else {
        return Err(LayoutError::Name {
            what: "machine",
            name: name.to_string_lossy().into_owned(),
            reason: "it is not UTF-8",
        });
    };
    check_machine_name(text)?;
    Ok(text.to_string())
}

/// The directories, and links to directories, in a directory, sorted.
fn directories(directory: &Path, problems: &mut Vec<Problem>) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if is_skipped(&entry) {
            continue;
        }
        let path = entry.path();
        // Follows links.
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => found.push(path),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Gone meanwhile, or a link to nothing.
                if path.is_symlink() {
                    problems.push(problem(None, path, ProblemKind::Dangling));
                }
            }
            Err(e) => problems.push(problem(None, path, ProblemKind::Unreadable(e))),
        }
    }
    found.sort();
    Ok(found)
}

fn is_skipped(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    // The second is made by file systems of the ext family at their top, which a volume may be.
    name.as_encoded_bytes().starts_with(b".") || name == "lost+found"
}

/// Whether one machine can be used.
fn look_at(machine: &MachineDir) -> Result<(), ProblemKind> {
    std::fs::read_dir(&machine.path).map_err(ProblemKind::Unreadable)?;
    let current = match resolve_current(machine, BOOTSTRAP_PROTOCOL) {
        Ok(Some(current)) => current,
        // Being removed, or between two revisions: whoever wants to use it finds out.
        Ok(None) => return Ok(()),
        Err(error) if error.is_race() => return Ok(()),
        Err(error) => return Err(ProblemKind::Link(error)),
    };
    let path = current.join("manifest");
    let bytes = match read_manifest(&path) {
        Ok(bytes) => bytes,
        // The same: the revision was removed after the link was read.
        Err(e) if e.kind() == io::ErrorKind::NotFound && !current.is_dir() => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied && is_closed(&current) => {
            return Err(ProblemKind::Closed { path: current });
        }
        Err(e) => {
            return Err(ProblemKind::Manifest(format!(
                "unable to read {}: {e}",
                path.display()
            )));
        }
    };
    let manifest = MachineManifest::parse(&bytes, &path.display().to_string())
        .map_err(|e| ProblemKind::Manifest(e.to_string()))?;
    check_name(machine, &manifest.header.name)
}

/// Whether nobody but its owner comes into a directory.
fn is_closed(directory: &Path) -> bool {
    std::fs::metadata(directory).is_ok_and(|metadata| metadata.mode() & 0o077 == 0)
}

/// The largest manifest of a machine that is read, in bytes.
const MANIFEST_LIMIT: u64 = 1 << 20;

/// Reads a manifest that somebody else has made: a pipe in its place does not hold up the others, and a device or a huge
/// file does not fill the memory.
fn read_manifest(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_string());
    if !file.metadata()?.is_file() {
        return Err(invalid("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MANIFEST_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MANIFEST_LIMIT {
        return Err(invalid("it is larger than 1 MiB"));
    }
    Ok(bytes)
}

/// Whether a manifest's name for a machine is its directory's. For manifests that are read later
/// than by [`scan`]: of a snapshot, or of a bootstrapped machine.
///
/// # Errors
/// [`ProblemKind::OtherName`] when it is not.
pub fn check_name(machine: &MachineDir, name: &str) -> Result<(), ProblemKind> {
    if machine.name == name {
        return Ok(());
    }
    Err(ProblemKind::OtherName {
        manifest: name.to_string(),
    })
}
