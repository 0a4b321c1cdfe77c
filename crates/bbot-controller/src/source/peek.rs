//! A look into a source archive for the package's manifest. Nothing is unpacked: the archive is read from its beginning to the end of its
//! last file, by which is known, too, that it can be read and is not more than a worker takes.

use std::cell::Cell;
use std::ffi::OsString;
use std::io::{self, BufReader, Read};
use std::path::Component;
use std::rc::Rc;

use bbot_source::rules::{self, Kind};

use crate::package::manifest::{LARGEST, is_manifest};

/// The file that a package's manifest is in, at the root of its sources.
pub const MANIFEST: &str = "manifest";

/// Bounds of what is in an archive, as the worker has them.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// In bytes, over all files.
    pub bytes: u64,
    /// Files, directories and links.
    pub entries: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            bytes: 6 << 30,
            entries: 1_000_000,
        }
    }
}

/// An archive cannot be looked into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeekError {
    /// It is not what it should be.
    #[error("it is no gzip-compressed tar that can be read: {0}")]
    Read(#[source] io::Error),
    /// It is too much.
    #[error("it unpacks to more than {0} MiB")]
    Bytes(u64),
    /// It is too many.
    #[error("it has more than {0} entries")]
    Entries(u64),
    /// An entry says too much of itself.
    #[error("an entry of it has a header of more than {} KiB", HEADER >> 10)]
    Header,
    /// The manifest is too large.
    #[error("its manifest is larger than {LARGEST} bytes")]
    Manifest,
}

/// The most that an entry says of itself, in bytes: a long name, extended attributes. What reads archives takes all of that into memory.
const HEADER: u64 = 1 << 20;

/// The package's manifest in this archive; `None` where there is none, or a file of that name that is something else.
///
/// The root is the archive's top, or the only directory there, as it is for the worker. Blocking.
///
/// # Errors
/// The archive cannot be read, or goes beyond the bounds.
pub fn manifest(archive: impl Read, bounds: Bounds) -> Result<Option<Vec<u8>>, PeekError> {
    let unpacked =
        flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(64 << 10, archive));
    let most = bounds
        .bytes
        .saturating_add(bounds.entries.saturating_mul(1024));
    let header = Rc::new(Cell::new(Some(HEADER)));
    let mut archive = tar::Archive::new(Bounded {
        input: unpacked,
        left: most,
        header: Rc::clone(&header),
    });
    let too_large = |e: io::Error| match e.get_ref().and_then(|e| e.downcast_ref()) {
        Some(TooLarge::Whole) => PeekError::Bytes(bounds.bytes >> 20),
        Some(TooLarge::Header) => PeekError::Header,
        None => PeekError::Read(e),
    };
    let mut root = Root::default();
    let (mut bytes, mut entries) = (0_u64, 0_u64);
    for entry in archive.entries().map_err(too_large)? {
        let mut entry = entry.map_err(too_large)?;
        header.set(None);
        entries += 1;
        if entries > bounds.entries {
            return Err(PeekError::Entries(bounds.entries));
        }
        let kind = Kind::of(entry.header().entry_type());
        // A sparse file costs an archive nothing: what counts is what it will be.
        bytes = bytes.saturating_add(entry.size());
        if bytes > bounds.bytes {
            return Err(PeekError::Bytes(bounds.bytes >> 20));
        }
        if kind != Kind::Header {
            root.look(&mut entry, kind).map_err(too_large)?;
        }
        // To its end, so that what is read next is the header of the next one.
        io::copy(&mut entry, &mut io::sink()).map_err(too_large)?;
        header.set(Some(HEADER));
    }
    match root.manifest() {
        // Of something else it does not matter how large it is.
        Some(text) if !is_manifest(&text) => Ok(None),
        Some(text) if text.len() > LARGEST => Err(PeekError::Manifest),
        found => Ok(found),
    }
}

/// What the root is, as far as can be told until now, and the manifests that may be the package's.
#[derive(Debug, Default)]
struct Root {
    /// The name of the only thing at the top.
    only: Option<OsString>,
    /// There is more at the top than one directory.
    is_top: bool,
    at_top: Option<Vec<u8>>,
    in_folder: Option<Vec<u8>>,
}

