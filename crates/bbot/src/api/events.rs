//! A log that is followed: the controller's event stream (protocol, section 7) read piece by piece.

use base64::Engine as _;
use serde::Deserialize;

/// The longest line that is taken: a piece of 64 KiB in base64 has 88 KiB.
const LINE: usize = 1 << 20;

/// Something that happened to a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Where the build stands.
    State {
        state: String,
        agent: Option<String>,
        machine: Option<String>,
    },
    /// Its log has grown.
    Log {
        id: String,
        operation: String,
        bytes: Vec<u8>,
    },
    /// Something of its log is missing here.
    Gap {
        id: String,
        left_out: u64,
        missing: u64,
    },
    /// It is built, or cancelled.
    End,
}

/// The stream is not what it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("a line is longer than {LINE} bytes")]
    Long,
    #[error("the data of an event '{0}' cannot be read")]
    Data(String),
}

/// Lines that have come, until they are an event.
#[derive(Debug, Default)]
pub(crate) struct Events {
    pending: Vec<u8>,
    name: String,
    id: String,
    data: String,
}

#[derive(Deserialize)]
struct StateData {
    state: String,
    agent: Option<String>,
    machine: Option<String>,
}

#[derive(Deserialize)]
struct LogData {
    operation: String,
    bytes: String,
}

#[derive(Deserialize)]
struct GapData {
    left_out: u64,
    missing: u64,
}

impl Events {
    /// Takes what has come.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole event; none when more has to come.
    pub(crate) fn next(&mut self) -> Result<Option<Event>, Malformed> {
        loop {
            let Some(end) = self.pending.iter().position(|b| *b == b'\n') else {
                if self.pending.len() > LINE {
                    return Err(Malformed::Long);
                }
                return Ok(None);
            };
            if end > LINE {
                return Err(Malformed::Long);
            }
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                if let Some(event) = self.event()? {
                    return Ok(Some(event));
                }
                continue;
            }
            // A line that begins with a colon is a comment: the other end lives.
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => self.name = value.to_string(),
                "id" => self.id = value.to_string(),
                "data" => {
                    if self.data.len() + value.len() > LINE {
                        return Err(Malformed::Long);
                    }
                    self.data.push_str(value);
                }
                _ => {}
            }
        }
    }

    fn event(&mut self) -> Result<Option<Event>, Malformed> {
        let name = std::mem::take(&mut self.name);
        let data = std::mem::take(&mut self.data);
        let bad = || Malformed::Data(bbot_manifest::log_text(name.as_bytes()));
        Ok(match name.as_str() {
            "state" => {
                let data: StateData = serde_json::from_str(&data).map_err(|_| bad())?;
                Some(Event::State {
                    state: data.state,
                    agent: data.agent,
                    machine: data.machine,
                })
            }
            "log" => {
                let data: LogData = serde_json::from_str(&data).map_err(|_| bad())?;
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(&data.bytes)
                    .map_err(|_| bad())?;
                Some(Event::Log {
                    id: self.id.clone(),
                    operation: data.operation,
                    bytes,
                })
            }
            "gap" => {
                let data: GapData = serde_json::from_str(&data).map_err(|_| bad())?;
                Some(Event::Gap {
                    id: self.id.clone(),
                    left_out: data.left_out,
                    missing: data.missing,
                })
            }
            "end" => Some(Event::End),
            // What a newer controller has to say more.
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ":\n\nevent: state\ndata: {\"state\":\"building\",\"agent\":\"a\",\"machine\":null,\"run\":3}\n\n\
        event: log\r\nid: 3.5\r\ndata: {\"operation\":\"update\",\"bytes\":\"aGVsbG8=\"}\r\n\r\n:\n\nevent: news\ndata: x\n\n\
        event: gap\nid: 3.9\ndata: {\"left_out\":4,\"missing\":0}\n\nevent: end\ndata: {\"status\":\"success\"}\n\n";

    fn expected() -> Vec<Event> {
        vec![
            Event::State {
                state: "building".into(),
                agent: Some("a".into()),
                machine: None,
            },
            Event::Log {
                id: "3.5".into(),
                operation: "update".into(),
                bytes: b"hello".to_vec(),
            },
            Event::Gap {
                id: "3.9".into(),
                left_out: 4,
                missing: 0,
            },
            Event::End,
        ]
    }

    #[test]
    fn events_come_in_any_pieces() {
        for size in [1, 2, 7, 100, STREAM.len()] {
            let mut events = Events::default();
            let mut found = Vec::new();
            for piece in STREAM.as_bytes().chunks(size) {
                events.push(piece);
                while let Some(event) = events.next().unwrap() {
                    found.push(event);
                }
            }
            assert_eq!(found, expected(), "{size}");
        }
    }

    #[test]
    fn what_is_no_such_stream_is_told() {
        for bad in [
            "event: log\ndata: {}\n\n",
            "event: log\ndata: {\"operation\":\"a\",\"bytes\":\"%\"}\n\n",
            "event: state\n\n",
        ] {
            let mut events = Events::default();
            events.push(bad.as_bytes());
            assert!(matches!(events.next(), Err(Malformed::Data(_))), "{bad}");
        }
        let mut events = Events::default();
        events.push(&vec![b'x'; LINE + 1]);
        assert!(matches!(events.next(), Err(Malformed::Long)));
    }
}
