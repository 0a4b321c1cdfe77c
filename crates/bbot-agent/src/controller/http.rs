//! HTTP with controllers of which each may be slow, broken or hostile: every answer is
//! bounded in time and size.
//!
//! There are two clients: one without TLS, and one with it, which is made at the first
//! https URL, since the certificates of a hundred authorities take memory.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bbot_machine::machine::BoxFuture;
use bbot_signature::{
    Agreement, BodyDigest, Draft, End, Ephemeral, Kind, PublicKey, SESSION_KEY, SessionKey, Target,
    body_digest, digest_info,
};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Certificate, Client, Method, Response, StatusCode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;
use tokio_util::bytes::Bytes;

use super::clocks::Clocks;
use super::{
    Acknowledged, Channel, Destination, Kin, Link, LinkError, Manner, Posted, Renewed, RequestKey,
    TaskAnswer, Url, acknowledged, below, not_fetched, printable, redirected, renewed, verdict,
};
use crate::source::new_fetching;

/// The most that is read of a task response: task manifests are some KiB.
pub(super) const TASK_LIMIT: u64 = 1024 * 1024;

/// The most that is read of an answer that only a person reads, and the longest that it
/// may take: what it means is known from its status.
const MESSAGE_LIMIT: u64 = 4096;
const MESSAGE_TIME: Duration = Duration::from_secs(5);

/// The largest source archive that is fetched.
pub const ARCHIVE_LIMIT: u64 = 2 * 1024 * 1024 * 1024;

/// The longest that fetching an archive may take, as long as it keeps coming.
const FETCH_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// How many redirects within one origin are followed.
const REDIRECTS: u32 = 5;

/// The longest that a log segment may take; it is sent again.
const SEGMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection that nothing was sent over for so long is closed: less than our controller
/// (15 s, which is also how often a lease is renewed) and the common proxies keep them, so
/// that a request does not meet one that is just being closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// How many connections to a controller are kept while nothing is sent.
const IDLE_CONNECTIONS: usize = 4;

/// A peer that is gone without a word is noticed after about this time.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// The largest file of `--ca`: a system's bundle has some 200 KiB.
const CA_LIMIT: u64 = 16 * 1024 * 1024;

/// The longest and shortest time between two renewals of a lease that a controller may
/// ask for.
const RENEW: std::ops::RangeInclusive<f64> = 0.2..=3600.0;

/// What the connection to controllers is made with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The longest that a request may take. An archive that is fetched may take longer,
    /// but not pause for longer.
    pub timeout: Duration,
    /// The longest that making the connection for it may take.
    pub connect_timeout: Duration,
    /// PEM file with the certificates of the authorities that are trusted in place of
    /// the system's.
    pub ca: Option<PathBuf>,
}

/// The real connection. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Http {
    plain: Client,
    /// Made when it is needed.
    secure: Arc<OnceLock<Client>>,
    /// In place of the system's.
    authorities: Option<Vec<Certificate>>,
    timeout: Duration,
    connect_timeout: Duration,
    clocks: Arc<Clocks>,
}

/// What is sent.
struct Outgoing<'a> {
    method: Method,
    url: &'a Url,
    headers: HeaderMap,
    /// Its type, and the bytes.
    body: Option<(&'static str, Bytes)>,
    proof: Proof<'a>,
    timeout: Duration,
}

