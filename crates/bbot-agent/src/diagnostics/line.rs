//! One message as text.

use std::fmt::Write as _;
use std::time::SystemTime;

use serde::Serialize;

use super::Form;
use super::time::rfc3339;

/// The longest message that is told whole, in bytes; a controller's answer may be
/// part of it.
const LONGEST: usize = 16 * 1024;

/// A session is told whole to people up to this length.
const SESSION: usize = 20;

/// A message with what belongs to it.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Line<'a> {
    /// Of `syslog(3)`.
    pub(super) priority: u8,
    pub(super) word: &'static str,
    pub(super) target: &'a str,
    pub(super) message: &'a str,
    pub(super) fields: &'a [(&'static str, String)],
    pub(super) session: Option<&'a str>,
    pub(super) machine: Option<&'a str>,
    pub(super) run: Option<&'a str>,
    /// No name from outside is in the message.
    pub(super) own_words: bool,
}

#[derive(Serialize)]
struct Object<'a> {
    time: String,
    level: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    machine: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    target: &'a str,
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    fields: serde_json::Map<String, serde_json::Value>,
}

impl Line<'_> {
    /// The line or lines, with a newline at the end.
    pub(super) fn render(&self, form: Form, now: SystemTime) -> String {
        let prefix = match form {
            Form::Plain | Form::Json => String::new(),
            Form::Systemd | Form::SystemdJson => format!("<{}>", self.priority),
        };
        match form {
            Form::Plain | Form::Systemd => self.text(&prefix),
            Form::Json | Form::SystemdJson => self.json(&prefix, now),
        }
    }

    fn text(&self, prefix: &str) -> String {
        let mut message = self.told();
        // A message stands alone; its fields are for those who look closer.
        if self.word == "trace" {
            message.insert_str(0, &format!("{}: ", self.target));
            for (name, value) in self.fields {
                // Writing to a string cannot fail.
                let _ = write!(message, " {name}={}", value.escape_debug());
            }
        }
        let word = self.word;
        let mut out = String::with_capacity(message.len() + 16);
        for (number, line) in message.split('\n').enumerate() {
            let line = clean(line.trim_end());
            let _ = match number {
                0 => writeln!(out, "{prefix}{word}: {line}"),
                _ if line.is_empty() => Ok(()),
                _ if self.own_words && line.starts_with("info: ") => {
                    writeln!(out, "{prefix}{line}")
                }
                _ => writeln!(out, "{prefix}  {line}"),
            };
        }
        out
    }

    fn json(&self, prefix: &str, now: SystemTime) -> String {
        let message = shorten(self.message);
        let object = Object {
            time: rfc3339(now),
            level: self.word,
            message: &message,
            session: self.session,
            machine: self.machine,
            run: self.run,
            target: self.target,
            fields: self
                .fields
                .iter()
                .map(|(name, value)| ((*name).to_owned(), shorten(value).into()))
                .collect(),
        };
        match serde_json::to_string(&object) {
            // JSON escapes C0 controls alone; what else a terminal obeys is escaped here.
            Ok(text) => format!("{prefix}{}\n", escape(&text)),
            // Strings and maps always have a JSON form; should they not, the text does.
            Err(_) => self.text(prefix),
        }
    }

    /// The message with the run that it belongs to, for people.
    pub(super) fn told(&self) -> String {
        let message = shorten(self.message);
        match (self.session, self.machine) {
            (None, None) => message,
            (None, Some(machine)) => format!("[{}] {message}", one_line(machine)),
            (Some(session), machine) => format!(
                "[s={}/{}] {message}",
                short_session(session),
                one_line(machine.unwrap_or("?"))
            ),
        }
    }
}

/// Enough of a session to find it: those of the original end with a time stamp.
fn short_session(session: &str) -> String {
    let session = one_line(session);
    let length = session.chars().count();
    if length <= SESSION {
        return session;
    }
    let first: String = session.chars().take(8).collect();
    let last: String = session.chars().skip(length - 8).collect();
    format!("{first}..{last}")
}

fn one_line(text: &str) -> String {
    clean(&text.replace('\n', " "))
}

/// Whether a terminal or a reader would take it for more than text: controls, line
/// separators, and what turns the direction of text around.
fn is_odd(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn clean(line: &str) -> String {
    line.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if is_odd(c) => '?',
            c => c,
        })
        .collect()
}

fn escape(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if is_odd(c) {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

fn shorten(message: &str) -> String {
    if message.len() <= LONGEST {
        return message.to_owned();
    }
    let end = message.floor_char_boundary(LONGEST);
    let more = message.len() - end;
    format!("{} ... ({more} bytes more)", &message[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str) -> Line<'_> {
        Line {
            priority: 3,
            word: "error",
            message,
            ..Line::default()
        }
    }

    fn text(form: Form, line: Line<'_>) -> String {
        line.render(form, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn every_line_for_systemd_has_its_level() {
        let own = Line {
            own_words: true,
            ..line("one\ntwo\ninfo: three")
        };
        assert_eq!(
            text(Form::Systemd, own),
            "<3>error: one\n<3>  two\n<3>info: three\n"
        );
        assert_eq!(text(Form::Plain, line("one\n")), "error: one\n");
    }

    #[test]
    fn names_from_outside_cannot_forge_a_line() {
        let hostile = "package x\ninfo: built y/1: success\n<3>error: z\r\nwarning: a\u{1b}[2J\u{85}b\u{2028}c\u{202e}d\u{0}e";
        let plain = text(Form::Plain, line(hostile));
        for (number, line) in plain.lines().enumerate() {
            assert_eq!(number == 0, !line.starts_with("  "), "{line}");
            assert!(!line.contains(is_odd), "{line:?}");
        }
        let systemd = text(Form::Systemd, line(hostile));
        for line in systemd.lines().skip(1) {
            assert!(line.starts_with("<3>  "), "{line}");
        }
        for form in [Form::Json, Form::SystemdJson] {
            let json = text(form, line(hostile));
            assert_eq!(json.lines().count(), 1);
            assert!(!json.trim_end().contains(is_odd), "{json:?}");
            let object = json.trim_start_matches("<3>");
            let object: serde_json::Value = serde_json::from_str(object).unwrap();
            assert_eq!(object["message"], hostile);
            assert_eq!(object["level"], "error");
        }
        let forged = Line {
            session: Some("a\ninfo: b"),
            machine: Some("m] info: \u{1b}"),
            ..line("x")
        };
        assert_eq!(
            text(Form::Plain, forged),
            "error: [s=a info: b/m] info: ?] x\n"
        );
    }

    #[test]
    fn json_has_the_time_and_is_valid_whatever_the_message() {
        let json = text(Form::Json, line("x"));
        assert_eq!(
            json,
            "{\"time\":\"1970-01-01T00:00:00.000Z\",\"level\":\"error\",\"message\":\"x\"}\n"
        );
    }

    #[test]
    fn a_long_message_is_cut() {
        let long = "ä".repeat(LONGEST);
        let told = text(Form::Plain, line(&long));
        assert!(told.len() < LONGEST + 100);
        assert!(told.trim_end().ends_with(" bytes more)"));
    }
}
