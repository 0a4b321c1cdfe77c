//! Objects as files in a directory: each is written beside its place, synced, and renamed.

use std::error::Error;
use std::io;
use std::path::Path;
use std::time::Duration;

use object_store::local::LocalFileSystem;

use super::Kind;

/// A file that is not whole yet and was not written to for so long is left from a controller that was killed. Several may share the
/// directory.
const LEFT: Duration = Duration::from_secs(24 * 3600);

/// Opens the directory, makes it where there is none, and removes what was left half-written.
pub(super) fn open(path: &Path) -> Result<LocalFileSystem, Box<dyn Error + Send + Sync>> {
    use std::os::unix::fs::DirBuilderExt as _;
    for kind in Kind::ALL {
        let folder = path.join(kind.place().0);
        // Sources and logs are nobody else's business. A directory that is there keeps its mode.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        remove_left(&folder)?;
    }
    std::fs::File::open(path)?.sync_all()?;
    Ok(LocalFileSystem::new_with_prefix(path)?.with_fsync(true))
}

fn remove_left(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // What is on its way has a number behind its name, as no object's name has.
        if !entry.file_name().as_encoded_bytes().contains(&b'#') {
            continue;
        }
        let written = entry.metadata().and_then(|m| m.modified());
        if !written.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > LEFT)) {
            continue;
        }
        match std::fs::remove_file(entry.path()) {
            // Another controller was faster.
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
