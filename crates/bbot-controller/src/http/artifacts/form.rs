//! `?upload=<type>`: an artifact in a form, as the original's agents send it. Answers are manifests.

use std::io::{Seek as _, Write as _};

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use futures_util::stream;
use multer::{Constraints, Field, Multipart, SizeLimit};
use sha2::{Digest as _, Sha256};

use super::{Said, is_taken, keep};
use crate::http::bodies::Room;
use crate::http::problem::{Cause, Problem};
use crate::http::{App, body, result, task};
use crate::queue::era::Peer;
use crate::queue::outcome::{Proof, SessionState};
use crate::source::is_sha256;
use crate::store::SessionFacts;

/// The longest value of a field that is no file.
const VALUE: u64 = 64 << 10;

/// Most fields.
const FIELDS: usize = 64;

/// Handles the request.
pub(in crate::http) async fn handle(
    app: &App,
    kind: &str,
    tenant: Option<&str>,
    request: Request<Body>,
) -> Response {
    let answer = |status: StatusCode, message: &str| {
        let message = crate::http::problem::one_line(message);
        let text = format!(": 1\nstatus: {}\nmessage: {message}\n", status.as_u16());
        let kind = [(header::CONTENT_TYPE, "text/manifest;charset=utf-8")];
        (status, kind, text).into_response()
    };
    let address = task::address(request.extensions());
    let (head, mut body) = request.into_parts();
    let mut coming = body::Long::new(&mut body);
    let taken = take(app, kind, tenant, &head, &mut coming).await;
    if taken.is_err() {
        body::drain_long(&mut coming).await;
    }
    match taken {
        Ok(()) => answer(StatusCode::OK, &format!("{kind} upload is queued")),
        Err(problem) => {
            problem.log_refusal("upload", address);
            let mut response = answer(problem.status, &problem.sentence);
            crate::http::problem::tell_when(&mut response);
            response
        }
    }
}

/// What a form has said so far.
#[derive(Debug, Default)]
struct Form {
    session: Option<String>,
    challenge: Option<Vec<u8>>,
    instance: String,
    /// What its words have of the room in memory, and how many bytes they are.
    room: (Room, usize),
    sha256: Option<String>,
    archive: Option<(String, std::fs::File, String)>,
}

async fn take(
    app: &App,
    kind: &str,
    tenant: Option<&str>,
    head: &Parts,
    coming: &mut body::Long<'_>,
) -> Result<(), Problem> {
    if !is_taken(app, kind) {
        return Err(Problem::not_found(format_args!("upload of type {kind:?}")));
    }
    let peer = task::peer(&head.headers);
    let form = head
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let boundary = form.and_then(|form| multer::parse_boundary(form).ok());
    let boundary = boundary.ok_or_else(|| Problem::bad("an upload is multipart/form-data"))?;
    let limit = app.config.limits.artifact;
    let sizes = SizeLimit::new()
        .whole_stream(limit.saturating_add(FIELDS as u64 * VALUE))
        .per_field(VALUE)
        .for_field("archive", limit);
    let pieces = stream::unfold(coming, async |coming| {
        let piece = coming.next().await.transpose()?;
        Some((piece, coming))
    });
    let mut fields = Multipart::with_constraints(
        Box::pin(pieces),
        boundary,
        Constraints::new().size_limit(sizes),
    );
    let mut form = Form::default();
    let mut facts = None;
    for _ in 0..FIELDS {
        let Some(field) = fields.next_field().await.map_err(unread)? else {
            return finish(app, kind, peer, form, facts).await;
        };
        let name = field.name().unwrap_or_default().to_owned();
        match name.as_str() {
            "session" => {
                let session = text(app, field, &mut form.room).await?;
                facts = app.store.session(&session).await?;
                if let Some(facts) = &facts {
                    result::check_tenant(facts, tenant)?;
                }
                form.session = Some(session);
            }
            "challenge" => {
                let value = text(app, field, &mut form.room).await?;
                let value: String = value.split_whitespace().collect();
                let answer = base64::prelude::BASE64_STANDARD.decode(value);
                form.challenge =
                    Some(answer.map_err(|_| Problem::bad("the challenge is no base64"))?);
            }
            "instance" => form.instance = text(app, field, &mut form.room).await?,
            "sha256sum" => {
                let sha256 = text(app, field, &mut form.room).await?;
                if !is_sha256(&sha256) {
                    return Err(Problem::bad("sha256sum is not 64 lower-case hex digits"));
                }
                form.sha256 = Some(sha256);
            }
            "archive" => {
                if form.session.is_none() {
                    return Err(Problem::bad("session has to come before archive"));
                }
                // What nobody waits for fills no disk.
                let is_wanted = facts.as_ref().is_some_and(is_current);
                form.archive = Some(archive(app, field, is_wanted).await?);
            }
            // The original takes any others, for what handles its uploads.
            _ => drop(text(app, field, &mut Default::default()).await?),
        }
    }
    Err(Problem::bad(format!(
        "the upload has more than {FIELDS} fields"
    )))
}

