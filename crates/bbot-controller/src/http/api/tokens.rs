//! Tokens with a name: made, listed, revoked.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::document::{Finds, Lists, Makes};
use super::json;
use super::paging::{self, ByName};
use super::view::Time;
use crate::clock::Millis;
use crate::http::access::Caller;
use crate::http::problem::{Json, Problem};
use crate::http::{App, body, params, to_the_end};
use crate::store::TokenRow;
use crate::token::{self, Named, Scope};

/// Longest name, in bytes.
const NAME_LIMIT: usize = 64;

/// A token, without its secret.
#[derive(Debug, Serialize, ToSchema)]
struct Token {
    name: String,
    /// What it lets do; `admin` is all of it.
    scopes: Vec<Scope>,
    created: Time,
    /// Name of the token that made it; `token` is the first one.
    created_by: String,
    /// Null for one that is good until it is revoked.
    expires: Option<Time>,
    /// Whether that time is over.
    expired: bool,
}

impl Token {
    fn of(row: &TokenRow, now: Millis) -> Self {
        Self {
            name: row.name.clone(),
            scopes: row.scopes.as_slice().to_vec(),
            created: Time(row.created),
            created_by: row.created_by.clone(),
            expires: row.expires.map(Time),
            expired: row.expires.is_some_and(|end| end <= now),
        }
    }
}

/// A token that was just made.
#[derive(Debug, Serialize, ToSchema)]
struct NewToken {
    #[serde(flatten)]
    about: Token,
    /// What its holder shows. It is shown here and never again.
    token: String,
}

/// One page of tokens, by name.
#[derive(Debug, Serialize, ToSchema)]
struct Tokens {
    tokens: Vec<Token>,
    /// `after` of the next page; null at the end.
    next: Option<String>,
}

/// A token that is asked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Ask {
    /// Who or what holds it: it stands as the submitter at what is asked for with it.
    #[schema(
        max_length = 64,
        pattern = "^[A-Za-z0-9][A-Za-z0-9_.@-]*$",
        example = "nightly"
    )]
    name: String,
    #[schema(min_items = 1)]
    scopes: Vec<Scope>,
    /// Until when it is good, in RFC 3339; for ever when it is absent.
    #[serde(default)]
    #[schema(format = DateTime)]
    expires: Option<String>,
}

fn check_name(name: &str) -> Result<(), Problem> {
    let good = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= NAME_LIMIT
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.@-".contains(c));
    if !good {
        return Err(Problem::bad(format!(
            "{name:?} is not a name of a token: letters, digits and _ . @ -, beginning with a letter or digit, at most {NAME_LIMIT}"
        )));
    }
    if name == token::SUBMITTER {
        return Err(Problem::bad(format!(
            "{name:?} is the name of the first token; take another one"
        )));
    }
    Ok(())
}

/// When a token ends.
fn end(text: &str, now: Millis) -> Result<Millis, Problem> {
    let time: jiff::Timestamp = text.parse().map_err(|_| {
        Problem::bad(format!(
            "\"expires\": {text:?} is not a time as in 2027-01-31T12:00:00Z"
        ))
    })?;
    let end = Millis(time.as_millisecond());
    if end <= now {
        return Err(Problem::bad(format!(
            "\"expires\": {end} is over; it is {now}"
        )));
    }
    Ok(end)
}

/// Tokens, without their secrets.
#[utoipa::path(
    get,
    path = "/tokens",
    tag = "tokens",
    params(ByName),
    responses((status = 200, description = "A page of them", body = Tokens), Lists),
    security(("token" = ["admin"]))
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> Result<Response, Json> {
    caller.may(Scope::Admin)?;
    let parameters = params::parse(&query.unwrap_or_default());
    let wanted: ByName = params::read(params::without_empty(parameters))?;
    let limit = wanted.limit.into();
    let rows = app
        .store
        .tokens(wanted.after.as_deref().unwrap_or_default(), limit + 1)
        .await?;
    let (rows, next) = paging::page(rows, limit, |row| row.name.clone());
    let now = app.now();
    let tokens = rows.iter().map(|row| Token::of(row, now)).collect();
    Ok(json(StatusCode::OK, &Tokens { tokens, next }))
}

/// Makes a token. What its holder shows is in the answer, and nowhere else.
#[utoipa::path(
    post,
    path = "/tokens",
    tag = "tokens",
    request_body = Ask,
    responses(
        (status = 201, description = "It is made", body = NewToken),
        (status = 409, description = "There is one of this name", body = super::document::Refusal),
        Makes
    ),
    security(("token" = ["admin"]))
)]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Request<Body>,
) -> Result<Response, Json> {
    let created_by = caller.may(Scope::Admin)?.to_owned();
    let text = body::read(&app.bodies, request.into_body(), app.config.limits.form).await?;
    let ask: Ask = serde_json::from_slice(&text)
        .map_err(|e| Problem::bad(format!("the token that is asked for cannot be read: {e}")))?;
    check_name(&ask.name)?;
    if ask.scopes.is_empty() {
        return Err(Problem::bad("\"scopes\" names none: a token must let do something").into());
    }
    let now = app.now();
    let expires = ask
        .expires
        .as_deref()
        .map(|text| end(text, now))
        .transpose()?;
    let made = Named::new().map_err(|e| Problem::internal("make a token", &e))?;
    let row = TokenRow {
        name: ask.name,
        id: made.id,
        hash: made.hash,
        scopes: ask.scopes.into_iter().collect(),
        created: now,
        created_by,
        expires,
    };
    let kept = row.clone();
    let added = to_the_end(async move { app.store.add_token(kept).await }).await??;
    if !added {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            format!("there is a token {:?}: revoke it first", row.name),
        )
        .into());
    }
    tracing::info!(
        by = row.created_by,
        "the token {} is made: {}",
        row.name,
        row.scopes
    );
    let answer = NewToken {
        about: Token::of(&row, now),
        token: made.text,
    };
    Ok(json(StatusCode::CREATED, &answer))
}

/// Revokes a token: it is worth nothing from now on, at every controller of the farm.
#[utoipa::path(
    delete,
    path = "/tokens/{name}",
    tag = "tokens",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 204, description = "It is revoked"), Finds),
    security(("token" = ["admin"]))
)]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Response, Json> {
    let by = caller.may(Scope::Admin)?.to_owned();
    let given = name.clone();
    let removed = to_the_end(async move { app.store.remove_token(&given).await }).await??;
    if !removed {
        return Err(Problem::not_found(format_args!("token {name:?}")).into());
    }
    tracing::info!(by, "the token {name} is revoked");
    Ok(StatusCode::NO_CONTENT.into_response())
}
