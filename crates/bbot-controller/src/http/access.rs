//! Who asks, and what he may do: by the token that a request bears, or that its browser has shown.

use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};

use super::guard::Connection;
use super::problem::{Problem, one_line};
use super::{App, pages};
use crate::store::TokenRow;
use crate::token::{self, Scope, Scopes, Shown};

/// Who asks.
#[derive(Debug, Clone)]
pub(super) enum Caller {
    /// No token was shown.
    Nobody,
    /// One that is not known here, or not any more.
    Unknown,
    /// One whose time is over: its name.
    Expired(String),
    /// One that is worth something.
    Known {
        /// Its name.
        name: String,
        /// What it lets do.
        scopes: Scopes,
        /// How it is found in the store; the first one is not there.
        id: Option<String>,
    },
}

impl Caller {
    /// The name of the token, if it lets do this.
    pub(super) fn may(&self, scope: Scope) -> Result<&str, Problem> {
        let unauthorized = |sentence: String| Err(Problem::new(StatusCode::UNAUTHORIZED, sentence));
        match self {
            Self::Known { name, scopes, .. } if scopes.allow(scope) => Ok(name),
            Self::Known { name, scopes, .. } => Err(Problem::new(
                StatusCode::FORBIDDEN,
                format!("this needs the scope {scope}, and the token {name:?} has: {scopes}"),
            )),
            Self::Expired(name) => unauthorized(format!(
                "the time of the token {name:?} is over: revoke it and make another one"
            )),
            Self::Unknown => unauthorized("the token is not one of this controller".to_owned()),
            Self::Nobody => unauthorized(format!(
                "this needs a token with the scope {scope}: Authorization: Bearer <token>"
            )),
        }
    }
}

/// Who shows this token.
pub(super) async fn holder(app: &App, text: &str) -> Result<Caller, Problem> {
    if app.token.is(text) {
        return Ok(first());
    }
    let Some(shown) = Shown::parse(text) else {
        return Ok(Caller::Unknown);
    };
    Ok(match app.store.token(shown.id).await? {
        Some(row) if shown.is(&row.hash) => known(app, row),
        _ => Caller::Unknown,
    })
}

/// Who holds the first token.
fn first() -> Caller {
    Caller::Known {
        name: token::SUBMITTER.to_owned(),
        scopes: [Scope::Admin].into_iter().collect(),
        id: None,
    }
}

fn known(app: &App, row: TokenRow) -> Caller {
    if row.expires.is_some_and(|end| end <= app.now()) {
        return Caller::Expired(row.name);
    }
    Caller::Known {
        name: row.name,
        scopes: row.scopes,
        id: Some(row.id),
    }
}

/// The token in a request's head.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?;
    // What is no text is no token either.
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

/// Whether a request cannot change anything.
fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Who sends a request. A browser's sign-in counts for pages and for looking: what changes something by the API is not
/// done for a cookie, which another site can have sent along.
pub(super) async fn caller(app: &App, head: &Parts) -> Result<Caller, Problem> {
    let api = head.uri.path().starts_with("/api/");
    if head.headers.contains_key(header::AUTHORIZATION) {
        let token = bearer(&head.headers);
        let caller = match token {
            Some(token) => holder(app, token).await?,
            None => Caller::Unknown,
        };
        // Browsers send other things to pages when a server before this one asks for a password.
        if matches!(caller, Caller::Unknown) && (api || token.is_some()) {
            let peer = head.extensions.get::<Connection>().map(|c| c.peer);
            log_wrong(
                app,
                &format_args!("a request for {}", head.uri.path()),
                peer,
            );
        }
        return Ok(caller);
    }
    if api && !is_safe(&head.method) {
        return Ok(Caller::Nobody);
    }
    let Some(sign_in) = pages::signed_in(app, &head.headers) else {
        return Ok(Caller::Nobody);
    };
    let Some(id) = sign_in.token else {
        return Ok(first());
    };
    // It may have been revoked since.
    let row = app.store.token(&id).await?;
    Ok(row.map_or(Caller::Unknown, |row| known(app, row)))
}

/// Leaves a line in the log about a token that is not known; not for each, when there are many.
pub(super) fn log_wrong(
    app: &App,
    what: &dyn std::fmt::Display,
    peer: Option<std::net::SocketAddr>,
) {
    let Some(left_out) = app.wrong_tokens.line(app.config.clock.steady()) else {
        return;
    };
    let peer = peer.map(tracing::field::display);
    let what = one_line(&what.to_string());
    if left_out > 0 {
        tracing::warn!(
            peer,
            "{what} with a wrong token, and {left_out} more before"
        );
    } else {
        tracing::warn!(peer, "{what} with a wrong token");
    }
}

/// Whether a request looks at what only readers may see, where that is so. Agents have keys of their own, and the name of an
/// archive is as good as a secret.
pub(super) fn is_for_readers(head: &Parts) -> bool {
    let path = head.uri.path();
    let open = matches!(path, "/healthz" | "/style.css" | "/sign-in")
        || path.starts_with("/archives/")
        || path.starts_with("/sessions/");
    is_safe(&head.method) && !open
}
