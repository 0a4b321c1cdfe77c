//! Which builds a submission becomes: what its manifest and its request say of that.

use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::store::{self, on_both, runtime};
use crate::support::{Answer, Controller, archive, field, gzip, request};

const TAB: &str = "\
linux**   linux-gcc        x86_64-linux-gnu              \"all default linux gcc\"\n\
linux**   linux-gcc-static x86_64-linux-gnu              \"all linux gcc host\"\n\
windows** windows-msvc     x86_64-microsoft-win32-msvc14 \"all default windows\"\n";

fn with_tab(dir: &tempfile::TempDir) -> Controller {
    let tab = dir.path().join("buildtab");
    std::fs::write(&tab, TAB).unwrap();
    Controller::start(&dir.path().join("data"), |c| c.buildtab = Some(tab))
}

fn submit(controller: &Controller, source: &Value, more: &Value) -> Answer {
    let mut body = json!({"name": "libfoo", "version": "1.0", "source": source});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    controller.send("POST", "/api/v1/submissions", body.to_string().as_bytes())
}

fn with_manifest(controller: &Controller, manifest: &str) -> Value {
    let sha256 = controller.put(&archive(&[
        ("libfoo-1.0/buildfile", "./: {*/}\n"),
        ("libfoo-1.0/manifest", manifest),
    ]));
    json!({ "archive": sha256 })
}

/// Configuration and package configuration of each build.
fn built(answer: &Value) -> Vec<(String, String)> {
    let text = |build: &Value, name: &str| build[name].as_str().unwrap().to_owned();
    let builds = answer["builds"].as_array().unwrap();
    builds
        .iter()
        .map(|b| (text(b, "configuration"), text(b, "package_configuration")))
        .collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected
        .iter()
        .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
        .collect()
}

#[test]
fn the_manifest_says_what_is_built_and_the_submission_why_not() {
    let dir = tempfile::tempdir().unwrap();
    let controller = with_tab(&dir);
    let manifest = ": 1\nname: libfoo\nversion: 1.0\nrequires: c++14\nbuilds: all : -windows ; <b>No winsock.\n\
        build-exclude: **-static ; Plugins.\nnetwork-build-config: config.libfoo.network=true ; Enable networking.\n\
        network-builds: all\n";
    let answer = submit(
        &controller,
        &with_manifest(&controller, manifest),
        &json!({}),
    );
    assert_eq!(answer.status, 201, "{}", answer.text());
    let answer = answer.json();
    assert_eq!(
        built(&answer),
        pairs(&[
            ("linux-gcc", "default"),
            ("linux-gcc", "network"),
            ("linux-gcc-static", "network"),
            ("windows-msvc", "network"),
        ])
    );
    let excluded = json!([
        {"configuration": "linux-gcc-static", "target": "x86_64-linux-gnu", "package_configuration": "default",
         "why": "\"build-exclude: **-static\": Plugins."},
        {"configuration": "windows-msvc", "target": "x86_64-microsoft-win32-msvc14", "package_configuration": "default",
         "why": "\"builds: all : -windows\": <b>No winsock."},
    ]);
    assert_eq!(answer["excluded"], excluded);
    let id = answer["id"].as_str().unwrap();
    let again = controller.get(&format!("/api/v1/submissions/{id}")).json();
    assert_eq!(again["excluded"], excluded);
    let page = controller.get(&format!("/submissions/{id}")).text();
    assert!(
        page.contains("Left out") && page.contains("&#60;b&#62;No winsock."),
        "{page}"
    );
    assert!(page.contains("network"), "{page}");
    let build = answer["builds"][1]["id"].as_str().unwrap();
    let page = controller.get(&format!("/builds/{build}")).text();
    assert!(
        page.contains("<dt>Package configuration</dt><dd>network</dd>"),
        "{page}"
    );

    // The tasks: one for each package configuration, and nothing for what is left out.
    let take = || {
        controller
            .agent("/?build-task", &[], &request("0.17.0"))
            .text()
    };
    let task = take();
    assert_eq!(field(&task, "target"), "x86_64-linux-gnu");
    assert_eq!(field(&task, "requires"), "c++14");
    assert_eq!(field(&task, "package-config"), "");
    assert_eq!(field(&task, "host"), "");
    let task = take();
    assert_eq!(field(&task, "package-config"), "config.libfoo.network=true");
    let task = take();
    assert_eq!(field(&task, "host"), "true");
    assert_eq!(take(), ": 1\nsession:\n");
}

#[test]
fn a_package_that_is_built_nowhere_is_kept_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let controller = with_tab(&dir);
    let source = with_manifest(
        &controller,
        ": 1\nname: libfoo\nversion: 1.0\nbuilds: none ; Header only.\n",
    );
    let answer = submit(&controller, &source, &json!({}));
    assert_eq!(answer.status, 201, "{}", answer.text());
    let answer = answer.json();
    assert_eq!(answer["builds"], json!([]));
    assert_eq!(answer["excluded"].as_array().unwrap().len(), 3);
    let page = controller.get(&format!("/submissions/{}", answer["id"].as_str().unwrap()));
    assert!(page.text().contains("not to be built in any configuration"));
    // What is asked for by name is still for the package to say; what overrides it is not.
    let chosen = json!({"configurations": ["linux-gcc-static"]});
    assert_eq!(
        submit(&controller, &source, &chosen).json()["builds"],
        json!([])
    );
    let over = json!({"configurations": ["linux-gcc-static"], "overrides": "builds: all\n"});
    assert_eq!(
        built(&submit(&controller, &source, &over).json()),
        pairs(&[("linux-gcc-static", "default")])
    );
}

