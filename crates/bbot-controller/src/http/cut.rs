//! A result that is too large: the middle of its long logs is left out, so that it is kept in the end, whoever brings it.
//!
//! The text is read twice, where it lies: once for where the logs are, once for what is kept of them.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

/// Most logs that are looked for: more are no result.
const LOGS: usize = 4096;

/// Room for the line that stands where something is left out.
const MARK: u64 = 64;

/// A whole line is looked for at most so far behind a cut.
const LINE: usize = 4 << 10;

/// Where the text of a log is, without its last line, which is one backslash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Log {
    at: u64,
    length: u64,
}

/// At most `most` bytes of a result request, in which only logs are shorter than they were; `None` where that does not do.
pub(super) fn cut<R: Read + Seek>(text: &mut R, most: u64) -> io::Result<Option<Vec<u8>>> {
    text.rewind()?;
    let Some((logs, length)) = logs(BufReader::with_capacity(256 << 10, &mut *text))? else {
        return Ok(None);
    };
    let in_logs: u64 = logs.iter().map(|log| log.length).sum();
    let Some(room) = most.checked_sub(length - in_logs) else {
        return Ok(None);
    };
    let lengths: Vec<u64> = logs.iter().map(|log| log.length).collect();
    let Some(each) = allowance(&lengths, room) else {
        return Ok(None);
    };
    text.rewind()?;
    let mut kept = Vec::new();
    let mut at = 0;
    for log in logs.iter().filter(|log| log.length > each) {
        let room = each.saturating_sub(MARK);
        let head = room / 3;
        copy(text, log.at + head - at, &mut kept)?;
        let ended = end_of_head(&kept, usize::try_from(head).unwrap_or(usize::MAX));
        let short = kept.len() - ended;
        kept.truncate(ended);
        // What is before the tail, with what the head gave up.
        let left_out = log.length - room;
        at = log.at + head + left_out;
        text.seek(SeekFrom::Start(at))?;
        let mut tail = Vec::new();
        copy(text, room - head, &mut tail)?;
        let begun = begin_of_tail(&tail);
        let left_out = left_out + (short + begun) as u64;
        if kept.last() != Some(&b'\n') {
            kept.push(b'\n');
        }
        kept.extend_from_slice(format!("... {left_out} bytes cut here ...\n").as_bytes());
        kept.extend_from_slice(&tail[begun..]);
        at = log.at + log.length;
    }
    text.seek(SeekFrom::Start(at))?;
    text.read_to_end(&mut kept)?;
    Ok(Some(kept))
}

