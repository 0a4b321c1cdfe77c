//! What one server lets be read and written: an explicit map of names.
//!
//! No name is ever joined into a path that could leave its folder: a [`Name`] is flat, files are
//! opened relative to their folder's descriptor, and a symbolic link is not followed.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::name::Name;
use crate::packet::ErrorCode;
use crate::transfer::Refusal;
use crate::upload::Upload;

/// What one server lets be read and written. Rules are asked in the order they were added.
#[derive(Debug, Default, Clone)]
pub struct Root {
    gets: Vec<GetRule>,
    puts: Vec<Arc<PutRule>>,
}

#[derive(Debug, Clone)]
enum GetRule {
    File { name: String, path: PathBuf },
    Bytes { name: String, bytes: Arc<[u8]> },
    Made { name: String, make: Make },
    Held { name: String },
    Folder { path: PathBuf },
}

/// What is read under a name, made when it is asked for.
#[derive(Clone)]
struct Make(Arc<dyn Fn() -> Vec<u8> + Send + Sync>);

impl std::fmt::Debug for Make {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Make")
    }
}

/// Which names a PUT rule takes.
#[derive(Debug)]
enum PutNames {
    Exact(Vec<String>),
    Numbered(String),
    Any,
}

/// How many files of a [`Root::put_numbered`] rule may lie in its folder at once. They are removed as they are passed on,
/// so that this many are there only when nobody does; a client that numbers on and on then gets no more room.
pub(crate) const WAITING_FILES: usize = 1024;

/// What happens when a name comes a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeated {
    /// Any name of the rule is there: refused.
    Refuse,
    /// This name is there: acknowledged and dropped.
    Drop,
    /// The newer file takes the place of the older one.
    Replace,
}

/// Names that may be written, where they go, how large they may be.
#[derive(Debug)]
pub(crate) struct PutRule {
    names: PutNames,
    pub(crate) folder: PathBuf,
    pub(crate) limit: u64,
    pub(crate) repeated: Repeated,
    /// Held while a file gets its name, so that of two uploads at once only one does.
    pub(crate) commit: Mutex<()>,
}

/// A file to be read.
pub(crate) struct Opened {
    pub(crate) reader: Box<dyn Read + Send>,
    pub(crate) size: u64,
}

impl Root {
    /// A root in which nothing can be read or written.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// GET of `name` reads the file at `path`, a regular one that is opened at each request.
    #[must_use]
    pub fn get_file(mut self, name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        self.gets.push(GetRule::File {
            name: name.into(),
            path: path.into(),
        });
        self
    }

    /// GET of `name` reads these bytes.
    #[must_use]
    pub fn get_bytes(mut self, name: impl Into<String>, bytes: impl Into<Arc<[u8]>>) -> Self {
        self.gets.push(GetRule::Bytes {
            name: name.into(),
            bytes: bytes.into(),
        });
        self
    }

    /// GET of `name` reads what `make` gives at each request.
    #[must_use]
    pub fn get_made(
        mut self,
        name: impl Into<String>,
        make: impl Fn() -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        self.gets.push(GetRule::Made {
            name: name.into(),
            make: Make(Arc::new(make)),
        });
        self
    }

    /// GET of `name` is told ([`crate::Event::Held`]) and not answered at all, neither well nor ill:
    /// whoever asks waits, and asks again.
    #[must_use]
    pub fn get_held(mut self, name: impl Into<String>) -> Self {
        self.gets.push(GetRule::Held { name: name.into() });
        self
    }

    /// GET of any name reads the regular file of that name in the folder.
    #[must_use]
    pub fn get_folder(mut self, path: impl Into<PathBuf>) -> Self {
        self.gets.push(GetRule::Folder { path: path.into() });
        self
    }

    /// PUT of one of `names` writes the file of that name in `folder`, up to `limit` bytes. The
    /// names are alternatives: once one of them is there whole, further uploads are refused.
    #[must_use]
    pub fn put_once(self, names: &[&str], folder: impl Into<PathBuf>, limit: u64) -> Self {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        self.put(
            PutNames::Exact(names),
            folder.into(),
            limit,
            Repeated::Refuse,
        )
    }

    /// PUT of `prefix` and a number (1, 2, 3, ... in decimal) writes the file of that name in
    /// `folder`, up to `limit` bytes. One that is there already is acknowledged and dropped. While
    /// 1024 of them lie there, further ones are refused.
    #[must_use]
    pub fn put_numbered(
        self,
        prefix: impl Into<String>,
        folder: impl Into<PathBuf>,
        limit: u64,
    ) -> Self {
        self.put(
            PutNames::Numbered(prefix.into()),
            folder.into(),
            limit,
            Repeated::Drop,
        )
    }

