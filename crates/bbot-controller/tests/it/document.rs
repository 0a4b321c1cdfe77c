//! The document that describes the API, against what the API answers.

use serde_json::{Value, json};

use crate::cluster::on_both;
use crate::support::{Answer, Controller, result};

/// The document of a controller.
struct Document(Value);

impl Document {
    fn of(controller: &Controller) -> Self {
        Self(controller.get("/api/v1/openapi.json").json())
    }

    /// How the document describes a request: its path there and what it says of the method.
    fn operation(&self, method: &str, path: &str) -> (String, &Value) {
        let segments: Vec<&str> = path.split('?').next().unwrap().split('/').collect();
        let fits = |template: &str| {
            let parts: Vec<&str> = template.split('/').collect();
            parts.len() == segments.len()
                && parts
                    .iter()
                    .zip(&segments)
                    .all(|(part, segment)| part.starts_with('{') || part == segment)
        };
        let paths = self.0["paths"].as_object().unwrap();
        let (template, item) = paths
            .iter()
            .find(|(template, _)| fits(template))
            .unwrap_or_else(|| panic!("{path} is not described"));
        let operation = &item[&method.to_lowercase()];
        assert!(
            operation.is_object(),
            "{method} {template} is not described"
        );
        (template.clone(), operation)
    }

    /// That an answer is one that is described; what it answers to, for the list of what was tried.
    fn check(&self, method: &str, path: &str, answer: &Answer) -> (String, u16) {
        let (template, operation) = self.operation(method, path);
        let shown = format!("{method} {path}: {} {}", answer.status, answer.text());
        let described = &operation["responses"][answer.status.to_string()];
        assert!(described.is_object(), "not described: {shown}");
        if answer.body.is_empty() {
            assert!(described["content"].is_null(), "{shown}");
            return (format!("{method} {template}"), answer.status);
        }
        let kind = answer.header("content-type").unwrap_or_default();
        let kind = kind.split(';').next().unwrap();
        let content = &described["content"][kind];
        assert!(content.is_object(), "{kind} is not described: {shown}");
        if kind == "application/json" {
            let mut schema = content["schema"].clone();
            close(&mut schema, &self.0);
            let mut components = self.0["components"].clone();
            close(&mut components, &self.0);
            schema["components"] = components;
            let schema = jsonschema::draft202012::options()
                .should_validate_formats(true)
                .build(&schema)
                .unwrap_or_else(|e| panic!("{e}: {shown}"));
            let errors: Vec<String> = schema
                .iter_errors(&answer.json())
                .map(|e| format!("{} {e}", e.instance_path()))
                .collect();
            assert!(errors.is_empty(), "{errors:?}: {shown}");
        }
        (format!("{method} {template}"), answer.status)
    }
}

/// Makes a schema refuse what it does not name, so that an answer cannot have more than is described. What is put together of
/// several is closed as a whole: each part stands there itself, since the component that it names is closed.
fn close(schema: &mut Value, document: &Value) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::Array(parts)) = map.get_mut("allOf") {
                for part in parts {
                    if let Some(name) = part["$ref"].as_str() {
                        *part = document.pointer(&name[1..]).unwrap().clone();
                    }
                }
            }
            map.values_mut().for_each(|value| close(value, document));
            if let Some(Value::Array(parts)) = map.get_mut("allOf") {
                for part in parts.iter_mut().filter_map(Value::as_object_mut) {
                    part.remove("unevaluatedProperties");
                }
            }
            let is_object = map.get("type").is_some_and(|t| t == "object");
            if (is_object && map.contains_key("properties")) || map.contains_key("allOf") {
                map.insert("unevaluatedProperties".into(), json!(false));
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|value| close(value, document)),
        _ => {}
    }
}

