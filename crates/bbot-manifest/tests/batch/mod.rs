//! The batch protocol of the conformance vectors: one JSON request, one reply.
//! Shared by the vectors' test and the example that speaks it on its pipes.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bbot_manifest::{
    Allow, Introducer, Manifest, PackageVersion, PackageVersionOptions, ParseError, Serializer,
    StandardVersion, Style, merge_comment, parse, sanitize, serialize, split_comment,
    validate_value,
};
use serde_json::{Value, json};

/// Answers a request. What the protocol does not know is an error of its own.
pub(crate) fn answer(request: &Value) -> Value {
    let reply = match request["op"].as_str() {
        Some("parse") => op_parse(request),
        Some("serialize") => op_serialize(request),
        Some("roundtrip") => op_roundtrip(request),
        Some("split_comment") => op_split_comment(request),
        Some("merge_comment") => op_merge_comment(request),
        Some("validate_value") => op_validate_value(request),
        Some("sanitize") => {
            bytes(request, "input").map(|b| json!({ "text_b64": base64(sanitize(&b).as_bytes()) }))
        }
        Some("stdver") => op_standard(request),
        Some("stdver_cmp") => op_standard_cmp(request),
        Some("bpkgver") => op_package(request),
        Some("bpkgver_cmp") => op_package_cmp(request),
        _ => None,
    };
    reply.unwrap_or_else(|| json!({ "unknown_request": request }))
}

fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// A string of a request: plain, or `{"b64": ...}` where it is not UTF-8.
fn string(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => Some(text.clone().into_bytes()),
        other => BASE64_STANDARD.decode(other["b64"].as_str()?).ok(),
    }
}

/// The field `name` of a request, or its form `name_b64`.
fn bytes(request: &Value, name: &str) -> Option<Vec<u8>> {
    match request.get(format!("{name}_b64")) {
        Some(encoded) => BASE64_STANDARD.decode(encoded.as_str()?).ok(),
        None => string(request.get(name)?),
    }
}

fn text(request: &Value, name: &str) -> Option<String> {
    String::from_utf8(bytes(request, name)?).ok()
}

fn flag(request: &Value, name: &str) -> bool {
    request[name].as_bool().unwrap_or(false)
}

fn parse_error(error: &ParseError) -> Value {
    json!({ "error": { "line": error.line, "column": error.column, "what": error.what } })
}

fn op_parse(request: &Value) -> Option<Value> {
    Some(match parse(&bytes(request, "input")?) {
        Err(error) => parse_error(&error),
        Ok(manifests) => {
            let data = |m: &Manifest| -> Value {
                m.pairs.iter().map(|p| json!([p.name, p.value])).collect()
            };
            let places = |m: &Manifest| -> Value {
                let place = |p: &bbot_manifest::Pair| {
                    let (n, v) = (p.name_position, p.value_position);
                    json!([n.line, n.column, v.line, v.column])
                };
                m.pairs.iter().map(place).collect()
            };
            json!({
                "manifests": manifests.iter().map(data).collect::<Value>(),
                "pos": manifests.iter().map(places).collect::<Value>(),
            })
        }
    })
}

fn style(request: &Value) -> Style {
    Style {
        introducer: Introducer::New,
        long_lines: flag(request, "long_lines"),
    }
}

/// What a serializer is driven with.
enum Event {
    Pair(Vec<u8>, Vec<u8>),
    Comment(Vec<u8>),
}

fn events(request: &Value) -> Option<Vec<Event>> {
    let pair = |name: &Value, value: &Value| Some(Event::Pair(string(name)?, string(value)?));
    if let Some(list) = request["events"].as_array() {
        let event = |event: &Value| match event[0].as_str()? {
            "pair" => pair(&event[1], &event[2]),
            "comment" => Some(Event::Comment(string(&event[1])?)),
            _ => None,
        };
        return list.iter().map(event).collect();
    }
    let mut events = Vec::new();
    for manifest in request["manifests"].as_array()? {
        events.push(Event::Pair(Vec::new(), b"1".to_vec()));
        for fields in manifest.as_array()? {
            events.push(pair(&fields[0], &fields[1])?);
        }
        events.push(Event::Pair(Vec::new(), Vec::new()));
    }
    events.push(Event::Pair(Vec::new(), Vec::new()));
    Some(events)
}

fn op_serialize(request: &Value) -> Option<Value> {
    let mut serializer = Serializer::new(style(request));
    for event in events(request)? {
        let written = match event {
            Event::Pair(name, value) => serializer.pair(&name, &value),
            Event::Comment(text) => serializer.comment(&text),
        };
        if let Err(error) = written {
            return Some(json!({ "error": { "what": error.to_string() } }));
        }
    }
    Some(json!({ "text_b64": base64(serializer.finish().as_bytes()) }))
}

