//! The log segments of one running build on disk, from the worker until the controller
//! has them.
//!
//! ```text
//! <state>/<toolchain>/logs/<time>-<pid>-<n>/session    the session's URL, and what is signed with
//!                                          /<N>        segment N, as it is posted
//! ```
//!
//! The worker is never held up: beyond a bound the middle is dropped, and the controller
//! is told that something is missing. There is no flush for each segment: the upload was
//! on disk, and a log that a loss of power cuts short is in the result, or of a build
//! that is done again.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use bbot_signature::SessionKey;

use crate::controller::{Channel, parse_url};

/// How much of a session's log may wait.
pub(super) const LIMIT: u64 = 64 * 1024 * 1024;

/// The least that a segment counts for, so that their number is bounded too: a file of
/// one byte takes a block of the disk and a line here.
const LEAST: u64 = 8 * 1024;

/// How often the folder is flushed, at most.
const FLUSH: Duration = Duration::from_secs(1);

const URL_FILE: &str = "session";
const MAGIC: &str = "bbot-session ";

/// The segments that wait.
#[derive(Debug)]
pub(super) struct SegmentLog {
    dir: PathBuf,
    channel: Channel,
    limit: u64,
    is_made: bool,
    waiting: VecDeque<Segment>,
    /// What they count for together.
    weight: u64,
    /// The number of the next one that comes.
    next: u64,
    /// The number that the controller waits for.
    expected: u64,
    flushed: Option<Instant>,
    /// No more will come.
    is_complete: bool,
    /// Nothing more is wanted.
    is_closed: bool,
    dropped: u64,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    number: u64,
    bytes: u64,
}

impl Segment {
    fn weight(self) -> u64 {
        self.bytes.max(LEAST)
    }
}

/// The segment that is posted next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct First {
    pub(super) number: u64,
    /// Whether one before it is there no more.
    pub(super) skips: bool,
    pub(super) path: PathBuf,
}

impl SegmentLog {
    /// Nothing has come. The folder is made with the first segment.
    pub(super) fn new(dir: PathBuf, channel: Channel, limit: u64) -> Self {
        Self {
            dir,
            channel,
            limit,
            is_made: false,
            waiting: VecDeque::new(),
            weight: 0,
            next: 1,
            expected: 1,
            flushed: None,
            is_complete: false,
            is_closed: false,
            dropped: 0,
        }
    }

