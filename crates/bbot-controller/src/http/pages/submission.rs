//! The page of a submission: its builds, and what it leaves out.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;

use super::parts::{self, Frame, Row, SourceLine};
use super::{Page, framed, render};
use crate::http::{App, api, params};
use crate::package::plan::Excluded;

#[derive(Template)]
#[template(path = "submission.html")]
struct SubmissionPage {
    frame: Frame,
    id: i64,
    name: String,
    version: String,
    submitted: String,
    source: SourceLine,
    rows: Vec<Row>,
    /// Whether this is not the first page.
    later: bool,
    next: Option<i64>,
    /// With the first page,
    excluded: Vec<Excluded>,
    /// and how many there are besides.
    more_excluded: usize,
    is_over: bool,
}

/// Builds on one page, and those left out that are shown.
const PAGE: usize = 200;

/// `GET /submissions/<id>`.
pub(in crate::http) async fn submission(
    State(app): State<Arc<App>>,
    Path(text): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Page> {
    let frame = Frame::of(
        &app,
        &headers,
        &format!("/submissions/{}", params::encode(&text)),
        "",
    );
    framed(frame, async |frame| {
        let id = api::id(&text, "submission")?;
        let after = api::submissions::after(query.as_deref())?;
        let submission = api::submissions::find(&app, id).await?;
        let (builds, next) = app.store.builds_of(id, after, PAGE).await?;
        let now = app.now();
        let mut excluded = match after {
            None => app.store.excluded(id).await?,
            Some(_) => Vec::new(),
        };
        let more_excluded = excluded.len().saturating_sub(PAGE);
        excluded.truncate(PAGE);
        let page = SubmissionPage {
            rows: builds.iter().map(|b| Row::of(b, now)).collect(),
            is_over: app.store.is_over(id).await?,
            later: after.is_some(),
            next,
            excluded,
            more_excluded,
            id,
            source: SourceLine::of(&submission.source),
            name: submission.name,
            version: submission.version,
            submitted: parts::time(submission.submitted),
            frame,
        };
        Ok(render(StatusCode::OK, &page))
    })
    .await
}
