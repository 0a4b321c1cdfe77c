use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::{SessionKey, body_digest};

const TARGET: Target<'static> = Target {
    method: "POST",
    authority: "c.example:8080",
    path: "/sessions/0f/lease",
    query: None,
};

fn key() -> SessionKey {
    SessionKey::parse(&"07".repeat(32)).unwrap()
}

fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
    let header = |&(name, value): &(&'static str, &str)| {
        let value = HeaderValue::from_str(value).unwrap();
        (HeaderName::from_static(name), value)
    };
    all.iter().map(header).collect()
}

/// A request of a session, signed.
fn signed(body: &[u8]) -> HeaderMap {
    let mut headers = headers(&[
        ("bbot-wait", "15"),
        ("bbot-agent", "1"),
        ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
    ]);
    let about = (1_618_884_473, "17", None);
    let digest = body_digest(body);
    let draft = Draft::new(Kind::Session, &TARGET, &mut headers, &digest, about).unwrap();
    let signature = key().sign(draft.base());
    draft.sign(&signature, &mut headers).unwrap();
    headers
}

/// Whether it is a good signature of this body.
fn is_good(target: &Target<'_>, headers: &HeaderMap, body: &[u8]) -> Result<bool, Wrong> {
    let Some(signed) = Signed::read(Kind::Session, headers)? else {
        return Ok(false);
    };
    signed.is_of(&body_digest(body))?;
    let base = signed.base(target, headers)?;
    Ok(key().verify(&base, signed.signature()))
}

#[test]
fn what_is_written_is_read() {
    let headers = signed(b"body");
    assert_eq!(
        headers["signature-input"],
        "bbot=(\"@method\" \"@authority\" \"@path\" \"@query\" \"content-digest\" \"bbot-agent\" \"bbot-wait\")\
         ;created=1618884473;nonce=\"17\";tag=\"bbot-session\""
    );
    let read = Signed::read(Kind::Session, &headers).unwrap().unwrap();
    assert_eq!(
        (read.created(), read.nonce(), read.key()),
        (1_618_884_473, "17", None)
    );
    assert_eq!(is_good(&TARGET, &headers, b"body"), Ok(true));
    // Of another kind there is none.
    assert_eq!(Signed::read(Kind::Task, &headers), Ok(None));
    assert_eq!(Signed::read(Kind::Session, &HeaderMap::new()), Ok(None));
}

#[test]
fn whatever_is_changed_shows() {
    let good = signed(b"body");
    assert_eq!(is_good(&TARGET, &good, b"bodY"), Err(Wrong::Body));
    for target in [
        Target {
            method: "PUT",
            ..TARGET
        },
        Target {
            authority: "c.example",
            ..TARGET
        },
        Target {
            path: "/sessions/0f/log/1",
            ..TARGET
        },
        Target {
            query: Some("x"),
            ..TARGET
        },
    ] {
        assert_eq!(is_good(&target, &good, b"body"), Ok(false), "{target:?}");
    }
    let with = |name: &'static str, value: &str| {
        let mut headers = good.clone();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        is_good(&TARGET, &headers, b"body")
    };
    assert_eq!(with("bbot-wait", "16"), Ok(false));
    // It says what time it is, and nobody acts on it.
    assert_eq!(with("date", "Tue, 20 Apr 2021 02:07:56 GMT"), Ok(true));
    // One more that says what is done.
    let one_more = with("bbot-log-skip", "1");
    assert_eq!(one_more, Err(Wrong::Uncovered("bbot-log-skip".to_owned())));
    let mut less = good.clone();
    less.remove("bbot-wait");
    assert_eq!(
        is_good(&TARGET, &less, b"body"),
        Err(Wrong::Missing("bbot-wait".to_owned()))
    );
    let mut twice = good.clone();
    twice.append("bbot-wait", HeaderValue::from_static("15"));
    assert_eq!(is_good(&TARGET, &twice, b"body"), Ok(false));
    // The digest with the body.
    let digest = format!(
        "sha-256=:{}:",
        BASE64_STANDARD.encode(body_digest(b"other"))
    );
    let mut swapped = good.clone();
    swapped.insert("content-digest", HeaderValue::from_str(&digest).unwrap());
    assert_eq!(is_good(&TARGET, &swapped, b"other"), Ok(false));
}

