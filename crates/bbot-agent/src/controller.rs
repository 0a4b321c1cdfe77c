//! The agent's end of the conversation with controllers: HTTP, and nothing of
//! what the bodies mean.
//!
//! [`Link`] is the seam: the agent's loop talks to it, [`Http`] is the real one,
//! and tests put a scripted one in its place. What a status means for a result
//! is the pure [`verdict`].

mod clocks;
#[cfg(test)]
pub(crate) mod fake;
mod http;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bbot_machine::machine::BoxFuture;
use bbot_signature::{Agreement, SessionKey};
use reqwest::StatusCode;

pub use http::{ARCHIVE_LIMIT, Http, Settings};
pub use reqwest::Url;

/// What can go wrong between agent and controller.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Not the URL of a controller.
    #[error("invalid url '{text}': {why}")]
    Url {
        /// What was given.
        text: String,
        /// Why.
        why: String,
    },
    /// The client cannot be made.
    #[error("unable to set up HTTP: {0}")]
    Setup(String),
    /// The file of `--ca` is not one.
    #[error("unable to use the certificates in {} (--ca): {why}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// No answer: not reachable, time-out, connection lost.
    #[error("{0}")]
    Transport(String),
    /// An answer that is not what was asked for.
    #[error("{status}{}{message}", if message.is_empty() { "" } else { ": " })]
    Status {
        /// The status, with its reason.
        status: StatusCode,
        /// The first line of what it said.
        message: String,
    },
    /// The answer of somebody between us and a controller that is known to be ours (a proxy that is told
    /// of no such host, a login page): it says nothing of what was asked for.
    #[error("{0}, not by the controller itself")]
    Between(String),
    /// A redirect that is not followed.
    #[error("redirected to {to}: give the final URL")]
    Redirect {
        /// Where to.
        to: String,
    },
    /// More than can be right.
    #[error("the answer is longer than {limit} bytes")]
    TooLong {
        /// The bound.
        limit: u64,
    },
    /// The request cannot be signed.
    #[error("unable to sign the request: {0}")]
    Unsigned(String),
    /// An archive that is not the one asked for.
    #[error("the archive has the SHA-256 {actual}, not {expected}")]
    Hash {
        /// What was asked for.
        expected: String,
        /// What came.
        actual: String,
    },
    /// What was fetched cannot be kept.
    #[error("unable to write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl LinkError {
    /// Whether it may be better in a while.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Transport(_) | Self::Between(_) => true,
            Self::Status { status, .. } => {
                status.is_server_error() || matches!(status.as_u16(), 408 | 429)
            }
            _ => false,
        }
    }
}

/// What a controller answered to a task request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskAnswer {
    /// The task response manifest.
    pub body: Vec<u8>,
    /// Whose controller it is.
    pub kin: Kin,
    /// The session's URL, as one of ours says it (`Bbot-Session-Url`); nothing of it is
    /// checked yet.
    pub session_url: Option<String>,
    /// When to renew the lease next, after the first time at once (`Bbot-Renew`).
    pub renew: Option<Duration>,
    /// What was agreed on with one of ours for the key of the session.
    pub agreement: Option<Agreement>,
}

/// What a request for a task says besides its body, to a controller of ours.
#[derive(Debug, Clone, Default)]
pub struct Manner {
    /// For how long it may be held.
    pub hold: Duration,
    /// The agent takes no tasks: a person has told it so.
    pub is_drained: bool,
    /// The agent's key, which signs the request.
    pub key: Option<Arc<dyn RequestKey>>,
}

impl From<Duration> for Manner {
    fn from(hold: Duration) -> Self {
        Self {
            hold,
            ..Self::default()
        }
    }
}

/// The key of an agent, as requests are signed by it.
pub trait RequestKey: Send + Sync + std::fmt::Debug {
    /// Its fingerprint.
    fn fingerprint(&self) -> &str;

    /// Its public half, DER in base64.
    fn public(&self) -> &str;

    /// The signature of a request, of which these are the hash and the name of the hash
    /// ([`bbot_signature::digest_info`]).
    ///
    /// # Errors
    ///
    /// Why it cannot be made.
    fn sign_request<'a>(
        &'a self,
        digest_info: &'a [u8; 51],
    ) -> BoxFuture<'a, Result<Vec<u8>, String>>;
}

