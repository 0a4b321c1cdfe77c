//! Unpacks a source archive: a gzip-compressed tar of someone whom nobody here knows.
//!
//! The worker does it as root, so nothing in the archive may lead it out of its directory: names with `..` or a leading
//! `/`, links that point outside, files below a link, and everything that is neither file, directory nor link is refused.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bbot_source::rules::{self, Kind};

use crate::user::User;

/// Bounds of what comes out of an archive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// In bytes, over all files.
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

impl Default for Bounds {
    /// Larger than any package (LLVM's is 2 GB in 150,000 files), smaller than what fills a machine's disk.
    fn default() -> Self {
        Self {
            bytes: 6 << 30,
            entries: 1_000_000,
        }
    }
}

/// Why an archive is not unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("the archive cannot be read: {0}")]
    Read(#[source] io::Error),
    #[error("{name:?} in the archive is refused: {why}")]
    Refused { name: PathBuf, why: &'static str },
    #[error("the archive unpacks to more than {0} MiB")]
    Bytes(u64),
    #[error("the archive has more than {0} entries")]
    Entries(u64),
    #[error("{name:?} cannot be written: {source}")]
    Write { name: PathBuf, source: io::Error },
}

/// Unpacks `archive` into the empty directory `to`; all of it belongs to `owner` then.
pub(crate) fn unpack(
    archive: &Path,
    to: &Path,
    owner: &User,
    bounds: Bounds,
) -> Result<(), UnpackError> {
    let file = File::open(archive).map_err(UnpackError::Read)?;
    let mut archive = tar::Archive::new(flate2::read::MultiGzDecoder::new(file));
    let mut unpacker = Unpacker {
        to,
        owner,
        bounds,
        bytes: 0,
        directories: BTreeSet::new(),
        times: Vec::new(),
    };
    let mut entries = 0;
    for entry in archive.entries().map_err(UnpackError::Read)? {
        let entry = entry.map_err(UnpackError::Read)?;
        entries += 1;
        if entries > bounds.entries {
            return Err(UnpackError::Entries(bounds.entries));
        }
        unpacker.entry(entry)?;
    }
    // Last, because writing into a directory changes its time.
    for (path, time) in unpacker.times.into_iter().rev() {
        let _ = File::open(&path).and_then(|directory| directory.set_modified(time));
    }
    Ok(())
}

struct Unpacker<'a> {
    to: &'a Path,
    owner: &'a User,
    bounds: Bounds,
    bytes: u64,
    /// Made by this run, and so known to be directories and not links.
    directories: BTreeSet<PathBuf>,
    times: Vec<(PathBuf, SystemTime)>,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> Result<(), UnpackError> {
        let name = entry.path().map_err(UnpackError::Read)?.into_owned();
        let kind = Kind::of(entry.header().entry_type());
        if kind == Kind::Header {
            return Ok(());
        }
        let refused = |why| UnpackError::Refused {
            name: name.clone(),
            why,
        };
        let inside =
            rules::name(&name).ok_or_else(|| refused("its name leads out of the archive"))?;
        if inside.as_os_str().is_empty() {
            return match kind {
                Kind::Directory => Ok(()),
                _ => Err(refused("it has no name")),
            };
        }
        let parent = inside.parent().unwrap_or(Path::new(""));
        self.directory(parent)
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotADirectory => {
                    refused("it is below something that is no directory")
                }
                _ => UnpackError::Write {
                    name: name.clone(),
                    source,
                },
            })?;
        let path = self.to.join(&inside);
        let failed = |source| UnpackError::Write {
            name: name.clone(),
            source,
        };
        let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
        let time = entry.header().mtime().unwrap_or(0);
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(time.min(u64::from(u32::MAX)));
        match kind {
            Kind::Directory => {
                self.directory(&inside).map_err(failed)?;
                let permissions = fs::Permissions::from_mode(mode | 0o700);
                fs::set_permissions(&path, permissions).map_err(failed)?;
                self.times.push((path, time));
            }
            Kind::File => {
                self.make_room(&path).map_err(failed)?;
                // A sparse file costs an archive nothing: what counts is what it will be.
                self.bytes = self.bytes.saturating_add(entry.size());
                if self.bytes > self.bounds.bytes {
                    return Err(UnpackError::Bytes(self.bounds.bytes >> 20));
                }
                let file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path);
                let mut file = file.map_err(failed)?;
                io::copy(&mut entry, &mut file).map_err(failed)?;
                let permissions = fs::Permissions::from_mode(mode | 0o600);
                file.set_permissions(permissions)
                    .and_then(|()| chown(&path, Some(self.owner.uid), Some(self.owner.gid)))
                    .and_then(|()| file.set_modified(time))
                    .map_err(failed)?;
            }
            Kind::Symlink => {
                let target = entry
                    .link_name()
                    .map_err(UnpackError::Read)?
                    .unwrap_or_default();
                if rules::link_end(&inside, &target).is_none() {
                    return Err(refused("it is a link that leads out of the archive"));
                }
                self.make_room(&path).map_err(failed)?;
                symlink(&target, &path)
                    .and_then(|()| lchown(&path, Some(self.owner.uid), Some(self.owner.gid)))
                    .map_err(failed)?;
            }
            Kind::HardLink => {
                let target = entry
                    .link_name()
                    .map_err(UnpackError::Read)?
                    .unwrap_or_default();
                let target = rules::name(&target)
                    .ok_or_else(|| refused("it is a link that leads out of the archive"))?;
                let target = self.to.join(target);
                let is_file = self.is_plain_below(&target)
                    && fs::symlink_metadata(&target).is_ok_and(|metadata| metadata.is_file());
                if !is_file {
                    return Err(refused("it is a link to what is no file of the archive"));
                }
                self.make_room(&path).map_err(failed)?;
                fs::hard_link(&target, &path).map_err(failed)?;
            }
            Kind::Header | Kind::Other => {
                return Err(refused("it is neither file, directory nor link"));
            }
        }
        Ok(())
    }

    /// Makes a directory and those above it. `NotADirectory` when one of them is something else, a link included.
    fn directory(&mut self, inside: &Path) -> io::Result<()> {
        let mut path = self.to.to_owned();
        for component in inside.components() {
            path.push(component);
            if self.directories.contains(&path) {
                continue;
            }
            match fs::create_dir(&path) {
                Ok(()) => chown(&path, Some(self.owner.uid), Some(self.owner.gid))?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(io::ErrorKind::NotADirectory.into());
                }
                Err(error) => return Err(error),
            }
            self.directories.insert(path.clone());
        }
        Ok(())
    }

    /// A later entry of the same name takes the place of an earlier file.
    fn make_room(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether all directories on the way to `path` were made by this run.
    fn is_plain_below(&self, path: &Path) -> bool {
        path.parent()
            .is_some_and(|parent| parent == self.to || self.directories.contains(parent))
    }
}

