//! Requests that are signed: those for a task by the agent's key, all else of a session by the session's key.
//!
//! What a signature covers is [`bbot_signature`]'s; whose it has to be, and what its time has to be, is decided here, before
//! anything is done for the request.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use bbot_manifest::TaskRequest;
use bbot_signature::{
    BodyDigest, Kind, PublicKey, SESSION_KEY, Signed, Target, Wrong, body_digest,
};

use super::App;
use super::admit::shown_key;
use super::guard::{Connection, External};
use super::held::Held;
use super::nonces::Coming;
use super::problem::Problem;
use crate::auth;
use crate::clock::Millis;
use crate::store::{SessionFacts, StoreError};

/// For how many seconds a signature counts: so far its time may be from ours, before or after.
const WINDOW: i64 = 300;

/// Fingerprints of keys that are known to sign: what the store knows, as far as it was asked.
#[derive(Debug, Default)]
pub(super) struct Signers(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    fingerprints: HashSet<String>,
    /// Counts up when they are forgotten: what was asked before says nothing any more.
    forgotten: u64,
}

impl Signers {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is known, and what to say with an answer of the store.
    fn has(&self, fingerprint: &str) -> (bool, u64) {
        let known = self.lock();
        (known.fingerprints.contains(fingerprint), known.forgotten)
    }

    fn add(&self, fingerprint: &str, forgotten: u64) {
        let mut known = self.lock();
        if known.forgotten == forgotten {
            known.fingerprints.insert(fingerprint.to_owned());
        }
    }

    /// A person has said something about agents: the store is asked anew.
    pub(super) fn forget(&self) {
        let mut known = self.lock();
        known.fingerprints.clear();
        known.forgotten += 1;
    }
}

impl App {
    /// Whether requests by a key were signed once.
    async fn key_signs(&self, fingerprint: &str) -> Result<bool, StoreError> {
        let (is_known, forgotten) = self.signers.has(fingerprint);
        if is_known {
            return Ok(true);
        }
        let signs = self.store.key_signs(fingerprint).await?;
        if signs {
            self.signers.add(fingerprint, forgotten);
        }
        Ok(signs)
    }

    /// Whether a request that is held, and not signed, is worth nothing by now: its agent was let in meanwhile, and anybody can have sent it.
    pub(super) fn has_to_sign(&self, held: &Held, request: &TaskRequest) -> bool {
        let fingerprint = request.fingerprint.as_deref().filter(|_| self.has_door());
        !held.bot.is_let_in
            && held.agent_key.is_none()
            && fingerprint.is_some_and(|f| self.key(f).is_some())
    }

    /// Requests by a key are signed from now on.
    async fn remember_signing(&self, fingerprint: &str) -> Result<(), StoreError> {
        if !self.key_signs(fingerprint).await? {
            let (_, forgotten) = self.signers.has(fingerprint);
            self.store.remember_signing(fingerprint, self.now()).await?;
            self.signers.add(fingerprint, forgotten);
        }
        Ok(())
    }
}

fn unauthorized(why: impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, format!("unauthorized: {why}"))
}

fn wrong(wrong: &Wrong) -> Problem {
    unauthorized(wrong)
}

/// What an agent is told whose request was held when it was let in.
pub(super) fn must_sign() -> Problem {
    unauthorized("the agent was let in while this request waited, and it is not signed: ask again")
}

