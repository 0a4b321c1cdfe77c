//! Cleaning and cutting logs, the text format as we write it, and JSON.

use bbot_manifest::json::{from_json, to_json};
use bbot_manifest::{
    Introducer, Manifest, Pair, Style, cut_middle, log_text, parse, sanitize, serialize,
};

#[test]
fn unwanted_characters_are_replaced_one_by_one() {
    for (bytes, text) in [
        (&b"plain\n\ttext\r\n"[..], "plain\n\ttext\r\n"),
        (b"a\0b\x07c\x7f", "a?b?c?"),
        // A refused code point is one mark, an ill-formed sequence one a byte.
        ("\u{feff}x\u{200b}\u{e000}".as_bytes(), "?x??"),
        (b"\xe2\x82x", "??x"),
        (b"\xc0\xafx", "??x"),
        (b"x\xf0\x90", "x??"),
        (b"\xff\xfe", "??"),
        ("‘жé’ \u{a0}\u{2028}".as_bytes(), "‘жé’ \u{a0}\u{2028}"),
        (b"\x1b[1mx", "?[1mx"),
    ] {
        assert_eq!(sanitize(bytes), text, "{bytes:?}");
    }
}

#[test]
fn colours_vanish_and_other_sequences_leave_a_mark() {
    for (bytes, text) in [
        (&b"\x1b[1;31merror:\x1b[0m no"[..], "error: no"),
        (b"\x1b[m\x1b[38;5;196m\x1b[38:2::1:2:3mx", "x"),
        // Moving the cursor, clearing a line, private modes.
        (b"50%\x1b[K\x1b[2J\x1b[10;20Hx", "50%???x"),
        (b"\x1b[?25lx\x1b[?25h", "?x?"),
        // m with something else than numbers is not a colour.
        (b"\x1b[>4;2mx", "?x"),
        // Titles and links.
        (b"\x1b]0;title\x07x", "?x"),
        (b"\x1b]8;;http://a/\x1b\\link\x1b]8;;\x1b\\", "?link?"),
        (b"\x1bP+q544e\x1b\\x", "?x"),
        (b"\x1b(Bx\x1b=y\x1b7", "?x?y?"),
        // What is not whole is only the ESC.
        (b"\x1b", "?"),
        (b"\x1b[", "?["),
        (b"\x1b[12", "?[12"),
        (b"\x1b[1\nm", "?[1\nm"),
        (b"\x1b]0;no end\nx", "?]0;no end\nx"),
        (b"\x1b\x1b[1mx", "?x"),
        // The second line of defence still cleans what remains.
        (b"\x1b[1m\xff\x00\xc2\x9b1m", "???1m"),
    ] {
        assert_eq!(log_text(bytes), text, "{bytes:?}");
    }
    // A title without an end does not swallow the log behind it, even if that
    // holds something like one later.
    let log = [b"\x1b]0;", &[b'x'; 10_000][..], b"\x07"].concat();
    assert_eq!(log_text(&log).len(), log.len());
}

#[test]
fn the_middle_is_cut_between_lines() {
    let log: String = (0..1000).map(|i| format!("line {i:04}\n")).collect();
    let cut = cut_middle(&log, 600);
    assert!(cut.len() <= 600 && cut.len() > 500, "{}", cut.len());
    let lines: Vec<&str> = cut.lines().collect();
    assert_eq!(lines[0], "line 0000");
    assert_eq!(lines.last(), Some(&"line 0999"));
    let mark = lines.iter().position(|l| l.starts_with("...")).unwrap();
    assert!(lines.iter().all(|l| l.len() == 9 || l.starts_with("...")));
    // The mark says how much went.
    let kept: usize = lines
        .iter()
        .filter(|l| l.len() == 9)
        .map(|l| l.len() + 1)
        .sum();
    let expected = format!("... {} bytes cut here ...", log.len() - kept);
    assert_eq!(lines[mark], expected);
    // More of the end is kept than of the start.
    assert!(mark < lines.len() / 2);
}

#[test]
fn one_long_line_is_cut_at_a_character() {
    let log = "ж".repeat(30_000);
    for max in [60, 61, 1000, 59_999] {
        let cut = cut_middle(&log, max);
        assert!(cut.len() <= max, "{max}");
        let (head, rest) = cut.split_once("\n... ").unwrap();
        let (bytes, tail) = rest.split_once(" bytes cut here ...\n").unwrap();
        assert_eq!(
            head.len() + tail.len() + bytes.parse::<usize>().unwrap(),
            log.len()
        );
    }
    // No room for the mark: the end alone.
    assert_eq!(cut_middle(&log, 5), "жж");
    assert_eq!(cut_middle(&log, 0), "");
    assert_eq!(cut_middle(&log, log.len()), log);
    assert_eq!(cut_middle("", 0), "");
}

