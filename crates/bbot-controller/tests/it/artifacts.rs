//! Artifacts: uploaded by a form or in pieces, listed with their build, and had as they were.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::support::{Answer, Controller, curl, field, request, result};

const OURS: &str = "Bbot-Agent: 1";

fn start(dir: &std::path::Path) -> Controller {
    Controller::start(dir, |c| {
        c.artifacts = vec!["bindist".to_owned()];
        c.limits.artifact = 30_000_000;
    })
}

/// A task for an agent of ours: its session, its session's URL, and the answer.
fn take(controller: &Controller) -> (String, String, Answer) {
    let answer = controller.agent("/?build-task", &[OURS], &request("0.17.0"));
    let url = answer.header("bbot-session-url").unwrap().to_owned();
    (field(&answer.text(), "session"), url, answer)
}

/// Bytes that no compression makes less of.
fn bytes(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(next).collect()
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Sends a form as curl does for the original's agents; the archive is what comes on the standard input.
fn upload(controller: &Controller, kind: &str, fields: &[&str], archive: &[u8]) -> Answer {
    let url = controller.url(&format!("/?upload={kind}"));
    let mut words = Vec::new();
    for field in fields {
        words.extend(["--form", field]);
    }
    words.push(&url);
    curl(&words, archive)
}

#[test]
fn by_a_form_as_the_original_sends_it() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path());
    let id = controller.submit("foo", "1").remove(0);
    let (session, _, task) = take(&controller);
    let told = field(&task.text(), "bindist-upload-url");
    assert_eq!(told, controller.url("/?upload=bindist"));
    let archive = bytes(12_000_000);
    let (session_field, sha256) = (format!("session={session}"), hash(&archive));
    let sum = format!("sha256sum={sha256}");
    let file = "archive=@-;filename=../foo-1.tar";
    let good = [
        session_field.as_str(),
        "instance=debian",
        file,
        &sum,
        "extra=1",
    ];
    for (kind, fields, status, expected) in [
        (
            "other",
            &good[..],
            404,
            "message: there is no upload of type",
        ),
        (
            "bindist",
            &[session_field.as_str(), file],
            400,
            "message: sha256sum is missing",
        ),
        (
            "bindist",
            &[session_field.as_str(), &sum],
            400,
            "message: archive is missing",
        ),
        (
            "bindist",
            &[file, session_field.as_str(), &sum],
            400,
            "message: session has to come before archive",
        ),
        (
            "bindist",
            &[session_field.as_str(), "challenge=*", file, &sum],
            400,
            "no base64",
        ),
        (
            "bindist",
            &[session_field.as_str(), file, "sha256sum=x"],
            400,
            "64 lower-case hex digits",
        ),
        (
            "bindist",
            &[
                session_field.as_str(),
                file,
                "sha256sum=0000000000000000000000000000000000000000000000000000000000000000",
            ],
            422,
            "message: the archive's SHA-256 is",
        ),
    ] {
        let answer = upload(&controller, kind, fields, &archive);
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(
            answer
                .text()
                .starts_with(&format!(": 1\nstatus: {status}\n"))
        );
        assert!(answer.text().contains(expected), "{}", answer.text());
    }
    let too_large = upload(&controller, "bindist", &good, &bytes(31_000_000));
    assert_eq!(too_large.status, 413, "{}", too_large.text());
    let no_form = controller.agent("/?upload=bindist", &[OURS], "x");
    assert_eq!(no_form.status, 400);
    // A stranger never learns; nothing is kept of either.
    let other = format!("session={}", "0".repeat(64));
    let unknown = upload(&controller, "bindist", &[&other, file, &sum], &archive);
    assert_eq!(unknown.status, 200);
    assert_eq!(controller.build(&id)["artifacts"], serde_json::json!([]));
    assert_eq!(
        std::fs::read_dir(dir.path().join("objects/artifacts"))
            .unwrap()
            .count(),
        0
    );

    let taken = upload(&controller, "bindist", &good, &archive);
    assert_eq!(taken.status, 200, "{}", taken.text());
    assert!(taken.text().contains("message: bindist upload is queued"));
    // Once more changes nothing.
    assert_eq!(upload(&controller, "bindist", &good, &archive).status, 200);
    let done = result(&session, "foo", "1", "success");
    assert_eq!(
        controller.agent("/?build-result", &[OURS], &done).status,
        200
    );
    let artifacts = controller.build(&id)["artifacts"].clone();
    assert_eq!(artifacts.as_array().unwrap().len(), 1);
    let artifact = &artifacts[0];
    assert_eq!(artifact["type"], "bindist");
    assert_eq!(artifact["name"], "foo-1.tar");
    assert_eq!(artifact["instance"], "debian");
    assert_eq!(
        (&artifact["sha256"], &artifact["bytes"]),
        (&sha256.into(), &12_000_000.into())
    );
    let got = curl(&[artifact["url"].as_str().unwrap()], b"");
    assert_eq!((got.status, got.body == archive), (200, true));
    assert_eq!(got.header("content-type"), Some("application/octet-stream"));
    assert_eq!(
        got.header("content-disposition"),
        Some("attachment; filename=\"foo-1.tar\"")
    );
    let page = controller.get(&format!("/builds/{id}")).text();
    assert!(page.contains("<h2>Artifacts</h2>") && page.contains("foo-1.tar"));
    // The task is done: what comes now is nobody's.
    let fields = [
        session_field.as_str(),
        file,
        &format!("sha256sum={}", hash(b"late")),
    ];
    assert_eq!(upload(&controller, "bindist", &fields, b"late").status, 200);
    assert_eq!(
        controller.build(&id)["artifacts"].as_array().unwrap().len(),
        1
    );
    assert!(
        controller
            .get(&format!("/builds/{id}/artifacts/{}", hash(b"late")))
            .status
            == 404
    );
}

