//! What the user wants built: a directory or an archive, its identity, and the one form in which
//! sources travel (a gzip-compressed tar named by its SHA-256).

pub(crate) mod identity;
mod pack;
mod unpack;

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use identity::Identity;

/// A package ready to be sent: its identity and its source archive.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) identity: Identity,
    /// The gzip-compressed tar, an unnamed file read from its start.
    pub(crate) archive: File,
    /// SHA-256 of the archive's bytes, lower-case hex.
    pub(crate) sha256: String,
    /// Size of the archive in bytes.
    pub(crate) size: u64,
}

/// Name and version given on the command line; they win over what the sources say.
#[derive(Debug, Default, Clone)]
pub(crate) struct Given {
    pub(crate) name: Option<String>,
    pub(crate) version: Option<String>,
}

/// Makes a package of a directory or of an archive.
pub(crate) fn package(path: &Path, given: &Given) -> Result<Package> {
    let path: PathBuf = path.canonicalize().with_context(|| {
        format!(
            "cannot find {}: name a source directory or an archive",
            path.display()
        )
    })?;
    let metadata = path
        .metadata()
        .with_context(|| format!("cannot read {}", path.display()))?;
    if metadata.is_dir() {
        let identity = identity::of_directory(&path, given)?;
        let packed = pack::directory(&path, &identity.directory_name())?;
        return Ok(packed.with(identity));
    }
    if !metadata.is_file() {
        bail!("{} is neither a directory nor an archive", path.display());
    }
    let mut tar = unpack::open(&path)?;
    let packed = pack::archive(&mut tar, &path)?;
    let identity = identity::of_archive(&path, &packed.texts(identity::TELLING)?, given)?;
    Ok(packed.with(identity))
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    /// An archive called `a.tar.gz` of `hello/`, or of what is in it.
    fn archive(inside: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("hello/src")).unwrap();
        let text = ": 1\nname: hello\nversion: 1.0.0\n";
        fs::write(folder.path().join("hello/manifest"), text).unwrap();
        fs::write(
            folder.path().join("hello/src/CMakeLists.txt"),
            "project(other VERSION 9)\n",
        )
        .unwrap();
        let path = folder.path().join("a.tar.gz");
        let made = Command::new("tar")
            .arg("czf")
            .arg(&path)
            .arg("-C")
            .arg(folder.path())
            .args(inside)
            .status()
            .unwrap();
        assert!(made.success());
        (folder, path)
    }

    #[test]
    fn an_archive_tells_its_identity_by_what_is_in_it() {
        let identity = |path: &Path| {
            let package = package(path, &Given::default()).unwrap();
            (package.identity.name, package.identity.version)
        };
        let hello = ("hello".to_string(), "1.0.0".to_string());
        let (_folder, path) = archive(&["hello"]);
        assert_eq!(identity(&path), hello);
        let (_folder, path) = archive(&["-C", "hello", "manifest", "src"]);
        assert_eq!(identity(&path), hello);
        // A folder beside others is not the package's own.
        let (_folder, path) = archive(&["hello", "-C", "hello", "src"]);
        assert_eq!(identity(&path).0, "a");
    }
}
