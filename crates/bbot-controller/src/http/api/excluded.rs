//! What a submission leaves out, page by page: it may be ten thousand builds.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::document::Finds;
use super::view::Id;
use super::{id, json, submissions};
use crate::http::problem::{Json, Problem};
use crate::http::{App, params};
use crate::package::plan::Excluded;

/// A page of the builds that a submission has not, in the order of the buildtab.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ExcludedPage {
    pub(super) excluded: Vec<Excluded>,
    /// `after` of the next page; null at the end.
    pub(super) next: Option<String>,
}

/// So many builds that a submission has not are told of at once.
const EXCLUDED: usize = 500;

impl ExcludedPage {
    /// Those after so many.
    pub(super) fn of(all: Vec<Excluded>, after: usize) -> Self {
        let end = after.saturating_add(EXCLUDED);
        Self {
            next: (end < all.len()).then(|| end.to_string()),
            excluded: all.into_iter().skip(after).take(EXCLUDED).collect(),
        }
    }
}

/// Where a page of what a submission leaves out begins.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct After {
    /// `excluded_next` of the submission, or `next` of the page before.
    after: Option<String>,
}

/// The builds that a submission has not, and why.
#[utoipa::path(
    get,
    path = "/submissions/{id}/excluded",
    tag = "submissions",
    params(("id" = Id, Path, description = "Its number"), After),
    responses((status = 200, description = "A page of them", body = ExcludedPage), Finds)
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Path(text): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Json> {
    let id = id(&text, "submission")?;
    let parameters = params::parse(&query.unwrap_or_default());
    let wanted: After = params::read(params::without_empty(parameters))?;
    let after = wanted.after.as_deref().map_or(Ok(0), str::parse);
    let after = after.map_err(|_| Problem::bad("parameter after: not a cursor of this list"))?;
    submissions::find(&app, id).await?;
    let all = app.store.excluded(id).await?;
    Ok(json(StatusCode::OK, &ExcludedPage::of(all, after)))
}
