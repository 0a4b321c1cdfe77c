//! The pages, and signing in on them.

use crate::support::{Answer, Controller, curl, result};

fn form(controller: &Controller, path: &str, cookie: &str, body: &str) -> Answer {
    let cookie = format!("Cookie: {cookie}");
    let origin = format!("Origin: http://{}", controller.address);
    curl(
        &[
            "-H",
            &cookie,
            "-H",
            &origin,
            "--data-binary",
            "@-",
            &controller.url(path),
        ],
        body.as_bytes(),
    )
}

fn hidden(page: &str) -> String {
    let (_, rest) = page
        .split_once("name=\"form\" value=\"")
        .expect("the page has a form");
    rest.split('"').next().unwrap().to_owned()
}

#[test]
fn a_build_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    assert!(
        controller
            .get("/")
            .text()
            .contains("There are no builds yet")
    );
    let id = controller.submit("zlib", "1.3.1").remove(0);
    let path = format!("/builds/{id}");
    let queued = controller.get(&path).text();
    assert!(
        queued.contains("queued") && queued.contains("http-equiv=\"refresh\""),
        "{queued}"
    );
    let session = controller.take();
    let text = format!(
        "{}update-status: error\nupdate-log: \\\ninflate.c:1: error: expected ‘;’\n\\\n",
        result(&session, "zlib", "1.3.1", "error")
    );
    assert_eq!(controller.agent("/?build-result", &[], &text).status, 200);
    let page = controller.get(&path).text();
    for part in [
        "zlib",
        "1.3.1",
        "linux_debian_12-gcc_13.1",
        "Linux Debian 12 GCC 13.1",
        "bot",
        "dev 0.7.0",
        "error",
        "inflate.c:1: error: expected ‘;’",
        "/api/v1/builds/1",
        "Sign in",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    assert!(!page.contains("http-equiv=\"refresh\""));
    let list = controller.get("/?package=zl*&status=error").text();
    assert!(
        list.contains("/builds/1") && list.contains("value=\"zl*\""),
        "{list}"
    );
    assert!(
        controller
            .get("/?package=other")
            .text()
            .contains("No build matches")
    );
    assert!(
        controller
            .get("/submissions/1")
            .text()
            .contains("/archives/")
    );
    assert_eq!(controller.get("/builds/7").status, 404);
    assert!(
        controller
            .get("/builds/7")
            .text()
            .contains("there is no build 7")
    );
    assert_eq!(controller.get("/nothing").status, 404);
    assert_eq!(
        controller.get("/style.css").header("content-type"),
        Some("text/css; charset=utf-8")
    );
    // HEAD as well as GET.
    assert_eq!(curl(&["--head", &controller.url("/")], b"").status, 200);
}

#[test]
fn what_is_not_over_is_cancelled_by_a_form() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let page = controller.get(&format!("/builds/{id}")).text();
    assert!(page.contains(&format!("bbot cancel {id}")), "{page}");
    let body = format!("token={}&next=%2Fbuilds%2F{id}", controller.token);
    let signed = form(&controller, "/sign-in", "", &body);
    let cookie = signed.header("set-cookie").unwrap().to_owned();
    let cookie = cookie.split(';').next().unwrap();
    let look = |path: &str| {
        let cookie = format!("Cookie: {cookie}");
        curl(&["-H", &cookie, &controller.url(path)], b"").text()
    };
    let page = look(&format!("/builds/{id}"));
    let secret = hidden(&page);
    let cancel = format!("/builds/{id}/cancel");
    assert!(page.contains(&format!("action=\"{cancel}\"")), "{page}");
    let forged = format!("form={}", "0".repeat(64));
    assert_eq!(form(&controller, &cancel, cookie, &forged).status, 403);
    assert_eq!(controller.build(&id)["state"], "queued");
    let body = format!("form={secret}&reason=a+typo");
    assert_eq!(form(&controller, &cancel, cookie, &body).status, 303);
    assert_eq!(controller.build(&id)["state"], "cancelled");
    let page = look(&format!("/builds/{id}"));
    assert!(page.contains("Cancelled because") && page.contains("a typo"));
    assert!(!page.contains(&cancel), "there is nothing left to cancel");

    // And a submission as a whole.
    let id = controller.submit("bar", "1").remove(0);
    let submission = controller.build(&id)["submission"].clone();
    let path = format!("/submissions/{}", submission.as_str().unwrap());
    let secret = hidden(&look(&path));
    let cancel = format!("{path}/cancel");
    let body = format!("form={secret}&reason=");
    let done = form(&controller, &cancel, cookie, &body);
    assert_eq!(
        (done.status, done.header("location")),
        (303, Some(path.as_str()))
    );
    assert_eq!(controller.build(&id)["state"], "cancelled");
    assert!(!look(&path).contains(&cancel));
}