/// The agent's part in the key of the session, of a request for a task that its agent's key has signed. `None`: it is
/// not signed, and need not be. `is_named`: builds that wait name the key, which is then as good as one of the operator's. A key that is
/// only shown counts for what it may become: a person may let it in while the request is held.
pub(super) async fn of_task(
    app: &App,
    head: &Parts,
    text: &[u8],
    request: &TaskRequest,
    is_named: bool,
) -> Result<Option<PublicKey>, Problem> {
    let Some(fingerprint) = request.fingerprint.as_deref().filter(|_| app.has_door()) else {
        return Ok(None);
    };
    let known = app.key(fingerprint);
    let counts = known.is_some() || is_named;
    let shown = || {
        if !is_named && app.wants_keys() {
            // Nobody can let it in while the request is held.
            return None;
        }
        let pem = shown_key(&head.headers, fingerprint)?;
        let key = auth::public_key(&pem).ok()?;
        // Anybody can show one: what it costs to look at is bounded.
        auth::is_quick(&key).then_some(key)
    };
    let signed = match known.or_else(shown) {
        None => None,
        Some(key) => {
            let signed = Signed::read(Kind::Task, &head.headers);
            signed.map_err(|e| wrong(&e))?.map(|signed| (key, signed))
        }
    };
    let Some((key, signed)) = signed else {
        if counts && app.key_signs(fingerprint).await? {
            return Err(unauthorized(
                "requests by this key were signed before, and this one is not. If the key is another program's now, \
                 a person has to let it in anew: bbot agent approve",
            ));
        }
        return Ok(None);
    };
    if signed.key() != Some(fingerprint) {
        return Err(unauthorized(
            "the request is signed by another key than the one that it names",
        ));
    }
    signed.is_of(&body_digest(text)).map_err(|e| wrong(&e))?;
    let is_good = |base: &str| auth::verify_request(&key, base, signed.signature());
    verify(app, head, &signed, is_good)?;
    let session_key = head.headers.get(SESSION_KEY).and_then(|k| k.to_str().ok());
    let session_key = session_key.and_then(|text| PublicKey::parse(text).ok());
    let session_key = session_key.ok_or_else(|| {
        unauthorized("a signed request for a task has an X25519 public key in Bbot-Session-Key")
    })?;
    // Keys that are only shown are anybody's, and could fill what is remembered.
    if counts {
        let span = (seconds(app.now()), WINDOW);
        let nonce = signed.nonce();
        match app.nonces.comes(fingerprint, nonce, signed.created(), span) {
            Coming::First => {}
            Coming::Again => return Err(unauthorized("this request has come before")),
            Coming::Unknown => {
                return Err(Problem::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "too many signed requests have come: try again later",
                ));
            }
        }
        app.remember_signing(fingerprint).await?;
    }
    Ok(Some(session_key))
}

/// The signature of a request of a session that has a key; the body has still to be held against it. `None`: it has none, and
/// nothing needs to be signed.
pub(super) fn of_session(
    app: &App,
    head: &Parts,
    facts: &SessionFacts,
) -> Result<Option<Signed>, Problem> {
    let Some(key) = &facts.key else {
        return Ok(None);
    };
    let signed = Signed::read(Kind::Session, &head.headers).map_err(|e| wrong(&e))?;
    // It does not get better by being sent again.
    let signed = signed.ok_or_else(|| {
        Problem::new(
            StatusCode::FORBIDDEN,
            "the requests of this session are signed, and this one is not",
        )
    })?;
    verify(app, head, &signed, |base| {
        key.verify(base, signed.signature())
    })?;
    Ok(Some(signed))
}

/// Holds the body against what was signed, where that was.
pub(super) fn is_of(signed: Option<&Signed>, body: &BodyDigest) -> Result<(), Problem> {
    signed.map_or(Ok(()), |signed| signed.is_of(body).map_err(|e| wrong(&e)))
}

/// The same for a request that has come whole; the number that it has in its session, where it is signed.
pub(super) fn number(
    app: &App,
    head: &Parts,
    facts: &SessionFacts,
    body: &BodyDigest,
) -> Result<Option<i64>, Problem> {
    let Some(signed) = of_session(app, head, facts)? else {
        return Ok(None);
    };
    is_of(Some(&signed), body)?;
    let number = signed.nonce().parse().ok().filter(|number| *number > 0);
    let number = number.ok_or_else(|| {
        unauthorized("the nonce of a renewal is its number in the session, from 1 on")
    })?;
    if number <= facts.renewal {
        return Err(unauthorized(format!(
            "this renewal, or a later one, has come before: the last was number {}",
            facts.renewal
        )));
    }
    Ok(Some(number))
}

