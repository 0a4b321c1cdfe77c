//! The agent's end of the conversation with controllers: HTTP, and nothing of
//! what the bodies mean.
//!
//! [`Link`] is the seam: the agent's loop talks to it, [`Http`] is the real one,
//! and tests put a scripted one in its place. What a status means for a result
//! is the pure [`verdict`].

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bbot_machine::machine::BoxFuture;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, Response, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

pub use reqwest::Url;

/// The most that is read of a task response: task manifests are some KiB.
const TASK_LIMIT: u64 = 1024 * 1024;

/// The most that is read of an answer that only a person reads.
const MESSAGE_LIMIT: u64 = 4096;

/// The largest source archive that is fetched.
pub const ARCHIVE_LIMIT: u64 = 2 * 1024 * 1024 * 1024;

/// The longest that fetching an archive may take, as long as it keeps coming.
const FETCH_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// How many redirects within one origin are followed.
const REDIRECTS: u32 = 5;

/// The longest that making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

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
            Self::Transport(_) => true,
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
    /// It may be taken another time.
    Again(String),
}

/// The connection to the controllers.
pub trait Link: Send + Sync + std::fmt::Debug {
    /// Posts a task request. A controller of ours may hold it for as long as `hold`
    /// until there is a task; others answer at once.
    ///
    /// # Errors
    ///
    /// When there is no answer, or not a good one.
    fn request_task<'a>(
        &'a self,
        url: &'a Url,
        body: String,
        hold: Duration,
    ) -> BoxFuture<'a, Result<TaskAnswer, LinkError>>;

    /// Posts a result.
    fn post_result<'a>(&'a self, url: &'a Url, body: Vec<u8>) -> BoxFuture<'a, Posted>;

    /// Fetches a source archive into the file `to`, which is made or replaced;
    /// it is on disk when this returns.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched or written, or is not the one with this hash;
    /// then there is no file.
    fn fetch<'a>(
        &'a self,
        url: &'a Url,
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
    let below = |prefix: &Url| {
        result.origin() == prefix.origin() && result.path().starts_with(prefix.path())
    };
    result.origin() == controller.origin() || allowed.iter().any(below)
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

/// What a status means for a result (docs/protocol.md, section 6).
pub fn verdict(status: StatusCode, message: &str) -> Posted {
    let text = if message.is_empty() {
        status.to_string()
    } else {
        format!("{status}: {message}")
    };
    match status.as_u16() {
        200..=299 => Posted::Taken,
        413 => Posted::TooLarge,
        401 | 408 | 429 => Posted::Again(text),
        400..=499 => Posted::Refused(text),
        _ => Posted::Again(text),
    }
}

/// The real connection.
#[derive(Debug, Clone)]
pub struct Http {
    client: reqwest::Client,
    timeout: Duration,
}

impl Http {
    /// A client whose requests take at most `timeout`; an archive that is fetched may
    /// take longer, but not pause for longer.
    ///
    /// # Errors
    ///
    /// When the system's TLS set-up cannot be used.
    pub fn new(timeout: Duration) -> Result<Self, LinkError> {
        // An error says that the program that embeds us has chosen one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .user_agent(concat!("bbot-agent/", env!("CARGO_PKG_VERSION")))
            // A redirect that is followed blindly makes a GET of a POST, and
            // takes results and challenges to strangers.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(timeout.min(CONNECT_TIMEOUT))
            .timeout(timeout)
            .build()
            .map_err(|e| LinkError::Setup(chain(&e)))?;
        Ok(Self { client, timeout })
    }

