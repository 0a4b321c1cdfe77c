//! Starting nspawn, and again after its container has restarted itself.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::time::Instant;

use super::command::WRAPPER;
use super::enclosure;
use super::groups::Groups;
use super::signals::Leader;
use super::users::Range;
use crate::machine::Error;
use crate::qemu::process::{self, Process};
use crate::socket_folder::SocketFolder;

/// How long nspawn may take until the container runs; it takes a tenth of a second unless the host
/// is swamped, or files have to be given away one by one.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// How long the container's first process is looked for.
const LEADER_TIMEOUT: Duration = Duration::from_secs(2);

/// All that is needed to start a container.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) name: String,
    pub(super) program: OsString,
    pub(super) arguments: Vec<String>,
    pub(super) directory: PathBuf,
    /// The container's root directory.
    pub(super) rootfs: CString,
    /// Where the container's cards are before it has them, and again when it has ended by itself.
    pub(super) cards: OwnedFd,
    pub(super) notify: UnixDatagram,
    /// Where the container's output goes.
    pub(super) output: File,
    // Dropped in this order: the groups are empty before the numbers are free.
    pub(super) groups: Groups,
    pub(super) _users: Range,
    pub(super) folder: SocketFolder,
}

/// A container that runs.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) process: Process,
    /// None: it has ended already.
    pub(super) leader: Option<Leader>,
}

impl Launch {
    /// Starts nspawn where the container's cards are, and waits until the container runs.
    ///
    /// # Errors
    ///
    /// When nspawn cannot be started, or ends before that.
    pub(super) async fn start(&self) -> Result<Started, Error> {
        let doing = |what: String| move |source| Error::Io { what, source };
        let name = &self.name;
        let doors = self
            .groups
            .doors()
            .map_err(doing(format!("open the control groups of machine {name}")))?;
        let mut arguments: Vec<OsString> = ["-c".into(), WRAPPER.into()].into();
        arguments.push(self.folder.path().join(super::NOTIFY).into_os_string());
        arguments.push(self.program.clone());
        arguments.extend(self.arguments.iter().map(OsString::from));
        tracing::debug!(
            machine = name,
            "{} {}",
            self.program.to_string_lossy(),
            self.arguments.join(" ")
        );
        let cards = self
            .cards
            .try_clone()
            .map_err(doing(format!("find the network cards of machine {name}")))?;
        let output = self
            .output
            .try_clone()
            .map_err(doing(format!("start the console of machine {name}")))?;
        self.forget_earlier_messages();
        let mut process = Process::start_enclosed(
            process::Spec {
                program: "sh".into(),
                arguments,
                directory: self.directory.clone(),
                inherited: Vec::new(),
                credentials: None,
                stdout: Some(output),
            },
            enclosure::preparation(cards, doors, self.rootfs.clone()),
        )
        .await
        .map_err(doing(format!("start systemd-nspawn for machine {name}")))?;

        let started = tokio::time::timeout(START_TIMEOUT, self.until_running(&mut process));
        match started.await {
            Ok(Ok(())) => {
                let leader = find_leader(&mut process).await;
                Ok(Started { process, leader })
            }
            Ok(Err(detail)) => Err(Error::NotStarted {
                machine: name.clone(),
                detail,
            }),
            Err(_) => Err(Error::NoAnswer {
                machine: name.clone(),
                command: "the start of its container".to_owned(),
                timeout: START_TIMEOUT,
            }),
        }
    }

    /// What nspawn said in the life before: it would be taken for this one's, and few fit into the
    /// socket (`net.unix.max_dgram_qlen`) before nspawn waits for room.
    fn forget_earlier_messages(&self) {
        let mut message = [0; 4096];
        while self.notify.try_recv(&mut message).is_ok() {}
    }

    async fn until_running(&self, process: &mut Process) -> Result<(), String> {
        let mut message = [0; 4096];
        loop {
            tokio::select! {
                biased;
                received = self.notify.recv(&mut message) => match received {
                    Ok(length) if is_running(&message[..length]) => return Ok(()),
                    Ok(_) => {}
                    Err(error) => return Err(format!("it cannot be heard of: {error}")),
                },
                ended = process.ended() => {
                    let how = match ended {
                        Ok(status) => process::describe(status),
                        Err(error) => format!("unknown status ({error})"),
                    };
                    return Err(match process.stderr() {
                        said if said.is_empty() => format!("nspawn: {how}"),
                        said => format!("nspawn: {how}: {said}"),
                    });
                }
            }
        }
    }
}

/// The container's first process. It may become nspawn's own child only a moment after it is said to
/// run. None: it has ended already.
async fn find_leader(process: &mut Process) -> Option<Leader> {
    let deadline = Instant::now() + LEADER_TIMEOUT;
    loop {
        let leader = Leader::find(process.id());
        if leader.is_some() || process.has_ended() || Instant::now() >= deadline {
            return leader;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a message of nspawn's (sd_notify(3)) says that the container runs.
fn is_running(message: &[u8]) -> bool {
    message
        .split(|&byte| byte == b'\n')
        .any(|line| line.starts_with(b"X_NSPAWN_LEADER_PID=") || line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_told_by_either_line() {
        assert!(is_running(
            b"STATUS=Container running.\nX_NSPAWN_LEADER_PID=7"
        ));
        assert!(is_running(b"READY=1\n"));
        assert!(!is_running(b"STATUS=READY=1"));
        assert!(!is_running(b""));
    }
}