/// How a request is signed.
#[derive(Debug, Clone, Copy)]
enum Proof<'a> {
    None,
    /// By the agent's key.
    Agent(&'a dyn RequestKey),
    /// By the key of its session; the number that it has in it, where the controller counts.
    Session(&'a SessionKey, Option<u64>),
}

impl<'a> Proof<'a> {
    fn of_session(key: Option<&'a SessionKey>, number: Option<u64>) -> Self {
        key.map_or(Self::None, |key| Self::Session(key, number))
    }
}

impl Http {
    /// With the system's certificates.
    ///
    /// # Errors
    ///
    /// As [`Http::open`].
    pub fn new(timeout: Duration) -> Result<Self, LinkError> {
        Self::open(&Settings {
            timeout,
            connect_timeout: timeout,
            ca: None,
        })
    }

    /// Reads the file of `--ca`; to read it again, open another.
    ///
    /// # Errors
    ///
    /// When that file cannot be read or has no certificate.
    pub fn open(settings: &Settings) -> Result<Self, LinkError> {
        // An error says that the program that embeds us has chosen one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authorities = settings.ca.as_deref().map(read_ca).transpose()?;
        let connect_timeout = settings.connect_timeout.min(settings.timeout);
        Ok(Self {
            // It never speaks TLS, and so needs nobody's certificates.
            plain: client(connect_timeout, Some(&[]))?,
            secure: Arc::new(OnceLock::new()),
            authorities,
            timeout: settings.timeout,
            connect_timeout,
            clocks: Arc::default(),
        })
    }

    fn client(&self, url: &Url) -> Result<&Client, LinkError> {
        if url.scheme() != "https" {
            return Ok(&self.plain);
        }
        if let Some(client) = self.secure.get() {
            return Ok(client);
        }
        let made = client(self.connect_timeout, self.authorities.as_deref())?;
        Ok(self.secure.get_or_init(|| made))
    }

    /// Sends a request and follows redirects within its origin, each time with
    /// the same method and body.
    async fn send(&self, request: Outgoing<'_>) -> Result<Response, LinkError> {
        let mut url = request.url.clone();
        let mut is_corrected = false;
        let digest = body_digest(request.body.as_ref().map_or(&[], |(_, body)| body));
        // Of all redirects together.
        let sent = timeout(request.timeout, async {
            let mut redirects = 0;
            while redirects <= REDIRECTS {
                let mut headers = request.headers.clone();
                headers.insert("bbot-agent", HeaderValue::from_static("1"));
                // Each time anew: it goes elsewhere, or its time was wrong.
                self.sign(&request, &url, &digest, &mut headers).await?;
                let mut builder = self
                    .client(&url)?
                    .request(request.method.clone(), url.clone())
                    .header(DATE, httpdate::fmt_http_date(SystemTime::now()))
                    .header(ACCEPT_ENCODING, "identity")
                    .headers(headers)
                    .timeout(request.timeout);
                if let Some((kind, body)) = &request.body {
                    builder = builder.header(CONTENT_TYPE, *kind).body(body.clone());
                }
                let response = builder.send().await.map_err(|e| why(&e, request.timeout))?;
                self.clocks.compare(&url, &response);
                // A clock that is set during a build must not cost it.
                if response.status() == StatusCode::UNAUTHORIZED
                    && matches!(request.proof, Proof::Session(..))
                    && is_ours(&response)
                    && !std::mem::replace(&mut is_corrected, true)
                    && self.clocks.follow(&url, &response)
                {
                    continue;
                }
                redirects += 1;
                let target = match response.status().as_u16() {
                    301 | 302 | 307 | 308 => response.headers().get(LOCATION),
                    _ => return Ok(response),
                };
                let Some(target) = target else {
                    return Ok(response);
                };
                url = redirected(&url, &String::from_utf8_lossy(target.as_bytes()))?;
            }
            Err(LinkError::Transport(format!(
                "more than {REDIRECTS} redirects"
            )))
        });
        sent.await
            .unwrap_or_else(|_| Err(no_answer(request.timeout)))
    }

    /// Signs a request as it is to be, with all its headers.
    async fn sign(
        &self,
        request: &Outgoing<'_>,
        url: &Url,
        body: &BodyDigest,
        headers: &mut HeaderMap,
    ) -> Result<(), LinkError> {
        let unsigned = |e: &dyn std::fmt::Display| LinkError::Unsigned(e.to_string());
        let authority = authority(url);
        let target = Target {
            method: request.method.as_str(),
            authority: &authority,
            path: url.path(),
            query: url.query(),
        };
        let random = || format!("{:032x}", rand::random::<u128>());
        let (kind, about) = match request.proof {
            Proof::None => return Ok(()),
            // By our own clock: that it is wrong is to be seen.
            Proof::Agent(key) => (Kind::Task, (now(0), random(), Some(key.fingerprint()))),
            Proof::Session(_, number) => {
                let nonce = number.map_or_else(random, |number| number.to_string());
                (Kind::Session, (now(self.clocks.ahead(url)), nonce, None))
            }
        };
        let (created, nonce, key) = &about;
        let draft = Draft::new(kind, &target, headers, body, (*created, nonce, *key))
            .map_err(|e| unsigned(&e))?;
        let signature = match request.proof {
            Proof::None => return Ok(()),
            Proof::Agent(key) => key
                .sign_request(&digest_info(draft.base()))
                .await
                .map_err(|e| unsigned(&e))?,
            Proof::Session(key, _) => key.sign(draft.base()),
        };
        draft.sign(&signature, headers).map_err(|e| unsigned(&e))
    }

    async fn post(
        &self,
        url: &Url,
        kind: &'static str,
        headers: HeaderMap,
        body: Vec<u8>,
        proof: Proof<'_>,
        timeout: Duration,
    ) -> Result<Response, LinkError> {
        self.send(Outgoing {
            method: Method::POST,
            url,
            headers,
            body: Some((kind, Bytes::from(body))),
            proof,
            timeout,
        })
        .await
    }

    async fn fetch_to(
        &self,
        url: &Url,
        kin: Kin,
        sha256: &str,
        to: &Path,
    ) -> Result<(), LinkError> {
        let write = |source| LinkError::Write {
            path: to.to_owned(),
            source,
        };
        // Of each step, not of the whole: an archive may be large and the way narrow.
        let silent = |_| no_answer(self.timeout);
        let request = Outgoing {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            body: None,
            proof: Proof::None,
            timeout: FETCH_TIMEOUT.max(self.timeout),
        };
        let response = timeout(self.timeout, self.send(request))
            .await
            .map_err(silent)?
            .map_err(|e| not_fetched(e, kin, false))?;
        let is_ours = is_ours(&response);
        let wrong = |e| not_fetched(e, kin, is_ours);
        let mut response = expect_success(response).await.map_err(wrong)?;
        let dir = to.parent().unwrap_or(Path::new("."));
        let mut file = new_fetching(dir).map_err(write)?;
        let mut sum = Sha256::new();
        let mut length = 0;
        while let Some(chunk) = timeout(self.timeout, response.chunk())
            .await
            .map_err(silent)?
            .map_err(|e| why(&e, self.timeout))?
        {
            length += chunk.len() as u64;
            if length > ARCHIVE_LIMIT {
                return Err(wrong(LinkError::TooLong {
                    limit: ARCHIVE_LIMIT,
                }));
            }
            sum.update(&chunk);
            file.write_all(&chunk).map_err(write)?;
        }
        let actual = hex::encode(sum.finalize());
        if actual != sha256 {
            return Err(wrong(LinkError::Hash {
                expected: sha256.to_owned(),
                actual,
            }));
        }
        let to = to.to_owned();
        // The disk may take minutes for gigabytes, and leases are renewed on this thread.
        let kept = tokio::task::spawn_blocking(move || {
            file.as_file().sync_all()?;
            file.persist(to).map(drop).map_err(|e| e.error)
        });
        kept.await
            .map_err(io::Error::other)
            .flatten()
            .map_err(write)
    }
}

impl Link for Http {
    fn request_task<'a>(
        &'a self,
        url: &'a Url,
        body: String,
        manner: Manner,
    ) -> BoxFuture<'a, Result<TaskAnswer, LinkError>> {
        Box::pin(async move {
            let mut headers = HeaderMap::new();
            headers.insert("bbot-wait", HeaderValue::from(manner.hold.as_secs()));
            if manner.is_drained {
                headers.insert("bbot-drained", HeaderValue::from_static("1"));
            }
            let mut own = None;
            let mut proof = Proof::None;
            if let Some(key) = manner.key.as_deref() {
                if let Ok(public) = key.public().parse() {
                    headers.insert("bbot-key", public);
                }
                let ephemeral = Ephemeral::new().map_err(|e| LinkError::Unsigned(e.to_string()))?;
                if let Ok(public) = ephemeral.public().parse() {
                    headers.insert(SESSION_KEY, public);
                }
                own = Some(ephemeral);
                proof = Proof::Agent(key);
            }
            let body = body.into_bytes();
            let response = self
                .post(url, MANIFEST, headers, body, proof, self.timeout)
                .await?;
            let response = expect_success(response).await?;
            let kin = match is_ours(&response) {
                true => Kin::Ours,
                false => Kin::Stranger,
            };
            let text = |name| header(&response, name).map(str::to_owned);
            let session_url = text("bbot-session-url").filter(|_| kin == Kin::Ours);
            let renew = seconds(&response, "bbot-renew");
            let agreement = match (own, header(&response, SESSION_KEY)) {
                (Some(own), Some(theirs)) if kin == Kin::Ours => Some(agree(own, theirs)?),
                _ => None,
            };
            let body = read(response, TASK_LIMIT, self.timeout).await?;
            Ok(TaskAnswer {
                body,
                kin,
                session_url,
                renew,
                agreement,
            })
        })
    }

    fn post_result<'a>(&'a self, to: &'a Destination, body: Vec<u8>) -> BoxFuture<'a, Posted> {
        Box::pin(async move {
            let (url, kin) = (&to.url, to.kin);
            let proof = Proof::of_session(to.key.as_ref(), None);
            let mut headers = HeaderMap::new();
            if let Some(last) = to.log {
                headers.insert("bbot-log-last", HeaderValue::from(last));
            }
            let posted = self.post(url, MANIFEST, headers, body, proof, self.timeout);
            match posted.await {
                Ok(response) => {
                    let (status, is_ours) = (response.status(), is_ours(&response));
                    verdict(status, kin, is_ours, &message(response).await)
                }
                Err(e @ LinkError::Redirect { .. }) => Posted::Again(e.to_string()),
                Err(e) => Posted::Unreachable(e.to_string()),
            }
        })
    }

    fn renew_lease<'a>(
        &'a self,
        session: &'a Channel,
        number: u64,
        hold: Duration,
        within: Duration,
    ) -> BoxFuture<'a, Renewed> {
        Box::pin(async move {
            let url = below(&session.url, "lease");
            let proof = Proof::of_session(session.key.as_ref(), Some(number));
            let hold = hold.min(self.timeout / 2);
            let within = (hold + within).min(self.timeout);
            let mut headers = HeaderMap::new();
            if !hold.is_zero() {
                let whole = hold.as_secs() + u64::from(hold.subsec_nanos() > 0);
                headers.insert("bbot-wait", HeaderValue::from(whole));
            }
            let posted = self.post(&url, MANIFEST, headers, Vec::new(), proof, within);
            match posted.await {
                Ok(response) => {
                    let (status, is_ours) = (response.status(), is_ours(&response));
                    let next = seconds(&response, "bbot-renew");
                    renewed(status, is_ours, next, &message(response).await)
                }
                Err(e) => Renewed::Again(e.to_string()),
            }
        })
    }

    fn post_segment<'a>(
        &'a self,
        session: &'a Channel,
        number: u64,
        skips: bool,
        body: Vec<u8>,
    ) -> BoxFuture<'a, Acknowledged> {
        Box::pin(async move {
            let url = below(&session.url, &format!("log/{number}"));
            let proof = Proof::of_session(session.key.as_ref(), None);
            let mut headers = HeaderMap::new();
            if skips {
                headers.insert("bbot-log-skip", HeaderValue::from_static("1"));
            }
            let within = SEGMENT_TIMEOUT.min(self.timeout);
            match self.post(&url, BYTES, headers, body, proof, within).await {
                Ok(response) => {
                    let (status, is_ours) = (response.status(), is_ours(&response));
                    let next = header(&response, "bbot-log-next").and_then(|n| n.parse().ok());
                    acknowledged(status, is_ours, next, &message(response).await)
                }
                Err(e) => Acknowledged::Silence(e.to_string()),
            }
        })
    }

    fn fetch<'a>(
        &'a self,
        url: &'a Url,
        kin: Kin,
        sha256: &'a str,
        to: &'a Path,
    ) -> BoxFuture<'a, Result<(), LinkError>> {
        Box::pin(self.fetch_to(url, kin, sha256, to))
    }
}

