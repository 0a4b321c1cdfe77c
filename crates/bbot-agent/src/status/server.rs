//! The agent's end of its socket. Everything is bounded: who may connect, how many,
//! how long a request is, how long a peer may take.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::socket::{Claim, Place, SocketError};
use super::{Answer, Attachment, Command, Mode, Moment, Reply, Request, Status, Trouble};
use crate::{diagnostics, metrics};

/// The longest request: an id and a few words.
const REQUEST: u64 = 4096;

/// How many may be connected at once.
const CONNECTIONS: usize = 16;

/// How long a peer may take to send its next request, or to take an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the agent may take for a command. It answers at once; what takes longer
/// is broken.
const COMMAND: Duration = Duration::from_secs(30);

/// A socket that has been made and is not served yet.
#[derive(Debug)]
pub struct Bound {
    listener: UnixListener,
    claim: Claim,
}

impl Bound {
    /// Makes the socket. Call it within the runtime.
    ///
    /// # Errors
    ///
    /// [`SocketError`].
    pub fn new(place: &Place) -> Result<Self, SocketError> {
        let (listener, claim) = place.listen()?;
        let make = |source| SocketError::Make {
            path: place.0.clone(),
            source,
        };
        listener.set_nonblocking(true).map_err(make)?;
        let listener = UnixListener::from_std(listener).map_err(make)?;
        Ok(Self { listener, claim })
    }
}

/// What the server needs of the driver.
#[derive(Debug, Clone)]
pub struct Server {
    /// What it tells.
    pub status: watch::Receiver<Arc<Status>>,
    /// Where commands go.
    pub commands: mpsc::Sender<Command>,
    /// When the agent was started: the zero of every [`Moment`].
    pub start: Instant,
}

impl Server {
    /// Answers until it is dropped; the socket's file goes with it. To be spawned, or
    /// polled beside the driver.
    pub async fn serve(self, bound: Bound) {
        let Bound { listener, claim } = bound;
        let _claim = claim;
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        // Connections end with the server.
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok((stream, _)) => {
                    if !may_talk(&stream) {
                        continue;
                    }
                    let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                        connections.spawn(refuse(stream, "too many connections"));
                        continue;
                    };
                    let server = self.clone();
                    connections.spawn(async move {
                        let _permit = permit;
                        // A peer that goes away or says nothing is its own business.
                        if let Err(e) = server.talk(stream).await {
                            tracing::debug!("status socket: {e}");
                        }
                    });
                }
                Err(e) => {
                    // Out of file handles: there is nobody to tell, and it passes.
                    tracing::debug!("status socket: {e}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// The status as of now.
    pub fn status(&self) -> Arc<Status> {
        let mut status = Arc::clone(&self.status.borrow());
        let now = Arc::make_mut(&mut status);
        now.uptime = Moment::from(self.start.elapsed());
        // What this process has told: where there are no diagnostics of ours, what the
        // driver has published stays.
        let told = diagnostics::recent();
        if !told.is_empty() {
            let start = self.start.into_std();
            now.errors.clear();
            for told in told {
                now.remember(Trouble {
                    at: Moment::from(told.at.saturating_duration_since(start)),
                    time: told.time,
                    level: told.level.to_owned(),
                    message: told.message,
                });
            }
        }
        status
    }

    async fn talk(&self, stream: UnixStream) -> io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::with_capacity(512, reader);
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut bounded = (&mut reader).take(REQUEST + 1);
            match timeout(PATIENCE, bounded.read_until(b'\n', &mut line)).await {
                Err(_) | Ok(Ok(0)) => return Ok(()),
                Ok(Err(e)) => return Err(e),
                Ok(Ok(_)) => {}
            }
            let too_long = line.len() as u64 > REQUEST;
            let reply = if too_long {
                error(format!("a request has {REQUEST} bytes at most"))
            } else {
                match serde_json::from_slice(&line) {
                    // The one that may take for ever: who hangs up waits no more.
                    Ok(Request::Drained) => tokio::select! {
                        biased;
                        reply = self.answer(Request::Drained) => reply,
                        more = reader.fill_buf() => match more?.is_empty() {
                            true => return Ok(()),
                            false => error("one request at a time".to_owned()),
                        },
                    },
                    Ok(request) => self.answer(request).await,
                    Err(e) => error(format!("not a request: {e}")),
                }
            };
            let mut text = serde_json::to_vec(&reply)?;
            text.push(b'\n');
            match timeout(PATIENCE, writer.write_all(&text)).await {
                Err(_) => return Ok(()),
                Ok(written) => written?,
            }
            if too_long {
                return Ok(());
            }
        }
    }

    async fn answer(&self, request: Request) -> Reply {
        let done = |answered: Result<(), String>| match answered {
            Ok(()) => Reply::Done,
            Err(message) => error(message),
        };
        match request {
            Request::Status => Reply::Status {
                status: Box::new(self.status().as_ref().clone()),
            },
            Request::Metrics => Reply::Metrics {
                text: metrics::text(&self.status()),
            },
            Request::Drain { within } => {
                let within = within.map(Duration::from_secs);
                done(self.tell(|reply| Command::Drain { within, reply }).await)
            }
            Request::Undrain => done(self.tell(|reply| Command::Resume { reply }).await),
            Request::SuspendedResume { id } => done(
                self.tell(|reply| Command::SuspendedResume { id, reply })
                    .await,
            ),
            Request::SuspendedKill { id } => done(
                self.tell(|reply| Command::SuspendedKill { id, reply })
                    .await,
            ),
            Request::Attach { id } => {
                let reach: Result<Attachment, String> =
                    self.tell(|reply| Command::Attach { id, reply }).await;
                match reach {
                    Ok(reach) => Reply::Attach { reach },
                    Err(message) => error(message),
                }
            }
            Request::Drained => done(self.drained().await),
        }
    }

    async fn tell<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, String> {
        let (reply, answer) = oneshot::channel();
        let ask = async {
            let ending = || "the agent is ending".to_owned();
            let sent = self.commands.send(command(reply)).await;
            sent.map_err(|_| ending())?;
            answer.await.unwrap_or_else(|_| Err(ending()))
        };
        timeout(COMMAND, ask).await.unwrap_or_else(|_| {
            Err(format!(
                "the agent has not answered within {} s: its log tells more",
                COMMAND.as_secs()
            ))
        })
    }

    async fn drained(&self) -> Result<(), String> {
        let mut status = self.status.clone();
        loop {
            {
                let now = status.borrow_and_update();
                match now.mode {
                    Mode::Draining { .. } | Mode::Stopping { .. } if now.runs.is_empty() => {
                        return Ok(());
                    }
                    Mode::Draining { .. } | Mode::Stopping { .. } => {}
                    Mode::Starting | Mode::Running => {
                        return Err("the agent takes tasks: it does not drain".to_owned());
                    }
                }
            }
            if status.changed().await.is_err() {
                return Ok(());
            }
        }
    }
}

fn error(message: String) -> Reply {
    Reply::Error { message }
}

/// Root and the agent's own user. The file's mode says the same; this holds also
/// where somebody has changed it.
fn may_talk(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

async fn refuse(mut stream: UnixStream, why: &str) {
    if let Ok(mut text) = serde_json::to_vec(&error(why.to_owned())) {
        text.push(b'\n');
        let _ = timeout(PATIENCE, stream.write_all(&text)).await;
    }
}
