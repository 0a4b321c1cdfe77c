//! Agents that must prove who they are, with `openssl` as the original's agents have it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::support::{Controller, field, has, request, result};

pub(crate) fn openssl(arguments: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    output.status.success().then_some(output.stdout)
}

/// A key pair: the private key's file, and the fingerprint as the original computes it.
pub(crate) fn key(dir: &Path, keys: &Path, name: &str, bits: &str) -> (PathBuf, String) {
    let private = dir.join(format!("{name}.key"));
    let file = private.to_str().unwrap();
    openssl(&["genrsa", "-out", file, bits], b"").unwrap();
    let public = openssl(&["rsa", "-in", file, "-pubout"], b"").unwrap();
    std::fs::write(keys.join(format!("{name}.pem")), public).unwrap();
    let der = openssl(&["rsa", "-in", file, "-pubout", "-outform", "DER"], b"").unwrap();
    let digest = openssl(&["dgst", "-sha256", "-r"], &der).unwrap();
    (private, String::from_utf8(digest).unwrap()[..64].to_owned())
}

fn with_fingerprint(fingerprint: &str) -> String {
    request("0.7.0").replacen("\n:\n", &format!("\nfingerprint: {fingerprint}\n:\n"), 1)
}

/// The result with the answer in base64, a line break after 76 characters.
pub(crate) fn answered(session: &str, signature: &[u8]) -> String {
    let base64 = BASE64_STANDARD.encode(signature);
    let lines: Vec<&str> = base64
        .as_bytes()
        .chunks(76)
        .map(|c| std::str::from_utf8(c).unwrap())
        .collect();
    result(session, "foo", "1", "success").replacen(
        "\n:\n",
        &format!("\nchallenge: \\\n{}\n\\\n:\n", lines.join("\n")),
        1,
    )
}

