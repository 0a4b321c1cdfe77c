//! Reading a controller's answer: a task for us, nothing, or something that must
//! not be done.

use std::time::Duration;

use bbot_manifest::{Era, Task, TaskResponse};
use bbot_signature::SessionKey;

use crate::auth::Challenge;
use crate::controller::{self, Channel, Kin, TaskAnswer, Url};
use crate::session;

/// A task that the agent may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Names the build to its controller.
    pub session: String,
    /// What must be signed.
    pub challenge: Option<Challenge>,
    /// Where the result goes; none for `--fake-request`.
    pub result_url: Option<Url>,
    /// Of the build before, as the controller has it.
    pub agent_checksum: Option<String>,
    /// The task.
    pub task: Task,
    /// In which era's words it came.
    pub era: Era,
    /// Whose controller gave it.
    pub kin: Kin,
    /// Where its lease is renewed and its log goes, at a controller of ours.
    pub session_url: Option<Url>,
    /// What all requests of its session are signed with, where they are.
    pub key: Option<SessionKey>,
    /// When to renew the lease, after the first time at once.
    pub renew: Option<Duration>,
}

impl Assignment {
    /// What makes its session ([`crate::delivery::Handle::session`]), at a controller that
    /// knows of sessions.
    pub fn session_terms(&self) -> Option<session::Terms> {
        let task = &self.task;
        Some(session::Terms {
            channel: Channel {
                url: self.session_url.clone()?,
                key: self.key.clone(),
            },
            renew: self.renew,
            name: format!("{}/{} on {}", task.name, task.version, task.machine),
        })
    }
}

/// A session of `--fake-request`.
pub const FAKE_SESSION: &str = "fake-session";

/// Why an answer is not acted on. The agent asks the next controller.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It cannot be read.
    #[error(transparent)]
    Malformed(#[from] bbot_manifest::ManifestError),
    /// There is a challenge, but no key.
    #[error("unexpected challenge: {0}; give --auth-key")]
    UnexpectedChallenge(String),
    /// The challenge is none.
    #[error("invalid challenge: {0}")]
    InvalidChallenge(String),
    /// The result's URL is none.
    #[error("invalid result-url: {0}")]
    ResultUrl(#[from] controller::LinkError),
    /// The result's URL is somebody else's.
    #[error(
        "result-url {0} has another origin than the controller; if that is right, give --allow-result-url"
    )]
    ForeignResultUrl(Url),
}

/// What the agent knows when it reads an answer.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// Whether there is a key to sign with.
    pub has_key: bool,
    /// URLs that results may be posted to besides those of their controllers.
    pub allowed_result_urls: &'a [Url],
}

/// Reads a controller's answer, and what its headers say of the session.
///
/// # Errors
///
/// [`Refusal`].
pub fn of_answer(
    answer: &TaskAnswer,
    controller: &Url,
    terms: Terms<'_>,
) -> Result<Option<Assignment>, Refusal> {
    let assignment = read(&answer.body, controller, terms)?;
    Ok(assignment.map(|assignment| Assignment {
        kin: answer.kin,
        session_url: session::url_of(answer.session_url.as_deref(), controller),
        key: answer
            .agreement
            .as_ref()
            .map(|agreement| agreement.key(&assignment.session)),
        renew: answer.renew,
        ..assignment
    }))
}

/// Reads the answer `body` of a controller. None: it has no task.
///
/// # Errors
///
/// [`Refusal`].
pub fn read(
    body: &[u8],
    controller: &Url,
    terms: Terms<'_>,
) -> Result<Option<Assignment>, Refusal> {
    let response = TaskResponse::parse(body, controller.as_str())?;
    if let (Some(challenge), false) = (&response.challenge, terms.has_key) {
        return Err(Refusal::UnexpectedChallenge(challenge.clone()));
    }
    // The parser has seen to it that a session brings both of these.
    let (Some(task), Some(result_url)) = (response.task, response.result_url) else {
        return Ok(None);
    };
    let challenge = response
        .challenge
        .map(|text| Challenge::new(&text).ok_or(Refusal::InvalidChallenge(text)))
        .transpose()?;
    let result_url = controller::parse_url(&result_url)?;
    if !controller::may_post(&result_url, controller, terms.allowed_result_urls) {
        return Err(Refusal::ForeignResultUrl(result_url));
    }
    Ok(Some(Assignment {
        session: response.session,
        challenge,
        result_url: Some(result_url),
        agent_checksum: response.agent_checksum,
        task,
        era: era_of(body),
        kin: Kin::Stranger,
        session_url: None,
        key: None,
        renew: None,
    }))
}

/// The task of `--fake-request`.
///
/// # Errors
///
/// When it cannot be read.
pub fn fake(body: &[u8], source: &str) -> Result<Assignment, Refusal> {
    Ok(Assignment {
        session: FAKE_SESSION.to_owned(),
        challenge: None,
        result_url: None,
        agent_checksum: None,
        task: Task::parse(body, source)?,
        era: era_of(body),
        kin: Kin::Stranger,
        session_url: None,
        key: None,
        renew: None,
    })
}

