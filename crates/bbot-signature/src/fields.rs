//! The headers of a signed request: making them, and reading them.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use sfv::{BareItem, Dictionary, InnerList, ListEntry, Parser};

use crate::message::{Input, Target, Value, Wrong};
use crate::{BodyDigest, Kind};

const SIGNATURE_INPUT: &str = "signature-input";
const SIGNATURE: &str = "signature";
const CONTENT_DIGEST: &str = "content-digest";

/// What is covered of every request.
const ALWAYS: [&str; 5] = ["@method", "@authority", "@path", "@query", CONTENT_DIGEST];

/// How the names of headers begin that say what is done: each is covered that is there.
const OURS: &str = "bbot-";

/// Our signature among those that a request has.
const LABEL: &str = "bbot";

/// The longest header of these that is read, in bytes: a signature of RSA with 8192 bits has 1.4 KiB.
const LIMIT: usize = 8 * 1024;

/// The longest nonce and the longest name of a key, in bytes.
const LONGEST: usize = 128;

/// A request that is about to be signed.
#[derive(Debug)]
pub struct Draft {
    input: Input,
    base: String,
}

impl Draft {
    /// Adds the digest of the body to the headers, which are all there now that are to be covered; `created` is the time in
    /// seconds since 1970, `key` the fingerprint of the agent's key.
    ///
    /// # Errors
    /// A header cannot be covered, or the nonce is none.
    pub fn new(
        kind: Kind,
        target: &Target<'_>,
        headers: &mut HeaderMap,
        body: &BodyDigest,
        (created, nonce, key): (i64, &str, Option<&str>),
    ) -> Result<Self, Wrong> {
        let digest = format!("sha-256=:{}:", BASE64_STANDARD.encode(body));
        insert(headers, CONTENT_DIGEST, &digest)?;
        let mut ours: Vec<&str> = ours(headers).collect();
        ours.sort_unstable();
        let components = ALWAYS.iter().copied().chain(ours);
        let text = |name: &str, text: &str| (name.to_owned(), Value::Text(text.to_owned()));
        let mut parameters = vec![
            ("created".to_owned(), Value::Number(created)),
            text("nonce", nonce),
        ];
        parameters.extend(key.map(|key| text("keyid", key)));
        parameters.push(text("tag", kind.tag()));
        let input = Input::new(components.map(str::to_owned).collect(), parameters)?;
        let base = input.base(target, headers)?;
        Ok(Self { input, base })
    }

    /// What is to be signed.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Adds the signature to the headers.
    ///
    /// # Errors
    /// It cannot stand in a header.
    pub fn sign(&self, signature: &[u8], headers: &mut HeaderMap) -> Result<(), Wrong> {
        insert(headers, SIGNATURE_INPUT, &format!("{LABEL}={}", self.input))?;
        let signature = BASE64_STANDARD.encode(signature);
        insert(headers, SIGNATURE, &format!("{LABEL}=:{signature}:"))
    }
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), Wrong> {
    let value = HeaderValue::from_str(value).map_err(|_| Wrong::Header(name))?;
    headers.insert(HeaderName::from_static(name), value);
    Ok(())
}

/// The names of the headers that have to be covered.
fn ours(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .keys()
        .map(HeaderName::as_str)
        .filter(|name| name.starts_with(OURS))
}

/// A request that says it is signed. What it says is bounded and of the right form, and covers all that it has to: not
/// more is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    input: Input,
    signature: Vec<u8>,
    body: BodyDigest,
    created: i64,
    nonce: String,
    key: Option<String>,
}

impl Signed {
    /// Reads the signature of a kind. `None`: there is none.
    ///
    /// # Errors
    /// It is not one that is taken here, or leaves something out.
    pub fn read(kind: Kind, headers: &HeaderMap) -> Result<Option<Self>, Wrong> {
        let Some(inputs) = dictionary(headers, SIGNATURE_INPUT)? else {
            return Ok(None);
        };
        let of_kind = |list: &InnerList| {
            let tag = list.params.get("tag").and_then(text_of);
            tag.as_deref() == Some(kind.tag())
        };
        let mut found = inputs.iter().filter_map(|(label, entry)| match entry {
            ListEntry::InnerList(list) if of_kind(list) => Some((label, list)),
            ListEntry::InnerList(_) | ListEntry::Item(_) => None,
        });
        let Some((label, list)) = found.next() else {
            return Ok(None);
        };
        if found.next().is_some() {
            return Err(Wrong::Several(kind.tag()));
        }
        let input = input_of(list)?;
        let must = ALWAYS.iter().copied().chain(ours(headers));
        for name in must {
            if !input.covers(name) {
                return Err(Wrong::Uncovered(name.to_owned()));
            }
        }
        let signatures = dictionary(headers, SIGNATURE)?.ok_or(Wrong::NoSignature)?;
        let signature = signatures.get(label).and_then(bytes_of);
        let signature = signature.ok_or(Wrong::NoSignature)?;
        let digests = dictionary(headers, CONTENT_DIGEST)?;
        let digest = digests.as_ref().and_then(|d| d.get("sha-256"));
        let body = digest.and_then(bytes_of).and_then(|d| d.try_into().ok());
        let parameters = Parameters::read(kind, &input)?;
        Ok(Some(Self {
            signature,
            body: body.ok_or(Wrong::Header("Content-Digest"))?,
            created: parameters.created,
            nonce: parameters.nonce,
            key: parameters.key,
            input,
        }))
    }

