//! What builds ask of agents beyond their machines: interactive builds, auxiliary machines, services, custom bots. By the requests that
//! agents of both eras of the original send.

use std::path::Path;

use serde_json::{Value, json};

use crate::challenge;
use crate::sessions::OURS;
use crate::support::{Answer, Controller, archive, field, has, request};

const TAB: &str = "linux_debian_12*-gcc_13.1 gcc x86_64-linux-gnu\n\
    linux_debian_12*-gcc_13.1 gcc-O3 x86_64-linux-gnu \"all\"\n";

fn start(dir: &Path, change: impl FnOnce(&mut bbot_controller::Config)) -> Controller {
    let buildtab = dir.join("buildtab");
    std::fs::write(&buildtab, TAB).unwrap();
    Controller::start(&dir.join("data"), |config| {
        config.buildtab = Some(buildtab);
        change(config);
    })
}

fn interactive(config: &mut bbot_controller::Config) {
    let login = bbot_controller::login::Login::parse("bot ssh -p 22[0-9]+ bbot@bot").unwrap();
    config.logins = vec![login];
}

fn post(controller: &Controller, more: &Value) -> Answer {
    let mut body = json!({ "name": "foo", "version": "1.0.0", "source": { "repository": { "url": "https://example.org/1/x" } } });
    let fields = body.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    controller.send("POST", "/api/v1/submissions", body.to_string().as_bytes())
}

/// Submits it; the number of its only build.
fn submit(controller: &Controller, more: &Value) -> String {
    let answer = post(controller, more);
    assert_eq!(answer.status, 201, "{}", answer.text());
    let builds = answer.json()["builds"].as_array().unwrap().clone();
    assert_eq!(builds.len(), 1, "{builds:?}");
    builds[0]["id"].as_str().unwrap().to_owned()
}

/// A source whose package manifest has these values.
fn manifest(controller: &Controller, values: &str) -> Value {
    let text = format!(": 1\nname: foo\nversion: 1.0.0\n{values}");
    let sha256 = controller.put(&archive(&[("foo-1.0.0/manifest", &text)]));
    json!({ "source": { "archive": sha256 } })
}

/// The request of an agent of today's original, with these values and further machines.
fn head(values: &str, machines: &str) -> String {
    let request = request("0.17.0-a.1").replacen("\n:\n", &format!("\n{values}:\n"), 1);
    format!("{request}{machines}")
}

fn auxiliary(name: &str, ram: &str) -> String {
    format!(":\nid: 1\nname: {name}\nsummary: S\nrole: auxiliary\n{ram}")
}