    /// What an earlier agent has left in this folder.
    pub(super) fn recover(dir: &Path) -> io::Result<Self> {
        let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let text = fs::read_to_string(dir.join(URL_FILE))?;
        let channel = read(&text).ok_or_else(|| wrong("it names no session"))?;
        let mut log = Self::new(dir.to_owned(), channel, LIMIT);
        log.is_made = true;
        let mut segments = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if let Some(number) = name.to_str().and_then(|n| n.parse().ok()) {
                let bytes = entry.metadata()?.len();
                segments.push(Segment { number, bytes });
            }
        }
        segments.sort_unstable_by_key(|s| s.number);
        log.weight = segments.iter().map(|s| s.weight()).sum();
        // The controller says if it expects another one.
        log.expected = segments.first().map_or(1, |s| s.number);
        log.next = segments.last().map_or(1, |s| s.number.saturating_add(1));
        log.waiting = segments.into();
        Ok(log)
    }

    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.waiting.iter().map(|s| s.bytes).sum()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// The number of the last one that came, or was lost; none when none has.
    pub(super) fn last(&self) -> Option<u64> {
        self.next.checked_sub(1).filter(|last| *last > 0)
    }

    /// No more will come.
    pub(super) fn complete(&mut self) {
        self.is_complete = true;
    }

    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Takes the file of a segment, which is moved away from where it is.
    pub(super) fn take(&mut self, path: &Path, bytes: u64) -> io::Result<()> {
        self.put(bytes, |to| match fs::rename(path, to) {
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                fs::copy(path, to)?;
                fs::remove_file(path)
            }
            renamed => renamed,
        })
    }

    /// Takes the bytes of a segment.
    pub(super) fn push(&mut self, segment: &[u8]) -> io::Result<()> {
        self.put(segment.len() as u64, |to| fs::write(to, segment))
    }

    fn put(&mut self, bytes: u64, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        if self.is_closed {
            return Ok(());
        }
        // A number that is not used is a gap, which the controller shows.
        let number = self.next;
        self.next += 1;
        if !self.is_made {
            fs::create_dir_all(&self.dir)?;
            write_private(&self.dir.join(URL_FILE), &written(&self.channel))?;
            self.is_made = true;
        }
        let path = self.path(number);
        if let Err(e) = write(&path) {
            let _ = fs::remove_file(&path);
            return Err(e);
        }
        let segment = Segment { number, bytes };
        self.weight += segment.weight();
        self.waiting.push_back(segment);
        if self.weight > self.limit {
            self.drop_middle();
        }
        Ok(())
    }

    /// Drops so much of the middle that a quarter is free again. The first one, which may
    /// be on its way, stays.
    fn drop_middle(&mut self) {
        let mut before = 0;
        let mut from = 0;
        for segment in &self.waiting {
            if from > 0 && before >= self.limit / 2 {
                break;
            }
            before += segment.weight();
            from += 1;
        }
        while self.weight > self.limit / 4 * 3 && from + 1 < self.waiting.len() {
            if let Some(segment) = self.waiting.remove(from) {
                self.remove_file(segment.number);
                self.weight -= segment.weight();
                self.dropped += segment.bytes;
            }
        }
    }

    /// How many bytes had to be dropped since this was asked last.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Whether the folder is to be flushed now.
    pub(super) fn wants_flush(&mut self, now: Instant) -> bool {
        let wants = self.is_made && self.flushed.is_none_or(|at| now - at >= FLUSH);
        if wants {
            self.flushed = Some(now);
        }
        wants
    }

    /// What is to be posted next.
    pub(super) fn first(&self) -> Option<First> {
        self.waiting.front().map(|segment| First {
            number: segment.number,
            skips: segment.number != self.expected,
            path: self.path(segment.number),
        })
    }

    /// The controller has this one.
    pub(super) fn taken(&mut self, number: u64) {
        if self.waiting.front().is_some_and(|s| s.number == number) {
            self.forget_first();
            self.expected = number + 1;
        }
    }

    /// The controller waits for this number. Returns whether it has more than was known.
    /// What else it says may go on for ever: that the same segment goes again, now as the
    /// one after a gap, is no progress.
    pub(super) fn expect(&mut self, number: u64) -> bool {
        self.expected = number;
        let mut moved = false;
        // What it has already it need not get again.
        while self.waiting.front().is_some_and(|s| s.number < number) {
            self.forget_first();
            moved = true;
        }
        moved
    }

    /// The first one cannot be read: it is a gap.
    pub(super) fn lost(&mut self) {
        self.forget_first();
    }

    fn forget_first(&mut self) {
        if let Some(segment) = self.waiting.pop_front() {
            self.weight -= segment.weight();
            self.remove_file(segment.number);
        }
    }

    /// Nothing more is wanted, now and later.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
        self.waiting.clear();
        self.weight = 0;
        self.remove();
    }

    /// What is on disk stays there, for the next agent.
    pub(super) fn leave(&mut self) {
        self.is_closed = true;
        self.waiting.clear();
        self.weight = 0;
        self.is_made = false;
    }

    /// Removes the folder.
    fn remove(&mut self) {
        if self.is_made
            && let Err(e) = fs::remove_dir_all(&self.dir)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("unable to remove {}: {e}", self.dir.display());
        }
        self.is_made = false;
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(number.to_string())
    }

    fn remove_file(&self, number: u64) {
        let path = self.path(number);
        if let Err(e) = fs::remove_file(&path)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("unable to remove {}: {e}", path.display());
        }
    }
}

/// What the file says of a session.
fn written(channel: &Channel) -> String {
    match &channel.key {
        Some(key) => format!("{MAGIC}2 {} {}\n", channel.url, key.secret_text()),
        None => format!("{MAGIC}1 {}\n", channel.url),
    }
}

/// Reads what [`written`] has written.
fn read(text: &str) -> Option<Channel> {
    let mut words = text.strip_prefix(MAGIC)?.split_ascii_whitespace();
    let form = words.next()?;
    let url = parse_url(words.next()?).ok()?;
    let key = match form {
        "1" => None,
        "2" => Some(SessionKey::parse(words.next()?)?),
        _ => return None,
    };
    words.next().is_none().then_some(Channel { url, key })
}

