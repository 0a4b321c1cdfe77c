//! The owner record: its text, the facts about its owner, and what follows from them.

use std::fmt;
use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use super::OwnerError;

/// What an owner record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The name of the temporary, which is the record's own without dot and ending: a record that
    /// was copied elsewhere speaks of nothing there.
    pub temporary: String,
    /// The owner's name, for people.
    pub instance: String,
    /// The boot in which it ran (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Its process.
    pub pid: u32,
    /// When that process started, in clock ticks since the boot (`/proc/<pid>/stat`, field 22):
    /// process ids come round again.
    pub start_time: u64,
}

/// The longest record that is read, in bytes.
pub(super) const RECORD_LIMIT: u64 = 16 << 10;

impl Record {
    /// The record as a manifest.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!(
            ": 1\nowner-record: bbot\ntemporary: {}\ninstance: {}\nboot-id: {}\npid: {}\nstart-time: {}\n",
            self.temporary, self.instance, self.boot_id, self.pid, self.start_time
        )
    }

    /// Reads a record; fields that it does not know are skipped.
    ///
    /// # Errors
    /// What is missing or malformed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        if lines.next() != Some(": 1") {
            return Err("it does not begin with ': 1'".to_string());
        }
        // A record is written by one call and flushed, but a disk may have lost its end.
        if !text.ends_with('\n') {
            return Err("its last line is cut off".to_string());
        }
        let field = |name: &str| -> Result<&str, String> {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .map(str::trim)
                .filter(|value| !value.is_empty())
                .ok_or_else(|| format!("it has no field '{name}'"))
        };
        if field("owner-record")? != "bbot" {
            return Err("it is another program's".to_string());
        }
        Ok(Self {
            temporary: field("temporary")?.to_string(),
            instance: field("instance")?.to_string(),
            boot_id: field("boot-id")?.to_string(),
            pid: field("pid")?
                .parse()
                .map_err(|_| "its process id is no number".to_string())?,
            start_time: field("start-time")?
                .parse()
                .map_err(|_| "its start time is no number".to_string())?,
        })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.instance, self.pid)
    }
}

/// The lock on a record, as another process finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Somebody holds it.
    Held,
    /// Nobody holds it (now the finder does).
    Free,
    /// The file system knows no locks.
    Unknown,
}

/// The process that a record names, as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// There is one of that id.
    Running {
        /// When it started, in clock ticks since the boot.
        start_time: u64,
    },
    /// There is none of that id, or it has ended and waits to be reaped.
    Ended,
    /// The system does not tell.
    Unknown,
}

/// What is so now, to be held against a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// This boot.
    pub boot_id: String,
    /// The lock on the record.
    pub lock: Lock,
    /// The process of the record's id.
    pub process: Process,
}

/// Whether an owner is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It lives, or cannot be shown to be gone: hands off.
    Present,
    /// It is gone, and why we know.
    Gone(Reason),
}

/// How an owner went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The host was started again since.
    OtherBoot,
    /// Its process has ended.
    Ended,
    /// The process lives, but has let the temporary go: it could not delete it.
    LetGo,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherBoot => "the host was started again since",
            Self::Ended => "its process has ended",
            Self::LetGo => "its process could not delete it",
        })
    }
}

/// Decides whether the owner of a record is gone.
///
/// A lock that is held outweighs everything: it may be held from where process ids and even boots
/// are others (a container). A lock that is free says that the owner is gone or has let go. Without
/// locks only another boot, or a process that has demonstrably ended, counts.
#[must_use]
pub fn is_gone(record: &Record, facts: &Facts) -> Verdict {
    let ended = match facts.process {
        Process::Running { start_time } => start_time != record.start_time,
        Process::Ended => true,
        Process::Unknown => false,
    };
    let reason = if record.boot_id != facts.boot_id {
        Some(Reason::OtherBoot)
    } else if ended {
        Some(Reason::Ended)
    } else {
        None
    };
    match facts.lock {
        Lock::Held => Verdict::Present,
        Lock::Free => Verdict::Gone(reason.unwrap_or(Reason::LetGo)),
        Lock::Unknown => reason.map_or(Verdict::Present, Verdict::Gone),
    }
}

/// Tries the lock on a record. When it is free it is held from now on, until `file` is closed.
pub(super) fn try_lock(file: &File) -> io::Result<Lock> {
    match file.try_lock() {
        Ok(()) => Ok(Lock::Free),
        Err(TryLockError::WouldBlock) => Ok(Lock::Held),
        Err(TryLockError::Error(e))
            if matches!(
                e.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::ENOLCK | libc::ENOSYS | libc::EINVAL)
            ) =>
        {
            Ok(Lock::Unknown)
        }
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// This boot's id.
pub(super) fn boot_id() -> Result<String, OwnerError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path)
        .map_err(|e| OwnerError::io("read the boot id in", path, e))?;
    Ok(text.trim().to_string())
}

