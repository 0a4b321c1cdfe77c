//! QEMU's machine protocol: JSON lines over a socket that QEMU inherits.
//!
//! Own and tolerant, so that it works with every QEMU from 7.2 on: unknown fields
//! and events pass, answers are matched by their id and never by their place (the
//! `SHUTDOWN` event comes before the answer to `quit`), and the end of the stream
//! is an event like any other.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::events;
pub use super::events::Event;

/// A line from QEMU is not longer: `query-qmp-schema` would give about 200 KiB.
const MAX_LINE: usize = 1 << 20;

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU refused it.
    #[error("refused ({class}): {reason}")]
    Refused {
        /// QEMU's class of error.
        class: String,
        /// QEMU's words.
        reason: String,
    },
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The stream has ended: QEMU is gone.
    #[error("QEMU has closed its control socket")]
    Closed,
    /// The socket failed.
    #[error("control socket")]
    Socket(#[source] io::Error),
}

/// A line that was read.
#[derive(Debug, PartialEq)]
pub enum Line {
    /// QEMU is there, of this version.
    Greeting(String),
    /// What became of a command.
    Answer {
        /// The command's.
        id: u64,
        /// What it returns; or the class of the error, and QEMU's words.
        result: Result<Value, (String, String)>,
    },
    /// Told unasked.
    Event(Event),
    /// Nothing that we know.
    Unknown,
}

/// The lines of a stream that comes in pieces.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
    /// Where the next line begins.
    start: usize,
}

/// A line has more than 1 MiB: whoever sends this is no QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line of more than {MAX_LINE} bytes")]
pub struct LineTooLong;

impl Lines {
    /// Takes the next bytes of the stream; [`Lines::next_line`] is to be asked until it gives none, before there are more.
    ///
    /// # Errors
    ///
    /// When the line that they belong to is too long.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), LineTooLong> {
        self.buffer.drain(..self.start);
        self.start = 0;
        if self.buffer.len() > MAX_LINE {
            return Err(LineTooLong);
        }
        self.buffer.extend_from_slice(chunk);
        Ok(())
    }

    /// The next whole line, without its newline.
    pub fn next_line(&mut self) -> Option<&[u8]> {
        let start = self.start;
        let length = self.buffer[start..]
            .iter()
            .position(|&byte| byte == b'\n')?;
        self.start = start + length + 1;
        Some(&self.buffer[start..start + length])
    }
}

/// Reads a line; any bytes give something.
pub fn parse(bytes: &[u8]) -> Line {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(bytes) else {
        return Line::Unknown;
    };
    if let Some(Value::String(name)) = object.remove("event") {
        let data = object.remove("data").unwrap_or(Value::Null);
        return Line::Event(Event {
            name,
            data,
            times: 1,
        });
    }
    if let Some(greeting) = object.get("QMP") {
        return Line::Greeting(version(greeting));
    }
    let Some(id) = object.get("id").and_then(Value::as_u64) else {
        return Line::Unknown;
    };
    if let Some(value) = object.remove("return") {
        return Line::Answer {
            id,
            result: Ok(value),
        };
    }
    if let Some(error) = object.remove("error") {
        let text = |field: &str| {
            error
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or("unknown")
                .to_owned()
        };
        return Line::Answer {
            id,
            result: Err((text("class"), text("desc"))),
        };
    }
    Line::Unknown
}

/// The version in a greeting: three numbers, and the distribution's words where there are any.
fn version(greeting: &Value) -> String {
    let version = &greeting["version"];
    let number = |name: &str| version["qemu"][name].as_u64().unwrap_or_default();
    let numbers = format!(
        "{}.{}.{}",
        number("major"),
        number("minor"),
        number("micro")
    );
    match version["package"].as_str() {
        Some(package) if !package.is_empty() => format!("{numbers} ({package})"),
        _ => numbers,
    }
}

type Answer = Result<Value, (String, String)>;

/// Commands that wait for their answer. None: the stream has ended.
type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>>;

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub struct Qmp {
    writer: OwnedWriteHalf,
    waiting: Waiting,
    next_id: u64,
    version: String,
    reader: JoinHandle<()>,
}

