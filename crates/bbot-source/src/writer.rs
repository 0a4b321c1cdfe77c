//! Writes a source archive: the same entries in the same order are the same bytes.
//!
//! What an entry says beside its name, kind, contents, time and whether it can be executed is dropped. What the rules
//! forbid is left out, and so is what an unpacker could not make after what came before it: the worker refuses an
//! archive whole.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::rules;

/// An archive could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// An entry's name is absolute or has a `..`.
    #[error("the name {0:?} leaves the package")]
    Name(PathBuf),
    /// The contents ended before the size that was given.
    #[error("{0:?} became shorter while it was read: try again")]
    Short(PathBuf),
    /// An entry cannot be read or written.
    #[error("cannot add {name:?} to the source archive")]
    Add {
        /// The entry.
        name: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The archive's end cannot be written.
    #[error("cannot write the source archive")]
    Finish(#[source] io::Error),
}

/// What became of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Added {
    /// It is in the archive.
    Written,
    /// It is not, for this reason; the archive goes on without it.
    LeftOut(LeftOut),
}

/// Why an entry is left out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeftOut {
    /// A link that leads out of the package, or nowhere.
    #[error("it links to {0:?}, out of the package")]
    LeadsOut(PathBuf),
    /// A hard link to what did not come before it as a file.
    #[error("it is a hard link to {0:?}, which is no file of the package")]
    NoFile(PathBuf),
    /// Something below a file or a link.
    #[error("it is below something that is no directory")]
    Below,
    /// A directory in the place of something else, or the other way round.
    #[error("there is something else of this name")]
    Taken,
    /// See [`rules::Kind::Other`].
    #[error("it is neither file, directory nor link")]
    Kind,
}

/// Whether a file can be executed; all that is kept of its mode bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 0644
    Plain,
    /// 0755
    Executable,
}

impl Mode {
    /// By the owner's bit of a file's mode.
    #[must_use]
    pub fn of(bits: u32) -> Self {
        if bits & 0o100 == 0 {
            Self::Plain
        } else {
            Self::Executable
        }
    }

    fn bits(self) -> u32 {
        match self {
            Self::Plain => 0o644,
            Self::Executable => 0o755,
        }
    }
}

/// What an entry is.
pub enum Content<'a> {
    /// A directory.
    Directory,
    /// A file.
    File {
        /// What is in it; read to `size`, not further.
        contents: &'a mut dyn Read,
        /// In bytes.
        size: u64,
        /// Whether it can be executed.
        mode: Mode,
    },
    /// A symbolic link and its target.
    Symlink(&'a Path),
    /// A further name of the file of this name.
    HardLink(&'a Path),
    /// Anything else: it is left out.
    Other,
}

impl std::fmt::Debug for Content<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory => f.write_str("Directory"),
            Self::File { size, mode, .. } => write!(f, "File({size} bytes, {mode:?})"),
            Self::Symlink(target) => f.debug_tuple("Symlink").field(target).finish(),
            Self::HardLink(target) => f.debug_tuple("HardLink").field(target).finish(),
            Self::Other => f.write_str("Other"),
        }
    }
}

/// A written archive.
#[derive(Debug)]
pub struct Archive<W> {
    /// What it was written to.
    pub output: W,
    /// SHA-256 of its bytes, lower-case hex.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
    /// How many files are in it, other names of the same file included.
    pub files: u64,
}

/// An archive being written: tar in gzip in a hash in the caller's output.
///
/// Entries are in the order in which they are added: a caller that knows no order of its own sorts them by name.
pub struct Writer<W: Write> {
    tar: tar::Builder<GzEncoder<Hashed<W>>>,
    top: PathBuf,
    /// What is at each name so far; directories that are only implied included.
    made: HashMap<PathBuf, Made>,
    files: u64,
}

impl<W: Write> std::fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("top", &self.top)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Directory,
    File,
    Symlink,
}

impl<W: Write> Writer<W> {
    /// Begins an archive, all of it in the folder `top` if there is one. Names and links are those in the package: a
    /// link from it to the folder's neighbours leads out.
    ///
    /// # Errors
    /// `top` leads out of the archive, or the output cannot be written.
    pub fn new(output: W, top: Option<&str>) -> Result<Self, WriteError> {
        let hashed = Hashed {
            output,
            hash: Sha256::new(),
            size: 0,
        };
        // No name and no time in the gzip header: the bytes depend on the sources alone. Fast, as an archive is
        // packed by someone who waits, and unpacked once or twice.
        let gzip = GzBuilder::new().mtime(0).write(hashed, Compression::fast());
        let top = Path::new(top.unwrap_or_default());
        let mut writer = Self {
            tar: tar::Builder::new(gzip),
            top: rules::name(top).ok_or_else(|| WriteError::Name(top.to_owned()))?,
            made: HashMap::new(),
            files: 0,
        };
        if !writer.top.as_os_str().is_empty() {
            let top = writer.top.join("");
            writer.append(EntryType::Directory, &top, 0o755, 0, None, None)?;
        }
        Ok(writer)
    }

