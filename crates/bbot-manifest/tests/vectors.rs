//! Runs the conformance vectors, recorded from the reference implementation,
//! and compares errors exactly: line, column and text.
//!
//! `vectors/exceptions.txt` lists the cases where we differ on purpose. A listed
//! case that passes fails the test as much as one that is not listed and fails.

mod batch;

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Fields of a case that are not part of its request.
const NOT_ASKED: [&str; 7] = [
    "id",
    "cat",
    "note",
    "expect",
    "expect_ifdstream",
    "y17",
    "input_segs",
];

/// The request of a case, or nothing if it is not formed as cases are.
fn request(case: &Value) -> Option<Value> {
    let mut request: Map<String, Value> = case.as_object()?.clone();
    request.retain(|key, _| !NOT_ASKED.contains(&key.as_str()));
    if let Some(segments) = case["input_segs"].as_array() {
        let mut input = Vec::new();
        for segment in segments {
            let bytes = BASE64_STANDARD.decode(segment["b64"].as_str()?).ok()?;
            let times = segment["repeat"].as_u64().unwrap_or(1);
            input.extend(bytes.repeat(usize::try_from(times).ok()?));
        }
        let encoded = BASE64_STANDARD.encode(input);
        request.insert("input_b64".to_owned(), encoded.into());
    }
    Some(Value::Object(request))
}

/// A string that came as base64 although it is UTF-8.
fn plain(value: &Value) -> Value {
    let encoded = value.as_object().filter(|o| o.len() == 1);
    let decoded = encoded
        .and_then(|o| BASE64_STANDARD.decode(o.get("b64")?.as_str()?).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok());
    decoded.map_or_else(|| value.clone(), Value::String)
}

/// Whether `bytes` are the long string that a digest stands for.
fn is_digest_of(digest: &Value, bytes: &[u8]) -> bool {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    digest["len"].as_u64() == Some(bytes.len() as u64) && digest["sha256"] == hex
}

fn same(expected: &Value, got: &Value) -> bool {
    let (expected, got) = (plain(expected), plain(got));
    match (&expected, &got) {
        (Value::Object(digest), Value::String(text))
            if digest.len() == 2 && digest.contains_key("sha256") =>
        {
            is_digest_of(&expected, text.as_bytes())
        }
        (Value::Object(e), Value::Object(g)) => {
            if let Some(error) = e.get("error") {
                let keys = ["line", "column", "what"].into_iter();
                let mut asked = keys.filter(|key| error.get(key).is_some());
                return g.contains_key("error") && asked.all(|key| error[key] == g["error"][key]);
            }
            e.iter()
                .all(|(key, value)| match (key.as_str(), g.get(key)) {
                    ("text", _) => {
                        let text = g.get("text_b64").and_then(Value::as_str);
                        let bytes = text.and_then(|t| BASE64_STANDARD.decode(t).ok());
                        bytes.is_some_and(|bytes| is_digest_of(value, &bytes))
                    }
                    (_, Some(got)) => same(value, got),
                    (_, None) => false,
                })
        }
        (Value::Array(e), Value::Array(g)) => {
            e.len() == g.len() && std::iter::zip(e, g).all(|(e, g)| same(e, g))
        }
        (e, g) => e == g,
    }
}

/// The listed cases with their reasons: a reason is a line that starts with `#`,
/// the ids below it are parted by blanks.
fn exceptions() -> BTreeMap<String, String> {
    let mut listed = BTreeMap::new();
    let mut reason = String::new();
    let mut is_reason = false;
    for line in include_str!("vectors/exceptions.txt").lines() {
        match line.strip_prefix('#') {
            Some(more) if is_reason => reason.push_str(more),
            Some(text) => reason = text.trim_start().to_owned(),
            None => {
                for id in line.split_whitespace() {
                    assert!(!reason.is_empty(), "{id} is listed without a reason");
                    let before = listed.insert(id.to_owned(), reason.clone());
                    assert_eq!(before, None, "{id} is listed twice");
                }
            }
        }
        is_reason = line.starts_with('#');
    }
    listed
}

/// Runs one file's cases and reports all that are not as they should be.
fn run(file: &str, cases: &str, at_least: usize) {
    let exceptions = exceptions();
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in cases.lines() {
        let case: Value = serde_json::from_str(line).expect("a case is JSON");
        let id = case["id"].as_str().expect("a case has an id");
        let request = request(&case).expect("a case is formed as cases are");
        let got = batch::answer(&request);
        count += 1;
        match (same(&case["expect"], &got), exceptions.get(id)) {
            (true, None) | (false, Some(_)) => {}
            (true, Some(reason)) => {
                wrong.push(format!("{id} passes, but is listed: {reason}"));
            }
            (false, None) => wrong.push(format!(
                "{id} fails\n  request  {request}\n  expected {}\n  got      {got}",
                case["expect"]
            )),
        }
    }
    assert!(count >= at_least, "{file} holds only {count} cases");
    assert!(
        wrong.is_empty(),
        "{} of {count} cases of {file}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn parse_vectors() {
    run("parse.jsonl", include_str!("vectors/parse.jsonl"), 700);
}

#[test]
fn serialize_vectors() {
    run(
        "serialize.jsonl",
        include_str!("vectors/serialize.jsonl"),
        400,
    );
}

#[test]
fn standard_version_vectors() {
    run("stdver.jsonl", include_str!("vectors/stdver.jsonl"), 350);
}

#[test]
fn package_version_vectors() {
    run("bpkgver.jsonl", include_str!("vectors/bpkgver.jsonl"), 300);
}

#[test]
fn every_exception_is_a_case() {
    let files = [
        include_str!("vectors/parse.jsonl"),
        include_str!("vectors/serialize.jsonl"),
        include_str!("vectors/stdver.jsonl"),
        include_str!("vectors/bpkgver.jsonl"),
    ];
    for id in exceptions().keys() {
        let quoted = format!("\"{id}\"");
        assert!(files.iter().any(|f| f.contains(&quoted)), "{id} is no case");
    }
}

/// The comparison itself must be able to fail.
#[test]
fn different_answers_are_told_apart() {
    let expected = json!({ "error": { "line": 1, "column": 2, "what": "x" } });
    assert!(same(&expected, &expected));
    assert!(!same(
        &expected,
        &json!({ "error": { "line": 1, "column": 3, "what": "x" } })
    ));
    assert!(!same(&expected, &json!({ "valid": true })));
    assert!(!same(&json!({ "a": ["b"] }), &json!({ "a": ["b", "c"] })));
    assert!(!same(&json!({ "a": 1 }), &json!({ "a": "1" })));
    assert!(same(&json!("b"), &json!({ "b64": "Yg==" })));
    let digest = json!({ "sha256": "00", "len": 1 });
    assert!(!same(&digest, &json!("b")));
}
