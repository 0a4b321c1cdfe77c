//! Copies a file so that holes stay holes and, where the file system can, without copying at all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Copies `from` to the new file `to`: by reflink, else only the parts that hold data. The copy is on disk when it returns.
pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    match reflink_copy::reflink(from, to) {
        Ok(()) => return File::open(to)?.sync_all(),
        // What a failed attempt has left behind.
        Err(_) => match fs::remove_file(to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        },
    }
    let source = File::open(from)?;
    let target = OpenOptions::new().write(true).create_new(true).open(to)?;
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let start = match seek(&source, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data behind this point.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(&source, SeekFrom::Hole(start))?;
        at = start;
        while at < end {
            let wanted =
                usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
            let got = source.read_at(&mut buffer[..wanted], at)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            target.write_all_at(&buffer[..got], at)?;
            at += got as u64;
        }
    }
    target.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn data_is_copied_and_holes_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let source = File::create(&from).unwrap();
        source.set_len(64 << 20).unwrap();
        source.write_all_at(b"begin", 0).unwrap();
        source.write_all_at(b"middle", 30_000_001).unwrap();
        copy(&from, &to).unwrap();
        let copied = fs::read(&to).unwrap();
        assert_eq!(copied, fs::read(&from).unwrap());
        assert_eq!(copied.len(), 64 << 20);
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 8 << 20);
    }
}