/// Where a result goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The URL.
    pub url: Url,
    /// Whose controller that is.
    pub kin: Kin,
    /// What it is signed with, where it is.
    pub key: Option<SessionKey>,
    /// The number of the last segment of its session's log, which the controller has or gets
    /// by itself; none where there is no such log.
    pub log: Option<u64>,
}

impl Destination {
    /// Scheme, host and port.
    pub fn origin(&self) -> String {
        self.url.origin().ascii_serialization()
    }
}

/// Where a session's lease is renewed and its log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// The session's URL.
    pub url: Url,
    /// What its requests are signed with, where they are.
    pub key: Option<SessionKey>,
}

/// Whose controller it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kin {
    /// One of ours: it said `Bbot-Controller`.
    Ours,
    /// The original's, or somebody else's.
    Stranger,
}

/// What became of a result that was posted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Posted {
    /// It is taken.
    Taken,
    /// It is larger than the controller takes.
    TooLarge,
    /// It is refused for good.
    Refused(String),
    /// There was an answer, and it may be taken another time.
    Again(String),
    /// There was no answer.
    Unreachable(String),
}

/// What a controller of ours says to the renewal of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewed {
    /// The task is still ours; when to renew next, if it says so.
    Until(Option<Duration>),
    /// The task is not ours any more, and why.
    Over(String),
    /// No answer, or none that says anything.
    Again(String),
}

/// What a controller of ours says to a log segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acknowledged {
    /// It is on the controller's disk.
    Taken,
    /// One before it is missing: this one.
    Gap(u64),
    /// The session is over, and why.
    Over(String),
    /// It is not one: a fault of the agent's.
    Refused(String),
    /// Not now.
    Again(String),
    /// No answer, or somebody else's than the controller's.
    Silence(String),
}

/// The connection to the controllers.
pub trait Link: Send + Sync + std::fmt::Debug {
    /// Posts a task request. A controller of ours may hold it for as long as `manner` says
    /// until there is a task; others answer at once.
    ///
    /// # Errors
    ///
    /// When there is no answer, or not a good one.
    fn request_task<'a>(
        &'a self,
        url: &'a Url,
        body: String,
        manner: Manner,
    ) -> BoxFuture<'a, Result<TaskAnswer, LinkError>>;

    /// Posts a result.
    fn post_result<'a>(&'a self, to: &'a Destination, body: Vec<u8>) -> BoxFuture<'a, Posted>;

    /// Renews the lease of a session, for the time of this `number`: each is greater than those before. The
    /// controller may hold the answer for as long as `hold` unless the session ends, and has so much time,
    /// `within`, beyond that.
    fn renew_lease<'a>(
        &'a self,
        session: &'a Channel,
        number: u64,
        hold: Duration,
        within: Duration,
    ) -> BoxFuture<'a, Renewed>;

    /// Posts a log segment of a session. `skips`: one before it is there no more.
    fn post_segment<'a>(
        &'a self,
        session: &'a Channel,
        number: u64,
        skips: bool,
        body: Vec<u8>,
    ) -> BoxFuture<'a, Acknowledged>;

    /// Fetches a source archive of a controller that is known to be of this kin into the
    /// file `to`, which is made or replaced; it is on disk when this returns.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched or written, or is not the one with this hash;
    /// then there is no file.
    fn fetch<'a>(
        &'a self,
        url: &'a Url,
        kin: Kin,
        sha256: &'a str,
        to: &'a Path,
    ) -> BoxFuture<'a, Result<(), LinkError>>;
}

/// The URL that task requests for a controller are posted to: as given, with
/// `?build-task` where it has no query.
///
/// # Errors
///
/// When it is not an http or https URL.
pub fn task_url(text: &str) -> Result<Url, LinkError> {
    let mut url = parse_url(text)?;
    if url.query().is_none() {
        url.set_query(Some("build-task"));
    }
    Ok(url)
}

