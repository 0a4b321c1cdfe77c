//! Copying one file's content as cheaply as the file system allows.

use std::io;

use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// How a file's content came over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// The blocks are shared with the source (reflink).
    Shared,
    /// This many bytes were copied; the rest are holes.
    Copied(u64),
}

/// Asked before each chunk: an error ends the copy.
pub(super) type GoOn<'a> = &'a dyn Fn() -> io::Result<()>;

/// Gives the empty file `to` the `length` bytes of `from`, both open.
pub(super) fn copy_content(
    from: impl AsFd,
    to: impl AsFd,
    length: u64,
    go_on: GoOn<'_>,
) -> io::Result<Content> {
    let (from, to) = (from.as_fd(), to.as_fd());
    if length == 0 {
        return Ok(Content::Copied(0));
    }
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => return Ok(Content::Shared),
        // What kernels and file systems say when they cannot share blocks between these two.
        Err(
            Errno::OPNOTSUPP
            | Errno::XDEV
            | Errno::INVAL
            | Errno::NOTTY
            | Errno::NOSYS
            | Errno::PERM
            | Errno::TXTBSY,
        ) => {}
        Err(e) => return Err(e.into()),
    }
    copy_data(from, to, length, go_on).map(Content::Copied)
}

/// Copies what is data and leaves holes as holes. Returns the bytes copied.
fn copy_data(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    length: u64,
    go_on: GoOn<'_>,
) -> io::Result<u64> {
    rustix::fs::ftruncate(to, length)?;
    let mut copied = 0;
    let mut position = 0;
    while position < length {
        let data = match rustix::fs::seek(from, SeekFrom::Data(position)) {
            Ok(data) => data.min(length),
            // No data from here to the end.
            Err(Errno::NXIO) => break,
            // The file system does not tell holes from data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                return Ok(copied + copy_range(from, to, position, length, go_on)?);
            }
            Err(e) => return Err(e.into()),
        };
        let hole = rustix::fs::seek(from, SeekFrom::Hole(data))?.min(length);
        copied += copy_range(from, to, data, hole, go_on)?;
        position = hole.max(data + 1);
    }
    Ok(copied)
}

/// The most that one system call is asked to copy: enough to be quick, little enough for a copy
/// onto a slow disk to end within a second when it is to.
const CHUNK: usize = 8 << 20;

/// Copies the bytes from `start` to `end`, in the kernel where it can.
fn copy_range(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    start: u64,
    end: u64,
    go_on: GoOn<'_>,
) -> io::Result<u64> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        go_on()?;
        let wanted = usize::try_from(end - read_at).map_or(CHUNK, |rest| rest.min(CHUNK));
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), wanted)
        {
            Err(Errno::INTR) => {}
            // Not between these two file systems, or not at all. Zero bytes before the end is what
            // some file systems say instead; if the source did shrink, reading finds out.
            Ok(0)
            | Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return copy_by_hand(from, to, read_at, end, go_on).map(|()| end - start);
            }
            Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(end - start)
}

fn copy_by_hand(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    start: u64,
    end: u64,
    go_on: GoOn<'_>,
) -> io::Result<()> {
    let mut buffer = vec![0u8; 1 << 20];
    let mut position = start;
    while position < end {
        go_on()?;
        let wanted = usize::try_from(end - position).map_or(buffer.len(), |n| n.min(buffer.len()));
        let read = match rustix::io::pread(from, &mut buffer[..wanted], position) {
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the file shrank while it was copied",
                ));
            }
            Ok(read) => read,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            match rustix::io::pwrite(to, rest, position) {
                Ok(written) => {
                    rest = &rest[written..];
                    position += written as u64;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn on() -> io::Result<()> {
        Ok(())
    }

    #[test]
    fn a_copy_ends_with_the_chunk_in_which_it_is_told_to() {
        let mut from = tempfile::tempfile().unwrap();
        from.write_all(&vec![1; 3 * CHUNK]).unwrap();
        let length = 3 * CHUNK as u64;
        let left = std::cell::Cell::new(2);
        let once_more = || match left.get() {
            0 => Err(io::ErrorKind::Interrupted.into()),
            n => {
                left.set(n - 1);
                Ok(())
            }
        };
        for by_hand in [false, true] {
            let to = tempfile::tempfile().unwrap();
            left.set(2);
            let copied = match by_hand {
                false => copy_range(from.as_fd(), to.as_fd(), 0, length, &once_more).map(drop),
                true => copy_by_hand(from.as_fd(), to.as_fd(), 0, length, &once_more),
            };
            assert_eq!(copied.unwrap_err().kind(), io::ErrorKind::Interrupted);
            let written = to.metadata().unwrap().len();
            assert!((1..=2 * CHUNK as u64).contains(&written), "{written}");
        }
    }

    fn content(file: &mut std::fs::File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Data, a hole of 8 MiB, data, a hole to the end.
    fn sparse() -> (std::fs::File, u64) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        file.seek(SeekFrom::Start(8 << 20)).unwrap();
        file.write_all(&[9; 70_000]).unwrap();
        file.set_len(16 << 20).unwrap();
        (file, 16 << 20)
    }

    #[test]
    fn holes_stay_holes() {
        let (mut from, length) = sparse();
        let mut to = tempfile::tempfile().unwrap();
        let copied = copy_data(from.as_fd(), to.as_fd(), length, &on).unwrap();
        assert!((75_000..1 << 20).contains(&copied), "{copied}");
        assert!(content(&mut from) == content(&mut to));
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn by_hand_is_the_same() {
        let (mut from, length) = sparse();
        let mut to = tempfile::tempfile().unwrap();
        copy_by_hand(from.as_fd(), to.as_fd(), 0, length, &on).unwrap();
        assert!(content(&mut from) == content(&mut to));
    }

    #[test]
    fn an_empty_file_is_copied() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        assert_eq!(
            copy_content(&from, &to, 0, &on).unwrap(),
            Content::Copied(0)
        );
    }

    #[test]
    fn a_file_that_shrank_is_noticed() {
        let mut from = tempfile::tempfile().unwrap();
        from.write_all(&[1; 100]).unwrap();
        let to = tempfile::tempfile().unwrap();
        let error = copy_range(from.as_fd(), to.as_fd(), 0, 200, &on).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
