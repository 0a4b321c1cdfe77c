//! Archives for agents.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{Method, header};
use axum::response::{IntoResponse as _, Response};
use tokio::io::AsyncReadExt as _;

use super::problem::{Plain, Problem};
use super::{App, body};

/// Bytes read from disk at once.
const PIECE: usize = 64 << 10;

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
