//! The current revision: where the link leads, and leading it elsewhere.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{LayoutError, MachineDir};
use crate::durable;

/// Where the link `<machine>-<P>` leads: the path of the current revision in the machine's
/// directory. `None` when there is no link, so no current revision for this protocol.
///
/// The link may be relative (to the machine's directory) or absolute, as in the seed, and may lead
/// over other links; the revision it leads to must lie in the machine's own directory.
///
/// # Errors
/// When something else is in the link's place, or it leads in a circle, outside, or to no directory;
/// [`LayoutError::Dangling`] when it leads to nothing, which [`LayoutError::is_race`] takes for
/// worth another try.
pub fn resolve_current(
    machine: &MachineDir,
    protocol: u32,
) -> Result<Option<PathBuf>, LayoutError> {
    let link = machine.current_link(protocol);
    let text = match std::fs::read_link(&link) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
            return Err(LayoutError::NotLink { path: link });
        }
        Err(e) => return Err(LayoutError::io("read link", &link, e)),
    };
    let target = machine.path.join(&text);
    let home = machine
        .path
        .canonicalize()
        .map_err(|e| LayoutError::io("resolve", &machine.path, e))?;
    let real = match target.canonicalize() {
        Ok(real) => real,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(dangling(&link, &target, &home));
        }
        Err(e) if e.raw_os_error() == Some(libc::ELOOP) => {
            return Err(LayoutError::Loop { link });
        }
        Err(e) => return Err(LayoutError::io("resolve link", &link, e)),
    };
    match real.file_name() {
        Some(name) if real.parent() == Some(&*home) => {
            let path = machine.path.join(name);
            if !real.is_dir() {
                return Err(LayoutError::NotDirectory { link, target: path });
            }
            Ok(Some(path))
        }
        _ => Err(LayoutError::Escape { link, target: real }),
    }
}

/// Nothing is there; still, a link that would lead outside is no race.
fn dangling(link: &Path, target: &Path, home: &Path) -> LayoutError {
    let inside = target
        .parent()
        .and_then(|parent| parent.canonicalize().ok())
        .is_some_and(|parent| parent == home);
    let (link, target) = (link.to_path_buf(), target.to_path_buf());
    if inside {
        LayoutError::Dangling { link, target }
    } else {
        LayoutError::Escape { link, target }
    }
}

/// Makes a revision the current one: the link is switched in one step, so that whoever reads it sees
/// the old revision or the new one. Durable when it returns.
///
/// # Errors
/// When there is no such revision, or something that is no link is in the link's place.
pub fn activate(machine: &MachineDir, protocol: u32, revision: &str) -> Result<(), LayoutError> {
    let target = machine.revision(protocol, revision);
    if !target.symlink_metadata().is_ok_and(|m| m.is_dir()) {
        return Err(LayoutError::NoRevision {
            machine: machine.name.clone(),
            revision: revision.to_string(),
            path: target,
        });
    }
    let link = machine.current_link(protocol);
    if link.symlink_metadata().is_ok_and(|m| !m.is_symlink()) {
        return Err(LayoutError::NotLink { path: link });
    }
    // Two at once make two links of their own, and the later rename wins.
    let random = durable::random_hex().map_err(|e| LayoutError::io("name", &link, e))?;
    let beside = durable::hidden_sibling(&link, &random)?;
    symlink(format!("{}-{protocol}.{revision}", machine.name), &beside)
        .map_err(|e| LayoutError::io("create link", &beside, e))?;
    if let Err(e) = std::fs::rename(&beside, &link) {
        let _ = std::fs::remove_file(&beside);
        return Err(LayoutError::io("switch link", &link, e));
    }
    durable::sync_directory(&machine.path)?;
    Ok(())
}
