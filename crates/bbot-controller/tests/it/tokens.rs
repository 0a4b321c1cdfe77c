//! Tokens with a name: what each lets do, and where it ends.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::Arc;

use bbot_controller::clock::SystemClock;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::process::Running;
use crate::support::{Answer, Controller, START, curl, request};

/// A request with a token.
fn with(controller: &Controller, token: &str, method: &str, path: &str, body: &Value) -> Answer {
    let authorization = format!("Authorization: Bearer {token}");
    let url = controller.url(path);
    curl(
        &[
            "-X",
            method,
            "-H",
            &authorization,
            "--data-binary",
            "@-",
            &url,
        ],
        body.to_string().as_bytes(),
    )
}

/// Makes a token; what its holder shows.
fn make(controller: &Controller, name: &str, scopes: &[&str]) -> String {
    let body = json!({"name": name, "scopes": scopes});
    let answer = controller.send("POST", "/api/v1/tokens", body.to_string().as_bytes());
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()["token"].as_str().unwrap().to_owned()
}

fn submission(name: &str) -> Value {
    json!({"name": name, "version": "1",
           "source": {"repository": {"url": "https://pkg.example.org/1/a"}}})
}

#[test]
fn each_scope_lets_do_what_it_says_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    controller.submit("foo", "1");
    let archive = format!("/api/v1/archives/{}", controller.archive());
    let tries = [
        (
            "submit",
            "POST",
            "/api/v1/submissions",
            submission("bar"),
            201,
        ),
        ("submit", "PUT", archive.as_str(), json!(null), 200),
        (
            "rebuild",
            "POST",
            "/api/v1/builds/1/rebuild",
            json!({}),
            200,
        ),
        ("cancel", "POST", "/api/v1/builds/99/cancel", json!({}), 404),
        (
            "cancel",
            "POST",
            "/api/v1/submissions/99/cancel",
            json!({}),
            404,
        ),
        ("admin", "GET", "/api/v1/tokens", json!(null), 200),
        ("admin", "POST", "/api/v1/tokens", json!({}), 400),
        ("admin", "DELETE", "/api/v1/tokens/nobody", json!(null), 404),
    ];
    for scope in ["read", "submit", "rebuild", "cancel", "agents", "admin"] {
        let token = make(&controller, &format!("t-{scope}"), &[scope]);
        for (needed, method, path, body, status) in &tries {
            let answer = with(&controller, &token, method, path, body);
            let allowed = scope == *needed || scope == "admin";
            let expected = if allowed { *status } else { 403 };
            assert_eq!(
                answer.status,
                expected,
                "{scope} {method} {path}: {}",
                answer.text()
            );
            if !allowed {
                let sentence = answer.json()["error"].as_str().unwrap().to_owned();
                assert!(sentence.contains(&format!("scope {needed}")), "{sentence}");
                assert!(answer.header("www-authenticate").is_none());
            }
        }
    }
    // Who has submitted it is the token's name.
    let builds = controller.get("/api/v1/builds?package=bar").json();
    let submitters: Vec<&str> = builds["builds"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| b["submitter"].as_str().unwrap())
        .collect();
    assert_eq!(submitters, ["t-admin", "t-submit"]);
}

