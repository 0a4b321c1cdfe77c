//! SQLite: how its file is opened.

use std::path::{Path, PathBuf};

use sqlx::any::AnyPoolOptions;
use sqlx::{AnyConnection, AnyPool, Connection as _};

/// Connections that read: they go on while one writes (WAL).
const READERS: u32 = 4;

/// When something that was written must be on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// When it is answered: a result that was answered with 200 must survive a power cut, since the agent forgets it.
    Synced,
    /// With whatever is written next. A store that loses it is as it was before.
    Passing,
}

/// The store's file.
#[derive(Debug, Clone)]
pub(super) struct File {
    path: PathBuf,
}

impl File {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }
}

/// A connection that writes.
pub(super) async fn connect(
    file: &File,
    durability: Durability,
) -> Result<AnyConnection, sqlx::Error> {
    let mut connection = AnyConnection::connect(&url(&file.path)).await?;
    prepare(&mut connection).await?;
    if durability == Durability::Passing {
        sqlx::query("PRAGMA synchronous = NORMAL")
            .execute(&mut connection)
            .await?;
    }
    Ok(connection)
}

/// Connections for those who read.
pub(super) async fn readers(file: &File) -> Result<AnyPool, sqlx::Error> {
    AnyPoolOptions::new()
        .max_connections(READERS)
        // A file does not go away, and looking whether it has costs as much as what is asked for.
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .after_connect(|connection, _| Box::pin(prepare(connection)))
        .connect(&url(&file.path))
        .await
}

async fn prepare(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    for pragma in [
        "PRAGMA busy_timeout = 10000",
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON",
    ] {
        sqlx::query(pragma).execute(&mut *connection).await?;
    }
    Ok(())
}

/// The URL form of a path; whatever means something in a URL is escaped.
fn url(path: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt as _;
    let mut url = "sqlite://".to_owned();
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.".contains(byte) {
            url.push(char::from(*byte));
        } else {
            let _ = write!(url, "%{byte:02X}");
        }
    }
    url.push_str("?mode=rwc");
    url
}
