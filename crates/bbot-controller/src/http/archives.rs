//! Archives that agents get.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Method, header};
use axum::response::{IntoResponse as _, Response};

use super::App;
use super::problem::{Plain, Problem};

/// `GET /archives/<sha256>.tar.gz`. The name is as good as a secret: whoever knows it knows the contents.
pub(super) async fn get(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    method: Method,
) -> Result<Response, Plain> {
    let missing = || Problem::not_found("such archive");
    let sha256 = name.strip_suffix(".tar.gz").ok_or_else(missing)?;
    let found = app.archives.open(sha256).await?;
    let (object, archive) = found.ok_or_else(missing)?;
    let length = archive.bytes();
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        app.body_of(object, archive).await?
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
