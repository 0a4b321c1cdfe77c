//! The log of one operation: kept in bounded memory, streamed, and read for warnings as it grows.

use std::collections::VecDeque;

use crate::segments::Stream;
use crate::warnings::{Lines, Patterns};

/// What is kept of a log's begin and of its end, in bytes. Together as much as the largest result takes, so that a
/// log that fits into a result is kept whole.
const HEAD: usize = 4 << 20;
const TAIL: usize = 8 << 20;

/// Bytes whose middle is forgotten once there are too many of them.
#[derive(Debug, Default)]
struct Kept {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    forgotten: u64,
}

impl Kept {
    fn add(&mut self, mut bytes: &[u8]) {
        let room = HEAD - self.head.len();
        if room > 0 {
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.head.extend_from_slice(now);
            bytes = later;
        }
        self.tail.extend(bytes);
        if let Some(excess) = self.tail.len().checked_sub(TAIL) {
            self.tail.drain(..excess);
            self.forgotten += excess as u64;
        }
    }

    fn text(mut self) -> Vec<u8> {
        let mut text = self.head;
        if self.forgotten > 0 {
            let mark = format!("\n... {} bytes were too many to keep ...\n", self.forgotten);
            text.extend_from_slice(mark.as_bytes());
        }
        text.extend_from_slice(self.tail.make_contiguous());
        text
    }
}

/// The log of one operation.
#[derive(Debug)]
pub(crate) struct Log<'a> {
    operation: &'static str,
    kept: Kept,
    stream: &'a Stream,
    lines: Lines,
    patterns: &'a Patterns,
    warned: bool,
    at_line_start: bool,
}

impl<'a> Log<'a> {
    pub(crate) fn new(operation: &'static str, stream: &'a Stream, patterns: &'a Patterns) -> Self {
        Self {
            operation,
            kept: Kept::default(),
            stream,
            lines: Lines::default(),
            patterns,
            warned: false,
            at_line_start: true,
        }
    }

    /// Adds what a command printed, and looks for warnings in it.
    pub(crate) fn output(&mut self, bytes: &[u8]) {
        let (patterns, warned) = (self.patterns, &mut self.warned);
        self.lines
            .feed(bytes, |line| *warned = *warned || patterns.matches(line));
        self.put(bytes);
    }

    /// Adds a line of the worker's own.
    pub(crate) fn say(&mut self, line: &str) {
        self.end_line();
        self.put(line.as_bytes());
        if !line.ends_with('\n') {
            self.put(b"\n");
        }
    }

    /// Ends the line that a command has left open.
    pub(crate) fn end_line(&mut self) {
        let (patterns, warned) = (self.patterns, &mut self.warned);
        self.lines
            .end(|line| *warned = *warned || patterns.matches(line));
        if !self.at_line_start {
            self.put(b"\n");
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last() {
            self.at_line_start = *last == b'\n';
            self.kept.add(bytes);
            self.stream.push(self.operation, bytes);
        }
    }

    /// Whether a warning was seen.
    pub(crate) fn warned(&self) -> bool {
        self.warned
    }

    /// The log, not yet cleaned.
    pub(crate) fn into_bytes(mut self) -> Vec<u8> {
        self.end_line();
        std::mem::take(&mut self.kept).text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_kept_whole() {
        let mut kept = Kept::default();
        let bytes: Vec<u8> = (0..HEAD + TAIL)
            .map(|i| u8::try_from(i % 251).unwrap())
            .collect();
        for piece in bytes.chunks(999_983) {
            kept.add(piece);
        }
        assert!(kept.text() == bytes);
    }

    #[test]
    fn of_more_both_ends_are_kept_with_a_mark() {
        let mut kept = Kept::default();
        kept.add(b"begin");
        for _ in 0..50 {
            kept.add(&vec![b'x'; 1 << 20]);
        }
        kept.add(b"end");
        let text = kept.text();
        assert!(text.starts_with(b"begin") && text.ends_with(b"end"));
        let forgotten = 50 * (1 << 20) + 8 - HEAD - TAIL;
        let mark = format!("\n... {forgotten} bytes were too many to keep ...\n");
        assert_eq!(text.len(), HEAD + TAIL + mark.len());
        assert!(text[HEAD..].starts_with(mark.as_bytes()));
    }

    #[test]
    fn lines_of_the_worker_stand_alone() {
        let patterns = Patterns::compile(&[]).unwrap();
        let stream = Stream::nowhere();
        let mut log = Log::new("update", &stream, &patterns);
        log.output(b"no newline");
        log.say("+ make");
        log.output(b"warning: odd");
        assert!(!log.warned());
        log.say("+ warning: this is a command");
        assert!(log.warned());
        assert_eq!(
            log.into_bytes(),
            b"no newline\n+ make\nwarning: odd\n+ warning: this is a command\n"
        );
    }
}
