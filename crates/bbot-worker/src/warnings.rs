//! Finds warnings in a log, line by line.

use bbot_manifest::log_text;
use regex::Regex;

/// Whether a line is a warning wherever it comes from: the original's defaults, `^warning: ` and `^.+: warning: `. By hand,
/// since every machine would have to compile these first, and most tasks have no other.
fn is_warning(line: &str) -> bool {
    line.starts_with("warning: ") || line.rfind(": warning: ").is_some_and(|at| at > 0)
}

/// Only this much of a line is looked at, in bytes (as the original does): a generated line may have no end.
const LOOKED_AT: usize = 512;

/// What is kept of a line so that [`LOOKED_AT`] bytes remain when colours are taken out.
const KEPT: usize = 4 * LOOKED_AT;

/// A task's own patterns, beside the default ones.
#[derive(Debug)]
pub(crate) struct Patterns(Vec<Regex>);

/// A task's pattern that is none.
#[derive(Debug, thiserror::Error)]
#[error("the task's warning-regex {pattern:?} is not a regular expression: {source}")]
pub(crate) struct BadPattern {
    pattern: String,
    source: regex::Error,
}

impl Patterns {
    /// Compiles these.
    pub(crate) fn compile(patterns: &[String]) -> Result<Self, BadPattern> {
        let compiled = patterns.iter().map(|pattern| {
            Regex::new(pattern).map_err(|source| BadPattern {
                pattern: pattern.clone(),
                source,
            })
        });
        compiled.collect::<Result<_, _>>().map(Self)
    }

    /// Whether a line (its first bytes, without the newline) is a warning.
    pub(crate) fn matches(&self, line: &[u8]) -> bool {
        let text = log_text(&without_escapes(line));
        let mut end = text.len().min(LOOKED_AT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let head = text[..end].trim_end_matches('\r');
        is_warning(head) || self.0.iter().any(|pattern| pattern.is_match(head))
    }
}

/// The line without what only a terminal understands (ECMA-48 control sequences, `ESC [ ... letter`): compilers colour the
/// very word that is looked for, and erase the rest of the line after it.
fn without_escapes(line: &[u8]) -> Vec<u8> {
    let mut clean = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte == 0x1b
            && let Some(sequence) = after.strip_prefix(b"[")
            && let Some(end) = sequence
                .iter()
                .position(|byte| (0x40..=0x7e).contains(byte))
        {
            rest = &sequence[end + 1..];
        } else {
            clean.push(*byte);
        }
    }
    clean
}

/// Cuts a stream of bytes into lines, of which it keeps the first bytes only.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    line: Vec<u8>,
    open: bool,
}

impl Lines {
    /// Takes bytes and hands on each line that they end.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = KEPT - self.line.len();
            self.line.extend_from_slice(&text[..room.min(text.len())]);
            self.open = true;
            if text.len() < piece.len() {
                line(&self.line);
                self.line.clear();
                self.open = false;
            }
        }
    }

    /// Hands on a last line without a newline.
    pub(crate) fn end(&mut self, mut line: impl FnMut(&[u8])) {
        if self.open {
            line(&self.line);
        }
        self.line.clear();
        self.open = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_told_from_other_lines() {
        let patterns = Patterns::compile(&["^note: odd$".to_owned()]).unwrap();
        let cases: [(&[u8], bool); 9] = [
            (b"warning: x", true),
            (b"a.c:1:2: warning: unused", true),
            (b"a.c:1:2: \x1b[35m\x1b[Kwarning: \x1b[m\x1b[Kunused", true),
            (b"note: odd", true),
            (b"note: odd\r", true),
            (b"note: odd one", false),
            (b" warning: indented", false),
            (b"warnings: 0", false),
            (b"a.c: warning", false),
        ];
        for (line, is_warning) in cases {
            assert_eq!(
                patterns.matches(line),
                is_warning,
                "{}",
                String::from_utf8_lossy(line)
            );
        }
        let far = format!("{}: warning: far", "x".repeat(600));
        assert!(!patterns.matches(far.as_bytes()));
    }

    #[test]
    fn the_default_patterns_are_the_originals() {
        let originals = ["^warning: ", "^.+: warning: "].map(|text| Regex::new(text).unwrap());
        for line in [
            "warning: ",
            "warning:",
            ": warning: x",
            "x: warning: y",
            ": warning: : warning: z",
            "é: warning: y",
            "x warning: y",
            "\r: warning: y",
            "",
        ] {
            let expected = originals.iter().any(|regex| regex.is_match(line));
            assert_eq!(is_warning(line), expected, "{line:?}");
        }
    }

    #[test]
    fn a_pattern_that_does_not_compile_is_named() {
        let error = Patterns::compile(&["a".to_owned(), "(".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("\"(\""), "{error}");
    }

    #[test]
    fn lines_are_found_across_pieces_and_bounded() {
        let mut seen = Vec::new();
        let mut lines = Lines::default();
        for piece in [&b"on"[..], b"e\n\ntw", b"o\nthree"] {
            lines.feed(piece, |line| seen.push(line.to_vec()));
        }
        lines.feed(&vec![b'x'; 1_000_000], |line| seen.push(line.to_vec()));
        lines.end(|line| seen.push(line.to_vec()));
        lines.end(|_| panic!("there is no further line"));
        assert_eq!(&seen[..3], [b"one".to_vec(), vec![], b"two".to_vec()]);
        assert_eq!(seen[3].len(), KEPT);
    }
}
