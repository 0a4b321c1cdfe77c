//! The key of a session: agreed on with the task, by two X25519 keys that serve once, and known to nobody who has only listened.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::agreement::{self, EphemeralPrivateKey, UnparsedPublicKey, X25519};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::hmac;
use ring::rand::SystemRandom;

/// How long a public key, and the key of a session, is.
const LENGTH: usize = 32;

/// What the keys of sessions are derived for.
const PURPOSE: &[u8] = b"bbot-session 1";

/// Which of the two ends this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It asks for the task.
    Agent,
    /// It hands the task out.
    Controller,
}

/// Why there is no agreement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AgreementError {
    /// The system has no randomness to give.
    #[error("the system has no random bytes to make a session's key of")]
    Random,
    /// What the other end has sent is no key, or one that agrees with everybody.
    #[error("the session key of the other end is not an X25519 public key in base64")]
    Other,
}

/// A key that serves for one session.
#[derive(Debug)]
pub struct Ephemeral {
    private: EphemeralPrivateKey,
    public: [u8; LENGTH],
}

impl Ephemeral {
    /// Makes one.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn new() -> Result<Self, AgreementError> {
        let private = EphemeralPrivateKey::generate(&X25519, &SystemRandom::new())
            .map_err(|_| AgreementError::Random)?;
        let public = private
            .compute_public_key()
            .map_err(|_| AgreementError::Random)?;
        let public = public.as_ref().try_into();
        Ok(Self {
            private,
            public: public.map_err(|_| AgreementError::Random)?,
        })
    }

    /// Its public half, as it is sent.
    #[must_use]
    pub fn public(&self) -> String {
        BASE64_STANDARD.encode(self.public)
    }

    /// Agrees with the other end by the public key that it has sent; `end` is this one.
    ///
    /// # Errors
    /// That is no key.
    pub fn agree(self, end: End, other: &PublicKey) -> Result<Agreement, AgreementError> {
        let theirs = UnparsedPublicKey::new(&X25519, other.0);
        let shared = agreement::agree_ephemeral(self.private, &theirs, |shared| {
            <[u8; LENGTH]>::try_from(shared)
        });
        let Ok(Ok(shared)) = shared else {
            return Err(AgreementError::Other);
        };
        let (agent, controller) = match end {
            End::Agent => (self.public, other.0),
            End::Controller => (other.0, self.public),
        };
        Ok(Agreement {
            shared,
            agent,
            controller,
        })
    }
}

/// The public half of another end's [`Ephemeral`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; LENGTH]);

impl PublicKey {
    /// Reads it as it was sent.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, AgreementError> {
        // What is longer than any key is not even decoded.
        let text = Some(text.trim()).filter(|text| text.len() <= 2 * LENGTH);
        text.and_then(|text| BASE64_STANDARD.decode(text).ok())
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or(AgreementError::Other)
    }

    /// Its one text form, which tells it from all others.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

/// What both ends have agreed on before the session has its name.
#[derive(Clone, PartialEq, Eq)]
pub struct Agreement {
    shared: [u8; LENGTH],
    agent: [u8; LENGTH],
    controller: [u8; LENGTH],
}

impl fmt::Debug for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agreement").finish_non_exhaustive()
    }
}

impl Agreement {
    /// The key of the session of this name: of this one, and of no other.
    #[must_use]
    pub fn key(&self, session: &str) -> SessionKey {
        // The name's length is what the rest leaves.
        let about = [session.as_bytes(), &self.agent, &self.controller];
        let mut key = [0; LENGTH];
        let derived = Salt::new(HKDF_SHA256, PURPOSE)
            .extract(&self.shared)
            .expand(&about, HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut key));
        // As long as the hash itself is what HKDF always gives.
        debug_assert!(derived.is_ok());
        SessionKey(key)
    }
}

/// The key of a session: what its requests are signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionKey([u8; LENGTH]);

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey")
    }
}

impl SessionKey {
    /// Reads the form of [`SessionKey::secret_text`]. `None`: it is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut key = [0; LENGTH];
        hex::decode_to_slice(text, &mut key).ok()?;
        Some(Self(key))
    }

    /// The key itself in hex, to be kept where nobody else reads it.
    #[must_use]
    pub fn secret_text(&self) -> String {
        hex::encode(self.0)
    }

    fn hmac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }

    /// The signature of a request of the session: `hmac-sha256`.
    #[must_use]
    pub fn sign(&self, base: &str) -> Vec<u8> {
        hmac::sign(&self.hmac(), base.as_bytes()).as_ref().to_vec()
    }

    /// Whether this is the signature of such a request, found out in a time that does not tell where it differs.
    #[must_use]
    pub fn verify(&self, base: &str, signature: &[u8]) -> bool {
        hmac::verify(&self.hmac(), base.as_bytes(), signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Ephemeral, Ephemeral) {
        (Ephemeral::new().unwrap(), Ephemeral::new().unwrap())
    }

    fn public(of: &Ephemeral) -> PublicKey {
        PublicKey::parse(&of.public()).unwrap()
    }

    #[test]
    fn both_ends_have_the_same_key_and_each_session_another() {
        let (a, c) = pair();
        let (to_a, to_c) = (public(&c), public(&a));
        let agent = a.agree(End::Agent, &to_a).unwrap();
        let controller = c.agree(End::Controller, &to_c).unwrap();
        assert_eq!(agent, controller);
        assert_eq!(agent.key("s1"), controller.key("s1"));
        assert_ne!(agent.key("s1"), agent.key("s2"));
        let (a, c) = pair();
        let to_c = public(&a);
        let other = c.agree(End::Controller, &to_c).unwrap();
        assert_ne!(agent.key("s1"), other.key("s1"));
    }

    #[test]
    fn who_is_which_end_counts() {
        let (a, c) = pair();
        let (to_a, to_c) = (public(&c), public(&a));
        let agent = a.agree(End::Agent, &to_a).unwrap();
        let confused = c.agree(End::Agent, &to_c).unwrap();
        assert_ne!(agent.key("s"), confused.key("s"));
    }

    #[test]
    fn keys_that_are_none() {
        for wrong in ["", "AAAA", "?", &"A".repeat(44), &"A".repeat(1 << 20)] {
            assert!(PublicKey::parse(wrong).is_err(), "{wrong:.20}");
        }
        // The identity agrees with everybody on the same.
        let everybody = PublicKey::parse(&BASE64_STANDARD.encode([0; LENGTH])).unwrap();
        let agreed = Ephemeral::new().unwrap().agree(End::Agent, &everybody);
        assert_eq!(agreed, Err(AgreementError::Other));
    }

    #[test]
    fn a_key_is_kept_as_text_and_shown_nowhere() {
        let (a, c) = pair();
        let to_a = public(&c);
        let key = a.agree(End::Agent, &to_a).unwrap().key("s");
        assert_eq!(SessionKey::parse(&key.secret_text()), Some(key.clone()));
        assert!(!format!("{key:?}").contains(&key.secret_text()[..8]));
        for wrong in ["", "00", &"0".repeat(66), &"g".repeat(64)] {
            assert_eq!(SessionKey::parse(wrong), None);
        }
    }

    #[test]
    fn a_signature_is_of_one_text_by_one_key() {
        let (key, other) = (SessionKey([1; LENGTH]), SessionKey([2; LENGTH]));
        let signature = key.sign("text");
        assert!(key.verify("text", &signature));
        assert!(!key.verify("text.", &signature));
        assert!(!other.verify("text", &signature));
        assert!(!key.verify("text", &signature[..31]));
        assert!(!key.verify("text", b""));
    }
}
