//! Runs the commands of an operation in the build's separation, their words into its log.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bbot_manifest::Status;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::isolation::{Isolation, end_of, first_to_go};
use crate::log::Log;

/// Where programs are looked for when no environment script says otherwise.
pub(crate) const BASE_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// How often a command that keeps silent is looked at, in milliseconds, where the kernel (before 5.3) does not tell of its end: it
/// may have ended while something it left behind holds its output.
const LOOK: u16 = 50;

/// What a probe may print before the rest is no longer looked at, in bytes.
const PROBE: usize = 1 << 20;

/// Where a build finds what it needs, all of it owned by its user.
#[derive(Debug)]
pub(crate) struct Places {
    /// The package's sources.
    pub(crate) source: PathBuf,
    /// An empty directory for what is built outside of the sources.
    pub(crate) out: PathBuf,
    pub(crate) home: PathBuf,
    pub(crate) tmp: PathBuf,
}

/// What commands see of the worker's environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Environment {
    /// Nothing.
    Clean,
    /// All of it: an environment script has made it.
    Prepared,
}

/// An operation's command did not succeed, or could not be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stop(pub(crate) Status);

/// One operation at work: runs commands, one after the other, and keeps its log.
#[derive(Debug)]
pub(crate) struct Shell<'a> {
    pub(crate) places: &'a Places,
    pub(crate) isolation: &'a Isolation,
    pub(crate) environment: Environment,
    pub(crate) jobs: usize,
    /// A command that runs still is ended then.
    pub(crate) until: Option<Instant>,
    pub(crate) log: Log<'a>,
}

impl Shell<'_> {
    /// A line of the worker's own for the log.
    pub(crate) fn say(&mut self, line: &str) {
        self.log.say(line);
    }

    /// Runs a command: shows it, logs what it prints, and stops the operation when it fails.
    pub(crate) fn run(&mut self, mut command: Command, directory: &Path) -> Result<(), Stop> {
        self.log.say(&shown(&command));
        let log = &mut self.log;
        let ended = execute(
            &mut command,
            directory,
            self.isolation,
            self.environment,
            self.places,
            self.until,
            |bytes| log.output(bytes),
        );
        let status = match ended {
            Ok(status) => status,
            Err(error) => {
                let program = command.get_program().to_string_lossy().into_owned();
                self.log
                    .say(&format!("error: {program} cannot be run: {error}"));
                return Err(Stop(match error.kind() {
                    io::ErrorKind::NotFound => Status::Error,
                    _ => Status::Abnormal,
                }));
            }
        };
        self.log.end_line();
        if status.success() {
            return Ok(());
        }
        let program = command.get_program().to_string_lossy().into_owned();
        if let Some(signal) = status.signal() {
            self.log
                .say(&format!("error: {program} was killed by signal {signal}"));
            return Err(Stop(Status::Abnormal));
        }
        let code = status.code().unwrap_or(-1);
        self.log
            .say(&format!("error: {program} exited with code {code}"));
        Err(Stop(Status::Error))
    }

    /// Runs a command that only finds something out; what it printed, and whether it succeeded. Not logged.
    pub(crate) fn probe(
        &mut self,
        mut command: Command,
        directory: &Path,
    ) -> io::Result<(String, bool)> {
        let mut output = Vec::new();
        let status = execute(
            &mut command,
            directory,
            self.isolation,
            self.environment,
            self.places,
            self.until,
            |bytes| {
                let room = PROBE - output.len();
                output.extend_from_slice(&bytes[..room.min(bytes.len())]);
            },
        )?;
        Ok((
            String::from_utf8_lossy(&output).into_owned(),
            status.success(),
        ))
    }
}

/// A command as a person would type it, after `+ `. Variables that it gets on its way come first.
pub(crate) fn shown(command: &Command) -> String {
    let mut line = "+".to_owned();
    let mut add = |word: &OsStr| {
        line.push(' ');
        line.push_str(&quoted(&word.to_string_lossy()));
    };
    for word in [command.get_program()]
        .into_iter()
        .chain(command.get_args())
    {
        add(word);
    }
    line.push('\n');
    line
}

