//! Which agents get tasks: those that are let in, and whom nobody has drained.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine as _;
use bbot_manifest::TaskRequest;
use rsa::RsaPublicKey;
use rsa::pkcs8::{Document, LineEnding};
use sha2::{Digest as _, Sha256};

use super::App;
use super::problem::{Problem, one_line};
use super::reach::Bot;
use crate::auth::Known;
use crate::pending::Pending;
use crate::queue::admission::{self, Admission, Door, Shown};
use crate::queue::wait::Hold;
use crate::roll::Says;
use crate::store::{News, StoreError};

impl App {
    /// What an agent of ours says of itself: that a person has drained it there, and what time it is.
    pub(super) fn says(&self, headers: &HeaderMap) -> Says {
        let date = headers.get(header::DATE).and_then(|v| v.to_str().ok());
        let date = date.and_then(|text| httpdate::parse_http_date(text).ok());
        let seconds = |t: SystemTime| t.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs());
        let theirs = date.and_then(seconds).and_then(|s| i64::try_from(s).ok());
        Says {
            drained: headers.contains_key("bbot-drained"),
            ahead: theirs.map(|theirs| theirs.saturating_sub(self.now().0.div_euclid(1000))),
        }
    }

    fn door(&self) -> Door {
        match (self.config.approve_agents, &self.keys) {
            (true, _) => Door::Approval,
            (false, Some(_)) => Door::Keys,
            (false, None) => Door::Open,
        }
    }

    /// Whether agents have to prove who they are.
    pub(super) fn has_door(&self) -> bool {
        self.door() != Door::Open
    }

    /// Whether an agent without a key is turned away or waits, whatever its name.
    pub(super) fn wants_keys(&self) -> bool {
        self.door() == Door::Keys
    }

    /// Has the files of keys looked at, if that was not done just now: before whatever asks for a [`Self::key`].
    pub(super) async fn look_at_keys(&self) {
        if let Some(keys) = &self.keys {
            keys.refresh(self.steady()).await;
        }
    }

    fn known(&self, fingerprint: &str) -> Known {
        let of_file = self.keys.as_ref().map(|keys| keys.known(fingerprint));
        let of_file = of_file.unwrap_or(Known::None);
        match self.crew.said().key(fingerprint) {
            Some(added) if !matches!(of_file, Known::Key(_)) => Known::Key(Box::new(added.clone())),
            _ => of_file,
        }
    }

    /// The key of this fingerprint: of a file, or one that was added.
    pub(super) fn key(&self, fingerprint: &str) -> Option<RsaPublicKey> {
        match self.known(fingerprint) {
            Known::Key(key) => Some(*key),
            Known::None | Known::Unsure => None,
        }
    }

    /// The same for what is refused for good without it: where keys cannot be read now, whoever asks is to come again.
    pub(super) fn sure_key(&self, fingerprint: &str) -> Result<Option<RsaPublicKey>, Problem> {
        match self.known(fingerprint) {
            Known::Key(key) => Ok(Some(*key)),
            Known::None => Ok(None),
            Known::Unsure => Err(Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "the controller cannot read all of its --agent-keys now; its log says why. Try again later",
            )),
        }
    }

    /// `is_named`: a build that waits names its key.
    fn admission(&self, agent: &str, fingerprint: Option<&str>, is_named: bool) -> Admission {
        let door = self.door();
        if door == Door::Open {
            return Admission::In;
        }
        let shown = match fingerprint {
            Some(fingerprint) if self.key(fingerprint).is_some() => Shown::KnownKey,
            Some(_) if is_named => Shown::NamedKey,
            Some(_) => Shown::UnknownKey,
            None if self.crew.said().is_approved(agent) => Shown::ApprovedName,
            None => Shown::Nothing,
        };
        admission::admission(door, shown)
    }

    /// Why an agent gets no tasks for now, though it may ask: as what it was let in.
    pub(super) fn hold(&self, request: &TaskRequest, bot: &Bot, says: Says) -> Option<Hold> {
        if says.drained || self.crew.said().is_drained(&request.agent) {
            return Some(Hold::Drained);
        }
        let fingerprint = request.fingerprint.as_deref();
        let admission = self.admission(&request.agent, fingerprint, bot.named.is_some());
        let is_in = matches!(admission, Admission::In | Admission::Custom);
        (!is_in).then_some(Hold::Unapproved)
    }

    /// Turns an agent away that may not even ask; one that has to be let in is remembered. `named`: its fingerprint, where builds that wait
    /// name it.
    pub(super) fn admit(
        &self,
        request: &TaskRequest,
        headers: &HeaderMap,
        address: Option<IpAddr>,
        named: Option<String>,
    ) -> Result<Bot, Problem> {
        let fingerprint = request.fingerprint.as_deref();
        let admission = self.admission(&request.agent, fingerprint, named.is_some());
        if matches!(admission, Admission::Out | Admission::Pending)
            && let Some(fingerprint) = fingerprint
        {
            self.sure_key(fingerprint)?;
        }
        match admission {
            Admission::In | Admission::Custom => Ok(Bot::of(admission, named)),
            Admission::Out => Err(Problem::new(
                StatusCode::UNAUTHORIZED,
                match fingerprint {
                    None => "unauthorized: this controller wants agents with a key (--auth-key)",
                    Some(_) => {
                        "unauthorized: the fingerprint is not that of a key in the controller's --agent-keys, \
                         or that was added to it, nor of one that the package of a waiting build names"
                    }
                },
            )),
            Admission::Pending => {
                let is_new = self.pending.asks(Pending {
                    agent: request.agent.clone(),
                    fingerprint: request.fingerprint.clone(),
                    key: fingerprint.and_then(|f| shown_key(headers, f)),
                    address,
                    machines: request.machines.iter().map(|m| m.name.clone()).collect(),
                    seen: self.now(),
                });
                if is_new {
                    tracing::warn!(
                        agent = one_line(&request.agent),
                        fingerprint,
                        peer = address.map(tracing::field::display),
                        "agent {} is not known and waits to be let in: bbot agent approve",
                        one_line(&request.agent)
                    );
                }
                Ok(Bot::of(admission, named))
            }
        }
    }

    /// Reads anew what was said about agents; those who wait for a task look again.
    pub(crate) async fn hear_said(&self) -> Result<(), StoreError> {
        self.crew.read(&self.store).await?;
        self.signers.forget();
        self.desk().waiters.wake_all();
        Ok(())
    }

    /// Something was said about agents, and kept.
    pub(super) async fn said(&self) -> Result<(), StoreError> {
        self.store.tell(&News::Agents);
        self.hear_said().await
    }
}

/// The key that an agent shows (`Bbot-Key`), in PEM form, if it is the one of its fingerprint.
pub(super) fn shown_key(headers: &HeaderMap, fingerprint: &str) -> Option<String> {
    let shown = headers.get("bbot-key")?.as_bytes();
    let der = base64::engine::general_purpose::STANDARD
        .decode(shown)
        .ok()?;
    if hex::encode(Sha256::digest(&der)) != fingerprint {
        return None;
    }
    let document = Document::try_from(der).ok()?;
    let pem = document.to_pem("PUBLIC KEY", LineEnding::LF).ok()?;
    crate::auth::public_key(&pem).ok()?;
    Some(pem)
}
