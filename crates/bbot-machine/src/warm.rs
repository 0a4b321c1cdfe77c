//! Warm machines: a guest that was saved at the moment its worker asks for a task, and goes on from
//! there in a fraction of a second (`docs/decisions/0016-warm.md`).
//!
//! ```text
//!   started, its memory a file --worker waits--> Machine::save --> Base --store--> warm.ram,
//!                                                                                  warm.state,
//!   restored <-- Memory::Restored(base) <-- Base <--load--                         warm.manifest
//! ```
//!
//! A [`Base`] is the saved state in this process: the guest's memory in a sealed `memfd`, which all
//! restored copies map privately. They share what they do not write, nobody can change it, and it
//! lives as long as the last of them.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use bbot_manifest::WarmManifest;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use sha2::{Digest as _, Sha256};

use crate::durable;
use crate::layout::{WARM_MANIFEST, WARM_RAM, WARM_STATE};

/// The largest state of the devices that is read: QEMU's has about half a MiB, and a screen's
/// memory is part of the guest's.
const STATE_LIMIT: u64 = 64 << 20;
/// The largest manifest that is read.
const MANIFEST_LIMIT: u64 = 64 << 10;

/// Why a saved state cannot be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// The system refused.
    #[error("unable to {what} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// What is there is not what was saved.
    #[error("{} is of no use: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// A request that the worker of a saved guest waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Who has asked.
    pub peer: SocketAddr,
    /// What: a TFTP request.
    pub request: Vec<u8>,
}

/// A saved guest: its memory, the state of its devices, and what is needed to restore it.
#[derive(Debug)]
pub struct Base {
    manifest: WarmManifest,
    text: String,
    waiting: Waiting,
    /// Sealed.
    memory: OwnedFd,
    /// Sealed.
    state: OwnedFd,
}

impl Base {
    /// What was saved just now, with the files as the machine has left them; they are sealed, so
    /// nobody may have them mapped for writing any more.
    ///
    /// # Errors
    ///
    /// When they cannot be read or sealed.
    pub(crate) fn new(
        mut manifest: WarmManifest,
        waiting: Waiting,
        memory: OwnedFd,
        state: OwnedFd,
    ) -> io::Result<Self> {
        let memory = seal(memory)?;
        let mut state = File::from(state);
        state.seek(SeekFrom::Start(0))?;
        let mut sum = Sha256::new();
        io::copy(&mut state, &mut sum)?;
        manifest.state = hex::encode(sum.finalize());
        manifest.waiting = waiting.peer.to_string();
        manifest.request = hex::encode(&waiting.request);
        let text = manifest.serialize().map_err(io::Error::other)?;
        Ok(Self {
            manifest,
            text,
            waiting,
            memory,
            state: seal(state.into())?,
        })
    }

    /// What a machine that plays a script is saved as: memory without anything in it.
    pub(crate) fn scripted(cpus: u32, ram_kib: u64, waiting: Waiting) -> io::Result<Self> {
        let manifest = WarmManifest {
            qemu: "none".to_owned(),
            machine_type: "script".to_owned(),
            cpu_model: "none".to_owned(),
            accelerator: "none".to_owned(),
            host_cpu: None,
            options: "0".repeat(64),
            cpus: u64::from(cpus),
            ram: ram_kib,
            state: String::new(),
            waiting: String::new(),
            request: String::new(),
        };
        let memory = memory_file("warm.ram", ram_kib.saturating_mul(1024))?;
        let mut state = memory_file("warm.state", 0)?;
        // Each is another one.
        state.write_all(durable::random_hex()?.as_bytes())?;
        Self::new(manifest, waiting, memory.into(), state.into())
    }

    /// Reads what [`Base::store`] has written to a machine's directory. None: it was never saved.
    /// Blocks for as long as the memory takes.
    ///
    /// # Errors
    ///
    /// When it is not whole or cannot be read.
    pub fn load(directory: &Path) -> Result<Option<Self>, WarmError> {
        // Another one may take the machine's place meanwhile: all is read from one directory.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = match rustix::fs::open(directory, flags, Mode::empty()) {
            Ok(opened) => opened,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(trying("open", directory)(error.into())),
        };
        let open = |path: &Path| open(opened.as_fd(), path);
        let Some(text) = read_manifest(opened.as_fd(), directory)? else {
            return Ok(None);
        };
        let path = directory.join(WARM_MANIFEST);
        let damaged = |path: &Path, why: String| WarmError::Damaged {
            path: path.to_owned(),
            why,
        };
        let manifest = WarmManifest::parse(text.as_bytes(), WARM_MANIFEST)
            .map_err(|error| damaged(&path, error.to_string()))?;
        let peer = manifest.waiting.parse().ok();
        let request = hex::decode(&manifest.request).ok();
        let (Some(peer), Some(request)) = (peer, request) else {
            return Err(damaged(&path, "nobody waits in it".to_owned()));
        };

