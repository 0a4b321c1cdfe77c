//! What may be in a source archive: names and links that stay in it; files, directories and links.
//!
//! All of it is told by names alone, of an archive that is not unpacked. A link that is fine by its own name can still
//! lead out through another one; so an unpacker, besides, writes nothing below a link.

use std::path::{Component, Path, PathBuf};

use tar::EntryType;

/// The name of an entry without `.` components; `None` when it leads out: absolute, or with a `..`.
///
/// Empty for the archive's own top (`./`).
#[must_use]
pub fn name(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

/// Where the symbolic link named `link` (a clean name, see [`name`]) leads; `None` when that is outside, or nowhere.
#[must_use]
pub fn link_end(link: &Path, target: &Path) -> Option<PathBuf> {
    if target.as_os_str().is_empty() {
        return None;
    }
    let mut at = link.parent().unwrap_or(Path::new("")).to_owned();
    for component in target.components() {
        match component {
            Component::Normal(part) => at.push(part),
            Component::CurDir => {}
            Component::ParentDir => {
                if !at.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(at)
}

/// What an entry of a tar is to a source archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file with contents, in whatever way the tar stores them.
    File,
    /// A symbolic link; see [`link_end`].
    Symlink,
    /// Another name of a file that came before it; its target is a [`name`] like an entry's own.
    HardLink,
    /// A header about other entries: to be passed over.
    Header,
    /// What has no place in sources: a device, a pipe, what nobody knows.
    Other,
}

impl Kind {
    /// The kind of a tar's entry.
    #[must_use]
    pub fn of(entry: EntryType) -> Self {
        match entry {
            EntryType::Directory => Self::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Self::File,
            EntryType::Symlink => Self::Symlink,
            EntryType::Link => Self::HardLink,
            EntryType::XGlobalHeader | EntryType::XHeader => Self::Header,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        for (path, expected) in [
            ("a/b", Some("a/b")),
            ("./a/./b/", Some("a/b")),
            ("a//b", Some("a/b")),
            ("./", Some("")),
            ("", Some("")),
            ("..a/b..", Some("..a/b..")),
            ("/a", None),
            ("..", None),
            ("a/../b", None),
            ("a/..", None),
        ] {
            assert_eq!(name(Path::new(path)), expected.map(PathBuf::from), "{path}");
        }
    }

    #[test]
    fn links_are_judged_from_where_they_stand() {
        for (link, target, end) in [
            ("a", "b", Some("b")),
            ("a", ".", Some("")),
            ("d/a", "../b", Some("b")),
            ("d/a", "..", Some("")),
            ("d/a", "./x/../b", Some("d/b")),
            ("a", "", None),
            ("a", "..", None),
            ("a", "../b", None),
            ("d/a", "../../b", None),
            ("a", "/b", None),
            ("a", "/", None),
            ("a", "d/../../b", None),
        ] {
            assert_eq!(
                link_end(Path::new(link), Path::new(target)),
                end.map(PathBuf::from),
                "{link} -> {target}"
            );
        }
    }

    #[test]
    fn kinds() {
        for (byte, kind) in [
            (b'0', Kind::File),
            (b'\0', Kind::File),
            (b'7', Kind::File),
            (b'S', Kind::File),
            (b'1', Kind::HardLink),
            (b'2', Kind::Symlink),
            (b'3', Kind::Other),
            (b'4', Kind::Other),
            (b'5', Kind::Directory),
            (b'6', Kind::Other),
            (b'g', Kind::Header),
            (b'x', Kind::Header),
            (b'?', Kind::Other),
        ] {
            assert_eq!(Kind::of(EntryType::new(byte)), kind, "{}", char::from(byte));
        }
    }
}
