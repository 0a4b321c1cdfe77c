//! TLS by the controller itself.

use std::net::TcpStream;
use std::path::{Path, PathBuf};

use bbot_controller::TlsFiles;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::support::{Answer, Controller, curl, field, request};

/// An authority, and a certificate of its for the loopback in these files; the authority's own file.
fn issue(folder: &Path, files: &TlsFiles, name: &str) -> PathBuf {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Who issues and who is issued must be told apart.
    params.distinguished_name.push(DnType::CommonName, name);
    let authority = folder.join(name);
    std::fs::write(&authority, params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let certificate = own.signed_by(&key, &issuer).unwrap();
    std::fs::write(&files.certificate, certificate.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    authority
}

fn ask(controller: &Controller, authority: &Path, path: &str, more: &[&str], body: &str) -> Answer {
    let url = format!("https://{}{path}", controller.address);
    let authority = authority.display().to_string();
    let arguments = [&["--cacert", &authority], more, &[&url]].concat();
    curl(&arguments, body.as_bytes())
}

fn is_trusted(controller: &Controller, authority: &Path) -> bool {
    let output = std::process::Command::new("curl")
        .args(["--silent", "--output", "/dev/null", "--cacert"])
        .arg(authority)
        .arg(format!("https://{}/healthz", controller.address))
        .status();
    output.unwrap().success()
}

#[test]
fn it_speaks_tls_and_takes_a_renewed_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles {
        certificate: dir.path().join("cert.pem"),
        key: dir.path().join("key.pem"),
    };
    let first = issue(dir.path(), &files, "first.pem");
    let tls = files.clone();
    let controller = Controller::start(&dir.path().join("data"), |c| c.tls = Some(tls));
    assert_eq!(ask(&controller, &first, "/healthz", &[], "").status, 200);

    // Whatever it says of itself is said with https.
    let token = format!("Authorization: Bearer {}", controller.token);
    let submission = r#"{"name": "foo", "version": "1", "source": {"repository": {"url": "https://example.org/1/x"}}}"#;
    let put = ["-H", &token, "--data-binary", "@-"];
    let answer = ask(&controller, &first, "/api/v1/submissions", &put, submission);
    assert_eq!(answer.status, 201, "{}", answer.text());
    let put = ["-H", "Content-Type: text/manifest", "--data-binary", "@-"];
    let task = ask(&controller, &first, "/?build-task", &put, &request("0.7.0"));
    let url = field(&task.text(), "result-url");
    assert_eq!(url, format!("https://{}/?build-result", controller.address));
    let form = format!("token={}", controller.token);
    let put = ["--data-binary", "@-"];
    let signed_in = ask(&controller, &first, "/sign-in", &put, &form);
    assert!(
        signed_in
            .header("set-cookie")
            .unwrap()
            .ends_with("; Secure")
    );

    // Who speaks no TLS, or says nothing, harms nobody.
    let silent = TcpStream::connect(controller.address).unwrap();
    let plain = std::process::Command::new("curl")
        .args(["--silent", &controller.url("/healthz")])
        .status();
    assert!(!plain.unwrap().success());
    assert!(is_trusted(&controller, &first));
    drop(silent);

    // A certificate and a key that do not fit change nothing; those that do count a second later.
    let other = KeyPair::generate().unwrap();
    let key = std::fs::read(&files.key).unwrap();
    std::fs::write(&files.key, other.serialize_pem()).unwrap();
    controller.clock.advance_seconds(2);
    assert!(is_trusted(&controller, &first));
    std::fs::write(&files.key, key).unwrap();
    let second = issue(dir.path(), &files, "second.pem");
    controller.clock.advance_seconds(2);
    assert!(is_trusted(&controller, &second));
    assert!(!is_trusted(&controller, &first));
}
