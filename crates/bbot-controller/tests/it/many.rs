//! Lists of much, and what is asked for with long words.

use serde_json::{Value, json};

use crate::support::Controller;

/// A controller with so many configurations.
fn with_configurations(dir: &tempfile::TempDir, number: usize) -> Controller {
    let tab = dir.path().join("buildtab");
    let lines: Vec<String> = (0..number)
        .map(|n| format!("linux** c{n:04} x86_64-linux-gnu \"all default\"\n"))
        .collect();
    std::fs::write(&tab, lines.concat()).unwrap();
    Controller::start(&dir.path().join("data"), |c| c.buildtab = Some(tab))
}

fn names(page: &Value) -> Vec<String> {
    let builds = page["builds"].as_array().unwrap();
    let name = |build: &Value| build["configuration"].as_str().unwrap().to_owned();
    builds.iter().map(name).collect()
}

#[test]
fn a_submission_of_many_builds_is_given_in_pages() {
    const BUILDS: usize = 1100;
    let dir = tempfile::tempdir().unwrap();
    let controller = with_configurations(&dir, BUILDS);
    let source = json!({ "repository": { "url": "https://example.org/1/x" } });
    let body = json!({ "name": "a", "version": "1", "source": source });
    let made = controller.send("POST", "/api/v1/submissions", body.to_string().as_bytes());
    assert_eq!(made.status, 201, "{}", made.text());
    let made = made.json();
    let path = format!("/api/v1/submissions/{}", made["id"].as_str().unwrap());
    let first = controller.get(&path).json();
    assert_eq!(first, made, "what is made is the first page");
    let (mut page, mut all) = (made, Vec::new());
    loop {
        let found = names(&page);
        assert!(found.len() <= 500);
        all.extend(found);
        let Some(next) = page["next"].as_str() else {
            break;
        };
        page = controller.get(&format!("{path}?after={next}")).json();
    }
    let expected: Vec<String> = (0..BUILDS).map(|n| format!("c{n:04}")).collect();
    assert!(all == expected, "{}", all.len());
    for bad in ["after=x", "before=1"] {
        assert_eq!(
            controller.get(&format!("{path}?{bad}")).status,
            400,
            "{bad}"
        );
    }
    assert_eq!(
        names(&controller.get(&format!("{path}?after=999999")).json()).len(),
        0
    );

    // Of the page too: what there is of it leads on.
    let mut link = Some("/submissions/1".to_owned());
    let mut shown = 0;
    while let Some(page) = link {
        let answer = controller.get(&page);
        assert_eq!(answer.status, 200);
        let text = answer.text();
        assert!(text.contains("bbot cancel --submission 1"));
        shown += (0..BUILDS)
            .filter(|n| text.contains(&format!("c{n:04}")))
            .count();
        link = text
            .split_once("/submissions/1?after=")
            .map(|(_, rest)| format!("/submissions/1?after={}", rest.split('"').next().unwrap()));
    }
    assert_eq!(shown, BUILDS);

    let cancelled = controller
        .send("POST", &format!("{path}/cancel"), b"")
        .json();
    assert_eq!(cancelled["cancelled"].as_array().unwrap().len(), BUILDS);
    assert_eq!(names(&cancelled).len(), 500);
    assert!(
        !controller
            .get("/submissions/1")
            .text()
            .contains("bbot cancel")
    );
}

#[test]
fn long_patterns_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    controller.submit("foo", "1");
    for list in [
        "/api/v1/builds?package=",
        "/api/v1/builds?configuration=",
        "/api/v1/submissions?name=",
        "/?package=",
        "/?configuration=",
    ] {
        for (word, status) in [
            ("f*".to_owned(), 200),
            ("*".repeat(256), 200),
            ("x".repeat(257), 400),
            ("*".repeat(4_000), 400),
            // More than a head may have.
            ("*".repeat(60_000), 431),
        ] {
            let answer = controller.get(&format!("{list}{word}"));
            assert_eq!(answer.status, status, "{list} {}", word.len());
        }
    }
}
