//! The signature base of a request: the lines that a signature is over (RFC 9421, section 2.5).

use std::collections::HashSet;
use std::fmt::{self, Write as _};

use http::HeaderMap;

/// What is wrong with how a request is signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Wrong {
    /// A header is too long, no text, or not of the form that it should have.
    #[error("the header {0} cannot be read")]
    Header(&'static str),
    /// There are several signatures of the kind that is looked for.
    #[error("there is more than one signature with the tag {0}")]
    Several(&'static str),
    /// A signature is announced and not there.
    #[error("Signature-Input announces a signature that Signature does not have")]
    NoSignature,
    /// A parameter of the signature is missing, of the wrong kind, or not known here.
    #[error("the signature's parameter {0:?} is missing, or not as it is taken here")]
    Parameter(String),
    /// Something is covered that is not known here.
    #[error("the signature covers {0:?}, which is not known here")]
    Component(String),
    /// Something is covered that the request has not.
    #[error("the signature covers {0:?}, which the request has not")]
    Missing(String),
    /// Something has to be covered, and is not.
    #[error("the signature does not cover {0:?}")]
    Uncovered(String),
    /// The body is another one.
    #[error("the body is not the one that was signed: its SHA-256 is not that in Content-Digest")]
    Body,
}

/// Where a request goes, as it is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// Such as `POST`.
    pub method: &'a str,
    /// The host, with the port where that is not the scheme's own, in lower case.
    pub authority: &'a str,
    /// The path, as it is sent.
    pub path: &'a str,
    /// The query without its question mark, as it is sent.
    pub query: Option<&'a str>,
}

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Number(i64),
    Text(String),
}

/// What a signature covers, with its parameters: what `Signature-Input` says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    components: Vec<String>,
    parameters: Vec<(String, Value)>,
}

/// Whether this can stand between quotes as it is.
pub(crate) fn is_plain(text: &str) -> bool {
    text.bytes()
        .all(|b| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\')
}

impl Input {
    /// `None`: it covers something twice, or has text that would have to be escaped.
    pub(crate) fn new(
        components: Vec<String>,
        parameters: Vec<(String, Value)>,
    ) -> Result<Self, Wrong> {
        let mut seen = HashSet::new();
        for component in &components {
            if !is_plain(component) || !seen.insert(component.as_str()) {
                return Err(Wrong::Component(component.clone()));
            }
        }
        for (name, value) in &parameters {
            if matches!(value, Value::Text(text) if !is_plain(text)) {
                return Err(Wrong::Parameter(name.clone()));
            }
        }
        Ok(Self {
            components,
            parameters,
        })
    }

    pub(crate) fn covers(&self, component: &str) -> bool {
        self.components.iter().any(|c| c == component)
    }

    pub(crate) fn parameters(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.parameters.iter().map(|(n, v)| (n.as_str(), v))
    }

    /// The text that is signed.
    ///
    /// # Errors
    /// The request has not what is covered, or that is not known here.
    pub fn base(&self, target: &Target<'_>, headers: &HeaderMap) -> Result<String, Wrong> {
        let mut base = String::new();
        for name in &self.components {
            let value = component(name, target, headers)?;
            let _ = writeln!(base, "\"{name}\": {value}");
        }
        let _ = write!(base, "\"@signature-params\": {self}");
        Ok(base)
    }
}

impl fmt::Display for Input {
    /// In its one form (RFC 9651, section 4.1).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('(')?;
        for (index, component) in self.components.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}\"{component}\"")?;
        }
        f.write_char(')')?;
        for (name, value) in &self.parameters {
            match value {
                Value::Number(number) => write!(f, ";{name}={number}")?,
                Value::Text(text) => write!(f, ";{name}=\"{text}\"")?,
            }
        }
        Ok(())
    }
}

