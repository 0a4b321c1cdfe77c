//! Who may change something.

use axum::http::{HeaderMap, StatusCode, header};

use crate::http::App;
use crate::http::problem::Problem;

/// Whether the request carries the token.
pub(super) fn authorize(app: &App, headers: &HeaderMap) -> Result<(), Problem> {
    let shown = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| {
            let (scheme, token) = v.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then_some(token.trim())
        });
    match shown {
        Some(token) if app.token.is(token) => Ok(()),
        Some(_) => Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "the token is not that of this controller",
        )),
        None => Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "this needs the controller's token: Authorization: Bearer <token>",
        )),
    }
}