fn asked(controller: &Controller, query: &str, body: &str) -> String {
    let answer = controller.agent(query, &[], body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

fn session(text: &str) -> String {
    field(text, "session")
}

fn result(session: &str, status: &str) -> String {
    crate::support::result(session, "foo", "1.0.0", status)
}

fn waits(controller: &Controller, build: &str) -> (String, String) {
    let waits = controller.build(build)["waits"].clone();
    let text = |name: &str| waits[name].as_str().unwrap().to_owned();
    (text("code"), text("sentence"))
}

const LOGIN: &str = "interactive-mode: both\ninteractive-login: ssh -p 2201 bbot@bot\n";

#[test]
fn an_interactive_build_is_for_agents_that_say_how_to_log_in() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path(), interactive);
    let gcc = json!({ "configurations": ["gcc"] });
    let plain = submit(&controller, &gcc);
    let with = |configurations: &Value| json!({ "interactive": "error", "configurations": configurations });
    let build = submit(&controller, &with(&json!(["gcc"])));
    let shown = controller.build(&build);
    assert_eq!(
        (&shown["breakpoint"], &shown["login"]),
        (&json!("error"), &Value::Null)
    );

    // It is one build, or none.
    let answer = post(
        &controller,
        &json!({ "interactive": "error", "configurations": ["gcc", "gcc-O3"] }),
    );
    assert_eq!(answer.status, 400);
    assert!(
        answer.text().contains(
            "this is 2: gcc x86_64-linux-gnu (default), gcc-O3 x86_64-linux-gnu (default)"
        ),
        "{}",
        answer.text()
    );
    for breakpoint in ["", "a b", &"x".repeat(129)] {
        let answer = post(
            &controller,
            &json!({ "interactive": breakpoint, "configurations": ["gcc"] }),
        );
        assert_eq!(answer.status, 400, "{breakpoint}");
    }

    // Agents that do not take them, of either era, get the other one.
    let old = session(&asked(&controller, "/?build-task", &request("0.7.0")));
    assert!(!old.is_empty());
    assert_eq!(controller.build(&plain)["state"], "building");
    for (query, body) in [
        ("/?build-task", request("0.7.0")),
        ("/?build-task", head("", "")),
        ("/?build-task", head("interactive-mode: false\n", "")),
        ("/?build-task&interactive=true", head("", "")),
        ("/?build-task&interactive=false", head(LOGIN, "")),
        (
            "/?build-task&interactive=false",
            head("interactive-mode: both\ninteractive-login: x\n", ""),
        ),
    ] {
        assert_eq!(
            session(&asked(&controller, query, &body)),
            "",
            "{query} {body}"
        );
        let (code, sentence) = waits(&controller, &build);
        assert_eq!(code, "no-interactive", "{query} {body}");
        assert!(
            sentence.contains("does not take interactive builds"),
            "{sentence}"
        );
    }

    // A login that nobody knows, and none.
    for (login, expected) in [
        (
            "interactive-login: ssh root@bot\n",
            "unable to match login info 'bot ssh root@bot'",
        ),
        (
            "interactive-login: ssh -p 2201 bbot@bot; rm\n",
            "unable to match login info",
        ),
        ("", "interactive-login is missing"),
    ] {
        let body = head(&format!("interactive-mode: true\n{login}"), "");
        let answer = controller.agent("/?build-task", &[], &body);
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains(expected), "{}", answer.text());
    }

    // The interactive one is forced, so that it goes first here, and is shown with its login while it builds.
    let plain = submit(
        &controller,
        &json!({ "configurations": ["gcc"], "priority": 2 }),
    );
    let task = asked(&controller, "/?build-task", &head(LOGIN, ""));
    assert_eq!(field(&task, "interactive"), "error");
    let shown = controller.build(&build);
    assert_eq!(shown["login"], "ssh -p 2201 bbot@bot");
    let page = controller.get(&format!("/builds/{build}")).text();
    assert!(
        page.contains("stops at error") && page.contains("log in: ssh -p 2201 bbot@bot"),
        "{page}"
    );
    // Who takes only such has nothing more to do; the other one is there still.
    let only = LOGIN.replace("both", "true");
    assert_eq!(
        session(&asked(&controller, "/?build-task", &head(&only, ""))),
        ""
    );
    assert_eq!(waits(&controller, &plain).0, "no-interactive");
    assert_eq!(
        asked(
            &controller,
            "/?build-task&interactive=true",
            &head(LOGIN, "")
        ),
        ": 1\nsession:\n"
    );
    let task2 = asked(&controller, "/?build-task", &head(LOGIN, ""));
    assert_eq!(field(&task2, "interactive"), "");
    assert_eq!(controller.build(&plain)["state"], "building");

    assert_eq!(
        controller
            .agent("/?build-result", &[], &result(&session(&task), "error"))
            .status,
        200
    );
    let shown = controller.build(&build);
    assert_eq!(
        (&shown["status"], &shown["login"]),
        (&json!("error"), &Value::Null)
    );
    assert_eq!(shown["checked"], Value::Null, "it is not rebuilt by itself");
}

