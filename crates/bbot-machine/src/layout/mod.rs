//! How machines lie on disk, as the seed has it.
//!
//! ```text
//! <machines>/<volume>/<machine>/
//!     <machine>-<P>.<R>                    revision R for bootstrap protocol P, read-only
//!     <machine>-<P>                        symbolic link to the current revision
//!     <machine>-<toolchain>                bootstrapped for one toolchain
//!     <machine>-<toolchain>-<xxx>          temporary: a bootstrap or a build that runs
//!     .<machine>-<toolchain>-<xxx>.owner   who made that temporary (see [`crate::owner`])
//! ```
//!
//! Names that start with `.` are skipped; volumes and machines may be symbolic links to
//! directories. Agents of other toolchains and agents of the original share all this.
//!
//! **What is temporary.** `public` and `public-0.17.0` are both names of toolchains, so a name alone
//! never tells the temporary of the one from the bootstrapped machine of the other. Two rules keep
//! them apart: a temporary is known by its owner record and by nothing else; and the `<xxx>` of ours
//! is `t` and sixteen hexadecimal digits, which no toolchain's name may end in ([`ToolchainName`]).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use crate::durable::{self, DurableError};
use crate::owner::OwnerError;
use crate::volume::VolumeError;

mod current;
mod revision;
mod scan;

pub use current::{activate, resolve_current};
pub use revision::{
    Revision, add_revision, begin_revision, next_revision, publish_revision, remove,
    remove_revision, revisions,
};
pub use scan::{Problem, ProblemKind, Scan, check_name, scan};

/// The bootstrap protocol that this agent speaks (P; `bs_prot` of the seed).
pub const BOOTSTRAP_PROTOCOL: u32 = 1;

/// A warm machine's memory, in its directory.
pub const WARM_RAM: &str = "warm.ram";
/// The state of its devices.
pub const WARM_STATE: &str = "warm.state";
/// What both need to be restored.
pub const WARM_MANIFEST: &str = "warm.manifest";

/// What went wrong with the layout of a machine.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LayoutError {
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
    /// A text that cannot be the name of a machine, toolchain or revision.
    #[error("invalid {what} name '{name}': {reason}")]
    Name {
        /// `machine`, `toolchain` or `revision`.
        what: &'static str,
        /// The text.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The place of a link is taken by something else.
    #[error("{} is not a symbolic link; move it away and activate a revision", path.display())]
    NotLink {
        /// Where the link should be.
        path: PathBuf,
    },
    /// The link to the current revision leads in a circle.
    #[error("{} leads in a circle; activate a revision again", link.display())]
    Loop {
        /// The link.
        link: PathBuf,
    },
    /// The link to the current revision leads out of the machine's directory.
    #[error(
        "{} leads to {}, outside of the machine's directory; activate a revision of this machine",
        link.display(), target.display()
    )]
    Escape {
        /// The link.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// The link to the current revision leads to nothing: the revision was removed, perhaps just
    /// now.
    #[error("{} leads to {}, which is not there; activate a revision that is", link.display(), target.display())]
    Dangling {
        /// The link.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// The link to the current revision leads to something that is no directory.
    #[error("{} leads to {}, which is not a directory", link.display(), target.display())]
    NotDirectory {
        /// The link.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// There is no such revision.
    #[error("machine {machine} has no revision {revision} ({} is not a directory)", path.display())]
    NoRevision {
        /// The machine.
        machine: String,
        /// The revision.
        revision: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// The revision is already there; revisions are never changed.
    #[error("machine {machine} already has revision {revision}; add it under another number")]
    RevisionExists {
        /// The machine.
        machine: String,
        /// The revision.
        revision: String,
    },
    /// The revision is the current one.
    #[error(
        "revision {revision} of machine {machine} is the current one; activate another one first"
    )]
    Current {
        /// The machine.
        machine: String,
        /// The revision.
        revision: String,
    },
    /// An agent uses the machine right now.
    #[error("machine {machine} is in use: {} belongs to {owner}; it may only wait for a task (`bbot agent drain` ends that)", path.display())]
    InUse {
        /// The machine.
        machine: String,
        /// The temporary that is in use.
        path: PathBuf,
        /// Its owner, for a person.
        owner: String,
    },
    /// Something in a machine's directory is not of that machine.
    #[error("{} does not belong to machine {machine}; move it away first", path.display())]
    Foreign {
        /// The machine.
        machine: String,
        /// What was found.
        path: PathBuf,
    },
    /// The volume refused.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// An owner record could not be made or read.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// Something could not be flushed to the disk.
    #[error(transparent)]
    Durable(#[from] DurableError),
}

impl LayoutError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    }

    /// Whether somebody may just have changed the machine, so that another try is worth it.
    #[must_use]
    pub fn is_race(&self) -> bool {
        match self {
            Self::Dangling { .. } => true,
            Self::Volume(error) => error.is_race(),
            Self::Owner(OwnerError::Volume(error)) => error.is_race(),
            _ => false,
        }
    }
}

