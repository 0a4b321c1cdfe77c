//! Tells that something has changed about the machines, so that they need not be looked at to find
//! out (inotify).
//!
//! Watched are directories: where machines come and go, the machines themselves, their current
//! revision and what was bootstrapped of it, and the toolchain. What runs make and delete in them
//! says nothing. What is missed all the same (a file system that tells nothing) is found by the look
//! that there is each minute.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bbot_machine::layout::{self, BOOTSTRAP_PROTOCOL, MachineDir, ToolchainName};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use crate::options::Options;
use crate::toolchain;

/// Who changes a machine changes more than one thing.
const SETTLE: Duration = Duration::from_millis(50);

/// Room for events: each has a name at most.
const BUFFER: usize = 16 * 1024;

/// A watch over directories. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    fd: Arc<AsyncFd<OwnedFd>>,
    /// The directories, with their numbers.
    watched: Arc<Mutex<HashMap<PathBuf, i32>>>,
    /// When the first change came that was not told yet.
    since: Arc<Mutex<Option<Instant>>>,
}

impl Watch {
    /// One that watches nothing yet. Within a runtime.
    ///
    /// # Errors
    ///
    /// When the system has no more of them.
    pub(crate) fn new() -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        #[expect(
            unsafe_code,
            reason = "tokio cannot know that the descriptor stays open"
        )]
        // SAFETY: the descriptor is owned by what it is registered with, and closed after it.
        let fd = unsafe { AsyncFd::register(fd) }?;
        Ok(Self {
            fd: Arc::new(fd),
            watched: Arc::default(),
            since: Arc::default(),
        })
    }

    /// Watches what there is now; to be called before it is looked at, so that nothing is missed
    /// between. Blocks.
    ///
    /// # Errors
    ///
    /// When not all of it can be watched.
    pub(crate) fn follow(&self, options: &Options, toolchain: &ToolchainName) -> io::Result<()> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = HashMap::new();
        // From the top: what comes meanwhile is told by the directory above it.
        let mut add = |path: PathBuf| -> io::Result<()> {
            match inotify::add_watch(self.fd.get_ref(), &path, flags()) {
                Ok(number) => {
                    now.insert(path, number);
                    Ok(())
                }
                // It went, never was there, or is nothing of ours.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::PERM) => Ok(()),
                Err(error) => Err(error.into()),
            }
        };
        let toolchains = toolchain::root(&options.tftp);
        let current = toolchains.join(toolchain.as_str());
        add(toolchains)?;
        add(current)?;
        add(options.machines.clone())?;
        for volume in folders(&options.machines) {
            add(volume)?;
        }
        // What cannot be read is told when it is looked at.
        let found = layout::scan(&options.machines);
        let (machines, problems) = found.map_or_else(
            |_| (Vec::new(), Vec::new()),
            |found| (found.machines, found.problems),
        );
        // What is wrong with one may be mended in its revision.
        let bad = problems.into_iter().filter_map(|problem| {
            let (name, path) = (problem.machine?, problem.path);
            Some(MachineDir { path, name })
        });
        for machine in machines.into_iter().chain(bad) {
            add(machine.path.clone())?;
            add(machine.bootstrapped(toolchain))?;
            if let Ok(Some(revision)) = layout::resolve_current(&machine, BOOTSTRAP_PROTOCOL) {
                add(revision)?;
            }
        }
        for (path, number) in watched.drain() {
            if !now.values().any(|still| *still == number) {
                tracing::trace!("{} is not watched any more", path.display());
                // One that was deleted is not there to be removed.
                let _ = inotify::remove_watch(self.fd.get_ref(), number);
            }
        }
        *watched = now;
        Ok(())
    }

    /// Waits until something has changed, and a moment more. Cancel safe: what was not told is told
    /// the next time.
    pub(crate) async fn changed(&self) {
        loop {
            let since = *self.since();
            if let Some(since) = since {
                sleep_until(since + SETTLE).await;
                // What came meanwhile is seen by the same look.
                self.is_anything();
                *self.since() = None;
                return;
            }
            let Ok(mut ready) = self.fd.readable().await else {
                // The runtime ends.
                return std::future::pending().await;
            };
            ready.clear_ready();
            if self.is_anything() {
                *self.since() = Some(Instant::now());
            }
        }
    }

    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads all that was told: whether anything of it counts.
    fn is_anything(&self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = Reader::new(self.fd.get_ref(), &mut buffer);
        let mut counts = false;
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| name.to_bytes());
                    let events = event.events();
                    // That something is not watched any more is no news.
                    counts |= events.contains(ReadFlags::QUEUE_OVERFLOW)
                        || !events.contains(ReadFlags::IGNORED) && name.is_none_or(is_of_interest);
                }
                Err(Errno::INTR) => {}
                // There is no more.
                Err(_) => return counts,
            }
        }
    }
}

