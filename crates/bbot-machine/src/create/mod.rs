//! Makes build machines out of a distribution's packages: today Debian, by `mmdebstrap`.
//!
//! What comes out is a directory with a disk image, a kernel, a RAM disk and a machine manifest; it boots without a
//! boot loader and follows bootstrap protocol 1. Nothing is mounted on the host: `mke2fs -d` fills the disk image inside
//! mmdebstrap's own mount (and, for an ordinary user, user) namespace, so that root is not needed.
//! A container gets the files that are in the disk image, as a directory; that is for root, as containers are.
//!
//! The expensive part, the *base*, is kept in a cache, found by a hash over all that goes into it. A second machine of the
//! same kind is a copy.

mod base;
mod container;
mod copy;
mod cpio;
mod host;
mod initrd;
mod scratch;
mod sources;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bbot_manifest::{MachineHeader, MachineKind, MachineManifest};
use sha2::{Digest, Sha256};

/// Packages of every Debian machine: what builds packages, what the guest's own scripts use, nothing else.
pub const PACKAGES: [&str; 10] = [
    "build-essential",
    "cmake",
    "autoconf",
    "automake",
    "libtool",
    "pkg-config",
    "busybox-static",
    "iproute2",
    "ca-certificates",
    "kmod",
];

/// Size of the disk unless another is asked for, in bytes. The image is sparse: only what is used takes room.
pub const DISK_BYTES: u64 = 8 << 30;

/// A cached base is used this long: packages get their security fixes, machines are made anew rarely.
pub const CACHE_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

/// The kernel's command line. A machine that cannot start panics, which the agent is told by the device for that, or, before
/// its driver is loaded, restarts at once (`panic=-1`); the serial line shows a person what the guest says.
const COMMAND_LINE: &str = "root=/dev/vda rw console=ttyS0 quiet panic=-1 init=/usr/lib/bbot/init";

/// A release of Debian that machines can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
}

impl Suite {
    /// The code name, as apt's sources have it.
    #[must_use]
    pub fn code_name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// The release's number.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Bookworm => 12,
            Self::Trixie => 13,
        }
    }

    /// The release that a machine's name speaks of: `debian-12`, `linux_debian_13-gcc`, `trixie-small`.
    #[must_use]
    pub fn of_machine(name: &str) -> Option<Self> {
        let name = name.replace('_', "-");
        [Self::Bookworm, Self::Trixie].into_iter().find(|suite| {
            let number = format!("debian-{}", suite.number());
            name.contains(suite.code_name())
                || name.match_indices(&number).any(|(at, _)| {
                    !name[at + number.len()..].starts_with(|c: char| c.is_ascii_digit())
                })
        })
    }
}

/// Whether a base in the cache may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cached {
    /// Yes, when it is not older than this.
    Within(Duration),
    /// No: made anew, and put into the cache.
    Never,
}

/// What machine to make, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// The machine's name, for its manifest.
    pub name: String,
    /// What it runs in.
    pub kind: MachineKind,
    /// The release.
    pub suite: Suite,
    /// The revision's directory: made if absent, else empty.
    pub destination: PathBuf,
    /// Where bases are kept between runs.
    pub cache: PathBuf,
    /// Whether to take a base from there.
    pub cached: Cached,
    /// Packages on top of [`PACKAGES`].
    pub packages: Vec<String>,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// URL of a Debian mirror; else the host's own sources, else mmdebstrap's default.
    pub mirror: Option<String>,
}

impl Options {
    /// The usual machine of this name, a virtual one.
    #[must_use]
    pub fn new(name: &str, suite: Suite, destination: &Path, cache: &Path) -> Self {
        Self {
            name: name.to_owned(),
            kind: MachineKind::Kvm,
            suite,
            destination: destination.to_owned(),
            cache: cache.to_owned(),
            cached: Cached::Within(CACHE_AGE),
            packages: Vec::new(),
            disk_bytes: DISK_BYTES,
            mirror: None,
        }
    }
}

/// A short line for a person who waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress(pub String);

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// The machine's id: differs between any two bases.
    pub id: String,
    /// One line for people, with the compilers' versions.
    pub summary: String,
    /// Whether the base came from the cache.
    pub from_cache: bool,
}

/// Why no machine was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// A program is missing.
    #[error("{program} is not installed (Debian: apt install {package})")]
    NotInstalled {
        /// The program.
        program: &'static str,
        /// Debian's package of it.
        package: &'static str,
    },
    /// An ordinary user cannot have what mmdebstrap needs instead of root.
    #[error("{what}; {mend}, or create the machine as root")]
    UserNamespace {
        /// What is missing.
        what: String,
        /// How to mend it.
        mend: String,
    },
    /// A container's files belong to many users.
    #[error(
        "a container can only be made by root (and only be run by an agent that is root); run this as root, or make a machine of type kvm"
    )]
    NeedsRoot,
    /// The disk image could not be looked into.
    #[error(
        "{disk} cannot be mounted to take the container's files out of it: {why}; a kernel with loop devices and ext4 is needed"
    )]
    Mount {
        /// The disk image.
        disk: PathBuf,
        /// What mount said.
        why: String,
    },
    /// The container's files could not be copied.
    #[error("the container's files cannot be copied")]
    Copy(#[from] crate::volume::VolumeError),
    /// Not enough room.
    #[error(
        "{path} has {available_mib} MiB left, and {needed_mib} MiB are needed for the machine; make room or use another directory"
    )]
    Space {
        /// Where.
        path: PathBuf,
        /// Needed, in MiB.
        needed_mib: u64,
        /// There, in MiB.
        available_mib: u64,
    },
    /// The revision's directory has something in it.
    #[error("{0} is not empty; a machine is made in a new directory")]
    NotEmpty(PathBuf),
    /// mmdebstrap failed.
    #[error("mmdebstrap failed ({status}); its last words were:\n{last_words}")]
    Mmdebstrap {
        /// How it ended.
        status: String,
        /// Its last lines.
        last_words: String,
    },
    /// mmdebstrap succeeded but what it handed out is not what it should be.
    #[error("the new system is not whole: {0}")]
    Incomplete(String),
    /// The machine's name cannot be written to a manifest.
    #[error("the machine's name {0:?} is not one line of text")]
    Name(String),
    /// A file operation failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl CreateError {
    fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