fn copy<R: Read>(from: &mut R, bytes: u64, to: &mut Vec<u8>) -> io::Result<()> {
    let copied = from.by_ref().take(bytes).read_to_end(to)?;
    if copied as u64 == bytes {
        return Ok(());
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// The end of a log's beginning, the last `length` bytes of `kept`: of a whole line where one ends near, else of a character; and never
/// after a backslash, which would take the next line for its own.
fn end_of_head(kept: &[u8], length: usize) -> usize {
    let head = &kept[kept.len() - length.min(kept.len())..];
    let near = head.len().saturating_sub(LINE);
    let line = head[near..].iter().rposition(|b| *b == b'\n');
    let mut end = match line {
        Some(newline) => near + newline + 1,
        None => character_end(head),
    };
    while end > 0 && head[end - 1] == b'\\' {
        end -= 1;
    }
    kept.len() - head.len() + end
}

/// The length of what has only whole characters, as far as can be told.
fn character_end(text: &[u8]) -> usize {
    let cut = text
        .iter()
        .rev()
        .take(3)
        .take_while(|b| (0x80..0xc0).contains(*b))
        .count();
    let start = text.len() - cut;
    match start.checked_sub(1).map(|at| text[at]) {
        // The first byte of a character of which not all is there.
        Some(first @ 0xc0..) if cut + 1 < first.leading_ones() as usize => start - 1,
        _ => text.len(),
    }
}

/// Where a log's end begins: with a whole line where one begins near, else with a whole character; and never with the rest of a line
/// that looks like the last line of all.
fn begin_of_tail(tail: &[u8]) -> usize {
    let near = &tail[..tail.len().min(LINE)];
    if let Some(newline) = near.iter().position(|b| *b == b'\n') {
        return newline + 1;
    }
    let rest = near
        .iter()
        .take(3)
        .take_while(|b| (0x80..0xc0).contains(*b))
        .count();
    let backslashes = near[rest..].iter().take_while(|b| **b == b'\\').count();
    rest + backslashes
}

/// The most bytes that each log may have so that all of them have `room`; `None` where they would have nothing to say.
fn allowance(lengths: &[u64], room: u64) -> Option<u64> {
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable();
    let mut left = room;
    for (index, length) in sorted.iter().enumerate() {
        let share = left / (sorted.len() - index) as u64;
        if *length > share {
            return (share > 2 * MARK).then_some(share);
        }
        left -= length;
    }
    Some(u64::MAX)
}

/// The logs of a text, and its length; `None` where there are too many.
fn logs(mut text: impl BufRead) -> io::Result<Option<(Vec<Log>, u64)>> {
    let mut logs = Vec::new();
    let mut at = 0;
    let mut line = Vec::new();
    let mut state = State::Between;
    loop {
        let read = read_line(&mut text, &mut line)?;
        if read == 0 {
            return Ok(Some((logs, at)));
        }
        let begin = at;
        at += read;
        while line.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
            line.pop();
        }
        state = match state {
            State::Within { log } => {
                if line == b"\\" {
                    if let Some(start) = log {
                        logs.push(Log {
                            at: start,
                            length: begin - start,
                        });
                        if logs.len() > LOGS {
                            return Ok(None);
                        }
                    }
                    State::Between
                } else {
                    State::Within { log }
                }
            }
            State::Named { log } if line == b"\\" => State::Within {
                log: log.then_some(at),
            },
            State::Continued => after_value(&line),
            State::Between | State::Named { .. } => match pair(&line) {
                Some((log, b"\\")) => State::Within {
                    log: log.then_some(at),
                },
                Some((log, b"")) => State::Named { log },
                _ => after_value(&line),
            },
        };
    }
}

/// What a line stands in.
enum State {
    Between,
    /// A value of many lines may begin with the next one.
    Named {
        log: bool,
    },
    /// A value of one line goes on.
    Continued,
    /// A value of many lines, which began here if it is a log.
    Within {
        log: Option<u64>,
    },
}

fn after_value(line: &[u8]) -> State {
    let backslashes = line.iter().rev().take_while(|b| **b == b'\\').count();
    if backslashes == 1 {
        State::Continued
    } else {
        State::Between
    }
}

/// Whether a line names a log, and the value that it has there.
fn pair(line: &[u8]) -> Option<(bool, &[u8])> {
    let colon = line.iter().position(|b| *b == b':')?;
    let (name, value) = (
        line[..colon].trim_ascii(),
        line[colon + 1..].trim_ascii_start(),
    );
    (!name.starts_with(b"#")).then(|| (name.ends_with(b"-log"), value))
}

/// Reads a line; of a long one only its beginning and its end are kept. How many bytes there were.
fn read_line(text: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<u64> {
    line.clear();
    let mut read = 0;
    loop {
        let available = text.fill_buf()?;
        let end = available.iter().position(|b| *b == b'\n');
        let part = &available[..end.map_or(available.len(), |end| end + 1)];
        if line.len() > LINE {
            // Its name is known, and only how it ends counts.
            line.drain(1024..line.len() - 1024);
        }
        line.extend_from_slice(if part.len() > LINE {
            &part[part.len() - LINE..]
        } else {
            part
        });
        let used = part.len();
        text.consume(used);
        read += used as u64;
        if end.is_some() || used == 0 {
            return Ok(read);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bbot_manifest::{BuildResult, Era, OperationResult, ResultRequest, Status};
    use proptest::prelude::*;
    use std::io::Cursor;

    fn request(logs: &[&str]) -> Vec<u8> {
        let mut result = BuildResult::new("a", "1", Status::Error);
        for (number, log) in logs.iter().enumerate() {
            result.operations.push(OperationResult {
                name: format!("op{number}"),
                status: Status::Error,
                log: (*log).to_owned(),
            });
        }
        let request = ResultRequest {
            session: "s".repeat(200),
            challenge: None,
            agent_checksum: None,
            result,
        };
        request.serialize(Era::Later).unwrap().into()
    }

    fn parsed(text: &[u8]) -> Vec<String> {
        let request = ResultRequest::parse(text, "x").unwrap();
        request
            .result
            .operations
            .into_iter()
            .map(|o| o.log)
            .collect()
    }

    #[test]
    fn only_long_logs_are_cut_and_their_ends_are_kept() {
        let long = (0..10_000)
            .map(|n| format!("line {n}\n"))
            .collect::<String>();
        let text = request(&["short", &long, "x\n\\\ny", &long]);
        let cut = cut(&mut Cursor::new(&text), 20_000).unwrap().unwrap();
        assert!(cut.len() <= 20_000 && cut.len() > 19_000, "{}", cut.len());
        let logs = parsed(&cut);
        assert_eq!((logs[0].as_str(), logs[2].as_str()), ("short", "x\n\\\ny"));
        for log in [&logs[1], &logs[3]] {
            assert!(log.starts_with("line 0\nline 1\n") && log.trim_end().ends_with("line 9999"));
            let mark: Vec<&str> = log.lines().filter(|l| !l.starts_with("line ")).collect();
            assert!(mark.len() == 1 && mark[0].starts_with("... "), "{mark:?}");
            let told: usize = mark[0].split(' ').nth(1).unwrap().parse().unwrap();
            assert_eq!(
                told + log.trim_end().len() - mark[0].len() - 1,
                long.trim_end().len()
            );
        }
    }

    #[test]
    fn what_is_no_log_is_too_large() {
        let text = format!(": 1\nsession: {}\n:\nname: a\n", "s".repeat(10_000));
        assert_eq!(cut(&mut Cursor::new(text.as_bytes()), 5000).unwrap(), None);
        let logs = "x-log:\\\na\n\\\n".repeat(LOGS + 1);
        assert_eq!(cut(&mut Cursor::new(logs.as_bytes()), 5000).unwrap(), None);
    }

    #[test]
    fn values_that_look_like_logs() {
        let log = "y".repeat(5000);
        for (before, found) in [
            ("a-log: \\\n", 1),
            ("a-log:\n\\\n", 1),
            ("  a-log :\\\r\n", 1),
            ("a-status: \\\n", 0),
            ("reason: x\\\na-log: \\\n", 0),
            ("# a-log: \\\n", 0),
        ] {
            let text = format!("{before}{log}\n\\\n");
            let (logs, length) = logs(text.as_bytes()).unwrap().unwrap();
            assert_eq!(
                (logs.len(), length),
                (found, text.len() as u64),
                "{before:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn it_stays_a_result(
            logs in prop::collection::vec(("[a\\\\\u{e9}\u{20ac}\u{1f600}\n ]{0,40}", 0..400_usize), 1..6),
            most in 600..20_000_u64,
        ) {
            let logs: Vec<String> = logs.into_iter().map(|(text, times)| text.repeat(times)).collect();
            let logs: Vec<&str> = logs.iter().map(String::as_str).collect();
            let text = request(&logs);
            if let Some(cut) = cut(&mut Cursor::new(&text), most).unwrap() {
                prop_assert!(cut.len() as u64 <= most.max(text.len() as u64));
                if text.len() as u64 > most {
                    prop_assert!(cut.len() as u64 <= most);
                }
                let (was, is) = (parsed(&text), parsed(&cut));
                prop_assert_eq!(was.len(), is.len());
                for (was, is) in was.iter().zip(&is) {
                    prop_assert!(was == is || is.contains(" bytes cut here ..."), "{is:?}");
                }
            }
        }

        #[test]
        fn room_is_used_and_shared(lengths in prop::collection::vec(0..5000_u64, 1..20), room in 0..50_000_u64) {
            if let Some(each) = allowance(&lengths, room) {
                let used: u64 = lengths.iter().map(|l| (*l).min(each)).sum();
                prop_assert!(used <= room);
                prop_assert!(each == u64::MAX || used + lengths.len() as u64 > room);
            }
        }
    }
}