#[test]
fn a_token_is_shown_once_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let soon = START.plus_seconds(3600);
    let body =
        json!({"name": "nightly", "scopes": ["submit", "submit"], "expires": soon.to_string()});
    let answer = controller.send("POST", "/api/v1/tokens", body.to_string().as_bytes());
    assert_eq!(answer.status, 201, "{}", answer.text());
    let made = answer.json();
    let token = made["token"].as_str().unwrap().to_owned();
    assert_eq!(made["scopes"], json!(["submit"]));
    assert_eq!(made["expires"], soon.to_string());
    assert_eq!(made["created_by"], "token");

    let submit = || {
        with(
            &controller,
            &token,
            "POST",
            "/api/v1/submissions",
            &submission("foo"),
        )
    };
    assert_eq!(submit().status, 201);
    // Neither it nor its secret is anywhere.
    let secret = token.rsplit('_').next().unwrap();
    let list = controller.send("GET", "/api/v1/tokens", b"");
    assert!(!list.text().contains(secret));
    for file in ["controller.sqlite", "controller.sqlite-wal"] {
        let bytes = std::fs::read(dir.path().join(file)).unwrap_or_default();
        assert!(
            !bytes.windows(secret.len()).any(|w| w == secret.as_bytes()),
            "{file}"
        );
    }
    let again = controller.send("POST", "/api/v1/tokens", body.to_string().as_bytes());
    assert_eq!(again.status, 409, "{}", again.text());

    controller.clock.advance_seconds(3600);
    let over = submit();
    assert_eq!(over.status, 401);
    assert!(over.text().contains("is over"), "{}", over.text());
    assert!(over.header("www-authenticate").is_some());
    let list = controller.send("GET", "/api/v1/tokens", b"").json();
    assert_eq!(list["tokens"][0]["expired"], true);

    // One that is revoked is worth nothing at once.
    let other = make(&controller, "other", &["submit"]);
    let submit = || {
        with(
            &controller,
            &other,
            "POST",
            "/api/v1/submissions",
            &submission("foo"),
        )
    };
    assert_eq!(submit().status, 201);
    assert_eq!(
        controller
            .send("DELETE", "/api/v1/tokens/other", b"")
            .status,
        204
    );
    assert_eq!(submit().status, 401);
    assert_eq!(
        controller
            .send("DELETE", "/api/v1/tokens/other", b"")
            .status,
        404
    );
    // What looks like one is none: another secret, another id.
    let changed = format!("{}0", &other[..other.len() - 1]);
    for wrong in [changed.as_str(), "bbot_", "bbot_0123456789abcdef_0"] {
        let answer = with(
            &controller,
            wrong,
            "POST",
            "/api/v1/submissions",
            &json!({}),
        );
        assert_eq!(answer.status, 401, "{wrong}");
    }
}

#[test]
fn wrong_requests_for_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    for (body, expected) in [
        (json!({}), "missing field"),
        (json!({"name": "a", "scopes": []}), "names none"),
        (json!({"name": "a", "scopes": ["write"]}), "unknown variant"),
        (json!({"name": "../a", "scopes": ["read"]}), "not a name"),
        (json!({"name": "", "scopes": ["read"]}), "not a name"),
        (
            json!({"name": "a".repeat(65), "scopes": ["read"]}),
            "not a name",
        ),
        (json!({"name": "token", "scopes": ["read"]}), "first token"),
        (
            json!({"name": "a", "scopes": ["read"], "expires": "tomorrow"}),
            "not a time",
        ),
        (
            json!({"name": "a", "scopes": ["read"], "expires": "2020-01-01T00:00:00Z"}),
            "is over",
        ),
        (
            json!({"name": "a", "scopes": ["read"], "more": 1}),
            "unknown field",
        ),
    ] {
        let answer = controller.send("POST", "/api/v1/tokens", body.to_string().as_bytes());
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        assert!(
            answer.text().contains(expected),
            "{body}: {}",
            answer.text()
        );
    }
}

#[test]
fn tokens_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let names: Vec<String> = (0..7).map(|n| format!("t{n}")).collect();
    for name in &names {
        make(&controller, name, &["read"]);
    }
    let (mut seen, mut query) = (Vec::new(), "limit=3".to_owned());
    loop {
        let page = controller
            .send("GET", &format!("/api/v1/tokens?{query}"), b"")
            .json();
        for token in page["tokens"].as_array().unwrap() {
            seen.push(token["name"].as_str().unwrap().to_owned());
        }
        // What comes or goes in between moves nothing.
        if seen.len() == 3 {
            make(&controller, "a-new-one", &["read"]);
            controller.send("DELETE", "/api/v1/tokens/t2", b"");
        }
        match page["next"].as_str() {
            Some(next) => query = format!("limit=3&after={next}"),
            None => break,
        }
    }
    assert_eq!(seen, names);
}

