//! The other end of the agent's socket, for `bbot`. It blocks: a person waits.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::socket::Place;
use super::{Attachment, Reply, Request, Status};

/// How long an agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(40);

/// The longest answer.
const ANSWER: u64 = 64 << 20;

/// Why an agent has not done what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody is there.
    #[error("no agent answers at {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or it took too long.
    #[error("the agent at {path} has not answered")]
    Talk {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is an agent of another version, or none.
    #[error("what answers at {path} is not understood: is it an agent of another version?")]
    Unreadable {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// It answered something else.
    #[error("what answers at {path} answers another question")]
    Other {
        /// The socket.
        path: PathBuf,
    },
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// A connection to an agent.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    ///
    /// [`ClientError::Connect`].
    pub fn connect(place: &Place) -> Result<Self, ClientError> {
        let path = place.0.clone();
        let connected = place.connect().and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => Ok(Self {
                path,
                stream: BufReader::new(stream),
            }),
            Err(source) => Err(ClientError::Connect { path, source }),
        }
    }

    /// The agent's status.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.ask(&Request::Status)? {
            Reply::Status { status } => Ok(*status),
            _ => Err(self.other()),
        }
    }

    /// How to reach a suspended machine.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn attach(&mut self, id: &str) -> Result<Attachment, ClientError> {
        let request = Request::Attach { id: id.to_owned() };
        match self.ask(&request)? {
            Reply::Attach { reach } => Ok(reach),
            _ => Err(self.other()),
        }
    }

    /// A request whose answer is that it is done.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn tell(&mut self, request: &Request) -> Result<(), ClientError> {
        match self.ask(request)? {
            Reply::Done => Ok(()),
            _ => Err(self.other()),
        }
    }

    /// Waits until a draining agent has nothing left that runs, or has ended: as long
    /// as it takes.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; when the agent takes tasks again meanwhile.
    pub fn wait_drained(&mut self) -> Result<(), ClientError> {
        if let Err(source) = self.stream.get_ref().set_read_timeout(None) {
            return Err(self.talk(source));
        }
        match self.tell(&Request::Drained) {
            // It has ended: nothing runs.
            Err(ClientError::Talk { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::UnexpectedEof
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::BrokenPipe
                ) =>
            {
                Ok(())
            }
            told => told,
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let mut line = match serde_json::to_vec(request) {
            Ok(line) => line,
            Err(source) => return Err(self.unreadable(source)),
        };
        line.push(b'\n');
        let sent = self.stream.get_mut().write_all(&line);
        sent.map_err(|e| self.talk(e))?;
        let mut text = Vec::new();
        let read = (&mut self.stream).take(ANSWER).read_until(b'\n', &mut text);
        match read {
            Ok(0) => return Err(self.talk(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(e) => return Err(self.talk(e)),
        }
        match serde_json::from_slice(&text) {
            Ok(Reply::Error { message }) => Err(ClientError::Refused(message)),
            Ok(reply) => Ok(reply),
            Err(source) => Err(self.unreadable(source)),
        }
    }

    fn talk(&self, source: io::Error) -> ClientError {
        ClientError::Talk {
            path: self.path.clone(),
            source,
        }
    }

    fn unreadable(&self, source: serde_json::Error) -> ClientError {
        ClientError::Unreadable {
            path: self.path.clone(),
            source,
        }
    }

    fn other(&self) -> ClientError {
        ClientError::Other {
            path: self.path.clone(),
        }
    }
}