        let path = directory.join(WARM_STATE);
        let mut bytes = Vec::new();
        open(&path)?
            .take(STATE_LIMIT)
            .read_to_end(&mut bytes)
            .map_err(trying("read", &path))?;
        // QEMU notices no bit that is wrong in it.
        if hex::encode(Sha256::digest(&bytes)) != manifest.state {
            return Err(damaged(&path, "it is not what was saved".to_owned()));
        }
        let state = memory_file("warm.state", 0)
            .and_then(|mut file| {
                file.write_all(&bytes)?;
                seal(file.into())
            })
            .map_err(trying("read", &path))?;

        let path = directory.join(WARM_RAM);
        let file = open(&path)?;
        let length = file.metadata().map_err(trying("find", &path))?.len();
        if Some(length) != manifest.ram.checked_mul(1024) {
            return Err(damaged(&path, format!("it has {length} bytes")));
        }
        let memory = memory_file("warm.ram", length)
            .and_then(|mut memory| {
                copy_sparse(&file, &mut memory, length)?;
                seal(memory.into())
            })
            .map_err(trying("read", &path))?;
        Ok(Some(Self {
            manifest,
            text,
            waiting: Waiting { peer, request },
            memory,
            state,
        }))
    }

    /// The text of a machine's warm manifest. None: it was never saved.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn manifest_in(directory: &Path) -> Result<Option<String>, WarmError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(directory, flags, Mode::empty()) {
            Ok(opened) => read_manifest(opened.as_fd(), directory),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(trying("open", directory)(error.into())),
        }
    }

    /// Writes it into the machine's directory; the manifest last, and flushed, so that what is there
    /// is whole. Blocks for as long as the memory takes.
    ///
    /// # Errors
    ///
    /// When the directory cannot be written.
    pub fn store(&self, directory: &Path) -> Result<(), WarmError> {
        for (name, from) in [(WARM_RAM, &self.memory), (WARM_STATE, &self.state)] {
            let path = directory.join(name);
            let written = reopen(from.as_fd().as_raw_fd()).and_then(|from| {
                let length = from.metadata()?.len();
                let mut file = File::options()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open(&path)?;
                file.set_len(length)?;
                copy_sparse(&from, &mut file, length)?;
                file.sync_all()
            });
            written.map_err(trying("write", &path))?;
        }
        let path = directory.join(WARM_MANIFEST);
        durable::write(&path, self.text.as_bytes())
            .map_err(|error| trying("write", &path)(io::Error::other(error)))
    }

    /// What it needs to be restored.
    pub fn manifest(&self) -> &WarmManifest {
        &self.manifest
    }

    /// The manifest as it is written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What its worker waits for.
    pub fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    /// How much of the host's memory the saved memory takes, in KiB.
    pub fn resident_kib(&self) -> u64 {
        rustix::fs::fstat(&self.memory)
            .ok()
            .and_then(|stat| u64::try_from(stat.st_blocks).ok())
            .map_or(0, |blocks| blocks / 2)
    }

    /// The memory, for a process that maps it privately, whatever user it runs as.
    pub(crate) fn memory(&self) -> io::Result<OwnedFd> {
        self.memory.try_clone()
    }

    /// The devices' state from its beginning.
    pub(crate) fn state(&self) -> io::Result<OwnedFd> {
        Ok(reopen(self.state.as_raw_fd())?.into())
    }
}

/// A file in memory that other users may open by the name of its descriptor.
pub(crate) fn memory_file(name: &str, length: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create(name, flags)?;
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o666))?;
    let file = File::from(fd);
    file.set_len(length)?;
    Ok(file)
}

/// From now on nobody changes it.
fn seal(file: OwnedFd) -> io::Result<OwnedFd> {
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file)
}

/// The same file with a position of its own.
fn reopen(fd: i32) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{fd}"))
}

