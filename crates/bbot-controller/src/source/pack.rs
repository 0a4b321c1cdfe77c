//! The one tar form of a source tree, so that the same tree always is the same archive.
//!
//! What an entry says beside its name, kind, contents and whether it can be executed is left out: owners,
//! times, other mode bits, extended headers. Entries are in the order of their names.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Component, Path};

use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

/// A tree could not be packed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PackError {
    /// The tar that it is made of cannot be read.
    #[error("cannot read the tree")]
    Read(#[source] io::Error),
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    /// A name that leads out of the tree.
    #[error("the tree has a file named {0:?}")]
    Name(String),
    /// The tree is too large.
    #[error("the tree is larger than {0} bytes")]
    TooLarge(u64),
    /// There are no files.
    #[error("the tree is empty")]
    Empty,
}

/// Reads a tar of a tree (as `git archive` writes it) and writes the one form of it, compressed.
///
/// `spool` holds the contents in between: a seekable file, empty.
pub(super) fn repack(
    input: impl Read,
    spool: &mut (impl Read + Write + io::Seek),
    output: impl Write,
    limit: u64,
) -> Result<(), PackError> {
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    let mut offset = 0_u64;
    for entry in tar::Archive::new(input)
        .entries()
        .map_err(PackError::Read)?
    {
        let mut entry = entry.map_err(PackError::Read)?;
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::XHeader) {
            continue;
        }
        let name = name(&entry.path().map_err(PackError::Read)?)?;
        if name.is_empty() {
            continue;
        }
        let contents = match kind {
            EntryType::Directory => Contents::Directory,
            EntryType::Symlink => {
                let target = entry
                    .link_name()
                    .map_err(PackError::Read)?
                    .unwrap_or_default()
                    .into_owned();
                Contents::Link(target)
            }
            EntryType::Regular => {
                let mode = entry.header().mode().map_err(PackError::Read)?;
                let left = limit.saturating_sub(offset);
                let copied = io::copy(&mut (&mut entry).take(left.saturating_add(1)), spool)
                    .map_err(PackError::Read)?;
                if copied > left {
                    return Err(PackError::TooLarge(limit));
                }
                let file = Contents::File {
                    offset,
                    bytes: copied,
                    executable: mode & 0o111 != 0,
                };
                offset += copied;
                file
            }
            // git knows no others.
            _ => continue,
        };
        entries.insert(name, Entry { contents });
    }
    if !entries
        .values()
        .any(|e| matches!(e.contents, Contents::File { .. }))
    {
        return Err(PackError::Empty);
    }

    // No name and no time in the gzip header either.
    let gzip = GzBuilder::new()
        .mtime(0)
        .write(output, Compression::default());
    let mut tar = Builder::new(gzip);
    for (name, entry) in &entries {
        write(&mut tar, name, &entry.contents, spool).map_err(PackError::Write)?;
    }
    tar.into_inner()
        .and_then(flate2::write::GzEncoder::finish)
        .and_then(|mut o| o.flush())
        .map_err(PackError::Write)
}

struct Entry {
    contents: Contents,
}

enum Contents {
    Directory,
    Link(std::path::PathBuf),
    File {
        offset: u64,
        bytes: u64,
        executable: bool,
    },
}

fn name(path: &Path) -> Result<String, PackError> {
    let bad = || PackError::Name(path.display().to_string());
    let mut name = String::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => {
                if !name.is_empty() {
                    name.push('/');
                }
                name.push_str(part.to_str().ok_or_else(bad)?);
            }
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(bad()),
        }
    }
    Ok(name)
}

fn write<W: Write>(
    tar: &mut Builder<W>,
    name: &str,
    contents: &Contents,
    spool: &mut (impl Read + io::Seek),
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    match contents {
        Contents::Directory => {
            header.set_entry_type(EntryType::Directory);
            header.set_mode(0o755);
            tar.append_data(&mut header, format!("{name}/"), io::empty())
        }
        Contents::Link(target) => {
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(0o777);
            tar.append_link(&mut header, name, target)
        }
        Contents::File {
            offset,
            bytes,
            executable,
        } => {
            header.set_entry_type(EntryType::Regular);
            header.set_mode(if *executable { 0o755 } else { 0o644 });
            header.set_size(*bytes);
            spool.seek(io::SeekFrom::Start(*offset))?;
            tar.append_data(&mut header, name, spool.take(*bytes))
        }
    }
}

#[cfg(test)]
mod tests {
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
        let mut output = Vec::new();
        repack(tar, &mut tempfile::tempfile().unwrap(), &mut output, limit)?;
        Ok(output)
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
    fn bounds() {
        assert!(matches!(
            packed(&tar_of(&[("a", &[0; 11], 0o644, 0)]), 10),
            Err(PackError::TooLarge(10))
        ));
        assert!(matches!(packed(&tar_of(&[]), 10), Err(PackError::Empty)));
        assert!(packed(b"garbage that is no tar at all, but long enough", 10).is_err());
    }
}