const MANIFEST: &str = "text/manifest";
const BYTES: &str = "application/octet-stream";

fn client(
    connect_timeout: Duration,
    authorities: Option<&[Certificate]>,
) -> Result<Client, LinkError> {
    let mut builder = Client::builder()
        .user_agent(concat!("bbot-agent/", env!("CARGO_PKG_VERSION")))
        // A redirect that is followed blindly makes a GET of a POST, and
        // takes results and challenges to strangers.
        .redirect(reqwest::redirect::Policy::none())
        // What is packed can be a thousand times as large unpacked; what controllers say
        // is small, and archives are packed already.
        .no_gzip()
        .connect_timeout(connect_timeout)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .tcp_keepalive(KEEP_ALIVE);
    if let Some(authorities) = authorities {
        builder = builder.tls_certs_only(authorities.iter().cloned());
    }
    builder.build().map_err(|e| LinkError::Setup(chain(&e)))
}

/// The host and port of a URL, as they are signed.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// The time in seconds since 1970, by a clock that is so far ahead of ours.
fn now(ahead: i64) -> i64 {
    let ours = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let ours = ours.map_or(0, |span| span.as_secs());
    i64::try_from(ours)
        .unwrap_or(i64::MAX)
        .saturating_add(ahead)
}

/// What is agreed on with a controller by its part of it.
fn agree(own: Ephemeral, theirs: &str) -> Result<Agreement, LinkError> {
    let theirs = PublicKey::parse(theirs);
    let agreed = theirs.and_then(|theirs| own.agree(End::Agent, &theirs));
    agreed.map_err(|e| LinkError::Transport(format!("the controller's answer is of no use: {e}")))
}

