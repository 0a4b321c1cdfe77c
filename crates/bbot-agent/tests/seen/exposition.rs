//! A strict reader of Prometheus's text format 0.0.4, written from its description:
//! what it does not know is an error.

use std::collections::{BTreeMap, BTreeSet};

/// A sample: its labels in order, and its value.
pub(crate) type Sample = (Vec<(String, String)>, f64);

#[derive(Debug, Default)]
pub(crate) struct Family {
    pub(crate) kind: String,
    pub(crate) help: String,
    /// By the sample's name.
    pub(crate) samples: BTreeMap<String, Vec<Sample>>,
}

/// The families by name.
pub(crate) fn read(text: &str) -> BTreeMap<String, Family> {
    assert!(text.ends_with('\n'), "the last line ends with a newline");
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help text");
            check_name(name);
            let family = Family {
                help: help.to_owned(),
                ..Family::default()
            };
            assert!(
                families.insert(name.to_owned(), family).is_none(),
                "{name} twice"
            );
            current = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert_eq!(name, current, "the type follows the help");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            families.get_mut(name).unwrap().kind = kind.to_owned();
        } else {
            assert!(seen.insert(series(line).to_owned()), "twice: {line}");
            let (name, sample) = sample(line);
            let family = families.get_mut(&current).expect("a family first");
            assert!(!family.kind.is_empty(), "a type before {line}");
            let suffix = name.strip_prefix(current.as_str()).expect(line);
            match family.kind.as_str() {
                "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{line}"),
                _ => assert_eq!(suffix, "", "{line}"),
            }
            family.samples.entry(name).or_default().push(sample);
        }
    }
    for (name, family) in &families {
        check_family(name, family);
    }
    families
}

fn series(line: &str) -> &str {
    line.rsplit_once(' ').expect("a value").0
}

fn check_name(name: &str) {
    let mut chars = name.chars();
    assert!(
        chars
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_' || c == ':')
            && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':'),
        "name {name:?}"
    );
}

fn sample(line: &str) -> (String, Sample) {
    let end = line.find(['{', ' ']).expect("a name");
    let (name, mut rest) = line.split_at(end);
    check_name(name);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, behind) = rest.split_once("=\"").expect("a label");
            check_name(label);
            assert!(!label.contains(':'));
            let (value, behind) = quoted(behind);
            labels.push((label.to_owned(), value));
            match behind.strip_prefix(',') {
                Some(more) => rest = more,
                None => {
                    rest = behind.strip_prefix('}').expect("the labels' end");
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ').expect("one space");
    let value = match value {
        "+Inf" => f64::INFINITY,
        text => text.parse().expect("a number"),
    };
    (name.to_owned(), (labels, value))
}

/// A label's value up to its closing quote, and what is behind it.
fn quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.push(match chars.next().expect("an escape").1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                c => panic!("unknown escape {c:?}"),
            }),
            c => value.push(c),
        }
    }
    panic!("a label's value without an end: {text}");
}

/// Conventions: base units, `_total` for counters and for nothing else; buckets that
/// add up.
fn check_family(name: &str, family: &Family) {
    assert!(name.starts_with("bbot_agent_"), "{name}");
    assert!(family.help.ends_with('.'), "{name}: {}", family.help);
    assert_eq!(family.kind == "counter", name.ends_with("_total"), "{name}");
    for odd in ["_ms", "_kib", "_mb", "_percent", "_minutes"] {
        assert!(!name.contains(odd), "{name}: base units");
    }
    if family.kind != "histogram" {
        return;
    }
    let buckets = &family.samples[&format!("{name}_bucket")];
    let mut last = (f64::NEG_INFINITY, 0.0);
    for (labels, value) in buckets {
        let [(le, bound)] = &labels[..] else {
            panic!("{name}: {labels:?}");
        };
        assert_eq!(le, "le");
        let bound = match bound.as_str() {
            "+Inf" => f64::INFINITY,
            text => text.parse().unwrap(),
        };
        assert!(bound > last.0 && *value >= last.1, "{name}: {labels:?}");
        last = (bound, *value);
    }
    assert_eq!(last.0, f64::INFINITY);
    assert_eq!(family.samples[&format!("{name}_count")], [(vec![], last.1)]);
    assert_eq!(family.samples[&format!("{name}_sum")].len(), 1);
}

#[test]
fn what_is_wrong_is_found() {
    for wrong in [
        "# HELP bbot_agent_x X.\n# TYPE bbot_agent_x gauge\nbbot_agent_x 1",
        "# HELP bbot_agent_x X.\n# TYPE bbot_agent_x gauge\nbbot_agent_x one\n",
        "# HELP bbot_agent_x X.\n# TYPE bbot_agent_x gauge\nbbot_agent_x 1\nbbot_agent_x 2\n",
        "# HELP bbot_agent_x X.\n# TYPE bbot_agent_x gauge\nbbot_agent_y 1\n",
        "# HELP bbot_agent_x X.\n# TYPE bbot_agent_x counter\nbbot_agent_x 1\n",
        "# HELP bbot_agent_x X.\n# TYPE bbot_agent_x gauge\nbbot_agent_x{a=\"b\"c\"} 1\n",
        "# HELP bbot_agent_x X.\n# TYPE bbot_agent_x gauge\nbbot_agent_x{a=\"\\q\"} 1\n",
        "bbot_agent_x 1\n",
    ] {
        let read = std::panic::catch_unwind(|| read(wrong));
        assert!(read.is_err(), "{wrong}");
    }
}