/// An http or https URL.
///
/// # Errors
///
/// When it is not one.
pub fn parse_url(text: &str) -> Result<Url, LinkError> {
    let error = |why: String| LinkError::Url {
        text: text.to_owned(),
        why,
    };
    let mut url = Url::parse(text).map_err(|e| error(e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(error("only http and https are spoken".to_owned()));
    }
    url.set_fragment(None);
    Ok(url)
}

/// Whether a result may be posted to `result`: it has its controller's origin, or
/// begins with one of the URLs that the operator allows.
pub fn may_post(result: &Url, controller: &Url, allowed: &[Url]) -> bool {
    result.origin() == controller.origin() || allowed.iter().any(|prefix| is_below(result, prefix))
}

/// Whether a URL has the origin of `prefix` and begins with its path.
pub fn is_below(url: &Url, prefix: &Url) -> bool {
    url.origin() == prefix.origin() && url.path().starts_with(prefix.path())
}

/// Where a redirect leads that is followed: one that stays within the origin.
///
/// # Errors
///
/// When it leads elsewhere, or nowhere.
pub fn redirected(from: &Url, location: &str) -> Result<Url, LinkError> {
    match from.join(location) {
        Ok(to) if to.origin() == from.origin() => Ok(to),
        _ => Err(LinkError::Redirect {
            to: printable(location),
        }),
    }
}

/// A URL below a session's.
pub fn below(session: &Url, rest: &str) -> Url {
    let mut url = session.clone();
    let path = format!("{}/{rest}", session.path().trim_end_matches('/'));
    url.set_path(&path);
    url
}

/// What a status means for the renewal of a lease. `is_ours`: the answer has our
/// controllers' mark; that of a proxy in front of one that is away says nothing, be it
/// yes or no.
pub fn renewed(
    status: StatusCode,
    is_ours: bool,
    next: Option<Duration>,
    message: &str,
) -> Renewed {
    match status.as_u16() {
        _ if !is_ours => Renewed::Again(said_between(status, message)),
        200..=299 => Renewed::Until(next),
        404 | 410 => Renewed::Over(said(status, message)),
        _ => Renewed::Again(said(status, message)),
    }
}

/// What a status means for a log segment; `next` is the number that is expected, and
/// `is_ours` as in [`renewed`].
pub fn acknowledged(
    status: StatusCode,
    is_ours: bool,
    next: Option<u64>,
    message: &str,
) -> Acknowledged {
    let text = said(status, message);
    match (status.as_u16(), next) {
        _ if !is_ours => Acknowledged::Silence(said_between(status, message)),
        (200..=299, _) => Acknowledged::Taken,
        (409, Some(next)) => Acknowledged::Gap(next),
        (404 | 410, _) => Acknowledged::Over(text),
        (400 | 413, _) => Acknowledged::Refused(text),
        _ => Acknowledged::Again(text),
    }
}

fn said(status: StatusCode, message: &str) -> String {
    if message.is_empty() {
        status.to_string()
    } else {
        format!("{status}: {message}")
    }
}

/// The same, of somebody between us and a controller of ours.
fn said_between(status: StatusCode, message: &str) -> String {
    format!("{}, not by the controller itself", said(status, message))
}

/// What a status means for a result (docs/protocol.md, section 6). `kin`: whose the
/// controller is known to be; `is_ours`: this answer has our controllers' mark.
pub fn verdict(status: StatusCode, kin: Kin, is_ours: bool, message: &str) -> Posted {
    let text = || said(status, message);
    match (kin, status.as_u16()) {
        // Whoever says so, a smaller one may get through.
        (_, 413) => Posted::TooLarge,
        // A proxy's page, of whatever status, says nothing of the result.
        (Kin::Ours, _) if !is_ours => Posted::Again(said_between(status, message)),
        (_, 200..=299) => Posted::Taken,
        // Ours says 403, 404 and 410 of results that are worth nothing; 421 is a name that
        // it can be given.
        (Kin::Ours, 401 | 408 | 421 | 429) => Posted::Again(text()),
        (Kin::Ours, 400..=499) | (Kin::Stranger, 400) => Posted::Refused(text()),
        _ => Posted::Again(text()),
    }
}

/// What it means that an answer is not the archive that was asked for, but `wrong`; `kin` and
/// `is_ours` as in [`verdict`].
pub fn not_fetched(wrong: LinkError, kin: Kin, is_ours: bool) -> LinkError {
    match wrong {
        LinkError::Status { .. } | LinkError::Hash { .. } | LinkError::TooLong { .. }
            if kin == Kin::Ours && !is_ours =>
        {
            LinkError::Between(wrong.to_string())
        }
        // Ours redirects nobody.
        LinkError::Redirect { .. } if kin == Kin::Ours => LinkError::Between(wrong.to_string()),
        wrong => wrong,
    }
}

/// Text from outside, fit for one line of diagnostics.
fn printable(text: &str) -> String {
    text.chars()
        .take(300)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests;
