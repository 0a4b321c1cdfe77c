//! Packs what the user has: a directory as git would see it, or an archive of someone's.
//!
//! Times are kept: `configure` older than `configure.ac` would be made again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::{File, Metadata},
    io::{Read, Seek},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use bbot_source::{Added, Content, Mode, Writer, rules::Kind};

use super::{Package, identity::Identity};

/// An archive that has no identity yet: an unnamed file.
#[derive(Debug)]
pub(super) struct Packed(bbot_source::Archive<File>);

/// A file that tells something of its package is not longer than this.
const TEXT_BYTES: u64 = 1 << 20;

impl Packed {
    /// The texts of these files in the package's own folder: the archive's, or the only one in it.
    /// Empty for a file that is not there or is not text.
    pub(super) fn texts<const N: usize>(&self, names: [&str; N]) -> Result<[String; N]> {
        let failed = "cannot read the source archive again";
        let mut file = &self.0.output;
        file.rewind().context(failed)?;
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(file));
        let mut tops = BTreeSet::new();
        let mut texts = [const { String::new() }; N];
        let mut texts_below = [const { String::new() }; N];
        for entry in tar.entries().context(failed)? {
            let mut entry = entry.context(failed)?;
            let path = entry.path().context(failed)?.into_owned();
            let mut parts = path.components().map(|part| part.as_os_str().to_owned());
            let (first, second, third) = (parts.next(), parts.next(), parts.next());
            let is_file = entry.header().entry_type().is_file();
            let index = |name: &Option<OsString>| {
                let name = name.as_ref().filter(|_| is_file)?;
                names.iter().position(|wanted| name == wanted)
            };
            let text = match (&second, &third) {
                (None, None) => index(&first).map(|at| &mut texts[at]),
                (Some(_), None) => index(&second).map(|at| &mut texts_below[at]),
                _ => None,
            };
            if let Some(text) = text {
                // What is not text tells nothing.
                let _ = entry.by_ref().take(TEXT_BYTES).read_to_string(text);
            }
            tops.insert((first, is_file && second.is_none()));
        }
        self.0
            .output
            .try_clone()
            .and_then(|mut f| f.rewind())
            .context(failed)?;
        let only_folder = tops.len() == 1 && tops.iter().all(|(_, is_file)| !is_file);
        Ok(if only_folder { texts_below } else { texts })
    }

    pub(super) fn with(self, identity: Identity) -> Package {
        Package {
            identity,
            archive: self.0.output,
            sha256: self.0.sha256,
            size: self.0.size,
        }
    }
}

/// Packs a directory under the top folder `top`, leaving out what `.gitignore` names and `.git` itself.
pub(super) fn directory(root: &Path, top: &str) -> Result<Packed> {
    let mut writer = writer(Some(top))?;
    for (name, path) in sorted(root)? {
        let unreadable = || format!("cannot read {}", path.display());
        let metadata = path.symlink_metadata().with_context(unreadable)?;
        let kind = metadata.file_type();
        let time = Some(time(&metadata));
        let added = if kind.is_dir() {
            writer.add(&name, time, Content::Directory)
        } else if kind.is_symlink() {
            let target = path.read_link().with_context(unreadable)?;
            writer.add(&name, time, Content::Symlink(&target))
        } else if kind.is_file() {
            let mut file =
                File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
            let content = Content::File {
                contents: &mut file,
                size: metadata.len(),
                mode: Mode::of(metadata.permissions().mode()),
            };
            writer.add(&name, time, content)
        } else {
            writer.add(&name, time, Content::Other)
        };
        tell(&name, &added?);
    }
    finish(writer)
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
    let mut writer = writer(None)?;
    for entry in reader.entries().with_context(unreadable)? {
        let mut entry = entry.with_context(unreadable)?;
        let name = entry.path().with_context(unreadable)?.into_owned();
        let time = entry.header().mtime().ok();
        let target = entry
            .link_name()
            .with_context(unreadable)?
            .unwrap_or_default()
            .into_owned();
        let content = match Kind::of(entry.header().entry_type()) {
            Kind::Directory => Content::Directory,
            Kind::File => Content::File {
                size: entry.size(),
                mode: Mode::of(entry.header().mode().unwrap_or(0o644)),
                contents: &mut entry,
            },
            Kind::Symlink => Content::Symlink(&target),
            Kind::HardLink => Content::HardLink(&target),
            Kind::Header => continue,
            Kind::Other => Content::Other,
        };
        let added = writer
            .add(&name, time, content)
            .with_context(|| format!("cannot pack {}", source.display()))?;
        tell(&name, &added);
    }
    let packed = finish(writer)?;
    if packed.0.files == 0 {
        bail!("{} is empty: there is nothing to build", source.display());
    }
    Ok(packed)
}

