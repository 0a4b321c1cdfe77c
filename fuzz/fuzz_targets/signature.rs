//! The headers of a signed request: whatever is read is bounded, covers what it has to, and is the same in its one form.
#![no_main]

use bbot_fuzz::Input;
use bbot_signature::{Kind, PublicKey, Signed, Target};
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;

const DIGEST: &str = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";

const TARGET: Target<'static> = Target {
    method: "POST",
    authority: "c.example",
    path: "/",
    query: Some("build-task"),
};

fn insert(headers: &mut HeaderMap, name: &'static str, value: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(value) {
        headers.append(name, value);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mut headers = HeaderMap::new();
    insert(&mut headers, "signature-input", input.long());
    insert(&mut headers, "signature", input.long());
    insert(&mut headers, "bbot-wait", input.short());
    match input.short() {
        b"" => insert(&mut headers, "content-digest", DIGEST.as_bytes()),
        digest => insert(&mut headers, "content-digest", digest),
    }
    match input.short() {
        b"" => {}
        more => insert(&mut headers, "signature-input", more),
    }
    let text = String::from_utf8_lossy(input.rest());
    if let Ok(key) = PublicKey::parse(&text) {
        assert_eq!(key.hex().len(), 64);
    }
    for kind in [Kind::Task, Kind::Session] {
        let Ok(Some(signed)) = Signed::read(kind, &headers) else {
            continue;
        };
        assert!((1..=128).contains(&signed.nonce().len()));
        assert_eq!(signed.key().is_some(), kind == Kind::Task);
        let Ok(base) = signed.base(&TARGET, &headers) else {
            continue;
        };
        for line in [
            "\"@path\": /\n",
            "\"@method\": POST\n",
            "\"@query\": ?build-task\n",
        ] {
            assert!(base.contains(line));
        }
        assert_eq!(
            headers.contains_key("bbot-wait"),
            base.contains("\"bbot-wait\": ")
        );
        // In its one form, and by itself, it is the same.
        let (_, form) = base
            .rsplit_once("\"@signature-params\": ")
            .expect("it ends so");
        let own = format!("bbot={form}");
        let value = HeaderValue::from_str(&own).expect("it is text");
        let mut again = headers.clone();
        again.insert("signature-input", value);
        again.insert("signature", signature(signed.signature()));
        let again = Signed::read(kind, &again)
            .expect("it can be read")
            .expect("it is there");
        assert_eq!(again, signed);
    }
});

/// The signature under our own label.
fn signature(bytes: &[u8]) -> HeaderValue {
    use base64::Engine as _;
    let text = base64::prelude::BASE64_STANDARD.encode(bytes);
    HeaderValue::from_str(&format!("bbot=:{text}:")).expect("it is text")
}
