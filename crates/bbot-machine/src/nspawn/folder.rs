//! The private folder of a run's sockets.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// `<run_dir>/nspawn`. Removed when dropped, and `run_dir` with it if it was made here.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    made: Option<PathBuf>,
}

impl Folder {
    /// Makes the folder, anew if one was left there.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub(super) fn create(run_dir: &Path) -> io::Result<Self> {
        let path = run_dir.join("nspawn");
        let mut private = std::fs::DirBuilder::new();
        private.mode(0o700);
        let made = match private.create(run_dir) {
            Ok(()) => Some(run_dir.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                std::fs::set_permissions(run_dir, std::fs::Permissions::from_mode(0o700))?;
                None
            }
            Err(error) => return Err(error),
        };
        let folder = Self { path, made };
        match std::fs::remove_dir_all(&folder.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        private.create(&folder.path)?;
        Ok(folder)
    }

    /// The socket that shows the console.
    pub(super) fn console(&self) -> PathBuf {
        self.path.join("console")
    }

    /// The socket on which nspawn tells that the container runs.
    pub(super) fn notify(&self) -> PathBuf {
        self.path.join("notify")
    }
}

impl Drop for Folder {
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
