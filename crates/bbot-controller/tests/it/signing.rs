//! Requests that are signed, as agents of ours send them; the agent's key is `openssl`'s.

use std::path::{Path, PathBuf};

use bbot_controller::clock::Clock as _;
use bbot_signature::{
    Draft, End, Ephemeral, Kind, PublicKey, SESSION_KEY, SessionKey, Target, body_digest,
};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use crate::challenge::{answered, key, openssl};
use crate::support::{Answer, Controller, curl, field, request};

/// A request: it may be sent more than once, and elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) method: &'static str,
    /// With the query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Sent {
    /// One of an agent of ours, not signed yet.
    pub(crate) fn new(method: &'static str, path: &str, body: impl Into<Vec<u8>>) -> Self {
        let sent = Self {
            method,
            path: path.to_owned(),
            headers: HeaderMap::new(),
            body: body.into(),
        };
        sent.with("bbot-agent", "1")
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        let value = HeaderValue::from_str(value).unwrap();
        self.headers.insert(HeaderName::from_static(name), value);
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    /// Signed, as addressed to this host.
    fn signed(
        mut self,
        kind: Kind,
        authority: &str,
        about: (i64, &str, Option<&str>),
        sign: impl FnOnce(&str) -> Vec<u8>,
    ) -> Self {
        let (path, query) = match self.path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.path.as_str(), None),
        };
        let target = Target {
            method: self.method,
            authority,
            path,
            query,
        };
        let digest = body_digest(&self.body);
        let draft = Draft::new(kind, &target, &mut self.headers, &digest, about).unwrap();
        let signature = sign(draft.base());
        draft.sign(&signature, &mut self.headers).unwrap();
        self
    }

    /// Signed by the key of a session at this time, in seconds.
    pub(crate) fn by_session(
        self,
        to: &Controller,
        key: &SessionKey,
        nonce: &str,
        now: i64,
    ) -> Self {
        let authority = to.address.to_string();
        let about = (now, nonce, None);
        self.signed(Kind::Session, &authority, about, |base| key.sign(base))
    }

    pub(crate) fn send(&self, to: &Controller) -> Answer {
        self.send_to(&to.url(&self.path))
    }

    pub(crate) fn send_to(&self, url: &str) -> Answer {
        let mut words = vec!["-X".to_owned(), self.method.to_owned()];
        if self.method == "HEAD" {
            words = vec!["--head".to_owned()];
        } else {
            words.extend(["--data-binary".to_owned(), "@-".to_owned()]);
        }
        for (name, value) in &self.headers {
            let value = value.to_str().unwrap();
            words.extend(["-H".to_owned(), format!("{name}: {value}")]);
        }
        words.push(url.to_owned());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        curl(&words, &self.body)
    }
}

/// An agent with a key.
#[derive(Debug)]
pub(crate) struct Agent {
    private: PathBuf,
    pub(crate) fingerprint: String,
    /// Its public key, DER in base64.
    pub(crate) public: String,
    pub(crate) pem: String,
}

impl Agent {
    /// Makes its key; the public half goes to `keys`.
    pub(crate) fn new(dir: &Path, keys: &Path, name: &str) -> Self {
        let (private, fingerprint) = key(dir, keys, name, "2048");
        let pem = std::fs::read_to_string(keys.join(format!("{name}.pem"))).unwrap();
        Self {
            private,
            fingerprint,
            public: pem.lines().filter(|l| !l.starts_with('-')).collect(),
            pem,
        }
    }

    fn openssl(&self, words: &[&str], input: &[u8]) -> Vec<u8> {
        let words = [words, &[self.private.to_str().unwrap()]].concat();
        openssl(&words, input).unwrap()
    }

    /// The text of its request for a task.
    pub(crate) fn text(&self) -> String {
        let fingerprint = format!("\nfingerprint: {}\n:\n", self.fingerprint);
        request("0.17.0").replacen("\n:\n", &fingerprint, 1)
    }

    /// Its request for a task, not signed.
    pub(crate) fn unsigned(&self) -> Sent {
        Sent::new("POST", "/?build-task", self.text())
    }

    /// Signs a request by its key.
    pub(crate) fn sign(&self, sent: Sent, authority: &str, nonce: &str, now: i64) -> Sent {
        let about = (now, nonce, Some(self.fingerprint.as_str()));
        sent.signed(Kind::Task, authority, about, |base| {
            self.openssl(&["dgst", "-sha256", "-sign"], base.as_bytes())
        })
    }

    /// Its request for a task, signed, and its part in the key of the session.
    pub(crate) fn asks(&self, to: &Controller, nonce: &str) -> (Sent, Ephemeral) {
        self.asks_at(&to.address.to_string(), nonce, now(to))
    }

    pub(crate) fn asks_at(&self, authority: &str, nonce: &str, now: i64) -> (Sent, Ephemeral) {
        let own = Ephemeral::new().unwrap();
        let sent = self
            .unsigned()
            .with(SESSION_KEY, &own.public())
            .with("bbot-key", &self.public);
        (self.sign(sent, authority, nonce, now), own)
    }

    /// A task that it gets.
    pub(crate) fn takes(&self, to: &Controller, nonce: &str) -> Task {
        let (sent, own) = self.asks(to, nonce);
        Task::of(&sent.send(to), own)
    }

    /// Its result for a task, with the answer to the challenge; not signed.
    pub(crate) fn result(&self, task: &Task) -> Sent {
        let signature = self.openssl(&["pkeyutl", "-sign", "-inkey"], task.challenge.as_bytes());
        Sent::new(
            "POST",
            "/?build-result",
            answered(&task.session, &signature),
        )
    }
}

/// The time of a controller, in seconds.
pub(crate) fn now(of: &Controller) -> i64 {
    of.clock.now().0 / 1000
}

/// A task that was handed out for a signed request.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) session: String,
    pub(crate) challenge: String,
    /// The path of the session's URL.
    pub(crate) path: String,
    pub(crate) key: SessionKey,
}

impl Task {
    pub(crate) fn of(answer: &Answer, own: Ephemeral) -> Self {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let session = field(&answer.text(), "session");
        assert!(!session.is_empty(), "there is a task");
        let theirs = PublicKey::parse(answer.header(SESSION_KEY).unwrap()).unwrap();
        let url = answer.header("bbot-session-url").unwrap();
        Self {
            path: format!("/sessions/{}", url.rsplit('/').next().unwrap()),
            challenge: field(&answer.text(), "challenge"),
            key: own.agree(End::Agent, &theirs).unwrap().key(&session),
            session,
        }
    }

    /// A request of its session, not signed.
    pub(crate) fn post(&self, below: &str, body: &str) -> Sent {
        Sent::new("POST", &format!("{}/{below}", self.path), body)
    }

    /// The renewal of this number.
    pub(crate) fn renewal(&self, to: &Controller, number: u32) -> Sent {
        let nonce = number.to_string();
        self.post("lease", "")
            .by_session(to, &self.key, &nonce, now(to))
    }
}