fn is_current(facts: &SessionFacts) -> bool {
    matches!(
        facts.state,
        SessionState::Current(_) | SessionState::Overtaken
    )
}

/// Why a form cannot be read.
fn unread(error: multer::Error) -> Problem {
    match error {
        e
        @ (multer::Error::FieldSizeExceeded { .. } | multer::Error::StreamSizeExceeded { .. }) => {
            let sentence = format!("payload too large: {e}");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, sentence)
        }
        multer::Error::StreamReadFailed(cause) => match cause.downcast() {
            Ok(problem) => *problem,
            Err(cause) => Problem::bad(format!("the upload cannot be read: {cause}")),
        },
        e => Problem::bad(format!("the upload cannot be read: {e}")),
    }
}

async fn text(
    app: &App,
    mut field: Field<'_>,
    (room, length): &mut (Room, usize),
) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    while let Some(piece) = field.chunk().await.map_err(unread)? {
        *length += piece.len();
        app.bodies.grow(room, *length)?;
        bytes.extend_from_slice(&piece);
    }
    String::from_utf8(bytes).map_err(|_| Problem::bad("a field of the upload is no text"))
}

/// The archive in a file without a name, what it is called, and its hash.
async fn archive(
    app: &App,
    mut field: Field<'_>,
    is_wanted: bool,
) -> Result<(String, std::fs::File, String), Problem> {
    let failed = |e: Cause<'_>| Problem::internal("keep an upload", e);
    let name = field.file_name().unwrap_or_default().to_owned();
    let mut file = tempfile::tempfile_in(&app.config.data_dir).map_err(|e| failed(&e))?;
    let mut hash = Sha256::new();
    while let Some(piece) = field.chunk().await.map_err(unread)? {
        if !is_wanted {
            continue;
        }
        // Elsewhere than where other requests wait: a disk may be slow.
        let written = tokio::task::spawn_blocking(move || {
            hash.update(&piece);
            file.write_all(&piece).map(|()| (file, hash))
        });
        (file, hash) = written
            .await
            .map_err(|e| failed(&e))?
            .map_err(|e| failed(&e))?;
    }
    file.rewind().map_err(|e| failed(&e))?;
    Ok((name, file, hex::encode(hash.finalize())))
}

async fn finish(
    app: &App,
    kind: &str,
    peer: Peer,
    form: Form,
    facts: Option<SessionFacts>,
) -> Result<(), Problem> {
    let missing = |name: &str| Problem::bad(format!("{name} is missing"));
    form.session.ok_or_else(|| missing("session"))?;
    let said = form.sha256.ok_or_else(|| missing("sha256sum"))?;
    let (name, file, sha256) = form.archive.ok_or_else(|| missing("archive"))?;
    // Strangers are answered as the original does, and never learn.
    let dropped = |status, why: &str| {
        tracing::warn!("an upload of type {kind} is dropped: {why}");
        match peer {
            Peer::Ours => Err(Problem::new(status, why)),
            Peer::Stranger => Ok(()),
        }
    };
    let Some(facts) = facts else {
        return dropped(StatusCode::NOT_FOUND, "the session is not known");
    };
    if !is_current(&facts) {
        return dropped(StatusCode::GONE, "the session is over");
    }
    if facts.key.is_some() {
        return dropped(
            StatusCode::FORBIDDEN,
            "the requests of this session are signed: its artifacts go to its URL, in pieces",
        );
    }
    let proof = match &form.challenge {
        Some(answer) => result::prove(app, &facts, answer).await?,
        None => result::unanswered(&facts, app.keys.is_some()),
    };
    if proof != Proof::Good {
        return dropped(StatusCode::FORBIDDEN, "the challenge is not answered");
    }
    if said != sha256 {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("the archive's SHA-256 is {sha256}, not {said}"),
        ));
    }
    let said = Said {
        kind: kind.to_owned(),
        name,
        instance: form.instance,
        sha256,
    };
    keep(app, &facts, said, file).await
}
