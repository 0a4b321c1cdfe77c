//! What lies around: everything that agents, machines and controllers can leave on a host, listed before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use super::process;

/// What there is, a line for each thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inventory(BTreeSet<String>);

/// Where to look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places<'a> {
    /// Where every name counts: machines, folders of runs, the spool, temporary files.
    pub(super) folders: &'a [&'a Path],
    /// Beginnings of names of control groups: the host's are everybody's, so only those of our own agents count.
    pub(super) groups: &'a [String],
    /// A process that does not count with those below it: the test itself.
    pub(super) ours: u32,
}

impl Inventory {
    /// Looks around. The caller has network, mounts and processes to itself.
    pub(super) fn take(places: Places<'_>) -> anyhow::Result<Self> {
        let mut found = BTreeSet::new();
        for process in process::all()? {
            if process.id != 1 && process.id != places.ours {
                found.insert(format!("process {} {}", process.name, process.id));
            }
        }
        for folder in places.folders {
            names(folder, 4, &mut found)?;
        }
        // mount point: field 5 (proc(5))
        let mounts =
            fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
        found.extend(
            mounts
                .lines()
                .filter_map(|line| line.split(' ').nth(4))
                .map(|at| format!("mount {at}")),
        );
        let cards = fs::read_to_string("/proc/net/dev").context("cannot read the network cards")?;
        found.extend(
            cards
                .lines()
                .filter_map(|line| line.split_once(':'))
                .map(|(card, _)| format!("network card {}", card.trim())),
        );
        let sockets = fs::read_to_string("/proc/net/unix").context("cannot read the sockets")?;
        // Num RefCount Protocol Flags Type St Inode Path
        found.extend(
            sockets
                .lines()
                .skip(1)
                .filter_map(|line| line.split_whitespace().nth(7))
                .map(|path| format!("socket {path}")),
        );
        let mut groups = BTreeSet::new();
        names(Path::new("/sys/fs/cgroup"), 4, &mut groups)?;
        let is_ours = |path: &&String| {
            let name = path.rsplit('/').next().unwrap_or_default();
            places
                .groups
                .iter()
                .any(|begin| name.starts_with(begin.as_str()))
        };
        found.extend(groups.iter().filter(is_ours).cloned());
        // Only where there is such a program can there be such rules.
        if let Ok(rules) = Command::new("nft").args(["list", "tables"]).output() {
            found.extend(
                String::from_utf8_lossy(&rules.stdout)
                    .lines()
                    .map(|table| format!("nftables {table}")),
            );
        }
        Ok(Self(found))
    }

    /// What is here and was not there before.
    pub(super) fn more_than<'a>(&'a self, before: &'a Self) -> Vec<&'a str> {
        self.0.difference(&before.0).map(String::as_str).collect()
    }
}

/// The names below a folder, so many levels deep.
fn names(folder: &Path, levels: u32, found: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", folder.display()));
        }
    };
    for entry in entries.flatten() {
        let path = entry.path();
        found.insert(path.display().to_string());
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && levels > 1 {
            names(&path, levels - 1, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let names = |found: &mut BTreeSet<String>| super::names(dir.path(), 4, found).unwrap();
        let mut before = BTreeSet::new();
        names(&mut before);
        assert!(before.is_empty());
        fs::create_dir_all(dir.path().join("a/b/c/d/e")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        let mut after = BTreeSet::new();
        names(&mut after);
        assert_eq!(after.len(), 5, "four levels and the socket: {after:?}");
        let places = Places {
            folders: &[],
            groups: &[],
            ours: std::process::id(),
        };
        let inventory = Inventory::take(places).unwrap();
        let socket = format!("socket {}", dir.path().join("s").display());
        assert!(inventory.0.contains(&socket));
        assert_eq!(inventory.more_than(&inventory), Vec::<&str>::new());
        assert_eq!(
            inventory.more_than(&Inventory(BTreeSet::new())).len(),
            inventory.0.len()
        );
    }
}