#[test]
fn sources_that_say_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let controller = with_tab(&dir);
    let default = pairs(&[("linux-gcc", "default"), ("windows-msvc", "default")]);
    let repository = json!({"repository": {"url": "https://pkg.x.org/1/a"}});
    let none = json!({"archive": controller.archive()});
    let other =
        json!({"archive": controller.put(&archive(&[("manifest", "Manifest-Version: 1.0\n")]))});
    for source in [&repository, &none, &other] {
        let answer = submit(&controller, source, &json!({}));
        assert_eq!(built(&answer.json()), default, "{}", answer.text());
        // Whoever names one wants it, whatever its class.
        let answer = submit(
            &controller,
            source,
            &json!({"configurations": ["linux-gcc-static"]}),
        );
        assert_eq!(
            built(&answer.json()),
            pairs(&[("linux-gcc-static", "default")])
        );
    }
    let over = json!({"overrides": "builds: all\nx-build-config: a=b\nx-builds: linux : &gcc\n"});
    let answer = submit(&controller, &repository, &over);
    assert_eq!(
        built(&answer.json()),
        pairs(&[
            ("linux-gcc", "default"),
            ("linux-gcc", "x"),
            ("linux-gcc-static", "default"),
            ("linux-gcc-static", "x"),
            ("windows-msvc", "default"),
        ])
    );
}

#[test]
fn what_cannot_be_read_is_refused_and_nothing_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let controller = with_tab(&dir);
    let many: String = (0..300).map(|n| format!("build-exclude: c{n}\n")).collect();
    let bomb = {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1 << 40);
        header.set_path("zeros").unwrap();
        header.set_cksum();
        tar.append(&header, std::io::empty()).unwrap();
        gzip(&tar.into_inner().unwrap())
    };
    let manifest = |text: &str| with_manifest(&controller, text);
    let put = |bytes: &[u8]| json!({ "archive": controller.put(bytes) });
    for (source, more, expected) in [
        (
            manifest(": 1\nbuilds: gcc &\n"),
            json!({}),
            "manifest:2:9: error: invalid package builds",
        ),
        (manifest(": 1\nname\n"), json!({}), "manifest:2:"),
        (
            manifest(&format!(": 1\n{many}")),
            json!({}),
            "more than 256",
        ),
        (manifest(": 1\nx: \u{7}\n"), json!({}), "manifest:2:"),
        (
            manifest(": 1\n"),
            json!({"overrides": "name: a"}),
            "`name` cannot be overridden",
        ),
        (manifest(": 1\n"), json!({"overrides": 1}), "cannot be read"),
        (
            put(&gzip(b"no tar at all, but long enough to be a part of one")),
            json!({}),
            "no gzip-compressed tar",
        ),
        (put(b"\x1f\x8bnothing"), json!({}), "no gzip-compressed tar"),
        (put(&bomb), json!({}), "it unpacks to more than 6144 MiB"),
    ] {
        let answer = submit(&controller, &source, &more);
        assert_eq!(answer.status, 400, "{source} {more}: {}", answer.text());
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(controller.get("/api/v1/builds").json()["builds"], json!([]));
}

/// However many builds a submission leaves out, an answer has so many.
#[test]
fn what_is_left_out_comes_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    controller.submit("foo", "1");
    let excluded: Vec<Value> = (0..1100)
        .map(|n| json!({ "configuration": format!("c{n}"), "target": "t", "package_configuration": "default", "why": "so" }))
        .collect();
    let url = format!(
        "sqlite://{}",
        dir.path().join("controller.sqlite").display()
    );
    sqlx::any::install_default_drivers();
    runtime().block_on(async {
        let mut connection = sqlx::AnyConnection::connect(&url).await.unwrap();
        let update = sqlx::query("UPDATE submissions SET excluded = $1");
        let update = update.bind(Value::from(excluded.clone()).to_string());
        update.execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    });
    let mut answer = controller.get("/api/v1/submissions/1").json();
    let mut next = answer["excluded_next"].take();
    let mut found = answer["excluded"].as_array().unwrap().clone();
    assert_eq!(found.len(), 500);
    while let Some(after) = next.as_str() {
        let mut page = controller
            .get(&format!("/api/v1/submissions/1/excluded?after={after}"))
            .json();
        assert!(page["excluded"].as_array().unwrap().len() <= 500);
        found.extend(page["excluded"].as_array().unwrap().clone());
        next = page["next"].take();
    }
    assert_eq!(found, excluded);
    let later = controller.get("/api/v1/submissions/1?after=1").json();
    assert_eq!(
        (&later["excluded"], &later["excluded_next"]),
        (&json!([]), &Value::Null)
    );
    for (path, status) in [
        ("1/excluded?after=x", 400),
        ("1/excluded?after=5000", 200),
        ("2/excluded", 404),
    ] {
        let answer = controller.get(&format!("/api/v1/submissions/{path}"));
        assert_eq!(answer.status, status, "{path}");
    }
    let page = controller.get("/submissions/1").text();
    assert_eq!(page.matches("<td>so</td>").count(), 200);
    assert!(page.contains("And 900 more"), "{page}");
}

/// What may be megabytes each is not read for a list.
#[test]
fn a_list_of_submissions_reads_what_it_shows() {
    on_both(async |place| {
        let store = place.open().await;
        store::submit(&store, "foo", 0).await;
        let mut connection = sqlx::AnyConnection::connect(&place.url()).await.unwrap();
        let damage = sqlx::query("UPDATE submissions SET particulars = 'x', excluded = 'x'");
        damage.execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        assert!(store.submission(1).await.is_err());
        let (all, next) = store.submissions(None, None, 10).await.unwrap();
        assert_eq!((all[0].name.as_str(), all.len(), next), ("foo", 1, None));
        store.close().await;
    });
}