#[test]
fn an_interactive_build_is_handed_out_once() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path(), interactive);
    let new = || {
        submit(
            &controller,
            &json!({ "interactive": "warning", "configurations": ["gcc"] }),
        )
    };
    // Given back.
    let build = new();
    let task = session(&asked(&controller, "/?build-task", &head(LOGIN, "")));
    assert_eq!(
        controller
            .agent("/?build-result", &[], &result(&task, "interrupt"))
            .status,
        200
    );
    let shown = controller.build(&build);
    assert_eq!(
        (&shown["state"], &shown["status"]),
        (&json!("built"), &json!("abort"))
    );
    let log = controller.get(&format!("/builds/{build}/log")).text();
    assert!(
        log.contains("this interactive build, bot") && log.contains("gave it back"),
        "{log}"
    );
    assert_eq!(
        session(&asked(&controller, "/?build-task", &head(LOGIN, ""))),
        ""
    );
    // Not heard of any more; who asks for a rebuild gets it.
    let build = new();
    let answer = controller.agent("/?build-task", OURS, &head(LOGIN, ""));
    assert!(!session(&answer.text()).is_empty());
    controller.clock.advance_seconds(61);
    assert_eq!(
        session(&asked(&controller, "/?build-task", &head(LOGIN, ""))),
        ""
    );
    assert_eq!(controller.build(&build)["status"], "abort");
    let log = controller.get(&format!("/builds/{build}/log")).text();
    assert!(log.contains("was not heard of in time"), "{log}");
    controller.send("POST", &format!("/api/v1/builds/{build}/rebuild"), b"{}");
    let task = asked(&controller, "/?build-task", &head(LOGIN, ""));
    assert_eq!(field(&task, "interactive"), "warning");
}

#[test]
fn without_known_logins_nothing_is_interactive() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path(), |_| {});
    let answer = post(
        &controller,
        &json!({ "interactive": "error", "configurations": ["gcc"] }),
    );
    assert_eq!(answer.status, 400);
    assert!(
        answer.text().contains("--interactive-login"),
        "{}",
        answer.text()
    );
    let build = submit(&controller, &json!({ "configurations": ["gcc"] }));
    // Who takes only such gets nothing, who takes both the other ones; nobody looks at the login.
    let only = head("interactive-mode: true\ninteractive-login: x\n", "");
    assert_eq!(session(&asked(&controller, "/?build-task", &only)), "");
    let (code, sentence) = waits(&controller, &build);
    assert_eq!(code, "no-interactive");
    assert_eq!(
        sentence,
        "1 agent has a machine for gcc, but it does not take builds that are not interactive."
    );
    let both = head("interactive-mode: both\ninteractive-login: x\n", "");
    assert_ne!(session(&asked(&controller, "/?build-task", &both)), "");
}

#[test]
fn one_that_waits_is_woken_for_a_lane_that_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path(), interactive);
    let url = controller.url("/?build-task");
    let began = std::time::Instant::now();
    let waits = controller.held(move || {
        let headers = ["Bbot-Agent: 1", "Bbot-Wait: 30"];
        crate::support::agent(&url, &headers, head(LOGIN, "").as_bytes()).text()
    });
    submit(
        &controller,
        &json!({ "interactive": "error", "configurations": ["gcc"] }),
    );
    assert_eq!(field(&waits.join().unwrap(), "interactive"), "error");
    assert!(began.elapsed().as_secs() < 20);
}

/// What waited before the start in a lane is known.
#[test]
fn lanes_are_known_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path(), interactive);
    let build = submit(
        &controller,
        &json!({ "interactive": "error", "configurations": ["gcc"] }),
    );
    drop(controller);
    let controller = start(dir.path(), interactive);
    assert_eq!(
        session(&asked(&controller, "/?build-task", &head("", ""))),
        ""
    );
    assert_eq!(waits(&controller, &build).0, "no-interactive");
    let task = asked(&controller, "/?build-task", &head(LOGIN, ""));
    assert_eq!(field(&task, "interactive"), "error");
    assert_eq!(controller.build(&build)["state"], "building");
}

#[test]
fn a_task_with_an_auxiliary_machine_is_said_as_the_original_does() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path(), |_| {});
    let source = manifest(&controller, "build-auxiliary: postgresql_*\n");
    submit(&controller, &source);
    let pg = auxiliary("x86_64_linux_debian_12-postgresql_16", "");
    let task = asked(&controller, "/?build-task", &head("", &pg));
    let sha256 = source["source"]["archive"].as_str().unwrap();
    let url = controller.url(&format!("/archives/{sha256}.tar.gz"));
    let line = format!("repository-url: {url}");
    // A line has 78 characters, with the backslash that says that it goes on.
    let (line, rest) = line.split_at(77);
    let expected = format!(
        ": 1\nsession: {}\nresult-url: {}\n:\nname: foo\nversion: 1.0.0\n{line}\\\n{rest}\n\
         machine: linux_debian_12-gcc_13.1\nauxiliary-machine: x86_64_linux_debian_12-postgresql_16\n\
         target: x86_64-linux-gnu\n",
        session(&task),
        controller.url("/?build-result"),
    );
    assert_eq!(task, expected);
}

