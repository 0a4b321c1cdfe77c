//! What the two ends of a transfer have in common.

use std::io::{self, ErrorKind};
use std::path::Path;

use crate::packet::ErrorCode;

/// Where a state machine puts the packets that it sends.
pub trait Output {
    /// Sends one datagram to the peer; one that cannot be sent counts as lost.
    fn send(&mut self, packet: &[u8]);
}

impl<F: FnMut(&[u8])> Output for F {
    fn send(&mut self, packet: &[u8]) {
        self(packet);
    }
}

/// Why this end refuses to go on: what the peer is told, and what only we know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The code of the ERROR packet.
    pub code: ErrorCode,
    /// Its message; it names no path of this host.
    pub message: String,
    /// An error of this host's own with its paths, for this host's log.
    pub detail: Option<String>,
}

/// What follows an error of this host's own that may pass, in the message to the peer.
const TRY_LATER: &str = "this host is short of something, try later";

impl Refusal {
    /// A refusal whose cause the peer may know.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            detail: None,
        }
    }

    /// A refusal for an error of this host's own. What may pass (no room, no handles, no
    /// memory, a disk that fails) has the code of a busy server, [`ErrorCode::Undefined`]:
    /// the peer may try again. Rights and folders that are not there do not come by
    /// themselves: `for_good` says so to the peer.
    pub(crate) fn of_host(error: &io::Error, path: &Path, for_good: &str) -> Self {
        let mut refusal = match error.kind() {
            ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::NotFound
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory => Self::new(ErrorCode::AccessViolation, for_good),
            _ => Self::new(ErrorCode::Undefined, format!("{TRY_LATER} ({error})")),
        };
        refusal.detail = Some(format!("{}: {error}", path.display()));
        refusal
    }

    /// Adds the cause for this host's log.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

/// Why a transfer ended without success.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The peer fell silent.
    #[error("no answer from the peer, tried {tries} times")]
    TimedOut {
        /// How often the last packet was sent.
        tries: u32,
    },
    /// The peer sent an ERROR packet.
    #[error("the peer ended it with error {code}: {message}")]
    Peer {
        /// Its code.
        code: ErrorCode,
        /// Its message, made printable.
        message: String,
    },
    /// This end refused and told the peer so.
    #[error("refused with error {code}: {message}{}", detail.as_ref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Refused {
        /// The code sent.
        code: ErrorCode,
        /// The message sent.
        message: String,
        /// What the peer was not told.
        detail: Option<String>,
    },
    /// The peer's port is closed.
    #[error("the peer closed its port")]
    Closed,
    /// The peer began another transfer from the same port, or this one made room for others.
    #[error("given up for a newer transfer")]
    Superseded,
    /// The server was stopped.
    #[error("the server was stopped")]
    Stopped,
}

impl Failure {
    /// Whether an error of this host's own is the cause, and no fault of the peer's.
    #[must_use]
    pub fn is_of_host(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                detail: Some(_),
                ..
            }
        )
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let Refusal {
            code,
            message,
            detail,
        } = refusal;
        Self::Refused {
            code,
            message,
            detail,
        }
    }
}

/// How far a transfer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// There is more to come.
    Running,
    /// Every byte has arrived; a receiver's are committed.
    Complete,
    /// It ended without success.
    Failed(Failure),
}

/// Where received bytes go.
pub trait Sink {
    /// Takes the next bytes, in order.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] that the peer is told; the transfer is over.
    fn write(&mut self, data: &[u8]) -> Result<(), Refusal>;

    /// All bytes have come: makes them safe. The last ACK is sent only after this.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] that the peer is told instead of the last ACK.
    fn commit(&mut self) -> Result<(), Refusal>;
}

impl<S: Sink + ?Sized> Sink for Box<S> {
    fn write(&mut self, data: &[u8]) -> Result<(), Refusal> {
        (**self).write(data)
    }

    fn commit(&mut self) -> Result<(), Refusal> {
        (**self).commit()
    }
}

/// The low 16 bits of a block's number: numbers wrap from 65535 to 0.
pub(crate) fn wire_number(block: u64) -> u16 {
    u16::try_from(block & 0xffff).expect("masked to 16 bits")
}
