//! Packs a tree of git: sorted by name, without times, so that the same tree always is the same archive.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use bbot_source::rules::{self, Kind};
use bbot_source::{Added, Archive, Content, LeftOut, Mode, WriteError, Writer};

/// A tree could not be packed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PackError {
    /// The tar that it is made of cannot be read.
    #[error("cannot read the tree")]
    Read(#[source] io::Error),
    /// The archive cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A name that leads out of the tree.
    #[error("the tree has a file named {0:?}")]
    Name(PathBuf),
    /// The tree is too large.
    #[error("the tree is larger than {0} bytes")]
    TooLarge(u64),
    /// The tree has too many entries.
    #[error("the tree has more than {ENTRIES} entries")]
    Entries,
    /// There are no files.
    #[error("the tree is empty")]
    Empty,
}

/// A packed tree.
#[derive(Debug)]
pub(super) struct Packed<W> {
    pub(super) archive: Archive<W>,
    /// What is not in it, and why.
    pub(super) left_out: Vec<(PathBuf, LeftOut)>,
}

/// Reads a tar of a tree (as `git archive` writes it) and writes the source archive of it.
///
/// `spool` holds the contents in between: a seekable file, empty.
pub(super) fn repack<W: Write>(
    input: impl Read,
    spool: &mut (impl Read + Write + Seek),
    output: W,
    limit: u64,
) -> Result<Packed<W>, PackError> {
    let entries = read(input, spool, limit)?;
    // No top folder, as git knows no name of the package; no times, as it knows none of files.
    let mut writer = Writer::new(output, None)?;
    let mut left_out = Vec::new();
    for (name, entry) in entries {
        let added = match entry {
            Entry::Directory => writer.add(&name, None, Content::Directory),
            Entry::Link(target) => writer.add(&name, None, Content::Symlink(&target)),
            Entry::File {
                offset,
                bytes,
                mode,
            } => {
                spool
                    .seek(SeekFrom::Start(offset))
                    .map_err(PackError::Read)?;
                let content = Content::File {
                    contents: spool,
                    size: bytes,
                    mode,
                };
                writer.add(&name, None, content)
            }
        };
        if let Added::LeftOut(why) = added? {
            left_out.push((name, why));
        }
    }
    let archive = writer.finish()?;
    if archive.files == 0 {
        return Err(PackError::Empty);
    }
    Ok(Packed { archive, left_out })
}

/// Files, directories and links that a tree has at most: as many as a worker takes. A tree of nothing but names costs no bytes.
const ENTRIES: usize = 1_000_000;

enum Entry {
    Directory,
    Link(PathBuf),
    File { offset: u64, bytes: u64, mode: Mode },
}