impl Root {
    /// Takes what an entry says of the root, and what is in it where that may be the manifest.
    fn look(&mut self, entry: &mut tar::Entry<'_, impl Read>, kind: Kind) -> io::Result<()> {
        let name = entry.path()?.into_owned();
        // A name that leads out is refused by the worker.
        let Some(name) = rules::name(&name) else {
            return Ok(());
        };
        let parts: Vec<Component<'_>> = name.components().collect();
        let (folder, is_manifest) = match parts.as_slice() {
            [] => return Ok(()),
            [only] => (None, only.as_os_str() == MANIFEST),
            [folder, file] => (Some(folder.as_os_str()), file.as_os_str() == MANIFEST),
            [folder, ..] => (Some(folder.as_os_str()), false),
        };
        let text = if is_manifest && kind == Kind::File {
            let mut text = Vec::new();
            entry.take(LARGEST as u64 + 1).read_to_end(&mut text)?;
            Some(text)
        } else {
            None
        };
        self.entry(folder, parts[0].as_os_str(), kind, text);
        Ok(())
    }

    fn entry(
        &mut self,
        folder: Option<&std::ffi::OsStr>,
        first: &std::ffi::OsStr,
        kind: Kind,
        text: Option<Vec<u8>>,
    ) {
        if folder.is_none() && kind != Kind::Directory {
            self.is_top = true;
        }
        match &self.only {
            Some(only) if only != first => self.is_top = true,
            Some(_) => {}
            None => self.only = Some(first.to_owned()),
        }
        if let Some(text) = text {
            // The last one of several of a name is the one that is unpacked.
            match folder {
                None => self.at_top = Some(text),
                Some(_) => self.in_folder = Some(text),
            }
        }
        if self.is_top {
            self.in_folder = None;
        }
    }

    fn manifest(self) -> Option<Vec<u8>> {
        if self.is_top {
            self.at_top
        } else {
            self.in_folder
        }
    }
}

/// Reads so much and no more.
struct Bounded<R> {
    input: R,
    left: u64,
    /// What is left for a header, while one is read.
    header: Rc<Cell<Option<u64>>>,
}

#[derive(Debug, thiserror::Error)]
enum TooLarge {
    #[error("too large")]
    Whole,
    #[error("a header that is too large")]
    Header,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let header = self.header.get();
        if self.left == 0 {
            return Err(io::Error::other(TooLarge::Whole));
        }
        if header == Some(0) {
            return Err(io::Error::other(TooLarge::Header));
        }
        let left = header.map_or(self.left, |header| header.min(self.left));
        let most = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self.input.read(&mut buffer[..most])?;
        self.left -= read as u64;
        self.header.set(header.map(|header| header - read as u64));
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write as _;
    use tar::{EntryType, Header};

    const GOOD: &str = ": 1\nname: a\n";

