//! What is signed of a request, and what follows when a controller has another time.

use std::time::SystemTime;

use bbot_signature::{
    Ephemeral, Kind, PublicKey, SESSION_KEY, SessionKey, Signed, Target, body_digest, digest_info,
};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use rsa::pkcs8::DecodePublicKey as _;
use rsa::{Pkcs1v15Sign, RsaPublicKey};

use super::*;
use crate::auth::{Signer, keygen_file, public_key};

const OURS: &str = "Bbot-Controller: 1\r\n";

fn headers(seen: &Seen) -> HeaderMap {
    let header = |line: &String| {
        let (name, value) = line.split_once(':')?;
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_str(value.trim()).ok()?))
    };
    seen.headers.iter().filter_map(header).collect()
}

/// The signature of a request, with the text that it is of.
fn signed(seen: &Seen, kind: Kind) -> (Signed, String) {
    let headers = headers(seen);
    let signed = Signed::read(kind, &headers).unwrap().unwrap();
    signed.is_of(&body_digest(&seen.body)).unwrap();
    let mut line = seen.line.split(' ');
    let (method, target) = (line.next().unwrap(), line.next().unwrap());
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let target = Target {
        method,
        authority: seen.header("host").unwrap(),
        path,
        query,
    };
    let base = signed.base(&target, &headers).unwrap();
    (signed, base)
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    i64::try_from(now.unwrap().as_secs()).unwrap()
}

fn key() -> SessionKey {
    SessionKey::parse(&"0f".repeat(32)).unwrap()
}

fn channel(url: &Url) -> Channel {
    Channel {
        url: url.join("/sessions/1").unwrap(),
        key: Some(key()),
    }
}

/// The header with the time of a controller whose clock is so far ahead.
fn date(ahead: i64) -> String {
    let time = u64::try_from(now() + ahead).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(time);
    format!("{OURS}Date: {}\r\n", httpdate::fmt_http_date(time))
}

#[tokio::test]
async fn a_request_for_a_task_is_signed_by_the_agents_key_and_agrees_on_another() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key.pem");
    keygen_file(&file, 2048).unwrap();
    let signer = Arc::new(Signer::open(&file, None, &[]).await.unwrap());
    let theirs = Ephemeral::new().unwrap();
    let agreed = format!("{OURS}{SESSION_KEY}: {}\r\n", theirs.public());
    let (url, server) = serve(vec![
        answer(
            "307 Temporary Redirect",
            "Location: /b/?build-task&r=x\r\n",
            "",
        ),
        answer("200 OK", &agreed, ": 1\nsession:\n"),
        // A stranger's word is not one of ours.
        answer(
            "200 OK",
            &format!("{SESSION_KEY}: x\r\n"),
            ": 1\nsession:\n",
        ),
        answer(
            "200 OK",
            &format!("{OURS}{SESSION_KEY}: x\r\n"),
            ": 1\nsession:\n",
        ),
        answer(
            "401 Unauthorized",
            &date(600),
            "the agent's clock is 10 min behind",
        ),
    ]);
    let url = task_url(url.as_str()).unwrap();
    let ask = async || {
        let manner = Manner {
            hold: Duration::from_secs(7),
            is_drained: true,
            key: Some(Arc::clone(&signer) as Arc<dyn RequestKey>),
        };
        let body = ": 1\nagent: a\n".to_owned();
        http().request_task(&url, body, manner).await
    };
    let got = ask().await.unwrap();
    assert_eq!(ask().await.unwrap().agreement, None);
    let useless = ask().await.unwrap_err();
    assert!(useless.to_string().contains("no use"), "{useless}");
    // That its clock is wrong is for a person: it is not tried with another time.
    let late = ask().await.unwrap_err();
    assert!(late.to_string().contains("10 min behind"), "{late}");
    let seen = server.join().unwrap();
    assert_eq!(seen.len(), 5);

    let public = RsaPublicKey::from_public_key_pem(&public_key(&file).unwrap()).unwrap();
    let mut nonces = std::collections::HashSet::new();
    for seen in &seen {
        let (signed, base) = signed(seen, Kind::Task);
        assert_eq!(signed.key(), Some(signer.fingerprint()));
        assert!((signed.created() - now()).abs() < 60);
        assert!(nonces.insert(signed.nonce().to_owned()), "each has its own");
        let info = digest_info(&base);
        let scheme = Pkcs1v15Sign::new_unprefixed();
        public.verify(scheme, &info, signed.signature()).unwrap();
        for line in [
            "\"bbot-wait\": 7\n",
            "\"bbot-drained\": 1\n",
            "\"bbot-agent\": 1\n",
        ] {
            assert!(base.contains(line), "{base}");
        }
    }
    let (_, base) = signed(&seen[1], Kind::Task);
    assert!(
        base.contains("\"@path\": /b/\n\"@query\": ?build-task&r=x\n"),
        "{base}"
    );
    let own = PublicKey::parse(seen[1].header(SESSION_KEY).unwrap()).unwrap();
    let agreement = theirs.agree(bbot_signature::End::Controller, &own).unwrap();
    assert_eq!(got.agreement, Some(agreement));
}

