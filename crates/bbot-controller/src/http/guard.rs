//! What every request goes through: is it addressed to us, does it come from one of our own pages where it
//! comes from a page at all, and what the browser is told about the answer.
//!
//! A page elsewhere can make a browser send requests here, and can give its own name our address (DNS
//! rebinding). The first cannot hide its origin, the second not its name.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::metrics::Counted;
use super::problem::{Json, Plain, Problem};
use super::{App, access, pages};
use crate::token::Scope;

/// The two ends of the connection that a request came by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection {
    /// Our end.
    pub(crate) local: SocketAddr,
    /// The other end.
    pub(crate) peer: SocketAddr,
    /// How it is spoken on.
    pub(crate) scheme: Scheme,
}

/// What a URL of this controller begins with, where nothing stands before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that a URL means which names none.
    pub(super) fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// URL of this controller as the requester knows it, without a slash at the end.
#[derive(Debug, Clone)]
pub(crate) struct Base(pub(crate) String);

/// The URL that the controller is reached by from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// `https://example.org/bbot`, without a slash at the end.
    url: String,
    /// `https://example.org`.
    origin: String,
    /// `example.org` or `example.org:8080`, in lower case.
    authority: String,
    /// `/bbot`, or empty.
    path: String,
}

impl External {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// It is no `http` or `https` URL with a host, or has more than a path.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = url
            .split_once("://")
            .ok_or("it must begin with http:// or https://")?;
        if scheme != "http" && scheme != "https" {
            return Err("it must begin with http:// or https://");
        }
        if !url.bytes().all(|b| b.is_ascii_graphic())
            || url.contains(['?', '#', '@', '"', '<', '>', '\\', '\''])
        {
            return Err("it may have a host, a port and a path, and nothing else");
        }
        let (authority, path) = rest
            .split_once('/')
            .map_or((rest, ""), |(a, p)| (a, p.trim_end_matches('/')));
        if authority.is_empty() {
            return Err("it has no host");
        }
        let authority = authority.to_ascii_lowercase();
        let path = if path.is_empty() {
            String::new()
        } else {
            format!("/{path}")
        };
        let origin = format!("{scheme}://{authority}");
        Ok(Self {
            url: format!("{origin}{path}"),
            origin,
            authority,
            path,
        })
    }

    /// Whether browsers reach it over TLS.
    pub(crate) fn is_https(&self) -> bool {
        self.url.starts_with("https://")
    }

    /// Its scheme.
    pub(super) fn scheme(&self) -> Scheme {
        if self.is_https() {
            Scheme::Https
        } else {
            Scheme::Http
        }
    }

    /// The path that links begin with.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

impl App {
    /// The external URL, when the request came by it.
    pub(super) fn addressed_from_outside(&self, headers: &HeaderMap) -> Option<&External> {
        let host = headers.get(header::HOST)?.to_str().ok()?;
        self.external
            .as_ref()
            .filter(|e| e.authority.eq_ignore_ascii_case(host))
    }
}

/// Whether `host` (a Host header) is a name of ours.
///
/// Ours are: the address that the connection came in at, `localhost` where that is a loopback address, the
/// external URL's host, and the names that the operator gave. An address that is not ours cannot be used to
/// reach us, and a name that is not ours can be anybody's.
fn is_own_name(
    host: &str,
    local: SocketAddr,
    scheme: Scheme,
    external: Option<&External>,
    names: &[String],
) -> bool {
    let host = host.to_ascii_lowercase();
    if external.is_some_and(|e| e.authority == host)
        || names.iter().any(|n| n.eq_ignore_ascii_case(&host))
    {
        return true;
    }
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => match port.parse::<u16>() {
            Ok(port) => (name, port),
            Err(_) => return false,
        },
        _ => (host.as_str(), scheme.port()),
    };
    if port != local.port() {
        return false;
    }
    if names.iter().any(|n| n.eq_ignore_ascii_case(name)) {
        return true;
    }
    let ip = local.ip().to_canonical();
    if name == "localhost" {
        return ip.is_loopback();
    }
    let bare = name
        .strip_prefix('[')
        .and_then(|n| n.strip_suffix(']'))
        .unwrap_or(name);
    bare.parse::<std::net::IpAddr>()
        .is_ok_and(|addressed| addressed.to_canonical() == ip)
}

fn host<'a>(headers: &'a HeaderMap, request: &'a Request<Body>) -> Option<&'a str> {
    let mut all = headers.get_all(header::HOST).iter();
    match (all.next(), all.next()) {
        (Some(host), None) => host.to_str().ok(),
        (None, _) => request.uri().authority().map(|a| a.as_str()),
        // Two: whoever is before us may have looked at the other one.
        (Some(_), Some(_)) => None,
    }
}

/// Whether the request comes from a page of another origin than these.
fn is_foreign(headers: &HeaderMap, own: &[&str]) -> bool {
    if let Some(origin) = headers.get(header::ORIGIN) {
        let is_own = |o: &str| own.iter().any(|own| o.eq_ignore_ascii_case(own));
        return !origin.to_str().is_ok_and(is_own);
    }
    // Browsers that leave out Origin in places still say this.
    headers
        .get("sec-fetch-site")
        .is_some_and(|site| site != "same-origin" && site != "none")
}

const POLICY: &str = "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The checks.
pub(super) async fn check(
    State(app): State<Arc<App>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let counted = Counted::begin(&request);
    let answer = checked(&app, request, next).await;
    counted.end(&app, answer.status());
    answer
}

