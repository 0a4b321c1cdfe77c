//! Text that is not yet fit for a manifest: cleaning and cutting logs, and
//! checking values that come from elsewhere.

use std::borrow::Cow;

use memchr::memchr;

use crate::chars::{decode, find_bad, is_allowed};
use crate::error::{ParseError, Position};
use crate::parser::one_newline;

/// The text with every character that no manifest may hold replaced: such a
/// code point becomes one `?`, and so does each byte of an ill-formed sequence.
/// LF, CR and TAB stay.
pub fn sanitize(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(bad) = find_bad(rest) {
        let (good, tail) = rest.split_at(bad.offset);
        out.push_str(std::str::from_utf8(good).expect("find_bad has checked these bytes"));
        match decode(tail) {
            Ok((_, length)) => {
                out.push('?');
                rest = &tail[length..];
            }
            Err((_, good_bytes)) => {
                let length = good_bytes.max(1);
                out.extend(std::iter::repeat_n('?', length));
                rest = &tail[length..];
            }
        }
    }
    out.push_str(std::str::from_utf8(rest).expect("find_bad has checked these bytes"));
    out
}

/// A log as it may stand in a manifest: colours (SGR sequences, `ESC [ ... m`)
/// are dropped without a trace, and then everything else that is forbidden is
/// replaced as [`sanitize`] does. Other escape sequences move the cursor or
/// retitle the terminal; each of these becomes one `?`, so that a reader sees
/// that something was there but not the rubble of its parameters.
pub fn log_text(bytes: &[u8]) -> String {
    const ESC: u8 = 0x1b;
    if memchr(ESC, bytes).is_none() {
        return sanitize(bytes);
    }
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(escape) = memchr(ESC, rest) {
        plain.extend_from_slice(&rest[..escape]);
        rest = &rest[escape..];
        let length = escape_length(rest);
        if !is_sgr(&rest[..length]) {
            plain.push(b'?');
        }
        rest = &rest[length..];
    }
    plain.extend_from_slice(rest);
    sanitize(&plain)
}

/// `ESC [ ... m` with nothing but numbers and separators between.
fn is_sgr(sequence: &[u8]) -> bool {
    match sequence {
        [0x1b, b'[', parameters @ .., b'm'] => parameters
            .iter()
            .all(|b| matches!(b, b'0'..=b'9' | b';' | b':')),
        _ => false,
    }
}

/// The longest operating system command (`ESC ] ... BEL`) that is taken as one;
/// an unended one must not swallow the log behind it.
const OSC_MAX: usize = 4096;

/// The length of the escape sequence at the start of `bytes` (ECMA-48). What
/// is not a whole sequence is the ESC alone.
fn escape_length(bytes: &[u8]) -> usize {
    match bytes.get(1) {
        Some(b'[') => {
            let is_middle = |b: &u8| matches!(b, 0x20..=0x3f);
            let middle = bytes[2..].iter().take_while(|b| is_middle(b)).count();
            match bytes.get(2 + middle) {
                Some(0x40..=0x7e) => 3 + middle,
                _ => 1,
            }
        }
        Some(b']' | b'P' | b'X' | b'^' | b'_') => {
            let body = &bytes[2..bytes.len().min(OSC_MAX)];
            for (i, b) in body.iter().enumerate() {
                match b {
                    0x07 => return i + 3,
                    0x1b if body.get(i + 1) == Some(&b'\\') => return i + 4,
                    b'\n' | b'\r' | 0x1b => return 1,
                    _ => {}
                }
            }
            1
        }
        // A character set designation: ESC, an intermediate, a final byte.
        Some(0x20..=0x2f) => match bytes.get(2) {
            Some(0x30..=0x7e) => 3,
            _ => 1,
        },
        Some(0x30..=0x7e) => 2,
        _ => 1,
    }
}

/// The text with its middle cut out so that at most `max_bytes` remain, a line
/// in place of the cut saying how many bytes went. The head gets a third of the
/// room and the tail, where a failing build says why, the rest. Lines stay
/// whole where they are not long.
///
/// When not even the mark fits, only as much of the text's end as fits is kept.
pub fn cut_middle(text: &str, max_bytes: usize) -> Cow<'_, str> {
    if text.len() <= max_bytes {
        return Cow::Borrowed(text);
    }
    // Room for the mark with the largest number that it can show.
    let mark_room = cut_mark(text.len()).len();
    let Some(room) = max_bytes.checked_sub(mark_room) else {
        return Cow::Borrowed(&text[text.ceil_char_boundary(text.len() - max_bytes)..]);
    };
    let head = head_end(text, room / 3);
    let tail = tail_start(text, text.len() - (room - room / 3));
    let mark = cut_mark(tail - head);
    let mut out = String::with_capacity(head + mark.len() + text.len() - tail);
    out.push_str(&text[..head]);
    // The mark stands on a line of its own.
    let mark = if head == 0 || text[..head].ends_with('\n') {
        &mark[1..]
    } else {
        &mark
    };
    out.push_str(mark);
    out.push_str(&text[tail..]);
    Cow::Owned(out)
}

fn cut_mark(bytes: usize) -> String {
    format!("\n... {bytes} bytes cut here ...\n")
}

/// How far a cut may move to fall between two lines.
const LINE_SLACK: usize = 4096;

/// The end of the head: at most `limit`, behind a newline if one is near.
fn head_end(text: &str, limit: usize) -> usize {
    let limit = text.floor_char_boundary(limit);
    let from = text.floor_char_boundary(limit.saturating_sub(LINE_SLACK));
    match text[from..limit].rfind('\n') {
        Some(newline) => from + newline + 1,
        None => limit,
    }
}

/// The start of the tail: at least `limit`, behind a newline if one is near.
fn tail_start(text: &str, limit: usize) -> usize {
    let limit = text.ceil_char_boundary(limit);
    let to = text.floor_char_boundary((limit + LINE_SLACK).min(text.len()));
    match text[limit..to].find('\n') {
        // The newline that ends the whole text is no place to start.
        Some(newline) if limit + newline + 1 < text.len() => limit + newline + 1,
        _ => limit,
    }
}

/// Checks that a manifest may hold `value`. `what` names the value in the error
/// (`invalid <what>: ...`); empty, the error says only what is wrong.
///
/// # Errors
/// The first character that no manifest may hold; line and column count from
/// the start of the value.
pub fn validate_value(value: &[u8], what: &str) -> Result<(), ParseError> {
    let Some(bad) = find_bad(value) else {
        return Ok(());
    };
    let before = std::str::from_utf8(&value[..bad.offset]).expect("find_bad has checked these");
    let before = one_newline(before);
    debug_assert!(before.chars().all(is_allowed));
    let line_start = before.rfind('\n').map_or(0, |n| n + 1);
    let position = Position::new(
        before.matches('\n').count() as u64 + 1,
        before[line_start..].chars().count() as u64 + 1,
    );
    let detail = bad.detail_of_value();
    let what = match what {
        "" => detail,
        what => format!("invalid {what}: {detail}"),
    };
    Err(ParseError::at(position, what))
}
