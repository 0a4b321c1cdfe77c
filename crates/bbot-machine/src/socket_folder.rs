//! The private folder of one run's sockets.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::machine::Error;

/// The longest path of a socket, in bytes: `sun_path` less the NUL (unix(7)).
const LONGEST: usize = 107;

/// `<run_dir>/<name>`, which nobody but its owner comes into. Removed when dropped, and `run_dir`
/// with it if it was made here.
#[derive(Debug)]
pub(crate) struct SocketFolder {
    path: PathBuf,
    made: Option<PathBuf>,
}

impl SocketFolder {
    /// Makes the folder, anew if one was left there. `sockets` are the names of those that will be
    /// in it.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or is too deep down for a socket.
    pub(crate) fn create(run_dir: &Path, name: &str, sockets: &[&str]) -> Result<Self, Error> {
        let path = run_dir.join(name);
        let longest = sockets.iter().map(|name| name.len()).max().unwrap_or(0);
        let length = path.as_os_str().len() + 1 + longest;
        if length > LONGEST {
            let reason = format!(
                "the path of a socket in it would have {length} bytes, and {LONGEST} is the most: \
                 choose a shorter one"
            );
            return Err(failed("use the folder", &path)(io::Error::other(reason)));
        }
        let mut private = std::fs::DirBuilder::new();
        private.mode(0o700);
        let made = match private.create(run_dir) {
            Ok(()) => Some(run_dir.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Someone's sockets are in here soon: nobody else comes in.
                std::fs::set_permissions(run_dir, std::fs::Permissions::from_mode(0o700))
                    .map_err(failed("make private", run_dir))?;
                None
            }
            Err(error) => return Err(failed("make the folder", run_dir)(error)),
        };
        let folder = Self { path, made };
        match std::fs::remove_dir_all(&folder.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove the leftover folder", &folder.path)(error));
            }
            _ => {}
        }
        private
            .create(&folder.path)
            .map_err(failed("make the folder", &folder.path))?;
        Ok(folder)
    }

    /// Gives the folder itself to another user, who does not come through `run_dir` to it.
    ///
    /// # Errors
    ///
    /// When the agent may not.
    pub(crate) fn give_to(&self, uid: u32, gid: u32) -> Result<(), Error> {
        std::os::unix::fs::chown(&self.path, Some(uid), Some(gid))
            .map_err(failed("give away the folder", &self.path))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn failed<'a>(what: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + use<'a> {
    move |source| Error::Io {
        what: format!("{what} {}", path.display()),
        source,
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("unable to remove {}: {error}", self.path.display());
        }
        if let Some(made) = &self.made {
            // Not empty: then someone else has use for it.
            let _ = std::fs::remove_dir(made);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_private_and_leaves_nothing() {
        let top = tempfile::tempdir().unwrap();
        let run_dir = top.path().join("run");
        let folder = SocketFolder::create(&run_dir, "kind", &["console"]).unwrap();
        for path in [&run_dir, folder.path()] {
            let mode = std::fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o700, "{}", path.display());
        }
        std::fs::write(folder.path().join("console"), "").unwrap();
        drop(folder);
        assert!(!run_dir.exists());

        // What was there before stays, and is closed; what was left in it is removed.
        std::fs::create_dir_all(run_dir.join("kind/left")).unwrap();
        std::fs::set_permissions(&run_dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        let folder = SocketFolder::create(&run_dir, "kind", &["console"]).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let mode = std::fs::metadata(&run_dir).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        drop(folder);
        assert!(run_dir.exists() && !run_dir.join("kind").exists());
    }

    #[test]
    fn one_that_no_socket_fits_in_is_refused() {
        let top = tempfile::tempdir().unwrap();
        let used = top.path().as_os_str().len() + "//kind/console".len();
        for (more, fits) in [(LONGEST - used, true), (LONGEST - used + 1, false)] {
            let run_dir = top.path().join("x".repeat(more));
            let made = SocketFolder::create(&run_dir, "kind", &["vnc", "console"]);
            match made {
                Ok(folder) => {
                    assert!(fits, "{more}");
                    std::os::unix::net::UnixListener::bind(folder.path().join("console")).unwrap();
                }
                Err(error) => {
                    assert!(!fits, "{error}");
                    let source = std::error::Error::source(&error).unwrap().to_string();
                    assert!(source.contains("choose a shorter one"), "{source}");
                    assert!(!run_dir.exists());
                }
            }
        }
    }
}
