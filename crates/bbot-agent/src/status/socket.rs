//! The agent's UNIX socket as a file: where it is, making it, finding it.
//!
//! The socket of a dead agent is replaced, the one of a living agent never. A new
//! socket is made beside its place, closed to others, and then renamed to it, so that
//! at no time there is one that anybody may use. A path that is too long for a
//! socket's address (107 bytes) is reached by way of its folder's file descriptor.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{Mode, OFlags};

/// Where agents of root have their sockets.
const RUN: &str = "/run/bbot-agent";

/// The longest path that fits into a socket's address.
const LONGEST: usize = 107;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// An agent answers there.
    #[error("{path}: another agent answers there; give --status-socket another path")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// It is something else.
    #[error("{path} is not a socket; remove it, or give --status-socket another path")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// Its path ends in no name.
    #[error("{path} does not name a file; give --status-socket the path of the socket")]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be made.
    #[error(
        "unable to make the socket {path}; give --status-socket a path in a folder that is writable"
    )]
    Make {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The path of a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(pub PathBuf);

impl Place {
    /// Makes the socket, for its owner alone, and its folder when it is missing.
    ///
    /// # Errors
    ///
    /// [`SocketError`]: a living agent's socket and what is no socket stay as they
    /// are.
    pub fn listen(&self) -> Result<(UnixListener, Claim), SocketError> {
        let path = &self.0;
        let make = |source| SocketError::Make {
            path: path.clone(),
            source,
        };
        let (Some(folder), Some(_)) = (path.parent(), path.file_name()) else {
            return Err(SocketError::NoName { path: path.clone() });
        };
        if !folder.as_os_str().is_empty() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(folder)
                .map_err(make)?;
        }
        match fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(SocketError::NotASocket { path: path.clone() });
            }
            Ok(_) => match self.connect() {
                Ok(_) => return Err(SocketError::InUse { path: path.clone() }),
                Err(e) if is_dead(&e) => {}
                // A living agent whose queue is full, or one that we may not talk to.
                Err(_) => return Err(SocketError::InUse { path: path.clone() }),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(make(e)),
        }
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let hidden = folder.join(format!(".{}-{number}.sock", std::process::id()));
        let made = (|| {
            // What an earlier process of this number has left.
            let _ = fs::remove_file(&hidden);
            let (address, _folder) = address(&hidden)?;
            let listener = UnixListener::bind(address)?;
            fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600))?;
            let inode = fs::symlink_metadata(&hidden)?.ino();
            fs::rename(&hidden, path)?;
            Ok((listener, inode))
        })();
        match made {
            Ok((listener, inode)) => {
                let path = path.clone();
                Ok((listener, Claim { path, inode }))
            }
            Err(e) => {
                let _ = fs::remove_file(&hidden);
                Err(make(e))
            }
        }
    }

    /// Connects to it.
    ///
    /// # Errors
    ///
    /// As `connect(2)`: not there, nobody listens, not allowed.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let (address, _folder) = address(&self.0)?;
        UnixStream::connect(address)
    }
}

fn is_dead(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
    )
}

/// The path that a socket's address has room for; the folder is to be kept open while
/// it is used.
fn address(path: &Path) -> io::Result<(PathBuf, Option<OwnedFd>)> {
    if path.as_os_str().len() <= LONGEST {
        return Ok((path.to_owned(), None));
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    Ok((short, Some(folder)))
}

/// The socket that a process has made; the file goes with this, unless somebody else
/// has put another one in its place.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    inode: u64,
}

impl Claim {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Where an agent of this toolchain has its socket unless told otherwise: in a state
/// folder that was given (`state`), else in `/run/bbot-agent` for root, else in the
/// user's run-time folder, else in the default state folder.
pub fn default_socket(state: Option<&Path>, default_state: &Path, toolchain: &str) -> PathBuf {
    let folder = match state {
        Some(state) => state.to_owned(),
        None => run_folder().unwrap_or_else(|| default_state.to_owned()),
    };
    folder.join(format!("{toolchain}.sock"))
}

fn run_folder() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from(RUN));
    }
    std::env::var_os("XDG_RUNTIME_DIR")
        .filter(|value| !value.is_empty())
        .map(|value| PathBuf::from(value).join("bbot-agent"))
}

/// The sockets of agents in these folders and in those of [`default_socket`], and the
/// folders that were looked at. Whether anybody answers is another question.
pub fn known_sockets(folders: &[PathBuf], default_state: &Path) -> (Vec<Place>, Vec<PathBuf>) {
    let mut looked_at: Vec<PathBuf> = folders.to_vec();
    looked_at.extend(run_folder());
    looked_at.push(PathBuf::from(RUN));
    looked_at.push(default_state.to_owned());
    let mut seen = std::collections::HashSet::new();
    looked_at.retain(|folder| seen.insert(folder.clone()));
    let mut found = Vec::new();
    for folder in &looked_at {
        let Ok(entries) = fs::read_dir(folder) else {
            continue;
        };
        let mut sockets: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
            .map(|entry| entry.path())
            .filter(|path| {
                path.extension().is_some_and(|end| end == "sock")
                    && !path
                        .file_name()
                        .is_some_and(|name| name.to_string_lossy().starts_with('.'))
            })
            .collect();
        sockets.sort();
        found.extend(sockets.into_iter().map(Place));
    }
    (found, looked_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_agents_socket_is_replaced_and_a_living_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place(folder.path().join("deep/er/a.sock"));
        let (listener, claim) = place.listen().unwrap();
        let mode = fs::metadata(&place.0).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(place.listen(), Err(SocketError::InUse { .. })));
        assert!(place.connect().is_ok());
        // Killed: the listener goes, the file stays.
        drop(listener);
        std::mem::forget(claim);
        assert!(place.0.exists());
        let (_listener, claim) = place.listen().unwrap();
        assert!(place.connect().is_ok());
        drop(claim);
        assert!(!place.0.exists());
        // Nothing hidden is left.
        assert_eq!(fs::read_dir(place.0.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.sock");
        fs::write(&file, "precious").unwrap();
        let place = Place(file.clone());
        assert!(matches!(
            place.listen(),
            Err(SocketError::NotASocket { .. })
        ));
        assert_eq!(fs::read_to_string(file).unwrap(), "precious");
        assert!(matches!(
            Place(PathBuf::from("/")).listen(),
            Err(SocketError::NoName { .. })
        ));
    }

    #[test]
    fn a_claim_removes_its_own_socket_only() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place(folder.path().join("a.sock"));
        let (listener, first) = place.listen().unwrap();
        drop(listener);
        let (_listener, _second) = place.listen().unwrap();
        drop(first);
        assert!(place.connect().is_ok());
    }

    #[test]
    fn a_long_path_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place(folder.path().join("x".repeat(120)).join("y".repeat(80)));
        let (_listener, _claim) = place.listen().unwrap();
        assert!(place.connect().is_ok());
    }

    #[test]
    fn an_agent_is_found_where_it_is_by_default() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        let path = default_socket(Some(state), Path::new("/nowhere"), "tools");
        assert_eq!(path, state.join("tools.sock"));
        let (_listener, _claim) = Place(path.clone()).listen().unwrap();
        fs::write(state.join("other.sock"), "").unwrap();
        let (found, looked_at) = known_sockets(&[state.to_owned()], state);
        assert!(found.contains(&Place(path)), "{found:?}");
        assert!(!found.contains(&Place(state.join("other.sock"))));
        assert_eq!(looked_at.iter().filter(|p| *p == state).count(), 1);
    }
}