fn read(
    input: impl Read,
    spool: &mut impl Write,
    limit: u64,
) -> Result<BTreeMap<PathBuf, Entry>, PackError> {
    let mut entries = BTreeMap::new();
    let mut offset = 0_u64;
    for entry in tar::Archive::new(input)
        .entries()
        .map_err(PackError::Read)?
    {
        let mut entry = entry.map_err(PackError::Read)?;
        let kind = Kind::of(entry.header().entry_type());
        if kind == Kind::Header {
            continue;
        }
        let path = entry.path().map_err(PackError::Read)?;
        let name = rules::name(&path).ok_or_else(|| PackError::Name(path.to_path_buf()))?;
        if entries.len() >= ENTRIES {
            return Err(PackError::Entries);
        }
        let entry = match kind {
            Kind::Directory => Entry::Directory,
            Kind::Symlink => {
                let target = entry.link_name().map_err(PackError::Read)?;
                Entry::Link(target.unwrap_or_default().into_owned())
            }
            Kind::File => {
                let mode = entry.header().mode().map_err(PackError::Read)?;
                let left = limit.saturating_sub(offset);
                let bytes = io::copy(&mut (&mut entry).take(left.saturating_add(1)), spool)
                    .map_err(PackError::Read)?;
                if bytes > left {
                    return Err(PackError::TooLarge(limit));
                }
                let start = offset;
                offset += bytes;
                Entry::File {
                    offset: start,
                    bytes,
                    mode: Mode::of(mode),
                }
            }
            // git knows no others.
            Kind::HardLink | Kind::Header | Kind::Other => continue,
        };
        entries.insert(name, entry);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tar::{Builder, EntryType, Header};

    use super::*;

    fn tar_of(files: &[(&str, &[u8], u32, u64)]) -> Vec<u8> {
        let mut tar = Builder::new(Vec::new());
        for (name, contents, mode, mtime) in files {
            let mut header = Header::new_gnu();
            header.set_mode(*mode);
            header.set_mtime(*mtime);
            header.set_size(contents.len() as u64);
            tar.append_data(&mut header, name, *contents).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn packed(tar: &[u8], limit: u64) -> Result<Vec<u8>, PackError> {
        let packed = repack(tar, &mut tempfile::tempfile().unwrap(), Vec::new(), limit)?;
        assert_eq!(packed.left_out, []);
        Ok(packed.archive.output)
    }

    #[test]
    fn the_same_tree_is_the_same_archive() {
        let one = packed(
            &tar_of(&[("b", b"2", 0o600, 5), ("a", b"1", 0o700, 6)]),
            100,
        )
        .unwrap();
        let two = packed(
            &tar_of(&[("a", b"1", 0o755, 0), ("b", b"2", 0o644, 1)]),
            100,
        )
        .unwrap();
        assert_eq!(one, two);
        let mut names = Vec::new();
        for entry in tar::Archive::new(flate2::read::GzDecoder::new(&one[..]))
            .entries()
            .unwrap()
        {
            let entry = entry.unwrap();
            names.push((
                entry.path().unwrap().display().to_string(),
                entry.header().mode().unwrap(),
            ));
        }
        assert_eq!(names, [("a".to_owned(), 0o755), ("b".to_owned(), 0o644)]);
    }

    #[test]
    fn links_that_leave_the_tree_are_left_out() {
        let mut tar = Builder::new(Vec::new());
        for (kind, name, target) in [
            (EntryType::Symlink, "up", "../secret"),
            (EntryType::Symlink, "absolute", "/etc/passwd"),
            (EntryType::Symlink, "src/good", "../file"),
            (EntryType::Symlink, "src/bad", "../../file"),
            (EntryType::Regular, "file", ""),
        ] {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o777);
            header.set_size(0);
            if target.is_empty() {
                tar.append_data(&mut header, name, io::empty()).unwrap();
            } else {
                tar.append_link(&mut header, name, target).unwrap();
            }
        }
        let tar = tar.into_inner().unwrap();
        let mut spool = tempfile::tempfile().unwrap();
        let packed = repack(&tar[..], &mut spool, Vec::new(), 100).unwrap();
        let out = |name: &str, target: &str| {
            let why = LeftOut::LeadsOut(target.into());
            (PathBuf::from(name), why)
        };
        assert_eq!(
            packed.left_out,
            [
                out("absolute", "/etc/passwd"),
                out("src/bad", "../../file"),
                out("up", "../secret"),
            ]
        );
        let gzip = flate2::read::GzDecoder::new(&packed.archive.output[..]);
        let names: Vec<_> = tar::Archive::new(gzip)
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().into_owned())
            .collect();
        assert_eq!(names, [Path::new("file"), Path::new("src/good")]);
    }

    /// Has no room for anything.
    #[derive(Debug)]
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Read for Full {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }
    }

    impl Seek for Full {
        fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
            Ok(0)
        }
    }

    #[test]
    fn no_room_is_told_apart() {
        let tree = tar_of(&[("a", &[7; 10_000], 0o644, 0)]);
        let output = repack(&tree[..], &mut tempfile::tempfile().unwrap(), Full, 1 << 20);
        assert!(crate::room::is_wanting(&output.unwrap_err()));
        let spool = repack(&tree[..], &mut Full, Vec::new(), 1 << 20);
        assert!(crate::room::is_wanting(&spool.unwrap_err()));
        let cut = repack(&tree[..600], &mut Full, Vec::new(), 1 << 20);
        assert!(!crate::room::is_wanting(&PackError::Empty) && cut.is_err());
    }

    #[test]
    fn bounds() {
        assert!(matches!(
            packed(&tar_of(&[("a", &[0; 11], 0o644, 0)]), 10),
            Err(PackError::TooLarge(10))
        ));
        assert!(matches!(packed(&tar_of(&[]), 10), Err(PackError::Empty)));
        assert!(packed(b"garbage that is no tar at all, but long enough", 10).is_err());
    }
}