    /// When it was signed, by the clock of who has signed it: in seconds since 1970.
    #[must_use]
    pub fn created(&self) -> i64 {
        self.created
    }

    /// What tells it from all others that were signed by the same key.
    #[must_use]
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// The fingerprint of the agent's key, of a request for a task.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The signature.
    #[must_use]
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// The text that it has to be the signature of.
    ///
    /// # Errors
    /// The request has not what is covered.
    pub fn base(&self, target: &Target<'_>, headers: &HeaderMap) -> Result<String, Wrong> {
        self.input.base(target, headers)
    }

    /// Whether the body is the one that was signed.
    ///
    /// # Errors
    /// It is not.
    pub fn is_of(&self, body: &BodyDigest) -> Result<(), Wrong> {
        if self.body == *body {
            Ok(())
        } else {
            Err(Wrong::Body)
        }
    }
}

/// What the parameters of a signature say.
struct Parameters {
    created: i64,
    nonce: String,
    key: Option<String>,
}

impl Parameters {
    fn read(kind: Kind, input: &Input) -> Result<Self, Wrong> {
        let wrong = |name: &str| Wrong::Parameter(name.to_owned());
        let (mut created, mut nonce, mut key) = (None, None, None);
        for (name, value) in input.parameters() {
            match (name, value) {
                ("created", Value::Number(time)) => created = Some(*time),
                ("nonce", Value::Text(text)) if is_name(text) => nonce = Some(text.clone()),
                ("keyid", Value::Text(text)) if is_name(text) => key = Some(text.clone()),
                ("alg", Value::Text(text)) if text == kind.algorithm() => {}
                ("tag", _) => {}
                // What is not known may be meant to make it worth less.
                _ => return Err(wrong(name)),
            }
        }
        if key.is_some() != (kind == Kind::Task) {
            return Err(wrong("keyid"));
        }
        Ok(Self {
            created: created.ok_or_else(|| wrong("created"))?,
            nonce: nonce.ok_or_else(|| wrong("nonce"))?,
            key,
        })
    }
}

fn is_name(text: &str) -> bool {
    (1..=LONGEST).contains(&text.len())
}

/// A header that is a dictionary, its lines joined. `None`: it is not there.
fn dictionary(headers: &HeaderMap, name: &'static str) -> Result<Option<Dictionary>, Wrong> {
    let wrong = || {
        Wrong::Header(match name {
            SIGNATURE_INPUT => "Signature-Input",
            SIGNATURE => "Signature",
            _ => "Content-Digest",
        })
    };
    let mut joined = Vec::new();
    for line in headers.get_all(name) {
        if !joined.is_empty() {
            joined.extend_from_slice(b", ");
        }
        joined.extend_from_slice(line.as_bytes());
        if joined.len() > LIMIT {
            return Err(wrong());
        }
    }
    if joined.is_empty() {
        return Ok(None);
    }
    let dictionary = Parser::new(&joined).parse::<Dictionary>();
    dictionary.map(Some).map_err(|_| wrong())
}

fn text_of(item: &BareItem) -> Option<String> {
    match item {
        BareItem::String(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

fn bytes_of(entry: &ListEntry) -> Option<Vec<u8>> {
    match entry {
        ListEntry::Item(item) => match &item.bare_item {
            BareItem::ByteSequence(bytes) => Some(bytes.clone()),
            _ => None,
        },
        ListEntry::InnerList(_) => None,
    }
}

fn input_of(list: &InnerList) -> Result<Input, Wrong> {
    let mut components = Vec::with_capacity(list.items.len());
    for item in &list.items {
        let name = text_of(&item.bare_item);
        match name {
            Some(name) if item.params.is_empty() => components.push(name),
            name => return Err(Wrong::Component(name.unwrap_or_default())),
        }
    }
    let mut parameters = Vec::with_capacity(list.params.len());
    for (name, value) in &list.params {
        let value = match value {
            BareItem::Integer(number) => Value::Number((*number).into()),
            BareItem::String(text) => Value::Text(text.as_str().to_owned()),
            _ => return Err(Wrong::Parameter(name.as_str().to_owned())),
        };
        parameters.push((name.as_str().to_owned(), value));
    }
    Input::new(components, parameters)
}

#[cfg(test)]
mod tests;