/// One machine's directory, `<machines>/<volume>/<machine>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineDir {
    /// The directory; perhaps a symbolic link to one.
    pub path: PathBuf,
    /// The machine's name, which is the directory's.
    pub name: String,
}

impl MachineDir {
    /// The directory of the machine `name` on a volume. Does not look whether it is there.
    ///
    /// # Errors
    /// When the name cannot be a machine's.
    pub fn new(volume: &Path, name: &str) -> Result<Self, LayoutError> {
        check_machine_name(name)?;
        Ok(Self {
            path: volume.join(name),
            name: name.to_string(),
        })
    }

    /// The same, made when it is not there, durably.
    ///
    /// # Errors
    /// When the name cannot be a machine's or the volume cannot be written.
    pub fn create(volume: &Path, name: &str) -> Result<Self, LayoutError> {
        let machine = Self::new(volume, name)?;
        match std::fs::create_dir(&machine.path) {
            Ok(()) => durable::sync_directory(volume)?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && machine.path.is_dir() => {}
            Err(e) => return Err(LayoutError::io("create directory", &machine.path, e)),
        }
        Ok(machine)
    }

    /// `<machine>-<P>`: the link to the current revision.
    #[must_use]
    pub fn current_link(&self, protocol: u32) -> PathBuf {
        self.path.join(format!("{}-{protocol}", self.name))
    }

    /// `<machine>-<P>.<R>`: a revision.
    #[must_use]
    pub fn revision(&self, protocol: u32, revision: &str) -> PathBuf {
        self.path
            .join(format!("{}-{protocol}.{revision}", self.name))
    }

    /// `<machine>-<toolchain>`: the machine bootstrapped for a toolchain.
    #[must_use]
    pub fn bootstrapped(&self, toolchain: &ToolchainName) -> PathBuf {
        self.path.join(format!("{}-{toolchain}", self.name))
    }

    /// `<machine>-<toolchain>-<xxx>`: a name for a temporary that nobody has had before.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn temporary(&self, toolchain: &ToolchainName) -> io::Result<PathBuf> {
        fresh(&self.bootstrapped(toolchain))
    }
}

/// `<path>-<xxx>` with a new `<xxx>`.
pub(crate) fn fresh(path: &Path) -> io::Result<PathBuf> {
    let mut name = path.as_os_str().to_os_string();
    name.push("-t");
    name.push(durable::random_hex()?);
    Ok(PathBuf::from(name))
}