fn op_roundtrip(request: &Value) -> Option<Value> {
    let style = style(request);
    let first = match parse(&bytes(request, "input")?) {
        Ok(manifests) => manifests,
        Err(error) => return Some(parse_error(&error)),
    };
    let written = match serialize(&first, style) {
        Ok(text) => text,
        Err(error) => return Some(json!({ "error": { "what": error.to_string() } })),
    };
    let second = match parse(written.as_bytes()) {
        Ok(manifests) => manifests,
        Err(error) => return Some(parse_error(&error)),
    };
    let same =
        first.len() == second.len() && std::iter::zip(&first, &second).all(|(a, b)| a.same_data(b));
    let again = serialize(&second, style).ok();
    Some(json!({
        "text_b64": base64(written.as_bytes()),
        "same_data": same,
        "fixpoint": again.as_deref() == Some(written.as_str()),
    }))
}

fn op_split_comment(request: &Value) -> Option<Value> {
    let (value, comment) = split_comment(&text(request, "input")?);
    Some(json!({ "value": value, "comment": comment }))
}

fn op_merge_comment(request: &Value) -> Option<Value> {
    let merged = merge_comment(&text(request, "value")?, &text(request, "comment")?);
    Some(json!({ "merged": merged }))
}

fn op_validate_value(request: &Value) -> Option<Value> {
    let what = request["what"].as_str().unwrap_or_default();
    Some(match validate_value(&bytes(request, "input")?, what) {
        Ok(()) => json!({ "valid": true }),
        Err(error) => parse_error(&error),
    })
}

fn invalid(what: &impl ToString) -> Value {
    json!({ "valid": false, "what": what.to_string() })
}

fn allow(request: &Value) -> Allow {
    Allow {
        earliest: flag(request, "allow_earliest"),
        stub: flag(request, "allow_stub"),
    }
}

fn op_standard(request: &Value) -> Option<Value> {
    let version = match StandardVersion::parse_with(&text(request, "version")?, allow(request)) {
        Ok(version) => version,
        Err(error) => return Some(invalid(&error)),
    };
    let project = version.project_text();
    // The project's text without the snapshot, but with the dot before it.
    let snapshot = version.snapshot_text();
    let without = project.strip_suffix(&snapshot).unwrap_or(&project);
    let mut reply = json!({
        "valid": true,
        "string": version.to_string(),
        "number": version.number().to_string(),
        "epoch": version.epoch(),
        "snapshot_sn": version.snapshot_number().to_string(),
        "snapshot_id": version.snapshot_id(),
        "revision": version.revision(),
        "string_project": project,
        "string_project_id": version.project_id_text(),
        "string_version": without,
        "string_pre_release": version.pre_release_text(),
        "string_snapshot": snapshot,
        "stub": version.is_stub(),
        "earliest": version.is_earliest(),
        "snapshot": version.is_snapshot(),
        "latest_snapshot": version.is_latest_snapshot(),
        "release": version.is_release(),
        "final": version.is_final(),
    });
    if !version.is_stub() {
        reply["major"] = version.major().into();
        reply["minor"] = version.minor().into();
        reply["patch"] = version.patch().into();
    }
    if let Some(pre) = version.pre_release() {
        reply["pre_release"] = pre.into();
        match pre {
            0..500 => reply["alpha"] = pre.into(),
            beta => reply["beta"] = (beta - 500).into(),
        }
    }
    Some(reply)
}

fn op_standard_cmp(request: &Value) -> Option<Value> {
    let version = |name| {
        let text = text(request, name)?;
        Some(StandardVersion::parse_with(&text, allow(request)))
    };
    Some(match (version("a")?, version("b")?) {
        (Ok(a), Ok(b)) => json!({
            "cmp": a.cmp(&b) as i8,
            "cmp_ignore_revision": a.cmp_ignore_revision(&b) as i8,
        }),
        (Err(error), _) | (_, Err(error)) => invalid(&error),
    })
}

fn package_options(request: &Value) -> PackageVersionOptions {
    PackageVersionOptions {
        keep_zero_revision: flag(request, "no_fold"),
        allow_iteration: flag(request, "allow_iteration"),
    }
}

fn op_package(request: &Value) -> Option<Value> {
    let text = text(request, "version")?;
    let version = match PackageVersion::parse_with(&text, package_options(request)) {
        Ok(version) => version,
        Err(error) => return Some(invalid(&error)),
    };
    Some(json!({
        "valid": true,
        "string": version.to_string(),
        "epoch": version.epoch(),
        "upstream": version.upstream(),
        "release": version.release(),
        "revision": version.revision(),
        "iteration": version.iteration(),
        "canonical_upstream": version.canonical_upstream(),
        "canonical_release": version.canonical_release(),
    }))
}

fn op_package_cmp(request: &Value) -> Option<Value> {
    let version = |name| {
        let text = text(request, name)?;
        Some(PackageVersion::parse_with(&text, package_options(request)))
    };
    Some(match (version("a")?, version("b")?) {
        (Ok(a), Ok(b)) => json!({
            "cmp": a.cmp(&b) as i8,
            "cmp_ignore_revision": a.cmp_ignore_revision(&b) as i8,
            "cmp_ignore_iteration": a.cmp_ignore_iteration(&b) as i8,
        }),
        (Err(error), _) | (_, Err(error)) => invalid(&error),
    })
}