/// The value of a component.
fn component(name: &str, target: &Target<'_>, headers: &HeaderMap) -> Result<String, Wrong> {
    match name {
        "@method" => return Ok(target.method.to_owned()),
        "@authority" => return Ok(target.authority.to_owned()),
        "@path" => return Ok(target.path.to_owned()),
        "@query" => return Ok(format!("?{}", target.query.unwrap_or_default())),
        _ => {}
    }
    if name.starts_with('@') || name.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(Wrong::Component(name.to_owned()));
    }
    let missing = || Wrong::Missing(name.to_owned());
    let mut value = String::new();
    let mut is_first = true;
    for line in headers.get_all(name) {
        let line = line.to_str().map_err(|_| missing())?;
        if !std::mem::take(&mut is_first) {
            value.push_str(", ");
        }
        value.push_str(line.trim());
    }
    if is_first {
        return Err(missing());
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// The request of RFC 9421, appendix B.2.
    fn example() -> (Target<'static>, HeaderMap) {
        let target = Target {
            method: "POST",
            authority: "example.com",
            path: "/foo",
            query: Some("param=Value&Pet=dog"),
        };
        let headers = [
            ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
            ("content-type", "application/json"),
            ("content-length", "18"),
            (
                "content-digest",
                "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:",
            ),
        ];
        let header = |(name, value)| {
            let value = HeaderValue::from_static(value);
            (http::HeaderName::from_static(name), value)
        };
        (target, headers.into_iter().map(header).collect())
    }

    fn input(components: &[&str], key: &str) -> Input {
        let components = components.iter().map(|&c| c.to_owned()).collect();
        let parameters = vec![
            ("created".to_owned(), Value::Number(1_618_884_473)),
            ("keyid".to_owned(), Value::Text(key.to_owned())),
        ];
        Input::new(components, parameters).unwrap()
    }

    #[test]
    fn the_example_of_the_standard_with_a_shared_secret() {
        use base64::Engine as _;
        use base64::prelude::BASE64_STANDARD;
        let (target, headers) = example();
        let input = input(
            &["date", "@authority", "content-type"],
            "test-shared-secret",
        );
        let base = input.base(&target, &headers).unwrap();
        let expected = "\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n\"@authority\": example.com\n\
            \"content-type\": application/json\n\"@signature-params\": (\"date\" \"@authority\" \"content-type\")\
            ;created=1618884473;keyid=\"test-shared-secret\"";
        assert_eq!(base, expected);
        let secret = BASE64_STANDARD
            .decode("uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==")
            .unwrap();
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
        let signature = ring::hmac::sign(&key, base.as_bytes());
        assert_eq!(
            BASE64_STANDARD.encode(signature),
            "pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8="
        );
    }

    #[test]
    fn the_example_of_the_standard_that_covers_most() {
        let (target, headers) = example();
        let input = input(
            &[
                "date",
                "@method",
                "@path",
                "@query",
                "@authority",
                "content-type",
                "content-digest",
                "content-length",
            ],
            "test-key-rsa-pss",
        );
        let expected = "\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n\"@method\": POST\n\"@path\": /foo\n\
            \"@query\": ?param=Value&Pet=dog\n\"@authority\": example.com\n\"content-type\": application/json\n\
            \"content-digest\": sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:\n\
            \"content-length\": 18\n\"@signature-params\": (\"date\" \"@method\" \"@path\" \"@query\" \"@authority\" \
            \"content-type\" \"content-digest\" \"content-length\");created=1618884473;keyid=\"test-key-rsa-pss\"";
        assert_eq!(input.base(&target, &headers).unwrap(), expected);
    }

    #[test]
    fn without_a_query_there_is_a_question_mark_and_lines_are_joined() {
        let (target, mut headers) = example();
        let target = Target {
            query: None,
            ..target
        };
        headers.append("date", HeaderValue::from_static("  again "));
        let base = input(&["@query", "date"], "k").base(&target, &headers);
        let base = base.unwrap();
        let lines: Vec<&str> = base.lines().take(2).collect();
        assert_eq!(
            lines,
            [
                "\"@query\": ?",
                "\"date\": Tue, 20 Apr 2021 02:07:55 GMT, again"
            ]
        );
    }

    #[test]
    fn what_cannot_be_covered() {
        let (target, mut headers) = example();
        headers.insert("x-bytes", HeaderValue::from_bytes(b"\xff").unwrap());
        for (name, expected) in [
            ("@status", Wrong::Component("@status".to_owned())),
            (
                "@request-target",
                Wrong::Component("@request-target".to_owned()),
            ),
            ("Date", Wrong::Component("Date".to_owned())),
            ("x-none", Wrong::Missing("x-none".to_owned())),
            ("x-bytes", Wrong::Missing("x-bytes".to_owned())),
        ] {
            let base = input(&[name], "k").base(&target, &headers);
            assert_eq!(base, Err(expected));
        }
        let new = |components: &[&str]| {
            Input::new(components.iter().map(|&c| c.to_owned()).collect(), vec![])
        };
        assert!(new(&["a", "a"]).is_err());
        assert!(new(&["a\nb"]).is_err());
        assert!(new(&["a\"b"]).is_err());
    }
}