#[test]
fn a_private_farm_is_looked_at_with_a_token_only() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |c| c.private = true);
    let archive = controller.archive();
    let source = json!({ "archive": archive });
    let body = json!({"name": "foo", "version": "1", "source": source});
    let made = controller.send("POST", "/api/v1/submissions", body.to_string().as_bytes());
    assert_eq!(made.status, 201);
    let reader = make(&controller, "reader", &["read"]);
    let submitter = make(&controller, "submitter", &["submit"]);
    for path in [
        "/api/v1/builds",
        "/api/v1/builds/1",
        "/api/v1/builds/1/log",
        "/api/v1/submissions/1",
        "/api/v1/agents",
        "/api/v1/configurations",
        "/api/v1/openapi.json",
        "/api/v1/nothing",
        "/metrics",
    ] {
        let stranger = controller.get(path);
        assert_eq!(stranger.status, 401, "{path}");
        assert!(!stranger.text().contains("foo"), "{path}");
        let known = with(&controller, &reader, "GET", path, &json!(null)).status;
        assert!(matches!(known, 200 | 404), "{path}: {known}");
        let other = with(&controller, &submitter, "GET", path, &json!(null)).status;
        assert_eq!(other, 403, "{path}");
    }
    for path in [
        "/",
        "/?package=foo",
        "/builds/1",
        "/builds/1/log",
        "/submissions/1",
        "/agents",
        "/x",
    ] {
        let stranger = controller.get(path);
        assert_eq!(stranger.status, 303, "{path}");
        let to = stranger.header("location").unwrap();
        assert!(to.starts_with("/sign-in?next="), "{path}: {to}");
    }
    for path in [
        "/healthz",
        "/sign-in",
        "/style.css",
        &format!("/archives/{archive}.tar.gz"),
    ] {
        assert_eq!(controller.get(path).status, 200, "{path}");
    }
    // Who changes something is told what has become of it, and sees no more for that.
    let rebuilder = make(&controller, "rebuilder", &["rebuild"]);
    let done = with(
        &controller,
        &rebuilder,
        "POST",
        "/api/v1/builds/1/rebuild",
        &json!({}),
    );
    assert_eq!((done.status, &done.json()["package"]), (200, &json!("foo")));
    for path in ["/api/v1/builds/1", "/api/v1/builds/1/log", "/api/v1/builds"] {
        let seen = with(&controller, &rebuilder, "GET", path, &json!(null));
        assert_eq!(seen.status, 403, "{path}");
    }
    // Agents go on as ever.
    let task = controller.agent("/?build-task", &[], &request("0.7.0"));
    assert!(task.text().contains("session:"), "{}", task.text());

    // A browser signs in with the reader's token: it sees pages and their JSON, and that is all.
    let sign_in = |token: &str| {
        let form = format!("token={token}&next=/builds/1");
        curl(
            &["--data-binary", "@-", &controller.url("/sign-in")],
            form.as_bytes(),
        )
    };
    assert_eq!(sign_in("bbot_wrong").status, 403);
    let signed = sign_in(&reader);
    assert_eq!(
        (signed.status, signed.header("location")),
        (303, Some("/builds/1"))
    );
    let cookie = signed
        .header("set-cookie")
        .unwrap()
        .split(';')
        .next()
        .unwrap();
    let cookie = format!("Cookie: {cookie}");
    let page = curl(&["-H", &cookie, &controller.url("/builds/1")], b"");
    assert_eq!(page.status, 200);
    let api = curl(&["-H", &cookie, &controller.url("/api/v1/builds")], b"");
    assert_eq!(api.status, 200);
    let form = page.text();
    let form = form.split("name=\"form\" value=\"").nth(1).unwrap();
    let form = form.split('"').next().unwrap();
    let rebuild = |path: &str| {
        let body = format!("form={form}");
        curl(
            &["-H", &cookie, "--data-binary", "@-", &controller.url(path)],
            body.as_bytes(),
        )
        .status
    };
    assert_eq!(rebuild("/builds/1/rebuild"), 403);
    assert_eq!(
        rebuild("/api/v1/builds/1/rebuild"),
        401,
        "a cookie changes nothing by the API"
    );
    // What is revoked is signed out.
    assert_eq!(
        controller
            .send("DELETE", "/api/v1/tokens/reader", b"")
            .status,
        204
    );
    assert_eq!(
        curl(&["-H", &cookie, &controller.url("/builds/1")], b"").status,
        303
    );
}