#[test]
fn the_answer_by_openssl() {
    if !has("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::create_dir(&keys).unwrap();
    let (private, fingerprint) = key(dir.path(), &keys, "agent", "2048");
    let (other, _) = key(dir.path(), &keys, "other", "5120");
    let private = private.to_str().unwrap();
    let controller = Controller::start(&dir.path().join("data"), |c| {
        c.agent_keys = Some(keys.clone());
    });
    let id = controller.submit("foo", "1").remove(0);

    assert_eq!(
        controller
            .agent("/?build-task", &[], &request("0.7.0"))
            .status,
        401
    );
    assert_eq!(
        controller
            .agent("/?build-task", &[], &with_fingerprint(&"0".repeat(64)))
            .status,
        401
    );
    assert_eq!(controller.build(&id)["state"], "queued");

    let ways: &[&[&str]] = &[
        &["pkeyutl", "-sign", "-inkey", private],
        &["rsautl", "-sign", "-inkey", private],
    ];
    let mut signed = 0;
    for way in ways {
        let answer = controller.agent("/?build-task", &[], &with_fingerprint(&fingerprint));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let (session, challenge) = (
            field(&answer.text(), "session"),
            field(&answer.text(), "challenge"),
        );
        assert_eq!(challenge.len(), 64);

        let wrong = openssl(
            &["pkeyutl", "-sign", "-inkey", other.to_str().unwrap()],
            challenge.as_bytes(),
        )
        .unwrap();
        let replay = openssl(
            &["pkeyutl", "-sign", "-inkey", private],
            "0".repeat(64).as_bytes(),
        )
        .unwrap();
        for bad in [
            result(&session, "foo", "1", "success"),
            answered(&session, &wrong),
            answered(&session, &replay),
        ] {
            assert_eq!(
                controller.agent("/?build-result", &[], &bad).status,
                200,
                "a stranger never learns"
            );
            assert_eq!(
                controller
                    .agent("/?build-result", &["Bbot-Agent: 1"], &bad)
                    .status,
                403
            );
        }
        assert_eq!(controller.build(&id)["state"], "building");

        // OpenSSL has dropped rsautl in places; pkeyutl makes the same signature.
        if let Some(signature) = openssl(way, challenge.as_bytes()) {
            signed += 1;
            let good = answered(&session, &signature);
            assert_eq!(
                controller
                    .agent("/?build-result", &["Bbot-Agent: 1"], &good)
                    .status,
                200
            );
            assert_eq!(controller.build(&id)["state"], "built");
            controller.send("POST", &format!("/api/v1/builds/{id}/rebuild"), b"");
        }
    }
    assert!(signed > 0);

    // A key larger than what the crate reads by itself is let in; one that is removed is shut out, without a restart.
    let der = openssl(
        &[
            "rsa",
            "-in",
            other.to_str().unwrap(),
            "-pubout",
            "-outform",
            "DER",
        ],
        b"",
    )
    .unwrap();
    let large = String::from_utf8(openssl(&["dgst", "-sha256", "-r"], &der).unwrap()).unwrap()
        [..64]
        .to_owned();
    assert_eq!(
        controller
            .agent("/?build-task", &[], &with_fingerprint(&large))
            .status,
        200
    );
    std::fs::remove_file(keys.join("other.pem")).unwrap();
    controller.clock.advance_seconds(2);
    assert_eq!(
        controller
            .agent("/?build-task", &[], &with_fingerprint(&large))
            .status,
        401
    );
}

/// Keys that cannot be read now shut nobody out for good: the last good ones go on, and who is not known among them is to come again.
#[test]
fn keys_that_cannot_be_read_cost_no_result() {
    if !has("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::create_dir(&keys).unwrap();
    let (private, fingerprint) = key(dir.path(), &keys, "agent", "2048");
    let controller = Controller::start(&dir.path().join("data"), |c| {
        c.agent_keys = Some(keys.clone());
    });
    let id = controller.submit("foo", "1").remove(0);
    let ask = || {
        controller.clock.advance_seconds(2);
        controller.agent("/?build-task", &[], &with_fingerprint(&fingerprint))
    };
    let bring = |session: &str, challenge: &str| {
        let sign = ["pkeyutl", "-sign", "-inkey", private.to_str().unwrap()];
        let signature = openssl(&sign, challenge.as_bytes()).unwrap();
        controller.clock.advance_seconds(2);
        let ours = ["Bbot-Agent: 1"];
        controller.agent("/?build-result", &ours, &answered(session, &signature))
    };
    let file = keys.join("agent.pem");
    let text = std::fs::read_to_string(&file).unwrap();
    let half = &text[..text.len() / 2];
    for (is_known, during, after) in [(true, 200, 200), (false, 503, 200)] {
        let task = ask().text();
        let (session, challenge) = (field(&task, "session"), field(&task, "challenge"));
        assert!(!session.is_empty());
        if is_known {
            std::fs::write(&file, half).unwrap();
        } else {
            // Written anew under another name.
            std::fs::remove_file(&file).unwrap();
            std::fs::write(keys.join("new.pem"), half).unwrap();
        }
        for answer in [ask(), bring(&session, &challenge)] {
            assert_eq!(answer.status, during, "{}", answer.text());
            assert_eq!(answer.header("retry-after").is_some(), during == 503);
        }
        // Whoever shows no key is not waited for.
        let answer = controller.agent("/?build-task", &[], &request("0.7.0"));
        assert_eq!(answer.status, 401);
        let place = if is_known {
            file.clone()
        } else {
            keys.join("new.pem")
        };
        std::fs::write(&place, &text).unwrap();
        assert_eq!(bring(&session, &challenge).status, after);
        assert_eq!(controller.build(&id)["state"], "built");
        controller.send("POST", &format!("/api/v1/builds/{id}/rebuild"), b"");
    }
    // What is removed on purpose is not valid any more, nor is it unsure.
    let task = ask().text();
    let (session, challenge) = (field(&task, "session"), field(&task, "challenge"));
    std::fs::remove_file(keys.join("new.pem")).unwrap();
    assert_eq!(bring(&session, &challenge).status, 403);
    assert_eq!(ask().status, 401);
}

#[test]
fn keys_of_a_wrong_kind_are_named_at_the_start() {
    if !has("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (arguments, expected) in [
        (
            &["genpkey", "-algorithm", "ed25519"][..],
            "is not an RSA public key",
        ),
        (
            &[
                "genpkey",
                "-algorithm",
                "RSA",
                "-pkeyopt",
                "rsa_keygen_bits:1024",
            ],
            "has 1024 bits",
        ),
    ] {
        let private = openssl(arguments, b"").unwrap();
        let public = openssl(&["pkey", "-pubout"], &private).unwrap();
        std::fs::write(dir.path().join("key.pem"), public).unwrap();
        let error = bbot_controller::auth::AgentKeys::open(dir.path())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(expected) && error.contains("key.pem"),
            "{error}"
        );
    }
}

#[test]
fn without_keys_a_fingerprint_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let answer = controller.agent("/?build-task", &[], &with_fingerprint(&"a".repeat(64)));
    assert_eq!(field(&answer.text(), "challenge"), "");
    let session = field(&answer.text(), "session");
    // An answer to a challenge that was not given.
    assert_eq!(
        controller
            .agent(
                "/?build-result",
                &["Bbot-Agent: 1"],
                &answered(&session, b"x")
            )
            .status,
        403
    );
    assert_eq!(controller.build(&id)["state"], "building");
    assert_eq!(
        controller
            .agent(
                "/?build-result",
                &[],
                &result(&session, "foo", "1", "success")
            )
            .status,
        200
    );
    assert_eq!(controller.build(&id)["state"], "built");
}
