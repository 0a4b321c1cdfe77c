//! The raw log of one run: segments appended to files, read from any offset, bounded by leaving out the middle.
//!
//! The beginning is in `<run>.log`. What no longer fits goes to `<run>.log.1`, `.2`, ...: each holds half of the end
//! that is kept, and when one is begun the last but one before it is removed. Every record says its own number and
//! offset, so what is on disk explains itself: after a kill at any point the records that are whole count, and a torn
//! last one is cut off. A segment is acknowledged only once its record is on disk.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::record::{self, DATA_LIMIT, HEAD, Head};

/// Where a reader can begin, at least every so many bytes of log.
const STRIDE: u64 = 64 << 10;

/// How much of a log is kept. Bytes on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Of the beginning.
    pub head: u64,
    /// Of the end, at most; at least half of it.
    pub tail: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            head: 48 << 20,
            tail: 16 << 20,
        }
    }
}

/// What became of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is on disk.
    Stored {
        /// The number that comes next.
        next: u64,
    },
    /// It was there already.
    Known {
        /// The number that comes next.
        next: u64,
    },
    /// One before it is missing.
    Gap {
        /// The number that comes next.
        next: u64,
    },
}

/// Whether an agent says that it has not got the segments any more that are missing before this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// It does not: a gap is a mistake.
    No,
    /// It does: a gap is taken.
    Yes,
}

/// What is at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of one operation.
    Bytes {
        /// The operation.
        operation: String,
        /// At most 64 KiB.
        bytes: Vec<u8>,
    },
    /// Something is missing before what comes next.
    Gap {
        /// Bytes of the middle that are not kept any more.
        left_out: u64,
        /// Segments that the agent could not send.
        missing: u64,
    },
}

/// Where a reader stands: the offset, and the number of the segment that it expects there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Offset of the next byte.
    pub at: u64,
    /// Number of the last segment that was read, 0 when that is not known: then no missing ones are told.
    pub number: u64,
}

#[derive(Debug, Clone, Copy)]
struct Checkpoint {
    at: u64,
    offset: u64,
}

#[derive(Debug)]
struct Part {
    /// 0 is the beginning.
    index: u64,
    length: u64,
    /// In their order; the first is the part's first record.
    checkpoints: Vec<Checkpoint>,
}

#[derive(Debug)]
struct Inner {
    parts: Vec<Part>,
    /// The last part's file, once something was appended.
    file: Option<File>,
    /// Number of the last segment.
    number: u64,
    /// Length of the whole log, what is left out included.
    end: u64,
    /// A write failed and could not be undone: nothing is appended before the files were read anew.
    broken: bool,
}

/// The log of one run.
#[derive(Debug)]
pub struct RunLog {
    path: PathBuf,
    bounds: Bounds,
    inner: Mutex<Inner>,
    grown: watch::Sender<u64>,
}