/// The source's root: the only directory at the top, if there is nothing else there.
pub(crate) fn root(directory: &Path) -> io::Result<PathBuf> {
    let mut names: Vec<OsString> = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.push(entry?.file_name());
    }
    if let [only] = names.as_slice() {
        let only = directory.join(only);
        if fs::symlink_metadata(&only)?.is_dir() {
            return Ok(only);
        }
    }
    Ok(directory.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bbot_source::{Content, Mode, Writer};
    use std::io::Write;
    use tar::EntryType;

    /// An archive of raw entries: kind, name, link target, contents. Names go in as they are, good or bad.
    fn archive(dir: &Path, entries: &[Raw<'_>]) -> PathBuf {
        let path = dir.join("a.tar.gz");
        let gzip = flate2::write::GzEncoder::new(
            File::create(&path).unwrap(),
            flate2::Compression::fast(),
        );
        let mut builder = tar::Builder::new(gzip);
        for (kind, name, target, contents) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
            header.set_mode(0o4755);
            header.set_mtime(1_500_000_000);
            header.set_size(contents.len() as u64);
            header.set_cksum();
            builder.append(&header, *contents).unwrap();
        }
        builder
            .into_inner()
            .unwrap()
            .finish()
            .unwrap()
            .flush()
            .unwrap();
        path
    }

    fn me() -> User {
        User {
            name: "me".to_owned(),
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
        }
    }

    /// Kind, name, link target, contents.
    type Raw<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

    fn run(entries: &[Raw<'_>]) -> (tempfile::TempDir, Result<(), UnpackError>) {
        let dir = tempfile::tempdir().unwrap();
        let path = archive(dir.path(), entries);
        let to = dir.path().join("to");
        fs::create_dir(&to).unwrap();
        let result = unpack(
            &path,
            &to,
            &me(),
            Bounds {
                bytes: 1000,
                entries: 10,
            },
        );
        (dir, result)
    }

    const DIR: EntryType = EntryType::Directory;
    const FILE: EntryType = EntryType::Regular;
    const SYM: EntryType = EntryType::Symlink;
    const HARD: EntryType = EntryType::Link;

    #[test]
    fn an_ordinary_archive_comes_out_with_modes_and_times() {
        let (dir, result) = run(&[
            (DIR, "p-1/", "", b""),
            (FILE, "./p-1/configure", "", b"#!/bin/sh\n"),
            (FILE, "p-1/sub/deep/file", "", b"x"),
            (SYM, "p-1/sub/link", "../configure", b""),
            (HARD, "p-1/hard", "p-1/configure", b""),
            (FILE, "p-1/configure2", "", b"first"),
            (FILE, "p-1/configure2", "", b"second"),
        ]);
        result.unwrap();
        let root = root(&dir.path().join("to")).unwrap();
        assert!(root.ends_with("p-1"));
        let metadata = fs::metadata(root.join("configure")).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o755);
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000);
        assert_eq!(metadata.modified().unwrap(), time);
        assert_eq!(fs::metadata(&root).unwrap().modified().unwrap(), time);
        assert_eq!(fs::read(root.join("sub/link")).unwrap(), b"#!/bin/sh\n");
        assert_eq!(fs::read(root.join("hard")).unwrap(), b"#!/bin/sh\n");
        assert_eq!(fs::read(root.join("configure2")).unwrap(), b"second");
    }

    #[test]
    fn without_a_single_directory_the_top_is_the_root() {
        let (dir, result) = run(&[(DIR, "a/", "", b""), (FILE, "Makefile", "", b"")]);
        result.unwrap();
        assert_eq!(root(&dir.path().join("to")).unwrap(), dir.path().join("to"));
    }

    #[test]
    fn what_leads_out_is_refused_and_leaves_nothing_outside() {
        let cases: [&[Raw<'_>]; 10] = [
            &[(FILE, "../out", "", b"x")],
            &[(FILE, "/tmp/bbot-unpack-test-out", "", b"x")],
            &[(FILE, "a/../../out", "", b"x")],
            &[(SYM, "l", "/etc", b"")],
            &[(SYM, "a/l", "../../..", b"")],
            &[(SYM, "l", ".", b""), (FILE, "l/out", "", b"x")],
            &[
                (SYM, "l", "d", b""),
                (DIR, "d/", "", b""),
                (SYM, "l/x", "..", b""),
            ],
            &[(HARD, "h", "../a.tar.gz", b"")],
            &[(SYM, "l", "x", b""), (HARD, "h", "l", b"")],
            &[(EntryType::Char, "dev", "", b"")],
        ];
        for entries in cases {
            let (dir, result) = run(entries);
            let error = result.unwrap_err();
            assert!(
                matches!(error, UnpackError::Refused { .. }),
                "{entries:?}: {error}"
            );
            assert!(!dir.path().join("out").exists());
            assert!(!Path::new("/tmp/bbot-unpack-test-out").exists());
        }
    }

    /// The other end of the rules: whatever a packer is given, in whatever order, comes out of its archive here.
    #[test]
    fn what_the_writer_writes_is_unpacked() {
        const KINDS: [&str; 5] = ["directory", "file", "symlink", "hard link", "other"];
        let mut entries = Vec::new();
        for name in [".", "a", "a/b"] {
            for kind in KINDS {
                let targets: &[&str] = match kind {
                    "symlink" => &["", ".", "..", "a", "../b", "/etc"],
                    "hard link" => &["a", "a/b", "../b"],
                    _ => &[""],
                };
                entries.extend(targets.iter().map(|target| (name, kind, *target)));
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar.gz");
        let write = |chosen: &[(&str, &str, &str)]| {
            let mut writer = Writer::new(Vec::new(), None).unwrap();
            for (name, kind, target) in chosen {
                let mut contents = name.as_bytes();
                let content = match *kind {
                    "directory" => Content::Directory,
                    "file" => Content::File {
                        size: contents.len() as u64,
                        contents: &mut contents,
                        mode: Mode::Plain,
                    },
                    "symlink" => Content::Symlink(Path::new(target)),
                    "hard link" => Content::HardLink(Path::new(target)),
                    _ => Content::Other,
                };
                let _ = writer.add(Path::new(name), None, content).unwrap();
            }
            writer.finish().unwrap()
        };
        let mut seen = BTreeSet::new();
        for first in &entries {
            for second in &entries {
                for chosen in [
                    &[*first, *second][..],
                    &[("a/b", "file", ""), *first, *second],
                ] {
                    let archive = write(chosen);
                    if !seen.insert(archive.sha256) {
                        continue;
                    }
                    fs::write(&path, archive.output).unwrap();
                    let to = tempfile::tempdir_in(dir.path()).unwrap();
                    if let Err(error) = unpack(&path, to.path(), &me(), Bounds::default()) {
                        panic!("{chosen:?}: {error}");
                    }
                }
            }
        }
    }

    #[test]
    fn bounds_are_kept() {
        let large = [b'x'; 600];
        let (_dir, result) = run(&[(FILE, "a", "", &large), (FILE, "b", "", &large)]);
        assert!(matches!(result.unwrap_err(), UnpackError::Bytes(_)));
        let names: Vec<String> = (0..11).map(|number| format!("f{number}")).collect();
        let many: Vec<_> = names
            .iter()
            .map(|name| (FILE, name.as_str(), "", &b""[..]))
            .collect();
        let (_dir, result) = run(&many);
        assert!(matches!(result.unwrap_err(), UnpackError::Entries(10)));
    }

    #[test]
    fn rubbish_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, b"this is not gzip").unwrap();
        let error = unpack(&path, dir.path(), &me(), Bounds::default()).unwrap_err();
        assert!(matches!(error, UnpackError::Read(_)), "{error}");
    }
}