fn flags() -> WatchFlags {
    WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR
}

/// Whether something of this name may be (part of) a machine: no record, and no copy that a run has.
fn is_of_interest(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name);
    !name.starts_with('.') && !layout::ends_like_a_temporary(&name)
}

/// The directories in one, links to some as well.
fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let shown = entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    let folders = shown.map(|entry| entry.path());
    folders.filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_changes_is_told_once_whoever_gives_up_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let options = [
            "bbot-agent".into(),
            "--machines".into(),
            dir.path().join("machines").into_os_string(),
            "--tftp".into(),
            dir.path().join("tftp").into_os_string(),
        ];
        let options = <crate::options::Options as clap::Parser>::parse_from(options);
        let machine = options.machines.join("vol/linux");
        fs::create_dir_all(machine.join("linux-1.1")).unwrap();
        std::os::unix::fs::symlink("linux-1.1", machine.join("linux-1")).unwrap();
        fs::create_dir_all(options.tftp.join("toolchains")).unwrap();
        let toolchain: ToolchainName = "default".parse().unwrap();
        let watch = Watch::new().unwrap();
        watch.follow(&options, &toolchain).unwrap();
        let long = Duration::from_secs(20);
        let is_quiet = async || timeout(SETTLE * 6, watch.changed()).await.is_err();
        assert!(is_quiet().await);

        let changes: [(&str, &dyn Fn()); 5] = [
            ("a manifest", &|| {
                fs::write(machine.join("linux-1.1/manifest"), "x").unwrap();
            }),
            ("a revision", &|| {
                fs::create_dir(machine.join("linux-1.2")).unwrap();
            }),
            ("the current one", &|| {
                std::os::unix::fs::symlink("linux-1.2", machine.join("new")).unwrap();
                fs::rename(machine.join("new"), machine.join("linux-1")).unwrap();
            }),
            ("a volume", &|| {
                fs::create_dir(options.machines.join("other")).unwrap();
            }),
            ("a toolchain", &|| {
                fs::create_dir(options.tftp.join("toolchains/default")).unwrap();
            }),
        ];
        for (what, change) in changes {
            change();
            // Somebody waits, and has something better to do.
            let _ = timeout(SETTLE / 5, watch.changed()).await;
            timeout(long, watch.changed()).await.expect(what);
            watch.follow(&options, &toolchain).unwrap();
            assert!(is_quiet().await, "{what}");
        }
        // A revision that came later is watched as well.
        fs::write(machine.join("linux-1.2/manifest"), "x").unwrap();
        timeout(long, watch.changed()).await.unwrap();
        // What runs do says nothing.
        let copy = machine.join("linux-default-t0123456789abcdef");
        fs::create_dir(&copy).unwrap();
        fs::write(machine.join(".linux-default-t0123456789abcdef.owner"), "x").unwrap();
        fs::remove_dir(&copy).unwrap();
        assert!(is_quiet().await);
    }

    #[test]
    fn what_runs_make_says_nothing() {
        for (name, expected) in [
            ("linux-1.2", true),
            ("linux-1", true),
            ("linux-default", true),
            ("manifest", true),
            ("linux-default-t0123456789abcdef", false),
            (".linux-default-t0123456789abcdef.owner", false),
        ] {
            assert_eq!(is_of_interest(name.as_bytes()), expected, "{name}");
        }
    }
}