/// This process's start time.
pub(super) fn own_start_time() -> Result<u64, OwnerError> {
    let path = Path::new("/proc/self/stat");
    let failed = |e| OwnerError::io("read the start time in", path, e);
    let text = std::fs::read(path).map_err(failed)?;
    parse_stat(&text)
        .map(|stat| stat.start_time)
        .ok_or_else(|| failed(io::Error::other("unknown format")))
}

/// What has become of the process `pid`.
pub(crate) fn process(pid: u32) -> Process {
    match std::fs::read(format!("/proc/{pid}/stat")) {
        Ok(text) => match parse_stat(&text) {
            Some(stat) if stat.ended => Process::Ended,
            Some(stat) => Process::Running {
                start_time: stat.start_time,
            },
            None => Process::Unknown,
        },
        // With `hidepid` other users' processes are not to be seen; a signal tells.
        Err(_) => match i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            None => Process::Ended,
            Some(pid) => match rustix::process::test_kill_process(pid) {
                Err(rustix::io::Errno::SRCH) => Process::Ended,
                _ => Process::Unknown,
            },
        },
    }
}

struct Stat {
    ended: bool,
    start_time: u64,
}

/// `pid (name) state ppid ...`; the name may hold blanks and parentheses, so count from its end.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let end = text.iter().rposition(|&b| b == b')')?;
    let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    // The state is field 3, the start time field 22.
    let start_time = fields.nth(18)?.parse().ok()?;
    Some(Stat {
        ended: matches!(state, "Z" | "X" | "x"),
        start_time,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> Record {
        Record {
            temporary: "linux-public-t0123456789abcdef".to_string(),
            instance: "public 1".to_string(),
            boot_id: "one".to_string(),
            pid: 42,
            start_time: 1000,
        }
    }

    #[test]
    fn the_verdict_by_table() {
        use Reason::{Ended, LetGo, OtherBoot};
        let same = Process::Running { start_time: 1000 };
        let reused = Process::Running { start_time: 1001 };
        let present = Verdict::Present;
        let gone = Verdict::Gone;
        #[rustfmt::skip]
        let table = [
            ("one", Lock::Held,    same,             present),
            ("one", Lock::Held,    reused,           present),
            ("one", Lock::Held,    Process::Ended,   present),
            ("one", Lock::Held,    Process::Unknown, present),
            ("two", Lock::Held,    Process::Ended,   present),
            ("one", Lock::Free,    same,             gone(LetGo)),
            ("one", Lock::Free,    Process::Unknown, gone(LetGo)),
            ("one", Lock::Free,    reused,           gone(Ended)),
            ("one", Lock::Free,    Process::Ended,   gone(Ended)),
            ("two", Lock::Free,    same,             gone(OtherBoot)),
            ("two", Lock::Free,    Process::Ended,   gone(OtherBoot)),
            ("one", Lock::Unknown, same,             present),
            ("one", Lock::Unknown, Process::Unknown, present),
            ("one", Lock::Unknown, reused,           gone(Ended)),
            ("one", Lock::Unknown, Process::Ended,   gone(Ended)),
            ("two", Lock::Unknown, same,             gone(OtherBoot)),
            ("two", Lock::Unknown, Process::Unknown, gone(OtherBoot)),
        ];
        for (boot_id, lock, process, expected) in table {
            let facts = Facts {
                boot_id: boot_id.to_string(),
                lock,
                process,
            };
            assert_eq!(is_gone(&record(), &facts), expected, "{facts:?}");
        }
    }

    #[test]
    fn records_are_read_back() {
        assert_eq!(Record::parse(&record().to_text()), Ok(record()));
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let text = record().to_text();
        assert!(Record::parse("").is_err());
        assert!(Record::parse(&text.replace("bbot", "other")).is_err());
        assert!(Record::parse(&text.replace("pid: 42", "pid: -1")).is_err());
        assert!(Record::parse(&text.replace("start-time", "time")).is_err());
        assert!(Record::parse(&text.replace(": 1\n", ": 2\n")).is_err());
        for cut in 0..text.len() {
            assert!(
                Record::parse(&text[..cut]).is_err(),
                "cut at {cut} was taken"
            );
        }
    }

    #[test]
    fn a_process_name_may_hold_anything() {
        let text = b"42 (a) R 1 (b c) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        let stat = parse_stat(text).unwrap();
        assert!(stat.ended);
        assert_eq!(stat.start_time, 777);
        assert!(parse_stat(b"42 (a) R 1 2").is_none());
        assert!(parse_stat(b"").is_none());
    }

    #[test]
    fn a_process_that_ended_is_ended() {
        let own = own_start_time().unwrap();
        assert_eq!(
            process(std::process::id()),
            Process::Running { start_time: own }
        );
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert_eq!(process(pid), Process::Ended);
        assert_eq!(process(u32::MAX), Process::Ended);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = Record::parse(&text);
        }

        #[test]
        fn any_instance_is_read_back(instance in "[!-~]([ -~]{0,40}[!-~])?", pid: u32, start_time: u64) {
            let record = Record { instance, pid, start_time, ..record() };
            prop_assert_eq!(Record::parse(&record.to_text()), Ok(record));
        }
    }
}