fn read_ca(path: &Path) -> Result<Vec<Certificate>, LinkError> {
    let error = |why: String| LinkError::Ca {
        path: path.to_owned(),
        why,
    };
    let mut pem = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(CA_LIMIT).read_to_end(&mut pem))
        .map_err(|e| error(e.to_string()))?;
    let mut certificates = Vec::new();
    for der in CertificateDer::pem_slice_iter(&pem) {
        let der = der.map_err(|e| error(format!("it is not PEM: {e}")))?;
        // The client itself would leave out what is no certificate, and say nothing.
        rustls::RootCertStore::empty()
            .add(der.clone())
            .map_err(|e| error(format!("certificate {}: {e}", certificates.len() + 1)))?;
        certificates.push(Certificate::from_der(&der).map_err(|e| error(chain(&e)))?);
    }
    if certificates.is_empty() {
        return Err(error(
            "there is no certificate in it; it must be a PEM file (BEGIN CERTIFICATE)".to_owned(),
        ));
    }
    Ok(certificates)
}

fn is_ours(response: &Response) -> bool {
    response.headers().contains_key("bbot-controller")
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok().map(str::trim)
}

/// A time in decimal seconds, within what is sensible.
fn seconds(response: &Response, name: &str) -> Option<Duration> {
    sensible(header(response, name)?)
}