/// What is below a directory, by its name there, sorted: the order of a directory is its own.
fn sorted(root: &Path) -> Result<BTreeMap<PathBuf, PathBuf>> {
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
    Ok(paths)
}

fn writer(top: Option<&str>) -> Result<Writer<File>> {
    let file =
        tempfile::tempfile().context("cannot make a temporary file for the source archive")?;
    Ok(Writer::new(file, top)?)
}

fn finish(writer: Writer<File>) -> Result<Packed> {
    let mut archive = writer.finish()?;
    archive
        .output
        .rewind()
        .context("cannot read the source archive")?;
    Ok(Packed(archive))
}

fn tell(name: &Path, added: &Added) {
    if let Added::LeftOut(why) = added {
        eprintln!("warning: {} is left out: {why}", name.display());
    }
}

fn time(metadata: &Metadata) -> u64 {
    u64::try_from(metadata.mtime()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::{fs, io, os::unix::fs::symlink};

    use tar::{EntryType, Header};

    use super::*;

    fn names(packed: &Packed) -> Vec<String> {
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&packed.0.output));
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
        let packed = directory(root, "p-1").unwrap();
        assert_eq!(
            names(&packed),
            [
                "p-1/",
                "p-1/.gitignore",
                "p-1/a.c",
                "p-1/good",
                "p-1/src/",
                "p-1/src/z.c"
            ]
        );
        let again = directory(root, "p-1").unwrap();
        assert_eq!(packed.0.sha256, again.0.sha256);
        assert_eq!(packed.0.size, packed.0.output.metadata().unwrap().len());
    }

    #[test]
    fn an_archive_is_packed_again_in_its_order() {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, name, target) in [
            (EntryType::Directory, "./p-1/", ""),
            (EntryType::Regular, "./p-1/z", ""),
            (EntryType::Regular, "p-1/a", ""),
            (EntryType::Link, "p-1/hard", "./p-1/a"),
            (EntryType::Symlink, "p-1/link", "../p-1/z"),
            (EntryType::Symlink, "p-1/bad", "/etc/passwd"),
            (EntryType::Link, "p-1/of-bad", "p-1/bad"),
            (EntryType::Fifo, "p-1/pipe", ""),
        ] {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_mode(0o644);
            header.set_mtime(1_500_000_000);
            if target.is_empty() {
                builder.append_data(&mut header, name, io::empty()).unwrap();
            } else {
                builder.append_link(&mut header, name, target).unwrap();
            }
        }
        let bytes = builder.into_inner().unwrap();
        let packed = archive(&mut bytes.as_slice(), Path::new("p.tar")).unwrap();
        assert_eq!(
            names(&packed),
            ["p-1/", "p-1/z", "p-1/a", "p-1/hard", "p-1/link"]
        );
        (&packed.0.output).rewind().unwrap();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&packed.0.output));
        for entry in tar.entries().unwrap() {
            assert_eq!(entry.unwrap().header().mtime().unwrap(), 1_500_000_000);
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