#[test]
fn signatures_that_are_not_taken() {
    let good = signed(b"");
    let input = good["signature-input"].to_str().unwrap().to_owned();
    let signature = good["signature"].to_str().unwrap().to_owned();
    let parameter = |name: &str| Wrong::Parameter(name.to_owned());
    let cases: Vec<(String, String, Wrong)> = vec![
        (
            input.replace(";nonce=\"17\"", ""),
            signature.clone(),
            parameter("nonce"),
        ),
        (
            input.replace("\"17\"", "17"),
            signature.clone(),
            parameter("nonce"),
        ),
        (
            input.replace("\"17\"", "\"\""),
            signature.clone(),
            parameter("nonce"),
        ),
        (
            input.replace("\"17\"", &format!("\"{}\"", "1".repeat(129))),
            signature.clone(),
            parameter("nonce"),
        ),
        (
            input.replace("\"17\"", "\"1\\\"7\""),
            signature.clone(),
            parameter("nonce"),
        ),
        (
            input.replace(";created=1618884473", ""),
            signature.clone(),
            parameter("created"),
        ),
        (
            input.replace("1618884473", "1.5"),
            signature.clone(),
            parameter("created"),
        ),
        (
            format!("{input};expires=1"),
            signature.clone(),
            parameter("expires"),
        ),
        (
            format!("{input};alg=\"none\""),
            signature.clone(),
            parameter("alg"),
        ),
        (
            format!("{input};keyid=\"x\""),
            signature.clone(),
            parameter("keyid"),
        ),
        (
            input.replace("\"@path\" ", ""),
            signature.clone(),
            Wrong::Uncovered("@path".to_owned()),
        ),
        (
            input.replace("\"@path\"", "\"@path\" \"@path\""),
            signature.clone(),
            Wrong::Component("@path".to_owned()),
        ),
        (
            input.replace("\"@path\"", "\"@path\";req"),
            signature.clone(),
            Wrong::Component("@path".to_owned()),
        ),
        (
            format!("{input}, {}", input.replace("bbot=", "other=")),
            signature.clone(),
            Wrong::Several("bbot-session"),
        ),
        (
            input.clone(),
            signature.replace("bbot=", "other="),
            Wrong::NoSignature,
        ),
        (input.clone(), "bbot=17".to_owned(), Wrong::NoSignature),
        (
            input.clone(),
            "bbot=(".to_owned(),
            Wrong::Header("Signature"),
        ),
        (
            "bbot=(".to_owned(),
            signature.clone(),
            Wrong::Header("Signature-Input"),
        ),
        (
            format!("{input}, x=\"{}\"", "y".repeat(9000)),
            signature.clone(),
            Wrong::Header("Signature-Input"),
        ),
    ];
    for (input, signature, expected) in cases {
        let mut headers = good.clone();
        headers.insert("signature-input", HeaderValue::from_str(&input).unwrap());
        headers.insert("signature", HeaderValue::from_str(&signature).unwrap());
        assert_eq!(
            Signed::read(Kind::Session, &headers),
            Err(expected),
            "{input:.300}"
        );
    }
    let mut undigested = good.clone();
    undigested.insert("content-digest", HeaderValue::from_static("md5=:AAAA:"));
    assert_eq!(
        Signed::read(Kind::Session, &undigested),
        Err(Wrong::Header("Content-Digest"))
    );
    // A proxy's own beside it.
    let mut beside = good.clone();
    let theirs = HeaderValue::from_static("proxy=(\"@status\");created=1;tag=\"proxy\"");
    beside.append("signature-input", theirs);
    beside.append("signature", HeaderValue::from_static("proxy=:AAAA:"));
    assert_eq!(is_good(&TARGET, &beside, b""), Ok(true));
}

#[test]
fn the_name_of_the_algorithm_may_be_said() {
    let mut headers = signed(b"");
    let input = headers["signature-input"].to_str().unwrap();
    let input = format!("{input};alg=\"hmac-sha256\"");
    headers.insert("signature-input", HeaderValue::from_str(&input).unwrap());
    let read = Signed::read(Kind::Session, &headers).unwrap().unwrap();
    // It is covered as well.
    let base = read.base(&TARGET, &headers).unwrap();
    assert!(base.ends_with(";alg=\"hmac-sha256\""));
    assert!(!key().verify(&base, read.signature()));
}

proptest! {
    #[test]
    fn no_header_is_too_much(input in "\\PC{0,200}", signature in "\\PC{0,200}", digest in "\\PC{0,100}") {
        let mut headers = signed(b"");
        for (name, value) in [("signature-input", input), ("signature", signature), ("content-digest", digest)] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
        for kind in [Kind::Task, Kind::Session] {
            if let Ok(Some(signed)) = Signed::read(kind, &headers) {
                let _ = signed.base(&TARGET, &headers);
            }
        }
    }

    #[test]
    fn any_text_of_a_header_is_covered(value in "[ -~]{0,40}", nonce in "[ !#-\\[\\]-~]{1,40}") {
        let mut headers = headers(&[("bbot-artifact-name", &value)]);
        let digest = body_digest(b"");
        let draft = Draft::new(Kind::Session, &TARGET, &mut headers, &digest, (-5, &nonce, None)).unwrap();
        draft.sign(&key().sign(draft.base()), &mut headers).unwrap();
        prop_assert_eq!(is_good(&TARGET, &headers, b""), Ok(true));
        let read = Signed::read(Kind::Session, &headers).unwrap().unwrap();
        prop_assert_eq!((read.created(), read.nonce()), (-5, nonce.as_str()));
    }
}