/// Makes a Debian machine: `disk.img`, `kernel` and `initrd`, or for a container `rootfs/`, and `cmdline` and `manifest` in
/// the revision's directory.
///
/// Blocks for as long as it takes (a minute, a second when the base is cached). What it began and could not end is removed.
///
/// # Errors
/// See [`CreateError`]; each says how to mend it.
pub fn debian(
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Created, CreateError> {
    if options.name.is_empty() || options.name.chars().any(char::is_control) {
        return Err(CreateError::Name(options.name.clone()));
    }
    if options.kind == MachineKind::Nspawn && !rustix::process::geteuid().is_root() {
        return Err(CreateError::NeedsRoot);
    }
    let destination = Destination::prepare(&options.destination)?;
    let base = base::obtain(options, progress)?;
    progress(Progress(format!(
        "copying to {}",
        options.destination.display()
    )));
    let created = fill(options, &base)?;
    destination.keep();
    Ok(created)
}

fn fill(options: &Options, base: &base::Base) -> Result<Created, CreateError> {
    let to = &options.destination;
    host::require_space(to, base.used_bytes()?)?;
    let command_line = match options.kind {
        MachineKind::Kvm => {
            for file in ["kernel", "initrd", "disk.img"] {
                let (from, to) = (base.directory.join(file), to.join(file));
                copy::copy(&from, &to).map_err(CreateError::io("cannot copy to", &to))?;
            }
            COMMAND_LINE
        }
        MachineKind::Nspawn => {
            container::fill(&base.directory.join("disk.img"), to)?;
            container::COMMAND_LINE
        }
    };
    write(&to.join("cmdline"), command_line)?;
    let mut hash = Sha256::new();
    hash.update(options.name.as_bytes());
    hash.update([0]);
    hash.update(base.id.as_bytes());
    hash.update(command_line.as_bytes());
    let id = format!("{}-{}", options.name, &hex::encode(hash.finalize())[..16]);
    let summary = format!(
        "Debian {} ({}){}{}",
        options.suite.number(),
        options.suite.code_name(),
        base.tools,
        match options.kind {
            MachineKind::Kvm => "",
            MachineKind::Nspawn => ", container",
        }
    );
    let manifest = MachineManifest {
        header: MachineHeader {
            id: id.clone(),
            name: options.name.clone(),
            summary: summary.clone(),
            role: None,
            ram_minimum: None,
            ram_maximum: None,
        },
        kind: options.kind,
        mac: None,
        options: None,
        changes: Vec::new(),
    };
    let manifest = manifest
        .serialize()
        .map_err(|_| CreateError::Name(options.name.clone()))?;
    write(&to.join("manifest"), &manifest)?;
    Ok(Created {
        id,
        summary,
        from_cache: base.from_cache,
    })
}

fn write(path: &Path, text: &str) -> Result<(), CreateError> {
    fs::write(path, text)
        .and_then(|()| fs::File::open(path)?.sync_all())
        .map_err(CreateError::io("cannot write", path))
}

/// The revision's directory: what was put there is removed again unless [`Destination::keep`] is called.
struct Destination<'a> {
    path: &'a Path,
    made: bool,
    keep: bool,
}

impl<'a> Destination<'a> {
    fn prepare(path: &'a Path) -> Result<Self, CreateError> {
        let made = match fs::create_dir(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(CreateError::io("cannot make", path)(error)),
        };
        let mut entries = fs::read_dir(path).map_err(CreateError::io("cannot read", path))?;
        if entries.next().is_some() {
            return Err(CreateError::NotEmpty(path.to_owned()));
        }
        Ok(Self {
            path,
            made,
            keep: false,
        })
    }

    fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Destination<'_> {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        for file in ["kernel", "initrd", "disk.img", "cmdline", "manifest"] {
            let _ = fs::remove_file(self.path.join(file));
        }
        for directory in [container::ROOTFS, container::MOUNTED] {
            let _ = fs::remove_dir_all(self.path.join(directory));
        }
        if self.made {
            let _ = fs::remove_dir(self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_found_in_a_machines_name() {
        let cases = [
            ("debian-12", Some(Suite::Bookworm)),
            ("linux_debian_13-gcc_14", Some(Suite::Trixie)),
            ("trixie-small", Some(Suite::Trixie)),
            ("debian-120", None),
            ("windows_10", None),
        ];
        for (name, suite) in cases {
            assert_eq!(Suite::of_machine(name), suite, "{name}");
        }
    }

    #[test]
    fn a_directory_with_something_in_it_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("manifest"), "mine").unwrap();
        let options = Options::new("m", Suite::Bookworm, dir.path(), dir.path());
        let error = debian(&options, &mut |_| ()).unwrap_err();
        assert!(matches!(error, CreateError::NotEmpty(_)), "{error}");
        assert_eq!(fs::read(dir.path().join("manifest")).unwrap(), b"mine");
    }
}