    /// Adds an entry. `time` is when it was changed last, in seconds since 1970; 0 stands for a time that is not known.
    ///
    /// # Errors
    /// Its name leads out of the package, its contents cannot be read or are short, or the output cannot be written.
    /// The archive is of no use then.
    pub fn add(
        &mut self,
        name: &Path,
        time: Option<u64>,
        content: Content<'_>,
    ) -> Result<Added, WriteError> {
        let name = rules::name(name).ok_or_else(|| WriteError::Name(name.to_owned()))?;
        let made = match self.judge(&name, &content) {
            Ok(made) => made,
            Err(why) => return Ok(Added::LeftOut(why)),
        };
        if name.as_os_str().is_empty() {
            // The package itself, which is there already.
            return Ok(Added::Written);
        }
        let place = self.top.join(&name);
        let time = time.unwrap_or(0);
        match content {
            Content::Directory => {
                // With a `/` at its end, as tar programs write it.
                self.append(
                    EntryType::Directory,
                    &place.join(""),
                    0o755,
                    time,
                    None,
                    None,
                )?;
            }
            Content::File {
                contents,
                size,
                mode,
            } => {
                // A file that grows while it is read must not run over its entry, and `tar` fills up a short one.
                let mut contents = Counted {
                    inner: contents.take(size),
                    read: 0,
                };
                let data = Some((size, &mut contents as &mut dyn Read));
                self.append(EntryType::Regular, &place, mode.bits(), time, None, data)?;
                if contents.read != size {
                    return Err(WriteError::Short(name));
                }
            }
            Content::Symlink(target) => {
                self.append(EntryType::Symlink, &place, 0o777, time, Some(target), None)?;
            }
            Content::HardLink(target) => {
                let target = rules::name(target).ok_or_else(|| WriteError::Name(target.into()))?;
                let target = self.top.join(target);
                self.append(EntryType::Link, &place, 0o777, time, Some(&target), None)?;
            }
            Content::Other => {}
        }
        self.remember(name, made);
        Ok(Added::Written)
    }

    /// Ends the archive; the output is flushed.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn finish(self) -> Result<Archive<W>, WriteError> {
        let mut hashed = self
            .tar
            .into_inner()
            .and_then(GzEncoder::finish)
            .map_err(WriteError::Finish)?;
        hashed.flush().map_err(WriteError::Finish)?;
        Ok(Archive {
            output: hashed.output,
            sha256: hex::encode(hashed.hash.finalize()),
            size: hashed.size,
            files: self.files,
        })
    }

    /// What the entry would be, after those that are there already.
    fn judge(&self, name: &Path, content: &Content<'_>) -> Result<Made, LeftOut> {
        let parents = name.ancestors().skip(1);
        if parents
            .filter_map(|parent| self.made.get(parent))
            .any(|made| *made != Made::Directory)
        {
            return Err(LeftOut::Below);
        }
        let made = match content {
            Content::Directory => Made::Directory,
            Content::File { .. } => Made::File,
            Content::Symlink(target) => match rules::link_end(name, target) {
                Some(_) => Made::Symlink,
                None => return Err(LeftOut::LeadsOut(target.to_path_buf())),
            },
            Content::HardLink(target) => match rules::name(target) {
                None => return Err(LeftOut::LeadsOut(target.to_path_buf())),
                Some(end) if end != name && self.made.get(&end) == Some(&Made::File) => Made::File,
                Some(_) => return Err(LeftOut::NoFile(target.to_path_buf())),
            },
            Content::Other => return Err(LeftOut::Kind),
        };
        let is_directory = made == Made::Directory;
        let there = if name.as_os_str().is_empty() {
            Some(Made::Directory)
        } else {
            self.made.get(name).copied()
        };
        match there {
            Some(there) if (there == Made::Directory) != is_directory => Err(LeftOut::Taken),
            _ => Ok(made),
        }
    }

    fn remember(&mut self, name: PathBuf, made: Made) {
        for parent in name.ancestors().skip(1) {
            if parent.as_os_str().is_empty() || self.made.contains_key(parent) {
                break;
            }
            self.made.insert(parent.to_owned(), Made::Directory);
        }
        let before = self.made.insert(name, made);
        match (before, made) {
            (Some(Made::File), Made::File) => {}
            (_, Made::File) => self.files += 1,
            (Some(Made::File), _) => self.files -= 1,
            _ => {}
        }
    }

    fn append(
        &mut self,
        kind: EntryType,
        place: &Path,
        mode: u32,
        time: u64,
        target: Option<&Path>,
        data: Option<(u64, &mut dyn Read)>,
    ) -> Result<(), WriteError> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(time);
        header.set_size(data.as_ref().map_or(0, |(size, _)| *size));
        let written = match (target, data) {
            (Some(target), _) => self.tar.append_link(&mut header, place, target),
            (None, Some((_, contents))) => self.tar.append_data(&mut header, place, contents),
            (None, None) => self.tar.append_data(&mut header, place, io::empty()),
        };
        written.map_err(|source| WriteError::Add {
            name: place.to_owned(),
            source,
        })
    }
}

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

/// Knows the hash and the size of what went through it.
struct Hashed<W> {
    output: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.output.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests;