#[test]
fn auxiliary_machines_are_those_that_the_package_wants() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path(), |_| {});
    let source = manifest(
        &controller,
        "build-auxiliary-db: *-postgresql* ; Tests.\nbuild-auxiliary-any: linux_debian_12-*\n",
    );
    let build = submit(&controller, &source);
    let shown = controller.build(&build);
    assert_eq!(
        shown["auxiliaries"],
        json!({ "db": "*-postgresql*", "any": "linux_debian_12-*" })
    );
    let pg = auxiliary(
        "x86_64-linux_debian_12-postgresql_16",
        "ram-minimum: 2097152\n",
    );
    let redis = auxiliary("x86_64-linux_debian_12-redis_7", "ram-minimum: 1048576\n");
    let mysql = auxiliary("x86_64-linux_debian_12-mysql_8", "");
    for (body, expected) in [
        (request("0.7.0"), "does not offer auxiliary machines"),
        (head("", ""), "that match linux_debian_12-*, *-postgresql*"),
        // One machine does not serve two environments.
        (head("", &pg), "does not offer"),
        (head("", &format!("{redis}{mysql}")), "does not offer"),
        // Too little memory for both.
        (
            head("auxiliary-ram: 3145727\n", &format!("{pg}{redis}")),
            "does not offer",
        ),
    ] {
        assert_eq!(
            session(&asked(&controller, "/?build-task", &body)),
            "",
            "{body}"
        );
        let (code, sentence) = waits(&controller, &build);
        assert_eq!(code, "no-auxiliary");
        assert!(sentence.contains(expected), "{sentence}");
    }
    // The greedy choice takes PostgreSQL for the first environment, and finds nothing for the other.
    let task = asked(
        &controller,
        "/?build-task",
        &head("auxiliary-ram: 3145728\n", &format!("{pg}{redis}")),
    );
    assert_eq!(
        field(&task, "auxiliary-machine-db"),
        "x86_64-linux_debian_12-postgresql_16"
    );
    assert_eq!(
        field(&task, "auxiliary-machine-any"),
        "x86_64-linux_debian_12-redis_7"
    );
    assert_eq!(field(&task, "auxiliary-environment-db"), "");
    let expected = json!([
        { "name": "any", "machine": "x86_64-linux_debian_12-redis_7" },
        { "name": "db", "machine": "x86_64-linux_debian_12-postgresql_16" },
    ]);
    assert_eq!(controller.build(&build)["auxiliary_machines"], expected);
    let page = controller.get(&format!("/builds/{build}")).text();
    assert!(
        page.contains("db: x86_64-linux_debian_12-postgresql_16"),
        "{page}"
    );
    assert_eq!(
        controller
            .agent("/?build-result", &[], &result(&session(&task), "success"))
            .status,
        200
    );
    let shown = controller.build(&build);
    assert_eq!(shown["auxiliary_machines"], expected);
    assert_eq!(shown["attempts"][0]["auxiliary_machines"], expected);

    // Names without a part.
    for (name, part) in [
        ("postgresql", "OS"),
        ("-x", "architecture"),
        ("x86_64-", "OS"),
    ] {
        let answer = controller.agent("/?build-task", &[], &head("", &auxiliary(name, "")));
        assert_eq!(answer.status, 400);
        assert!(
            answer.text().contains(&format!("no {part} component")),
            "{}",
            answer.text()
        );
    }
    // More than a task can have.
    let many: String = (0..10)
        .map(|n| format!("build-auxiliary-e{n}: *\n"))
        .collect();
    let answer = post(&controller, &manifest(&controller, &many));
    assert_eq!(answer.status, 201);
    assert_eq!(answer.json()["builds"], json!([]));
    let why = answer.json()["excluded"][0]["why"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        why,
        "it asks for 10 auxiliary machines, and a task can have 9"
    );
}

