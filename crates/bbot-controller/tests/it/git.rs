//! Fetching a commit from a real server over TLS.

use std::io::{ErrorKind, Read as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bbot_controller::source::git::Addresses;
use serde_json::json;

use crate::process::Running;
use crate::support::{Controller, curl, has};

/// A file server over TLS: git's plain ("dumb") protocol needs no more.
const SERVER: &str = r#"
import functools, http.server, ssl, sys
root, key, certificate = sys.argv[1:]
class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        if self.path.startswith('/redirect/'):
            self.send_response(302); self.send_header('Location', self.path.replace('/redirect', '')); self.end_headers()
        else:
            super().do_GET()
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=root))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(program: &str, arguments: &[&str], dir: &Path) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .envs([
            ("GIT_AUTHOR_DATE", "2020-01-01T00:00:00Z"),
            ("GIT_COMMITTER_DATE", "2020-01-01T00:00:00Z"),
        ])
        .envs([
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_commit_becomes_an_archive() {
    if !(has("git") && has("openssl") && has("python3")) {
        return;
    }
    use std::io::BufRead as _;
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    // git runs as nobody where the tests run as root, and has to read the certificate.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let work = dir.path().join("work");
    std::fs::create_dir_all(work.join("src")).unwrap();
    std::fs::write(work.join("configure"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(
        work.join("configure"),
        std::fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    std::fs::write(work.join("src/a.c"), "int a;\n").unwrap();
    std::os::unix::fs::symlink("src/a.c", work.join("link.c")).unwrap();
    // No worker would unpack an archive with this one.
    std::os::unix::fs::symlink("/etc/passwd", work.join("outside")).unwrap();
    run("git", &["init", "-q", "-b", "main"], &work);
    run("git", &["add", "."], &work);
    run(
        "git",
        &[
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "commit",
            "-q",
            "-m",
            "one",
        ],
        &work,
    );
    let commit = run("git", &["rev-parse", "HEAD"], &work);
    run(
        "git",
        &["clone", "-q", "--bare", "work", "www.git"],
        dir.path(),
    );
    run("git", &["update-server-info"], &dir.path().join("www.git"));
    run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
        ],
        dir.path(),
    );
    let mut server = Server(
        Command::new("python3")
            .args(["-c", SERVER, dir.path().to_str().unwrap()])
            .args([dir.path().join("key.pem"), dir.path().join("cert.pem")])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let mut port = String::new();
    std::io::BufReader::new(server.0.stdout.take().unwrap())
        .read_line(&mut port)
        .unwrap();
    let port = port.trim();

    let data = dir.path().join("data");
    let running = Running::start(&data, |command| {
        command
            .arg("--allow-private-sources")
            .env("GIT_SSL_CAINFO", dir.path().join("cert.pem"));
    });
    let token = std::fs::read_to_string(data.join("token"))
        .unwrap()
        .trim()
        .to_owned();
    let submit = |url: &str, commit: &str| {
        let body =
            json!({"name": "a", "version": "1", "source": {"git": {"url": url, "commit": commit}}});
        running.send(
            &token,
            "POST",
            "/api/v1/submissions",
            body.to_string().as_bytes(),
        )
    };
    let url = format!("https://127.0.0.1:{port}/www.git");
    let answer = submit(&url, &commit);
    assert_eq!(answer.status, 201, "{}", answer.text());
    let sha256 = answer.json()["source"]["git"]["archive"]
        .as_str()
        .unwrap()
        .to_owned();
    // The same commit is the same archive.
    let again = submit(&format!("https://localhost:{port}/www.git"), &commit);
    assert_eq!(again.status, 201, "{}", again.text());
    assert_eq!(again.json()["source"]["git"]["archive"], sha256);

    let archive = curl(&[&format!("{}/archives/{sha256}.tar.gz", running.url)], b"");
    let mut names = Vec::new();
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&archive.body[..]));
    for entry in tar.entries().unwrap() {
        let entry = entry.unwrap();
        names.push(format!(
            "{} {:o}",
            entry.path().unwrap().display(),
            entry.header().mode().unwrap()
        ));
    }
    assert_eq!(
        names,
        ["configure 755", "link.c 777", "src/ 755", "src/a.c 644"]
    );

    let missing = submit(&url, &"1".repeat(40));
    assert_eq!(missing.status, 400, "{}", missing.text());
    assert!(
        missing.json()["error"]
            .as_str()
            .unwrap()
            .contains("git cannot"),
        "{}",
        missing.text()
    );
    // Where a redirect leads was not looked at: it is not followed.
    let redirected = submit(
        &format!("https://127.0.0.1:{port}/redirect/www.git"),
        &commit,
    );
    assert_eq!(redirected.status, 400, "{}", redirected.text());

    if !testkit::root() {
        return;
    }
    // A disk that is full is nobody's fault who submits, wherever on the way it is.
    let disk = ["-t", "tmpfs", "-o", "size=4m", "tmpfs"];
    let place = dir.path().join("disk");
    std::fs::create_dir(&place).unwrap();
    let disk = testkit::Mount::new(&disk, &place);
    let data = dir.path().join("second");
    let running = Running::start(&data, |command| {
        command
            .arg("--allow-private-sources")
            .env("TMPDIR", disk.path())
            .env("GIT_SSL_CAINFO", dir.path().join("cert.pem"));
    });
    let token = std::fs::read_to_string(data.join("token")).unwrap();
    let source = json!({"git": {"url": url, "commit": commit}});
    let body = json!({"name": "a", "version": "1", "source": source}).to_string();
    let full = disk.path().join("full");
    assert!(
        std::fs::write(&full, vec![0; 8 << 20]).is_err(),
        "it is full"
    );
    let submit = || running.send(token.trim(), "POST", "/api/v1/submissions", body.as_bytes());
    let told = submit();
    assert_eq!(told.status, 503, "{}", told.text());
    assert_eq!(told.header("retry-after"), Some("10"));
    std::fs::remove_file(&full).unwrap();
    let submitted = submit();
    assert_eq!(submitted.status, 201, "{}", submitted.text());
}

/// A client that has gone waits for nothing: what is fetched for it is given up, and others get its turn.
#[test]
fn nothing_is_fetched_for_who_has_gone() {
    if !has("git") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |config| {
        config.source_addresses = Addresses::All;
    });
    // It takes what is said, and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("https://{}/x.git", listener.local_addr().unwrap());
    let source = json!({ "git": { "url": url, "commit": "0".repeat(40) } });
    let body = json!({ "name": "foo", "version": "1", "source": source });
    let mut client = Command::new("curl")
        .args(["--silent", "--max-time", "100", "--data-binary"])
        .arg(body.to_string())
        .args(["-H", &format!("Authorization: Bearer {}", controller.token)])
        .arg(controller.url("/api/v1/submissions"))
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let mut fetches = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "git comes");
    };
    fetches.set_nonblocking(false).unwrap();
    fetches
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    // What it had said, and then its end.
    let ended = fetches.read_to_end(&mut Vec::new());
    let is_over = ended
        .as_ref()
        .map_or_else(|e| e.kind() == ErrorKind::ConnectionReset, |_| true);
    assert!(is_over, "{ended:?}");
    assert_eq!(
        controller.get("/api/v1/submissions").json()["submissions"],
        json!([])
    );
}
