//! Archives over HTTP: tools put them, agents get them.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use tokio::io::AsyncReadExt as _;

use super::problem::{Json, Plain, Problem};
use super::{App, api, body};
use crate::source::archives::{ArchiveError, Put};
use crate::source::is_sha256;

/// Bytes read from disk at once.
const PIECE: usize = 64 << 10;

/// `PUT /api/v1/archives/<sha256>`.
pub(super) async fn put(
    State(app): State<Arc<App>>,
    Path(sha256): Path<String>,
    headers: HeaderMap,
    request: Request<Body>,
) -> Result<Response, Json> {
    api::authorize(&app, &headers)?;
    if !is_sha256(&sha256) {
        return Err(
            Problem::bad("an archive is named by its SHA-256: 64 lower-case hex digits").into(),
        );
    }
    let mut incoming_body = request.into_body();
    if app.archives.contains(&sha256) {
        body::drain(&mut incoming_body).await;
        return Ok(answer(&sha256, Put::Known));
    }
    let mut incoming = Some(app.archives.begin().map_err(|e| problem(&e))?);
    while let Some(data) = body::next(&mut incoming_body).await? {
        let Some(mut archive) = incoming.take() else {
            break;
        };
        // Hashing and writing pieces of 64 KiB is short enough to do it here only on a quiet disk: so elsewhere.
        let written = tokio::task::spawn_blocking(move || archive.write(&data).map(|()| archive))
            .await
            .map_err(|e| Problem::internal("keep an archive", &e))?;
        match written {
            Ok(archive) => incoming = Some(archive),
            Err(e) => {
                body::drain(&mut incoming_body).await;
                return Err(problem(&e).into());
            }
        }
    }
    let Some(incoming) = incoming else {
        return Err(Problem::bad("the archive broke off").into());
    };
    let expected = sha256.clone();
    let (_, put) = tokio::task::spawn_blocking(move || incoming.finish(Some(&expected)))
        .await
        .map_err(|e| Problem::internal("keep an archive", &e))?
        .map_err(|e| problem(&e))?;
    Ok(answer(&sha256, put))
}

fn answer(sha256: &str, put: Put) -> Response {
    let status = match put {
        Put::New => StatusCode::CREATED,
        Put::Known => StatusCode::OK,
    };
    api::json(status, &serde_json::json!({ "archive": sha256 }))
}

fn problem(error: &ArchiveError) -> Problem {
    match error {
        ArchiveError::TooLarge { .. } => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())
        }
        ArchiveError::Hash { .. } | ArchiveError::NotGzip => Problem::bad(error.to_string()),
        ArchiveError::Io { .. } => Problem::internal("keep an archive", error),
    }
}

/// `GET /archives/<sha256>.tar.gz`. The name is as good as a secret: whoever knows it knows the contents.
pub(super) async fn get(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    method: Method,
) -> Result<Response, Plain> {
    let missing = || Problem::not_found("such archive");
    let path = name
        .strip_suffix(".tar.gz")
        .and_then(|sha256| app.archives.path(sha256))
        .ok_or_else(missing)?;
    let file = match tokio::fs::File::open(&path).await {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(missing().into()),
        Err(e) => return Err(Problem::internal("read an archive", &e).into()),
    };
    let length = file
        .metadata()
        .await
        .map_err(|e| Problem::internal("read an archive", &e))?
        .len();
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        stream(file)
    };
    Ok((
        [
            (header::CONTENT_TYPE, "application/gzip".to_owned()),
            (header::CONTENT_LENGTH, length.to_string()),
            (header::CONTENT_DISPOSITION, "attachment".to_owned()),
            // What is named by its hash never changes.
            (
                header::CACHE_CONTROL,
                "private, max-age=31536000, immutable".to_owned(),
            ),
        ],
        body,
    )
        .into_response())
}

fn stream(mut file: tokio::fs::File) -> Body {
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(2);
    tokio::spawn(async move {
        loop {
            let mut piece = vec![0; PIECE];
            let read = match file.read(&mut piece).await {
                Ok(0) => return,
                Ok(n) => {
                    piece.truncate(n);
                    Ok(Bytes::from(piece))
                }
                Err(e) => Err(e),
            };
            let end = read.is_err();
            // Nobody listens any more, or nothing can be read any more.
            if sender.send(read).await.is_err() || end {
                return;
            }
        }
    });
    body::stream(receiver)
}
