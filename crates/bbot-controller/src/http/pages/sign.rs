//! Signing in: a browser shows the token once and gets a cookie; its forms carry a second secret.
//!
//! The cookie is not sent with requests that another site causes (`SameSite=Strict`), and scripts do not see
//! it. A form from elsewhere has not the second secret, and its origin is refused before that.

use std::sync::Arc;

use askama::Template;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::parts::Frame;
use super::{Page, framed, render};
use crate::auth::same_secret;
use crate::http::access::{self, Caller};
use crate::http::problem::Problem;
use crate::http::{App, Connection, body, params};
use crate::token::{SIGNED_IN_SECONDS, SignIn};

/// Name of the cookie. Cookies know no ports: two controllers on one host must not take each other's.
fn cookie_name(app: &App) -> String {
    format!("bbot-{}", app.address.port())
}

fn cookie<'a>(app: &App, headers: &'a HeaderMap) -> Option<&'a str> {
    let name = cookie_name(app);
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(n, _)| *n == name)
        .map(|(_, value)| value)
}

/// The browser's sign-in, if it has one.
pub(in crate::http) fn signed_in(app: &App, headers: &HeaderMap) -> Option<SignIn> {
    app.sign_ins.get(cookie(app, headers)?, app.now())
}

/// The fields of a form that a signed-in browser sends.
pub(super) async fn checked_form(
    app: &App,
    frame: &Frame,
    body: Body,
) -> Result<Vec<(String, String)>, Problem> {
    let form = read_form(app, body).await?;
    match (&frame.signed_in, params::get(&form, "form")) {
        (Some(secret), Some(shown)) if same_secret(secret, shown) => Ok(form),
        (None, _) => Err(Problem::new(StatusCode::FORBIDDEN, "sign in first")),
        (Some(_), _) => Err(Problem::new(
            StatusCode::FORBIDDEN,
            "the form is not one of this session: load it again",
        )),
    }
}

async fn read_form(app: &App, body: Body) -> Result<Vec<(String, String)>, Problem> {
    let bytes = body::read(&app.bodies, body, app.config.limits.form).await?;
    Ok(params::parse(&String::from_utf8_lossy(&bytes)))
}

/// 303 to a path of ours.
pub(super) fn see_other(path: &str) -> Response {
    let location = HeaderValue::from_str(path).unwrap_or(HeaderValue::from_static("/"));
    (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response()
}

/// Where to go after signing in: a path here, never another site.
fn local(next: &str) -> &str {
    let own = next.starts_with('/')
        && !next.starts_with("//")
        && next.bytes().all(|b| b.is_ascii_graphic())
        && !next.contains('\\');
    if own { next } else { "/" }
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage {
    frame: Frame,
    next: String,
    wrong: Option<&'static str>,
}

/// `GET /sign-in`.
pub(in crate::http) async fn sign_in_form(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let parameters = params::parse(&query.unwrap_or_default());
    let next = local(params::get(&parameters, "next").unwrap_or("/")).to_owned();
    let frame = Frame::of(&app, &headers, &next, "");
    render(
        StatusCode::OK,
        &SignInPage {
            frame,
            next,
            wrong: None,
        },
    )
}

/// `POST /sign-in`.
pub(in crate::http) async fn sign_in(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, Page> {
    let (head, body) = request.into_parts();
    let frame = Frame::of(&app, &head.headers, "/", "");
    framed(frame, async |frame| {
        let form = read_form(&app, body).await?;
        let next = local(params::get(&form, "next").unwrap_or("/")).to_owned();
        let shown = params::get(&form, "token").unwrap_or_default();
        let wrong = match access::holder(&app, shown.trim()).await? {
            Caller::Known { id, .. } => Ok(id),
            Caller::Expired(_) => Err("The time of this token is over."),
            Caller::Unknown | Caller::Nobody => {
                let peer = head.extensions.get::<Connection>().map(|c| c.peer);
                access::log_wrong(&app, &"somebody tried to sign in", peer);
                Err("This is not a token of this controller.")
            }
        };
        let token = match wrong {
            Ok(token) => token,
            Err(wrong) => {
                let wrong = Some(wrong);
                let page = SignInPage { frame, next, wrong };
                return Ok(render(StatusCode::FORBIDDEN, &page));
            }
        };
        let secret = app
            .sign_ins
            .add(token, app.now())
            .map_err(|e| Problem::internal("sign in", &e))?;
        let mut response = see_other(&format!("{}{next}", frame.root));
        set_cookie(
            &app,
            &head.headers,
            &mut response,
            &secret,
            SIGNED_IN_SECONDS,
        );
        Ok(response)
    })
    .await
}

/// `POST /sign-out`.
pub(in crate::http) async fn sign_out(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Response, Page> {
    let (head, body) = request.into_parts();
    let frame = Frame::of(&app, &head.headers, "/", "");
    framed(frame, async |frame| {
        checked_form(&app, &frame, body).await?;
        if let Some(secret) = cookie(&app, &head.headers) {
            app.sign_ins.remove(secret);
        }
        let mut response = see_other(&format!("{}/", frame.root));
        set_cookie(&app, &head.headers, &mut response, "", 0);
        Ok(response)
    })
    .await
}

fn set_cookie(app: &App, headers: &HeaderMap, response: &mut Response, secret: &str, seconds: u64) {
    let external = app.addressed_from_outside(headers);
    let path = external.map_or("", |e| e.path());
    let secure = if app.config.tls.is_some() || external.is_some_and(|e| e.is_https()) {
        "; Secure"
    } else {
        ""
    };
    let cookie = format!(
        "{}={secret}; HttpOnly; SameSite=Strict; Path={path}/; Max-Age={seconds}{secure}",
        cookie_name(app)
    );
    if let Ok(value) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::local;

    #[test]
    fn no_way_leads_to_another_site() {
        for (next, expected) in [
            ("/builds/1", "/builds/1"),
            ("/?package=a&state=queued", "/?package=a&state=queued"),
            ("//evil.example", "/"),
            ("/\\evil.example", "/"),
            ("https://evil.example", "/"),
            ("/a\r\nSet-Cookie: x", "/"),
            ("", "/"),
        ] {
            assert_eq!(local(next), expected, "{next:?}");
        }
    }
}
