//! The database's part of a back-up: SQLite's own copy of it, or what `pg_dump` makes.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use sqlx::Connection as _;

use crate::config::Config;
use crate::database_url::without_password;
use crate::store::Store;

use super::list::List;

/// A copy of an SQLite store, as the data directory has it.
const SQLITE: &str = "controller.sqlite";
/// What `pg_dump --format=custom` made.
const DUMP: &str = "database.dump";

/// Objects that are asked for at once.
const AT_ONCE: i64 = 500;

/// Puts a database as it is at one moment into a directory; a store, and the objects that are known at that moment.
pub(super) async fn dump(config: &Config, to: &Path) -> anyhow::Result<(Store, List)> {
    match &config.database {
        None => {
            let from = config.data_dir.join(SQLITE);
            ensure!(from.is_file(), "there is no {} to back up", from.display());
            let copy = to.join(SQLITE);
            copy_sqlite(&from, &copy)
                .await
                .with_context(|| format!("cannot copy {}", from.display()))?;
            let store = Store::open(&copy).await?;
            store.forget_identity().await?;
            let list = List::new(to, async |last| store.objects_after(&last, AT_ONCE).await);
            let list = list.await?;
            Ok((store, list))
        }
        Some(url) => {
            // Opening it would bring it up to date, under controllers that run.
            ensure!(
                Store::is_current(url).await?,
                "the database of --database is of another version: make the back-up with the program that runs with it"
            );
            let store = Store::open_postgres(url, config.clock.steady()).await?;
            // What is listed is what the dump names: an object may be put anew, elsewhere, meanwhile.
            let mut snapshot = store.snapshot().await?;
            let list = List::new(to, async |last| {
                snapshot.objects_after(&last, AT_ONCE).await
            });
            let list = list.await?;
            run("pg_dump", url, |command| {
                command
                    .arg("--format=custom")
                    .arg("--no-owner")
                    // What comes of the back-up is another store.
                    .arg("--exclude-table-data=identity")
                    .arg(format!("--snapshot={}", snapshot.id()))
                    .arg("--file")
                    .arg(to.join(DUMP))
            })
            .await?;
            drop(snapshot);
            Ok((store, list))
        }
    }
}

/// A consistent copy of a store that others may be writing.
async fn copy_sqlite(from: &Path, to: &Path) -> anyhow::Result<()> {
    sqlx::any::install_default_drivers();
    let mut url = String::from("sqlite://");
    for byte in std::os::unix::ffi::OsStrExt::as_bytes(from.as_os_str()) {
        match byte {
            b'/' | b'.' | b'-' | b'_' => url.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => url.push(char::from(*byte)),
            byte => url.push_str(&format!("%{byte:02X}")),
        }
    }
    let mut connection = sqlx::AnyConnection::connect(&format!("{url}?mode=rw")).await?;
    sqlx::query("PRAGMA busy_timeout = 10000")
        .execute(&mut connection)
        .await?;
    let name = to.to_str().context("the back-up's name is no text")?;
    let copied = sqlx::query("VACUUM INTO $1")
        .bind(name)
        .execute(&mut connection)
        .await;
    connection.close().await?;
    copied?;
    Ok(())
}

/// An error when there is a database already.
pub(super) async fn refuse_to_overwrite(config: &Config) -> anyhow::Result<()> {
    match &config.database {
        None => {
            // What belongs to a database that was there would be taken for a part of the new one.
            for ending in ["", "-wal", "-shm", "-journal"] {
                let path = config.data_dir.join(format!("{SQLITE}{ending}"));
                ensure!(
                    !path.try_exists()?,
                    "{} is there already: give another --data, or remove what is there",
                    path.display()
                );
            }
        }
        Some(url) => {
            sqlx::any::install_default_drivers();
            let mut connection = sqlx::AnyConnection::connect(url)
                .await
                .context("cannot reach the database of --database")?;
            let tables: i64 = sqlx::query_scalar(
                "SELECT CAST(COUNT(*) AS BIGINT) FROM pg_tables WHERE schemaname = current_schema()",
            )
            .fetch_one(&mut connection)
            .await?;
            connection.close().await?;
            ensure!(
                tables == 0,
                "the database of --database has tables already: give an empty one"
            );
        }
    }
    Ok(())
}

/// Puts the database of a back-up in its place, all of it or nothing.
pub(super) async fn put(config: &Config, from: &Path) -> anyhow::Result<()> {
    let Some(url) = &config.database else {
        let copy = config.data_dir.join("controller.sqlite.partial");
        fs::copy(from.join(SQLITE), &copy).context("cannot copy the database")?;
        fs::File::open(&copy)?.sync_all()?;
        fs::rename(&copy, config.data_dir.join(SQLITE))?;
        fs::File::open(&config.data_dir)?.sync_all()?;
        return Ok(());
    };
    run("pg_restore", url, |command| {
        command
            .args(["--single-transaction", "--exit-on-error", "--no-owner"])
            .arg(from.join(DUMP))
    })
    .await
}

/// Runs one of PostgreSQL's programs. The password is not on its command line.
async fn run(
    program: &str,
    url: &str,
    words: impl FnOnce(&mut tokio::process::Command) -> &mut tokio::process::Command,
) -> anyhow::Result<()> {
    let (url, password) = without_password(url);
    let mut command = tokio::process::Command::new(program);
    words(&mut command)
        .arg(format!("--dbname={url}"))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if let Some(password) = password {
        command.env("PGPASSWORD", password);
    }
    let ended = command
        .output()
        .await
        .with_context(|| format!("cannot run {program}: install PostgreSQL's client programs"))?;
    ensure!(
        ended.status.success(),
        "{program} failed: {}",
        String::from_utf8_lossy(&ended.stderr).trim()
    );
    Ok(())
}
