//! Running `ip` and `nft`: bounded in time, with what they say in the error.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long a program may take; they take some ten milliseconds.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How much of what a program says is read.
const MOST: u64 = 1 << 20;

/// Where the program is: in PATH, or where the system keeps its own.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|path| crate::qemu::process::is_installed(path.as_os_str()))
}

/// Runs a program with this input; gives what it says.
pub(super) fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<String> {
    let path = find(program).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("the program {program} is not installed"),
        )
    })?;
    run_path(path.as_os_str(), program, arguments, input)
}

fn run_path(path: &OsStr, program: &str, arguments: &[&str], input: &str) -> io::Result<String> {
    let shown = || format!("{program} {}", arguments.join(" "));
    let mut child = Command::new(path)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Short: it fits into the pipe. One that does not read it says why on standard error.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes());
    }
    let ended = wait(child.id());
    if !matches!(ended, Ok(true)) {
        let _ = child.kill();
        let _ = child.wait();
        ended?;
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{} did not end within {} s", shown(), TIMEOUT.as_secs()),
        ));
    }
    let status = child.wait()?;
    let mut text = String::new();
    let read = |pipe: &mut dyn Read| {
        let mut bytes = Vec::new();
        pipe.take(MOST).read_to_end(&mut bytes)?;
        io::Result::Ok(bbot_manifest::log_text(&bytes))
    };
    if status.success() {
        if let Some(mut stdout) = child.stdout.take() {
            text = read(&mut stdout)?;
        }
        return Ok(text);
    }
    if let Some(mut stderr) = child.stderr.take() {
        text = read(&mut stderr)?;
    }
    let said: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.chars().all(|c| c == '^'))
        .take(6)
        .collect();
    Err(io::Error::other(format!(
        "{}: {status}: {}",
        shown(),
        said.join("; ")
    )))
}

/// Waits for a child's end. False: it takes too long.
fn wait(child: u32) -> io::Result<bool> {
    let pid = i32::try_from(child)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("a process without a number"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let until = Instant::now() + TIMEOUT;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_quoted() {
        let said = run("sh", &["-c", "read x; echo \"$x\""], "hello\n").unwrap();
        assert_eq!(said, "hello\n");
        let error = run("sh", &["-c", "echo oh no >&2; exit 3"], "").unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("exit status: 3") && text.ends_with("oh no"),
            "{text}"
        );
        let error = run("no-such-program-of-ours", &[], "").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
