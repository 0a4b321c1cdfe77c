//! Artifacts: what builds make beside their results, uploaded while the task is under way.
//!
//! By a form, as the original's agents do (`?upload=<type>`, [`form`]), or in pieces that go on where they broke off, to a session's URL
//! ([`pieces`]). Either way all of it is in a file, and has the hash that was said, before it becomes an object.

pub(super) mod form;
pub(super) mod pieces;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::App;
use super::problem::{Plain, Problem};
use crate::objects::Kind;
use crate::source::is_sha256;
use crate::store::{Artifact, SessionFacts};

/// Longest name of a file, and of an instance.
const NAME: usize = 128;

/// What is said of an artifact.
#[derive(Debug)]
struct Said {
    kind: String,
    name: String,
    instance: String,
    sha256: String,
}

/// A file's name that can stand in headers and on pages: its last component, of harmless characters.
fn file_name(text: &str) -> String {
    let last = text.rsplit(['/', '\\']).next().unwrap_or_default();
    let clean: String = last
        .chars()
        .take(NAME)
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() || "_+.-~".contains(c) => c,
            _ => '_',
        })
        .collect();
    let clean = clean.trim_start_matches('.');
    if clean.is_empty() {
        "artifact".to_owned()
    } else {
        clean.to_owned()
    }
}

/// Whether artifacts of a kind are taken.
fn is_taken(app: &App, kind: &str) -> bool {
    app.config.artifacts.iter().any(|known| known == kind)
}

/// Makes an artifact of a file, which has this hash.
async fn keep(
    app: &App,
    facts: &SessionFacts,
    said: Said,
    file: std::fs::File,
) -> Result<(), Problem> {
    let turn = app.turn_to_put().await?;
    let object = app
        .objects
        .put_file(Kind::Artifact, &said.sha256, file)
        .await?;
    drop(turn);
    let artifact = Artifact {
        build: facts.build.id,
        run: facts.run.unwrap_or(0),
        kind: said.kind,
        name: file_name(&said.name),
        instance: bbot_manifest::sanitize(said.instance.as_bytes())
            .chars()
            .take(NAME)
            .collect(),
        sha256: said.sha256,
        bytes: object.bytes,
        uploaded: app.now(),
    };
    let told = format!("{} ({} bytes)", artifact.name, artifact.bytes);
    let kind = artifact.kind.clone();
    if !app.store.keep_artifact(artifact, object).await? {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            format!(
                "a task has at most {} artifacts",
                crate::store::MOST_ARTIFACTS
            ),
        ));
    }
    tracing::info!(
        build.id = facts.build.id,
        kind,
        "build {} has an artifact: {told}",
        facts.build.id
    );
    app.build_changed(facts.build.id);
    Ok(())
}

/// `GET /builds/<id>/artifacts/<sha256>`.
pub(super) async fn get(
    State(app): State<Arc<App>>,
    Path((build, sha256)): Path<(String, String)>,
    method: Method,
) -> Result<Response, Plain> {
    let missing = || Problem::not_found("such artifact");
    let build = super::api::id(&build, "build")?;
    if !is_sha256(&sha256) {
        return Err(missing().into());
    }
    let found = app.store.artifact(build, &sha256).await?;
    let (artifact, object) = found.ok_or_else(missing)?;
    let object = object.ok_or_else(|| Problem::new(StatusCode::GONE, "this artifact is lost"))?;
    let reading = app.objects.read(&object).await?;
    let length = reading.bytes();
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        app.body_of(object, reading).await?
    };
    Ok((
        [
            // Whatever it says it is: nothing that a browser runs.
            (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
            (header::CONTENT_LENGTH, length.to_string()),
            (
                header::CONTENT_DISPOSITION,
                format!("attachment; filename=\"{}\"", artifact.name),
            ),
        ],
        body,
    )
        .into_response())
}

#[cfg(test)]
mod tests {
    use super::file_name;

    #[test]
    fn names_of_files() {
        for (text, expected) in [
            ("libfoo-1.2.tar.xz", "libfoo-1.2.tar.xz"),
            ("../../etc/passwd", "passwd"),
            ("C:\\x\\y.zip", "y.zip"),
            ("a\"b\r\nc", "a_b__c"),
            ("..", "artifact"),
            ("", "artifact"),
            ("\u{e9}", "_"),
        ] {
            assert_eq!(file_name(text), expected, "{text:?}");
        }
    }
}