impl Qmp {
    /// Waits for the greeting and enters command mode.
    ///
    /// # Errors
    ///
    /// When QEMU does not answer within `timeout` or ends.
    pub async fn connect(
        stream: UnixStream,
        timeout: Duration,
    ) -> Result<(Self, events::Receiver), QmpError> {
        let (read, writer) = stream.into_split();
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let (events_in, events) = events::channel();
        let (greeted_in, greeted) = oneshot::channel();
        let reader = tokio::spawn(
            Reader {
                read,
                waiting: Arc::clone(&waiting),
                events: events_in,
                greeted: Some(greeted_in),
            }
            .run(),
        );
        let mut qmp = Self {
            writer,
            waiting,
            next_id: 1,
            version: String::new(),
            reader,
        };
        match tokio::time::timeout(timeout, greeted).await {
            Ok(Ok(version)) => qmp.version = version,
            Ok(Err(_)) => return Err(QmpError::Closed),
            Err(_) => return Err(QmpError::Timeout),
        }
        qmp.execute("qmp_capabilities", None, timeout).await?;
        Ok((qmp, events))
    }

    /// QEMU's version, in its own words.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Hands QEMU a descriptor, which it knows by a name from then on.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub async fn hand(
        &mut self,
        name: &str,
        fd: BorrowedFd<'_>,
        timeout: Duration,
    ) -> Result<(), QmpError> {
        let arguments = Map::from_iter([("fdname".to_owned(), Value::from(name))]);
        self.command("getfd", Some(arguments), Some(fd), timeout)
            .await
            .map(drop)
    }

    /// Runs a command and gives what it returns.
    ///
    /// # Errors
    ///
    /// When QEMU refuses it, does not answer within `timeout`, or ends.
    pub async fn execute(
        &mut self,
        command: &str,
        arguments: Option<Map<String, Value>>,
        timeout: Duration,
    ) -> Result<Value, QmpError> {
        self.command(command, arguments, None, timeout).await
    }

    async fn command(
        &mut self,
        command: &str,
        arguments: Option<Map<String, Value>>,
        fd: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> Result<Value, QmpError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({ "execute": command, "id": id });
        if let Some(arguments) = arguments {
            request["arguments"] = Value::Object(arguments);
        }
        let (answer_in, answer) = oneshot::channel();
        match self.lock().as_mut() {
            Some(waiting) => waiting.insert(id, answer_in),
            None => return Err(QmpError::Closed),
        };
        let mut line = request.to_string();
        line.push('\n');
        let exchange = async {
            self.write(line.as_bytes(), fd)
                .await
                .map_err(|error| match error.kind() {
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => QmpError::Closed,
                    _ => QmpError::Socket(error),
                })?;
            match answer.await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err((class, reason))) => Err(QmpError::Refused { class, reason }),
                Err(_) => Err(QmpError::Closed),
            }
        };
        let result = tokio::time::timeout(timeout, exchange).await;
        if let Some(waiting) = self.lock().as_mut() {
            waiting.remove(&id);
        }
        result.unwrap_or(Err(QmpError::Timeout))
    }

    /// Writes a line, with a descriptor beside its first bytes.
    async fn write(&mut self, line: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut rest = line;
        if let Some(fd) = fd {
            let stream: &UnixStream = self.writer.as_ref();
            let send = || {
                let fds = [fd];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                control.push(SendAncillaryMessage::ScmRights(&fds));
                let sent = sendmsg(
                    stream,
                    &[io::IoSlice::new(line)],
                    &mut control,
                    SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
                )?;
                Ok(sent)
            };
            let sent = stream.async_io(Interest::WRITABLE, send).await?;
            rest = &line[sent..];
        }
        self.writer.write_all(rest).await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Reads all that QEMU says, so that nothing piles up there.
struct Reader {
    read: OwnedReadHalf,
    waiting: Waiting,
    events: events::Sender,
    greeted: Option<oneshot::Sender<String>>,
}

impl Reader {
    async fn run(mut self) {
        let mut lines = Lines::default();
        let mut chunk = vec![0; 8192];
        loop {
            let length = match self.read.read(&mut chunk).await {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) => {
                    tracing::debug!("QEMU's control socket: {error}");
                    break;
                }
            };
            if let Err(error) = lines.push(&chunk[..length]) {
                tracing::warn!("QEMU sent {error}: no longer listening");
                break;
            }
            while let Some(line) = lines.next_line() {
                self.take(line);
            }
        }
        // Whoever waits for an answer learns that there is none.
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn take(&mut self, line: &[u8]) {
        match parse(line) {
            Line::Greeting(version) => {
                if let Some(greeted) = self.greeted.take() {
                    // Nobody waits any more: connecting was given up.
                    let _ = greeted.send(version);
                }
            }
            Line::Answer { id, result } => {
                let waiting = self
                    .waiting
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .as_mut()
                    .and_then(|waiting| waiting.remove(&id));
                if let Some(waiting) = waiting {
                    // Nobody waits any more: the time was over.
                    let _ = waiting.send(result);
                }
            }
            Line::Event(event) => self.events.send(event),
            Line::Unknown => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Plays QEMU: says each text once it has read a line, the first at once.
    async fn peer(stream: UnixStream, says: &'static [&'static str]) {
        let (mut read, mut write) = stream.into_split();
        let mut buffer = [0; 4096];
        for (index, text) in says.iter().enumerate() {
            if index > 0 && read.read(&mut buffer).await.unwrap() == 0 {
                return;
            }
            write.write_all(text.as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn answers_are_found_among_events_and_noise() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = tokio::spawn(peer(
            theirs,
            &[
                "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n",
                "{\"return\": {}, \"id\": 1}\r\n",
                "noise\n{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": false}, \"timestamp\": {}}\n{\"event\": \"NEW_ONE\"}\n{\"return\": {\"status\": \"running\", \"more\": 1}, \"id\": 2}\n",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 3}\n",
            ],
        ));
        let (mut qmp, mut events) = Qmp::connect(ours, SECOND).await.unwrap();
        let status = qmp.execute("query-status", None, SECOND).await.unwrap();
        assert_eq!(status["status"], "running");
        assert_eq!(events.recv().await.unwrap().name, "SHUTDOWN");
        assert_eq!(
            events.recv().await.unwrap(),
            Event {
                name: "NEW_ONE".to_owned(),
                data: Value::Null,
                times: 1,
            }
        );
        let refused = qmp.execute("cont", None, SECOND).await.unwrap_err();
        assert!(matches!(refused, QmpError::Refused { reason, .. } if reason == "no"));
        peer.await.unwrap();
        // The end of the stream ends the events and the commands.
        assert_eq!(events.recv().await, None);
        let closed = qmp.execute("stop", None, SECOND).await.unwrap_err();
        assert!(matches!(closed, QmpError::Closed), "{closed}");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_a_timeout() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let error = Qmp::connect(ours, SECOND).await.unwrap_err();
        assert!(matches!(error, QmpError::Timeout), "{error}");
    }

    proptest! {
        #[test]
        fn any_line_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
        }
    }

    #[test]
    fn lines_come_in_any_pieces_and_none_is_endless() {
        let mut lines = Lines::default();
        lines.push(b"one\n\ntw").unwrap();
        assert_eq!(lines.next_line(), Some(&b"one"[..]));
        assert_eq!(lines.next_line(), Some(&b""[..]));
        assert_eq!(lines.next_line(), None);
        lines.push(b"o\n").unwrap();
        assert_eq!(lines.next_line(), Some(&b"two"[..]));
        let chunk = [b'x'; 8192];
        let taken = (0..1000).take_while(|_| lines.push(&chunk).is_ok()).count();
        assert_eq!(taken, MAX_LINE / chunk.len() + 1);
    }

    #[test]
    fn odd_lines_are_read() {
        assert_eq!(parse(b"{\"return\": 1}"), Line::Unknown);
        assert_eq!(parse(b"{\"return\": 1, \"id\": -1}"), Line::Unknown);
        assert_eq!(parse(b"[]"), Line::Unknown);
        assert_eq!(
            parse(b"{\"id\": 7, \"error\": null}"),
            Line::Answer {
                id: 7,
                result: Err(("unknown".to_owned(), "unknown".to_owned()))
            }
        );
    }
}
