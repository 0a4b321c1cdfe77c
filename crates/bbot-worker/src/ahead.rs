//! A build process that is there before its task: started and made ready before the machine is saved, so that a
//! restored copy need not do it again.
//!
//! ```text
//!   startup                       build
//!   starts it        ----------->
//!                    <- ready ---  all that no task is needed for
//!   the machine is saved, and restored; entropy, clock
//!                    -- task ---->
//!                                  builds
//! ```
//!
//! They speak over a socket that is the build process's standard input.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::channel::Given;

/// What the build process says when it is ready.
const READY: u8 = b'r';

/// What startup says: to get ready, and that the task follows.
const GET_READY: u8 = b'g';
const TASK: u8 = b't';

/// How long it may take to get ready: the machine waits for it.
const LONGEST: Duration = Duration::from_secs(30);

/// The largest manifest that is handed over, in bytes: the channel's bound, and more.
const LARGEST: u32 = 64 << 20;

/// Startup's end.
#[derive(Debug)]
pub(crate) struct Ahead {
    child: Child,
    socket: UnixStream,
}

impl Ahead {
    /// Starts a build process with this command, whose standard input it sets.
    pub(crate) fn start(mut command: Command) -> io::Result<Self> {
        let (socket, far) = UnixStream::pair()?;
        let child = command.stdin(OwnedFd::from(far)).spawn()?;
        Ok(Self { child, socket })
    }

    /// Has it make ready what it can, and waits for that.
    pub(crate) fn get_ready(&mut self) -> io::Result<()> {
        // In a copy that is to wait once more it is stopped like all others.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            kill(Pid::from_raw(pid), Signal::SIGCONT)?;
        }
        self.socket.set_read_timeout(Some(LONGEST))?;
        let asked = self.socket.write_all(&[GET_READY]);
        let answered = asked.and_then(|()| self.socket.read_exact(&mut [0]));
        if answered.is_err() {
            // Nothing of it may go on beside the build.
            self.child.kill()?;
            self.child.wait()?;
        }
        answered
    }

    /// Has it build, and waits for its end. An error: it was gone before, and nothing was built.
    pub(crate) fn build(mut self, given: &Given) -> io::Result<ExitStatus> {
        let mut message = vec![TASK];
        put(&mut message, given.run.as_deref())?;
        put(&mut message, Some(&given.task))?;
        self.socket.write_all(&message)?;
        self.child.wait()
    }

    /// Ends it: it is not what the task needs.
    pub(crate) fn dismiss(self) {
        let Self { mut child, socket } = self;
        drop(socket);
        if let Err(error) = child.wait() {
            eprintln!("trace: the end of the build process that was there: {error}");
        }
    }
}

/// The build process's end: makes ready as often as it is asked to, until a task comes. None: no task is for it.
pub(crate) fn wait_for_task(mut get_ready: impl FnMut()) -> io::Result<Option<Given>> {
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    loop {
        let mut what = [0];
        if socket.read(&mut what)? == 0 {
            return Ok(None);
        }
        match what[0] {
            GET_READY => {
                get_ready();
                socket.write_all(&[READY])?;
            }
            TASK => {
                let run = take(&mut socket)?;
                let task = take(&mut socket)?.unwrap_or_default();
                return Ok(Some(Given { run, task }));
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// A length and so many bytes; the largest length for nothing.
fn put(message: &mut Vec<u8>, bytes: Option<&[u8]>) -> io::Result<()> {
    let length = match bytes {
        Some(bytes) => u32::try_from(bytes.len())
            .ok()
            .filter(|length| *length <= LARGEST)
            .ok_or(io::ErrorKind::FileTooLarge)?,
        None => u32::MAX,
    };
    message.extend(length.to_le_bytes());
    message.extend(bytes.unwrap_or_default());
    Ok(())
}

fn take(socket: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length == u32::MAX {
        return Ok(None);
    }
    if length > LARGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    let wanted = u64::from(length);
    if socket.take(wanted).read_to_end(&mut bytes)? as u64 != wanted {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_over_arrives() {
        for run in [None, Some(&b""[..]), Some(b": 1\n")] {
            let mut message = Vec::new();
            put(&mut message, run).unwrap();
            put(&mut message, Some(b"task")).unwrap();
            let mut from = &message[..];
            assert_eq!(take(&mut from).unwrap().as_deref(), run);
            assert_eq!(take(&mut from).unwrap().as_deref(), Some(&b"task"[..]));
            assert!(take(&mut from).is_err());
            let mut cut = &message[..message.len() - 1];
            take(&mut cut).unwrap();
            assert!(take(&mut cut).is_err());
        }
    }
}