/// Whether a name ends as the temporaries of ours do.
pub fn ends_like_a_temporary(name: &str) -> bool {
    name.rsplit_once("-t").is_some_and(|(_, digits)| {
        digits.len() == 16
            && digits
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// The longest name of a machine or toolchain, in bytes: two of them, the ends and the dots of a
/// record must fit into the 255 bytes that file systems give a name.
const NAME_LIMIT: usize = 100;

fn check(what: &'static str, name: &str) -> Result<(), LayoutError> {
    let refuse = |reason| {
        Err(LayoutError::Name {
            what,
            name: name.chars().take(NAME_LIMIT).collect(),
            reason,
        })
    };
    if name.is_empty() {
        return refuse("it is empty");
    }
    if name.len() > NAME_LIMIT {
        return refuse("it is longer than 100 bytes");
    }
    if name.starts_with('.') {
        return refuse("it starts with a dot");
    }
    if name.contains('/') {
        return refuse("it contains a slash");
    }
    if name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return refuse("it contains a blank or a control character");
    }
    Ok(())
}

/// Whether `name` can be a machine's: what a directory can be called, without leading dot, blanks
/// and control characters, at most 100 bytes.
///
/// # Errors
/// What is wrong with it.
pub fn check_machine_name(name: &str) -> Result<(), LayoutError> {
    check("machine", name)
}

/// The name of a toolchain: as a machine's name, and such that `<machine>-<toolchain>` can be
/// neither a link, nor a revision, nor a temporary of ours.
///
/// Refused are a number without leading zero, alone or before a dot (`1`, `1.5`; `<machine>-1.5` is
/// a revision), and what ends in `-t` and sixteen hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ToolchainName(String);

impl ToolchainName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ToolchainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for ToolchainName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for ToolchainName {
    type Err = LayoutError;

    fn from_str(name: &str) -> Result<Self, LayoutError> {
        check("toolchain", name)?;
        let refuse = |reason| {
            Err(LayoutError::Name {
                what: "toolchain",
                name: name.to_string(),
                reason,
            })
        };
        // Protocols count from 1, so `0.17.0` is no revision.
        let number = name.split_once('.').map_or(name, |(number, _)| number);
        if !number.starts_with('0') && number.bytes().all(|b| b.is_ascii_digit()) {
            return refuse("a machine's revisions have such names");
        }
        if ends_like_a_temporary(&format!("-{name}")) {
            return refuse("temporaries have such names");
        }
        Ok(Self(name.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> MachineDir {
        MachineDir::new(Path::new("/m/default"), "linux-gcc").unwrap()
    }

    #[test]
    fn names_are_the_seeds() {
        let public: ToolchainName = "public".parse().unwrap();
        let m = machine();
        assert_eq!(
            m.current_link(1),
            Path::new("/m/default/linux-gcc/linux-gcc-1")
        );
        assert_eq!(
            m.revision(1, "3"),
            Path::new("/m/default/linux-gcc/linux-gcc-1.3")
        );
        assert_eq!(
            m.bootstrapped(&public),
            Path::new("/m/default/linux-gcc/linux-gcc-public")
        );
        let one = m.temporary(&public).unwrap();
        let name = one.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("linux-gcc-public-t"), "{name}");
        assert_ne!(one, m.temporary(&public).unwrap());
    }

    #[test]
    fn toolchain_names() {
        for name in [
            "public",
            "public-0.17.0",
            "0.17.0",
            "stage-0.19.0-a.0.2026",
            "v1",
            "t",
            "1a",
            "01",
        ] {
            assert!(name.parse::<ToolchainName>().is_ok(), "{name} was refused");
        }
        for name in [
            "",
            ".",
            "..",
            ".public",
            "a/b",
            "1",
            "1.5",
            "17.0",
            "1.",
            "a b",
            "a\nb",
            "public-t0123456789abcdef",
            "t0123456789abcdef",
        ] {
            assert!(name.parse::<ToolchainName>().is_err(), "{name:?} was taken");
        }
    }

    /// The temporary of one toolchain is never the bootstrapped machine of another one.
    #[test]
    fn no_toolchain_is_named_as_a_temporary_of_another() {
        let m = machine();
        for name in ["public", "public-0.17.0", "a-t0"] {
            let toolchain: ToolchainName = name.parse().unwrap();
            let path = m.temporary(&toolchain).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            let other = name.strip_prefix("linux-gcc-").unwrap();
            assert!(other.parse::<ToolchainName>().is_err(), "{other} was taken");
        }
    }

    #[test]
    fn a_machine_is_created_once() {
        let volume = tempfile::tempdir().unwrap();
        let one = MachineDir::create(volume.path(), "debian-12").unwrap();
        assert_eq!(one, MachineDir::create(volume.path(), "debian-12").unwrap());
        assert!(one.path.is_dir());
        assert!(MachineDir::create(volume.path(), "../debian").is_err());
        std::fs::write(volume.path().join("file"), "").unwrap();
        assert!(MachineDir::create(volume.path(), "file").is_err());
    }
}