/// Quotes for a shell what one would take apart.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=+:,./%@^~".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs a command in the build's separation and hands on what it prints until it ends.
fn execute(
    command: &mut Command,
    directory: &Path,
    isolation: &Isolation,
    environment: Environment,
    places: &Places,
    until: Option<Instant>,
    output: impl FnMut(&[u8]),
) -> io::Result<ExitStatus> {
    let (reader, writer) = io::pipe()?;
    let own: Vec<_> = command
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    if environment == Environment::Clean {
        command
            .env_clear()
            .env("PATH", BASE_PATH)
            .env("LANG", "C.UTF-8");
    }
    command
        .env("HOME", &places.home)
        .env("TMPDIR", &places.tmp)
        .env("USER", &isolation.user.name)
        .env("LOGNAME", &isolation.user.name)
        // Whatever started the worker is not the build's make.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .envs(own)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    isolation.confine(command, directory)?;
    let child = command.spawn()?;
    first_to_go(child.id());
    // The command holds this end of the pipe open, too: without this there would be no end of its output.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    attend(child, reader, until, output)
}

/// Waits until a command ends, and hands on what it prints until then.
///
/// What it leaves running does not hold this up; it is killed at the end of the operation.
fn attend(
    mut child: Child,
    mut reader: io::PipeReader,
    until: Option<Instant>,
    mut output: impl FnMut(&[u8]),
) -> io::Result<ExitStatus> {
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let end = end_of(&child);
    let mut looked = Instant::now();
    let mut until = until;
    loop {
        let mut waiting = vec![PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        waiting.extend(
            end.as_ref()
                .map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN)),
        );
        let look = Duration::from_millis(LOOK.into());
        let wait = match (until, &end) {
            (None, Some(_)) => PollTimeout::NONE,
            _ => PollTimeout::from(LOOK),
        };
        match poll(&mut waiting, wait) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return abandon(child, error.into()),
        }
        let may_have_ended = match waiting.get(1) {
            Some(end) => end.any().unwrap_or(true),
            // Looked for now and then even while there is output: what the command left behind may never fall silent.
            None => looked.elapsed() >= look,
        };
        let ended = if may_have_ended {
            looked = Instant::now();
            child.try_wait()?
        } else {
            None
        };
        match drain(&mut reader, &mut output) {
            // Nobody holds the pipe any more: the command has ended, or has closed its output and goes on.
            Ok(Drained::End) => return child.wait(),
            Ok(Drained::Empty) => {}
            Err(error) => return abandon(child, error),
        }
        if let Some(status) = ended {
            return Ok(status);
        }
        if may_have_ended && end.is_some() {
            // It has, and somebody who traces it has not seen it off yet.
            std::thread::sleep(look);
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            until = None;
            child.kill()?;
        }
    }
}

/// What is left in a pipe.
enum Drained {
    /// Nothing now.
    Empty,
    /// Nothing any more.
    End,
}

/// Reads what is in a pipe, up to a bound.
fn drain(reader: &mut io::PipeReader, output: &mut impl FnMut(&[u8])) -> io::Result<Drained> {
    let mut buffer = [0; 64 * 1024];
    // More than a pipe holds: what was in it when a command ended is read.
    for _ in 0..32 {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(Drained::End),
            Ok(length) => output(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(Drained::Empty)
}

fn abandon(mut child: Child, error: io::Error) -> io::Result<ExitStatus> {
    let _ = child.kill();
    let _ = child.wait();
    Err(error)
}

/// Makes a directory of the build's user.
pub(crate) fn own_directory(path: &Path, isolation: &Isolation) -> io::Result<()> {
    fs::create_dir(path)?;
    std::os::unix::fs::chown(path, Some(isolation.user.uid), Some(isolation.user.gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_they_would_be_typed() {
        let mut command = Command::new("./configure");
        command.args(["--prefix=/usr", "CFLAGS=-O2 -g", "it's", ""]);
        assert_eq!(
            shown(&command),
            "+ ./configure --prefix=/usr 'CFLAGS=-O2 -g' 'it'\\''s' ''\n"
        );
    }

    fn attended(script: &str, until: Option<Instant>) -> (ExitStatus, String) {
        let (reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(writer);
        let child = command.spawn().unwrap();
        drop(command);
        let mut output = Vec::new();
        let status = attend(child, reader, until, |bytes| {
            output.extend_from_slice(bytes);
        });
        (status.unwrap(), String::from_utf8(output).unwrap())
    }

    #[test]
    fn the_end_of_a_command_is_seen_though_its_output_is_held_open() {
        let began = Instant::now();
        let (status, output) = attended("sleep 20 2>&1 & echo left; exit 3", None);
        assert_eq!((status.code(), output.as_str()), (Some(3), "left\n"));
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_command_ends_when_its_time_is_up() {
        let soon = Instant::now() + Duration::from_millis(100);
        let (status, output) = attended("echo on; exec sleep 600", Some(soon));
        assert_eq!((status.signal(), output.as_str()), (Some(9), "on\n"));
    }
}
