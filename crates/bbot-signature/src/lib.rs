//! How agents and controllers of the build bot sign their requests to each other.
//!
//! ```text
//!   request for a task     rsa-v1_5-sha256 by the agent's key     tag "bbot-task"
//!       both ends put the public half of a key that serves once beside it, and agree on the session's key
//!   all else in a session  hmac-sha256 by the session's key       tag "bbot-session"
//! ```
//!
//! The form is that of HTTP Message Signatures (RFC 9421): `Signature-Input` says what is covered, `Signature` is over
//! the signature base of it ([`message`]). Covered are the method, the host, the path, the query, the body by its
//! `Content-Digest` (RFC 9530), and every header whose name begins with `bbot-`: a header that is added later
//! is covered by itself. Here is what both ends share; keys of agents, clocks and answers are theirs.

pub mod fields;
pub mod message;
pub mod session;

pub use fields::{Draft, Signed};
pub use message::{Input, Target, Wrong};
pub use session::{Agreement, AgreementError, End, Ephemeral, PublicKey, SessionKey};

use sha2::{Digest as _, Sha256};

/// The header with the public half of a key that serves for one session: of the agent with its request for a task, of the
/// controller with the task.
pub const SESSION_KEY: &str = "bbot-session-key";

/// The SHA-256 of a body.
pub type BodyDigest = [u8; 32];

/// What comes before the hash in what RSA signs: the hash is a SHA-256 (RFC 8017, section 9.2).
const DIGEST_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];

/// How a request is signed, and by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request for a task, by the agent's RSA key.
    Task,
    /// A request of a session, by the session's key.
    Session,
}

impl Kind {
    /// The signature's parameter `tag`: no signature of one kind is ever one of the other.
    #[must_use]
    pub const fn tag(self) -> &'static str {
        match self {
            Self::Task => "bbot-task",
            Self::Session => "bbot-session",
        }
    }

    /// The name of its algorithm, which it is verified by whatever the request says.
    #[must_use]
    pub const fn algorithm(self) -> &'static str {
        match self {
            Self::Task => "rsa-v1_5-sha256",
            Self::Session => "hmac-sha256",
        }
    }
}

/// What the agent's key signs of a signature base, padded as PKCS#1 v1.5 block type 1 has it: 51 bytes, and so never a
/// challenge, which has 64.
#[must_use]
pub fn digest_info(base: &str) -> [u8; 51] {
    let mut info = [0; 51];
    let (prefix, hash) = info.split_at_mut(DIGEST_INFO.len());
    prefix.copy_from_slice(&DIGEST_INFO);
    hash.copy_from_slice(&Sha256::digest(base.as_bytes()));
    info
}

/// The SHA-256 of a body that is there as a whole.
#[must_use]
pub fn body_digest(body: &[u8]) -> BodyDigest {
    Sha256::digest(body).into()
}