#[test]
fn builds_of_services_are_for_those_who_ask_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path(), |_| {});
    let new = |service: Value| {
        submit(
            &controller,
            &json!({ "configurations": ["gcc"], "service": service }),
        )
    };
    let ci = new(json!({ "type": "ci-github", "id": "run-17" }));
    let shown = controller.build(&ci);
    assert_eq!(shown["service"], "ci-github");
    let submission = shown["submission"].as_str().unwrap().to_owned();
    let answer = controller
        .get(&format!("/api/v1/submissions/{submission}"))
        .json();
    assert_eq!(
        answer["service"],
        json!({ "type": "ci-github", "id": "run-17" })
    );
    for bad in [
        json!({ "type": "", "id": "x" }),
        json!({ "type": "a b", "id": "x" }),
        json!({ "type": "a", "id": "" }),
        json!({ "type": "a", "id": "x".repeat(257) }),
        json!({ "type": "a" }),
        json!("a"),
    ] {
        let answer = post(
            &controller,
            &json!({ "configurations": ["gcc"], "service": bad }),
        );
        assert_eq!(answer.status, 400, "{}", answer.text());
    }
    for query in [
        "/?build-task&t=",
        "/?build-task&tenant_service_type=other",
        "/?build-task&t=&t=other",
    ] {
        assert_eq!(
            session(&asked(&controller, query, &head("", ""))),
            "",
            "{query}"
        );
    }
    let (code, sentence) = waits(&controller, &ci);
    assert_eq!(code, "no-service");
    assert!(
        sentence.contains("builds of the service ci-github"),
        "{sentence}"
    );
    let none = submit(&controller, &json!({ "configurations": ["gcc"] }));
    assert_eq!(
        session(&asked(&controller, "/?build-task&t=other", &head("", ""))),
        ""
    );
    assert_eq!(waits(&controller, &none).0, "no-service");
    let task = asked(&controller, "/?build-task&t=ci-github", &head("", ""));
    assert_eq!(controller.build(&ci)["state"], "building");
    // The result, below the submission's number, as agents of the original send it there.
    let wrong = controller.agent(
        "/@77?build-result",
        &[],
        &result(&session(&task), "success"),
    );
    assert_eq!(wrong.status, 400, "{}", wrong.text());
    assert!(wrong.text().contains("invalid session"), "{}", wrong.text());
    let path = format!("/@{submission}/?build-result");
    let text = result(&session(&task), "success").replacen("\n:\n", "\nagent-checksum: 1\n:\n", 1);
    assert_eq!(controller.agent(&path, &[], &text).status, 200);
    assert_eq!(controller.build(&ci)["status"], "success");
    assert_eq!(controller.get("/@1").status, 404);
    // Who says nothing takes any, also below a number, and also one of 2017.
    let other = new(json!({ "type": "other", "id": "1" }));
    let task = asked(
        &controller,
        &format!("/@{submission}?build-task&t="),
        &head("", ""),
    );
    assert_ne!(session(&task), "");
    assert_eq!(controller.build(&none)["state"], "building");
    assert_ne!(
        session(&asked(&controller, "/?build-task", &request("0.7.0"))),
        ""
    );
    assert_eq!(controller.build(&other)["state"], "building");
    let many: String = (0..17).map(|n| format!("&t=s{n}")).collect();
    let long = format!("&t={}", "x".repeat(65));
    for query in [many, long] {
        let answer = controller.agent(&format!("/?build-task{query}"), &[], &head("", ""));
        assert_eq!(answer.status, 400, "{query}");
    }
}

/// Signs a challenge as the original does.
fn sign(key: &Path, challenge: &str) -> Vec<u8> {
    let way = ["pkeyutl", "-sign", "-inkey", key.to_str().unwrap()];
    challenge::openssl(&way, challenge.as_bytes()).unwrap()
}

fn answered(session: &str, signature: &[u8]) -> String {
    challenge::answered(session, signature).replace("version: 1\n", "version: 1.0.0\n")
}