/// The fields that a task response and its task had in 2017.
const FIELDS_2017: [&str; 11] = [
    "session",
    "challenge",
    "result-url",
    "name",
    "version",
    "repository",
    "trust",
    "machine",
    "target",
    "config",
    "warning-regex",
];

/// In which era's words a task came, and so in which its worker is told: a field
/// that 2017 does not know says "later".
fn era_of(body: &[u8]) -> Era {
    let manifests = bbot_manifest::parse(body).unwrap_or_default();
    let later = manifests
        .iter()
        .flat_map(|manifest| &manifest.pairs)
        .any(|pair| !FIELDS_2017.contains(&pair.name.as_str()));
    if later { Era::Later } else { Era::Y2017 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::{parse_url, task_url};

    const CHALLENGE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    const TASK: &str = ":\nname: libfoo\nversion: 1.2\nrepository: http://r/1\nmachine: linux\ntarget: x86_64-linux-gnu\n";

    fn controller() -> Url {
        task_url("http://c.example").unwrap()
    }

    fn read_with(
        body: &str,
        has_key: bool,
        allowed: &[Url],
    ) -> Result<Option<Assignment>, Refusal> {
        super::read(
            body.as_bytes(),
            &controller(),
            Terms {
                has_key,
                allowed_result_urls: allowed,
            },
        )
    }

    fn read(body: &str) -> Result<Option<Assignment>, Refusal> {
        read_with(body, false, &[])
    }

    #[test]
    fn no_session_is_no_task() {
        assert_eq!(read(": 1\nsession:\n").unwrap(), None);
    }

    #[test]
    fn a_task_of_either_era() {
        let body = format!(": 1\nsession: s\nresult-url: http://c.example/?build-result\n{TASK}");
        let got = read(&body).unwrap().unwrap();
        assert_eq!((got.session.as_str(), got.era), ("s", Era::Y2017));
        assert_eq!(
            got.result_url.unwrap().as_str(),
            "http://c.example/?build-result"
        );
        assert_eq!(got.task.repository_url, "http://r/1");

        let later = body.replace("repository:", "repository-url:");
        assert_eq!(read(&later).unwrap().unwrap().era, Era::Later);
        let later = format!("{body}host: true\n");
        assert_eq!(read(&later).unwrap().unwrap().era, Era::Later);
    }

    #[test]
    fn a_challenge_needs_a_key() {
        let body = format!(
            ": 1\nsession: s\nchallenge: {CHALLENGE}\nresult-url: http://c.example/?build-result\n{TASK}"
        );
        assert!(matches!(read(&body), Err(Refusal::UnexpectedChallenge(c)) if c == CHALLENGE));
        let got = read_with(&body, true, &[]).unwrap().unwrap();
        assert_eq!(got.challenge.unwrap().to_string(), CHALLENGE);
    }

    #[test]
    fn nothing_but_a_challenge_is_signed() {
        for wrong in [
            CHALLENGE.to_uppercase(),
            CHALLENGE[1..].to_owned(),
            format!("{CHALLENGE}0"),
            "x".repeat(64),
        ] {
            let body = format!(
                ": 1\nsession: s\nchallenge: {wrong}\nresult-url: http://c.example/?build-result\n{TASK}"
            );
            assert!(read_with(&body, true, &[]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_result_goes_to_nobody_else() {
        let body =
            format!(": 1\nsession: s\nresult-url: http://other.example/?build-result\n{TASK}");
        let error = read(&body).unwrap_err();
        assert!(matches!(error, Refusal::ForeignResultUrl(_)), "{error}");
        assert!(error.to_string().contains("--allow-result-url"));
        let allowed = [parse_url("http://other.example/").unwrap()];
        assert!(read_with(&body, false, &allowed).unwrap().is_some());
        let body = body.replace("http://other.example/?build-result", "/?build-result");
        assert!(matches!(read(&body), Err(Refusal::ResultUrl(_))));
    }

    #[test]
    fn malformed_answers_are_named_with_their_place() {
        for body in [
            "",
            "<html>",
            ": 2\n",
            ": 1\nsession: s\n",
            ": 1\nsession: s\nresult-url: http://c.example/\n",
            "\u{0}",
        ] {
            let error = read(body).unwrap_err().to_string();
            assert!(
                error.starts_with("http://c.example/?build-task:"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_fake_request_has_nowhere_to_go() {
        let got = fake(format!(": 1\n{}", &TASK[2..]).as_bytes(), "file").unwrap();
        assert_eq!(
            (got.session.as_str(), got.result_url, got.era),
            (FAKE_SESSION, None, Era::Y2017)
        );
        assert!(
            fake(b": 1\nname: x\n", "file")
                .unwrap_err()
                .to_string()
                .starts_with("file:")
        );
    }
}
