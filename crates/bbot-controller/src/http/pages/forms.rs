//! The forms of the pages that change something.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::Request;
use axum::response::Response;

use super::parts::Frame;
use super::{Page, framed, sign};
use crate::http::access::Caller;
use crate::http::problem::Problem;
use crate::http::{App, api, params};
use crate::token::Scope;

/// Carries out a form of this page, for the reason that it gives, and shows the page again.
async fn because(
    app: &App,
    page: &str,
    request: Request<Body>,
    done: impl AsyncFnOnce(Option<String>) -> Result<(), Problem>,
) -> Result<Response, Page> {
    let (head, body) = request.into_parts();
    let frame = Frame::of(app, &head.headers, page, "");
    framed(frame, async |frame| {
        let form = sign::checked_form(app, &frame, body).await?;
        done(api::rebuild::reason(params::get(&form, "reason"))?).await?;
        Ok(sign::see_other(&format!("{}{page}", frame.root)))
    })
    .await
}

/// `POST /builds/<id>/rebuild`: the form.
pub(in crate::http) async fn rebuild(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(text): Path<String>,
    request: Request<Body>,
) -> Result<Response, Page> {
    let page = format!("/builds/{}", params::encode(&text));
    because(&app, &page, request, async |reason| {
        let submitter = caller.may(Scope::Rebuild)?;
        let build = api::builds::find(&app, &text).await?;
        api::rebuild::do_rebuild(&app, &build, submitter, reason.as_deref()).await?;
        Ok(())
    })
    .await
}

/// `POST /builds/<id>/cancel`: the form.
pub(in crate::http) async fn cancel(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(text): Path<String>,
    request: Request<Body>,
) -> Result<Response, Page> {
    let page = format!("/builds/{}", params::encode(&text));
    because(&app, &page, request, async |reason| {
        caller.may(Scope::Cancel)?;
        api::cancel::cancel(&app, api::id(&text, "build")?, reason).await
    })
    .await
}

/// `POST /submissions/<id>/cancel`: the form.
pub(in crate::http) async fn cancel_submission(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(text): Path<String>,
    request: Request<Body>,
) -> Result<Response, Page> {
    let page = format!("/submissions/{}", params::encode(&text));
    because(&app, &page, request, async |reason| {
        caller.may(Scope::Cancel)?;
        let id = api::id(&text, "submission")?;
        api::cancel::cancel_submission(&app, id, reason).await?;
        Ok(())
    })
    .await
}
