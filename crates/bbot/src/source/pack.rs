//! Writes the source archive: sorted, without owners, links inside the package only.
//!
//! The same sources give the same bytes and so the same name, and a worker can unpack what is
//! written here without trusting it. Times are kept: `configure` older than `configure.ac` would be
//! made again.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, Write},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use flate2::{GzBuilder, write::GzEncoder};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use super::{Package, identity::Identity};

/// An archive that has no identity yet.
#[derive(Debug)]
pub(super) struct Packed {
    archive: File,
    sha256: String,
    size: u64,
}

impl Packed {
    pub(super) fn with(self, identity: Identity) -> Package {
        Package {
            identity,
            archive: self.archive,
            sha256: self.sha256,
            size: self.size,
        }
    }
}

/// Packs a directory under the top folder `top`, leaving out what `.gitignore` names and `.git` itself.
pub(super) fn directory(root: &Path, top: &str) -> Result<Packed> {
    let mut paths = BTreeMap::new();
    let walk = ignore::WalkBuilder::new(root)
        .hidden(false)
        .git_global(false)
        .require_git(true)
        .parents(true)
        .follow_links(false)
        .filter_entry(|entry| {
            !matches!(
                entry.file_name().to_str(),
                Some(".git" | ".hg" | ".svn" | ".bzr")
            )
        })
        .build();
    for entry in walk {
        let entry = entry.with_context(|| format!("cannot read {}", root.display()))?;
        let inside = entry
            .path()
            .strip_prefix(root)
            .expect("a walk below the root gives paths below the root")
            .to_path_buf();
        if !inside.as_os_str().is_empty() {
            paths.insert(inside, entry.into_path());
        }
    }

    let mut archive = Archive::new()?;
    archive.add_directory(Path::new(top), 0o755, 0)?;
    for (inside, path) in paths {
        let name = Path::new(top).join(&inside);
        let metadata = path
            .symlink_metadata()
            .with_context(|| format!("cannot read {}", path.display()))?;
        let mtime = mtime(&metadata);
        let kind = metadata.file_type();
        if kind.is_dir() {
            archive.add_directory(&name, 0o755, mtime)?;
        } else if kind.is_symlink() {
            let target = path
                .read_link()
                .with_context(|| format!("cannot read {}", path.display()))?;
            if stays_inside(&inside, &target) {
                archive.add_link(&name, &target, EntryType::Symlink, mtime)?;
            } else {
                eprintln!(
                    "warning: {} is left out: it links to {}, out of the package",
                    inside.display(),
                    target.display()
                );
            }
        } else if kind.is_file() {
            let file =
                File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
            archive.add_file(&name, file, metadata.len(), executable(&metadata), mtime)?;
        } else {
            eprintln!(
                "warning: {} is left out: it is not a file",
                inside.display()
            );
        }
    }
    archive.finish()
}

/// Packs the entries of a tar stream again, in their order, after the same rules.
pub(super) fn archive(tar: &mut dyn Read, source: &Path) -> Result<Packed> {
    let unreadable = || {
        format!(
            "cannot read {}: it is damaged, or not a tar archive",
            source.display()
        )
    };
    let mut reader = tar::Archive::new(tar);
    let mut archive = Archive::new()?;
    let mut entries = 0_u64;
    for entry in reader.entries().with_context(unreadable)? {
        let mut entry = entry.with_context(unreadable)?;
        let path = entry.path().with_context(unreadable)?.into_owned();
        let name = relative(&path).with_context(|| {
            format!(
                "{} holds the name {}, which leaves the package",
                source.display(),
                path.display()
            )
        })?;
        if name.as_os_str().is_empty() {
            continue;
        }
        let mtime = entry.header().mtime().unwrap_or(0);
        let mode = entry.header().mode().unwrap_or(0o644);
        match entry.header().entry_type() {
            EntryType::Directory => archive.add_directory(&name, 0o755, mtime)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let size = entry.size();
                archive.add_file(&name, &mut entry, size, mode & 0o100 != 0, mtime)?;
            }
            kind @ (EntryType::Symlink | EntryType::Link) => {
                let target = entry
                    .link_name()
                    .with_context(unreadable)?
                    .map(|t| t.into_owned());
                let inside = match (&target, kind) {
                    (None, _) => false,
                    (Some(target), EntryType::Symlink) => stays_inside(&name, target),
                    (Some(target), _) => relative(target).is_some(),
                };
                match target {
                    Some(target) if inside => archive.add_link(&name, &target, kind, mtime)?,
                    _ => eprintln!(
                        "warning: {} is left out: it links out of the package",
                        name.display()
                    ),
                }
            }
            EntryType::XGlobalHeader => continue,
            _ => eprintln!("warning: {} is left out: it is not a file", name.display()),
        }
        entries += 1;
    }
    if entries == 0 {
        bail!("{} is empty: there is nothing to build", source.display());
    }
    archive.finish()
}

/// The archive being written: tar in gzip in a hash in an unnamed file.
struct Archive {
    tar: tar::Builder<GzEncoder<Hashed>>,
}

impl Archive {
    fn new() -> Result<Archive> {
        let file =
            tempfile::tempfile().context("cannot make a temporary file for the source archive")?;
        let hashed = Hashed {
            file,
            hash: Sha256::new(),
            size: 0,
        };
        // No time and no name in the gzip header: the bytes depend on the sources alone.
        let gzip = GzBuilder::new()
            .mtime(0)
            .write(hashed, flate2::Compression::fast());
        Ok(Archive {
            tar: tar::Builder::new(gzip),
        })
    }