    fn entry(tar: &mut tar::Builder<impl io::Write>, name: &str, kind: EntryType, text: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        // Names go in as they are, good or bad.
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, text).unwrap();
    }

    fn look(entries: &[(&str, EntryType, &str)], bounds: Bounds) -> Result<Option<String>, String> {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (name, kind, text) in entries {
            entry(&mut tar, name, *kind, text.as_bytes());
        }
        look_into(&tar.into_inner().unwrap().finish().unwrap(), bounds)
    }

    fn look_into(bytes: &[u8], bounds: Bounds) -> Result<Option<String>, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        manifest(std::fs::File::open(file.path()).unwrap(), bounds)
            .map(|found| found.map(|text| String::from_utf8(text).unwrap()))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn the_manifest_at_the_root() {
        use EntryType::{Directory, Regular, Symlink};
        let other = ": 1\nname: b\n";
        for (entries, expected) in [
            (&[("manifest", Regular, GOOD)][..], Some(GOOD)),
            (
                &[("./", Directory, ""), ("./manifest", Regular, GOOD)],
                Some(GOOD),
            ),
            (
                &[
                    ("a-1/", Directory, ""),
                    ("a-1/manifest", Regular, GOOD),
                    ("a-1/x/y", Regular, ""),
                ],
                Some(GOOD),
            ),
            (
                &[("a-1/manifest", Regular, GOOD), ("b", Directory, "")],
                None,
            ),
            (&[("a-1/manifest", Regular, GOOD), ("b", Regular, "")], None),
            (
                &[
                    ("a-1/manifest", Regular, GOOD),
                    ("manifest", Regular, other),
                ],
                Some(other),
            ),
            (
                &[("manifest", Regular, other), ("manifest", Regular, GOOD)],
                Some(GOOD),
            ),
            (&[("a/b/manifest", Regular, GOOD)], None),
            (&[("Manifest", Regular, GOOD)], None),
            (&[("manifest", Regular, "{\"name\": 1}")], None),
            (&[("manifest", Symlink, "")], None),
            (&[("manifest/x", Regular, GOOD)], None),
            (
                &[("../manifest", Regular, GOOD), ("/manifest", Regular, GOOD)],
                None,
            ),
            (&[], None),
        ] {
            let found = look(entries, Bounds::default()).unwrap();
            assert_eq!(found.as_deref(), expected, "{entries:?}");
        }
    }

    #[test]
    fn bombs_and_what_is_no_archive() {
        use EntryType::Regular;
        let bounds = Bounds {
            bytes: 1 << 20,
            entries: 3,
        };
        let half = "x".repeat(600_000);
        let large = format!(": 1\n{}", "# x\n".repeat(LARGEST / 4));
        for (entries, expected) in [
            (
                &[("a", Regular, half.as_str()), ("b", Regular, &half)][..],
                "it unpacks to more than 1 MiB",
            ),
            (&[("a", Regular, ""); 4], "it has more than 3 entries"),
            (
                &[("manifest", Regular, &large)],
                "its manifest is larger than 262144 bytes",
            ),
        ] {
            assert_eq!(look(entries, bounds).unwrap_err(), expected);
        }
        assert_eq!(
            look(&[("manifest", Regular, &"x".repeat(LARGEST + 9))], bounds).unwrap(),
            None
        );
        // Zeros for ever behind the end.
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        let mut tar = tar::Builder::new(&mut gzip);
        entry(&mut tar, "manifest", Regular, GOOD.as_bytes());
        tar.into_inner().unwrap();
        gzip.write_all(&vec![0; 64 << 20]).unwrap();
        let bomb = gzip.finish().unwrap();
        let begun = std::time::Instant::now();
        assert!(look_into(&bomb, bounds).is_ok_and(|found| found.is_some()));
        assert!(begun.elapsed() < std::time::Duration::from_secs(10));
        // A file that says that it is larger than all of the disk.
        let mut header = Header::new_gnu();
        header.set_size(1 << 50);
        header.set_entry_type(Regular);
        header.set_cksum();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(header.as_bytes()).unwrap();
        let error = look_into(&gzip.finish().unwrap(), bounds).unwrap_err();
        assert_eq!(error, "it unpacks to more than 1 MiB");
        // Names and attributes that would fill the memory, in an archive of some kilobytes.
        for kind in [
            EntryType::GNULongName,
            EntryType::GNULongLink,
            EntryType::XHeader,
        ] {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            let mut tar = tar::Builder::new(&mut gzip);
            for large in ["x".repeat(8 << 20), String::new()] {
                entry(&mut tar, "a", kind, large.as_bytes());
            }
            entry(&mut tar, "manifest", Regular, GOOD.as_bytes());
            tar.into_inner().unwrap();
            let error = look_into(&gzip.finish().unwrap(), Bounds::default()).unwrap_err();
            assert_eq!(
                error, "an entry of it has a header of more than 1024 KiB",
                "{kind:?}"
            );
        }
        // One after the other may be as long as is usual.
        let long = "d/".repeat(2000);
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for number in 0..1000 {
            let mut header = Header::new_gnu();
            header.set_size(0);
            let name = format!("r/{long}{number}");
            tar.append_data(&mut header, name, io::empty()).unwrap();
        }
        entry(&mut tar, "r/manifest", Regular, GOOD.as_bytes());
        let good = tar.into_inner().unwrap().finish().unwrap();
        let found = look_into(&good, Bounds::default()).unwrap();
        assert_eq!(found.as_deref(), Some(GOOD));
        for bytes in [&b"\x1f\x8bnothing"[..], b"", b"no archive"] {
            assert!(look_into(bytes, bounds).is_err(), "{bytes:?}");
        }
    }
}
