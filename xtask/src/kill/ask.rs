//! What an agent says of itself, over its socket.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

/// The longest that an answer may take: a kill waits for it.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many machines the agent at this socket keeps suspended. An error is an agent that is on its way up.
pub(super) fn suspended(socket: &Path) -> anyhow::Result<usize> {
    let mut line = String::new();
    let answer = UnixStream::connect(socket).and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(b"{\"command\":\"status\"}\n")?;
        BufReader::new(stream).read_line(&mut line)
    });
    answer.with_context(|| format!("no agent answers at {}", socket.display()))?;
    read(&line)
}

fn read(line: &str) -> anyhow::Result<usize> {
    let answer: Value = serde_json::from_str(line).context("the agent's answer is no JSON")?;
    let suspended = answer["status"]["suspended"].as_array();
    Ok(suspended.context("the agent tells no status")?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_tells_what_is_suspended() {
        let answer = r#"{"is":"status","status":{"runs":[],"suspended":[{"id":"s1"}]}}"#;
        assert_eq!(read(answer).unwrap(), 1);
        for other in ["", "{}", r#"{"is":"error","message":"no"}"#] {
            assert!(read(other).is_err(), "{other}");
        }
    }
}
