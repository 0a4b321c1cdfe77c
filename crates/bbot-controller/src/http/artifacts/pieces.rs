//! `PUT <session>/artifacts/<type>/<sha256>`: an artifact in pieces, each of which says where it begins. What came before a connection
//! broke is kept, and told.

use std::collections::HashSet;
use std::io::{Seek as _, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bbot_signature::BodyDigest;
use sha2::{Digest as _, Sha256};

use super::{Said, is_taken, keep};
use crate::http::problem::{Cause, Plain, Problem};
use crate::http::{App, body, session, signed, task};
use crate::queue::lease::{self, Renewal};
use crate::source::is_sha256;
use crate::store::SessionFacts;

/// What was not gone on with for so long is removed.
const LEFT: Duration = Duration::from_secs(24 * 3600);

/// Artifacts of one run that have begun to come.
const BEGUN: usize = 16;

/// Bytes that are written at once.
const PIECE: usize = 256 << 10;

/// Where artifacts are that have not come whole.
#[derive(Debug)]
pub(in crate::http) struct Uploads {
    directory: PathBuf,
    /// Those that a request is at.
    busy: Mutex<HashSet<String>>,
}

/// Nobody else is at it.
struct Busy<'a> {
    uploads: &'a Uploads,
    name: String,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut busy = self.uploads.busy.lock();
        busy.as_mut()
            .unwrap_or_else(|e| e.get_mut())
            .remove(&self.name);
    }
}

impl Uploads {
    pub(in crate::http) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            busy: Mutex::default(),
        }
    }

    fn begin(&self, name: String) -> Option<Busy<'_>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.insert(name.clone()).then_some(Busy {
            uploads: self,
            name,
        })
    }

    /// Removes what nobody goes on with.
    pub(in crate::http) fn remove_left(&self, now: SystemTime) -> std::io::Result<()> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            let written = entry.metadata()?.modified()?;
            if now.duration_since(written).is_ok_and(|age| age > LEFT) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// The file of an artifact, with how long it is; made where there is none.
    fn open(&self, run: &str, name: &str) -> Result<(std::fs::File, u64), Problem> {
        let failed = |e: Cause<'_>| Problem::internal("keep an upload", e);
        let path = self.directory.join(name);
        let mut options = std::fs::OpenOptions::new();
        options.read(true).append(true);
        let file = match options.open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                std::fs::create_dir_all(&self.directory).map_err(|e| failed(&e))?;
                let begun = std::fs::read_dir(&self.directory).map_err(|e| failed(&e))?;
                let of_run = |e: std::io::Result<std::fs::DirEntry>| {
                    e.is_ok_and(|e| e.file_name().as_encoded_bytes().starts_with(run.as_bytes()))
                };
                if begun
                    .into_iter()
                    .filter_map(|e| of_run(e).then_some(()))
                    .count()
                    >= BEGUN
                {
                    return Err(Problem::new(
                        StatusCode::CONFLICT,
                        format!("{BEGUN} artifacts of this task have begun to come already"),
                    ));
                }
                options.create(true).open(&path).map_err(|e| failed(&e))?
            }
            Err(e) => return Err(failed(&e)),
        };
        let length = file.metadata().map_err(|e| failed(&e))?.len();
        Ok((file, length))
    }
}

/// An answer that says how much there is.
fn with_next(status: StatusCode, next: u64) -> Response {
    (status, [("bbot-artifact-next", next.to_string())]).into_response()
}

fn number(headers: &HeaderMap, name: &str) -> Result<u64, Problem> {
    let value = headers
        .get(name)
        .and_then(|v| v.to_str().ok()?.parse().ok());
    value.ok_or_else(|| Problem::bad(format!("the header {name} is a number of bytes")))
}

