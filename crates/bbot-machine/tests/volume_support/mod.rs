//! Volumes of either kind to test on.

#![expect(
    dead_code,
    reason = "every test binary uses its own part of this module"
)]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bbot_machine::volume::{self, Kind, Volume};
use testkit::{Mount, run, text};

/// A directory on a volume of one kind; gone, and unmounted, when dropped.
pub(crate) struct Place {
    pub(crate) volume: Arc<dyn Volume>,
    pub(crate) directory: PathBuf,
    // Dropped in this order: a mount before the directory that it lies in.
    mount: Option<Mount>,
    temporary: tempfile::TempDir,
}

impl Place {
    /// Plain directories on whatever file system the temporary directory is.
    pub(crate) fn copy() -> Option<Self> {
        let temporary = tempfile::tempdir().unwrap();
        Some(Self {
            volume: Arc::new(volume::Copy),
            directory: temporary.path().to_path_buf(),
            mount: None,
            temporary,
        })
    }

    /// btrfs on a file. `None` where it cannot be had.
    pub(crate) fn btrfs() -> Option<Self> {
        if !testkit::btrfs() {
            return None;
        }
        let temporary = tempfile::tempdir().unwrap();
        private_mounts();
        let mount = Mount::btrfs(temporary.path(), 256 << 20);
        let directory = mount.path().to_path_buf();
        let volume: Arc<dyn Volume> = volume::detect(&directory).unwrap().into();
        assert_eq!(volume.kind(), Kind::Btrfs);
        Some(Self {
            volume,
            directory,
            mount: Some(mount),
            temporary,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A directory that belongs to the user of [`as_ordinary_user`], who can come through to it.
    pub(crate) fn home_of_an_ordinary_user(&self) -> PathBuf {
        let open = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        open(self.temporary.path(), 0o711);
        open(&self.directory, 0o755);
        let home = self.path("home");
        std::fs::create_dir(&home).unwrap();
        run("chown", &["65534:65534", text(&home)]);
        home
    }

    /// The names in the directory, hidden ones too.
    pub(crate) fn names(&self) -> Vec<String> {
        names(&self.directory)
    }
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Gives this thread, and whatever it starts, a view of its own on what is mounted: what a test
/// mounts goes with it even when it is killed.
fn private_mounts() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    run("mount", &["--make-rprivate", "/"]);
}

/// Shows a directory at a second place.
pub(crate) fn bind(from: &Path, to: &Path) -> Mount {
    private_mounts();
    Mount::new(&["--bind", text(from)], to)
}

/// A file system with room for `size`, as `mount` takes it.
pub(crate) fn small(size: &str, at: &Path) -> Mount {
    private_mounts();
    Mount::new(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], at)
}

/// Everything about a tree that a copy must keep, one line each.
pub(crate) fn describe(top: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    describe_into(top, Path::new(""), &mut lines);
    lines.sort();
    lines
}

fn describe_into(top: &Path, below: &Path, lines: &mut Vec<String>) {
    let path = top.join(below);
    let metadata = path.symlink_metadata().unwrap();
    let kind = metadata.file_type();
    let content = if kind.is_symlink() {
        format!("-> {}", std::fs::read_link(&path).unwrap().display())
    } else if kind.is_file() {
        let bytes = std::fs::read(&path).unwrap();
        format!("{} bytes {:x}", bytes.len(), checksum(&bytes))
    } else {
        String::new()
    };
    let mut note = [0u8; 16];
    let note = match rustix::fs::lgetxattr(&path, "user.note", &mut note) {
        Ok(length) => String::from_utf8_lossy(&note[..length]).into_owned(),
        Err(_) => String::new(),
    };
    let links = if kind.is_dir() { 0 } else { metadata.nlink() };
    // A symbolic link's mode means nothing.
    let mode = if kind.is_symlink() {
        0
    } else {
        metadata.permissions().mode()
    };
    lines.push(format!(
        "{} mode {mode:o} owner {}:{} links {links} device {:x} time {}.{:09} {note} {content}",
        below.display(),
        metadata.uid(),
        metadata.gid(),
        metadata.rdev(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    ));
    if kind.is_dir() {
        for name in names(&path) {
            describe_into(top, &below.join(name), lines);
        }
    }
}

/// FNV-1a; enough to tell copies from their source.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Runs `work` as an ordinary user, in a thread of its own whose identity is changed.
pub(crate) fn as_ordinary_user<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                use rustix::fs::{Gid, Uid};
                let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
                rustix::thread::set_thread_groups(&[]).unwrap();
                rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
                rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                work()
            })
            .join()
            .unwrap()
    })
}

/// One body, run on both kinds of volume.
#[macro_export]
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod copy {
            $(#[test]
            fn $name() {
                if let Some(place) = $crate::volume_support::Place::copy() {
                    super::$name(&place);
                }
            })*
        }
        mod btrfs {
            $(#[test]
            fn $name() {
                if let Some(place) = $crate::volume_support::Place::btrfs() {
                    super::$name(&place);
                }
            })*
        }
    };
}