    /// PUT of any name writes the file of that name in `folder`, up to `limit` bytes, in place of
    /// an older one.
    #[must_use]
    pub fn put_any(self, folder: impl Into<PathBuf>, limit: u64) -> Self {
        self.put(PutNames::Any, folder.into(), limit, Repeated::Replace)
    }

    fn put(mut self, names: PutNames, folder: PathBuf, limit: u64, repeated: Repeated) -> Self {
        self.puts.push(Arc::new(PutRule {
            names,
            folder,
            limit,
            repeated,
            commit: Mutex::new(()),
        }));
        self
    }

    /// Whether a GET of this name is not answered.
    pub(crate) fn holds(&self, name: &Name) -> bool {
        self.gets
            .iter()
            .any(|rule| matches!(rule, GetRule::Held { name: held } if held == name.as_str()))
    }

    pub(crate) fn open(&self, name: &Name) -> Result<Opened, Refusal> {
        for rule in &self.gets {
            let opened = match rule {
                GetRule::File { name: known, path } if known == name.as_str() => {
                    open_regular(CWD, path, path)?
                }
                GetRule::Bytes { name: known, bytes } if known == name.as_str() => Some(Opened {
                    size: bytes.len() as u64,
                    reader: Box::new(Cursor::new(Arc::clone(bytes))),
                }),
                GetRule::Made { name: known, make } if known == name.as_str() => {
                    let bytes = (make.0)();
                    Some(Opened {
                        size: bytes.len() as u64,
                        reader: Box::new(Cursor::new(bytes)),
                    })
                }
                GetRule::Folder { path } => match open_folder(path) {
                    Ok(folder) => {
                        open_regular(&folder, Path::new(name.as_str()), &path.join(name.as_str()))?
                    }
                    Err(error) => {
                        return Err(Refusal::of_host(&error, path, "the folder cannot be read"));
                    }
                },
                _ => None,
            };
            if let Some(opened) = opened {
                return Ok(opened);
            }
        }
        Err(Refusal::new(ErrorCode::NotFound, "there is no such file"))
    }

    pub(crate) fn create(&self, name: &Name) -> Result<Upload, Refusal> {
        match self.puts.iter().find(|rule| rule.takes(name.as_str())) {
            Some(rule) => Upload::create(Arc::clone(rule), name.as_str()),
            None => Err(Refusal::new(
                ErrorCode::AccessViolation,
                "this name may not be written",
            )),
        }
    }
}

impl PutRule {
    fn takes(&self, name: &str) -> bool {
        match &self.names {
            PutNames::Exact(names) => names.iter().any(|known| known == name),
            PutNames::Numbered(prefix) => name.strip_prefix(prefix.as_str()).is_some_and(is_number),
            PutNames::Any => true,
        }
    }

    /// Whether what `name` stands for is there already.
    pub(crate) fn is_there(&self, folder: &OwnedFd, name: &str) -> io::Result<bool> {
        let names = match (&self.names, self.repeated) {
            (PutNames::Exact(names), Repeated::Refuse) => {
                names.iter().map(String::as_str).collect()
            }
            _ => vec![name],
        };
        for name in names {
            match rustix::fs::statat(folder, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => return Ok(true),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    /// Whether there is room for one file more.
    pub(crate) fn has_room(&self, folder: &OwnedFd) -> io::Result<bool> {
        let PutNames::Numbered(prefix) = &self.names else {
            return Ok(true);
        };
        let mut count = 0;
        for entry in rustix::fs::Dir::read_from(folder)? {
            let entry = entry?;
            if entry.file_name().to_bytes().starts_with(prefix.as_bytes()) {
                count += 1;
            }
        }
        Ok(count < WAITING_FILES)
    }

    pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        self.commit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 1, 2, 3, ... as a person writes them.
fn is_number(text: &str) -> bool {
    (1..=10).contains(&text.len())
        && !text.starts_with('0')
        && text.bytes().all(|b| b.is_ascii_digit())
}

pub(crate) fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens a regular file; none when there is nothing of that name. `shown` is for messages only.
fn open_regular(
    folder: impl std::os::fd::AsFd,
    name: &Path,
    shown: &Path,
) -> Result<Option<Opened>, Refusal> {
    let denied = |what: &str| {
        Refusal::new(ErrorCode::AccessViolation, "the file cannot be read")
            .with_detail(format!("{}: {what}", shown.display()))
    };
    let failed = |error: io::Error| Refusal::of_host(&error, shown, "the file cannot be read");
    // NONBLOCK, or the open of a FIFO would wait for its writer.
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => return Err(denied("it is a symbolic link")),
        Err(error) => return Err(failed(error.into())),
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(denied("it is not a regular file"));
    }
    Ok(Some(Opened {
        reader: Box::new(file),
        size: metadata.len(),
    }))
}
