//! The log of a running build: segments as the worker uploads them (docs/protocol.md,
//! section 5), and what is kept of them for a build that ends without a result.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;

use bbot_manifest::log_text;

use crate::run::Progress;
use crate::session::Session;

/// What log segments are called: this and their number.
pub(crate) const PREFIX: &str = "log.";

/// The format of log segments that this agent takes.
pub(crate) const FORMAT: u64 = 1;

/// The largest log segment: 64 KiB of log and its first line, with room.
pub(crate) const LIMIT: u64 = 128 * 1024;

/// The most log in one segment.
pub(crate) const MOST: usize = 64 * 1024;

/// The longest name of an operation.
const LONGEST_NAME: usize = 128;

/// How much is kept of a log's beginning, and of its end, where a build that was cut
/// short was at work: 1 MiB together.
const HEAD: usize = 340 * 1024;
const TAIL: usize = 684 * 1024;

/// Log segments on their way to who wants them. The files go to the session, or are
/// removed at once, so that a log takes no room on disk.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    last: u64,
    operation: String,
    so_far: HeadAndTail,
    session: Option<Session>,
}

impl Segments {
    /// Of a task of this session, whose controller gets them.
    pub(crate) fn of(session: Session) -> Self {
        Self {
            session: Some(session),
            ..Self::default()
        }
    }

    /// Takes an upload of the worker; one that is no segment is left where it is.
    pub(crate) fn take(&mut self, name: &str, path: &Path, progress: &mut dyn Progress) {
        let Some(number) = name
            .strip_prefix(PREFIX)
            .and_then(|n| n.parse::<u64>().ok())
        else {
            return;
        };
        // One that was acknowledged and sent again comes again, since it is not
        // there any more.
        if number > self.last {
            self.last = number;
            match fs::read(path) {
                Ok(bytes) => {
                    if let Some((operation, log)) = split(&bytes) {
                        // What a person has seen need not be said again.
                        if progress.wants_log() {
                            progress.log(operation, log);
                        } else {
                            self.keep(operation, log);
                        }
                        if let Some(session) = &self.session
                            && is_segment(&bytes)
                        {
                            session.take(path, bytes.len() as u64);
                        }
                    }
                }
                Err(e) => tracing::warn!("unable to read {}: {e}", path.display()),
            }
        }
        if let Err(e) = fs::remove_file(path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("unable to remove {}: {e}", path.display());
        }
    }

    fn keep(&mut self, operation: &str, log: &[u8]) {
        if self.operation != operation {
            operation.clone_into(&mut self.operation);
            if !self.so_far.ends_with_newline() {
                self.so_far.push(b"\n");
            }
            self.so_far.push(format!("[{operation}]\n").as_bytes());
        }
        self.so_far.push(log);
    }

    /// The log until now, fit for a result: each operation's below its name. Empty when
    /// nothing has come, or somebody has seen it.
    pub(crate) fn text(&self) -> String {
        self.so_far.text()
    }
}

/// The operation's name on a segment's first line, and the log behind it; none when it has no such line.
pub fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().take(256).position(|b| *b == b'\n')?;
    let operation = std::str::from_utf8(&bytes[..end]).ok()?;
    Some((operation, &bytes[end + 1..]))
}

/// Whether these are a segment that a controller takes: what a guest uploads may be
/// anything.
pub fn is_segment(bytes: &[u8]) -> bool {
    split(bytes).is_some_and(|(operation, log)| {
        let is_name = |name: &str| {
            !name.is_empty() && name.len() <= LONGEST_NAME && !name.contains(char::is_control)
        };
        is_name(operation) && !log.is_empty() && log.len() <= MOST
    })
}

/// The beginning and the end of bytes that may be many.
#[derive(Debug, Default)]
struct HeadAndTail {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    /// How many were between.
    lost: u64,
}

impl HeadAndTail {
    fn push(&mut self, bytes: &[u8]) {
        let (first, rest) = bytes.split_at(bytes.len().min(HEAD - self.head.len()));
        self.head.extend_from_slice(first);
        self.tail.extend(rest);
        let over = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..over);
        self.lost += over as u64;
    }

    /// Whether a line may begin here.
    fn ends_with_newline(&self) -> bool {
        let last = self.tail.back().or(self.head.last());
        last.is_none_or(|last| *last == b'\n')
    }

    fn text(&self) -> String {
        let (first, second) = self.tail.as_slices();
        if self.lost == 0 {
            return log_text(&[&self.head, first, second].concat());
        }
        // As `cut_middle` says it. The cut may leave halves of lines, no more.
        format!(
            "{}\n... {} bytes cut here ...\n{}",
            log_text(&self.head),
            self.lost,
            log_text(&[first, second].concat())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Silent;

    fn take(segments: &mut Segments, dir: &Path, name: &str, content: &[u8]) -> bool {
        let path = dir.join("upload");
        fs::write(&path, content).unwrap();
        segments.take(name, &path, &mut Silent);
        !path.exists()
    }

    #[test]
    fn what_came_is_kept_below_the_names_of_its_operations() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = Segments::default();
        assert_eq!(segments.text(), "");
        for (name, content) in [
            ("log.1", &b"configure\nchecking\n"[..]),
            ("log.2", b"configure\n\x1b[31mred\x1b[m \x07"),
            ("log.2", b"configure\n\x1b[31mred\x1b[m \x07"),
            ("log.3", b"no newline"),
            ("log.4", b"update\ncc\n"),
        ] {
            assert!(take(&mut segments, dir.path(), name, content), "{name}");
        }
        assert_eq!(
            segments.text(),
            "[configure]\nchecking\nred ?\n[update]\ncc\n"
        );
        assert!(!take(&mut segments, dir.path(), "upload.tar", b""));
    }

    #[test]
    fn of_a_long_log_both_ends_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = Segments::default();
        let mut sent = 0;
        for number in 1..=60 {
            let line = format!("line {number:<60000}|\n");
            sent += line.len();
            let content = format!("test\n{line}");
            take(
                &mut segments,
                dir.path(),
                &format!("log.{number}"),
                content.as_bytes(),
            );
        }
        let text = segments.text();
        assert!(text.starts_with("[test]\nline 1 "));
        assert!(text.contains("line 60 ") && text.ends_with("|\n"));
        assert!(!text.contains("line 30 "));
        let lost = sent + "[test]\n".len() - HEAD - TAIL;
        assert!(text.contains(&format!("\n... {lost} bytes cut here ...\n")));
        assert!(text.len() < 1024 * 1024 + 100, "{}", text.len());
    }
}