/// Builds in all states, with a result that has logs.
fn fill(controller: &Controller) {
    controller.submit("libfoo", "1.0");
    let session = controller.take();
    let mut text = result(&session, "libfoo", "1.0", "warning");
    text.push_str("update-status: warning\nupdate-log: \\\nwarning: w\n\\\n");
    assert_eq!(controller.agent("/?build-result", &[], &text).status, 200);
    controller.submit("libbar", "2.0");
    controller.take();
    let repository = json!({"repository": {"url": "https://pkg.example.org/1/a", "type": "pkg"}});
    controller.submit_source("libbaz", "3.0", &repository);
}

#[test]
fn answers_are_as_they_are_described() {
    on_both(answers_are_as_they_are_described_in);
}

fn answers_are_as_they_are_described_in(database: Option<String>) {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |c| {
        c.approve_agents = true;
        c.database = database;
    });
    controller.agent("/?build-task", &[], &crate::support::request("0.7.0"));
    let waiting = controller.get("/api/v1/agents");
    let approve = "/api/v1/agents/bot/approve";
    let approved = controller.send("POST", approve, b"");
    assert_eq!(approved.status, 200, "{}", approved.text());
    fill(&controller);
    let document = Document::of(&controller);
    assert_eq!(document.0["openapi"], "3.1.0");
    document.check("GET", "/api/v1/agents", &waiting);
    let approved = document.check("POST", approve, &approved);
    assert_eq!(document.0["servers"][0]["url"], controller.url(""));

    let mut tried: Vec<(String, u16)> = vec![approved];
    for (path, status) in [
        ("/api/v1/openapi.json", 200),
        ("/api/v1/builds", 200),
        ("/api/v1/builds?limit=1", 200),
        (
            "/api/v1/builds?package=libf*&state=built&status=warning",
            200,
        ),
        ("/api/v1/builds?limit=0", 400),
        ("/api/v1/builds?before=x", 400),
        ("/api/v1/builds/1", 200),
        ("/api/v1/builds/2", 200),
        ("/api/v1/builds/3", 200),
        ("/api/v1/builds/4", 404),
        ("/api/v1/builds/1/log", 200),
        ("/api/v1/builds/1/log?follow=1", 200),
        ("/api/v1/builds/1/log?raw=x", 400),
        ("/api/v1/builds/3/log", 404),
        ("/api/v1/builds/1/log/update", 200),
        ("/api/v1/builds/1/log/install", 404),
        ("/api/v1/builds/1/log/update?attempt=x", 400),
        ("/api/v1/builds/1/attempts", 200),
        ("/api/v1/builds/9/attempts", 404),
        ("/api/v1/builds/1/attempts?limit=x", 400),
        ("/api/v1/submissions", 200),
        ("/api/v1/submissions?name=libf*&limit=1", 200),
        ("/api/v1/submissions?before=x", 400),
        ("/api/v1/submissions/1", 200),
        ("/api/v1/submissions/3", 200),
        ("/api/v1/submissions/9", 404),
        ("/api/v1/submissions/1/excluded", 200),
        ("/api/v1/submissions/1/excluded?after=x", 400),
        ("/api/v1/submissions/9/excluded", 404),
        ("/api/v1/agents?limit=1&after=a", 200),
        ("/api/v1/agents?limit=0", 400),
        ("/api/v1/configurations", 200),
        ("/api/v1/agents", 200),
    ] {
        let answer = controller.get(path);
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        tried.push(document.check("GET", path, &answer));
    }
    let archive = controller.archive();
    let name = "0".repeat(64);
    let source = json!({ "archive": archive });
    let good = json!({"name": "libfoo", "version": "1.1", "source": source}).to_string();
    let (known, other) = (
        format!("/api/v1/archives/{archive}"),
        format!("/api/v1/archives/{name}"),
    );
    let large = " ".repeat(100_000);
    for (method, path, body, status) in [
        ("PUT", known.as_str(), "", 200),
        ("PUT", &other, "x", 400),
        ("POST", "/api/v1/submissions", &good, 201),
        ("POST", "/api/v1/submissions", "{}", 400),
        ("POST", "/api/v1/submissions", &large, 413),
        (
            "POST",
            "/api/v1/builds/1/rebuild",
            r#"{"reason": "again"}"#,
            200,
        ),
        ("POST", "/api/v1/builds/1/rebuild", "", 200),
        ("POST", "/api/v1/builds/1/rebuild", "[]x", 400),
        ("POST", "/api/v1/builds/99/rebuild", "", 404),
        ("POST", "/api/v1/builds/1/rebuild", &large, 413),
        (
            "POST",
            "/api/v1/builds/1/cancel",
            r#"{"reason": "enough"}"#,
            200,
        ),
        ("POST", "/api/v1/builds/1/cancel", "", 200),
        ("POST", "/api/v1/builds/1/cancel", "[]x", 400),
        ("POST", "/api/v1/builds/99/cancel", "", 404),
        ("POST", "/api/v1/submissions/1/cancel", "", 200),
        ("POST", "/api/v1/submissions/99/cancel", "", 404),
        (
            "POST",
            "/api/v1/agents/bot/drain",
            r#"{"reason": "x"}"#,
            200,
        ),
        ("POST", "/api/v1/agents/%00/drain", "", 400),
        ("POST", "/api/v1/agents/bot/resume", "", 200),
        ("POST", "/api/v1/agents/bot/approve", "", 404),
        ("POST", "/api/v1/agents/bot/approve", r#"{"key": "x"}"#, 400),
        ("POST", "/api/v1/agents/bot/refuse", "", 200),
        ("POST", "/api/v1/agents/bot/refuse", "", 404),
    ] {
        let answer = controller.send(method, path, body.as_bytes());
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        tried.push(document.check(method, path, &answer));
        let stranger = crate::support::curl(&["-X", method, &controller.url(path)], b"");
        assert_eq!(stranger.status, 401, "{method} {path}");
        tried.push(document.check(method, path, &stranger));
    }

    let token =
        r#"{"name": "nightly", "scopes": ["read", "submit"], "expires": "2030-01-01T00:00:00Z"}"#;
    for (method, path, body, status) in [
        ("POST", "/api/v1/tokens", token, 201),
        ("POST", "/api/v1/tokens", token, 409),
        ("POST", "/api/v1/tokens", "{}", 400),
        ("GET", "/api/v1/tokens", "", 200),
        ("GET", "/api/v1/tokens?limit=x", "", 400),
        ("DELETE", "/api/v1/tokens/nightly", "", 204),
        ("DELETE", "/api/v1/tokens/nightly", "", 404),
    ] {
        let answer = controller.send(method, path, body.as_bytes());
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        tried.push(document.check(method, path, &answer));
    }

    // Whatever is described was tried, with what it gives when all goes well.
    for (path, item) in document.0["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let name = format!("{} {path}", method.to_uppercase());
            assert!(
                tried.iter().any(|(n, status)| *n == name && *status < 300),
                "{name} was not tried"
            );
        }
    }
}

/// What a handler takes and what the document says that it takes is the same.
#[test]
fn parameters_are_those_that_are_described() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    fill(&controller);
    let document = Document::of(&controller);
    for path in [
        "/api/v1/builds",
        "/api/v1/builds/1/attempts",
        "/api/v1/builds/1/log",
        "/api/v1/submissions",
        "/api/v1/submissions/1/excluded",
        "/api/v1/agents",
    ] {
        let (_, operation) = document.operation("GET", path);
        let described = operation["parameters"].as_array().unwrap().iter();
        let described: Vec<&str> = described
            .filter(|p| p["in"] == "query")
            .map(|p| p["name"].as_str().unwrap())
            .collect();
        let refused = controller.get(&format!("{path}?nothing=1"));
        assert_eq!(refused.status, 400);
        let sentence = refused.json()["error"].as_str().unwrap().to_owned();
        assert_eq!(
            sentence,
            format!(
                "unknown parameter \"nothing\"; there are: {}",
                described.join(", ")
            )
        );
    }
}