fn part_path(path: &Path, index: u64) -> PathBuf {
    if index == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{index}"));
    name.into()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

impl RunLog {
    /// Opens the log whose first file has this path; there may be none yet.
    ///
    /// # Errors
    /// A file cannot be read, or a torn end not be cut off.
    pub fn open(path: PathBuf, bounds: Bounds) -> io::Result<Self> {
        let inner = scan(&path)?;
        let grown = watch::Sender::new(inner.end);
        Ok(Self {
            path,
            bounds,
            inner: Mutex::new(inner),
            grown,
        })
    }

    /// Nothing that is left half done under the lock is wrong: the fields change together, after the disk has.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when the log has grown: its length.
    pub fn grown(&self) -> watch::Receiver<u64> {
        self.grown.subscribe()
    }

    /// Number that the next segment has.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.lock().number.saturating_add(1)
    }

    /// Number of the last segment that is there, 0 where there is none.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.lock().number
    }

    /// Length of the whole log in bytes, what is left out included.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.lock().end
    }

    /// Takes a segment; it is on disk when this returns `Stored` or `Known`.
    ///
    /// # Errors
    /// It cannot be written; then nothing of it is there.
    pub fn append(
        &self,
        number: u64,
        skip: Skip,
        operation: &str,
        data: &[u8],
    ) -> io::Result<Appended> {
        let mut inner = self.lock();
        if inner.broken {
            *inner = scan(&self.path)?;
        }
        let next = inner.number.saturating_add(1);
        if number < next {
            return Ok(Appended::Known { next });
        }
        if number > next && skip == Skip::No || number == u64::MAX {
            return Ok(Appended::Gap { next });
        }
        let at = inner.end;
        let record = record::write(number, at, operation, data)
            .filter(|_| at.checked_add(2 * DATA_LIMIT as u64).is_some())
            .ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "not a log segment"))?;
        self.write(&mut inner, &record, at)?;
        inner.number = number;
        inner.end = at + data.len() as u64;
        self.grown.send_replace(inner.end);
        Ok(Appended::Stored { next: number + 1 })
    }

    fn write(&self, inner: &mut Inner, record: &[u8], at: u64) -> io::Result<()> {
        let length = record.len() as u64;
        let full = match inner.parts.last() {
            None => Some(0),
            Some(part) => {
                let bound = if part.index == 0 {
                    self.bounds.head
                } else {
                    self.bounds.tail / 2
                };
                (part.length > 0 && part.length + length > bound).then_some(part.index + 1)
            }
        };
        if let Some(index) = full {
            self.begin_part(inner, index)?;
        }
        let Some(part) = inner.parts.last_mut() else {
            return Err(io::Error::other("a log without a file"));
        };
        let file = match &mut inner.file {
            Some(file) => file,
            none => none.insert(
                File::options()
                    .append(true)
                    .open(part_path(&self.path, part.index))?,
            ),
        };
        if let Err(e) = file.write_all(record).and_then(|()| file.sync_data()) {
            // What is half there would hide what comes after it.
            if file.set_len(part.length).is_err() {
                inner.broken = true;
            }
            return Err(e);
        }
        if part
            .checkpoints
            .last()
            .is_none_or(|last| at - last.at >= STRIDE)
        {
            part.checkpoints.push(Checkpoint {
                at,
                offset: part.length,
            });
        }
        part.length += length;
        Ok(())
    }

    /// Begins a new file, and removes the oldest of the end where there are more than two.
    fn begin_part(&self, inner: &mut Inner, index: u64) -> io::Result<()> {
        if index == 0
            && let Some(directory) = self.path.parent()
        {
            fs::create_dir_all(directory)?;
            sync_directory(directory)?;
        }
        let path = part_path(&self.path, index);
        // Truncates: one that is empty may be there from before a crash.
        let file = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&path)?;
        sync_directory(&path)?;
        inner.file = Some(file);
        inner.parts.push(Part {
            index,
            length: 0,
            checkpoints: Vec::new(),
        });
        let ends = inner.parts.iter().filter(|p| p.index > 0).count();
        for _ in 2..ends {
            // The beginning is at 0.
            let old = inner.parts.remove(1);
            if let Err(e) = fs::remove_file(part_path(&self.path, old.index)) {
                tracing::warn!("cannot remove a part of a log that is too long: {e}");
            }
        }
        Ok(())
    }

    /// What is at a position, at most 64 KiB, and where to go on; `None` at the end.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn read(&self, from: Position) -> io::Result<Option<(Piece, Position)>> {
        let inner = self.lock();
        if from.at >= inner.end {
            return Ok(None);
        }
        // The part that holds it, else the first one after it.
        let part = inner
            .parts
            .iter()
            .enumerate()
            .filter(|(_, p)| !p.checkpoints.is_empty())
            .take_while(|(_, p)| p.checkpoints[0].at <= from.at)
            .last();
        let after = part.map_or(0, |(i, _)| i + 1);
        if let Some((_, part)) = part
            && let Some(found) = read_part(&self.path, part, from)?
        {
            return Ok(Some(found));
        }
        let next = inner.parts[after..]
            .iter()
            .find(|p| !p.checkpoints.is_empty());
        match next {
            Some(part) if part.checkpoints[0].at > from.at => {
                let at = part.checkpoints[0].at;
                let gap = Piece::Gap {
                    left_out: at - from.at,
                    missing: 0,
                };
                // The numbers of what is left out are left out with it.
                Ok(Some((gap, Position { at, number: 0 })))
            }
            Some(part) => read_part(&self.path, part, from),
            None => Ok(None),
        }
    }
}