/// Writes a file that only its owner may read.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(dir: &Path, limit: u64) -> SegmentLog {
        let channel = Channel {
            url: parse_url("http://c.example/s/1").unwrap(),
            key: SessionKey::parse(&"0f".repeat(32)),
        };
        SegmentLog::new(dir.join("one"), channel, limit)
    }

    fn numbers(log: &SegmentLog) -> Vec<u64> {
        log.waiting.iter().map(|s| s.number).collect()
    }

    fn files(log: &SegmentLog) -> usize {
        fs::read_dir(&log.dir).unwrap().count() - 1
    }

    fn first(log: &SegmentLog) -> (u64, bool) {
        let first = log.first().unwrap();
        assert!(first.path.exists());
        (first.number, first.skips)
    }

    #[test]
    fn segments_go_in_order_and_are_forgotten_when_they_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path(), LIMIT);
        assert_eq!(log.first(), None);
        let upload = dir.path().join("log.1");
        fs::write(&upload, "update\nabc").unwrap();
        log.take(&upload, 10).unwrap();
        assert!(!upload.exists());
        log.push(b"update\ndef").unwrap();
        assert_eq!((first(&log), log.len(), log.bytes()), ((1, false), 2, 20));
        assert_eq!(fs::read(log.first().unwrap().path).unwrap(), b"update\nabc");
        log.taken(2);
        assert_eq!(first(&log), (1, false), "only the first one can be taken");
        log.taken(1);
        assert_eq!((first(&log), files(&log)), ((2, false), 1));
        log.close();
        log.push(b"update\nghi").unwrap();
        assert!(log.first().is_none() && !log.dir.exists());
    }

    #[test]
    fn of_too_much_the_middle_is_dropped_and_the_gap_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path(), 10 * LEAST);
        for _ in 0..11 {
            log.push(b"update\nx").unwrap();
        }
        // The first half, and the last.
        assert_eq!(numbers(&log), [1, 2, 3, 4, 5, 10, 11]);
        assert_eq!((files(&log), log.take_dropped()), (7, 4 * 8));
        for number in 1..=5 {
            assert_eq!(first(&log), (number, false));
            log.taken(number);
        }
        assert_eq!(first(&log), (10, true));
        log.taken(10);
        assert_eq!(first(&log), (11, false));
        for _ in 0..100 {
            log.push(b"update\nx").unwrap();
        }
        assert!(log.len() <= 10 && numbers(&log)[0] == 11);
    }

    #[test]
    fn the_controller_says_where_to_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path(), LIMIT);
        for _ in 0..5 {
            log.push(b"update\nx").unwrap();
        }
        log.taken(1);
        log.taken(2);
        // It has lost what it had: what is left comes, with a gap.
        assert!(!log.expect(1));
        assert_eq!(first(&log), (3, true));
        // Nothing better can be sent, whatever it says of those that are gone.
        for number in [1, 3, 2, 3, 0] {
            assert!(!log.expect(number), "{number}");
            assert_eq!(first(&log), (3, number != 3));
        }
        // It has more than was known.
        assert!(log.expect(5));
        assert_eq!((first(&log), files(&log)), ((5, false), 1));
        assert!(log.expect(u64::MAX));
        assert_eq!(log.first(), None);
    }

    #[test]
    fn what_an_earlier_agent_left_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut before = log(dir.path(), LIMIT);
        for _ in 0..12 {
            before.push(b"update\nx").unwrap();
        }
        before.taken(1);
        let log = SegmentLog::recover(&before.dir).unwrap();
        assert_eq!(numbers(&log), (2..=12).collect::<Vec<_>>());
        let same = (first(&log), log.channel());
        assert_eq!(same, ((2, false), before.channel()));
        let file = before.dir.join(URL_FILE);
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "it is signed with what is in it");
        // As agents before this one have written it.
        fs::write(&file, "bbot-session 1 http://c.example/s/1\n").unwrap();
        let log = SegmentLog::recover(&before.dir).unwrap();
        assert_eq!(log.channel().key, None);
        for damage in [
            "",
            "x",
            "bbot-session 1 ftp://x/\n",
            "bbot-session 2 http://x/\n",
            "bbot-session 2 http://x/ 0f\n",
            "bbot-session 1 http://x/ 0f\n",
            "bbot-session 3 http://x/\n",
        ] {
            fs::write(before.dir.join(URL_FILE), damage).unwrap();
            assert!(SegmentLog::recover(&before.dir).is_err());
        }
    }

    #[test]
    fn a_segment_that_cannot_be_written_is_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path(), LIMIT);
        log.push(b"update\nx").unwrap();
        assert!(log.take(&dir.path().join("missing"), 1).is_err());
        log.push(b"update\nx").unwrap();
        assert_eq!(numbers(&log), [1, 3]);
        log.taken(1);
        assert_eq!(first(&log), (3, true));
    }
}
