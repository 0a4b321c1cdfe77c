//! Seeing and steering a living agent: what it tells ([`Status`]), what it can be
//! told ([`Command`]), and the UNIX socket between it and `bbot agent`.
//!
//! ```text
//!   driver -- watch<Arc<Status>> --> Server <== socket, one JSON per line ==> Client
//!   driver <------ Command --------- Server
//! ```
//!
//! The driver publishes a new [`Status`] when something changes, not by the clock;
//! the server fills in the time when it is asked.

mod client;
mod server;
mod socket;
mod types;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

pub use client::{Client, ClientError};
pub use server::{Bound, Server};
pub use socket::{Place, SocketError, default_socket, known_sockets};
pub use types::*;

/// What the agent is told over its socket; each is answered.
#[derive(Debug)]
pub enum Command {
    /// Takes no new tasks.
    Drain {
        /// What runs is interrupted after this time; absent: it may finish.
        within: Option<Duration>,
        /// The answer.
        reply: Answer<()>,
    },
    /// Takes tasks again.
    Resume {
        /// The answer; an error when the agent is ending.
        reply: Answer<()>,
    },
    /// Lets a suspended machine go on.
    SuspendedResume {
        /// Its id, or its machine's name where it is the only one.
        id: String,
        /// The answer.
        reply: Answer<()>,
    },
    /// Ends a suspended machine.
    SuspendedKill {
        /// Its id, or its machine's name where it is the only one.
        id: String,
        /// The answer.
        reply: Answer<()>,
    },
    /// Somebody wants to look at a suspended machine.
    Attach {
        /// Its id, or its machine's name where it is the only one.
        id: String,
        /// The answer.
        reply: Answer<Attachment>,
    },
}

/// Where a command's answer goes: what was asked for, or why not, in a sentence for
/// the person who asked.
pub type Answer<T> = oneshot::Sender<Result<T, String>>;

/// The suspended machine that a person means by its id, or by its machine's name
/// where there is one of that name only.
///
/// # Errors
///
/// A sentence for the person: there is none, or several.
pub fn find_suspended<'a>(all: &'a [Suspended], id: &str) -> Result<&'a Suspended, String> {
    if let Some(found) = all.iter().find(|suspended| suspended.id == id) {
        return Ok(found);
    }
    let mut named = all.iter().filter(|suspended| suspended.machine == id);
    match (named.next(), named.next()) {
        (Some(found), None) => Ok(found),
        (None, _) => Err(format!(
            "there is no suspended machine {id}: `bbot machine list --suspended` shows what there is"
        )),
        (Some(first), Some(second)) => Err(format!(
            "several machines {id} are suspended: name one by its id ({}, {}, ...)",
            first.id, second.id
        )),
    }
}

/// A request on the socket, one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "command")]
pub enum Request {
    /// [`Status`].
    Status,
    /// The metrics, as text for Prometheus.
    Metrics,
    /// [`Command::Drain`].
    Drain {
        /// Seconds; absent: as long as it takes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        within: Option<u64>,
    },
    /// Answered when a draining agent has nothing left that runs.
    Drained,
    /// [`Command::Resume`].
    Undrain,
    /// [`Command::SuspendedResume`].
    SuspendedResume {
        /// Which.
        id: String,
    },
    /// [`Command::SuspendedKill`].
    SuspendedKill {
        /// Which.
        id: String,
    },
    /// [`Command::Attach`].
    Attach {
        /// Which.
        id: String,
    },
}

/// The answer to a request, one line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Reply {
    /// To [`Request::Status`].
    Status {
        /// It.
        status: Box<Status>,
    },
    /// To [`Request::Metrics`].
    Metrics {
        /// It.
        text: String,
    },
    /// It is done.
    Done,
    /// To [`Request::Attach`].
    Attach {
        /// How to reach it.
        reach: Attachment,
    },
    /// It could not be done.
    Error {
        /// Why.
        message: String,
    },
}

/// The socket that an agent with these options has, if it is told nothing else.
pub fn socket_of(options: &crate::options::Options) -> PathBuf {
    match &options.status_socket {
        Some(path) => path.clone(),
        None => default_socket(
            options.state.as_deref(),
            &options.state_dir(),
            &options.toolchain_name,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_names_a_machine_or_an_id() {
        let suspended = |id: &str, machine: &str| Suspended {
            id: id.to_owned(),
            machine: machine.to_owned(),
            ..Suspended::default()
        };
        let all = [
            suspended("1", "a"),
            suspended("2", "b"),
            suspended("3", "b"),
        ];
        assert_eq!(find_suspended(&all, "2").unwrap().id, "2");
        assert_eq!(find_suspended(&all, "a").unwrap().id, "1");
        assert!(find_suspended(&all, "b").unwrap_err().contains("2, 3"));
        assert!(
            find_suspended(&all, "c")
                .unwrap_err()
                .contains("no suspended")
        );
    }

    #[test]
    fn requests_are_plain_json() {
        for (text, request) in [
            (r#"{"command":"status"}"#, Request::Status),
            (r#"{"command":"drain"}"#, Request::Drain { within: None }),
            (
                r#"{"command":"drain","within":5}"#,
                Request::Drain { within: Some(5) },
            ),
            (
                r#"{"command":"suspended-kill","id":"x"}"#,
                Request::SuspendedKill { id: "x".to_owned() },
            ),
        ] {
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
        }
    }
}
