//! Back-ups: all that a controller keeps, in a directory, made while it runs; and the way back.
//!
//! The database is read at one moment, and the objects are listed as they are known at that one. They never change, and stay for a day
//! after nothing names them, so they are copied after it; what is put meanwhile is more than is needed. A back-up is made under another name and gets its own when it is whole, with
//! `backup.json` written last.

mod database;
mod list;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::objects::{self, ObjectError, Objects, Where};
use crate::store::Store;

use list::List;

/// What a back-up says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    /// Of the form of back-ups.
    format: u32,
    /// Of the program that made it.
    version: String,
    /// `sqlite` or `postgres`.
    store: String,
    /// When it was begun.
    made: String,
}

const FORMAT: u32 = 1;
const ABOUT: &str = "backup.json";

/// What a back-up or a restoration has copied.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Archives and logs.
    pub objects: usize,
    /// Bytes of these.
    pub bytes: u64,
    /// Objects that the controller had lost before.
    pub lost: usize,
}

/// Makes a back-up of what this configuration's controller keeps, whether it runs or not.
///
/// # Errors
/// There is something of this name already, the controller keeps nothing yet, or something cannot be read or written. What is left
/// then has another name.
pub async fn backup(config: &Config, to: &Path) -> anyhow::Result<Copied> {
    ensure!(
        !to.try_exists()?,
        "{} is there already: name a directory that is not",
        to.display()
    );
    let name = to.file_name().context("the back-up needs a name")?;
    let mut name = name.to_owned();
    name.push(".partial");
    let partial = to.with_file_name(name);
    ensure!(
        !partial.try_exists()?,
        "{} is there already: another back-up is under way, or was not ended; if so, remove it",
        partial.display()
    );
    private_directory(&partial)?;
    let about = About {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        store: kind(config).to_owned(),
        made: config.clock.now().to_string(),
    };
    let (store, list) = database::dump(config, &partial).await?;
    let objects = Objects::open(&config.objects_place())?;
    let copied = copy_objects(&store, list, &objects, &partial.join("objects")).await;
    store.close().await;
    let copied = copied?;
    copy_tree(&config.data_dir.join("runs"), &partial.join("runs"))
        .context("cannot copy the raw logs")?;
    copy_file(&config.token_path(), &partial.join("token")).context("cannot copy the token")?;
    fs::write(
        partial.join(ABOUT),
        serde_json::to_string_pretty(&about)? + "\n",
    )?;
    // All of it at once, before it gets its name.
    rustix::fs::syncfs(fs::File::open(&partial)?)?;
    fs::rename(&partial, to).with_context(|| format!("cannot name {}", to.display()))?;
    if let Some(parent) = to.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::File::open(parent)?.sync_all()?;
    }
    Ok(copied)
}

/// Puts a back-up where this configuration's controller will find it. Nothing that is there is written over. One that was not ended can
/// be done again.
///
/// # Errors
/// It is no back-up, is one of the other kind of store, there is something already, or something cannot be read or written.
pub async fn restore(config: &Config, from: &Path) -> anyhow::Result<Copied> {
    let text = fs::read_to_string(from.join(ABOUT))
        .with_context(|| format!("{} is no whole back-up: it has no {ABOUT}", from.display()))?;
    let about: About = serde_json::from_str(&text)
        .with_context(|| format!("cannot read {}", from.join(ABOUT).display()))?;
    ensure!(
        about.format == FORMAT,
        "the back-up is of form {}, and this program knows {FORMAT}: use that which made it, {}",
        about.format,
        about.version
    );
    match (about.store.as_str(), kind(config)) {
        (made, wanted) if made == wanted => {}
        ("postgres", _) => {
            bail!("the back-up is of a PostgreSQL database: give an empty one with --database")
        }
        _ => bail!("the back-up is of an SQLite store: leave --database out"),
    }
    private_directory(&config.data_dir)?;
    let _lock = crate::server::lock(&config.data_dir)?;
    database::refuse_to_overwrite(config).await?;
    let token = config.token_path();
    if token.try_exists()? {
        ensure!(
            fs::read(&token)? == fs::read(from.join("token"))?,
            "{} is there already: give another --data, or remove what is there",
            token.display()
        );
    }
    let objects = Objects::open(&config.objects_place())?;
    let kept = Objects::open(&Where::Directory(from.join("objects")))?;
    // The database comes last: before it is there, there is nothing.
    let copied = put_objects(&from.join("objects"), &kept, &objects).await?;
    copy_tree(&from.join("runs"), &config.data_dir.join("runs"))
        .context("cannot copy the raw logs")?;
    copy_file(&from.join("token"), &token).context("cannot copy the token")?;
    rustix::fs::syncfs(fs::File::open(&config.data_dir)?)?;
    database::put(config, from).await?;
    Ok(copied)
}

fn kind(config: &Config) -> &'static str {
    if config.database.is_some() {
        "postgres"
    } else {
        "sqlite"
    }
}

async fn copy_objects(
    store: &Store,
    list: List,
    from: &Objects,
    to: &Path,
) -> anyhow::Result<Copied> {
    let mut copied = Copied::default();
    for object in list {
        let object = object?;
        let reading = match from.read(&object).await {
            Ok(reading) => reading,
            Err(e @ (ObjectError::Missing { .. } | ObjectError::Damaged { .. })) => {
                // What nothing names may just have been removed.
                if store.is_named(&object).await? {
                    tracing::warn!("not in the back-up: {e}");
                    copied.lost += 1;
                }
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        let path = to.join(&object.place);
        let mut reader = reading.into_reader();
        let stored = object.stored;
        tokio::task::spawn_blocking(move || -> io::Result<()> {
            private_directory(path.parent().unwrap_or(&path))?;
            let copied = io::copy(&mut reader, &mut fs::File::create(&path)?)?;
            if copied == stored {
                Ok(())
            } else {
                Err(io::Error::other("it changed while it was copied"))
            }
        })
        .await?
        .with_context(|| format!("cannot copy {}", object.place))?;
        copied.objects += 1;
        copied.bytes += object.stored;
    }
    Ok(copied)
}

async fn put_objects(folder: &Path, from: &Objects, to: &Objects) -> anyhow::Result<Copied> {
    let mut copied = Copied::default();
    for object in objects::in_folder(folder)? {
        if !to.exists(&object).await? {
            to.copy_from(from, &object).await?;
        }
        copied.objects += 1;
        copied.bytes += object.stored;
    }
    Ok(copied)
}

fn private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Copies a file with its mode; none is as good.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    match fs::copy(from, to) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        copied => copied.map(|_| ()),
    }
}

/// Copies what is below a directory, as it is at the moment: what goes while it is copied is old.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let mut folders: Vec<(PathBuf, PathBuf)> = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = folders.pop() {
        let entries = match fs::read_dir(&from) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        private_directory(&to)?;
        for entry in entries {
            let entry = entry?;
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push((from, to)),
                Ok(_) => copy_file(&from, &to)?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}