#[test]
fn custom_bots_build_what_names_their_key_and_nothing_else() {
    if !has("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (known, theirs) = (dir.path().join("known"), dir.path().join("theirs"));
    std::fs::create_dir(&known).unwrap();
    std::fs::create_dir(&theirs).unwrap();
    let (_, ours) = challenge::key(dir.path(), &known, "ours", "2048");
    let (key, fingerprint) = challenge::key(dir.path(), &theirs, "bot", "2048");
    let (other, stranger) = challenge::key(dir.path(), &theirs, "other", "2048");
    let pem = std::fs::read_to_string(theirs.join("bot.pem")).unwrap();
    let with = |fingerprint: &str| head(&format!("fingerprint: {fingerprint}\n"), "");
    for (door, unknown) in [("open", 200), ("keys", 401), ("approval", 200)] {
        let data = dir.path().join(door);
        std::fs::create_dir(&data).unwrap();
        let controller = start(&data, |config| {
            config.agent_keys = (door == "keys").then(|| known.clone());
            config.approve_agents = door == "approval";
        });
        let ask = |fingerprint: &str| controller.agent("/?build-task", &[], &with(fingerprint));
        assert_eq!(ask(&fingerprint).status, unknown, "{door}");
        let source = manifest(&controller, &format!("build-bot:\\\n{pem}\\\n"));
        let build = submit(&controller, &source);
        assert_eq!(controller.build(&build)["bots"], json!([fingerprint]));
        // Neither the operator's agents nor others.
        assert_eq!(session(&ask(&ours).text()), "", "{door}");
        let answer = ask(&stranger);
        assert_eq!(
            (answer.status, session(&answer.text()).is_empty()),
            (unknown, true),
            "{door}"
        );
        let old =
            request("0.7.0").replacen("\n:\n", &format!("\nfingerprint: {fingerprint}\n:\n"), 1);
        let answer = controller.agent("/?build-task", &[], &old);
        assert_eq!(session(&answer.text()), "", "{door}: one of 2017");
        let (code, sentence) = waits(&controller, &build);
        assert_eq!(code, "no-bot", "{door}");
        assert!(
            sentence.ends_with(&format!(
                "not one with a key that it names ({fingerprint})."
            )),
            "{sentence}"
        );

        // Its own agent, which proves it.
        let plain = submit(&controller, &json!({ "configurations": ["gcc"] }));
        let task = ask(&fingerprint).text();
        assert_eq!(
            controller.build(&build)["state"],
            "building",
            "{door}: {task}"
        );
        let (session_of, challenge) = (session(&task), field(&task, "challenge"));
        assert_eq!(challenge.len(), 64, "{door}");
        for wrong in [
            result(&session_of, "success"),
            answered(&session_of, &sign(&other, &challenge)),
        ] {
            let answer = controller.agent("/?build-result", OURS, &wrong);
            assert_eq!(answer.status, 403, "{door}: {}", answer.text());
        }
        let right = answered(&session_of, &sign(&key, &challenge));
        assert_eq!(controller.agent("/?build-result", &[], &right).status, 200);
        assert_eq!(controller.build(&build)["status"], "success", "{door}");
        // Nothing else is for it, where not anybody gets tasks; and nothing that waits names its key now.
        let answer = ask(&fingerprint);
        assert_eq!(answer.status, unknown, "{door}");
        let has_plain = controller.build(&plain)["state"] == "building";
        assert_eq!(has_plain, door == "open", "{door}");
        // Whose key is the operator's is no custom bot.
        if door == "keys" {
            let pem = std::fs::read_to_string(known.join("ours.pem")).unwrap();
            let source = manifest(&controller, &format!("build-bot:\\\n{pem}\\\n"));
            let build = submit(&controller, &source);
            // What is plain, and then nothing.
            for is_none in [false, true] {
                assert_eq!(session(&ask(&ours).text()).is_empty(), is_none);
            }
            let (code, sentence) = waits(&controller, &build);
            assert_eq!(code, "no-bot");
            let expected = format!("names only keys of the operator's own agents ({ours})");
            assert!(sentence.contains(&expected), "{sentence}");
        }
    }
}

#[test]
fn keys_out_of_packages_are_read_strictly() {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path(), |_| {});
    for value in [
        "x",
        "ssh-rsa AAAA",
        "\\\n-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n\\",
    ] {
        let answer = post(
            &controller,
            &manifest(&controller, &format!("build-bot:{value}\n")),
        );
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(
            answer.text().contains("invalid package build-bot"),
            "{}",
            answer.text()
        );
    }
}
