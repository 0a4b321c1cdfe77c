//! The controller's JSON API (protocol section 7) as the tool uses it.

pub(crate) mod agents;
pub(crate) mod events;

use std::{fs, io, path::PathBuf, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{PLACES, commands::succeeded, home::Home, source::Package};

/// Where a controller listens when nobody says otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:2268";

/// How long the controller may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The same for a submission: it may fetch a git repository before it answers, which it bounds by
/// 300 s itself.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(330);

/// A log may be followed for so long over one connection.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);

/// A followed log says something every 15 s: after so long without a word the connection is dead.
const SILENCE: Duration = Duration::from_secs(50);

/// Which controller, and what proves that we may change something there.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = PLACES)]
pub(crate) struct ControllerOptions {
    /// The controller's URL [default: the one of `bbot up`, else http://127.0.0.1:2268]
    #[arg(long, env = "BBOT_CONTROLLER", value_name = "URL", value_parser = controller_url)]
    pub(crate) controller: Option<String>,
    /// The file with the controller's token [default: the one of `bbot up`]
    #[arg(long, env = "BBOT_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

/// One operation of a build, without its log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Operation {
    pub(crate) name: String,
    pub(crate) status: String,
    #[serde(default)]
    pub(crate) log_bytes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Toolchain {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// A build as the API gives it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Build {
    pub(crate) id: String,
    pub(crate) submission: String,
    pub(crate) package: String,
    pub(crate) version: String,
    pub(crate) configuration: String,
    pub(crate) target: Option<String>,
    #[serde(default)]
    pub(crate) package_configuration: String,
    pub(crate) machine: Option<String>,
    pub(crate) toolchain: Option<Toolchain>,
    pub(crate) agent: Option<String>,
    /// How a person gets to the machine, where the build stops for one.
    pub(crate) login: Option<String>,
    pub(crate) state: String,
    pub(crate) class: Option<String>,
    pub(crate) priority: Option<i64>,
    pub(crate) status: Option<String>,
    pub(crate) queued: Option<String>,
    pub(crate) started: Option<String>,
    pub(crate) finished: Option<String>,
    #[serde(default)]
    pub(crate) operations: Vec<Operation>,
    pub(crate) url: Option<String>,
}

impl Build {
    /// Is it built, or cancelled: is nothing more to be waited for?
    pub(crate) fn is_over(&self) -> bool {
        self.state == "built" || self.is_cancelled()
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.state == "cancelled"
    }

    /// Is there a result, and a good one?
    pub(crate) fn succeeded(&self) -> bool {
        let status = self.status.as_deref().map(str::parse);
        matches!(status, Some(Ok(status)) if succeeded(status))
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Builds {
    pub(crate) builds: Vec<Build>,
    pub(crate) next: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Submission {
    pub(crate) id: String,
    pub(crate) builds: Vec<Build>,
    /// Where the next page of its builds begins, if there are more.
    next: Option<String>,
    /// Of the answer to cancelling: the builds that were not over before.
    #[serde(default)]
    pub(crate) cancelled: Vec<String>,
    /// Builds that the package leaves out: the first of them,
    #[serde(default)]
    pub(crate) excluded: Vec<Excluded>,
    /// and where the others begin, if there are more.
    #[serde(default)]
    pub(crate) excluded_next: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Excluded {
    pub(crate) configuration: String,
    pub(crate) package_configuration: String,
    pub(crate) why: String,
}

/// A token, without its secret.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Token {
    pub(crate) name: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) created: String,
    pub(crate) created_by: String,
    pub(crate) expires: Option<String>,
    pub(crate) expired: bool,
}

/// The controller answered, but did not do it.
#[derive(Debug, thiserror::Error)]
#[error("{sentence}")]
struct Refused {
    status: StatusCode,
    sentence: String,
}

/// A log cannot be followed.
#[derive(Debug)]
pub(crate) enum FollowError {
    /// Now: the controller may be back soon.
    Again(anyhow::Error),
    /// At all.
    Final(anyhow::Error),
}

/// A log that is followed.
#[derive(Debug)]
pub(crate) struct Following {
    response: reqwest::Response,
    events: events::Events,
}

impl Following {
    /// The next event.
    ///
    /// # Errors
    /// The connection broke, or nothing came for too long.
    pub(crate) async fn next(&mut self) -> Result<events::Event> {
        loop {
            if let Some(event) = self
                .events
                .next()
                .context("the controller's answer is not a log that is followed")?
            {
                return Ok(event);
            }
            match tokio::time::timeout(SILENCE, self.response.chunk()).await {
                Ok(Ok(Some(bytes))) => self.events.push(&bytes),
                Ok(Ok(None)) => bail!("the controller has ended the connection"),
                Ok(Err(error)) => {
                    return Err(error).context("the connection to the controller is lost");
                }
                Err(_) => bail!(
                    "nothing came from the controller for {} s",
                    SILENCE.as_secs()
                ),
            }
        }
    }
}

/// A connection to one controller.
#[derive(Debug)]
pub(crate) struct Api {
    client: Client,
    root: String,
    token: Result<String, String>,
    /// Whether the token is known to be this controller's.
    is_for_it: bool,
}

impl Api {
    pub(crate) fn new(options: &ControllerOptions, home: &Home) -> Result<Api> {
        let root = match &options.controller {
            Some(url) => url.clone(),
            None => match fs::read_to_string(home.controller_url()) {
                Ok(url) => controller_url(url.trim())
                    .map_err(|error| anyhow!("{}: {error}", home.controller_url().display()))?,
                Err(_) => DEFAULT_URL.to_string(),
            },
        };
        let file = options.token_file.clone().unwrap_or_else(|| home.token());
        // Reading needs no token: its absence is an error only once something is to be changed.
        let token = fs::read_to_string(&file)
            .map(|token| token.trim().to_string())
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => format!("there is no file {}", file.display()),
                _ => format!("cannot read {}: {error}", file.display()),
            });
        let client = Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .timeout(ANSWER_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context("cannot set up HTTP")?;
        Ok(Api {
            client,
            root,
            token,
            is_for_it: options.token_file.is_some() || options.controller.is_none(),
        })
    }

    pub(crate) fn root(&self) -> &str {
        &self.root
    }

    /// Sends the source archive; the controller may know it already.
    pub(crate) async fn put_archive(&self, package: &Package) -> Result<()> {
        let file = package
            .archive
            .try_clone()
            .context("cannot read the source archive again")?;
        let request = self
            .changing(Method::PUT, &format!("/api/v1/archives/{}", package.sha256))?
            // An archive may be large and the line slow: one minute for every 10 MB on top.
            .timeout(ANSWER_TIMEOUT + Duration::from_secs(package.size / 166_666))
            .header("Content-Type", "application/gzip")
            .header("Content-Length", package.size)
            .body(tokio::fs::File::from_std(file));
        self.send(request)
            .await
            .context("cannot send the source archive")?;
        Ok(())
    }

    pub(crate) async fn submit(&self, submission: &serde_json::Value) -> Result<Submission> {
        let request = self
            .changing(Method::POST, "/api/v1/submissions")?
            .timeout(SUBMIT_TIMEOUT);
        let request = request
            .header("Content-Type", "application/json")
            .body(submission.to_string());
        let submission = self.json(request).await?;
        self.whole(submission).await
    }

    /// A submission with all of its builds, however many pages these are.
    async fn whole(&self, mut submission: Submission) -> Result<Submission> {
        while let Some(next) = submission.next.take() {
            let id = segment(&submission.id)?;
            let path = format!("/api/v1/submissions/{id}?after={}", escape(&next));
            let page = self.json(self.changing(Method::GET, &path)?).await;
            let page: Submission = page.with_context(|| {
                format!("cannot read all builds of submission {}", submission.id)
            })?;
            submission.builds.extend(page.builds);
            submission.next = page.next;
        }
        Ok(submission)
    }

    pub(crate) async fn rebuild(&self, id: &str, reason: Option<&str>) -> Result<Build> {
        let path = format!("/api/v1/builds/{}/rebuild", segment(id)?);
        self.because(&path, reason).await
    }

    pub(crate) async fn cancel(&self, id: &str, reason: Option<&str>) -> Result<Build> {
        let path = format!("/api/v1/builds/{}/cancel", segment(id)?);
        self.because(&path, reason).await
    }

    pub(crate) async fn cancel_submission(
        &self,
        id: &str,
        reason: Option<&str>,
    ) -> Result<Submission> {
        let path = format!("/api/v1/submissions/{}/cancel", segment(id)?);
        let submission = self.because(&path, reason).await?;
        self.whole(submission).await
    }

    /// Asks for something, for a reason.
    async fn because<T: DeserializeOwned>(&self, path: &str, reason: Option<&str>) -> Result<T> {
        let body = serde_json::json!({ "reason": reason });
        let request = self
            .changing(Method::POST, path)?
            .header("Content-Type", "application/json")
            .body(body.to_string());
        self.json(request).await
    }

    /// Makes a token; what its holder shows.
    pub(crate) async fn create_token(
        &self,
        name: &str,
        scopes: &[String],
        expires: Option<&str>,
    ) -> Result<String> {
        #[derive(Deserialize)]
        struct Made {
            token: String,
        }
        let body = serde_json::json!({ "name": name, "scopes": scopes, "expires": expires });
        let request = self
            .changing(Method::POST, "/api/v1/tokens")?
            .header("Content-Type", "application/json")
            .body(body.to_string());
        let made: Made = self.json(request).await?;
        Ok(made.token)
    }

    /// All tokens, by name.
    pub(crate) async fn tokens(&self) -> Result<Vec<Token>> {
        #[derive(Deserialize)]
        struct Page {
            tokens: Vec<Token>,
            next: Option<String>,
        }
        let mut all = Vec::new();
        let mut path = "/api/v1/tokens?limit=500".to_string();
        loop {
            let page: Page = self.json(self.changing(Method::GET, &path)?).await?;
            all.extend(page.tokens);
            match page.next {
                Some(next) => path = format!("/api/v1/tokens?limit=500&after={}", escape(&next)),
                None => return Ok(all),
            }
        }
    }

    pub(crate) async fn revoke_token(&self, name: &str) -> Result<()> {
        let path = format!("/api/v1/tokens/{}", segment(name)?);
        self.send(self.changing(Method::DELETE, &path)?).await?;
        Ok(())
    }

    pub(crate) async fn builds(&self, filters: &[(&str, String)]) -> Result<Builds> {
        let request = self.request(Method::GET, "/api/v1/builds");
        let query: String = filters
            .iter()
            .map(|(name, value)| format!("&{name}={}", escape(value)))
            .collect();
        let request = match query.strip_prefix('&') {
            Some(query) => self.request(Method::GET, &format!("/api/v1/builds?{query}")),
            None => request,
        };
        self.json(request).await
    }

    pub(crate) async fn build(&self, id: &str) -> Result<Build> {
        self.json(self.request(Method::GET, &format!("/api/v1/builds/{}", segment(id)?)))
            .await
    }

    /// The log of a build, or of one of its operations.
    pub(crate) async fn log(&self, id: &str, operation: Option<&str>) -> Result<Vec<u8>> {
        let mut path = format!("/api/v1/builds/{}/log", segment(id)?);
        if let Some(operation) = operation {
            path = format!("{path}/{}", segment(operation)?);
        }
        let response = self.send(self.request(Method::GET, &path)).await?;
        Ok(response
            .bytes()
            .await
            .context("the log broke off")?
            .to_vec())
    }

    /// Follows the log of a build, or of one of its operations, from a position on.
    pub(crate) async fn follow(
        &self,
        id: &str,
        operation: Option<&str>,
        from: Option<&str>,
    ) -> Result<Following, FollowError> {
        let mut path = format!(
            "/api/v1/builds/{}/log",
            segment(id).map_err(FollowError::Final)?
        );
        if let Some(operation) = operation {
            path = format!("{path}/{}", segment(operation).map_err(FollowError::Final)?);
        }
        path.push_str("?follow=1");
        if let Some(from) = from {
            path = format!("{path}&from={}", escape(from));
        }
        // However long the build takes: a connection that is dead is noticed piece by piece.
        let request = self.request(Method::GET, &path).timeout(FOLLOW_TIMEOUT);
        let response = match tokio::time::timeout(ANSWER_TIMEOUT, self.send(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                return Err(match error.downcast_ref::<Refused>() {
                    Some(refused) if refused.status.is_client_error() => FollowError::Final(error),
                    _ => FollowError::Again(error),
                });
            }
            Err(_) => {
                return Err(FollowError::Again(anyhow!(
                    "the controller at {} does not answer",
                    self.root
                )));
            }
        };
        let is_stream = response
            .headers()
            .get("content-type")
            .is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
        if !is_stream {
            return Err(FollowError::Final(anyhow!(
                "the controller at {} cannot give a log as it grows: is it older than this `bbot`?",
                self.root
            )));
        }
        Ok(Following {
            response,
            events: events::Events::default(),
        })
    }

    /// A request that looks. A private controller wants a token for that too: it is shown ours, unless that may be another
    /// controller's.
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.root));
        match &self.token {
            Ok(token) if self.is_for_it => request.bearer_auth(token),
            _ => request,
        }
    }

    fn changing(&self, method: Method, path: &str) -> Result<RequestBuilder> {
        match &self.token {
            Ok(token) => {
                let request = self.client.request(method, format!("{}{path}", self.root));
                Ok(request.bearer_auth(token))
            }
            Err(error) => bail!(
                "the controller's token is needed to change something, and {error}: start a controller with `bbot up`, or name the token of another one with --token-file"
            ),
        }
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let response = self.send(request).await?;
        let body = response
            .bytes()
            .await
            .context("the controller's answer broke off")?;
        serde_json::from_slice(&body)
            .with_context(|| format!("{} does not answer as a bbot controller does", self.root))
    }

    async fn send(&self, request: RequestBuilder) -> Result<reqwest::Response> {
        let response = request.send().await.map_err(|error| {
            if error.is_connect() {
                anyhow!(
                    "no controller answers at {}: start one with `bbot up`, or name it with --controller",
                    self.root
                )
            } else {
                anyhow!(error).context(format!("cannot talk to the controller at {}", self.root))
            }
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        let sentence = match (status, said(&body)) {
            (StatusCode::UNAUTHORIZED, Some(said)) => format!(
                "the controller at {} does not take our token: {said}",
                self.root
            ),
            (_, Some(said)) => format!("the controller at {} says: {said}", self.root),
            (status, None) => format!(
                "{} answers {}, and not as a bbot controller does: is the URL right?",
                self.root,
                status.as_u16()
            ),
        };
        Err(anyhow!(Refused { status, sentence }))
    }
}

/// The root of a controller's URLs, without a slash at its end.
fn controller_url(text: &str) -> Result<String, String> {
    let url =
        reqwest::Url::parse(text).map_err(|_| format!("it is not a URL such as {DEFAULT_URL}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("it must start with http:// or https://".to_string());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("it must have neither '?' nor '#'".to_string());
    }
    Ok(url.as_str().trim_end_matches('/').to_string())
}

/// The sentence in the body of an error of our API; none when it is something else's.
fn said(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Said {
        error: String,
    }
    serde_json::from_slice::<Said>(body)
        .ok()
        .map(|said| bbot_manifest::log_text(said.error.as_bytes()))
}

/// An id or name as one segment of a path.
fn segment(text: &str) -> Result<String> {
    if text.is_empty() || text == "." || text == ".." {
        bail!("'{text}' is not the id of a build: `bbot builds` lists them");
    }
    Ok(escape(text))
}

fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(b).to_string()
            }
            _ => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_into_a_path_is_one_segment() {
        assert_eq!(segment("a/b?c").unwrap(), "a%2Fb%3Fc");
        assert!(segment("..").is_err());
        assert!(segment("").is_err());
    }

    #[test]
    fn an_error_is_told_in_the_controllers_words() {
        let body = br#"{"error": "no such build"}"#;
        assert_eq!(said(body).as_deref(), Some("no such build"));
        assert_eq!(said(b"<html>\x1b[31m"), None);
        assert_eq!(said(b""), None);
    }

    #[test]
    fn a_controller_is_named_by_an_http_url() {
        for (url, root) in [
            ("http://127.0.0.1:2268", "http://127.0.0.1:2268"),
            ("https://host/bbot/", "https://host/bbot"),
        ] {
            assert_eq!(controller_url(url).as_deref(), Ok(root));
        }
        for url in [
            "",
            "host",
            "host:2268",
            "http://",
            "ftp://host",
            "http://a b",
            "http://h/?x",
        ] {
            assert!(controller_url(url).is_err(), "{url}");
        }
    }
}