    fn add_directory(&mut self, name: &Path, mode: u32, mtime: u64) -> Result<()> {
        let mut header = header(EntryType::Directory, mode, mtime, 0);
        self.append(&mut header, name, io::empty())
    }

    fn add_file(
        &mut self,
        name: &Path,
        contents: impl Read,
        size: u64,
        executable: bool,
        mtime: u64,
    ) -> Result<()> {
        let mode = if executable { 0o755 } else { 0o644 };
        let mut header = header(EntryType::Regular, mode, mtime, size);
        // A file that grows while it is read must not run over its entry, and one that shrinks is
        // an error of its own kind.
        let mut contents = Counted {
            inner: contents.take(size),
            read: 0,
        };
        self.append(&mut header, name, &mut contents)?;
        if contents.read != size {
            bail!(
                "{} became shorter while it was read: try again",
                name.display()
            );
        }
        Ok(())
    }

    fn add_link(&mut self, name: &Path, target: &Path, kind: EntryType, mtime: u64) -> Result<()> {
        let mut header = header(kind, 0o777, mtime, 0);
        self.tar
            .append_link(&mut header, name, target)
            .with_context(|| format!("cannot add {} to the source archive", name.display()))
    }

    fn append(&mut self, header: &mut Header, name: &Path, contents: impl Read) -> Result<()> {
        self.tar
            .append_data(header, name, contents)
            .with_context(|| format!("cannot add {} to the source archive", name.display()))
    }

    fn finish(self) -> Result<Packed> {
        let failed = "cannot write the source archive";
        let hashed = self
            .tar
            .into_inner()
            .context(failed)?
            .finish()
            .context(failed)?;
        let mut file = hashed.file;
        file.rewind().context(failed)?;
        Ok(Packed {
            archive: file,
            sha256: hex::encode(hashed.hash.finalize()),
            size: hashed.size,
        })
    }
}

fn header(kind: EntryType, mode: u32, mtime: u64, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(mtime);
    header.set_size(size);
    header
}

/// Counts what was read: `tar` pads a short entry silently.
struct Counted<R> {
    inner: R,
    read: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.read += n as u64;
        Ok(n)
    }
}

/// A file that knows the hash and the size of what was written to it.
struct Hashed {
    file: File,
    hash: Sha256,
    size: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn mtime(metadata: &std::fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt;
    u64::try_from(metadata.mtime()).unwrap_or(0)
}

fn executable(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    metadata.permissions().mode() & 0o100 != 0
}

/// `path` without `.` components; none when it is absolute or has a `..`.
fn relative(path: &Path) -> Option<PathBuf> {
    let mut result = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => result.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(result)
}

/// Does a symbolic link at `link` (relative to the package) with this target end in the package?
fn stays_inside(link: &Path, target: &Path) -> bool {
    let mut depth = link.components().count().saturating_sub(1);
    for component in target.components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return false,
            },
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn names(packed: &mut Packed) -> Vec<String> {
        packed.archive.rewind().unwrap();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&packed.archive));
        tar.entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn a_directory_is_packed_sorted_and_without_what_git_ignores() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join(".git")).unwrap();
        fs::write(root.join(".git/config"), "").unwrap();
        fs::write(root.join(".gitignore"), "*.o\n").unwrap();
        fs::write(root.join("b.o"), "").unwrap();
        fs::create_dir(root.join("src")).unwrap();
        fs::write(root.join("src/z.c"), "").unwrap();
        fs::write(root.join("a.c"), "").unwrap();
        symlink("src/z.c", root.join("good")).unwrap();
        symlink("../../etc/passwd", root.join("src/bad")).unwrap();
        symlink("/etc/passwd", root.join("worse")).unwrap();
        let mut packed = directory(root, "p-1").unwrap();
        assert_eq!(
            names(&mut packed),
            [
                "p-1",
                "p-1/.gitignore",
                "p-1/a.c",
                "p-1/good",
                "p-1/src",
                "p-1/src/z.c"
            ]
        );
        let again = directory(root, "p-1").unwrap();
        assert_eq!(packed.sha256, again.sha256);
        assert_eq!(packed.size, packed.archive.metadata().unwrap().len());
    }

    #[test]
    fn links_are_judged_from_where_they_stand() {
        for (link, target, inside) in [
            ("a", "b", true),
            ("a", "../b", false),
            ("d/a", "../b", true),
            ("d/a", "../../b", false),
            ("a", "/b", false),
            ("a", "d/../../b", false),
        ] {
            assert_eq!(
                stays_inside(Path::new(link), Path::new(target)),
                inside,
                "{link} -> {target}"
            );
        }
    }

    #[test]
    fn an_archive_that_leaves_its_package_is_refused() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(0);
        header.set_entry_type(EntryType::Regular);
        header.as_gnu_mut().unwrap().name[..9].copy_from_slice(b"../escape");
        header.set_cksum();
        builder.append(&header, io::empty()).unwrap();
        let bytes = builder.into_inner().unwrap();
        let error = archive(&mut bytes.as_slice(), Path::new("evil.tar")).unwrap_err();
        assert!(
            format!("{error:#}").contains("leaves the package"),
            "{error:#}"
        );
    }

    #[test]
    fn an_empty_archive_is_refused() {
        let bytes = tar::Builder::new(Vec::new()).into_inner().unwrap();
        let error = archive(&mut bytes.as_slice(), Path::new("empty.tar")).unwrap_err();
        assert!(format!("{error:#}").contains("empty"), "{error:#}");
    }
}
