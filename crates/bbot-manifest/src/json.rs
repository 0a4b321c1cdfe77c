//! Manifests as JSON, for other programs: an array of manifests, each an array
//! of `[name, value]` pairs in order, without the format-version pair.

use crate::manifest::{Manifest, Pair};

/// Why a text is not manifests as JSON.
#[derive(Debug, thiserror::Error)]
#[error("{line}:{column}: error: {what}")]
pub struct JsonError {
    /// The line, from 1.
    pub line: u64,
    /// The column in bytes, from 1.
    pub column: u64,
    /// What is wrong.
    pub what: String,
}

/// The manifests as JSON, one pair a line, with a newline at the end.
pub fn to_json(manifests: &[Manifest]) -> String {
    let mut out = String::from("[");
    for (i, manifest) in manifests.iter().enumerate() {
        out.push_str(if i == 0 { "\n  [" } else { ",\n  [" });
        for (i, pair) in manifest.pairs.iter().enumerate() {
            out.push_str(if i == 0 { "\n    [" } else { ",\n    [" });
            string(&pair.name, &mut out);
            out.push_str(", ");
            string(&pair.value, &mut out);
            out.push(']');
        }
        out.push_str(if manifest.pairs.is_empty() {
            "]"
        } else {
            "\n  ]"
        });
    }
    out.push_str(if manifests.is_empty() { "]\n" } else { "\n]\n" });
    out
}

fn string(text: &str, out: &mut String) {
    // A value displays as JSON; strings have no way to fail.
    out.push_str(&serde_json::Value::from(text).to_string());
}

/// The manifests that [`to_json`] wrote as this text. Their positions are all
/// the start: they come from no manifest source.
///
/// # Errors
/// A text that is not JSON, or JSON of another form.
pub fn from_json(text: &str) -> Result<Vec<Manifest>, JsonError> {
    let manifests: Vec<Vec<(String, String)>> =
        serde_json::from_str(text).map_err(|error| JsonError {
            line: error.line().max(1) as u64,
            column: error.column().max(1) as u64,
            what: json_what(&error),
        })?;
    let pairs = |pairs: Vec<(String, String)>| pairs.into_iter().map(|(n, v)| Pair::new(n, v));
    Ok(manifests
        .into_iter()
        .map(|m| Manifest::new(pairs(m)))
        .collect())
}

/// The error's text without the place, which it repeats.
fn json_what(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(place) => text[..place].to_owned(),
        None => text,
    }
}
