//! Archives that tools put.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{Request, StatusCode};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::document::Makes;
use super::json;
use crate::http::access::Caller;
use crate::http::problem::{Json, Problem};
use crate::http::{App, body};
use crate::source::archives::Put;
use crate::source::is_sha256;
use crate::token::Scope;

/// An archive that is here.
#[derive(Debug, Serialize, ToSchema)]
struct Archive {
    /// Its SHA-256.
    archive: String,
}

/// Puts the source of a package here: a tar archive, packed by gzip.
#[utoipa::path(
    put,
    path = "/archives/{sha256}",
    tag = "submissions",
    params(("sha256" = String, Path, description = "What its SHA-256 is", pattern = "^[0-9a-f]{64}$")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "It is new", body = Archive),
        (status = 200, description = "It was here already", body = Archive),
        Makes
    ),
    security(("token" = ["submit"]))
)]
pub(super) async fn put(
    State(app): State<Arc<App>>,
    Path(sha256): Path<String>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Result<Response, Json> {
    caller.may(Scope::Submit)?;
    if !is_sha256(&sha256) {
        return Err(
            Problem::bad("an archive is named by its SHA-256: 64 lower-case hex digits").into(),
        );
    }
    let mut incoming_body = request.into_body();
    if app.archives.known(&sha256).await?.is_some() {
        body::drain(&mut incoming_body).await;
        return Ok(answer(&sha256, Put::Known));
    }
    let turn = match app.turn_to_put().await {
        Ok(turn) => turn,
        Err(problem) => {
            body::drain(&mut incoming_body).await;
            return Err(problem.into());
        }
    };
    let mut incoming = app.archives.begin(&sha256)?;
    let mut coming = body::Long::new(&mut incoming_body);
    while let Some(data) = coming.next().await? {
        if let Err(e) = incoming.write(data).await {
            drop((incoming, turn));
            body::drain_long(&mut coming).await;
            return Err(e.into());
        }
    }
    incoming.finish().await?;
    Ok(answer(&sha256, Put::New))
}

fn answer(sha256: &str, put: Put) -> Response {
    let status = match put {
        Put::New => StatusCode::CREATED,
        Put::Known => StatusCode::OK,
    };
    json(
        status,
        &Archive {
            archive: sha256.to_owned(),
        },
    )
}
