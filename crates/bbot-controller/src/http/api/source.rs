//! Sources of packages, as they are submitted.

use std::sync::Arc;

use crate::http::App;
use crate::http::problem::Problem;
use crate::package::Package;
use crate::source::peek::{self, Bounds};
use crate::source::{Repository, Source, git, is_sha256};

/// Longest URL, in bytes: with the longest lane it has room in an index of PostgreSQL.
const URL_LIMIT: usize = 1024;

fn check_repository(repository: &Repository) -> Result<(), Problem> {
    let Repository { url, kind, trust } = repository;
    if url.is_empty() || url.len() > URL_LIMIT || !url.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Problem::bad(format!(
            "the repository's URL is empty, longer than {URL_LIMIT} characters, or has blanks or control characters"
        )));
    }
    if kind
        .as_deref()
        .is_some_and(|k| !matches!(k, "pkg" | "git" | "dir"))
    {
        return Err(Problem::bad(
            "the repository's type is not one of pkg, git, dir",
        ));
    }
    let fingerprint = |t: &String| {
        t == "yes"
            || (t.split(':').count() == 32
                && t.split(':')
                    .all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit())))
    };
    match trust.iter().find(|t| !fingerprint(t)) {
        None => Ok(()),
        Some(bad) => Err(Problem::bad(format!(
            "{bad:?} is not a certificate fingerprint: 32 pairs of hex digits with colons between, or yes"
        ))),
    }
}

/// An archive that is to be put first.
pub(super) fn not_here(sha256: &str) -> Problem {
    Problem::bad(format!(
        "archive {sha256} is not here: PUT it to /api/v1/archives/{sha256} first"
    ))
}

/// Makes sure that the source is one that a task can name.
pub(super) async fn resolve(app: &App, source: Source) -> Result<Source, Problem> {
    match source {
        Source::Archive(sha256) if !is_sha256(&sha256) => Err(Problem::bad(format!(
            "{sha256:?} is not a SHA-256 in lower-case hex"
        ))),
        Source::Archive(sha256) if app.archives.known(&sha256).await?.is_none() => {
            Err(not_here(&sha256))
        }
        Source::Archive(sha256) => Ok(Source::Archive(sha256)),
        Source::Repository(repository) => {
            check_repository(&repository)?;
            Ok(Source::Repository(repository))
        }
        Source::Git(git) if git.archive.is_some() => Err(Problem::bad(
            "a git source is a \"url\" and a \"commit\"; its archive is made here",
        )),
        Source::Git(mut git) => {
            if git.url.len() > URL_LIMIT {
                return Err(Problem::bad(format!(
                    "the URL is longer than {URL_LIMIT} characters"
                )));
            }
            let _slot = app
                .git
                .acquire()
                .await
                .map_err(|e| Problem::internal("fetch a commit", &e))?;
            let limits = git::Limits {
                time: app.config.limits.git_time,
                bytes: app.config.limits.git,
                addresses: app.config.source_addresses,
                user: app.config.source_user,
            };
            match git::fetch(&git, &limits).await {
                Ok(fetched) => {
                    app.archives.put_file(&fetched.sha256, fetched.file).await?;
                    git.archive = Some(fetched.sha256);
                    Ok(Source::Git(git))
                }
                Err(e) if e.is_internal() => Err(Problem::internal("fetch a commit", &e)),
                Err(e) => Err(Problem::bad(e.to_string())),
            }
        }
    }
}

/// What the package says of its builds: in the manifest at the root of its sources, where the controller has them, and in what the
/// submission puts in the place of that.
pub(super) async fn of_package(
    app: &App,
    source: &Source,
    overrides: Option<&str>,
) -> Result<Package, Problem> {
    let mut package = match source.archive() {
        None => Package::default(),
        Some(sha256) => {
            let slot = Arc::clone(&app.peeks)
                .acquire_owned()
                .await
                .map_err(|e| Problem::internal("look into an archive", &e))?;
            let archive = app.archives.open(sha256).await?;
            let (_, archive) = archive.ok_or_else(|| not_here(sha256))?;
            let archive = archive.into_reader();
            // A task of its own: reading gigabytes must not be where other requests wait. It goes on when nobody waits for it any more.
            let peeked = tokio::task::spawn_blocking(move || {
                let _slot = slot;
                peek::manifest(archive, Bounds::default())
            });
            let peeked = peeked
                .await
                .map_err(|e| Problem::internal("look into an archive", &e))?;
            match peeked {
                Ok(None) => Package::default(),
                Ok(Some(text)) => Package::read(&text, peek::MANIFEST).map_err(|e| {
                    Problem::bad(format!("the package's manifest cannot be read: {e}"))
                })?,
                Err(e) => {
                    let what = format!("the archive cannot be built from: {e}");
                    return Err(Problem::bad(what));
                }
            }
        }
    };
    if let Some(text) = overrides {
        package = package
            .overridden(text, "overrides")
            .map_err(|e| Problem::bad(e.to_string()))?;
    }
    Ok(package)
}