#[test]
fn agents_of_2017_and_controllers_without_types_know_of_none() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path());
    controller.submit("foo", "1");
    let old = controller
        .agent("/?build-task", &[], &request("0.7.0"))
        .text();
    assert!(!old.contains("upload-url"), "{old}");
    drop(controller);
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    controller.submit("foo", "1");
    let (_, url, task) = take(&controller);
    assert!(!task.text().contains("upload-url"));
    let put = curl(
        &["-I", &format!("{url}/artifacts/bindist/{}", "0".repeat(64))],
        b"",
    );
    assert_eq!(put.status, 404);
}

/// One piece; what was answered, and how much the controller says that there is.
fn put(url: &str, offset: usize, length: usize, piece: &[u8]) -> (u16, Option<usize>) {
    let answer = curl(
        &[
            "-X",
            "PUT",
            "-H",
            OURS,
            "-H",
            &format!("Bbot-Artifact-Offset: {offset}"),
            "-H",
            &format!("Bbot-Artifact-Length: {length}"),
            "-H",
            "Bbot-Artifact-Name: foo.tar",
            "--data-binary",
            "@-",
            url,
        ],
        piece,
    );
    (
        answer.status,
        answer
            .header("bbot-artifact-next")
            .map(|n| n.parse().unwrap()),
    )
}