#[test]
fn a_rebuild_needs_the_token_once_and_the_forms_secret_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let id = controller.submit("foo", "1").remove(0);
    let session = controller.take();
    controller.agent(
        "/?build-result",
        &[],
        &result(&session, "foo", "1", "error"),
    );
    let rebuild = format!("/builds/{id}/rebuild");

    assert_eq!(form(&controller, &rebuild, "", "reason=x").status, 403);
    assert_eq!(form(&controller, "/sign-in", "", "token=wrong").status, 403);
    let next = format!("/builds/{id}");
    let body = format!("token={}&next=%2Fbuilds%2F{id}", controller.token);
    let signed = form(&controller, "/sign-in", "", &body);
    assert_eq!(
        (signed.status, signed.header("location")),
        (303, Some(next.as_str()))
    );
    let cookie = signed.header("set-cookie").unwrap().to_owned();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains(&controller.token));
    let cookie = cookie.split(';').next().unwrap();

    let page = curl(
        &["-H", &format!("Cookie: {cookie}"), &controller.url(&next)],
        b"",
    )
    .text();
    let secret = hidden(&page);
    assert_eq!(form(&controller, &rebuild, cookie, "reason=x").status, 403);
    assert_eq!(
        form(
            &controller,
            &rebuild,
            cookie,
            &format!("form={}&reason=x", "0".repeat(64))
        )
        .status,
        403
    );
    assert_eq!(controller.build(&id)["state"], "built");
    let done = form(
        &controller,
        &rebuild,
        cookie,
        &format!("form={secret}&reason=the+compiler+was+mended"),
    );
    assert_eq!(
        (done.status, done.header("location")),
        (303, Some(next.as_str()))
    );
    let build = controller.build(&id);
    assert_eq!(
        (build["state"].as_str(), build["reason"].as_str()),
        (Some("queued"), Some("the compiler was mended"))
    );

    // Looking changes nothing.
    assert_eq!(
        curl(
            &[
                "-H",
                &format!("Cookie: {cookie}"),
                &controller.url(&rebuild)
            ],
            b""
        )
        .status,
        405
    );
    let away = form(
        &controller,
        "/sign-in",
        "",
        &format!("token={}&next=//evil.example", controller.token),
    );
    assert_eq!(away.header("location"), Some("/"));
    assert_eq!(
        form(&controller, "/sign-out", cookie, &format!("form={secret}")).status,
        303
    );
    assert_eq!(
        form(&controller, &rebuild, cookie, &format!("form={secret}")).status,
        403
    );
}

#[test]
fn behind_another_server() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |c| {
        c.external_url = Some("https://builds.example.org/bbot/".to_owned());
    });
    controller.submit("foo", "1");
    let host = "Host: builds.example.org";
    let page = curl(&["-H", host, &controller.url("/")], b"").text();
    assert!(
        page.contains("href=\"/bbot/style.css\"") && page.contains("href=\"/bbot/builds/1\""),
        "{page}"
    );
    let answer = crate::support::agent(
        &controller.url("/?build-task"),
        &[host],
        crate::support::request("0.7.0").as_bytes(),
    );
    let text = answer.text();
    assert_eq!(
        crate::support::field(&text, "result-url"),
        "https://builds.example.org/bbot/?build-result"
    );
    assert!(
        crate::support::field(&text, "repository")
            .starts_with("https://builds.example.org/bbot/archives/")
    );
    // An agent on the same host asks by another name, and is answered by that one.
    controller.submit("bar", "1");
    let near = controller
        .agent("/?build-task", &[], &crate::support::request("0.7.0"))
        .text();
    assert_eq!(
        crate::support::field(&near, "result-url"),
        controller.url("/?build-result")
    );
    // It can fetch the source and bring the result there, although nobody answers at the external URL.
    let source = crate::support::field(&near, "repository");
    assert!(
        source.starts_with(&controller.url("/archives/")),
        "{source}"
    );
    assert_eq!(curl(&[&source], b"").status, 200);
    let session = crate::support::field(&near, "session");
    let posted = crate::support::agent(
        &crate::support::field(&near, "result-url"),
        &["Bbot-Agent: 1"],
        crate::support::result(&session, "bar", "1", "success").as_bytes(),
    );
    assert_eq!(posted.status, 200, "{}", posted.text());
    assert_eq!(controller.build("2")["state"], "built");
    assert!(controller.get("/").text().contains("href=\"/builds/1\""));
    let body = format!("token={}", controller.token);
    let signed = curl(
        &[
            "-H",
            host,
            "-H",
            "Origin: https://builds.example.org",
            "--data-binary",
            "@-",
            &controller.url("/sign-in"),
        ],
        body.as_bytes(),
    );
    let cookie = signed.header("set-cookie").unwrap();
    assert!(
        cookie.contains("Path=/bbot/") && cookie.contains("Secure"),
        "{cookie}"
    );
}