#[tokio::test]
async fn without_a_key_nothing_is_signed() {
    let (url, server) = serve(vec![answer("200 OK", OURS, ": 1\nsession:\n"); 2]);
    let manner = Manner::from(Duration::from_secs(7));
    http()
        .request_task(&url, String::new(), manner)
        .await
        .unwrap();
    http().post_result(&to(&url, Kin::Ours), Vec::new()).await;
    for seen in server.join().unwrap() {
        for name in [
            "signature",
            "signature-input",
            "content-digest",
            SESSION_KEY,
        ] {
            assert_eq!(seen.header(name), None);
        }
    }
}

#[tokio::test]
async fn all_of_a_session_is_signed_by_its_key() {
    let (url, server) = serve(vec![
        answer("204 No Content", OURS, ""),
        answer("204 No Content", OURS, ""),
        answer("200 OK", OURS, ""),
    ]);
    let (http, channel) = (http(), channel(&url));
    let short = Duration::from_secs(5);
    let renewed = http.renew_lease(&channel, 17, short, short).await;
    assert_eq!(renewed, Renewed::Until(None));
    let sent = http.post_segment(&channel, 3, true, b"update\nx".to_vec());
    assert_eq!(sent.await, Acknowledged::Taken);
    let result = Destination {
        key: Some(key()),
        log: Some(3),
        ..to(&url, Kin::Ours)
    };
    let posted = http.post_result(&result, b"result".to_vec()).await;
    assert_eq!(posted, Posted::Taken);
    let seen = server.join().unwrap();
    let expected = [
        ("\"@path\": /sessions/1/lease\n", "\"bbot-wait\": 5\n"),
        ("\"@path\": /sessions/1/log/3\n", "\"bbot-log-skip\": 1\n"),
        ("\"@path\": /\n", "\"bbot-log-last\": 3\n"),
    ];
    for (seen, (path, header)) in seen.iter().zip(expected) {
        let (signed, base) = signed(seen, Kind::Session);
        assert!(key().verify(&base, signed.signature()));
        assert!(base.contains(path) && base.contains(header), "{base}");
    }
    assert_eq!(signed(&seen[0], Kind::Session).0.nonce(), "17");
}

#[tokio::test]
async fn a_clock_that_was_set_does_not_cost_the_build() {
    let refused = |ahead| {
        answer(
            "401 Unauthorized",
            &date(ahead),
            "the agent's clock is wrong",
        )
    };
    let (url, server) = serve(vec![
        // The controller's clock is ten minutes ahead, and then not any more.
        refused(600),
        answer("204 No Content", OURS, ""),
        answer("204 No Content", OURS, ""),
        refused(0),
        answer("204 No Content", OURS, ""),
        // It has the same time, and refuses it for something else.
        refused(0),
        // Somebody between says so.
        answer("401 Unauthorized", &date(600).replace(OURS, ""), "sign in"),
    ]);
    let (channel, short) = (channel(&url), Duration::from_secs(5));
    let http = http();
    for number in 1..=3 {
        let renewed = http.renew_lease(&channel, number, Duration::ZERO, short);
        assert_eq!(renewed.await, Renewed::Until(None), "{number}");
    }
    for number in 4..=5 {
        let renewed = http.renew_lease(&channel, number, Duration::ZERO, short);
        assert!(matches!(renewed.await, Renewed::Again(_)), "{number}");
    }
    let seen = server.join().unwrap();
    let sent: Vec<(String, i64)> = seen
        .iter()
        .map(|seen| {
            let (signed, base) = signed(seen, Kind::Session);
            assert!(key().verify(&base, signed.signature()));
            let ahead = signed.created() - now();
            (signed.nonce().to_owned(), (ahead + 30).div_euclid(60))
        })
        .collect();
    let sent: Vec<(&str, i64)> = sent.iter().map(|(n, a)| (n.as_str(), *a)).collect();
    assert_eq!(
        sent,
        [
            ("1", 0),
            ("1", 10),
            ("2", 10),
            ("3", 10),
            ("3", 0),
            ("4", 0),
            ("5", 0)
        ]
    );
}
