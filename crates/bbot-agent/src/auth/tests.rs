//! Keys, fingerprints and signatures, held against those of `openssl`.

use std::process::Command;

use rsa::pkcs1::EncodeRsaPrivateKey as _;

use super::*;

const CHALLENGE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn openssl() -> Option<PathBuf> {
    testkit::program("openssl", "openssl").then(|| PathBuf::from("openssl"))
}

fn key_files(dir: &Path) -> [PathBuf; 2] {
    let pkcs8 = dir.join("pkcs8.pem");
    keygen_file(&pkcs8, 2048).unwrap();
    let key = read_key(&pkcs8).unwrap();
    let pkcs1 = dir.join("pkcs1.pem");
    std::fs::write(&pkcs1, key.to_pkcs1_pem(LineEnding::LF).unwrap().as_bytes()).unwrap();
    [pkcs8, pkcs1]
}

fn output(command: &mut Command, input: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

#[tokio::test]
async fn fingerprint_and_answer_equal_openssls() {
    let Some(openssl) = openssl() else { return };
    let dir = tempfile::tempdir().unwrap();
    let challenge = Challenge::new(CHALLENGE).unwrap();
    for key in key_files(dir.path()) {
        let signer = Signer::open(&key, None, &[]).await.unwrap();

        let der = output(
            Command::new(&openssl)
                .args(["rsa", "-pubout", "-outform", "DER", "-in"])
                .arg(&key),
            b"",
        );
        assert_eq!(signer.fingerprint(), hex::encode(Sha256::digest(&der)));
        assert_eq!(signer.fingerprint(), fingerprint(&key).unwrap());

        let ours = signer.sign(&challenge).await.unwrap();
        let theirs = output(
            Command::new(&openssl)
                .args(["pkeyutl", "-sign", "-inkey"])
                .arg(&key),
            CHALLENGE.as_bytes(),
        );
        assert_eq!(ours, theirs, "pkeyutl -sign");
        let has_rsautl = Command::new(&openssl)
            .args(["rsautl", "-help"])
            .output()
            .unwrap();
        if has_rsautl.status.success() {
            let theirs = output(
                Command::new(&openssl)
                    .args(["rsautl", "-sign", "-inkey"])
                    .arg(&key),
                CHALLENGE.as_bytes(),
            );
            assert_eq!(ours, theirs, "rsautl -sign");
        }
    }
}

#[tokio::test]
async fn the_program_gives_the_same() {
    let Some(openssl) = openssl() else { return };
    let dir = tempfile::tempdir().unwrap();
    let [key, _] = key_files(dir.path());
    let own = Signer::open(&key, None, &[]).await.unwrap();
    let program = Signer::open(&key, Some(&openssl), &[]).await.unwrap();
    assert_eq!(own.fingerprint(), program.fingerprint());
    let challenge = Challenge::new(CHALLENGE).unwrap();
    assert_eq!(
        own.sign(&challenge).await.unwrap(),
        program.sign(&challenge).await.unwrap()
    );
}

#[tokio::test]
async fn the_signature_of_a_request_is_that_of_openssl_with_a_hash() {
    let Some(openssl) = openssl() else { return };
    let dir = tempfile::tempdir().unwrap();
    let [key, _] = key_files(dir.path());
    let base = "\"@method\": POST\n\"@signature-params\": (\"@method\");created=1";
    let info = bbot_signature::digest_info(base);
    let theirs = output(
        Command::new(&openssl)
            .args(["dgst", "-sha256", "-sign"])
            .arg(&key),
        base.as_bytes(),
    );
    for program in [None, Some(openssl.as_path())] {
        let signer = Signer::open(&key, program, &[]).await.unwrap();
        assert_eq!(
            signer.sign_request(&info).await.unwrap(),
            theirs,
            "{program:?}"
        );
    }
}

/// A program that has no `rsautl` any more, and that wants its option.
#[tokio::test]
async fn the_program_gets_its_options_and_may_lack_rsautl() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let [key, _] = key_files(dir.path());
    let program = dir.path().join("prog");
    std::fs::write(
        &program,
        "#!/bin/sh\ncat >/dev/null\ntest \"$2\" = -card || exit 9\ncase $1 in\n\
         rsa) printf DER ;;\npkeyutl) printf 'signed with %s' \"$5\" ;;\n*) exit 1 ;;\nesac\n",
    )
    .unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let options = ["-card".to_owned()];
    let signer = Signer::open(&key, Some(&program), &options).await.unwrap();
    assert_eq!(signer.fingerprint(), hex::encode(Sha256::digest(b"DER")));
    let answer = signer
        .sign(&Challenge::new(CHALLENGE).unwrap())
        .await
        .unwrap();
    assert_eq!(answer, format!("signed with {}", key.display()).as_bytes());

    let refused = Signer::open(&key, Some(&program), &[]).await.unwrap_err();
    assert!(refused.to_string().contains("rsa failed"), "{refused}");
    let absent = Signer::open(&key, Some(&dir.path().join("no")), &[])
        .await
        .unwrap_err();
    assert!(absent.to_string().contains("does not run"), "{absent}");
}

#[test]
fn only_64_lower_case_hex_digits_are_a_challenge() {
    assert!(Challenge::new(CHALLENGE).is_some());
    for wrong in [
        "",
        &CHALLENGE[1..],
        &format!("{CHALLENGE}0"),
        &CHALLENGE.to_uppercase(),
        &CHALLENGE.replace('0', "g"),
        &format!("{}\n", &CHALLENGE[1..]),
    ] {
        assert!(Challenge::new(wrong).is_none(), "{wrong:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_key_is_named_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent.pem");
    let error = Signer::open(&absent, None, &[]).await.unwrap_err();
    assert!(error.to_string().contains("absent.pem"), "{error}");

    let wrong = dir.path().join("wrong.pem");
    for text in [
        &b"hello"[..],
        b"\xff\xfe",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n",
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    ] {
        std::fs::write(&wrong, text).unwrap();
        let error = Signer::open(&wrong, None, &[])
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("wrong.pem") && error.contains("bbot keygen"),
            "{error}"
        );
    }
}

#[test]
fn an_elliptic_key_is_not_an_rsa_key() {
    let Some(openssl) = openssl() else { return };
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("ec.pem");
    let made = Command::new(openssl)
        .args(["genpkey", "-algorithm", "ED25519", "-out"])
        .arg(&key)
        .status()
        .unwrap();
    assert!(made.success());
    assert!(matches!(fingerprint(&key), Err(AuthError::NotRsa { .. })));
}

#[test]
fn a_new_key_is_private_and_replaces_none() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key.pem");
    let fingerprint = keygen_file(&key, 2048).unwrap();
    assert_eq!(fingerprint.len(), 64);
    assert_eq!(
        std::fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let before = std::fs::read(&key).unwrap();
    assert!(matches!(
        keygen_file(&key, 2048),
        Err(AuthError::Save { .. })
    ));
    assert_eq!(std::fs::read(&key).unwrap(), before);

    let other = dir.path().join("other.pem");
    assert!(matches!(
        keygen_file(&other, 1024),
        Err(AuthError::Generate { bits: 1024, .. })
    ));
    assert!(!other.exists());
}