/// `HEAD` says how much there is; `PUT` goes on.
pub(in crate::http) async fn artifact(
    State(app): State<Arc<App>>,
    Path((path, kind, sha256)): Path<(String, String, String)>,
    request: Request<Body>,
) -> Result<Response, Plain> {
    if !is_taken(&app, &kind) {
        return Err(Problem::not_found(format_args!("upload of type {kind:?}")).into());
    }
    if !is_sha256(&sha256) {
        return Err(
            Problem::bad("an artifact is named by its SHA-256: 64 lower-case hex digits").into(),
        );
    }
    let facts = session::under_way(&app, &path).await?;
    let (head, mut incoming) = request.into_parts();
    let refused = |problem: &Problem| {
        problem.log_refusal("artifact", task::address(&head.extensions));
    };
    let signed = signed::of_session(&app, &head, &facts).inspect_err(refused)?;
    if matches!(lease::renew(facts.state), Renewal::Over | Renewal::Unknown) {
        return Err(session::over(Some(&facts)).into());
    }
    let run = format!("{}.", facts.run.unwrap_or(0));
    let known = app
        .store
        .artifacts(facts.build.id, facts.run.unwrap_or(0))
        .await?;
    if let Some(known) = known.iter().find(|a| a.kind == kind && a.sha256 == sha256) {
        return Ok(with_next(StatusCode::OK, known.bytes));
    }
    let name = format!("{run}{kind}.{sha256}");
    let Some(_busy) = app.uploads.begin(name.clone()) else {
        return Err(
            Problem::new(StatusCode::CONFLICT, "another request is at this artifact").into(),
        );
    };
    if head.method == Method::HEAD {
        let there = std::fs::metadata(app.uploads.directory.join(&name));
        return Ok(with_next(StatusCode::OK, there.map_or(0, |m| m.len())));
    }
    let length = number(&head.headers, "bbot-artifact-length")?;
    let offset = number(&head.headers, "bbot-artifact-offset")?;
    if length > app.config.limits.artifact {
        body::drain(&mut incoming).await;
        let most = app.config.limits.artifact;
        let what = format!("the artifact is larger than {most} bytes");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, what).into());
    }
    let (file, there) = app.uploads.open(&run, &name)?;
    if offset != there {
        return Ok(with_next(StatusCode::CONFLICT, there));
    }
    let (file, now_there, digest) = append(file, there, length, &mut incoming).await?;
    if let Err(problem) = signed::is_of(signed.as_ref(), &digest) {
        refused(&problem);
        // As if it had never come.
        cut_back(file, there).await?;
        return Err(problem.into());
    }
    let there = now_there;
    if there < length {
        return Ok(with_next(StatusCode::ACCEPTED, there));
    }
    let said = Said {
        kind,
        name: head
            .headers
            .get("bbot-artifact-name")
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned(),
        instance: String::new(),
        sha256,
    };
    finish(&app, &facts, said, &name).await?;
    Ok(with_next(StatusCode::CREATED, length))
}

/// Makes a file as long as it was.
async fn cut_back(file: std::fs::File, length: u64) -> Result<(), Problem> {
    let failed = |e: Cause<'_>| Problem::internal("keep an upload", e);
    tokio::task::spawn_blocking(move || file.set_len(length))
        .await
        .map_err(|e| failed(&e))?
        .map_err(|e| failed(&e))
}

/// Adds what comes; the file, how much there is then, and the digest of what came. What came before the body broke off
/// stays: that the whole is what it should be is known by its hash, which is in the path.
async fn append(
    mut file: std::fs::File,
    mut there: u64,
    length: u64,
    incoming: &mut Body,
) -> Result<(std::fs::File, u64, BodyDigest), Problem> {
    let failed = |e: Cause<'_>| Problem::internal("keep an upload", e);
    let mut hash = Sha256::new();
    let mut incoming = body::Long::new(incoming);
    loop {
        let mut pieces = Vec::new();
        let mut ended = None;
        while pieces.len() < PIECE && ended.is_none() {
            match incoming.next().await {
                Ok(Some(data)) => pieces.extend_from_slice(&data),
                Ok(None) => ended = Some(Ok(())),
                Err(problem) => ended = Some(Err(problem)),
            }
        }
        there += pieces.len() as u64;
        if there > length {
            return Err(Problem::bad(format!(
                "more than the {length} bytes come that were said"
            )));
        }
        let written = tokio::task::spawn_blocking(move || {
            hash.update(&pieces);
            file.write_all(&pieces).map(|()| (file, hash))
        });
        (file, hash) = written
            .await
            .map_err(|e| failed(&e))?
            .map_err(|e| failed(&e))?;
        match ended {
            None => {}
            Some(Ok(())) => return Ok((file, there, hash.finalize().into())),
            Some(Err(problem)) => return Err(problem),
        }
    }
}

/// All of it is there: it is what was said, or begins anew.
async fn finish(app: &App, facts: &SessionFacts, said: Said, name: &str) -> Result<(), Problem> {
    let failed = |e: Cause<'_>| Problem::internal("read an upload", e);
    let path = app.uploads.directory.join(name);
    let file = path.clone();
    let hashed = tokio::task::spawn_blocking(move || -> std::io::Result<_> {
        let mut file = std::fs::File::open(file)?;
        let mut hash = Sha256::new();
        std::io::copy(&mut file, &mut hash)?;
        file.rewind()?;
        Ok((file, hex::encode(hash.finalize())))
    });
    let (file, sha256) = hashed
        .await
        .map_err(|e| failed(&e))?
        .map_err(|e| failed(&e))?;
    if sha256 != said.sha256 {
        std::fs::remove_file(&path).map_err(|e| failed(&e))?;
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!(
                "the artifact's SHA-256 is {sha256}, not {}: send all of it again",
                said.sha256
            ),
        ));
    }
    keep(app, facts, said, file).await?;
    std::fs::remove_file(&path).map_err(|e| failed(&e))
}