#[test]
fn tokens_are_those_of_all_controllers_over_one_database() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.database();
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = |dir: &tempfile::TempDir| {
        Controller::start(dir.path(), |config| {
            config.database = Some(url.clone());
            config.clock = Arc::new(SystemClock::start());
        })
    };
    let (first, second) = (start(&a), start(&b));
    let token = make(&first, "both", &["submit"]);
    let submit = |at: &Controller| {
        with(
            at,
            &token,
            "POST",
            "/api/v1/submissions",
            &submission("foo"),
        )
        .status
    };
    assert_eq!((submit(&first), submit(&second)), (201, 201));
    assert_eq!(
        second.send("DELETE", "/api/v1/tokens/both", b"").status,
        204
    );
    assert_eq!((submit(&first), submit(&second)), (401, 401));
    // Of those who ask for one name at once, one gets it.
    let made: Vec<u16> = std::thread::scope(|scope| {
        let asks: Vec<_> = (0..8)
            .map(|n| {
                let at = if n % 2 == 0 { &first } else { &second };
                scope.spawn(move || {
                    let body = json!({"name": "one", "scopes": ["read"]}).to_string();
                    at.send("POST", "/api/v1/tokens", body.as_bytes()).status
                })
            })
            .collect();
        asks.into_iter().map(|ask| ask.join().unwrap()).collect()
    });
    assert_eq!(
        made.iter().filter(|status| **status == 201).count(),
        1,
        "{made:?}"
    );
    assert_eq!(
        made.iter().filter(|status| **status == 409).count(),
        7,
        "{made:?}"
    );
}

/// A thousand wrong tokens leave ten lines in the log, none with a token in it.
#[test]
fn wrong_tokens_do_not_fill_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let file = std::fs::File::create(&log).unwrap();
    let running = Running::start(dir.path(), |command| {
        command.env("BBOT_LOG", "info").stderr(Stdio::from(file));
    });
    let guess = format!("bbot_{}_{}", "a".repeat(16), "b".repeat(64));
    let authorization = format!("Authorization: Bearer {guess}");
    // One after the other over one connection: curl takes many URLs.
    let urls: Vec<String> = (0..1000)
        .map(|n| format!("{}/api/v1/builds?limit={}", running.url, 1 + n % 500))
        .collect();
    let mut arguments = vec!["-o", "/dev/null", "-H", &authorization];
    for url in &urls {
        arguments.extend([url.as_str(), "-o", "/dev/null"]);
    }
    let done = std::process::Command::new("curl")
        .args(["--silent", "--show-error"])
        .args(&arguments[..arguments.len() - 2])
        .status()
        .unwrap();
    assert!(done.success());
    let lines = BufReader::new(std::fs::File::open(&log).unwrap()).lines();
    let lines: Vec<String> = lines.map(Result::unwrap).collect();
    let wrong = lines.iter().filter(|l| l.contains("wrong token")).count();
    assert_eq!(wrong, 10, "{lines:?}");
    assert!(!lines.iter().any(|l| l.contains("bbbbbbbb")), "{lines:?}");
}