#[test]
fn both_introducers() {
    let manifest = Manifest::new([
        Pair::new("a", "x\ny"),
        Pair::new("b", " blank"),
        Pair::new("c", ""),
        Pair::new("a-name-of-38-code-points-and-no-blanks", "v"),
        Pair::new("a-name-of-37-code-points-and-noblanks", "v"),
    ]);
    let style = |introducer| Style {
        introducer,
        ..Style::wire()
    };
    let old = ": 1\na: \\\nx\ny\n\\\nb: \\\n blank\n\\\nc:\n\
               a-name-of-38-code-points-and-no-blanks: \\\nv\n\\\n\
               a-name-of-37-code-points-and-noblanks: v\n";
    let text = serialize(std::slice::from_ref(&manifest), style(Introducer::Old)).unwrap();
    assert_eq!(text, old);
    assert_eq!(Style::default(), style(Introducer::Old));
    let text = serialize(std::slice::from_ref(&manifest), style(Introducer::New)).unwrap();
    assert_eq!(text, old.replace(": \\\n", ":\n\\\n"));
    for text in [old, &text] {
        assert!(parse(text.as_bytes()).unwrap()[0].same_data(&manifest));
    }
}

#[test]
fn manifests_that_cannot_be_written() {
    for (name, value, error) in [
        ("", "", "name is empty"),
        ("", "1", "name is empty"),
        ("#a", "", "name starts with '#'"),
        ("a b", "", "name contains whitespace"),
        ("a:b", "", "name contains ':'"),
        (
            "a",
            "\u{1b}[1m",
            "invalid value: invalid Unicode codepoint (control)",
        ),
        (
            "\u{feff}",
            "",
            "invalid name: invalid Unicode codepoint (format)",
        ),
    ] {
        let manifest = Manifest::new([Pair::new(name, value)]);
        let got = serialize(&[manifest], Style::wire()).unwrap_err();
        let expected = format!("cannot write manifest field `{name}`: {error}");
        assert_eq!(got.to_string(), expected);
    }
    assert_eq!(serialize(&[], Style::wire()).unwrap(), "");
    let empty = Manifest::default();
    assert_eq!(
        serialize(&[empty.clone(), empty], Style::wire()).unwrap(),
        ": 1\n:\n"
    );
}

#[test]
fn errors_name_their_source() {
    let error = parse(b": 1\n\na: b\n  c").unwrap_err();
    assert_eq!(error.to_string(), "4:4: error: ':' expected after name");
    let named = error.clone().in_source("some/file");
    assert_eq!(
        named.to_string(),
        "some/file:4:4: error: ':' expected after name"
    );
    assert_eq!(error.clone().in_source("").to_string(), error.to_string());
}

#[test]
fn places_of_manifests() {
    let manifests = parse(b"# c\n : 1\na: b\n\n  :\nc: d\n").unwrap();
    let place = |p: bbot_manifest::Position| (p.line, p.column);
    assert_eq!(place(manifests[0].position), (2, 2));
    assert_eq!(place(manifests[0].end), (5, 3));
    assert_eq!(place(manifests[1].position), (5, 3));
    assert_eq!(place(manifests[1].end), (7, 1));
}

#[test]
fn json() {
    let text = ": 1\na: \"x\" \\y\nlog: \\\nl1\n\tl2 ж\n\\\n:\n:\nb:\n";
    let manifests = parse(text.as_bytes()).unwrap();
    let json = "[\n  [\n    [\"a\", \"\\\"x\\\" \\\\y\"],\n    [\"log\", \"l1\\n\\tl2 ж\"]\n  ],\n  \
                [],\n  [\n    [\"b\", \"\"]\n  ]\n]\n";
    assert_eq!(to_json(&manifests), json);
    let back = from_json(json).unwrap();
    assert_eq!(serialize(&back, Style::wire()).unwrap(), text);
    assert_eq!(to_json(&[]), "[]\n");
    assert!(from_json("[]").unwrap().is_empty());
    assert_eq!(from_json(" [ [ ] ] ").unwrap(), [Manifest::default()]);
}

#[test]
fn json_refused() {
    for (json, error) in [
        ("", "1:1: error: EOF while parsing a value"),
        ("[", "1:1: error: EOF while parsing a list"),
        (
            "[\n  [[\"a\"]]]",
            "2:8: error: invalid length 1, expected a tuple of size 2",
        ),
        (
            "[[[\"a\", 1]]]",
            "1:9: error: invalid type: integer `1`, expected a string",
        ),
        ("{}", "1:1: error: invalid type: map, expected a sequence"),
        ("[] x", "1:4: error: trailing characters"),
    ] {
        let got = from_json(json).unwrap_err().to_string();
        assert!(got.contains(": error: "), "{got}");
        assert_eq!(got, error, "{json}");
    }
}