/// Whether a signature is good, and its time near ours.
fn verify(
    app: &App,
    head: &Parts,
    signed: &Signed,
    is_good: impl Fn(&str) -> bool,
) -> Result<(), Problem> {
    // First what costs nothing.
    is_timely(signed.created(), app.now())?;
    let external = app.addressed_from_outside(&head.headers);
    let authority = authority(head, external);
    let own = head.uri.path();
    // A proxy may leave out the part of the path that is the controller's by its external URL, and the slash that is left then is
    // not always one that was there.
    let outside = external.map(|external| format!("{}{own}", external.path()));
    let bare = external.map(External::path).filter(|_| own == "/");
    for path in [Some(own), outside.as_deref(), bare].into_iter().flatten() {
        let target = Target {
            method: head.method.as_str(),
            authority: &authority,
            path,
            query: head.uri.query(),
        };
        let base = signed.base(&target, &head.headers);
        if is_good(&base.map_err(|e| wrong(&e))?) {
            return Ok(());
        }
    }
    Err(unauthorized(
        "the signature is not one of this request by the key that it should be by",
    ))
}

/// The host that a request is addressed to, which is a name of ours (`guard`), as it is signed: without the port that its scheme has
/// anyway. `external`: it is addressed by that URL.
fn authority(head: &Parts, external: Option<&External>) -> String {
    let host = head.headers.get(header::HOST).and_then(|h| h.to_str().ok());
    let host = host.or_else(|| head.uri.authority().map(|a| a.as_str()));
    let host = host.unwrap_or_default().to_ascii_lowercase();
    let connection = || head.extensions.get::<Connection>().map(|c| c.scheme);
    let scheme = external.map(External::scheme).or_else(connection);
    let port = scheme.map(|scheme| format!(":{}", scheme.port()));
    match port.and_then(|port| host.strip_suffix(&port).map(str::to_owned)) {
        Some(without) => without,
        None => host,
    }
}

fn seconds(time: Millis) -> i64 {
    time.0.div_euclid(1000)
}

/// Whether the time of a signature is near ours.
fn is_timely(created: i64, now: Millis) -> Result<(), Problem> {
    let ahead = created.saturating_sub(seconds(now));
    if ahead.unsigned_abs() <= WINDOW.unsigned_abs() {
        return Ok(());
    }
    let side = if ahead < 0 { "behind" } else { "ahead of" };
    Err(unauthorized(format!(
        "the agent's clock is {} {side} this controller's: it says {}, and here it is {}. Set the one that is wrong",
        span(ahead.unsigned_abs()),
        time(created),
        time(seconds(now)),
    )))
}

/// A time in seconds since 1970, for people.
fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(
        |_| format!("{seconds} s after 1970"),
        |time| time.to_string(),
    )
}

/// A span of time in a few words.
fn span(seconds: u64) -> String {
    match seconds {
        0..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_are_apart_are_named() {
        let now = Millis(1_790_000_000_000);
        let at = |ahead: i64| is_timely(1_790_000_000_i64.saturating_add(ahead), now);
        for ahead in [0, 300, -300] {
            assert_eq!(at(ahead), Ok(()), "{ahead}");
        }
        for (ahead, expected) in [
            (
                -431,
                "unauthorized: the agent's clock is 7 min behind this controller's: it says 2026-09-21T14:06:09Z, \
                 and here it is 2026-09-21T14:13:20Z. Set the one that is wrong",
            ),
            (301, "5 min ahead of this controller's"),
            (36_000, "10 h ahead of"),
            (-1_790_000_000, "20717 days behind"),
            (i64::MAX, " days ahead of"),
            (i64::MIN, " days behind"),
        ] {
            let problem = at(ahead).unwrap_err();
            assert_eq!(problem.status, StatusCode::UNAUTHORIZED);
            assert!(problem.sentence.contains(expected), "{}", problem.sentence);
        }
    }
}