async fn checked(app: &App, request: Request<Body>, next: Next) -> Response {
    let api = request.uri().path().starts_with("/api/");
    let refuse = |status, sentence: &str| {
        let problem = Problem::new(status, sentence);
        finish(if api {
            Json(problem).into_response()
        } else {
            Plain(problem).into_response()
        })
    };
    let Some(connection) = request.extensions().get::<Connection>().copied() else {
        return refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the connection is not known",
        );
    };
    let direct = match host(request.headers(), &request) {
        Some(host)
            if is_own_name(
                host,
                connection.local,
                connection.scheme,
                app.external.as_ref(),
                &app.config.names,
            ) =>
        {
            let scheme = connection.scheme.as_str();
            format!("{scheme}://{}", host.to_ascii_lowercase())
        }
        host => {
            tracing::debug!(peer = %connection.peer, ?host, "a request for another host");
            return refuse(
                StatusCode::MISDIRECTED_REQUEST,
                "this controller does not go by the name that the request is addressed to; \
                 give it with --external-url or --name if it should",
            );
        }
    };
    // Whoever uses another of our names gets that one in URLs too: an agent takes no result URL of another
    // origin than its controller's. A page that was loaded by any of our names is ours.
    let url = match app.addressed_from_outside(request.headers()) {
        Some(external) => external.url.clone(),
        None => direct.clone(),
    };
    let outside = app
        .external
        .as_ref()
        .map_or(direct.as_str(), |e| e.origin.as_str());
    let safe = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS
    );
    if !safe && is_foreign(request.headers(), &[outside, &direct]) {
        return refuse(
            StatusCode::FORBIDDEN,
            "the request comes from a page of another site",
        );
    }
    let (mut head, body) = request.into_parts();
    let caller = match access::caller(app, &head).await {
        Ok(caller) => caller,
        Err(problem) if api => return finish(Json(problem).into_response()),
        Err(problem) => return finish(Plain(problem).into_response()),
    };
    if app.config.private
        && access::is_for_readers(&head)
        && let Err(problem) = caller.may(Scope::Read)
    {
        return finish(match head.uri.path() {
            _ if api => Json(problem).into_response(),
            "/metrics" => Plain(problem).into_response(),
            _ => pages::keep_out(app, &head, problem),
        });
    }
    head.extensions.insert(Base(url));
    head.extensions.insert(caller);
    finish(next.run(Request::from_parts(head, body)).await)
}

fn finish(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        ("bbot-controller", "1"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", POLICY),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let external = External::parse("https://Builds.example.org/bbot/").unwrap();
        let names = ["farm".to_owned(), "other:9".to_owned()];
        for (host, local, expected) in [
            ("127.0.0.1:2268", "127.0.0.1:2268", true),
            ("localhost:2268", "127.0.0.1:2268", true),
            ("LOCALHOST:2268", "[::1]:2268", true),
            ("[::1]:2268", "[::1]:2268", true),
            ("127.0.0.1:2268", "[::ffff:127.0.0.1]:2268", true),
            ("localhost", "127.0.0.1:80", true),
            ("localhost", "127.0.0.1:2268", false),
            ("localhost:2269", "127.0.0.1:2268", false),
            ("localhost:2268", "192.0.2.1:2268", false),
            ("192.0.2.1:2268", "192.0.2.1:2268", true),
            ("192.0.2.2:2268", "192.0.2.1:2268", false),
            ("evil.example:2268", "127.0.0.1:2268", false),
            ("127.0.0.1.evil.example:2268", "127.0.0.1:2268", false),
            ("127.0.0.1:2268:2268", "127.0.0.1:2268", false),
            ("", "127.0.0.1:80", false),
            ("farm:2268", "192.0.2.1:2268", true),
            ("farm:2269", "192.0.2.1:2268", false),
            ("other:9", "192.0.2.1:2268", true),
            ("builds.example.org", "127.0.0.1:2268", true),
            ("builds.example.org:2268", "127.0.0.1:2268", false),
        ] {
            assert_eq!(
                is_own_name(
                    host,
                    local.parse().unwrap(),
                    Scheme::Http,
                    Some(&external),
                    &names
                ),
                expected,
                "{host} at {local}"
            );
        }
    }

    #[test]
    fn external_urls() {
        let external = External::parse("https://Example.org:8443/a/b/").unwrap();
        assert_eq!(external.url, "https://example.org:8443/a/b");
        assert_eq!(external.origin, "https://example.org:8443");
        assert_eq!(external.path(), "/a/b");
        assert!(external.is_https());
        assert_eq!(External::parse("http://x").unwrap().path(), "");
        for bad in [
            "example.org",
            "ftp://x",
            "http://",
            "http://a?b",
            "http://a b",
            "http://u@h/",
        ] {
            assert!(External::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn origins() {
        let own = ["http://127.0.0.1:2268", "https://farm.example"];
        for (name, value, expected) in [
            ("origin", "http://127.0.0.1:2268", false),
            ("origin", "http://127.0.0.1:2269", true),
            ("origin", "https://farm.example", false),
            ("origin", "http://farm.example", true),
            ("origin", "null", true),
            ("origin", "https://evil.example", true),
            ("sec-fetch-site", "same-origin", false),
            ("sec-fetch-site", "none", false),
            ("sec-fetch-site", "cross-site", true),
            ("accept", "x", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            assert_eq!(is_foreign(&headers, &own), expected, "{name}: {value}");
        }
    }
}