/// Reads the manifest of an open directory; none where there is none.
fn read_manifest(directory: BorrowedFd<'_>, shown: &Path) -> Result<Option<String>, WarmError> {
    let path = shown.join(WARM_MANIFEST);
    let file = match open(directory, &path) {
        Err(WarmError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        file => file?,
    };
    let mut text = String::new();
    file.take(MANIFEST_LIMIT)
        .read_to_string(&mut text)
        .map_err(trying("read", &path))?;
    Ok(Some(text))
}

/// Opens the file of an open directory that `path` names.
fn open(directory: BorrowedFd<'_>, path: &Path) -> Result<File, WarmError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let name = path.file_name().unwrap_or_default();
    rustix::fs::openat(directory, name, flags, Mode::empty())
        .map(File::from)
        .map_err(|error| trying("open", path)(error.into()))
}

/// Copies what is not a hole.
fn copy_sparse(mut from: &File, to: &mut File, length: u64) -> io::Result<()> {
    let mut at = 0;
    while at < length {
        let data = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole to the end.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(data))?;
        from.seek(SeekFrom::Start(data))?;
        to.seek(SeekFrom::Start(data))?;
        io::copy(&mut from.take(hole - data), to)?;
        at = hole;
    }
    Ok(())
}

fn trying(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WarmError + use<> {
    let path = path.to_owned();
    move |source| WarmError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn base() -> Base {
        let manifest = WarmManifest {
            qemu: "7.2.22 (Debian)".to_owned(),
            machine_type: "q35".to_owned(),
            cpu_model: "max".to_owned(),
            accelerator: "tcg".to_owned(),
            host_cpu: None,
            options: "0".repeat(64),
            cpus: 1,
            ram: 8192,
            state: String::new(),
            waiting: String::new(),
            request: String::new(),
        };
        let waiting = Waiting {
            peer: "196.254.111.2:40000".parse().unwrap(),
            request: b"\0\x01name\0octet\0".to_vec(),
        };
        let mut memory = memory_file("ram", 8 << 20).unwrap();
        for at in [0, 3 << 20, (8 << 20) - 5] {
            memory.seek(SeekFrom::Start(at)).unwrap();
            memory.write_all(b"saved").unwrap();
        }
        let mut state = memory_file("state", 0).unwrap();
        state.write_all(b"devices").unwrap();
        Base::new(manifest, waiting, memory.into(), state.into()).unwrap()
    }

    fn contents(fd: &OwnedFd) -> Vec<u8> {
        let mut bytes = Vec::new();
        reopen(fd.as_raw_fd())
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        bytes
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Base::load(folder.path()).unwrap().is_none());
        let saved = base();
        saved.store(folder.path()).unwrap();
        let loaded = Base::load(folder.path()).unwrap().unwrap();
        assert_eq!(loaded.manifest(), saved.manifest());
        assert_eq!(loaded.text(), saved.text());
        assert_eq!(loaded.waiting(), saved.waiting());
        assert!(contents(&loaded.memory) == contents(&saved.memory));
        assert_eq!(contents(&loaded.state), b"devices");
        // The holes are holes, here and there.
        for file in [
            File::open(folder.path().join(WARM_RAM)).unwrap(),
            reopen(loaded.memory.as_raw_fd()).unwrap(),
        ] {
            use std::os::unix::fs::MetadataExt as _;
            assert!(file.metadata().unwrap().blocks() * 512 < 2 << 20);
        }
        assert!(loaded.resident_kib() < 2048);
    }

    #[test]
    fn nobody_changes_a_base() {
        let base = base();
        for fd in [base.memory().unwrap(), base.state().unwrap()] {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let mut file = File::options().read(true).write(true).open(path).unwrap();
            assert!(file.write_all(b"x").is_err());
            assert!(file.set_len(0).is_err());
        }
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let stored = || {
            let folder = tempfile::tempdir().unwrap();
            base().store(folder.path()).unwrap();
            folder
        };
        type Damage<'a> = &'a dyn Fn(&Path);
        let damages: [(&str, Damage<'_>); 4] = [
            ("not what was saved", &|folder| {
                fs::write(folder.join(WARM_STATE), "devicez").unwrap();
            }),
            ("bytes", &|folder| {
                let file = File::options().write(true).open(folder.join(WARM_RAM));
                file.unwrap().set_len(4 << 20).unwrap();
            }),
            ("unable to open", &|folder| {
                fs::remove_file(folder.join(WARM_RAM)).unwrap();
            }),
            ("expected", &|folder| {
                fs::write(folder.join(WARM_MANIFEST), "rubbish").unwrap();
            }),
        ];
        for (why, damage) in damages {
            let folder = stored();
            damage(folder.path());
            let error = Base::load(folder.path()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