/// Reads from a part: what it has at this position, `None` when it ends before.
fn read_part(path: &Path, part: &Part, from: Position) -> io::Result<Option<(Piece, Position)>> {
    let begin = part
        .checkpoints
        .iter()
        .take_while(|c| c.at <= from.at)
        .last()
        .map_or(0, |c| c.offset);
    let file = File::open(part_path(path, part.index))?;
    let mut records = Records {
        file: &file,
        offset: begin,
        length: part.length,
    };
    let mut found: Option<(String, Vec<u8>, Position)> = None;
    while let Some(head) = records.head()? {
        let end = head.at + head.data as u64;
        if found.is_none() && end <= from.at {
            records.pass(&head);
            continue;
        }
        // Small segments of one operation are given together.
        if let Some((_, bytes, _)) = &found
            && bytes.len() + head.data > DATA_LIMIT
        {
            break;
        }
        let last = found.as_ref().map_or(from.number, |(.., p)| p.number);
        if last > 0 && head.number > last + 1 {
            if found.is_some() {
                break;
            }
            let missing = head.number - last - 1;
            let gap = Piece::Gap {
                left_out: 0,
                missing,
            };
            let number = head.number - 1;
            return Ok(Some((
                gap,
                Position {
                    at: from.at,
                    number,
                },
            )));
        }
        let body = records.body(&head)?;
        let (operation, data) = body.split_at(head.operation);
        let operation = String::from_utf8_lossy(operation);
        let position = Position {
            at: end,
            number: head.number,
        };
        match &mut found {
            None => {
                let skipped =
                    usize::try_from(from.at.saturating_sub(head.at)).unwrap_or(usize::MAX);
                let data = data.get(skipped..).unwrap_or_default();
                found = Some((operation.into_owned(), data.to_vec(), position));
            }
            Some((first, bytes, at)) if *first == operation => {
                bytes.extend_from_slice(data);
                *at = position;
            }
            Some(_) => break,
        }
        records.pass(&head);
    }
    Ok(found.map(|(operation, bytes, position)| (Piece::Bytes { operation, bytes }, position)))
}

/// The records of a file from an offset on.
struct Records<'a> {
    file: &'a File,
    offset: u64,
    length: u64,
}

impl Records<'_> {
    /// The head of the record here; `None` at the end, or where there is no record.
    fn head(&self) -> io::Result<Option<Head>> {
        if self.offset + HEAD as u64 > self.length {
            return Ok(None);
        }
        let mut head = [0; HEAD];
        self.file.read_exact_at(&mut head, self.offset)?;
        Ok(Head::read(&head).filter(|h| self.offset + h.length() <= self.length))
    }

    fn body(&self, head: &Head) -> io::Result<Vec<u8>> {
        let mut body = vec![0; head.operation + head.data];
        self.file
            .read_exact_at(&mut body, self.offset + HEAD as u64)?;
        Ok(body)
    }

    fn pass(&mut self, head: &Head) {
        self.offset += head.length();
    }
}

/// What the files of a log hold. A torn end is cut off.
fn scan(path: &Path) -> io::Result<Inner> {
    let mut indices = part_indices(path)?;
    indices.sort_unstable();
    let mut inner = Inner {
        parts: Vec::new(),
        file: None,
        number: 0,
        end: 0,
        broken: false,
    };
    for index in indices {
        let path = part_path(path, index);
        let file = File::options().read(true).write(true).open(&path)?;
        let length = file.metadata()?.len();
        let mut part = Part {
            index,
            length: 0,
            checkpoints: Vec::new(),
        };
        let mut records = Records {
            file: &file,
            offset: 0,
            length,
        };
        while let Some(head) = records.head()? {
            let in_order = head.number > inner.number && head.at >= inner.end;
            if !in_order || !head.proves(&records.body(&head)?) {
                break;
            }
            if part
                .checkpoints
                .last()
                .is_none_or(|last| head.at - last.at >= STRIDE)
            {
                part.checkpoints.push(Checkpoint {
                    at: head.at,
                    offset: records.offset,
                });
            }
            inner.number = head.number;
            inner.end = head.at + head.data as u64;
            records.pass(&head);
        }
        part.length = records.offset;
        if part.length < length {
            tracing::warn!(
                "the end of {} is torn: {} bytes that were never acknowledged are cut off",
                path.display(),
                length - part.length
            );
            file.set_len(part.length)?;
            file.sync_all()?;
        }
        inner.parts.push(part);
    }
    Ok(inner)
}

/// The numbers of the files that there are of a log.
fn part_indices(path: &Path) -> io::Result<Vec<u64>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
    else {
        return Ok(Vec::new());
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut indices = Vec::new();
    for entry in entries {
        let entry = entry?.file_name();
        let Some(rest) = entry.to_str().and_then(|e| e.strip_prefix(name)) else {
            continue;
        };
        match rest.strip_prefix('.') {
            None if rest.is_empty() => indices.push(0),
            Some(index) => indices.extend(index.parse::<u64>().ok().filter(|i| *i > 0)),
            None => {}
        }
    }
    Ok(indices)
}

/// Removes the files of a log. The beginning goes last: as long as it is there, there is something to remove.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let mut indices = part_indices(path)?;
    indices.sort_unstable();
    for index in indices.into_iter().rev() {
        match fs::remove_file(part_path(path, index)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