fn there(url: &str) -> usize {
    let answer = curl(&["-I", "-H", OURS, url], b"");
    assert_eq!(answer.status, 200);
    answer
        .header("bbot-artifact-next")
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn in_pieces_that_go_on_where_they_broke_off() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path());
    let id = controller.submit("foo", "1").remove(0);
    let (session, url, _) = take(&controller);
    let artifact = bytes(12_000_000);
    let length = artifact.len();
    let place = format!("{url}/artifacts/bindist/{}", hash(&artifact));
    assert_eq!(there(&place), 0);
    assert_eq!(put(&place, 5, length, b"x"), (409, Some(0)));
    assert_eq!(
        put(&place, 0, length, &artifact[..1_000_000]),
        (202, Some(1_000_000))
    );
    // The connection breaks in the middle of a piece.
    let path = place.strip_prefix(&controller.url("")).unwrap();
    let mut broken = std::net::TcpStream::connect(controller.address).unwrap();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: {}\r\n{OURS}\r\nBbot-Artifact-Offset: 1000000\r\nBbot-Artifact-Length: {length}\r\n\
         Content-Length: 11000000\r\n\r\n",
        controller.address
    );
    broken.write_all(head.as_bytes()).unwrap();
    broken.write_all(&artifact[1_000_000..4_000_000]).unwrap();
    broken.shutdown(std::net::Shutdown::Write).unwrap();
    let _ = broken.read_to_end(&mut Vec::new());
    drop(broken);
    let begun = std::time::Instant::now();
    let mut known = 0;
    // A request may still be at it.
    while known < 4_000_000 && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
        let answer = curl(&["-I", "-H", OURS, &place], b"");
        known = answer
            .header("bbot-artifact-next")
            .map_or(0, |n| n.parse().unwrap());
    }
    assert_eq!(known, 4_000_000);
    drop(controller);

    let controller = start(dir.path());
    let place = controller.url(path);
    assert_eq!(there(&place), 4_000_000);
    assert_eq!(
        put(&place, 4_000_000, length, &artifact[4_000_000..]),
        (201, Some(length))
    );
    // Known now, whole.
    assert_eq!(there(&place), length);
    assert_eq!(put(&place, 0, length, b"x"), (200, Some(length)));
    let build = controller.build(&id);
    assert_eq!(build["artifacts"][0]["name"], "foo.tar");
    let got = curl(&[build["artifacts"][0]["url"].as_str().unwrap()], b"");
    assert!(got.body == artifact);
    assert_eq!(
        std::fs::read_dir(dir.path().join("uploads"))
            .unwrap()
            .count(),
        0
    );

    // What is not what was said begins anew; what is too much, or too many, is refused.
    let url = controller.url(path.split("/artifacts/").next().unwrap());
    let wrong = format!("{url}/artifacts/bindist/{}", "0".repeat(64));
    assert_eq!(put(&wrong, 0, 3, b"abc").0, 422);
    assert_eq!(there(&wrong), 0);
    assert_eq!(put(&wrong, 0, 2, b"abc").0, 400);
    assert_eq!(put(&wrong, 0, 30_000_001, b"abc").0, 413);
    assert_eq!(
        put(&format!("{url}/artifacts/bindist/x"), 0, 3, b"abc").0,
        400
    );
    assert_eq!(
        put(
            &format!("{url}/artifacts/other/{}", "0".repeat(64)),
            0,
            3,
            b"abc"
        )
        .0,
        404
    );
    let begun = (0..17).map(|n| put(&format!("{url}/artifacts/bindist/{n:064}"), 0, 9, b"a").0);
    let begun: Vec<u16> = begun.collect();
    assert!(begun.contains(&202) && begun[16] == 409, "{begun:?}");

    let done = result(&session, "foo", "1", "success");
    assert_eq!(
        controller.agent("/?build-result", &[OURS], &done).status,
        200
    );
    assert_eq!(
        put(
            &format!("{url}/artifacts/bindist/{}", hash(b"late")),
            0,
            4,
            b"late"
        )
        .0,
        410
    );
}

/// A challenge is answered for artifacts as for results.
#[test]
fn who_has_to_prove_himself_has_to_here() {
    if !crate::support::has("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::create_dir(&keys).unwrap();
    let private = dir.path().join("key.pem");
    let openssl = |words: &[&str]| {
        let done = std::process::Command::new("openssl")
            .args(words)
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        done.stdout
    };
    let key = private.to_str().unwrap();
    openssl(&["genrsa", "-out", key, "2048"]);
    openssl(&[
        "rsa",
        "-in",
        key,
        "-pubout",
        "-out",
        keys.join("a.pem").to_str().unwrap(),
    ]);
    let public = openssl(&["rsa", "-in", key, "-pubout", "-outform", "DER"]);
    let controller = Controller::start(&dir.path().join("data"), |c| {
        c.artifacts = vec!["bindist".to_owned()];
        c.agent_keys = Some(keys);
    });
    let id = controller.submit("foo", "1").remove(0);
    let asked = request("0.17.0").replace(
        "\n:\nid",
        &format!("\nfingerprint: {}\n:\nid", hash(&public)),
    );
    let task = controller.agent("/?build-task", &[], &asked).text();
    let session = format!("session={}", field(&task, "session"));
    let challenge = dir.path().join("challenge");
    std::fs::write(&challenge, field(&task, "challenge")).unwrap();
    let answer = openssl(&[
        "pkeyutl",
        "-sign",
        "-inkey",
        key,
        "-in",
        challenge.to_str().unwrap(),
    ]);
    let answer = base64_of(&answer);
    let (file, sum) = ("archive=@-;filename=a", format!("sha256sum={}", hash(b"x")));
    for answer in [None, Some("challenge=AAAA".to_owned())] {
        let mut fields = vec![session.as_str()];
        fields.extend(answer.as_deref());
        fields.extend([file, sum.as_str()]);
        assert_eq!(
            upload(&controller, "bindist", &fields, b"x").status,
            200,
            "a stranger never learns"
        );
        assert_eq!(controller.build(&id)["artifacts"], serde_json::json!([]));
    }
    let answer = format!("challenge={answer}");
    let fields = [session.as_str(), &answer, file, &sum];
    assert_eq!(upload(&controller, "bindist", &fields, b"x").status, 200);
    assert_eq!(controller.build(&id)["artifacts"][0]["sha256"], hash(b"x"));
}

fn base64_of(bytes: &[u8]) -> String {
    use std::process::{Command, Stdio};
    let mut child = Command::new("base64")
        .arg("-w0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}
