//! As much of an HTTP client as a controller's API on this computer needs: one request, one connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};

/// The longest that an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer of the controller.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("no JSON: {}", String::from_utf8_lossy(&self.body)))
    }
}

/// Sends a request and reads the whole answer. HTTP/1.0, so that it comes in one piece.
pub(super) fn send(
    to: SocketAddr,
    token: &str,
    method: &str,
    path: &str,
    body: &[u8],
) -> anyhow::Result<Answer> {
    let mut stream =
        TcpStream::connect_timeout(&to, PATIENCE).context("cannot reach the controller")?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .context("cannot set a time-out")?;
    stream
        .set_write_timeout(Some(PATIENCE))
        .context("cannot set a time-out")?;
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: {to}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut bytes = Vec::new();
    stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body))
        .and_then(|()| stream.read_to_end(&mut bytes))
        .context("the controller does not answer")?;
    read(&bytes)
}

fn read(bytes: &[u8]) -> anyhow::Result<Answer> {
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .context("the answer was cut short")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let body = bytes[end + 4..].to_vec();
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok())
        .context("the answer has no status")?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    // The controller may have been killed over it.
    ensure!(
        length.is_none_or(|length| length == body.len()),
        "the answer was cut short"
    );
    Ok(Answer { status, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_whole_or_errors() {
        let answer = read(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}").unwrap();
        assert_eq!(
            (answer.status, answer.json().unwrap()),
            (201, serde_json::json!({}))
        );
        assert!(read(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}").is_err());
        assert!(read(b"HTTP/1.1 200 OK\r\nContent-Le").is_err());
        assert!(read(b"\r\n\r\n").is_err());
    }
}