pub(super) fn sensible(text: &str) -> Option<Duration> {
    let seconds: f64 = text.parse().ok()?;
    (seconds.is_finite() && seconds > 0.0)
        .then(|| Duration::from_secs_f64(seconds.clamp(*RENEW.start(), *RENEW.end())))
}

fn no_answer(timeout: Duration) -> LinkError {
    LinkError::Transport(format!("no answer within {} s", timeout.as_secs()))
}

fn why(error: &reqwest::Error, timeout: Duration) -> LinkError {
    if error.is_timeout() {
        return no_answer(timeout);
    }
    let mut text = chain(error);
    if let Some(url) = error.url() {
        // Whoever tells it says which controller it is.
        text = text.replace(&format!(" for url ({url})"), "");
    }
    let unknown = ["UnknownIssuer", "BadSignature", "CaUsedAsEndEntity"];
    if unknown.iter().any(|word| text.contains(word)) {
        text.push_str("; give --ca with the certificate of who has signed it");
    }
    LinkError::Transport(text)
}

async fn read(mut response: Response, limit: u64, timeout: Duration) -> Result<Vec<u8>, LinkError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| why(&e, timeout))? {
        if body.len() as u64 + chunk.len() as u64 > limit {
            return Err(LinkError::TooLong { limit });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The first line of what an answer says, for a person.
async fn message(mut response: Response) -> String {
    let mut body = Vec::new();
    // What has come until then is told.
    let _ = timeout(MESSAGE_TIME, async {
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > MESSAGE_LIMIT {
                break;
            }
        }
    })
    .await;
    let text = String::from_utf8_lossy(&body);
    printable(text.lines().next().unwrap_or_default())
}

async fn expect_success(response: Response) -> Result<Response, LinkError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let message = message(response).await;
    Err(LinkError::Status { status, message })
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
