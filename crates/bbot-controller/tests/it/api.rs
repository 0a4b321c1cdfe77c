//! The tools' side: archives, submissions, lists, rebuilds.

use serde_json::json;

use crate::support::{Controller, curl, gzip, result};

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
}

#[test]
fn archives() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |c| c.limits.archive = 100_000);
    let bytes = gzip(b"source");
    let name = sha256(&bytes);
    let path = format!("/api/v1/archives/{name}");
    assert_eq!(
        controller.get(&format!("/archives/{name}.tar.gz")).status,
        404
    );
    assert_eq!(controller.send("PUT", &path, &bytes).status, 201);
    assert_eq!(controller.send("PUT", &path, &bytes).status, 200);
    let got = controller.get(&format!("/archives/{name}.tar.gz"));
    assert_eq!((got.status, got.body), (200, bytes.clone()));
    assert_eq!(got.head.to_lowercase().matches("content-length").count(), 1);

    let other = "0".repeat(64);
    let wrong = controller.send("PUT", &format!("/api/v1/archives/{other}"), &bytes);
    assert_eq!(wrong.status, 400);
    assert_eq!(
        wrong.json()["error"],
        format!("the archive's SHA-256 is {name}, not {other}")
    );
    let plain = controller.send(
        "PUT",
        &format!("/api/v1/archives/{}", sha256(b"tar")),
        b"tar",
    );
    assert_eq!(plain.status, 400);
    assert!(plain.json()["error"].as_str().unwrap().contains("gzip"));
    let mut large = bytes;
    large.resize(5_000_000, 7);
    assert_eq!(
        controller
            .send(
                "PUT",
                &format!("/api/v1/archives/{}", sha256(&large)),
                &large
            )
            .status,
        413
    );
    assert_eq!(
        std::fs::read_dir(dir.path().join("objects/archives"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn the_token_and_nothing_else_lets_change() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let name = "0".repeat(64);
    for (method, path) in [
        ("PUT", format!("/api/v1/archives/{name}")),
        ("POST", "/api/v1/submissions".to_owned()),
        ("POST", format!("/api/v1/builds/{id}/rebuild")),
    ] {
        for header in [
            "X: y",
            "Authorization: Bearer wrong",
            "Authorization: Bearer ",
            "Authorization: Basic x",
        ] {
            let answer = curl(
                &[
                    "-X",
                    method,
                    "-H",
                    header,
                    "--data-binary",
                    "@-",
                    &controller.url(&path),
                ],
                b"{}",
            );
            assert_eq!(answer.status, 401, "{method} {path} {header}");
            assert!(answer.json()["error"].is_string());
            assert!(answer.header("www-authenticate").is_some());
        }
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(dir.path().join("token"))
            .unwrap()
            .permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn submissions_that_are_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let archive = json!({"archive": controller.archive()});
    let repository = |url: &str, more: serde_json::Value| {
        let mut value = json!({ "url": url });
        value
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!({ "repository": value })
    };
    for (body, expected) in [
        (json!({}), "missing field"),
        (
            json!({"name": "a", "version": "1", "source": archive, "more": 1}),
            "unknown field `more`",
        ),
        (
            json!({"name": "", "version": "1", "source": archive}),
            "not a package name",
        ),
        (
            json!({"name": "../a", "version": "1", "source": archive}),
            "not a package name",
        ),
        (
            json!({"name": "a\nb: c", "version": "1", "source": archive}),
            "not a package name",
        ),
        (
            json!({"name": "a", "version": "", "source": archive}),
            "not a package version",
        ),
        (
            json!({"name": "a", "version": "1 2", "source": archive}),
            "not a package version",
        ),
        (
            json!({"name": "a", "version": "1", "source": {"archive": "x"}}),
            "not a SHA-256",
        ),
        (
            json!({"name": "a", "version": "1", "source": {"archive": "0".repeat(64)}}),
            "PUT it to",
        ),
        (
            json!({"name": "a", "version": "1", "source": archive, "configurations": ["x"]}),
            "no configuration \"x\"",
        ),
        (
            json!({"name": "a", "version": "1", "source": archive, "configurations": []}),
            "names none",
        ),
        (
            json!({"name": "a", "version": "1", "source": repository("https://a b", json!({}))}),
            "blanks",
        ),
        (
            json!({"name": "a", "version": "1", "source": repository("https://a", json!({"type": "svn"}))}),
            "pkg, git, dir",
        ),
        (
            json!({"name": "a", "version": "1", "source": repository("https://a", json!({"trust": ["x"]}))}),
            "fingerprint",
        ),
        (
            json!({"name": "a", "version": "1", "source": {"git": {"url": "http://x/", "commit": "0".repeat(40)}}}),
            "only https:// is fetched",
        ),
        (
            json!({"name": "a", "version": "1",
                   "source": {"git": {"url": "https://127.0.0.1/", "commit": "0".repeat(40)}}}),
            "not a public address",
        ),
        (
            json!({"name": "a", "version": "1",
                   "source": {"git": {"url": "https://x/", "commit": "0".repeat(40), "archive": "0".repeat(64)}}}),
            "is made here",
        ),
    ] {
        let answer = controller.send("POST", "/api/v1/submissions", body.to_string().as_bytes());
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(expected), "{body}: {error}");
    }
    for garbage in [&b"\xff\xfe"[..], b"[1", b"null", b"\"x\""] {
        assert_eq!(
            controller
                .send("POST", "/api/v1/submissions", garbage)
                .status,
            400
        );
    }
    let large = vec![b' '; 70_000];
    assert_eq!(
        controller
            .send("POST", "/api/v1/submissions", &large)
            .status,
        413
    );
    assert_eq!(controller.get("/api/v1/builds").json()["builds"], json!([]));
}

#[test]
fn lists_with_filters_and_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let tab = dir.path().join("tab");
    std::fs::write(&tab, "* a x86_64-linux-gnu\n* b x86_64-linux-gnu\n").unwrap();
    let controller = Controller::start(dir.path(), |c| c.buildtab = Some(tab));
    for name in ["zlib", "zstd", "hello", "50%_"] {
        if name == "50%_" {
            continue;
        }
        controller.submit(name, "1.0");
    }
    let session = controller.take();
    controller.agent(
        "/?build-result",
        &[],
        &result(&session, "zlib", "1.0", "error"),
    );

    let names = |query: &str| -> Vec<String> {
        let answer = controller.get(&format!("/api/v1/builds?{query}"));
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        let builds = answer.json()["builds"].as_array().unwrap().clone();
        builds
            .iter()
            .map(|b| {
                format!(
                    "{}-{}",
                    b["package"].as_str().unwrap(),
                    b["configuration"].as_str().unwrap()
                )
            })
            .collect()
    };
    assert_eq!(
        names(""),
        ["hello-b", "hello-a", "zstd-b", "zstd-a", "zlib-b", "zlib-a"]
    );
    assert_eq!(names("package=z*&configuration=a"), ["zstd-a", "zlib-a"]);
    assert_eq!(names("package=zli%3F"), ["zlib-b", "zlib-a"]);
    assert_eq!(names("package=z"), [""; 0]);
    assert_eq!(names("package=%25"), [""; 0], "a per cent sign is itself");
    assert_eq!(names("state=built"), ["zlib-a"]);
    assert_eq!(names("status=error"), ["zlib-a"]);
    assert_eq!(names("status=success"), [""; 0]);
    assert_eq!(names("state=queued&package=zlib"), ["zlib-b"]);

    let mut seen = Vec::new();
    let mut query = "limit=4".to_owned();
    loop {
        let page = controller.get(&format!("/api/v1/builds?{query}")).json();
        seen.extend(
            page["builds"]
                .as_array()
                .unwrap()
                .iter()
                .map(|b| b["id"].as_str().unwrap().to_owned()),
        );
        match page["next"].as_str() {
            Some(next) => query = format!("limit=4&before={next}"),
            None => break,
        }
    }
    assert_eq!(seen, ["6", "5", "4", "3", "2", "1"]);
    for bad in [
        "limit=0",
        "limit=501",
        "limit=x",
        "state=done",
        "status=ok",
        "before=x",
        "foo=1",
    ] {
        assert_eq!(
            controller.get(&format!("/api/v1/builds?{bad}")).status,
            400,
            "{bad}"
        );
    }

    let mut submissions = Vec::new();
    let mut query = "limit=2".to_owned();
    loop {
        let page = controller.get(&format!("/api/v1/submissions?{query}"));
        let page = page.json();
        for submission in page["submissions"].as_array().unwrap() {
            submissions.push(submission["name"].as_str().unwrap().to_owned());
        }
        match page["next"].as_str() {
            Some(next) => query = format!("limit=2&before={next}"),
            None => break,
        }
    }
    assert_eq!(submissions, ["hello", "zstd", "zlib"]);
    for (name, expected) in [("ZLIB", 1), ("z*", 2), ("z", 0), ("%25", 0)] {
        let page = controller.get(&format!("/api/v1/submissions?name={name}"));
        let found = page.json()["submissions"].as_array().unwrap().len();
        assert_eq!(found, expected, "{name}");
    }
    let attempts = controller.get("/api/v1/builds/1/attempts?limit=1").json();
    assert_eq!(attempts["attempts"][0]["status"], "error");
    assert!(attempts["next"].is_null());

    // A rebuild is the newest again.
    controller.send("POST", "/api/v1/builds/1/rebuild", br#"{"reason": null}"#);
    assert_eq!(names("limit=1"), ["zlib-a"]);
    let submission = controller.get("/api/v1/submissions/1").json();
    assert_eq!(submission["builds"].as_array().unwrap().len(), 2);
    assert_eq!(submission["name"], "zlib");
    assert_eq!(
        controller.get("/api/v1/configurations").json()["configurations"][1]["name"],
        "b"
    );
}

#[test]
fn what_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    for path in [
        "/api/v1/builds/999",
        "/api/v1/builds/-1",
        "/api/v1/builds/x",
        "/api/v1/builds/99999999999999999999999",
        "/api/v1/submissions/999",
        "/api/v1/nothing",
        "/api/v1/",
        &format!("/api/v1/builds/{id}/log"),
        &format!("/api/v1/builds/{id}/log/update"),
    ] {
        let answer = controller.get(path);
        assert_eq!(answer.status, 404, "{path}: {}", answer.text());
        assert!(answer.json()["error"].is_string(), "{path}");
    }
    let wrong = controller.send("DELETE", "/api/v1/builds", b"");
    assert_eq!(wrong.status, 405);
    assert!(wrong.json()["error"].is_string());
}