    /// Sends a request and follows redirects within its origin, each time with
    /// the same method and body.
    async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Option<Vec<u8>>,
    ) -> Result<Response, LinkError> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS {
            let mut request = self
                .client
                .request(method.clone(), url.clone())
                .header("Bbot-Agent", "1")
                .headers(headers.clone());
            if method == Method::GET {
                request = request.timeout(FETCH_TIMEOUT.max(self.timeout));
            }
            if let Some(body) = &body {
                request = request
                    .header(CONTENT_TYPE, "text/manifest")
                    .body(body.clone());
            }
            let response = request
                .send()
                .await
                .map_err(|e| LinkError::Transport(self.why(&e)))?;
            let target = match response.status().as_u16() {
                301 | 302 | 307 | 308 => response
                    .headers()
                    .get(LOCATION)
                    .and_then(|l| l.to_str().ok()),
                _ => return Ok(response),
            };
            let Some(target) = target else {
                return Ok(response);
            };
            url = redirected(&url, target)?;
        }
        Err(LinkError::Transport(format!(
            "more than {REDIRECTS} redirects"
        )))
    }

    fn why(&self, error: &reqwest::Error) -> String {
        if error.is_timeout() {
            format!("no answer within {} s", self.timeout.as_secs())
        } else {
            chain(error)
        }
    }

    async fn read(&self, mut response: Response, limit: u64) -> Result<Vec<u8>, LinkError> {
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|e| LinkError::Transport(self.why(&e)))?
        {
            if body.len() as u64 + chunk.len() as u64 > limit {
                return Err(LinkError::TooLong { limit });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// The first line of what an answer says, for a person.
    async fn message(&self, response: Response) -> String {
        let body = self.read(response, MESSAGE_LIMIT).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&body);
        printable(text.lines().next().unwrap_or_default())
    }

    async fn expect_success(&self, response: Response) -> Result<Response, LinkError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let message = self.message(response).await;
        Err(LinkError::Status { status, message })
    }

    async fn fetch_to(&self, url: &Url, sha256: &str, to: &Path) -> Result<(), LinkError> {
        let write = |source| LinkError::Write {
            path: to.to_owned(),
            source,
        };
        // Of each step, not of the whole: an archive may be large and the way narrow.
        let silent =
            |_| LinkError::Transport(format!("no answer within {} s", self.timeout.as_secs()));
        let response = timeout(
            self.timeout,
            self.send(Method::GET, url, HeaderMap::new(), None),
        )
        .await
        .map_err(silent)??;
        let mut response = timeout(self.timeout, self.expect_success(response))
            .await
            .map_err(silent)??;
        let dir = to.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new()
            .prefix(".fetching-")
            .tempfile_in(dir)
            .map_err(write)?;
        let mut sum = Sha256::new();
        let mut length = 0;
        while let Some(chunk) = timeout(self.timeout, response.chunk())
            .await
            .map_err(silent)?
            .map_err(|e| LinkError::Transport(self.why(&e)))?
        {
            length += chunk.len() as u64;
            if length > ARCHIVE_LIMIT {
                return Err(LinkError::TooLong {
                    limit: ARCHIVE_LIMIT,
                });
            }
            sum.update(&chunk);
            file.write_all(&chunk).map_err(write)?;
        }
        let actual = hex::encode(sum.finalize());
        if actual != sha256 {
            return Err(LinkError::Hash {
                expected: sha256.to_owned(),
                actual,
            });
        }
        file.as_file().sync_all().map_err(write)?;
        file.persist(to).map_err(|e| write(e.error))?;
        Ok(())
    }
}

impl Link for Http {
    fn request_task<'a>(
        &'a self,
        url: &'a Url,
        body: String,
        hold: Duration,
    ) -> BoxFuture<'a, Result<TaskAnswer, LinkError>> {
        Box::pin(async move {
            let mut headers = HeaderMap::new();
            headers.insert("bbot-wait", HeaderValue::from(hold.as_secs()));
            let response = self
                .send(Method::POST, url, headers, Some(body.into_bytes()))
                .await?;
            let response = self.expect_success(response).await?;
            let kin = match response.headers().contains_key("bbot-controller") {
                true => Kin::Ours,
                false => Kin::Stranger,
            };
            let body = self.read(response, TASK_LIMIT).await?;
            Ok(TaskAnswer { body, kin })
        })
    }

    fn post_result<'a>(&'a self, url: &'a Url, body: Vec<u8>) -> BoxFuture<'a, Posted> {
        Box::pin(async move {
            match self
                .send(Method::POST, url, HeaderMap::new(), Some(body))
                .await
            {
                Ok(response) => {
                    let status = response.status();
                    let message = self.message(response).await;
                    verdict(status, &message)
                }
                Err(e) => Posted::Again(e.to_string()),
            }
        })
    }

    fn fetch<'a>(
        &'a self,
        url: &'a Url,
        sha256: &'a str,
        to: &'a Path,
    ) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(self.fetch_to(url, sha256, to))
    }
}

/// An error with its causes, which reqwest leaves out of its own text.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        let cause = e.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        source = e.source();
    }
    text
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
